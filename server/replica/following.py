"""Values derived from a collection and kept in step with it, bounded in bytes.

Promises: a value is exactly that of the caller's snapshot of the store, and never changes once given out; a change of
the collection makes a new one from the old and the changed keys alone, when the value is next asked for. Values that
were not used for longest go first when all of them take more than `limit_bytes`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from server.replica.records import Changes, Collection, Key
from server.replica.store import Store

# Past this many changed points, and half of the collection, loading again is cheaper.
_PENDING_LEAST = 4096
_PENDING_MOST = 200_000


class Sized(Protocol):
    """What is kept."""

    @property
    def byte_size(self) -> int:
        """Memory taken, about."""
        ...


V = TypeVar("V", bound=Sized)


class SnapshotPassed(Exception):
    """The kept value is newer than the caller's snapshot: begin a new one."""


class Slot(Generic[V]):
    """One kept value and the changes that wait for it."""

    def __init__(self, blind_until: int) -> None:
        # Changes up to this revision were announced before anyone listened for this value.
        self._blind_until = blind_until
        self._pending: deque[tuple[int, frozenset[Key]]] = deque()
        self._pending_keys = 0
        self._noted = threading.Lock()
        self._revision = 0
        self._value: V | None = None
        self.lock = threading.Lock()

    def note(self, revision: int, keys: frozenset[Key]) -> None:
        """Keys change with this revision."""
        with self._noted:
            self._pending.append((revision, keys))
            self._pending_keys += len(keys)
            if self._pending_keys > _PENDING_MOST:
                # Nobody asks for this value; when someone does, it is loaded again.
                self._pending.clear()
                self._pending_keys = 0
                self._blind_until = revision

    def current(
        self, collection: Collection, load: Callable[[], V], advance: Callable[[V, set[Key]], V], *, is_bulk: bool
    ) -> V:
        """The value for the snapshot in which `collection` was read. Holds `lock`.

        `advance` makes the next value from the last one and all keys that changed since. `is_bulk`: too many changed
        keys are answered with `load`. Raises SnapshotPassed.
        """
        with self.lock:
            value = self._value
            if value is not None and self._revision > collection.revision:
                raise SnapshotPassed
            if value is not None and self._revision == collection.revision:
                return value
            keys = self._take(collection.revision)
            many = is_bulk and len(keys) > max(_PENDING_LEAST, collection.points // 2)
            if value is None or self._revision < self._blind_until or many:
                value = load()
            elif keys:
                value = advance(value, keys)
            self._value, self._revision = value, collection.revision
            return value

    def _take(self, revision: int) -> set[Key]:
        keys: set[Key] = set()
        with self._noted:
            while self._pending and self._pending[0][0] <= revision:
                changed = self._pending.popleft()[1]
                self._pending_keys -= len(changed)
                keys |= changed
        return keys

    def improve(self, collection: Collection, better: Callable[[V], V]) -> V | None:
        """Replace the value of this snapshot by a better one; None when it has moved on."""
        with self.lock:
            if self._value is None or self._revision != collection.revision:
                return None
            self._value = better(self._value)
            return self._value

    @property
    def last(self) -> V | None:
        """The value as it was made last, for whatever snapshot; does not wait."""
        return self._value

    @property
    def byte_size(self) -> int:
        """Memory taken, about."""
        return 0 if self._value is None else self._value.byte_size


class Following:
    """All slots of a store."""

    def __init__(self, store: Store, limit_bytes: int) -> None:
        self.store = store
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._slots: OrderedDict[tuple[int, Hashable], Slot[Any]] = OrderedDict()
        self._announced: dict[int, int] = {}
        store.before_commit(self._note)

    def _note(self, changes: Changes) -> None:
        with self._lock:
            for key in [key for key in self._slots if key[0] in changes.dropped]:
                del self._slots[key]
            self._announced.update(changes.revisions)
            for cid in changes.dropped:
                self._announced.pop(cid, None)
            for (cid, _), slot in self._slots.items():
                keys = changes.touched.get(cid)
                if keys:
                    slot.note(changes.revisions.get(cid, 0), keys)

    def slot(self, cid: int, what: Hashable) -> Slot[Any]:
        """The slot of one value of one collection."""
        with self._lock:
            slot = self._slots.get((cid, what))
            if slot is None:
                slot = self._slots[cid, what] = Slot(self._announced.get(cid, 0))
            self._slots.move_to_end((cid, what))
            return slot

    def last(self, cid: int, what: Hashable) -> Any:
        """The value of a slot as it was made last, for whatever snapshot; None = not kept. Does not wait, is no use."""
        with self._lock:
            slot = self._slots.get((cid, what))
            return None if slot is None else slot.last

    def has_room(self, cid: int, what: Hashable, needed_bytes: int) -> bool:
        """Whether a value is kept already, or would be beside all that is: nothing has to go for it."""
        with self._lock:
            slot = self._slots.get((cid, what))
            if slot is not None and slot.last is not None:
                return True
            return needed_bytes <= self.limit_bytes - sum(one.byte_size for one in self._slots.values())

    def trim(self, cid: int, what: Hashable) -> None:
        """Let go of what was not used for longest, but not of this one."""
        with self._lock:
            total = sum(slot.byte_size for slot in self._slots.values())
            for key in list(self._slots):
                if total <= self.limit_bytes:
                    return
                if key != (cid, what):
                    total -= self._slots.pop(key).byte_size

    @property
    def byte_size(self) -> int:
        """Memory taken by all values, about."""
        with self._lock:
            return sum(slot.byte_size for slot in self._slots.values())
