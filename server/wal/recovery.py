"""PURE. What to do about a flaw: a table.

Promises: every pair of place and flaw has exactly one row; only unreadable bytes at the end of the last segment, which
nobody can show to have been durable, are cut. Everything else stops the open and changes nothing.

Legend of places
    COLD      a segment before the last: it was synced whole before its successor was made
    PROVEN    the last segment, below a point that was durable: the head says so, or a later intact frame does
    UNPROVEN  the last segment, beyond every such point: a crash may have torn it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from server.wal.record import FRAME_MAGIC, Flaw, SegmentCodec


class Place(Enum):
    """Where a flaw is."""

    COLD = "in a closed segment"
    PROVEN = "in a part of the last segment that was durable"
    UNPROVEN = "at the end of the last segment"


class Verdict(Enum):
    """What open does."""

    CUT = "copy the bytes aside, cut them off, go on"
    REFUSE = "change nothing, refuse to open"


TABLE: Mapping[tuple[Place, Flaw], Verdict] = {
    (Place.COLD, Flaw.SHORT): Verdict.REFUSE,
    (Place.COLD, Flaw.GARBLED): Verdict.REFUSE,
    (Place.COLD, Flaw.FORGED): Verdict.REFUSE,
    (Place.COLD, Flaw.UNKNOWN_VERSION): Verdict.REFUSE,
    (Place.COLD, Flaw.ILLEGAL): Verdict.REFUSE,
    (Place.PROVEN, Flaw.SHORT): Verdict.REFUSE,
    (Place.PROVEN, Flaw.GARBLED): Verdict.REFUSE,
    (Place.PROVEN, Flaw.FORGED): Verdict.REFUSE,
    (Place.PROVEN, Flaw.UNKNOWN_VERSION): Verdict.REFUSE,
    (Place.PROVEN, Flaw.ILLEGAL): Verdict.REFUSE,
    # A crash leaves a file too short, or old or missing sectors inside a frame: the checksum shows both.
    (Place.UNPROVEN, Flaw.SHORT): Verdict.CUT,
    (Place.UNPROVEN, Flaw.GARBLED): Verdict.CUT,
    # Right checksum, wrong signature: written whole, by somebody else.
    (Place.UNPROVEN, Flaw.FORGED): Verdict.REFUSE,
    (Place.UNPROVEN, Flaw.UNKNOWN_VERSION): Verdict.REFUSE,
    (Place.UNPROVEN, Flaw.ILLEGAL): Verdict.REFUSE,
}


def place_of(*, is_last: bool, offset: int, proven_offset: int) -> Place:
    """The place of a flaw at `offset` when everything below `proven_offset` was durable."""
    if not is_last:
        return Place.COLD
    return Place.PROVEN if offset < proven_offset else Place.UNPROVEN


def proof_after(codec: SegmentCodec, data: bytes, at: int, base: int) -> int:
    """The furthest point that frames after `at` show to have been durable; 0 = none.

    `data` begins at offset `base` of the segment. A frame tells what was durable when it was made, so one intact frame
    beyond a flaw separates bit rot from a torn write.
    """
    furthest = 0
    found = data.find(FRAME_MAGIC, at + 1)
    while found >= 0:
        durable = codec.durable_before(data, found)
        if durable is not None and durable <= base + found:
            furthest = max(furthest, durable)
        found = data.find(FRAME_MAGIC, found + 1)
    return furthest


@dataclass(frozen=True, slots=True)
class Cut:
    """A torn tail that was cut: where, how much, and the file that keeps it."""

    file: str
    offset: int
    length: int
    copy: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """What open found and did."""

    created: bool = False
    clean: bool = True
    cuts: tuple[Cut, ...] = ()
    segments: int = 0
    entries_verified: int = 0
    leftovers_removed: tuple[str, ...] = ()
