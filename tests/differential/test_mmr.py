"""MMR in prefetches, at every depth: the same points and scores as the engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import points_pb2 as pb
from server.rpc import COLLECTIONS, POINTS

from .calls import Call, Outcome, Refused
from .engine import Engine
from .replica import Replica
from .shapes import COLLECTION, Shape, Vector
from .values import spelt

SHAPE = Shape("mmr", {"c": Vector(3, "cosine"), "e": Vector(2, "euclid"), "m": Vector(2, "dot", is_multi=True)})
COUNT = 40
QUERIES = 120
SEED = 5


class Made:
    """Random points and queries. Points that lack the vector of MMR are among its candidates."""

    def __init__(self) -> None:
        self._chance = random.Random(SEED)

    def _numbers(self, size: int) -> pb.DenseVector:
        return pb.DenseVector(data=[self._chance.gauss(0, 1) for _ in range(size)])

    def _vector(self, name: str) -> dict[str, Any]:
        vector = SHAPE.vectors[name]
        if not vector.is_multi:
            return {"dense": self._numbers(vector.size)}
        return {"multi_dense": pb.MultiDenseVector(vectors=[self._numbers(vector.size) for _ in range(2)])}

    def upsert(self) -> pb.UpsertPoints:
        request = pb.UpsertPoints(collection_name=COLLECTION, wait=True)
        for number in range(COUNT):
            point = request.points.add(id=spelt(number))
            for name in SHAPE.vectors:
                if self._chance.random() < 0.8:
                    point.vectors.vectors.vectors[name].CopyFrom(pb.Vector(**self._vector(name)))
            point.vectors.vectors.SetInParent()
        return request

    def _query(self, name: str, *, by_mmr: bool) -> pb.Query:
        nearest = pb.VectorInput(**self._vector(name))
        if not by_mmr:
            return pb.Query(nearest=nearest)
        choice = self._chance.choice
        mmr = pb.Mmr(diversity=choice((None, 0.2, 0.9)), candidates_limit=choice((None, 2, 6, 20)))
        return pb.Query(nearest_with_mmr=pb.NearestInputWithMmr(nearest=nearest, mmr=mmr))

    def _prefetch(self, depth: int = 0) -> pb.PrefetchQuery:
        name = self._chance.choice(list(SHAPE.vectors))
        made = pb.PrefetchQuery(using=name, limit=self._chance.choice((1, 2, 5, 12)))
        made.query.CopyFrom(self._query(name, by_mmr=self._chance.random() < 0.6))
        if self._chance.random() < 0.3:
            made.score_threshold = self._chance.choice((0.1, 0.9))
        if depth < 2 and self._chance.random() < 0.7:
            made.prefetch.extend(self._prefetch(depth + 1) for _ in range(self._chance.randint(1, 2)))
        return made

    def request(self) -> pb.QueryPoints:
        made = pb.QueryPoints(collection_name=COLLECTION, limit=self._chance.choice((3, 10, 30)))
        made.prefetch.extend(self._prefetch() for _ in range(self._chance.randint(1, 2)))
        kind = self._chance.choice(("ranks", "scores", "nearest", "MMR"))
        if kind == "ranks":
            # With weights, since equal ranks of two prefetches would tie.
            made.query.rrf.k = 7
            made.query.rrf.weights.extend((1.0, 0.83)[: len(made.prefetch)])
        elif kind == "scores" and len(made.prefetch) == 1:
            # Of two, the best ones would tie.
            made.query.fusion = pb.Fusion.DBSF
        else:
            made.using = "c"
            made.query.CopyFrom(self._query("c", by_mmr=kind == "MMR"))
        return made


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[tuple[Replica, Engine]]:
    replica, engine = Replica(tmp_path / "replica", "1.20.0"), Engine(tmp_path / "engine")
    yield replica, engine
    replica.close()
    engine.close()


def found(outcome: Outcome) -> list[tuple[int | str, Any]]:
    assert not isinstance(outcome, Refused)
    points: Any = outcome
    return [(point.id.num or point.id.uuid, pytest.approx(point.score, abs=1e-4)) for point in points.result]


def test_prefetches_by_mmr_agree_with_the_engine(twins: tuple[Replica, Engine]) -> None:
    made = Made()
    for call in (Call(COLLECTIONS + "Create", SHAPE.create(COLLECTION)), Call(POINTS + "Upsert", made.upsert())):
        for twin in twins:
            assert not isinstance(twin.answer(call), Refused)
    for _ in range(QUERIES):
        call = Call(POINTS + "Query", made.request())
        ours, theirs = (twin.answer(call) for twin in twins)
        assert found(ours) == found(theirs), call
