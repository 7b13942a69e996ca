"""PURE. Which points Qdrant lacks an entry for although the log is past it: what is in quarantine, by entry.

Promises: exact for operations that name their points; of any other, everything that the entry touched counts, and where
it is one of several in its entry, Qdrant may have done the others: that is said.
"""

from __future__ import annotations

from collections.abc import Iterable

from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replay.bisect import Key, key_of, keys_of, names_only_points
from server.replay.contested import id_of
from server.replay.parcel import Parcel
from server.rpc import UPDATE_BATCH


class Withheld:
    """What is in quarantine, for questions about points."""

    def __init__(self) -> None:
        # None: all points of the entry.
        self._points: dict[int, set[Key] | None] = {}
        self._in_part: set[int] = set()

    def note(self, parcel: Parcel) -> None:
        """An entry as it is in quarantine."""
        names_all = bool(parcel.operations) and all(map(names_only_points, parcel.operations))
        keys = {key for operation in parcel.operations for key in keys_of(operation)}
        self._points[parcel.seq] = keys if names_all else None
        if not names_all and (parcel.method == UPDATE_BATCH or len(parcel.operations) > 1):
            self._in_part.add(parcel.seq)

    def entries(self) -> list[control.RefusedEntry]:
        """All of it."""
        return [
            self._entry(seq, [id_of(key).SerializeToString() for key in keys or ()])
            for seq, keys in self._points.items()
        ]

    def among(self, ids: Iterable[bytes], since_seq: int) -> list[control.RefusedEntry]:
        """Entries after `since_seq` that Qdrant lacks for some of these points (serialized ids)."""
        asked = {key_of(common.PointId.FromString(body)): body for body in ids}
        found = []
        for seq, keys in self._points.items():
            if seq <= since_seq:
                continue
            if keys is None:
                found.append(self._entry(seq, []))
            elif shared := asked.keys() & keys:
                found.append(self._entry(seq, [asked[key] for key in shared]))
        return found

    def _entry(self, seq: int, ids: list[bytes]) -> control.RefusedEntry:
        return control.RefusedEntry(seq=seq, ids=ids, in_part=seq in self._in_part)
