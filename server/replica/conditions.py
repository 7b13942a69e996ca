"""PURE. What one field condition says about a payload.

Promises: Qdrant's answer, with its type strictness, its one level of looking into arrays, and what a payload index on
the field changes (`is_null`, `except`, text). Does not validate: `filters.py` has done that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from google.protobuf import timestamp_pb2

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import json_with_int_pb2 as json_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import paths, scalars, tokens
from server.replica.fields import Fields, Index, Scalar
from server.replica.paths import Path, Values
from server.replica.refusal import invalid

_I64 = 2**63

ValuesTest: TypeAlias = Callable[[Values], bool]
"""Of the values at the path of a condition."""
ValueTest: TypeAlias = Callable[[json_pb2.Value], bool]


def is_null(value: json_pb2.Value) -> bool:
    """Null, or no kind at all."""
    kind = value.WhichOneof("kind")
    return bool(kind is None or kind == "null_value")


def _is_list(value: json_pb2.Value) -> bool:
    return bool(value.WhichOneof("kind") == "list_value")


def _is_empty(value: json_pb2.Value) -> bool:
    return is_null(value) or (_is_list(value) and not value.list_value.values)


def _holds_null(value: json_pb2.Value) -> bool:
    return is_null(value) or (_is_list(value) and any(is_null(item) for item in value.list_value.values))


def empty_test(values: Values) -> bool:
    """The condition `is_empty`."""
    return all(_is_empty(value) for value in values)


def null_test(path: Path, fields: Fields) -> ValuesTest:
    """The condition `is_null`; with an index on the field, an array that holds a null counts too."""
    test = _holds_null if fields.sees_nulls_in_arrays or fields.index(path) is not None else is_null
    return lambda values: any(test(value) for value in values)


def field_test(condition: common.FieldCondition, path: Path, fields: Fields) -> ValuesTest:
    """A condition on the values of one field."""
    if condition.HasField("values_count"):
        allowed = _within(condition.values_count)
        when_missing = fields.counts_missing_as_zero and allowed(0)
        return lambda values: _any_or(when_missing, [allowed(_count(value)) for value in values])
    index = fields.index(path)
    if condition.HasField("is_empty"):
        if index is not None:
            return _verdict(empty_test, condition.is_empty)
        return _presence(_is_empty, condition.is_empty, when_missing=condition.is_empty)
    if condition.HasField("is_null"):
        if index is not None:
            return _verdict(null_test(path, fields), condition.is_null)
        return _presence(_holds_null, condition.is_null, when_missing=not condition.is_null)
    special = _index_test(condition, fields, index)
    if special is not None:
        return special
    tests = _value_tests(condition, fields)
    return lambda values: any(test(value) for value in paths.flattened(values) for test in tests)


def equal_to(condition: common.FieldCondition, path: Path, fields: Fields) -> frozenset[bytes] | None:
    """When the condition says no more than that a value is one of a few: those, serialized. Else None."""
    index = fields.index(path)
    others = [field.name for field, _ in condition.ListFields() if field.name not in ("key", "match")]
    if others or (index is not None and index.kind in (collections.Integer, collections.Uuid)):
        return None
    match = condition.match
    match match.WhichOneof("match_value"):
        case "keyword":
            wanted = [json_pb2.Value(string_value=match.keyword)]
        case "keywords":
            wanted = [json_pb2.Value(string_value=text) for text in match.keywords.strings]
        case "integer":
            wanted = [json_pb2.Value(integer_value=match.integer)]
        case "integers":
            wanted = [json_pb2.Value(integer_value=number) for number in match.integers.integers]
        case "boolean":
            wanted = [json_pb2.Value(bool_value=match.boolean)]
        case _:
            return None
    return frozenset(value.SerializeToString() for value in wanted)


def _verdict(test: ValuesTest, wanted: bool) -> ValuesTest:
    """With an index, a point as a whole is empty (null) or not; without one, any of its values decides."""
    return lambda values: test(values) == wanted


def _presence(test: ValueTest, wanted: bool, *, when_missing: bool) -> ValuesTest:
    return lambda values: any(test(value) == wanted for value in values) if values else when_missing


def _any_or(otherwise: bool, answers: list[bool]) -> bool:
    """Whether any answer is yes; `otherwise` when there are no answers."""
    return any(answers) if answers else otherwise


def _count(value: json_pb2.Value) -> int:
    if is_null(value):
        return 0
    return len(value.list_value.values) if _is_list(value) else 1


def _as_it_is(bound: float) -> float:
    return bound


def _as_whole(bound: float) -> float:
    """A bound for whole numbers of 64 bits: Rust makes of one beyond them the last of them, and of NaN a 0."""
    return 0 if math.isnan(bound) else max(-_I64, min(bound, _I64 - 1))


def _within(
    bounds: common.ValuesCount | common.Range, as_held: Callable[[float], float] = _as_it_is
) -> Callable[[float], bool]:
    """All bounds that are set hold, each as an index holds numbers. Qdrant orders NaN as the largest number."""
    checks: list[Callable[[float], bool]] = []
    if bounds.HasField("lt"):
        lt = _greatest_if_nan(as_held(bounds.lt))
        checks.append(lambda number: number < lt)
    if bounds.HasField("lte"):
        lte = _greatest_if_nan(as_held(bounds.lte))
        checks.append(lambda number: number <= lte)
    if bounds.HasField("gt"):
        gt = as_held(bounds.gt)
        checks.append(lambda number: number > gt)
    if bounds.HasField("gte"):
        gte = as_held(bounds.gte)
        checks.append(lambda number: number >= gte)
    return lambda number: all(check(number) for check in checks)


def _greatest_if_nan(bound: float) -> float:
    return math.inf if math.isnan(bound) else bound


def _index_test(condition: common.FieldCondition, fields: Fields, index: Index | None) -> ValuesTest | None:
    """Conditions that Qdrant answers from an index with another result than from the payload."""
    if index is None:
        return None
    match = condition.match
    form = match.WhichOneof("match_value") if condition.HasField("match") else None
    held = index.held_of
    if index.kind == collections.Geo and (tests := _geo_tests(condition)):
        return lambda values: any(
            scalars.place_on_earth(value) is not None and any(test(value) for test in tests)
            for value in paths.flattened(values)
        )
    if index.has_range and (condition.HasField("range") or condition.HasField("datetime_range")):
        return _indexed_range(condition, index, held)
    if index.kind == collections.Integer and index.has_lookup:
        if form in ("integer", "integers"):
            wanted = {match.integer} if form == "integer" else set(match.integers.integers)
            return lambda values: any(value in wanted for value in held(values))
        if form == "except_integers":
            unwanted = set(match.except_integers.integers)
            return lambda values: any(value not in unwanted for value in held(values))
    if index.kind == collections.Keyword and form == "except_keywords":
        no_texts = set(match.except_keywords.strings)
        return lambda values: any(value not in no_texts for value in held(values))
    if index.kind == collections.Text and form in ("text", "text_any", "phrase"):
        return _indexed_text(form, getattr(match, form), index, one_by_one=fields.is_nested)
    if index.kind == collections.Uuid and form in ("keyword", "keywords", "except_keywords"):
        return _uuid_test(match, form, held)
    return None


def _indexed_range(
    condition: common.FieldCondition, index: Index, held: Callable[[Values], list[Scalar]]
) -> ValuesTest:
    """A range over what a numeric index holds; to it a time is a number of microseconds, on either side."""
    bounds = condition.range
    if condition.HasField("datetime_range"):
        times = condition.datetime_range
        names = [name for name in ("lt", "lte", "gt", "gte") if times.HasField(name)]
        bounds = common.Range(**{name: timestamp_nanoseconds(getattr(times, name)) // 1000 for name in names})
    within = _within(bounds, _as_it_is if index.kind == collections.Float else _as_whole)
    if index.kind == collections.Datetime:
        return lambda values: any(isinstance(value, int) and within(value // 1000) for value in held(values))
    return lambda values: any(isinstance(value, int | float) and within(value) for value in held(values))


def _uuid_test(match: common.Match, form: str, held: Callable[[Values], list[Scalar]]) -> ValuesTest | None:
    """A UUID index compares UUIDs, however they are spelled; a list with a text that is none is not for the index."""
    texts = [match.keyword] if form == "keyword" else getattr(match, form).strings
    parsed = {scalars.uuid_of(text) for text in texts}
    if None in parsed:
        return None
    if form == "except_keywords":
        return lambda values: any(value not in parsed for value in held(values))
    return lambda values: any(value in parsed for value in held(values))


def _value_tests(condition: common.FieldCondition, fields: Fields) -> list[ValueTest]:
    """One test for each kind of check in the condition; a value has to pass one of them."""
    tests: list[ValueTest] = []
    if condition.HasField("match"):
        tests.append(_match_test(condition.match, fields))
    if condition.HasField("range"):
        tests.append(_range_test(condition.range))
    if condition.HasField("datetime_range"):
        tests.append(_time_test(condition.datetime_range))
    return [*tests, *_geo_tests(condition)]


def _geo_tests(condition: common.FieldCondition) -> list[ValueTest]:
    tests: list[ValueTest] = []
    if condition.HasField("geo_radius"):
        tests.append(_radius_test(condition.geo_radius))
    if condition.HasField("geo_bounding_box"):
        tests.append(_box_test(condition.geo_bounding_box))
    if condition.HasField("geo_polygon"):
        tests.append(_polygon_test(condition.geo_polygon))
    return tests


def _range_test(bounds: common.Range) -> ValueTest:
    within = _within(bounds)

    def check(value: json_pb2.Value) -> bool:
        number = scalars.number(value)
        return number is not None and within(number)

    return check


def timestamp_nanoseconds(moment: timestamp_pb2.Timestamp) -> int:
    """A protobuf time as nanoseconds since 1970."""
    return moment.seconds * 10**9 + moment.nanos


def _time_test(bounds: common.DatetimeRange) -> ValueTest:
    # Qdrant compares whole microseconds, on either side.
    lt, lte, gt, gte = (
        timestamp_nanoseconds(getattr(bounds, name)) // 1000 if bounds.HasField(name) else None
        for name in ("lt", "lte", "gt", "gte")
    )

    def check(value: json_pb2.Value) -> bool:
        nanoseconds = scalars.time_of(value)
        if nanoseconds is None:
            return False
        moment = nanoseconds // 1000
        return (
            (lt is None or moment < lt)
            and (lte is None or moment <= lte)
            and (gt is None or moment > gt)
            and (gte is None or moment >= gte)
        )

    return check


def _radius_test(circle: common.GeoRadius) -> ValueTest:
    if not circle.HasField("center"):
        raise invalid("Malformed GeoRadius type")
    center, radius = (circle.center.lon, circle.center.lat), circle.radius

    def check(value: json_pb2.Value) -> bool:
        place = scalars.place(value)
        return place is not None and scalars.metres_between(center, place) < radius

    return check


def _box_test(box: common.GeoBoundingBox) -> ValueTest:
    if not (box.HasField("top_left") and box.HasField("bottom_right")):
        raise invalid("Malformed GeoBoundingBox type")
    left, right = box.top_left.lon, box.bottom_right.lon
    top, bottom = box.top_left.lat, box.bottom_right.lat

    def check(value: json_pb2.Value) -> bool:
        place = scalars.place(value)
        if place is None:
            return False
        lon, lat = place
        between = lon > left or lon < right if left > right else left < lon < right
        return between and bottom < lat < top

    return check


def _polygon_test(polygon: common.GeoPolygon) -> ValueTest:
    exterior = _ring(polygon.exterior)
    interiors = [_ring(line) for line in polygon.interiors]

    def check(value: json_pb2.Value) -> bool:
        place = scalars.place(value)
        return place is not None and scalars.is_inside(place, exterior, interiors)

    return check


def _ring(line: common.GeoLineString) -> scalars.Ring:
    """Closed, as releases of Qdrant that let open ones pass close them."""
    ring = [(point.lon, point.lat) for point in line.points]
    return ring if ring[:1] == ring[-1:] else [*ring, ring[0]]


def _match_test(match: common.Match, fields: Fields) -> ValueTest:
    form = match.WhichOneof("match_value")
    match form:
        case "keyword":
            keyword = match.keyword
            return lambda value: value.WhichOneof("kind") == "string_value" and value.string_value == keyword
        case "integer":
            integer = match.integer
            return lambda value: value.WhichOneof("kind") == "integer_value" and value.integer_value == integer
        case "boolean":
            boolean = match.boolean
            return lambda value: value.WhichOneof("kind") == "bool_value" and value.bool_value == boolean
        case "keywords":
            texts = set(match.keywords.strings)
            return lambda value: value.WhichOneof("kind") == "string_value" and value.string_value in texts
        case "integers":
            integers = set(match.integers.integers)
            return lambda value: value.WhichOneof("kind") == "integer_value" and value.integer_value in integers
        case "except_keywords":
            no_texts = set(match.except_keywords.strings)
            return lambda value: (
                not is_null(value)
                and not (value.WhichOneof("kind") == "string_value" and value.string_value in no_texts)
            )
        case "except_integers":
            no_integers = set(match.except_integers.integers)
            return lambda value: (
                not is_null(value)
                and not (value.WhichOneof("kind") == "integer_value" and value.integer_value in no_integers)
            )
        case "prefix":
            prefix = match.prefix
            return lambda value: value.WhichOneof("kind") == "string_value" and value.string_value.startswith(prefix)
        case "substring":
            substring = match.substring
            return lambda value: value.WhichOneof("kind") == "string_value" and substring in value.string_value
        case "text" | "text_any" | "phrase":
            return _text_test(form, getattr(match, form), fields)
        case _:
            return lambda value: False


def _indexed_text(form: str, query: str, index: Index, *, one_by_one: bool) -> ValuesTest:
    """A text index holds the words of all values of a point together; in a nested condition it is value by value.

    A phrase lies within one value.
    """
    params = index.params.text_index_params
    cut = tokens.tokenizer(params, of_query=False)
    # A phrase is cut up as a text is: in a prefix index it has the beginnings of its words too, and no stopwords.
    wanted = tokens.tokenizer(params, of_query=form != "phrase")(query)
    # Without positions in the index no phrase is ever found.
    found = _token_test(form, [] if form == "phrase" and not params.phrase_matching else wanted)

    def check(values: Values) -> bool:
        cut_up = [cut(str(text)) for text in index.held_of(values)]
        if one_by_one or form == "phrase":
            return any(map(found, cut_up))
        return found([token for part in cut_up for token in part])

    return check


def _text_test(form: str, query: str, fields: Fields) -> ValueTest:
    if fields.tokenises_any_plain_text if form == "text_any" else fields.tokenises_plain_text:
        of_tokens = _token_test(form, tokens.words(query))
        found: Callable[[str], bool] = lambda text: of_tokens(tokens.words(text))  # noqa: E731
    elif form == "text_any":
        pieces = query.split()
        found = lambda text: any(piece in text for piece in pieces)  # noqa: E731
    else:
        found = lambda text: query in text  # noqa: E731
    return lambda value: value.WhichOneof("kind") == "string_value" and found(value.string_value)


def _token_test(form: str, wanted: list[str]) -> Callable[[list[str]], bool]:
    """A test of the words of a text, in their order."""
    if not wanted:
        return lambda held: False
    if form == "text":
        return lambda held: set(wanted) <= set(held)
    if form == "text_any":
        return lambda held: not set(wanted).isdisjoint(held)
    size = len(wanted)
    return lambda held: any(held[start : start + size] == wanted for start in range(len(held) - size + 1))
