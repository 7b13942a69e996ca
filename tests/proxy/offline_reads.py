"""Every served row of the offline table with requests that set all their fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from server.rpc import COLLECTIONS, HEALTH_CHECK, POINTS, Code
from tests.proxy.offline_data import ALIAS, MAIN, OTHER, PLAIN, Json, dense, identity, multi, pid, sparse
from tests.proxy.offline_filters import EVEN, FILTERS, NEWER, field, must


class How(Enum):
    """What must hold of the answer during the outage."""

    EQUAL = "equals the answer before it"
    SAME_SIZE = "as many results as before: which ones is chance"
    REFUSED = "refused with a reason"
    BY_HAND = "the points that were worked out by hand"


@dataclass(frozen=True)
class Case:
    """One call. `code` and `reason` (a part of its text): of a refusal; `ids`: for BY_HAND.
    `passing`: fields of the answer that are not compared.

    A `$` at the start of a name stands for a prefix: a write is done to one collection before the outage, to another
    during it.
    """

    method: str
    title: str
    request: Json
    how: How = How.EQUAL
    reason: str = ""
    code: Code = Code.UNAVAILABLE
    ids: tuple[int | str, ...] = ()
    passing: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.method.rpartition('/')[2]}: {self.title}"


ALL = {"read_consistency": {"type": "Quorum"}, "timeout": 30}
FACTOR = {"read_consistency": {"factor": 1}, "timeout": 30}
INCLUDE = {"with_payload": {"include": {"fields": ["k", "o.x", "l[].a"]}}}
EXCLUDE = {"with_payload": {"exclude": {"fields": ["text", "o.y", "l[].b"]}}}
BOTH = {"with_payload": {"enable": True}, "with_vectors": {"enable": True}}
SOME_VECTORS = {"with_vectors": {"include": {"names": ["cos", "sparse"]}}}
PARAMS = {
    "params": {
        "hnsw_ef": 64,
        "exact": True,
        "quantization": {"ignore": True, "rescore": True, "oversampling": 2.0},
        "indexed_only": False,
        "acorn": {"enable": True, "max_selectivity": 0.4},
    }
}
A, B = [0.3, -0.2, 0.9, 0.4], [-0.5, 0.7, 0.1, 0.2]
ONE, TWO, UUID = pid(1), pid(2), pid(identity(5))
NO_INFERENCE = "inference"


def _query(title: str, query: Json | None, how: How = How.EQUAL, reason: str = "", **more: Any) -> Case:
    request: Json = {"collection_name": MAIN, "limit": 7, **more}
    if query is not None:
        request["query"] = query
    return Case(POINTS + "Query", title, request, how, reason)


def _near(*numbers: float) -> Json:
    return {"nearest": dense(*numbers)}


def _prefetch(using: str, *numbers: float, limit: int = 8, **more: Any) -> Json:
    return {"query": _near(*numbers), "using": using, "limit": limit, **more}


def _pair(positive: Json, negative: Json) -> Json:
    return {"positive": positive, "negative": negative}


TWO_SOURCES = [_prefetch("cos", *A), _prefetch("euc", *B)]
LOOKUP = {"lookup_from": {"collection_name": OTHER, "vector_name": "o"}}


def _nearest() -> Iterator[Case]:
    """The nearest form for each kind of vector, and every field beside the query."""
    for name in ("cos", "euc", "man", "dot"):
        yield _query(f"nearest, {name}", _near(*A), using=name, **BOTH)
    yield _query("nearest, half", _near(0.25, -0.25, 0.875, 0.5), using="half", **BOTH)
    yield _query("nearest, byte", _near(7, 100, 30, 200), using="byte", **BOTH)
    yield _query("nearest, multi", {"nearest": multi([0.1, 0.5, -0.2], [0.9, 0.0, 0.3])}, using="multi", **BOTH)
    yield _query("nearest, sparse", {"nearest": sparse(_0=0.4, _3=0.9, _7=0.2)}, using="sparse", **BOTH)
    yield _query("nearest, idf", {"nearest": sparse(_0=0.4, _3=0.9, _7=0.2)}, using="idf", **BOTH)
    yield Case(POINTS + "Query", "nearest, unnamed", {"collection_name": PLAIN, "query": _near(*A), **BOTH})
    yield Case(POINTS + "Query", 'nearest, using ""', {"collection_name": PLAIN, "query": _near(*A), "using": ""})
    yield _query("nearest by id", {"nearest": {"id": UUID}}, using="cos")
    yield _query("nearest by id looked up elsewhere", {"nearest": {"id": ONE}}, using="cos", **LOOKUP)
    yield _query(
        "every field beside the query",
        _near(*A),
        using="cos",
        filter=FILTERS["all four at once"],
        score_threshold=0.1,
        offset=1,
        **INCLUDE,
        **SOME_VECTORS,
        **PARAMS,
        **ALL,
    )
    yield _query("payload without some fields", _near(*A), using="cos", **EXCLUDE, **FACTOR)
    yield _query("mmr", {"nearest_with_mmr": {"nearest": dense(*A), "mmr": {}}}, using="cos")
    mmr = {"diversity": 0.7, "candidates_limit": 12}
    yield _query("mmr with its numbers", {"nearest_with_mmr": {"nearest": dense(*A), "mmr": mmr}}, using="cos")
    for kind, part in (
        ("document", {"text": "a", "model": "m", "options": {"a": {"bool_value": True}}}),
        ("image", {"image": {"string_value": "i"}, "model": "m", "options": {"a": {"bool_value": True}}}),
        ("object", {"object": {"string_value": "o"}, "model": "m", "options": {"a": {"bool_value": True}}}),
    ):
        yield _query(f"nearest, {kind}", {"nearest": {kind: part}}, How.REFUSED, NO_INFERENCE, using="cos")


def _recommended() -> Iterator[Case]:
    """Recommend, discover, context, relevance feedback."""
    positive, negative = [{"id": ONE}, dense(*A)], [{"id": UUID}]
    for strategy in ("AverageVector", "BestScore", "SumScores"):
        recommend = {"positive": positive, "negative": negative, "strategy": strategy}
        yield _query(f"recommend, {strategy}", {"recommend": recommend}, using="cos")
        yield _query(f"recommend, {strategy}, euc", {"recommend": recommend}, using="euc")
    yield _query("recommend, looked up", {"recommend": {"positive": [{"id": ONE}, {"id": TWO}]}}, using="cos", **LOOKUP)
    context = {"pairs": [_pair({"id": ONE}, {"id": TWO}), _pair(dense(*A), dense(*B))]}
    yield _query("discover", {"discover": {"target": dense(*A), "context": context}}, using="cos")
    yield _query("context", {"context": context}, using="cos", limit=30)
    feedback = {
        "target": dense(*A),
        "feedback": [{"example": {"id": ONE}, "score": 0.9}, {"example": dense(*B), "score": 0.1}],
        "strategy": {"naive": {"a": 1.0, "b": 0.5, "c": 0.5}},
    }
    yield _query("relevance feedback", {"relevance_feedback": feedback}, using="cos")


def _merged() -> Iterator[Case]:
    """Fusion, formula, nested prefetches."""
    yield _query("fusion RRF", {"fusion": "RRF"}, prefetch=TWO_SOURCES, limit=30)
    yield _query("fusion DBSF", {"fusion": "DBSF"}, prefetch=TWO_SOURCES, limit=30)
    weighted = {"rrf": {"k": 5, "weights": [2.0, 1.0]}}
    yield _query("rrf with k and weights", weighted, prefetch=TWO_SOURCES, limit=30)
    inner = _prefetch("dot", *B, limit=15, score_threshold=-5.0, filter=must(EVEN), **PARAMS)
    outer = {"prefetch": [inner], **_prefetch("cos", *A, limit=9)}
    yield _query("nested prefetch", _near(*A), using="euc", prefetch=[outer])
    by_id = {"query": {"nearest": {"id": ONE}}, "using": "cos", "limit": 6, **LOOKUP}
    yield _query("prefetch looked up elsewhere", _near(*A), using="euc", prefetch=[by_id])
    for title, expression in FORMULAS.items():
        formula = {"expression": expression, "defaults": {"n": {"integer_value": 1}, "missing": {"double_value": 0.5}}}
        source = [_prefetch("cos", *A, limit=20)]
        yield _query(f"formula: {title}", {"formula": formula}, prefetch=source, limit=30, score_threshold=-1e9)


def _constant(number: float) -> Json:
    return {"constant": number}


_F: Json = {"variable": "f"}
_DECAY: Json = {"x": _F, "target": _constant(10.0), "scale": 5.0, "midpoint": 0.4}
FORMULAS: dict[str, Json] = {
    "score and condition": {
        "sum": {"sum": [{"variable": "$score"}, {"mult": {"mult": [_constant(0.3), {"condition": EVEN}]}}]}
    },
    "missing with a default": {"sum": {"sum": [{"variable": "$score"}, {"variable": "missing"}]}},
    "geo distance": {"neg": {"geo_distance": {"origin": {"lon": 13.5, "lat": 52.2}, "to": "where"}}},
    "datetime": {
        "exp_decay": {
            "x": {"datetime_key": "when"},
            "target": {"datetime": "2024-01-10T00:00:00Z"},
            "scale": 864000.0,
        }
    },
    "gauss decay": {"gauss_decay": _DECAY},
    "linear decay": {"lin_decay": _DECAY},
    "exponential decay": {"exp_decay": _DECAY},
    "largest and smallest": {
        "sum": {
            "sum": [
                {"max": {"max": [_F, _constant(9.0)]}},
                {"min": {"min": [_F, _constant(20.0)]}},
                {"acosh": {"sum": {"sum": [_F, _constant(1.0)]}}},
            ]
        }
    },
    "division": {"div": {"left": _constant(3.0), "right": _F, "by_zero_default": 9.0}},
    "powers and roots": {
        "sum": {
            "sum": [
                {"pow": {"base": _F, "exponent": _constant(0.5)}},
                {"sqrt": _F},
                {"abs": {"neg": _F}},
                {"exp": {"mult": {"mult": [_constant(0.01), _F]}}},
                {"ln": {"sum": {"sum": [_F, _constant(1.0)]}}},
                {"log10": {"sum": {"sum": [_F, _constant(1.0)]}}},
            ]
        }
    },
}


def _other_queries() -> Iterator[Case]:
    yield _query("no query: by id", None, filter=must(EVEN), offset=2)
    for start in ({"float": 3.5}, {"integer": 4}):
        order = {"key": "f", "direction": "Desc", "start_from": {**start}}
        yield _query(f"order_by from {next(iter(start))}", {"order_by": order}, with_payload={"enable": True})
    yield _query("order_by", {"order_by": {"key": "n"}}, limit=30)
    yield _query("sample", {"sample": "Random"}, How.SAME_SIZE)
    text = {"query": "fox", "bm25": {"k": 1.2, "b": 0.75}}
    yield _query("text", {"text": text}, How.REFUSED, "full-text scoring")
    # The corpus of the inverse document frequencies: too new for the stand-in. All points as corpus is the default.
    idf = {"params": {"idf": {"corpus": must(field("f", range={"gte": -1.0}))}}}
    yield _query("idf over a corpus", {"nearest": sparse(_0=0.4, _3=0.9)}, using="idf", **idf)


def queries() -> Iterator[Case]:
    """Query."""
    yield from _nearest()
    yield from _recommended()
    yield from _merged()
    yield from _other_queries()


def _batched(method: str, part: str, requests: list[Json]) -> Case:
    """The requests of a batch go to its collection, whether they name one or not."""
    unnamed = [{key: one for key, one in request.items() if key != "collection_name"} for request in requests]
    return Case(POINTS + method, "two, with everything", {"collection_name": MAIN, part: unnamed, **ALL})


def _of(cases: Iterator[Case], *titles: str) -> list[Json]:
    return [case.request for case in cases if case.title in titles]


def batches() -> Iterator[Case]:
    """The batches of the older and the newer calls."""
    yield _batched("QueryBatch", "query_points", _of(queries(), "every field beside the query", "fusion RRF"))
    yield _batched("SearchBatch", "search_points", [case.request for case in searches()][:2])
    yield _batched("RecommendBatch", "recommend_points", [case.request for case in recommends()][:2])
    yield _batched("DiscoverBatch", "discover_points", [case.request for case in discovers()][:2])


def searches() -> Iterator[Case]:
    """Search."""
    yield Case(
        POINTS + "Search",
        "everything",
        {
            "collection_name": MAIN,
            "vector": A,
            "vector_name": "cos",
            "filter": must(EVEN),
            "limit": 6,
            "offset": 1,
            "score_threshold": 0.1,
            **INCLUDE,
            **SOME_VECTORS,
            **PARAMS,
            **ALL,
        },
    )
    by_words = {"vector": [0.4, 0.9, 0.2], "sparse_indices": {"data": [0, 3, 7]}, "vector_name": "sparse"}
    yield Case(POINTS + "Search", "sparse", {"collection_name": MAIN, "limit": 6, **by_words, **EXCLUDE})
    yield Case(POINTS + "Search", "unnamed", {"collection_name": PLAIN, "vector": A, "limit": 3, **BOTH})


def recommends() -> Iterator[Case]:
    """Recommend."""
    for strategy in ("AverageVector", "BestScore", "SumScores"):
        yield Case(
            POINTS + "Recommend",
            strategy,
            {
                "collection_name": MAIN,
                "positive": [ONE, UUID],
                "negative": [TWO],
                "positive_vectors": [{"data": A}],
                "negative_vectors": [dense(*B)],
                "strategy": strategy,
                "using": "cos",
                "filter": must(EVEN),
                "limit": 6,
                "offset": 1,
                "score_threshold": 0.05,
                **INCLUDE,
                **SOME_VECTORS,
                **PARAMS,
                **ALL,
            },
        )
    yield Case(
        POINTS + "Recommend",
        "looked up",
        {"collection_name": MAIN, "positive": [ONE, TWO], "using": "cos", "limit": 6, **LOOKUP},
    )


def discovers() -> Iterator[Case]:
    """Discover."""
    context = [
        {"positive": {"id": ONE}, "negative": {"id": TWO}},
        {"positive": {"vector": dense(*A)}, "negative": {"vector": {"data": B}}},
    ]
    everything = {
        "collection_name": MAIN,
        "context": context,
        "using": "cos",
        "filter": must(EVEN),
        "limit": 6,
        "offset": 1,
        **INCLUDE,
        **SOME_VECTORS,
        **PARAMS,
        **ALL,
    }
    yield Case(POINTS + "Discover", "everything", {**everything, "target": {"single": {"vector": dense(*A)}}})
    yield Case(POINTS + "Discover", "by context alone", {**everything, "offset": 0, "limit": 30})
    target = {"target": {"single": {"id": ONE}}, "context": [{"positive": {"id": TWO}, "negative": {"id": pid(3)}}]}
    yield Case(
        POINTS + "Discover", "looked up", {"collection_name": MAIN, "using": "cos", "limit": 6, **target, **LOOKUP}
    )


def groups() -> Iterator[Case]:
    """The three kinds of groups."""
    with_lookup = {
        "collection": OTHER,
        "with_payload": {"include": {"fields": ["name"]}},
        "with_vectors": {"enable": True},
    }
    shared = {
        "collection_name": MAIN,
        "filter": must(field("f", range={"lt": 20.0})),
        "limit": 2,
        "group_size": 2,
        "group_by": "number",
        "with_lookup": with_lookup,
        **INCLUDE,
        **SOME_VECTORS,
        **PARAMS,
        **ALL,
    }
    yield Case(
        POINTS + "QueryGroups",
        "everything",
        {
            **shared,
            "query": _near(*A),
            "using": "cos",
            "prefetch": [_prefetch("cos", *B, limit=20, filter=must(field("f", range={"gte": 3.0})))],
        },
    )
    above = {"collection_name": MAIN, "group_by": "group", "using": "cos", "limit": 9, "group_size": 9}
    yield Case(POINTS + "QueryGroups", "above a score", {**above, "query": _near(*A), "score_threshold": 0.2})
    yield Case(POINTS + "RecommendGroups", "above a score", {**above, "positive": [ONE], "score_threshold": 0.2})
    by_text = {
        "collection_name": MAIN,
        "group_by": "group",
        "query": {"nearest": {"id": ONE}},
        "using": "cos",
        **LOOKUP,
    }
    yield Case(POINTS + "QueryGroups", "by a text, looked up", by_text)
    yield Case(
        POINTS + "SearchGroups",
        "everything",
        {**shared, "vector": A, "vector_name": "cos", "score_threshold": 0.1},
    )
    words = {"vector": [0.4, 0.9], "sparse_indices": {"data": [0, 3]}, "vector_name": "sparse"}
    yield Case(
        POINTS + "SearchGroups",
        "sparse",
        {"collection_name": MAIN, "limit": 3, "group_size": 2, "group_by": "group", **words},
    )
    examples = {
        "positive": [ONE, UUID],
        "negative": [TWO],
        "positive_vectors": [{"data": A}],
        "negative_vectors": [dense(*B)],
        "strategy": "SumScores",
        "using": "cos",
    }
    yield Case(POINTS + "RecommendGroups", "everything", {**shared, **examples})
    looked_up = {"collection_name": MAIN, "positive": [ONE], "using": "cos", "limit": 3, "group_size": 2, **LOOKUP}
    yield Case(POINTS + "RecommendGroups", "looked up", {**looked_up, "group_by": "group"})


def listings() -> Iterator[Case]:
    """Points without a query; the filters are shown on Scroll."""
    for title, condition in FILTERS.items():
        yield Case(POINTS + "Scroll", f"filter: {title}", {"collection_name": MAIN, "limit": 50, "filter": condition})
    for title, (condition, numbers) in NEWER.items():
        passing = tuple(identity(number) for number in numbers)
        request = {"collection_name": MAIN, "limit": 50, "filter": condition}
        yield Case(POINTS + "Scroll", f"filter: {title}", request, How.BY_HAND, ids=passing)
    yield Case(
        POINTS + "Scroll",
        "everything but an order",
        {
            "collection_name": ALIAS,
            "filter": must(EVEN),
            "offset": pid(4),
            "limit": 5,
            **EXCLUDE,
            **SOME_VECTORS,
            **ALL,
        },
    )
    for start, key in (
        ({"float": 3.5}, "f"),
        ({"integer": 3}, "n"),
        ({"timestamp": "2024-01-09T11:59:59.5Z"}, "when"),
        ({"datetime": "2024-01-09T12:00:00Z"}, "when"),
    ):
        order = {"key": key, "direction": "Asc", "start_from": start}
        [form] = start
        yield Case(
            POINTS + "Scroll", f"ordered from a {form}", {"collection_name": MAIN, "limit": 50, "order_by": order}
        )
    yield Case(
        POINTS + "Get",
        "everything",
        {"collection_name": ALIAS, "ids": [UUID, pid(3), pid(999), ONE], **INCLUDE, **SOME_VECTORS, **ALL},
    )
    yield Case(POINTS + "Get", "whole points", {"collection_name": MAIN, "ids": [ONE, pid(7)], **BOTH})
    yield Case(
        POINTS + "Count",
        "everything",
        {"collection_name": ALIAS, "filter": FILTERS["all four at once"], "exact": True, **ALL},
    )
    yield Case(POINTS + "Count", "all, not exactly", {"collection_name": MAIN, "exact": False, **FACTOR})
    for key in ("k", "n", "b", "u"):
        yield Case(
            POINTS + "Facet",
            f"of {key}",
            {"collection_name": ALIAS, "key": key, "filter": must(EVEN), "limit": 4, "exact": True, **ALL},
        )
    matrix = {"collection_name": MAIN, "filter": must(EVEN), "sample": 50, "limit": 2, "using": "cos", **ALL}
    yield Case(POINTS + "SearchMatrixPairs", "everything", matrix)
    yield Case(POINTS + "SearchMatrixOffsets", "everything", matrix)


def catalogue() -> Iterator[Case]:
    """Collections and aliases."""
    for name in (MAIN, PLAIN, ALIAS):
        # How many points an index holds is not told offline.
        yield Case(COLLECTIONS + "Get", f"of {name}", {"collection_name": name}, passing=("points",))
    yield Case(COLLECTIONS + "List", "all", {})
    for name in (MAIN, ALIAS, "missing"):
        yield Case(COLLECTIONS + "CollectionExists", name, {"collection_name": name})
    yield Case(COLLECTIONS + "ListAliases", "all", {})
    yield Case(COLLECTIONS + "ListCollectionAliases", "of one", {"collection_name": MAIN})
    yield Case(HEALTH_CHECK, "title and version", {})


def refused_for_shard_keys() -> Iterator[Case]:
    """Shard keys: a server without custom sharding knows none (the stand-in does not look at them)."""
    keys = {"shard_key_selector": {"shard_keys": [{"keyword": "a"}, {"number": 7}], "fallback": {"keyword": "b"}}}
    for case in {one.method: one for one in plain_reads() if one.method in _WITH_KEYS}.values():
        yield Case(case.method, "with shard keys", {**case.request, **keys}, How.REFUSED, "shard key", Code.NOT_FOUND)
    lookup = {"lookup_from": {"collection_name": OTHER, "vector_name": "o", **keys}}
    request = {"collection_name": MAIN, "query": {"nearest": {"id": ONE}}, "using": "cos", **lookup}
    yield Case(POINTS + "Query", "looked up by shard keys", request, How.REFUSED, "shard key", Code.NOT_FOUND)


_WITH_KEYS = {
    POINTS + name
    for name in (
        "Query", "QueryGroups", "Search", "SearchGroups", "Recommend", "RecommendGroups", "Discover", "Scroll", "Get",
        "Count", "Facet", "SearchMatrixPairs", "SearchMatrixOffsets",
    )
}  # fmt: skip


def plain_reads() -> Iterator[Case]:
    """All but those about shard keys."""
    yield from queries()
    yield from searches()
    yield from recommends()
    yield from discovers()
    yield from batches()
    yield from groups()
    yield from listings()
    yield from catalogue()


READS = [*plain_reads(), *refused_for_shard_keys()]
