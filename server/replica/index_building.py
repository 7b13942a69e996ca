"""Work on the index of one space: filled, checked after a restart, kept up to date.

Promises: every change that a page may have missed stays noted until the index has it. An index of an earlier run serves
only when all its vectors are those of the store and it finds the nearest points as well as it did. Decides nothing
about the process; what goes wrong with it is IndexLost.
"""

from __future__ import annotations

import logging
import threading
from enum import Enum
from itertools import islice
from typing import Any, Protocol

import numpy as np

from server import config
from server.replica import index_trial
from server.replica.chunks import Block, block_of
from server.replica.index_part import FRESH_MOST, Part, State
from server.replica.packing import pack_keys, unpack_found
from server.replica.records import Key
from server.replica.spaces import Floats, Metric
from server.replica.store import Store

logger = logging.getLogger("server.replica.index")

_CATCH_UP_POINTS = 50
# A few points take a fraction of a second; a process that hangs is not waited for longer than this.
_CATCH_UP_TIMEOUT_SECONDS = 10.0
_BUILD_TIMEOUT_SECONDS = 120.0
_CHECK_POINTS = 1000
_STALE_LEAST = 2000
_LENGTH_SPREAD = 1.02
_REST_MOST_SECONDS = 1.0
# What two trials of one index may differ by: 24 probes of 10 points.
_RECALL_TOLERANCE = 0.02


class Step(Enum):
    """What one piece of work came to."""

    IDLE = "nothing to do"
    WORKED = "there may be more to do"
    READY = "the index serves from now on"
    USELESS = "it has to be built again"


class Ask(Protocol):
    """One operation of the index process. Raises IndexLost."""

    def __call__(
        self, head: dict[str, Any], body: bytes = b"", timeout: float = ...
    ) -> tuple[dict[str, Any], bytes]: ...


class Building:
    """Works on parts, a batch at a time, in the thread of the Index."""

    def __init__(
        self, store: Store, settings: config.Replica, lock: threading.Lock, halt: threading.Event, ask: Ask
    ) -> None:
        self._store = store
        self._settings = settings
        self._lock = lock
        self._halt = halt
        self._ask = ask

    def advance(self, part: Part) -> Step:
        """The next piece of work on a part."""
        match part.state:
            case State.OFF:
                return Step.IDLE
            case State.BUILDING:
                return self._build(part)
            case State.CHECKING:
                return self._check(part)
        if part.stale > max(_STALE_LEAST, part.points // 2) or len(part.pending) > max(FRESH_MOST, part.points // 2):
            return Step.USELESS
        return self._catch_up(part)

    def _build(self, part: Part) -> Step:
        # While the page is read, every change is noted: it may have been committed after the page was read.
        with self._lock:
            part.is_reading = True
        records = self._store.scan(part.cid, part.position or None, self._settings.index_batch_points, payload=False)
        if not records:
            part.recall = self._tried(part)
            now = self._store.collection_of(part.cid)
            with self._lock:
                part.state = State.READY
                part.is_reading = False
                part.recent_floor = now.revision if now is not None else 0
            logger.info(
                "the vector index of collection %d is ready: %d points, recall %.3f", part.cid, part.points, part.recall
            )
            return Step.READY
        with self._lock:
            part.position = records[-1].key
            part.is_reading = False
        self._put(part, block_of(part.space, records), replace=False)
        return Step.WORKED

    def _check(self, part: Part) -> Step:
        records = self._store.scan(part.cid, part.position or None, _CHECK_POINTS, payload=False)
        if not records:
            return self._judge(part)
        block = block_of(part.space, records)
        # Noted before it is committed: a change that the page shows is among these.
        with self._lock:
            changed = set(part.pending)
        rows = [row for row, key in enumerate(block.keys) if key not in changed]
        if rows and not self._is_same(part, [block.keys[row] for row in rows], block.data[rows]):
            logger.warning("the vector index of collection %d holds other vectors than the store", part.cid)
            return Step.USELESS
        part.position = records[-1].key
        return Step.WORKED

    def _is_same(self, part: Part, keys: list[Key], vectors: Floats) -> bool:
        head = {"do": "verify", "name": part.name, "count": len(keys), "size": part.space.field.size}
        return bool(self._ask(head, pack_keys(keys) + vectors.astype("<f4", copy=False).tobytes())[0]["same"])

    def _judge(self, part: Part) -> Step:
        recall = self._tried(part)
        if recall < part.recall - _RECALL_TOLERANCE:
            logger.warning("the vector index of collection %d finds less: %.3f", part.cid, recall)
            return Step.USELESS
        with self._lock:
            part.recall = recall
            part.state = State.READY
        logger.info("the vector index of collection %d goes on with %d points", part.cid, part.points)
        return Step.READY

    def _tried(self, part: Part) -> float:
        """The share of the truly nearest points that the index finds; points that it has yet to see do not count."""
        probes = index_trial.probes(self._store, part.cid, part.space)
        truths = index_trial.nearest(self._store, part.cid, part.space, probes)
        with self._lock:
            changed = set(part.pending)
        # The old positions of changed points may stand in the way of others.
        wanted = index_trial.RESULTS + min(len(changed), index_trial.RESULTS_MORE_MOST)
        hits = total = 0
        for probe, truth in zip(probes, truths, strict=True):
            known = truth - changed
            hits += len(known & self._found(part, probe, wanted))
            total += len(known)
        return hits / total if total else 1.0

    def _found(self, part: Part, vector: Floats, wanted: int) -> set[Key]:
        head = {"do": "query", "name": part.name, "wanted": wanted}
        answer, found = self._ask(head, np.ascontiguousarray(vector, dtype="<f4").tobytes())
        return set(unpack_found(found, answer["count"])[0])

    def _catch_up(self, part: Part) -> Step:
        with self._lock:
            changes = dict(islice(part.pending.items(), _CATCH_UP_POINTS))
        if not changes:
            return Step.IDLE
        started = self._store.clock.monotonic()
        records = self._store.fetch(part.cid, changes, payload=False)
        block = block_of(part.space, list(records.values()))
        present = set(block.keys)
        absent = [key for key in changes if key not in present]
        if absent:
            head = {"do": "remove", "name": part.name, "count": len(absent)}
            self._ask(head, pack_keys(absent), _CATCH_UP_TIMEOUT_SECONDS)
        if len(block):
            self._put(part, block, replace=True)
        with self._lock:
            part.stale += len(changes)
            part.applied(changes)
        # As much rest as work: readers and Chroma's queries come first.
        self._halt.wait(min(self._store.clock.monotonic() - started, _REST_MOST_SECONDS))
        return Step.WORKED

    def _put(self, part: Part, block: Block, *, replace: bool) -> None:
        if not len(block):
            return
        lengths = np.linalg.norm(block.data, axis=1)
        part.shortest = min(part.shortest, float(lengths.min()))
        part.longest = max(part.longest, float(lengths.max()))
        if part.space.metric is Metric.DOT and part.longest > _LENGTH_SPREAD * part.shortest:
            logger.info("no vector index for collection %d: its vectors differ in length", part.cid)
            with self._lock:
                part.state = State.OFF
                part.pending.clear()
            self._ask({"do": "drop", "name": part.name})
            return
        head = {
            "do": "put",
            "name": part.name,
            "count": len(block),
            "size": part.space.field.size,
            "replace": replace,
        }
        timeout = _CATCH_UP_TIMEOUT_SECONDS if replace else _BUILD_TIMEOUT_SECONDS
        self._ask(head, pack_keys(block.keys) + block.data.astype("<f4", copy=False).tobytes(), timeout)
        if not replace:
            part.points += len(block)
