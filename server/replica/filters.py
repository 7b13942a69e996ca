"""PURE. A qdrant.Filter as a test of points.

Promises: `compile_filter` answers as Qdrant does, or raises the Refusal that Qdrant gives to a bad filter before any
point is looked at. Tests work on the stored protobuf payload. The one form not served is a text index that needs the
tables of a language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import conditions, geometry, paths
from server.replica.fields import Fields
from server.replica.paths import Path, Payload, Values
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


class Node(Protocol):
    """A condition or a combination of conditions."""

    def test(self, payload: Payload, point: Point | None) -> bool:
        """Whether a point passes. It is None inside of a nested condition, where Qdrant knows no ids and vectors."""
        ...


@dataclass(frozen=True, slots=True)
class OnValues:
    """A condition on the values at a path. `equals`: it holds when one of them is one of these (serialized)."""

    path: Path
    select: Callable[[Payload], Values]
    check: conditions.ValuesTest
    equals: frozenset[bytes] | None = None

    def test(self, payload: Payload, point: Point | None) -> bool:
        """See Node."""
        return self.check(self.select(payload))


@dataclass(frozen=True, slots=True)
class HasId:
    """The point is one of these."""

    keys: frozenset[Key]

    def test(self, payload: Payload, point: Point | None) -> bool:
        """See Node."""
        return point is not None and point.key in self.keys


@dataclass(frozen=True, slots=True)
class HasVector:
    """The point has the vector."""

    name: str

    def test(self, payload: Payload, point: Point | None) -> bool:
        """See Node."""
        return point is not None and self.name in point.vector_names


@dataclass(frozen=True, slots=True)
class InSlice:
    """The point is in one of `total` slices of all ids."""

    total: int
    index: int

    def test(self, payload: Payload, point: Point | None) -> bool:
        """See Node."""
        return point is not None and slice_of(point.key, self.total) == self.index


@dataclass(frozen=True, slots=True)
class Combined:
    """All of `must`, none of `must_not`, any of `should` (if there are some), `least` of `at_least`."""

    must: tuple[Node, ...] = ()
    must_not: tuple[Node, ...] = ()
    should: tuple[Node, ...] = ()
    at_least: tuple[Node, ...] = ()
    least: int = 0

    def test(self, payload: Payload, point: Point | None) -> bool:
        """See Node."""
        if not all(node.test(payload, point) for node in self.must):
            return False
        if any(node.test(payload, point) for node in self.must_not):
            return False
        if self.should and not any(node.test(payload, point) for node in self.should):
            return False
        return not self.least or sum(node.test(payload, point) for node in self.at_least) >= self.least


def parts_of(node: Node) -> Iterator[Node]:
    """The conditions in a tree, without the combinations."""
    if isinstance(node, Combined):
        for inner in (*node.must, *node.must_not, *node.should, *node.at_least):
            yield from parts_of(inner)
    else:
        yield node


@dataclass(frozen=True, slots=True)
class Matcher:
    """A compiled filter, and which parts of a record it looks at."""

    node: Node
    needs_payload: bool
    needs_vectors: bool

    @classmethod
    def of(cls, node: Node) -> Matcher:
        """From a tree of conditions."""
        kinds = {type(part) for part in parts_of(node)}
        return cls(node, OnValues in kinds, HasVector in kinds)

    def matches(self, record: Record) -> bool:
        """Whether a stored point passes. The parts that it needs must have been read."""
        payload = points.PointStruct.FromString(record.payload).payload if self.needs_payload else {}
        return self.node.test(payload, Point(record.key, record.vectors))

    def select(self, records: Iterable[Record]) -> list[Record]:
        """The records that pass, in their order."""
        return [record for record in records if self.matches(record)]


def compile_filter(query: common.Filter, fields: Fields, where: str = "filter") -> Matcher:
    """Compile; `where` is the place of the filter in its request, for error texts. Raises Refusal."""
    return Matcher.of(_filter(query, fields, where))


def compile_condition(condition: common.Condition, fields: Fields, where: str) -> Node:
    """Compile one condition; one with nothing in it holds for every point. Raises Refusal."""
    return _condition(condition, fields, where) or Combined()


def is_trivial(query: common.Filter) -> bool:
    """Whether a filter has no condition: it matches every point."""
    return not (query.must or query.should or query.must_not or query.HasField("min_should"))


def _filter(query: common.Filter, fields: Fields, where: str) -> Node:
    def compiled(listed: Iterable[common.Condition], name: str) -> tuple[Node, ...]:
        built = (_condition(one, fields, f"{where}.{name}[{number}]") for number, one in enumerate(listed))
        return tuple(node for node in built if node is not None)

    return Combined(
        must=compiled(query.must, "must"),
        must_not=compiled(query.must_not, "must_not"),
        should=compiled(query.should, "should"),
        at_least=compiled(query.min_should.conditions, "min_should.conditions"),
        least=query.min_should.min_count,
    )


def _condition(condition: common.Condition, fields: Fields, where: str) -> Node | None:
    """None = says nothing."""
    match condition.WhichOneof("condition_one_of"):
        case None:
            return None
        case "filter":
            return _filter(condition.filter, fields, f"{where}.condition_one_of.filter")
        case "has_id":
            return HasId(frozenset(key_of(point_id) for point_id in condition.has_id.has_id))
        case "has_vector":
            return HasVector(condition.has_vector.has_vector)
        case "slice":
            return _slice(condition.slice, where)
        case "nested":
            return _nested(condition.nested, fields, where)
        case "is_empty":
            return _on(condition.is_empty.key, conditions.empty_test)
        case "is_null":
            path = paths.parse_or_refuse(condition.is_null.key)
            return _on(condition.is_null.key, conditions.null_test(path, fields))
        case _:
            return _field(condition.field, fields, where)


def _on(key: str, check: conditions.ValuesTest, equals: frozenset[bytes] | None = None) -> OnValues:
    path = paths.parse_or_refuse(key)
    return OnValues(path, paths.selector(path), check, equals)


def _field(field: common.FieldCondition, fields: Fields, where: str) -> Node:
    if not _says_anything(field):
        place = f"{where}.condition_one_of.match"
        raise bad_body(place, "Validation error: At least one field condition must be specified [{}]")
    geometry.check(field, f"{where}.condition_one_of", is_strict=fields.checks_shapes)
    path = paths.parse_or_refuse(field.key)
    return _on(field.key, conditions.field_test(field, path, fields), conditions.equal_to(field, path, fields))


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


def _slice(condition: common.SliceCondition, where: str) -> Node:
    total, index = condition.total, condition.index
    if total < 1:
        raise bad_body(f"{where}.condition_one_of.total", "value 0 invalid, must be 1 or larger")
    if index >= total:
        raise bad_body(f"{where}.condition_one_of.index", f"value {index} invalid, must be less than {total}")
    return InSlice(total, index)


def _nested(condition: common.NestedCondition, fields: Fields, where: str) -> Node:
    path = paths.array_path(paths.parse_or_refuse(condition.key))
    inner = _filter(condition.filter, fields.nested(path), f"{where}.condition_one_of.filter")

    def check(elements: Values) -> bool:
        return any(
            inner.test(element.struct_value.fields, None)
            for element in elements
            if element.WhichOneof("kind") == "struct_value"
        )

    return OnValues(path, paths.selector(path), check)
