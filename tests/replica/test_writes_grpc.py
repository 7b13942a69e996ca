"""An unmodified qdrant-client on a replica that runs alone, beside the client's own engine: same calls, same data.

Where the engine differs from a real server, as measured, the script stays away.
"""

from __future__ import annotations

import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from qdrant_client import QdrantClient, models

SEEDS = range(6)
OPERATIONS = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Host and port of a replica that runs alone."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "server.replica",
            "--store",
            str(tmp_path_factory.mktemp("alone") / "store"),
            "--listen",
            "127.0.0.1:0",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line.startswith("understudy replica: listening on ")
    host, _, port = line.rpartition(" ")[2].rpartition(":")
    yield host, int(port)
    process.terminate()
    assert process.wait() == 0
    process.stdout.close()


@pytest.fixture
def client(address: tuple[str, int]) -> Iterator[QdrantClient]:
    """The official client, over gRPC."""
    host, port = address
    made = QdrantClient(host, grpc_port=port, prefer_grpc=True, check_compatibility=False)
    yield made
    made.close()


@pytest.fixture
def engine() -> Iterator[QdrantClient]:
    """The client's own engine."""
    made = QdrantClient(":memory:")
    yield made
    made.close()


_UUIDS = [str(uuid.UUID(int=n + 2**100)) for n in range(3)]
_IDS: list[int | str] = [*range(1, 12), *_UUIDS]


class Script:
    """A random but repeatable series of calls."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def some_ids(self) -> list[int | str]:
        """Ids, each once."""
        return self._rng.sample(_IDS, self._rng.randint(1, 4))

    def value(self) -> Any:
        """Anything that a payload may hold."""
        return self._rng.choice(
            [1, 2, 2.5, "x", "y", True, None, [], [1, "x", None], {"b": 1}, {"b": [{"c": 1}, {"c": 2}], "d": None}]
        )

    def payload(self) -> dict[str, Any]:
        """A payload."""
        return {key: self.value() for key in self._rng.sample("abc", self._rng.randint(0, 3))}

    def vector(self) -> dict[str, Any]:
        """Some of the vectors of a point."""
        vectors: dict[str, Any] = {
            "d": [self._rng.randrange(-16, 17) / 8 for _ in range(3)],
            "e": [self._rng.randrange(-16, 17) / 8 for _ in range(2)],
            "s": models.SparseVector(
                indices=self._rng.sample(range(20), 3), values=[self._rng.randrange(1, 9) / 8 for _ in range(3)]
            ),
            "m": [[self._rng.randrange(-16, 17) / 8 for _ in range(2)] for _ in range(self._rng.randint(1, 3))],
        }
        return {name: vectors[name] for name in self._rng.sample(sorted(vectors), self._rng.randint(1, 4))}

    def condition(self) -> models.Filter:
        """A filter on which the two agree."""
        choice = self._rng.randrange(4)
        if choice == 0:
            return models.Filter(must=[models.HasIdCondition(has_id=self.some_ids())])
        if choice == 1:
            match = models.MatchValue(value=self._rng.choice(["x", "y", 1, 2]))
            return models.Filter(must=[models.FieldCondition(key=self._rng.choice("abc"), match=match)])
        if choice == 2:
            empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=self._rng.choice("abc")))
            return models.Filter(must_not=[empty])
        range_ = models.FieldCondition(key=self._rng.choice("abc"), range=models.Range(gte=1, lt=3))
        return models.Filter(should=[range_, models.HasIdCondition(has_id=self.some_ids())])

    def selector(self) -> Any:
        """Points by id or filter."""
        return self.some_ids() if self._rng.random() < 0.6 else models.FilterSelector(filter=self.condition())

    def points(self) -> list[models.PointStruct]:
        """Whole points."""
        return [models.PointStruct(id=one, vector=self.vector(), payload=self.payload()) for one in self.some_ids()]

    def call(self) -> tuple[str, dict[str, Any]]:
        """One call: method of the client and its arguments."""
        rng = self._rng
        kind = rng.choice(["upsert"] * 4 + ["delete", "set", "set", "overwrite", "unset", "clear", "vectors", "drop"])
        match kind:
            case "upsert":
                return "upsert", {"points": self.points()}
            case "delete":
                return "delete", {"points_selector": self.selector()}
            case "set":
                key = rng.choice([None, None, "a", "b.c", "a.b", "c[0]", "c[]", "a.b[].c"])
                return "set_payload", {"payload": self.payload(), "points": self.selector(), "key": key}
            case "overwrite":
                return "overwrite_payload", {"payload": self.payload(), "points": self.selector()}
            case "unset":
                keys = rng.sample(["a", "b", "c", "a.b", "c.d", "b.b[].c", "c[]"], 2)
                return "delete_payload", {"keys": keys, "points": self.selector()}
            case "clear":
                return "clear_payload", {"points_selector": self.selector()}
            case "vectors":
                points = [models.PointVectors(id=one, vector=self.vector()) for one in self.some_ids()]
                return "update_vectors", {"points": points}
            case _:
                return "delete_vectors", {"vectors": [rng.choice("desm")], "points": self.selector()}


def _create(client: QdrantClient, name: str) -> None:
    client.create_collection(
        name,
        vectors_config={
            "d": models.VectorParams(size=3, distance=models.Distance.COSINE),
            "e": models.VectorParams(size=2, distance=models.Distance.EUCLID),
            "m": models.VectorParams(
                size=2,
                distance=models.Distance.DOT,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            ),
        },
        sparse_vectors_config={"s": models.SparseVectorParams()},
    )


def _existing(client: QdrantClient, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Keep to ids that exist: the engine raises for others before it changes any."""
    there = {record.id for record in client.scroll(name, limit=1000)[0]}
    kept = dict(arguments)
    for field in ("points", "points_selector"):
        if isinstance(kept.get(field), list):
            kept[field] = [one for one in kept[field] if getattr(one, "id", one) in there]
    return kept


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 4)
        case list():
            return [_rounded(one) for one in value]
        case dict():
            return {key: _rounded(one) for key, one in value.items()}
        case models.SparseVector():
            return sorted(zip(value.indices, _rounded(value.values), strict=True))
        case _:
            return value


def _state(client: QdrantClient, name: str) -> list[tuple[Any, Any, Any]]:
    records, _ = client.scroll(name, limit=1000, with_vectors=True)
    return [(record.id, record.payload, _rounded(record.vector or {})) for record in records]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_calls_leave_the_same_data(client: QdrantClient, engine: QdrantClient, seed: int) -> None:
    script, name = Script(seed), f"seed{seed}"
    _create(client, name)
    _create(engine, name)
    history = []
    for _ in range(OPERATIONS):
        method, arguments = script.call()
        if method not in ("upsert", "delete"):
            arguments = _existing(engine, name, arguments)
        if [] in (arguments.get("points"), arguments.get("points_selector")):
            continue
        history.append((method, arguments))
        for one in (client, engine):
            result = getattr(one, method)(name, **arguments)
            assert result.status == models.UpdateStatus.COMPLETED
        mine, theirs = _state(client, name), _state(engine, name)
        assert mine == theirs, f"seed {seed}, after {len(history)} calls, the last: {history[-1]}"
    assert len(mine) > 3


def test_batches_leave_the_same_data(client: QdrantClient, engine: QdrantClient) -> None:
    operations: list[models.UpdateOperation] = [
        models.UpsertOperation(
            upsert=models.PointsList(
                points=[
                    models.PointStruct(id=number, vector={"e": [number, 1]}, payload={"a": number})
                    for number in range(1, 6)
                ]
            )
        ),
        models.SetPayloadOperation(set_payload=models.SetPayload(payload={"b": 1}, points=[1, 2])),
        models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload={"c": 1}, points=[3])),
        models.DeletePayloadOperation(delete_payload=models.DeletePayload(keys=["a"], points=[1])),
        models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[4])),
        models.UpdateVectorsOperation(
            update_vectors=models.UpdateVectors(points=[models.PointVectors(id=1, vector={"d": [1, 0, 0]})])
        ),
        models.DeleteVectorsOperation(delete_vectors=models.DeleteVectors(points=[2], vector=["e"])),
        models.DeleteOperation(delete=models.PointIdsList(points=[5])),
        models.DeleteOperation(
            delete=models.FilterSelector(
                filter=models.Filter(must=[models.FieldCondition(key="c", match=models.MatchValue(value=1))])
            )
        ),
    ]
    for one in (client, engine):
        _create(one, "batch")
        one.batch_update_points("batch", operations)
    assert _state(client, "batch") == _state(engine, "batch")
    assert [record[0] for record in _state(client, "batch")] == [1, 2, 4]


def test_conditional_upserts_leave_the_same_data(client: QdrantClient, engine: QdrantClient) -> None:
    guard = models.Filter(must=[models.FieldCondition(key="v", match=models.MatchValue(value=1))])
    first = [models.PointStruct(id=n, vector={"e": [n, 1]}, payload={"v": n}) for n in (1, 2)]
    second = [models.PointStruct(id=n, vector={"e": [n, 9]}, payload={"v": 9}) for n in (1, 2, 3)]
    for one in (client, engine):
        _create(one, "guarded")
        one.upsert("guarded", first)
        one.upsert("guarded", second, update_filter=guard)
    assert _state(client, "guarded") == _state(engine, "guarded")
    assert [record[1] for record in _state(client, "guarded")] == [{"v": 9}, {"v": 2}, {"v": 9}]


def test_life_of_a_collection_through_the_client(client: QdrantClient) -> None:
    assert not client.collection_exists("life")
    _create(client, "life")
    assert client.collection_exists("life")
    with pytest.raises(grpc.RpcError) as refused:
        _create(client, "life")
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS  # type: ignore[attr-defined]
    assert "already exists" in refused.value.details()  # type: ignore[attr-defined]
    assert "life" in [described.name for described in client.get_collections().collections]
    info = client.get_collection("life")
    assert info.config.params.vectors["d"].size == 3  # type: ignore[index]
    assert info.points_count == 0
    client.create_payload_index("life", "k", models.PayloadSchemaType.KEYWORD, wait=True)
    assert client.get_collection("life").payload_schema["k"].data_type == models.PayloadSchemaType.KEYWORD
    client.delete_payload_index("life", "k")
    assert not client.get_collection("life").payload_schema
    assert client.update_collection("life", hnsw_config=models.HnswConfigDiff(m=4))
    assert client.get_collection("life").config.hnsw_config.m == 4
    give = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="life", alias_name="alias"))
    assert client.update_collection_aliases([give])
    assert [alias.alias_name for alias in client.get_collection_aliases("life").aliases] == ["alias"]
    client.upsert("alias", [models.PointStruct(id=1, vector={"e": [1, 2]})])
    assert client.count("life").count == 1
    assert client.delete_collection("life")
    assert not client.collection_exists("life")
    assert client.delete_collection("life") is False


def test_many_points_in_one_call(client: QdrantClient) -> None:
    client.create_collection("many", vectors_config=models.VectorParams(size=64, distance=models.Distance.DOT))
    points = [models.PointStruct(id=n, vector=[float(n)] * 64, payload={"n": n}) for n in range(5000)]
    client.upsert("many", points)
    assert client.count("many").count == 5000
    client.upload_points("many", points, batch_size=500)
    assert client.count("many").count == 5000
    client.delete_collection("many")
