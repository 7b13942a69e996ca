"""What `understudy wal` commands do with a log that is open: the server's own, or one that a command opened for itself.

Promises: arguments and answers are JSON; the same keys whether a server runs or not. Reading does not hold writers up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

from generated.understudy.replica.v1.replica_pb2 import RefusedEntry
from server.clock import Clock
from server.conflicts import EVERYTHING
from server.entry_rows import Filter, contents, described, exported, refused, refused_whole
from server.errors import WalDamaged, WalError
from server.rpc import WAL_KINDS
from server.wal import inspect
from server.wal.files import Disk
from server.wal.inspect import WalStatus
from server.wal.limits import WalLimits
from server.wal.log import Log

if TYPE_CHECKING:
    from server.replay import Replayer
    from server.replay.requeue import Requeue
    from server.router import Parts

_DAY_SECONDS = 86_400.0

Document: TypeAlias = dict[str, Any]
GiveUp: TypeAlias = Callable[[Sequence[RefusedEntry]], Awaitable[None]]


class LogDesk:
    """The operations, by name. `applied_seq` is how far the replica is.

    `give_up` is awaited before entries are dropped: what they did to the replica must not be taken for what Qdrant has
    lost.
    """

    def __init__(
        self,
        log: Log,
        disk: Disk,
        clock: Clock,
        requeue: Requeue,
        *,
        applied_seq: Callable[[], int],
        give_up: GiveUp,
        retention_days: float,
        version: str = "",
    ) -> None:
        self._log = log
        self._disk = disk
        self._clock = clock
        self._requeue = requeue
        self._applied_seq = applied_seq
        self._give_up = give_up
        self._retention_days = retention_days
        self._version = version

    @property
    def operations(self) -> dict[str, Callable[[Document], Awaitable[Document]]]:
        """One JSON object in, one out."""
        return {
            "status": self.status,
            "verify": self.verify,
            "list": self.list_,
            "show": self.show,
            "compact": self.compact,
            "reopen": self.reopen,
            "key-list": self.key_list,
            "key-rotate": self.key_rotate,
            "quarantine-forecast": self.forecast,
            "quarantine-retry": self.retry,
            "quarantine-drop": self.drop,
        }

    @property
    def row_operations(self) -> dict[str, Callable[[Document], AsyncIterator[Document]]]:
        """One JSON object in, many out."""
        return {
            "quarantine-list": self.quarantined,
            "quarantine-export": self.quarantined_whole,
            "export": self.exported,
        }

    async def status(self, _asked: Document) -> Document:
        """Counts and cursors."""
        return status_document(inspect.status_open(self._log, self._disk), self._version)

    async def verify(self, _asked: Document) -> Document:
        """Read everything again that was written by now."""
        return status_document(await inspect.verify_open(self._log, self._disk, tuple(WAL_KINDS)), self._version)

    async def list_(self, asked: Document) -> Document:
        """{after, limit, filter} → {rows, next_after}; go on there until it is null."""
        wanted = Filter.from_document(asked.get("filter") or {}).wants
        limit = min(int(asked["limit"]), inspect.LIST_LIMIT)
        found = await inspect.list_open(self._log, wanted=wanted, after_seq=int(asked["after"]), limit=limit)
        return {"rows": [described(listed) for listed in found.records], "next_after": found.next_after}

    async def show(self, asked: Document) -> Document:
        """{seq} → one entry with its contents."""
        listed = await inspect.show_open(self._log, int(asked["seq"]))
        return {**described(listed), **contents(listed.record.body)}

    async def compact(self, asked: Document) -> Document:
        """{older_than_days} (null: the setting) → what went."""
        days = asked.get("older_than_days")
        seconds = (self._retention_days if days is None else float(days)) * _DAY_SECONDS
        done = await inspect.compact_open(self._log, self._applied_seq(), self._clock.wall_ns(), seconds)
        return asdict(done)

    async def exported(self, asked: Document) -> AsyncIterator[Document]:
        """{after, through, filter, raw} → entries up to `through` with their contents."""
        wanted = Filter.from_document(asked.get("filter") or {}).wants
        at: int | None = int(asked["after"])
        through = min(int(asked["through"]), self._log.last_seq)
        while at is not None and at < through:
            found = await inspect.list_open(self._log, wanted=wanted, after_seq=at, limit=inspect.LIST_LIMIT)
            for listed in found.records:
                if listed.record.seq > through:
                    return
                yield exported(listed, raw=bool(asked.get("raw")))
            at = found.next_after

    async def reopen(self, _asked: Document) -> Document:
        """After a failed write or sync: take writes again."""
        was_latched = self._log.latched
        await self._log.reopen()
        return {"was_latched": was_latched, "last_seq": self._log.last_seq, "pending": self._log.pending_count}

    async def key_list(self, _asked: Document) -> Document:
        """Every key, with what needs it."""
        return {"keys": [asdict(use) for use in await self._log.keys.uses()]}

    async def key_rotate(self, _asked: Document) -> Document:
        """A new key signs from here on: {key_id}."""
        return {"key_id": await self._log.rotate_key()}

    async def quarantined(self, _asked: Document) -> AsyncIterator[Document]:
        """What is in quarantine."""
        for item in await asyncio.to_thread(self._log.quarantined):
            yield refused(item)

    async def quarantined_whole(self, asked: Document) -> AsyncIterator[Document]:
        """What is in quarantine, with its contents; {seq} = only that one."""
        only = asked.get("seq")
        items = [item for item in await asyncio.to_thread(self._log.quarantined) if only in (None, item.seq)]
        if only is not None and not items:
            raise not_quarantined(int(only))
        for item in items:
            try:
                yield refused_whole(item, None if item.flaw else await self._log.read_quarantined(item.seq))
            except WalDamaged as error:
                yield {**refused(item), "flaw": str(error)}

    async def forecast(self, asked: Document) -> Document:
        """{seqs} (null: all) → what a retry would do."""
        return asdict(await self._requeue.forecast(_numbers(asked.get("seqs"))))

    async def retry(self, asked: Document) -> Document:
        """{seqs, force, expected} → {retried: [{seq, new_seq}]}."""
        done = await self._requeue.retry(
            _numbers(asked.get("seqs")), force=bool(asked.get("force")), expected=_numbers(asked.get("expected"))
        )
        return {"retried": [{"seq": seq, "new_seq": new_seq} for seq, new_seq in done.items()]}

    async def drop(self, asked: Document) -> Document:
        """{seqs} → {dropped: [seq]}."""
        seqs = _numbers(asked["seqs"]) or []
        await self._requeue.drop(seqs, self._give_up)
        return {"dropped": seqs}


def running_desk(parts: Parts, replayer: Replayer | None, disk: Disk, version: str, give_up: GiveUp) -> LogDesk:
    """The desk of a running server."""
    # Here, not above: it brings the replay, which commands on a log at rest do without.
    from server.replay.requeue import Requeue

    @asynccontextmanager
    async def alone() -> AsyncIterator[None]:
        """Nothing is replayed inside, no write is under way, and the state does not turn REMOTE."""
        still = replayer.held() if replayer else nullcontext()
        async with still, parts.conflicts.hold(EVERYTHING), parts.gate:
            yield

    requeue = Requeue(
        parts.log,
        WalLimits.from_settings(parts.settings.wal),
        WAL_KINDS,
        alone=alone,
        logged=parts.mode.write_logged,
        collection_of=parts.conflicts.collection_of,
    )
    return LogDesk(
        parts.log,
        disk,
        parts.clock,
        requeue,
        applied_seq=lambda: parts.mirror.applied_seq,
        give_up=give_up,
        retention_days=parts.settings.vectorstore.fallback.wal_retention_days,
        version=version,
    )


def status_document(found: WalStatus, version: str) -> Document:
    """A status as JSON."""
    return {
        **asdict(found),
        "directory": str(found.directory),
        "quarantined": [refused(item) for item in found.quarantined],
        "problems": [str(problem) for problem in found.problems],
        "version": version,
    }


def not_quarantined(seq: int) -> WalError:
    """The error for an entry that is not there."""
    return WalError(f"entry {seq} is not in quarantine", hint="`understudy wal quarantine list` shows what is")


def _numbers(value: Any) -> list[int] | None:
    return None if value is None else [int(each) for each in value]
