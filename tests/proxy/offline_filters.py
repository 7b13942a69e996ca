"""Filters for the offline table: one for every form of condition, each told apart by the points of `main`."""

from __future__ import annotations

from tests.proxy.offline_data import COUNT, TEXTS, Json, identity, pid


def field(key: str, **check: object) -> Json:
    """A condition on a field."""
    return {"field": {"key": key, **check}}


def match(key: str, **check: object) -> Json:
    """A match condition."""
    return field(key, match=check)


def must(*conditions: Json) -> Json:
    """A filter that wants all of these."""
    return {"must": list(conditions)}


EVEN = match("b", boolean=True)
_CORNERS = [
    {"lon": 13.2, "lat": 51.9},
    {"lon": 15.0, "lat": 51.9},
    {"lon": 15.0, "lat": 52.45},
    {"lon": 13.2, "lat": 52.45},
]
_HOLE = [
    {"lon": 14.0, "lat": 52.0},
    {"lon": 14.6, "lat": 52.0},
    {"lon": 14.6, "lat": 52.25},
    {"lon": 14.0, "lat": 52.25},
]

# Title → filter. The stand-in answers these as a server does.
FILTERS: dict[str, Json] = {
    "match keyword": must(match("k", keyword="x")),
    "match integer": must(match("n", integer=2)),
    "match boolean": must(EVEN),
    "match text": must(match("text", text="quick")),
    "match text without an index": must(match("plain_text", text="rown")),
    "match text_any": must(match("text", text_any="fox bears")),
    "match phrase": must(match("text", phrase="quick brown")),
    "match keywords": must(match("k", keywords={"strings": ["y", "z"]})),
    "match integers": must(match("n", integers={"integers": [1, 3]})),
    "match except_keywords": must(match("k", except_keywords={"strings": ["x"]})),
    "match except_integers": must(match("number", except_integers={"integers": [0, 1]})),
    "match keyword of a UUID index": must(match("u", keyword="11111111-0000-4000-8000-000000000002")),
    "range": must(field("f", range={"gt": 2.5, "gte": 2.5, "lt": 20.0, "lte": 17.5})),
    "range of integers": must(field("n", range={"gte": 2, "lt": 5})),
    "datetime_range": must(
        field(
            "when",
            datetime_range={
                "gt": "2024-01-02T00:00:00Z",
                "gte": "2024-01-03T12:00:00Z",
                "lt": "2024-01-20T00:00:00Z",
                "lte": "2024-01-15T12:00:00Z",
            },
        )
    ),
    "geo_bounding_box": must(
        field(
            "where",
            geo_bounding_box={"top_left": {"lon": 13.4, "lat": 52.35}, "bottom_right": {"lon": 14.7, "lat": 52.05}},
        )
    ),
    "geo_radius": must(field("where", geo_radius={"center": {"lon": 13.5, "lat": 52.2}, "radius": 40000.0})),
    "geo_polygon": must(
        field(
            "where",
            geo_polygon={
                "exterior": {"points": [*_CORNERS, _CORNERS[0]]},
                "interiors": [{"points": [*_HOLE, _HOLE[0]]}],
            },
        )
    ),
    "values_count": must(field("tags", values_count={"gt": 0, "gte": 1, "lt": 3, "lte": 2})),
    "field is_empty": must(field("empty", is_empty=True)),
    "field is not empty": must(field("empty", is_empty=False)),
    "field is_null": must(field("empty", is_null=True)),
    "field is not null": must(field("empty", is_null=False)),
    "is_empty": must({"is_empty": {"key": "empty"}}),
    "is_null": must({"is_null": {"key": "empty"}}),
    "has_id": must({"has_id": {"has_id": [pid(identity(number)) for number in (1, 2, 5, 11)] + [pid(999)]}}),
    "has_vector": must({"has_vector": {"has_vector": "multi"}}),
    "nested": must({"nested": {"key": "l", "filter": must(match("a", integer=1), match("b", integer=1))}}),
    "dotted path": must(match("o.x", integer=3)),
    "path into an array": must(match("l[].a", integer=2)),
    "filter in a filter": must(
        {"filter": {"should": [match("k", keyword="y"), EVEN], "must_not": [match("n", integer=4)]}}
    ),
    "should": {"should": [match("k", keyword="z"), match("n", integer=1)]},
    "must_not": {"must_not": [match("k", keyword="x"), match("n", integer=1)]},
    "min_should": {
        "min_should": {"conditions": [match("k", keyword="x"), EVEN, match("number", integer=0)], "min_count": 2}
    },
    "all four at once": {
        "must": [field("f", range={"gte": 1.0})],
        "should": [match("k", keyword="x"), match("k", keyword="y")],
        "must_not": [match("n", integer=6)],
        "min_should": {"conditions": [EVEN, match("number", integer=1)], "min_count": 1},
    },
    "nothing at all": {},
}


# Title → (filter, numbers of the points that pass). Forms that are too new for the stand-in: worked out by hand, slices
# by Qdrant's own engine in qdrant-edge-py.
NEWER: dict[str, tuple[Json, list[int]]] = {
    "match prefix": (
        must(match("plain_text", prefix="the qu")),
        [number for number in range(COUNT) if TEXTS[number % 5].startswith("the qu")],
    ),
    "match substring": (
        must(match("plain_text", substring="bear")),
        [number for number in range(COUNT) if "bear" in TEXTS[number % 5]],
    ),
    "slice": (must({"slice": {"total": 3, "index": 0}}), [8, 9, 20]),
    "another slice": (
        must({"slice": {"total": 3, "index": 1}}),
        [3, 5, 6, 7, 10, 11, 13, 15, 18, 21, 22],
    ),
}
