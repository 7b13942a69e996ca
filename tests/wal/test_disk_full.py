"""A disk that fills up: refused before it is full, room for what must go on, and back without a restart."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.errors import WalError, WalFull, WalLatched
from server.wal import inspect
from server.wal.ballast import BALLAST_NAME, TABLE, Act, Ballast, Free, Room, Space, free_of
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import (
    DIRECTORY,
    KINDS,
    PENDING,
    SYNCED,
    Entropy,
    bodies,
    entry,
    failing,
    opened,
    quarantined,
    read_all,
    recovered,
)

MARK, BALLAST = 20_000, 8_000
LIMITS = WalLimits(segment_bytes=4_000, head_bytes=2_000, cache_bytes=0, free_bytes_min=MARK, ballast_bytes=BALLAST)


class SmallDisk(CrashDisk):
    """Holds `capacity` bytes, and one write more."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.on_call = self._refuse_when_full

    @property
    def used(self) -> int:
        named = {number for each in self.directories.values() for number in each.live.values()}
        return sum(len(self.inodes[number].live) for number in named)

    def _refuse_when_full(self, called: str, path: Path) -> None:
        self.free = max(0, self.capacity - self.used)
        is_new = called == "allocate" and not self.facts_quietly(path)
        if (called in ("append", "create") and not self.free) or (is_new and self.free < BALLAST):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def facts_quietly(self, path: Path) -> bool:
        return path in self.everything()


def test_the_table_has_a_row_for_everything() -> None:
    assert set(TABLE) == set(itertools.product(Ballast, Free))
    for (ballast, free), (act, room) in TABLE.items():
        assert act is not Act.RELEASE or ballast is Ballast.HELD
        assert act is not Act.MAKE or (ballast, free) == (Ballast.MISSING, Free.ROOMY)
        assert (room is Room.AMPLE) is (free in (Free.AMPLE, Free.ROOMY)), (
            "PENDING entries are taken above the mark only"
        )
        if act is Act.RELEASE:
            after = TABLE[Ballast.MISSING, Free.LOW]
            assert after == (Act.KEEP, Room.SPENT), "no entry may use what was given up"


@pytest.mark.parametrize(
    ("free_bytes", "expected"),
    [
        (0, Free.SCARCE),
        (1_999, Free.SCARCE),
        (2_000, Free.LOW),
        (19_999, Free.LOW),
        (20_000, Free.AMPLE),
        (27_999, Free.AMPLE),
        (28_000, Free.ROOMY),
    ],
)
def test_where_the_free_space_stands(free_bytes: int, expected: Free) -> None:
    assert free_of(free_bytes, ballast_bytes=BALLAST, free_bytes_min=MARK) is expected


async def filled(disk: SmallDisk) -> tuple[Log, list[bytes]]:
    """A log with a ballast, written until the disk takes no more; with what was acknowledged."""
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    assert (log.space.ballast, log.space.room) == (Ballast.HELD, Room.AMPLE)
    acknowledged: list[bytes] = []
    for number in range(1000):
        body = (b"%d/" % number).ljust(500, b"x")
        try:
            await log.append(entry(body))
        except WalFull:
            return log, acknowledged
        acknowledged.append(body)
    raise AssertionError("it never filled up")


async def test_below_the_mark_offline_writes_are_refused_before_anything_is_written() -> None:
    disk = SmallDisk(60_000)
    log = opened(disk=disk, limits=LIMITS)
    changes: list[str] = []
    log.on_change = lambda: changes.append(log.why_no_writes)
    await log.tend()
    await log.append(entry(b"before"))
    disk.capacity = disk.used + MARK - 1
    await log.tend()
    assert log.space.room is Room.LOW
    assert [bool(why) for why in changes] == [True]
    before = len(disk.calls)
    with pytest.raises(WalFull, match=r"short of space: .*wal\.free_bytes_min.*; \d+ bytes are free"):
        await log.append(entry(b"refused"))
    assert len(disk.calls) == before, "nothing was even tried"
    # What Qdrant has, and what brings the backlog down, is taken.
    assert await log.append(entry(b"synced", SYNCED)) == 2
    await log.mark_replayed(1)
    assert log.replayed_seq == 2
    disk.capacity += 1_000
    await log.tend()
    assert changes[1:] == [""]
    assert await log.append(entry(b"after")) == 3
    await log.close()


async def test_a_full_disk_has_room_for_cursor_quarantine_head_and_a_clean_end() -> None:
    disk = SmallDisk(40_000)
    log, acknowledged = await filled(disk)
    assert (log.space.ballast, log.space.room, log.latched) == (Ballast.MISSING, Room.SPENT, None)
    assert "short of space" in log.why_no_writes
    for state in (PENDING, SYNCED):
        with pytest.raises(WalFull):
            await log.append(entry(b"x", state))
    for record in (await log.read_pending(3, 1 << 20))[:3]:
        await log.quarantine([Refused(record, 3, "no")])
        await log.mark_replayed(record.seq)
    await log.tend()
    assert log.space.room is Room.SPENT
    await log.close()
    result, records = recovered(disk.after_power_cut(None))
    assert result.recovery.clean
    assert bodies(records) == acknowledged
    assert result.survey.replayed_seq == 3
    assert quarantined(disk, result) == {1, 2, 3}


async def test_retiring_makes_room_and_the_ballast_comes_back() -> None:
    disk = SmallDisk(40_000)
    log, acknowledged = await filled(disk)
    await log.mark_replayed(log.last_seq)
    assert await log.retire(log.last_seq, 1 << 62, 0.0) > 2
    await log.tend()
    assert (log.space.ballast, log.space.room) == (Ballast.HELD, Room.AMPLE)
    assert await log.append(entry(b"again")) == len(acknowledged) + 1
    assert not log.why_no_writes
    await log.close()


async def test_without_ballast_a_cursor_has_no_room_and_the_log_does_not_fail() -> None:
    disk = SmallDisk(10_000)
    limits = WalLimits(cache_bytes=0, free_bytes_min=0, ballast_bytes=0, room_bytes=0)
    log = opened(disk=disk, limits=limits)
    await log.tend()
    while log.why_no_writes == "" and disk.used < 10_000:
        await log.append(entry(bytes(900)))
    with pytest.raises(WalFull):
        await log.append(entry(b"x"))
    with pytest.raises(WalFull):
        await log.mark_replayed(1)
    assert log.latched is None
    disk.capacity = 20_000
    await log.mark_replayed(1)
    assert await log.append(entry(b"x")) == log.last_seq
    await log.close()


async def test_a_cursor_beside_entries_that_find_no_room_is_taken() -> None:
    disk = SmallDisk(60_000)
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    await log.append(entry(b"first"))
    disk.capacity = disk.used
    results = await asyncio.gather(
        log.append(entry(b"a")), log.mark_replayed(1), log.append(entry(b"b")), return_exceptions=True
    )
    assert [type(result) for result in results] == [WalFull, type(None), WalFull]
    assert (log.replayed_seq, log.pending_count) == (1, 0)
    await log.close()
    assert bodies(recovered(disk.after_power_cut(None))[1]) == [b"first"]


async def test_reopening_on_a_full_disk_uses_the_ballast() -> None:
    disk = SmallDisk(60_000)
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    await log.append(entry(b"first"))

    disk.on_call = failing("sync", name="segment")
    with pytest.raises(WalLatched):
        await log.append(entry(b"failed"))
    disk.on_call = disk._refuse_when_full
    disk.capacity = disk.used
    await log.reopen()
    assert (log.latched, log.space.ballast) == (None, Ballast.MISSING)
    assert bodies(await read_all(log)) == [b"first"]
    await log.close()


async def test_reopening_on_a_full_disk_does_not_believe_a_damaged_segment() -> None:
    disk = SmallDisk(60_000)
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    await log.append(entry(b"first"))
    disk.on_call = failing("sync", name="segment", times=1)
    with pytest.raises(WalLatched):
        await log.append(entry(b"failed"))
    path = DIRECTORY / "segment-0000000000000001.wal"
    whole = disk.content(path)
    damaged = whole.replace(b"first", b"f1rst")
    disk.put(path, damaged)
    disk.on_call = failing("create", name="probe", times=1, code=errno.ENOSPC)
    with pytest.raises(WalLatched, match=r"could not be reopened yet: .* does not hold what was written and synced"):
        await log.reopen()
    assert (log.space.ballast, disk.content(path)) == (Ballast.MISSING, damaged)
    disk.put(path, whole)
    await log.reopen()
    assert bodies(await read_all(log)) == [b"first"]
    await log.close()


@pytest.mark.parametrize("seed", range(4))
async def test_a_clean_end_on_a_full_disk_leaves_nothing_half_written(seed: int) -> None:
    disk = CrashDisk(seed)
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    await log.append(entry(b"first"))
    disk.on_call = failing("append", name="segment", times=1, code=errno.ENOSPC)
    await log.close()
    assert log.space.ballast is Ballast.MISSING
    result, records = recovered(disk.after_power_cut(None))
    assert (result.recovery.clean, result.recovery.cuts, bodies(records)) == (True, (), [b"first"])


async def test_the_ballast_is_given_up_before_anybody_meets_a_full_disk() -> None:
    disk = SmallDisk(60_000)
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    await log.append(entry(b"first"))
    disk.capacity = disk.used + BALLAST // 4
    await log.tend()
    assert (log.space.ballast, log.space.room) == (Ballast.HELD, Room.LOW)
    disk.capacity -= 1
    await log.tend()
    assert (log.space.ballast, log.space.room) == (Ballast.MISSING, Room.SPENT)
    assert DIRECTORY / BALLAST_NAME not in disk.everything()
    with pytest.raises(WalFull, match=r"the ballast .* has no room yet"):
        await log.append(entry(b"refused", SYNCED))
    await log.mark_replayed(1)
    await log.close()
    assert bodies(recovered(disk.after_power_cut(None))[1]) == [b"first"]


async def test_an_entry_goes_into_quarantine_in_the_room_of_the_ballast() -> None:
    disk = SmallDisk(60_000)
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    await log.append(entry(b"first"))
    (record,) = await log.read_pending(1, 1000)
    disk.capacity = disk.used
    await log.quarantine([Refused(record, 3, "no")])
    assert (log.space.ballast, log.space.room) == (Ballast.MISSING, Room.SPENT)
    await log.close()
    left = disk.after_power_cut(None)
    assert quarantined(left, recovered(left)[0]) == {1}


async def test_retiring_on_a_full_disk_goes_on_where_it_was() -> None:
    """The names are gone and could not be synced: the second try finds no file any more."""
    disk = CrashDisk()
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    for _ in range(12):
        await log.append(entry(bytes(900)))
    await log.mark_replayed(12)
    before = len(log.written())

    def watch(called: str, path: Path) -> None:
        if called == "remove" and path.name.startswith("segment"):
            disk.on_call = failing("sync_directory", name="wal", times=1, code=errno.ENOSPC)

    disk.on_call = watch
    count = await log.retire(12, 1 << 62, 0.0)
    assert count > 1
    assert len(log.written()) <= before + 1 - count
    assert (log.latched, log.space.ballast) == (None, Ballast.MISSING)
    left = [path for path in disk.after_power_cut(None).everything() if path.name.startswith("segment")]
    assert sorted(left) == [each.path for each in log.written()]
    await log.close()


async def test_a_quota_has_no_free_space_to_show() -> None:
    """statvfs tells of the file system, the quota refuses: the ballast that cannot be made is the sign."""
    disk = CrashDisk()
    is_over = False

    def quota(called: str, path: Path) -> None:
        if is_over and called in ("append", "allocate"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    disk.on_call = quota
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    is_over = True
    with pytest.raises(WalFull):
        await log.append(entry(b"x"))
    for _ in range(2):
        await log.tend()
        assert (log.space.ballast, log.space.room) == (Ballast.MISSING, Room.SPENT)
        with pytest.raises(WalFull):
            await log.append(entry(b"x"))
    assert not [path for path in disk.everything() if path.name == BALLAST_NAME]
    is_over = False
    await log.tend()
    assert (log.space.ballast, log.space.room) == (Ballast.HELD, Room.AMPLE)
    assert await log.append(entry(b"x")) == 1
    await log.close()


async def test_a_ballast_that_cannot_be_made_for_another_reason_is_told() -> None:
    disk = CrashDisk()

    disk.on_call = failing("allocate")
    log = opened(disk=disk, limits=LIMITS)
    with pytest.raises(WalError, match="Input/output error"):
        await log.tend()
    assert await log.append(entry(b"x")) == 1
    await log.close()


async def test_a_ballast_that_cannot_be_made_does_not_keep_offline_writes_out() -> None:
    """There is room again; that the file system has no blocks to keep back is another matter."""
    disk = SmallDisk(60_000)
    log = opened(disk=disk, limits=LIMITS)
    changes: list[bool] = []
    log.on_change = lambda: changes.append(bool(log.why_no_writes))
    disk.capacity = MARK // 2
    await log.tend()
    assert log.space.room is Room.SPENT
    disk.capacity = 60_000
    disk.on_call = failing("allocate", code=errno.EOPNOTSUPP)
    disk.free = 60_000
    for _ in range(2):
        with pytest.raises(WalError, match="not supported"):
            await log.tend()
        assert (log.space.ballast, log.space.room) == (Ballast.MISSING, Room.AMPLE)
    assert changes == [True, False]
    assert await log.append(entry(b"x")) == 1
    disk.free = MARK - 1
    await log.tend()
    assert log.space.room is Room.SPENT
    await log.close()


@pytest.mark.parametrize("size", [BALLAST - 1, BALLAST + 1, BALLAST])
@pytest.mark.parametrize("wanted", [BALLAST, 0])
async def test_the_ballast_of_an_earlier_process(size: int, wanted: int) -> None:
    disk = CrashDisk()
    await opened(disk=disk, limits=LIMITS).close()
    disk.put(DIRECTORY / BALLAST_NAME, bytes(size))
    limits = WalLimits(ballast_bytes=wanted, free_bytes_min=0)
    log = opened(disk=disk, limits=limits, entropy=Entropy("again"))
    before = len(disk.calls)
    await log.tend()
    sizes = [len(data) for path, data in disk.everything().items() if path.name == BALLAST_NAME]
    assert sizes == ([wanted] if wanted else [])
    is_kept = size == wanted
    assert ("allocate" in {call for call, _ in disk.calls[before:]}) is (bool(wanted) and not is_kept)
    await log.close()


async def test_nothing_looks_at_the_disk_on_the_way_of_an_append() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    before = len(disk.calls)
    for _ in range(2):
        await log.append(entry(b"x"))
    made, write = ["make_room", "sync", "synced"], ["append", "sync", "synced"]
    assert [call for call, _ in disk.calls[before:]] == made + write + write
    await log.close()


def test_two_who_meet_a_full_disk_at_once_share_the_room_of_the_ballast() -> None:
    disk = CrashDisk()
    disk.make_directory(DIRECTORY)
    space = Space(disk, DIRECTORY, LIMITS)
    space.look()
    both_failed = threading.Barrier(2)
    tries: list[str] = []

    def act(name: str) -> str:
        tries.append(name)
        if tries.count(name) == 1:
            both_failed.wait(30)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return name

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda name: space.with_reserve(lambda: act(name)), "ab")) == ["a", "b"]
    assert (sorted(tries), space.releases, space.room) == (["a", "a", "b", "b"], 1, Room.SPENT)


def test_the_blocks_of_the_ballast_are_real(tmp_path: Path) -> None:
    space = Space(RealDisk(), tmp_path, WalLimits(ballast_bytes=1 << 20, free_bytes_min=0))
    space.look()
    found = (tmp_path / BALLAST_NAME).stat()
    assert (found.st_size, stat.S_IMODE(found.st_mode)) == (1 << 20, 0o600)
    assert found.st_blocks * 512 >= 1 << 20
    assert space.release(0)
    assert not space.release(1)
    assert not (tmp_path / BALLAST_NAME).exists()


def test_a_ballast_that_was_begun_and_found_no_room_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = WalLimits(ballast_bytes=1 << 20, free_bytes_min=0)
    path = tmp_path / BALLAST_NAME

    def full(descriptor: int, start: int, length: int) -> None:
        assert path.exists()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    space = Space(RealDisk(), tmp_path, limits)
    space.look()
    assert (space.ballast, space.room) == (Ballast.MISSING, Room.SPENT)
    assert not path.exists()


async def stopped(disk: SmallDisk, *, replayed_seq: int = 0) -> None:
    """A log that was closed, with a ballast and one entry, on a disk that others have filled since."""
    log = opened(disk=disk, limits=LIMITS)
    await log.tend()
    await log.append(entry(b"first"))
    await log.mark_replayed(replayed_seq)
    await log.close()
    assert DIRECTORY / BALLAST_NAME in disk.everything()
    disk.capacity = disk.used


async def test_a_start_on_a_full_disk_uses_the_ballast_of_the_life_before() -> None:
    disk = SmallDisk(60_000)
    await stopped(disk)
    log = opened(disk=disk, limits=LIMITS, entropy=Entropy("again"))
    assert (log.space.ballast, log.space.room) == (Ballast.MISSING, Room.SPENT)
    assert DIRECTORY / BALLAST_NAME not in disk.everything()
    with pytest.raises(WalFull, match=r"the ballast .* has no room yet"):
        await log.append(entry(b"refused"))
    (record,) = await log.read_pending(10, 1 << 20)
    await log.quarantine([Refused(record, 3, "no")])
    await log.mark_replayed(1)
    await log.close()
    result, records = recovered(disk.after_power_cut(None))
    assert (result.recovery.clean, bodies(records), result.survey.replayed_seq) == (True, [b"first"], 1)


def test_compacting_at_rest_on_a_full_disk_makes_room() -> None:
    disk = SmallDisk(60_000)
    asyncio.run(stopped(disk, replayed_seq=1))
    tools: dict[str, Any] = {"clock": ManualClock(), "kinds": KINDS, "limits": LIMITS, "disk": disk}
    assert inspect.compact(DIRECTORY, applied_seq=1, retention_seconds=0.0, **tools).segments_removed == 1


async def test_without_a_ballast_a_start_on_a_full_disk_says_what_is_wrong_and_changes_nothing() -> None:
    disk = SmallDisk(60_000)
    await stopped(disk)
    disk.drop(DIRECTORY / BALLAST_NAME)
    disk.capacity = disk.used
    before = disk.content(DIRECTORY / "head")
    with pytest.raises(WalError, match="cannot open the log in /data/wal: No space left"):
        opened(disk=disk, limits=LIMITS, entropy=Entropy("again"))
    assert disk.content(DIRECTORY / "head") == before
    assert not disk.locks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_what_the_first_try_of_a_start_cut_off_is_told(code: int) -> None:
    disk = SmallDisk(60_000)
    await stopped(disk)
    path = DIRECTORY / "segment-0000000000000001.wal"
    disk.put(path, disk.content(path) + b"torn")
    disk.on_call = failing("create", name="head", times=1, code=code)
    log = opened(disk=disk, limits=LIMITS, entropy=Entropy("again"))
    assert [(cut.file, cut.length) for cut in log.recovery.cuts] == [(path.name, 4)]
    assert (log.recovery.clean, log.recovery.created, log.space.ballast) == (False, False, Ballast.MISSING)
    await log.close()


async def test_the_ballast_of_the_life_before_is_there_before_anybody_looked() -> None:
    disk = SmallDisk(60_000)
    await stopped(disk)
    disk.capacity = 60_000
    log = opened(disk=disk, limits=LIMITS, entropy=Entropy("again"))
    (record,) = await log.read_pending(10, 1 << 20)
    disk.capacity = disk.used
    await log.quarantine([Refused(record, 3, "no")])
    assert (log.space.ballast, log.space.room) == (Ballast.MISSING, Room.SPENT)
    await log.close()


async def test_a_ballast_of_another_size_makes_room_too() -> None:
    disk = SmallDisk(60_000)
    await stopped(disk)
    limits = replace(LIMITS, ballast_bytes=0, free_bytes_min=0)
    log = opened(disk=disk, limits=limits, entropy=Entropy("again"))
    assert (log.space.ballast, log.last_seq) == (Ballast.UNWANTED, 1)
    assert DIRECTORY / BALLAST_NAME not in disk.everything()
    await log.close()


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; only root may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "understudy-test", str(tmp_path)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield tmp_path
    # Lazily: a test that failed may have left files open.
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True, timeout=30)


async def test_a_real_disk_that_is_full(small_file_system: Path) -> None:
    limits = WalLimits(
        segment_bytes=200_000, cache_bytes=0, free_bytes_min=1 << 20, ballast_bytes=1 << 19, room_bytes=160_000
    )
    log = opened(small_file_system / "wal", disk=RealDisk(), limits=limits)
    await log.tend()
    await log.append(entry(b"first"))
    hog = small_file_system / "hog"
    with hog.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    # Room was made while there was space.
    assert await log.append(entry(b"second")) == 2
    with pytest.raises(WalFull, match="is full"):
        await log.append(entry(bytes(170_000)))
    with pytest.raises(WalFull, match="short of space"):
        await log.append(entry(bytes(9000)))
    (record,) = await log.read_pending(1, 1000)
    await log.quarantine([Refused(record, 3, "no")])
    await log.mark_replayed(1)
    await log.close()
    log = opened(small_file_system / "wal", disk=RealDisk(), limits=limits, entropy=Entropy("again"))
    await log.tend()
    with pytest.raises(WalFull):
        await log.append(entry(b"second"))
    hog.unlink()
    await log.tend()
    assert log.space.ballast is Ballast.HELD
    await log.close()
    with hog.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    log = opened(small_file_system / "wal", disk=RealDisk(), limits=limits, entropy=Entropy("full"))
    assert log.space.ballast is Ballast.MISSING
    with pytest.raises(WalFull):
        await log.append(entry(b"second"))
    hog.unlink()
    await log.tend()
    assert await log.append(entry(b"third")) == 3
    assert (log.replayed_seq, log.space.ballast, log.recovery.clean) == (1, Ballast.HELD, True)
    await log.close()
