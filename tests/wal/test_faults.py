"""Every call on the disk fails once: no acknowledgement after a failure, no second sync, nothing acknowledged lost."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.errors import DataDirUnusable, UnderstudyError, WalError, WalFull, WalLatched
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from server.wal.record import Record
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import PENDING, SYNCED, Entropy, bodies, entry, failing, opened, quarantined, read_all, recovered

SMALL = WalLimits(segment_bytes=900, head_bytes=600, cache_bytes=0)


@dataclass
class Run:
    """One pass over everything that the log does with a disk."""

    disk: CrashDisk
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    tried: set[bytes] = field(default_factory=set)
    quarantined: set[int] = field(default_factory=set)
    errors: list[UnderstudyError] = field(default_factory=list)
    cursor: int = 0
    retired: int = 0

    async def append(self, log: Log, body: bytes, *, is_pending: bool = True) -> None:
        self.tried.add(body)
        try:
            seq = await log.append(entry(body, PENDING if is_pending else SYNCED))
        except WalError as error:
            self.errors.append(error)
        else:
            self.acknowledged[seq] = body

    async def attempt(self, call: Awaitable[object]) -> bool:
        try:
            await call
        except UnderstudyError as error:
            self.errors.append(error)
            return False
        return True

    async def run(self) -> None:
        for number in range(2):
            clock = ManualClock()
            try:
                log = opened(disk=self.disk, limits=SMALL, clock=clock, entropy=Entropy(f"{number}{len(self.errors)}"))
            except UnderstudyError as error:
                self.errors.append(error)
                continue
            for batch in range(3):
                names = [b"%d/%d/%d" % (number, batch, item) for item in range(2)]
                await asyncio.gather(*(self.append(log, name * 20, is_pending=batch != 1) for name in names))
            for record in await self.first(log):
                if await self.attempt(log.quarantine([Refused(record, 3, "no")])):
                    self.quarantined.add(record.seq)
            target = max(log.replayed_seq, log.last_seq - 3)
            if await self.attempt(log.mark_replayed(target)):
                self.cursor = max(self.cursor, target)
            self.retired = log.replayed_seq
            await self.attempt(log.retire(log.last_seq, clock.wall_ns() + 1, 0.0))
            await self.append(log, b"%d/last" % number)
            await self.attempt(log.close())

    async def first(self, log: Log) -> list[Record]:
        try:
            return await log.read_pending(1, 1000)
        except WalError as error:
            self.errors.append(error)
            return []


async def healthy_calls() -> list[tuple[str, str]]:
    disk = CrashDisk()
    run = Run(disk)
    await run.run()
    assert not run.errors
    return disk.calls


async def with_failure(at: int, code: int) -> Run:
    disk = CrashDisk(seed=at)
    count = 0

    def fail(operation: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count == at and operation != "synced":
            raise OSError(code, os.strerror(code), str(path))

    disk.on_call = fail
    run = Run(disk)
    await run.run()
    disk.on_call = None
    return run


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
async def test_every_call_fails_once(code: int) -> None:
    total = len(await healthy_calls())
    assert total > 150
    survived = 0
    for at in range(1, total + 1):
        run = await with_failure(at, code)
        name = f"call {at} of {total}: {run.disk.calls[at - 1]}"
        survived += bool(run.errors)
        killed = run.disk.after_kill()
        for state in (killed, run.disk.after_power_cut(None), run.disk.after_power_cut(at)):
            result, records = recovered(state)
            found = {record.seq: record.body for record in records}
            assert set(found.values()) <= run.tried, name
            lost = {
                seq
                for seq, body in run.acknowledged.items()
                if seq > run.retired and found.get(seq) != body and (state is killed or is_pending(body))
            }
            assert not lost, f"{name}: lost {lost}"
            survey = result.survey
            assert run.cursor <= survey.replayed_seq or not len(survey.pending), name
            assert survey.segments[0].first_seq <= run.retired + 1, name
            assert run.quarantined <= quarantined(state, result), name
    assert survived > total / 3


def is_pending(body: bytes) -> bool:
    return b"/1/" not in body


@pytest.mark.parametrize("operation", ["append", "sync"])
async def test_after_a_failed_write_or_sync_writers_are_refused_and_readers_served(operation: str) -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(cache_bytes=0))
    await log.append(entry(b"safe"))

    disk.on_call = failing(operation, name="segment")
    with pytest.raises(WalLatched, match="Input/output error"):
        await log.append(entry(b"lost"))
    before = len(disk.calls)
    for _ in range(3):
        with pytest.raises(WalLatched, match="wal reopen"):
            await log.append(entry(b"refused"))
    with pytest.raises(WalLatched):
        await log.mark_replayed(1)
    with pytest.raises(WalLatched):
        await log.retire(1, 0, 0.0)
    assert log.latched is not None
    assert "Input/output error" in log.latched
    assert bodies(await log.read(0, 10, 1000)) == [b"safe"]
    assert (log.last_seq, log.pending_count) == (1, 1)
    touched = {call for call, name in disk.calls[before:] if name.startswith("segment")}
    assert touched <= {"read"}, "the file is never written or synced again"
    with pytest.raises(WalLatched):
        await log.close()
    assert not disk.locks
    disk.on_call = None
    log = opened(disk=disk, entropy=Entropy("again"))
    assert bodies(await read_all(log))[0] == b"safe"
    await log.close()


async def test_everyone_in_a_failed_batch_is_told() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)

    disk.on_call = failing("sync", name="segment")
    results = await asyncio.gather(*(log.append(entry(b"%d" % n)) for n in range(20)), return_exceptions=True)
    assert all(isinstance(result, WalLatched) for result in results)
    assert log.last_seq == 0
    assert not log.pending_count


async def test_a_full_disk_refuses_and_the_log_goes_on_when_there_is_space_again() -> None:
    disk = CrashDisk(seed=4)
    log = opened(disk=disk, limits=SMALL)
    await log.append(entry(b"before"))
    is_full = True

    def full(called: str, path: Path) -> None:
        if is_full and called in ("append", "create"):
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.on_call = full
    for _ in range(3):
        results = await asyncio.gather(*(log.append(entry(bytes(200))) for n in range(9)), return_exceptions=True)
        assert all(isinstance(result, WalFull) for result in results), results
        assert "Free space" in str(results[0])
    assert (log.latched, log.last_seq, log.pending_count) == (None, 1, 1)
    sizes = [len(data) for path, data in disk.everything().items() if path.name.startswith("segment-")]
    assert log.total_bytes == sum(sizes), "nothing is half-written"
    is_full = False
    assert await asyncio.gather(*(log.append(entry(b"%d" % n)) for n in range(9))) == list(range(2, 11))
    await log.close()
    log = opened(disk=disk, limits=SMALL, entropy=Entropy("again"))
    assert bodies(await read_all(log)) == [b"before", *(b"%d" % n for n in range(9))]
    await log.close()


async def test_a_full_disk_that_cannot_be_tidied_latches() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)

    def full(called: str, path: Path) -> None:
        if called in ("append", "truncate"):
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.on_call = full
    with pytest.raises(WalLatched):
        await log.append(entry(b"x"))


async def test_a_full_disk_during_a_sync_latches() -> None:
    """Delayed allocation: the write succeeded, the sync says that there was no room. Nobody knows what is there."""
    disk = CrashDisk()
    log = opened(disk=disk)

    def full(called: str, path: Path) -> None:
        if called == "sync" and path.name.startswith("segment"):
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.on_call = full
    with pytest.raises(WalLatched, match="No space left"):
        await log.append(entry(b"x"))


async def test_a_head_that_cannot_be_written_for_want_of_space_is_written_later() -> None:
    clock = ManualClock()
    disk = CrashDisk()
    log = opened(disk=disk, clock=clock, limits=WalLimits(head_bytes=1))
    is_full = True
    failures = 0

    def full(called: str, path: Path) -> None:
        nonlocal failures
        if is_full and called == "create" and path.name == "head.tmp":
            failures += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.on_call = full
    for number in range(5):
        assert await log.append(entry(b"x")) == number + 1
    is_full = False
    await log.append(entry(b"x"))
    await log.close()
    assert failures >= 4
    assert log.latched is None


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the log says. Libraries of other tests configure logging for all and switch loggers off that exist."""
    logger = logging.getLogger("understudy.wal")
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    return caplog


async def test_a_file_that_cannot_be_closed_at_the_end_is_told_and_the_log_is_whole(
    messages: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"x"))

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (file,) = [file for file in disk.files if not file.closed]
    monkeypatch.setattr(file, "close", fail)
    await log.close()
    assert "closing the log in /data/wal: [Errno 5] Input/output error" in messages.text
    assert not disk.locks
    result, records = recovered(disk.after_power_cut(None))
    assert (result.recovery.clean, bodies(records)) == (True, [b"x"])


async def test_an_error_inside_the_writer_is_told_to_whoever_waits(messages: pytest.LogCaptureFixture) -> None:
    disk = CrashDisk()
    log = opened(disk=disk)

    def broken(called: str, path: Path) -> None:
        if called == "append":
            raise RuntimeError("a bug")

    disk.on_call = broken
    with pytest.raises(WalLatched, match="a bug"):
        await log.append(entry(b"x"))
    assert "the log's writer failed" in messages.text


async def test_open_reports_a_failing_disk_in_one_line() -> None:
    disk = CrashDisk()

    disk.on_call = failing("create", code=errno.EROFS)
    with pytest.raises(WalError, match="cannot open the log in /data/wal: Read-only file system"):
        opened(disk=disk)
    assert not disk.locks
    assert issubclass(DataDirUnusable, UnderstudyError)


async def test_reading_from_a_failing_disk_is_one_clear_error() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(cache_bytes=0))
    await log.append(entry(b"x"))
    fail = failing("read", "create", "remove")
    await log.quarantine([Refused((await log.read(0, 1, 10))[0], 3, "no")])
    disk.on_call = fail
    with pytest.raises(WalError, match="cannot read the log"):
        await log.read(0, 1, 10)
    disk.on_call = None
    (record,) = await log.read(0, 1, 10)
    disk.on_call = fail
    with pytest.raises(WalError, match="cannot quarantine entry 1"):
        await log.quarantine([Refused(record, 3, "no")])
    with pytest.raises(WalError, match="cannot release entry 1"):
        await log.release_quarantined(1)
    disk.on_call = None
    await log.close()
