"""Entries of the log: split where provable, counted, named."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server.entries import names_its_points, pending_entry, point_count, synced_entries
from server.rpc import METHODS

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
    entry = pending_entry(UPSERT, request, b"scrubbed", resolved=[], maybe_applied=True, tenant="t")
    assert (entry.request, entry.maybe_applied, entry.point_count, entry.tenant) == (b"scrubbed", True, 2, "t")


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
