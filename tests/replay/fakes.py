"""A log in memory and a very small Qdrant, for replay.

`MiniQdrant` knows collections of one dense vector, upsert, delete, set payload, batches and aliases, and refuses what
Qdrant refuses with its codes and texts. It is written from the rows of the facts, not from the code under test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.wal.v1 import entry_pb2
from server.errors import WalLatched
from server.rpc import METHODS, Call, Code, Reply
from server.wal.quarantine import Refused
from server.wal.record import EntryState, Record

POINTS = "/qdrant.Points/"
COLLECTIONS = "/qdrant.Collections/"


# --- requests --------------------------------------------------------------------------------------------------------


def pid(number: int) -> common.PointId:
    """A numeric id."""
    return common.PointId(num=number)


def point(number: int, vector: Sequence[float] = (1.0, 2.0), **payload: int) -> points_pb2.PointStruct:
    """A point with an unnamed vector and integer payload."""
    return points_pb2.PointStruct(
        id=pid(number),
        vectors=points_pb2.Vectors(vector=points_pb2.Vector(dense=points_pb2.DenseVector(data=vector))),
        payload={key: {"integer_value": value} for key, value in payload.items()},  # type: ignore[misc]
    )


def upsert(*given: points_pb2.PointStruct, collection: str = "c", **more: Any) -> tuple[str, Message]:
    """An Upsert."""
    return POINTS + "Upsert", points_pb2.UpsertPoints(collection_name=collection, points=given, **more)


def selector(*numbers: int) -> points_pb2.PointsSelector:
    """Points by id."""
    return points_pb2.PointsSelector(points=points_pb2.PointsIdsList(ids=map(pid, numbers)))


def delete(*numbers: int, collection: str = "c") -> tuple[str, Message]:
    """A Delete by ids."""
    return POINTS + "Delete", points_pb2.DeletePoints(collection_name=collection, points=selector(*numbers))


def set_payload(*numbers: int, collection: str = "c", **payload: int) -> tuple[str, Message]:
    """A SetPayload by ids."""
    return POINTS + "SetPayload", points_pb2.SetPayloadPoints(
        collection_name=collection,
        payload={key: {"integer_value": value} for key, value in payload.items()},  # type: ignore[misc]
        points_selector=selector(*numbers),
    )


def create(collection: str = "c", size: int = 2) -> tuple[str, Message]:
    """A Create with one unnamed vector."""
    params = collections_pb2.VectorParams(size=size, distance=collections_pb2.Distance.Dot)
    return COLLECTIONS + "Create", collections_pb2.CreateCollection(
        collection_name=collection, vectors_config=collections_pb2.VectorsConfig(params=params)
    )


def drop(collection: str = "c") -> tuple[str, Message]:
    """A Delete of a collection."""
    return COLLECTIONS + "Delete", collections_pb2.DeleteCollection(collection_name=collection)


def alias(name: str, collection: str) -> tuple[str, Message]:
    """An alias, made or moved."""
    request = collections_pb2.ChangeAliases()
    request.actions.add().create_alias.CopyFrom(
        collections_pb2.CreateAlias(alias_name=name, collection_name=collection)
    )
    return COLLECTIONS + "UpdateAliases", request


def entry(request: tuple[str, Message], *resolved: tuple[str, Message], maybe_applied: bool = False) -> entry_pb2.Entry:
    """The entry of a request, with what it was resolved to."""
    return entry_pb2.Entry(
        method=request[0],
        request=request[1].SerializeToString(),
        resolved=[entry_pb2.Operation(method=name, request=body.SerializeToString()) for name, body in resolved],
        maybe_applied=maybe_applied,
        collection=getattr(request[1], "collection_name", ""),
    )


def sent(call: Call) -> Any:
    """The request of a call, parsed."""
    return METHODS[call.method].request.FromString(call.body)


# --- the log ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """An entry in quarantine."""

    record: Record
    code: int
    details: str
    flaw: str = ""

    @property
    def seq(self) -> int:
        """Sequence number."""
        return self.record.seq


class MemoryLog:
    """Everything that was awaited is durable, so a crash is: forget the replayer, keep the log."""

    def __init__(self, *requests: tuple[str, Message] | entry_pb2.Entry) -> None:
        self.records: list[Record] = []
        self.replayed_seq = 0
        self.kept: dict[int, Item] = {}
        self.marks: list[int] = []
        self.batches: list[list[int]] = []
        self.failing = False
        for request in requests:
            self.append(request)

    def append(
        self, request: tuple[str, Message] | entry_pb2.Entry, *, trace: str = "", kind: int | None = None
    ) -> int:
        """Log one pending entry."""
        body = request if isinstance(request, entry_pb2.Entry) else entry(request)
        seq = len(self.records) + 1
        number = METHODS[body.method].wal_kind if kind is None else kind
        self.append_raw(Record(seq, number, EntryState.PENDING, 0, b"", trace, body.SerializeToString(), 0))
        return seq

    def append_raw(self, record: Record) -> None:
        """Log a record as it stands."""
        self.records.append(record)

    @property
    def pending_count(self) -> int:
        """See ports.PendingLog."""
        return len(self.records) - self.replayed_seq

    async def read_pending(self, limit_entries: int, limit_bytes: int) -> list[Record]:
        """See ports.PendingLog."""
        await asyncio.sleep(0)
        self._check()
        return self.records[self.replayed_seq : self.replayed_seq + limit_entries]

    async def mark_replayed(self, seq: int) -> None:
        """See ports.PendingLog."""
        await asyncio.sleep(0)
        self._check()
        assert self.replayed_seq < seq <= len(self.records)
        self.replayed_seq = seq
        self.marks.append(seq)

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        """See ports.PendingLog."""
        await asyncio.sleep(0)
        self._check()
        self.batches.append([each.record.seq for each in refused])
        for each in refused:
            assert each.record.seq > self.replayed_seq
            self.kept[each.record.seq] = Item(each.record, each.code, each.details)

    async def release_quarantined(self, seq: int) -> None:
        """See ports.PendingLog."""
        await asyncio.sleep(0)
        self._check()
        del self.kept[seq]

    def quarantined(self) -> list[Item]:
        """See ports.PendingLog."""
        return [self.kept[seq] for seq in sorted(self.kept)]

    def quarantined_entries(self) -> list[tuple[Item, Record]]:
        """See ports.PendingLog."""
        return [(item, item.record) for item in self.quarantined()]

    def _check(self) -> None:
        if self.failing:
            raise WalLatched("fdatasync failed")


# --- the other side --------------------------------------------------------------------------------------------------


class Refusal(Exception):
    """What the small Qdrant says no with."""

    def __init__(self, code: Code, details: str) -> None:
        super().__init__(details)
        self.code = code


class MiniQdrant:
    """A `rpc.Backend`. `points` maps collection → id → payload."""

    def __init__(self, *collections: str, size: int = 2) -> None:
        self.sizes: dict[str, int] = dict.fromkeys(collections, size)
        self.points: dict[str, dict[int, dict[str, int]]] = {name: {} for name in collections}
        self.aliases: dict[str, str] = {}
        self.key = ""
        self.refused: set[int] = set()

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        await asyncio.sleep(0)
        if self.key and dict(call.metadata).get("api-key") != self.key:
            return Reply(code=Code.UNAUTHENTICATED, details="Must provide an API key or an Authorization bearer token")
        try:
            request = METHODS[call.method].request.FromString(call.body)
            answer = getattr(self, "_" + call.method.removeprefix("/qdrant.").replace("/", "_").lower())(request)
        except Refusal as refusal:
            return Reply(code=refusal.code, details=str(refusal))
        return Reply(answer.SerializeToString())

    def _find(self, name: str) -> dict[int, dict[str, int]]:
        name = self.aliases.get(name, name)
        if name not in self.points:
            raise Refusal(Code.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
        return self.points[name]

    def _points_upsert(self, request: Any) -> Message:
        self._put(request.collection_name, request.points)
        return _done(request)

    def _put(self, name: str, given: Iterable[Any]) -> None:
        found = self._find(name)
        size = self.sizes[self.aliases.get(name, name)]
        for each in given:
            if len(each.vectors.vector.dense.data) != size:
                got = len(each.vectors.vector.dense.data)
                raise Refusal(
                    Code.INVALID_ARGUMENT, f"Wrong input: Vector dimension error: expected dim: {size}, got {got}"
                )
        for each in given:
            if each.id.num in self.refused:
                raise Refusal(Code.INVALID_ARGUMENT, f"Wrong input: point {each.id.num} is not wanted")
        for each in given:
            found[each.id.num] = {key: value.integer_value for key, value in each.payload.items()}

    def _points_delete(self, request: Any) -> Message:
        self._remove(request.collection_name, request.points)
        return _done(request)

    def _remove(self, name: str, chosen: Any) -> None:
        found = self._find(name)
        if chosen.WhichOneof("points_selector_one_of") == "filter":
            found.clear()
        for each in chosen.points.ids:
            found.pop(each.num, None)

    def _points_setpayload(self, request: Any) -> Message:
        self._merge(request.collection_name, request)
        return _done(request)

    def _merge(self, name: str, request: Any) -> None:
        found = self._find(name)
        missing = [each.num for each in request.points_selector.points.ids if each.num not in found]
        for each in request.points_selector.points.ids:
            if each.num in found:
                found[each.num] |= {key: value.integer_value for key, value in request.payload.items()}
        if missing:
            raise Refusal(Code.NOT_FOUND, f"Not found: No point with id {missing[0]} found")

    def _points_updatebatch(self, request: Any) -> Message:
        results = []
        for step in request.operations:
            kind = step.WhichOneof("operation")
            if kind == "upsert":
                self._put(request.collection_name, step.upsert.points)
            elif kind == "delete_points":
                self._remove(request.collection_name, step.delete_points.points)
            elif kind == "set_payload":
                self._merge(request.collection_name, step.set_payload)
            results.append(points_pb2.UpdateResult(status=points_pb2.UpdateStatus.Completed))
        return points_pb2.UpdateBatchResponse(result=results)

    def _collections_create(self, request: Any) -> Message:
        name = request.collection_name
        if name in self.points:
            raise Refusal(Code.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!")
        self.points[name] = {}
        self.sizes[name] = request.vectors_config.params.size
        return collections_pb2.CollectionOperationResponse(result=True)

    def _collections_delete(self, request: Any) -> Message:
        result = self.points.pop(request.collection_name, None) is not None
        return collections_pb2.CollectionOperationResponse(result=result)

    def _collections_get(self, request: Any) -> Message:
        self._find(request.collection_name)
        info = collections_pb2.CollectionInfo()
        params = info.config.params.vectors_config.params
        params.size, params.distance = self.sizes[request.collection_name], collections_pb2.Distance.Dot
        return collections_pb2.GetCollectionInfoResponse(result=info)

    def _collections_updatealiases(self, request: Any) -> Message:
        for action in request.actions:
            kind = action.WhichOneof("action")
            change = getattr(action, kind)
            if kind == "create_alias":
                self._find(change.collection_name)
                self.aliases[change.alias_name] = change.collection_name
            elif kind == "delete_alias":
                self.aliases.pop(change.alias_name, None)
            elif change.old_alias_name in self.aliases:
                self.aliases[change.new_alias_name] = self.aliases.pop(change.old_alias_name)
            else:
                raise Refusal(Code.NOT_FOUND, f"Not found: Alias {change.old_alias_name} does not exist!")
        return collections_pb2.CollectionOperationResponse(result=True)

    def _collections_listaliases(self, _request: Any) -> Message:
        listed = [
            collections_pb2.AliasDescription(alias_name=alias, collection_name=name)
            for alias, name in self.aliases.items()
        ]
        return collections_pb2.ListAliasesResponse(aliases=listed)


def _done(request: Any) -> Message:
    status = points_pb2.UpdateStatus.Completed if request.wait else points_pb2.UpdateStatus.Acknowledged
    return points_pb2.PointsOperationResponse(result=points_pb2.UpdateResult(operation_id=1, status=status))
