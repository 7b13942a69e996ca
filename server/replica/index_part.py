"""PURE. What the index of one space has seen, and what it has not.

Promises: `fresh` names every point that may differ between the index and a snapshot of the store, or says it cannot.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from server.replica.records import Key
from server.replica.spaces import Floats, Space

# Above this many changed points the index is behind and exact search is as fast.
FRESH_MOST = 10_000
_RECENT_POINTS = 4096


class State(Enum):
    """Of the index of one space."""

    BUILDING = "building"
    CHECKING = "checking"
    READY = "ready"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Proposal:
    """Likely nearest points, best first, how far the index takes them to be, and the points it may have out of date."""

    candidates: list[Key]
    distances: Floats
    fresh: set[Key]


@dataclass
class Part:
    """The index of one space, and what it has not seen yet. Guarded by the lock of the Index."""

    cid: int
    space: Space
    name: str
    state: State = State.BUILDING
    position: Key = b""
    is_reading: bool = False
    points: int = 0
    stale: int = 0
    recall: float = 0.0
    shortest: float = float("inf")
    longest: float = 0.0
    # Revision, and a number of its own for each note: the one before a commit and the one after it are two.
    pending: dict[Key, tuple[int, int]] = field(default_factory=dict)
    notes: int = 0
    recent: deque[tuple[int, Key]] = field(default_factory=deque)
    recent_floor: int = 0

    def note(self, revision: int, keys: frozenset[Key]) -> None:
        """Points changed. Those that a build will still come to need no note."""
        if self.state is State.OFF:
            return
        for key in keys:
            if self.state is not State.BUILDING or self.is_reading or key <= self.position:
                self.notes += 1
                self.pending[key] = (revision, self.notes)

    def fresh(self, revision: int) -> set[Key] | None:
        """Points that may differ between the index and a snapshot at `revision`; None when that is not known."""
        if self.recent_floor > revision or len(self.pending) > FRESH_MOST:
            return None
        # A point noted before its commit may have been read too early; the note after the commit is still to come.
        return {*self.pending, *(key for applied, key in self.recent if applied >= revision)}

    def applied(self, changes: dict[Key, tuple[int, int]]) -> None:
        """The index has seen these points as they were when the notes were taken, or later."""
        for key, note in changes.items():
            if self.pending.get(key) == note:
                del self.pending[key]
            self.recent.append((note[0], key))
        while len(self.recent) > _RECENT_POINTS:
            self.recent_floor = max(self.recent_floor, self.recent.popleft()[0])
