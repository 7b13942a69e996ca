"""PURE. Points that others changed while Qdrant was away, and what is left of the entries that touch them.

Promises: what names no points (a filter, a collection operation) stands in the way of looking further: what it does
shows only when Qdrant has done it. What is taken out of an entry is given back, operation by operation.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replay.bisect import Key, Operation, keys_of, names_of, names_only_points, only, place_of, without
from server.replay.causality import Causality
from server.replay.parcel import Parcel
from server.rpc import METHODS, Scope


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of pending writes to a point: `kind`, from entry `seq` on, up to `until_seq` when left out."""

    kind: control.Fate
    seq: int = 0
    until_seq: int = 0

    def keeps_out(self, seq: int) -> bool:
        """Whether entry `seq` is not to change the point, for Qdrant's is the right one."""
        return self.kind in (control.FATE_REMOTE, control.FATE_MOOT) and seq <= self.until_seq

    def holds(self, seq: int) -> bool:
        """Whether entry `seq` is the one that goes to the quarantine; those behind it follow as its followers."""
        return self.kind == control.FATE_HELD and seq == self.seq


UNCONTESTED = Fate(control.FATE_LOCAL)

Fates: TypeAlias = Mapping[tuple[str, Key], Fate]


@dataclass(frozen=True, slots=True)
class Contest:
    """What of an entry others changed: the points, and for each the operations on it. `moot`: gone on both sides."""

    parcel: Parcel
    lost: dict[Key, tuple[Operation, ...]]
    held: frozenset[Key]
    moot: frozenset[Key]


def stretch_of(page: Iterable[Parcel], limit_points: int) -> list[Parcel]:
    """The entries from the front that can be looked at together: no more points, but the first one at least."""
    stretch: list[Parcel] = []
    points = 0
    for parcel in page:
        if parcel.is_examined:
            break
        points += sum(len(keys_of(operation)) for operation in parcel.operations)
        if stretch and points > limit_points:
            break
        stretch.append(parcel)
        if points >= limit_points or not is_by_points(parcel):
            break
    return stretch


def is_by_points(parcel: Parcel) -> bool:
    """Whether an entry says by name which points it changes, all of them."""
    return all(
        METHODS[operation.method].scope is Scope.POINTS and names_only_points(operation)
        for operation in parcel.operations
    )


@dataclass(frozen=True, slots=True)
class Site:
    """A collection, and the name that Qdrant is asked by: an alias may stand for another collection there by now."""

    collection: str
    name: str


def touches_of(parcels: Iterable[Parcel], causality: Causality | None) -> dict[Site, dict[Key, int]]:
    """The points that entries change, each with the first to do so, by where and by what name that one wrote; no
    followers of refused ones.
    """
    touches: dict[Site, dict[Key, int]] = {}
    seen: set[tuple[str, Key]] = set()
    for parcel in parcels:
        if parcel.problem or not is_by_points(parcel):
            continue
        for operation in parcel.operations:
            free = causality.split(operation, parcel.seq).free if causality is not None else operation
            if free is not None:
                (name,) = names_of(free)
                site = Site(place_of(free), name)
                for key in keys_of(free):
                    if (site.collection, key) not in seen:
                        seen.add((site.collection, key))
                        touches.setdefault(site, {})[key] = parcel.seq
    return touches


def id_of(key: Key) -> common.PointId:
    """The id of a point."""
    return common.PointId(num=key) if isinstance(key, int) else common.PointId(uuid=key)


def contest(parcel: Parcel, fates: Fates) -> Contest:
    """What of an entry is not to be sent."""
    lost: set[Key] = set()
    held: set[Key] = set()
    moot: set[Key] = set()
    if not parcel.problem and is_by_points(parcel):
        for operation in parcel.operations:
            collection = place_of(operation)
            for key in keys_of(operation):
                fate = fates.get((collection, key), UNCONTESTED)
                if fate.keeps_out(parcel.seq):
                    (moot if fate.kind == control.FATE_MOOT else lost).add(key)
                elif fate.holds(parcel.seq):
                    held.add(key)
    return Contest(parcel, dict(_by_point(parcel.operations, sorted(lost, key=str))), frozenset(held), frozenset(moot))


def narrowed(found: Contest, reason: str) -> Parcel:
    """The entry as it may be sent: without the points that are lost, those that are held apart."""
    parcel = found.parcel
    if not found.lost and not found.held and not found.moot:
        return replace(parcel, is_examined=True)
    out = found.lost.keys() | found.held | found.moot
    return replace(
        parcel,
        operations=_remaining(parcel.operations, out),
        is_examined=True,
        is_narrowed=bool(found.lost or found.moot),
        held=_picked(parcel.operations, found.held),
        reason=reason,
    )


def _by_point(operations: tuple[Operation, ...], keys: Sequence[Key]) -> Iterator[tuple[Key, tuple[Operation, ...]]]:
    """What is done to each point; by halves, since a part costs as much as what it is taken from."""
    if len(keys) <= 1:
        yield from ((key, _picked(operations, {key})) for key in keys)
        return
    middle = len(keys) // 2
    for half in (keys[:middle], keys[middle:]):
        yield from _by_point(_picked(operations, set(half)), half)


def _picked(operations: Sequence[Operation], keys: Container[Key]) -> tuple[Operation, ...]:
    picked = (only(operation, keys) for operation in operations)
    return tuple(each for each in picked if each is not None)


def _remaining(operations: Sequence[Operation], keys: Container[Key]) -> tuple[Operation, ...]:
    remaining = (without(operation, keys) for operation in operations)
    return tuple(each for each in remaining if each is not None)
