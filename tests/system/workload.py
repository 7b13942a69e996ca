"""Mixed reads and writes by several clients at once, each with a model of what must be there.

A writer owns a range of ids and does one call after the other, so the state of its points after the last acknowledged
call is known exactly. Every payload write carries a number of its own (`op`), so that the upstream's journal shows in
which order writes arrived, whatever form the replay gave them.

Promises: any exception that reaches a client is kept in `errors`; a read that does not show the writer's own last write
is kept in `stale`. `retry` = calls that failed are made again until they are acknowledged (for tests that kill the
proxy); without it the first error is final. With `Record.absences` a call is made again only when nobody was there to
answer it, and every other error counts. With `Record.pace` all clients together make calls at a steady rate.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import Message
from qdrant_client import QdrantClient, models

from generated.qdrant import points_pb2
from tests.system.presence import Absences, Pace
from tests.upstream.journal import Entry

Call = Callable[..., Awaitable[Any]]
# Clients that never think write faster than one Qdrant takes a replay in, and a drain would have no end.
THINK_SECONDS = 0.06
_ATTEMPTS = 2000
_RETRY_PAUSE_SECONDS = 0.02
_MESSAGES: dict[str, type[Message]] = {
    "Upsert": points_pb2.UpsertPoints,
    "SetPayload": points_pb2.SetPayloadPoints,
    "OverwritePayload": points_pb2.SetPayloadPoints,
    "UpdateBatch": points_pb2.UpdateBatchPoints,
}


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A write that a client was told is safe. Times are monotonic seconds."""

    op: int
    started: float
    ended: float


@dataclass(slots=True)
class Point:
    """What a point must be."""

    vector: list[float]
    payload: dict[str, Any]


@dataclass(slots=True)
class Record:
    """What happened, over all clients of one test."""

    errors: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    expected: dict[int, Point] = field(default_factory=dict)
    next_op: int = 1
    reads: int = 0
    writes: int = 0
    retries: int = 0
    absences: Absences | None = None
    pace: Pace | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def failed(self, what: str) -> None:
        """Keep an error."""
        self.errors.append(what)
        self.changed.set()

    async def pause(self, chance: random.Random) -> None:
        """Between two calls of one client."""
        if self.pace is None:
            await asyncio.sleep(chance.random() * THINK_SECONDS)
        else:
            await self.pace.turn()

    def may_repeat(self, error: Exception, started: float) -> bool:
        """Whether a call that failed says nothing about the proxy, for the proxy was not there."""
        return self.absences is not None and self.absences.explain(error, started)

    def op(self) -> int:
        """A number that no other write has."""
        self.next_op += 1
        return self.next_op - 1


@dataclass(slots=True)
class Writer:
    """One client that writes `first … first + size - 1` and reads its own writes."""

    call: Call
    record: Record
    collection: str
    first: int
    size: int
    vectors: np.ndarray[Any, Any]
    seed: int
    retry: bool = False
    mine: dict[int, Point] = field(default_factory=dict)
    stopped: bool = False
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        """Seed."""
        self._random = random.Random(self.seed)

    async def run(self, steps: int | None = None) -> None:
        """Do `steps` calls, or go on until `stopped`."""
        done = 0
        while not self.stopped and (steps is None or done < steps):
            await self.step()
            done += 1
            await self.record.pause(self._random)

    async def step(self) -> None:
        """One write, and now and then a read of what was written."""
        kind = self._random.choices(
            [self._upsert, self._set, self._overwrite, self._delete, self._vectors, self._delete_key, self._batch],
            [6, 3, 2, 2, 2, 1, 1],
        )[0]
        touched = await kind()
        if touched is not None and self._random.random() < 0.5:
            await self._look(touched)

    # --- the writes ---

    def _new(self, op: int) -> Point:
        vector = self.vectors[self._random.randrange(len(self.vectors))].tolist()
        return Point(vector, {"op": op, "writer": self.first, "tag": self._random.choice("abc")})

    def _pick(self) -> int | None:
        return self._random.choice(list(self.mine)) if self.mine else None

    async def _upsert(self) -> int | None:
        op = self.record.op()
        count = self._random.choice([1, 1, 1, 4])
        ids = self._random.sample(range(self.first, self.first + self.size), count)
        new = {point_id: self._new(op) for point_id in ids}
        points = [models.PointStruct(id=i, vector=p.vector, payload=dict(p.payload)) for i, p in new.items()]
        if not await self._write(op, "upsert", points=points, wait=True):
            return None
        self._now(new)
        return ids[0]

    async def _set(self) -> int | None:
        if (point_id := self._pick()) is None:
            return None
        op = self.record.op()
        payload = {"op": op, "set": self._random.random()}
        if not await self._write(op, "set_payload", payload=payload, points=[point_id]):
            return None
        old = self.mine[point_id]
        self._now({point_id: Point(old.vector, {**old.payload, **payload})})
        return point_id

    async def _overwrite(self) -> int | None:
        if (point_id := self._pick()) is None:
            return None
        op = self.record.op()
        payload = {"op": op, "writer": self.first}
        if not await self._write(op, "overwrite_payload", payload=payload, points=[point_id]):
            return None
        self._now({point_id: Point(self.mine[point_id].vector, payload)})
        return point_id

    async def _delete_key(self) -> int | None:
        if (point_id := self._pick()) is None:
            return None
        if not await self._write(None, "delete_payload", keys=["set", "tag"], points=[point_id]):
            return None
        old = self.mine[point_id]
        kept = {key: value for key, value in old.payload.items() if key not in ("set", "tag")}
        self._now({point_id: Point(old.vector, kept)})
        return point_id

    async def _vectors(self) -> int | None:
        if (point_id := self._pick()) is None:
            return None
        vector = self._new(0).vector
        points = [models.PointVectors(id=point_id, vector=vector)]
        if not await self._write(None, "update_vectors", points=points):
            return None
        self._now({point_id: Point(vector, self.mine[point_id].payload)})
        return point_id

    async def _delete(self) -> int | None:
        if (point_id := self._pick()) is None:
            return None
        if self._random.random() < 0.5:
            selector: Any = models.PointIdsList(points=[point_id])
        else:
            selector = models.FilterSelector(filter=models.Filter(must=[models.HasIdCondition(has_id=[point_id])]))
        if not await self._write(None, "delete", points_selector=selector):
            return None
        self._now({point_id: None})
        return point_id

    async def _batch(self) -> int | None:
        op = self.record.op()
        new_id = self._random.randrange(self.first, self.first + self.size)
        new = self._new(op)
        operations: list[Any] = [
            models.UpsertOperation(
                upsert=models.PointsList(
                    points=[models.PointStruct(id=new_id, vector=new.vector, payload=dict(new.payload))]
                )
            ),
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"batch": op}, points=[new_id])),
        ]
        if not await self._write(op, "batch_update_points", update_operations=operations):
            return None
        self._now({new_id: Point(new.vector, {**new.payload, "batch": op})})
        return new_id

    def _now(self, changes: dict[int, Point] | dict[int, None]) -> None:
        for point_id, point in changes.items():
            if point is None:
                self.mine.pop(point_id, None)
                self.record.expected.pop(point_id, None)
            else:
                self.mine[point_id] = self.record.expected[point_id] = point

    async def _write(self, op: int | None, name: str, **arguments: Any) -> bool:
        started = time.monotonic()
        if not await self._attempt(name, arguments):
            return False
        self.record.writes += 1
        self.record.changed.set()
        if op is not None:
            self.record.acknowledged.append(Acknowledged(op, started, time.monotonic()))
        return True

    # --- the reads ---

    async def _look(self, point_id: int) -> None:
        if self.record.pace is not None:
            self.record.pace.spend()
        found: list[Any] = []
        arguments = {"ids": [point_id], "with_payload": True, "with_vectors": True}
        if not await self._attempt("retrieve", arguments, found):
            return
        self.record.reads += 1
        expected = self.mine.get(point_id)
        records = found[-1]
        seen = (records[0].payload, records[0].vector) if records else None
        wanted = (expected.payload, expected.vector) if expected else None
        if not same(seen, wanted):
            self.record.stale.append(f"point {point_id}: saw {seen}, wrote {wanted}")

    async def _attempt(self, name: str, arguments: dict[str, Any], found: list[Any] | None = None) -> bool:
        for _ in range(_ATTEMPTS):
            began = time.monotonic()
            try:
                result = await self.call(name, self.collection, **arguments)
            except Exception as error:  # noqa: BLE001 - whatever reaches the client is what this counts
                if not self.retry and not self.record.may_repeat(error, began):
                    self.record.failed(f"{name}, after {time.monotonic() - began:.2f} s: {error!r}")
                    return False
                self.record.retries += 1
                await asyncio.sleep(_RETRY_PAUSE_SECONDS)
                continue
            if found is not None:
                found.append(result)
            return True
        self.record.failed(f"{name}: not acknowledged in {_ATTEMPTS} attempts")
        return False


@dataclass(slots=True)
class Reader:
    """One client that searches, scrolls and counts; any answer will do, but an answer there must be."""

    call: Call
    record: Record
    collection: str
    queries: np.ndarray[Any, Any]
    seed: int
    stopped: bool = False

    async def run(self) -> None:
        """Go on until `stopped`."""
        rng = random.Random(self.seed)
        while not self.stopped:
            await self._one(rng)
            await self.record.pause(rng)

    async def _one(self, rng: random.Random) -> None:
        vector = self.queries[rng.randrange(len(self.queries))].tolist()
        tagged = models.Filter(must=[models.FieldCondition(key="tag", match=models.MatchValue(value="a"))])
        name, arguments = rng.choice(
            [
                ("query_points", {"query": vector, "limit": 5, "with_payload": True}),
                ("query_points", {"query": vector, "limit": 5, "query_filter": tagged}),
                ("scroll", {"limit": 20}),
                ("count", {"count_filter": tagged}),
                ("get_collection", {}),
            ]
        )
        began = time.monotonic()
        try:
            await self.call(name, self.collection, **arguments)
        except Exception as error:  # noqa: BLE001 - whatever reaches the client is what this counts
            if self.record.may_repeat(error, began):
                self.record.retries += 1
            else:
                self.record.failed(f"{name}, after {time.monotonic() - began:.2f} s: {error!r}")
        else:
            self.record.reads += 1


def threaded(client: QdrantClient) -> Call:
    """A blocking client's methods as coroutines, each call in a thread."""

    async def call(name: str, *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(getattr(client, name), *arguments, **options)

    return call


def direct(client: Any) -> Call:
    """An asyncio client's methods by name."""

    async def call(name: str, *arguments: Any, **options: Any) -> Any:
        return await getattr(client, name)(*arguments, **options)

    return call


# --- the comparison ---


def same(seen: tuple[Any, Any] | None, wanted: tuple[Any, Any] | None) -> bool:
    """Payloads equal, vectors equal to the last bit of a float32."""
    if seen is None or wanted is None:
        return seen is wanted
    return bool(seen[0] == wanted[0]) and np.array_equal(
        np.asarray(seen[1], np.float32), np.asarray(wanted[1], np.float32)
    )


def differences(client: QdrantClient, collection: str, expected: dict[int, Point]) -> list[str]:
    """Where a server's content is not what was acknowledged: lost, left over or different points."""
    held = {record.id: record for record in scroll_all(client, collection)}
    found = [f"lost: {point_id}" for point_id in sorted(expected.keys() - held.keys())]
    found += [f"left over: {point_id}" for point_id in sorted(held.keys() - expected.keys())]
    for point_id in sorted(expected.keys() & held.keys()):
        seen, wanted = held[point_id], expected[point_id]
        if not same((seen.payload, seen.vector), (wanted.payload, wanted.vector)):
            found.append(f"different: {point_id}: {seen.payload} {wanted.payload}")
    return found


def scroll_all(client: QdrantClient, collection: str) -> list[models.Record]:
    """Every point with payload and vectors."""
    records: list[models.Record] = []
    offset: Any = None
    while True:
        page, offset = client.scroll(collection, limit=500, offset=offset, with_payload=True, with_vectors=True)
        records += page
        if offset is None:
            return records


def arrivals(entries: list[Entry]) -> dict[int, int]:
    """For each `op` the place in the journal at which it first arrived."""
    first: dict[int, int] = {}
    for place, entry in enumerate(entries):
        kind = _MESSAGES.get(entry.method.rsplit("/", 1)[-1])
        if kind is not None and entry.code in ("OK", None):
            for op in _ops(kind.FromString(entry.body)):
                first.setdefault(op, place)
    return first


def _ops(message: Any) -> list[int]:
    name = message.DESCRIPTOR.name
    if name in ("PointStruct", "SetPayloadPoints", "SetPayload", "OverwritePayload"):
        return [message.payload["op"].integer_value] if "op" in message.payload else []
    if name == "PointsUpdateOperation":
        kind = message.WhichOneof("operation")
        return _ops(getattr(message, kind)) if kind else []
    parts = message.operations if name == "UpdateBatchPoints" else getattr(message, "points", ())
    if name in ("UpsertPoints", "PointStructList", "UpdateBatchPoints"):
        return [op for part in parts for op in _ops(part)]
    return []


def out_of_order(acknowledged: list[Acknowledged], first: dict[int, int]) -> list[str]:
    """Writes that never arrived, or arrived before a write that had been acknowledged when they were begun."""
    found = [f"never arrived: op {one.op}" for one in acknowledged if one.op not in first]
    arrived = [one for one in acknowledged if one.op in first]
    by_end = sorted(arrived, key=lambda one: one.ended)
    latest, latest_op, next_ended = -1, 0, 0
    for one in sorted(arrived, key=lambda one: one.started):
        while next_ended < len(by_end) and by_end[next_ended].ended < one.started:
            place = first[by_end[next_ended].op]
            if place > latest:
                latest, latest_op = place, by_end[next_ended].op
            next_ended += 1
        if first[one.op] < latest:
            found.append(f"op {one.op} arrived at {first[one.op]}, before op {latest_op} at {latest}")
    return found
