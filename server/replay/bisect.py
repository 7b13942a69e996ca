"""PURE. Write requests taken apart: which points they name, halves of them, parts of them, whether they may repeat.

Promises: the parts of an operation, sent in their order, do what the whole does; a part keeps every other field of the
request. A request that names no points (a filter, a collection operation) has no parts. Does not judge answers.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.wal.v1 import entry_pb2
from server.conflicts import point_key
from server.replica.requests import is_conditional
from server.rpc import METHODS

Key: TypeAlias = int | str


@dataclass(frozen=True, slots=True)
class Operation:
    """One plain write with its request parsed. Requests are never changed in place.

    `behind`: the collection that its name stood for when it was logged, "" when the name was no alias.
    """

    method: str
    request: Message
    behind: str = ""

    @property
    def body(self) -> bytes:
        """The serialized request."""
        return self.request.SerializeToString()


def operations_of(entry: entry_pb2.Entry) -> list[Operation]:
    """What to send for an entry, in order: its resolved operations, else its request; `wait` set, `timeout` dropped.

    The timeout was the patience of the client's own call. Raises DecodeError, and KeyError for a method that has no row
    or is never logged.
    """
    parts = [(part.method, part.request) for part in entry.resolved] or [(entry.method, entry.request)]
    return [_parsed(method, body, entry.real_collection) for method, body in parts]


def _parsed(method: str, body: bytes, behind: str) -> Operation:
    row = METHODS[method]
    if not row.wal_kind:
        raise KeyError(method)
    request: Any = row.request.FromString(body)
    fields = request.DESCRIPTOR.fields_by_name
    if "wait" in fields:
        request.wait = True
    if "timeout" in fields:
        request.ClearField("timeout")
    return Operation(method, request, behind)


def key_of(point_id: common.PointId) -> Key:
    """One value per point, however its UUID is written; the same that orders writes."""
    return point_key(point_id)


def keys_of(operation: Operation) -> list[Key]:
    """The points that an operation names, in order, with repeats."""
    return [key_of(_id_of(item)) for items in _items_of(operation.request) for item in items]


def deleted_by(operation: Operation) -> set[Key]:
    """The points that an operation deletes by name."""
    request = operation.request
    if isinstance(request, points_pb2.DeletePoints):
        return set(keys_of(operation))
    deleted: set[Key] = set()
    if isinstance(request, points_pb2.UpdateBatchPoints):
        for step in request.operations:
            kind = step.WhichOneof("operation")
            if kind in ("delete_points", "delete_deprecated"):
                deleted.update(key_of(point_id) for ids in _items_in(getattr(step, kind)) for point_id in ids)
    return deleted


def names_of(operation: Operation) -> set[str]:
    """The collections that an operation names; alias changes name their aliases and collections."""
    request: Any = operation.request
    if not isinstance(request, collections_pb2.ChangeAliases):
        return {request.collection_name}
    names: set[str] = set()
    for action in request.actions:
        kind = action.WhichOneof("action")
        if kind is not None:
            names |= {value for _, value in getattr(action, kind).ListFields()}
    return names


def place_of(operation: Operation) -> str:
    """The one collection whose points an operation touches, by the name that is no alias where that is known."""
    request: Any = operation.request
    name: str = request.collection_name
    return operation.behind or name


def places_of(operation: Operation) -> set[str]:
    """The collections that an operation names, and the one behind its alias."""
    return names_of(operation) | ({operation.behind} if operation.behind else set())


def halves(operation: Operation) -> tuple[Operation, Operation] | None:
    """Two parts that do the same one after the other; None when it cannot be divided."""
    request = operation.request
    if isinstance(request, points_pb2.UpdateBatchPoints) and len(request.operations) > 1:
        return _divide(operation, _steps)
    found = [items for items in _items_of(request) if len(items) > 1]
    if len(found) != 1:
        return None
    return _divide(operation, lambda copy: next(_items_of(copy)))


def joined(parts: Iterable[Operation]) -> list[Operation]:
    """Neighbours that differ only in their points, as one; no point twice in one."""
    groups: list[list[Operation]] = []
    frame, seen = b"", set[Key]()
    for part in parts:
        own, keys = _frame_bytes(part), keys_of(part)
        if not groups or not keys or own != frame or not seen.isdisjoint(keys):
            groups.append([])
            frame, seen = own, set()
        groups[-1].append(part)
        seen.update(keys)
    return list(map(_as_one, groups))


def without_points(operation: Operation) -> Operation:
    """What is left of an operation that names no point any more."""
    copy: Any = type(operation.request)()
    copy.CopyFrom(operation.request)
    for items in [copy.operations] if isinstance(copy, points_pb2.UpdateBatchPoints) else _items_of(copy):
        del items[:]
    return replace(operation, request=copy)


def _frame_bytes(part: Operation) -> bytes:
    """Equal for operations that differ only in their points."""
    return part.method.encode() + b"\0" + without_points(part).request.SerializeToString(deterministic=True)


def _as_one(parts: list[Operation]) -> Operation:
    if len(parts) == 1:
        return parts[0]
    copy = type(parts[0].request)()
    copy.CopyFrom(parts[0].request)
    items = _all_of(copy)
    for part in parts[1:]:
        items.MergeFrom(_all_of(part.request))
    return replace(parts[0], request=copy)


def _all_of(request: Any) -> Any:
    """The steps of a batch, else the field that names the points."""
    return request.operations if isinstance(request, points_pb2.UpdateBatchPoints) else next(_items_of(request))


def without(operation: Operation, keys: Container[Key]) -> Operation | None:
    """The operation without these points; what names no points stays. None when nothing is left."""
    return _filtered(operation, lambda key: key not in keys, keep_unnamed=True)


def only(operation: Operation, keys: Container[Key]) -> Operation | None:
    """The operation for these points only; what names no points goes. None when nothing is left."""
    return _filtered(operation, lambda key: key in keys, keep_unnamed=False)


def _filtered(operation: Operation, keep: Callable[[Key], bool], *, keep_unnamed: bool) -> Operation | None:
    copy = type(operation.request)()
    copy.CopyFrom(operation.request)
    if isinstance(copy, points_pb2.UpdateBatchPoints):
        for index in range(len(copy.operations) - 1, -1, -1):
            step = copy.operations[index]
            kind = step.WhichOneof("operation")
            items = list(_items_in(getattr(step, kind))) if kind else []
            if not _keeps(items, keep, keep_unnamed):
                del copy.operations[index]
        return replace(operation, request=copy) if len(copy.operations) else None
    return replace(operation, request=copy) if _keeps(list(_items_in(copy)), keep, keep_unnamed) else None


def _keeps(found: list[Any], keep: Callable[[Key], bool], keep_unnamed: bool) -> bool:
    """Take out of `found` what is not to be kept; whether anything is left."""
    if not found:
        return keep_unnamed
    for items in found:
        for index in range(len(items) - 1, -1, -1):
            if not keep(key_of(_id_of(items[index]))):
                del items[index]
    return any(len(items) for items in found)


def names_only_points(operation: Operation) -> bool:
    """Whether the operation says which points it is about, all of them."""
    request = operation.request
    steps = len(request.operations) if isinstance(request, points_pb2.UpdateBatchPoints) else 1
    return sum(1 for _ in _items_of(request)) == steps


def is_blind(operation: Operation) -> bool:
    """Whether Qdrant's answer cannot depend on the points that are there, nor on whether it was applied before.

    Only such operations may be sent again after later ones of the same kind were applied. A field that is not known
    here may mean anything.
    """
    request = operation.request
    if len(UnknownFieldSet(request)):
        return False
    if isinstance(request, points_pb2.UpsertPoints):
        return not request.HasField("update_filter") and not request.update_mode
    return isinstance(request, points_pb2.DeletePoints) and names_only_points(operation)


_ON_POINTS_THAT_ARE_THERE = (
    points_pb2.SetPayloadPoints,
    points_pb2.DeletePayloadPoints,
    points_pb2.ClearPayloadPoints,
    points_pb2.UpdatePointVectors,
    points_pb2.DeletePointVectors,
)


def is_repeatable(operation: Operation) -> bool:
    """Whether doing it twice does what once does, and is answered alike, while nothing else touches its points."""
    request = operation.request
    if not isinstance(request, _ON_POINTS_THAT_ARE_THERE) or len(UnknownFieldSet(request)):
        return False
    if is_conditional(request):
        return False
    return names_only_points(operation)


def _steps(request: Any) -> Any:
    return request.operations


def _divide(operation: Operation, items_of: Callable[[Any], Any]) -> tuple[Operation, Operation]:
    parts = []
    for first in (True, False):
        copy = type(operation.request)()
        copy.CopyFrom(operation.request)
        items = items_of(copy)
        middle = len(items) // 2
        if first:
            del items[middle:]
        else:
            del items[:middle]
        parts.append(replace(operation, request=copy))
    return parts[0], parts[1]


def _id_of(item: Any) -> common.PointId:
    found: common.PointId = item if isinstance(item, common.PointId) else item.id
    return found


def _items_of(request: Any) -> Iterator[Any]:
    """The repeated fields that name points: one for a request, one for each step of a batch that names any."""
    if isinstance(request, points_pb2.UpdateBatchPoints):
        for step in request.operations:
            kind = step.WhichOneof("operation")
            if kind is not None:
                yield from _items_in(getattr(step, kind))
    else:
        yield from _items_in(request)


def _items_in(holder: Any) -> Iterator[Any]:
    """`holder` is a request, a step of a batch, or a bare selector."""
    if not isinstance(holder, points_pb2.PointsSelector):
        fields = holder.DESCRIPTOR.fields_by_name
        name = "points" if "points" in fields else "points_selector"
        if name not in fields:
            return
        field = getattr(holder, name)
        if not isinstance(field, points_pb2.PointsSelector):
            yield field
            return
        holder = field
    if holder.WhichOneof("points_selector_one_of") == "points":
        yield holder.points.ids
