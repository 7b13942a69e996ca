"""The commands that work without a server."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from server.errors import DataDirUnusable, WalDamaged, WalError, WalKeyMissing, WalLocked
from server.wal import inspect
from server.wal.files import Disk, RealDisk
from server.wal.inspect import (
    ListState,
    WalStatus,
    Wanted,
    compact,
    inspect_status,
    list_open,
    list_records,
    quarantined,
    reset,
    show_open,
    show_record,
    status_open,
    verify,
    verify_open,
)
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import DIRECTORY, KINDS, PENDING, SYNCED, Entropy, entry, opened

SMALL = WalLimits(segment_bytes=800)
BODIES = [b"%d" % number * 50 for number in range(1, 10)]


async def filled() -> CrashDisk:
    """Entries 1 to 9: 1 to 3 and 6 replayed, 2 of them quarantined, 4 to 5 SYNCED, the rest pending."""
    disk = CrashDisk()
    clock = ManualClock()
    log = opened(disk=disk, limits=SMALL, clock=clock)
    for number, body in enumerate(BODIES, 1):
        clock.advance(1)
        await log.append(entry(body, SYNCED if number in (4, 5) else PENDING))
    await log.quarantine([Refused((await log.read_pending(2, 10**6))[1], 3, "no")])
    await log.mark_replayed(6)
    await log.close()
    return disk


def states(disk: CrashDisk, **arguments: object) -> list[tuple[int, ListState]]:
    return [(each.record.seq, each.state) for each in list_records(DIRECTORY, disk=disk, **arguments)]  # type: ignore[arg-type]


async def test_status_and_verify_tell_what_is_there_and_change_nothing() -> None:
    disk = await filled()
    before = disk.everything()
    for look in (inspect_status, verify):
        status = look(DIRECTORY, disk=disk)
        assert (status.first_seq, status.last_seq, status.replayed_seq) == (1, 9, 6)
        assert (status.pending_count, len(status.quarantined), status.problems) == (3, 1, ())
        assert status.clean
        assert status.oldest_pending_ns == 1_700_000_007_000_000_000
        assert status.total_bytes == sum(len(data) for path, data in before.items() if "segment" in path.name)
        assert status.segments == sum("segment" in path.name for path in before)
        assert len(status.key_ids) == 1
        assert status.head_generation > 1
        assert status.corrupted_copies == ()
    assert verify(DIRECTORY, disk=disk).entries_verified == 9
    assert inspect_status(DIRECTORY, disk=disk).entries_verified < 9
    assert disk.everything() == before
    assert not disk.locks


async def test_list_and_show_tell_what_became_of_each_entry() -> None:
    disk = await filled()
    replayed, synced, pending = ListState.REPLAYED, ListState.SYNCED, ListState.PENDING
    wanted = [
        (1, replayed), (2, ListState.QUARANTINED), (3, replayed), (4, synced), (5, synced), (6, replayed),
        (7, pending), (8, pending), (9, pending),
    ]  # fmt: skip
    assert states(disk) == wanted
    for state in ListState:
        assert states(disk, wanted=lambda listed, state=state: listed.state is state) == [
            row for row in wanted if row[1] is state
        ]
    assert states(disk, after_seq=6, limit=2) == wanted[6:8]
    # The limit counts what is wanted, not what is looked at.
    odd = states(disk, wanted=lambda listed: listed.record.seq % 2 == 1, limit=3, after_seq=2)
    assert [seq for seq, _ in odd] == [3, 5, 7]
    assert states(disk, after_seq=9) == []
    found = show_record(DIRECTORY, 7, disk=disk)
    assert (found.record.body, found.state) == (BODIES[6], pending)
    for missing in (0, 10):
        with pytest.raises(WalError, match=f"entry {missing} is not in the log"):
            show_record(DIRECTORY, missing, disk=disk)


async def test_a_damaged_log_can_still_be_looked_at() -> None:
    disk = await filled()
    path = DIRECTORY / "segment-0000000000000003.wal"
    data = bytearray(disk.content(path))
    data[-20] ^= 1
    disk.put(path, bytes(data))
    status = verify(DIRECTORY, disk=disk)
    assert [problem.file for problem in status.problems] == [path.name, "segment-0000000000000004.wal"]
    assert "checksum" in str(status.problems[0])
    assert not status.clean
    seqs = [seq for seq, _ in states(disk)]
    assert set(range(1, 5)) <= set(seqs)
    disk.drop(DIRECTORY / "head")
    status = inspect_status(DIRECTORY, disk=disk)
    assert (status.log_id, status.head_generation, status.clean) == ("", 0, False)
    assert "head is missing" in str(status.problems[0])
    for key in [each for each in disk.everything() if each.suffix == ".key"]:
        disk.drop(key)
    with pytest.raises(WalKeyMissing):
        verify(DIRECTORY, disk=disk)


async def test_every_segment_that_cannot_be_opened_is_reported_and_the_rest_is_read() -> None:
    disk = await filled()
    first, third = (DIRECTORY / f"segment-000000000000000{number}.wal" for number in (1, 3))
    disk.drop(first)
    disk.put(third, disk.content(third)[:50])
    disk.put(DIRECTORY / "segment-00000000000000ff.wal", disk.content(DIRECTORY / "segment-0000000000000002.wal"))
    files = [problem.file for problem in verify(DIRECTORY, disk=disk).problems]
    assert files[0] == first.name
    assert third.name in files
    assert "segment-00000000000000ff.wal" in files
    with pytest.raises(WalDamaged, match=r"and [0-9]+ more"):
        opened(disk=disk)


async def test_an_entry_that_may_not_be_logged_shows_when_the_methods_are_known() -> None:
    disk = await filled()
    assert not verify(DIRECTORY, disk=disk, kinds=KINDS).problems
    assert verify(DIRECTORY, disk=disk, kinds=frozenset({2})).problems


async def test_torn_tails_show_without_being_cut() -> None:
    disk = await filled()
    last = max(path for path in disk.everything() if "segment" in path.name)
    disk.put(last, disk.content(last)[:-5])
    before = disk.everything()
    status = verify(DIRECTORY, disk=disk)
    assert "the file ends inside it" in str(status.problems[0])
    assert disk.everything() == before
    log = opened(disk=disk, limits=SMALL, entropy=Entropy("again"))
    await log.close()
    status = verify(DIRECTORY, disk=disk)
    assert status.problems == ()
    assert len(status.corrupted_copies) == 1


def test_a_log_that_somebody_holds_or_that_is_not_there(tmp_path: Path) -> None:
    directory = tmp_path / "wal"
    for call in (
        lambda: inspect_status(directory),
        lambda: list_records(directory),
        lambda: reset(directory, "old"),
        lambda: compact(directory, applied_seq=0, retention_seconds=0, clock=ManualClock(), kinds=KINDS),
    ):
        with pytest.raises(DataDirUnusable, match="there is no log"):
            call()
    assert not directory.exists()
    log = opened(directory, disk=RealDisk())
    for call in (
        lambda: verify(directory),
        lambda: list_records(directory),
        lambda: reset(directory, "old"),
        lambda: compact(directory, applied_seq=0, retention_seconds=0, clock=ManualClock(), kinds=KINDS),
    ):
        with pytest.raises(WalLocked):
            call()
    asyncio.run(log.close())


def fill(directory: Path, clock: ManualClock) -> None:
    async def run() -> None:
        log = opened(directory, disk=RealDisk(), limits=SMALL, clock=clock)
        for body in BODIES:
            await log.append(entry(body))
        await log.mark_replayed(6)
        await log.close()

    asyncio.run(run())


def test_compact_drops_what_both_readers_passed(tmp_path: Path) -> None:
    directory, clock = tmp_path / "wal", ManualClock()
    fill(directory, clock)

    def run(applied_seq: int, retention_seconds: float) -> int:
        before = inspect_status(directory).total_bytes
        done = compact(
            directory,
            applied_seq=applied_seq,
            retention_seconds=retention_seconds,
            clock=clock,
            kinds=KINDS,
            limits=SMALL,
        )
        assert before - inspect_status(directory).total_bytes <= done.bytes_freed <= before
        return done.segments_removed

    assert run(0, 0.0) == 0
    assert run(9, 100.0) == 0
    clock.advance(1)
    assert run(3, 0.0) == 1
    assert run(9, 0.0) == 2
    assert [each.record.seq for each in list_records(directory)] == [7, 8, 9]
    assert verify(directory).problems == ()


def test_reset_keeps_everything_under_another_name(tmp_path: Path) -> None:
    directory, clock = tmp_path / "data" / "wal", ManualClock()
    fill(directory, clock)
    before = inspect_status(directory)
    backup = reset(directory, "20260101")
    assert backup == tmp_path / "data" / "wal.20260101"
    assert not directory.exists()
    kept = inspect_status(backup)
    assert (kept.last_seq, kept.pending_count, kept.log_id) == (before.last_seq, before.pending_count, before.log_id)
    log = opened(directory, disk=RealDisk(), entropy=Entropy("fresh"))
    assert (log.last_seq, log.recovery.created) == (0, True)
    assert log.log_id != before.log_id
    asyncio.run(log.close())
    with pytest.raises(DataDirUnusable, match="in the way"):
        reset(directory, "20260101")


def test_reset_backs_up_a_log_that_does_not_open(tmp_path: Path) -> None:
    directory = tmp_path / "wal"
    fill(directory, ManualClock())
    (directory / "head").unlink()
    with pytest.raises(WalDamaged, match="understudy wal repair"):
        opened(directory, disk=RealDisk())
    backup = reset(directory, "broken")
    assert len(list(backup.glob("segment-*"))) > 3


def test_reset_says_what_to_do_when_the_directory_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "wal"
    fill(directory, ManualClock())
    disk = RealDisk()

    def busy(source: Path, target: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(disk, "rename", busy)
    with pytest.raises(DataDirUnusable, match="Device or resource busy"):
        reset(directory, "old", disk=disk)
    assert inspect_status(directory).last_seq == 9


async def test_a_disk_that_cannot_be_read_is_one_clear_error() -> None:
    disk = await filled()

    def fail(called: str, path: Path) -> None:
        if called == "read":
            raise OSError(5, "Input/output error")

    disk.on_call = fail
    with pytest.raises(WalError, match="cannot read the log in /data/wal: Input/output error"):
        verify(DIRECTORY, disk=disk)
    assert not disk.locks


# --- in use ----------------------------------------------------------------------------------------------------------


async def test_a_log_in_use_tells_the_same() -> None:
    disk = await filled()
    at_rest = [(each.record.seq, each.state) for each in list_records(DIRECTORY, disk=disk)]
    before = inspect_status(DIRECTORY, disk=disk)
    log = opened(disk=disk, limits=SMALL)
    found = await list_open(log, wanted=None, after_seq=0, limit=100)
    assert [(each.record.seq, each.state) for each in found.records] == at_rest
    assert found.next_after is None
    some = await list_open(log, wanted=lambda listed: listed.record.seq % 2 == 0, after_seq=0, limit=2)
    assert ([each.record.seq for each in some.records], some.next_after) == ([2, 4], 4)
    status = status_open(log, disk)
    for name in ("log_id", "key_ids", "first_seq", "last_seq", "replayed_seq", "pending_count", "pending_bytes"):
        assert getattr(status, name) == getattr(before, name), name
    assert (status.running, status.clean, len(status.quarantined)) == (True, False, 1)
    assert (await show_open(log, 7)).record.body == BODIES[6]
    with pytest.raises(WalError, match="entry 10 is not in the log"):
        await show_open(log, 10)
    await log.close()


async def test_a_list_with_a_filter_comes_in_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.wal.inspect._SCAN_ENTRIES", 2)
    monkeypatch.setattr("server.wal.inspect._PAGE_ENTRIES", 2)
    log = opened(disk=await filled(), limits=SMALL)
    even: Wanted = lambda listed: listed.record.seq % 2 == 0  # noqa: E731
    seqs, after, bites = [], 0, 0
    while True:
        found = await list_open(log, wanted=even, after_seq=after, limit=3)
        seqs += [each.record.seq for each in found.records]
        bites += 1
        if found.next_after is None:
            break
        after = found.next_after
    assert seqs == [2, 4, 6, 8]
    assert bites > 2
    page = await list_open(log, wanted=even, after_seq=0, limit=1)
    assert ([each.record.seq for each in page.records], page.next_after) == ([2], 2)
    await log.close()


async def test_verify_in_use_leaves_out_what_is_being_written() -> None:
    disk = await filled()
    log = opened(disk=disk, limits=SMALL)
    written = await verify_open(log, disk, tuple(KINDS))
    assert (written.entries_verified, written.problems) == (9, ())
    # Half a frame behind the end of what is written: a batch on its way to the disk.
    path = log.written()[-1].path
    disk.put(path, disk.content(path) + b"\xf5Uwfhalf")
    assert (await verify_open(log, disk, tuple(KINDS))).problems == ()
    await log.close()


@pytest.mark.parametrize("place", ["header", "frame", "end"])
async def test_verify_in_use_finds_damage(place: str) -> None:
    disk = await filled()
    log = opened(disk=disk, limits=SMALL)
    path = log.written()[1].path
    data = bytearray(disk.content(path))
    if place == "end":
        del data[-5:]
    else:
        data[20 if place == "header" else 300] ^= 1
    disk.put(path, bytes(data))
    found = await verify_open(log, disk, tuple(KINDS))
    assert [problem.file for problem in found.problems] == [path.name]
    disk.remove(path)
    gone = await verify_open(log, disk, tuple(KINDS))
    assert [problem.text for problem in gone.problems] == ["the segment is missing"]
    await log.close()


async def test_verify_in_use_finds_a_segment_that_does_not_follow_the_one_before() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=SMALL)
    for length in (500, 600, 500):
        await log.append(entry(bytes(length)))
    first, second, third = log.written()
    assert first.end != second.end
    del log._ledger.segments[1]
    found = await verify_open(log, disk, tuple(KINDS))
    assert [(problem.file, problem.text) for problem in found.problems] == [
        (third.path.name, f"it does not follow {first.path.name}")
    ]
    await log.close()


async def test_verify_in_use_says_which_segment_the_disk_cannot_read() -> None:
    disk = await filled()
    log = opened(disk=disk, limits=SMALL)
    second = log.written()[1].path

    def fail(called: str, path: Path) -> None:
        if called == "read" and path == second:
            raise OSError(5, "Input/output error")

    disk.on_call = fail
    with pytest.raises(WalError, match=f"cannot read {second}: Input/output error"):
        await verify_open(log, disk, tuple(KINDS))
    disk.on_call = None
    await log.close()


async def test_verify_in_use_leaves_out_what_was_retired_meanwhile() -> None:
    disk = await filled()
    log = opened(disk=disk, limits=SMALL)
    first = log.written()[0].path
    retired = False

    def retire(called: str, path: Path) -> None:
        nonlocal retired
        if called == "read" and path == first and not retired:
            retired = True
            del log._ledger.segments[0]
            disk.drop(first)

    disk.on_call = retire
    found = await verify_open(log, disk, tuple(KINDS))
    assert retired
    assert found.problems == ()
    await log.close()


async def test_the_quarantine_of_a_log_at_rest() -> None:
    disk = await filled()
    ((item, record),) = quarantined(DIRECTORY, disk=disk)
    assert (item.seq, record.body if record else None) == (2, BODIES[1])
    data = disk.content(item.path)
    disk.put(item.path, data[:-1])
    ((item, record),) = quarantined(DIRECTORY, disk=disk)
    assert (item.seq, record) == (2, None)
    assert item.flaw


async def test_the_counts_of_a_log_in_use_are_read_where_they_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"one"))
    readers = []

    def status(of: Log, on: Disk) -> WalStatus:
        readers.append(threading.current_thread())
        return status_open(of, on)

    monkeypatch.setattr(inspect, "status_open", status)
    assert (await verify_open(log, disk, KINDS)).pending_count == 1
    assert readers == [threading.current_thread()]
    await log.close()
