"""PURE. Whether an id range of the replica holds what the same range of Qdrant holds.

Promises: `look` compares point by point, so it finds any difference of ids, payloads and vectors; values that both
sides computed by themselves (Cosine vectors, normalised on either side) may differ by rounding. What follows from a
look is in `looks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

import numpy as np

from generated.qdrant import points_pb2 as points
from server.replica.looks import Digest, Look
from server.replica.records import Key, Record
from server.replica.vector_forms import Floats, floats_of

_DIGEST_BYTES = 16
_LENGTH_BYTES = 8
# Two ways to normalise a float32 vector of some thousand numbers differ by less; a vector that moved differs by more.
_RELATIVE = 1e-5
_ABSOLUTE = 1e-6


def look(there: Mapping[Key, Record], here: Iterable[Record], rounded: frozenset[str]) -> Look:
    """Compare Qdrant's points with the replica's, which come in key order and are read once.

    `rounded` names the vectors that may differ by rounding.
    """
    remote = _Digester()
    for key in sorted(there):
        remote.add(there[key])
    local, common, differing = _Digester(), 0, 0
    for record in here:
        local.add(record)
        other = there.get(record.key)
        common += other is not None
        differing += not agree(other, record, rounded)
    return Look(remote.digest(), local.digest(), differing + len(there) - common)


def agree(one: Record | None, other: Record, rounded: frozenset[str]) -> bool:
    """Whether two sides hold the same point."""
    if one is None or (one.key, one.payload) != (other.key, other.payload):
        return False
    return one.vectors == other.vectors or (bool(rounded) and _agree_but_for_rounding(one, other, rounded))


def _agree_but_for_rounding(one: Record, other: Record, rounded: frozenset[str]) -> bool:
    first = points.NamedVectors.FromString(one.vectors).vectors
    second = points.NamedVectors.FromString(other.vectors).vectors
    if first.keys() != second.keys():
        return False
    return all(
        vector == second[name] or (name in rounded and _are_near(_rows(vector), _rows(second[name])))
        for name, vector in first.items()
    )


def _rows(vector: points.Vector) -> list[Floats] | None:
    """The rows of a dense vector; None for a sparse one, which nobody normalises."""
    match vector.WhichOneof("vector"):
        case "dense":
            return [floats_of(vector.dense)]
        case "multi_dense":
            return [floats_of(row) for row in vector.multi_dense.vectors]
        case _:
            return None


def _are_near(first: list[Floats] | None, second: list[Floats] | None) -> bool:
    if first is None or second is None:
        return False
    return len(first) == len(second) and all(
        one.shape == other.shape and np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
        for one, other in zip(first, second, strict=True)
    )


class _Digester:
    def __init__(self) -> None:
        self._hash = blake2b(digest_size=_DIGEST_BYTES)
        self._points = 0

    def add(self, record: Record) -> None:
        # Each part with its length before it, so that no two ranges run together to the same bytes.
        for part in (record.key, record.payload, record.vectors):
            self._hash.update(len(part).to_bytes(_LENGTH_BYTES, "big"))
            self._hash.update(part)
        self._points += 1

    def digest(self) -> Digest:
        return Digest(self._points, self._hash.digest())
