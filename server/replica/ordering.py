"""Points ordered by a payload field.

Promises: values as Qdrant's range index holds them; a point comes once for each of its values; ties by id, in the
direction of the order. Needs a range index on the field, as Qdrant does, and says so with its text.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from server.replica import paths, scalars
from server.replica.conditions import timestamp_nanoseconds
from server.replica.fields import Index
from server.replica.paths import Values
from server.replica.records import Key
from server.replica.refusal import Refusal, invalid, wrong_input
from server.replica.session import Coded, Selection, Session

OrderValue: TypeAlias = "int | float"
Ordered: TypeAlias = tuple[Key, OrderValue]

_EXACT = 2**53
_I64_MOST = 2**63 - 1
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

    def values(held_in: Values) -> tuple[OrderValue, ...]:
        return tuple({_value(index, held) for held in index.held_of(held_in)})

    coded = session.coded(selection, path)
    if coded is not None:
        held = coded.dictionary.derived(("order", index.kind), values)
        pairs = _pairs_of(_candidates(coded, held, start, falling, count), held)
    else:
        pairs = ((value, key) for key, found in session.walked(selection, path) for value in values(found))
    wanted = (pair for pair in pairs if start is None or (pair[0] <= start if falling else pair[0] >= start))
    pick = heapq.nlargest if falling else heapq.nsmallest
    return [(key, value) for value, key in pick(count, wanted)]


def _pairs_of(
    points_: Iterable[tuple[Key, int]], held: Sequence[tuple[OrderValue, ...]]
) -> Iterator[tuple[OrderValue, Key]]:
    for key, code in points_:
        for value in held[code]:
            yield value, key


def _candidates(
    coded: Coded, held: Sequence[tuple[OrderValue, ...]], start: OrderValue | None, falling: bool, count: int
) -> list[tuple[Key, int]]:
    """The points that can be among the first `count`, with their codes: those with one value are cut by numpy."""
    lengths = np.fromiter(map(len, held), dtype=np.int64, count=len(held))
    lengths_here = lengths[coded.codes]
    several = np.flatnonzero(lengths_here > 1)
    single = np.flatnonzero(lengths_here == 1)
    # A float has room for every value but very large integers: those order as floats, and equal ones are looked at.
    firsts = np.fromiter((one[0] if one else 0 for one in held), dtype=np.float64, count=len(held))
    numbers = firsts[coded.codes[single]]
    if start is not None:
        bound = float(start)
        passes = numbers <= bound if falling else numbers >= bound
        if abs(bound) >= _EXACT:
            for row in np.flatnonzero(numbers == bound).tolist():
                [value] = held[coded.codes[single[row]]]
                passes[row] = value <= start if falling else value >= start
        single, numbers = single[passes], numbers[passes]
    if len(single) > count:
        rank = -numbers if falling else numbers
        single = single[rank <= np.partition(rank, count - 1)[count - 1]]
    rows = np.concatenate((several, single)).tolist()
    return [(coded.keys[row], int(coded.codes[row])) for row in rows]


def _value(index: Index, held: object) -> OrderValue:
    assert isinstance(held, int | float)
    return int(held) // 1000 if index.kind == collections.Datetime else held


def _start(start: points.StartFrom) -> OrderValue:
    match start.WhichOneof("value"):
        case "float":
            return start.float
        case "integer":
            # Qdrant turns it into a float, and that into what the index holds.
            return min(int(float(start.integer)), _I64_MOST)
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
