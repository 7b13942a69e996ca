"""Points ordered by a payload field.

Promises: values as Qdrant's range index holds them; a point comes once for each of its values; ties by id, in the
direction of the order. Needs a range index on the field, as Qdrant does, and says so with its text.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from server.replica import paths, scalars
from server.replica.conditions import timestamp_nanoseconds
from server.replica.fields import Index
from server.replica.records import Key, Record
from server.replica.refusal import Refusal, invalid, wrong_input
from server.replica.session import Selection, Session

OrderValue: TypeAlias = "int | float"
Ordered: TypeAlias = tuple[Key, OrderValue]

_INDEXING = "https://qdrant.tech/documentation/concepts/indexing/#payload-index"


def no_range_index(key: str) -> Refusal:
    """What Qdrant says when it cannot order by a field."""
    return wrong_input(
        f"No range index for `order_by` key: `{key}`. Please create one to use `order_by`. "
        f"Check {_INDEXING} to see which payload schemas support Range conditions"
    )


def ordered(session: Session, order_by: points.OrderBy, selection: Selection, count: int) -> list[Ordered]:
    """At most `count` (key, value), in order. Raises Refusal."""
    path = paths.parse_or_refuse(order_by.key)
    index = session.fields.index(path)
    if index is None or not index.has_range:
        raise no_range_index(order_by.key)
    falling = order_by.direction == points.Direction.Desc
    start = _start(order_by.start_from) if order_by.HasField("start_from") else None
    select = paths.selector(path)

    def values(record: Record) -> set[OrderValue]:
        payload = points.PointStruct.FromString(record.payload).payload
        return {_value(index, held) for held in index.held_of(select(payload))}

    pairs = _pairs(session.records(selection, payload=True), values, start, falling)
    pick = heapq.nlargest if falling else heapq.nsmallest
    return [(key, value) for value, key in pick(count, pairs)]


def _pairs(
    records: Iterable[Record],
    values: Callable[[Record], set[OrderValue]],
    start: OrderValue | None,
    falling: bool,
) -> Iterator[tuple[OrderValue, Key]]:
    for record in records:
        for value in values(record):
            if start is None or (value <= start if falling else value >= start):
                yield value, record.key


def _value(index: Index, held: object) -> OrderValue:
    assert isinstance(held, int | float)
    return int(held) // 1000 if index.kind == collections.Datetime else held


def _start(start: points.StartFrom) -> OrderValue:
    match start.WhichOneof("value"):
        case "float":
            return start.float
        case "integer":
            return start.integer
        case "timestamp":
            return timestamp_nanoseconds(start.timestamp) // 1000
        case "datetime":
            moment = scalars.nanoseconds(start.datetime)
            if moment is None:
                raise invalid(f"'{start.datetime}' is not in a supported date/time format, please use RFC 3339")
            return moment // 1000
        case _:
            raise invalid("Malformed StartFrom")


def order_value(value: OrderValue) -> points.OrderValue:
    """The value as an answer carries it."""
    return points.OrderValue(int=value) if isinstance(value, int) else points.OrderValue(float=value)
