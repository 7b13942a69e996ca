"""Segments that go, while others write, read, cancel and fail."""

from __future__ import annotations

import asyncio
import errno
import random
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import WalDamaged, WalFull
from server.wal import inspect
from server.wal.limits import WalLimits
from server.wal.patrol import Patrol
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import KINDS, SYNCED, Entropy, bodies, entry, failing, opened, read_all

TINY = WalLimits(segment_bytes=800, cache_bytes=0)
LATER_NS = 1 << 62


class SlowToRemove(CrashDisk):
    """Waits once it has removed a segment, when it is told to; other threads go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.is_slow = False

    def remove(self, path: Path) -> None:
        """See Disk."""
        super().remove(path)
        if self.is_slow and path.name.startswith("segment"):
            self.begun.set()
            assert self.may_go_on.wait(30)


async def test_an_entry_on_its_way_into_the_last_known_segment_stays() -> None:
    """The next segment has begun for those who append, and is not known to be there yet."""
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(segment_bytes=2000, cache_bytes=0))
    for _ in range(4):
        await log.append(entry(b"s" * 150, SYNCED))
    assert log.segment_count == 1
    fits = asyncio.create_task(log.append(entry(b"fits")))
    rolls = asyncio.create_task(log.append(entry(b"y" * 900)))
    retiring = asyncio.create_task(log.retire(log.last_seq, LATER_NS, 0.0))
    assert await asyncio.gather(fits, rolls) == [5, 6]
    await retiring
    assert log.segment_count >= 2
    assert [record.seq for record in await log.read_pending(10, 1 << 20)] == [5, 6]
    again = opened(disk=disk.after_kill(), entropy=Entropy("again"))
    assert bodies(await again.read_pending(10, 1 << 20)) == [b"fits", b"y" * 900]
    await again.close()
    await log.close()


async def test_what_the_replayer_has_not_seen_is_never_retired() -> None:
    """Writers in bursts, a replayer and a compaction that never rests; segments hold a few entries each."""
    log = opened(disk=CrashDisk(), limits=TINY)
    rng = random.Random(1)
    shown: list[int] = []
    is_over = False
    removed = 0

    caught_up = asyncio.Event()

    async def write() -> None:
        for _ in range(60):
            caught_up.clear()
            await asyncio.gather(*(log.append(entry(rng.randbytes(rng.randrange(20, 300)))) for _ in range(16)))
            await caught_up.wait()

    async def replay() -> None:
        while not is_over or log.pending_count:
            records = await log.read_pending(20, 1 << 20)
            shown.extend(record.seq for record in records)
            if records:
                await log.mark_replayed(records[-1].seq)
            if not log.pending_count:
                caught_up.set()
            await asyncio.sleep(0)

    async def compact() -> None:
        nonlocal removed
        while not is_over:
            removed += await log.retire(log.last_seq, LATER_NS, 0.0)
            await asyncio.sleep(0)

    others = asyncio.gather(replay(), compact())
    await write()
    is_over = True
    await others
    assert removed > 50
    assert shown == list(range(1, 16 * 60 + 1)), "each once, in order"
    await log.close()


async def test_a_segment_stays_while_the_one_after_it_cannot_be_made() -> None:
    """All of the log may go, and the disk is too full for the empty segment that it would go on in."""
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(ballast_bytes=0, free_bytes_min=0))
    await log.append(entry(b"before", SYNCED))
    disk.on_call = failing("create", name="segment", code=errno.ENOSPC)
    assert await log.retire(1, LATER_NS, 0.0) == 0
    disk.on_call = None
    assert await log.append(entry(b"after")) == 2
    assert bodies(await read_all(log)) == [b"before", b"after"]
    again = opened(disk=disk.after_kill(), entropy=Entropy("again"))
    assert bodies(await read_all(again)) == [b"before", b"after"]
    await again.close()
    assert await log.retire(1, LATER_NS, 0.0) == 0, "the one after it is pending"
    await log.mark_replayed(2)
    assert await log.retire(2, LATER_NS, 0.0) == 1
    await log.close()


@pytest.mark.parametrize("then", ["rotate", "compact"])
async def test_after_a_cancelled_retire_the_log_does_not_begin_earlier_again(
    then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody holds the next one back any more; what it asks for was seen before the writer was done."""
    disk = SlowToRemove()
    log = opened(disk=disk, limits=TINY)
    for _ in range(20):
        await log.append(entry(b"s" * 200, SYNCED))
    disk.is_slow = True
    cancelled = asyncio.create_task(log.retire(20, LATER_NS, 0.0))
    assert await asyncio.to_thread(disk.begun.wait, 30)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    asked = asyncio.Event()
    send = log._send
    monkeypatch.setattr(log, "_send", lambda command: (send(command), asked.set()))
    following = asyncio.create_task(log.rotate_key() if then == "rotate" else log.retire(4, LATER_NS, 0.0))
    await asyncio.wait_for(asked.wait(), 30)
    disk.may_go_on.set()
    await following
    assert await log.append(entry(b"after")) == 21
    for state in (disk.after_kill(), disk.after_power_cut(None)):
        again = opened(disk=state, entropy=Entropy("again"))
        assert (again.first_seq, bodies(await read_all(again))) == (21, [b"after"])
        await again.close()
    await log.close()
    assert opened(disk=disk, entropy=Entropy("at last")).last_seq == 21


@pytest.mark.parametrize("kept", [6, 0], ids=["some", "all"])
async def test_a_segment_that_is_being_removed_is_no_damage(kept: int) -> None:
    """The file is gone, and the writer has not told of it yet."""
    disk = SlowToRemove()
    log = opened(disk=disk, limits=TINY)
    for _ in range(20):
        await log.append(entry(b"s" * 200, SYNCED))
    disk.is_slow = True
    retiring = asyncio.create_task(log.retire(20 - kept, LATER_NS, 0.0))
    assert await asyncio.to_thread(disk.begun.wait, 30)
    first = log.written()[0].path
    assert disk.facts(first) is None
    patrol = Patrol(log, disk)
    for _ in range(log.segment_count):
        assert await patrol.step(1 << 20) is None
    status = await inspect.verify_open(log, disk, KINDS)
    assert (status.problems, status.entries_verified) == ((), kept)
    assert [record.seq for record in await log.read(0, 100, 1 << 20)] == list(range(21 - kept, 21))
    assert [
        listed.record.seq for listed in (await inspect.list_open(log, wanted=None, after_seq=0, limit=9)).records
    ] == [record.seq for record in await log.read(0, 9, 1 << 20)]
    if kept:
        disk.drop(log.written()[-1].path)
        with pytest.raises(WalDamaged, match="gone"):
            await log.read(19, 1, 1 << 20)
    disk.may_go_on.set()
    assert await retiring > 0
    assert not log.holds(first)
    assert log.holds(log.written()[-1].path)


async def test_a_segment_that_could_not_be_removed_is_held_again() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=replace(TINY, ballast_bytes=0, free_bytes_min=0))
    for _ in range(20):
        await log.append(entry(b"s" * 200, SYNCED))
    first = log.written()[0].path
    disk.on_call = failing("create", name="head", code=errno.ENOSPC)
    with pytest.raises(WalFull):
        await log.retire(10, LATER_NS, 0.0)
    assert log.holds(first)
    disk.drop(first)
    with pytest.raises(WalDamaged, match="gone"):
        await log.read(0, 1, 1 << 20)
    assert (await Patrol(log, disk).step(1 << 20)) is not None
    disk.on_call = None
    await log.close()
