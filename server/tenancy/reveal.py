"""PURE. Answers, without what is not the tenant's.

Promises: no point of another tenant in an answer to Get, nor in what a grouped query looks up; the payload key that
was asked for in addition is taken out again. Every other answer is confined by its request already and passes as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from google.protobuf.message import Message

from generated.qdrant import points_pb2 as points
from server.config import Tenancy
from server.rpc import METHODS, Call, Reply
from server.tenancy.reads import asked_for

_GET = "/qdrant.Points/Get"
_GROUPED: dict[str, type[Message]] = {
    "/qdrant.Points/QueryGroups": points.QueryGroupsResponse,
    "/qdrant.Points/SearchGroups": points.SearchGroupsResponse,
    "/qdrant.Points/RecommendGroups": points.RecommendGroupsResponse,
}


def reveal(call: Call, reply: Reply, settings: Tenancy, tenant: str) -> Reply:
    """What the tenant may see of an answer. `call` is the call as the client made it."""
    if not reply.is_ok:
        return reply
    if call.method == _GET:
        asked = points.GetPoints.FromString(call.body)
        visible = asked_for(asked.with_payload, settings.payload_key, unset_means_all=False)
        response = points.GetResponse.FromString(reply.body)
        own = [point for point in response.result if _is_own(point, settings.payload_key, tenant)]
        for point in own:
            _hide(point, settings.payload_key, visible)
        kept = points.GetResponse()
        kept.CopyFrom(response)
        del kept.result[:]
        kept.result.extend(own)
        return replace(reply, body=kept.SerializeToString())
    if call.method in _GROUPED:
        return _without_foreign_lookups(call, reply, settings, tenant)
    return reply


def _without_foreign_lookups(call: Call, reply: Reply, settings: Tenancy, tenant: str) -> Reply:
    request: Any = METHODS[call.method].request.FromString(call.body)
    if not request.HasField("with_lookup"):
        return reply
    visible = asked_for(request.with_lookup.with_payload, settings.payload_key, unset_means_all=True)
    response: Any = _GROUPED[call.method].FromString(reply.body)
    for group in response.result.groups:
        if not group.HasField("lookup"):
            continue
        if _is_own(group.lookup, settings.payload_key, tenant):
            _hide(group.lookup, settings.payload_key, visible)
        else:
            group.ClearField("lookup")
    return replace(reply, body=response.SerializeToString())


def _is_own(point: points.RetrievedPoint, key: str, tenant: str) -> bool:
    """As the condition on the tenant sees it: the value, or one of a list of values."""
    if key not in point.payload:
        return False
    value = point.payload[key]
    form = value.WhichOneof("kind")
    if form == "list_value":
        return any(
            one.WhichOneof("kind") == "string_value" and one.string_value == tenant for one in value.list_value.values
        )
    return form == "string_value" and value.string_value == tenant


def _hide(point: points.RetrievedPoint, key: str, visible: bool) -> None:
    if not visible and key in point.payload:
        del point.payload[key]
