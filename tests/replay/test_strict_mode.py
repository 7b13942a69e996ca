"""Replay to a Qdrant whose strict mode is in the way: limits on a call, on a collection, and on calls in a minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from generated.qdrant import collections_pb2, points_pb2
from generated.understudy.wal.v1 import entry_pb2
from server import config
from server.rpc import Call, Code, Reply
from tests.faults.backends import says

from .fakes import MemoryLog, MiniQdrant, Refusal, delete, entry, point, sent, set_payload, upsert
from .test_replayer import Bench

TOGETHER = config.Replay(merge_points=100)


class Limited(MiniQdrant):
    """Refuses what a strict mode would: `upsert_max_batchsize` and `max_points_count`, with the texts of Qdrant."""

    def __init__(self, *, batch: int = 1000, count: int = 1000) -> None:
        super().__init__("c")
        self.batch, self.count = batch, count
        self.calls: list[list[int]] = []

    def _put(self, name: str, given: Any) -> None:
        self.calls.append([each.id.num for each in given])
        if len(given) > self.batch:
            raise Refusal(
                Code.INVALID_ARGUMENT,
                f'Bad request: Limit exceeded {len(given)} > {self.batch} for "upsert limit". '
                f'Help: Reduce the "upsert limit" parameter to or below {self.batch}.',
            )
        if len(self.points[name]) >= self.count:
            raise Refusal(Code.INVALID_ARGUMENT, f"Bad request: Max points count limit of {self.count} reached!")
        super()._put(name, given)


async def test_more_entries_in_a_call_than_a_batch_may_hold_are_sent_in_smaller_calls() -> None:
    qdrant = Limited(batch=3)
    bench = Bench(MemoryLog(*(upsert(point(n)) for n in range(20))), qdrant, TOGETHER)
    await bench.drain()
    assert set(qdrant.points["c"]) == set(range(20))
    assert bench.log.kept == {}
    assert len(qdrant.calls[0]) == 20


async def test_an_entry_larger_than_a_batch_may_be_by_now_goes_in_parts() -> None:
    """The limit was lowered after the entry was acknowledged."""
    qdrant = Limited(batch=3)
    bench = Bench(MemoryLog(upsert(*map(point, range(10)))), qdrant)
    await bench.drain()
    assert set(qdrant.points["c"]) == set(range(10))
    assert bench.log.kept == {}


async def test_what_a_full_collection_does_not_take_is_kept_and_the_rest_goes_on() -> None:
    qdrant = Limited(count=4)
    log = MemoryLog(
        *(upsert(point(n)) for n in range(4)), delete(99), *(upsert(point(n)) for n in range(10, 16)),
        set_payload(1, v=1), delete(2, 3), upsert(point(20)),
    )  # fmt: skip
    bench = Bench(log, qdrant, TOGETHER)
    await bench.drain()
    assert qdrant.points["c"] == {0: {}, 1: {"v": 1}, 20: {}}
    assert sorted(log.kept) == [*range(6, 12)]
    assert {item.details for item in log.kept.values()} == {"Bad request: Max points count limit of 4 reached!"}


async def test_an_index_that_is_there_already_is_not_one_too_many() -> None:
    """Its answer was lost; sent again, it meets a collection that has as many as it may."""

    class Indexed(MiniQdrant):
        def _points_createfieldindex(self, request: points_pb2.CreateFieldIndexCollection) -> Any:
            raise Refusal(
                Code.INVALID_ARGUMENT,
                "Bad request: Collection already has the maximum number of payload indices (1). "
                "Help: Please delete an existing index before creating a new one.",
            )

        def _collections_get(self, request: collections_pb2.GetCollectionInfoRequest) -> Any:
            kind = collections_pb2.PayloadSchemaInfo(data_type=collections_pb2.PayloadSchemaType.Keyword)
            info = collections_pb2.CollectionInfo(payload_schema={"there": kind, 'there."as well"': kind})
            return collections_pb2.GetCollectionInfoResponse(result=info)

    def index(name: str, kind: points_pb2.FieldType) -> tuple[str, Any]:
        request = points_pb2.CreateFieldIndexCollection(collection_name="c", field_name=name, field_type=kind)
        return "/qdrant.Points/CreateFieldIndex", request

    keyword, integer = points_pb2.FieldType.FieldTypeKeyword, points_pb2.FieldType.FieldTypeInteger
    spelt = index('"there"."as well"', keyword)
    log = MemoryLog(index("there", keyword), index("other", keyword), index("there", integer), spelt)
    await Bench(log, Indexed("c")).drain()
    assert sorted(log.kept) == [2, 3]


# --- so many in a minute ---------------------------------------------------------------------------------------------


class Bucket:
    """In front of a small Qdrant: `capacity` tokens a minute, one for each point of an upsert, one for other calls."""

    def __init__(self, capacity: int, now: Callable[[], float]) -> None:
        self.qdrant = MiniQdrant("c")
        self._capacity, self._tokens = capacity, float(capacity)
        self._now, self._at = now, now()
        self.taken: list[int] = []

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        cost = len(sent(call).points) if call.method.endswith("Upsert") else 1
        if cost > self._capacity:
            return says(
                Code.RESOURCE_EXHAUSTED,
                "Rate limiting exceeded: Write rate limit exceeded, request larger than rate limiter capacity, "
                "please try to split your request",
            )
        now = self._now()
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._capacity / 60)
        self._at = now
        if self._tokens < cost:
            wait = (cost - self._tokens) * 60 / self._capacity
            return says(Code.RESOURCE_EXHAUSTED, "Rate limiting exceeded", retry_after=str(int(wait) + 1))
        self._tokens -= cost
        reply = await self.qdrant.handle(call)
        if call.method.endswith("Upsert"):
            self.taken += [each.id.num for each in sent(call).points]
        return reply


def limited(capacity: int, log: MemoryLog, settings: config.Replay) -> tuple[Bench, Bucket]:
    bench = Bench(log, MiniQdrant(), settings)
    bucket = Bucket(capacity, bench.clock.monotonic)
    return Bench(log, bucket, settings, clock=bench.clock), bucket


@pytest.mark.parametrize("settings", [TOGETHER, config.Replay(merge_points=1)])
async def test_a_rate_limit_is_waited_for(settings: config.Replay) -> None:
    bench, bucket = limited(4, MemoryLog(*(upsert(point(n)) for n in range(30))), settings)
    await bench.drain()
    assert bucket.taken == [*range(30)]
    assert bench.log.kept == {}
    assert bench.clock.monotonic() >= 1000 + 60 * (30 - 4) / 4


async def test_an_entry_of_more_points_than_a_minute_takes_is_sent_in_parts_that_are_not_sent_again() -> None:
    """Sent from the start each time, it would use up each minute for its first half and never come to its second."""
    log = MemoryLog(upsert(*map(point, range(11))), upsert(point(50)))
    bench, bucket = limited(4, log, config.Replay(merge_points=1))
    await bench.drain()
    assert bucket.taken == [*range(11), 50]
    assert log.kept == {}


async def test_the_operations_of_an_entry_are_not_sent_again_either() -> None:
    parts = [upsert(*(point(n) for n in range(at, at + 3))) for at in (0, 10, 20)]
    bench, bucket = limited(4, MemoryLog(entry(parts[0], *parts)), config.Replay(merge_points=1))
    await bench.drain()
    assert bucket.taken == [0, 1, 2, 10, 11, 12, 20, 21, 22]


async def test_equal_parts_of_an_entry_are_each_sent() -> None:
    """A part that was done is known by its place: an operation that comes twice is done twice."""
    parts = [upsert(point(1, v=1)), delete(1), upsert(point(1, v=1)), upsert(point(2, v=2), point(3, v=3))]
    bench, bucket = limited(2, MemoryLog(entry(parts[0], *parts)), config.Replay(merge_points=1))
    await bench.drain()
    assert bucket.qdrant.points["c"] == {1: {"v": 1}, 2: {"v": 2}, 3: {"v": 3}}
    assert bucket.taken == [1, 1, 2, 3]


async def test_after_any_other_failure_the_whole_entry_is_sent_again() -> None:
    """Qdrant may have been restarted, and what it had not flushed is gone."""
    log = MemoryLog(upsert(*map(point, range(6))))
    bench, bucket = limited(4, log, config.Replay(merge_points=1))
    handle, failed = bucket.handle, []

    async def once_unavailable(call: Call) -> Reply:
        if bucket.taken and not failed:
            failed.append(call)
            bucket.qdrant.points["c"].clear()
            return says(Code.UNAVAILABLE)
        return await handle(call)

    bucket.handle = once_unavailable  # type: ignore[method-assign]
    await bench.drain()
    assert set(bucket.qdrant.points["c"]) == set(range(6))
    assert bucket.taken == [0, 1, 2, 0, 1, 2, 3, 4, 5]


async def test_what_no_minute_takes_and_cannot_be_divided_is_kept() -> None:
    class Never(MiniQdrant):
        def _points_delete(self, request: points_pb2.DeletePoints) -> Any:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED, "Write rate limit exceeded, request larger than rate limiter capacity"
            )

    by_filter = ("/qdrant.Points/Delete", points_pb2.DeletePoints(collection_name="c", points={"filter": {}}))
    log = MemoryLog(by_filter, upsert(point(1)))
    qdrant = Never("c")
    await Bench(log, qdrant).drain()
    assert set(qdrant.points["c"]) == {1}
    (item,) = log.kept.values()
    assert (item.seq, item.code) == (1, Code.RESOURCE_EXHAUSTED)
    assert entry_pb2.Entry.FromString(item.record.body).method.endswith("Delete")
