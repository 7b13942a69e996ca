"""Room that is made ahead of small batches: zeros behind the frames, which are nothing of the log."""

from __future__ import annotations

import asyncio
import errno
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import WalDamaged, WalLatched
from server.wal.limits import WalLimits
from server.wal.record import SEGMENT_HEADER_BYTES
from server.wal.repair import Repaired
from server.wal.scan import segment_name
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import DIRECTORY, SYNCED, bodies, entry, failing, opened, read_all, recovered
from tests.wal.test_damage import BODIES, FIRST, Accepted, Files, frames_of, outcome, written
from tests.wal.test_repair import repaired

ROOM = WalLimits(room_bytes=16_384, cache_bytes=0)
SHORT = WalLimits(segment_bytes=2_000, cache_bytes=0)


def size_of(disk: CrashDisk, number: int = 1) -> int:
    return len(disk.content(DIRECTORY / segment_name(number)))


def calls(disk: CrashDisk, before: int) -> list[str]:
    return [call for call, _ in disk.calls[before:]]


async def test_it_is_made_once_for_many_small_batches_and_taken_away_at_the_close() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=ROOM)
    before = len(disk.calls)
    for number in range(20):
        await log.append(entry(b"%d" % number))
    assert calls(disk, before).count("make_room") == 1
    assert size_of(disk) == SEGMENT_HEADER_BYTES + ROOM.room_bytes > log.total_bytes
    await log.close()
    assert frames_of(disk.content(FIRST))[-1]
    assert size_of(disk) == SEGMENT_HEADER_BYTES + sum(map(len, frames_of(disk.content(FIRST))))


async def test_large_batches_and_what_needs_no_sync_make_none() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=ROOM)
    await asyncio.gather(*(log.append(entry(bytes(400))) for _ in range(8)))
    await log.append(entry(b"Qdrant has it", SYNCED))
    assert "make_room" not in calls(disk, 0)
    await log.append(entry(b"small"))
    last = frames_of(disk.content(FIRST)[: log.total_bytes])[-1]
    assert size_of(disk) == log.total_bytes - len(last) + ROOM.room_bytes
    await log.close()


async def test_closed_segments_have_none() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=SHORT)
    for number in range(40):
        await log.append(entry(b"%d" % number))
    killed = disk.after_kill()
    sizes = [size_of(disk, number) for number in range(1, log.segment_count + 1)]
    assert len(sizes) > 3 and sizes[-1] == 2_000
    assert sum(sizes[:-1]) < log.total_bytes < sum(sizes)
    result, records = recovered(killed)
    assert bodies(records) == [b"%d" % number for number in range(40)]
    assert result.recovery.cuts == ()
    await log.close()


async def with_room(zeros: int = 5_000) -> Files:
    """A killed log with room behind its last frame."""
    files = await written(clean=False)
    return {**files, FIRST: files[FIRST] + bytes(zeros)}


async def test_an_open_takes_it_away_and_calls_it_no_flaw() -> None:
    files = await with_room()
    disk = CrashDisk()
    for path, data in files.items():
        disk.make_directory(path.parent)
        disk.put(path, data)
    log = opened(disk=disk, limits=ROOM)
    assert (log.recovery.cuts, bodies(await read_all(log))) == ((), BODIES)
    assert size_of(disk) == log.total_bytes
    await log.append(entry(b"after"))
    assert bodies(recovered(disk.after_power_cut(None))[1]) == [*BODIES, b"after"]
    await log.close()


async def test_zeros_from_any_point_on_are_a_cut_there() -> None:
    """Whoever writes zeros over the end can do no more than whoever cuts it off."""
    for clean in (True, False):
        files = await written(clean=clean)
        data = files[FIRST]
        for length in range(SEGMENT_HEADER_BYTES, len(data)):
            zeroed = outcome({**files, FIRST: data[:length] + bytes(len(data) - length + 3_000)})
            cut = outcome({**files, FIRST: data[:length]})
            if isinstance(cut, WalDamaged):
                assert isinstance(zeroed, WalDamaged), (clean, length)
            else:
                assert isinstance(zeroed, Accepted) and isinstance(cut, Accepted)
                assert (zeroed.bodies, zeroed.pending) == (cut.bodies, cut.pending), (clean, length)


async def test_a_flaw_before_it_is_judged_as_without_it() -> None:
    """Every bit of the last two frames: the first is proven by the second, which may be torn."""
    files = await with_room(700)
    data = files[FIRST]
    ends = list(itertools.accumulate(map(len, frames_of(data[:-700])), initial=SEGMENT_HEADER_BYTES))
    for bit in range(8 * ends[-3], 8 * ends[-1]):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        result = outcome({**files, FIRST: bytes(flipped)})
        if bit // 8 < ends[-2]:
            assert isinstance(result, WalDamaged), bit
        else:
            assert result == Accepted(BODIES[:2], bytes(flipped[ends[-2] :]), 2), bit


async def test_anything_else_behind_the_frames_is_a_torn_tail() -> None:
    files = await with_room()
    for at in (0, 2_000, 4_999):
        behind = bytearray(5_000)
        behind[at] = 1
        result = outcome({**files, FIRST: files[FIRST][:-5_000] + bytes(behind)})
        assert result == Accepted(BODIES, bytes(behind), 3)


async def test_a_closed_segment_with_zeros_behind_it_is_refused() -> None:
    files = await written(clean=True, limits=WalLimits(segment_bytes=400))
    assert isinstance(outcome({**files, FIRST: files[FIRST] + bytes(100)}), WalDamaged)


async def test_a_repair_does_not_keep_it() -> None:
    files = await with_room()
    broken = bytearray(files[FIRST])
    broken[SEGMENT_HEADER_BYTES + 70] ^= 1
    found, done, _ = repaired({**files, FIRST: bytes(broken)})
    assert isinstance(done, Repaired)
    assert list(found.values())[-2:] == BODIES[1:]
    assert all(aside.end <= len(files[FIRST]) - 5_000 for aside in done.plan.asides)


async def test_without_space_for_it_the_log_goes_on_until_the_next_segment() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(segment_bytes=3_000, cache_bytes=0, ballast_bytes=0))
    disk.on_call = failing("make_room", times=1, code=errno.ENOSPC)
    before = len(disk.calls)
    await log.append(entry(b"0"))
    # What had been written of it is gone.
    assert size_of(disk) == log.total_bytes
    number = 1
    while log.segment_count == 1:
        await log.append(entry(b"%d" % number))
        number += 1
    assert recovered(disk.after_kill())[0].survey.segments[0].size == size_of(disk)
    assert calls(disk, before).count("make_room") == 2
    assert bodies(recovered(disk.after_power_cut(None))[1]) == [b"%d" % each for each in range(number)]
    await log.close()


@pytest.mark.parametrize("seed", range(12))
async def test_a_cut_whose_sync_failed_is_made_again_by_the_next_open(seed: int) -> None:
    """What the failed sync left on the medium would show up behind a closed segment."""
    # The head vouches for every entry, so that the next open has no reason to write anything of the segment anew.
    limits = replace(SHORT, head_bytes=1)
    disk = CrashDisk(seed)
    log = opened(disk=disk, limits=limits)
    latest = ""

    def fail_after_a_cut(operation: str, path: Path) -> None:
        nonlocal latest
        if (latest, operation) == ("truncate", "sync"):
            raise OSError(errno.EIO, "no")
        latest = operation

    disk.on_call = fail_after_a_cut
    acknowledged = 0
    with pytest.raises(WalLatched):
        while True:
            await log.append(entry(b"%d" % acknowledged))
            acknowledged += 1
    left = disk.after_kill()
    again = opened(disk=left, limits=limits)
    while again.segment_count < 3:
        await again.append(entry(b"%d" % acknowledged))
        acknowledged += 1
    for cut in (None, *range(8)):
        found = bodies(recovered(left.after_power_cut(cut))[1])
        assert found == [b"%d" % number for number in range(acknowledged)], cut
    await again.close()
    with pytest.raises(WalLatched):
        await log.close()


@pytest.mark.parametrize("operation", ["make_room", "sync"])
async def test_a_failure_on_the_way_latches_before_anything_is_acknowledged(operation: str) -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=ROOM)
    disk.on_call = failing(operation, name="segment", times=1)
    with pytest.raises(WalLatched):
        await log.append(entry(b"not acknowledged"))
    await log.reopen()
    await log.append(entry(b"acknowledged"))
    assert bodies(recovered(disk.after_power_cut(None))[1]) == [b"acknowledged"]
    await log.close()


async def test_what_no_sync_covered_is_synced_with_the_room() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=ROOM)
    await log.append(entry(b"Qdrant has it", SYNCED))
    await log.append(entry(b"ours"))
    assert bodies(recovered(disk.after_power_cut(None))[1]) == [b"Qdrant has it", b"ours"]
    await log.close()
