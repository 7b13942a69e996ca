"""Power cuts at every call that the log makes on the disk: what was acknowledged is there, and nothing else is."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import random
from collections.abc import Awaitable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.errors import WalError, WalLatched
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CHANGING, CrashDisk
from tests.wal.support import (
    DIRECTORY,
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

STATES = 10_000
SOAK_STATES = 1_000_000
# States of one photograph: the one where all is lost that can be, and others by chance.
CUTS = 3
SMALL = WalLimits(segment_bytes=6000, head_bytes=2500, cache_bytes=0)
SEGMENT = DIRECTORY / "segment-0000000000000001.wal"


@dataclass
class Promised:
    """What the log had promised at one moment, and what it was being asked."""

    entries: dict[int, bytes] = field(default_factory=dict)
    cursor: int = 0
    cursor_asked: int = 0
    retired_through: int = 0
    quarantined: set[int] = field(default_factory=set)

    def frozen(self) -> Promised:
        return Promised(dict(self.entries), self.cursor, self.cursor_asked, self.retired_through, set(self.quarantined))


@dataclass
class Photograph:
    """The disk at one call, with the promises of that moment."""

    call: str
    disk: CrashDisk
    promised: Promised


@dataclass
class Written:
    """What writers gave to the log: under a number, or without an answer that says which."""

    numbered: dict[int, set[bytes]] = field(default_factory=dict)
    unanswered: set[bytes] = field(default_factory=set)

    def add(self, seq: int, body: bytes) -> None:
        self.numbered.setdefault(seq, set()).add(body)

    def holds(self, seq: int, body: bytes) -> bool:
        return body in self.numbered.get(seq, ()) or body in self.unanswered


@dataclass
class Workload:
    """Lives of a log, one after the other on what the last one left; a photograph at every call that changes the disk.

    A life ends with a close, a kill, a power cut or a failed sync, after which the log may have been reopened; in some
    the disk is full for a while or the key is replaced.
    """

    rng: random.Random
    disk: CrashDisk = field(default_factory=CrashDisk)
    clock: ManualClock = field(default_factory=ManualClock)
    entropy: Entropy = field(default_factory=Entropy)
    promised: Promised = field(default_factory=Promised)
    written: Written = field(default_factory=Written)
    photographs: list[Photograph] = field(default_factory=list)
    failing: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        self.disk.on_call = self._called

    def _called(self, operation: str, path: Path) -> None:
        if operation in CHANGING:
            promised = self.promised.frozen()
            self.photographs.append(Photograph(f"{operation} {path.name}", self.disk.photograph(), promised))
        if self.failing is not None and operation == self.failing[0] and path.name.startswith("segment-"):
            raise OSError(self.failing[1], os.strerror(self.failing[1]))

    async def run(self, lives: int) -> None:
        for _ in range(lives):
            log = opened(disk=self.disk, limits=SMALL, clock=self.clock, entropy=self.entropy)
            await self._live(log)
            await self._end(log)

    async def _write(self, log: Log, size: int, *, is_pending: bool) -> None:
        body = self.rng.randbytes(size)
        try:
            seq = await log.append(entry(body, PENDING if is_pending else SYNCED))
        except WalError:
            self.written.unanswered.add(body)
            return
        self.written.add(seq, body)
        if is_pending:
            self.promised.entries[seq] = body

    async def _live(self, log: Log) -> None:
        full_at = self.rng.randrange(12)
        for number in range(self.rng.randrange(2, 6)):
            is_pending = self.rng.random() < 0.8
            sizes = [self.rng.choice((0, 5, 400, 1300)) for _ in range(self.rng.randrange(1, 6))]
            self.failing = ("append", errno.ENOSPC) if number == full_at else None
            await asyncio.gather(*(self._write(log, size, is_pending=is_pending) for size in sizes))
            self.clock.advance(0.4)
        self.failing = None
        for record in await log.read_pending(self.rng.randrange(1, 4), 1 << 20):
            await log.quarantine([Refused(record, 3, "wrong")])
            self.promised.quarantined.add(record.seq)
        target = self.rng.randrange(log.replayed_seq, log.last_seq + 1)
        if target > log.replayed_seq:
            self.promised.cursor_asked = max(self.promised.cursor_asked, target)
            await log.mark_replayed(target)
            self.promised.cursor = max(self.promised.cursor, target)
        if self.rng.random() < 0.3:
            await log.rotate_key()
        await asyncio.gather(*(self._write(log, 50, is_pending=True) for _ in range(2)))
        self.promised.retired_through = max(self.promised.retired_through, log.replayed_seq)
        await log.retire(log.last_seq, self.clock.wall_ns() + 10**12, 0.0)

    async def _end(self, log: Log) -> None:
        match self.rng.randrange(4):
            case 0:
                await log.close()
                return
            case 1:
                self.failing = ("sync", errno.EIO)
                await asyncio.gather(*(self._write(log, 700, is_pending=True) for _ in range(3)))
                assert log.latched
                self.failing = None
                if self.rng.random() < 0.6:
                    await log.reopen()
                    await asyncio.gather(*(self._write(log, 300, is_pending=True) for _ in range(3)))
                    assert not log.latched
                left = self.disk.after_kill()
            case 2:
                left = self.disk.after_kill()
            case _:
                left = self.disk.after_power_cut(self.rng.randrange(1 << 30))
        await _forget(log, self.disk)
        self.disk = left
        self.disk.on_call = self._called


async def _forget(log: Log, disk: CrashDisk) -> None:
    """A log whose process is gone: its thread ends on the disk that nobody looks at any more."""
    disk.on_call = None
    await _shut(log.close())


async def _shut(closing: Awaitable[None]) -> None:
    try:
        await closing
    except WalLatched:
        return


def check(state: CrashDisk, promised: Promised, written: Written, name: str) -> None:
    """Compare a recovered state with the promises."""
    try:
        result, records = recovered(state)
    except WalError as error:
        raise AssertionError(f"{name}: {error}") from error
    found = {record.seq: record.body for record in records}
    first = result.survey.segments[0].first_seq
    assert list(found) == list(range(first, first + len(found))), name
    assert all(written.holds(seq, body) for seq, body in found.items()), f"{name}: an entry that nobody wrote"
    assert first <= promised.retired_through + 1, f"{name}: retired too much"
    missing = [seq for seq, body in promised.entries.items() if seq >= first and found.get(seq) != body]
    assert not missing, f"{name}: lost {missing}"
    replayed = result.survey.replayed_seq
    assert replayed >= promised.cursor, f"{name}: the cursor stepped back"
    pending = [record.seq for record in records if record.state is PENDING and record.seq > replayed]
    assert len(pending) == len(result.survey.pending), name
    still = [seq for seq in promised.entries if seq > promised.cursor_asked and seq not in pending]
    assert not still, f"{name}: no longer pending: {still}"
    assert promised.quarantined <= quarantined(state, result), f"{name}: quarantine"


def check_workload(seed: int) -> Iterator[str]:
    """Every state of one workload, checked one by one; yields the call at which the power was cut."""
    work = Workload(random.Random(seed))
    asyncio.run(work.run(lives=3))
    for number, photograph in enumerate(work.photographs):
        for cut in (None, *range(seed * CUTS + 1, seed * CUTS + CUTS)):
            name = f"workload {seed}, photograph {number} ({photograph.call}), cut {cut}"
            check(photograph.disk.after_power_cut(cut), photograph.promised, work.written, name)
            yield photograph.call.partition(" ")[0]


def count_states(seed: int) -> int:
    """How many states of one workload were checked, all without a violation."""
    return sum(1 for _ in check_workload(seed))


def test_every_state_that_a_power_cut_leaves_opens_with_what_was_acknowledged() -> None:
    states, seed = 0, 0
    calls: dict[str, int] = {}
    while states < STATES:
        for call in check_workload(seed):
            calls[call] = calls.get(call, 0) + 1
            states += 1
        seed += 1
    print(f"{states} states of {seed} workloads, 0 violations: {calls}")
    assert calls.keys() >= CHANGING - {"mkdir"}
    assert states >= STATES


def test_what_a_full_disk_undid_does_not_come_back_in_a_later_power_cut() -> None:
    """Two whole frames were cut off; a torn write at their place left the second one behind a new first one."""
    assert count_states(10_570) > 800


async def test_what_an_open_cut_off_does_not_come_back_in_a_later_power_cut() -> None:
    work = CrashDisk()
    log = opened(disk=work)
    await log.append(entry(b"first"))
    before = log.total_bytes
    await asyncio.gather(*(log.append(entry(bytes(400))) for _ in range(2)))
    torn = work.after_kill()
    held = torn.content(SEGMENT)
    torn.put(SEGMENT, held[: before + 100] + b"torn" + held[before + 104 :])
    again = opened(disk=torn, entropy=Entropy("again"))
    assert [cut.offset for cut in again.recovery.cuts] == [before]
    for _ in range(2):
        await again.append(entry(b"x" * 400, SYNCED))
    for seed in range(400):
        _, records = recovered(torn.after_power_cut(seed))
        assert bodies(records) in ([b"first"] + [b"x" * 400] * count for count in range(3))


@pytest.mark.soak
def test_a_million_states_that_a_power_cut_leaves() -> None:
    """Other workloads than the short test, on two processes; a violation names its workload, photograph and cut."""
    states, first = 0, 10_000
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        while states < SOAK_STATES:
            states += sum(pool.map(count_states, range(first, first + 40)))
            first += 40
            print(f"{states} states, 0 violations", flush=True)
    assert states >= SOAK_STATES


async def test_a_power_cut_during_recovery_is_survived_as_well() -> None:
    work = Workload(random.Random(99))
    await work.run(lives=3)
    rng = random.Random(1)
    checked = 0
    for number in rng.sample(range(len(work.photographs)), 40):
        photograph = work.photographs[number]
        state = photograph.disk.after_power_cut(rng.randrange(1000))
        again: list[CrashDisk] = []
        state.on_call = lambda operation, _, state=state, again=again: (
            again.append(state.photograph()) if operation in CHANGING else None
        )
        recovered(state)
        for step, second in enumerate(again):
            name = f"photograph {number} ({photograph.call}), recovery step {step}"
            check(second.after_power_cut(step), photograph.promised, work.written, name)
            check(second.after_kill(), photograph.promised, work.written, name)
            checked += 1
    assert checked > 200


async def test_killed_anywhere_reopened_and_then_cut_off() -> None:
    """What a killed process left in the page cache is relied upon by the next one; it must not vanish later."""
    work = Workload(random.Random(7))
    await work.run(lives=3)
    for number, photograph in enumerate(work.photographs[::2]):
        state = photograph.disk.after_kill()
        log = opened(disk=state, limits=SMALL, entropy=Entropy("second"))
        before = await read_all(log)
        seq = await log.append(entry(b"after the kill"))
        promised = photograph.promised.frozen()
        promised.entries.update({record.seq: record.body for record in before if record.state is PENDING})
        promised.entries[seq] = b"after the kill"
        promised.cursor = max(promised.cursor, log.replayed_seq)
        promised.cursor_asked = max(promised.cursor_asked, log.replayed_seq)
        written = Written({each: set(known) for each, known in work.written.numbered.items()}, work.written.unanswered)
        for record in before:
            written.add(record.seq, record.body)
        written.add(seq, b"after the kill")
        for cut in (None, 1, 2, 3):
            name = f"photograph {number} ({photograph.call}), cut {cut}"
            check(state.after_power_cut(cut), promised, written, name)
        await log.close()


async def test_after_a_failed_sync_nothing_that_was_recovered_is_lost_in_a_later_power_cut() -> None:
    """The kernel marks pages clean when a sync fails: a later sync of the same bytes succeeds and writes nothing."""
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"first"))
    disk.on_call = failing("sync", times=1)
    results = await asyncio.gather(log.append(entry(b"second")), return_exceptions=True)
    assert isinstance(results[0], Exception)
    after = disk.after_kill()
    again = opened(disk=after, entropy=Entropy("again"))
    seen = bodies(await read_all(again))
    assert seen == [b"first", b"second"]
    await again.append(entry(b"third"))
    for seed in range(50):
        _, records = recovered(after.after_power_cut(seed))
        assert bodies(records) == [b"first", b"second", b"third"]
