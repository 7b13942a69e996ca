"""Work that is given up as soon as calls are forwarded."""

from __future__ import annotations

import asyncio

import pytest

from server.clock import SystemClock
from server.health.detector import Verdict
from server.mode import Mode
from server.telemetry import Telemetry

UP, DOWN = Verdict(True, 0.0, "up"), Verdict(False, 1.0, "down")


@pytest.fixture
def mode() -> Mode:
    """LOCAL, with nothing pending."""
    return Mode(has_upstream=True, sync_on_connect=True, clock=SystemClock(), telemetry=Telemetry.silent())


class Work:
    """Ends when it may; knows whether it was cut short."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.was_cut_short = False

    async def run(self) -> str:
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_cut_short = True
            for _ in range(10):
                # To clean up takes some turns, too.
                await asyncio.sleep(0)
            raise
        return "done"


async def test_it_ends_with_its_result_while_calls_stay_here(mode: Mode) -> None:
    work = Work()
    task = asyncio.create_task(mode.unless_remote(work.run()))
    await asyncio.sleep(0)
    work.may_end.set()
    assert await task == "done"
    mode.upstream_changed(UP, pending=0)
    assert mode.is_remote and not work.was_cut_short


async def test_it_is_given_up_when_calls_are_forwarded_however_often_that_changes(mode: Mode) -> None:
    works = [Work() for _ in range(3)]
    tasks = [asyncio.create_task(mode.unless_remote(work.run())) for work in works]
    await asyncio.sleep(0)
    for verdict in (UP, DOWN, UP):
        mode.upstream_changed(verdict, pending=0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await asyncio.gather(*tasks) == [None] * 3
    assert all(work.was_cut_short for work in works)


async def test_while_calls_are_forwarded_it_does_not_begin(mode: Mode) -> None:
    mode.upstream_changed(UP, pending=0)
    work = Work()
    work.may_end.set()
    assert await mode.unless_remote(work.run()) is None


async def test_a_time_limit_of_its_own_and_a_cancellation_are_not_taken_for_it(mode: Mode) -> None:
    async def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await mode.unless_remote(late())
    work = Work()
    task = asyncio.create_task(mode.unless_remote(work.run()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    mode.upstream_changed(UP, pending=0)
