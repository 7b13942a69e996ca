"""PURE. Which entries of the quarantine go back to the log together, and what stands in the way.

Promises: an entry takes along what is in quarantine behind it for the same points or the same collection, so that the
order among them stays. What later entries of the log wrote there, and would be overwritten by the older write, is named
and never passed over. A repetition that a crash left unfinished is known by `Entry.retry_of`: while its origin is in
quarantine the origin counts, and the repetition is void.

What of the log (rows) is overwritten by a retried entry (columns):

                      points    filter    vector    create    schema    drop    aliases
    points            if named  yes       yes       -         -         yes     yes
    filter            yes       yes       yes       -         -         yes     yes
    vector deleted    yes       yes       yes       -         yes       yes     yes
    create            -         -         -         -         -         yes     yes
    schema            -         -         yes       -         yes       yes     yes
    drop              yes       yes       yes       yes       yes       yes     yes
    aliases           yes       yes       yes       yes       yes       yes     yes
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from generated.qdrant import points_pb2
from generated.understudy.wal.v1 import entry_pb2
from server.errors import WalError
from server.replay.bisect import Key, Operation, keys_of, names_only_points, places_of
from server.replay.causality import Causality
from server.replay.judge import ALIASES, CREATE, DELETE
from server.replay.parcel import Parcel, unpack
from server.rpc import COLLECTIONS, Code
from server.wal.record import EntryState, NewRecord, Record

NAMED_MAX = 5


class Reach(Enum):
    """What an operation may change."""

    POINTS = "points"
    FILTER = "filter"
    VECTOR_DELETED = "vector deleted"
    CREATE = "create"
    SCHEMA = "schema"
    DROP = "drop"
    ALIASES = "aliases"


_DATA = frozenset((Reach.POINTS, Reach.FILTER, Reach.VECTOR_DELETED))
_SCHEMA = frozenset((Reach.SCHEMA, Reach.VECTOR_DELETED))
_EVERYTHING = frozenset((Reach.DROP, Reach.ALIASES))


def meets(one: Reach, other: Reach) -> bool:
    """Whether two operations on one collection may change the same thing; points are then compared by name."""
    if one in _EVERYTHING or other in _EVERYTHING:
        return True
    return (one in _DATA and other in _DATA) or (one in _SCHEMA and other in _SCHEMA)


@dataclass(frozen=True, slots=True)
class Touched:
    """What one operation may change, and where."""

    reach: Reach
    names: frozenset[str]
    keys: frozenset[Key] = frozenset()

    def meets(self, other: Touched) -> bool:
        """Whether both may change the same thing."""
        if not self.names & other.names or not meets(self.reach, other.reach):
            return False
        return self.reach is not Reach.POINTS or other.reach is not Reach.POINTS or bool(self.keys & other.keys)


def touched_by(operation: Operation, collection_of: Callable[[str], str]) -> Touched:
    """The reach of one operation; `collection_of` turns an alias into the collection that it stands for."""
    names = places_of(operation)
    reach = _reach_of(operation)
    return Touched(
        reach,
        frozenset(names | {collection_of(name) for name in names}),
        frozenset(keys_of(operation)) if reach is Reach.POINTS else frozenset(),
    )


def _reach_of(operation: Operation) -> Reach:
    known = {CREATE: Reach.CREATE, DELETE: Reach.DROP, ALIASES: Reach.ALIASES}.get(operation.method)
    if known is not None:
        return known
    request = operation.request
    if isinstance(request, points_pb2.DeleteVectorNameRequest):
        return Reach.VECTOR_DELETED
    schema = (
        points_pb2.CreateFieldIndexCollection,
        points_pb2.DeleteFieldIndexCollection,
        points_pb2.CreateVectorNameRequest,
    )
    if operation.method.startswith(COLLECTIONS) or isinstance(request, schema):
        return Reach.SCHEMA
    return Reach.POINTS if names_only_points(operation) else Reach.FILTER


@dataclass(frozen=True, slots=True)
class Held:
    """An entry in quarantine, unpacked, with Qdrant's answer to it."""

    parcel: Parcel
    code: int
    details: str

    @property
    def seq(self) -> int:
        """Its sequence number."""
        return self.parcel.seq


@dataclass(slots=True)
class Plan:
    """What a retry does: `repeat` goes to the tail of the log, then leaves the quarantine, last one first.

    `ahead` are entries in quarantine that `repeat` would have to wait for, `there` all that can be read.
    """

    repeat: list[Held]
    ahead: list[int]
    there: frozenset[int]

    @property
    def seqs(self) -> list[int]:
        """What goes back, in order."""
        return [held.seq for held in self.repeat]

    @property
    def first_seq(self) -> int:
        """Entries after this one may be overwritten."""
        return self.repeat[0].seq


def plan(walk: Callable[[], Iterable[Held]], wanted: Iterable[int] | None) -> Plan:
    """What goes back when `wanted` (None = all) is retried. Raises WalError for what cannot be.

    Each `walk` shows the quarantine from the oldest entry on; what stays there is not held.
    """
    asked = None if wanted is None else set(wanted)
    causality, chosen, there = Causality(), [], set[int]()
    for each in walk():
        there.add(each.seq)
        if asked is None or each.seq in asked or any(causality.split(one).follows for one in each.parcel.operations):
            if each.parcel.problem:
                raise WalError(
                    f"entry {each.seq} cannot be retried: {each.parcel.problem}",
                    hint="`understudy wal quarantine export` keeps it; then drop it",
                )
            each.parcel.taint(causality, Code(each.code), each.details)
            chosen.append(each)
    missing = sorted((asked or set()) - there)
    if missing:
        raise WalError(
            f"entry {missing[0]} cannot be retried: it is not in quarantine, or its file is damaged",
            hint="`understudy wal quarantine list` shows what is there",
        )
    stays = len(chosen) < len(there)
    return Plan(chosen, _ahead_of(chosen, walk()) if stays else [], frozenset(there))


def _ahead_of(chosen: list[Held], there: Iterable[Held]) -> list[int]:
    """What stays in quarantine and would hold the chosen ones back again."""
    seqs = {each.seq for each in chosen}
    found = []
    for each in there:
        if each.seq not in seqs:
            causality = Causality()
            each.parcel.taint(causality, Code(each.code), each.details)
            if any(causality.split(one).follows for other in chosen for one in other.parcel.operations):
                found.append(each.seq)
    return found


class Overwritten:
    """Later entries of the log that a retry would overwrite. Give it every entry after `plan.first_seq`, in order.

    `held_of` reads what is in quarantine under a number, if anything is.
    """

    def __init__(
        self,
        planned: Plan,
        held_of: Callable[[int], Held | None],
        kinds: Mapping[int, str],
        collection_of: Callable[[str], str],
    ) -> None:
        self._kinds = kinds
        self._collection_of = collection_of
        self._repeat = [
            (each.seq, [touched_by(one, collection_of) for one in each.parcel.operations]) for each in planned.repeat
        ]
        self._going = set(planned.seqs)
        self._there = planned.there
        self._held_of = held_of
        self._found: dict[int, _Later] = {}

    @property
    def seqs(self) -> list[int]:
        """Their numbers."""
        return list(self._found)

    def look_at(self, records: Iterable[Record]) -> None:
        """Note the entries that are overwritten."""
        for record in records:
            self._look(record)

    def _look(self, record: Record) -> None:
        parcel = unpack(record, self._kinds)
        origin = parcel.entry.retry_of
        if origin in self._going:
            return
        if origin in self._found:
            self._repeated(self._found[origin], parcel)
        held = self._held_of(record.seq) if record.seq in self._there else None
        if held is not None and held.parcel.record.body == record.body:
            return
        later = _Later(record.seq, _digest(parcel), [touched_by(one, self._collection_of) for one in parcel.operations])
        if held is not None:
            # Qdrant has only what is not in quarantine.
            later.without(_keys(held.parcel))
        self._note(later)

    def _repeated(self, earlier: _Later, repetition: Parcel) -> None:
        """What went back from the quarantine was not at Qdrant before; the repetition is judged by itself."""
        del self._found[earlier.seq]
        if earlier.digest != _digest(repetition):
            earlier.without(_keys(repetition))
            self._note(earlier)

    def _note(self, later: _Later) -> None:
        for seq, before in self._repeat:
            if seq < later.seq and any(one.meets(other) for one in before for other in later.touched):
                self._found[later.seq] = later
                return


@dataclass(slots=True)
class _Later:
    """An entry that may be at Qdrant, and what it touched there."""

    seq: int
    digest: bytes
    touched: list[Touched]

    def without(self, keys: set[Key]) -> None:
        """These points were not touched."""
        self.touched = [replace(one, keys=one.keys - keys) for one in self.touched]


def _keys(parcel: Parcel) -> set[Key]:
    return {key for operation in parcel.operations for key in keys_of(operation)}


def _digest(parcel: Parcel) -> bytes:
    """Equal for an entry and its repetition."""
    entry = entry_pb2.Entry()
    entry.CopyFrom(parcel.entry)
    entry.ClearField("retry_of")
    return hashlib.sha256(entry.SerializeToString(deterministic=True)).digest()


def repetition(held: Held, entry_bytes: int, collection_of: Callable[[str], str]) -> NewRecord:
    """The entry as it goes back to the log: its name is for what it stands for now. It says what it repeats if it still
    fits then.
    """
    record = held.parcel.record
    entry = entry_pb2.Entry()
    entry.CopyFrom(held.parcel.entry)
    real = collection_of(entry.collection)
    entry.real_collection = real if real != entry.collection else ""
    entry.retry_of = held.seq
    if entry.ByteSize() > entry_bytes:
        entry.ClearField("retry_of")
    return NewRecord(
        record.kind, EntryState.PENDING, entry.SerializeToString(), record.principal, record.trace, record.points
    )


def named(seqs: list[int]) -> str:
    """Some sequence numbers in a sentence."""
    text = ", ".join(map(str, seqs[:NAMED_MAX]))
    return f"{text} and {len(seqs) - NAMED_MAX} more" if len(seqs) > NAMED_MAX else text
