"""PURE. What two looks at an id range say: does it hold what Qdrant holds, does it move, or has it drifted.

Promises: a difference is called drift only when both sides held still between two looks, so what clients are writing at
the moment is none. Knows digests, not points: `ranges` makes them, in the replica.

    differing points    digests as at the look before    verdict
    none                any                              EQUAL
    some                no, or no look before            MOVING
    some                yes                              DRIFTED
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What two looks at a range say."""

    EQUAL = "equal"
    MOVING = "moving"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class Digest:
    """A range in short: how many points, and 16 bytes that stand for all their content."""

    points: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """Both sides of a range at one moment; `differing` counts points beyond rounding."""

    remote: Digest
    local: Digest
    differing: int


def judge(before: Look | None, now: Look) -> Verdict:
    """See the table in the module."""
    if not now.differing:
        return Verdict.EQUAL
    if before is None or (before.remote, before.local) != (now.remote, now.local):
        return Verdict.MOVING
    return Verdict.DRIFTED
