"""A drain ends although writes keep coming."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pace import DrainPace
from tests.faults.clock import ManualClock


class Drain:
    """A log that is replayed a little with every look at the clock."""

    def __init__(self, pending: int, replayed_per_look: int) -> None:
        self.clock = ManualClock()
        self.pending = pending
        self.replayed_per_look = replayed_per_look
        self.is_draining = True
        self.pace = DrainPace(
            is_draining=lambda: self.is_draining,
            pending_count=lambda: self.pending,
            hold_seconds=1.0,
            clock=self.clock,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.pending = max(0, self.pending - self.replayed_per_look)

    async def write(self) -> None:
        await self.pace.admit()
        self.pending += 1


@given(st.integers(0, 400), st.integers(1, 5))
async def test_what_is_pending_shrinks_however_many_write(pending: int, replayed_per_look: int) -> None:
    drain = Drain(pending, replayed_per_look)
    writes = 0
    while drain.pending > 40:
        await drain.write()
        writes += 1
        assert drain.pending <= pending + 33
        assert writes <= 33 + pending + 40


async def test_writes_go_on_when_the_replay_stands_still() -> None:
    drain = Drain(100, replayed_per_look=0)
    for _ in range(40):
        await drain.write()
    assert drain.pending == 140
    assert 7.9 <= drain.clock.monotonic() - ManualClock().monotonic() <= 8.1


async def test_a_write_is_held_no_longer_than_its_caller_has_time() -> None:
    drain = Drain(100, replayed_per_look=0)
    for _ in range(32):
        await drain.write()
    began = drain.clock.monotonic()
    await drain.pace.admit(0.2)
    assert drain.clock.monotonic() - began == pytest.approx(0.2, abs=0.006)
    await drain.pace.admit(60.0)
    assert drain.clock.monotonic() - began == pytest.approx(1.2, abs=0.012)


async def test_nothing_is_held_outside_a_drain_and_the_count_begins_anew() -> None:
    drain = Drain(10, replayed_per_look=0)
    drain.is_draining = False
    for _ in range(1000):
        await drain.write()
    assert drain.clock.monotonic() == ManualClock().monotonic()
    drain.is_draining = True
    for _ in range(32):
        await drain.write()
    assert drain.clock.monotonic() == ManualClock().monotonic()
