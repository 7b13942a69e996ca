"""One read of one collection: which points match, in which order, and what their vectors are.

Promises: a filter is compiled once a request; ids named in it are looked up instead of searched for; everything comes
from one snapshot of the store. Does not know requests or responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from threading import Event

import numpy as np
import numpy.typing as npt

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import catalogue
from server.replica.chunks import Block, block_of
from server.replica.columns import Codes, Dictionary, Mask, Table
from server.replica.fields import Fields
from server.replica.filters import Combined, HasId, Matcher, Node, compile_filter, is_trivial
from server.replica.indexing import Index
from server.replica.pace import Pace
from server.replica.paths import Path, Values, selector
from server.replica.plan import NO_PLAN, Plan
from server.replica.points import key_of
from server.replica.reads import Reads
from server.replica.records import Collection, Key, Record
from server.replica.resident import Resident, View
from server.replica.spaces import Space, space_of, spaces_of
from server.replica.tables import Tables

_PAGE = 2048
_FIRST_PAGE = 256
_VECTOR_PAGE = 4096

Masked = tuple[Block, "npt.NDArray[np.bool_] | None"]


@dataclass(frozen=True, slots=True)
class Selection:
    """A compiled filter: how to test a point, and the only ids that can pass (None = any)."""

    matcher: Matcher | None
    only: tuple[Key, ...] | None

    @property
    def is_everything(self) -> bool:
        """Whether every point passes."""
        return self.matcher is None


class GivenUp(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Coded:
    """Points, and for each the number of its content in a dictionary."""

    dictionary: Dictionary
    keys: list[Key]
    codes: Codes


EVERYTHING = Selection(None, None)


@dataclass(frozen=True, slots=True)
class Judged:
    """A table, and which of its rows surely pass a selection and which may."""

    table: Table
    surely: Mask
    maybe: Mask

    @property
    def is_exact(self) -> bool:
        """Whether nothing is left to be looked at."""
        return bool(np.array_equal(self.surely, self.maybe))


def both(first: Selection, second: Selection) -> Selection:
    """What passes the two."""
    if first.matcher is None or second.matcher is None:
        matcher = first.matcher or second.matcher
    else:
        matcher = Matcher.of(Combined(must=(first.matcher.node, second.matcher.node)))
    if first.only is None or second.only is None:
        return Selection(matcher, first.only if second.only is None else second.only)
    return Selection(matcher, tuple(sorted(set(first.only) & set(second.only))))


def excluding(keys: Iterable[Key]) -> Selection:
    """Every point but these."""
    unwanted = frozenset(keys)
    return Selection(Matcher.of(Combined(must_not=(HasId(unwanted),))), None) if unwanted else EVERYTHING


def only(keys: Iterable[Key]) -> Selection:
    """Just these points."""
    wanted = frozenset(keys)
    return Selection(Matcher.of(HasId(wanted)), tuple(sorted(wanted)))


@dataclass(frozen=True, slots=True)
class Aids:
    """What makes reads of committed data fast."""

    resident: Resident
    tables: Tables
    pace: Pace
    now: Callable[[], float]
    index: Index | None = None
    plan: Plan = NO_PLAN


def _no_time() -> float:
    return 0.0


class Session:
    """Reads one collection. Inside a write transaction there are no aids: what they hold is committed only."""

    def __init__(
        self, reads: Reads, collection: Collection, aids: Aids | None = None, given_up: Event | None = None
    ) -> None:
        self.reads = reads
        self.collection = collection
        self.index = aids.index if aids is not None else None
        self.pace = aids.pace if aids is not None else Pace()
        self.now = aids.now if aids is not None else _no_time
        self.plan = aids.plan if aids is not None else NO_PLAN
        self._given_up = given_up
        self._resident = aids.resident if aids is not None else None
        self._tables = aids.tables if aids is not None else None
        # One request asks several times what passes its filter, and the snapshot does not change meanwhile.
        self._last: tuple[Selection, tuple[Path, ...], Judged | None] | None = None
        # What is kept moves on with whoever reads a newer snapshot: asked for again it may be too new for this one.
        self._views: dict[Space, View | None] = {}
        self._table: Table | None = None

    @cached_property
    def fields(self) -> Fields:
        """Payload indexes and the version to mirror."""
        return Fields.of(self.collection.schema, self.reads.meta(catalogue.REMOTE_VERSION))

    def space(self, name: str) -> Space:
        """A vector space. Raises the refusal for an unknown name."""
        return space_of(self.collection.config, name)

    def demand(self, names: Iterable[str] | None) -> None:
        """Raise the refusal for an unknown name among those of vectors to show, None = no names."""
        for name in names or ():
            self.space(name)

    def select(self, query: common.Filter | None, where: str = "filter") -> Selection:
        """Compile a filter. Raises Refusal."""
        if query is None or is_trivial(query):
            return EVERYTHING
        matcher = compile_filter(query, self.fields, where)
        only = _only_ids(query)
        return Selection(matcher, None if only is None else tuple(sorted(only)))

    def records(
        self,
        selection: Selection,
        *,
        start: Key | None = None,
        payload: bool = False,
        vectors: bool = False,
        expected: int = _FIRST_PAGE,
    ) -> Iterator[Record]:
        """Matching points in id order from `start` on; `payload` and `vectors`: parts wanted beside what is tested.

        About `expected` of them will be taken: so many are read at first.
        """
        first = min(max(expected, 1), _PAGE)
        matcher = selection.matcher
        judged = self._judged(selection)
        if judged is None:
            self._note_walk(selection)
        if judged is not None and judged.is_exact:
            yield from self._fetched(judged.table.keys_of(judged.maybe, start), payload, vectors, first)
            return
        payload = payload or (matcher is not None and matcher.needs_payload)
        vectors = vectors or (matcher is not None and matcher.needs_vectors)
        if judged is not None:
            candidates = self._fetched(judged.table.keys_of(judged.maybe, start), payload, vectors)
        elif selection.only is not None:
            candidates = self._fetched(
                (key for key in selection.only if start is None or key >= start), payload, vectors
            )
        else:
            candidates = chain.from_iterable(
                self._pages(start, payload, vectors, first if matcher is None else _FIRST_PAGE)
            )
        yield from candidates if matcher is None else filter(matcher.matches, candidates)

    def _fetched(self, keys: Iterable[Key], payload: bool, vectors: bool, size: int = _FIRST_PAGE) -> Iterator[Record]:
        """Records of these keys, in their order, read a page at a time; the first page has `size`."""
        remaining = iter(keys)
        while batch := list(islice(remaining, size)):
            self._go_on()
            found = self.reads.fetch(self.collection.cid, batch, payload=payload, vectors=vectors)
            yield from (found[key] for key in batch if key in found)
            size = _PAGE

    def _pages(self, start: Key | None, payload: bool, vectors: bool, size: int) -> Iterator[list[Record]]:
        cid = self.collection.cid
        page = self.reads.scan(cid, limit=size, start=start, payload=payload, vectors=vectors)
        while page:
            yield page
            if len(page) < size:
                return
            self._go_on()
            size = _PAGE
            page = self.reads.scan(cid, page[-1].key, size, payload=payload, vectors=vectors)

    def _go_on(self) -> None:
        """Raise GivenUp when nobody waits for what is read."""
        if self._given_up is not None and self._given_up.is_set():
            raise GivenUp

    def keys(self, selection: Selection, *, start: Key | None = None) -> Iterator[Key]:
        """Keys of matching points in order."""
        if selection.is_everything:
            return self.reads.keys(self.collection.cid, start=start or b"")
        judged = self._judged(selection)
        if judged is not None and judged.is_exact:
            return judged.table.keys_of(judged.maybe, start)
        return (record.key for record in self.records(selection, start=start))

    def count(self, selection: Selection) -> int:
        """Number of matching points."""
        if selection.is_everything:
            return self.collection.points
        judged = self._judged(selection)
        if judged is not None and judged.is_exact:
            return int(np.count_nonzero(judged.maybe))
        return sum(1 for _ in self.keys(selection))

    def _judged(self, selection: Selection, *more: Path) -> Judged | None:
        """What the columns say about a selection; None when the points have to be walked."""
        if self._tables is None or selection.only is not None or (selection.matcher is None and not more):
            return None
        if self._last is not None and self._last[0] is selection and self._last[1] == more:
            return self._last[2]
        node = selection.matcher.node if selection.matcher is not None else Combined()
        table = self._table_for(node, *more)
        judged = None if table is None else Judged(table, *table.bounds(node))
        if judged is not None and self.plan.is_wanted:
            surely, maybe = int(np.count_nonzero(judged.surely)), int(np.count_nonzero(judged.maybe))
            self.plan.step("filter", by="columns", exact=surely == maybe, surely=surely, maybe=maybe)
        self._last = selection, more, judged
        return judged

    def _table_for(self, node: Node, *more: Path) -> Table | None:
        if self._tables is None:
            return None
        if self._table is None or self._table.missing(node) or any(path not in self._table.columns for path in more):
            self._table = self._tables.table(self.collection, node, *more)
        return self._table

    def _note_walk(self, selection: Selection) -> None:
        """For the plan: points are read one by one and tested."""
        if selection.only is not None:
            self.plan.step("filter", by="ids", candidates=len(selection.only))
        else:
            by = "none" if selection.matcher is None else "every point"
            self.plan.step("filter", by=by, candidates=self.collection.points)

    def coded(self, selection: Selection, path: Path) -> Coded | None:
        """The matching points with the codes of what they hold at a path; None when the points have to be walked."""
        judged = self._judged(selection, path)
        if judged is None or not judged.is_exact or path not in judged.table.columns:
            return None
        column = judged.table.columns[path]
        return Coded(column.dictionary, list(judged.table.keys_by_row(judged.maybe)), column.codes(judged.maybe))

    def kept(self, path: Path) -> Dictionary | None:
        """What points hold at a path, if that is in memory; does not wait."""
        return self._tables.kept(self.collection.cid, path) if self._tables is not None else None

    def codes(self, path: Path) -> tuple[Dictionary, Codes] | None:
        """What all points hold at a path, without their keys; None when the points have to be walked."""
        judged = self._judged(EVERYTHING, path)
        if judged is None or path not in judged.table.columns:
            return None
        column = judged.table.columns[path]
        return column.dictionary, column.codes(judged.maybe)

    def walked(self, selection: Selection, path: Path) -> Iterator[tuple[Key, Values]]:
        """The matching points and what they hold at a path, one by one."""
        select = selector(path)
        for record in self.records(selection, payload=True):
            yield record.key, select(points.PointStruct.FromString(record.payload).payload)

    def blocks(self, space: Space, selection: Selection) -> Iterator[Masked]:
        """The vectors of the matching points that have one, in blocks; with masks of rows that do not count."""
        view = self._view(space)
        self.plan.step("vectors", of=space.name, out_of="store" if view is None else "memory")
        if view is None:
            yield from self._streamed(space, selection)
        elif selection.is_everything:
            yield from view.blocks()
        else:
            judged = self._judged(selection)
            if judged is not None and judged.is_exact:
                yield from view.among(judged.table, judged.maybe)
            else:
                yield from view.pick(self.keys(selection))

    def _view(self, space: Space) -> View | None:
        if self._resident is None:
            return None
        if space not in self._views:
            self._views[space] = self._resident.view(self.collection, space)
        return self._views[space]

    def _streamed(self, space: Space, selection: Selection) -> Iterator[Masked]:
        batch: list[Record] = []
        for record in self.records(selection, vectors=True):
            batch.append(record)
            if len(batch) == _VECTOR_PAGE:
                yield block_of(space, batch), None
                batch = []
        if batch:
            yield block_of(space, batch), None

    def block_of_keys(self, space: Space, keys: Iterable[Key]) -> Block:
        """The vectors of single points, in the order of `keys`; those that lack one are left out."""
        wanted = list(keys)
        found = self.reads.fetch(self.collection.cid, wanted, payload=False)
        return block_of(space, [found[key] for key in wanted if key in found])

    def fits(self, space: Space) -> bool:
        """Whether the vectors of a space can be kept in memory."""
        return self._resident is not None and self._resident.fits(self.collection, space)

    def warm(self) -> None:
        """Bring what is kept of the collection up to date: vectors that fit, columns of indexed fields.

        Nothing else goes for it: what does not fit beside the rest would be loaded again and again.
        """
        if self._tables is not None and self.fields.indexes and self._tables.has_room(self.collection):
            self._tables.table(self.collection, Combined(), *self.fields.indexes)
        if self._resident is not None:
            for space in spaces_of(self.collection.config).values():
                if self._resident.has_room(self.collection, space):
                    self._resident.view(self.collection, space)

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """Those of `keys` that do not exist."""
        found = self.reads.has(self.collection.cid, keys)
        return [key for key in keys if key not in found]


def _only_ids(query: common.Filter) -> set[Key] | None:
    """The ids that can pass at most; None = any. An over-approximation, cheap to find."""
    bounds = [bound for bound in map(_only_of, query.must) if bound is not None]
    should = [_only_of(condition) for condition in query.should]
    if should and all(bound is not None for bound in should):
        bounds.append(set().union(*(bound for bound in should if bound is not None)))
    return set.intersection(*bounds) if bounds else None


def _only_of(condition: common.Condition) -> set[Key] | None:
    match condition.WhichOneof("condition_one_of"):
        case "has_id":
            return {key_of(point_id) for point_id in condition.has_id.has_id}
        case "filter":
            return _only_ids(condition.filter)
        case _:
            return None


def matching_keys(reads: Reads, collection: Collection, query: common.Filter, where: str = "filter") -> list[Key]:
    """The keys of the points that pass a filter, in order; an empty filter matches all. Raises Refusal."""
    session = Session(reads, collection)
    return list(session.keys(session.select(query, where)))
