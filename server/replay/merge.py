"""PURE. Consecutive upserts that may be sent as one.

Promises: what is merged does the same as its entries one after the other: plain upserts of whole points, all to one
collection with the same ordering and shard keys, and no point twice. Qdrant checks each point by itself, so what it
accepts together it accepts one by one; when it refuses, fewer must be sent until the one to blame is alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from generated.qdrant import points_pb2
from server.replay.bisect import Key, Operation, keys_of
from server.replay.parcel import Parcel
from server.rpc import UPSERT


def merge(parcels: Iterable[Parcel], *, limit_points: int, limit_bytes: int) -> tuple[list[Parcel], Operation] | None:
    """The longest run from the front that may go as one, and its operation; None when that is less than two."""
    run: list[Parcel] = []
    requests: list[points_pb2.UpsertPoints] = []
    keys: set[Key] = set()
    size = 0
    kind: tuple[object, ...] | None = None
    for parcel in parcels:
        request = _upsert(parcel)
        if request is None:
            break
        own = keys_of(parcel.operations[0])
        size += len(parcel.record.body)
        if len(keys) + len(own) > limit_points or size > limit_bytes or kind not in (None, _kind(request)):
            break
        if not keys.isdisjoint(own) or len(set(own)) != len(own):
            break
        kind = _kind(request)
        keys.update(own)
        run.append(parcel)
        requests.append(request)
    if len(run) < 2:
        return None
    whole = points_pb2.UpsertPoints()
    whole.CopyFrom(requests[0])
    for request in requests[1:]:
        whole.points.MergeFrom(request.points)
    return run, Operation(UPSERT, whole)


def _upsert(parcel: Parcel) -> points_pb2.UpsertPoints | None:
    """The request of an entry that is one plain upsert of some points."""
    if parcel.problem or parcel.entry.retry_of or parcel.held or not parcel.is_blind or len(parcel.operations) != 1:
        return None
    request = parcel.operations[0].request
    return request if isinstance(request, points_pb2.UpsertPoints) and request.points else None


def _kind(request: points_pb2.UpsertPoints) -> tuple[object, ...]:
    """What must be equal besides the points; `wait` is set and `timeout` unset in every operation."""
    keys = request.shard_key_selector.SerializeToString() if request.HasField("shard_key_selector") else None
    ordering = request.ordering.type if request.HasField("ordering") else None
    return request.collection_name, ordering, keys
