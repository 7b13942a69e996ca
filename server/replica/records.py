"""PURE. What the replica's store holds: points as bytes, collections, and what a transaction changed.

Promises: plain frozen values. Does not promise to understand the bytes in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Key: TypeAlias = bytes
"""0x00‖u64 big-endian or 0x01‖16 bytes of a UUID: sorts as Qdrant sorts ids."""


@dataclass(frozen=True, slots=True)
class Record:
    """One point: `payload` is a serialized qdrant.PointStruct with only `payload` set, `vectors` a qdrant.NamedVectors.

    The unnamed vector has the name "". Vectors are in the canonical oneof form; those of Cosine fields normalised.
    """

    key: Key
    payload: bytes = b""
    vectors: bytes = b""


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection. `revision` counts the transactions that changed it, `points` its points.

    `doubt_number`: another one after each doubt, see `Transaction.doubt`.
    """

    name: str
    config: bytes
    cid: int = 0
    info: bytes = b""
    schema: Mapping[str, bytes] = field(default_factory=dict)
    completeness: int = 0
    as_of_seq: int = 0
    resume_at: bytes = b""
    expected_points: int = 0
    created_here: bool = False
    revision: int = 0
    points: int = 0
    doubt_number: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """What one transaction changed. `touched`: collection id → keys put or removed; `reshaped`: config or schema."""

    touched: Mapping[int, frozenset[Key]]
    revisions: Mapping[int, int]
    dropped: frozenset[int]
    reshaped: frozenset[int]
