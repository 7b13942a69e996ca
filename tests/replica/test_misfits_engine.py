"""Queries whose vectors or limits do not fit: refused or answered as the real engine in qdrant-edge-py does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import qdrant_edge as edge
from qdrant_client import models as m

from server.replica.refusal import Refusal
from server.rpc import Code
from tests.replica.edge_engine import Edge, vector_of
from tests.replica.through_client import Through
from tests.replica.twins import twins_with

MAX_SIM = m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM)
DENSE = {"d": m.VectorParams(size=2, distance=m.Distance.COSINE)} | {
    name: m.VectorParams(size=2, distance=distance, multivector_config=MAX_SIM)
    for name, distance in (
        ("m", m.Distance.DOT),
        ("cosine", m.Distance.COSINE),
        ("euclid", m.Distance.EUCLID),
        ("manhattan", m.Distance.MANHATTAN),
    )
}
SPARSE = {"s": m.SparseVectorParams()}
FITTING: dict[str, Any] = {"d": [1.0, 2.0], "m": [[1.0, 2.0], [2.0, 1.0]], "s": m.SparseVector(indices=[1], values=[1])}
COUNT = 30


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Through, Edge]]:
    """The replica and the engine with the same points; nobody changes them."""
    chance = random.Random(3)
    directory = tmp_path_factory.mktemp("twins")
    points = []
    for number in range(COUNT):
        rows = [[round(chance.gauss(0, 1), 3) for _ in range(2)] for _ in range(1 + number % 3)]
        sparse = m.SparseVector(indices=[1, 2], values=[1.0, number + 1.0])
        points.append(m.PointStruct(id=number, vector=dict.fromkeys(DENSE, rows) | {"d": rows[0], "s": sparse}))
    with twins_with(points, directory, DENSE, SPARSE) as made:
        yield made


@pytest.mark.parametrize("strategy", list(m.RecommendStrategy))
@pytest.mark.parametrize("is_liked", [True, False])
@pytest.mark.parametrize(
    "case",
    [
        ("d", [1.0, 2.0, 3.0], "Vector dimension error: expected dim: 2, got 3"),
        ("d", [1.0], "Vector dimension error: expected dim: 2, got 1"),
        ("m", [[1.0, 2.0, 3.0]], "Vector dimension error: expected dim: 2, got 3"),
        ("d", FITTING["s"], ""),
        ("d", FITTING["m"], ""),
        ("m", FITTING["s"], ""),
        ("s", FITTING["d"], ""),
        ("s", FITTING["m"], ""),
    ],
)
def test_an_example_that_does_not_fit(
    twins: tuple[Through, Edge], strategy: m.RecommendStrategy, is_liked: bool, case: tuple[str, Any, str]
) -> None:
    ours, theirs = twins
    using, misfit, text = case
    positive, negative = ([misfit, FITTING[using]], []) if is_liked else ([FITTING[using]], [misfit])
    query = m.RecommendQuery(recommend=m.RecommendInput(positive=positive, negative=negative, strategy=strategy))
    with pytest.raises(Refusal) as refused:
        ours.client.query_points("c", query=query, using=using)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert text in refused.value.details
    # What makes an average is above the engine; the other strategies take their examples there as they are.
    examples = edge.RecommendQuery([vector_of(one) for one in positive], [vector_of(one) for one in negative])
    with pytest.raises(Exception, match=text or "Wrong usage of (sparse|multi) vectors"):
        theirs.shard.query(edge.QueryRequest(COUNT, query=edge.Query.RecommendSumScores(examples, using)))


def test_one_row_among_examples_of_several(twins: tuple[Through, Edge]) -> None:
    ours, _ = twins
    examples = [FITTING["d"], FITTING["m"]]
    query = m.RecommendQuery(recommend=m.RecommendInput(positive=examples, strategy=m.RecommendStrategy.AVERAGE_VECTOR))
    with pytest.raises(Refusal, match="Can't average vectors with different types") as refused:
        ours.client.query_points("c", query=query, using="m")
    assert refused.value.code is Code.INVALID_ARGUMENT
    examples.reverse()
    with pytest.raises(Refusal, match="Can't average vectors with different types"):
        ours.client.query_points("c", query=query, using="m")


def _by_diversity(twins: tuple[Through, Edge], using: str, vector: Any, candidates: int | None) -> list[list[Any]]:
    """The same query by MMR to both, as (id, score) in order."""
    ours, theirs = twins
    query = m.NearestQuery(nearest=vector, mmr=m.Mmr(diversity=0.6, candidates_limit=candidates))
    found = ours.client.query_points("c", query=query, using=using, limit=7).points
    mmr = edge.Mmr(vector, 0.4, 7 if candidates is None else candidates, using)
    expected = theirs.shard.query(edge.QueryRequest(7, query=mmr))
    return [[(hit.id, hit.score) for hit in hits] for hits in (found, expected)]


@pytest.mark.parametrize("candidates", [None, 10, COUNT, 16_384])
@pytest.mark.parametrize("using", [name for name in DENSE if name != "d"])
def test_one_row_for_diversity_among_vectors_of_several(
    twins: tuple[Through, Edge], using: str, candidates: int | None
) -> None:
    found, expected = _by_diversity(twins, using, [0.7, -0.4], candidates)
    assert len(expected) == 7
    assert [key for key, _ in found] == [key for key, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("using", DENSE)
def test_no_candidates_for_diversity(twins: tuple[Through, Edge], using: str) -> None:
    assert _by_diversity(twins, using, FITTING["d"], 0) == [[], []]


def test_more_candidates_for_diversity_than_qdrant_takes(twins: tuple[Through, Edge]) -> None:
    query = m.NearestQuery(nearest=FITTING["d"], mmr=m.Mmr(candidates_limit=16_385))
    with pytest.raises(Refusal, match=r"query.mmr.candidates_limit: value 16385 invalid, must be 16384") as refused:
        twins[0].client.query_points("c", query=query, using="d")
    assert refused.value.code is Code.INVALID_ARGUMENT
