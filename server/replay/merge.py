"""PURE. Consecutive upserts that may be sent as one, and fewer of them when Qdrant refuses that.

Promises: what is merged does the same as its entries one after the other: plain upserts of whole points, all to one
collection with the same ordering and shard keys, and no point twice. Qdrant checks each point by itself, so what it
accepts together it accepts one by one; when it refuses, fewer must be sent until the one to blame is alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from generated.qdrant import points_pb2
from server.replay.bisect import Key, Operation, keys_of
from server.replay.parcel import Parcel
from server.rpc import UPSERT

# One of so many entries is odd.
_ODD = 4


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


def fewer(refused: Sequence[Parcel]) -> Sequence[Parcel]:
    """What to send next of entries that Qdrant refused as one: those before the first odd one, else half of them.

    Odd is what has vectors as few others have. A wrong size or name is the commonest reason to be refused, and takes
    two calls to find this way, whatever the number of entries.
    """
    shapes = list(map(_shape, refused))
    rarest, times = min(Counter(shapes).items(), key=lambda item: item[1])
    if times * _ODD > len(shapes):
        return refused[: len(refused) // 2]
    return refused[: max(1, shapes.index(rarest))]


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


def _shape(parcel: Parcel) -> frozenset[tuple[str, str, int]]:
    """The vectors of an entry's points: name ("" is the unnamed one), kind, and of dense ones how many dimensions."""
    request = _upsert(parcel)
    return frozenset(_vectors(request)) if request is not None else frozenset()


def _vectors(request: points_pb2.UpsertPoints) -> Iterator[tuple[str, str, int]]:
    for point in request.points:
        vectors = point.vectors
        is_unnamed = vectors.WhichOneof("vectors_options") == "vector"
        for name, vector in [("", vectors.vector)] if is_unnamed else vectors.vectors.vectors.items():
            yield name, vector.WhichOneof("vector") or "", len(vector.dense.data or vector.data)
