"""Writes of the wire as operations of `qdrant_edge`.

Raises Inexpressible for what a server refuses before it asks a shard, and for what the bindings cannot say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qdrant_edge as edge
from qdrant_client.conversions.conversion import grpc_to_payload

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.rpc import METHODS, POINTS
from tests.replica.edge_engine import Inexpressible

from .answers import Id, id_of
from .engine_queries import checked_above, filter_from

DISTANCES = {
    collections.Cosine: edge.Distance.Cosine,
    collections.Dot: edge.Distance.Dot,
    collections.Euclid: edge.Distance.Euclid,
    collections.Manhattan: edge.Distance.Manhattan,
}
INDEXES = {
    pb.FieldTypeKeyword: edge.PayloadSchemaType.Keyword,
    pb.FieldTypeInteger: edge.PayloadSchemaType.Integer,
    pb.FieldTypeFloat: edge.PayloadSchemaType.Float,
    pb.FieldTypeGeo: edge.PayloadSchemaType.Geo,
    pb.FieldTypeText: edge.PayloadSchemaType.Text,
    pb.FieldTypeBool: edge.PayloadSchemaType.Bool,
    pb.FieldTypeDatetime: edge.PayloadSchemaType.Datetime,
    pb.FieldTypeUuid: edge.PayloadSchemaType.Uuid,
}
_PARTS = {
    "upsert": "Upsert",
    "delete_points": "Delete",
    "set_payload": "SetPayload",
    "overwrite_payload": "OverwritePayload",
    "delete_payload": "DeletePayload",
    "clear_payload": "ClearPayload",
    "update_vectors": "UpdateVectors",
    "delete_vectors": "DeleteVectors",
}
_MODES = {
    pb.UpdateMode.Upsert: edge.UpdateMode.Upsert,
    pb.UpdateMode.InsertOnly: edge.UpdateMode.InsertOnly,
    pb.UpdateMode.UpdateOnly: edge.UpdateMode.UpdateOnly,
}
_Do = edge.UpdateOperation


def operation_of(method: str, request: Any) -> Any:
    """One write that is no batch."""
    checked_above(request)
    return _OPERATIONS[method.removeprefix(POINTS)](request)


def parts_of(batch: pb.UpdateBatchPoints) -> list[tuple[str, Any]]:
    """The parts of a batch as methods with requests of their own."""
    if not batch.operations:
        raise Inexpressible("a batch of nothing is refused above the shard")
    parts = []
    for operation in batch.operations:
        kind = operation.WhichOneof("operation")
        if kind is None:
            raise Inexpressible("an operation of no kind is refused above the shard")
        method = POINTS + _PARTS[kind]
        request: Any = METHODS[method].request(collection_name=batch.collection_name, wait=batch.wait)  # type: ignore[call-arg]
        for descriptor, value in getattr(operation, kind).ListFields():
            if descriptor.is_repeated or descriptor.type == descriptor.TYPE_MESSAGE:
                getattr(request, descriptor.name).MergeFrom(value)
            else:
                setattr(request, descriptor.name, value)
        parts.append((method, request))
    return parts


def _upsert(request: pb.UpsertPoints) -> Any:
    _demand_points(request.points)
    points = [
        edge.Point(id_of(point.id), _vectors(point.vectors), grpc_to_payload(point.payload)) for point in request.points
    ]
    return _Do.upsert_points(points, _condition(request), _MODES[request.update_mode])


def _update_vectors(request: pb.UpdatePointVectors) -> Any:
    _demand_points(request.points)
    vectors = [edge.PointVectors(id_of(point.id), _vectors(point.vectors)) for point in request.points]
    return _Do.update_vectors(vectors, _condition(request))


def _condition(request: Any) -> Any:
    return filter_from(request.update_filter) if request.HasField("update_filter") else None


def _chosen(
    field: str, by_ids: Callable[..., Any], by_filter: Callable[..., Any], rest: Callable[[Any], tuple[Any, ...]]
) -> Callable[[Any], Any]:
    """A write to points that are chosen by ids or by a filter; `rest`: what else the operation takes."""

    def operation(request: Any) -> Any:
        if not request.HasField(field):
            raise Inexpressible("a write without a selector is refused above the shard")
        chosen: pb.PointsSelector = getattr(request, field)
        if chosen.HasField("filter"):
            return by_filter(filter_from(chosen.filter), *rest(request))
        ids: list[Id] = [id_of(one) for one in chosen.points.ids]
        if not ids:
            raise Inexpressible("a write to no point is refused above the shard")
        return by_ids(ids, *rest(request))

    return operation


def _payload_and_key(request: pb.SetPayloadPoints) -> tuple[Any, ...]:
    return grpc_to_payload(request.payload), request.key if request.HasField("key") else None


def _create_vector_name(request: pb.CreateVectorNameRequest) -> Any:
    given = request.dense_config
    if request.WhichOneof("vector_config") == "sparse_config":
        return _Do.create_sparse_vector(request.vector_name)
    return _Do.create_dense_vector(request.vector_name, given.size, DISTANCES[given.distance])


_OPERATIONS: Mapping[str, Callable[[Any], Any]] = {
    "Upsert": _upsert,
    "UpdateVectors": _update_vectors,
    "Delete": _chosen("points", _Do.delete_points, _Do.delete_points_by_filter, lambda _: ()),
    "DeleteVectors": _chosen(
        "points_selector", _Do.delete_vectors, _Do.delete_vectors_by_filter, lambda r: (list(r.vectors.names),)
    ),
    "SetPayload": _chosen("points_selector", _Do.set_payload, _Do.set_payload_by_filter, _payload_and_key),
    "OverwritePayload": _chosen(
        "points_selector",
        _Do.overwrite_payload,
        _Do.overwrite_payload_by_filter,
        lambda r: (grpc_to_payload(r.payload),),
    ),
    "DeletePayload": _chosen(
        "points_selector", _Do.delete_payload, _Do.delete_payload_by_filter, lambda r: (list(r.keys),)
    ),
    "ClearPayload": _chosen("points", _Do.clear_payload, _Do.clear_payload_by_filter, lambda _: ()),
    "CreateFieldIndex": lambda r: _Do.create_field_index(r.field_name, INDEXES[r.field_type]),
    "DeleteFieldIndex": lambda r: _Do.delete_field_index(r.field_name),
    "CreateVectorName": _create_vector_name,
    "DeleteVectorName": lambda r: _Do.delete_vector_name(r.vector_name),
}
METHODS_OF_SHARDS = frozenset(POINTS + name for name in _OPERATIONS)


def _demand_points(points: Any) -> None:
    if not points:
        raise Inexpressible("an update of nothing is refused above the shard")
    for point in points:
        if point.id.WhichOneof("point_id_options") is None or not point.HasField("vectors"):
            raise Inexpressible("points without id or vectors are refused above the shard")


def _vectors(given: pb.Vectors) -> Any:
    if given.WhichOneof("vectors_options") == "vector":
        return _vector(given.vector)
    return {name: _vector(one) for name, one in given.vectors.vectors.items()}


def _vector(given: pb.Vector) -> Any:
    match given.WhichOneof("vector"):
        case "dense":
            return _dense(given.dense.data)
        case "sparse":
            return _sparse(given.sparse.indices, given.sparse.values)
        case "multi_dense":
            return [_dense(row.data) for row in given.multi_dense.vectors]
        case _ if given.HasField("indices"):
            return _sparse(given.indices.data, given.data)
        case _ if given.HasField("vectors_count"):
            width = len(given.data) // given.vectors_count
            return [_dense(given.data[start : start + width]) for start in range(0, len(given.data), width)]
        case _:
            return _dense(given.data)


def _dense(row: Any) -> list[float]:
    if not row:
        raise Inexpressible("empty vectors are refused above the shard")
    return list(row)


def _sparse(indices: Any, values: Any) -> Any:
    if not indices or len(indices) != len(values):
        raise Inexpressible("the bindings break down over a sparse vector of nothing")
    return edge.SparseVector(list(indices), list(values))
