"""Hydration and comparison of collections with a strict mode: no question that Qdrant would refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.replica import requests as r
from server.replica.hydrate import Hydrator
from server.rpc import METHODS, Call, Code, Reply
from tests.faults.backends import says

from .hydration_world import SCROLL, STALE, Make, World
from .local_store import CREATE, create, ids, payload, point, upsert
from .test_drift import at_rest, row

COUNT, GET = r.POINTS + "Count", r.POINTS + "Get"
UPDATE = r.COLLECTIONS + "Update"
MANY = 95


def strict(**limits: Any) -> collections.StrictModeConfig:
    return collections.StrictModeConfig(enabled=True, **limits)


class Strict:
    """In front of a store that plays Qdrant: refuses what the strict mode of a collection forbids, as Qdrant does."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._behind = world.remote
        self.calls: list[Call] = []
        self.refused: list[str] = []
        # An estimate may be beside the truth.
        self.estimated_more = 0
        # What happens while that page is on its way, counted from 1.
        self.after_page: dict[int, Callable[[], None]] = {}

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        self.calls.append(call)
        request = METHODS[call.method].request.FromString(call.body) if call.method in METHODS else None
        name = getattr(request, "collection_name", "")
        found = self._world.remote.local.store.collection(name) if name else None
        if found is None:
            return await self._behind.handle(call)
        limits = collections.CollectionConfig.FromString(found.config).strict_mode_config
        no = self._refusal(call.method, request, limits) if limits.enabled else None
        if no is not None:
            self.refused.append(no.details)
            return no
        reply = await self._behind.handle(call)
        if call.method == SCROLL:
            self.after_page.get(len(self.pages()), lambda: None)()
        if call.method == COUNT and not request.exact and self.estimated_more:
            answer = pb.CountResponse.FromString(reply.body)
            answer.result.count += self.estimated_more
            return Reply(answer.SerializeToString())
        return reply

    @staticmethod
    def _refusal(method: str, request: Any, limits: collections.StrictModeConfig) -> Reply | None:
        if method == SCROLL and limits.max_query_limit and request.limit > limits.max_query_limit:
            return says(
                Code.INVALID_ARGUMENT,
                f'Bad request: Limit exceeded {request.limit} > {limits.max_query_limit} for "limit". '
                f'Help: Reduce the "limit" parameter to or below {limits.max_query_limit}.',
            )
        exact = request.exact if method == COUNT and request.HasField("exact") else method == COUNT
        if exact and limits.HasField("search_allow_exact") and not limits.search_allow_exact:
            return says(Code.INVALID_ARGUMENT, "Bad request: Exact search disabled!. Help: Set exact=false.")
        if method == GET and limits.read_rate_limit and len(request.ids) > limits.read_rate_limit:
            return says(
                Code.RESOURCE_EXHAUSTED,
                "Rate limiting exceeded: Read rate limit exceeded, request larger than rate limiter capacity, "
                "please try to split your request",
            )
        return None

    def pages(self) -> list[int]:
        """How many points each page was to have."""
        return [pb.ScrollPoints.FromString(call.body).limit for call in self.calls if call.method == SCROLL]


def filled(world: World, limits: collections.StrictModeConfig, count: int = MANY) -> Strict:
    request = create()
    request.strict_mode_config.CopyFrom(limits)
    world.remote.local.do(CREATE, request)
    if count:
        world.remote.local.do(r.UPSERT, upsert(*(point(n, v=n) for n in range(count))))
    world.upstream = Strict(world)
    return world.upstream


def counts(qdrant: Strict) -> int:
    """How often it was asked how many points there are."""
    return sum(call.method == COUNT for call in qdrant.calls)


async def look_again(world: World, hydrator: Hydrator, qdrant: Strict) -> None:
    """Counts are compared once more, and what follows is done."""
    before = counts(qdrant)
    hydrator.request_reconcile()
    await world.until(lambda: counts(qdrant) > before)
    await at_rest(world)


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
async def test_pages_have_at_most_max_query_limit_points(make: Make, most: int) -> None:
    world = make(page_points=50)
    qdrant = filled(world, strict(max_query_limit=most))
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        hydrator.request_verification(["c"])
        await world.until(lambda: row(hydrator)["state"] == "verified")
    assert world.differences() == []
    assert qdrant.refused == []
    assert max(qdrant.pages()) == min(most, 50)


async def test_where_no_exact_count_is_allowed_there_is_an_estimate(make: Make) -> None:
    world = make(refresh_seconds=1e6)
    qdrant = filled(world, strict(search_allow_exact=False))
    async with world.running() as hydrator:
        await at_rest(world)
        assert world.is_complete()
        assert next(each for each in hydrator.progress).expected_points == MANY
    assert world.differences() == []
    assert qdrant.refused == []


async def test_a_switched_off_strict_mode_limits_nothing(make: Make) -> None:
    world = make(page_points=50)
    limits = strict(max_query_limit=2, search_allow_exact=False)
    limits.enabled = False
    qdrant = filled(world, limits)
    async with world.running():
        await world.until(world.is_complete)
    assert max(qdrant.pages()) == 50
    assert all(pb.CountPoints.FromString(call.body).exact for call in qdrant.calls if call.method == COUNT)


async def test_another_estimate_makes_the_content_compared_and_not_copied(make: Make) -> None:
    world = make(refresh_seconds=60.0, verify_seconds=0)
    filled(world, strict(search_allow_exact=False))
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        world.remote.local.do(r.UPSERT, upsert(point(5000, v=1)))
        await world.until(lambda: not world.differences())
        assert row(hydrator)["points_repaired"] == 1
    assert "the replica differs from Qdrant, copying again" not in world.lines
    assert world.is_complete()


async def test_an_estimate_that_stays_wrong_is_looked_into_once(make: Make) -> None:
    world = make(refresh_seconds=60.0, verify_seconds=0)
    qdrant = filled(world, strict(search_allow_exact=False), 30)
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        await at_rest(world)
        qdrant.estimated_more = 2
        compared = []
        for _ in range(4):
            await look_again(world, hydrator, qdrant)
            compared.append((row(hydrator)["ranges"], world.verified()))
        assert compared[0] == compared[-1] and compared[0][0] > 0
        qdrant.estimated_more = 5
        await look_again(world, hydrator, qdrant)
        assert world.verified() > compared[0][1]
    assert world.completeness() != STALE


async def test_a_limit_that_is_set_in_the_middle_is_known_at_the_next_look(make: Make) -> None:
    world = make(page_points=50, retry_seconds=1.0)
    qdrant = filled(world, strict())
    async with world.running():
        await world.until(lambda: len(qdrant.pages()) == 1)
        limits = strict(max_query_limit=5, search_allow_exact=False)
        world.remote.local.do(UPDATE, collections.UpdateCollection(collection_name="c", strict_mode_config=limits))
        await world.until(world.is_complete)
    assert world.differences() == []
    assert world.lines.count("hydration failed, it will be tried again") == 1


async def test_points_are_fetched_again_few_at_a_time_where_a_minute_takes_no_more(make: Make) -> None:
    """What clients change while a page is on its way is fetched by its ids, and each of them counts."""
    world = make(page_points=50, settle_seconds=0)
    qdrant = filled(world, strict(read_rate_limit=4))
    changed = range(45, 65)

    def client() -> None:
        world.write(
            r.SET_PAYLOAD,
            pb.SetPayloadPoints(
                collection_name="c", payload=payload({"k": 1}), points_selector=ids(*changed), wait=True
            ),
        )
        world.mirror()

    qdrant.after_page[3] = client
    async with world.running():
        await world.until(world.is_complete)
    assert world.differences() == []
    asked = [len(pb.GetPoints.FromString(call.body).ids) for call in qdrant.calls if call.method == GET]
    assert max(asked) == len(changed) and min(asked) <= 4
    assert "hydration failed, it will be tried again" not in world.lines
