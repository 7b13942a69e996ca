"""The log as its callers see it."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import EntryRefused, WalDamaged, WalError, WalFull, WalLatched, WalLocked
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.record import SEGMENT_HEADER_BYTES, NewRecord
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import PENDING, SYNCED, Entropy, bodies, entry, opened, read_all

TINY = WalLimits(segment_bytes=800)
NO_CACHE = WalLimits(segment_bytes=800, cache_bytes=0)


async def test_entries_come_back_as_they_were_appended() -> None:
    clock = ManualClock()
    log = opened(disk=CrashDisk(), clock=clock)
    first = entry(b"one", PENDING, kind=2, points=7)
    assert await log.append(first) == 1
    clock.advance(5)
    assert await log.append(NewRecord(3, SYNCED, b"")) == 2
    one, two = await log.read(0, 10, 1000)
    assert (one.seq, one.kind, one.state, one.principal, one.trace, one.body, one.points) == (
        1, 2, PENDING, first.principal, first.trace, b"one", 7
    )  # fmt: skip
    assert (two.seq, two.kind, two.state, two.principal, two.trace, two.body) == (2, 3, SYNCED, b"", "", b"")
    assert two.wall_ns - one.wall_ns == 5 * 10**9
    await log.close()


@pytest.mark.parametrize("limits", [WalLimits(), TINY, NO_CACHE, WalLimits(segment_bytes=800, cache_bytes=700)])
async def test_reading_pages_through_cache_and_segments_alike(limits: WalLimits) -> None:
    rng = random.Random(3)
    log = opened(disk=CrashDisk(), limits=limits)
    wanted = [rng.randbytes(rng.randrange(400)) for _ in range(60)]
    for body in wanted:
        await log.append(entry(body, rng.choice((PENDING, SYNCED))))
    for page in (1, 7, 1000):
        assert bodies(await read_all(log, page=page)) == wanted
    for after in range(62):
        assert bodies(await log.read(after, 5, 10**6)) == wanted[after : after + 5]
        few = await log.read(after, 1000, 900)
        assert bodies(few) == wanted[after : after + len(few)]
        assert sum(len(record.body) for record in few) <= 900 or len(few) == 1
        assert few or after >= 60
        more = wanted[after + len(few) : after + len(few) + 1]
        assert not more or sum(map(len, [*bodies(few), *more])) > 900
    assert bodies(await log.read(3, 10, 0)) == wanted[3:4], "always at least one"
    await log.close()
    log = opened(disk=log._disk, limits=limits, entropy=Entropy("again"))  # type: ignore[arg-type]
    assert bodies(await read_all(log)) == wanted
    await log.close()


async def test_the_cache_holds_no_more_than_its_limit() -> None:
    log = opened(disk=CrashDisk(), limits=WalLimits(cache_bytes=5000))
    for _ in range(50):
        await log.append(entry(bytes(300)))
    cache = log._ledger.cache
    assert cache._bytes <= 5000
    assert cache.read(0, 10, 10**6) is None
    await log.append(entry(bytes(6000)))
    assert cache.read(50, 10, 10**6) is None, "an entry larger than the cache is not kept"
    assert [len(record.body) for record in await log.read(49, 10, 10**6)] == [300, 6000]
    await log.append(entry(b"next"))
    assert bodies(await log.read(51, 10, 10**6)) == [b"next"]
    await log.close()


async def test_pending_entries_are_counted_until_the_cursor_passes_them() -> None:
    clock = ManualClock()
    disk = CrashDisk()
    log = opened(disk=disk, clock=clock)
    assert (log.pending_count, log.pending_bytes, log.oldest_pending_ns, log.replayed_seq) == (0, 0, None, 0)
    for _ in range(3):
        await log.append(entry(b"s", SYNCED))
    assert (log.pending_count, log.replayed_seq) == (0, 3), "what Qdrant acknowledged is not pending"
    times = []
    for number in range(5):
        clock.advance(1)
        times.append(clock.wall_ns())
        await log.append(entry(b"p%d" % number))
    await log.append(entry(b"s", SYNCED))
    assert (log.pending_count, log.replayed_seq, log.oldest_pending_ns) == (5, 3, times[0])
    await log.mark_replayed(5)
    await log.mark_replayed(4)
    assert (log.pending_count, log.replayed_seq, log.oldest_pending_ns) == (3, 5, times[2])
    assert bodies(await log.read_pending(10, 10**6)) == [b"p2", b"p3", b"p4"]
    assert bodies(await log.read_pending(2, 10**6)) == [b"p2", b"p3"]
    assert bodies(await log.read_pending(10, 1)) == [b"p2"]
    with pytest.raises(ValueError, match="never logged"):
        await log.mark_replayed(10)
    for seed in ("close", "kill"):
        if seed == "close":
            await log.close()
        else:
            disk = disk.after_kill()
        log = opened(disk=disk, clock=clock, entropy=Entropy(seed))
        assert (log.pending_count, log.replayed_seq, log.oldest_pending_ns) == (3, 5, times[2])
        assert (log.last_seq, log.opened_at_seq) == (9, 9)
    before = log.pending_bytes
    await log.mark_replayed(6)
    assert log.pending_bytes < before
    await log.mark_replayed(8)
    assert (log.pending_count, log.pending_bytes, log.replayed_seq) == (0, 0, 9)
    assert await log.read_pending(10, 10**6) == []
    await log.close()


async def test_the_cursor_survives_a_kill_before_the_head_knows_of_it() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    for _ in range(5):
        await log.append(entry(b"p"))
    await log.mark_replayed(3)
    for state in (disk.after_kill(), disk.after_power_cut(None)):
        again = opened(disk=state, entropy=Entropy("again"))
        assert (again.replayed_seq, again.pending_count, again.last_seq) == (3, 2, 5)
        await again.close()
    await log.close()


async def test_pending_entries_between_synced_ones_are_found() -> None:
    log = opened(disk=CrashDisk(), limits=NO_CACHE)
    for number in range(40):
        await log.append(entry(b"%d" % number, PENDING if number % 10 == 9 else SYNCED))
    assert bodies(await log.read_pending(3, 10**6)) == [b"9", b"19", b"29"]
    assert bodies(await log.read_pending(100, 10**6)) == [b"9", b"19", b"29", b"39"]
    await log.close()


async def test_the_cursor_survives_that_its_segment_is_retired() -> None:
    clock = ManualClock()
    disk = CrashDisk()
    log = opened(disk=disk, limits=TINY, clock=clock)
    for _ in range(20):
        await log.append(entry(b"x" * 100))
    await log.mark_replayed(12)
    for _ in range(6):
        await log.append(entry(b"x" * 100))
    removed = await log.retire(26, clock.wall_ns() + 10**9, 0.0)
    assert removed >= 4
    assert (log.replayed_seq, log.pending_count) == (12, 14)
    assert log.first_seq <= 13
    log = opened(disk=disk.after_kill(), limits=TINY, entropy=Entropy("again"))
    assert (log.replayed_seq, log.pending_count) == (12, 14)
    assert [record.seq for record in await read_all(log)] == list(range(log.first_seq, 27))
    await log.close()


async def test_order_of_acknowledgement_is_order_in_the_log() -> None:
    log = opened(disk=CrashDisk(), limits=TINY)
    rng = random.Random(1)
    acknowledged: list[int] = []

    async def write(number: int) -> None:
        seq = await log.append(entry(b"%d" % number, rng.choice((PENDING, SYNCED))))
        acknowledged.append(seq)

    await asyncio.gather(*(write(number) for number in range(300)))
    assert acknowledged == sorted(acknowledged)
    assert bodies(await read_all(log)) == [b"%d" % number for number in range(300)]
    await log.close()


async def test_waiting_writers_share_one_sync() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"first"))
    release = threading.Event()
    syncs = 0

    def slow(operation: str, path: Path) -> None:
        nonlocal syncs
        if operation == "sync" and path.name.startswith("segment"):
            syncs += 1
            assert release.wait(30)

    disk.on_call = slow
    writers = [asyncio.create_task(log.append(entry(b"%d" % number))) for number in range(100)]
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*writers) == list(range(2, 102))
    assert syncs <= 2, "one for the first writer, one for all who came meanwhile"
    disk.on_call = None
    await log.close()


async def test_synced_entries_are_not_synced_one_by_one_but_before_the_head_vouches_for_them() -> None:
    clock = ManualClock()
    disk = CrashDisk()
    log = opened(disk=disk, clock=clock)
    before = len(disk.calls)
    for _ in range(50):
        await log.append(entry(b"s", SYNCED))
    assert not [call for call in disk.calls[before:] if call[0] == "sync"]
    clock.advance(2)
    await log.append(entry(b"s", SYNCED))
    await log.close()
    calls = [call for call in disk.calls[before:] if call[0] in ("sync", "rename")]
    assert calls[0] == ("sync", "segment-0000000000000001.wal")
    assert ("rename", "head") in calls


async def test_the_head_is_renewed_by_itself_when_nobody_writes() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(head_seconds=0.0))
    renewed = threading.Event()
    disk.on_call = lambda operation, path: renewed.set() if (operation, path.name) == ("rename", "head") else None
    await log.append(entry(b"x"))
    assert await asyncio.to_thread(renewed.wait, 30)
    await log.close()


async def test_readers_are_woken_by_the_entry_that_they_wait_for() -> None:
    log = opened(disk=CrashDisk())
    assert await log.wait_beyond(-1) == 0
    waiters = [asyncio.create_task(log.wait_beyond(seq)) for seq in (0, 0, 1)]
    await asyncio.sleep(0)
    await log.append(entry(b"1"))
    assert [await waiters[0], await waiters[1]] == [1, 1]
    assert not waiters[2].done()
    await log.append(entry(b"2"))
    assert await waiters[2] == 2
    last = asyncio.create_task(log.wait_beyond(2))
    cancelled = asyncio.create_task(log.wait_beyond(2))
    await asyncio.sleep(0)
    assert len(log._waiting_beyond) == 2
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert len(log._waiting_beyond) == 1, "a reader that has gone is forgotten"
    await log.close()
    with pytest.raises(WalLatched, match="closed"):
        await last
    with pytest.raises(WalLatched, match="closed"):
        await log.append(entry(b"3"))
    with pytest.raises(WalLatched, match="closed"):
        await log.wait_beyond(2)
    await log.close()


async def test_a_reader_that_goes_while_the_log_closes_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not been able to strike itself off the list when those who wait are told."""
    log = opened(disk=CrashDisk())
    waiters = [asyncio.create_task(log.wait_beyond(0)) for _ in range(3)]
    await asyncio.sleep(0)
    monkeypatch.setattr(log._lock, "release", waiters[1].cancel)
    await log.close()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [WalLatched, asyncio.CancelledError, WalLatched]


async def test_a_lock_that_cannot_be_closed_is_told_and_nobody_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(disk=CrashDisk())
    waiter = asyncio.create_task(log.wait_beyond(0))
    await asyncio.sleep(0)

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(log._lock, "release", fail)
    with pytest.raises(WalError, match="cannot close the lock of /data/wal: Input/output error"):
        await log.close()
    with pytest.raises(WalLatched, match="closed"):
        await waiter
    await log.close()


async def test_a_cancelled_writer_harms_nobody() -> None:
    log = opened(disk=CrashDisk())
    writers = [asyncio.create_task(log.append(entry(b"%d" % number))) for number in range(5)]
    await asyncio.sleep(0)
    writers[2].cancel()
    assert [await writers[n] for n in (0, 1, 3, 4)] == [1, 2, 4, 5]
    assert bodies(await read_all(log)) == [b"0", b"1", b"2", b"3", b"4"]
    await log.close()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (NewRecord(18, PENDING, b""), "kind 18"),
        (NewRecord(0, PENDING, b""), "kind 0"),
        (NewRecord(1, PENDING, bytes(1001)), "wal.entry_bytes"),
        (NewRecord(1, PENDING, b"", points=11), "wal.entry_points"),
        (NewRecord(1, PENDING, b"", principal=b"short"), "principal"),
        (NewRecord(1, PENDING, b"", trace="x" * 513), "trace"),
        (NewRecord(1, PENDING, b"", trace="é"), "trace"),
    ],
)
async def test_what_may_not_be_logged_is_refused_before_anything_is_written(bad: NewRecord, why: str) -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(entry_bytes=1000, entry_points=10))
    before = disk.everything()
    with pytest.raises(EntryRefused, match=why):
        await log.append(bad)
    assert disk.everything() == before
    assert await log.append(NewRecord(1, PENDING, bytes(1000), points=10)) == 1
    await log.close()


async def test_a_full_log_refuses_entries_and_goes_on_when_it_has_drained() -> None:
    clock = ManualClock()
    disk = CrashDisk()
    limits = WalLimits(segment_bytes=1000, total_bytes=4000)
    log = opened(disk=disk, limits=limits, clock=clock)
    count = 0
    with pytest.raises(WalFull, match=r"wal\.total_bytes"):
        for _ in range(1000):
            await log.append(entry(bytes(200)))
            count += 1
    assert count >= 8
    before = disk.everything()
    with pytest.raises(WalFull):
        await log.append(entry(bytes(200)))
    assert disk.everything() == before, "nothing is half-written"
    assert log.total_bytes <= limits.total_bytes
    await log.mark_replayed(count)
    assert log.pending_count == 0, "cursor records are always taken"
    day = 86400.0
    assert await log.retire(count, clock.wall_ns(), 7 * day) == 0, "Qdrant may still lose what it has not synced"
    clock.advance(61)
    assert await log.retire(count, clock.wall_ns(), 7 * day) > 0, "short of space the retention gives way"
    assert await log.append(entry(bytes(200))) == count + 1
    await log.close()


async def test_total_size_is_what_is_on_disk() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=replace(TINY, room_bytes=0))
    for number in range(20):
        await log.append(entry(bytes(number * 7)))
    await log.mark_replayed(9)
    sizes = [len(data) for path, data in disk.everything().items() if path.name.startswith("segment-")]
    assert (log.total_bytes, log.segment_count) == (sum(sizes), len(sizes))
    assert len(sizes) > 3
    assert max(sizes) <= TINY.segment_bytes
    await log.close()


async def test_an_entry_larger_than_a_segment_has_one_to_itself() -> None:
    log = opened(disk=CrashDisk(), limits=NO_CACHE)
    for size in (10, 2000, 10, 10):
        await log.append(entry(bytes(size)))
    assert [len(body) for body in bodies(await read_all(log))] == [10, 2000, 10, 10]
    assert log.segment_count == 3
    await log.close()


async def test_too_many_writers_wait_for_room_and_all_get_in() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(queue_entries=3, queue_bytes=2000))
    release = threading.Event()
    seen: list[int] = []
    disk.on_call = lambda operation, path: (
        release.wait(30) if operation == "append" and not seen.append(log._turnstile.entries) else None
    )
    writers = [asyncio.create_task(log.append(entry(bytes(size)))) for size in [700] * 10 + [5000] + [1] * 10]
    for _ in range(5):
        await asyncio.sleep(0)
    assert log._turnstile.entries <= 3
    assert log._turnstile.bytes <= 2000
    writers[15].cancel()
    release.set()
    done = await asyncio.gather(*writers, return_exceptions=True)
    assert sorted(seq for seq in done if isinstance(seq, int)) == list(range(1, 21))
    disk.on_call = None
    await log.close()


async def test_segments_go_when_both_readers_passed_and_the_retention_is_over() -> None:
    clock = ManualClock()
    disk = CrashDisk()
    log = opened(disk=disk, limits=TINY, clock=clock)
    for _ in range(10):
        await log.append(entry(bytes(100)))
        clock.advance(10)
    now = clock.wall_ns()
    assert await log.retire(10, now, 0.0) == 0, "pending"
    await log.mark_replayed(10)
    assert await log.retire(0, now, 0.0) == 0, "the replica has not applied them"
    assert await log.retire(10, now, 1000.0) == 0, "the retention is not over"
    half = await log.retire(5, now, 0.0)
    assert half == 2
    assert log.first_seq == 5
    assert [record.seq for record in await read_all(log)] == list(range(5, 11))
    assert await log.retire(10, now, 35.0) == 1
    await log.retire(10, now, 0.0)
    assert log.segment_count == 1, "a segment that is over is closed so that it can go"
    assert log.first_seq == 11
    names = [path.name for path in disk.everything() if path.name.startswith("segment-")]
    assert len(names) == 1
    await log.close()
    log = opened(disk=disk, limits=TINY, clock=clock, entropy=Entropy("again"))
    assert (log.last_seq, log.first_seq, log.pending_count) == (10, 11, 0)
    assert await log.append(entry(b"next")) == 11
    await log.close()


async def test_the_segment_being_written_is_closed_when_all_it_holds_may_go() -> None:
    """Otherwise the last writes of a quiet log would stay for ever."""
    clock = ManualClock()
    disk = CrashDisk()
    log = opened(disk=disk, clock=clock)
    await log.append(entry(b"secret", SYNCED))
    clock.advance(10)
    assert await log.retire(1, clock.wall_ns(), 11.0) == 0
    assert await log.retire(1, clock.wall_ns(), 10.0) == 1
    assert not any(b"secret" in data for data in disk.everything().values())
    assert await log.retire(1, clock.wall_ns(), 0.0) == 0, "an empty segment is left alone"
    assert (log.last_seq, log.first_seq, log.segment_count) == (1, 2, 1)
    assert await log.read(0, 10, 10) == []
    assert await log.append(entry(b"next")) == 2
    await log.close()


async def test_a_retire_that_a_crash_ended_is_finished_at_the_next_open() -> None:
    clock = ManualClock()
    disk = CrashDisk()
    log = opened(disk=disk, limits=TINY, clock=clock)
    for _ in range(10):
        await log.append(entry(bytes(100)))
    await log.mark_replayed(10)
    photographs: list[CrashDisk] = []
    disk.on_call = lambda operation, _: photographs.append(disk.photograph()) if operation == "remove" else None
    assert await log.retire(10, clock.wall_ns() + 1, 0.0) == 5
    assert len(photographs) == 5
    for state in photographs:
        again = opened(disk=state, limits=TINY, entropy=Entropy("again"))
        assert (again.first_seq, again.last_seq, again.segment_count) == (11, 10, 1)
        assert again.recovery.leftovers_removed
        await again.close()


async def test_readers_of_a_segment_that_is_retired_meanwhile_look_again() -> None:
    clock = ManualClock()
    disk = CrashDisk()
    log = opened(disk=disk, limits=NO_CACHE, clock=clock)
    for number in range(10):
        await log.append(entry(b"%d" % number * 60))
    await log.mark_replayed(10)
    stretches = log._ledger.stretches
    calls = 0

    def outdated(after_seq: int) -> list[object]:
        nonlocal calls
        calls += 1
        found: list[object] = list(stretches(after_seq))
        if calls == 1:
            for path in [path for path in disk.everything() if path.name.endswith("1.wal")]:
                disk.drop(path)
            log._ledger.begins_at(log._ledger.segments[1].number)
        return found

    log._ledger.stretches = outdated  # type: ignore[method-assign,assignment]
    records = await log.read(0, 3, 10**6)
    assert calls == 2
    assert records[0].seq == log.first_seq > 1
    disk.drop(log._ledger.segments[0].path)
    with pytest.raises(WalDamaged, match="gone"):
        await log.read(log.first_seq - 1, 3, 10**6)
    await log.close()


async def test_only_one_holds_a_directory() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    before = disk.everything()
    with pytest.raises(WalLocked):
        opened(disk=disk)
    assert disk.everything() == before
    await log.close()
    await opened(disk=disk, entropy=Entropy("again")).close()


async def test_a_new_log_has_an_identity_that_it_keeps() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    assert log.recovery.created
    assert (log.last_seq, log.first_seq, log.opened_at_seq, log.total_bytes) == (0, 1, 0, SEGMENT_HEADER_BYTES)
    identity = log.log_id
    assert len(identity) == 32
    await log.close()
    log = opened(disk=disk, entropy=Entropy("again"))
    assert (log.log_id, log.recovery.created, log.recovery.clean) == (identity, False, True)
    await log.close()
    assert opened(disk=CrashDisk(), entropy=Entropy("another")).log_id != identity


async def test_closing_twice_is_closing_once() -> None:
    log = opened(disk=CrashDisk())
    await log.append(entry(b"x"))
    await log.close()
    await log.close()


def test_a_log_that_is_opened_and_never_used_needs_no_event_loop() -> None:
    disk = CrashDisk()
    log: Log = opened(disk=disk)
    assert log.last_seq == 0
    asyncio.run(log.close())
    assert not disk.locks
