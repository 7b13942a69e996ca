"""What operators decide about the quarantine: back to the log, or away.

Promises: a retried entry is durable at the tail of the log before it leaves the quarantine; entries leave in reverse
order, so that after a crash at any point what is still in quarantine counts and its repetition is passed over: nothing
is lost, nothing overtakes. What later writes would be overwritten is refused by number. Holds in memory what is
retried, and one more entry. Does not wait for the replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from generated.understudy.replica.v1.replica_pb2 import RefusedEntry
from server.errors import WalError, WalFull
from server.replay.parcel import unpack
from server.replay.retry import Held, Overwritten, Plan, named, plan, repetition
from server.replay.withheld import Withheld
from server.wal.encoder import frame_bytes_of
from server.wal.limits import WalLimits
from server.wal.log import Log

_PAGE_ENTRIES = 1000
_PAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a retry would do. `objections` are what only `force` passes over."""

    seqs: list[int]
    objections: list[str]


@asynccontextmanager
async def _alone() -> AsyncIterator[None]:
    """A log that nobody else uses."""
    yield


class Requeue:
    """The operator's hand on the quarantine of an open log.

    `alone` keeps replay and writers out for as long as it is entered; `logged` hears, inside it, that entries became
    pending; `collection_of` turns an alias into its collection.
    """

    def __init__(
        self,
        log: Log,
        limits: WalLimits,
        kinds: Mapping[int, str],
        *,
        alone: Callable[[], AbstractAsyncContextManager[None]] = _alone,
        logged: Callable[[], None] = lambda: None,
        collection_of: Callable[[str], str] = str,
    ) -> None:
        self._log = log
        self._limits = limits
        self._kinds = kinds
        self._alone = alone
        self._logged = logged
        self._collection_of = collection_of
        self._one_at_a_time = asyncio.Lock()

    async def forecast(self, wanted: list[int] | None) -> Forecast:
        """What `retry` would do now. Changes nothing."""
        planned, overwritten = await self._plan(wanted)
        await self._look(overwritten, planned.first_seq - 1 if planned.repeat else self._log.last_seq)
        return Forecast(planned.seqs, self._objections(planned, overwritten))

    async def retry(
        self, wanted: list[int] | None, *, force: bool, expected: list[int] | None = None
    ) -> dict[int, int]:
        """Old sequence numbers to new ones. `expected` is what the operator was shown: anything else is refused."""
        async with self._one_at_a_time:
            planned, overwritten = await self._plan(wanted)
            if not planned.repeat:
                return {}
            # Most of the log is read while clients may still write.
            seen = await self._look(overwritten, planned.first_seq - 1)
            async with self._alone():
                again, _ = await self._plan(wanted)
                if again.seqs != planned.seqs or (expected is not None and expected != planned.seqs):
                    raise WalError("the quarantine has changed meanwhile", hint="Look at it and try again")
                await self._look(overwritten, seen)
                objections = self._objections(planned, overwritten)
                if objections and not force:
                    raise WalError(
                        "; ".join(objections),
                        hint="Drop what is out of date, or write it anew through a client; or retry with --force",
                    )
                return await self._repeat(planned)

    async def drop(
        self, seqs: list[int], give_up: Callable[[Sequence[RefusedEntry]], Awaitable[None]] | None = None
    ) -> None:
        """Let entries go for good; `give_up` is awaited before. Refused where one of them would still be sent: by what
        repeats it, or because a crash came before the cursor had passed it.
        """
        async with self._one_at_a_time, self._alone():
            present = {item.seq for item in await asyncio.to_thread(self._log.quarantined)}
            missing = [seq for seq in seqs if seq not in present]
            if missing:
                raise WalError(
                    f"entry {missing[0]} is not in quarantine", hint="`understudy wal quarantine list` shows what is"
                )
            pending = [seq for seq in seqs if seq > self._log.replayed_seq]
            if pending:
                raise WalError(
                    f"entry {pending[0]} is still pending (the process ended when it went to the quarantine)",
                    hint="Drop it once the replay has passed it: Qdrant is asked once more, and what it takes stays",
                )
            await self._refuse_repeated(set(seqs))
            if give_up is not None:
                await give_up(await asyncio.to_thread(self._withheld, set(seqs)))
            for seq in sorted(seqs, reverse=True):
                await self._log.release_quarantined(seq)

    def _withheld(self, seqs: set[int]) -> list[RefusedEntry]:
        """What Qdrant lacks of entries in quarantine; of one whose file is damaged, all."""
        withheld = Withheld()
        for held in self._held(seqs):
            withheld.note(held.parcel)
        entries = withheld.entries()
        return entries + [RefusedEntry(seq=seq) for seq in sorted(seqs - {entry.seq for entry in entries})]

    async def _refuse_repeated(self, seqs: set[int]) -> None:
        after = self._log.replayed_seq
        while records := await self._log.read(after, _PAGE_ENTRIES, _PAGE_BYTES):
            after = records[-1].seq
            for record in records:
                origin = unpack(record, self._kinds).entry.retry_of
                if origin in seqs:
                    raise WalError(
                        f"entry {record.seq} repeats entry {origin} (a retry was cut short) and would be sent",
                        hint=f"Retry entry {origin} again, or drop it once entry {record.seq} is replayed",
                    )

    async def _plan(self, wanted: list[int] | None) -> tuple[Plan, Overwritten]:
        planned = await asyncio.to_thread(plan, self._held, wanted)
        return planned, Overwritten(planned, self._held_one, self._kinds, self._collection_of)

    def _held(self, seqs: Collection[int] | None = None) -> Iterator[Held]:
        """What is in quarantine, all or these, one after the other: the quarantine may be larger than the memory."""
        for item, record in self._log.quarantined_entries(seqs):
            yield Held(unpack(record, self._kinds), item.code, item.details)

    def _held_one(self, seq: int) -> Held | None:
        return next(self._held((seq,)), None)

    async def _look(self, overwritten: Overwritten, after: int) -> int:
        """Show the entries after `after` to `overwritten`; returns the last one."""
        while records := await self._log.read(after, _PAGE_ENTRIES, _PAGE_BYTES):
            await asyncio.to_thread(overwritten.look_at, records)
            after = records[-1].seq
        return after

    def _objections(self, planned: Plan, overwritten: Overwritten) -> list[str]:
        found = []
        if planned.ahead:
            text = "would be held back again by what is in quarantine before or beside it"
            found.append(f"{named(planned.seqs)} {text}: retry or drop {named(planned.ahead)} first")
        if overwritten.seqs:
            text = "later writes to the same points or collection would be overwritten by the older ones"
            found.append(f"{text}: entries {named(overwritten.seqs)}")
        if planned.repeat and self._log.first_seq > planned.first_seq + 1:
            found.append(
                f"the log no longer holds the entries before {self._log.first_seq}: "
                "nobody can tell whether they wrote to the same points"
            )
        return found

    async def _repeat(self, planned: Plan) -> dict[int, int]:
        """To the tail of the log, all of it durable; then out of the quarantine, last first."""
        entries = [repetition(held, self._limits.entry_bytes, self._collection_of) for held in planned.repeat]
        size = sum(map(frame_bytes_of, entries))
        if self._log.total_bytes + size > self._limits.total_bytes:
            raise WalFull(f"the log has no room for the {size} bytes to retry (wal.total_bytes); nothing was changed")
        done = {}
        try:
            for held, entry in zip(planned.repeat, entries, strict=True):
                done[held.seq] = await self._log.append(entry)
        finally:
            if done:
                self._logged()
        for seq in reversed(planned.seqs):
            await self._log.release_quarantined(seq)
        return done
