"""PURE. Which later writes depend on one that was refused.

Promises: what follows a quarantined point or collection is found by what its entry says, so the answer is the same when
it is worked out again from the quarantine after a restart. A write that names no points (a filter) follows only when
its collection does; a write to a collection as a whole does not follow single points. A write by an alias is one to the
collection that the alias stood for when it was logged, and follows what is refused of the alias, too. Where an entry
does not say what its name stood for, the name counts. An entry follows neither itself nor what came after it: after a
crash such entries may be in quarantine before their turn.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.replay.bisect import Key, Operation, keys_of, names_of, only, place_of, places_of, without


@dataclass(frozen=True, slots=True)
class Split:
    """An operation, taken apart: what may go to Qdrant, what follows a refused entry, and the first such entry."""

    free: Operation | None
    follows: Operation | None
    after_seq: int


class Causality:
    """The quarantined points and collections, each with the sequence number of the entry that was refused."""

    def __init__(self) -> None:
        self._collections: dict[str, int] = {}
        self._points: dict[str, dict[Key, int]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing can follow."""
        return not self._collections and not self._points

    def refuse(self, operation: Operation, seq: int, *, whole_collection: bool) -> None:
        """Note a refused operation: from here on what names the same points, or the same collection, follows it."""
        if whole_collection:
            for name in names_of(operation):
                self._collections.setdefault(name, seq)
            return
        keys = keys_of(operation)
        if keys:
            points = self._points.setdefault(place_of(operation), {})
            for key in keys:
                points.setdefault(key, seq)

    def split(self, operation: Operation, seq: int = 0) -> Split:
        """What of an operation may go and what must follow, as a part of entry `seq`; 0 = as what comes last."""
        names = places_of(operation)
        whole = [self._collections[name] for name in names if name in self._collections]
        counts = [refused for refused in whole if not seq or refused < seq]
        if counts:
            return Split(None, operation, min(counts))
        held = [self._points[name] for name in names if name in self._points]
        touched: dict[Key, int] = {}
        for key in keys_of(operation) if held else ():
            before = [points[key] for points in held if key in points and (not seq or points[key] < seq)]
            if before:
                touched[key] = min(before)
        if not touched:
            return Split(operation, None, 0)
        return Split(without(operation, touched), only(operation, touched), min(touched.values()))
