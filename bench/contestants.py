"""Who takes part in `bench.replica`: the same points for everybody, and one way to ask each of them.

Promises: points and queries follow from the seed; every contestant answers a question with the ids that it found.
"""

from __future__ import annotations

import json
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common

SIZE = 384
TOP = 10
KINDS = 10
QUERIES = 200
BATCH = 200
NAME = "bench"
POINTS = "/qdrant.Points/"
PEER_HNSW = {"max_neighbors": 32, "ef_construction": 200, "ef_search": 500}
READY_SECONDS = 3600

Floats = npt.NDArray[np.float32]
Ask = Callable[[int], list[int]]


@dataclass
class Data:
    """Points 0 … n-1 and queries; the payload of a point follows from its number."""

    vectors: Floats
    queries: Floats

    @staticmethod
    def of(count: int, seed: int) -> Data:
        """Random directions."""
        chance = np.random.default_rng(seed)
        made = chance.standard_normal((count + QUERIES, SIZE), dtype=np.float32)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        return Data(made[:count], made[count:])

    def nearest(self, query: int, kind: int | None) -> list[int]:
        """The truth: the best ids, by exact scores."""
        scores = self.vectors @ self.queries[query]
        if kind is not None:
            scores = np.where(np.arange(len(scores)) % KINDS == kind, scores, -np.inf)
        return [int(at) for at in np.argsort(-scores)[:TOP]]


def kind_of(number: int) -> str:
    """The keyword of a point."""
    return f"kind-{number % KINDS}"


def text_of(number: int) -> str:
    """About 200 bytes."""
    return f"point {number} " + "lorem ipsum dolor sit amet " * 7


# --- Understudy ------------------------------------------------------------------------------------------------------


class Understudy:
    """The proxy as a client sees it: bytes of real requests, answers parsed."""

    def __init__(self, address: str, admin: str) -> None:
        self.address = address
        self._admin = admin
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])

    def call(self, method: str, request: Any, answer: type[Any]) -> Any:
        """One call."""
        send = self._channel.unary_unary(
            method, request_serializer=lambda one: one.SerializeToString(), response_deserializer=answer.FromString
        )
        return send(request, timeout=120)

    def load(self, data: Data) -> float:
        """Create the collection, put every point into it; returns the seconds that the points took."""
        create = collections.CreateCollection(collection_name=NAME)
        create.vectors_config.params.size = SIZE
        create.vectors_config.params.distance = collections.Cosine
        self.call("/qdrant.Collections/Create", create, collections.CollectionOperationResponse)
        field = points.CreateFieldIndexCollection(
            collection_name=NAME, field_name="kind", field_type=points.FieldTypeKeyword, wait=True
        )
        self.call(POINTS + "CreateFieldIndex", field, points.PointsOperationResponse)
        began = time.perf_counter()
        for first in range(0, len(data.vectors), BATCH):
            numbers = range(first, min(first + BATCH, len(data.vectors)))
            self.call(POINTS + "Upsert", upsert(numbers, data.vectors), points.PointsOperationResponse)
        return time.perf_counter() - began

    def wait_for_index(self) -> float:
        """Until the replica holds everything and its index is built; returns the seconds."""
        began = time.perf_counter()
        while time.perf_counter() < began + READY_SECONDS:
            with urllib.request.urlopen(f"http://{self._admin}/status", timeout=30) as answer:
                found = [one for one in json.load(answer)["collections"] if one["name"] == NAME]
            if found and found[0]["index_state"] == "ready" and not found[0]["index_lag"]:
                return time.perf_counter() - began
            time.sleep(0.5)
        raise SystemExit("the index was not built in time")

    def query(self, data: Data, kind: int | None) -> Ask:
        """Nearest points with payload."""
        requests = [search(query, kind) for query in data.queries]

        def ask(number: int) -> list[int]:
            answer = self.call(POINTS + "Query", requests[number], points.QueryResponse)
            return [hit.id.num for hit in answer.result]

        return ask

    def count(self, kind: int) -> int:
        """How many points are of a kind."""
        request = points.CountPoints(collection_name=NAME, filter=of_kind(kind), exact=True)
        return int(self.call(POINTS + "Count", request, points.CountResponse).result.count)

    def page(self, kind: int, start: int) -> list[int]:
        """A page of points of a kind."""
        request = points.ScrollPoints(
            collection_name=NAME, filter=of_kind(kind), offset=common.PointId(num=start), limit=TOP
        )
        request.with_payload.enable = True
        return [one.id.num for one in self.call(POINTS + "Scroll", request, points.ScrollResponse).result]

    def nothing(self) -> None:
        """A call that costs its hops and next to nothing else."""
        request = collections.CollectionExistsRequest(collection_name=NAME)
        self.call("/qdrant.Collections/CollectionExists", request, collections.CollectionExistsResponse)


def upsert(numbers: Sequence[int], vectors: Floats) -> points.UpsertPoints:
    """Points as a client sends them."""
    request = points.UpsertPoints(collection_name=NAME, wait=True)
    for number in numbers:
        point = request.points.add(id=common.PointId(num=number))
        point.vectors.vector.dense.data.extend(vectors[number % len(vectors)].tolist())
        point.payload["kind"].string_value = kind_of(number)
        point.payload["text"].string_value = text_of(number)
    return request


def of_kind(kind: int) -> common.Filter:
    """The keyword filter."""
    made = common.Filter()
    field = made.must.add().field
    field.key, field.match.keyword = "kind", f"kind-{kind}"
    return made


def search(query: Floats, kind: int | None) -> points.QueryPoints:
    """The nearest points with payload."""
    request = points.QueryPoints(collection_name=NAME, limit=TOP)
    request.query.nearest.dense.data.extend(query.tolist())
    request.with_payload.enable = True
    if kind is not None:
        request.filter.CopyFrom(of_kind(kind))
    return request


# --- peers -----------------------------------------------------------------------------------------------------------


def chroma(data: Data, directory: Path) -> tuple[Callable[[int | None], Ask], float]:
    """Bare Chroma in this process; returns how to ask, and the seconds that loading took."""
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(path=str(directory), settings=Settings(anonymized_telemetry=False))
    hnsw: Any = {"hnsw": {**PEER_HNSW, "space": "ip"}}
    collection = client.create_collection(NAME, configuration=hnsw, embedding_function=None)
    began = time.perf_counter()
    for first in range(0, len(data.vectors), 1000):
        numbers = range(first, min(first + 1000, len(data.vectors)))
        collection.add(
            ids=[str(number) for number in numbers],
            embeddings=data.vectors[first : first + 1000],
            metadatas=[{"kind": kind_of(number)} for number in numbers],
            documents=[text_of(number) for number in numbers],
        )
    took = time.perf_counter() - began

    def of(kind: int | None) -> Ask:
        where: Any = None if kind is None else {"kind": f"kind-{kind}"}

        def ask(number: int) -> list[int]:
            found = collection.query(
                query_embeddings=data.queries[number : number + 1],
                n_results=TOP,
                where=where,
                include=["metadatas", "documents", "distances"],
            )
            return [int(one) for one in found["ids"][0]]

        return ask

    return of, took


def numpy_scan(data: Data) -> Callable[[int | None], Ask]:
    """Every vector is looked at; payloads from a list."""
    payloads = [{"kind": kind_of(number), "text": text_of(number)} for number in range(len(data.vectors))]
    kinds = np.arange(len(data.vectors)) % KINDS

    def of(kind: int | None) -> Ask:
        def ask(number: int) -> list[int]:
            rows = None if kind is None else np.flatnonzero(kinds == kind)
            scores = (data.vectors if rows is None else data.vectors[rows]) @ data.queries[number]
            best = np.argpartition(-scores, TOP)[:TOP]
            best = best[np.argsort(-scores[best])]
            found = best if rows is None else rows[best]
            assert all(payloads[at] for at in found)
            return [int(at) for at in found]

        return ask

    return of


def local_mode(data: Data) -> Callable[[int | None], Ask]:
    """qdrant-client without a server."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection(NAME, models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    for first in range(0, len(data.vectors), 1000):
        numbers = range(first, min(first + 1000, len(data.vectors)))
        payloads: list[Any] = [{"kind": kind_of(number), "text": text_of(number)} for number in numbers]
        client.upsert(
            NAME,
            models.Batch(ids=list(numbers), vectors=data.vectors[first : first + 1000].tolist(), payloads=payloads),
        )

    def of(kind: int | None) -> Ask:
        match = models.FieldCondition(key="kind", match=models.MatchValue(value=f"kind-{kind}"))
        query_filter = None if kind is None else models.Filter(must=[match])

        def ask(number: int) -> list[int]:
            found = client.query_points(NAME, data.queries[number].tolist(), query_filter=query_filter, limit=TOP)
            return [int(hit.id) for hit in found.points]

        return ask

    return of


class Sqlite:
    """The lookups written by hand: a table with the payload and a column for the keyword, indexed or not."""

    def __init__(self, count: int, directory: Path, *, indexed: bool) -> None:
        self._connection = sqlite3.connect(directory / f"by-hand-{indexed}.sqlite3")
        self._connection.execute("CREATE TABLE points (id INTEGER PRIMARY KEY, payload TEXT, kind TEXT)")
        self._connection.executemany(
            "INSERT INTO points VALUES (?, ?, ?)",
            (
                (number, json.dumps({"kind": kind_of(number), "text": text_of(number)}), kind_of(number))
                for number in range(count)
            ),
        )
        self._kind = "kind" if indexed else "json_extract(payload, '$.kind')"
        if indexed:
            self._connection.execute("CREATE INDEX by_kind ON points (kind, id)")
        self._connection.commit()

    def count(self, kind: int) -> int:
        """How many points are of a kind."""
        statement = f"SELECT count(*) FROM points WHERE {self._kind} = ?"
        return int(self._connection.execute(statement, (f"kind-{kind}",)).fetchone()[0])

    def page(self, kind: int, start: int) -> list[int]:
        """A page of points of a kind, payload parsed."""
        statement = f"SELECT id, payload FROM points WHERE {self._kind} = ? AND id >= ? ORDER BY id LIMIT ?"
        rows = self._connection.execute(statement, (f"kind-{kind}", start, TOP)).fetchall()
        assert all(json.loads(payload) for _, payload in rows)
        return [int(number) for number, _ in rows]


# --- measuring -------------------------------------------------------------------------------------------------------
