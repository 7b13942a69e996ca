"""Writes to one point wait for each other in the order asked; others do not."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server.conflicts import EVERYTHING, Claim, Conflicts, PointKey, claim_of
from server.rpc import METHODS

UUID = "c0ffee00-0000-4000-8000-00000000000A"


def claim(name: str, *points: PointKey) -> Claim:
    """One to these points of a collection, or to all of them."""
    names = frozenset((name,))
    return Claim(names, frozenset(points) or None, names)


def conditional(name: str, *points: PointKey) -> Claim:
    """One to these points under a condition."""
    return replace(claim(name, *points), considers=frozenset(("indexes",)))


def ids(*numbers: int) -> points_pb2.PointsSelector:
    return points_pb2.PointsSelector(points=points_pb2.PointsIdsList(ids=[common.PointId(num=n) for n in numbers]))


def by_filter() -> points_pb2.PointsSelector:
    return points_pb2.PointsSelector(filter=common.Filter())


def points(*numbers: int) -> list[points_pb2.PointStruct]:
    return [points_pb2.PointStruct(id=common.PointId(num=n)) for n in numbers]


OPERATION = points_pb2.PointsUpdateOperation
CLAIMS = [
    ("Upsert", points_pb2.UpsertPoints(collection_name="c", points=points(1, 2)), claim("c", 1, 2)),
    ("Delete", points_pb2.DeletePoints(collection_name="c", points=ids(3)), claim("c", 3)),
    ("Delete", points_pb2.DeletePoints(collection_name="c", points=by_filter()), claim("c")),
    ("SetPayload", points_pb2.SetPayloadPoints(collection_name="c", points_selector=by_filter()), claim("c")),
    ("SetPayload", points_pb2.SetPayloadPoints(collection_name="c"), claim("c")),
    ("ClearPayload", points_pb2.ClearPayloadPoints(collection_name="c", points=ids(9)), claim("c", 9)),
    (
        "UpdateVectors",
        points_pb2.UpdatePointVectors(
            collection_name="c", points=[points_pb2.PointVectors(id=common.PointId(uuid=UUID))]
        ),
        claim("c", UUID.lower()),
    ),
    (
        "UpdateBatch",
        points_pb2.UpdateBatchPoints(
            collection_name="c",
            operations=[
                OPERATION(upsert=OPERATION.PointStructList(points=points(1))),
                OPERATION(delete_points=OPERATION.DeletePoints(points=ids(2))),
                OPERATION(set_payload=OPERATION.SetPayload(points_selector=ids(3))),
            ],
        ),
        claim("c", 1, 2, 3),
    ),
    (
        "UpdateBatch",
        points_pb2.UpdateBatchPoints(
            collection_name="c",
            operations=[
                OPERATION(upsert=OPERATION.PointStructList(points=points(1))),
                OPERATION(clear_payload=OPERATION.ClearPayload(points=by_filter())),
            ],
        ),
        claim("c"),
    ),
    (
        "UpdateBatch",
        points_pb2.UpdateBatchPoints(collection_name="c", operations=[OPERATION(delete_deprecated=ids(1))]),
        claim("c"),
    ),
    ("CreateFieldIndex", points_pb2.CreateFieldIndexCollection(collection_name="c"), claim("c", "indexes")),
    ("DeleteFieldIndex", points_pb2.DeleteFieldIndexCollection(collection_name="c"), claim("c", "indexes")),
    (
        "Upsert",
        points_pb2.UpsertPoints(collection_name="c", points=points(1), update_filter=common.Filter()),
        conditional("c", 1),
    ),
    (
        "UpdateBatch",
        points_pb2.UpdateBatchPoints(
            collection_name="c",
            operations=[
                OPERATION(upsert=OPERATION.PointStructList(points=points(1))),
                OPERATION(update_vectors=OPERATION.UpdateVectors(update_filter=common.Filter())),
            ],
        ),
        conditional("c", 1),
    ),
]


@pytest.mark.parametrize(("method", "request_message", "claimed"), CLAIMS)
def test_claim_of_points(method, request_message, claimed) -> None:
    assert claim_of(METHODS[f"/qdrant.Points/{method}"], request_message) == claimed


async def test_an_index_that_takes_long_holds_up_conditions_and_filters_and_nobody_else() -> None:
    conflicts, upsert = Conflicts(), METHODS["/qdrant.Points/Upsert"]
    index = claim_of(
        METHODS["/qdrant.Points/CreateFieldIndex"], points_pb2.CreateFieldIndexCollection(collection_name="c")
    )
    plain = points_pb2.UpsertPoints(collection_name="c", points=points(1))
    on_condition = points_pb2.UpsertPoints(collection_name="c", points=points(2), update_filter=common.Filter())
    filtered = points_pb2.DeletePoints(collection_name="c", points=by_filter())
    building = conflicts.enter(index)
    assert building.has_turn
    assert conflicts.enter(claim_of(upsert, plain)).has_turn
    held = [conflicts.enter(claim_of(upsert, on_condition)), conflicts.enter(index)]
    assert [stay.has_turn for stay in held] == [False, False]
    conflicts.leave(building)
    assert [stay.has_turn for stay in held] == [True, False]
    assert not conflicts.enter(claim_of(METHODS["/qdrant.Points/Delete"], filtered)).has_turn


async def test_conditions_on_different_points_do_not_wait_for_each_other() -> None:
    """One that Qdrant does not answer keeps no other waiting, but an index, and those behind that."""
    conflicts = Conflicts()
    hanging, other = conflicts.enter(conditional("c", 1)), conflicts.enter(conditional("c", 2))
    assert (hanging.has_turn, other.has_turn) == (True, True)
    assert not conflicts.enter(conditional("c", 1)).has_turn
    index, late = conflicts.enter(claim("c", "indexes")), conflicts.enter(conditional("c", 3))
    conflicts.leave(other)
    assert (index.has_turn, late.has_turn) == (False, False)
    conflicts.leave(hanging)
    assert (index.has_turn, late.has_turn) == (False, False)


@pytest.mark.parametrize("spelling", [UUID.lower(), UUID.replace("-", ""), "urn:uuid:" + UUID, "{" + UUID + "}"])
async def test_writes_to_one_point_wait_however_its_uuid_is_spelled(spelling: str) -> None:
    conflicts = Conflicts()
    requests = [
        points_pb2.UpsertPoints(collection_name="c", points=[points_pb2.PointStruct(id=common.PointId(uuid=each))])
        for each in (UUID, spelling)
    ]
    first, second = (claim_of(METHODS["/qdrant.Points/Upsert"], request) for request in requests)
    assert conflicts.enter(first).has_turn
    assert not conflicts.enter(second).has_turn


def test_claim_of_collections() -> None:
    create = collections_pb2.CreateCollection(collection_name="c")
    assert claim_of(METHODS["/qdrant.Collections/Create"], create) == claim("c")


def test_a_change_of_aliases_claims_the_names_in_it() -> None:
    row, actions = METHODS["/qdrant.Collections/UpdateAliases"], collections_pb2.AliasOperations
    changed = [
        actions(create_alias=collections_pb2.CreateAlias(collection_name="c", alias_name="a")),
        actions(rename_alias=collections_pb2.RenameAlias(old_alias_name="b", new_alias_name="d")),
        actions(delete_alias=collections_pb2.DeleteAlias(alias_name="x")),
        actions(),
    ]
    assert claim_of(row, collections_pb2.ChangeAliases(actions=changed)) == Claim(
        frozenset("abcdx"), followed=frozenset("b")
    )
    assert claim_of(row, collections_pb2.ChangeAliases()) == Claim(frozenset())


def overlap(one: Claim, other: Claim) -> bool:
    if one.names is None or other.names is None:
        return True
    if not one.names & other.names:
        return False
    if one.points is None or other.points is None:
        return True
    return bool(one.points & (other.points | other.considers) or one.considers & other.points)


claims = st.one_of(
    st.just(EVERYTHING),
    st.builds(
        Claim,
        st.sampled_from([frozenset("a"), frozenset("b"), frozenset("ab")]),
        st.one_of(st.none(), st.frozensets(st.integers(0, 3), min_size=1, max_size=3)),
        considers=st.frozensets(st.integers(0, 3), max_size=2),
    ),
)


@given(st.lists(claims, min_size=2, max_size=14), st.sets(st.integers(0, 13), max_size=4), st.randoms())
def test_conflicting_writes_never_overlap_and_keep_their_order(asked, cancelled, rng: random.Random) -> None:
    """Whatever is cancelled while waiting, those that conflict run one by one, in the order asked."""
    # Drawn before anything runs: hypothesis ends an example where it draws, which would leave tasks behind.
    steps = [rng.randrange(4) for _ in asked]
    pauses = [rng.random() < 0.3 for _ in asked]

    async def scenario() -> None:
        conflicts = Conflicts()
        running: dict[int, Claim] = {}
        began: list[int] = []

        async def write(number: int, claimed: Claim) -> None:
            async with conflicts.hold(claimed):
                assert not any(overlap(claimed, other) for other in running.values())
                running[number] = claimed
                began.append(number)
                for _ in range(steps[number]):
                    await asyncio.sleep(0)
                del running[number]

        tasks = []
        for number, claimed in enumerate(asked):
            tasks.append(asyncio.create_task(write(number, claimed)))
            if pauses[number]:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        for number in cancelled:
            if number < len(tasks) and number not in began:
                tasks[number].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=20)
        for task in tasks:
            if not task.cancelled():
                task.result()
        for place, number in enumerate(began):
            assert not any(later < number and overlap(asked[later], asked[number]) for later in began[place + 1 :])
        await asyncio.sleep(0)
        assert conflicts.is_empty

    asyncio.run(scenario())


async def test_disjoint_writes_run_together() -> None:
    conflicts = Conflicts()
    async with conflicts.hold(claim("c", 1)):
        await asyncio.wait_for(conflicts.hold(claim("c", 2)).__aenter__(), timeout=10)
        await asyncio.wait_for(conflicts.hold(claim("d")).__aenter__(), timeout=10)


async def test_an_alias_and_its_collection_are_one_place() -> None:
    conflicts = Conflicts()
    conflicts.know_aliases({"alias": "c"})
    async with conflicts.hold(claim("c", 1)):
        waiting = asyncio.create_task(conflicts.hold(claim("alias", 1)).__aenter__())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, timeout=10)


def test_aliases_are_learned_from_applied_writes() -> None:
    conflicts = Conflicts()
    row = METHODS["/qdrant.Collections/UpdateAliases"]
    actions = collections_pb2.AliasOperations
    conflicts.note(
        row,
        collections_pb2.ChangeAliases(
            actions=[
                actions(create_alias=collections_pb2.CreateAlias(collection_name="c", alias_name="a")),
                actions(rename_alias=collections_pb2.RenameAlias(old_alias_name="a", new_alias_name="b")),
                actions(create_alias=collections_pb2.CreateAlias(collection_name="d", alias_name="x")),
                actions(delete_alias=collections_pb2.DeleteAlias(alias_name="x")),
            ]
        ),
    )
    assert conflicts._aliases == {"b": "c"}
    assert (conflicts.behind("b"), conflicts.behind("c")) == ("c", "")
    drop = METHODS["/qdrant.Collections/Delete"]
    conflicts.note(drop, collections_pb2.DeleteCollection(collection_name="d"))
    assert conflicts.behind("b") == "c"
    conflicts.note(drop, collections_pb2.DeleteCollection(collection_name="c"))
    assert conflicts.behind("b") == ""


@pytest.mark.parametrize("moves", [1, 2, 99])
async def test_aliases_that_were_read_before_a_move_do_not_undo_it(moves: int) -> None:
    conflicts = Conflicts()
    conflicts.know_aliases({"live": "blue"})
    row, answers = METHODS["/qdrant.Collections/UpdateAliases"], 0
    create = collections_pb2.CreateAlias(alias_name="live", collection_name="green")
    move = collections_pb2.ChangeAliases(actions=[collections_pb2.AliasOperations(create_alias=create)])

    async def ask() -> dict[str, str]:
        nonlocal answers
        held = {"live": "green" if answers else "blue", "others": "red"}
        answers += 1
        if answers <= moves:
            conflicts.note(row, move)
        return held

    await conflicts.learn_aliases(ask)
    assert conflicts.behind("live") == "green"
    # Whoever changes aliases all the time does not keep it asking.
    assert answers == min(moves + 1, 5)
    assert conflicts.behind("others") == ("red" if moves < 5 else "")


async def test_no_answer_teaches_nothing() -> None:
    conflicts = Conflicts()
    conflicts.know_aliases({"live": "blue"})

    async def ask() -> None:
        return None

    await conflicts.learn_aliases(ask)
    assert conflicts.behind("live") == "blue"
