"""Which writes must wait for each other, and the waiting.

Promises: two writes that may touch the same point never run at once, and they run in the order in which they asked;
writes to different points do. So the order at Qdrant, in the log and in the replica is the same for every point.
Whole-collection writes (by filter, create, delete) wait for all writes of the collection. A payload index, which may
take minutes to build, waits for those and for writes on a condition, not for those that just name their points. A
change of aliases waits for all writes by these aliases and to the collections that they will stand for, and keeps such
writes waiting; so what an alias stands for does not change under a write that has its turn. Whoever waits is lined up
again when it changes. Does not promise anything about writers that bypass this proxy. When somebody else moves an
alias, those that have their turn go on, at what they were sent to; nobody joins them there, nor where the alias points
now.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

from google.protobuf.message import Message

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server.replica.requests import is_conditional
from server.rpc import Method, Scope

PointKey: TypeAlias = int | str

_QUESTIONS_MOST = 5
# Stands for the payload indexes of a collection in the claims of what makes them and of what they may decide.
_INDEXES: PointKey = "indexes"
_ON_INDEXES = frozenset((_INDEXES,))


@dataclass(frozen=True, slots=True)
class Claim:
    """What a write may touch, by the names in it, aliases or collections: None = everything. `points` None = all.

    `followed`: those of the names at whose collection it is meant, when they are aliases. `considers`: what it depends
    on without touching it.
    """

    names: frozenset[str] | None
    points: frozenset[PointKey] | None = None
    followed: frozenset[str] = frozenset()
    considers: frozenset[PointKey] = frozenset()


EVERYTHING = Claim(None)


def claim_of(row: Method, request: Message) -> Claim:
    """PURE. The claim of one parsed write request."""
    if row.scope is Scope.ALIASES:
        return _claim_of_change(request)
    names = frozenset((request.collection_name,))  # type: ignore[attr-defined]
    if isinstance(request, points_pb2.CreateFieldIndexCollection | points_pb2.DeleteFieldIndexCollection):
        return Claim(names, _ON_INDEXES, followed=names)
    points = None if row.scope is Scope.COLLECTION else _points_of(request)
    # What meets a condition may depend on the payload indexes.
    considers = _ON_INDEXES if points is not None and _is_conditional(request) else frozenset()
    return Claim(names, points, followed=names, considers=considers)


def _claim_of_change(request: Any) -> Claim:
    """The aliases in it, and the collections that these will stand for.

    Whoever asks later, by alias or by collection, waits until it is known whether they meet. What an alias stood for
    before is not touched: writes by the alias are in line there by themselves.
    """
    names: set[str] = set()
    renamed: set[str] = set()
    for action in request.actions:
        kind = action.WhichOneof("action")
        if kind is not None:
            names.update(value for _, value in getattr(action, kind).ListFields())
        if kind == "rename_alias":
            renamed.add(action.rename_alias.old_alias_name)
    return Claim(frozenset(names), followed=frozenset(renamed))


def places_of(claim: Claim, aliases: Mapping[str, str]) -> frozenset[str]:
    """PURE. Where a write meets others: at the names in it, and at the collections that they stand for.

    At the names too: an alias may stand for something else by the time of the later one.
    """
    return (claim.names or frozenset()) | {aliases[name] for name in claim.followed if name in aliases}


def aliases_after(aliases: Mapping[str, str], request: Any) -> dict[str, str]:
    """PURE. Which names are aliases once a change of aliases, or the deletion of a collection, has been applied."""
    known = dict(aliases)
    if isinstance(request, collections_pb2.DeleteCollection):
        return {alias: name for alias, name in known.items() if name != request.collection_name}
    for action in request.actions:
        kind = action.WhichOneof("action")
        if kind == "create_alias":
            known[action.create_alias.alias_name] = action.create_alias.collection_name
        elif kind == "rename_alias":
            target = known.pop(action.rename_alias.old_alias_name, None)
            if target is not None:
                known[action.rename_alias.new_alias_name] = target
        elif kind == "delete_alias":
            known.pop(action.delete_alias.alias_name, None)
    return known


def _points_of(request: Any) -> frozenset[PointKey] | None:
    """Points that a request names; None when it may touch others."""
    if isinstance(request, points_pb2.UpdateBatchPoints):
        return _points_of_batch(request)
    if isinstance(request, points_pb2.UpsertPoints | points_pb2.UpdatePointVectors):
        return _points_in(request)
    if isinstance(request, points_pb2.DeletePoints | points_pb2.ClearPayloadPoints):
        return _points_of_selector(request.points)
    return _points_of_selector(request.points_selector)


def _points_of_batch(request: points_pb2.UpdateBatchPoints) -> frozenset[PointKey] | None:
    named: set[PointKey] = set()
    for kind, operation in _operations_of(request):
        if kind in ("upsert", "update_vectors"):
            named |= _points_in(operation)
            continue
        selector = getattr(operation, "points_selector", None)
        if selector is None:
            selector = getattr(operation, "points", None)
        ids = _points_of_selector(selector) if isinstance(selector, points_pb2.PointsSelector) else None
        if ids is None:
            return None
        named |= ids
    return frozenset(named)


def _points_in(request: Any) -> frozenset[PointKey]:
    """Those of an upsert or of new vectors."""
    return frozenset(point_key(point.id) for point in request.points)


def _operations_of(batch: points_pb2.UpdateBatchPoints) -> Iterator[tuple[str, Any]]:
    for update in batch.operations:
        kind = update.WhichOneof("operation")
        if kind is not None:
            yield kind, getattr(update, kind)


def _is_conditional(request: Message) -> bool:
    """Whether anything in it is done only to points that meet a condition."""
    if isinstance(request, points_pb2.UpdateBatchPoints):
        return any(is_conditional(operation) for _, operation in _operations_of(request))
    return is_conditional(request)


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


class _Stay:
    """One write, from when it asks until it leaves. Nothing is in front of one that has its turn."""

    __slots__ = ("behind", "claim", "has_turn", "is_given_up", "places", "turn", "waits_for")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.places: frozenset[str] = frozenset()
        self.has_turn = False
        # Nobody waits for its turn any more, but those behind it still count on those in front of it.
        self.is_given_up = False
        self.turn: asyncio.Future[None] | None = None
        self.waits_for = 0
        self.behind: list[_Stay] = []

    def wait_for(self, earlier: Iterable[_Stay]) -> None:
        """It has its turn when all these have left."""
        self.waits_for = 0
        for stay in earlier:
            stay.behind.append(self)
            self.waits_for += 1

    def begin(self) -> None:
        """It has its turn."""
        self.has_turn = True
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)


@dataclass(slots=True)
class _Line:
    """Who is at one place: the last asker per point and those after that one who only consider it, the last one for all
    points, and all who came after that one."""

    tails: dict[PointKey, _Stay] = field(default_factory=dict)
    onlookers: dict[PointKey, set[_Stay]] = field(default_factory=dict)
    barrier: _Stay | None = None
    since: set[_Stay] = field(default_factory=set)

    def join(self, stay: _Stay) -> set[_Stay]:
        """Get in line; returns those in front, without those whom these wait for anyway."""
        before = set() if self.barrier is None else {self.barrier}
        points = stay.claim.points
        if points is None:
            before |= self.since
            self.tails, self.onlookers, self.barrier, self.since = {}, {}, stay, set()
        else:
            considers = stay.claim.considers - points
            before.update(tail for key in points | considers if (tail := self.tails.get(key)) is not None)
            for key in points & self.onlookers.keys():
                before |= self.onlookers.pop(key)
            self.tails.update(dict.fromkeys(points, stay))
            for key in considers:
                self.onlookers.setdefault(key, set()).add(stay)
            self.since.add(stay)
        return before

    def part(self, stay: _Stay) -> bool:
        """Get out of line; returns whether nobody is left."""
        self.since.discard(stay)
        if self.barrier is stay:
            self.barrier = None
        for key in stay.claim.points or ():
            if self.tails.get(key) is stay:
                del self.tails[key]
        for key in stay.claim.considers & self.onlookers.keys():
            self.onlookers[key].discard(stay)
            if not self.onlookers[key]:
                del self.onlookers[key]
        return self.barrier is None and not self.since


class Conflicts:
    """The queue in front of all writes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        # In the order of asking, but for those that had their turn when it was made anew. Ordered: a plain dict takes
        # longer for its first key the more keys were removed before it.
        self._stays: OrderedDict[_Stay, None] = OrderedDict()
        self._barrier: _Stay | None = None
        self._aliases: dict[str, str] = {}
        self._noted = 0

    # --- aliases -----------------------------------------------------------------------------------------------------

    def know_aliases(self, aliases: Mapping[str, str]) -> None:
        """Replace the map alias → collection; an alias and its collection are one place."""
        if aliases != self._aliases:
            self._aliases = dict(aliases)
            self._line_up_again()

    async def learn_aliases(self, ask: Callable[[], Awaitable[Mapping[str, str] | None]]) -> None:
        """Know what `ask` answers; None = nothing. An answer is not taken when a change was noted meanwhile.

        After some such answers in a row the map stays as it was noted, until the next time.
        """
        for _ in range(_QUESTIONS_MOST):
            noted = self._noted
            aliases = await ask()
            if aliases is None:
                return
            if noted == self._noted:
                self.know_aliases(aliases)
                return

    def collection_of(self, name: str) -> str:
        """The collection that a name stands for, be it an alias or the collection itself."""
        return self._aliases.get(name, name)

    def behind(self, name: str) -> str:
        """The collection behind an alias, "" when the name is none."""
        return self._aliases.get(name, "")

    def note(self, row: Method, request: Message) -> None:
        """Learn from an applied write, while it has its turn, which names are aliases now."""
        if row.scope is Scope.ALIASES or isinstance(request, collections_pb2.DeleteCollection):
            self._noted += 1
            self.know_aliases(aliases_after(self._aliases, request))

    # --- the queue ---------------------------------------------------------------------------------------------------

    def hold(self, claim: Claim) -> Hold:
        """`async with conflicts.hold(claim):` waits for earlier conflicting writes, then keeps later ones waiting."""
        return Hold(self, claim)

    @property
    def is_empty(self) -> bool:
        """Whether nobody has or waits for a turn."""
        return not (self._stays or self._lines or self._barrier)

    def enter(self, claim: Claim) -> _Stay:
        """Get in line behind all who asked before."""
        stay = _Stay(claim)
        stay.wait_for(self._line_up(stay))
        if not stay.waits_for:
            stay.begin()
        return stay

    def give_up(self, stay: _Stay) -> None:
        """Nobody waits for this turn any more. Those behind are let in no sooner than they would have been."""
        if stay.has_turn:
            self.leave(stay)
        else:
            stay.is_given_up = True

    def leave(self, stay: _Stay) -> None:
        """Let the next ones in."""
        leaving = [stay]
        while leaving:
            gone = leaving.pop()
            self._part(gone)
            for later in gone.behind:
                later.waits_for -= 1
                if later.waits_for:
                    continue
                if later.is_given_up:
                    leaving.append(later)
                else:
                    later.begin()

    def _line_up(self, stay: _Stay) -> set[_Stay]:
        """To the end of the lines at its places. Returns those in front."""
        before = set() if self._barrier is None else {self._barrier}
        if stay.claim.names is None:
            before.update(self._stays)
            self._barrier = stay
        else:
            # One that has its turn is where it was, too: Qdrant has looked the alias up already, or will.
            stay.places |= places_of(stay.claim, self._aliases)
            for name in stay.places:
                before |= self._lines.setdefault(name, _Line()).join(stay)
        self._stays[stay] = None
        return before

    def _part(self, stay: _Stay) -> None:
        del self._stays[stay]
        if self._barrier is stay:
            self._barrier = None
        for name in stay.places:
            if self._lines[name].part(stay):
                del self._lines[name]

    def _line_up_again(self) -> None:
        """Names stand for other collections now: first those who have their turn, then the others, as they asked."""
        stays = [stay for stay in self._stays if not stay.is_given_up]
        self._lines, self._stays, self._barrier = {}, OrderedDict(), None
        running = [stay for stay in stays if stay.has_turn]
        met: set[str] = set()
        for stay in running:
            stay.behind = []
            if self._line_up(stay):
                met |= stay.places
        if met:
            # Somebody else moved an alias, and some that have their turn met. In a line the later one hides the earlier
            # one, so somebody stands behind all of them whom everybody else there waits for.
            last = _Stay(Claim(frozenset(met)))
            last.is_given_up = True
            self._line_up(last)
            last.wait_for(stay for stay in running if stay.places & last.places)
        waiting = [stay for stay in stays if not stay.has_turn]
        for stay in waiting:
            stay.behind, stay.places = [], frozenset()
            stay.wait_for(self._line_up(stay))
        for stay in waiting:
            if not stay.waits_for:
                stay.begin()


class Hold:
    """One stay in the queue."""

    __slots__ = ("_claim", "_conflicts", "_stay")

    def __init__(self, conflicts: Conflicts, claim: Claim) -> None:
        self._conflicts = conflicts
        self._claim = claim
        self._stay: _Stay | None = None

    async def __aenter__(self) -> None:
        """Wait for the turn."""
        self._stay = stay = self._conflicts.enter(self._claim)
        if not stay.has_turn:
            stay.turn = asyncio.get_running_loop().create_future()
            try:
                await stay.turn
            except asyncio.CancelledError:
                self._conflicts.give_up(stay)
                raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the next ones in."""
        if self._stay is not None:
            self._conflicts.leave(self._stay)
