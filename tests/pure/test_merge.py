"""Which upserts may be sent as one."""

from __future__ import annotations

from typing import Any

import pytest

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.wal.v1 import entry_pb2
from server.replay.merge import merge
from server.replay.parcel import Parcel, unpack
from server.rpc import METHODS, WAL_KINDS
from server.wal.record import EntryState, Record

UPSERT = "/qdrant.Points/Upsert"


def parcel(method: str, request: Any, *resolved: Any) -> Parcel:
    entry = entry_pb2.Entry(
        method=method,
        request=request.SerializeToString(),
        resolved=[entry_pb2.Operation(method=UPSERT, request=each.SerializeToString()) for each in resolved],
    )
    record = Record(1, METHODS[method].wal_kind, EntryState.PENDING, 0, b"", "", entry.SerializeToString(), 0)
    return unpack(record, WAL_KINDS)


def request(*numbers: int, **more: Any) -> points_pb2.UpsertPoints:
    more.setdefault("collection_name", "c")
    structs = [points_pb2.PointStruct(id=common.PointId(num=n)) for n in numbers]
    return points_pb2.UpsertPoints(points=structs, **more)


def upsert(*numbers: int, **more: Any) -> Parcel:
    return parcel(UPSERT, request(*numbers, **more))


def merged(*parcels: Parcel, limit_points: int = 100, limit_bytes: int = 10_000) -> int:
    """How many go as one."""
    found = merge(parcels, limit_points=limit_points, limit_bytes=limit_bytes)
    if found is None:
        return 0
    run, operation = found
    whole: Any = operation.request
    assert operation.method == UPSERT
    assert [each.id.num for each in whole.points] == [
        each.id.num
        for one in run
        for each in one.operations[0].request.points  # type: ignore[attr-defined]
    ]
    return len(run)


def shards(*names: str) -> points_pb2.ShardKeySelector:
    return points_pb2.ShardKeySelector(shard_keys=[collections_pb2.ShardKey(keyword=name) for name in names])


STRONG = points_pb2.WriteOrdering(type=points_pb2.WriteOrderingType.Strong)
UNKNOWN_FIELD = b"\x98\x06\x01"


def with_unknown(*numbers: int) -> Parcel:
    strange = points_pb2.UpsertPoints()
    strange.ParseFromString(request(*numbers).SerializeToString() + UNKNOWN_FIELD)
    return parcel(UPSERT, strange)


@pytest.mark.parametrize(
    ("parcels", "together"),
    [
        ([], 0),
        ([upsert(1)], 0),
        ([upsert(1), upsert(2), upsert(3, 4)], 3),
        ([upsert(1), upsert(2), upsert(1)], 2),
        ([upsert(1, 1), upsert(2)], 0),
        ([upsert(1), upsert(2, 2), upsert(3)], 0),
        ([upsert(1), upsert(2, collection_name="d")], 0),
        ([upsert(1, wait=False, timeout=3), upsert(2, wait=True)], 2),
        ([upsert(1, ordering=STRONG), upsert(2, ordering=STRONG)], 2),
        ([upsert(1), upsert(2, ordering=STRONG)], 0),
        ([upsert(1, shard_key_selector=shards("a")), upsert(2, shard_key_selector=shards("a"))], 2),
        ([upsert(1, shard_key_selector=shards("a")), upsert(2, shard_key_selector=shards("b"))], 0),
        ([upsert(1), upsert(2, update_filter=common.Filter())], 0),
        ([upsert(1), upsert(2, update_mode=points_pb2.UpdateMode.InsertOnly)], 0),
        ([upsert(1), upsert()], 0),
        ([upsert(1), with_unknown(2)], 0),
        ([upsert(1), parcel(UPSERT, request(5), request(2), request(3))], 0),
        ([upsert(1), parcel(UPSERT, request(5), request(2))], 2),
        ([upsert(1), parcel("/qdrant.Points/Delete", points_pb2.DeletePoints(collection_name="c")), upsert(2)], 0),
    ],
)
def test_what_goes_together(parcels: list[Parcel], together: int) -> None:
    assert merged(*parcels) == together


def test_shard_keys_are_not_multiplied() -> None:
    found = merge([upsert(n, shard_key_selector=shards("a")) for n in range(3)], limit_points=10, limit_bytes=1000)
    assert found is not None
    assert found[1].request.shard_key_selector == shards("a")  # type: ignore[attr-defined]


def test_limits() -> None:
    some = [upsert(n) for n in range(10)]
    assert merged(*some, limit_points=4) == 4
    assert merged(*some, limit_points=1) == 0
    size = len(some[0].record.body)
    assert merged(*some, limit_bytes=3 * size) == 3


def test_entries_stay_as_they_were() -> None:
    some = [upsert(n) for n in range(3)]
    before = [each.operations[0].body for each in some]
    merged(*some)
    assert [each.operations[0].body for each in some] == before
