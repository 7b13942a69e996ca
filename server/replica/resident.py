"""Vectors kept in memory for exact search, bounded in bytes.

Promises: `Resident.view` gives the vectors of one space exactly as of the caller's snapshot of the store; a view never
changes once given out, so scoring needs no lock. Changes reach a view when it is next asked for: only the changed
points are read. A space that does not fit is not kept (`view` returns None) and the caller walks the store instead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from server.replica.chunks import Block, block_of, join, take
from server.replica.records import Changes, Collection, Key
from server.replica.spaces import Space
from server.replica.store import Store

_LOAD_PAGE = 8192
_MERGE_LEAST = 1024
_PENDING_LEAST = 4096


class SnapshotPassed(Exception):
    """The kept vectors are newer than the caller's snapshot: begin a new one."""


@dataclass(frozen=True)
class View:
    """Vectors of one space at one revision: a large block of which some rows are gone, and a small one of changes."""

    revision: int
    base: Block
    gone: npt.NDArray[np.bool_]
    recent: Block
    base_rows: dict[Key, int]
    recent_rows: dict[Key, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of points that have the vector."""
        return len(self.base) - int(np.count_nonzero(self.gone)) + len(self.recent)

    @property
    def byte_size(self) -> int:
        """Memory taken, about."""
        return 2 * self.base.byte_size + self.recent.byte_size

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

    def changed(self, revision: int, keys: set[Key], replacement: Block) -> View:
        """The view after `keys` were touched; `replacement` holds the vectors they have now."""
        gone = self.gone.copy()
        hit = [row for key in keys if (row := self.base_rows.get(key)) is not None]
        gone[hit] = True
        kept = [row for key, row in self.recent_rows.items() if key not in keys]
        recent = join(self.base.space, [take(self.recent, np.array(kept, dtype=np.intp)), replacement])
        if len(recent) + int(np.count_nonzero(gone)) <= max(_MERGE_LEAST, len(self.base) // 8):
            rows = {key: row for row, key in enumerate(recent.keys)}
            return View(revision, self.base, gone, recent, self.base_rows, rows)
        return fresh_view(revision, join(self.base.space, [take(self.base, np.flatnonzero(~gone)), recent]))


def fresh_view(revision: int, block: Block) -> View:
    """A view of one block."""
    rows = {key: row for row, key in enumerate(block.keys)}
    return View(revision, block, np.zeros(len(block), dtype=np.bool_), block_of(block.space, []), rows)


class _Kept:
    """What is kept of one space, and the changes that wait for it."""

    def __init__(self, space: Space, blind_until: int) -> None:
        self.space = space
        # Changes up to this revision were announced before anyone listened for this space.
        self.blind_until = blind_until
        self.lock = threading.Lock()
        self.view: View | None = None
        self.pending: deque[tuple[int, frozenset[Key]]] = deque()


class Resident:
    """The kept vectors of all spaces; least recently used go first when `limit_bytes` is passed."""

    def __init__(self, store: Store, limit_bytes: int) -> None:
        self._store = store
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, str], _Kept] = OrderedDict()
        self._announced: dict[int, int] = {}
        store.before_commit(self._note)

    def _note(self, changes: Changes) -> None:
        with self._lock:
            for key in [key for key in self._kept if key[0] in changes.dropped]:
                del self._kept[key]
            self._announced.update(changes.revisions)
            for cid in changes.dropped:
                self._announced.pop(cid, None)
            for (cid, _), kept in self._kept.items():
                keys = changes.touched.get(cid)
                if keys:
                    kept.pending.append((changes.revisions.get(cid, 0), keys))

    def view(self, collection: Collection, space: Space) -> View | None:
        """The vectors of a space as of the snapshot in which `collection` was read; None when they do not fit.

        Raises SnapshotPassed when another thread has already moved on.
        """
        expected = collection.points * (4 * max(space.field.size, 1) + 240)
        if expected > self._limit_bytes:
            return None
        kept = self._slot(collection.cid, space)
        with kept.lock:
            if kept.view is None:
                kept.view = fresh_view(collection.revision, self._load(collection.cid, space))
            self._catch_up(kept, collection)
            view = kept.view
        self._trim(collection.cid, space.name)
        return view

    def _slot(self, cid: int, space: Space) -> _Kept:
        with self._lock:
            kept = self._kept.get((cid, space.name))
            if kept is None or kept.space != space:
                kept = self._kept[cid, space.name] = _Kept(space, self._announced.get(cid, 0))
            self._kept.move_to_end((cid, space.name))
            return kept

    def _catch_up(self, kept: _Kept, collection: Collection) -> None:
        view = kept.view
        assert view is not None
        if view.revision > collection.revision:
            raise SnapshotPassed
        if view.revision == collection.revision:
            return
        keys: set[Key] = set()
        with self._lock:
            while kept.pending and kept.pending[0][0] <= collection.revision:
                _, touched = kept.pending.popleft()
                keys |= touched
        blind = view.revision < kept.blind_until
        if blind or len(keys) > max(_PENDING_LEAST, len(view) // 2):
            kept.view = fresh_view(collection.revision, self._load(collection.cid, kept.space))
            return
        if not keys:
            kept.view = replace(view, revision=collection.revision)
            return
        records = self._store.fetch(collection.cid, keys, payload=False)
        kept.view = view.changed(collection.revision, keys, block_of(kept.space, list(records.values())))

    def _load(self, cid: int, space: Space) -> Block:
        blocks: list[Block] = []
        after: Key | None = None
        while records := self._store.scan(cid, after, _LOAD_PAGE, payload=False):
            blocks.append(block_of(space, records))
            after = records[-1].key
        return join(space, blocks)

    def _trim(self, cid: int, name: str) -> None:
        with self._lock:
            total = sum(kept.view.byte_size for kept in self._kept.values() if kept.view is not None)
            for key in list(self._kept):
                if total <= self._limit_bytes:
                    return
                kept = self._kept[key]
                if key != (cid, name) and kept.view is not None:
                    total -= kept.view.byte_size
                    del self._kept[key]

    @property
    def byte_size(self) -> int:
        """Memory taken by all views, about."""
        with self._lock:
            return sum(kept.view.byte_size for kept in self._kept.values() if kept.view is not None)


Blocks = Sequence[tuple[Block, "npt.NDArray[np.bool_] | None"]]
