"""What others do to Qdrant while a collection is COMPLETE is found and repaired, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.replica import requests as r
from server.replica.hydrate import Hydrator
from server.rpc import Call, Code
from tests.faults.backends import FlakyBackend, says

from .hydration_world import COMPLETE, SCROLL, STALE, Make, World, fill, scrolls, uuid
from .local_store import CREATE, DROP, create, ids, payload, point, upsert

MANY = 95
TOO_LARGE = says(Code.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (9 vs. 5)")


def _scrolls_of(name: str) -> Callable[[Call], bool]:
    return lambda call: call.method == SCROLL and pb.ScrollPoints.FromString(call.body).collection_name == name


def row(hydrator: Hydrator, name: str = "c") -> dict[str, Any]:
    return next((each for each in hydrator.verification() if each["collection"] == name), {})


async def at_rest(world: World) -> None:
    """All is copied and looked at, and the next look at Qdrant is far away."""
    half = world.settings.refresh_seconds / 2
    await world.until(lambda: bool(world.clock.sleeping) and world.clock.sleeping[0] > half)


async def compare(world: World, hydrator: Hydrator, name: str = "c") -> dict[str, Any]:
    """Ask for a comparison and wait for its end."""
    hydrator.request_verification([name])
    await world.until(lambda: row(hydrator, name).get("state") not in ("waiting", "verifying"))
    return row(hydrator, name)


def moved(number: int) -> pb.PointStruct:
    """The point `fill` makes, with another vector."""
    changed = pb.PointStruct()
    changed.CopyFrom(point(number, v=number))
    changed.vectors.vector.dense.data[0] += 0.5
    return changed


def _payload(world: World) -> None:
    request = pb.SetPayloadPoints(collection_name="c", payload=payload({"v": -1}), points_selector=ids(3, 64))
    world.remote.local.do(r.SET_PAYLOAD, request)


def _vectors(world: World) -> None:
    world.remote.local.do(r.UPSERT, upsert(moved(7), moved(90)))


def _swap(world: World) -> None:
    """Equal counts, other points."""
    world.remote.local.do(r.DELETE, pb.DeletePoints(collection_name="c", points=ids(0, 50, 94)))
    world.remote.local.do(r.UPSERT, upsert(point(200, v=1), point(uuid(1), v=2), point(201, v=3)))


@pytest.mark.parametrize(("act", "repaired"), [(_payload, 2), (_vectors, 2), (_swap, 6)])
async def test_what_others_changed_is_repaired_and_only_that(
    make: Make, act: Callable[[World], None], repaired: int
) -> None:
    world = make(refresh_seconds=1e6)
    fill(world, MANY)
    async with world.running() as hydrator:
        await at_rest(world)
        before = world.here.points()
        act(world)
        found = await compare(world, hydrator)
    assert world.differences() == []
    assert found["state"] == "verified"
    assert found["points_repaired"] == repaired
    assert world.here.points() != before
    assert "hydration started" not in world.lines[world.lines.index("hydration complete") :]


async def test_equal_collections_are_only_read(make: Make) -> None:
    world = make(refresh_seconds=1e6)
    fill(world, MANY)
    async with world.running() as hydrator:
        await at_rest(world)
        before = world.here.store.collection("c")
        at = world.verified()
        world.clock.advance(10.0)
        found = await compare(world, hydrator)
        after = world.here.store.collection("c")
    assert (found["state"], found["points"], found["points_repaired"]) == ("verified", MANY, 0)
    assert found["ranges"] >= MANY // 10
    assert before is not None
    assert after is not None
    assert after.revision == before.revision
    assert world.verified() >= at + 10 * 10**9


async def test_only_the_ranges_that_differ_are_fetched_again(make: Make) -> None:
    world = make(refresh_seconds=1e6)
    fill(world, MANY)
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running() as hydrator:
        await at_rest(world)
        await compare(world, hydrator)
        once = len(scrolls(flaky))
        await compare(world, hydrator)
        clean = len(scrolls(flaky)) - once
        world.remote.local.do(r.UPSERT, upsert(moved(42)))
        before = len(scrolls(flaky))
        found = await compare(world, hydrator)
        dirty = len(scrolls(flaky)) - before
    # One look more to see that it holds still, one page to repair it.
    assert dirty == clean + 2
    assert (found["ranges_repaired"], found["points_repaired"]) == (1, 1)


async def test_what_clients_write_meanwhile_is_no_drift_and_wins(make: Make) -> None:
    """The replica lags behind: Qdrant shows a write that it has not applied, and an older one of others beside it."""
    world = make(refresh_seconds=1e6)
    fill(world, MANY)
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        world.remote.local.do(r.UPSERT, upsert(moved(5)))
        hydrator.request_verification(["c"])

        def write() -> None:
            if world.last_seq < 30:
                world.write(r.UPSERT, upsert(point(5 + world.last_seq % 2, v=1000 + world.last_seq)))

        await world.until(lambda: row(hydrator).get("state") == "verified", each=write)
    assert world.differences() == []


async def test_a_write_in_flight_does_not_count_as_repaired(make: Make) -> None:
    """Qdrant has it, the log has not yet: the range moves, and is equal at the second look."""
    world = make(refresh_seconds=1e6)
    fill(world, MANY)
    compared = 0
    plain = world.compare_page

    async def compare_page(request: control_pb.ComparePageRequest) -> control_pb.ComparePageResponse:
        nonlocal compared
        compared += 1
        answer = await plain(request)
        if compared == 1:
            assert answer.differing == 1
            world.acknowledged(r.UPSERT, late)
        return answer

    async with world.running() as hydrator:
        await at_rest(world)
        late = upsert(moved(5))
        world.remote.local.do(r.UPSERT, late)
        world.compare_page = compare_page  # type: ignore[method-assign]
        found = await compare(world, hydrator)
    assert (found["state"], found["points_repaired"]) == ("verified", 0)
    assert world.differences() == []


async def test_it_happens_on_schedule(make: Make) -> None:
    world = make(refresh_seconds=100.0, verify_seconds=1000.0)
    fill(world, 200)
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        copied_at = world.verified()
        # Beyond what a look at a few points reaches before the time has come.
        world.remote.local.do(r.UPSERT, upsert(moved(199)))
        await world.until(lambda: world.differences() == [])
        await world.until(lambda: row(hydrator)["state"] == "verified")
    assert row(hydrator)["points_repaired"] == 1
    assert world.clock.wall_ns() - copied_at <= 1200 * 10**9


async def test_switched_off_nothing_is_compared_as_a_whole(make: Make) -> None:
    world = make(refresh_seconds=100.0, verify_seconds=0)
    fill(world, MANY)
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        at = world.verified()
        began = world.clock.monotonic()
        await world.until(lambda: world.clock.monotonic() > began + 20_000)
    assert row(hydrator)["ranges"] == 0
    assert world.verified() == at


@pytest.mark.parametrize("count", [30, MANY])
async def test_a_collection_made_again_alike_with_other_points_is_noticed(make: Make, count: int) -> None:
    """Same name, same configuration, same count: a look at a few points tells, and the whole is copied."""
    world = make(refresh_seconds=60.0, verify_seconds=0, page_points=5)
    fill(world, count)
    async with world.running():
        await world.until(world.is_complete)
        world.remote.local.do(DROP, collections.DeleteCollection(collection_name="c"))
        world.remote.local.do(CREATE, create())
        world.remote.local.do(r.UPSERT, upsert(*(point(number, v=-number - 1) for number in range(count))))
        began = world.clock.monotonic()
        await world.until(lambda: world.differences() == [])
        await world.until(world.is_complete)
        took = world.clock.monotonic() - began
    assert took < 300
    hopeless = "the replica differs from Qdrant, copying again" in world.lines
    assert hopeless == (count == MANY)


async def test_another_count_is_noticed_at_the_next_look(make: Make) -> None:
    world = make(refresh_seconds=60.0, verify_seconds=0)
    fill(world, MANY)
    async with world.running():
        await world.until(world.is_complete)
        world.remote.local.do(r.UPSERT, upsert(point(5000, v=1)))
        began = world.clock.monotonic()
        await world.until(lambda: world.completeness() == STALE)
        await world.until(world.is_complete)
    assert world.clock.monotonic() - began < 130
    assert world.differences() == []


async def test_it_goes_on_where_qdrant_went_away(make: Make) -> None:
    world = make(refresh_seconds=1e6)
    fill(world, MANY)
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running() as hydrator:
        await at_rest(world)
        before = len(scrolls(flaky))
        hydrator.request_verification(["c"])
        await world.until(lambda: row(hydrator)["ranges"] >= 4)
        hydrator.upstream_up = False
        for _ in range(50):
            await asyncio.sleep(0)
        world.remote.local.do(r.UPSERT, upsert(moved(94)))
        assert row(hydrator)["state"] == "verifying"
        hydrator.upstream_up = True
        await world.until(lambda: row(hydrator)["state"] == "verified")
        read = len(scrolls(flaky)) - before
    assert row(hydrator)["points_repaired"] == 1
    assert read <= row(hydrator)["ranges"] + 4
    assert world.differences() == []


async def test_new_work_does_not_wait_for_a_long_comparison(make: Make) -> None:
    world = make(refresh_seconds=1e6, verify_points_per_second=1)
    fill(world, MANY)
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        hydrator.request_verification(["c"])
        await world.until(lambda: row(hydrator)["ranges"] >= 1)
        fill(world, 5, "new")
        hydrator.request(["new"])
        began = world.clock.monotonic()
        await world.until(lambda: world.is_complete("new"))
        assert world.clock.monotonic() - began < 40
        assert row(hydrator)["state"] == "verifying"
        await world.until(lambda: row(hydrator)["state"] == "verified")
    assert row(hydrator)["points"] == MANY


async def test_a_comparison_that_a_few_points_set_off_goes_on_to_its_end(make: Make) -> None:
    """Nobody asked and none is due: it still takes as many slices as it needs."""
    world = make(refresh_seconds=20.0, verify_seconds=0, verify_points_per_second=1)
    fill(world, MANY)
    async with world.running() as hydrator:
        await at_rest(world)
        world.remote.local.do(r.UPSERT, upsert(moved(40)))
        await world.until(lambda: row(hydrator)["state"] == "verifying")
        began = world.clock.monotonic()
        await world.until(lambda: row(hydrator)["state"] == "verified")
    assert world.clock.monotonic() - began < 1.5 * MANY
    assert (row(hydrator)["points"], row(hydrator)["points_repaired"]) == (MANY, 1)


async def test_the_pace_of_a_comparison_is_kept(make: Make) -> None:
    world = make(refresh_seconds=1e6, verify_points_per_second=10)
    fill(world, MANY)
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        began = world.clock.monotonic()
        await compare(world, hydrator)
    assert world.clock.monotonic() - began >= MANY / 10 - 1


async def test_one_that_fails_does_not_hold_up_the_others(make: Make) -> None:
    world = make(refresh_seconds=1e6)
    for name in ("a", "b"):
        fill(world, 30, name)
    flaky = FlakyBackend(world.remote, only=_scrolls_of("a"))
    world.upstream = flaky
    async with world.running() as hydrator:
        await at_rest(world)
        assert world.is_complete("a") and world.is_complete("b")
        world.remote.local.do(r.UPSERT, upsert(point(3, v=-3), name="b"))
        flaky.script.append(says(Code.INTERNAL, "broken"))
        hydrator.request_verification(None)
        await world.until(lambda: row(hydrator, "a")["state"] == "failed")
        await world.until(lambda: row(hydrator, "b")["state"] == "verified")
    assert "broken" in row(hydrator, "a")["reason"]
    assert world.differences("b") == []


async def test_large_pages_are_cut_by_their_bytes(make: Make) -> None:
    world = make(page_points=200, page_bytes=20_000)
    world.remote.local.do(CREATE, create())
    world.remote.local.do(r.UPSERT, upsert(*(point(n, text="x" * 2000) for n in range(120))))
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running():
        await world.until(world.is_complete)
        limits = [pb.ScrollPoints.FromString(call.body).limit for call in scrolls(flaky)]
    assert world.differences() == []
    assert limits[0] == 8
    assert all(limit <= 10 for limit in limits[1:-1]), limits


async def test_pages_larger_than_the_connection_takes_are_asked_for_with_fewer_points(make: Make) -> None:
    """gRPC refuses them with a status of its own; the copy goes on with half."""
    world = make(page_points=64)
    world.remote.local.do(CREATE, create())
    world.remote.local.do(r.UPSERT, upsert(*(point(n, v=n) for n in range(100))))
    world.upstream = flaky = FlakyBackend(
        world.remote,
        [TOO_LARGE] * 1000,
        only=lambda call: call.method == SCROLL and pb.ScrollPoints.FromString(call.body).limit > 3,
    )
    async with world.running():
        await world.until(world.is_complete)
    assert world.differences() == []
    # 8 and 4 are refused, 2 fits; after 16 such pages 4 is tried again. Then a look at a few points does the same.
    assert 2 <= 1000 - len(flaky.script) <= 2 + 50 // 16 + 2
    assert "hydration failed, it will be tried again" not in world.lines


async def test_a_point_larger_than_the_connection_takes_fails_the_collection_and_says_so(make: Make) -> None:
    world = make()
    fill(world, 30)
    fill(world, 5, "other")
    world.upstream = FlakyBackend(world.remote, [TOO_LARGE] * 1000, only=_scrolls_of("c"))
    async with world.running() as hydrator:
        await world.until(lambda: world.is_complete("other"))
        await world.until(lambda: any(each["state"] == "failed" for each in hydrator.status()))
        failed = next(each for each in hydrator.status() if each["collection"] == "c")
    assert "larger than max" in failed["reason"]
    assert world.completeness() != COMPLETE


async def test_a_restart_knows_when_a_collection_was_compared(make: Make) -> None:
    world = make(refresh_seconds=1e6)
    fill(world, MANY)
    async with world.running() as hydrator:
        await at_rest(world)
        await compare(world, hydrator)
        at = world.verified()
    async with world.running() as hydrator:
        await at_rest(world)
        assert row(hydrator)["ranges"] == 0
    assert world.verified() == at > 0
    world.remote.local.do(DROP, collections.DeleteCollection(collection_name="c"))
    world.write(CREATE, create())
    world.mirror()
    assert world.verified() == 0
    kept = world.here.store.connection().execute("SELECT name FROM meta WHERE name LIKE 'verified%'").fetchall()
    assert kept == []


async def test_what_is_not_whole_here_cannot_be_compared_and_says_so(make: Make) -> None:
    world = make(refresh_seconds=1e6, max_points=50)
    fill(world, MANY)
    async with world.running() as hydrator:
        await at_rest(world)
        found = await compare(world, hydrator)
        assert found["state"] == "failed"
        assert "not whole here" in found["reason"]
        hydrator.request_verification(["nobody"])
        await world.until(lambda: not row(hydrator, "nobody"))
