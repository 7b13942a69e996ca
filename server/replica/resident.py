"""Vectors kept in memory for exact search.

Promises: `Resident.view` gives the vectors of one space exactly as of the caller's snapshot of the store; a view never
changes once given out, so scoring needs no lock. Of a changed collection only the changed points are read. A space that
does not fit is not kept (`view` returns None) and the caller walks the store instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from server.replica.chunks import Block, block_of, join, take
from server.replica.columns import Mask, Table
from server.replica.following import Following
from server.replica.records import Collection, Key
from server.replica.spaces import Space

_LOAD_PAGE = 8192
# What the row of a point in a dictionary takes beside the vector and the key.
_ROW_BYTES = 120
_KEY_BYTES = 120
_MERGE_LEAST = 1024
# Past this share of the points, looking at all of them is cheaper than gathering the wanted ones.
_SHARE_SCANNED_WHOLE = 0.25


class Alignment:
    """Where the points of a table stand in the large block of a view: kept as long as both bases are the same."""

    def __init__(self) -> None:
        self._known: tuple[Sequence[Key], npt.NDArray[np.int32]] | None = None

    def rows(self, keys: Sequence[Key], base_rows: Mapping[Key, int]) -> npt.NDArray[np.int32]:
        """For each of `keys` its row, -1 = not there."""
        known = self._known
        if known is None or known[0] is not keys:
            found = np.fromiter((base_rows.get(key, -1) for key in keys), dtype=np.int32, count=len(keys))
            self._known = known = (keys, found)
        return known[1]


@dataclass(frozen=True)
class View:
    """Vectors of one space: a large block of which some rows are gone, and a small one of changes."""

    base: Block
    gone: npt.NDArray[np.bool_]
    recent: Block
    base_rows: dict[Key, int]
    recent_rows: dict[Key, int] = field(default_factory=dict)
    alignment: Alignment = field(default_factory=Alignment)

    def __len__(self) -> int:
        """Number of points that have the vector."""
        return len(self.base) - int(np.count_nonzero(self.gone)) + len(self.recent)

    @property
    def byte_size(self) -> int:
        """Memory taken, about."""
        return self.base.byte_size + self.recent.byte_size + _ROW_BYTES * (len(self.base_rows) + len(self.recent_rows))

    def blocks(self) -> list[tuple[Block, npt.NDArray[np.bool_] | None]]:
        """Everything, as blocks with a mask of rows that do not count."""
        blocks: list[tuple[Block, npt.NDArray[np.bool_] | None]] = []
        if len(self.base):
            blocks.append((self.base, self.gone if self.gone.any() else None))
        if len(self.recent):
            blocks.append((self.recent, None))
        return blocks

    def pick(self, keys: Iterable[Key]) -> list[tuple[Block, npt.NDArray[np.bool_] | None]]:
        """Only the points with these keys; those that lack the vector are left out."""
        old: list[int] = []
        new: list[int] = []
        for key in keys:
            row = self.recent_rows.get(key)
            if row is not None:
                new.append(row)
            elif (row := self.base_rows.get(key)) is not None and not self.gone[row]:
                old.append(row)
        picked = ((self.base, old), (self.recent, new))
        return [(take(block, np.array(rows, dtype=np.intp)), None) for block, rows in picked if rows]

    def among(self, table: Table, mask: Mask) -> list[tuple[Block, Mask | None]]:
        """Only the points in a mask over a table of the same snapshot; those that lack the vector are left out."""
        size = len(table.keys)
        rows = self.alignment.rows(table.keys, self.base_rows)[mask[:size]]
        is_here = rows >= 0
        is_here[is_here] = ~self.gone[rows[is_here]]
        lost = np.flatnonzero(mask[:size])[~is_here].tolist() if self.recent_rows and not is_here.all() else []
        others = [table.keys[row] for row in lost]
        others += [table.recent[at] for at in np.flatnonzero(mask[size:]).tolist()]
        found: npt.NDArray[np.intp] = rows[is_here].astype(np.intp)
        blocks: list[tuple[Block, Mask | None]] = []
        if self.base.space.field.is_sparse or len(found) > len(self.base) * _SHARE_SCANNED_WHOLE:
            unwanted = np.ones(len(self.base), dtype=np.bool_)
            unwanted[found] = False
            blocks.append((self.base, unwanted))
        elif len(found):
            blocks.append((take(self.base, found), None))
        return blocks + self.pick(others)

    def changed(self, keys: set[Key], replacement: Block) -> View:
        """The view after `keys` were touched; `replacement` holds the vectors they have now."""
        gone = self.gone.copy()
        hit = [row for key in keys if (row := self.base_rows.get(key)) is not None]
        gone[hit] = True
        kept = [row for key, row in self.recent_rows.items() if key not in keys]
        recent = join(self.base.space, [take(self.recent, np.array(kept, dtype=np.intp)), replacement])
        if len(recent) + int(np.count_nonzero(gone)) <= max(_MERGE_LEAST, len(self.base) // 8):
            rows = {key: row for row, key in enumerate(recent.keys)}
            return View(self.base, gone, recent, self.base_rows, rows, self.alignment)
        return fresh_view(join(self.base.space, [take(self.base, np.flatnonzero(~gone)), recent]))


def fresh_view(block: Block) -> View:
    """A view of one block."""
    rows = {key: row for row, key in enumerate(block.keys)}
    return View(block, np.zeros(len(block), dtype=np.bool_), block_of(block.space, []), rows)


class Resident:
    """The kept vectors of all spaces."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._store = following.store

    def view(self, collection: Collection, space: Space) -> View | None:
        """The vectors of a space as of the snapshot in which `collection` was read; None when they do not fit.

        Raises SnapshotPassed when another thread has already moved on.
        """
        if not self.fits(collection, space):
            return None
        slot = self._following.slot(collection.cid, space)
        view: View = slot.current(
            collection,
            lambda: fresh_view(self._load(collection.cid, space)),
            lambda last, keys: self._advanced(last, collection.cid, keys),
            is_bulk=True,
        )
        self._following.trim(collection.cid, space)
        return view

    def fits(self, collection: Collection, space: Space) -> bool:
        """Whether the vectors of a space take no more than may be kept."""
        return _needed_bytes(collection, space) <= self._following.limit_bytes

    def has_room(self, collection: Collection, space: Space) -> bool:
        """Whether the vectors of a space are kept, or can be without others having to go."""
        return self._following.has_room(collection.cid, space, _needed_bytes(collection, space))

    def _advanced(self, view: View, cid: int, keys: set[Key]) -> View:
        records = self._store.fetch(cid, keys, payload=False)
        return view.changed(keys, block_of(view.base.space, list(records.values())))

    def _load(self, cid: int, space: Space) -> Block:
        blocks: list[Block] = []
        after: Key | None = None
        while records := self._store.scan(cid, after, _LOAD_PAGE, payload=False):
            blocks.append(block_of(space, records))
            after = records[-1].key
        return join(space, blocks)


def _needed_bytes(collection: Collection, space: Space) -> int:
    return collection.points * (4 * max(space.field.size, 1) + _KEY_BYTES + _ROW_BYTES)
