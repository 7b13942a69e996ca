"""The vector index of large collections: built in the background, never trusted, thrown away when in doubt.

It lives in a directory, or in a Chroma server. There it is a tenant among others: it makes, changes and drops only
collections whose names begin with what this store alone uses.

Promises: `propose` names candidates for an exact check, or None at once when it cannot (off, building, busy, lost). The
points that changed since the index last saw them are named with the candidates, so a proposal misses nothing that was
committed. Whatever happens to the index process, its files or its server (crash, hang, damage, growth without bound,
another one's hand in it), the index is wiped and built again, and answers meanwhile are exact.

Dense vectors with Cosine, Euclid or Dot are indexed; Dot only while all vectors are about equally long, since the graph
finds neighbours, not large products.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np

from server import config
from server.replica import catalogue
from server.replica.chroma_server import ChromaServer
from server.replica.index_building import Building, Step
from server.replica.index_files import IndexFiles
from server.replica.index_part import Part, Proposal, State
from server.replica.index_process import IndexBusy, IndexLost, IndexProcess
from server.replica.packing import unpack_found
from server.replica.records import Changes, Collection
from server.replica.spaces import Floats, Metric, Space, spaces_of
from server.replica.store import Store

logger = logging.getLogger("server.replica.index")

_CHROMA_SPACES = {Metric.COSINE: "ip", Metric.DOT: "ip", Metric.EUCLID: "l2"}
_QUERY_PATIENCE_SECONDS = 0.02
_QUERY_TIMEOUT_SECONDS = 2.0
_WRITE_TIMEOUT_SECONDS = 60.0
_START_TIMEOUT_SECONDS = 120.0
_BREADTH_LEAST = 800
_BREADTH_MOST = 6400
_POINTS_PER_BREADTH = 16
_FILE_BYTES_LEAST = 128 * 1024 * 1024
_FREE_BYTES_LEAST = 512 * 1024 * 1024
_GUARD_EVERY_SECONDS = 2.0
# Written to disk after so many changes; a flush writes a list of all ids anew. An index that was not closed is never
# opened again, so the only cost of a rare flush is what a clean start reads from Chroma's own log.
_FLUSH_POINTS_LEAST = 1000
_FLUSH_POINTS_MOST = 10_000
_FLUSHES_PER_BUILD = 4
_IDLE_SECONDS = 1.0
_BACKOFF_SECONDS = (0.5, 2.0, 10.0, 60.0)
# Knocking is cheap.
_SERVER_PAUSE_SECONDS = 5.0
# A server whose answers were wrong so often does not compute as we do (it may round), and building again is no help.
_DOUBTS_MOST = 3
_OWNER = "index_owner"


class ServerAway(IndexLost):
    """Nobody was asked yet, so what the last run left behind may still be good."""


def breadth(points: int) -> int:
    """How many candidates the graph keeps while it searches, for a collection of that size."""
    return min(max(points // _POINTS_PER_BREADTH, _BREADTH_LEAST), _BREADTH_MOST)


class Index:
    """Indexes of all large collections of a store, in one process and one thread."""

    def __init__(self, store: Store, directory: Path, settings: config.Replica) -> None:
        self._store = store
        self._settings = settings
        self._files = IndexFiles(directory)
        self._lock = threading.Lock()
        self._parts: dict[tuple[int, str], Part] = {}
        self._process: IndexProcess | None = None
        self._file_limit_bytes = 0
        self._wake = threading.Event()
        self._halt = threading.Event()
        self._server = ChromaServer.at(settings.chroma) if settings.chroma is not None else None
        self._building = Building(store, settings, self._lock, self._halt, self._exchange)
        self._guarded = store.clock.monotonic()
        self._losses = 0
        self._doubt, self._doubts = "", 0
        self._resumed = False
        self._next_name = 0
        store.before_commit(self._note)
        store.on_commit(self._note)
        self._thread = threading.Thread(target=self._run, name="replica-index", daemon=True)

    def start(self) -> None:
        """Begin in the background."""
        self._thread.start()

    # --- asked by readers ------------------------------------------------------------------------------------------

    def propose(self, collection: Collection, space: Space, vector: Floats, count: int) -> Proposal | None:
        """About the `count` nearest points for a snapshot in which `collection` was read; None = search exactly."""
        process = self._process
        with self._lock:
            part = self._parts.get((collection.cid, space.name))
            if process is None or part is None or part.state is not State.READY or part.space != space:
                return None
            before = part.fresh(collection.revision)
        if before is None:
            return None
        head = {"do": "query", "name": part.name, "wanted": count}
        body = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        try:
            answer, found = process.ask(
                head, body, timeout_seconds=_QUERY_TIMEOUT_SECONDS, patience_seconds=_QUERY_PATIENCE_SECONDS
            )
        except IndexBusy:
            return None
        except IndexLost as error:
            logger.warning("the vector index was lost while it was asked: %s", error)
            self._wake.set()
            return None
        keys, distances = unpack_found(found, answer["count"])
        if len(set(keys)) < len(keys):
            self.doubt("it named a point twice")
            return None
        with self._lock:
            after = part.fresh(collection.revision) if part.state is State.READY else None
        return None if after is None else Proposal(keys, distances, before | after)

    def doubt(self, why: str) -> None:
        """A proposal was seen to be wrong: the index is to be built again."""
        self._doubt = why
        self._wake.set()

    def lag(self, cid: int) -> int:
        """Points whose vectors wait for the index."""
        total = self._store.count(cid)
        with self._lock:
            parts = [part for part in self._parts.values() if part.cid == cid and part.state is not State.OFF]
            return sum(
                len(part.pending) + (max(total - part.points, 0) if part.state is State.BUILDING else 0)
                for part in parts
            )

    def state(self, cid: int) -> str:
        """`ready`, `building`, `checking` or `off`."""
        with self._lock:
            states = {part.state for part in self._parts.values() if part.cid == cid}
        found = next((state for state in (State.BUILDING, State.CHECKING, State.READY) if state in states), State.OFF)
        return str(found.value)

    def recall(self, cid: int, name: str) -> float:
        """The share of the nearest points that the index of a space was found to find; 0 before it is ready."""
        with self._lock:
            part = self._parts.get((cid, name))
            return part.recall if part is not None and part.state is State.READY else 0.0

    @property
    def pid(self) -> int | None:
        """Of the index process, when it runs."""
        process = self._process
        return process.pid if process is not None and process.is_alive else None

    # --- told by the store -----------------------------------------------------------------------------------------

    def _note(self, changes: Changes) -> None:
        """Called before and after each commit: what a batch read between the two is told again."""
        is_work = False
        with self._lock:
            for (cid, _), part in self._parts.items():
                keys = changes.touched.get(cid)
                if keys:
                    part.note(changes.revisions.get(cid, 0), keys)
                    is_work = True
        if is_work:
            self._wake.set()

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._halt.is_set():
            self._wake.clear()
            try:
                pause = 0.0 if self._round() else _IDLE_SECONDS
            except IndexLost as error:
                pause = self._lost(error)
            except Exception as error:  # the outermost loop of the thread: the index must not take the replica along
                logger.exception("the vector index failed")
                pause = self._lost(error)
            if pause and not self._halt.is_set():
                self._wake.wait(pause)

    def _lost(self, error: Exception) -> float:
        """Throw everything away; returns how long to wait before the next try."""
        pause = _BACKOFF_SECONDS[min(self._losses, len(_BACKOFF_SECONDS) - 1)]
        if self._server is not None:
            pause = min(pause, _SERVER_PAUSE_SECONDS)
        self._losses += 1
        if self._server is not None and self._doubts >= _DOUBTS_MOST:
            logger.error("no vector index is kept in %s any more until a restart: %s", self._settings.chroma, error)
        logger.warning("there is no vector index for at least %s s: %s", pause, error)
        process, self._process = self._process, None
        if process is not None:
            process.kill()
        with self._lock:
            self._parts.clear()
        if not isinstance(error, ServerAway):
            self._wipe()
        self._doubt = ""
        self._wake.clear()
        return pause

    def _wipe(self) -> None:
        try:
            self._files.wipe()
        except OSError as failure:
            logger.warning("the directory of the vector index cannot be wiped: %s", failure)

    def _round(self) -> bool:
        """One step of work; False when there is none."""
        collections = {collection.cid: collection for collection in self._store.collections()}
        wanted = {
            (cid, name): space
            for cid, collection in collections.items()
            for name, space in spaces_of(collection.config).items()
            if self._is_wanted(collection, space)
        }
        self._forget({key for key, part in self._parts.items() if wanted.get(key) != part.space})
        if not wanted:
            return False
        if self._process is not None and not self._process.is_alive:
            raise IndexLost("the process ended")
        if self._doubt:
            self._doubts += 1
            raise IndexLost(self._doubt)
        expected = sum(collections[cid].points * 4 * space.field.size for (cid, _), space in wanted.items())
        self._ensure_process(expected, collections)
        for key, space in wanted.items():
            if key not in self._parts:
                self._begin(key, space)
        self._guard(expected)
        worked = [self._advance(part) for part in list(self._parts.values())]
        return any(worked)

    def _advance(self, part: Part) -> bool:
        step = self._building.advance(part)
        if step is Step.USELESS:
            self._forget({(part.cid, part.space.name)})
        if step is Step.READY:
            self._losses = 0
        return step is not Step.IDLE

    def _is_wanted(self, collection: Collection, space: Space) -> bool:
        vectors = collection.points * 4 * space.field.size
        return (
            self._settings.index
            and not (self._server is not None and self._doubts >= _DOUBTS_MOST)
            and not space.field.is_sparse
            and not space.field.is_multi
            and space.metric in _CHROMA_SPACES
            and vectors > self._settings.exact_below_bytes
            # While a collection is copied for the first time, the copy has the processor to itself.
            and catalogue.was_whole(collection)
        )

    def _ask(self, head: dict[str, Any], body: bytes = b"", timeout: float = _WRITE_TIMEOUT_SECONDS) -> dict[str, Any]:
        return self._exchange(head, body, timeout)[0]

    def _exchange(
        self, head: dict[str, Any], body: bytes = b"", timeout: float = _WRITE_TIMEOUT_SECONDS
    ) -> tuple[dict[str, Any], bytes]:
        if self._process is None:
            raise IndexLost("there is no process")
        return self._process.ask(head, body, timeout_seconds=timeout)

    def _ensure_process(self, expected_bytes: int, collections: dict[int, Collection]) -> None:
        needed = _FILE_BYTES_LEAST + 4 * expected_bytes
        if self._process is not None and (self._server is not None or needed <= self._file_limit_bytes):
            return
        if self._process is not None:
            # Grown past the limit on files that the process was started with.
            process, self._process = self._process, None
            if not process.close():
                raise IndexLost("the process did not end cleanly")
        self._knock()
        known: list[dict[str, Any]] = []
        if not self._resumed:
            self._resumed = True
            found = self._files.unseal()
            if found is None:
                self._files.wipe()
            known = found or []
        self._file_limit_bytes = 2 * needed
        process = IndexProcess(
            self._files.data, self._file_limit_bytes, self._store.clock.monotonic, self._settings.chroma
        )
        kept = [part.name for part in self._parts.values()] + [saved["name"] for saved in known]
        try:
            process.ask({"do": "open", "own": self._prefix(), "keep": kept}, timeout_seconds=_START_TIMEOUT_SECONDS)
        finally:
            self._process = process
        for saved in known:
            self._resume(saved, collections)

    def _knock(self) -> None:
        if self._server is not None:
            try:
                self._server.knock()
            except OSError as error:
                raise ServerAway(f"nobody answers at {self._settings.chroma}: {error}") from error

    def _prefix(self) -> str:
        """How the names of this store's collections begin: others may share the server."""
        owner = self._store.meta(_OWNER)
        if not owner:
            owner = secrets.token_hex(8)
            with self._store.transaction() as tx:
                tx.set_meta(_OWNER, owner)
        return f"understudy-{owner}-"

    def _resume(self, saved: dict[str, Any], collections: dict[int, Collection]) -> None:
        """Take over the index of a space from the last run, if nothing changed since, once it has been checked."""
        collection = collections.get(saved["cid"])
        space = spaces_of(collection.config).get(saved["space"]) if collection is not None else None
        count = self._ask({"do": "count", "name": saved["name"]}, timeout=_START_TIMEOUT_SECONDS)["count"]
        part = None
        if collection is not None and space is not None and count == saved["points"]:
            part = Part(collection.cid, space, saved["name"], State.CHECKING, points=count)
            part.shortest, part.longest = saved["shortest"], saved["longest"]
            part.recent_floor, part.recall = saved["revision"], saved["recall"]
            with self._lock:
                self._parts[collection.cid, space.name] = part
            # Changes are noted from here on; what was committed before shows in the revision.
            again = self._store.collection_of(collection.cid)
            if again is not None and again.revision == saved["revision"]:
                return
        if part is not None:
            with self._lock:
                del self._parts[part.cid, part.space.name]
        self._ask({"do": "drop", "name": saved["name"]})

    def _begin(self, key: tuple[int, str], space: Space) -> None:
        self._next_name += 1
        name = f"{self._prefix()}c{key[0]}-{self._next_name}-{self._store.clock.wall_ns()}"
        points = self._store.count(key[0])
        head = {
            "do": "create",
            "name": name,
            "space": _CHROMA_SPACES[space.metric],
            "breadth": breadth(points),
            "flush": min(max(points // _FLUSHES_PER_BUILD, _FLUSH_POINTS_LEAST), _FLUSH_POINTS_MOST),
        }
        self._ask(head)
        with self._lock:
            self._parts[key] = Part(key[0], space, name)

    def _forget(self, keys: set[tuple[int, str]]) -> None:
        for key in keys:
            with self._lock:
                part = self._parts.pop(key)
            if self._process is not None and part.state is not State.OFF:
                self._ask({"do": "drop", "name": part.name})

    def _guard(self, expected_bytes: int) -> None:
        """The disk is not ours alone: a directory out of proportion is damaged, and a full disk needs it more."""
        now = self._store.clock.monotonic()
        if self._server is not None or now < self._guarded + _GUARD_EVERY_SECONDS:
            return
        self._guarded = now
        if not self._files.is_there():
            raise IndexLost("its files were removed")
        size = self._files.byte_size()
        if size > _FILE_BYTES_LEAST + 8 * expected_bytes:
            raise IndexLost(f"its files grew to {size} bytes, for {expected_bytes} bytes of vectors")
        if shutil.disk_usage(self._files.directory).free < _FREE_BYTES_LEAST:
            raise IndexLost("the disk is nearly full")

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop, and leave an index that the next run can take over, if it is whole."""
        self._halt.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            parts = self._whole_parts(process)
        except (IndexLost, IndexBusy):
            parts = []
        if process.close() and parts:
            try:
                self._files.seal(parts)
            except OSError as error:
                logger.warning("the vector index is not kept: %s", error)

    def _whole_parts(self, process: IndexProcess) -> list[dict[str, Any]]:
        parts = []
        for part in self._parts.values():
            collection = self._store.collection_of(part.cid)
            if part.state is State.OFF:
                continue
            if part.state is not State.READY or part.pending or collection is None:
                return []
            answer, _ = process.ask({"do": "count", "name": part.name}, timeout_seconds=_QUERY_TIMEOUT_SECONDS)
            parts.append(
                {
                    "cid": part.cid,
                    "space": part.space.name,
                    "name": part.name,
                    "points": answer["count"],
                    "revision": collection.revision,
                    "recall": part.recall,
                    "shortest": part.shortest,
                    "longest": part.longest,
                }
            )
        return parts
