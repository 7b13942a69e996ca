"""The breaker, over random histories on a manual clock and against many callers at once."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.health.breaker import Breaker, Permit, Phase
from tests.faults.clock import ManualClock

OPEN_SECONDS = 300.0
LEASE_SECONDS = 120.0


def opened(clock: ManualClock, failures: int = 5) -> Breaker:
    breaker = Breaker(failures, OPEN_SECONDS, lease_seconds=LEASE_SECONDS)
    for _ in range(failures):
        fail(breaker, clock)
    assert breaker.phase is Phase.OPEN
    return breaker


def fail(breaker: Breaker, clock: ManualClock) -> None:
    permit = breaker.allow(clock.monotonic())
    assert permit is not None
    breaker.transient_failure(permit, clock.monotonic())


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_opens_at_exactly_the_nth_failure(limit: int) -> None:
    clock = ManualClock()
    breaker = Breaker(limit, OPEN_SECONDS)
    for _ in range(limit):
        assert breaker.phase is Phase.CLOSED
        fail(breaker, clock)
    assert breaker.phase is Phase.OPEN
    assert breaker.allow(clock.monotonic()) is None


@pytest.mark.parametrize("answer", ["success", "permanent"])
def test_an_answer_ends_the_row(answer: str) -> None:
    clock = ManualClock()
    breaker = Breaker(5, OPEN_SECONDS)
    for _ in range(3):
        for _ in range(4):
            fail(breaker, clock)
        permit = breaker.allow(clock.monotonic())
        assert permit is not None
        getattr(breaker, answer)(permit)
        assert breaker.failures_in_row == 0
    assert breaker.phase is Phase.CLOSED


def test_stays_open_to_the_end() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    assert breaker.wait_seconds(clock.monotonic()) == OPEN_SECONDS
    clock.advance(OPEN_SECONDS - 0.001)
    assert breaker.allow(clock.monotonic()) is None
    clock.advance(0.001)
    assert breaker.wait_seconds(clock.monotonic()) == 0
    assert breaker.allow(clock.monotonic()) is not None
    assert breaker.phase is Phase.HALF_OPEN


@pytest.mark.parametrize("answer", ["success", "permanent"])
def test_an_answer_to_the_probe_closes(answer: str) -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(OPEN_SECONDS)
    permit = breaker.allow(clock.monotonic())
    assert permit is not None
    getattr(breaker, answer)(permit)
    assert breaker.phase is Phase.CLOSED
    assert breaker.failures_in_row == 0
    assert breaker.allow(clock.monotonic()) is not None


def test_a_failed_probe_opens_for_the_whole_time_again() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(OPEN_SECONDS)
    fail(breaker, clock)
    assert breaker.phase is Phase.OPEN
    clock.advance(OPEN_SECONDS - 1)
    assert breaker.allow(clock.monotonic()) is None
    clock.advance(1)
    assert breaker.allow(clock.monotonic()) is not None


def test_an_abandoned_probe_frees_its_place_and_its_report_is_void() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(OPEN_SECONDS)
    first = breaker.allow(clock.monotonic())
    assert first is not None
    breaker.abandon(first)
    second = breaker.allow(clock.monotonic())
    assert second is not None
    breaker.success(first)
    breaker.transient_failure(first, clock.monotonic())
    assert breaker.phase is Phase.HALF_OPEN
    breaker.success(second)
    assert breaker.phase is Phase.CLOSED


def test_a_probe_that_never_reports_does_not_stick_the_breaker() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(OPEN_SECONDS)
    lost = breaker.allow(clock.monotonic())
    assert lost is not None
    clock.advance(LEASE_SECONDS - 1)
    assert breaker.allow(clock.monotonic()) is None
    assert breaker.wait_seconds(clock.monotonic()) == 1
    clock.advance(1)
    second = breaker.allow(clock.monotonic())
    assert second is not None
    assert breaker.allow(clock.monotonic()) is None
    breaker.transient_failure(lost, clock.monotonic())
    assert breaker.phase is Phase.HALF_OPEN
    breaker.success(second)
    assert breaker.phase is Phase.CLOSED


def test_reports_from_before_the_opening_say_nothing() -> None:
    clock = ManualClock()
    breaker = Breaker(1, OPEN_SECONDS)
    early = breaker.allow(clock.monotonic())
    assert early is not None
    fail(breaker, clock)
    breaker.success(early)
    assert breaker.phase is Phase.OPEN
    clock.advance(OPEN_SECONDS)
    probe = breaker.allow(clock.monotonic())
    assert probe is not None
    breaker.success(early)
    breaker.transient_failure(early, clock.monotonic())
    assert breaker.phase is Phase.HALF_OPEN


def test_one_of_a_hundred_threads() -> None:
    clock = ManualClock()
    for _ in range(20):
        breaker = opened(clock)
        clock.advance(OPEN_SECONDS)
        start = threading.Barrier(100)
        permits: list[Permit] = []

        def ask(start: threading.Barrier = start, breaker: Breaker = breaker, got: list[Permit] = permits) -> None:
            start.wait()
            permit = breaker.allow(clock.monotonic())
            if permit is not None:
                got.append(permit)

        threads = [threading.Thread(target=ask) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(permits) == 1


async def test_one_of_a_hundred_tasks() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(OPEN_SECONDS)
    go = asyncio.Event()

    async def ask() -> Permit | None:
        await go.wait()
        permit = breaker.allow(clock.monotonic())
        await asyncio.sleep(0)
        return permit

    callers = [asyncio.create_task(ask()) for _ in range(100)]
    go.set()
    permits = [permit for permit in await asyncio.gather(*callers) if permit is not None]
    assert len(permits) == 1


@pytest.mark.parametrize("arguments", [(0, 1.0, 1.0), (1, -1.0, 1.0), (1, 1.0, 0.0)])
def test_nonsense_is_refused(arguments: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="needed"):
        Breaker(arguments[0], arguments[1], lease_seconds=arguments[2])


class Histories(RuleBasedStateMachine):
    """Random callers; a model written from the description, not from the code."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.limit = 5
        self.breaker = Breaker(self.limit, OPEN_SECONDS, lease_seconds=LEASE_SECONDS)
        self.in_row = 0
        self.open_until: float | None = None
        self.probe: Permit | None = None
        self.probe_until = 0.0
        self.current: list[Permit] = []
        self.void: list[Permit] = []

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def expected_to_allow(self) -> bool:
        if self.open_until is None:
            return True
        if self.now < self.open_until:
            return False
        return self.probe is None or self.now >= self.probe_until

    @rule(seconds=st.sampled_from([0.0, 1.0, 60.0, LEASE_SECONDS, 299.0, OPEN_SECONDS, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(callers=st.integers(1, 100))
    def callers_come(self, callers: int) -> None:
        expected = self.expected_to_allow()
        permits = [permit for _ in range(callers) if (permit := self.breaker.allow(self.now)) is not None]
        if not expected:
            assert permits == []
        elif self.open_until is None:
            assert len(permits) == callers
            self.current += permits
        else:
            assert len(permits) == 1
            if self.probe is not None:
                self.void.append(self.probe)
            self.probe, self.probe_until = permits[0], self.now + LEASE_SECONDS

    @precondition(lambda self: self.open_until is None and self.current)
    @rule(kind=st.sampled_from(["success", "permanent", "failure", "failure", "failure", "abandon"]))
    def closed_report(self, kind: str) -> None:
        permit = self.current.pop()
        if kind == "failure":
            self.breaker.transient_failure(permit, self.now)
            self.in_row += 1
            if self.in_row == self.limit:
                self.opens()
        elif kind == "abandon":
            self.breaker.abandon(permit)
        else:
            getattr(self.breaker, kind)(permit)
            self.in_row = 0

    @precondition(lambda self: self.probe is not None)
    @rule(kind=st.sampled_from(["success", "permanent", "failure", "abandon"]))
    def probe_report(self, kind: str) -> None:
        assert self.probe is not None
        permit, self.probe = self.probe, None
        self.void.append(permit)
        if kind == "failure":
            self.breaker.transient_failure(permit, self.now)
            self.opens()
        elif kind == "abandon":
            self.breaker.abandon(permit)
        else:
            getattr(self.breaker, kind)(permit)
            self.in_row, self.open_until = 0, None

    @precondition(lambda self: self.void)
    @rule(kind=st.sampled_from(["success", "failure", "abandon"]), data=st.data())
    def void_report(self, kind: str, data: st.DataObject) -> None:
        permit = data.draw(st.sampled_from(self.void))
        if kind == "failure":
            self.breaker.transient_failure(permit, self.now)
        else:
            getattr(self.breaker, kind)(permit)

    def opens(self) -> None:
        self.open_until = self.now + OPEN_SECONDS
        self.void += self.current
        self.current = []

    @invariant()
    def same_phase(self) -> None:
        assert (self.breaker.phase is Phase.CLOSED) == (self.open_until is None)
        assert (self.breaker.wait_seconds(self.now) == 0) == self.expected_to_allow()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
