"""PURE. A qdrant.Filter as a test of points.

Promises: `compile_filter` answers as Qdrant does, or raises the Refusal that Qdrant gives to a bad filter before any
point is looked at. Tests work on the stored protobuf payload. The one form not served is a text index that needs the
tables of a language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import conditions, paths
from server.replica.fields import Fields
from server.replica.paths import Payload
from server.replica.points import key_of
from server.replica.records import Key, Record
from server.replica.refusal import bad_body
from server.replica.siphash import slice_of


class Point:
    """What conditions may ask of a point apart from its payload."""

    def __init__(self, key: Key, vectors: bytes) -> None:
        self.key = key
        self._vectors = vectors

    @cached_property
    def vector_names(self) -> frozenset[str]:
        """Names of the vectors that the point has."""
        return frozenset(points.NamedVectors.FromString(self._vectors).vectors)


PointTest: TypeAlias = Callable[[Payload, "Point | None"], bool]
"""The point is None inside of a nested condition, where Qdrant knows no ids and no vectors."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """A compiled filter, and which parts of a record it looks at."""

    test: PointTest
    needs_payload: bool
    needs_vectors: bool

    def matches(self, record: Record) -> bool:
        """Whether a stored point passes. The parts that it needs must have been read."""
        payload = points.PointStruct.FromString(record.payload).payload if self.needs_payload else {}
        return self.test(payload, Point(record.key, record.vectors))

    def select(self, records: Iterable[Record]) -> list[Record]:
        """The records that pass, in their order."""
        return [record for record in records if self.matches(record)]


def compile_filter(query: common.Filter, fields: Fields, where: str = "filter") -> Matcher:
    """Compile; `where` is the place of the filter in its request, for error texts. Raises Refusal."""
    needs: set[str] = set()
    test = _filter(query, fields, where, needs)
    return Matcher(test, "payload" in needs, "vectors" in needs)


def compile_condition(condition: common.Condition, fields: Fields, where: str) -> PointTest:
    """Compile one condition; one with nothing in it holds for every point. Raises Refusal."""
    test = _condition(condition, fields, where, set())
    return test if test is not None else lambda payload, point: True


def is_trivial(query: common.Filter) -> bool:
    """Whether a filter has no condition: it matches every point."""
    return not (query.must or query.should or query.must_not or query.HasField("min_should"))


def _filter(query: common.Filter, fields: Fields, where: str, needs: set[str]) -> PointTest:
    def compiled(conditions_: Iterable[common.Condition], name: str) -> list[PointTest]:
        built = (_condition(one, fields, f"{where}.{name}[{i}]", needs) for i, one in enumerate(conditions_))
        return [test for test in built if test is not None]

    must = compiled(query.must, "must")
    must_not = compiled(query.must_not, "must_not")
    should = compiled(query.should, "should")
    at_least: list[PointTest] = []
    least = 0
    if query.HasField("min_should"):
        least = query.min_should.min_count
        at_least = compiled(query.min_should.conditions, "min_should.conditions")

    def test(payload: Payload, point: Point | None) -> bool:
        if not all(one(payload, point) for one in must):
            return False
        if any(one(payload, point) for one in must_not):
            return False
        if should and not any(one(payload, point) for one in should):
            return False
        return not least or sum(one(payload, point) for one in at_least) >= least

    return must[0] if len(must) == 1 and not (must_not or should or least) else test


def _condition(condition: common.Condition, fields: Fields, where: str, needs: set[str]) -> PointTest | None:
    """None = says nothing."""
    form = condition.WhichOneof("condition_one_of")
    match form:
        case None:
            return None
        case "filter":
            return _filter(condition.filter, fields, f"{where}.condition_one_of.filter", needs)
        case "has_id":
            keys = {key_of(point_id) for point_id in condition.has_id.has_id}
            return lambda _, point: point is not None and point.key in keys
        case "has_vector":
            needs.add("vectors")
            name = condition.has_vector.has_vector
            return lambda _, point: point is not None and name in point.vector_names
        case "slice":
            return _slice(condition.slice, where)
        case "nested":
            needs.add("payload")
            return _nested(condition.nested, fields, where)
        case _:
            needs.add("payload")
            by_payload = _by_payload(condition, form, fields, where)
            return lambda payload, _: by_payload(payload)


def _by_payload(condition: common.Condition, form: str, fields: Fields, where: str) -> conditions.PayloadTest:
    if form == "is_empty":
        return conditions.empty_test(paths.parse_or_refuse(condition.is_empty.key))
    if form == "is_null":
        return conditions.null_test(paths.parse_or_refuse(condition.is_null.key), fields)
    field = condition.field
    if not _says_anything(field):
        place = f"{where}.condition_one_of.match"
        raise bad_body(place, "Validation error: At least one field condition must be specified [{}]")
    return conditions.field_test(field, paths.parse_or_refuse(field.key), fields)


_CHECKS = (
    "match",
    "range",
    "geo_bounding_box",
    "geo_radius",
    "values_count",
    "geo_polygon",
    "datetime_range",
    "is_empty",
    "is_null",
)


def _says_anything(field: common.FieldCondition) -> bool:
    return any(field.HasField(name) for name in _CHECKS)


def _slice(condition: common.SliceCondition, where: str) -> PointTest:
    total, index = condition.total, condition.index
    if total < 1:
        raise bad_body(f"{where}.condition_one_of.total", "value 0 invalid, must be 1 or larger")
    if index >= total:
        raise bad_body(f"{where}.condition_one_of.index", f"value {index} invalid, must be less than {total}")
    return lambda _, point: point is not None and slice_of(point.key, total) == index


def _nested(condition: common.NestedCondition, fields: Fields, where: str) -> PointTest:
    path = paths.array_path(paths.parse_or_refuse(condition.key))
    select = paths.selector(path)
    # Ids and vectors are unknown in there, so what the inner filter needs of them does not matter.
    inner = _filter(condition.filter, fields.nested(path), f"{where}.condition_one_of.filter", set())

    def test(payload: Payload, _: Point | None) -> bool:
        return any(
            inner(element.struct_value.fields, None)
            for element in select(payload)
            if element.WhichOneof("kind") == "struct_value"
        )

    return test
