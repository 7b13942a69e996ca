"""Hydration against what happens at the same moment: writes that a page shows already, doubts of the replica's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from generated.qdrant import points_pb2 as pb
from server.replica import requests as r
from server.rpc import Backend, Call, Reply

from .hydration_world import SCROLL, Make, World, fill
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
