"""PURE. Which log entry last touched a point, a collection or the catalogue.

Promises: what an entry later than `since_seq` touched is known, for every `since_seq` from `floor_seq` on. Lives in
memory: a restart raises the floor to the last applied entry, and so does forgetting past `limit_keys` points.
"""

from __future__ import annotations

from collections.abc import Iterable

from server.replica.points import Key


class Touched:
    """Remembers the last entry of each point and collection. Not thread-safe: it belongs to the one writer."""

    def __init__(self, floor_seq: int, *, limit_keys: int = 2_000_000) -> None:
        self._limit = limit_keys
        self.restart(floor_seq)

    def restart(self, floor_seq: int) -> None:
        """Begin again: the cursor was set to `floor_seq`, numbers from before mean nothing any more."""
        self.floor_seq = floor_seq
        self._points: dict[tuple[int, Key], int] = {}
        self._collections: dict[int, int] = {}
        self._names: dict[str, int] = {}

    def points(self, cid: int, keys: Iterable[Key], seq: int) -> None:
        """Entry `seq` put or removed these points."""
        for key in keys:
            self._points[cid, key] = seq
        if len(self._points) > self._limit:
            self._forget()

    def collection(self, cid: int, seq: int) -> None:
        """Entry `seq` may have changed any point of the collection."""
        self._collections[cid] = seq

    def name(self, name: str, seq: int) -> None:
        """Entry `seq` created, changed or deleted the collection or alias of this name."""
        self._names[name] = seq

    def knows(self, since_seq: int) -> bool:
        """Whether everything after `since_seq` is remembered."""
        return since_seq >= self.floor_seq

    def is_point_later(self, cid: int, key: Key, since_seq: int) -> bool:
        """Whether an entry after `since_seq` may have changed the point."""
        return self._points.get((cid, key), 0) > since_seq or self._collections.get(cid, 0) > since_seq

    def is_name_later(self, name: str, since_seq: int) -> bool:
        """Whether an entry after `since_seq` changed the collection or alias itself."""
        return self._names.get(name, 0) > since_seq

    def _forget(self) -> None:
        # The older half goes; whoever asks about times before that must fetch again.
        middle = sorted(self._points.values())[len(self._points) // 2]
        self._points = {entry: seq for entry, seq in self._points.items() if seq > middle}
        self.floor_seq = max(self.floor_seq, middle)
