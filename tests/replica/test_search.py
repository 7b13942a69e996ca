"""Reads one by one: defaults, order, refusals with Qdrant's texts (FACTS 3 and 3.1)."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server import config
from server.replica import catalogue, listing, tables
from server.replica import requests as r
from server.replica.chunks import dense_bytes
from server.replica.refusal import NotServed, Refusal
from server.replica.search import METHODS, Searcher, matching_keys
from server.rpc import METHODS as ALL_METHODS
from server.rpc import Code, Kind
from tests.replica import local_store as make

UUID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"


class Reads:
    """A replica with points, read method by method."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.local = make.Local(directory)
        self.store = self.local.store
        self.searcher = Searcher(self.store, config.Replica(**settings))

    def ask(self, name: str, request: Any) -> Any:
        answers = {"Scroll": pb.ScrollResponse, "Get": pb.GetResponse, "Count": pb.CountResponse}
        answers |= {"Facet": pb.FacetResponse, "Query": pb.QueryResponse, "Search": pb.SearchResponse}
        answers |= {"QueryBatch": pb.QueryBatchResponse, "QueryGroups": pb.QueryGroupsResponse}
        answers |= {"Recommend": pb.RecommendResponse, "Discover": pb.DiscoverResponse}
        answers |= {"SearchBatch": pb.SearchBatchResponse, "SearchMatrixPairs": pb.SearchMatrixPairsResponse}
        return answers[name].FromString(self.searcher.answer(r.POINTS + name, request.SerializeToString()))

    def index(self, field: str, kind: Any) -> None:
        self.local.do(
            r.POINTS + "CreateFieldIndex",
            pb.CreateFieldIndexCollection(collection_name="c", field_name=field, field_type=kind, wait=True),
        )


@pytest.fixture
def reads(tmp_path: Path) -> Iterator[Reads]:
    made = Reads(tmp_path / "store")
    made.local.do(make.CREATE, make.create())
    points = [
        make.point(number, make.dense(number, 1), n=number, k="even" if number % 2 == 0 else "odd")
        for number in range(1, 6)
    ]
    points.append(make.point(UUID, make.dense(9, 9), n=9, k=["even", "odd"]))
    made.local.do(r.UPSERT, make.upsert(*points))
    yield made
    made.local.close()


def ids(points: Any) -> list[Any]:
    return [point.id.uuid or point.id.num for point in points]


def near(*values: float, **more: Any) -> pb.QueryPoints:
    request = pb.QueryPoints(collection_name="c", **more)
    request.query.nearest.dense.data.extend(values)
    return request


def refused(call: Callable[[], Any]) -> tuple[Code, str]:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.code, caught.value.details


def test_every_read_of_points_has_a_handler() -> None:
    prefix = "/qdrant.Points/"
    assert {name for name, row in ALL_METHODS.items() if row.kind is Kind.READ and name.startswith(prefix)} == METHODS


def test_unknown_collection_and_method(reads: Reads) -> None:
    missing = (Code.NOT_FOUND, "Not found: Collection `x` doesn't exist!")
    for name, request in (("Count", pb.CountPoints), ("Query", pb.QueryPoints), ("Scroll", pb.ScrollPoints)):
        assert refused(lambda n=name, q=request: reads.ask(n, q(collection_name="x"))) == missing
    with reads.store.transaction() as tx:
        tx.set_meta(catalogue.KNOWN, "")
    assert refused(lambda: reads.ask("Count", pb.CountPoints(collection_name="x")))[0] is Code.UNAVAILABLE
    with pytest.raises(NotServed):
        reads.searcher.answer("/qdrant.Points/Explain", b"")
    with pytest.raises(Refusal):
        reads.searcher.answer("/qdrant.Points/Count", b"\xff\xff")


def test_get_keeps_the_order_and_answers_each_id_once(reads: Reads) -> None:
    request = pb.GetPoints(
        collection_name="c", ids=[make.point_id(one) for one in (3, 1, 3, 99, UUID.replace("-", ""))]
    )
    answer = reads.ask("Get", request)
    assert ids(answer.result) == [3, 1, UUID]
    assert not answer.result[0].payload and not answer.result[0].HasField("vectors")
    request.with_payload.enable = True
    request.with_vectors.enable = True
    first = reads.ask("Get", request).result[0]
    assert first.payload["n"].integer_value == 3
    assert list(first.vectors.vector.dense.data) == [3, 1] and not first.vectors.vector.data
    bad = pb.GetPoints(collection_name="c", ids=[make.point_id("nope")])
    assert refused(lambda: reads.ask("Get", bad)) == (Code.INVALID_ARGUMENT, "Unable to parse UUID: nope")


@pytest.mark.parametrize(("version", "oneof"), [("1.16.3", False), ("1.17.0", True), ("", True)])
def test_vectors_come_in_the_form_of_the_mirrored_version(reads: Reads, version: str, oneof: bool) -> None:
    with reads.store.transaction() as tx:
        tx.set_meta(catalogue.REMOTE_VERSION, version)
    request = pb.GetPoints(collection_name="c", ids=[make.point_id(1)])
    request.with_vectors.enable = True
    vector = reads.ask("Get", request).result[0].vectors.vector
    assert (list(vector.dense.data), list(vector.data)) == (([1, 1], []) if oneof else ([], [1, 1]))


def test_scroll_pages(reads: Reads) -> None:
    seen: list[Any] = []
    request = pb.ScrollPoints(collection_name="c", limit=2)
    while True:
        page = reads.ask("Scroll", request)
        seen += ids(page.result)
        assert all(point.payload for point in page.result)
        if not page.HasField("next_page_offset"):
            break
        request.offset.CopyFrom(page.next_page_offset)
    assert seen == [1, 2, 3, 4, 5, UUID]
    huge = reads.ask("Scroll", pb.ScrollPoints(collection_name="c", limit=999_999_999))
    assert ids(huge.result) == seen and not huge.HasField("next_page_offset")
    assert len(reads.ask("Scroll", pb.ScrollPoints(collection_name="c")).result) == 6
    from_four = pb.ScrollPoints(collection_name="c", offset=make.point_id(4), filter=make.matching_keyword("k", "even"))
    assert ids(reads.ask("Scroll", from_four).result) == [4, UUID]


def test_limits(reads: Reads, tmp_path: Path) -> None:
    zero = (Code.INVALID_ARGUMENT, "Validation error in body: [limit: value 0 invalid, must be 1 or larger]")
    assert refused(lambda: reads.ask("Scroll", pb.ScrollPoints(collection_name="c", limit=0))) == zero
    assert refused(lambda: reads.ask("Query", near(1, 1, limit=0))) == zero
    assert refused(lambda: reads.ask("Search", pb.SearchPoints(collection_name="c", vector=[1, 1]))) == zero
    assert not reads.ask("Recommend", pb.RecommendPoints(collection_name="c")).result
    assert len(reads.ask("Query", near(1, 1, limit=2**62)).result) == 6
    small = Searcher(reads.store, config.Replica(response_max_points=3))
    for name, request in (
        ("Scroll", pb.ScrollPoints(collection_name="c", limit=100)),
        ("Query", near(1, 1, limit=100)),
    ):
        with pytest.raises(NotServed, match="more than 3 points"):
            small.answer(r.POINTS + name, request.SerializeToString())
    three = pb.ScrollPoints(collection_name="c", limit=3)
    assert len(pb.ScrollResponse.FromString(small.answer(r.POINTS + "Scroll", three.SerializeToString())).result) == 3


def test_the_limit_on_answers_is_one_on_what_they_hold(reads: Reads) -> None:
    """Not on what was asked for, nor on the points that a collection has."""
    reads.searcher = Searcher(reads.store, config.Replica(response_max_points=4))
    even = common.Filter(must=[common.Condition(field=common.FieldCondition(key="k"))])
    even.must[0].field.match.keyword = "even"
    assert ids(reads.ask("Query", near(1, 1, limit=100, filter=even)).result) == [UUID, 4, 2]
    fused = pb.QueryPoints(collection_name="c", prefetch=[pb.PrefetchQuery(query=near(1, 1).query, filter=even)])
    fused.query.fusion = pb.Fusion.RRF
    fused.prefetch[0].limit = 2**62
    assert ids(reads.ask("Query", fused).result) == [UUID, 4, 2]
    fused.prefetch[0].ClearField("filter")
    with pytest.raises(NotServed, match="more than 4 points"):
        reads.ask("Query", fused)


@pytest.mark.parametrize("form", ["nearest", "order_by", None])
def test_collections_larger_than_an_answer_are_grouped(reads: Reads, form: str | None) -> None:
    reads.index("n", pb.FieldType.FieldTypeInteger)
    grouped = pb.QueryPointGroups(collection_name="c", group_by="k", limit=2, group_size=2)
    if form == "nearest":
        grouped.query.CopyFrom(near(1, 1).query)
    elif form == "order_by":
        grouped.query.order_by.key = "n"
    whole = reads.ask("QueryGroups", grouped).result
    assert [len(group.hits) for group in whole.groups] == [2, 2]
    reads.searcher = Searcher(reads.store, config.Replica(response_max_points=4))
    assert reads.ask("QueryGroups", grouped).result == whole


def test_query_defaults_and_thresholds(reads: Reads) -> None:
    answer = reads.ask("Query", near(1, 0))
    assert [(point.score, bool(point.payload), point.HasField("vectors")) for point in answer.result[:2]] == [
        (9, False, False),
        (5, False, False),
    ]
    assert ids(reads.ask("Query", near(1, 0, score_threshold=4)).result) == [UUID, 5]
    assert ids(reads.ask("Query", near(1, 0, offset=1, limit=2)).result) == [5, 4]
    assert ids(reads.ask("Query", near(1, 0, offset=99)).result) == []
    by_id = reads.ask("Query", pb.QueryPoints(collection_name="c", limit=3))
    assert [(one.id.num, one.score) for one in by_id.result] == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_thresholds_are_strict_for_vectors_and_not_for_fusion(reads: Reads) -> None:
    recommend = pb.QueryPoints(collection_name="c", score_threshold=5)
    recommend.query.recommend.strategy = pb.RecommendStrategy.SumScores
    recommend.query.recommend.positive.add().dense.data.extend([1, 0])
    assert ids(reads.ask("Query", recommend).result) == [UUID]
    reads.local.do(make.CREATE, make.create("e", distance=collections.Distance.Euclid))
    reads.local.do(r.UPSERT, make.upsert(make.point(1, make.dense(3, 4)), make.point(2, make.dense(3, 0)), name="e"))
    near_origin = near(0, 0, score_threshold=5)
    near_origin.collection_name = "e"
    assert [(one.id.num, one.score) for one in reads.ask("Query", near_origin).result] == [(2, 3.0)]
    fused = pb.QueryPoints(collection_name="c", query=pb.Query(fusion=pb.Fusion.RRF), score_threshold=0.5)
    fused.prefetch.add().query.nearest.dense.data.extend([1, 0])
    assert [one.score for one in reads.ask("Query", fused).result] == [0.5]


def test_ties_go_by_id(reads: Reads) -> None:
    assert ids(reads.ask("Query", near(0, 1)).result) == [UUID, 1, 2, 3, 4, 5]
    assert ids(reads.ask("Query", near(0, 1, limit=2)).result) == [UUID, 1]


def test_query_by_id_leaves_the_id_out_at_every_level(reads: Reads) -> None:
    request = pb.QueryPoints(collection_name="c")
    request.query.nearest.id.num = 5
    assert ids(reads.ask("Query", request).result) == [UUID, 4, 3, 2, 1]
    nested = near(1, 0)
    inner = nested.prefetch.add(limit=3)
    inner.query.nearest.id.num = 4
    other = nested.prefetch.add(limit=2)
    other.query.nearest.dense.data.extend([1, 0])
    assert ids(reads.ask("Query", nested).result) == [UUID, 5, 3]


def test_what_a_query_is_refused_for(reads: Reads) -> None:
    wrong = Code.INVALID_ARGUMENT
    assert refused(lambda: reads.ask("Query", near(1, 2, 3))) == (
        wrong,
        "Wrong input: Vector dimension error: expected dim: 2, got 3",
    )
    assert refused(lambda: reads.ask("Query", near(1, 2, using="zz"))) == (
        wrong,
        "Wrong input: Not existing vector name error: zz",
    )
    missing = pb.QueryPoints(collection_name="c")
    missing.query.nearest.id.num = 999
    assert refused(lambda: reads.ask("Query", missing)) == (Code.NOT_FOUND, "Not found: No point with id 999 found")
    threshold = pb.QueryPoints(collection_name="c", score_threshold=0.5)
    assert refused(lambda: reads.ask("Query", threshold))[1].startswith("Bad request: A query is needed to use the")
    merge = pb.QueryPoints(collection_name="c")
    merge.prefetch.add()
    assert refused(lambda: reads.ask("Query", merge))[1].startswith("Bad request: A query is needed to merge the")
    fusion = pb.QueryPoints(collection_name="c", query=pb.Query(fusion=pb.Fusion.RRF))
    assert refused(lambda: reads.ask("Query", fusion))[0] is wrong
    words = pb.QueryPoints(collection_name="c")
    words.query.nearest.document.text = "x"
    assert refused(lambda: reads.ask("Query", words))[0] is Code.UNAVAILABLE
    average = pb.QueryPoints(collection_name="c")
    average.query.recommend.SetInParent()
    assert refused(lambda: reads.ask("Query", average)) == (
        wrong,
        "Bad request: At least one positive vector ID required with this strategy",
    )


def test_not_a_number_is_answered(reads: Reads) -> None:
    answer = reads.ask("Query", near(float("nan"), 1))
    assert len(answer.result) == 6 and all(point.score != point.score for point in answer.result)


def test_a_deprecated_field_beside_the_new_ones_breaks_no_search(reads: Reads) -> None:
    odd = pb.Vector(dense=pb.DenseVector(data=[8, 1]), vectors_count=1)
    reads.local.do(r.UPSERT, make.upsert(make.point(20, pb.Vectors(vector=odd))))
    request = near(1, 0, limit=2)
    request.with_vectors.enable = True
    found = reads.ask("Query", request).result
    assert ids(found) == [UUID, 20]
    assert found[1].vectors.vector == pb.VectorOutput(dense=pb.DenseVector(data=[8, 1]))


def test_vectors_stored_with_deprecated_fields_are_read() -> None:
    odd = pb.Vector(dense=pb.DenseVector(data=[1, 2]), vectors_count=1)
    stored = pb.NamedVectors(vectors={"a": odd, "b": make.dense(3, 4).vector}).SerializeToString(deterministic=True)
    read = [dense_bytes(stored, name) for name in (b"a", b"b", b"c")]
    assert [one and struct.unpack("<2f", one) for one in read] == [(1, 2), (3, 4), None]


def test_order_by(reads: Reads) -> None:
    request = pb.ScrollPoints(collection_name="c", order_by=pb.OrderBy(key="q"))
    assert refused(lambda: reads.ask("Scroll", request)) == (
        Code.INVALID_ARGUMENT,
        "Wrong input: No range index for `order_by` key: `q`. Please create one to use `order_by`. Check "
        "https://qdrant.tech/documentation/concepts/indexing/#payload-index to see which payload schemas support "
        "Range conditions",
    )
    reads.index("n", pb.FieldTypeInteger)
    request.order_by.key = "n"
    request.order_by.direction = pb.Direction.Desc
    answer = reads.ask("Scroll", request)
    assert [point.order_value.int for point in answer.result] == [9, 5, 4, 3, 2, 1]
    assert not answer.HasField("next_page_offset")
    request.order_by.start_from.integer = 3
    assert ids(reads.ask("Scroll", request).result) == [3, 2, 1]
    request.offset.num = 1
    assert refused(lambda: reads.ask("Scroll", request))[1].startswith("Wrong input: Cannot use an `offset` when")
    query = pb.QueryPoints(collection_name="c", limit=2)
    query.query.order_by.key = "n"
    found = reads.ask("Query", query).result
    assert [(point.id.num, point.order_value.int, point.score) for point in found] == [(1, 1, 1.0), (2, 2, 1.0)]


def test_an_ordered_query_counts_values_not_points(reads: Reads) -> None:
    reads.index("m", pb.FieldType.FieldTypeInteger)
    points = [make.point(number, make.dense(1, 1), m=[number, number + 10, number + 20]) for number in (1, 2)]
    reads.local.do(r.DELETE, pb.DeletePoints(collection_name="c", points=pb.PointsSelector(filter=common.Filter())))
    reads.local.do(r.UPSERT, make.upsert(*points))
    request = pb.QueryPoints(collection_name="c", limit=6)
    request.query.order_by.key = "m"
    answer = reads.ask("Query", request).result
    assert [(point.id.num, point.order_value.int) for point in answer] == [
        (1, 1), (2, 2), (1, 11), (2, 12), (1, 21), (2, 22),
    ]  # fmt: skip
    request.limit = 999_999_999
    assert len(reads.ask("Query", request).result) == 6
    small = Searcher(reads.store, config.Replica(response_max_points=5))
    assert refused(lambda: small.answer(r.POINTS + "Query", request.SerializeToString()))[0] is Code.UNAVAILABLE


def test_groups_of_an_ordered_query_hold_each_point_once(reads: Reads) -> None:
    reads.index("m", pb.FieldType.FieldTypeInteger)
    reads.local.do(r.DELETE, pb.DeletePoints(collection_name="c", points=pb.PointsSelector(filter=common.Filter())))
    values = {1: [1, 2, 3, 4], 2: [10], 3: [11]}
    reads.local.do(r.UPSERT, make.upsert(*(make.point(n, make.dense(1, 1), m=m, k="g") for n, m in values.items())))
    request = pb.QueryPointGroups(collection_name="c", group_by="k", limit=5, group_size=2)
    request.query.order_by.key = "m"
    [group] = reads.ask("QueryGroups", request).result.groups
    assert ids(group.hits) == [1, 2]
    request.group_size = 5
    [group] = reads.ask("QueryGroups", request).result.groups
    assert ids(group.hits) == [1, 2, 3]


@pytest.mark.parametrize("more", [0, 700], ids=["walked", "columns"])
def test_how_many_points_an_index_holds(reads: Reads, more: int) -> None:
    """Few points are walked, more are counted by their columns; the numbers follow the writes."""
    reads.local.do(r.UPSERT, make.upsert(make.point(50, n=1.5, k=None), make.point(51, k=["even", 3], n="x")))
    if more:
        reads.local.do(r.UPSERT, make.upsert(*[make.point(number, k="odd") for number in range(100, 100 + more)]))
    reads.index("k", pb.FieldTypeKeyword)
    reads.index("n", pb.FieldTypeInteger)
    reads.index("none.of[].them", pb.FieldTypeFloat)
    assert reads.searcher.indexed_points("c") == {"k": 7 + more, "n": 6, "none.of[].them": 0}
    gone = pb.DeletePoints(collection_name="c", points=make.ids(1, 2, 50, 100), wait=True)
    reads.local.do(r.DELETE, gone)
    assert reads.searcher.indexed_points("c") == {"k": 5 + max(0, more - 1), "n": 4, "none.of[].them": 0}
    assert reads.searcher.indexed_points("x") == {}


def test_points_of_an_index_are_not_counted_at_any_cost(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    reads.local.do(r.UPSERT, make.upsert(*[make.point(number, k="odd") for number in range(100, 800)]))
    reads.index("k", pb.FieldTypeKeyword)
    without = Searcher(reads.store, config.Replica(resident_bytes=0))
    assert without.indexed_points("c") == {}
    monkeypatch.setattr(listing, "_COUNT_LOADED_MOST", 600)
    assert reads.searcher.indexed_points("c") == {}
    reads.searcher.warm()
    assert reads.searcher.indexed_points("c") == {"k": 706}


def overtaken(reads: Reads, *, is_first: bool) -> Callable[[], int]:
    """Whoever asks for what is kept in memory is overtaken, before or after, by a write and a read of somebody else."""
    following = reads.searcher._aids.resident._following
    held, busy = following.slot, threading.local()
    seen = [0]

    def others() -> None:
        busy.yes = True
        reads.local.do(r.UPSERT, make.upsert(make.point(1, make.dense(1, 1), n=seen[0], k="odd")))
        reads.ask("Query", near(1, 1, limit=1))

    def slot(cid: int, what: Any) -> Any:
        if not getattr(busy, "yes", False):
            seen[0] += 1
            if is_first or seen[0] > 1:
                thread = threading.Thread(target=others)
                thread.start()
                thread.join()
        return held(cid, what)

    following.slot = slot  # type: ignore[method-assign]
    return lambda: seen[0]


def test_a_batch_looks_at_what_is_kept_once(reads: Reads) -> None:
    looks = overtaken(reads, is_first=False)
    request = pb.QueryBatchPoints(collection_name="c", query_points=[near(1, 1, limit=3) for _ in range(50)])
    assert [ids(one.result) for one in reads.ask("QueryBatch", request).result] == [[UUID, 5, 4]] * 50
    assert looks() == 1


def test_who_is_always_overtaken_reads_the_store(reads: Reads) -> None:
    looks = overtaken(reads, is_first=True)
    assert ids(reads.ask("Query", near(1, 1, limit=3)).result) == [UUID, 5, 4]
    assert looks() > 1


def test_facet(reads: Reads) -> None:
    request = pb.FacetCounts(collection_name="c", key="k")
    code, details = refused(lambda: reads.ask("Facet", request))
    assert code is Code.INVALID_ARGUMENT
    assert details.startswith("Wrong input: No appropriate index for faceting: `k`. Please create one to facet")
    reads.index("k", pb.FieldTypeKeyword)
    hits = reads.ask("Facet", request).hits
    assert [(hit.value.string_value, hit.count) for hit in hits] == [("odd", 4), ("even", 3)]
    request.limit = 0
    assert not reads.ask("Facet", request).hits


def test_filter_errors_name_their_place(reads: Reads) -> None:
    nothing = common.Condition(field=common.FieldCondition(key="a"))
    request = near(1, 0)
    request.prefetch.add(filter=common.Filter(should=[common.Condition(), nothing])).query.nearest.id.num = 1
    assert refused(lambda: reads.ask("Query", request))[1].startswith(
        "Validation error in body: [prefetch[0].filter.should[1].condition_one_of.match:"
    )


def test_batches_answer_in_order_or_not_at_all(reads: Reads) -> None:
    batch = pb.QueryBatchPoints(collection_name="c", query_points=[near(1, 0, limit=1), near(-1, 0, limit=2)])
    answer = reads.ask("QueryBatch", batch)
    assert [ids(one.result) for one in answer.result] == [[UUID], [1, 2]]
    batch.query_points.add(collection_name="c").query.nearest.id.num = 77
    assert refused(lambda: reads.ask("QueryBatch", batch))[0] is Code.NOT_FOUND
    search = pb.SearchPoints(collection_name="c", vector=[1, 0], limit=1, score_threshold=0.0)
    legacy = pb.SearchBatchPoints(collection_name="c", search_points=[search])
    assert [ids(one.result) for one in reads.ask("SearchBatch", legacy).result] == [[UUID]]


def test_groups_with_lookup(reads: Reads) -> None:
    reads.local.do(make.CREATE, make.create("kinds"))
    request = pb.QueryPointGroups(collection_name="c", group_by="n", limit=2, group_size=1)
    request.query.nearest.dense.data.extend([1, 0])
    request.with_lookup.collection = "kinds"
    reads.local.do(r.UPSERT, make.upsert(make.point(9, kind="nine"), name="kinds"))
    groups = reads.ask("QueryGroups", request).result.groups
    assert [(group.id.unsigned_value, ids(group.hits)) for group in groups] == [(9, [UUID]), (5, [5])]
    assert groups[0].lookup.payload["kind"].string_value == "nine" and not groups[1].HasField("lookup")
    assert not groups[0].hits[0].payload


def test_a_wrong_query_is_refused_before_the_lookup_of_groups(reads: Reads) -> None:
    request = pb.QueryPointGroups(collection_name="c", group_by="n", limit=2, group_size=1)
    request.query.nearest.dense.data.extend([1, 0])
    request.with_lookup.collection = "missing"
    assert refused(lambda: reads.ask("QueryGroups", request))[0] is Code.NOT_FOUND
    request.query.recommend.negative.add().id.num = 1
    code, text = refused(lambda: reads.ask("QueryGroups", request))
    assert code is Code.INVALID_ARGUMENT and "At least one positive" in text


def test_ranks_of_a_discovery_do_not_round_likeness_away(reads: Reads) -> None:
    reads.local.do(make.CREATE, make.create("far"))
    points = [make.point(1, make.dense(-7889, 1)), make.point(2, make.dense(-7882, 1))]
    reads.local.do(r.UPSERT, make.upsert(*points, name="far"))
    request = pb.QueryPoints(collection_name="far")
    discover = request.query.discover
    discover.target.dense.data.extend([1, 0])
    for positive, negative in ((1, -1), (-1, 1)):
        pair = discover.context.pairs.add()
        pair.positive.dense.data.extend([0, positive])
        pair.negative.dense.data.extend([0, negative])
    assert ids(reads.ask("Query", request).result) == [2, 1]


def test_lookup_from_another_collection_leaves_nothing_out(reads: Reads) -> None:
    reads.local.do(make.CREATE, make.create("other"))
    reads.local.do(r.UPSERT, make.upsert(make.point(5, make.dense(-1, 0)), name="other"))
    request = pb.QueryPoints(collection_name="c", lookup_from=pb.LookupLocation(collection_name="other"))
    request.query.nearest.id.num = 5
    assert ids(reads.ask("Query", request).result) == [1, 2, 3, 4, 5, UUID]


def test_legacy_recommend_leaves_out_examples_without_the_vector(reads: Reads) -> None:
    reads.local.do(make.CREATE, make.create_named("n", x=2, y=2))
    points = [
        make.point(1, make.named(x=[1, 0], y=[1, 0])),
        make.point(2, make.named(x=[2, 0])),
        make.point(3, make.named(x=[3, 0], y=[3, 0])),
    ]
    reads.local.do(r.UPSERT, make.upsert(*points, name="n"))
    request = pb.RecommendPoints(collection_name="n", positive=[make.point_id(1), make.point_id(2)], using="y", limit=5)
    assert ids(reads.ask("Recommend", request).result) == [3]
    request.positive.add(num=88)
    assert refused(lambda: reads.ask("Recommend", request)) == (
        Code.NOT_FOUND,
        "Not found: No point with id 88 found",
    )


def test_reads_see_what_was_committed_before(reads: Reads) -> None:
    for turn in range(20):
        reads.local.do(r.UPSERT, make.upsert(make.point(100 + turn, make.dense(50 + turn, 0))))
        assert ids(reads.ask("Query", near(1, 0, limit=1)).result) == [100 + turn]
        reads.local.do(r.DELETE, pb.DeletePoints(collection_name="c", points=make.ids(100 + turn)))
        assert ids(reads.ask("Query", near(1, 0, limit=1)).result) == [UUID]


def test_matching_keys_inside_a_transaction(reads: Reads) -> None:
    collection = reads.store.collection("c")
    assert collection is not None
    even = make.matching_keyword("k", "even")
    with reads.store.transaction() as tx:
        before = matching_keys(tx, collection, even)
        tx.remove(collection.cid, before[:1])
        assert matching_keys(tx, collection, even) == before[1:]
        assert len(matching_keys(tx, collection, common.Filter())) == 5


def test_without_room_in_memory_answers_are_the_same(reads: Reads) -> None:
    streamed = Searcher(reads.store, config.Replica(resident_bytes=0))
    for request in (near(1, 0), near(1, 0, filter=make.matching_keyword("k", "odd"))):
        answers = [
            pb.QueryResponse.FromString(searcher.answer(r.POINTS + "Query", request.SerializeToString())).result
            for searcher in (reads.searcher, streamed)
        ]
        assert list(answers[0]) == list(answers[1]) and answers[0]


def test_matrix(reads: Reads) -> None:
    answer = reads.ask("SearchMatrixPairs", pb.SearchMatrixPoints(collection_name="c", sample=10, limit=1))
    pairs = {(pair.a.num or UUID, pair.b.num or UUID) for pair in answer.result.pairs}
    assert pairs == {(1, UUID), (2, UUID), (3, UUID), (4, UUID), (5, UUID), (UUID, 5)}
    bad = pb.SearchMatrixPoints(collection_name="c", sample=1)
    assert refused(lambda: reads.ask("SearchMatrixPairs", bad))[0] is Code.INVALID_ARGUMENT


def test_aliases_are_names(reads: Reads) -> None:
    action = collections.AliasOperations(create_alias=collections.CreateAlias(collection_name="c", alias_name="a"))
    reads.local.do(make.ALIASES, collections.ChangeAliases(actions=[action]))
    assert reads.ask("Count", pb.CountPoints(collection_name="a")).result.count == 6


def test_warming_up_changes_no_answer(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_LEAST_POINTS", 0)
    reads.index("k", pb.FieldTypeKeyword)
    request = near(1, 0, filter=make.matching_keyword("k", "odd"))
    before = ids(reads.ask("Query", request).result)
    warmed = Searcher(reads.store, config.Replica(warm_seconds=0.01))
    warmed.start()
    for turn in range(5):
        reads.local.do(r.UPSERT, make.upsert(make.point(200 + turn, make.dense(0, 0), k="even")))
        answer = warmed.answer(r.POINTS + "Query", request.SerializeToString())
        assert ids(pb.QueryResponse.FromString(answer).result) == before
    warmed.close()
    reads.searcher.close()
