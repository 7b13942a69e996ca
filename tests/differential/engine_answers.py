"""PURE. What `qdrant_edge` is asked to show and what it shows, from and to messages of the wire."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge

from generated.qdrant import points_pb2 as pb

from .answers import Id, id_of, id_order
from .engine_queries import filter_from
from .values import as_payload, spelt


def filter_given(request: Any) -> Any:
    """The filter of a request, None for none."""
    return filter_from(request.filter) if request.HasField("filter") else None


def payload_wanted(request: Any, *, default: bool) -> Any:
    """Which payload is asked for; `default` where the request does not say it."""
    given = request.with_payload
    match given.WhichOneof("selector_options") if request.HasField("with_payload") else None:
        case "enable":
            return given.enable
        case "include":
            return edge.PayloadSelector.Include(list(given.include.fields))
        case "exclude":
            return edge.PayloadSelector.Exclude(list(given.exclude.fields))
        case _:
            return default


def vectors_wanted(request: Any) -> Any:
    """Which vectors are asked for."""
    given = request.with_vectors
    match given.WhichOneof("selector_options") if request.HasField("with_vectors") else None:
        case "enable":
            return given.enable
        case "include":
            return list(given.include.names)
        case _:
            return False


def rank_of(point: pb.ScoredPoint) -> tuple[float, tuple[bool, Id]]:
    """The place of a point among those that are ordered by a field: value, then id."""
    return float(getattr(point.order_value, point.order_value.WhichOneof("variant") or "")), id_order(id_of(point.id))


def plain(identity: Any) -> Id:
    """An id of the engine as a number or a text."""
    return identity if isinstance(identity, int) else str(identity)


def point_shown(found: Any, target: Any) -> Any:
    """A point of the engine as a message."""
    target.id.CopyFrom(spelt(plain(found.id)))
    for key, value in as_payload(found.payload or {}).items():
        target.payload[key].CopyFrom(value)
    vectors = found.vector
    if vectors is not None:
        for name, vector in (vectors if isinstance(vectors, dict) else {"": vectors}).items():
            _fill_vector(target.vectors.vectors.vectors[name], vector)
    if found.order_value is not None:
        if isinstance(found.order_value, int):
            target.order_value.int = found.order_value
        else:
            target.order_value.float = found.order_value
    return target


def _fill_vector(target: pb.VectorOutput, vector: Any) -> None:
    if isinstance(vector, edge.SparseVector):
        target.sparse.indices.extend(vector.indices)
        target.sparse.values.extend(vector.values)
    elif vector and isinstance(vector[0], list):
        for row in vector:
            target.multi_dense.vectors.add(data=row)
    else:
        target.dense.data.extend(vector)
