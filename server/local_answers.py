"""PURE. What local answers carry, and the few that the proxy itself must make.

Promises: the warning is on every point of an answer when asked for. Does not change scores, ids or order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from generated.qdrant import collections_pb2, points_pb2
from server.rpc import COMPLETENESS, METHODS, Kind, Method, Reply

WARNING = "Qdrant is away: this answer comes from the local copy"
AS_ASKED = "This answer comes from the local copy, as asked for"
PAYLOAD_KEY = "stale_warning"

_RESPONSES: dict[str, type[Message]] = {
    "/qdrant.Points/Query": points_pb2.QueryResponse,
    "/qdrant.Points/QueryBatch": points_pb2.QueryBatchResponse,
    "/qdrant.Points/QueryGroups": points_pb2.QueryGroupsResponse,
    "/qdrant.Points/Search": points_pb2.SearchResponse,
    "/qdrant.Points/SearchBatch": points_pb2.SearchBatchResponse,
    "/qdrant.Points/SearchGroups": points_pb2.SearchGroupsResponse,
    "/qdrant.Points/Recommend": points_pb2.RecommendResponse,
    "/qdrant.Points/RecommendBatch": points_pb2.RecommendBatchResponse,
    "/qdrant.Points/RecommendGroups": points_pb2.RecommendGroupsResponse,
    "/qdrant.Points/Discover": points_pb2.DiscoverResponse,
    "/qdrant.Points/DiscoverBatch": points_pb2.DiscoverBatchResponse,
    "/qdrant.Points/Scroll": points_pb2.ScrollResponse,
    "/qdrant.Points/Get": points_pb2.GetResponse,
}


def mark(method: str, body: bytes) -> bytes:
    """The same answer with `stale_warning` in the payload of each point that it returns."""
    response_type = _RESPONSES.get(method)
    if response_type is None:
        return body
    response = response_type.FromString(body)
    _mark_points(response)
    return response.SerializeToString()


def _mark_points(message: Message) -> None:
    if isinstance(message, points_pb2.ScoredPoint | points_pb2.RetrievedPoint):
        message.payload[PAYLOAD_KEY].string_value = WARNING
        return
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in _messages(value):
                _mark_points(item)


def _messages(value: Any) -> list[Message]:
    """The messages in a field: one, or a list of them; maps hold none that matter here."""
    if isinstance(value, Message):
        return [value]
    return [] if hasattr(value, "keys") else list(value)


def plain_success(row: Method, request: Message, seq: int) -> bytes:
    """The answer to an applied write whose own answer went down with the replica."""
    assert METHODS[row.path].kind is Kind.WRITE
    if row.path.startswith("/qdrant.Collections/"):
        return collections_pb2.CollectionOperationResponse(result=True).SerializeToString()
    status = points_pb2.Completed if getattr(request, "wait", False) else points_pb2.Acknowledged
    result = points_pb2.UpdateResult(operation_id=seq, status=status)
    if isinstance(request, points_pb2.UpdateBatchPoints):
        return points_pb2.UpdateBatchResponse(result=[result] * len(request.operations)).SerializeToString()
    return points_pb2.PointsOperationResponse(result=result).SerializeToString()


def as_stale(reply: Reply) -> Reply:
    """The same answer, not passed off as whole."""
    trailers = dict(reply.trailers)
    if trailers.get(COMPLETENESS) == "complete":
        trailers[COMPLETENESS] = "stale"
    return replace(reply, trailers=tuple(trailers.items()))
