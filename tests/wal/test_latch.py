"""After a failed write or sync: no second try on that file, readers served, and the way back without a restart."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import WalError, WalLatched
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.reopening import Pause
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import DIRECTORY, PENDING, SYNCED, Entropy, bodies, entry, failing, opened, read_all, recovered

LIMITS = WalLimits(cache_bytes=0, ballast_bytes=0)


async def latched(disk: CrashDisk, *, limits: WalLimits = LIMITS, clock: ManualClock | None = None) -> Log:
    """A log with three entries that everybody was told of, SYNCED ones without a sync, and a failed one."""
    log = opened(disk=disk, limits=limits, clock=clock)
    await log.append(entry(b"one"))
    await log.append(entry(b"two", SYNCED))
    await log.append(entry(b"three", SYNCED))
    disk.on_call = failing("sync", name="segment", times=1)
    with pytest.raises(WalLatched):
        await log.append(entry(b"failed"))
    return log


async def test_reopening_keeps_what_was_acknowledged_and_nothing_else() -> None:
    disk = CrashDisk()
    log = await latched(disk)
    before = len(disk.calls)
    await log.reopen()
    assert log.latched is None
    assert bodies(await read_all(log)) == [b"one", b"two", b"three"]
    assert await log.append(entry(b"four")) == 4
    await log.mark_replayed(1)
    for state in (disk.after_kill(), disk.after_power_cut(None), disk.after_power_cut(7)):
        assert bodies(recovered(state)[1]) == [b"one", b"two", b"three", b"four"]
    await log.close()
    assert "rename" in {call for call, _ in disk.calls[before:]}
    log = opened(disk=disk, entropy=Entropy("again"))
    assert (log.pending_count, log.recovery.cuts) == (1, ())
    await log.close()


async def test_the_failed_file_is_never_written_or_synced_again() -> None:
    """The name leads to another file afterwards; what the failed sync left in the page cache is not believed."""
    disk = CrashDisk()
    log = await latched(disk)
    (failed,) = [file for file in disk.files if file.failed_sync]
    touched: list[str] = []
    for act in ("write", "sync", "truncate"):
        setattr(failed._inode, act, lambda *_, act=act: touched.append(act))
    await log.reopen()
    await log.append(entry(b"four"))
    await log.close()
    assert failed.closed
    assert not touched
    assert b"four" in disk.content(DIRECTORY / "segment-0000000000000001.wal")


async def test_what_no_sync_covered_comes_from_memory() -> None:
    """The failed sync has thrown away what SYNCED writers were told: the file does not show it any more."""
    disk = CrashDisk()
    log = await latched(disk)
    path = DIRECTORY / "segment-0000000000000001.wal"
    whole = disk.content(path)
    first = log._ledger.segments[0].index.start_for(1, 0)
    size = len(whole[first : whole.index(b"two")])
    disk.put(path, whole[: first + size])
    await log.reopen()
    assert bodies(await read_all(log)) == [b"one", b"two", b"three"]
    await log.close()


async def test_reopening_fails_while_the_disk_does_and_says_why() -> None:
    disk = CrashDisk()
    log = await latched(disk)
    for operation in ("create", "append", "sync", "rename", "sync_directory", "open_append", "read", "names"):
        disk.on_call = failing(operation)
        with pytest.raises(WalLatched, match=r"sync failed.*could not be reopened yet: Input/output error"):
            await log.reopen()
        with pytest.raises(WalLatched):
            await log.append(entry(b"refused"))
        assert log.last_seq == 3
        disk.on_call = None
        assert bodies(await read_all(log)) == [b"one", b"two", b"three"], operation
    await log.reopen()
    assert log.latched is None
    await log.append(entry(b"four"))
    await log.close()


async def test_a_segment_that_is_not_what_was_written_stays_shut() -> None:
    disk = CrashDisk()
    log = await latched(disk)
    path = DIRECTORY / "segment-0000000000000001.wal"
    whole = disk.content(path)
    for damage in (whole.replace(b"one", b"0ne"), whole[:200], whole[:100], b"x" + whole[1:]):
        disk.put(path, damage)
        with pytest.raises(WalLatched, match="could not be reopened yet"):
            await log.reopen()
        assert disk.content(path) == damage, "nothing was put in its place"
    disk.put(path, whole)
    await log.reopen()
    assert bodies(await read_all(log)) == [b"one", b"two", b"three"]
    await log.close()


@pytest.mark.parametrize("operation", ["create", "append", "sync", "rename", "sync_directory", "open_append"])
@pytest.mark.parametrize("name", ["segment", "head", "wal"])
async def test_a_new_segment_or_head_that_fails(operation: str, name: str) -> None:
    """Segments of two entries: the failure may hit while a segment is begun, or the head renewed."""
    disk = CrashDisk()
    log = opened(
        disk=disk, limits=WalLimits(segment_bytes=900, head_bytes=500, cache_bytes=0, ballast_bytes=0, room_bytes=0)
    )
    acknowledged = []
    for number in range(40):
        if number == 7:
            disk.on_call = failing(operation, name=name, times=1)
        try:
            await log.append(entry(b"%d" % number * 20))
            acknowledged.append(b"%d" % number * 20)
        except WalLatched:
            await log.reopen()
        if number == 30:
            await log.mark_replayed(log.last_seq)
            with_failure = failing("remove", name="segment", times=1)
            disk.on_call = with_failure
            try:
                await log.retire(log.last_seq, 1 << 62, 0.0)
            except WalLatched:
                await log.reopen()
            disk.on_call = None
    first = log.first_seq
    assert bodies(await read_all(log)) == [body for seq, body in enumerate(acknowledged, 1) if seq >= first]
    assert log.total_bytes == sum(
        len(data) for path, data in disk.everything().items() if path.name.startswith("segment-")
    )
    await log.close()
    log = opened(disk=disk, entropy=Entropy("again"))
    assert bodies(await read_all(log))[-5:] == acknowledged[-5:]
    assert (log.first_seq, log.recovery.cuts) == (first, ())
    await log.close()


async def test_a_crash_at_every_call_of_reopening_loses_nothing() -> None:
    disk = CrashDisk()
    log = await latched(disk)
    states = [disk.after_power_cut(None), disk.after_kill()]
    disk.on_call = lambda called, path: states.extend(
        (disk.after_power_cut(None), disk.after_power_cut(len(disk.calls)), disk.after_kill())
    )
    await log.reopen()
    disk.on_call = None
    assert len(states) > 40
    for state in states:
        _, records = recovered(state)
        assert bodies(records)[:1] == [b"one"]
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        assert set(bodies(records)) <= {b"one", b"two", b"three", b"failed"}
    await log.close()


async def test_a_probe_reopens_with_growing_pauses() -> None:
    disk, clock = CrashDisk(), ManualClock()
    log = await latched(disk, clock=clock)
    changes: list[str] = []
    log.on_change = lambda: changes.append(log.why_no_writes)
    assert "Input/output error" in log.why_no_writes
    disk.on_call = failing("create")
    tries = []
    for second in range(300):
        try:
            await log.tend()
        except WalLatched:
            tries.append(second)
        clock.advance(1.0)
    assert tries == [1, 3, 7, 15, 31, 63, 123, 183, 243]
    assert not changes
    disk.on_call = None
    clock.advance(60.0)
    await log.tend()
    assert changes == [""]
    await log.append(entry(b"four"))
    await log.close()


async def test_without_a_pause_only_a_command_reopens() -> None:
    disk, clock = CrashDisk(), ManualClock()
    log = await latched(disk, limits=WalLimits(reopen_seconds=0, ballast_bytes=0), clock=clock)
    clock.advance(1000.0)
    await log.tend()
    assert log.latched is not None
    await log.reopen()
    await log.reopen()
    assert log.latched is None
    await log.close()
    with pytest.raises(WalLatched, match="closed"):
        await log.reopen()


def test_the_pause_begins_when_something_failed() -> None:
    pause = Pause(1.0, 4.0)
    assert not pause.is_over(100.0)
    pause.begin(100.0)
    assert [second for second in range(100, 120) if pause.is_over(second)] == [101, 103, 107, 111, 115, 119]
    pause.begin(200.0)
    assert [second for second in range(200, 206) if pause.is_over(second)] == [201, 203]


async def test_two_who_reopen_at_once_and_writers_on_their_way() -> None:
    disk = CrashDisk()
    log = await latched(disk)
    await asyncio.gather(log.reopen(), log.reopen())
    disk.on_call = failing("sync", name="segment", times=1)
    results = await asyncio.gather(*(log.append(entry(b"%d" % n)) for n in range(9)), return_exceptions=True)
    assert all(isinstance(result, WalLatched) for result in results)
    await log.reopen()
    assert await asyncio.gather(*(log.append(entry(b"%d" % n, PENDING)) for n in range(9))) == list(range(4, 13))
    assert [record.seq for record in await read_all(log)] == list(range(1, 13))
    await log.close()


async def test_a_disk_that_does_not_say_how_much_is_free() -> None:
    disk = CrashDisk()
    log = await latched(disk)
    disk.on_call = failing("free_bytes")
    with pytest.raises(WalError, match="cannot look at the disk"):
        await log.tend()
    disk.on_call = None
    await log.reopen()
    await log.close()
