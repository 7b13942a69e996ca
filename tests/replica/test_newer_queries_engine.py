"""Query forms that are too new for the stand-in, against the real engine in qdrant-edge-py: scores to 1e-4."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge
from qdrant_client import models as m

from tests.replica.edge_engine import Edge, filter_of, vector_of
from tests.replica.through_client import Through

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
    ours, theirs = Through(tmp_path / "ours"), Edge(tmp_path / "theirs", DENSE, SPARSE)
    ours.client.create_collection("c", vectors_config=DENSE, sparse_vectors_config=SPARSE)
    ours.client.upsert("c", points, wait=True)
    theirs.upsert(points)
    yield ours, theirs
    ours.close()
    theirs.close()


def scores(hits: Any) -> dict[Any, float]:
    return {hit.id: pytest.approx(hit.score, abs=1e-4) for hit in hits}


CORPORA = {
    "all": None,
    "some": m.Filter(must=[m.FieldCondition(key="n", match=m.MatchValue(value=1))]),
    "none": m.Filter(must=[m.FieldCondition(key="n", match=m.MatchValue(value=99))]),
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


def test_a_corpus_changes_scores(twins: tuple[Through, Edge]) -> None:
    ours, _ = twins
    query = m.SparseVector(indices=[1, 3, 6], values=[0.7, 0.2, 0.9])
    answers = []
    for corpus in CORPORA.values():
        params = m.SearchParams(idf=m.IdfCorpusParams(corpus=corpus)) if corpus is not None else None
        hits = ours.client.query_points("c", query=query, using="idf", search_params=params).points
        answers.append([round(hit.score, 4) for hit in hits])
    assert answers[0] != answers[1] != answers[2] != answers[0]
