"""The end of a drain, with writers who wait for it: who goes where when the switch comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server import config, deadlines
from server.config import Settings
from server.cutover import CutOver
from server.errors import ReplicaUnavailable, UpstreamTimeout
from server.health.detector import Verdict
from server.health.state import State
from server.mode import Change
from server.pace import DrainPace
from server.rpc import Call, Reply
from server.telemetry import Telemetry
from server.wal.record import EntryState
from tests.router.test_router import CLOCK, MakeRig, Rig, make_rig, source, until, upsert

__all__ = ["make_rig"]


def draining(rig: Rig) -> Rig:
    """Qdrant is back, nothing is pending, the switch has not come yet."""
    rig.mode.upstream_changed(Verdict(up=True, since=0.0, reason="test"), pending=0, must_look=True)
    assert rig.mode.is_draining
    return rig


def cut_over(rig: Rig, drain_now: Callable[[], Awaitable[bool]] | None = None) -> CutOver:
    async def nothing_left() -> bool:
        return rig.log.pending_count == 0

    return CutOver(
        rig.mode,
        rig.router._gate,
        drain_now=drain_now or nothing_left,
        drain_again=lambda _: None,
        pending_count=lambda: rig.log.pending_count,
        barrier_seconds=5,
        telemetry=Telemetry.silent(),
    )


def changes_of(rig: Rig) -> list[tuple[State, State]]:
    changes: list[tuple[State, State]] = []

    def note(change: Change) -> None:
        changes.append((change.before, change.after))

    rig.mode.on_change = note
    return changes


async def test_who_waited_at_the_gate_goes_to_qdrant_when_the_drain_is_over(make_rig: MakeRig) -> None:
    """Logged after the switch, each of them would begin another drain."""
    rig = draining(make_rig())
    changes = changes_of(rig)
    inside, go = asyncio.Event(), asyncio.Event()

    async def drain_now() -> bool:
        inside.set()
        await go.wait()
        return True

    switch = asyncio.create_task(cut_over(rig, drain_now)())
    await inside.wait()
    writes = [asyncio.create_task(rig.router.handle(upsert(number))) for number in range(5)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.qdrant.calls == []
    go.set()
    await switch
    replies = await asyncio.gather(*writes)
    assert [source(reply) for reply in replies] == ["remote"] * 5
    assert changes == [(State.DRAINING, State.REMOTE)]
    assert rig.log.pending_count == 0
    await until(lambda: len(rig.replica.applied) == 5)


async def test_who_was_held_during_the_drain_goes_to_qdrant_when_it_is_over(make_rig: MakeRig) -> None:
    rig = draining(make_rig())
    changes = changes_of(rig)
    held, let_go = asyncio.Event(), asyncio.Event()

    async def pause(_: float) -> None:
        held.set()
        await let_go.wait()

    rig.router._pace = DrainPace(
        is_draining=lambda: rig.mode.is_draining,
        pending_count=lambda: 1000,
        hold_seconds=3600,
        clock=CLOCK,
        sleep=pause,
    )
    rig.router._pace._was_draining, rig.router._pace._pending_at_start, rig.router._pace._admitted = True, 1000, 1000
    write = asyncio.create_task(rig.router.handle(upsert()))
    await held.wait()
    await cut_over(rig)()
    let_go.set()
    assert source(await write) == "remote"
    assert changes == [(State.DRAINING, State.REMOTE)]


@pytest.mark.parametrize("maybe_applied", [False, True])
async def test_what_qdrant_was_asked_once_is_logged_although_calls_go_there(
    make_rig: MakeRig, maybe_applied: bool
) -> None:
    rig = make_rig().online()
    rig.qdrant.answers = [UpstreamTimeout("no time left", maybe_applied=maybe_applied)]
    reply = await rig.router.handle(upsert())
    assert (reply.body, source(reply)) == (b"applied", "local")
    assert len(rig.qdrant.calls) == 1
    assert [entry.maybe_applied for _, entry in await rig.entries()] == [maybe_applied]


# --- without a replica ------------------------------------------------------------------------------------------------


def without_replica(rig: Rig) -> Rig:
    async def away(_: control_pb.PrepareRequest) -> control_pb.PrepareResponse:
        raise ReplicaUnavailable("no replica")

    rig.replica.prepare = rig.replica.prepare_together = away  # type: ignore[method-assign]
    return rig


@pytest.mark.parametrize("deadline_seconds", [None, 30.0])
async def test_a_write_that_waits_for_a_replica_that_is_away_does_not_keep_qdrant_away(
    make_rig: MakeRig, deadline_seconds: float | None
) -> None:
    rig = without_replica(draining(make_rig()))
    deadline = None if deadline_seconds is None else CLOCK.monotonic() + deadline_seconds
    write = asyncio.create_task(rig.router.handle(replace(upsert(), deadline=deadline)))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not write.done()
    async with asyncio.timeout(10):
        await cut_over(rig)()
        assert rig.mode.is_remote
        # The replica is still away: the write has somewhere else to go.
        assert source(await write) == "remote"


async def test_a_write_that_is_in_the_log_does_not_keep_qdrant_away_until_the_replica_has_it(make_rig: MakeRig) -> None:
    rig = draining(make_rig())
    rig.replica.hold = asyncio.Event()
    write = asyncio.create_task(rig.router.handle(replace(upsert(), deadline=None)))
    await until(lambda: rig.log.pending_count == 1)

    async def drain_now() -> bool:
        await rig.log.mark_replayed(rig.log.last_seq)
        return True

    async with asyncio.timeout(10):
        await cut_over(rig, drain_now)()
    assert rig.mode.is_remote and not write.done()
    rig.replica.hold.set()
    assert (await write).is_ok


async def test_a_replica_that_is_away_or_hangs_holds_up_no_write_that_qdrant_has_done(make_rig: MakeRig) -> None:
    """Past `mirror_queue_entries`."""
    rig = make_rig(Settings(replica=config.Replica(mirror_queue_entries=3))).online()
    rig.replica.hold = asyncio.Event()
    for number in range(4):
        # The last of them waits for half of its time.
        assert source(await rig.router.handle(replace(upsert(number), deadline=CLOCK.monotonic() + 1))) == "remote"
    behind = asyncio.create_task(rig.router.handle(replace(upsert(9), deadline=None)))
    await until(lambda: rig.log.last_seq == 5)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not behind.done()
    rig.router._mirror.replica_restarted()
    assert source(await behind) == "remote"
    async with asyncio.timeout(10):
        for number in range(10, 30):
            assert source(await rig.router.handle(replace(upsert(number), deadline=None))) == "remote"
    assert rig.log.last_seq == 25
    rig.replica.hold.set()
    await until(lambda: len(rig.replica.applied) >= 25)


# --- writes that are short of time ------------------------------------------------------------------------------------


async def test_a_write_that_came_to_its_turn_late_is_logged_and_leaves_no_doubt(make_rig: MakeRig) -> None:
    """Qdrant was sent it with little time left, and was cut off: the replica has no time left either."""
    rig = make_rig().online()
    call = replace(upsert(), deadline=CLOCK.monotonic() + 0.3)
    cut_off = rig.qdrant.handle

    async def handle(call: Call, *, reserve_seconds: float = 0.0) -> Reply:
        rig.qdrant.answers = [UpstreamTimeout("no answer in time", maybe_applied=True)]
        assert call.deadline is not None
        await asyncio.sleep(call.deadline - CLOCK.monotonic() - reserve_seconds)
        return await cut_off(call)

    async def prepare(_: control_pb.PrepareRequest) -> control_pb.PrepareResponse:
        assert call.deadline is not None
        late_at = call.deadline + 0.1
        await until(lambda: CLOCK.monotonic() > late_at)
        return control_pb.PrepareResponse()

    rig.qdrant.handle = handle  # type: ignore[method-assign]
    rig.replica.prepare_together = prepare  # type: ignore[method-assign]
    reply = await rig.router.handle(call)
    assert (reply.body, source(reply)) == (b"applied", "local")
    assert [(state, entry.maybe_applied) for state, entry in await rig.entries()] == [(EntryState.PENDING, True)]
    assert rig.replica.marked == []


async def test_a_write_that_qdrant_may_have_is_not_waited_for_for_ever(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "_LOG_LEAST_SECONDS", 0.2)
    rig = without_replica(make_rig().online())
    rig.qdrant.answers = [UpstreamTimeout("no answer in time", maybe_applied=True)]
    with pytest.raises(ReplicaUnavailable):
        await rig.router.handle(replace(upsert(), deadline=CLOCK.monotonic() + 0.1))
    assert await rig.entries() == []
    await until(lambda: "c" in rig.replica.marked)


async def test_a_write_is_not_held_past_its_deadline(make_rig: MakeRig) -> None:
    """The replay stands still: each write beyond the first few is held."""
    rig = draining(make_rig())
    rig.router._pace = DrainPace(
        is_draining=lambda: rig.mode.is_draining,
        pending_count=lambda: rig.log.pending_count,
        hold_seconds=2,
        clock=CLOCK,
    )
    for number in range(32):
        assert (await rig.router.handle(upsert(number))).is_ok
    assert (await rig.router.handle(replace(upsert(99), deadline=CLOCK.monotonic() + 1))).is_ok
