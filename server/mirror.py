"""The log's first reader: keeps the replica up to date.

Promises: the replica gets every log entry once, in order, from the entry after the last one it holds; a replica that
comes back after a crash goes on where it stopped. Whoever read an acknowledgement finds the write in the replica
after `caught_up`. Does not promise that the replica is never behind; the lag is bounded by `mirror_queue_entries`
while it runs. One that is away holds up no write: the log keeps what it lacks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from generated.understudy.wal.v1 import entry_pb2
from server import config
from server.errors import ReplicaUnavailable
from server.telemetry import Telemetry
from server.wal.log import Log
from server.wal.record import EntryState, Record

_APPLY_BYTES = 16 * 1024 * 1024
_KEPT_RESULTS = 10_000
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class ApplyControl(Protocol):
    """What the mirror needs of the replica."""

    async def attach(self, request: control_pb.AttachRequest) -> control_pb.AttachResponse:
        """Tell the replica how far the log goes."""
        ...

    async def apply(self, request: control_pb.ApplyRequest) -> control_pb.ApplyResponse:
        """Apply log entries in order."""
        ...


class Mirror:
    """Carries the log to the replica. Belongs to one event loop.

    `forgets_through_seq`: what points were before entries up to there is of no use any more; None = nobody will ask.
    `in_doubt`: Qdrant may have acknowledged writes that the log lacks, from before this process.
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
    ) -> None:
        self._in_doubt = in_doubt
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
            except ReplicaUnavailable as error:
                self._attached.clear()
                self._wake()
                self._telemetry.log.warning("replica is away", error=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _attach(self) -> None:
        # The replica may hold what this process has logged; beyond the log as opened it holds what a power cut took.
        last_seq = self._log.last_seq if self._known_before else self._log.opened_at_seq
        answer = await self._control.attach(
            control_pb.AttachRequest(
                last_seq=last_seq,
                log_id=self._log.log_id,
                no_remote=not self._has_remote,
                first_seq=self._log.first_seq,
                in_doubt=self._in_doubt and not self._known_before,
            )
        )
        self._known_before = True
        self.applied_seq = answer.applied_seq
        self.rewound = self.rewound or answer.rewound
        self._detached = asyncio.Event()
        self._attached.set()
        self._wake()

    async def _apply_next(self) -> None:
        if self._log.last_seq <= self.applied_seq and not await self._wait_for_entries():
            return
        records = await self._log.read(self.applied_seq, self._settings.apply_batch_entries, _APPLY_BYTES)
        if not records:
            return
        answer = await self._control.apply(self._apply_request(records))
        # Qdrant has answered the others; nobody asks for the replica's answer to them.
        awaited = {record.seq for record in records if record.state is EntryState.PENDING}
        self._results.update((result.seq, result) for result in answer.results if result.seq in awaited)
        while len(self._results) > _KEPT_RESULTS:
            self._results.popitem(last=False)
        self.applied_seq = max(self.applied_seq, answer.applied_seq)
        self._telemetry.metrics.mirror_lag(self.lag_entries)
        self._wake()

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

    def _apply_request(self, records: list[Record]) -> control_pb.ApplyRequest:
        request = control_pb.ApplyRequest(entries=map(_log_entry, records), replayed_seq=self._log.replayed_seq)
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
        request = self._apply_request([])
        request.given_up.extend(entries)
        await self._control.apply(request)

    async def caught_up(self, seq: int) -> None:
        """Wait until the replica holds every entry up to `seq`."""
        while self.applied_seq < seq or not self._attached.is_set():
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


def _log_entry(record: Record) -> control_pb.LogEntry:
    return control_pb.LogEntry(
        seq=record.seq,
        synced=record.state is EntryState.SYNCED,
        entry=entry_pb2.Entry.FromString(record.body),
    )
