"""Hydration against what happens at the same moment: writes that a page shows already, doubts of the replica's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.replica import catalogue
from server.replica import requests as r
from server.replica.copying import CopyState
from server.replica.records import Collection
from server.replica.store import Store
from server.rpc import Backend, Call, Reply
from tests.faults.clock import ManualClock

from .hydration_world import COMPLETE, HYDRATING, SCROLL, STALE, Make, World, fill
from .local_store import CREATE, create_named, ids, named, payload, point, upsert, where


class Before:
    """Qdrant, and what happens just before it answers a question: `happens` is told of each, and acts once."""

    def __init__(self, inner: Backend, happens: Callable[[Call], bool]) -> None:
        self._inner = inner
        self._happens = happens
        self.happened = False

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        self.happened = self.happened or self._happens(call)
        return await self._inner.handle(call)


# --- writes that the answer shows, and the replica has not applied yet ------------------------------------------------


@pytest.mark.parametrize("method", [r.DELETE, r.SET_PAYLOAD])
async def test_a_write_by_filter_is_not_applied_over_a_page_that_is_newer(make: Make, method: str) -> None:
    """At Qdrant the filter did not match point 23: only a later write made it match. The page shows both."""
    world = make()
    fill(world, 60)
    pages = 0

    def writes(call: Call) -> bool:
        nonlocal pages
        pages += call.method == SCROLL
        if pages < 3:
            return False
        world.write(method, _gone(method))
        set_gone = pb.SetPayloadPoints(
            collection_name="c", payload=payload({"state": "gone"}), points_selector=ids(23), wait=True
        )
        world.write(r.SET_PAYLOAD, set_gone)
        return True

    world.upstream = upstream = Before(world.remote, writes)
    async with world.running():
        await world.until(world.is_complete)
    assert upstream.happened
    assert world.differences() == []
    assert world.here.payloads()[23] == {"v": 23, "state": "gone"}


def _gone(method: str) -> pb.DeletePoints | pb.SetPayloadPoints:
    if method == r.DELETE:
        return pb.DeletePoints(collection_name="c", points=where("state", "gone"), wait=True)
    return pb.SetPayloadPoints(
        collection_name="c", payload=payload({"k": 1}), points_selector=where("state", "gone"), wait=True
    )


async def test_a_vector_name_that_goes_while_the_catalogue_is_read_takes_no_copy_with_it(make: Make) -> None:
    """Qdrant shows the collection without it, and the replica has not applied the client's request yet."""
    world = make()
    world.remote.local.do(CREATE, create_named("c", a=2, b=2))
    world.remote.local.do(r.UPSERT, upsert(*(point(n, named(a=[1, 2], b=[3, 4]), v=n) for n in range(60))))
    is_whole = False

    def removes(call: Call) -> bool:
        if not is_whole or call.method != r.COLLECTIONS + "Get":
            return False
        world.write(r.POINTS + "DeleteVectorName", pb.DeleteVectorNameRequest(collection_name="c", vector_name="b"))
        return True

    world.upstream = upstream = Before(world.remote, removes)
    held: set[int] = set()
    async with world.running():
        await world.until(world.is_complete)
        is_whole = True
        await world.until(lambda: upstream.happened)
        again = world.clock.monotonic() + 2 * world.settings.refresh_seconds
        await world.until(lambda: world.clock.monotonic() > again, each=lambda: held.add(_points(world)))
    assert held == {60}
    assert world.differences() == []
    assert not [line for line in world.lines if "no longer has" in line]


def _points(world: World) -> int:
    found = world.here.store.collection("c")
    return found.points if found is not None else 0


# --- doubts that the replica raises itself ----------------------------------------------------------------------------


def _infers(world: World, number: int, name: str = "c") -> None:
    """Qdrant makes a point's vector out of a text; the replica is sent the text, and cannot."""
    world.remote.local.do(r.UPSERT, upsert(point(number, by="inference"), name=name))
    text = pb.Vectors(vector=pb.Vector(document=pb.Document(text="hello", model="m")))
    world.acknowledged(r.UPSERT, upsert(point(number, text, by="inference"), name=name))
    world.mirror()


def _scrolls_of(name: str) -> Callable[[Call], bool]:
    return lambda call: call.method == SCROLL and pb.ScrollPoints.FromString(call.body).collection_name == name


async def test_a_doubt_while_another_collection_is_copied(make: Make) -> None:
    """What is known of `b` when the round begins is where its copy stopped; by its turn it must begin anew."""
    world = make(points_per_second=10)
    fill(world, 60, "a")
    fill(world, 200, "b")
    pages = iter(range(1000))
    world.upstream = Before(world.remote, lambda call: _scrolls_of("b")(call) and next(pages) >= 8)
    async with world.running() as hydrator:
        await world.until(lambda: _resume_at(world, "b") != b"" and len(world.here.points("b")) > 50)
        hydrator.upstream_up = False
        await world.until(lambda: hydrator.progress[1].state is CopyState.WAITING)
    assert _resume_at(world, "b") > point(30).id.SerializeToString()
    world.here.set_completeness(STALE, "a")

    def infers(call: Call) -> bool:
        if _scrolls_of("a")(call):
            _infers(world, 30, "b")
            return True
        return False

    world.upstream = upstream = Before(world.remote, infers)
    async with world.running():
        await world.until(lambda: upstream.happened and _resume_at(world, "b") == b"")
        await world.until(lambda: world.is_complete("a") and world.is_complete("b"))
    assert world.differences("b") == []
    assert world.here.payloads("b")[30] == {"by": "inference"}


def _resume_at(world: World, name: str) -> bytes:
    found = world.here.store.collection(name)
    return found.resume_at if found is not None else b""


@pytest.mark.parametrize("whole_before", [False, True])
@pytest.mark.parametrize("when", ["before a page", "before the last word"])
async def test_a_doubt_while_nothing_is_saved(make: Make, when: str, whole_before: bool) -> None:
    """Then the replica's state looks as it did: only the number of its doubts has changed."""
    world = make()
    fill(world, 60)
    if whole_before:
        async with world.running():
            await world.until(world.is_complete)
        world.here.set_completeness(STALE, "c")
    happened = False

    def infers(is_due: bool) -> bool:
        nonlocal happened
        if is_due and not happened:
            happened = True
            _infers(world, 3)
        return happened

    pages = iter(range(1000))
    if when == "before a page":
        # Point 3 has passed.
        world.upstream = Before(world.remote, lambda call: infers(call.method == SCROLL and next(pages) == 4))
    else:
        says = world.set_completeness

        async def late(request: control_pb.SetCompletenessRequest) -> control_pb.SetCompletenessResponse:
            infers(request.completeness == COMPLETE)
            return await says(request)

        world.set_completeness = late  # type: ignore[method-assign]
    async with world.running():
        await world.until(lambda: happened and world.is_complete())
    assert world.differences() == []
    assert world.here.payloads()[3] == {"by": "inference"}


async def test_a_collection_that_is_in_doubt_all_the_time_does_not_hold_up_the_others(make: Make) -> None:
    world = make()
    fill(world, 60, "a")
    fill(world, 60, "b")

    class Inferring:
        async def handle(self, call: Call) -> Reply:
            reply = await world.remote.handle(call)
            if _scrolls_of("a")(call):
                _infers(world, 3, "a")
            return reply

    world.upstream = Inferring()
    async with world.running():
        await world.until(lambda: world.is_complete("b"))
    assert world.completeness("a") == HYDRATING
    assert world.differences("b") == []


def test_a_number_of_doubts_never_comes_again(tmp_path: Path) -> None:
    """Nor in a store that takes the place of a damaged one, while a copy into the old one is under way."""
    seen: list[int] = []
    clock = ManualClock()
    for _ in range(2):
        store = Store(tmp_path / "store", clock)
        for _ in range(2):
            with store.transaction() as tx:
                made = tx.save_collection(Collection("c", b""))
                catalogue.distrust(tx, made)
                doubted = tx.collection("c")
                tx.drop_collection(made.cid)
            assert doubted is not None
            seen += [made.doubt_number, doubted.doubt_number]
        store.close()
        (tmp_path / "store" / "replica.sqlite").write_bytes(b"not a database at all" * 1000)
        clock.advance(1.0)
    assert len(set(seen)) == len(seen) == 8


# --- writes that touch everything -------------------------------------------------------------------------------------


async def test_writes_by_filter_make_no_copy_quadratic(make: Make) -> None:
    """Each of them may have changed any point, and pages are dated back beyond the last one."""
    world = make(page_points=50, points_per_second=500)
    fill(world, 2000)
    copied, again = 0, 0

    class Counting:
        async def handle(self, call: Call) -> Reply:
            nonlocal copied, again
            reply = await world.remote.handle(call)
            if call.method == SCROLL:
                copied += len(pb.ScrollResponse.FromString(reply.body).result)
            elif call.method == r.POINTS + "Get":
                again += len(pb.GetResponse.FromString(reply.body).result)
                world.clock.advance(0.01)
            return reply

    world.upstream = Counting()
    began = last = world.clock.monotonic()

    def client() -> None:
        nonlocal last
        if world.clock.monotonic() - last >= 0.5:
            last = world.clock.monotonic()
            nothing = pb.DeletePoints(collection_name="c", points=where("doc", "x"), wait=True)
            world.write(r.DELETE, nothing)
            world.mirror()

    async with world.running():
        await world.until(world.is_complete, each=client)
    assert world.last_seq > 5
    assert copied + again <= 3 * 2000
    assert world.clock.monotonic() - began >= (copied + again) / 500 - 1
    assert world.differences() == []
