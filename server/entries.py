"""PURE. From a write request to the entries that the log holds.

Promises: an online write that is larger than one entry may be is split into entries that together do the same, where
that is provable (an Upsert by its points); anything else past the limit is left to the log, which refuses it. An
entry that waits for Qdrant does the same when it is sent twice. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from generated.qdrant import points_pb2
from generated.understudy.wal.v1 import entry_pb2
from server.replica.requests import NOBODY, is_conditional, parts_of
from server.rpc import METHODS, UPDATE_BATCH, Code, Method, Reply, Scope

# Room for the fields of an entry beside its request.
_ENVELOPE_BYTES = 4096
_ONE_POINT_MISSING = "Not found: No point with id"
# How Qdrant refuses one part of a batch, and what it says before it has looked at any part.
_OF_ONE_PART = frozenset((Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.INTERNAL, Code.RESOURCE_EXHAUSTED))
_BY_STRICT_MODE = "Help:"
_OF_THE_WHOLE = ("Validation error", "Not found: Collection", "failed to decode")


def pending_entries(
    row: Method,
    request: Message,
    body: bytes,
    *,
    resolved: Sequence[entry_pb2.Operation],
    maybe_applied: bool,
    tenant: str,
) -> list[entry_pb2.Entry]:
    """The entries of a write that Qdrant has yet to see, in order. `body` is the scrubbed request.

    One, but for a batch in which a part chooses its points by what is there: such parts find other points when those
    behind them were done before, so each is an entry.
    """
    parts = _parts(row, body, resolved)
    if len(parts) > 1 and any(_chooses_its_points(METHODS[method], part) for method, part in parts):
        entries = [_entry(METHODS[method], part, part.SerializeToString(), tenant) for method, part in parts]
    else:
        entries = [_entry(row, request, body, tenant)]
        entries[0].resolved.extend(resolved)
    for entry in entries:
        entry.maybe_applied = maybe_applied
    return entries


def _parts(row: Method, body: bytes, resolved: Sequence[entry_pb2.Operation]) -> list[tuple[str, Message]]:
    """The parts of a batch as they would be sent, [] for another write."""
    if row.path != UPDATE_BATCH:
        return []
    if resolved:
        return [(each.method, METHODS[each.method].request.FromString(each.request)) for each in resolved]
    return list(parts_of(points_pb2.UpdateBatchPoints.FromString(body)))


def _chooses_its_points(row: Method, request: Any) -> bool:
    """Whether it depends on the points that are there which of them a write changes."""
    selectors = (getattr(request, name, None) for name in ("points_selector", "points"))
    if any(isinstance(selector, points_pb2.PointsSelector) and selector.filter == NOBODY for selector in selectors):
        # Found out already: there were none.
        return False
    return not names_its_points(row, request) or bool(getattr(request, "update_mode", 0))


def synced_entries(
    row: Method, request: Message, body: bytes, *, tenant: str, entry_bytes: int, entry_points: int
) -> list[entry_pb2.Entry]:
    """The entries of a write that Qdrant has acknowledged, none larger than the limits where it can be split."""
    whole = _entry(row, request, body, tenant)
    small = len(body) <= entry_bytes - _ENVELOPE_BYTES and whole.point_count <= entry_points
    if small or not isinstance(request, points_pb2.UpsertPoints):
        return [whole]
    scrubbed = points_pb2.UpsertPoints.FromString(body)
    return [
        _entry(row, part, part.SerializeToString(), tenant)
        for part in _halves(scrubbed, entry_bytes - _ENVELOPE_BYTES, entry_points)
    ]


def _halves(request: points_pb2.UpsertPoints, limit_bytes: int, limit_points: int) -> list[points_pb2.UpsertPoints]:
    count = len(request.points)
    if count <= 1 or (request.ByteSize() <= limit_bytes and count <= limit_points):
        return [request]
    first, second = points_pb2.UpsertPoints(), points_pb2.UpsertPoints()
    for part, points in ((first, request.points[: count // 2]), (second, request.points[count // 2 :])):
        for field, value in request.ListFields():
            if field.name != "points":
                _copy_field(part, field.name, value)
        part.points.extend(points)
    return [*_halves(first, limit_bytes, limit_points), *_halves(second, limit_bytes, limit_points)]


def _copy_field(target: Message, name: str, value: Any) -> None:
    if isinstance(value, Message):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def _entry(row: Method, request: Message, body: bytes, tenant: str) -> entry_pb2.Entry:
    return entry_pb2.Entry(
        method=row.path,
        request=body,
        collection=collection_name(request),
        tenant=tenant,
        point_count=point_count(request),
    )


def changes_some(row: Method, request: Message, reply: Reply) -> bool:
    """Whether Qdrant may have changed points although it refused.

    It does when one of several ids is missing, and when a batch stops at a part that is not its first.
    """
    if row.scope is not Scope.POINTS:
        return False
    if reply.code is Code.NOT_FOUND and reply.details.startswith(_ONE_POINT_MISSING):
        return True
    has_parts_before = isinstance(request, points_pb2.UpdateBatchPoints) and len(request.operations) > 1
    is_of_one_part = reply.code in _OF_ONE_PART or (
        reply.code is Code.PERMISSION_DENIED and _BY_STRICT_MODE in reply.details
    )
    return has_parts_before and is_of_one_part and not reply.details.startswith(_OF_THE_WHOLE)


def may_delete(request: Message) -> bool:
    """Whether a write may make points absent."""
    if isinstance(request, points_pb2.UpdateBatchPoints):
        kinds = {part.WhichOneof("operation") for part in request.operations}
        return not kinds.isdisjoint(("delete_points", "delete_deprecated"))
    return isinstance(request, points_pb2.DeletePoints)


def names_its_points(row: Method, request: Message) -> bool:
    """Whether a write says by itself which points it is about: no filter has to be tried on others, no batch played.

    Such a write is prepared in about the time that it takes to read those points.
    """
    if row.scope is not Scope.POINTS or row.path == UPDATE_BATCH:
        return False
    if is_conditional(request):
        return False
    selectors = (getattr(request, name, None) for name in ("points_selector", "points"))
    return all(
        selector.WhichOneof("points_selector_one_of") == "points"
        for selector in selectors
        if isinstance(selector, points_pb2.PointsSelector)
    )


def collection_name(request: Message) -> str:
    """The collection that a request names, "" where it names none."""
    name: str = getattr(request, "collection_name", "")
    return name


def point_count(request: Message) -> int:
    """How many points a write names, counting repeats; 0 for filters and collection operations."""
    if isinstance(request, points_pb2.UpdateBatchPoints):
        return sum(_count_in(getattr(part, part.WhichOneof("operation") or "upsert")) for part in request.operations)
    return _count_in(request)


def _count_in(operation: Any) -> int:
    if isinstance(operation, points_pb2.PointsSelector):
        return len(operation.points.ids)
    for name in ("points_selector", "points"):
        named = getattr(operation, name, None)
        if isinstance(named, points_pb2.PointsSelector):
            return len(named.points.ids)
        if named is not None:
            return len(named)
    return 0
