"""A store with the write side on it, without process or socket, and short ways to build requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from qdrant_client.conversions.conversion import grpc_to_payload, json_to_value

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import json_with_int_pb2 as json_pb
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import entry_pb2 as wal
from server.replica import catalogue
from server.replica import requests as r
from server.replica.imports import Imports
from server.replica.points import id_of
from server.replica.store import Store
from server.replica.touched import Touched
from server.replica.writes import Writes
from tests.faults.clock import ManualClock
from tests.replica import matching

RESOLVED_POINTS = 20

CREATE = r.COLLECTIONS + "Create"
DROP = r.COLLECTIONS + "Delete"
ALIASES = r.COLLECTIONS + "UpdateAliases"


class Local:
    """The write side on a directory."""

    def __init__(self, directory: Path, *, known: bool = True) -> None:
        self.store = Store(directory, ManualClock())
        self.touched = Touched(self.store.applied_seq)
        self.writes = Writes(self.store, matching.scan, self.touched, ManualClock(), resolved_points=RESOLVED_POINTS)
        self.imports = Imports(self.store, self.touched)
        if known:
            with self.store.transaction() as tx:
                tx.set_meta(catalogue.KNOWN, "1")

    def do(self, method: str, request: Message) -> Any:
        """Prepare and apply one write; the answer, parsed. Raises Refusal."""
        body = self.writes.apply_direct(method, request.SerializeToString())
        if method.startswith(r.COLLECTIONS):
            return collections.CollectionOperationResponse.FromString(body)
        if method == r.UPDATE_BATCH:
            return pb.UpdateBatchResponse.FromString(body)
        return pb.PointsOperationResponse.FromString(body)

    def prepare(self, method: str, request: Message) -> list[tuple[str, Message]]:
        """The plain operations, parsed."""
        from server.rpc import METHODS

        return [
            (operation.method, METHODS[operation.method].request.FromString(operation.request))
            for operation in self.writes.prepare(method, request.SerializeToString())
        ]

    def apply(
        self, seq: int, method: str, request: Message, *, synced: bool = True, resolved: Sequence[wal.Operation] = ()
    ) -> control.Applied:
        """Apply one log entry."""
        return self.writes.apply([entry(seq, method, request, synced=synced, resolved=resolved)]).results[0]

    def points(self, name: str = "c") -> dict[Any, tuple[dict[str, Any], dict[str, list[float]]]]:
        """All points: id → (payload, dense vectors by name)."""
        collection = self.store.collection(name)
        assert collection is not None
        read = {}
        for record in self.store.scan(collection.cid, limit=1_000_000):
            payload = pb.PointStruct.FromString(record.payload).payload
            vectors = pb.NamedVectors.FromString(record.vectors).vectors
            point_id = id_of(record.key)
            read[point_id.uuid or point_id.num] = (
                grpc_to_payload(payload),  # type: ignore[arg-type]
                {vector_name: [round(x, 6) for x in vector.dense.data] for vector_name, vector in vectors.items()},
            )
        return read

    def payloads(self, name: str = "c") -> dict[Any, dict[str, Any]]:
        """All payloads by id."""
        return {point_id: payload for point_id, (payload, _) in self.points(name).items()}

    def set_completeness(self, completeness: control.Completeness, name: str = "c") -> None:
        """Say how much of a collection is here."""
        self.imports.set_completeness(control.SetCompletenessRequest(collection=name, completeness=completeness))

    def close(self) -> None:
        """Let go of the directory."""
        self.store.close()


@contextmanager
def local(directory: Path, *, known: bool = True) -> Iterator[Local]:
    """A write side that is closed at the end."""
    made = Local(directory, known=known)
    try:
        yield made
    finally:
        made.close()


def entry(
    seq: int, method: str, request: Message, *, synced: bool = True, resolved: Sequence[wal.Operation] = ()
) -> control.LogEntry:
    """A log entry."""
    name = getattr(request, "collection_name", "")
    return control.LogEntry(
        seq=seq,
        synced=synced,
        entry=wal.Entry(method=method, request=request.SerializeToString(), resolved=resolved, collection=name),
    )


def create(name: str = "c", size: int = 2, distance: int = collections.Distance.Dot) -> collections.CreateCollection:
    """A request for a collection with one unnamed vector."""
    params = collections.VectorParams(size=size, distance=distance)  # type: ignore[arg-type]
    return collections.CreateCollection(collection_name=name, vectors_config=collections.VectorsConfig(params=params))


def create_named(name: str = "c", **sizes: int) -> collections.CreateCollection:
    """A request for a collection with named vectors; size 0 = sparse."""
    request = collections.CreateCollection(collection_name=name)
    for vector, size in sizes.items():
        if size:
            params = collections.VectorParams(size=size, distance=collections.Distance.Dot)
            request.vectors_config.params_map.map[vector].CopyFrom(params)
        else:
            request.sparse_vectors_config.map[vector].SetInParent()
    return request


def point_id(value: int | str) -> common.PointId:
    """An id."""
    return common.PointId(num=value) if isinstance(value, int) else common.PointId(uuid=value)


def payload(values: dict[str, Any]) -> dict[str, json_pb.Value]:
    """A payload."""
    return {key: json_pb.Value.FromString(json_to_value(value).SerializeToString()) for key, value in values.items()}


def dense(*values: float) -> pb.Vectors:
    """One unnamed vector."""
    return pb.Vectors(vector=pb.Vector(dense=pb.DenseVector(data=values)))


def named(**vectors: Sequence[float]) -> pb.Vectors:
    """Named dense vectors."""
    made = {name: pb.Vector(dense=pb.DenseVector(data=values)) for name, values in vectors.items()}
    return pb.Vectors(vectors=pb.NamedVectors(vectors=made))


def point(value: int | str, vectors: pb.Vectors | None = None, **values: Any) -> pb.PointStruct:
    """A point."""
    return pb.PointStruct(id=point_id(value), vectors=vectors or dense(1, 2), payload=payload(values))


def upsert(*points: pb.PointStruct, name: str = "c", wait: bool = True) -> pb.UpsertPoints:
    """An upsert."""
    return pb.UpsertPoints(collection_name=name, points=points, wait=wait)


def ids(*values: int | str) -> pb.PointsSelector:
    """Points by id."""
    return pb.PointsSelector(points=pb.PointsIdsList(ids=[point_id(value) for value in values]))


def matching_keyword(key: str, value: str) -> common.Filter:
    """A filter on a keyword."""
    field = common.FieldCondition(key=key, match=common.Match(keyword=value))
    return common.Filter(must=[common.Condition(field=field)])


def where(key: str, value: str) -> pb.PointsSelector:
    """Points by a keyword."""
    return pb.PointsSelector(filter=matching_keyword(key, value))
