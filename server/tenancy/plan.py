"""PURE. What confining a request produces.

Promises: nothing but data. `Refused` stops the confinement of a request from anywhere inside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import Call, Code, Reply, refuse


class Refused(Exception):
    """The request cannot be confined, or asks for what no tenant may do."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.reply: Reply = refuse(code, why)


class Must(Enum):
    """What must be true of the ids before the request may pass."""

    BE_OWN = "each belongs to the tenant: the answer depends on the vectors of these points"
    NOT_BE_FOREIGN = "none belongs to another tenant: the write would have no effect on it"


@dataclass(slots=True)
class Claim:
    """Something to be shown about points of one collection."""

    must: Must
    collection: str
    ids: list[common.PointId] = field(default_factory=list)


@dataclass(slots=True)
class Claims:
    """All that must be shown for one request."""

    claims: list[Claim] = field(default_factory=list)

    def add(self, must: Must, collection: str, ids: Iterable[common.PointId]) -> None:
        """One more; unset ids are left for Qdrant to refuse."""
        wanted = [one for one in ids if one.WhichOneof("point_id_options") is not None]
        if wanted:
            self.claims.append(Claim(must, collection, wanted))


@dataclass(frozen=True, slots=True)
class Plan:
    """A confined call, and what must be shown with questions to the backend before it passes."""

    call: Call
    claims: tuple[Claim, ...] = ()
