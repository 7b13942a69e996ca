"""The patrol: what rots in a closed segment is found while the server runs, slowly, and nothing is changed."""

from __future__ import annotations

import io
from pathlib import Path

from server.config import Settings
from server.logs import Message
from server.telemetry import Telemetry
from server.upkeep import look_again
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.patrol import Patrol
from server.wal.record import SEGMENT_HEADER_BYTES
from server.wal.scan import segment_name
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import DIRECTORY, Entropy, entry, opened

COUNT = 12
LIMITS = WalLimits(segment_bytes=900)


async def patrolled(disk: CrashDisk) -> Log:
    log = opened(disk=disk, limits=LIMITS)
    for number in range(COUNT):
        await log.append(entry(b"%0200d" % number))
    assert log.segment_count >= 4
    return log


async def one_round(patrol: Patrol, budget: int = 10**6) -> list[str]:
    """Until it begins again."""
    found, rounds = [], patrol.rounds
    for _ in range(10_000):
        problem = await patrol.step(budget)
        if problem is not None:
            found.append(str(problem))
        if patrol.rounds > rounds:
            return found
    raise AssertionError("no end")


def spoil(disk: CrashDisk, number: int, offset: int) -> bytes:
    path = DIRECTORY / segment_name(number)
    before = disk.content(path)
    disk.put(path, before[:offset] + bytes([before[offset] ^ 1]) + before[offset + 1 :])
    return before


async def test_a_whole_log_is_found_whole_again_and_again() -> None:
    disk = CrashDisk()
    log = await patrolled(disk)
    patrol = Patrol(log, disk)
    before = disk.everything()
    disk.calls.clear()
    for _ in range(3):
        assert await one_round(patrol) == []
    assert patrol.problems == []
    assert {operation for operation, _ in disk.calls} <= {"read", "facts"}
    assert disk.everything() == before
    await log.close()


async def test_every_flaw_of_a_closed_segment_is_told_once_and_shown_until_it_is_mended() -> None:
    disk = CrashDisk()
    log = await patrolled(disk)
    patrol = Patrol(log, disk)
    for offset in (0, 100, SEGMENT_HEADER_BYTES + 70, SEGMENT_HEADER_BYTES + 300, len(disk.content(_path(2))) - 1):
        before = spoil(disk, 2, offset)
        await one_round(patrol)
        await one_round(patrol)
        (problem,) = patrol.problems
        assert problem.file == segment_name(2)
        assert await one_round(patrol) == [], "told once"
        disk.put(_path(2), before)
        await one_round(patrol)
        await one_round(patrol)
        assert patrol.problems == []
    before = disk.content(_path(1))
    for wrong in (before[:-40], before + b"\0", before[:200]):
        disk.put(_path(1), wrong)
        await one_round(patrol)
        await one_round(patrol)
        assert [problem.file for problem in patrol.problems] == [segment_name(1)]
    disk.put(_path(1), before)
    await log.close()


def _path(number: int) -> Path:
    return DIRECTORY / segment_name(number)


async def test_a_step_reads_no_more_than_it_may() -> None:
    disk = CrashDisk()
    log = await patrolled(disk)
    patrol = Patrol(log, disk)
    frame = 96 + 32 + 55 + 200
    steps = 0
    while patrol.rounds < 2:
        before = patrol.bytes_read
        await patrol.step(300)
        assert patrol.bytes_read - before <= 300 + frame
        steps += 1
    assert steps > COUNT
    await log.close()


async def test_a_disk_that_cannot_read_is_a_flaw_and_a_retired_segment_is_none() -> None:
    disk = CrashDisk()
    log = await patrolled(disk)
    patrol = Patrol(log, disk)

    def fail(operation: str, path: Path) -> None:
        if operation == "read" and path.name == segment_name(3):
            raise OSError(5, "Input/output error")

    disk.on_call = fail
    found = await one_round(patrol)
    found += await one_round(patrol)
    assert [text for text in found if "Input/output error" in text]
    disk.on_call = None
    await log.mark_replayed(COUNT)
    await log.retire(COUNT, 2**62, 0.0)
    assert not log.holds(_path(3))
    assert patrol.problems == []
    assert await patrol.step(100) is None
    await log.close()


async def test_a_segment_that_is_retired_while_it_is_read_is_no_flaw() -> None:
    disk = CrashDisk()
    log = await patrolled(disk)
    patrol = Patrol(log, disk)
    first, second = (stretch.path for stretch in log.written()[:2])

    def retire(operation: str, path: Path) -> None:
        if operation == "read" and path == first:
            del log._ledger.segments[0]
            disk.drop(first)

    disk.on_call = retire
    assert await patrol.step(10**6) is None
    disk.on_call = None
    assert not log.holds(first)
    assert patrol.problems == []
    disk.calls.clear()
    assert await patrol.step(10**6) is None
    assert {name for operation, name in disk.calls if operation == "read"} == {second.name}, "it goes on with the next"
    await log.close()


async def test_a_log_of_one_segment_has_nothing_to_patrol() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, entropy=Entropy("one"))
    patrol = Patrol(log, disk)
    assert await patrol.step(100) is None
    assert patrol.rounds == 0
    await log.close()


async def test_what_is_found_is_told_in_the_log_and_counted() -> None:
    disk = CrashDisk()
    log = await patrolled(disk)
    patrol = Patrol(log, disk)
    lines = io.StringIO()
    telemetry = Telemetry.start(Settings(), clock=ManualClock(), stream=lines)
    before = spoil(disk, 1, SEGMENT_HEADER_BYTES + 80)
    for _ in range(20):
        await look_again(patrol, 10**6, telemetry)
    text = lines.getvalue()
    assert text.count(Message.WAL_DAMAGED) == 1
    assert segment_name(1) in text
    assert b"understudy_wal_damaged_segments 1.0" in telemetry.metrics.prometheus()
    disk.put(_path(1), before)
    for _ in range(20):
        await look_again(patrol, 10**6, telemetry)
    assert b"understudy_wal_damaged_segments 0.0" in telemetry.metrics.prometheus()
    telemetry.close()
    await log.close()
