"""Filters against what a real server 1.18.3 answered (FACTS 3.1), and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import models as m

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import scalars
from server.replica.fields import Fields
from server.replica.filters import Point, compile_filter, is_trivial
from server.replica.refusal import NotServed, Refusal
from server.rpc import Code
from tests.replica.filtering import fields_of, numbered, passing, record_of

MISSING = object()
VALUES: dict[int, Any] = {
    1: None,
    2: MISSING,
    3: [],
    4: [None],
    5: [1, None],
    6: "x",
    7: ["x", "y"],
    8: {"b": 1},
    9: [None, None],
    10: "",
    11: "Night sky",
}
POINTS = numbered({number: {} if value is MISSING else {"a": value} for number, value in VALUES.items()})
IS_NULL = m.IsNullCondition(is_null=m.PayloadField(key="a"))
IS_EMPTY = m.IsEmptyCondition(is_empty=m.PayloadField(key="a"))


def field(**checks: Any) -> m.FieldCondition:
    return m.FieldCondition(key="a", **checks)


def but(*texts: str) -> m.FieldCondition:
    return field(match=m.MatchExcept(**{"except": list(texts)}))


def text(query: str) -> m.FieldCondition:
    return field(match=m.MatchText(text=query))


def phrase(query: str) -> m.FieldCondition:
    return field(match=m.MatchPhrase(phrase=query))


def any_word(query: str) -> m.FieldCondition:
    return field(match=m.MatchTextAny(text_any=query))


ALL = list(VALUES)

# condition, index on the field, version of the server, ids that pass.
MEASURED: list[tuple[Any, str | None, str, list[int]]] = [
    (IS_NULL, None, "1.18.3", [1]),
    (IS_NULL, "keyword", "1.18.3", [1, 4, 5, 9]),
    (IS_NULL, "text", "1.18.3", [1, 4, 5, 9]),
    (IS_NULL, None, "1.20.0", [1, 4, 5, 9]),
    (IS_EMPTY, None, "1.18.3", [1, 2, 3]),
    (IS_EMPTY, "keyword", "1.18.3", [1, 2, 3]),
    (field(is_empty=True), None, "1.18.3", [1, 2, 3]),
    (field(is_empty=False), None, "1.18.3", [4, 5, 6, 7, 8, 9, 10, 11]),
    (field(is_null=True), None, "1.18.3", [1, 4, 5, 9]),
    (field(is_null=False), None, "1.18.3", [2, 3, 6, 7, 8, 10, 11]),
    (field(values_count=m.ValuesCount(gte=0)), None, "1.18.3", [one for one in ALL if one != 2]),
    (field(values_count=m.ValuesCount(lt=1)), None, "1.18.3", [1, 3]),
    (field(values_count=m.ValuesCount(lt=1)), None, "1.20.0", [1, 2, 3]),
    (field(values_count=m.ValuesCount(lte=1)), None, "1.18.3", [1, 3, 4, 6, 8, 10, 11]),
    (field(values_count=m.ValuesCount(gte=2)), None, "1.18.3", [5, 7, 9]),
    (but("x"), None, "1.18.3", [5, 7, 8, 10, 11]),
    (but("x", "y"), None, "1.18.3", [5, 8, 10, 11]),
    (but("x"), "keyword", "1.18.3", [7, 10, 11]),
    (but("x", "y"), "keyword", "1.18.3", [10, 11]),
    (field(match=m.MatchAny(any=[])), None, "1.18.3", []),
    (text("ig"), None, "1.18.3", [11]),
    (text("night"), None, "1.18.3", []),
    (text("ig"), "text", "1.18.3", []),
    (text("night"), "text", "1.18.3", [11]),
    (text("ig"), None, "1.20.0", []),
    (text("night"), None, "1.20.0", [11]),
    (IS_NULL, None, "1.19.0", [1]),
    (IS_NULL, None, "1.19.1", [1, 4, 5, 9]),
    (text("ig"), None, "1.19.0", [11]),
    (text("ig"), None, "1.19.1", []),
    (text("night"), None, "1.19.1-dev", [11]),
    (text("night"), None, "1.19", []),
    (phrase("night sky"), None, "1.19.0", []),
    (phrase("night sky"), None, "1.19.1", [11]),
    (any_word("ig x"), None, "1.19.2", [6, 7, 11]),
    (any_word("ig x"), None, "1.20.0", [6, 7]),
]


@pytest.mark.parametrize(("condition", "index", "version", "expected"), MEASURED)
def test_as_measured_on_a_server(condition: Any, index: str | None, version: str, expected: list[int]) -> None:
    fields = fields_of(version, **({"a": index} if index else {}))
    assert passing(m.Filter(must=[condition]), POINTS, fields) == expected
    assert passing(m.Filter(must_not=[condition]), POINTS, fields) == [one for one in ALL if one not in expected]


TYPED = numbered(dict(enumerate([{"a": one} for one in (1, 1.0, True, "1", [1], [[1]], 2**53 + 1, -1)])))


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (m.MatchValue(value=1), [0, 4]),
        (m.MatchValue(value=True), [2]),
        (m.MatchValue(value="1"), [3]),
        (m.MatchAny(any=[1, 2**53 + 1]), [0, 4, 6]),
        (m.MatchValue(value=2**53), []),
    ],
)
def test_types_are_strict(match: Any, expected: list[int]) -> None:
    assert passing(m.Filter(must=[field(match=match)]), TYPED, fields_of()) == expected


def test_empty_filters_match_everything() -> None:
    for query in (m.Filter(), m.Filter(should=[]), m.Filter(must=[m.Filter()])):
        assert passing(query, POINTS, fields_of()) == ALL
    assert is_trivial(common.Filter()) and not is_trivial(common.Filter(must=[common.Condition()]))
    empty = common.Filter(must=[common.Condition()], should=[common.Condition()])
    assert compile_filter(empty, Fields()).matches(record_of(POINTS[0]))


def test_tenant_isolation_by_missing_field() -> None:
    """`should[user_id == x, is_empty(user_id)]`: a wrong answer leaks data."""
    points = numbered({1: {"u": "me"}, 2: {"u": "you"}, 3: {}, 4: {"u": None}, 5: {"u": []}, 6: {"u": ["you", "me"]}})
    mine = m.FieldCondition(key="u", match=m.MatchValue(value="me"))
    query = m.Filter(should=[mine, m.IsEmptyCondition(is_empty=m.PayloadField(key="u"))])
    for index in ({}, {"u": "keyword"}):
        assert passing(query, points, fields_of(**index)) == [1, 3, 4, 5, 6]


def test_ids_and_vectors() -> None:
    points = [
        m.PointStruct(id=1, vector={"x": [1.0]}),
        m.PointStruct(id="6F9619FF8B86D011B42D00CF4FC964FF", vector={"x": [1.0], "y": [1.0]}),
    ]
    canonical = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
    assert passing(m.Filter(must=[m.HasIdCondition(has_id=[canonical, 5])]), points, fields_of()) == [canonical]
    assert passing(m.Filter(must=[m.HasVectorCondition(has_vector="y")]), points, fields_of()) == [canonical]
    assert passing(m.Filter(must_not=[m.HasVectorCondition(has_vector="y")]), points, fields_of()) == [1]


def test_nested_looks_at_one_element_at_a_time() -> None:
    points = numbered(
        {
            1: {"d": [{"n": "a", "v": 1}, {"n": "b", "v": 2}]},
            2: {"d": [{"n": "a", "v": 2}]},
            3: {"d": {"n": "a", "v": 2}},
            4: {"d": ["a"]},
        }
    )
    inner = m.Filter(
        must=[
            m.FieldCondition(key="n", match=m.MatchValue(value="a")),
            m.FieldCondition(key="v", range=m.Range(gte=2, lte=2)),
        ]
    )
    for key in ("d", "d[]"):
        query = m.Filter(must=[m.NestedCondition(nested=m.Nested(key=key, filter=inner))])
        assert passing(query, points, fields_of()) == [2]
    by_id = m.NestedCondition(nested=m.Nested(key="d", filter=m.Filter(must=[m.HasIdCondition(has_id=[1])])))
    assert passing(m.Filter(must=[by_id]), points, fields_of()) == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("o.x", [1]),
        ('"o.x"', [2]),
        ("l[].x", [3, 4]),
        ("l[1].x", [4]),
        ("l.x", []),
        ("t", [5]),
        ("t[]", [5]),
        ("t[0]", []),
        ("t[1]", [5]),
        ('o."y z"', [6]),
        ("ключ", [7]),
    ],
)
def test_paths(key: str, expected: list[int]) -> None:
    points = numbered(
        {
            1: {"o": {"x": 1}},
            2: {"o.x": 1},
            3: {"l": [{"x": 1}]},
            4: {"l": [{"x": 2}, {"x": 1}]},
            5: {"t": [2, 1]},
            6: {"o": {"y z": 1}},
            7: {"ключ": 1},
        }
    )
    query = m.Filter(must=[m.FieldCondition(key=key, match=m.MatchValue(value=1))])
    assert passing(query, points, fields_of()) == expected


@pytest.mark.parametrize("key", ["", "a..b", ".a", "a.", "a[", "a[x]", "a b", '"a', "a[18446744073709551616]", "a]"])
def test_bad_paths_are_refused(key: str) -> None:
    condition = common.Condition(is_empty=common.IsEmptyCondition(key=key))
    with pytest.raises(Refusal) as caught:
        compile_filter(common.Filter(must=[condition]), Fields())
    assert (caught.value.code, caught.value.details) == (Code.INVALID_ARGUMENT, f"Invalid json path: '{key}'")


def test_a_condition_that_says_nothing_is_refused() -> None:
    condition = common.Condition(field=common.FieldCondition(key="a"))
    with pytest.raises(Refusal) as caught:
        compile_filter(common.Filter(must=[condition]), Fields())
    assert caught.value.details == (
        "Validation error in body: [filter.must[0].condition_one_of.match: "
        "Validation error: At least one field condition must be specified [{}]]"
    )


SQUARE = ((0, 0), (4, 0), (4, 4), (0, 4), (0, 0))
PLACES = numbered({1: {"a": {"lon": 1, "lat": 1}}, 2: {"a": {"lon": 3, "lat": 3}}, 3: {"a": {"lon": 9, "lat": 9}}})


def line(*ring: tuple[float, float]) -> common.GeoLineString:
    return common.GeoLineString(points=[common.GeoPoint(lon=lon, lat=lat) for lon, lat in ring])


def polygon(*ring: tuple[float, float], interiors: tuple[tuple[tuple[float, float], ...], ...] = ()) -> dict[str, Any]:
    return {"geo_polygon": common.GeoPolygon(exterior=line(*ring), interiors=[line(*inner) for inner in interiors])}


def radius(lon: float, lat: float) -> dict[str, Any]:
    return {"geo_radius": common.GeoRadius(center=common.GeoPoint(lon=lon, lat=lat), radius=1e9)}


def shaped(shape: dict[str, Any], version: str, index: str | None = None) -> list[Any]:
    query = common.Filter(must=[common.Condition(field=common.FieldCondition(key="a", **shape))])
    matcher = compile_filter(query, fields_of(version, **({"a": index} if index else {})))
    return [point.id for point in PLACES if matcher.matches(record_of(point))]


OPEN = "value invalid, the first and the last points should be same to form a closed line"
SHORT = "value invalid, the size must be at least 4, got 3"
HERE = "Wrong format of GeoPoint payload: expected `lat` = {} within [-90;90] and `lon` = {} within [-180;180]"


@pytest.mark.parametrize(
    ("shape", "place", "why"),
    [
        (polygon(*SQUARE[:4]), "geo_polygon.exterior", OPEN),
        (polygon(*SQUARE[:3]), "geo_polygon.exterior", SHORT),
        (polygon(), "geo_polygon.exterior", "value invalid, must not be empty"),
        (polygon(*SQUARE, interiors=(SQUARE, SQUARE[:4])), "geo_polygon.interiors", OPEN),
        (polygon(*SQUARE, interiors=(SQUARE[:3],)), "geo_polygon.interiors", SHORT),
        (radius(200, 1.5), "geo_radius.center.geo", HERE.format("1.5", "200")),
        (radius(0, float("nan")), "geo_radius.center.geo", HERE.format("NaN", "0")),
        (radius(float("-inf"), 0), "geo_radius.center.geo", HERE.format("0", "-inf")),
    ],
)
def test_shapes_that_are_none_are_refused(shape: dict[str, Any], place: str, why: str) -> None:
    with pytest.raises(Refusal) as caught:
        shaped(shape, "1.19.0")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.details == f"Validation error in body: [filter.must[0].condition_one_of.{place}: {why}]"


@pytest.mark.parametrize("version", ["1.18.3", "1.20.0"])
def test_a_polygon_needs_an_exterior(version: str) -> None:
    with pytest.raises(Refusal) as caught:
        shaped({"geo_polygon": common.GeoPolygon()}, version)
    assert caught.value.details == "Malformed GeoPolygon type - field `exterior` is required"


@pytest.mark.parametrize("index", [None, "geo"])
def test_before_shapes_were_looked_at(index: str | None) -> None:
    """Releases up to 1.18 close open rings; no place is near one that is infinitely far away."""
    assert shaped(polygon(*SQUARE[:4]), "1.18.3", index) == [1, 2]
    assert shaped(polygon(*SQUARE[:3]), "1.18.3", index) == []
    hole = ((2, 2), (3.5, 2), (3.5, 3.5), (2, 3.5))
    assert shaped(polygon(*SQUARE, interiors=(hole,)), "1.18.3", index) == [1]
    assert shaped(polygon(), "1.18.3", index) == []
    for lon in (float("inf"), float("nan")):
        assert shaped(radius(lon, 0), "1.18.3", index) == []


def test_language_tables_are_not_served() -> None:
    params = collections.TextIndexParams(stopwords=collections.StopwordsSet(languages=["english"]))
    with pytest.raises(NotServed):
        passing(m.Filter(must=[text("x")]), POINTS, fields_of(a=params))
    assert passing(m.Filter(must=[IS_EMPTY]), POINTS, fields_of(a=params)) == [1, 2, 3]


def test_slices_cut_all_points_once() -> None:
    total = 3
    points = [
        *numbered({number: {} for number in range(40)}),
        m.PointStruct(id="6f9619ff-8b86-d011-b42d-00cf4fc964ff", vector=[1]),
    ]
    parts = []
    for index in range(total):
        condition = common.Condition(slice=common.SliceCondition(total=total, index=index))
        matcher = compile_filter(common.Filter(must=[condition]), Fields())
        parts.append({record.key for record in matcher.select(record_of(point) for point in points)})
    assert sum(map(len, parts)) == len(points) and all(parts) and len(set.union(*parts)) == len(points)
    for total, index in ((0, 0), (3, 3)):
        with pytest.raises(Refusal):
            compile_filter(
                common.Filter(must=[common.Condition(slice=common.SliceCondition(total=total, index=index))]), Fields()
            )


def test_only_what_is_needed_is_read() -> None:
    by_id = compile_filter(common.Filter(must=[common.Condition(has_id=common.HasIdCondition())]), Fields())
    assert (by_id.needs_payload, by_id.needs_vectors) == (False, False)
    has_vector = common.Condition(has_vector=common.HasVectorCondition(has_vector="x"))
    assert compile_filter(common.Filter(must=[has_vector]), Fields()).needs_vectors
    assert Point(b"k", b"").vector_names == frozenset()


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1970-01-01", 0),
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01t00:00:01z", 1),
        ("1970-01-01 00:00:01", 1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01 01:00:00+01", 0),
        ("1970-01-01T00:00:00-0130", 5400),
        ("1970-01-01 00:01", 60),
        ("1970-01-01T00:00:00.25", 0.25),
        ("1970-01-01T00:00:00 UTC", 0),
        ("1970-13-01", None),
        ("1970-01-01T", None),
        ("1970-01-01 25:00", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_times(written: str, seconds: float | None) -> None:
    assert scalars.nanoseconds(written) == (None if seconds is None else int(seconds * 10**9))
