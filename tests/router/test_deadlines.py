"""What the time of a call is spent on."""

from __future__ import annotations

import asyncio

import pytest

from generated.qdrant import points_pb2
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.config import Settings
from server.deadlines import Deadlines
from server.errors import ReplicaUnavailable, UpstreamTimeout
from server.rpc import METHODS, Call, Code, Offline, Reply
from tests.router.test_router import CLOCK, GET, MakeRig, make_rig, source

__all__ = ["make_rig"]

NEWER = "/qdrant.Points/FromTheFuture"
ONLY_QDRANT = [NEWER, *(row.path for row in METHODS.values() if row.offline is Offline.REFUSED)]
WITH_AN_ANSWER_HERE = [row.path for row in METHODS.values() if row.offline is not Offline.REFUSED]


class StoppedClock:
    """It is always 1,000."""

    def monotonic(self) -> float:
        """See Clock."""
        return 1000.0


@pytest.mark.parametrize("method", WITH_AN_ANSWER_HERE)
@pytest.mark.parametrize(("left", "reserve"), [(100.0, 20.0), (0.6, 0.2), (0.2, 0.1), (-1.0, 0.0)])
def test_time_is_kept_back_for_an_answer_of_the_replica(method: str, left: float, reserve: float) -> None:
    deadlines = Deadlines(StoppedClock(), 60.0)  # type: ignore[arg-type]
    assert deadlines.reserve_seconds(Call(method, b"", deadline=1000.0 + left)) == pytest.approx(reserve)
    assert deadlines.reserve_seconds(Call(method, b"")) == 0.0


@pytest.mark.parametrize("method", ONLY_QDRANT)
async def test_qdrant_gets_all_the_time_where_the_replica_has_no_answer(make_rig: MakeRig, method: str) -> None:
    """A snapshot that takes nearly all of what its client gave it: asked directly, Qdrant makes it."""
    rig = make_rig().online()

    async def slow(call: Call, *, reserve_seconds: float = 0.0) -> Reply:
        assert call.deadline is not None
        if call.deadline - CLOCK.monotonic() - reserve_seconds < 90:
            raise UpstreamTimeout("upstream: no answer in time", maybe_applied=True)
        return Reply(b"snapshot")

    rig.qdrant.handle = slow  # type: ignore[method-assign]
    reply = await rig.router.handle(Call(method, b"", deadline=CLOCK.monotonic() + 100))
    assert (reply.code, reply.body, source(reply)) == (Code.OK, b"snapshot", "remote")
    # Not even so much: it was too slow, and is not away.
    with pytest.raises(UpstreamTimeout):
        await rig.router.handle(Call(method, b"", deadline=CLOCK.monotonic() + 80))
    assert rig.mode.is_remote


async def test_nobody_waits_for_the_replica_past_the_deadline() -> None:
    deadlines = Deadlines(CLOCK, 60.0)
    with pytest.raises(ReplicaUnavailable, match="within the client's deadline"):
        await deadlines.within(Call(NEWER, b"", deadline=CLOCK.monotonic() + 0.02), asyncio.Event().wait())


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_read_without_a_deadline_does_not_wait_for_ever_for_a_replica_that_is_gone(
    make_rig: MakeRig, is_there: bool
) -> None:
    """One that is there, and slow, has all the time."""
    rig = make_rig(Settings.model_validate({"replica": {"call_timeout_seconds": 0.05}}))
    request = points_pb2.GetPoints(collection_name="c").SerializeToString()
    if is_there:

        async def slow(call: Call) -> Reply:
            done = asyncio.Event()
            asyncio.get_running_loop().call_later(0.2, done.set)
            await done.wait()
            return Reply(b"late")

        rig.replica.handle = slow  # type: ignore[method-assign]
        assert (await rig.router.handle(Call(GET, request))).body == b"late"
    else:
        rig.router._mirror.replica_restarted()
        rig.replica.attach = _never  # type: ignore[method-assign]
        async with asyncio.timeout(20):
            with pytest.raises(ReplicaUnavailable, match=r"away, or behind the log, for more than 0\.05 s"):
                await rig.router.handle(Call(GET, request))
            assert rig.replica.reads == []


async def _never(request: control_pb.AttachRequest) -> control_pb.AttachResponse:
    await asyncio.Event().wait()
    raise AssertionError("this event is never set")
