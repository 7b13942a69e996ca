"""Answers to the read calls of qdrant.Points.

Promises: one snapshot of the store for each call; what Qdrant would refuse is a Refusal with its status and text, what
only the server can do is NotServed. Synchronous and safe to call from many threads; numpy and SQLite let go of the GIL.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from google.protobuf.message import Message

from generated.qdrant import points_pb2 as points
from server import config
from server.replica import (
    catalogue,
    group_rounds,
    groups,
    legacy,
    listing,
    matrix,
    ordering,
    outputs,
    read_checks,
    sharding,
    strict,
)
from server.replica.following import Following, SnapshotPassed
from server.replica.group_rounds import Rounds
from server.replica.indexing import Index
from server.replica.memory import default_resident_bytes
from server.replica.outputs import Wanted
from server.replica.pace import Pace
from server.replica.plan import NO_PLAN, Plan
from server.replica.records import Key, Record
from server.replica.refusal import NotServed
from server.replica.requests import parse
from server.replica.resident import Resident
from server.replica.session import Aids, Session, matching_keys
from server.replica.store import Store
from server.replica.tables import Tables
from server.replica.universal import Hit, Universal
from server.rpc import POINTS

__all__ = ["Searcher", "matching_keys"]

logger = logging.getLogger("server.replica")

# As often a read begins anew in a newer snapshot before it walks the store, which is slower and always possible.
_SNAPSHOT_TRIES = 5


Handler: TypeAlias = Callable[["_Answer", Any], Message]


class _Answer:
    """One call: sessions in one snapshot. Without `aids` everything is read from the store."""

    def __init__(
        self, store: Store, aids: Aids | None, settings: config.Replica, given_up: threading.Event | None = None
    ) -> None:
        self.store = store
        self.settings = settings
        self._given_up = given_up
        self._aids = aids
        self._sessions: dict[str, Session] = {}
        # Sampling wants no secret, only spread.
        self.chance = random.Random()  # noqa: S311

    def session(self, name: str) -> Session:
        """The one of a collection: the queries of a batch share it. Raises Refusal when there is no such collection."""
        found = self._sessions.get(name)
        if found is None:
            found = self._sessions[name] = Session(
                self.store, catalogue.find(self.store, name), self._aids, self._given_up
            )
        return found

    def universal(self, session: Session) -> Universal:
        """The runner of queries."""
        return Universal(session, self.session, self.chance, self.settings.response_max_points)

    def scored(self, session: Session, hits: Sequence[Hit], parts: Wanted, target: Any) -> None:
        """Fill a repeated ScoredPoint. A point that is gone by now cannot be: the snapshot holds."""
        found: dict[Key, Record] = {}
        if hits:
            session.demand(parts.names)
        if not parts.is_bare:
            keys = [hit.key for hit in hits]
            found = session.reads.fetch(session.collection.cid, keys, payload=parts.payload, vectors=parts.vectors)
        for hit in hits:
            self.fill(session, parts)(target.add(), hit, found.get(hit.key) or Record(hit.key))

    def fill(self, session: Session, parts: Wanted) -> Callable[[points.ScoredPoint, Hit, Record], None]:
        """A function that fills one ScoredPoint."""

        def one(target: points.ScoredPoint, hit: Hit, record: Record) -> None:
            outputs.fill(target, record, parts, session.fields.version)
            target.score = hit.score
            if hit.order is not None:
                target.order_value.CopyFrom(ordering.order_value(hit.order))

        return one

    def query(self, request: points.QueryPoints, target: Any) -> None:
        """Run one universal query into a repeated ScoredPoint."""
        session = self.session(request.collection_name)
        parts = outputs.wanted(request)
        self.scored(session, self.universal(session).run(request), parts, target)

    def grouped(self, query: points.QueryPoints, request: Any, limit: int, size: int) -> points.GroupsResult:
        """Run one universal query and group its results."""
        groups.check(request.group_by, limit, size)
        session = self.session(query.collection_name)
        parts = outputs.wanted(request)
        universal = self.universal(session)
        every = max(session.collection.points, 1)
        # More points than an answer may hold are never listed at once: rounds ask for a few at a time.
        if group_rounds.wants_rounds(query) or every > self.settings.response_max_points:
            gathered = Rounds(session, request.group_by, limit, size).gather(query, universal.run)
        else:
            if query.query.WhichOneof("variant") == "order_by":
                # A point comes once for each of its values; more than an answer may hold is refused.
                every = self.settings.response_max_points + 1
            gathered = groups.gather(session, universal.run(query, limit=every), request.group_by, limit, size)
        if gathered:
            session.demand(parts.names)
        lookup = request.with_lookup if request.HasField("with_lookup") else None
        return groups.result(gathered, lookup, open_session=self.session, fill=self.fill(session, parts))


def _of_batch(parent: str, child: str) -> str:
    """Requests of a batch go to the collection of the batch."""
    return parent or child


def _query(answer: _Answer, request: points.QueryPoints) -> Message:
    response = points.QueryResponse()
    answer.query(request, response.result)
    return response


def _query_batch(answer: _Answer, request: points.QueryBatchPoints) -> Message:
    response = points.QueryBatchResponse()
    for one in request.query_points:
        one.collection_name = _of_batch(request.collection_name, one.collection_name)
        answer.query(one, response.result.add().result)
    return response


def _query_groups(answer: _Answer, request: points.QueryPointGroups) -> Message:
    query = points.QueryPoints(collection_name=request.collection_name, prefetch=request.prefetch)
    for name in ("query", "filter", "params", "lookup_from"):
        if request.HasField(name):
            getattr(query, name).CopyFrom(getattr(request, name))
    if request.HasField("using"):
        query.using = request.using
    if request.HasField("score_threshold"):
        query.score_threshold = request.score_threshold
    limit = request.limit if request.HasField("limit") else groups.DEFAULT_LIMIT
    size = request.group_size if request.HasField("group_size") else groups.DEFAULT_SIZE
    return points.QueryGroupsResponse(result=answer.grouped(query, request, limit, size))


def _search(answer: _Answer, request: points.SearchPoints) -> Message:
    response = points.SearchResponse()
    answer.query(legacy.search(request), response.result)
    return response


def _search_batch(answer: _Answer, request: points.SearchBatchPoints) -> Message:
    response = points.SearchBatchResponse()
    for one in request.search_points:
        one.collection_name = _of_batch(request.collection_name, one.collection_name)
        answer.query(legacy.search(one), response.result.add().result)
    return response


def _search_groups(answer: _Answer, request: points.SearchPointGroups) -> Message:
    result = answer.grouped(legacy.search(request), request, request.limit, request.group_size)
    return points.SearchGroupsResponse(result=result)


def _recommended(answer: _Answer, request: points.RecommendPoints, target: Any) -> None:
    """With limit 0, which only this call takes, an empty answer once the collection is known to be there."""
    if request.limit == 0:
        answer.session(request.collection_name)
        return
    answer.query(legacy.recommend(request), target)


def _recommend(answer: _Answer, request: points.RecommendPoints) -> Message:
    response = points.RecommendResponse()
    _recommended(answer, request, response.result)
    return response


def _recommend_batch(answer: _Answer, request: points.RecommendBatchPoints) -> Message:
    response = points.RecommendBatchResponse()
    for one in request.recommend_points:
        one.collection_name = _of_batch(request.collection_name, one.collection_name)
        _recommended(answer, one, response.result.add().result)
    return response


def _recommend_groups(answer: _Answer, request: points.RecommendPointGroups) -> Message:
    result = answer.grouped(legacy.recommend(request), request, request.limit, request.group_size)
    return points.RecommendGroupsResponse(result=result)


def _discover(answer: _Answer, request: points.DiscoverPoints) -> Message:
    response = points.DiscoverResponse()
    answer.query(legacy.discover(request), response.result)
    return response


def _discover_batch(answer: _Answer, request: points.DiscoverBatchPoints) -> Message:
    response = points.DiscoverBatchResponse()
    for one in request.discover_points:
        one.collection_name = _of_batch(request.collection_name, one.collection_name)
        answer.query(legacy.discover(one), response.result.add().result)
    return response


def _get(answer: _Answer, request: points.GetPoints) -> Message:
    return listing.get(answer.session(request.collection_name), request)


def _scroll(answer: _Answer, request: points.ScrollPoints) -> Message:
    return listing.scroll(answer.session(request.collection_name), request, answer.settings.response_max_points)


def _count(answer: _Answer, request: points.CountPoints) -> Message:
    return listing.count(answer.session(request.collection_name), request)


def _facet(answer: _Answer, request: points.FacetCounts) -> Message:
    return listing.facet(answer.session(request.collection_name), request)


def _matrix_pairs(answer: _Answer, request: points.SearchMatrixPoints) -> Message:
    session = answer.session(request.collection_name)
    return matrix.pairs(matrix.sampled(session, answer.universal(session), request))


def _matrix_offsets(answer: _Answer, request: points.SearchMatrixPoints) -> Message:
    session = answer.session(request.collection_name)
    return matrix.offsets(matrix.sampled(session, answer.universal(session), request))


_HANDLERS: dict[str, tuple[type[Message], Handler]] = {
    "Get": (points.GetPoints, _get),
    "Scroll": (points.ScrollPoints, _scroll),
    "Count": (points.CountPoints, _count),
    "Facet": (points.FacetCounts, _facet),
    "Query": (points.QueryPoints, _query),
    "QueryBatch": (points.QueryBatchPoints, _query_batch),
    "QueryGroups": (points.QueryPointGroups, _query_groups),
    "Search": (points.SearchPoints, _search),
    "SearchBatch": (points.SearchBatchPoints, _search_batch),
    "SearchGroups": (points.SearchPointGroups, _search_groups),
    "Recommend": (points.RecommendPoints, _recommend),
    "RecommendBatch": (points.RecommendBatchPoints, _recommend_batch),
    "RecommendGroups": (points.RecommendPointGroups, _recommend_groups),
    "Discover": (points.DiscoverPoints, _discover),
    "DiscoverBatch": (points.DiscoverBatchPoints, _discover_batch),
    "SearchMatrixPairs": (points.SearchMatrixPoints, _matrix_pairs),
    "SearchMatrixOffsets": (points.SearchMatrixPoints, _matrix_offsets),
}

METHODS = frozenset(POINTS + name for name in _HANDLERS)


class Searcher:
    """Answers reads from the store. `start` keeps what it holds in memory up to date in the background."""

    def __init__(self, store: Store, settings: config.Replica, index: Index | None = None) -> None:
        self._store = store
        self._settings = settings
        limit_bytes = settings.resident_bytes if settings.resident_bytes is not None else default_resident_bytes()
        following = Following(store, limit_bytes)
        self._aids = Aids(Resident(following), Tables(following), Pace(), store.clock.monotonic, index)
        self._halt = threading.Event()
        self._warmer = threading.Thread(target=self._keep_warm, name="replica-warm", daemon=True)

    def answer(self, method: str, body: bytes, plan: Plan = NO_PLAN, given_up: threading.Event | None = None) -> bytes:
        """The serialized response to a read call; `plan` takes down how it came about. Raises Refusal, GivenUp."""
        found = _HANDLERS.get(method.removeprefix(POINTS))
        if found is None or not method.startswith(POINTS):
            raise NotServed(f"{method} is not a read that the replica knows")
        started = self._store.clock.monotonic()
        request_type, handler = found
        request = parse(request_type, body)
        read_checks.check_read(request)
        aids: Aids | None = replace(self._aids, plan=plan) if plan.is_wanted else self._aids
        for tries_left in reversed(range(_SNAPSHOT_TRIES + 1)):
            try:
                with self._store.snapshot():
                    sharding.check_read(self._store, request)
                    strict.check_read(self._store, request)
                    response = handler(_Answer(self._store, aids, self._settings, given_up), request)
                    break
            except SnapshotPassed:
                plan.step("began anew", why="the collection was changed meanwhile", without_aids=tries_left == 1)
                if tries_left == 1:
                    # What is kept in memory is never old enough for a snapshot that others have passed; the store is.
                    aids = None
        response.time = self._store.clock.monotonic() - started  # type: ignore[attr-defined]
        reply = response.SerializeToString()
        plan.step("answer", bytes=len(reply))
        return reply

    def indexed_points(self, name: str) -> dict[str, int]:
        """For the description of a collection: by field, of how many points a payload index holds a value.

        Without what cannot be told at little cost, and empty when there is no such collection.
        """
        for _ in range(_SNAPSHOT_TRIES):
            try:
                with self._store.snapshot():
                    collection = self._store.collection(name)
                    if collection is None or not collection.schema:
                        return {}
                    return listing.indexed_points(Session(self._store, collection, self._aids))
            except SnapshotPassed:
                continue
        return {}

    def start(self) -> None:
        """Begin to keep vectors and columns warm, so that the first reads of an outage need not load them."""
        if self._settings.warm_seconds > 0:
            self._warmer.start()

    def close(self) -> None:
        """Stop keeping warm."""
        self._halt.set()
        if self._warmer.ident is not None:
            self._warmer.join()

    def _keep_warm(self) -> None:
        while not self._halt.is_set():
            try:
                self.warm()
            except Exception:  # the outermost loop of the thread: reads go on without it
                logger.exception("warming up failed")
            self._halt.wait(self._settings.warm_seconds)

    def warm(self) -> None:
        """Load or bring up to date the vectors of all whole collections, and the columns of their indexed fields."""
        for name in [collection.name for collection in self._store.collections()]:
            if self._halt.is_set():
                return
            try:
                with self._store.snapshot():
                    collection = self._store.collection(name)
                    if collection is not None and catalogue.is_whole(collection) and collection.points:
                        session = Session(self._store, collection, self._aids)
                        session.warm()
                        listing.warm_indexed_points(session)
            except SnapshotPassed:
                continue
