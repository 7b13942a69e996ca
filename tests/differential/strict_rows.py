"""What Qdrant says to requests beyond the limits of a strict mode, row by row.

The limits, what trips them and the words are those of Qdrant's own test-suite (`tests/openapi/test_strictmode.py`)
where it has them, else of the source of its checks. Everything here is a request in JSON form on a collection of six
points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from server.rpc import COLLECTIONS, POINTS
from tests.proxy.offline_data import Json, dense, multi, payload, sparse

from .strict_calls import (
    ALL_KINDS,
    BERLIN,
    FEWER,
    GROUPING,
    NAME,
    NO_GRAPH,
    NOT_EXACT,
    SMALLER,
    Q,
    batch,
    chosen,
    must,
    named,
    no_index,
    on,
    over,
    queries,
    query,
    search,
    trip,
    update_vectors,
    upsert,
    with_vector,
)


@dataclass(frozen=True)
class Row:
    """With `limits`, each of `passes` is answered and each of `trips` is refused with its words.

    `indexes` are payload indexes, field → type or (type, parameters). A `late` limit is noticed by Qdrant within 33
    calls; `since` a release it knows the requests.
    """

    name: str
    limits: Json
    trips: tuple[tuple[str, Json, str], ...]
    passes: tuple[tuple[str, Json], ...] = ()
    indexes: dict[str, Any] = field(default_factory=dict)
    create: Json = field(default_factory=dict)
    late: bool = False
    since: tuple[int, int] = (1, 18)

    def __str__(self) -> str:
        return self.name


def setup(row: Row) -> Iterator[tuple[str, Json]]:
    """The calls that make the collection of a row."""
    vector = {"size": 4, "distance": "Dot"}
    shape = {
        "vectors_config": {
            "params_map": {"map": {"": vector, "m": {**vector, "multivector_config": {"comparator": "MaxSim"}}}}
        },
        "sparse_vectors_config": {"map": {"s": {}}},
    }
    yield COLLECTIONS + "Create", {**shape, **row.create}
    cities = ["Berlin", "London", "Moscow", "Berlin", "Berlin", "London"]
    points = [
        {
            "id": {"num": number + 1},
            "vectors": named(dense(*(0.1 * (number + at) for at in range(4)))),
            "payload": payload({"city": city, "price": number, "many": [{"a": number}]}),
        }
        for number, city in enumerate(cities)
    ]
    yield POINTS + "Upsert", {"points": points, "wait": True}
    for name, index in row.indexes.items():
        kind, params = index if isinstance(index, tuple) else (index, None)
        request: Json = {"field_name": name, "field_type": f"FieldType{kind}", "wait": True}
        if params is not None:
            request["field_index_params"] = {f"{kind.lower()}_index_params": params}
        yield POINTS + "CreateFieldIndex", request
    yield COLLECTIONS + "Update", {"strict_mode_config": {"enabled": True, **row.limits}}


def _limits() -> Iterator[Row]:
    """Numbers in requests."""
    groups = {"group_by": "city", "limit": 10, "group_size": 3}
    yield Row(
        "max_query_limit",
        {"max_query_limit": 15},
        (
            trip(search(16), over(16, 15)),
            trip(query(limit=16), over(16, 15)),
            trip(query(prefetch=[{"query": {"nearest": dense(*Q)}, "limit": 20}], limit=2), over(20, 15)),
            trip(query(prefetch=[{"prefetch": [{"limit": 99}], "limit": 2, **query()[1]}], limit=2), over(99, 15)),
            trip((POINTS + "QueryGroups", {**query()[1], **groups}), over(30, 15)),
            trip((POINTS + "QueryGroups", {**query()[1], "group_by": "city"}), over(30, 15)),
            trip((POINTS + "SearchGroups", {**search()[1], **groups}), over(30, 15)),
            trip((POINTS + "RecommendGroups", {"positive": [{"num": 1}], **groups}), over(30, 15)),
            trip((POINTS + "Recommend", {"positive": [{"num": 1}], "limit": 16}), over(16, 15)),
            trip((POINTS + "Discover", {"target": {"single": {"id": {"num": 1}}}, "limit": 16}), over(16, 15)),
            trip((POINTS + "Scroll", {"limit": 16}), over(16, 15)),
            trip((POINTS + "SearchMatrixPairs", {"sample": 10, "limit": 2}), over(20, 15)),
            trip((POINTS + "SearchMatrixOffsets", {}), over(30, 15)),
            trip((POINTS + "Facet", {"key": "city", "limit": 16}), over(16, 15)),
            trip(
                (
                    POINTS + "SearchBatch",
                    {"search_points": [{"collection_name": NAME, **search(one)[1]} for one in (3, 16)]},
                ),
                over(16, 15),
            ),
        ),
        (
            search(15),
            query(),
            (POINTS + "Scroll", {"limit": 15}),
            (POINTS + "SearchMatrixPairs", {"sample": 5, "limit": 3}),
            (POINTS + "Facet", {"key": "city"}),
            (POINTS + "Get", {"ids": [{"num": number} for number in range(1, 30)]}),
            (POINTS + "QueryGroups", {**query()[1], "group_by": "city", "limit": 5, "group_size": 3}),
        ),
        {"city": "Keyword"},
    )
    yield Row(
        "max_query_limit below the defaults",
        {"max_query_limit": 4},
        (
            trip(query(), over(10, 4)),
            trip((POINTS + "Facet", {"key": "city"}), over(10, 4)),
            trip(query(prefetch=[query(limit=None)[1]], limit=2), over(10, 4)),
        ),
        # Until 1.19 a scroll that names no limit is not looked at.
        (search(4), (POINTS + "Scroll", {}), (POINTS + "Get", {"ids": [{"num": 1}]})),
        {"city": "Keyword"},
    )
    seconds = over(3, 2, "timeout")
    yield Row(
        "max_timeout",
        {"max_timeout": 2},
        (
            trip(search(timeout=3), seconds),
            trip((POINTS + "Get", {"ids": [{"num": 1}], "timeout": 3}), seconds),
            trip((POINTS + "Count", {"timeout": 3}), seconds),
            trip((POINTS + "QueryBatch", {**queries(1)[1], "timeout": 3}), seconds),
            trip(upsert(1, timeout=3), seconds),
            trip((POINTS + "Delete", {"points": {"points": {"ids": [{"num": 9}]}}, "timeout": 3}), seconds),
            trip(
                (
                    POINTS + "CreateFieldIndex",
                    {"field_name": "x", "field_type": "FieldTypeKeyword", "wait": True, "timeout": 3},
                ),
                seconds,
            ),
        ),
        (search(timeout=2), upsert(1, timeout=2), search()),
    )
    yield Row(
        "search_max_batchsize",
        {"search_max_batchsize": 2},
        (trip(queries(3), over(3, 2, "search batch size")),),
        (queries(2), query()),
    )
    yield Row(
        "search_max_hnsw_ef",
        {"search_max_hnsw_ef": 4},
        (
            trip(search(params={"hnsw_ef": 5}), over(5, 4, "hnsw_ef")),
            trip(query(prefetch=[query(params={"hnsw_ef": 9})[1]]), over(9, 4, "hnsw_ef")),
        ),
        (search(params={"hnsw_ef": 4}), search()),
    )
    yield Row(
        "search_max_oversampling",
        {"search_max_oversampling": 1.5},
        (
            trip(search(params={"quantization": {"oversampling": 2.0}}), over(2, 1.5, "oversampling")),
            trip(query(params={"quantization": {"oversampling": 1.6}}), over(1.6, 1.5, "oversampling")),
        ),
        (search(params={"quantization": {"oversampling": 1.5}}),),
    )


def _exact() -> Iterator[Row]:
    """No search without an index of vectors."""
    none = {"query": {"sample": "Random"}}
    yield Row(
        "search_allow_exact",
        {"search_allow_exact": False},
        (
            trip(search(params={"exact": True}), NOT_EXACT),
            trip(query(params={"exact": True}), NOT_EXACT),
            trip((POINTS + "Count", {"exact": True}), NOT_EXACT),
            trip((POINTS + "Count", {}), NOT_EXACT),
        ),
        (search(), query(params={"exact": False}), (POINTS + "Count", {"exact": False}), (POINTS + "Query", none)),
    )
    day = ("Integer", {"lookup": True, "range": True, "is_principal": True})
    tenants = {"tenant": ("Keyword", {"is_tenant": True}), "day": day, "city": "Keyword"}
    mine = must(on("tenant", match={"keyword": "me"}))
    yield Row(
        "search_allow_exact without a graph",
        {"search_allow_exact": False},
        (
            trip(query(), f"Bad request: Request is forbidden {NO_GRAPH}"),
            trip(query(filter=BERLIN), f"Bad request: Request is forbidden {NO_GRAPH}"),
            trip(query(prefetch=[query()[1]]), f"Bad request: Request is forbidden {NO_GRAPH}"),
            trip(
                (POINTS + "Query", {"query": {"nearest": multi(Q)}, "using": "m"}),
                f"Bad request: Request is forbidden on 'm' {NO_GRAPH}",
            ),
        ),
        (
            query(filter=mine),
            query(filter=must({"filter": must(on("day", range={"gt": 1.0}))})),
            (POINTS + "Query", {"query": {"nearest": sparse(_1=1.0)}, "using": "s"}),
            (POINTS + "Query", none),
            query(
                query={"formula": {"expression": {"variable": "$score"}}},
                prefetch=[query(filter=mine)[1]],
            ),
        ),
        tenants,
        {"hnsw_config": {"m": 0, "payload_m": 16}},
    )
    yield Row(
        "search_allow_exact without any graph",
        {"search_allow_exact": False},
        (
            trip(
                query(filter=mine),
                "Bad request: Request is forbidden because vector indexing is disabled (hnsw_config.m = 0 and "
                "hnsw_config.payload_m = 0). Help: Enable vector indexing, use a prefetch query with indexed vectors "
                "or enable strict mode `search_allow_exact` option",
            ),
        ),
        (),
        tenants,
        {"hnsw_config": {"m": 0, "payload_m": 0}},
    )


def _filters() -> Iterator[Row]:
    """The size of a filter."""
    prices = [on("price", match={"integer": number}) for number in range(6)]
    many = {"match": {"integers": {"integers": list(range(6))}}}
    nested = {
        "nested": {
            "key": "many",
            "filter": must(on("a", match={"integer": 1}), {"filter": {"should": prices[:2], "must_not": prices[:1]}}),
        }
    }
    too_many = f"Bad request: Filter condition limit reached (6 > 5). {FEWER}"
    yield Row(
        "filter_max_conditions",
        {"filter_max_conditions": 5},
        (
            trip(search(filter=must(*prices)), too_many),
            trip((POINTS + "Scroll", {"filter": {"should": prices[:3], "must_not": prices[3:]}}), too_many),
            trip((POINTS + "Count", {"filter": must(nested, *prices[:2])}), too_many),
            trip((POINTS + "Delete", {"points": {"filter": must(*prices)}}), too_many),
            trip((POINTS + "SetPayload", {"payload": payload({"x": 1}), **chosen(must(*prices))}), too_many),
            trip(
                query(filter={"min_should": {"conditions": prices, "min_count": 1}}),
                too_many,
            ),
        ),
        (search(filter=must(*prices[:5])), (POINTS + "Count", {"filter": must(nested, prices[0])})),
    )
    too_large = f"Bad request: Condition size limit reached (6 > 5). {SMALLER}"
    yield Row(
        "condition_max_size",
        {"condition_max_size": 5},
        (
            trip(search(filter=must(on("price", **many))), too_large),
            trip(search(filter={"must_not": [{"filter": must(on("price", **many))}]}), too_large),
            trip(
                search(filter=must(on("price", match={"except_integers": {"integers": list(range(6))}}))),
                too_large,
            ),
            trip(
                search(filter=must({"nested": {"key": "many", "filter": must(on("a", **many))}})),
                too_large,
            ),
            trip(
                (
                    POINTS + "Scroll",
                    {"filter": must({"has_id": {"has_id": [{"num": number} for number in range(1, 7)]}})},
                ),
                too_large,
            ),
            trip((POINTS + "ClearPayload", {"points": {"filter": must(on("price", **many))}}), too_large),
        ),
        (
            search(filter=must(on("price", match={"integers": {"integers": [1, 2, 3, 4, 5, 5, 5]}}))),
            (POINTS + "Scroll", {"filter": must({"has_id": {"has_id": [{"num": 1}] * 9}})}),
            (POINTS + "Delete", {"points": {"points": {"ids": [{"num": number} for number in range(90, 99)]}}}),
        ),
    )


_LON_LAT = {"lon": 13.0, "lat": 52.0}
# Field and type of its index → conditions that it serves, conditions that it does not, with the kinds that would.
_SERVED: tuple[tuple[Any, tuple[Json, ...], tuple[tuple[Json, str], ...]], ...] = (
    (
        "Keyword",
        ({"match": {"keyword": "a"}}, {"match": {"except_keywords": {"strings": ["a"]}}}, {"is_null": True}),
        (
            ({"match": {"integer": 1}}, "integer"),
            ({"match": {"text": "a"}}, "text"),
            ({"range": {"gt": 1.0}}, "float, integer"),
        ),
    ),
    (
        "Integer",
        ({"match": {"integer": 1}}, {"match": {"integers": {"integers": [1]}}}, {"range": {"gt": 1.0}}),
        (
            ({"match": {"keyword": "a"}}, "keyword"),
            ({"match": {"keyword": "11111111-0000-4000-8000-000000000001"}}, "keyword, uuid"),
            ({"datetime_range": {"gt": "2024-01-01T00:00:00Z"}}, "datetime"),
        ),
    ),
    (
        ("Integer", {"lookup": True, "range": False}),
        ({"match": {"except_integers": {"integers": [1]}}},),
        (({"range": {"lt": 3.0}}, "float, integer"),),
    ),
    (
        ("Integer", {"lookup": False, "range": True}),
        ({"range": {"lt": 3.0}},),
        (({"match": {"integer": 1}}, "integer"),),
    ),
    ("Float", ({"range": {"lt": 3.0}}, {"values_count": {"gt": 1}}), (({"match": {"integer": 1}}, "integer"),)),
    ("Bool", ({"match": {"boolean": True}},), (({"match": {"keyword": "true"}}, "keyword"),)),
    (
        "Geo",
        ({"geo_radius": {"center": _LON_LAT, "radius": 9.0}}, {"is_empty": False}),
        (({"match": {"boolean": True}}, "bool"),),
    ),
    ("Datetime", ({"datetime_range": {"gt": "2024-01-01T00:00:00Z"}},), (({"range": {"gt": 1.0}}, "float, integer"),)),
    (
        "Text",
        ({"match": {"text": "a"}}, {"match": {"text_any": "a"}}),
        (
            ({"match": {"phrase": "a"}}, "text (with phrase_matching: true)"),
            ({"match": {"keyword": "a"}}, "keyword"),
        ),
    ),
    (("Text", {"tokenizer": "Word", "phrase_matching": True}), ({"match": {"phrase": "a"}},), ()),
    (
        "Uuid",
        ({"match": {"keyword": "11111111-0000-4000-8000-000000000001"}},),
        (({"match": {"keywords": {"strings": ["a", "11111111-0000-4000-8000-000000000001"]}}}, "keyword"),),
    ),
)


def _indexes() -> Iterator[Row]:
    """Fields that are filtered by need an index of the right kind."""
    read = {"unindexed_filtering_retrieve": False}
    for kind, served, others in _SERVED:
        yield Row(
            f"an index of {kind if isinstance(kind, str) else ' '.join([kind[0], *map(str, kind[1].items())])}",
            read,
            tuple(trip(search(filter=must(on("f", **given))), no_index("f", kinds)) for given, kinds in others),
            tuple(search(filter=must(on("f", **given))) for given in served),
            {"f": kind},
        )
    begins = on("f", match={"prefix": "a"})
    yield Row(
        "an index of Keyword and the beginnings of texts",
        read,
        (trip(search(filter=must({**begins, "field": {**begins["field"], "key": "g"}})), no_index("g", "keyword")),),
        (
            search(filter=must(begins)),
            # A list without values asks for nothing, and so for no index.
            search(filter=must(on("h", match={"keywords": {"strings": []}}))),
            search(filter=must(on("h", match={"except_integers": {"integers": []}}))),
        ),
        {"f": ("Keyword", {"prefix": {}}), "g": "Keyword"},
        since=(1, 20),
    )
    yield Row(
        "parts of texts",
        {},
        tuple(
            trip(
                search(filter=given),
                'Bad request: Substring matching is not allowed, used for "city": it scans every value of the field, '
                "with or without an index. Help: Use a prefix match or a full-text match instead.",
            )
            for part in [on("city", match={"substring": "erl"})]
            for given in (must(part), {"must_not": [{"filter": {"should": [part]}}]})
        ),
        (search(filter=BERLIN),),
        {"city": "Keyword"},
        since=(1, 20),
    )
    yield Row(
        "unindexed_filtering_retrieve",
        read,
        (
            trip(search(filter=BERLIN), no_index("city", "keyword")),
            trip(query(filter=BERLIN), no_index("city", "keyword")),
            trip(query(prefetch=[query(filter=BERLIN)[1]]), no_index("city", "keyword")),
            trip((POINTS + "Scroll", {"filter": BERLIN}), no_index("city", "keyword")),
            trip((POINTS + "Count", {"filter": BERLIN}), no_index("city", "keyword")),
            trip((POINTS + "Facet", {"key": "price", "filter": BERLIN}), no_index("city", "keyword")),
            trip((POINTS + "SearchMatrixPairs", {"filter": BERLIN}), no_index("city", "keyword")),
            trip(
                (POINTS + "Recommend", {"positive": [{"num": 1}], "limit": 1, "filter": BERLIN}),
                no_index("city", "keyword"),
            ),
            trip(search(filter={"must_not": [{"filter": BERLIN}]}), no_index("city", "keyword")),
            trip(search(filter={"should": [{"is_empty": {"key": "city"}}]}), no_index("city", ALL_KINDS)),
            trip(search(filter=must({"is_null": {"key": "city"}})), no_index("city", ALL_KINDS)),
            trip(search(filter=must(on("city", values_count={"gt": 1}))), no_index("city", ALL_KINDS)),
            trip(
                search(filter=must({"nested": {"key": "many", "filter": must(on("b", match={"integer": 1}))}})),
                no_index("many[].b", "integer"),
            ),
        ),
        (
            search(filter=must(on("price", match={"integer": 1}))),
            search(filter=must({"has_id": {"has_id": [{"num": 1}]}}, {"has_vector": {"has_vector": "m"}})),
            search(filter=must({"nested": {"key": "many", "filter": must(on("a", match={"integer": 1}))}})),
            search(filter=must({"nested": {"key": "many[]", "filter": must(on("a", match={"integer": 1}))}})),
            search(filter={}),
            # Writes have a switch of their own.
            (POINTS + "SetPayload", {"payload": payload({"x": 1}), **chosen(BERLIN)}),
        ),
        {"price": "Integer", "many[].a": "Integer"},
    )
    formula = {"sum": {"sum": [{"variable": "discount_price"}, {"variable": "$score"}]}}
    price = {"sum": {"sum": [{"variable": "price"}, {"variable": "$score[0]"}, {"constant": 1.0}]}}
    bonus = {"mult": {"mult": [{"condition": BERLIN["must"][0]}, {"constant": 2.0}]}}
    place = {"neg": {"geo_distance": {"origin": _LON_LAT, "to": "place"}}}
    decay = {"exp_decay": {"x": {"datetime_key": "when"}}}

    def by(expression: Json, **defaults: Any) -> tuple[str, Json]:
        given = {"expression": expression, "defaults": payload(defaults)}
        return POINTS + "Query", {"prefetch": [query()[1]], "query": {"formula": given}}

    other = "formula expression"
    yield Row(
        "unindexed_filtering_retrieve in a formula",
        read,
        (
            trip(by(formula, discount_price=0), no_index("discount_price", "float, integer", other)),
            trip(by(bonus), no_index("city", "keyword", other)),
            trip(by(place), no_index("place", "geo", other)),
            trip(by(decay), no_index("when", "datetime", other)),
            trip(
                by({"div": {"left": {"constant": 1.0}, "right": {"variable": "z"}}}),
                no_index("z", "float, integer", other),
            ),
        ),
        (by(price),),
        {"price": "Integer"},
    )
    wrong = f'Bad request: Index of type "Float" found for "price". {GROUPING}'
    missing = f'Bad request: Index required but not found for "x". {GROUPING}'
    yield Row(
        "unindexed_filtering_retrieve in groups",
        read,
        (
            trip((POINTS + "QueryGroups", {**query()[1], "group_by": "x"}), missing),
            trip((POINTS + "QueryGroups", {**query()[1], "group_by": "price"}), wrong),
            trip(
                (POINTS + "QueryGroups", {**query()[1], "group_by": "n"}),
                wrong.replace("Float", "Integer").replace("price", "n"),
            ),
        ),
        ((POINTS + "QueryGroups", {**query()[1], "group_by": "city"}),),
        {"city": "Keyword", "price": "Float", "n": ("Integer", {"range": True})},
    )
    unindexed = no_index("city", "keyword")
    by_city = {"filter": BERLIN}
    yield Row(
        "unindexed_filtering_update",
        {"unindexed_filtering_update": False},
        (
            trip((POINTS + "Delete", {"points": by_city, "wait": True}), unindexed),
            trip((POINTS + "ClearPayload", {"points": by_city, "wait": True}), unindexed),
            trip((POINTS + "SetPayload", {"payload": payload({"x": 1}), **chosen(BERLIN)}), unindexed),
            trip((POINTS + "OverwritePayload", {"payload": payload({"x": 1}), **chosen(BERLIN)}), unindexed),
            trip((POINTS + "DeletePayload", {"keys": ["x"], **chosen(BERLIN)}), unindexed),
            trip((POINTS + "DeleteVectors", {"vectors": {"names": ["m"]}, **chosen(BERLIN)}), unindexed),
            trip(batch({"delete_points": {"points": by_city}}), unindexed),
        ),
        (
            search(filter=BERLIN),
            (POINTS + "SetPayload", {"payload": payload({"x": 1}), **chosen(must(on("price", match={"integer": 1})))}),
            (POINTS + "Delete", {"points": {"points": {"ids": [{"num": 6}]}}, "wait": True}),
        ),
        {"price": "Integer"},
    )


def _writes() -> Iterator[Row]:
    """The size of a write and of a collection."""
    part = {key: one for key, one in upsert(*range(1, 7))[1].items() if key == "points"}
    yield Row(
        "upsert_max_batchsize",
        {"upsert_max_batchsize": 5},
        (
            trip(upsert(*range(1, 7)), over(6, 5, "upsert limit")),
            trip(batch({"upsert": part}), over(6, 5, "upsert limit")),
            trip(update_vectors(*range(1, 7)), over(6, 5, "update limit")),
        ),
        (upsert(*range(1, 6)), update_vectors(*range(1, 6))),
    )
    row = [1.0, 1.5, 1.75, 2.0]
    yield Row(
        "multivector_config",
        {"multivector_config": {"multivector_config": {"m": {"max_vectors": 5}}}},
        tuple(
            trip(call, "Bad request: Multivector 'm' has a limit of 5 vectors, but 6 were provided!")
            for call in (
                upsert(1, vectors=with_vector("m", multi(*[row] * 6))),
                (
                    POINTS + "UpdateVectors",
                    {"points": [{"id": {"num": 1}, "vectors": with_vector("m", multi(*[row] * 6))}], "wait": True},
                ),
            )
        ),
        (upsert(1, vectors=with_vector("m", multi(*[row] * 5))),),
    )
    six = {f"_{number}": 0.5 for number in range(1, 7)}
    yield Row(
        "sparse_config",
        {"sparse_config": {"sparse_config": {"s": {"max_length": 4}}}},
        (
            trip(
                upsert(2, vectors=with_vector("s", sparse(**six))),
                "Bad request: Sparse vector 's' has a limit of 4 indices, but 6 were provided!",
            ),
        ),
        (upsert(1, vectors=with_vector("s", sparse(_1=0.1, _2=0.1, _3=0.2, _4=0.3))),),
    )
    full = "Bad request: Max points count limit of 6 reached!"
    yield Row(
        "max_points_count",
        {"max_points_count": 6},
        (trip(upsert(7, 8), full), trip(upsert(1), full), trip(update_vectors(1), full)),
        (
            (
                POINTS + "SetPayload",
                {"payload": payload({"x": 1}), "points_selector": {"points": {"ids": [{"num": 1}]}}},
            ),
            (POINTS + "Delete", {"points": {"points": {"ids": [{"num": 99}]}}, "wait": True}),
        ),
        late=True,
    )
    again = {"field_type": "FieldTypeKeyword", "wait": True}
    most = (
        "Bad request: Collection already has the maximum number of payload indices (2). "
        "Help: Please delete an existing index before creating a new one."
    )
    yield Row(
        "max_payload_index_count",
        {"max_payload_index_count": 2},
        (
            trip((POINTS + "CreateFieldIndex", {"field_name": "third", **again}), most),
            trip((POINTS + "CreateFieldIndex", {"field_name": "city", **again}), most),
        ),
        ((POINTS + "DeleteFieldIndex", {"field_name": "price", "wait": True}),),
        {"city": "Keyword", "price": "Integer"},
    )


def _off() -> Iterator[Row]:
    """Limits that are not there."""
    yield Row(
        "switched off",
        {
            "enabled": False,
            "max_query_limit": 1,
            "search_allow_exact": False,
            "unindexed_filtering_retrieve": False,
            "unindexed_filtering_update": False,
            "upsert_max_batchsize": 1,
            "max_points_count": 1,
            "max_payload_index_count": 1,
        },
        (),
        (
            search(9, filter=BERLIN),
            (POINTS + "Count", {}),
            upsert(1, 2, 3),
            (POINTS + "CreateFieldIndex", {"field_name": "x", "field_type": "FieldTypeKeyword", "wait": True}),
            (POINTS + "Delete", {"points": {"filter": BERLIN}, "wait": True}),
        ),
    )
    yield Row(
        "allowed by name",
        {"unindexed_filtering_retrieve": True, "unindexed_filtering_update": True, "search_allow_exact": True},
        (),
        (search(9, filter=BERLIN, params={"exact": True}), (POINTS + "Count", {"filter": BERLIN})),
    )


ROWS: tuple[Row, ...] = (*_limits(), *_exact(), *_filters(), *_indexes(), *_writes(), *_off())
