"""Log entries: in order, each once, with the cursor; on collections in part; that cannot be applied."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import entry_pb2 as wal
from server.replica import requests as r
from server.replica.refusal import Refusal
from server.rpc import WAL_KINDS, Code
from tests.replica.local_store import (
    CREATE,
    DROP,
    Local,
    create,
    dense,
    entry,
    ids,
    local,
    matching_keyword,
    payload,
    point,
    point_id,
    upsert,
    where,
)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Local]:
    """Collection `c`, made by entry 1."""
    with local(tmp_path / "store") as made:
        made.apply(1, CREATE, create())
        yield made


def _completeness(where_: Local) -> int:
    collection = where_.store.collection("c")
    assert collection is not None
    return collection.completeness


def test_every_method_that_the_log_may_hold_can_be_applied() -> None:
    from server.replica import applying, resolving

    assert set(applying._APPLY) | {r.UPDATE_BATCH} == set(WAL_KINDS.values())
    assert set(resolving._RESOLVE) | {r.UPDATE_BATCH} == set(WAL_KINDS.values())


def test_entries_move_the_cursor_and_are_applied_once(one: Local) -> None:
    entries = [entry(seq, r.UPSERT, upsert(point(1, n=seq))) for seq in (2, 3, 4)]
    answer = one.writes.apply(entries)
    assert answer.applied_seq == one.store.applied_seq == 4
    assert one.payloads() == {1: {"n": 4}}
    again = one.writes.apply([*entries, entry(5, r.UPSERT, upsert(point(2)))])
    assert again.applied_seq == 5
    assert [result.seq for result in again.results] == [2, 3, 4, 5]
    assert all(result.code == 0 for result in again.results)
    assert one.payloads() == {1: {"n": 4}, 2: {}}


def test_the_answer_is_that_of_the_original_method(one: Local) -> None:
    one.apply(2, r.UPSERT, upsert(point(1, a="x")))
    delete = pb.DeletePoints(collection_name="c", points=where("a", "x"), wait=True)
    resolved = one.writes.prepare(r.DELETE, delete.SerializeToString())
    applied = one.apply(3, r.DELETE, delete, synced=False, resolved=resolved)
    answer = pb.PointsOperationResponse.FromString(applied.reply)
    assert (answer.result.operation_id, answer.result.status) == (3, pb.UpdateStatus.Completed)
    assert one.points() == {}


def test_the_resolved_operations_count_not_the_request(one: Local) -> None:
    one.apply(2, r.UPSERT, upsert(point(1, a="x"), point(2, a="x")))
    delete = pb.DeletePoints(collection_name="c", points=where("a", "x"))
    only_first = wal.Operation(
        method=r.DELETE, request=pb.DeletePoints(collection_name="c", points=ids(1)).SerializeToString()
    )
    one.apply(3, r.DELETE, delete, synced=False, resolved=[only_first])
    assert list(one.points()) == [2]


def test_an_entry_for_a_collection_that_is_not_here_stops_nobody(one: Local) -> None:
    answer = one.writes.apply(
        [entry(2, r.UPSERT, upsert(point(1), name="elsewhere")), entry(3, r.UPSERT, upsert(point(1)))]
    )
    assert [result.code for result in answer.results] == [Code.NOT_FOUND, 0]
    assert answer.applied_seq == 3
    assert list(one.points()) == [1]


def test_points_that_are_missing_stop_nobody(one: Local) -> None:
    change = pb.SetPayloadPoints(collection_name="c", payload=payload({"a": 1}), points_selector=ids(7), wait=True)
    vectors = pb.UpdatePointVectors(collection_name="c", points=[pb.PointVectors(id=point_id(7), vectors=dense(1, 2))])
    answer = one.writes.apply([entry(2, r.SET_PAYLOAD, change), entry(3, r.UPDATE_VECTORS, vectors)])
    assert [result.code for result in answer.results] == [0, 0]
    assert one.points() == {}


def test_what_qdrant_did_and_the_replica_cannot_leaves_the_collection_stale(one: Local) -> None:
    one.apply(2, r.UPSERT, upsert(point(1)))
    made_there = upsert(point(2, pb.Vectors(vector=pb.Vector(document=pb.Document(text="x")))))
    applied = one.apply(3, r.UPSERT, made_there)
    assert applied.code == Code.UNAVAILABLE
    assert _completeness(one) == control.COMPLETENESS_STALE
    assert one.store.applied_seq == 3


def test_an_entry_that_makes_no_sense_is_logged_and_leaves_the_collection_stale(
    one: Local, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from server.replica import payload_edits

    def explode(*_: object) -> None:
        raise ValueError("boom")

    monkeypatch.setattr(payload_edits, "overwrite", explode)
    with caplog.at_level(logging.ERROR):
        answer = one.writes.apply(
            [
                entry(2, r.UPSERT, upsert(point(1))),
                entry(3, r.DELETE, pb.DeletePoints(collection_name="c", points=ids(1))),
            ]
        )
    assert [result.code for result in answer.results] == [Code.INTERNAL, 0]
    assert answer.applied_seq == 3
    assert "log entry 2" in caplog.text
    assert _completeness(one) == control.COMPLETENESS_STALE


def test_half_an_entry_that_fails_is_taken_back(one: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.replica import payload_edits

    merge = payload_edits.merge

    def fail_late(target: payload_edits.Payload, changes: dict[str, object]) -> None:
        merge(target, changes)  # type: ignore[arg-type]
        raise ValueError("boom")

    monkeypatch.setattr(payload_edits, "merge", fail_late)
    parts = pb.PointsUpdateOperation
    batch = pb.UpdateBatchPoints(
        collection_name="c",
        operations=[
            parts(upsert=parts.PointStructList(points=[point(1)])),
            parts(set_payload=parts.SetPayload(payload=payload({"a": 1}), points_selector=ids(1))),
        ],
    )
    one.apply(2, r.UPDATE_BATCH, batch)
    assert one.points() == {}


# --- collections that are not wholly here ----------------------------------------------------------------------------


@pytest.fixture(params=[control.COMPLETENESS_EMPTY, control.COMPLETENESS_HYDRATING, control.COMPLETENESS_STALE])
def part(request: pytest.FixtureRequest, one: Local) -> Local:
    """Collection `c` with points 1 (a=x) and 2 (a=y), of which Qdrant may hold more."""
    one.apply(2, r.UPSERT, upsert(point(1, a="x"), point(2, a="y")))
    one.set_completeness(request.param)
    return one


def test_points_that_may_exist_remotely_are_not_called_missing(part: Local) -> None:
    change = pb.SetPayloadPoints(collection_name="c", payload=payload({"b": 1}), points_selector=ids(1, 99), wait=True)
    assert part.prepare(r.SET_PAYLOAD, change) == []
    applied = part.apply(3, r.SET_PAYLOAD, change, synced=False)
    assert applied.code == 0
    assert part.payloads() == {1: {"a": "x", "b": 1}, 2: {"a": "y"}}
    vectors = pb.UpdatePointVectors(
        collection_name="c", points=[pb.PointVectors(id=point_id(99), vectors=dense(1, 2))], wait=True
    )
    assert part.prepare(r.UPDATE_VECTORS, vectors) == []


def test_filters_are_kept_as_they_are_meant(part: Local) -> None:
    delete = pb.DeletePoints(collection_name="c", points=where("a", "x"))
    assert part.prepare(r.DELETE, delete) == []
    part.apply(3, r.DELETE, delete, synced=False)
    assert list(part.points()) == [2]


def test_conditions_are_kept_as_they_are_meant(part: Local) -> None:
    for mode in (pb.UpdateMode.InsertOnly, pb.UpdateMode.UpdateOnly):
        request = upsert(point(1, a="z"), point(9, a="z"))
        request.update_mode = mode
        assert part.prepare(r.UPSERT, request) == []
    only_new = upsert(point(1, a="z"), point(9, a="z"))
    only_new.update_mode = pb.UpdateMode.InsertOnly
    part.apply(3, r.UPSERT, only_new, synced=False)
    assert part.payloads() == {1: {"a": "x"}, 2: {"a": "y"}, 9: {"a": "z"}}
    guarded = upsert(point(1, a="w"), point(2, a="w"))
    guarded.update_filter.CopyFrom(matching_keyword("a", "x"))
    assert part.prepare(r.UPSERT, guarded) == []
    part.apply(4, r.UPSERT, guarded)
    assert part.payloads() == {1: {"a": "w"}, 2: {"a": "y"}, 9: {"a": "z"}}
    assert _completeness(part) != control.COMPLETENESS_COMPLETE


def test_a_bad_filter_is_refused_also_where_it_is_not_resolved(part: Local) -> None:
    bad = pb.DeletePoints(collection_name="c", points=where("a", "x"))
    bad.points.filter.must[0].field.ClearField("match")
    with pytest.raises(Refusal, match="At least one field condition must be specified"):
        part.prepare(r.DELETE, bad)
    guarded = upsert(point(1))
    guarded.update_filter.CopyFrom(bad.points.filter)
    with pytest.raises(Refusal, match="At least one field condition must be specified"):
        part.prepare(r.UPSERT, guarded)


def test_checks_that_need_no_points_are_made_all_the_same(part: Local) -> None:
    with pytest.raises(Refusal, match="expected dim: 2, got 3"):
        part.prepare(r.UPSERT, upsert(point(1, dense(1, 2, 3))))


# --- after a restart -------------------------------------------------------------------------------------------------


def test_what_was_applied_is_there_after_a_restart(tmp_path: Path) -> None:
    with local(tmp_path / "store") as first:
        first.apply(1, CREATE, create(distance=collections.Distance.Cosine))
        first.apply(2, r.UPSERT, upsert(point(1, dense(3, 4), a=1)))
    with local(tmp_path / "store") as second:
        assert second.store.applied_seq == 2
        assert second.points() == {1: ({"a": 1}, {"": [0.6, 0.8]})}
        second.apply(2, DROP, collections.DeleteCollection(collection_name="c"))
        assert second.points() == {1: ({"a": 1}, {"": [0.6, 0.8]})}
