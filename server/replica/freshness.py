"""PURE. How whole and how new a local answer is, as trailing metadata."""

from __future__ import annotations

from collections.abc import Mapping

from generated.understudy.replica.v1 import replica_pb2 as control
from server.rpc import AS_OF, COMPLETENESS

_NAMES: Mapping[int, str] = {
    control.COMPLETENESS_EMPTY: "empty",
    control.COMPLETENESS_HYDRATING: "hydrating",
    control.COMPLETENESS_COMPLETE: "complete",
    control.COMPLETENESS_STALE: "stale",
}


def trailers(freshness: control.Freshness) -> tuple[tuple[str, str], ...]:
    """The completeness is left out where the call names no collection that is here."""
    as_of = (AS_OF, str(freshness.as_of_seq))
    name = _NAMES.get(freshness.completeness)
    return (as_of,) if name is None else ((COMPLETENESS, name), as_of)
