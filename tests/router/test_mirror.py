"""The mirror on a real log whose disk does not give everything back."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import entry_pb2
from server import config
from server.clock import SystemClock
from server.errors import ReplicaRefused, ReplicaUnavailable, UnderstudyError
from server.mirror import Mirror
from server.rpc import Code
from server.telemetry import Telemetry
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import EntryState, Log, NewRecord
from tests.replay.test_replayer import Lines

LIMITS = WalLimits(ballast_bytes=0, free_bytes_min=1, cache_bytes=2000)
ENTRIES = 300
BODY = entry_pb2.Entry(method="m", request=bytes(200)).SerializeToString()


class SickDisk(RealDisk):
    """Reads of segments fail while `error` is set, `times` at most."""

    error: int | None = None
    times = 1 << 30

    def read(self, path: Path, offset: int, length: int) -> bytes:
        if self.error is not None and path.name.startswith("segment") and self.times:
            self.times -= 1
            raise OSError(self.error, "the disk is sick")
        return super().read(path, offset, length)


@dataclass
class Replica:
    """Notes what it gets."""

    applied_seq: int = 0
    seqs: list[int] = field(default_factory=list)
    fails: list[UnderstudyError] = field(default_factory=list)
    began: list[int] = field(default_factory=list)

    async def attach(self, request: control.AttachRequest) -> control.AttachResponse:
        self.began.append(request.first_seq)
        self.applied_seq = max(self.applied_seq, request.first_seq - 1)
        return control.AttachResponse(applied_seq=self.applied_seq)

    async def apply(self, request: control.ApplyRequest) -> control.ApplyResponse:
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails.pop()
        self.seqs += [entry.seq for entry in request.entries]
        self.applied_seq = max([self.applied_seq, *self.seqs])
        return control.ApplyResponse(applied_seq=self.applied_seq)


@dataclass
class Bench:
    disk: SickDisk
    log: Log
    replica: Replica
    mirror: Mirror
    lines: Lines
    gaps: list[int]
    task: asyncio.Task[None]

    async def add(self, count: int) -> None:
        for _ in range(count):
            await self.log.append(NewRecord(1, EntryState.SYNCED, BODY))

    async def nobody_waits(self) -> None:
        """For reads, offline writes and online writes."""
        await asyncio.wait_for(self.mirror.caught_up(self.log.last_seq), 30.0)
        await asyncio.wait_for(self.mirror.admit(), 1.0)
        assert not self.task.done()


@asynccontextmanager
async def bench(
    directory: Path, spoil: Callable[[Path, SickDisk], None], fails: list[ReplicaUnavailable] | None = None
) -> AsyncIterator[Bench]:
    """A mirror that has to read from the disk. `spoil` comes first."""
    disk, clock, telemetry = SickDisk(), SystemClock(), Telemetry.silent()
    lines = telemetry.log = Lines()  # type: ignore[assignment]
    log = Log.open(directory / "wal", disk=disk, clock=clock, limits=LIMITS, kinds=[1])
    replica, gaps = Replica(), list[int]()

    async def on_gap() -> None:
        if fails:
            raise fails.pop()
        gaps.append(mirror.applied_seq)

    settings = config.Replica(mirror_queue_entries=20, apply_batch_entries=64)
    mirror = Mirror(log, replica, settings, telemetry, on_gap=on_gap)
    made = Bench(disk, log, replica, mirror, lines, gaps, asyncio.create_task(asyncio.sleep(0)))
    await made.add(ENTRIES)
    spoil(log.directory, disk)
    made.task = asyncio.create_task(mirror.run())
    try:
        yield made
    finally:
        made.task.cancel()
        await asyncio.wait([made.task])
        disk.error = None
        await log.close()


async def test_a_read_that_fails_now_and_then_is_done_again(tmp_path: Path) -> None:
    def spoil(_: Path, disk: SickDisk) -> None:
        disk.error, disk.times = errno.EIO, 5

    async with bench(tmp_path, spoil) as made:
        await made.nobody_waits()
        assert made.replica.seqs == list(range(1, ENTRIES + 1))
        assert (made.gaps, len(made.replica.began)) == ([], 1)


async def test_a_replica_that_refuses_or_is_away_is_asked_again(tmp_path: Path) -> None:
    async with bench(tmp_path, lambda *_: None) as made:
        made.replica.fails = [
            ReplicaRefused("no", code=int(Code.FAILED_PRECONDITION), details="no"),
            ReplicaUnavailable("away"),
            ReplicaRefused("no", code=int(Code.INVALID_ARGUMENT), details="no"),
        ]
        await made.nobody_waits()
        assert made.replica.seqs == list(range(1, ENTRIES + 1))
        assert len(made.replica.began) == 4


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.mirror._LONGEST_PAUSE_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_what_stays_damaged_is_stepped_over_and_everything_copied_again(tmp_path: Path) -> None:
    def spoil(directory: Path, _: SickDisk) -> None:
        (segment,) = directory.glob("segment-*")
        raw = bytearray(segment.read_bytes())
        raw[len(raw) // 2] ^= 1
        segment.write_bytes(raw)

    # The replica is away just when it is to be told.
    async with bench(tmp_path, spoil, [ReplicaUnavailable("it restarts")]) as made:
        await made.nobody_waits()
        seqs = made.replica.seqs
        before = seqs[: next(n for n, seq in enumerate(seqs, 1) if seq != n) - 1]
        assert ENTRIES // 2 - 10 < len(before) < ENTRIES // 2 + 10
        # What was readable before the flaw is there, then what comes after it; and the doubt came before that.
        assert seqs == before + list(range(made.replica.began[-1], ENTRIES + 1))
        assert made.gaps == [len(before)]
        assert [fields["first"] for _, text, fields in made.lines.lines if "copied again" in text][-1] == len(
            before
        ) + 1
        await made.add(50)
        await made.nobody_waits()
        assert made.replica.seqs[-50:] == list(range(ENTRIES + 1, ENTRIES + 51))
        assert len(made.gaps) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_disk_that_reads_nothing_any_more_holds_nobody_up(tmp_path: Path) -> None:
    def spoil(_: Path, disk: SickDisk) -> None:
        disk.error = errno.EIO

    async with bench(tmp_path, spoil) as made:
        await made.nobody_waits()
        assert made.gaps == [0]


@pytest.mark.usefixtures("impatient")
async def test_a_shortage_of_this_process_is_waited_out(tmp_path: Path) -> None:
    def spoil(_: Path, disk: SickDisk) -> None:
        disk.error, disk.times = errno.EMFILE, 40

    async with bench(tmp_path, spoil) as made:
        await made.nobody_waits()
        assert made.disk.times == 0
        assert made.replica.seqs == list(range(1, ENTRIES + 1))
        assert (made.gaps, len(made.replica.began)) == ([], 1)


async def test_a_replica_that_goes_on_is_waited_for_and_one_that_does_not_is_not(tmp_path: Path) -> None:
    async with bench(tmp_path, lambda *_: None) as made:
        replica, plain, is_stuck = made.replica, made.replica.apply, asyncio.Event()
        clock, per_batch, stall = SystemClock(), 0.2, 0.6

        async def slow(request: control.ApplyRequest) -> control.ApplyResponse:
            if is_stuck.is_set():
                await asyncio.Event().wait()
            loop = asyncio.get_running_loop()
            later: asyncio.Future[None] = loop.create_future()
            loop.call_later(per_batch, later.set_result, None)
            await later
            return await plain(request)

        replica.apply = slow  # type: ignore[method-assign]
        began = clock.monotonic()
        await made.mirror.catch_up(stall)
        assert clock.monotonic() - began > stall
        assert replica.applied_seq == ENTRIES
        is_stuck.set()
        await made.add(1)
        with pytest.raises(TimeoutError):
            await made.mirror.catch_up(stall)
