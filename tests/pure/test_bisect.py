"""Requests taken apart and put together again."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.wal.v1 import entry_pb2
from server.replay.bisect import (
    Operation,
    deleted_by,
    halves,
    is_blind,
    joined,
    key_of,
    keys_of,
    names_of,
    only,
    operations_of,
    without,
    without_points,
)
from server.replay.causality import Causality

POINTS = "/qdrant.Points/"
HEX = "936DA01F9ABD4D9D80C702AF85C822A8"


def ids(*numbers: int) -> points_pb2.PointsSelector:
    return points_pb2.PointsSelector(points=points_pb2.PointsIdsList(ids=[common.PointId(num=n) for n in numbers]))


def structs(*numbers: int) -> list[points_pb2.PointStruct]:
    return [points_pb2.PointStruct(id=common.PointId(num=n)) for n in numbers]


def vectors(*numbers: int) -> list[points_pb2.PointVectors]:
    return [points_pb2.PointVectors(id=common.PointId(num=n)) for n in numbers]


EVERYTHING = points_pb2.PointsSelector(filter=common.Filter())
P = points_pb2
SHAPES: dict[str, Any] = {
    "Upsert": lambda *n: P.UpsertPoints(collection_name="c", points=structs(*n)),
    "Delete": lambda *n: P.DeletePoints(collection_name="c", points=ids(*n)),
    "UpdateVectors": lambda *n: P.UpdatePointVectors(collection_name="c", points=vectors(*n)),
    "DeleteVectors": lambda *n: P.DeletePointVectors(collection_name="c", points_selector=ids(*n)),
    "SetPayload": lambda *n: P.SetPayloadPoints(collection_name="c", points_selector=ids(*n), key="k"),
    "OverwritePayload": lambda *n: P.SetPayloadPoints(collection_name="c", points_selector=ids(*n)),
    "DeletePayload": lambda *n: P.DeletePayloadPoints(collection_name="c", points_selector=ids(*n), keys=["k"]),
    "ClearPayload": lambda *n: P.ClearPayloadPoints(collection_name="c", points=ids(*n)),
}
Step = P.PointsUpdateOperation
STEPS: dict[str, Any] = {
    "upsert": lambda *n: Step(upsert=Step.PointStructList(points=structs(*n))),
    "delete_deprecated": lambda *n: Step(delete_deprecated=ids(*n)),
    "set_payload": lambda *n: Step(set_payload=Step.SetPayload(points_selector=ids(*n))),
    "overwrite_payload": lambda *n: Step(overwrite_payload=Step.OverwritePayload(points_selector=ids(*n))),
    "delete_payload": lambda *n: Step(delete_payload=Step.DeletePayload(points_selector=ids(*n))),
    "clear_payload_deprecated": lambda *n: Step(clear_payload_deprecated=ids(*n)),
    "update_vectors": lambda *n: Step(update_vectors=Step.UpdateVectors(points=vectors(*n))),
    "delete_vectors": lambda *n: Step(delete_vectors=Step.DeleteVectors(points_selector=ids(*n))),
    "delete_points": lambda *n: Step(delete_points=Step.DeletePoints(points=ids(*n))),
    "clear_payload": lambda *n: Step(clear_payload=Step.ClearPayload(points=ids(*n))),
}


def operation(name: str, *numbers: int) -> Operation:
    return Operation(POINTS + name, SHAPES[name](*numbers))


def batch(*steps: Any) -> Operation:
    return Operation(POINTS + "UpdateBatch", P.UpdateBatchPoints(collection_name="c", operations=steps))


def test_every_kind_of_step_is_covered() -> None:
    assert set(STEPS) == {field.name for field in Step.DESCRIPTOR.oneofs_by_name["operation"].fields}


@pytest.mark.parametrize("name", SHAPES)
def test_each_request(name: str) -> None:
    whole = operation(name, 1, 2, 3, 2)
    assert keys_of(whole) == [1, 2, 3, 2]
    parts = halves(whole)
    assert parts is not None
    assert [keys_of(part) for part in parts] == [[1, 2], [3, 2]]
    assert parts[0] == operation(name, 1, 2)
    assert without(whole, {2}) == operation(name, 1, 3)
    assert only(whole, {2}) == operation(name, 2, 2)
    assert without(whole, {1, 2, 3}) is None
    assert only(whole, {9}) is None
    assert keys_of(whole) == [1, 2, 3, 2]
    assert halves(operation(name, 1)) is None
    assert names_of(whole) == {"c"}


@pytest.mark.parametrize("kind", STEPS)
def test_each_step(kind: str) -> None:
    step = STEPS[kind]
    whole = batch(step(1, 2), step(3))
    assert keys_of(whole) == [1, 2, 3]
    assert halves(whole) == (batch(step(1, 2)), batch(step(3)))
    assert halves(batch(step(1, 2))) == (batch(step(1)), batch(step(2)))
    assert halves(batch(step(1))) is None
    assert without(whole, {3}) == batch(step(1, 2))
    assert only(whole, {2}) == batch(step(2))


def singles(whole: Operation) -> list[Operation]:
    """What cannot be divided any more, in order."""
    parts = halves(whole)
    return [whole] if parts is None else [each for part in parts for each in singles(part)]


@pytest.mark.parametrize("name", SHAPES)
def test_parts_become_one_again(name: str) -> None:
    assert joined(singles(operation(name, 1, 2, 3, 4, 5))) == [operation(name, 1, 2, 3, 4, 5)]
    assert joined([operation(name, 1), operation(name, 4), operation(name, 1, 2)]) == [
        operation(name, 1, 4),
        operation(name, 1, 2),
    ]
    other = operation(name, 2)
    other.request.collection_name = "d"  # type: ignore[attr-defined]
    assert joined([operation(name, 1), other, operation(name, 3)]) == [operation(name, 1), other, operation(name, 3)]
    assert keys_of(without_points(other)) == []
    assert names_of(without_points(other)) == {"d"}


def test_steps_become_one_batch_again_in_their_order() -> None:
    steps = [STEPS["upsert"](1, 2), STEPS["set_payload"](3), STEPS["delete_points"](4)]
    assert [keys_of(each) for each in joined(singles(batch(*steps)))] == [[1, 2, 3, 4]]
    assert joined([batch(step) for step in steps]) == [batch(*steps)]
    assert without_points(batch(*steps)) == batch()


def test_what_names_no_points_stays_by_itself() -> None:
    assert joined(FILTERED * 2) == FILTERED * 2


FILTERED = [
    Operation(POINTS + "Delete", P.DeletePoints(collection_name="c", points=EVERYTHING)),
    Operation(POINTS + "SetPayload", P.SetPayloadPoints(collection_name="c", points_selector=EVERYTHING)),
    Operation(POINTS + "SetPayload", P.SetPayloadPoints(collection_name="c")),
    Operation(POINTS + "CreateFieldIndex", P.CreateFieldIndexCollection(collection_name="c", field_name="f")),
    Operation("/qdrant.Collections/Delete", collections_pb2.DeleteCollection(collection_name="c")),
]


@pytest.mark.parametrize("whole", FILTERED)
def test_what_names_no_points_has_no_parts(whole: Operation) -> None:
    assert keys_of(whole) == []
    assert halves(whole) is None
    assert without(whole, {1}) == whole
    assert only(whole, {1}) is None
    assert not is_blind(whole)


def test_a_filter_among_the_steps_stays_with_what_may_go() -> None:
    by_filter = Step(delete_points=Step.DeletePoints(points=EVERYTHING))
    whole = batch(STEPS["upsert"](1), by_filter, STEPS["upsert"](1, 2))
    assert without(whole, {1}) == batch(by_filter, STEPS["upsert"](2))
    assert only(whole, {1}) == batch(STEPS["upsert"](1), STEPS["upsert"](1))


@pytest.mark.parametrize("name", SHAPES)
def test_only_plain_upserts_and_deletes_are_blind(name: str) -> None:
    assert is_blind(operation(name, 1)) is (name in ("Upsert", "Delete"))
    assert not is_blind(batch(STEPS["upsert"](1)))


def test_conditional_upserts_are_not_blind() -> None:
    for more in ({"update_filter": common.Filter()}, {"update_mode": P.UpdateMode.InsertOnly}):
        assert not is_blind(Operation(POINTS + "Upsert", P.UpsertPoints(points=structs(1), **more)))  # type: ignore[arg-type]


def test_keys() -> None:
    canonical = "936da01f-9abd-4d9d-80c7-02af85c822a8"
    assert key_of(common.PointId(uuid=HEX)) == key_of(common.PointId(uuid=canonical)) == canonical
    assert key_of(common.PointId(uuid="no uuid")) == "no uuid"
    assert key_of(common.PointId(num=2**64 - 1)) == 2**64 - 1


def test_deleted_by() -> None:
    assert deleted_by(operation("Delete", 1, 2)) == {1, 2}
    assert deleted_by(operation("Upsert", 1)) == set()
    assert deleted_by(batch(STEPS["delete_points"](1), STEPS["delete_deprecated"](2), STEPS["upsert"](3))) == {1, 2}


def test_names_in_alias_changes() -> None:
    actions = [
        collections_pb2.AliasOperations(create_alias=collections_pb2.CreateAlias(alias_name="a", collection_name="c")),
        collections_pb2.AliasOperations(
            rename_alias=collections_pb2.RenameAlias(old_alias_name="x", new_alias_name="y")
        ),
        collections_pb2.AliasOperations(),
    ]
    changes = collections_pb2.ChangeAliases(actions=actions)
    assert names_of(Operation("/qdrant.Collections/UpdateAliases", changes)) == {"a", "c", "x", "y"}


def test_operations_of_an_entry() -> None:
    request = P.UpsertPoints(collection_name="c", wait=False, timeout=9, points=structs(1)).SerializeToString()
    (found,) = operations_of(entry_pb2.Entry(method=POINTS + "Upsert", request=request))
    assert found.request == P.UpsertPoints(collection_name="c", wait=True, points=structs(1))
    create = collections_pb2.CreateCollection(collection_name="c", timeout=3).SerializeToString()
    (found,) = operations_of(entry_pb2.Entry(method="/qdrant.Collections/Create", request=create))
    assert found.request == collections_pb2.CreateCollection(collection_name="c")


@pytest.mark.parametrize("method", ["", "/x/Y", POINTS + "Get", "/qdrant.Snapshots/Create"])
def test_methods_that_are_never_logged(method: str) -> None:
    with pytest.raises(KeyError):
        operations_of(entry_pb2.Entry(method=method))


def test_requests_that_cannot_be_read() -> None:
    with pytest.raises(DecodeError):
        operations_of(entry_pb2.Entry(method=POINTS + "Upsert", request=b"\xff"))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.sampled_from(sorted(SHAPES)))
def test_halving_to_the_end_keeps_every_point_in_order(numbers: list[int], name: str) -> None:
    whole = operation(name, *numbers)
    pieces, done = [whole], []
    while pieces:
        piece = pieces.pop(0)
        parts = halves(piece)
        if parts is None:
            done.append(piece)
        else:
            pieces[:0] = parts
    assert [key for piece in done for key in keys_of(piece)] == numbers
    assert all(len(keys_of(piece)) == 1 for piece in done)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.sets(st.integers(0, 9)))
def test_a_split_loses_and_invents_nothing(numbers: list[int], tainted: set[int]) -> None:
    causality = Causality()
    if tainted:
        causality.refuse(operation("Upsert", *tainted), 7, whole_collection=False)
    whole = operation("SetPayload", *numbers)
    split = causality.split(whole)
    free = keys_of(split.free) if split.free else []
    follows = keys_of(split.follows) if split.follows else []
    assert free == [n for n in numbers if n not in tainted]
    assert follows == [n for n in numbers if n in tainted]
    assert split.after_seq == (7 if follows else 0)


def test_a_refused_collection_takes_everything_of_that_name() -> None:
    causality = Causality()
    assert causality.is_empty
    causality.refuse(operation("Upsert", 1), 3, whole_collection=True)
    for later in (operation("Delete", 9), *FILTERED):
        assert causality.split(later).follows == later
        assert causality.split(later).after_seq == 3
    elsewhere = Operation(POINTS + "Upsert", P.UpsertPoints(collection_name="d", points=structs(1)))
    assert causality.split(elsewhere).free == elsewhere


def test_what_names_no_points_does_not_follow_single_points() -> None:
    causality = Causality()
    causality.refuse(operation("Upsert", 1), 3, whole_collection=False)
    for later in FILTERED:
        assert causality.split(later).free == later
