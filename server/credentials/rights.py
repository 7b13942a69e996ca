"""PURE. What Qdrant asks of a token that is tied to collections before it lets it write.

Promises: one row per write; a write without a row, and every one whose rule is not known, asks for the most. That a
token may change points proves nothing about collections: Qdrant lets none that is tied to some make, change or delete
one, whichever it names. Says nothing about keys and tokens that are good everywhere: those may write all or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from server.rpc import METHODS, POINTS, Kind, Scope


class Right(Enum):
    """What a write needs."""

    DATA = "to change points"
    INDEXES = "to make and drop payload indexes, which a token for points only may not"
    MANAGE = "to change collections, aliases and vector names, which a token for some collections may not"


_INDEXES = frozenset({POINTS + "CreateFieldIndex", POINTS + "DeleteFieldIndex"})

RIGHTS: Mapping[str, Right] = {
    row.path: Right.DATA if row.scope is Scope.POINTS else Right.INDEXES if row.path in _INDEXES else Right.MANAGE
    for row in METHODS.values()
    if row.kind is Kind.WRITE
}


def right_to(method: str) -> Right:
    """What the write asks for."""
    return RIGHTS.get(method, Right.MANAGE)
