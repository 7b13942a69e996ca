"""PURE. What the strict mode of Qdrant sees in a filter or a formula: its size, and the fields that lack an index.

Promises: the counts, the kinds of index that each condition asks for, and the order of the search are those of Qdrant
1.18. A field inside of `nested` needs an index under its whole path (`a[].b`). Ids, vectors and slices need none. Where
several fields of one nested filter lack an index, Qdrant names any of them; here it is the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, TypeAlias

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import paths
from server.replica.fields import Fields, Index
from server.replica.paths import Path
from server.replica.points import BadPointId, key_of


class Need(Enum):
    """What an index can do; the value is the kind of index that Qdrant advises, and a number to tell them apart."""

    INTEGER_MATCH = ("integer", 1)
    INTEGER_RANGE = ("integer", 2)
    KEYWORD = ("keyword", 1)
    PREFIX = ("keyword", 2)
    FLOAT = ("float", 1)
    TEXT = ("text", 1)
    PHRASE = ("text (with phrase_matching: true)", 1)
    BOOL = ("bool", 1)
    UUID = ("uuid", 1)
    DATETIME = ("datetime", 1)
    GEO = ("geo", 1)


Lacking: TypeAlias = "tuple[Path, str] | None"
"""A field, and the kinds of index of which it needs one, as Qdrant lists them."""

_ANY = frozenset(Need)
_NUMBER = frozenset((Need.INTEGER_MATCH, Need.INTEGER_RANGE, Need.FLOAT))
_PLAIN: Mapping[int, Need] = {
    collections.Float: Need.FLOAT,
    collections.Geo: Need.GEO,
    collections.Bool: Need.BOOL,
    collections.Datetime: Need.DATETIME,
    collections.Uuid: Need.UUID,
}
_MATCH = {
    "integer": Need.INTEGER_MATCH,
    "boolean": Need.BOOL,
    "text": Need.TEXT,
    "text_any": Need.TEXT,
    "phrase": Need.PHRASE,
    "prefix": Need.PREFIX,
}
_LISTS = {
    "keywords": "strings",
    "except_keywords": "strings",
    "integers": "integers",
    "except_integers": "integers",
}


# --- how large -------------------------------------------------------------------------------------------------------


def conditions_of(given: common.Filter) -> Iterator[common.Condition]:
    """The conditions of a filter, not of the filters in it. One with nothing in it is none."""
    parts = (given.must, given.must_not, given.should, given.min_should.conditions)
    return (condition for part in parts for condition in part if condition.WhichOneof("condition_one_of"))


def inner_filter(condition: common.Condition) -> common.Filter | None:
    """The filter that a condition consists of."""
    match condition.WhichOneof("condition_one_of"):
        case "filter":
            return condition.filter
        case "nested":
            return condition.nested.filter
        case _:
            return None


def count(given: common.Filter) -> int:
    """How many conditions, those of the filters in it included."""
    inner = [inner_filter(condition) for condition in conditions_of(given)]
    return sum(1 if one is None else count(one) for one in inner)


def largest(given: common.Filter) -> int:
    """How many values or ids the condition with most of them lists."""
    return max(map(_size, conditions_of(given)), default=0)


def _size(condition: common.Condition) -> int:
    inner = inner_filter(condition)
    if inner is not None:
        return largest(inner)
    if condition.WhichOneof("condition_one_of") == "has_id":
        return len({key_of(one) for one in condition.has_id.has_id})
    return len(set(_listed(condition.field.match) or ()))


def _listed(match: common.Match) -> Any:
    """The values of a condition with a list of them, else None."""
    form = match.WhichOneof("match_value")
    return getattr(getattr(match, form), _LISTS[form]) if form in _LISTS else None


def searched_for_substring(given: common.Filter) -> str | None:
    """The first field that is looked through for a part of its text; None when there is none."""
    for condition in conditions_of(given):
        inner = inner_filter(condition)
        if inner is not None:
            found = searched_for_substring(inner)
            if found is not None:
                return found
        elif condition.field.match.WhichOneof("match_value") == "substring":
            return condition.field.key
    return None


# --- what lacks an index ---------------------------------------------------------------------------------------------


def lacking_in_filter(given: common.Filter, fields: Fields, prefix: Path = ()) -> Lacking:
    """The first field of a filter that lacks an index; `prefix` is the path of the objects that it is about."""
    for condition in conditions_of(given):
        found = _lacking_in_condition(condition, fields, prefix)
        if found is not None:
            return found
    return None


def _lacking_in_condition(condition: common.Condition, fields: Fields, prefix: Path = ()) -> Lacking:
    match condition.WhichOneof("condition_one_of"):
        case "field":
            return _lacking(condition.field.key, _needs(condition.field), fields, prefix)
        case "is_empty":
            return _lacking(condition.is_empty.key, _ANY, fields, prefix)
        case "is_null":
            return _lacking(condition.is_null.key, _ANY, fields, prefix)
        case "filter":
            return lacking_in_filter(condition.filter, fields, prefix)
        case "nested":
            below = prefix + paths.array_path(paths.parse_or_refuse(condition.nested.key))
            return lacking_in_filter(condition.nested.filter, fields, below)
        case _:
            return None


def _lacking(key: str, needs: frozenset[Need], fields: Fields, prefix: Path = ()) -> Lacking:
    path = prefix + paths.parse_or_refuse(key)
    index = fields.index(path)
    if not needs or (index is not None and not needs.isdisjoint(_abilities(index))):
        return None
    return path, ", ".join(sorted({need.value[0] for need in needs}))


def _needs(condition: common.FieldCondition) -> frozenset[Need]:
    """Any one of these will do; none at all for a condition that asks for nothing."""
    needs = set(_match_needs(condition.match))
    if condition.HasField("range"):
        needs |= {Need.FLOAT, Need.INTEGER_RANGE}
    if condition.HasField("datetime_range"):
        needs.add(Need.DATETIME)
    if any(map(condition.HasField, ("geo_bounding_box", "geo_radius", "geo_polygon"))):
        needs.add(Need.GEO)
    if any(map(condition.HasField, ("values_count", "is_empty", "is_null"))):
        needs |= _ANY
    return frozenset(needs)


def _match_needs(match: common.Match) -> Iterable[Need]:
    form = match.WhichOneof("match_value") or ""
    listed = _listed(match)
    if form == "keyword":
        return _text_needs([match.keyword])
    if listed is None:
        return (_MATCH[form],) if form in _MATCH else ()
    if _LISTS[form] == "strings":
        return _text_needs(listed)
    return (Need.INTEGER_MATCH,) if listed else ()


def _text_needs(texts: Iterable[str]) -> Iterable[Need]:
    """A list without values matches or excludes nothing, and needs no index for that."""
    listed = list(texts)
    if not listed:
        return ()
    return (Need.KEYWORD, Need.UUID) if all(map(_is_uuid, listed)) else (Need.KEYWORD,)


def _is_uuid(text: str) -> bool:
    try:
        key_of(common.PointId(uuid=text))
    except BadPointId:
        return False
    return True


def _abilities(index: Index) -> set[Need]:
    able: set[Need] = set()
    match index.kind:
        case collections.Integer:
            able |= {Need.INTEGER_MATCH} if index.has_lookup else set()
            able |= {Need.INTEGER_RANGE} if index.has_range else set()
        case collections.Keyword:
            has_prefix = index.params.keyword_index_params.HasField("prefix")
            able |= {Need.KEYWORD, Need.PREFIX} if has_prefix else {Need.KEYWORD}
        case collections.Text:
            able |= {Need.TEXT, Need.PHRASE} if index.params.text_index_params.phrase_matching else {Need.TEXT}
        case kind if kind in _PLAIN:
            able.add(_PLAIN[kind])
    return able


def supports_match(index: Index) -> bool:
    """Whether groups can be made by a field with this index; of an integer index with parameters they must say so."""
    if index.kind == collections.Integer and index.params.WhichOneof("index_params") is not None:
        return index.params.integer_index_params.lookup
    return index.has_lookup


def is_for_tenants(given: common.Filter, fields: Fields) -> bool:
    """Whether a filter is about a field whose index keeps the points of one value together."""
    return any(
        index is not None and _keeps_together(index)
        for condition in conditions_of(given)
        for index in [_index_on(condition, fields)]
    )


def _index_on(condition: common.Condition, fields: Fields) -> Index | None:
    path = _target(condition)
    return None if path is None else fields.index(path)


def _target(condition: common.Condition) -> Path | None:
    """The field that a condition is about; of a filter the first one."""
    match condition.WhichOneof("condition_one_of"):
        case "field" | "is_empty" | "is_null" as form:
            return paths.parse_or_refuse(getattr(condition, form).key)
        case "nested":
            return paths.array_path(paths.parse_or_refuse(condition.nested.key))
        case "filter":
            return next((path for path in map(_target, conditions_of(condition.filter)) if path is not None), None)
        case _:
            return None


def _keeps_together(index: Index) -> bool:
    form = index.params.WhichOneof("index_params")
    params = getattr(index.params, form) if form is not None else None
    return bool(getattr(params, "is_tenant", False) or getattr(params, "is_principal", False))


# --- formulas --------------------------------------------------------------------------------------------------------


def lacking_in_formula(expression: points.Expression, fields: Fields) -> Lacking:
    """The first field of a formula that lacks an index, whatever its default."""
    form = expression.WhichOneof("variant")
    match form:
        case "variable" if not expression.variable.startswith("$"):
            return _lacking(expression.variable, _NUMBER, fields)
        case "geo_distance":
            return _lacking(expression.geo_distance.to, frozenset((Need.GEO,)), fields)
        case "datetime_key":
            return _lacking(expression.datetime_key, frozenset((Need.DATETIME,)), fields)
        case "condition":
            return _lacking_in_condition(expression.condition, fields)
    for part in _parts(expression):
        found = lacking_in_formula(part, fields)
        if found is not None:
            return found
    return None


def _parts(expression: points.Expression) -> Iterator[points.Expression]:
    """The expressions in an expression, in the order of their fields."""
    form = expression.WhichOneof("variant")
    holder = getattr(expression, form) if form is not None else None
    if isinstance(holder, points.Expression):
        yield holder
    elif isinstance(holder, points.MultExpression | points.SumExpression | points.MaxExpression | points.MinExpression):
        for _, parts in holder.ListFields():
            yield from parts
    elif isinstance(holder, points.DivExpression | points.PowExpression | points.DecayParamsExpression):
        for _, part in holder.ListFields():
            if isinstance(part, points.Expression):
                yield part
