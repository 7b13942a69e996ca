"""Groups over prefetches and by MMR: the same groups, points and scores as the engine, asked in a server's rounds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.rpc import COLLECTIONS, POINTS

from .answers import Group, id_of, said
from .calls import Call, Outcome, Refused
from .engine import Engine
from .engine_groups import Gathering
from .replica import Replica
from .values import as_payload, spelt

NAME = "c"
COUNT = 200
chance = random.Random(3)


def dense() -> pb.Vector:
    return pb.Vector(dense=pb.DenseVector(data=[chance.gauss(0, 1) for _ in range(8)]))


def sparse() -> pb.Vector:
    indices = chance.sample(range(40), 8)
    return pb.Vector(sparse=pb.SparseVector(indices=indices, values=[chance.random() + 0.1 for _ in indices]))


def point(number: int) -> pb.PointStruct:
    doc: Any = (f"d{number % 15}", number % 7, [f"d{number % 15}", number % 4])[number % 3]
    if number % 13 == 0:
        # Of no group, and found again in every round.
        doc = 0.5
    payload = {"doc": doc, "n": number} if number % 7 else {"n": number}
    made = pb.PointStruct(id=spelt(number), payload=as_payload(payload))
    for name, vector in (("a", dense()), ("e", dense()), ("s", sparse())):
        made.vectors.vectors.vectors[name].CopyFrom(vector)
    return made


class Twins:
    """The replica and the engine with the same points."""

    def __init__(self, directory: Path) -> None:
        self.engine, self.replica = Engine(directory / "engine"), Replica(directory / "replica", "1.20.0")
        create = collections.CreateCollection(collection_name=NAME)
        made = create.vectors_config.params_map.map
        made["a"].CopyFrom(collections.VectorParams(size=8, distance=collections.Cosine))
        made["e"].CopyFrom(collections.VectorParams(size=8, distance=collections.Euclid))
        create.sparse_vectors_config.map["s"].SetInParent()
        upsert = pb.UpsertPoints(collection_name=NAME, wait=True, points=[point(number) for number in range(COUNT)])
        for call in (Call(COLLECTIONS + "Create", create), Call(POINTS + "Upsert", upsert)):
            assert not isinstance(self.engine.answer(call), Refused)
            assert not isinstance(self.replica.answer(call), Refused)

    def theirs(self, request: pb.QueryPointGroups) -> list[tuple[Any, list[tuple[Any, Any]]]]:
        def ask(query: pb.QueryPoints) -> list[pb.ScoredPoint]:
            outcome: Any = self.engine.answer(Call(POINTS + "Query", query))
            return list(outcome.result)

        return [(value, told(page)) for value, page in Gathering(request, ask).groups()]

    def ours(self, request: pb.QueryPointGroups) -> list[tuple[Any, list[tuple[Any, Any]]]]:
        outcome: Outcome = self.replica.answer(Call(POINTS + "QueryGroups", request))
        groups: list[Group] = said(POINTS + "QueryGroups", outcome)
        return [(group.value, [(hit.id, pytest.approx(hit.score, abs=1e-4)) for hit in group.hits]) for group in groups]

    def close(self) -> None:
        self.engine.close()
        self.replica.close()


def told(page: list[pb.ScoredPoint]) -> list[tuple[Any, Any]]:
    return [(id_of(one.id), one.score) for one in page]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    made = Twins(tmp_path_factory.mktemp("groups"))
    yield made
    made.close()


def near(vector: pb.Vector) -> pb.Query:
    kind = str(vector.WhichOneof("vector"))
    return pb.Query(nearest=pb.VectorInput(**{kind: getattr(vector, kind)}))


def over(name: str, limit: int | None = None, *inner: pb.PrefetchQuery) -> pb.PrefetchQuery:
    query = near(sparse() if name == "s" else dense())
    return pb.PrefetchQuery(query=query, using=name, limit=limit, prefetch=inner)


def mmr(candidates: int | None) -> pb.Query:
    part = pb.Mmr(diversity=0.4, candidates_limit=candidates)
    return pb.Query(nearest_with_mmr=pb.NearestInputWithMmr(nearest=near(dense()).nearest, mmr=part))


# With weights, since equal ranks of two prefetches would tie.
RRF = pb.Query(rrf=pb.Rrf(k=7, weights=[1.0, 0.83]))
DBSF = pb.Query(fusion=pb.Fusion.DBSF)
BOOSTED = pb.Query(
    formula=pb.Formula(
        expression=pb.Expression(
            sum=pb.SumExpression(sum=[pb.Expression(variable="$score"), pb.Expression(variable="n")])
        )
    )
)
QUERIES = {
    "fusion by ranks": pb.QueryPointGroups(query=RRF, prefetch=[over("a", 10), over("s", 10)]),
    "fusion by scores": pb.QueryPointGroups(query=DBSF, prefetch=[over("a", 10), over("s")]),
    "fusion in a prefetch": pb.QueryPointGroups(
        query=near(dense()),
        using="a",
        prefetch=[pb.PrefetchQuery(query=RRF, prefetch=[over("e", 8), over("s", 12)], limit=9)],
    ),
    "rescored": pb.QueryPointGroups(query=near(dense()), using="a", prefetch=[over("s", 10)]),
    "rescored by distance": pb.QueryPointGroups(query=near(dense()), using="e", prefetch=[over("s", 10)]),
    "a formula": pb.QueryPointGroups(query=BOOSTED, prefetch=[over("a", 12)]),
    "two levels": pb.QueryPointGroups(query=near(dense()), using="e", prefetch=[over("a", 6, over("s", 15))]),
    "MMR": pb.QueryPointGroups(query=mmr(None), using="a"),
    "MMR among many": pb.QueryPointGroups(query=mmr(60), using="a"),
    "MMR in a prefetch": pb.QueryPointGroups(
        query=near(dense()), using="a", prefetch=[pb.PrefetchQuery(query=mmr(None), using="a", limit=8)]
    ),
}


@pytest.mark.parametrize(("limit", "size"), [(1, 1), (5, 2), (10, 3), (30, 2)])
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_groups_are_gathered_in_rounds(twins: Twins, query: pb.QueryPointGroups, limit: int, size: int) -> None:
    request = pb.QueryPointGroups(collection_name=NAME, group_by="doc", limit=limit, group_size=size)
    request.MergeFrom(query)
    expected = twins.theirs(request)
    assert expected or limit == 1
    assert twins.ours(request) == expected
