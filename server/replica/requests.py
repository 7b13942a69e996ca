"""PURE. Requests as messages, and a batch of updates as the single requests that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.replica.refusal import bad_body, invalid, undecodable
from server.rpc import COLLECTIONS, POINTS, UPDATE_BATCH, UPSERT

__all__ = [
    "CLEAR_PAYLOAD",
    "COLLECTIONS",
    "DELETE",
    "DELETE_PAYLOAD",
    "DELETE_VECTORS",
    "NOBODY",
    "OVERWRITE_PAYLOAD",
    "POINTS",
    "SET_PAYLOAD",
    "UPDATE_BATCH",
    "UPDATE_VECTORS",
    "UPSERT",
    "is_conditional",
    "parse",
    "parts_of",
]

M = TypeVar("M", bound=Message)

NOBODY = common.Filter(must=[common.Condition(has_id=common.HasIdCondition())])
"""Matches no point, in every reading of it."""

DELETE = POINTS + "Delete"
UPDATE_VECTORS = POINTS + "UpdateVectors"
DELETE_VECTORS = POINTS + "DeleteVectors"
SET_PAYLOAD = POINTS + "SetPayload"
OVERWRITE_PAYLOAD = POINTS + "OverwritePayload"
DELETE_PAYLOAD = POINTS + "DeletePayload"
CLEAR_PAYLOAD = POINTS + "ClearPayload"


def is_conditional(write: Message) -> bool:
    """Whether a write, or an operation of a batch, is done only to points that meet a condition."""
    return "update_filter" in write.DESCRIPTOR.fields_by_name and write.HasField("update_filter")


def parse(message: type[M], body: bytes) -> M:
    """The message in `body`. Raises Refusal as Qdrant does."""
    try:
        return message.FromString(body)
    except DecodeError as error:
        raise undecodable(str(error)) from error


def parts_of(batch: pb.UpdateBatchPoints) -> Iterator[tuple[str, Message]]:
    """The operations of a batch as (method, request), in order. Raises Refusal when it comes to a bad one."""
    if not batch.operations:
        raise bad_body("operations", "value [] invalid, must be at least 1 characters")
    for operation in batch.operations:
        yield _part(batch, operation)


# Part of a batch → (method, request message). The fields of the parts have the names that the requests give them.
_PARTS: dict[str, tuple[str, type[Message]]] = {
    "upsert": (UPSERT, pb.UpsertPoints),
    "set_payload": (SET_PAYLOAD, pb.SetPayloadPoints),
    "overwrite_payload": (OVERWRITE_PAYLOAD, pb.SetPayloadPoints),
    "delete_payload": (DELETE_PAYLOAD, pb.DeletePayloadPoints),
    "update_vectors": (UPDATE_VECTORS, pb.UpdatePointVectors),
    "delete_vectors": (DELETE_VECTORS, pb.DeletePointVectors),
    "delete_points": (DELETE, pb.DeletePoints),
    "clear_payload": (CLEAR_PAYLOAD, pb.ClearPayloadPoints),
    "delete_deprecated": (DELETE, pb.DeletePoints),
    "clear_payload_deprecated": (CLEAR_PAYLOAD, pb.ClearPayloadPoints),
}


def _part(batch: pb.UpdateBatchPoints, operation: pb.PointsUpdateOperation) -> tuple[str, Message]:
    form = operation.WhichOneof("operation")
    if form is None:
        raise invalid("Operation is missing")
    method, request_type = _PARTS[form]
    request = request_type(collection_name=batch.collection_name)
    for name in ("wait", "timeout"):
        if batch.HasField(name):
            setattr(request, name, getattr(batch, name))
    if batch.HasField("ordering"):
        getattr(request, "ordering").CopyFrom(batch.ordering)  # noqa: B009
    part = getattr(operation, form)
    if form.endswith("_deprecated"):
        getattr(request, "points").CopyFrom(part)  # noqa: B009
        return method, request
    for field, value in part.ListFields():
        target = getattr(request, field.name)
        if isinstance(value, Message):
            target.CopyFrom(value)
        elif hasattr(target, "MergeFrom"):
            target.MergeFrom(value)
        else:
            setattr(request, field.name, value)
    return method, request
