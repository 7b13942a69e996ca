"""Which writes must wait for each other, and the waiting.

Promises: two writes that may touch the same point never run at once, and they run in the order in which they asked;
writes to different points do. So the order at Qdrant, in the log and in the replica is the same for every point.
Whole-collection writes (by filter, create, delete, index) wait for all writes of the collection; alias changes wait
for all writes. Does not promise anything about writers that bypass this proxy.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

from google.protobuf.message import Message

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import Method, Scope

PointKey: TypeAlias = int | str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a write may touch. `points` None = the whole collection; `collection` None = everything."""

    collection: str | None
    points: frozenset[PointKey] | None = None


EVERYTHING = Claim(None)


def claim_of(row: Method, request: Message) -> Claim:
    """PURE. The claim of one parsed write request."""
    if row.scope is Scope.ALIASES:
        return EVERYTHING
    name: str = request.collection_name  # type: ignore[attr-defined]
    if row.scope is Scope.COLLECTION:
        return Claim(name)
    return Claim(name, _points_of(request))


def _points_of(request: Any) -> frozenset[PointKey] | None:
    """Points that a request names; None when it may touch others."""
    if isinstance(request, points_pb2.UpdateBatchPoints):
        return _points_of_batch(request)
    if isinstance(request, points_pb2.UpsertPoints | points_pb2.UpdatePointVectors):
        return frozenset(point_key(point.id) for point in request.points)
    if isinstance(request, points_pb2.DeletePoints | points_pb2.ClearPayloadPoints):
        return _points_of_selector(request.points)
    return _points_of_selector(request.points_selector)


def _points_of_batch(request: points_pb2.UpdateBatchPoints) -> frozenset[PointKey] | None:
    named: set[PointKey] = set()
    for update in request.operations:
        kind = update.WhichOneof("operation")
        if kind is None:
            continue
        operation = getattr(update, kind)
        if kind in ("upsert", "update_vectors"):
            named.update(point_key(point.id) for point in operation.points)
            continue
        selector = getattr(operation, "points_selector", None)
        if selector is None:
            selector = getattr(operation, "points", None)
        ids = _points_of_selector(selector) if isinstance(selector, points_pb2.PointsSelector) else None
        if ids is None:
            return None
        named |= ids
    return frozenset(named)


def _points_of_selector(selector: points_pb2.PointsSelector) -> frozenset[PointKey] | None:
    if selector.WhichOneof("points_selector_one_of") != "points":
        return None
    return frozenset(point_key(point_id) for point_id in selector.points.ids)


def point_key(point_id: common.PointId) -> PointKey:
    """PURE. One value per point, however its UUID is written."""
    if point_id.WhichOneof("point_id_options") != "uuid":
        return point_id.num
    try:
        return str(uuid.UUID(point_id.uuid))
    except ValueError:
        return point_id.uuid


@dataclass(slots=True)
class _Collection:
    """Who holds or waits in one collection: the last asker per point, and the last whole-collection asker."""

    tails: dict[PointKey, asyncio.Future[None]] = field(default_factory=dict)
    barrier: asyncio.Future[None] | None = None
    present: set[asyncio.Future[None]] = field(default_factory=set)


class Conflicts:
    """The queue in front of all writes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._collections: dict[str, _Collection] = {}
        self._present: set[asyncio.Future[None]] = set()
        self._barrier: asyncio.Future[None] | None = None
        self._aliases: dict[str, str] = {}

    def know_aliases(self, aliases: dict[str, str]) -> None:
        """Replace the map alias → collection; an alias and its collection are one place."""
        self._aliases = dict(aliases)

    def collection_of(self, name: str) -> str:
        """The collection that a name stands for, be it an alias or the collection itself."""
        return self._aliases.get(name, name)

    def behind(self, name: str) -> str:
        """The collection behind an alias, "" when the name is none."""
        return self._aliases.get(name, "")

    def note(self, row: Method, request: Message) -> None:
        """Learn from an applied write which names are aliases now."""
        if isinstance(request, collections_pb2.DeleteCollection):
            gone = request.collection_name
            self._aliases = {alias: name for alias, name in self._aliases.items() if name != gone}
        if row.scope is not Scope.ALIASES:
            return
        for action in request.actions:  # type: ignore[attr-defined]
            kind = action.WhichOneof("action")
            if kind == "create_alias":
                self._aliases[action.create_alias.alias_name] = action.create_alias.collection_name
            elif kind == "rename_alias":
                target = self._aliases.pop(action.rename_alias.old_alias_name, None)
                if target is not None:
                    self._aliases[action.rename_alias.new_alias_name] = target
            elif kind == "delete_alias":
                self._aliases.pop(action.delete_alias.alias_name, None)

    def hold(self, claim: Claim) -> Hold:
        """`async with conflicts.hold(claim):` waits for earlier conflicting writes, then keeps later ones waiting."""
        return Hold(self, claim)

    def enter(self, claim: Claim) -> tuple[asyncio.Future[None], list[asyncio.Future[None]]]:
        """Take a place in the queue. Returns the place and the places that must end first."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if claim.collection is None:
            before = list(self._present)
            self._barrier = place
        else:
            before = self._enter_collection(claim, place)
            if self._barrier is not None:
                before.append(self._barrier)
        self._present.add(place)
        return place, before

    def _enter_collection(self, claim: Claim, place: asyncio.Future[None]) -> list[asyncio.Future[None]]:
        name = self.collection_of(claim.collection or "")
        entry = self._collections.setdefault(name, _Collection())
        if claim.points is None:
            before = list(entry.present)
            entry.barrier = place
        else:
            before = [tail for key in claim.points if (tail := entry.tails.get(key)) is not None]
            if entry.barrier is not None:
                before.append(entry.barrier)
            for key in claim.points:
                entry.tails[key] = place
        entry.present.add(place)
        place.add_done_callback(lambda _: self._left(name, entry, claim, place))
        return before

    def _left(self, name: str, entry: _Collection, claim: Claim, place: asyncio.Future[None]) -> None:
        entry.present.discard(place)
        if entry.barrier is place:
            entry.barrier = None
        for key in claim.points or ():
            if entry.tails.get(key) is place:
                del entry.tails[key]
        if not entry.present and self._collections.get(name) is entry:
            del self._collections[name]

    def leave(self, place: asyncio.Future[None]) -> None:
        """Let the next one in."""
        self._present.discard(place)
        if self._barrier is place:
            self._barrier = None
        if not place.done():
            place.set_result(None)


class Hold:
    """One stay in the queue."""

    __slots__ = ("_claim", "_conflicts", "_place")

    def __init__(self, conflicts: Conflicts, claim: Claim) -> None:
        self._conflicts = conflicts
        self._claim = claim
        self._place: asyncio.Future[None] | None = None

    async def __aenter__(self) -> None:
        """Wait for the turn."""
        place, before = self._conflicts.enter(self._claim)
        self._place = place
        try:
            await _all_done(before)
        except asyncio.CancelledError:
            # Those behind wait for this place only: it may end no sooner than the places before it.
            _leave_after(self._conflicts, place, before)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the next one in."""
        if self._place is not None:
            self._conflicts.leave(self._place)


async def _all_done(places: Iterable[asyncio.Future[None]]) -> None:
    for place in places:
        if not place.done():
            await asyncio.shield(place)


def _leave_after(conflicts: Conflicts, place: asyncio.Future[None], before: list[asyncio.Future[None]]) -> None:
    remaining = {earlier for earlier in before if not earlier.done()}
    if not remaining:
        conflicts.leave(place)
        return

    def one_done(earlier: asyncio.Future[None]) -> None:
        remaining.discard(earlier)
        if not remaining:
            conflicts.leave(place)

    for earlier in list(remaining):
        earlier.add_done_callback(one_done)
