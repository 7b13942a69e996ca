"""The checks that a Qdrant server makes on a request before its engine sees it.

Promises: codes and texts as measured on a real server (the rows of the facts this project builds on). Looks at the
request and at the collection's parameters only, never at the points.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common

from .refusal import invalid, wrong_input, zero

INVALID_NAME_CHARS = '<>:"/\\|?*\0\x1f'


def collection_name(name: str) -> None:
    """A name that a new collection may have."""
    if not name:
        raise invalid('Validation error in body: [collection_name: value "" invalid, must be at least 1 characters]')
    if len(name) > 255:
        raise invalid("Validation error in body: [collection_name: value invalid, must be from 1 to 255 characters]")
    for char in INVALID_NAME_CHARS:
        if char in name:
            raise invalid(f'Validation error in body: [collection_name: collection name cannot contain "{char}" char]')


def limit(request: Any, field: str = "limit") -> None:
    """A limit that is given must be 1 or larger."""
    if request.HasField(field) and getattr(request, field) == 0:
        raise zero(field)


def point_id(given: common.PointId) -> int | str:
    """The id as the engine wants it: a number or the canonical text of a UUID."""
    kind = given.WhichOneof("point_id_options")
    if kind is None:
        raise invalid("Empty ID is not allowed")
    if kind == "num":
        return given.num
    try:
        return str(uuid.UUID(given.uuid))
    except ValueError:
        raise invalid(f"Unable to parse UUID: {given.uuid}") from None


def ids_in(message: Any) -> None:
    """Every id in a message parses."""
    if isinstance(message, common.PointId):
        point_id(message)
        return
    for descriptor, value in message.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE or descriptor.message_type.full_name == "qdrant.Value":
            continue
        if descriptor.message_type.GetOptions().map_entry:
            continue
        for part in value if descriptor.is_repeated else (value,):
            ids_in(part)


def filters_in(message: Any) -> None:
    """Every filter in a message, see `conditions`."""
    if isinstance(message, common.Filter):
        conditions(message)
        return
    for descriptor, value in message.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE or descriptor.message_type.GetOptions().map_entry:
            continue
        for part in value if descriptor.is_repeated else (value,):
            filters_in(part)


def some_points(given: Iterable[Any]) -> None:
    """An update must name a point."""
    if not given:
        raise invalid("Bad request: Empty update request")


def selector(given: points.PointsSelector) -> None:
    """A selector says something, and an id list is not empty."""
    kind = given.WhichOneof("points_selector_one_of")
    if kind is None:
        raise invalid("Malformed PointsSelector type")
    if kind == "points":
        some_points(given.points.ids)


def upserted(given: Iterable[points.PointStruct], sizes: Mapping[str, int | None], *, early: bool = True) -> None:
    """Points to upsert: ids, vectors present, known names, sizes. `sizes` maps names to dimensions, sparse None.

    `early`: a server checks what is upserted before all else and then tells the name of the vector.
    """
    for index, point in enumerate(given):
        if not point.HasField("id"):
            raise invalid("Empty ID is not allowed")
        point_id(point.id)
        if not point.HasField("vectors") or point.vectors.WhichOneof("vectors_options") is None:
            raise invalid("Expected some vectors")
        vectors(point.vectors, sizes, f"points[{index}].vector", early)


def vectors(given: points.Vectors, sizes: Mapping[str, int | None], place: str, early: bool) -> None:
    """The vectors of one point, by name."""
    if given.WhichOneof("vectors_options") == "vector":
        one_vector("", given.vector, sizes, f"{place}.vector")
        return
    for name, vector in given.vectors.vectors.items():
        one_vector(name, vector, sizes, f"{place}.{name}", f" for vector '{name}'" if early else "")


def one_vector(name: str, given: points.Vector, sizes: Mapping[str, int | None], place: str, of: str = "") -> None:
    """One vector: a known name, not empty, of the right size. `of` ends the text: a server names what was named."""
    kind = given.WhichOneof("vector")
    if kind in ("document", "image", "object"):
        raise wrong_input(
            "InferenceService is not initialized. Please check if it was properly configured and initialized"
        )
    rows = dense_rows(given)
    if rows is not None and any(len(row) == 0 for row in rows):
        raise wrong_input(f"{place}: dense vector must not be empty")
    if name not in sizes:
        raise wrong_input(f"Not existing vector name error: {name}")
    size = sizes[name]
    if size is None or rows is None:
        return
    for row in rows:
        dimension(size, len(row), of)


def dense_rows(given: points.Vector) -> list[Any] | None:
    """The dense rows of a vector in any of its spellings; None for a sparse one."""
    kind = given.WhichOneof("vector")
    if kind == "dense":
        return [given.dense.data]
    if kind == "multi_dense":
        return [row.data for row in given.multi_dense.vectors]
    if kind == "sparse" or given.HasField("indices"):
        return None
    if given.vectors_count > 1:
        width = len(given.data) // given.vectors_count
        return [given.data[start : start + width] for start in range(0, len(given.data), width or 1)]
    return [given.data]


def dimension(expected: int, got: int, of: str = "") -> None:
    """Sizes agree."""
    if expected != got:
        raise wrong_input(f"Vector dimension error: expected dim: {expected}, got {got}{of}")


def query_input(given: points.VectorInput, name: str, sizes: Mapping[str, int | None]) -> None:
    """A vector to search with."""
    kind = given.WhichOneof("variant")
    if kind in ("document", "image", "object"):
        raise wrong_input(
            "InferenceService is not initialized. Please check if it was properly configured and initialized"
        )
    if name not in sizes:
        raise wrong_input(f"Not existing vector name error: {name}")
    size = sizes[name]
    if size is None:
        return
    if kind == "dense":
        dimension(size, len(given.dense.data))
    if kind == "multi_dense":
        for row in given.multi_dense.vectors:
            dimension(size, len(row.data))


def conditions(given: common.Filter) -> None:
    """No field condition is without a test; conditions with nothing in them are taken out, as no constraint."""
    for place in ("must", "should", "must_not"):
        _conditions(getattr(given, place), place)
    if given.HasField("min_should"):
        _conditions(given.min_should.conditions, "min_should.conditions")


def _conditions(given: Any, place: str) -> None:
    empty = [index for index, condition in enumerate(given) if condition.WhichOneof("condition_one_of") is None]
    for index, condition in enumerate(given):
        kind = condition.WhichOneof("condition_one_of")
        if kind == "field" and len(condition.field.ListFields()) <= 1:
            raise invalid(
                f"Validation error in body: [filter.{place}[{index}].condition_one_of.match: Validation error: "
                "At least one field condition must be specified [{}]]"
            )
        if kind == "filter":
            conditions(condition.filter)
        if kind == "nested":
            conditions(condition.nested.filter)
    for index in reversed(empty):
        del given[index]


def sizes_of(config: collections.CollectionParams) -> dict[str, int | None]:
    """Vector names of a collection with their dimensions, None for sparse ones."""
    sizes: dict[str, int | None] = {}
    kind = config.vectors_config.WhichOneof("config")
    if kind == "params":
        sizes[""] = config.vectors_config.params.size
    elif kind == "params_map":
        sizes |= {name: params.size for name, params in config.vectors_config.params_map.map.items()}
    sizes |= dict.fromkeys(config.sparse_vectors_config.map)
    return sizes
