"""Hydration between two stores, see `hydration_world`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server import config
from server.errors import ReplicaRefused, UpstreamUnreachable
from server.replica import requests as r
from server.replica.copying import CopyState
from server.replica.hydrate import Hydrator
from server.replica.points import key_of
from server.replica.refusal import Refusal
from server.replica.settled import Settled
from server.rpc import HEALTH_CHECK, METHODS, Call, Code, Reply
from tests.faults.backends import FlakyBackend, Pass, Refused, Stall, says
from tests.faults.clock import ManualClock

from .hydration_world import (
    COMPLETE,
    EMPTY,
    HYDRATING,
    SCROLL,
    STALE,
    Make,
    RemoteStore,
    World,
    fill,
    scrolls,
    uuid,
)
from .local_store import ALIASES, CREATE, DROP, Local, create, ids, payload, point, point_id, upsert, where


async def test_everything_is_copied_and_says_so(make: Make) -> None:
    world = make()
    fill(world, 95)
    world.remote.local.do(r.UPSERT, upsert(*(point(uuid(n), u=n) for n in range(12))))
    fill(world, 0, "empty")
    world.remote.local.do(ALIASES, collections.ChangeAliases(actions=[_alias("a", "c")]))
    async with world.running() as hydrator:
        await world.until(lambda: world.is_complete() and world.is_complete("empty"))
    assert world.differences() == []
    assert len(world.here.points("a")) == 107
    assert world.here.store.meta("remote_version") == "1.18.3"
    rows = {row["collection"]: row for row in hydrator.status()}
    assert (rows["c"]["state"], rows["c"]["points"], rows["c"]["expected_points"]) == ("complete", 107, 107)
    assert rows["empty"]["state"] == "complete"


def _alias(alias: str, name: str) -> collections.AliasOperations:
    return collections.AliasOperations(create_alias=collections.CreateAlias(alias_name=alias, collection_name=name))


async def test_points_that_qdrant_lacks_are_removed(make: Make) -> None:
    world = make()
    fill(world, 30)
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        world.remote.local.do(r.DELETE, pb.DeletePoints(collection_name="c", points=ids(0, 7, 15, 29)))
        hydrator.request_reconcile()
        await world.until(lambda: not world.differences())
        await world.until(world.is_complete)
    assert "the replica differs from Qdrant, copying again" in world.lines


async def test_it_goes_on_where_it_stopped(make: Make) -> None:
    world = make()
    fill(world, 95)
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running() as hydrator:
        await world.until(lambda: len(scrolls(flaky)) == 5, each=lambda: world.clock.advance(2))
        hydrator.upstream_up = False
        await world.until(lambda: hydrator.progress[0].state is CopyState.WAITING)
        assert world.completeness() == HYDRATING
        found = world.here.store.collection("c")
        assert found is not None and found.resume_at
        hydrator.upstream_up = True
        await world.until(world.is_complete)
    assert len(scrolls(flaky)) <= 12
    assert world.differences() == []


async def test_a_restart_goes_on_too(make: Make) -> None:
    world = make()
    fill(world, 95)
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running():
        await world.until(lambda: len(scrolls(flaky)) == 6, each=lambda: world.clock.advance(2))
    before = len(scrolls(flaky))
    async with world.running():
        await world.until(world.is_complete)
    assert len(scrolls(flaky)) - before <= 6
    assert world.differences() == []


async def test_the_connection_breaks_in_the_middle(make: Make) -> None:
    world = make()
    fill(world, 50)
    script = [Refused(), says(Code.UNAVAILABLE), Refused(), says(Code.INTERNAL)]
    world.upstream = FlakyBackend(world.remote, script, only=lambda call: call.method == SCROLL)
    async with world.running():
        await world.until(world.is_complete)
    assert world.differences() == []


async def test_writes_while_it_copies_win(make: Make) -> None:
    world = make(settle_seconds=0)
    fill(world, 60)
    turn = iter(range(1000))

    def client() -> None:
        n = next(turn, None)
        if n is None:
            return
        world.write(r.UPSERT, upsert(point(n % 70, v=1000 + n)))
        if n % 3 == 0:
            world.write(r.DELETE, pb.DeletePoints(collection_name="c", points=ids((n * 7) % 60)))
        if n % 2 == 0:
            world.mirror(world.mirrored + 1)

    async with world.running():
        await world.until(world.is_complete, each=client)
    assert world.differences() == []


async def test_changes_to_points_that_are_not_here_yet(make: Make) -> None:
    """A payload is set at Qdrant on a point whose page is on its way: the point is fetched again."""
    world = make(settle_seconds=0)
    fill(world, 5)
    reached, go_on = asyncio.Event(), asyncio.Event()

    class AfterRead:
        async def handle(self, call: Call) -> Reply:
            reply = await world.remote.handle(call)
            if call.method == SCROLL and not reached.is_set():
                reached.set()
                await go_on.wait()
            return reply

    world.upstream = AfterRead()
    async with world.running():
        await reached.wait()
        world.write(
            r.SET_PAYLOAD,
            pb.SetPayloadPoints(collection_name="c", payload=payload({"k": 1}), points_selector=ids(3), wait=True),
        )
        world.mirror()
        go_on.set()
        await world.until(world.is_complete)
    assert world.differences() == []
    assert world.here.payloads()[3] == {"v": 3, "k": 1}


async def test_a_write_without_wait_is_given_time(make: Make) -> None:
    """Qdrant has acknowledged a write that its pages do not show yet: the page must not undo it here."""
    world = make(settle_seconds=1.0)
    fill(world, 5)
    request = upsert(point(3, v=99), wait=False)
    world.acknowledged(r.UPSERT, request)
    world.mirror()
    async with world.running():
        await world.until(lambda: world.here.store.collection("c") is not None)
        for _ in range(50):
            await asyncio.sleep(0)
        world.remote.local.do(r.UPSERT, request)
        await world.until(world.is_complete)
    assert world.differences() == []
    assert world.here.payloads()[3] == {"v": 99}


async def test_what_the_proxy_created_is_complete_at_once(make: Make) -> None:
    world = make()
    fill(world, 5, "other")
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running():
        await world.until(lambda: world.is_complete("other"))
        world.write(CREATE, create("c"))
        world.write(r.UPSERT, upsert(*(point(n, v=n) for n in range(30))))
        world.mirror()
        assert world.is_complete()
        await world.until(lambda: bool(_info(world)))
        await world.until(lambda: world.verified() > 0)
    assert world.lines.count("hydration started") == 1  # of the other
    assert scrolls(flaky)
    assert world.is_complete()
    assert world.differences() == []


def _info(world: World) -> bytes:
    found = world.here.store.collection("c")
    return found.info if found is not None else b""


async def test_a_collection_made_again_by_others_is_noticed(make: Make) -> None:
    world = make()
    fill(world, 20)
    fill(world, 0, "other")
    async with world.running():
        await world.until(world.is_complete)
        world.remote.local.do(DROP, collections.DeleteCollection(collection_name="c"))
        world.remote.local.do(CREATE, create("c", size=3))
        world.remote.local.do(r.UPSERT, upsert(point(1, _vector(1, 2, 3))))
        await world.until(lambda: not world.differences() and world.is_complete())
        world.remote.local.do(DROP, collections.DeleteCollection(collection_name="c"))
        await world.until(lambda: world.here.store.collection("c") is None)


def _vector(*values: float) -> pb.Vectors:
    return pb.Vectors(vector=pb.Vector(dense=pb.DenseVector(data=values)))


async def test_a_collection_that_goes_while_it_is_copied(make: Make) -> None:
    world = make()
    fill(world, 50)
    fill(world, 5, "d")
    stall = Stall(asyncio.Event(), asyncio.Event())
    world.upstream = FlakyBackend(world.remote, [stall], only=lambda call: call.method == SCROLL)
    async with world.running() as hydrator:
        await stall.reached.wait()
        world.write(DROP, collections.DeleteCollection(collection_name="c"))
        stall.until.set()
        await world.until(lambda: world.is_complete("d"))
        await world.until(lambda: world.here.store.collection("c") is None)
        await world.until(lambda: [each.collection for each in hydrator.progress] == ["d"])


async def test_a_collection_made_again_through_the_proxy_while_it_is_copied(make: Make) -> None:
    world = make(settle_seconds=0)
    fill(world, 50)
    fill(world, 1, "d")
    reached, go_on = asyncio.Event(), asyncio.Event()

    class AfterRead:
        async def handle(self, call: Call) -> Reply:
            reply = await world.remote.handle(call)
            if call.method == SCROLL and not reached.is_set():
                reached.set()
                await go_on.wait()
            return reply

    world.upstream = AfterRead()
    async with world.running() as hydrator:
        await reached.wait()
        world.write(DROP, collections.DeleteCollection(collection_name="c"))
        world.write(CREATE, create("c"))
        world.write(r.UPSERT, upsert(point(7, v=77)))
        world.mirror()
        go_on.set()
        await world.until(lambda: [each.state for each in hydrator.progress] == [CopyState.COMPLETE] * 2)
    assert world.here.payloads() == {7: {"v": 77}}


@pytest.mark.parametrize("whole_before", [False, True])
async def test_put_in_doubt_while_it_is_copied(make: Make, whole_before: bool) -> None:
    world = make()
    fill(world, 60)
    stall = Stall(asyncio.Event(), asyncio.Event())
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running() as hydrator:
        if whole_before:
            await world.until(world.is_complete)
        flaky.script.extend([Pass(), Pass(), Pass(), stall] if not whole_before else [stall])
        flaky._only = lambda call: call.method == SCROLL
        hydrator.request(["c"])
        await world.until(stall.reached.is_set)
        # Point 2, whose page has passed, is lost here.
        found = world.here.store.collection("c")
        assert found is not None
        with world.here.store.transaction() as tx:
            tx.remove(found.cid, [key_of(point_id(2))])
        world.here.set_completeness(STALE, "c")
        stall.until.set()
        await world.until(lambda: world.is_complete() and not hydrator._asked)
        await world.until(lambda: hydrator.progress[0].state is CopyState.COMPLETE)
    assert world.here.payloads()[2] == {"v": 2}


@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.parametrize("whole_before", [False, True])
async def test_a_doubt_outlasts_the_word_that_all_is_copied(make: Make, whole_before: bool, is_told: bool) -> None:
    """`is_told`: the replica hears of the doubt before it hears the word, else later."""
    world = make()
    fill(world, 10)
    doubts = 0
    set_completeness = world.set_completeness

    async def late(request: control_pb.SetCompletenessRequest) -> control_pb.SetCompletenessResponse:
        """The word is overtaken by a doubt: Qdrant has another point that nobody here has heard of."""
        nonlocal doubts
        if request.completeness == COMPLETE and not doubts:
            doubts += 1
            world.remote.local.do(r.UPSERT, upsert(point(77, v=77)))
            hydrator.doubt("c")
            if is_told:
                world.here.set_completeness(STALE, "c")
            try:
                return await set_completeness(request)
            finally:
                # Qdrant is not asked again meanwhile.
                hydrator.upstream_up = False
        return await set_completeness(request)

    async with world.running() as hydrator:
        if whole_before:
            await world.until(world.is_complete)
            hydrator.request(["c"])
        world.set_completeness = late  # type: ignore[method-assign]
        await world.until(lambda: doubts == 1 and not hydrator.upstream_up)
        await world.until(lambda: not world.is_complete())
        hydrator.upstream_up = True
        await world.until(lambda: world.is_complete() and 77 in world.here.payloads())


async def test_doubts_that_do_not_end_cause_no_storm_of_copies(make: Make) -> None:
    """A client whose writes fail inside Qdrant, ten times a second, for a minute."""
    world = make()
    fill(world, 10)
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        before, began = world.lines.count("hydration started"), world.clock.monotonic()
        world.remote.local.do(r.UPSERT, upsert(point(77, v=77)))
        for tenth in range(600):
            world.here.set_completeness(STALE, "c")
            hydrator.doubt("c")
            await world.pass_until(began + (tenth + 1) / 10)
        copies = world.lines.count("hydration started") - before
        assert 2 <= copies <= 60 / world.settings.retry_seconds
        # They end: so does the doubt.
        await world.until(lambda: world.is_complete() and not hydrator._asked)
    assert world.differences() == []


async def test_large_collections_are_left_out_and_say_so(make: Make) -> None:
    world = make(max_points=10)
    fill(world, 11)
    fill(world, 10, "small")
    async with world.running() as hydrator:
        await world.until(lambda: world.is_complete("small"))
        await world.until(lambda: hydrator.progress[0].state is CopyState.LEFT_OUT)
        for _ in range(3):
            world.clock.advance(world.settings.refresh_seconds)
            await world.until(lambda: bool(world.clock.sleeping))
    assert world.completeness() == EMPTY
    assert "11 points" in hydrator.progress[0].reason
    assert world.lines.count("hydration leaves a collection out") == 1


async def test_only_chosen_collections_unless_asked(make: Make) -> None:
    world = make(collections=("d",))
    fill(world, 5)
    fill(world, 5, "d")
    async with world.running() as hydrator:
        await world.until(lambda: world.is_complete("d"))
        assert world.completeness() == EMPTY
        hydrator.request(["c", "never heard of"])
        await world.until(world.is_complete)


async def test_switched_off_it_still_learns_the_catalogue(make: Make) -> None:
    world = make(enabled=False)
    fill(world, 5)
    async with world.running() as hydrator:
        await world.until(lambda: world.completeness() == EMPTY)
        hydrator.request(None)
        await world.until(world.is_complete)
    assert world.differences() == []


async def test_a_qdrant_that_comes_back_empty_is_told_of_once_and_copied_when_it_is_filled(make: Make) -> None:
    world = make()
    fill(world, 25)
    fill(world, 5, "d")
    empty = "Qdrant came back without any collection, the local copies are kept"
    async with world.running() as hydrator:
        await world.until(lambda: world.is_complete() and world.is_complete("d"))
        for name in ("c", "d"):
            world.remote.local.do(DROP, collections.DeleteCollection(collection_name=name))
        # Asked for, a copy of what Qdrant does not have would fail again and again.
        hydrator.request(None)
        await world.until(lambda: world.completeness("d") == STALE)
        told = len(world.lines)
        hydrator.request(["c"])
        rounds = world.clock.monotonic() + 10 * world.settings.refresh_seconds
        await world.until(lambda: world.clock.monotonic() > rounds)
        kept = [len(world.here.points(name)) for name in ("c", "d")]
        fill(world, 30)
        await world.until(world.is_complete)
        assert world.completeness("d") == 0
    assert kept == [25, 5]
    assert world.differences() == []
    assert world.lines.count(empty) == 1
    assert world.lines.count("Qdrant no longer has the collection, its local copy is removed") == 1
    assert not [line for line in world.lines[told:] if "failed" in line]


async def test_asked_again_it_copies_from_the_start_and_stays_whole(make: Make) -> None:
    world = make()
    fill(world, 35)
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        world.remote.local.do(
            r.SET_PAYLOAD,
            pb.SetPayloadPoints(collection_name="c", payload=payload({"k": 1}), points_selector=ids(3), wait=True),
        )
        before = len(scrolls(flaky))
        seen: set[int] = set()
        hydrator.request(["c"])
        await world.until(
            lambda: world.lines.count("hydration complete") == 2, each=lambda: seen.add(world.completeness())
        )
    assert world.differences() == []
    # Looks at a few points come between, so the pages are told by where they begin.
    assert {0, 8, 18, 28} <= {pb.ScrollPoints.FromString(call.body).offset.num for call in scrolls(flaky)[before:]}
    assert seen <= {STALE, COMPLETE}


async def test_a_copy_in_the_middle_takes_nothing_away(make: Make) -> None:
    world = make()
    fill(world, 60)
    held: set[int] = set()
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        hydrator.request(["c"])
        await world.until(lambda: world.completeness() == STALE)
        await world.until(world.is_complete, each=lambda: held.add(len(world.here.points())))
    assert held == {60}


async def test_owed_points_that_are_gone_at_qdrant_go_here_too(make: Make) -> None:
    world = make(settle_seconds=0)
    fill(world, 5)

    class AfterRead:
        reads = 0

        async def handle(self, call: Call) -> Reply:
            reply = await world.remote.handle(call)
            if call.method == SCROLL and not self.reads:
                self.reads += 1
                world.write(r.UPSERT, upsert(point(3, v=33)))
                world.mirror()
                # Somebody else deletes it behind the proxy's back.
                world.remote.local.do(r.DELETE, pb.DeletePoints(collection_name="c", points=ids(3)))
            return reply

    world.upstream = AfterRead()
    async with world.running():
        await world.until(world.is_complete)
    assert world.differences() == []
    assert 3 not in world.here.points()


async def test_an_interrupted_request_is_not_forgotten(make: Make) -> None:
    world = make()
    fill(world, 35)
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running() as hydrator:
        await world.until(world.is_complete)
        before = len(scrolls(flaky))
        hydrator.request(["c"])
        await world.until(lambda: len(scrolls(flaky)) == before + 2)
        hydrator.upstream_up = False
        await world.until(lambda: hydrator.progress[0].state is CopyState.WAITING)
        hydrator.upstream_up = True
        await world.until(lambda: len(scrolls(flaky)) >= before + 6)
        await world.until(world.is_complete)


async def test_nothing_is_copied_while_a_write_is_pending(make: Make) -> None:
    world = make()
    fill(world, 5)
    world.pending_count = 1
    flaky = FlakyBackend(world.remote)
    world.upstream = flaky
    async with world.running():
        for _ in range(5):
            await world.until(lambda: bool(world.clock.sleeping))
            world.clock.advance(100)
        assert flaky.calls == []
        world.pending_count = 0
        await world.until(world.is_complete)


async def test_without_a_credential_it_waits(make: Make) -> None:
    world = make()
    fill(world, 5)

    class Guarded:
        async def handle(self, call: Call) -> Reply:
            if call.method != HEALTH_CHECK and dict(call.metadata).get("api-key") != "right":
                return says(Code.UNAUTHENTICATED, "Must provide an API key")
            return await world.remote.handle(call)

    world.upstream = Guarded()
    async with world.running():
        await world.until(lambda: "hydration failed, it will be tried again" in world.lines)
        world.key = (("api-key", "right"),)
        await world.until(world.is_complete)
    assert world.differences() == []


async def test_the_rate_is_kept(make: Make) -> None:
    world = make(points_per_second=20)
    fill(world, 100)
    start = world.clock.monotonic()
    async with world.running():
        await world.until(world.is_complete)
    assert (100 - 10) / 20 <= world.clock.monotonic() - start <= 100 / 20 + 1


async def test_the_time_that_a_page_takes_counts(make: Make) -> None:
    world = make(points_per_second=20)
    fill(world, 100)
    plain = world.import_page

    async def slow(request: control_pb.ImportPageRequest) -> control_pb.ImportPageResponse:
        world.clock.advance(0.3)
        return await plain(request)

    world.import_page = slow  # type: ignore[method-assign]
    start = world.clock.monotonic()
    async with world.running():
        await world.until(world.is_complete)
    assert world.clock.monotonic() - start <= 100 / 20 + 1


async def test_the_rate_is_halved_while_the_event_loop_runs_late(make: Make) -> None:
    world = make(points_per_second=20)
    fill(world, 100)
    on_time = world.clock.sleep

    async def late(seconds: float) -> None:
        await on_time(seconds + 0.02)

    world.clock.sleep = late  # type: ignore[method-assign]
    start = world.clock.monotonic()
    async with world.running():
        await world.until(world.is_complete)
    assert 2 * (100 - 10) / 20 <= world.clock.monotonic() - start <= 2 * 100 / 20 + 2


async def test_a_replica_that_forgot_what_came_later_gets_the_page_again(make: Make) -> None:
    world = make(settle_seconds=0)
    fill(world, 30)
    world.write(r.UPSERT, upsert(point(1, v=5)))
    refused = 0
    real = world.import_page

    async def forgets(request: control_pb.ImportPageRequest) -> control_pb.ImportPageResponse:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise ReplicaRefused("read it again", code=Code.FAILED_PRECONDITION, details="")
        return await real(request)

    world.import_page = forgets  # type: ignore[method-assign]
    async with world.running():
        await world.until(world.is_complete)
    assert refused == 3
    assert world.differences() == []


async def test_unreachable_errors_are_told(make: Make) -> None:
    world = make()
    fill(world, 5)
    world.upstream = FlakyBackend(world.remote, [Refused()])
    async with world.running():
        await world.until(lambda: "hydration failed, it will be tried again" in world.lines)
        await world.until(world.is_complete)
    assert issubclass(UpstreamUnreachable, Exception)


class Unloaded:
    """A Qdrant that could not load one collection: it is listed, and every question about it fails inside."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self.is_broken = True

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        request = METHODS[call.method].request.FromString(call.body) if call.method in METHODS else None
        if self.is_broken and getattr(request, "collection_name", "") == self._name:
            return says(Code.INTERNAL, "Service internal error: dummy shard")
        return await self._world.remote.handle(call)


async def test_a_collection_that_qdrant_could_not_load_holds_up_no_other(make: Make) -> None:
    world = make()
    fill(world, 5, "bad")
    fill(world, 25, "good")
    world.upstream = unloaded = Unloaded(world, "bad")
    async with world.running() as hydrator:
        await world.until(lambda: world.is_complete("good"))
        rows = {row["collection"]: row for row in hydrator.status()}
        assert rows["bad"]["state"] == "failed" and "dummy shard" in rows["bad"]["reason"]
        assert world.completeness("bad") == 0
        unloaded.is_broken = False
        await world.until(lambda: world.is_complete("bad"))
    assert world.differences("bad") == world.differences("good") == []


async def test_the_local_copy_of_a_collection_that_qdrant_could_not_load_stays(make: Make) -> None:
    """And what differs in the others is found and repaired meanwhile."""
    world = make()
    fill(world, 5, "bad")
    fill(world, 25, "good")
    world.upstream = unloaded = Unloaded(world, "bad")
    unloaded.is_broken = False
    rounds: list[bool] = []

    async def note(is_whole: bool) -> None:
        rounds.append(is_whole)

    async with world.running() as hydrator:
        await world.until(lambda: world.is_complete("good") and world.is_complete("bad"))
        unloaded.is_broken = True
        hydrator.on_round = note
        world.remote.local.do(r.DELETE, pb.DeletePoints(collection_name="good", points=ids(3)))
        hydrator.request_reconcile()
        await world.until(lambda: 3 not in world.here.points("good") and world.is_complete("good"))
        await world.until(lambda: _compared(hydrator) == {"bad": "failed", "good": "verified"})
        assert (len(world.here.points("bad")), world.completeness("bad")) == (5, COMPLETE)
        # The round that was under way may have seen it whole; nothing is whole from then on.
        assert not rounds[-1]
        unloaded.is_broken = False
        await world.until(lambda: rounds[-1])
        assert {row["state"] for row in hydrator.status()} == {"complete"}
    assert world.differences("bad") == world.differences("good") == []


def _compared(hydrator: Hydrator) -> dict[str, str]:
    return {row["collection"]: row["state"] for row in hydrator.verification()}


# --- any interleaving ------------------------------------------------------------------------------------------------

ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.integers(0, 24)),
        st.tuples(st.just("delete"), st.integers(0, 24)),
        st.tuples(st.just("payload"), st.integers(0, 24)),
        st.tuples(st.just("clear"), st.just(0)),
        st.tuples(st.just("change marked, mark"), st.integers(0, 24)),
        st.tuples(st.just("delete marked, mark"), st.integers(0, 24)),
        st.tuples(st.just("again"), st.just(0)),
        st.tuples(st.just("mirror"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.integers(1, 6)),
        st.tuples(st.just("late"), st.integers(0, 24)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(acts=ACTS, page=st.integers(1, 8), begin=st.integers(0, 30))
def test_any_interleaving_of_writes_and_pages(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]], page: int, begin: int
) -> None:
    directory = tmp_path_factory.mktemp("world")
    world = World(
        RemoteStore(directory / "remote"),
        Local(directory / "here", known=False),
        ManualClock(),
        config.Hydrate(page_points=page, points_per_second=0, settle_seconds=1.0),
    )
    try:
        # A copy takes some twenty steps of the loop: the first act comes before, during or after it.
        asyncio.run(_interleave(world, [("wait", begin), *acts]))
    finally:
        world.remote.local.close()
        world.here.close()


async def _interleave(world: World, acts: list[tuple[str, int]]) -> None:
    fill(world, 20)
    late: list[Callable[[], Any]] = []
    async with world.running():
        for number, (act, value) in enumerate(acts):
            await _act(world, act, value, number, late)
        for each in late:
            each()
        await world.until(world.is_complete)
        world.mirror()
    assert world.differences() == []


async def _act(world: World, act: str, value: int, number: int, late: list[Callable[[], Any]]) -> None:
    if act == "wait":
        for _ in range(value):
            await asyncio.sleep(0)
        return
    if act == "mirror":
        world.mirror(min(world.last_seq, world.mirrored + value))
        return
    if act == "late":
        # Acknowledged before it is applied, and applied within the time for it: before anything else is written.
        world.acknowledged(r.UPSERT, request := upsert(point(value, late=number), wait=False))
        for _ in range(3):
            await asyncio.sleep(0)
        world.remote.local.do(r.UPSERT, request)
        return
    requests: dict[str, tuple[str, Message]] = {
        "upsert": (r.UPSERT, upsert(point(value, v=1000 + number))),
        "delete": (r.DELETE, pb.DeletePoints(collection_name="c", points=ids(value))),
        "payload": (r.SET_PAYLOAD, _set({"k": number}, ids(value))),
        "clear": (
            r.DELETE,
            pb.DeletePoints(collection_name="c", points=pb.PointsSelector(filter={})),  # type: ignore[arg-type]
        ),
        "change marked, mark": (r.SET_PAYLOAD, _set({"k": number}, where("state", "gone"))),
        "delete marked, mark": (r.DELETE, pb.DeletePoints(collection_name="c", points=where("state", "gone"))),
        "again": (DROP, collections.DeleteCollection(collection_name="c")),
    }
    try:
        world.write(*requests[act])
        if act.endswith("mark"):
            world.write(r.SET_PAYLOAD, _set({"state": "gone"}, ids(value)))
    except Refusal:
        return
    if act == "again":
        world.write(CREATE, create("c"))


def _set(values: dict[str, Any], points: pb.PointsSelector) -> pb.SetPayloadPoints:
    return pb.SetPayloadPoints(collection_name="c", payload=payload(values), points_selector=points, wait=True)


# --- settled ---------------------------------------------------------------------------------------------------------


def test_settled_never_names_what_is_too_young() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        settled = Settled(1.0)
        now, seq, appended = 0.0, 0, {0: -5.0}
        for _ in range(60):
            now += chance.choice([0.0, 0.1, 0.5, 2.0])
            for _ in range(chance.choice([0, 0, 1, 5])):
                seq += 1
                appended[seq] = now
            settled.observe(now, seq)
            since = settled.since(now)
            if since is not None:
                assert appended[since] <= now - 1.0
            if now - max(appended.values()) >= 2.5 and settled.wait_seconds(now) == 0.0:
                assert since is not None


def test_settled_does_not_say_wait_for_nothing_by_rounding() -> None:
    """On either side of a power of two, where numbers get coarser, what was waited for has not quite come."""
    chance, early = random.Random(1), 0
    for _ in range(2000):
        at = chance.uniform(1023.0, 1023.99)
        now = at + chance.uniform(0.0, 1.0)
        settled = Settled(1.0)
        settled.observe(at, 1)
        if settled.since(now) is None:
            now += at + 1.0 - now
            early += settled.since(now) is None
            assert settled.since(now) is not None or now + settled.wait_seconds(now) > now
    assert early > 0


def test_settled_comes_to_the_end_of_a_quiet_log() -> None:
    settled = Settled(1.0)
    settled.observe(10.0, 7)
    assert settled.since(10.0) is None
    assert settled.wait_seconds(10.25) == 0.75
    assert settled.since(11.0) == 7
    settled.observe(11.5, 9)
    assert settled.since(12.0) == 7
    assert settled.since(12.5) == 9
    settled.observe(100.0, 9)
    assert settled.since(100.0) == 9


def test_settled_takes_a_known_age() -> None:
    settled = Settled(1.0)
    settled.observe(10.0, 7, age_seconds=1.0)
    assert settled.since(10.0) == 7
