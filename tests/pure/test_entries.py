"""Entries of the log: split where provable, counted, named."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.wal.v1 import entry_pb2
from server.entries import names_its_points, pending_entries, point_count, synced_entries
from server.replica.requests import parts_of
from server.rpc import METHODS, UPDATE_BATCH

UPSERT = METHODS["/qdrant.Points/Upsert"]


def upsert(count: int, dimensions: int = 4) -> points_pb2.UpsertPoints:
    request = points_pb2.UpsertPoints(collection_name="c", wait=True)
    request.ordering.type = points_pb2.Strong
    for number in range(count):
        point = request.points.add(id=common.PointId(num=number % 7))
        point.vectors.vector.dense.data.extend([float(number)] * dimensions)
    return request


@given(st.integers(0, 60), st.integers(1, 20), st.integers(5_000, 9_000))
def test_split_upserts_do_the_same_as_the_whole(count: int, entry_points: int, entry_bytes: int) -> None:
    request = upsert(count, dimensions=32)
    parts = synced_entries(
        UPSERT, request, request.SerializeToString(), tenant="t", entry_bytes=entry_bytes, entry_points=entry_points
    )
    requests = [points_pb2.UpsertPoints.FromString(part.request) for part in parts]
    assert [point for part in requests for point in part.points] == list(request.points)
    assert all(part.ordering == request.ordering and part.collection_name == "c" and part.wait for part in requests)
    assert all(len(part.points) <= entry_points for part in requests)
    assert all(part.ByteSize() <= entry_bytes for part in parts)
    assert all((part.collection, part.tenant, part.method) == ("c", "t", UPSERT.path) for part in parts)


def test_what_cannot_be_split_stays_whole() -> None:
    selector = points_pb2.PointsSelector(points=points_pb2.PointsIdsList(ids=[common.PointId(num=n) for n in range(9)]))
    request = points_pb2.DeletePoints(collection_name="c", points=selector)
    row = METHODS["/qdrant.Points/Delete"]
    (entry,) = synced_entries(row, request, request.SerializeToString(), tenant="", entry_bytes=5_000, entry_points=3)
    assert entry.request == request.SerializeToString()
    assert entry.point_count == 9


def test_the_scrubbed_body_is_what_is_split() -> None:
    request = upsert(4)
    scrubbed = upsert(4)
    for point in scrubbed.points:
        point.payload["k"].string_value = "[REDACTED]"
    parts = synced_entries(
        UPSERT, request, scrubbed.SerializeToString(), tenant="", entry_bytes=100_000, entry_points=2
    )
    payloads = [
        p.payload["k"].string_value for e in parts for p in points_pb2.UpsertPoints.FromString(e.request).points
    ]
    assert payloads == ["[REDACTED]"] * 4


def test_pending_entry_keeps_what_was_meant_and_what_was_resolved() -> None:
    request = upsert(2)
    (entry,) = pending_entries(UPSERT, request, b"scrubbed", resolved=[], maybe_applied=True, tenant="t")
    assert (entry.request, entry.maybe_applied, entry.point_count, entry.tenant) == (b"scrubbed", True, 2, "t")


_STEP = points_pb2.PointsUpdateOperation
_ONE = points_pb2.PointsSelector(points=points_pb2.PointsIdsList(ids=[common.PointId(num=1)]))
_FILTERED = points_pb2.PointsSelector(filter=common.Filter())
_NOBODY = points_pb2.PointsSelector(
    filter=common.Filter(must=[common.Condition(has_id=common.HasIdCondition())]),
)
_DELETE_ONE = _STEP(delete_points=_STEP.DeletePoints(points=_ONE))


@pytest.mark.parametrize(
    ("other", "entries"),
    [
        (_STEP(clear_payload=_STEP.ClearPayload(points=_FILTERED)), 2),
        (_STEP(clear_payload_deprecated=_FILTERED), 2),
        (_STEP(set_payload=_STEP.SetPayload(points_selector=_FILTERED)), 2),
        (_STEP(upsert=_STEP.PointStructList(points=upsert(1).points, update_filter=common.Filter())), 2),
        (_STEP(upsert=_STEP.PointStructList(points=upsert(1).points, update_mode=points_pb2.InsertOnly)), 2),
        (_STEP(upsert=_STEP.PointStructList(points=upsert(1).points)), 1),
        (_STEP(set_payload=_STEP.SetPayload(points_selector=_ONE)), 1),
        # What the replica writes for a filter that matches nobody.
        (_STEP(set_payload=_STEP.SetPayload(points_selector=_NOBODY)), 1),
    ],
)
@pytest.mark.parametrize("is_resolved", [False, True])
def test_each_part_of_a_batch_that_must_not_be_sent_twice_is_an_entry(
    other: points_pb2.PointsUpdateOperation, entries: int, is_resolved: bool
) -> None:
    row = METHODS[UPDATE_BATCH]
    batch = points_pb2.UpdateBatchPoints(collection_name="c", wait=True, operations=[_DELETE_ONE, other])
    plain = [entry_pb2.Operation(method=method, request=part.SerializeToString()) for method, part in parts_of(batch)]
    resolved = plain if is_resolved else []
    found = pending_entries(row, batch, batch.SerializeToString(), resolved=resolved, maybe_applied=False, tenant="t")
    assert len(found) == entries
    assert [(each.collection, each.tenant) for each in found] == [("c", "t")] * entries
    if entries == 2:
        assert [(each.method, each.request) for each in found] == [(each.method, each.request) for each in plain]
        assert not any(each.resolved for each in found)
        assert found[0].point_count == 1
    else:
        assert (found[0].request, list(found[0].resolved)) == (batch.SerializeToString(), resolved)
    alone = points_pb2.UpdateBatchPoints(collection_name="c", operations=[other])
    assert len(pending_entries(row, alone, alone.SerializeToString(), resolved=[], maybe_applied=True, tenant="")) == 1


def test_point_count_of_every_write() -> None:
    operation = points_pb2.PointsUpdateOperation
    selector = points_pb2.PointsSelector(points=points_pb2.PointsIdsList(ids=[common.PointId(num=1)] * 2))
    batch = points_pb2.UpdateBatchPoints(
        operations=[
            operation(upsert=operation.PointStructList(points=upsert(3).points)),
            operation(clear_payload=operation.ClearPayload(points=selector)),
            operation(delete_deprecated=selector),
            operation(set_payload=operation.SetPayload(points_selector=selector)),
            operation(),
        ]
    )
    assert point_count(batch) == 3 + 2 + 2 + 2
    assert point_count(points_pb2.SetPayloadPoints(points_selector=selector)) == 2
    assert point_count(points_pb2.DeletePoints(points=points_pb2.PointsSelector(filter=common.Filter()))) == 0
    assert point_count(collections_pb2.CreateCollection()) == 0


_IDS = points_pb2.PointsSelector(points=points_pb2.PointsIdsList(ids=[common.PointId(num=1)]))
_FILTER = points_pb2.PointsSelector(filter=common.Filter())


@pytest.mark.parametrize(
    ("method", "request_", "named"),
    [
        ("Points/Upsert", upsert(2), True),
        ("Points/Upsert", points_pb2.UpsertPoints(update_mode=points_pb2.UpdateMode.InsertOnly), True),
        ("Points/Upsert", points_pb2.UpsertPoints(update_filter=common.Filter()), False),
        ("Points/UpdateVectors", points_pb2.UpdatePointVectors(), True),
        ("Points/UpdateVectors", points_pb2.UpdatePointVectors(update_filter=common.Filter()), False),
        ("Points/Delete", points_pb2.DeletePoints(points=_IDS), True),
        ("Points/Delete", points_pb2.DeletePoints(points=_FILTER), False),
        ("Points/ClearPayload", points_pb2.ClearPayloadPoints(points=_FILTER), False),
        ("Points/SetPayload", points_pb2.SetPayloadPoints(points_selector=_IDS), True),
        ("Points/SetPayload", points_pb2.SetPayloadPoints(points_selector=_FILTER), False),
        ("Points/SetPayload", points_pb2.SetPayloadPoints(), False),
        ("Points/DeleteVectors", points_pb2.DeletePointVectors(points_selector=_FILTER), False),
        ("Points/UpdateBatch", points_pb2.UpdateBatchPoints(), False),
        ("Points/CreateFieldIndex", points_pb2.CreateFieldIndexCollection(), False),
        ("Collections/Create", collections_pb2.CreateCollection(), False),
        ("Collections/UpdateAliases", collections_pb2.ChangeAliases(), False),
    ],
)
def test_which_writes_name_their_points(method: str, request_: Message, named: bool) -> None:
    assert names_its_points(METHODS["/qdrant." + method], request_) is named
