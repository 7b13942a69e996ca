"""What may be sent again after a crash, in any order of writes: against doing each write once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generated.qdrant import points_pb2 as pb
from server.replay.bisect import Operation, is_repeatable
from server.replay.parcel import Parcel, unpack
from server.replay.unmarked import Unmarked, shares_a_record
from server.rpc import METHODS, WAL_KINDS
from server.wal.record import EntryState, Record

from .fakes import POINTS, create, delete, entry, pid, point, selector, set_payload, upsert

Request = tuple[str, Any]


def parcel_of(seq: int, request: Request) -> Parcel:
    """An entry."""
    body = entry(request)
    number = METHODS[body.method].wal_kind
    return unpack(Record(seq, number, EntryState.PENDING, 0, b"", "", body.SerializeToString(), 0), WAL_KINDS)


def by_filter() -> Request:
    """A payload for whatever matches."""
    request = pb.SetPayloadPoints(collection_name="c")
    request.points_selector.filter.must.add().has_id.has_id.append(pid(1))
    return POINTS + "SetPayload", request


def on_points(name: str, kind: type[Any], **fields: Any) -> Request:
    """A write to points that are there."""
    return POINTS + name, kind(collection_name="c", **fields)


REPEATABLE = [
    set_payload(1, v=1),
    on_points("OverwritePayload", pb.SetPayloadPoints, points_selector=selector(1)),
    on_points("DeletePayload", pb.DeletePayloadPoints, points_selector=selector(1), keys=["v"]),
    on_points("ClearPayload", pb.ClearPayloadPoints, points=selector(1)),
    on_points("UpdateVectors", pb.UpdatePointVectors, points=[pb.PointVectors(id=pid(1))]),
    on_points("DeleteVectors", pb.DeletePointVectors, points_selector=selector(1)),
]
NOT_REPEATABLE = [
    by_filter(),
    create(),
    on_points("UpdateBatch", pb.UpdateBatchPoints, operations=[pb.PointsUpdateOperation()]),
    upsert(point(1), update_mode=pb.UpdateMode.InsertOnly),
]


@pytest.mark.parametrize("request_", REPEATABLE, ids=lambda each: each[0])
def test_what_may_be_repeated(request_: Request) -> None:
    assert is_repeatable(Operation(*request_))
    assert shares_a_record(parcel_of(1, request_))


@pytest.mark.parametrize("request_", NOT_REPEATABLE, ids=lambda each: each[0])
def test_what_may_not_be_repeated(request_: Request) -> None:
    assert not is_repeatable(Operation(*request_))
    parcel = parcel_of(1, request_)
    assert not shares_a_record(parcel)
    unmarked = Unmarked()
    assert not unmarked.bars([parcel])
    unmarked.add([parcel_of(2, upsert(point(9)))])
    assert unmarked.bars([parcel])


def test_conditions_are_not_repeatable() -> None:
    request = pb.UpdatePointVectors(collection_name="c", points=[pb.PointVectors(id=pid(1))])
    assert is_repeatable(Operation(POINTS + "UpdateVectors", request))
    if "update_filter" in request.DESCRIPTOR.fields_by_name:
        request.update_filter.SetInParent()
        assert not is_repeatable(Operation(POINTS + "UpdateVectors", request))


@pytest.mark.parametrize(
    ("before", "after", "bars"),
    [
        (upsert(point(1)), upsert(point(1)), False),
        (upsert(point(1)), delete(1), False),
        (upsert(point(1)), set_payload(2, v=1), False),
        (upsert(point(1)), set_payload(1, v=1), True),
        (upsert(point(1)), set_payload(1, collection="alias", v=1), True),
        (set_payload(1, v=1), set_payload(2, v=1), False),
        (set_payload(1, v=1), set_payload(1, v=2), True),
        (set_payload(1, v=1), upsert(point(1)), True),
        (set_payload(1, v=1), delete(1), True),
        (set_payload(1, v=1), delete(2), False),
    ],
)
def test_what_bars_what(before: Request, after: Request, bars: bool) -> None:
    unmarked = Unmarked()
    unmarked.add([parcel_of(1, before)])
    # The order in which it is asked makes no difference.
    assert not unmarked.bars([parcel_of(2, set_payload(77, v=1))])
    assert unmarked.bars([parcel_of(2, after)]) is bars
    assert (unmarked.count, unmarked.last_seq) == (1, 1)
    unmarked.clear()
    assert not unmarked.bars([parcel_of(2, after)])


WRITES = st.tuples(
    st.sampled_from(["upsert", "delete", "payload", "clear"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=2, unique=True),
)


def done(state: dict[int, dict[str, int]], seq: int, write: tuple[str, list[int]]) -> list[int]:
    """One write to a small Qdrant; the points that it did not find."""
    kind, ids = write
    for number in ids:
        if kind == "upsert":
            state[number] = {"v": seq}
        elif kind == "delete":
            state.pop(number, None)
        elif number in state:
            state[number] = {} if kind == "clear" else state[number] | {f"k{seq % 2}": seq}
    return [number for number in ids if kind in ("payload", "clear") and number not in state]


def request_of(write: tuple[str, list[int]], seq: int) -> Request:
    """As a client sends it."""
    kind, ids = write
    match kind:
        case "upsert":
            return upsert(*(point(number, v=seq) for number in ids))
        case "delete":
            return delete(*ids)
        case "payload":
            return set_payload(*ids, v=seq)
    return on_points("ClearPayload", pb.ClearPayloadPoints, points=selector(*ids))


@settings(max_examples=500, deadline=None)
@given(writes=st.lists(WRITES, min_size=1, max_size=8))
def test_all_that_is_unmarked_may_be_done_again(writes: list[tuple[str, list[int]]]) -> None:
    """At each moment a crash: what the cursor has not passed is done once more, in order."""
    unmarked = Unmarked()
    state: dict[int, dict[str, int]] = {1: {}, 2: {}}
    waiting: list[tuple[int, tuple[str, list[int]]]] = []
    told: dict[int, list[int]] = {}
    for seq, write in enumerate(writes, 1):
        parcel = parcel_of(seq, request_of(write, seq))
        if unmarked.bars([parcel]):
            unmarked.clear()
            waiting.clear()
        told[seq] = done(state, seq, write)
        unmarked.add([parcel])
        waiting.append((seq, write))
        again = {number: dict(payload) for number, payload in state.items()}
        answers = {each: done(again, each, one) for each, one in waiting}
        assert again == state
        assert answers == {each: told[each] for each in _seqs(waiting)}


def _seqs(waiting: Iterable[tuple[int, Any]]) -> list[int]:
    return [seq for seq, _ in waiting]
