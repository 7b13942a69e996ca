"""What writes do, what they answer, what they refuse: Qdrant's rules on a complete collection."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import requests as r
from server.replica.records import Key, Record
from server.replica.refusal import Halted, Refusal
from server.replica.store import Transaction
from server.rpc import Code
from tests.replica.local_store import (
    CREATE,
    RESOLVED_POINTS,
    Local,
    create,
    create_named,
    dense,
    ids,
    local,
    matching_keyword,
    named,
    payload,
    point,
    point_id,
    upsert,
    where,
)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Local]:
    """Collection `c` of two dimensions."""
    with local(tmp_path / "store") as made:
        made.do(CREATE, create())
        yield made


def _refused(local_store: Local, method: str, request: Message) -> tuple[Code, str]:
    before = local_store.points()
    with pytest.raises(Refusal) as refused:
        local_store.do(method, request)
    assert local_store.points() == before
    return refused.value.code, refused.value.details


# --- upsert ----------------------------------------------------------------------------------------------------------


def test_upsert_replaces_the_whole_point(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a=1, b=2), point(2, a=1)))
    one.do(r.UPSERT, upsert(point(1, dense(5, 6), b=3)))
    assert one.points() == {1: ({"b": 3}, {"": [5, 6]}), 2: ({"a": 1}, {"": [1, 2]})}


def test_the_last_of_repeated_ids_wins(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a=1), point("936da01f9abd4d9d80c702af85c822a8", a=1), point(1, a=2)))
    one.do(r.UPSERT, upsert(point("936DA01F-9ABD-4D9D-80C7-02AF85C822A8", a=3)))
    assert one.payloads() == {1: {"a": 2}, "936da01f-9abd-4d9d-80c7-02af85c822a8": {"a": 3}}


def test_nulls_of_an_upsert_are_kept(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a=None, b={"c": None})))
    assert one.payloads() == {1: {"a": None, "b": {"c": None}}}


@pytest.mark.parametrize(("wait", "status"), [(True, pb.UpdateStatus.Completed), (False, pb.UpdateStatus.Acknowledged)])
def test_the_status_follows_wait_and_the_number_is_that_of_the_entry(one: Local, wait: bool, status: int) -> None:
    answer = one.do(r.UPSERT, upsert(point(1), wait=wait))
    assert (answer.result.status, answer.result.operation_id) == (status, one.store.applied_seq)
    unset = upsert(point(1))
    unset.ClearField("wait")
    assert one.do(r.UPSERT, unset).result.status == pb.UpdateStatus.Acknowledged


_BAD = pb.PointStruct(vectors=dense(1, 2))


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (upsert(), Code.INVALID_ARGUMENT, "Bad request: Empty update request"),
        (upsert(_BAD), Code.INVALID_ARGUMENT, "Empty ID is not allowed"),
        (upsert(pb.PointStruct(id=point_id(1))), Code.INVALID_ARGUMENT, "Expected some vectors"),
        (upsert(pb.PointStruct(id=point_id(1), vectors=pb.Vectors())), Code.INVALID_ARGUMENT, "Expected some vectors"),
        (upsert(point("x")), Code.INVALID_ARGUMENT, "Unable to parse UUID: x"),
        (
            upsert(point(1), point(2, dense(1, 2, 3)), wait=False),
            Code.INVALID_ARGUMENT,
            "Wrong input: Vector dimension error: expected dim: 2, got 3",
        ),
        (
            upsert(point(1, pb.Vectors(vector=pb.Vector(dense=pb.DenseVector())))),
            Code.INVALID_ARGUMENT,
            "Wrong input: points[0].vector.vector: dense vector must not be empty",
        ),
        (
            upsert(point(1, named(zz=[1, 2]))),
            Code.INVALID_ARGUMENT,
            "Wrong input: Not existing vector name error: zz",
        ),
        (
            upsert(point(1), name=""),
            Code.INVALID_ARGUMENT,
            'Validation error in body: [collection_name: value "" invalid, must be from 1 to 255 characters]',
        ),
        (upsert(point(1), name="nope"), Code.NOT_FOUND, "Not found: Collection `nope` doesn't exist!"),
        (
            upsert(point(1, pb.Vectors(vector=pb.Vector(document=pb.Document(text="x"))))),
            Code.UNAVAILABLE,
            "Not served while Qdrant cannot be reached: vectors made by Qdrant's own inference (Document, Image,"
            " InferenceObject) need the server",
        ),
    ],
)
def test_upserts_that_are_refused(one: Local, request_: Message, code: Code, text: str) -> None:
    assert _refused(one, r.UPSERT, request_) == (code, text)


@pytest.mark.parametrize("unfit", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("depth", range(3))
def test_numbers_that_json_lacks_are_refused(one: Local, unfit: float, depth: int) -> None:
    value = (unfit, [1, unfit], {"b": [[], {"c": unfit}]})[depth]
    one.do(r.UPSERT, upsert(point(1, a=1.5)))
    change = pb.SetPayloadPoints(
        collection_name="c", payload=payload({"z": 1.5, "a": value}), points_selector=ids(1), wait=False
    )
    for method, request in (
        (r.UPSERT, upsert(point(1), point(2, a=value), wait=False)),
        (r.UPSERT, upsert(point(2, a=value), name="nope")),
        (r.SET_PAYLOAD, change),
        (r.OVERWRITE_PAYLOAD, change),
    ):
        assert _refused(one, method, request) == (Code.INVALID_ARGUMENT, "cannot convert to json number")
    assert one.payloads() == {1: {"a": 1.5}}


def test_finite_numbers_and_vectors_of_any_numbers_are_taken(one: Local) -> None:
    extremes = [sys.float_info.max, -sys.float_info.max, sys.float_info.min, 5e-324, -0.0, 0x7FF0000000000000]
    one.do(r.UPSERT, upsert(point(1, dense(math.nan, math.inf), a=extremes)))
    assert one.payloads()[1]["a"] == extremes
    # The bytes of this vector look like a number that is none.
    looks_so = struct.unpack("<3f", b"\x09\x11123456\xf0\x7f\0\0")
    one.do(CREATE, create("wide", size=3))
    one.do(r.UPSERT, upsert(point(1, dense(*looks_so), a=1.5), name="wide"))
    assert one.payloads("wide") == {1: {"a": 1.5}}


def test_named_and_sparse_vectors(tmp_path: Path) -> None:
    with local(tmp_path / "store") as made:
        made.do(CREATE, create_named(a=2, b=3, s=0))
        both = named(a=[1, 2], b=[1, 2, 3])
        both.vectors.vectors["s"].sparse.MergeFrom(pb.SparseVector(indices=[3, 1], values=[1, 2]))
        made.do(r.UPSERT, upsert(point(1, both), point(2, named(a=[3, 4]))))
        assert made.points()[2] == ({}, {"a": [3, 4]})
        collection = made.store.collection("c")
        assert collection is not None
        first = made.store.scan(collection.cid)[0]
        stored = pb.NamedVectors.FromString(first.vectors).vectors
        assert stored["s"].sparse == pb.SparseVector(indices=[1, 3], values=[2, 1])
        wrong = upsert(point(3, named(b=[1])))
        text = "Wrong input: Vector dimension error: expected dim: 3, got 1 for vector 'b'"
        assert _refused(made, r.UPSERT, wrong) == (Code.INVALID_ARGUMENT, text)
        # What is updated meets a check of Qdrant's that does not know the name.
        wrong_update = pb.UpdatePointVectors(collection_name="c", wait=True)
        wrong_update.points.add(id=point_id(2), vectors=named(b=[1]))
        text = "Wrong input: Vector dimension error: expected dim: 3, got 1"
        assert _refused(made, r.UPDATE_VECTORS, wrong_update) == (Code.INVALID_ARGUMENT, text)


def test_insert_only_and_update_only(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a="old")))
    both = upsert(point(1, a="new"), point(2, a="new"))
    both.update_mode = pb.UpdateMode.InsertOnly
    assert [request.points[0].id.num for _, request in one.prepare(r.UPSERT, both)] == [2]  # type: ignore[attr-defined]
    one.do(r.UPSERT, both)
    assert one.payloads() == {1: {"a": "old"}, 2: {"a": "new"}}
    more = upsert(point(1, a="newer"), point(3, a="newer"))
    more.update_mode = pb.UpdateMode.UpdateOnly
    one.do(r.UPSERT, more)
    assert one.payloads() == {1: {"a": "newer"}, 2: {"a": "new"}}


def test_update_filter_guards_what_exists(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a="x"), point(2, a="y")))
    guarded = upsert(point(1, a="z"), point(2, a="z"), point(3, a="z"))
    guarded.update_filter.CopyFrom(matching_keyword("a", "x"))
    one.do(r.UPSERT, guarded)
    assert one.payloads() == {1: {"a": "z"}, 2: {"a": "y"}, 3: {"a": "z"}}


def test_a_conditional_upsert_that_changes_nothing_becomes_a_write_that_qdrant_accepts(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1)))
    nothing = upsert(point(1, a=1))
    nothing.update_mode = pb.UpdateMode.InsertOnly
    [(method, request)] = one.prepare(r.UPSERT, nothing)
    assert method == r.SET_PAYLOAD
    assert isinstance(request, pb.SetPayloadPoints)
    assert not request.payload
    assert request.points_selector.filter.must[0].WhichOneof("condition_one_of") == "has_id"
    answer = one.do(r.UPSERT, nothing)
    assert answer.result.status == pb.UpdateStatus.Completed
    assert one.payloads() == {1: {}}


# --- delete ----------------------------------------------------------------------------------------------------------


def test_delete_by_ids_passes_over_what_is_missing(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1), point(2)))
    one.do(r.DELETE, pb.DeletePoints(collection_name="c", points=ids(1, 99), wait=True))
    assert list(one.points()) == [2]


def test_delete_by_filter_becomes_ids(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a="x"), point(2, a="y"), point(3, a=["y", "x"])))
    request = pb.DeletePoints(collection_name="c", points=where("a", "x"))
    [(method, plain)] = one.prepare(r.DELETE, request)
    assert (method, plain) == (r.DELETE, pb.DeletePoints(collection_name="c", points=ids(1, 3)))
    one.do(r.DELETE, request)
    assert list(one.points()) == [2]


def test_a_filter_that_matches_too_many_stays_a_filter(one: Local) -> None:
    one.do(r.UPSERT, upsert(*[point(number, a="x") for number in range(RESOLVED_POINTS)]))
    request = pb.DeletePoints(collection_name="c", points=where("a", "x"))
    assert len(one.prepare(r.DELETE, request)) == 1
    one.do(r.UPSERT, upsert(point(1000, a="x"), point(1001, a="y")))
    assert one.prepare(r.DELETE, request) == []
    parts = pb.PointsUpdateOperation
    batch = pb.UpdateBatchPoints(
        collection_name="c", operations=[parts(delete_points=parts.DeletePoints(points=where("a", "x")))]
    )
    assert one.prepare(r.UPDATE_BATCH, batch) == []
    one.do(r.DELETE, request)
    assert list(one.points()) == [1001]


def test_an_empty_filter_deletes_everything(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1), point(2)))
    everything = pb.PointsSelector(filter=common.Filter())
    one.do(r.DELETE, pb.DeletePoints(collection_name="c", points=everything))
    assert one.points() == {}


# --- payload ---------------------------------------------------------------------------------------------------------


def _set(selector: pb.PointsSelector, *, wait: bool = True, **values: Any) -> pb.SetPayloadPoints:
    return pb.SetPayloadPoints(collection_name="c", points_selector=selector, payload=payload(values), wait=wait)


def test_payload_writes(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a="x", b=1), point(2, a="y", b=2)))
    one.do(r.SET_PAYLOAD, _set(ids(1), z=None, q={"w": None}, b=7))
    assert one.payloads()[1] == {"a": "x", "b": 7, "q": {"w": None}}
    one.do(r.SET_PAYLOAD, _set(where("a", "y"), c=3))
    assert one.payloads()[2] == {"a": "y", "b": 2, "c": 3}
    deep = _set(ids(2), n=1)
    deep.key = "k.l"
    one.do(r.SET_PAYLOAD, deep)
    assert one.payloads()[2]["k"] == {"l": {"n": 1}}
    one.do(r.OVERWRITE_PAYLOAD, _set(ids(1), only=None))
    assert one.payloads()[1] == {"only": None}
    delete = pb.DeletePayloadPoints(collection_name="c", keys=["k.l.n", "b", "nope"], points_selector=ids(2))
    one.do(r.DELETE_PAYLOAD, delete)
    assert one.payloads()[2] == {"a": "y", "c": 3, "k": {"l": {}}}
    one.do(r.CLEAR_PAYLOAD, pb.ClearPayloadPoints(collection_name="c", points=ids(1, 2)))
    assert one.payloads() == {1: {}, 2: {}}


def test_a_filter_that_matches_nothing_is_no_error(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a="x")))
    answer = one.do(r.SET_PAYLOAD, _set(where("a", "nobody"), c=3))
    assert answer.result.status == pb.UpdateStatus.Completed
    assert one.payloads() == {1: {"a": "x"}}


_WRITES_TO_IDS: list[tuple[str, Any]] = [
    (r.SET_PAYLOAD, lambda s, w: _set(s, wait=w, c=3)),
    (r.OVERWRITE_PAYLOAD, lambda s, w: _set(s, wait=w, c=3)),
    (r.DELETE_PAYLOAD, lambda s, w: pb.DeletePayloadPoints(collection_name="c", keys=["a"], points_selector=s, wait=w)),
    (r.CLEAR_PAYLOAD, lambda s, w: pb.ClearPayloadPoints(collection_name="c", points=s, wait=w)),
    (
        r.DELETE_VECTORS,
        lambda s, w: pb.DeletePointVectors(
            collection_name="c", points_selector=s, vectors=pb.VectorsSelector(names=[""]), wait=w
        ),
    ),
    (
        r.UPDATE_VECTORS,
        lambda s, w: pb.UpdatePointVectors(
            collection_name="c",
            points=[pb.PointVectors(id=one_id, vectors=dense(8, 9)) for one_id in s.points.ids],
            wait=w,
        ),
    ),
]


@pytest.mark.parametrize(("method", "request_of"), _WRITES_TO_IDS, ids=[row[0] for row in _WRITES_TO_IDS])
class TestMissingIds:
    def test_a_missing_id_is_not_found_and_nothing_is_logged(self, one: Local, method: str, request_of: Any) -> None:
        one.do(r.UPSERT, upsert(point(1, a="x")))
        refusal = _refused(one, method, request_of(ids(777), True))
        assert refusal == (Code.NOT_FOUND, "Not found: No point with id 777 found")
        seq = one.store.applied_seq
        assert seq == 2

    def test_without_wait_it_is_acknowledged(self, one: Local, method: str, request_of: Any) -> None:
        one.do(r.UPSERT, upsert(point(1, a="x")))
        before = one.points()
        answer = one.do(method, request_of(ids(777), False))
        assert answer.result.status == pb.UpdateStatus.Acknowledged
        assert one.points() == before

    def test_the_others_are_changed_yet_the_answer_is_not_found(self, one: Local, method: str, request_of: Any) -> None:
        one.do(r.UPSERT, upsert(point(1, a="x"), point(2, a="x")))
        before = one.points()
        with pytest.raises(Refusal) as refused:
            one.do(method, request_of(ids(1, 777, 2), True))
        assert refused.value.details == "Not found: No point with id 777 found"
        after = one.points()
        assert after[1] != before[1]
        assert after[2] == after[1]
        assert 777 not in after

    def test_what_is_logged_names_only_what_exists(self, one: Local, method: str, request_of: Any) -> None:
        one.do(r.UPSERT, upsert(point(1, a="x"), point(2, a="x")))
        [(plain_method, plain)] = one.prepare(method, request_of(ids(1, 777, 2), True))
        assert (plain_method, plain) == (method, request_of(ids(1, 2), True))
        assert one.prepare(method, request_of(ids(1, 2), True)) == []


@pytest.mark.parametrize(
    ("method", "request_", "text"),
    [
        (r.DELETE, pb.DeletePoints(collection_name="c"), "PointSelector is missing"),
        (r.CLEAR_PAYLOAD, pb.ClearPayloadPoints(collection_name="c"), "PointSelector is missing"),
        (r.SET_PAYLOAD, pb.SetPayloadPoints(collection_name="c"), "points_selector is expected"),
        (r.DELETE_PAYLOAD, pb.DeletePayloadPoints(collection_name="c"), "points_selector is expected"),
        (r.DELETE_VECTORS, pb.DeletePointVectors(collection_name="c"), "points_selector is expected"),
        (r.DELETE_VECTORS, pb.DeletePointVectors(collection_name="c", points_selector=ids(1)), "vectors is expected"),
        (r.UPDATE_VECTORS, pb.UpdatePointVectors(collection_name="c"), "Bad request: Empty update request"),
        (
            r.UPDATE_VECTORS,
            pb.UpdatePointVectors(collection_name="c", points=[pb.PointVectors(vectors=dense(1, 2))]),
            "id is expected",
        ),
        (
            r.UPDATE_VECTORS,
            pb.UpdatePointVectors(collection_name="c", points=[pb.PointVectors(id=point_id(1))]),
            "vectors is expected",
        ),
        (r.DELETE, pb.DeletePoints(collection_name="c", points=ids()), "Bad request: Empty update request"),
        (
            r.DELETE_VECTORS,
            pb.DeletePointVectors(
                collection_name="c", points_selector=ids(1), vectors=pb.VectorsSelector(names=["zz"])
            ),
            "Wrong input: Not existing vector name error: zz",
        ),
        (
            r.UPDATE_BATCH,
            pb.UpdateBatchPoints(collection_name="c"),
            "Validation error in body: [operations: value [] invalid, must be at least 1 characters]",
        ),
        (
            r.UPDATE_BATCH,
            pb.UpdateBatchPoints(collection_name="c", operations=[pb.PointsUpdateOperation()]),
            "Operation is missing",
        ),
    ],
)
def test_requests_that_lack_something(one: Local, method: str, request_: Message, text: str) -> None:
    one.do(r.UPSERT, upsert(point(1)))
    assert _refused(one, method, request_) == (Code.INVALID_ARGUMENT, text)


def test_a_body_that_is_no_message(one: Local) -> None:
    with pytest.raises(Refusal, match="failed to decode Protobuf message: ") as refused:
        one.writes.prepare(r.UPSERT, b"\xff\xff\xff")
    assert refused.value.code is Code.INTERNAL


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_update_and_delete_vectors_leave_the_others(tmp_path: Path) -> None:
    with local(tmp_path / "store") as made:
        made.do(CREATE, create_named(a=2, b=2))
        made.do(r.UPSERT, upsert(point(1, named(a=[1, 1], b=[2, 2]), k=1)))
        change = pb.UpdatePointVectors(
            collection_name="c", points=[pb.PointVectors(id=point_id(1), vectors=named(b=[3, 3]))]
        )
        made.do(r.UPDATE_VECTORS, change)
        assert made.points() == {1: ({"k": 1}, {"a": [1, 1], "b": [3, 3]})}
        away = pb.DeletePointVectors(
            collection_name="c", points_selector=ids(1), vectors=pb.VectorsSelector(names=["a"])
        )
        made.do(r.DELETE_VECTORS, away)
        assert made.points() == {1: ({"k": 1}, {"b": [3, 3]})}


def test_updates_of_one_point_in_one_request_add_up(tmp_path: Path) -> None:
    with local(tmp_path / "store") as made:
        made.do(CREATE, create_named(a=1, b=1))
        made.do(r.UPSERT, upsert(point(1, named(a=[1], b=[1]))))
        updates = [named(a=[2]), named(b=[3]), named(a=[4])]
        change = pb.UpdatePointVectors(
            collection_name="c", points=[pb.PointVectors(id=point_id(1), vectors=one) for one in updates]
        )
        made.do(r.UPDATE_VECTORS, change)
        assert made.points() == {1: ({}, {"a": [4], "b": [3]})}


def test_update_filter_guards_vectors(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a="x"), point(2, a="y")))
    change = pb.UpdatePointVectors(
        collection_name="c",
        points=[pb.PointVectors(id=point_id(number), vectors=dense(8, 8)) for number in (1, 2)],
        update_filter=matching_keyword("a", "x"),
        wait=True,
    )
    [(method, plain)] = one.prepare(r.UPDATE_VECTORS, change)
    assert isinstance(plain, pb.UpdatePointVectors)
    assert (method, [update.id.num for update in plain.points]) == (r.UPDATE_VECTORS, [1])
    assert not plain.HasField("update_filter")
    # As Qdrant has it in the log when it was made online: with its filter.
    one.apply(one.store.applied_seq + 1, r.UPDATE_VECTORS, change)
    assert {number: vectors[""] for number, (_, vectors) in one.points().items()} == {1: [8, 8], 2: [1, 2]}
    change.update_filter.CopyFrom(matching_keyword("a", "nobody"))
    [(method, plain)] = one.prepare(r.UPDATE_VECTORS, change)
    assert method == r.SET_PAYLOAD


# --- batches ---------------------------------------------------------------------------------------------------------


def _batch(*operations: pb.PointsUpdateOperation) -> pb.UpdateBatchPoints:
    return pb.UpdateBatchPoints(collection_name="c", operations=operations, wait=True)


_Op = pb.PointsUpdateOperation


def test_a_batch_of_plain_parts_is_plain(one: Local) -> None:
    batch = _batch(
        _Op(upsert=_Op.PointStructList(points=[point(1, a="x"), point(2)])),
        _Op(set_payload=_Op.SetPayload(payload=payload({"b": 1}), points_selector=ids(2))),
        _Op(delete_points=_Op.DeletePoints(points=ids(1))),
    )
    assert one.prepare(r.UPDATE_BATCH, batch) == []
    answer = one.do(r.UPDATE_BATCH, batch)
    assert [result.status for result in answer.result] == [pb.UpdateStatus.Completed] * 3
    assert one.payloads() == {2: {"b": 1}}


def test_later_parts_see_what_earlier_parts_do(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a="x")))
    batch = _batch(
        _Op(upsert=_Op.PointStructList(points=[point(2, a="x")])),
        _Op(set_payload=_Op.SetPayload(payload=payload({"b": 1}), points_selector=where("a", "x"))),
        _Op(delete_points=_Op.DeletePoints(points=where("a", "x"))),
        _Op(upsert=_Op.PointStructList(points=[point(3, a="y")])),
    )
    plain = one.prepare(r.UPDATE_BATCH, batch)
    assert [method for method, _ in plain] == [r.UPSERT, r.SET_PAYLOAD, r.DELETE, r.UPSERT]
    assert plain[2][1] == pb.DeletePoints(collection_name="c", points=ids(1, 2), wait=True)
    assert one.payloads() == {1: {"a": "x"}}
    answer = one.do(r.UPDATE_BATCH, batch)
    assert len(answer.result) == 4
    assert one.payloads() == {3: {"a": "y"}}


def test_parts_that_change_nothing_are_left_out(one: Local) -> None:
    """They would go as a filter, and what others changed is not looked for where a write has one."""
    one.do(r.UPSERT, upsert(point(1, a="x")))
    idle = _Op(delete_points=_Op.DeletePoints(points=where("a", "nobody")))
    put = _Op(upsert=_Op.PointStructList(points=[point(1, a="y")]))
    assert [method for method, _ in one.prepare(r.UPDATE_BATCH, _batch(idle, put, idle))] == [r.UPSERT]
    assert [method for method, _ in one.prepare(r.UPDATE_BATCH, _batch(idle, idle))] == [r.SET_PAYLOAD]
    bad = _Op(clear_payload=_Op.ClearPayload(points=ids(9)))
    with pytest.raises(Halted) as halted:
        one.prepare(r.UPDATE_BATCH, _batch(put, idle, bad))
    assert [done.method for done in halted.value.done] == [r.UPSERT]
    assert len(one.do(r.UPDATE_BATCH, _batch(idle, put, idle)).result) == 3
    assert one.payloads() == {1: {"a": "y"}}


def test_every_kind_of_part(one: Local) -> None:
    batch = _batch(
        _Op(upsert=_Op.PointStructList(points=[point(1, a="x"), point(2, a="y"), point(3), point(4)])),
        _Op(overwrite_payload=_Op.OverwritePayload(payload=payload({"b": 1}), points_selector=ids(1))),
        _Op(delete_payload=_Op.DeletePayload(keys=["a"], points_selector=where("a", "y"))),
        _Op(update_vectors=_Op.UpdateVectors(points=[pb.PointVectors(id=point_id(1), vectors=dense(7, 7))])),
        _Op(delete_vectors=_Op.DeleteVectors(points_selector=ids(2), vectors=pb.VectorsSelector(names=[""]))),
        _Op(clear_payload=_Op.ClearPayload(points=ids(2))),
        _Op(delete_deprecated=ids(3)),
        _Op(clear_payload_deprecated=ids(1)),
        _Op(set_payload=_Op.SetPayload(payload=payload({"d": 1}), points_selector=ids(4), key="e")),
    )
    one.do(r.UPDATE_BATCH, batch)
    assert one.points() == {1: ({}, {"": [7, 7]}), 2: ({}, {}), 4: ({"e": {"d": 1}}, {"": [1, 2]})}


_NO_POINT_9 = (Code.NOT_FOUND, "Not found: No point with id 9 found")
_BAD_PARTS = [
    (_Op(set_payload=_Op.SetPayload(payload=payload({"b": 1}), points_selector=ids(9))), *_NO_POINT_9),
    (
        _Op(upsert=_Op.PointStructList(points=[point(8, dense(1, 2, 3))])),
        Code.INVALID_ARGUMENT,
        "Wrong input: Vector dimension error: expected dim: 2, got 3",
    ),
    (_Op(), Code.INVALID_ARGUMENT, "Operation is missing"),
    (
        _Op(overwrite_payload=_Op.OverwritePayload(payload=payload({"b": math.nan}), points_selector=ids(1))),
        Code.INVALID_ARGUMENT,
        "cannot convert to json number",
    ),
]


@pytest.mark.parametrize(("bad", "code", "text"), _BAD_PARTS)
def test_a_batch_stops_at_its_first_bad_part(one: Local, bad: pb.PointsUpdateOperation, code: Code, text: str) -> None:
    good = _Op(upsert=_Op.PointStructList(points=[point(1, a="x")]))
    never = _Op(delete_points=_Op.DeletePoints(points=ids(1)))
    assert _refused(one, r.UPDATE_BATCH, _batch(bad, good)) == (code, text)
    with pytest.raises(Refusal) as refused:
        one.do(r.UPDATE_BATCH, _batch(good, bad, never))
    assert (refused.value.code, refused.value.details) == (code, text)
    assert one.payloads() == {1: {"a": "x"}}


def test_a_batch_that_stops_leaves_the_points_of_its_bad_part_changed_that_are_there(one: Local) -> None:
    batch = _batch(
        _Op(upsert=_Op.PointStructList(points=[point(1), point(2)])),
        _Op(set_payload=_Op.SetPayload(payload=payload({"b": 1}), points_selector=ids(1, 9))),
        _Op(clear_payload=_Op.ClearPayload(points=ids(1))),
    )
    with pytest.raises(Refusal) as refused:
        one.do(r.UPDATE_BATCH, batch)
    assert (refused.value.code, refused.value.details) == _NO_POINT_9
    assert one.payloads() == {1: {"b": 1}, 2: {}}


def test_without_wait_a_batch_does_not_stop_at_a_missing_point(one: Local) -> None:
    batch = _batch(
        _Op(set_payload=_Op.SetPayload(payload=payload({"b": 1}), points_selector=ids(9))),
        _Op(upsert=_Op.PointStructList(points=[point(1)])),
    )
    batch.wait = False
    answer = one.do(r.UPDATE_BATCH, batch)
    assert [result.status for result in answer.result] == [pb.UpdateStatus.Acknowledged] * 2
    assert one.payloads() == {1: {}}


def test_a_point_that_the_batch_itself_makes_or_deletes(one: Local) -> None:
    made = _batch(
        _Op(upsert=_Op.PointStructList(points=[point(1)])),
        _Op(set_payload=_Op.SetPayload(payload=payload({"b": 1}), points_selector=where("a", "x"))),
        _Op(overwrite_payload=_Op.OverwritePayload(payload=payload({"b": 2}), points_selector=ids(1))),
    )
    assert len(one.do(r.UPDATE_BATCH, made).result) == 3
    gone = _batch(
        _Op(delete_points=_Op.DeletePoints(points=ids(1))), _Op(clear_payload=_Op.ClearPayload(points=ids(1)))
    )
    with pytest.raises(Refusal, match="No point with id 1 found"):
        one.do(r.UPDATE_BATCH, gone)
    assert one.points() == {}


def test_preparing_changes_nothing(one: Local) -> None:
    one.do(r.UPSERT, upsert(point(1, a="x")))
    before = (one.points(), one.store.applied_seq)
    one.prepare(r.UPDATE_BATCH, _batch(_Op(delete_points=_Op.DeletePoints(points=where("a", "x")))))
    one.prepare(r.UPSERT, upsert(point(5)))
    one.prepare(CREATE, create("other"))
    assert (one.points(), one.store.applied_seq) == before
    assert one.store.collection("other") is None


# --- through an alias ------------------------------------------------------------------------------------------------


def test_writes_through_an_alias(one: Local) -> None:
    change = collections.ChangeAliases(
        actions=[
            collections.AliasOperations(create_alias=collections.CreateAlias(collection_name="c", alias_name="also"))
        ]
    )
    one.do(r.COLLECTIONS + "UpdateAliases", change)
    one.do(r.UPSERT, upsert(point(1, a="x"), name="also"))
    [(_, plain)] = one.prepare(r.DELETE, pb.DeletePoints(collection_name="also", points=where("a", "x")))
    assert isinstance(plain, pb.DeletePoints)
    assert plain.collection_name == "also"
    assert list(one.points("c")) == [1]


# --- writes that match very many points -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        (r.SET_PAYLOAD, pb.SetPayloadPoints(payload=payload({"k": 1}))),
        (r.OVERWRITE_PAYLOAD, pb.SetPayloadPoints(payload=payload({"k": 1}))),
        (r.DELETE_PAYLOAD, pb.DeletePayloadPoints(keys=["v"])),
        (r.CLEAR_PAYLOAD, pb.ClearPayloadPoints()),
        (r.DELETE_VECTORS, pb.DeletePointVectors(vectors=pb.VectorsSelector(names=[""]))),
    ],
    ids=["set", "overwrite", "delete", "clear", "vectors"],
)
def test_what_matches_every_point_is_done_a_batch_at_a_time(
    one: Local, monkeypatch: pytest.MonkeyPatch, method: str, request_: Any
) -> None:
    one.do(r.UPSERT, upsert(*(point(n, v=n, w=n) for n in range(2500))))
    request_.collection_name = "c"
    selector = request_.points if method == r.CLEAR_PAYLOAD else request_.points_selector
    selector.filter.SetInParent()
    fetched: list[int] = []
    fetch = Transaction.fetch

    def counted(tx: Transaction, cid: int, keys: Iterable[Key], **parts: bool) -> dict[Key, Record]:
        found = fetch(tx, cid, keys, **parts)
        fetched.append(len(found))
        if method != r.DELETE_VECTORS:
            assert not any(record.vectors for record in found.values())
        return found

    monkeypatch.setattr(Transaction, "fetch", counted)
    written: list[str] = []
    one.store._writer.set_trace_callback(written.append)
    one.apply(one.store.applied_seq + 1, method, request_)
    one.store._writer.set_trace_callback(None)
    monkeypatch.undo()
    assert sum(fetched) == 2500
    assert max(fetched) <= 1000
    rewrites_vectors = any("vectors SET" in statement for statement in written)
    assert rewrites_vectors == (method == r.DELETE_VECTORS)
    expected: dict[str, Callable[[int], dict[str, int]]] = {
        r.SET_PAYLOAD: lambda n: {"v": n, "w": n, "k": 1},
        r.OVERWRITE_PAYLOAD: lambda n: {"k": 1},
        r.DELETE_PAYLOAD: lambda n: {"w": n},
        r.CLEAR_PAYLOAD: lambda n: {},
        r.DELETE_VECTORS: lambda n: {"v": n, "w": n},
    }
    held = one.points()
    assert {n: payload for n, (payload, _) in held.items()} == {n: expected[method](n) for n in range(2500)}
    assert all(bool(vectors) == (method != r.DELETE_VECTORS) for _, vectors in held.values())
