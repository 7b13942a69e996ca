"""What Qdrant refuses in the body of a read, by the validations in its source (1.18), beside what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server import config
from server.replica import requests as r
from server.replica.refusal import Refusal
from server.replica.search import Searcher
from server.rpc import Code
from tests.replica import local_store as make

ZERO = "value 0 invalid, must be 1 or larger"
NEAREST = pb.Query(nearest=pb.VectorInput(dense=pb.DenseVector(data=[1, 0])))


@pytest.fixture
def searcher(tmp_path: Path) -> Iterator[Searcher]:
    local = make.Local(tmp_path / "store")
    local.do(make.CREATE, make.create())
    local.do(r.UPSERT, make.upsert(make.point(1, make.dense(1, 1), k="a"), make.point(2, make.dense(2, 1), k="b")))
    yield Searcher(local.store, config.Replica())
    local.close()


def ask(searcher: Searcher, method: str, request: Any) -> tuple[Code, str]:
    try:
        searcher.answer(r.POINTS + method, request.SerializeToString())
    except Refusal as refusal:
        return refusal.code, refusal.details
    return Code.OK, ""


def body(place: str, what: str) -> tuple[Code, str]:
    return Code.INVALID_ARGUMENT, f"Validation error in body: [{place}: {what}]"


def search(**more: Any) -> pb.SearchPoints:
    return pb.SearchPoints(**{"collection_name": "c", "vector": [1, 0], "limit": 1, **more})


def query(**more: Any) -> pb.QueryPoints:
    return pb.QueryPoints(**{"collection_name": "c", "query": NEAREST, **more})


def discover(limit: int, **more: Any) -> pb.DiscoverPoints:
    target = pb.TargetVector(single=pb.VectorExample(id=common.PointId(num=1)))
    return pb.DiscoverPoints(**{"collection_name": "c", "target": target, "limit": limit, **more})


def recommend(limit: int, **more: Any) -> pb.RecommendPoints:
    return pb.RecommendPoints(**{"collection_name": "c", "positive": [common.PointId(num=1)], "limit": limit, **more})


GROUPED = {"group_by": "k", "limit": 1, "group_size": 1}
TIMED = {
    "Query": query,
    "QueryBatch": lambda **more: pb.QueryBatchPoints(collection_name="c", query_points=[query()], **more),
    "QueryGroups": lambda **more: pb.QueryPointGroups(collection_name="c", query=NEAREST, **GROUPED, **more),
    "Search": search,
    "SearchBatch": lambda **more: pb.SearchBatchPoints(collection_name="c", search_points=[search()], **more),
    "SearchGroups": lambda **more: pb.SearchPointGroups(collection_name="c", vector=[1, 0], **GROUPED, **more),
    "Recommend": lambda **more: recommend(1, **more),
    "RecommendBatch": lambda **more: pb.RecommendBatchPoints(
        collection_name="c", recommend_points=[recommend(1)], **more
    ),
    "RecommendGroups": lambda **more: pb.RecommendPointGroups(
        collection_name="c", positive=[common.PointId(num=1)], **GROUPED, **more
    ),
    "Discover": lambda **more: discover(1, **more),
    "DiscoverBatch": lambda **more: pb.DiscoverBatchPoints(collection_name="c", discover_points=[discover(1)], **more),
    "SearchMatrixPairs": lambda **more: pb.SearchMatrixPoints(collection_name="c", sample=2, limit=1, **more),
    "SearchMatrixOffsets": lambda **more: pb.SearchMatrixPoints(collection_name="c", sample=2, limit=1, **more),
}


@pytest.mark.parametrize("method", TIMED)
def test_no_search_has_a_timeout_of_0(searcher: Searcher, method: str) -> None:
    assert ask(searcher, method, TIMED[method](timeout=0)) == body("timeout", ZERO)
    assert ask(searcher, method, TIMED[method](timeout=1)) == (Code.OK, "")


def test_other_reads_may_have_one(searcher: Searcher) -> None:
    assert ask(searcher, "Scroll", pb.ScrollPoints(collection_name="c", timeout=0)) == (Code.OK, "")
    assert ask(searcher, "Get", pb.GetPoints(collection_name="c", timeout=0)) == (Code.OK, "")
    assert ask(searcher, "Count", pb.CountPoints(collection_name="c", timeout=0)) == (Code.OK, "")


def test_parts_of_a_batch_are_looked_at(searcher: Searcher) -> None:
    batch = pb.SearchBatchPoints(collection_name="c", search_points=[search(), search(timeout=0)])
    assert ask(searcher, "SearchBatch", batch) == body("search_points[1].timeout", ZERO)


@pytest.mark.parametrize(
    ("wrong", "right", "place", "what"),
    [
        (
            pb.SearchParams(quantization=pb.QuantizationSearchParams(oversampling=0.5)),
            pb.SearchParams(quantization=pb.QuantizationSearchParams(oversampling=1)),
            "quantization.oversampling",
            "value 0.5 invalid, must be 1.0 or larger",
        ),
        (
            pb.SearchParams(acorn=pb.AcornSearchParams(max_selectivity=1.5)),
            pb.SearchParams(acorn=pb.AcornSearchParams(max_selectivity=0)),
            "acorn.max_selectivity",
            "value 1.5 invalid, must be from 0.0 to 1.0",
        ),
    ],
)
def test_search_parameters(searcher: Searcher, wrong: Any, right: Any, place: str, what: str) -> None:
    assert ask(searcher, "Search", search(params=wrong)) == body(f"params.{place}", what)
    assert ask(searcher, "Query", query(params=wrong)) == body(f"params.{place}", what)
    inner = pb.PrefetchQuery(query=NEAREST, params=wrong)
    deep = query(prefetch=[pb.PrefetchQuery(query=NEAREST, prefetch=[inner])])
    assert ask(searcher, "Query", deep) == body(f"prefetch[0].prefetch[0].params.{place}", what)
    assert ask(searcher, "Search", search(params=right)) == (Code.OK, "")
    assert ask(searcher, "Query", query(params=right)) == (Code.OK, "")


def test_a_query_has_a_form(searcher: Searcher) -> None:
    missing = (Code.INVALID_ARGUMENT, "Query variant is missing")
    assert ask(searcher, "Query", query(query=pb.Query())) == missing
    assert ask(searcher, "Query", query(prefetch=[pb.PrefetchQuery(query=pb.Query())])) == missing
    grouped = pb.QueryPointGroups(collection_name="c", query=pb.Query(), group_by="k")
    assert ask(searcher, "QueryGroups", grouped) == missing
    assert ask(searcher, "Query", pb.QueryPoints(collection_name="c")) == (Code.OK, "")


def test_only_recommend_takes_a_limit_of_0(searcher: Searcher) -> None:
    assert ask(searcher, "Discover", discover(0)) == body("limit", ZERO)
    batch = pb.DiscoverBatchPoints(collection_name="c", discover_points=[discover(1), discover(0)])
    assert ask(searcher, "DiscoverBatch", batch) == body("limit", ZERO)
    assert ask(searcher, "Recommend", recommend(0)) == (Code.OK, "")


@pytest.mark.parametrize("name", ["a/b", "a\0b"])
def test_names_that_nothing_is_read_by(searcher: Searcher, name: str) -> None:
    code, text = ask(searcher, "Scroll", pb.ScrollPoints(collection_name=name))
    assert code is Code.INVALID_ARGUMENT and "collection name cannot contain" in text
    assert ask(searcher, "Scroll", pb.ScrollPoints(collection_name="a?b"))[0] is Code.NOT_FOUND


def test_places_are_whole(searcher: Searcher) -> None:
    corner = common.GeoPoint(lon=1, lat=2)

    def scroll(**condition: Any) -> tuple[Code, str]:
        wanted = common.Condition(field=common.FieldCondition(key="p", **condition))
        request = pb.ScrollPoints(collection_name="c", filter=common.Filter(must=[wanted]))
        return ask(searcher, "Scroll", request)

    assert scroll(geo_radius=common.GeoRadius(radius=1)) == (Code.INVALID_ARGUMENT, "Malformed GeoRadius type")
    box = (Code.INVALID_ARGUMENT, "Malformed GeoBoundingBox type")
    assert scroll(geo_bounding_box=common.GeoBoundingBox(top_left=corner)) == box
    assert scroll(geo_bounding_box=common.GeoBoundingBox(bottom_right=corner)) == box
    assert scroll(geo_radius=common.GeoRadius(center=corner, radius=1)) == (Code.OK, "")
    assert scroll(geo_bounding_box=common.GeoBoundingBox(top_left=corner, bottom_right=corner)) == (Code.OK, "")
