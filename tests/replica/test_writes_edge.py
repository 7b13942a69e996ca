"""Writes beside the real Qdrant engine: payload edits by path, conditional upserts, stored vectors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge as edge
from qdrant_client import models as m

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.replica import requests as r
from tests.replica.edge_engine import Edge
from tests.replica.local_store import CREATE, Local, create, dense, ids, local, payload, point, upsert

_PATHS = ["a", "b", "a.b", "a.b.c", "a[0]", "a[1].b", "a[]", "a[].b", "b.c[0].d", '"a"."b"', "c[5]", "a.b[]", "b[0][0]"]
_DISTANCES = {
    m.Distance.COSINE: collections.Distance.Cosine,
    m.Distance.DOT: collections.Distance.Dot,
    m.Distance.EUCLID: collections.Distance.Euclid,
    m.Distance.MANHATTAN: collections.Distance.Manhattan,
}


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Local, Edge]]:
    """Collection `c` here and in the engine."""
    engine = Edge(tmp_path / "edge", {"": m.VectorParams(size=2, distance=m.Distance.DOT)})
    with local(tmp_path / "store") as here:
        here.do(CREATE, create())
        yield here, engine
    engine.close()


def _engine_payloads(engine: Edge) -> dict[Any, dict[str, Any]]:
    records, _ = engine.shard.scroll(edge.ScrollRequest(limit=1000, with_payload=True))
    return {record.id: record.payload or {} for record in records}


def _value(rng: random.Random, depth: int = 0) -> Any:
    scalars: list[Any] = [1, 2.5, "x", True, None, [], {}]
    if depth < 3 and rng.random() < 0.6:
        if rng.random() < 0.5:
            return [_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
        return {key: _value(rng, depth + 1) for key in rng.sample("abcd", rng.randint(0, 3))}
    return rng.choice(scalars)


def _values(rng: random.Random) -> dict[str, Any]:
    return {key: _value(rng) for key in rng.sample("abcd", rng.randint(0, 3))}


@pytest.mark.parametrize("seed", range(8))
def test_payload_edits_by_path(both: tuple[Local, Edge], seed: int) -> None:
    here, engine = both
    rng = random.Random(seed)
    numbers = [1, 2, 3]
    here.do(r.UPSERT, upsert(*[point(number) for number in numbers]))
    engine.upsert([m.PointStruct(id=number, vector=[1, 2]) for number in numbers])
    for _ in range(150):
        some = rng.sample(numbers, rng.randint(1, 3))
        values, path = _values(rng), rng.choice([None, *_PATHS])
        what = rng.choice(["set", "set", "overwrite", "delete", "clear"])
        match what:
            case "set":
                request = pb.SetPayloadPoints(
                    collection_name="c", payload=payload(values), points_selector=ids(*some), key=path
                )
                here.do(r.SET_PAYLOAD, request)
                engine.shard.update(edge.UpdateOperation.set_payload(some, values, path))
            case "overwrite":
                request = pb.SetPayloadPoints(collection_name="c", payload=payload(values), points_selector=ids(*some))
                here.do(r.OVERWRITE_PAYLOAD, request)
                engine.shard.update(edge.UpdateOperation.overwrite_payload(some, values))
            case "delete":
                keys = rng.sample(_PATHS, 2)
                here.do(
                    r.DELETE_PAYLOAD,
                    pb.DeletePayloadPoints(collection_name="c", keys=keys, points_selector=ids(*some)),
                )
                engine.shard.update(edge.UpdateOperation.delete_payload(some, keys))
            case _:
                here.do(r.CLEAR_PAYLOAD, pb.ClearPayloadPoints(collection_name="c", points=ids(*some)))
                engine.shard.update(edge.UpdateOperation.clear_payload(some))
                # Else the next set keeps its nulls: the oddity that the replica does not have.
                engine.shard.update(edge.UpdateOperation.set_payload(some, {}))
        assert here.payloads() == _engine_payloads(engine), (what, path, values)


@pytest.mark.parametrize("mode", ["Upsert", "InsertOnly", "UpdateOnly"])
@pytest.mark.parametrize("guarded", [False, True])
def test_conditional_upserts(both: tuple[Local, Edge], mode: str, guarded: bool) -> None:
    here, engine = both
    here.do(r.UPSERT, upsert(point(1, a="x"), point(2, a="y")))
    engine.upsert([m.PointStruct(id=n, vector=[1, 2], payload={"a": a}) for n, a in ((1, "x"), (2, "y"))])
    request = upsert(point(1, a="new"), point(2, a="new"), point(3, a="new"))
    request.update_mode = pb.UpdateMode.Value(mode)
    points = [edge.Point(number, [1, 2], {"a": "new"}) for number in (1, 2, 3)]
    condition = edge.Filter()
    if guarded:
        request.update_filter.must.add().field.key = "a"
        request.update_filter.must[0].field.match.keyword = "x"
        condition = edge.Filter(must=[edge.FieldCondition("a", match=edge.MatchValue("x"))])
    here.do(r.UPSERT, request)
    engine.shard.update(edge.UpdateOperation.upsert_points(points, condition, getattr(edge.UpdateMode, mode)))
    assert here.payloads() == _engine_payloads(engine)


@pytest.mark.parametrize("distance", list(_DISTANCES))
def test_stored_vectors(tmp_path: Path, distance: m.Distance) -> None:
    rng = np.random.default_rng(3)
    vectors = [*rng.normal(size=(50, 7)), np.zeros(7), np.full(7, 1e-5), np.full(7, 1e20), np.eye(7)[2]]
    vectors.append(vectors[0] / np.linalg.norm(vectors[0]))
    engine = Edge(tmp_path / "edge", {"": m.VectorParams(size=7, distance=distance)})
    with local(tmp_path / "store") as here:
        here.do(CREATE, create(size=7, distance=_DISTANCES[distance]))
        here.do(r.UPSERT, upsert(*[point(n, dense(*one)) for n, one in enumerate(vectors)]))
        engine.upsert([m.PointStruct(id=n, vector=one.tolist()) for n, one in enumerate(vectors)])
        records, _ = engine.shard.scroll(edge.ScrollRequest(limit=1000, with_vector=True))
        collection = here.store.collection("c")
        assert collection is not None
        kept = [
            list(pb.NamedVectors.FromString(record.vectors).vectors[""].dense.data)
            for record in here.store.scan(collection.cid)
        ]
        for mine, record in zip(kept, records, strict=True):
            assert mine == pytest.approx(list(record.vector), rel=1e-6), record.id
    engine.close()
