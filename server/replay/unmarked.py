"""PURE. Entries that Qdrant has and that the cursor has not passed yet: which may be sent next without moving it.

Promises: after a crash all of them and those that followed are sent again, in order; whatever is let in here makes
that change nothing. Blind ones may be repeated after each other. A repeatable one (a payload, vectors of points by id)
may be repeated as long as no other of them touches its points. Names of collections do not count: an alias is another
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from server.replay.bisect import Key, is_repeatable, keys_of
from server.replay.parcel import Parcel


class Unmarked:
    """What the next record of the cursor will pass."""

    def __init__(self) -> None:
        self.count = 0
        self.last_seq = 0
        self._blind: list[Parcel] = []
        self._blind_keys: set[Key] = set()
        self._repeatable_keys: set[Key] = set()

    def add(self, parcels: Sequence[Parcel]) -> None:
        """Entries that are dealt with."""
        self.count += len(parcels)
        self.last_seq = parcels[-1].seq
        for parcel in parcels:
            if parcel.is_blind:
                # Their points are only asked for when something else comes.
                self._blind.append(parcel)
            elif shares_a_record(parcel):
                self._repeatable_keys |= _keys([parcel])

    def clear(self) -> None:
        """The cursor has passed them."""
        self.count = 0
        self._blind.clear()
        self._blind_keys.clear()
        self._repeatable_keys.clear()

    def bars(self, parcels: Sequence[Parcel]) -> bool:
        """Whether the cursor must pass them before these are sent."""
        if not self.count:
            return False
        if self._repeatable_keys and not self._repeatable_keys.isdisjoint(_keys(parcels)):
            return True
        if all(parcel.is_blind for parcel in parcels):
            return False
        if not all(map(shares_a_record, parcels)):
            return True
        self._blind_keys |= _keys(self._blind)
        self._blind.clear()
        return not self._blind_keys.isdisjoint(_keys(parcels))


def shares_a_record(parcel: Parcel) -> bool:
    """Whether an entry may wait for a record of the cursor with others."""
    return parcel.is_blind or (len(parcel.operations) == 1 and is_repeatable(parcel.operations[0]))


def _keys(parcels: Iterable[Parcel]) -> set[Key]:
    return {key for parcel in parcels for operation in parcel.operations for key in keys_of(operation)}
