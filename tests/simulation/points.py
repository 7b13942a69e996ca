"""What points are in the simulation, and what requests do to them: the one model behind Qdrant and replica.

A point is its payload: whole numbers under a few keys. `v` is set by an upsert, `s` by a SetPayload, both unique in a
run; a point with `poison` is one that Qdrant refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from google.protobuf.message import Message

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import COLLECTIONS, POINTS, Code

Payload: TypeAlias = tuple[tuple[str, int], ...]
Points: TypeAlias = dict[int, Payload]

COLLECTION = "c"
UPSERT, DELETE, SET = POINTS + "Upsert", POINTS + "Delete", POINTS + "SetPayload"
GET, SCROLL, COUNT = POINTS + "Get", POINTS + "Scroll", POINTS + "Count"


class Refusal(Exception):
    """What the other side says no with."""

    def __init__(self, code: Code, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def no_collection(name: str) -> Refusal:
    return Refusal(Code.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")


def no_point(number: int) -> Refusal:
    return Refusal(Code.NOT_FOUND, f"Not found: No point with id {number} found")


# --- requests --------------------------------------------------------------------------------------------------------


def upsert(ids: Sequence[int], value: int, poisoned: Iterable[int] = ()) -> points_pb2.UpsertPoints:
    """Put points; `poisoned` ones are refused by Qdrant."""
    request = points_pb2.UpsertPoints(collection_name=COLLECTION, wait=True)
    for number in ids:
        point = request.points.add(id=common.PointId(num=number))
        point.vectors.vector.dense.data.extend((1.0, 2.0))
        point.payload["v"].integer_value = value
        if number in poisoned:
            point.payload["poison"].integer_value = 1
    return request


def struct(number: int, payload: Payload) -> points_pb2.PointStruct:
    """A whole point."""
    point = points_pb2.PointStruct(id=common.PointId(num=number))
    point.vectors.vector.dense.data.extend((1.0, 2.0))
    for key, value in payload:
        point.payload[key].integer_value = value
    return point


def delete(ids: Sequence[int]) -> points_pb2.DeletePoints:
    """Remove points by id."""
    return points_pb2.DeletePoints(collection_name=COLLECTION, wait=True, points=_selector(ids))


def wipe() -> points_pb2.DeletePoints:
    """Remove every point, by a filter."""
    everything = points_pb2.PointsSelector(filter=common.Filter())
    return points_pb2.DeletePoints(collection_name=COLLECTION, wait=True, points=everything)


def insert(number: int, value: int) -> points_pb2.UpsertPoints:
    """Put a point where there is none."""
    request = upsert((number,), value)
    request.update_mode = points_pb2.UpdateMode.InsertOnly
    return request


def swap(number: int, value: int, expected: int) -> points_pb2.UpsertPoints:
    """Put a point in the place of itself, if its value is the expected one."""
    request = upsert((number,), value)
    request.update_mode = points_pb2.UpdateMode.UpdateOnly
    request.update_filter.CopyFrom(_with_value(expected))
    return request


def drop(number: int, expected: int) -> points_pb2.DeletePoints:
    """Remove a point if its value is the expected one, by a filter."""
    chosen = _with_value(expected)
    chosen.must.add().has_id.has_id.add(num=number)
    return points_pb2.DeletePoints(
        collection_name=COLLECTION, wait=True, points=points_pb2.PointsSelector(filter=chosen)
    )


def _with_value(value: int) -> common.Filter:
    chosen = common.Filter()
    condition = chosen.must.add().field
    condition.key = "v"
    condition.match.integer = value
    return chosen


def set_payload(number: int, value: int) -> points_pb2.SetPayloadPoints:
    """Add to the payload of one point."""
    request = points_pb2.SetPayloadPoints(collection_name=COLLECTION, wait=True, points_selector=_selector((number,)))
    request.payload["s"].integer_value = value
    return request


def get(ids: Sequence[int]) -> points_pb2.GetPoints:
    """Read some points."""
    return points_pb2.GetPoints(
        collection_name=COLLECTION,
        ids=[common.PointId(num=number) for number in ids],
        with_payload=points_pb2.WithPayloadSelector(enable=True),
    )


def scroll() -> points_pb2.ScrollPoints:
    """Read every point."""
    return points_pb2.ScrollPoints(
        collection_name=COLLECTION, limit=1000, with_payload=points_pb2.WithPayloadSelector(enable=True)
    )


def count(number: int) -> points_pb2.CountPoints:
    """How many points have this id."""
    request = points_pb2.CountPoints(collection_name=COLLECTION, exact=True)
    request.filter.must.add().has_id.has_id.add(num=number)
    return request


def _selector(ids: Sequence[int]) -> points_pb2.PointsSelector:
    return points_pb2.PointsSelector(
        points=points_pb2.PointsIdsList(ids=[common.PointId(num=number) for number in ids])
    )


METHOD_OF = {
    "upsert": UPSERT,
    "insert": UPSERT,
    "swap": UPSERT,
    "set": SET,
    "delete": DELETE,
    "drop": DELETE,
    "wipe": DELETE,
    "get": GET,
    "scroll": SCROLL,
    "count": COUNT,
}
# Kinds of calls that show payloads.
READS = ("get", "scroll")


def request_of(kind: str, ids: Sequence[int], value: int, expected: int = 0, poisoned: Iterable[int] = ()) -> Message:
    """The request of one kind of call; `ids` is empty where it names none."""
    match kind:
        case "upsert":
            return upsert(ids, value, poisoned)
        case "set":
            return set_payload(ids[0], value)
        case "insert":
            return insert(ids[0], value)
        case "swap":
            return swap(ids[0], value, expected)
        case "drop":
            return drop(ids[0], expected)
        case "count":
            return count(ids[0])
        case "delete":
            return delete(ids)
        case "wipe":
            return wipe()
        case "get":
            return get(ids)
        case "scroll":
            return scroll()
        case _:
            raise ValueError(kind)


# --- what they do ----------------------------------------------------------------------------------------------------


def method_of(request: Message) -> str:
    """The method that a write belongs to."""
    return {points_pb2.UpsertPoints: UPSERT, points_pb2.DeletePoints: DELETE, points_pb2.SetPayloadPoints: SET}[
        type(request)
    ]


def named(request: Any) -> list[int] | None:
    """The points that a write names; None = it has a filter."""
    if isinstance(request, points_pb2.UpsertPoints):
        return [point.id.num for point in request.points]
    selector = request.points if isinstance(request, points_pb2.DeletePoints) else request.points_selector
    if selector.WhichOneof("points_selector_one_of") == "filter":
        return None
    return [each.num for each in selector.points.ids]


def values(request: Any) -> set[int]:
    """The unique values that a write carries."""
    if isinstance(request, points_pb2.UpsertPoints):
        return {point.payload["v"].integer_value for point in request.points}
    if isinstance(request, points_pb2.SetPayloadPoints):
        return {request.payload["s"].integer_value}
    return set()


def missing(points: Points, request: Any) -> int | None:
    """The first point that a SetPayload names and that is not there."""
    if not isinstance(request, points_pb2.SetPayloadPoints):
        return None
    return next((number for number in named(request) or () if number not in points), None)


def apply(points: Points, request: Any) -> list[int]:
    """Do a write, passing over points that are missing; returns what was touched."""
    touched = named(request)
    if isinstance(request, points_pb2.UpsertPoints):
        for point in request.points:
            if _may_put(points.get(point.id.num), point.id.num, request):
                points[point.id.num] = payload_of(point)
    elif isinstance(request, points_pb2.DeletePoints):
        touched = chosen_by(request.points.filter, points) if touched is None else touched
        for number in touched:
            points.pop(number, None)
    else:
        touched = chosen_by(request.points_selector.filter, points) if touched is None else touched
        for number in touched:
            if number in points:
                points[number] = merged(points[number], request.payload["s"].integer_value)
    return touched


def _may_put(before: Payload | None, number: int, request: points_pb2.UpsertPoints) -> bool:
    """Whether the conditions of an upsert let it put a point in the place of what was there."""
    if before is None:
        return request.update_mode != points_pb2.UpdateMode.UpdateOnly
    if request.update_mode == points_pb2.UpdateMode.InsertOnly:
        return False
    return not request.HasField("update_filter") or _matches(request.update_filter, number, before)


def resolved(points: Points, request: Any) -> Message | None:
    """The write without its conditions and filters, as it changes these points; None = it has none."""
    if is_conditional(request):
        kept = [each for each in request.points if _may_put(points.get(each.id.num), each.id.num, request)]
        plain = points_pb2.UpsertPoints(collection_name=COLLECTION, wait=True, points=kept)
        return plain if kept else delete(())
    if named(request) is not None:
        return None
    assert isinstance(request, points_pb2.DeletePoints)
    return delete(chosen_by(request.points.filter, points))


def is_conditional(request: Any) -> bool:
    """Whether an upsert may leave out some of its points."""
    return isinstance(request, points_pb2.UpsertPoints) and (
        request.update_mode != points_pb2.UpdateMode.Upsert or request.HasField("update_filter")
    )


def chosen_by(condition: common.Filter, points: Points) -> list[int]:
    """The points that a filter chooses."""
    return [number for number in sorted(points) if _matches(condition, number, points[number])]


def _matches(condition: common.Filter, number: int, payload: Payload) -> bool:
    """The filters of this simulation: ids, and whole numbers under a key."""
    for each in condition.must:
        if each.HasField("has_id"):
            if number not in [one.num for one in each.has_id.has_id]:
                return False
        elif (each.field.key, each.field.match.integer) not in payload:
            return False
    return True


def merged(payload: Payload, value: int) -> Payload:
    """A payload after a SetPayload."""
    return tuple(sorted({**dict(payload), "s": value}.items()))


def payload_of(point: Any) -> Payload:
    """The payload of a point as the model keeps it."""
    return tuple(sorted((key, value.integer_value) for key, value in point.payload.items()))


def is_poisoned(request: Any) -> bool:
    """Whether Qdrant refuses a request for one of its points."""
    return isinstance(request, points_pb2.UpsertPoints) and any("poison" in point.payload for point in request.points)


# --- answers ---------------------------------------------------------------------------------------------------------


def done(operation_id: int) -> points_pb2.PointsOperationResponse:
    """A write was done."""
    result = points_pb2.UpdateResult(operation_id=operation_id, status=points_pb2.UpdateStatus.Completed)
    return points_pb2.PointsOperationResponse(result=result)


def answer(points: Points, method: str, request: Any) -> Message:
    """The answer to a read."""
    if method == GET:
        found = dict.fromkeys(each.num for each in request.ids if each.num in points)
        return points_pb2.GetResponse(result=[_retrieved(number, points[number]) for number in found])
    if method == COUNT:
        return points_pb2.CountResponse(result=points_pb2.CountResult(count=len(chosen_by(request.filter, points))))
    assert method == SCROLL, method
    start = request.offset.num if request.HasField("offset") else 0
    numbers = [number for number in sorted(points) if number >= start]
    response = points_pb2.ScrollResponse(
        result=[_retrieved(number, points[number]) for number in numbers[: request.limit]]
    )
    if len(numbers) > request.limit:
        response.next_page_offset.num = numbers[request.limit]
    return response


def _retrieved(number: int, payload: Payload) -> points_pb2.RetrievedPoint:
    point = points_pb2.RetrievedPoint(id=common.PointId(num=number))
    for key, value in payload:
        point.payload[key].integer_value = value
    return point


def read(method: str, body: bytes) -> Points:
    """The points in the answer to a Get or Scroll."""
    kind = points_pb2.GetResponse if method == GET else points_pb2.ScrollResponse
    return {point.id.num: payload_of(point) for point in kind.FromString(body).result}


def counted(body: bytes) -> int:
    """The number in the answer to a Count."""
    return points_pb2.CountResponse.FromString(body).result.count


def info(points: int) -> collections_pb2.CollectionInfo:
    """What a collection is made of."""
    found = collections_pb2.CollectionInfo(status=collections_pb2.CollectionStatus.Green, points_count=points)
    found.config.params.vectors_config.params.size = 2
    found.config.params.vectors_config.params.distance = collections_pb2.Distance.Dot
    return found


LIST, INFO, ALIASES = COLLECTIONS + "List", COLLECTIONS + "Get", COLLECTIONS + "ListAliases"
