"""The layer between the edge and the router that keeps tenants apart.

Promises: what passes inward is confined, what passes outward is the tenant's; what cannot be confined is refused.
Points that a query names by id are shown to be the tenant's before and after the query, with questions of its own to
the same backend. A write to a point of another tenant is refused rather than acknowledged without effect.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import replace

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.config import Tenancy
from server.rpc import Backend, Call, Code, Reply, refuse, unexplained
from server.tenancy.confine import plan
from server.tenancy.filters import is_tenant, not_of_tenant, of_ids
from server.tenancy.identity import check_settings
from server.tenancy.plan import Claim, Must, Plan
from server.tenancy.reveal import reveal

# Older servers ignore `update_filter`, and would let one tenant overwrite the points of another.
MINIMUM_REMOTE_VERSION = (1, 17)
_NEEDS_VERSION = frozenset({"/qdrant.Points/Upsert", "/qdrant.Points/UpdateVectors", "/qdrant.Points/UpdateBatch"})
_SCROLL = "/qdrant.Points/Scroll"


class TenancyLayer:
    """A `rpc.Backend` around another one.

    `remote_version` gives the version of Qdrant last seen: "" when one is configured that was never seen, None when
    none is. Raises ConfigError for keys that cannot be confined by.
    """

    minimum_remote_version = MINIMUM_REMOTE_VERSION

    def __init__(
        self, inner: Backend, settings: Tenancy, *, remote_version: Callable[[], str | None] | None = None
    ) -> None:
        if settings.enabled:
            check_settings(settings)
        self._inner = inner
        self._settings = settings
        self._remote_version = remote_version

    async def handle(self, call: Call) -> Reply:
        """Answer one call of one tenant."""
        if not self._settings.enabled:
            return await self._inner.handle(call)
        # A plan counts the points of all tenants.
        planned = plan(unexplained(call), self._settings)
        if isinstance(planned, Reply):
            return planned
        refusal = self._version_refusal(planned.call.method) or await self._show(planned)
        if refusal is not None:
            return refusal
        reply = await self._inner.handle(planned.call)
        if reply.is_ok:
            # Once more: a point may have changed hands while the query ran.
            refusal = await self._show(planned, only=Must.BE_OWN)
            if refusal is not None:
                return refusal
        return reveal(call, reply, self._settings, planned.call.tenant)

    def _version_refusal(self, method: str) -> Reply | None:
        if method not in _NEEDS_VERSION or self._remote_version is None:
            return None
        version = self._remote_version()
        if version is None or is_new_enough(version):
            return None
        least = ".".join(map(str, MINIMUM_REMOTE_VERSION))
        if not version:
            return refuse(
                Code.UNAVAILABLE,
                f"Tenants need Qdrant {least} or newer, and the version of this Qdrant is not known yet",
            )
        return refuse(Code.FAILED_PRECONDITION, f"Tenants need Qdrant {least} or newer; this is {version}")

    async def _show(self, planned: Plan, only: Must | None = None) -> Reply | None:
        """None when every claim holds, else what to answer."""
        for claim in planned.claims:
            if only is not None and claim.must is not only:
                continue
            refusal = await (self._own if claim.must is Must.BE_OWN else self._not_foreign)(planned.call, claim)
            if refusal is not None:
                return refusal
        return None

    async def _own(self, call: Call, claim: Claim) -> Reply | None:
        """Points that are not the tenant's do not exist for it."""
        wanted = list({canonical(one): one for one in claim.ids}.items())
        found = await self._scroll(
            call, claim.collection, of_ids([one for _, one in wanted], self._condition(call)), len(wanted)
        )
        if isinstance(found, Reply):
            return found
        owned = {canonical(point.id) for point in found.result}
        for name, _ in wanted:
            if name not in owned:
                return refuse(Code.NOT_FOUND, f"Not found: No point with id {name} found")
        return None

    async def _not_foreign(self, call: Call, claim: Claim) -> Reply | None:
        found = await self._scroll(call, claim.collection, not_of_tenant(claim.ids, self._condition(call)), 1)
        if isinstance(found, Reply):
            # The write is safe without this question (`update_filter`): let it say what is wrong, if anything is.
            return None
        for point in found.result:
            return refuse(
                Code.PERMISSION_DENIED, f"The point {canonical(point.id)} is there already and is not this tenant's"
            )
        return None

    def _condition(self, call: Call) -> common.Condition:
        return is_tenant(self._settings.payload_key, call.tenant)

    async def _scroll(
        self, call: Call, collection: str, wanted: common.Filter, limit: int
    ) -> points.ScrollResponse | Reply:
        request = points.ScrollPoints(collection_name=collection, filter=wanted, limit=limit)
        request.with_payload.enable = False
        request.with_vectors.enable = False
        reply = await self._inner.handle(replace(call, method=_SCROLL, body=request.SerializeToString()))
        return points.ScrollResponse.FromString(reply.body) if reply.is_ok else reply


def is_new_enough(version: str) -> bool:
    """Whether a Qdrant of this version keeps tenants apart; False for a version that cannot be read."""
    found = re.match(r"v?(\d{1,5})\.(\d{1,5})", version)
    return found is not None and (int(found[1]), int(found[2])) >= MINIMUM_REMOTE_VERSION


def canonical(point_id: common.PointId) -> str:
    """An id as Qdrant writes it: a number, or a UUID with hyphens."""
    if point_id.WhichOneof("point_id_options") == "num":
        return str(point_id.num)
    try:
        return str(uuid.UUID(point_id.uuid))
    except ValueError:
        return point_id.uuid
