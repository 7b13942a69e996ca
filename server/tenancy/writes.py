"""PURE. Writes, confined to one tenant.

Promises: every point that a write leaves behind carries the tenant; no write changes a point of another tenant, nor the
tenant of any point. Ids in selectors become filters; upserts and vector updates carry an `update_filter`.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any, TypeAlias

from generated.qdrant import json_with_int_pb2 as json_pb
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import Code
from server.tenancy.filters import narrow, narrow_selector
from server.tenancy.plan import Claims, Must, Refused
from server.tenancy.reads import root_of

Operation = points.PointsUpdateOperation
Upserting: TypeAlias = points.UpsertPoints | points.PointsUpdateOperation.PointStructList
UpdatingVectors: TypeAlias = points.UpdatePointVectors | points.PointsUpdateOperation.UpdateVectors


class Writes:
    """Confines writes in place for one tenant."""

    def __init__(self, tenant: str, condition: common.Condition, key: str, claims: Claims) -> None:
        self._tenant = tenant
        self._condition = condition
        self._key = key
        self._claims = claims

    def upsert(self, request: Upserting, collection: str) -> None:
        """Each point is stamped; points with the same ids are replaced only if they are the tenant's."""
        for point in request.points:
            self._stamp(point.payload)
        narrow(request.update_filter, self._condition)
        self._claims.add(Must.NOT_BE_FOREIGN, collection, [point.id for point in request.points])

    def update_vectors(self, request: UpdatingVectors, collection: str) -> None:
        """Vectors of the tenant's points."""
        narrow(request.update_filter, self._condition)
        self._claims.add(Must.NOT_BE_FOREIGN, collection, [point.id for point in request.points])

    def select(self, selector: points.PointsSelector) -> None:
        """The tenant's points among those selected."""
        if not narrow_selector(selector, self._condition):
            raise Refused(Code.INVALID_ARGUMENT, "No points selected: give ids or a filter")

    def set_payload(self, payload: MutableMapping[str, Any], path: str | None, selector: points.PointsSelector) -> None:
        """New values, beside the tenant."""
        if path:
            self._untouched([path])
        elif self._key in payload:
            self._same_tenant(payload[self._key])
        self.select(selector)

    def overwrite_payload(
        self, payload: MutableMapping[str, Any], path: str | None, selector: points.PointsSelector
    ) -> None:
        """A whole new payload, with the tenant in it."""
        if path:
            raise Refused(
                Code.PERMISSION_DENIED, "OverwritePayload with `key` cannot be confined to a tenant: use SetPayload"
            )
        self._stamp(payload)
        self.select(selector)

    def delete_payload(self, keys: Iterable[str], selector: points.PointsSelector) -> None:
        """Keys other than the tenant's."""
        self._untouched(keys)
        self.select(selector)

    def cleared(self) -> dict[str, json_pb.Value]:
        """The payload that is left of a cleared one."""
        return {self._key: json_pb.Value(string_value=self._tenant)}

    def batch(self, request: points.UpdateBatchPoints) -> None:
        """Each operation, in place."""
        for operation in request.operations:
            self._operation(operation, request.collection_name)

    def _operation(self, operation: points.PointsUpdateOperation, collection: str) -> None:
        form = operation.WhichOneof("operation")
        if form == "upsert":
            self.upsert(operation.upsert, collection)
        elif form == "update_vectors":
            self.update_vectors(operation.update_vectors, collection)
        elif form == "delete_points":
            self.select(operation.delete_points.points)
        elif form == "delete_deprecated":
            self.select(operation.delete_deprecated)
        elif form == "delete_vectors":
            self.select(operation.delete_vectors.points_selector)
        elif form == "set_payload":
            part = operation.set_payload
            self.set_payload(part.payload, part.key if part.HasField("key") else None, part.points_selector)
        elif form == "overwrite_payload":
            over = operation.overwrite_payload
            self.overwrite_payload(over.payload, over.key if over.HasField("key") else None, over.points_selector)
        elif form == "delete_payload":
            self.delete_payload(operation.delete_payload.keys, operation.delete_payload.points_selector)
        elif form in ("clear_payload", "clear_payload_deprecated"):
            self._clear(operation, form)
        else:
            raise Refused(Code.INVALID_ARGUMENT, "An operation of the batch is empty")

    def _clear(self, operation: points.PointsUpdateOperation, form: str) -> None:
        """Clearing would take the tenant along: the payload becomes the tenant alone."""
        new = Operation.OverwritePayload()
        if form == "clear_payload":
            new.points_selector.CopyFrom(operation.clear_payload.points)
            if operation.clear_payload.HasField("shard_key_selector"):
                new.shard_key_selector.CopyFrom(operation.clear_payload.shard_key_selector)
        else:
            new.points_selector.CopyFrom(operation.clear_payload_deprecated)
        self.select(new.points_selector)
        for key, value in self.cleared().items():
            new.payload[key].CopyFrom(value)
        operation.overwrite_payload.CopyFrom(new)

    def _stamp(self, payload: MutableMapping[str, Any]) -> None:
        if self._key in payload:
            self._same_tenant(payload[self._key])
        payload[self._key].string_value = self._tenant

    def _same_tenant(self, value: json_pb.Value) -> None:
        if value.WhichOneof("kind") != "string_value" or value.string_value != self._tenant:
            raise Refused(
                Code.PERMISSION_DENIED, f"The payload key `{self._key}` names another tenant than the call is made for"
            )

    def _untouched(self, paths: Iterable[str]) -> None:
        for path in paths:
            if root_of(path) == self._key:
                raise Refused(Code.PERMISSION_DENIED, f"The payload key `{self._key}` holds the tenant: it stays")
