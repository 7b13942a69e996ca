"""PURE. From a call to the same call confined to its tenant.

Promises: each method of the API has exactly one rule here; a method or a request field that is not known is refused.
What passes can neither read nor change a point of another tenant, whoever answers it, given that the claims of its plan
hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from google.protobuf.message import DecodeError, Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.config import Tenancy
from server.rpc import COLLECTIONS, HEALTH_CHECK, METHODS, POINTS, Call, Code, Reply, refuse
from server.tenancy.filters import is_tenant
from server.tenancy.identity import tenant_of
from server.tenancy.plan import Claims, Must, Plan, Refused
from server.tenancy.reads import Reads, root_of
from server.tenancy.writes import Writes

_SNAPSHOTS = "/qdrant.Snapshots/"
HEALTH = "/grpc.health.v1.Health/"


class Passage(Enum):
    """How a method is dealt with."""

    FREE = "passes without a tenant"
    AS_IT_IS = "passes with a tenant, unchanged"
    CONFINED = "passes with a tenant, rewritten"
    REFUSED = "no tenant may do this"


@dataclass(slots=True)
class Confiner:
    """One request on its way to being confined."""

    tenant: str
    key: str
    condition: common.Condition
    claims: Claims
    reads: Reads
    writes: Writes

    @classmethod
    def of(cls, tenant: str, key: str) -> Confiner:
        condition, claims = is_tenant(key, tenant), Claims()
        reads, writes = Reads(condition, key, claims), Writes(tenant, condition, key, claims)
        return cls(tenant, key, condition, claims, reads, writes)


# A rule changes the request in place and returns the request to send: the same one, or one of another method.
_Rule = Callable[[Confiner, Any], Message | tuple[str, Message]]


def _filtered(confiner: Confiner, request: Any) -> Message:
    confiner.reads.filtered(request)
    return _message(request)


def _upsert(confiner: Confiner, request: points.UpsertPoints) -> Message:
    confiner.writes.upsert(request, request.collection_name)
    return request


def _update_vectors(confiner: Confiner, request: points.UpdatePointVectors) -> Message:
    confiner.writes.update_vectors(request, request.collection_name)
    return request


def _delete(confiner: Confiner, request: points.DeletePoints) -> Message:
    confiner.writes.select(request.points)
    return request


def _delete_vectors(confiner: Confiner, request: points.DeletePointVectors) -> Message:
    confiner.writes.select(request.points_selector)
    return request


def _set_payload(confiner: Confiner, request: points.SetPayloadPoints) -> Message:
    path = request.key if request.HasField("key") else None
    confiner.writes.set_payload(request.payload, path, request.points_selector)
    return request


def _overwrite_payload(confiner: Confiner, request: points.SetPayloadPoints) -> Message:
    path = request.key if request.HasField("key") else None
    confiner.writes.overwrite_payload(request.payload, path, request.points_selector)
    return request


def _delete_payload(confiner: Confiner, request: points.DeletePayloadPoints) -> Message:
    confiner.writes.delete_payload(request.keys, request.points_selector)
    return request


def _clear_payload(confiner: Confiner, request: points.ClearPayloadPoints) -> tuple[str, Message]:
    """Clearing would take the tenant along: the payload becomes the tenant alone."""
    new = points.SetPayloadPoints(collection_name=request.collection_name)
    new.points_selector.CopyFrom(request.points)
    confiner.writes.select(new.points_selector)
    for name in ("wait", "timeout"):
        if request.HasField(name):
            setattr(new, name, getattr(request, name))
    if request.HasField("ordering"):
        new.ordering.CopyFrom(request.ordering)
    if request.HasField("shard_key_selector"):
        new.shard_key_selector.CopyFrom(request.shard_key_selector)
    for key, value in confiner.writes.cleared().items():
        new.payload[key].CopyFrom(value)
    return POINTS + "OverwritePayload", new


def _create_field_index(confiner: Confiner, request: points.CreateFieldIndexCollection) -> Message:
    """Any index may be made, but the one on the tenant must be able to find tenants."""
    if root_of(request.field_name) != confiner.key:
        return request
    params = request.field_index_params.WhichOneof("index_params")
    kind_fits = not request.HasField("field_type") or request.field_type == points.FieldTypeKeyword
    params_fit = params in (None, "keyword_index_params")
    says_keyword = request.HasField("field_type") or params is not None
    if request.field_name == confiner.key and kind_fits and params_fit and says_keyword:
        return request
    raise Refused(
        Code.PERMISSION_DENIED, f"The payload key `{confiner.key}` holds the tenant: its index is a keyword one"
    )


def _by(step: Callable[[Confiner], Callable[[Any], None]]) -> _Rule:
    def rule(confiner: Confiner, request: Any) -> Message:
        step(confiner)(request)
        return _message(request)

    return rule


def _message(request: Any) -> Message:
    assert isinstance(request, Message)
    return request


CONFINED: Mapping[str, _Rule] = {
    POINTS + "Query": _by(lambda confiner: confiner.reads.query),
    POINTS + "QueryBatch": _by(lambda confiner: confiner.reads.query_batch),
    POINTS + "QueryGroups": _by(lambda confiner: confiner.reads.query),
    POINTS + "Search": _filtered,
    POINTS + "SearchBatch": _by(lambda confiner: confiner.reads.search_batch),
    POINTS + "SearchGroups": _filtered,
    POINTS + "Recommend": _by(lambda confiner: confiner.reads.recommend),
    POINTS + "RecommendBatch": _by(lambda confiner: confiner.reads.recommend_batch),
    POINTS + "RecommendGroups": _by(lambda confiner: confiner.reads.recommend),
    POINTS + "Discover": _by(lambda confiner: confiner.reads.discover),
    POINTS + "DiscoverBatch": _by(lambda confiner: confiner.reads.discover_batch),
    POINTS + "Scroll": _filtered,
    POINTS + "Get": _by(lambda confiner: confiner.reads.get),
    POINTS + "Count": _filtered,
    POINTS + "Facet": _filtered,
    POINTS + "SearchMatrixPairs": _filtered,
    POINTS + "SearchMatrixOffsets": _filtered,
    POINTS + "Upsert": _upsert,
    POINTS + "Delete": _delete,
    POINTS + "UpdateVectors": _update_vectors,
    POINTS + "DeleteVectors": _delete_vectors,
    POINTS + "SetPayload": _set_payload,
    POINTS + "OverwritePayload": _overwrite_payload,
    POINTS + "DeletePayload": _delete_payload,
    POINTS + "ClearPayload": _clear_payload,
    POINTS + "UpdateBatch": _by(lambda confiner: confiner.writes.batch),
    POINTS + "CreateFieldIndex": _create_field_index,
}

AS_IT_IS: Mapping[str, type[Message]] = {
    COLLECTIONS + "Get": collections.GetCollectionInfoRequest,
    COLLECTIONS + "List": collections.ListCollectionsRequest,
    COLLECTIONS + "CollectionExists": collections.CollectionExistsRequest,
    COLLECTIONS + "ListAliases": collections.ListAliasesRequest,
    COLLECTIONS + "ListCollectionAliases": collections.ListCollectionAliasesRequest,
    COLLECTIONS + "Create": collections.CreateCollection,
}

_SHARED = "the collection is shared with other tenants"
REFUSED: Mapping[str, str] = {
    POINTS + "DeleteFieldIndex": _SHARED,
    POINTS + "CreateVectorName": _SHARED,
    POINTS + "DeleteVectorName": _SHARED,
    COLLECTIONS + "Update": _SHARED,
    COLLECTIONS + "Delete": _SHARED,
    COLLECTIONS + "UpdateAliases": "aliases are shared with other tenants",
    COLLECTIONS + "CollectionClusterInfo": _SHARED,
    COLLECTIONS + "UpdateCollectionClusterSetup": _SHARED,
    COLLECTIONS + "CreateShardKey": _SHARED,
    COLLECTIONS + "DeleteShardKey": _SHARED,
    COLLECTIONS + "ListShardKeys": _SHARED,
    _SNAPSHOTS + "Create": "a snapshot holds the points of every tenant",
    _SNAPSHOTS + "List": "a snapshot holds the points of every tenant",
    _SNAPSHOTS + "Delete": "a snapshot holds the points of every tenant",
    _SNAPSHOTS + "CreateFull": "a snapshot holds the points of every tenant",
    _SNAPSHOTS + "ListFull": "a snapshot holds the points of every tenant",
    _SNAPSHOTS + "DeleteFull": "a snapshot holds the points of every tenant",
}


def passage_of(method: str) -> Passage:
    """How a method is dealt with; whatever is not listed is refused."""
    if method == HEALTH_CHECK or method.startswith(HEALTH):
        return Passage.FREE
    if method in AS_IT_IS:
        return Passage.AS_IT_IS
    return Passage.CONFINED if method in CONFINED else Passage.REFUSED


def plan(call: Call, settings: Tenancy) -> Plan | Reply:
    """The confined call with what must be shown for it, or why it may not pass."""
    passage = passage_of(call.method)
    if passage is Passage.FREE:
        return Plan(call)
    tenant = tenant_of(call, settings)
    if isinstance(tenant, Reply):
        return tenant
    if passage is Passage.REFUSED:
        why = REFUSED.get(call.method, "the method is not known here, so it cannot be confined to a tenant")
        return refuse(Code.PERMISSION_DENIED, f"{call.method} is not allowed to a tenant: {why}")
    if passage is Passage.AS_IT_IS:
        return Plan(replace(call, tenant=tenant))
    request = METHODS[call.method].request()
    try:
        request.ParseFromString(call.body)
    except DecodeError as error:
        return refuse(Code.INTERNAL, f"failed to decode Protobuf message: {error}")
    if _holds_unknown_fields(request):
        return refuse(
            Code.PERMISSION_DENIED,
            "The request has fields that are not known here, so it cannot be confined to a tenant",
        )
    confiner = Confiner.of(tenant, settings.payload_key)
    try:
        result = CONFINED[call.method](confiner, request)
    except Refused as refused:
        return refused.reply
    method, message = result if isinstance(result, tuple) else (call.method, result)
    confined = replace(call, method=method, body=message.SerializeToString(), tenant=tenant)
    return Plan(confined, tuple(confiner.claims.claims))


def confine(call: Call, settings: Tenancy) -> Call | Reply:
    """The confined call, or why it may not pass. Without questions to a backend, so what needs one is refused."""
    planned = plan(call, settings)
    if isinstance(planned, Reply):
        return planned
    for claim in planned.claims:
        if claim.must is Must.BE_OWN:
            return refuse(Code.PERMISSION_DENIED, "Points given by id cannot be shown to belong to the tenant")
    return planned.call


def _holds_unknown_fields(request: Message) -> bool:
    """Discards them as it looks."""
    before = request.ByteSize()
    request.DiscardUnknownFields()
    return request.ByteSize() != before
