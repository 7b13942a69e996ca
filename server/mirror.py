"""The log's first reader: keeps the replica up to date.

Promises: the replica gets every log entry once, in order, from the entry after the last one it holds; a replica that
comes back after a crash goes on where it stopped. Whoever read an acknowledgement finds the write in the replica
after `caught_up`. What cannot be read of the log is tried again for some seconds, then stepped over: every collection
is STALE from then on until it is copied again, so nobody waits for ever and nothing is silently different. Does not
promise that the replica is never behind; the lag is bounded by `mirror_queue_entries` while it runs. One that is away
holds up no write: the log keeps what it lacks.
"""

from __future__ import annotations

import asyncio
import errno
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from generated.understudy.wal.v1 import entry_pb2
from server import config
from server.errors import ReplicaRefused, ReplicaUnavailable, WalError
from server.telemetry import Telemetry
from server.wal.log import Log
from server.wal.record import EntryState, Record

# At start a replica that takes in no batch for some time counts as stuck: a batch is a second's work or so.
_APPLY_BYTES = 4 * 1024 * 1024
_KEPT_RESULTS = 10_000
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
# About 8 s, with pauses that double from the first to the longest.
_READ_TRIES = 12
# Of this process or machine, not of the bytes on the disk.
_PASSING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR))


class ApplyControl(Protocol):
    """What the mirror needs of the replica."""

    async def attach(self, request: control_pb.AttachRequest) -> control_pb.AttachResponse:
        """Tell the replica how far the log goes."""
        ...

    async def apply(self, request: control_pb.ApplyRequest) -> control_pb.ApplyResponse:
        """Apply log entries in order."""
        ...


async def _nobody_told() -> None:
    """Where nobody copies anything again."""


class Mirror:
    """Carries the log to the replica. Belongs to one event loop.

    `forgets_through_seq`: what points were before entries up to there is of no use any more; None = nobody will ask.
    `in_doubt`: Qdrant may have acknowledged writes that the log lacks, from before this process. `given_up`: what an
    operator took out of the quarantine for good; a replica that applies such an entry learns it in the same step.
    `on_new_replica` is called before anything is applied, when the replica holds nothing that the log holds. `on_gap`
    is awaited before entries are stepped over; it may raise ReplicaUnavailable.
    """

    def __init__(
        self,
        log: Log,
        control: ApplyControl,
        settings: config.Replica,
        telemetry: Telemetry,
        *,
        has_remote: bool = True,
        forgets_through_seq: Callable[[], int | None] = lambda: None,
        in_doubt: bool = False,
        given_up: Callable[[], Sequence[control_pb.RefusedEntry]] = tuple,
        on_new_replica: Callable[[], None] = lambda: None,
        on_gap: Callable[[], Awaitable[None]] = _nobody_told,
    ) -> None:
        self._in_doubt = in_doubt
        self._given_up = given_up
        self._on_new_replica = on_new_replica
        self._on_gap = on_gap
        self._batch_entries = settings.apply_batch_entries
        self._failed_reads = 0
        self.applied_seq = 0
        self.rewound = False
        self._log = log
        self._control = control
        self._settings = settings
        self._telemetry = telemetry
        self._has_remote = has_remote
        self._forgets_through_seq = forgets_through_seq
        self._results: OrderedDict[int, control_pb.Applied] = OrderedDict()
        self._moved = asyncio.Event()
        self._attached = asyncio.Event()
        self._detached = asyncio.Event()
        self._known_before = False

    @property
    def lag_entries(self) -> int:
        """Entries of the log that the replica lacks."""
        return max(0, self._log.last_seq - self.applied_seq)

    async def attached(self) -> None:
        """Wait until the replica is there and knows the log."""
        await self._attached.wait()

    def replica_restarted(self) -> None:
        """The process was replaced: ask it how far it is."""
        self._attached.clear()
        self._detached.set()
        self._wake()

    def replica_ended(self) -> None:
        """The process is gone, and no other one there yet: nobody who is bounded by its lag waits for it."""
        self._attached.clear()
        self._wake()

    async def run(self) -> None:
        """Apply until cancelled; outlives every crash of the replica."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                if not self._attached.is_set():
                    await self._attach()
                await self._apply_next()
                pause = _FIRST_PAUSE_SECONDS
            except (ReplicaUnavailable, ReplicaRefused) as error:
                # Refused, it may have refused something that passes; giving up would make everybody wait for ever.
                self._attached.clear()
                self._wake()
                self._telemetry.log.warning("replica is away", error=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _attach(self, first_seq: int = 0) -> None:
        """`first_seq`: where the log begins to be readable again."""
        # The replica may hold what this process has logged; beyond the log as opened it holds what a power cut took.
        last_seq = self._log.last_seq if self._known_before else self._log.opened_at_seq
        answer = await self._control.attach(
            control_pb.AttachRequest(
                last_seq=last_seq,
                log_id=self._log.log_id,
                no_remote=not self._has_remote,
                first_seq=max(self._log.first_seq, first_seq),
                in_doubt=self._in_doubt and not self._known_before,
            )
        )
        if not self._known_before and answer.applied_seq < max(1, self._log.first_seq):
            self._on_new_replica()
        self._known_before = True
        if given_up := self._given_up():
            # What it holds already: the command may have found no server, or a power cut has set the replica back.
            await self._control.apply(self._apply_request([], given_up))
        self.applied_seq = answer.applied_seq
        self.rewound = self.rewound or answer.rewound
        self._detached = asyncio.Event()
        self._attached.set()
        self._wake()

    async def _apply_next(self) -> None:
        if self._log.last_seq <= self.applied_seq and not await self._wait_for_entries():
            return
        records = await self._read()
        if not records:
            return
        first, last = records[0].seq, records[-1].seq
        given_up = [entry for entry in self._given_up() if first <= entry.seq <= last]
        answer = await self._control.apply(self._apply_request(records, given_up))
        # Qdrant has answered the others; nobody asks for the replica's answer to them.
        awaited = {record.seq for record in records if record.state is EntryState.PENDING}
        self._results.update((result.seq, result) for result in answer.results if result.seq in awaited)
        while len(self._results) > _KEPT_RESULTS:
            self._results.popitem(last=False)
        self.applied_seq = max(self.applied_seq, answer.applied_seq)
        self._telemetry.metrics.mirror_lag(self.lag_entries)
        self._wake()

    # --- what cannot be read -----------------------------------------------------------------------------------------

    async def _read(self) -> list[Record]:
        """The next entries; none when they could not be read, after a pause, or were stepped over."""
        try:
            records = await self._log.read(self.applied_seq, self._batch_entries, _APPLY_BYTES)
        except WalError as error:
            await self._unread(error)
            return []
        self._failed_reads = 0
        self._batch_entries = min(2 * self._batch_entries, self._settings.apply_batch_entries)
        return records

    async def _unread(self, error: WalError) -> None:
        if self._batch_entries > 1:
            # What comes before the flaw can be read.
            self._batch_entries = max(1, self._batch_entries // 8)
            return
        self._failed_reads += 1
        if self._failed_reads == 1:
            self._telemetry.log.error("the replica waits for entries of the log", error=str(error))
        if self._failed_reads >= _READ_TRIES and not _may_pass(error):
            await self._step_over(error)
            self._failed_reads = 0
        else:
            pause = _FIRST_PAUSE_SECONDS * 2 ** min(self._failed_reads, 10)
            await asyncio.sleep(min(pause, _LONGEST_PAUSE_SECONDS))

    async def _step_over(self, error: WalError) -> None:
        """To the replica the log begins after what cannot be read: that is at Qdrant, or waits for a repair."""
        first, last = self.applied_seq + 1, await self._unreadable_through()
        self._telemetry.log.error(
            "entries of the log cannot be read, so every collection is copied again; see `wal verify`",
            first=first,
            last=last,
            error=str(error),
        )
        await self._on_gap()
        await self._attach(last + 1)

    async def _unreadable_through(self) -> int:
        seq = self.applied_seq + 1
        while seq < self._log.last_seq:
            try:
                await self._log.read(seq, 1, 1)
                break
            except WalError:
                seq += 1
        return seq

    async def _wait_for_entries(self) -> bool:
        """Wait for the log to grow; False when the replica was replaced meanwhile."""
        growth = asyncio.ensure_future(self._log.wait_beyond(self.applied_seq))
        detached = asyncio.ensure_future(self._detached.wait())
        try:
            await asyncio.wait((growth, detached), return_when=asyncio.FIRST_COMPLETED)
        finally:
            growth.cancel()
            detached.cancel()
        return self._attached.is_set()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _apply_request(
        self, records: list[Record], given_up: Sequence[control_pb.RefusedEntry] = ()
    ) -> control_pb.ApplyRequest:
        request = control_pb.ApplyRequest(
            entries=map(_log_entry, records), replayed_seq=self._log.replayed_seq, given_up=given_up
        )
        through_seq = self._forgets_through_seq()
        if through_seq is not None:
            request.keeps_former, request.forgets_through_seq = True, through_seq
        return request

    async def forget(self) -> None:
        """Let the replica forget what no look will be at, also while there is nothing to apply."""
        try:
            await self._control.apply(self._apply_request([]))
        except ReplicaUnavailable as error:
            self._telemetry.log.info("the replica is away, it forgets later", error=str(error))

    async def give_up(self, entries: Sequence[control_pb.RefusedEntry], timeout_seconds: float) -> None:
        """Qdrant will never have these: the replica notes it on the medium. Raises ReplicaUnavailable."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.caught_up(max((entry.seq for entry in entries), default=0))
        except TimeoutError as error:
            raise ReplicaUnavailable("the replica is behind the log") from error
        await self._control.apply(self._apply_request([], entries))

    async def caught_up(self, seq: int) -> None:
        """Wait until the replica holds every entry up to `seq`."""
        while self.applied_seq < seq or not self._attached.is_set():
            await self._moved.wait()

    async def catch_up(self, stall_seconds: float) -> None:
        """The same for what the log holds now. Raises TimeoutError when nothing came forward for `stall_seconds`."""
        last_seq = self._log.last_seq

        def is_done() -> bool:
            return self._attached.is_set() and self.applied_seq >= last_seq

        while not is_done():
            before = self.applied_seq
            async with asyncio.timeout(stall_seconds):
                while not is_done() and self.applied_seq == before:
                    await self._moved.wait()

    async def result(self, seq: int) -> control_pb.Applied | None:
        """The replica's answer to entry `seq`; None when it had been applied before a crash of the replica."""
        await self.caught_up(seq)
        return self._results.pop(seq, None)

    async def admit(self, limit_seconds: float | None = None) -> None:
        """Back-pressure: wait while the replica is there and lags by more than the limit, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                while self._attached.is_set() and self.lag_entries > self._settings.mirror_queue_entries:
                    await self._moved.wait()


def _may_pass(error: WalError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _PASSING


def _log_entry(record: Record) -> control_pb.LogEntry:
    return control_pb.LogEntry(
        seq=record.seq,
        synced=record.state is EntryState.SYNCED,
        entry=entry_pb2.Entry.FromString(record.body),
    )
