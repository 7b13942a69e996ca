"""The replay loop on the real log: cursor, quarantine and order survive the end of the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from generated.understudy.replica.v1.replica_pb2 import RefusedEntry
from server import config
from server.errors import WalError
from server.health.breaker import Breaker
from server.log_desk import LogDesk
from server.replay import Replayer
from server.replay.requeue import Requeue
from server.rpc import METHODS, WAL_KINDS, Backend
from server.telemetry import Telemetry
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.record import EntryState, NewRecord
from tests.faults.backends import FlakyBackend
from tests.faults.clock import ManualClock

from .fakes import MiniQdrant, create, delete, drop, entry, pid, point, sent, set_payload, upsert


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Log]:
    log = Log.open(directory, disk=RealDisk(), clock=ManualClock(), limits=WalLimits(), kinds=frozenset(WAL_KINDS))
    try:
        yield log
    finally:
        await log.close()


async def append(log: Log, request: object, *, state: EntryState = EntryState.PENDING) -> int:
    body = entry(request)  # type: ignore[arg-type]
    return await log.append(NewRecord(METHODS[body.method].wal_kind, state, body.SerializeToString()))


def replayer(log: Log, upstream: Backend, **chosen: object) -> Replayer:
    settings = config.Replay(**chosen)  # type: ignore[arg-type]
    made = Replayer(log, upstream, Breaker(), settings, ManualClock(), Telemetry.silent(), lambda: None, WAL_KINDS)
    made.upstream_up = True
    return made


async def test_from_one_process_to_the_next(tmp_path: Path) -> None:
    qdrant = MiniQdrant()
    async with opened(tmp_path / "wal") as log:
        for request in (create(), upsert(point(1, v=1)), upsert(point(2, (1.0,)), point(3)), set_payload(1, k=2)):
            await append(log, request)
    async with opened(tmp_path / "wal") as log:
        assert await replayer(log, qdrant).drain_now()
        assert log.pending_count == 0
        assert [item.seq for item in log.quarantined()] == [3]
    assert qdrant.points["c"] == {1: {"v": 1, "k": 2}, 3: {}}
    async with opened(tmp_path / "wal") as log:
        await append(log, delete(1), state=EntryState.SYNCED)
        await append(log, upsert(point(2), point(4)))
        flaky = FlakyBackend(qdrant)
        assert await replayer(log, flaky).drain_now()
        assert [[each.id.num for each in sent(call).points] for call in flaky.calls] == [[4]]
        assert [(item.seq, item.details) for item in log.quarantined()][1:] == [(6, "follows seq 3")]
        assert log.replayed_seq == log.last_seq


async def test_what_was_sent_but_not_marked_is_sent_again_and_changes_nothing(tmp_path: Path) -> None:
    qdrant = MiniQdrant("c")

    class Crash(BaseException):
        """The process ends here."""

    class Crashing:
        calls = 0

        async def handle(self, call: object) -> object:
            self.calls += 1
            if self.calls == 8:
                raise Crash
            return await qdrant.handle(call)  # type: ignore[arg-type]

    async with opened(tmp_path / "wal") as log:
        for number in range(6):
            await append(log, upsert(point(number, v=1)))
        await append(log, delete(0))
        await append(log, upsert(point(0, v=2)))
        await append(log, drop())
        await append(log, create(size=3))
        await append(log, upsert(point(9, (1, 2, 3), v=3)))
        dying = replayer(log, Crashing(), merge_points=1)  # type: ignore[arg-type]
        try:
            await dying.drain_now()
        except Crash:
            assert log.replayed_seq == 0
    async with opened(tmp_path / "wal") as log:
        assert await replayer(log, qdrant).drain_now()
        assert log.quarantined() == []
    assert qdrant.points["c"] == {9: {"v": 3}}


async def test_what_is_dropped_is_given_up_first_and_only_that(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        for number in range(1, 4):
            await append(log, upsert(point(number, (1.0, 2.0, 3.0) if number < 3 else (1.0, 2.0))))
        assert await replayer(log, MiniQdrant("c")).drain_now()
        assert [item.seq for item in log.quarantined()] == [1, 2]
        given_up: list[tuple[int, list[bytes], int]] = []

        async def give_up(entries: Sequence[RefusedEntry]) -> None:
            given_up.extend((each.seq, list(each.ids), len(list(log.quarantined()))) for each in entries)

        requeue = Requeue(log, WalLimits(), WAL_KINDS)
        desk = LogDesk(
            log, RealDisk(), ManualClock(), requeue, applied_seq=lambda: 3, give_up=give_up, retention_days=7
        )
        with pytest.raises(WalError, match="entry 999 is not in quarantine"):
            await desk.drop({"seqs": [1, 999]})
        assert given_up == []
        await desk.drop({"seqs": [2]})
        assert given_up == [(2, [pid(2).SerializeToString()], 2)]
        assert [item.seq for item in log.quarantined()] == [1]


async def test_many_pages(tmp_path: Path) -> None:
    qdrant = MiniQdrant("c")
    async with opened(tmp_path / "wal") as log:
        for number in range(300):
            await append(log, upsert(point(number % 50, v=number)))
        assert await replayer(log, qdrant, page_entries=7).drain_now()
    assert qdrant.points["c"] == {number % 50: {"v": number} for number in range(250, 300)}
