"""Query forms that are too new for the stand-in, against the real engine in qdrant-edge-py: scores to 1e-4."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from qdrant_client import models as m

from tests.replica.edge_engine import Edge, filter_of, vector_of
from tests.replica.through_client import Refusal, Through
from tests.replica.twins import twins_with

SPARSE = {"idf": m.SparseVectorParams(modifier=m.Modifier.IDF)}
DENSE = {"d": m.VectorParams(size=4, distance=m.Distance.COSINE)}
COUNT = 40


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[tuple[Through, Edge]]:
    """The replica and the engine with the same points."""
    chance = random.Random(5)
    points = []
    for number in range(COUNT):
        indices = sorted(chance.sample(range(8), 3))
        sparse = m.SparseVector(indices=indices, values=[round(chance.random() + 0.1, 3) for _ in indices])
        dense = [round(chance.gauss(0, 1), 3) for _ in range(4)]
        points.append(m.PointStruct(id=number, vector={"idf": sparse, "d": dense}, payload={"n": number % 4}))
    with twins_with(points, tmp_path, DENSE, SPARSE) as made:
        yield made


def scores(hits: Any) -> dict[Any, float]:
    return {hit.id: pytest.approx(hit.score, abs=1e-4) for hit in hits}


NONE = m.Filter(must=[m.FieldCondition(key="n", match=m.MatchValue(value=99))])
CORPORA = {
    "all": None,
    "some": m.Filter(must=[m.FieldCondition(key="n", match=m.MatchValue(value=1))]),
    "none": NONE,
}


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_idf_over_a_corpus(twins: tuple[Through, Edge], corpus: m.Filter | None) -> None:
    ours, theirs = twins
    query = m.SparseVector(indices=[1, 3, 6], values=[0.7, 0.2, 0.9])
    params = m.SearchParams(idf=m.IdfCorpusParams(corpus=corpus)) if corpus is not None else None
    found = ours.client.query_points("c", query=query, using="idf", limit=COUNT, search_params=params).points
    given = edge.SearchParams(idf=edge.IdfParams(filter_of(corpus))) if corpus is not None else None
    nearest = edge.Query.Nearest(vector_of(query), using="idf")
    expected = theirs.shard.query(edge.QueryRequest(COUNT, query=nearest, params=given))
    assert len(expected) > 20
    assert {hit.id: hit.score for hit in found} == scores(expected)


@pytest.mark.parametrize("fusion", [m.Fusion.RRF, m.Fusion.DBSF])
@pytest.mark.parametrize("is_ordered_first", [True, False])
def test_fusion_keeps_the_value_of_an_order(
    twins: tuple[Through, Edge], fusion: m.Fusion, is_ordered_first: bool
) -> None:
    """A point has it when the order is where it was found first."""
    ours, theirs = twins
    theirs.index("n", "integer")
    ours.client.create_payload_index("c", "n", m.PayloadSchemaType.INTEGER)
    near = [1.0, 0.0, 0.0, 0.0]
    here = [m.Prefetch(query=m.OrderByQuery(order_by="n"), limit=30), m.Prefetch(query=near, using="d", limit=25)]
    nearest = edge.Query.Nearest(near, using="d")
    there = [
        edge.Prefetch(limit=30, query=edge.OrderBy("n")),
        edge.Prefetch(limit=25, query=nearest),
    ]
    if not is_ordered_first:
        here.reverse()
        there.reverse()
    found = ours.client.query_points("c", prefetch=here, query=m.FusionQuery(fusion=fusion), limit=COUNT).points
    kind = edge.Fusion.Dbsf() if fusion is m.Fusion.DBSF else edge.Fusion.Rrf(2)
    expected = theirs.shard.query(edge.QueryRequest(COUNT, prefetches=there, query=kind))
    values = {hit.id: hit.order_value for hit in expected}
    assert {hit.id: hit.order_value for hit in found} == values
    assert 5 < sum(value is not None for value in values.values()) < len(values)


@pytest.mark.parametrize("names", [["zz"], ["d", "zz"], [""], ["d"], []], ids=str)
def test_names_of_vectors_that_are_not_there(twins: tuple[Through, Edge], names: list[str]) -> None:
    """Refused by either as soon as there is a point to show, and not before."""
    ours, theirs = twins
    theirs.index("n", "integer")
    ours.client.create_payload_index("c", "n", m.PayloadSchemaType.INTEGER)
    client, shard = ours.client, theirs.shard
    near = [1.0, 0.0, 0.0, 0.0]
    nearest = edge.Query.Nearest(near, using="d")

    def asked(ask: Callable[[], Any]) -> str:
        try:
            ask()
        except Refusal as refusal:
            return refusal.details
        except Exception as error:
            if type(error) is not Exception:  # the only class that the bindings raise
                raise
            return f"Wrong input: {error}"
        return ""

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "get": (lambda: client.retrieve("c", [1], with_vectors=names), lambda: shard.retrieve([1], True, names)),
        "get none": (lambda: client.retrieve("c", [99], with_vectors=names), lambda: shard.retrieve([99], True, names)),
        "scroll": (
            lambda: client.scroll("c", with_vectors=names),
            lambda: shard.scroll(edge.ScrollRequest(limit=10, with_vector=names)),
        ),
        "scroll none": (
            lambda: client.scroll("c", offset=99, with_vectors=names),
            lambda: shard.scroll(edge.ScrollRequest(limit=10, offset=99, with_vector=names)),
        ),
        "ordered": (
            lambda: client.scroll("c", order_by="n", with_vectors=names),
            lambda: shard.scroll(edge.ScrollRequest(limit=10, with_vector=names, order_by=edge.OrderBy("n"))),
        ),
        "query": (
            lambda: client.query_points("c", near, using="d", with_vectors=names),
            lambda: shard.query(edge.QueryRequest(10, query=nearest, with_vector=names)),
        ),
        "query none": (
            lambda: client.query_points("c", near, using="d", query_filter=NONE, with_vectors=names),
            lambda: shard.query(
                edge.QueryRequest(10, query=nearest, filter=filter_of(NONE), with_vector=names),
            ),
        ),
    }
    unknown = [name for name in names if name != "d"]
    for label, (here, there) in pairs.items():
        wanted = (
            f"Wrong input: Not existing vector name error: {unknown[0]}" if unknown and " none" not in label else ""
        )
        assert (label, asked(here), asked(there)) == (label, wanted, wanted)


def test_names_of_vectors_that_are_not_there_in_groups(twins: tuple[Through, Edge]) -> None:
    client = twins[0].client
    client.create_collection("other", vectors_config=DENSE)
    client.upsert("other", [m.PointStruct(id=1, vector={})], wait=True)

    def grouped(**given: Any) -> None:
        client.query_points_groups("c", "n", query=[1.0, 0.0, 0.0, 0.0], using="d", **given)

    lookup = m.WithLookup(collection="other", with_vectors=["zz"])
    for given in ({"with_vectors": ["zz"]}, {"with_lookup": lookup}):
        with pytest.raises(Refusal) as caught:
            grouped(**given)
        assert caught.value.details == "Wrong input: Not existing vector name error: zz"
        grouped(**given, query_filter=NONE)
    grouped(with_vectors=["d"])


def test_a_corpus_changes_scores(twins: tuple[Through, Edge]) -> None:
    ours, _ = twins
    query = m.SparseVector(indices=[1, 3, 6], values=[0.7, 0.2, 0.9])
    answers = []
    for corpus in CORPORA.values():
        params = m.SearchParams(idf=m.IdfCorpusParams(corpus=corpus)) if corpus is not None else None
        hits = ours.client.query_points("c", query=query, using="idf", search_params=params).points
        answers.append([round(hit.score, 4) for hit in hits])
    assert answers[0] != answers[1] != answers[2] != answers[0]
