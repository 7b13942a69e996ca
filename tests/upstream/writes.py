"""The calls of `qdrant.Points` that change something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest

from generated.qdrant import points_pb2 as pb

from . import checks
from .refusal import invalid, wrong_input

if TYPE_CHECKING:
    from .engine import Engine


class WriteCalls:
    """Points, payloads, vectors, payload indexes and vector names."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._local = engine.local
        self._catalogue = engine.catalogue

    def answers(self) -> Mapping[str, Callable[[Any], Message]]:
        """Method names with what answers them."""
        return {
            "Upsert": self._one("upsert", pb.PointsUpdateOperation.PointStructList),
            "Delete": self._one("delete_points", pb.PointsUpdateOperation.DeletePoints),
            "UpdateVectors": self._one("update_vectors", pb.PointsUpdateOperation.UpdateVectors),
            "DeleteVectors": self._one("delete_vectors", pb.PointsUpdateOperation.DeleteVectors),
            "SetPayload": self._one("set_payload", pb.PointsUpdateOperation.SetPayload),
            "OverwritePayload": self._one("overwrite_payload", pb.PointsUpdateOperation.OverwritePayload),
            "DeletePayload": self._one("delete_payload", pb.PointsUpdateOperation.DeletePayload),
            "ClearPayload": self._one("clear_payload", pb.PointsUpdateOperation.ClearPayload),
            "UpdateBatch": self._batch,
            "CreateFieldIndex": self._create_index,
            "DeleteFieldIndex": self._delete_index,
            "CreateVectorName": self._create_vector_name,
            "DeleteVectorName": self._delete_vector_name,
        }

    def _one(self, kind: str, part: Any) -> Callable[[Any], Message]:
        """A single write is a batch of one: the request's fields under the same names."""
        shared = set(part.DESCRIPTOR.fields_by_name)

        def answer(request: Any) -> Message:
            name = self._engine.resolve(request.collection_name)
            operation = pb.PointsUpdateOperation()
            target = getattr(operation, kind)
            target.SetInParent()
            for descriptor, value in request.ListFields():
                if descriptor.name in shared and descriptor.name != "shard_key_selector":
                    _copy(target, descriptor, value)
            self._check(name, operation)
            number = self._catalogue.next_operation(name)
            self._apply(name, [operation], wait=request.wait)
            return pb.PointsOperationResponse(result=_result(number, wait=request.wait))

        return answer

    def _batch(self, request: pb.UpdateBatchPoints) -> Message:
        name = self._engine.resolve(request.collection_name)
        if not request.operations:
            raise invalid("Validation error in body: [operations: value [] invalid, must be at least 1 characters]")
        results = []
        for operation in map(_modern, request.operations):
            # One after the other: a server stops at the first that it refuses, with those before it done.
            self._check(name, operation)
            number = self._catalogue.next_operation(name)
            self._apply(name, [operation], wait=request.wait)
            results.append(_result(number, wait=request.wait))
        return pb.UpdateBatchResponse(result=results)

    def _check(self, name: str, operation: pb.PointsUpdateOperation) -> None:
        """What a server refuses before it acknowledges, with wait or without."""
        kind = operation.WhichOneof("operation")
        if kind is None:
            raise invalid("Operation is missing")
        given = getattr(operation, kind)
        sizes = self._engine.sizes(name)
        if kind in ("upsert", "update_vectors"):
            checks.some_points(given.points)
            checks.upserted(given.points, sizes, early=kind == "upsert")
        elif kind in ("delete_points", "clear_payload"):
            checks.selector(given.points)
        else:
            if not given.HasField("points_selector"):
                raise invalid("Malformed PointsSelector type")
            checks.selector(given.points_selector)
        if kind == "delete_vectors":
            if not given.vectors.names:
                raise invalid("Wrong input: No vector names provided")
            for vector in given.vectors.names:
                if vector not in sizes:
                    raise wrong_input(f"Not existing vector name error: {vector}")

    def _apply(self, name: str, operations: list[pb.PointsUpdateOperation], *, wait: bool) -> None:
        converted = [GrpcToRest.convert_points_update_operation(operation) for operation in operations]
        try:
            self._local.batch_update_points(name, converted)
        except KeyError:
            # The points that exist are changed. Without wait a server has acknowledged before it finds others missing.
            if wait:
                raise

    def _create_index(self, request: pb.CreateFieldIndexCollection) -> Message:
        name = self._engine.resolve(request.collection_name)
        if not request.field_name:
            raise invalid('Validation error in body: [field_name: value "" invalid, must be at least 1 characters]')
        if not request.HasField("field_type") and not request.HasField("field_index_params"):
            raise invalid("Bad request: field_schema or field_type must be set")
        params: Any = models.PayloadSchemaType.KEYWORD
        if request.HasField("field_index_params") and request.field_index_params.WhichOneof("index_params"):
            params = GrpcToRest.convert_payload_schema_params(request.field_index_params)
        self._local.create_payload_index(name, request.field_name, params)
        self._catalogue.index_created(name, request)
        return self._numbered(name, request)

    def _delete_index(self, request: pb.DeleteFieldIndexCollection) -> Message:
        name = self._engine.resolve(request.collection_name)
        self._local.delete_payload_index(name, request.field_name)
        self._catalogue.index_dropped(name, request.field_name)
        return self._numbered(name, request)

    def _create_vector_name(self, request: pb.CreateVectorNameRequest) -> Message:
        name = self._engine.resolve(request.collection_name)
        config = self._catalogue.config(name)
        self._local.create_vector_name(name, request.vector_name, _name_config(request))
        kind = request.WhichOneof("vector_config")
        if kind == "sparse_config":
            sparse = config.params.sparse_vectors_config.map[request.vector_name]
            if request.sparse_config.HasField("modifier"):
                sparse.modifier = request.sparse_config.modifier
            if request.sparse_config.HasField("datatype"):
                sparse.index.datatype = request.sparse_config.datatype
        else:
            vectors = config.params.vectors_config
            if vectors.WhichOneof("config") == "params":
                # The unnamed vector is one of several now, under the empty name.
                unnamed = type(vectors.params)()
                unnamed.CopyFrom(vectors.params)
                vectors.params_map.map[""].CopyFrom(unnamed)
            params = vectors.params_map.map[request.vector_name]
            params.size, params.distance = request.dense_config.size, request.dense_config.distance
            if request.dense_config.HasField("multivector_config"):
                params.multivector_config.CopyFrom(request.dense_config.multivector_config)
            if request.dense_config.HasField("datatype"):
                params.datatype = request.dense_config.datatype
        self._catalogue.save(name, config)
        return self._numbered(name, request)

    def _delete_vector_name(self, request: pb.DeleteVectorNameRequest) -> Message:
        name = self._engine.resolve(request.collection_name)
        if request.vector_name in self._engine.sizes(name):
            self._local.delete_vector_name(name, request.vector_name)
        config = self._catalogue.config(name)
        config.params.sparse_vectors_config.map.pop(request.vector_name, None)
        if config.params.vectors_config.WhichOneof("config") == "params_map":
            config.params.vectors_config.params_map.map.pop(request.vector_name, None)
        self._catalogue.save(name, config)
        return self._numbered(name, request)

    def _numbered(self, name: str, request: Any) -> Message:
        number = self._catalogue.next_operation(name)
        return pb.PointsOperationResponse(result=_result(number, wait=request.wait))


def _result(number: int, *, wait: bool) -> pb.UpdateResult:
    return pb.UpdateResult(operation_id=number, status=pb.Completed if wait else pb.Acknowledged)


def _copy(target: Any, descriptor: Any, value: Any) -> None:
    name = descriptor.name
    if descriptor.is_repeated or descriptor.type == descriptor.TYPE_MESSAGE:
        getattr(target, name).MergeFrom(value)
    else:
        setattr(target, name, value)


def _modern(operation: pb.PointsUpdateOperation) -> pb.PointsUpdateOperation:
    """The operation without its deprecated spellings."""
    kind = operation.WhichOneof("operation")
    if kind == "delete_deprecated":
        return pb.PointsUpdateOperation(
            delete_points=pb.PointsUpdateOperation.DeletePoints(points=operation.delete_deprecated)
        )
    if kind == "clear_payload_deprecated":
        return pb.PointsUpdateOperation(
            clear_payload=pb.PointsUpdateOperation.ClearPayload(points=operation.clear_payload_deprecated)
        )
    copy = pb.PointsUpdateOperation()
    copy.CopyFrom(operation)
    if kind is not None and getattr(copy, kind).HasField("shard_key_selector"):
        getattr(copy, kind).ClearField("shard_key_selector")
    return copy


def _name_config(request: pb.CreateVectorNameRequest) -> Any:
    if request.WhichOneof("vector_config") == "sparse_config":
        modifier = request.sparse_config.HasField("modifier")
        return models.SparseVectorNameConfig(
            sparse=models.SparseVectorConfig(
                modifier=GrpcToRest.convert_modifier(request.sparse_config.modifier) if modifier else None
            )
        )
    dense = request.dense_config
    multi = dense.HasField("multivector_config")
    return models.DenseVectorNameConfig(
        dense=models.DenseVectorConfig(
            size=dense.size,
            distance=GrpcToRest.convert_distance(dense.distance),
            multivector_config=GrpcToRest.convert_multivector_config(dense.multivector_config) if multi else None,
        )
    )
