"""The fakes themselves."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import UpstreamTimeout, UpstreamUnreachable
from server.rpc import Call, Code, Reply
from tests.faults.backends import FlakyBackend, LostAnswer, Pass, RecordingBackend, Refused, Silence, Stall, says
from tests.faults.clock import ManualClock

CALL = Call("/qdrant.Points/Upsert", b"x")


async def test_sleepers_wake_in_order_of_time() -> None:
    clock = ManualClock(100.0, 5)
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper(name, seconds)) for name, seconds in (("b", 2.0), ("a", 1.0), ("c", 9.0))]
    assert await clock.somebody_sleeps() > 0
    # All three tasks were made before: each has run up to its sleep by now.
    await asyncio.sleep(0)
    assert clock.sleeping == [1.0, 2.0, 9.0]
    clock.advance(2.0)
    await asyncio.gather(*tasks[:2])
    assert woken == ["a", "b"]
    assert clock.monotonic() == 102.0
    assert clock.wall_ns() == 5 + 2_000_000_000
    tasks[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    assert clock.sleeping == []
    await clock.sleep(0)


async def test_recording() -> None:
    recording = RecordingBackend(reply=says(Code.NOT_FOUND, "gone", retry_after="3"))
    reply = await recording.handle(CALL)
    assert (reply.code, reply.details, reply.trailers) == (Code.NOT_FOUND, "gone", (("retry-after", "3"),))
    assert recording.calls == [CALL]
    assert recording.methods == ["Upsert"]
    outer = RecordingBackend(recording)
    assert (await outer.handle(CALL)).code is Code.NOT_FOUND
    assert len(recording.calls) == 2


async def test_faults_come_in_order_and_then_the_backend_answers() -> None:
    behind = RecordingBackend()
    flaky = FlakyBackend(behind, [Refused(), Silence(), LostAnswer(), says(Code.ABORTED), Pass()])
    with pytest.raises(UpstreamUnreachable) as refused:
        await flaky.handle(CALL)
    assert not refused.value.maybe_applied
    with pytest.raises(UpstreamTimeout):
        await flaky.handle(CALL)
    assert behind.calls == []
    with pytest.raises(UpstreamUnreachable) as lost:
        await flaky.handle(CALL)
    assert lost.value.maybe_applied
    assert len(behind.calls) == 1
    assert (await flaky.handle(CALL)).code is Code.ABORTED
    assert len(behind.calls) == 1
    assert await flaky.handle(CALL) == await flaky.handle(CALL) == Reply()
    assert len(flaky.calls) == 6


async def test_a_script_for_some_calls_only_and_a_stall() -> None:
    stall = Stall(asyncio.Event(), asyncio.Event())
    flaky = FlakyBackend(RecordingBackend(), [stall], only=lambda call: call.method.endswith("Upsert"))
    assert (await flaky.handle(Call("/qdrant.Points/Get", b""))).is_ok
    stalled = asyncio.create_task(flaky.handle(CALL))
    await stall.reached.wait()
    assert not stalled.done()
    stall.until.set()
    assert (await stalled).is_ok
