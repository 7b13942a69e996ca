"""What the replica answers: the Qdrant API and the control service, as raw bytes, in its own process.

Promises: the event loop never waits for SQLite or a search: reads of clients run in one pool of threads, what writes
and the proxy itself ask in another, writes in one thread of their own, in the order in which they came. A read that
nobody waits for any more ends early. What the replica refuses has Qdrant's status and text; answers about a
collection carry its completeness and the log entry it is as of in the trailing metadata.
Does not check credentials: the socket is private.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from threading import Event
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from generated.qdrant import qdrant_pb2
from generated.understudy.replica.v1 import replica_pb2 as control
from server.clock import Clock
from server.replica import catalogue, freshness
from server.replica import requests as r
from server.replica.baselines import Baselines
from server.replica.former_desk import FormerDesk
from server.replica.imports import Imports
from server.replica.plan import NO_PLAN, Plan
from server.replica.refusal import Halted, NotServed, Refusal
from server.replica.store import Store
from server.replica.writes import Writes
from server.rpc import (
    ASSUMED_VERSION,
    GRPC_HEALTH_CHECK,
    HEALTH_CHECK,
    HEALTH_TITLE,
    METHODS,
    PLAN,
    Call,
    Code,
    Kind,
    Method,
    Offline,
    Reply,
    explains,
    refuse,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=Message)

CONTROL = "/understudy.replica.v1.ReplicaService/"
# grpc.health.v1.HealthCheckResponse{status: SERVING}.
_SERVING = b"\x08\x01"


class Reader(Protocol):
    """Answers reads of points: `search.Searcher`."""

    def answer(self, method: str, body: bytes, plan: Plan = NO_PLAN, given_up: Event | None = None) -> bytes:
        """The serialized response; `plan` takes down how it came about. Raises Refusal. Thread-safe.

        Ends with GivenUp soon after `given_up` is set.
        """
        ...

    def indexed_points(self, name: str) -> Mapping[str, int]:
        """By field, of how many points of a collection a payload index holds a value; as far as that is cheap."""
        ...


class IndexStates(Protocol):
    """Tells how the vector index of a collection is."""

    def lag(self, cid: int) -> int:
        """Points whose vectors wait for the index."""
        ...

    def state(self, cid: int) -> str:
        """`ready`, `building` or `off`."""
        ...


class Service:
    """All RPCs of the replica. `alone`: there is no log, so writes of the Qdrant API are applied as they come."""

    def __init__(
        self,
        store: Store,
        *,
        reader: Reader,
        writes: Writes,
        imports: Imports,
        baselines: Baselines,
        former: FormerDesk,
        index: IndexStates,
        clock: Clock,
        alone: bool,
        read_threads: int,
    ) -> None:
        self._store = store
        self._reader = reader
        self._writes = writes
        self._imports = imports
        self._baselines = baselines
        self._former = former
        self._index = index
        self._clock = clock
        self._alone = alone
        self._readers = ThreadPoolExecutor(read_threads, thread_name_prefix="replica-read")
        # Large reads must not hold up writes: what these need to be prepared does not wait in the same line.
        self._aside = ThreadPoolExecutor(read_threads, thread_name_prefix="replica-aside")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="replica-write")
        self._applied_seq = store.applied_seq
        self._moved = asyncio.Event()
        self._control: Mapping[str, Callable[[bytes], Awaitable[Message]]] = {
            "Attach": self._attach,
            "Prepare": self._prepare,
            "PrepareGroup": self._prepare_group,
            "Apply": self._apply,
            "ImportCatalogue": self._import_catalogue,
            "ImportPage": self._import_page,
            "ComparePage": self._compare_page,
            "CompareBaselines": self._compare_baselines,
            "SettleBaselines": self._settle_baselines,
            "ListFormer": self._list_former,
            "JudgeFormer": self._judge_former,
            "NoteVerified": self._note_verified,
            "SetCompleteness": self._set_completeness,
            "Status": self._status,
        }

    def close(self) -> None:
        """Wait for the work under way and end the threads."""
        self._readers.shutdown()
        self._aside.shutdown()
        self._writer.shutdown()

    async def handle(self, call: Call) -> Reply:
        """See Backend: every status is the replica's own. The deadline is the caller's."""
        try:
            if call.method.startswith(CONTROL):
                return await self._answer_control(call)
            if call.method == GRPC_HEALTH_CHECK:
                return Reply(_SERVING)
            if call.method not in METHODS:
                return _unknown(call.method)
            return await self._answer_qdrant(METHODS[call.method], call)
        except Refusal as refusal:
            return refuse(Code(refusal.code), refusal.details)
        except Exception:  # the outermost frame of a call
            logger.exception("%s failed", call.method)
            return refuse(Code.INTERNAL, f"the replica failed to answer {call.method}; its log says why")

    async def _answer_control(self, call: Call) -> Reply:
        answer = self._control.get(call.method.removeprefix(CONTROL))
        return _unknown(call.method) if answer is None else Reply((await answer(call.body)).SerializeToString())

    # --- the Qdrant API ----------------------------------------------------------------------------------------------

    async def _answer_qdrant(self, row: Method, call: Call) -> Reply:
        if row.path == HEALTH_CHECK:
            r.parse(qdrant_pb2.HealthCheckRequest, call.body)
            version = await self._look(self._version)
            return Reply(qdrant_pb2.HealthCheckReply(title=HEALTH_TITLE, version=version).SerializeToString())
        if row.offline is Offline.REFUSED:
            raise NotServed(row.why_refused)
        if row.kind is Kind.READ:
            plan = Plan(self._clock.monotonic) if explains(call.metadata) else NO_PLAN
            started = self._clock.monotonic()
            reply = await self._read(lambda given_up: self._answer_read(row, call.body, started, plan, given_up))
            return reply.with_trailers((PLAN, plan.as_json())) if plan.is_wanted else reply
        if not self._alone:
            raise Refusal(Code.FAILED_PRECONDITION, "writes reach this replica through the log of its proxy only")
        return Reply(await self._write(lambda: self._writes.apply_direct(row.path, call.body)))

    def _answer_read(self, row: Method, body: bytes, started: float, plan: Plan, given_up: Event) -> Reply:
        # Told before the read: what is newer than promised does no harm.
        named = collection_named_in(row, body)
        trailers = freshness.trailers(catalogue.freshness_of(self._store, named, self._store.applied_seq))
        try:
            if not row.path.startswith(r.COLLECTIONS):
                return Reply(self._reader.answer(row.path, body, plan, given_up), trailers=trailers)
            indexed = self._reader.indexed_points(named) if row.path == catalogue.GET else {}
            with self._store.snapshot():
                answer = catalogue.answer(
                    self._store, row.path, body, lambda: self._clock.monotonic() - started, indexed
                )
                return Reply(answer, trailers=trailers)
        except Refusal as refusal:
            # Whether it says no for want of data is of interest too.
            return refuse(Code(refusal.code), refusal.details).with_trailers(*trailers)

    def _version(self) -> str:
        return self._store.meta(catalogue.REMOTE_VERSION) or ASSUMED_VERSION

    # --- control -----------------------------------------------------------------------------------------------------

    async def _attach(self, body: bytes) -> Message:
        request = r.parse(control.AttachRequest, body)
        return await self._write(lambda: self._imports.attach(request))

    async def _prepare(self, body: bytes) -> Message:
        request = r.parse(control.PrepareRequest, body)
        # A batch is resolved in a transaction on trial, so it waits its turn with the writes.
        run = self._write if request.method == r.UPDATE_BATCH else self._look
        return await run(lambda: self._prepared(request))

    async def _prepare_group(self, body: bytes) -> Message:
        requests = r.parse(control.PrepareGroupRequest, body).requests
        responses = await self._look(lambda: [self._prepared_in_group(request) for request in requests])
        return control.PrepareGroupResponse(responses=responses)

    def _prepared_in_group(self, request: control.PrepareRequest) -> control.PrepareResponse:
        try:
            if request.method == r.UPDATE_BATCH:
                raise ValueError("a batch is prepared alone: it needs the writer's thread")
            return self._prepared(request)
        except Exception:  # the outermost frame of one write: the others of its group are not to blame
            logger.exception("preparing %s failed", request.method)
            return control.PrepareResponse(failed=True, details=f"{request.method}; the replica's log says why")

    def _prepared(self, request: control.PrepareRequest) -> control.PrepareResponse:
        try:
            return control.PrepareResponse(resolved=self._writes.prepare(request.method, request.request))
        except Refusal as refusal:
            return control.PrepareResponse(
                code=refusal.code,
                details=refusal.details,
                resolved=refusal.done if isinstance(refusal, Halted) else (),
                freshness=self._freshness(request),
            )

    def _freshness(self, request: control.PrepareRequest) -> control.Freshness:
        row = METHODS.get(request.method)
        named = ""
        if row is not None:
            with contextlib.suppress(Refusal):  # a body that is no message names nothing
                named = collection_named_in(row, request.request)
        return catalogue.freshness_of(self._store, named, self._store.applied_seq)

    async def _apply(self, body: bytes) -> Message:
        request = r.parse(control.ApplyRequest, body)

        def apply() -> control.ApplyResponse:
            return self._writes.apply(
                request.entries,
                request.replayed_seq,
                keeps_former=request.keeps_former,
                forgets_through_seq=request.forgets_through_seq,
                given_up=request.given_up,
            )

        return await self._write(apply)

    async def _list_former(self, body: bytes) -> Message:
        request = r.parse(control.ListFormerRequest, body)
        return await self._look(lambda: self._former.list_points(request))

    async def _judge_former(self, body: bytes) -> Message:
        request = r.parse(control.JudgeFormerRequest, body)
        return await self._look(lambda: self._former.judge(request))

    async def _import_catalogue(self, body: bytes) -> Message:
        request = r.parse(control.ImportCatalogueRequest, body)
        await self._applied(max(request.since_seq, request.read_seq))
        return await self._write(lambda: self._imports.catalogue(request))

    async def _import_page(self, body: bytes) -> Message:
        request = r.parse(control.ImportPageRequest, body)
        # Entries that the page may already show must not be applied over it.
        await self._applied(max(request.since_seq, request.read_seq))
        return await self._write(lambda: self._imports.page(request))

    async def _compare_page(self, body: bytes) -> Message:
        request = r.parse(control.ComparePageRequest, body)
        await self._applied(request.since_seq)
        return await self._look(lambda: self._imports.compare(request))

    async def _compare_baselines(self, body: bytes) -> Message:
        request = r.parse(control.CompareBaselinesRequest, body)
        await self._applied(request.since_seq)
        return await self._write(lambda: self._baselines.compare(request))

    async def _settle_baselines(self, body: bytes) -> Message:
        request = r.parse(control.SettleBaselinesRequest, body)
        return await self._write(lambda: self._baselines.settle(request))

    async def _note_verified(self, body: bytes) -> Message:
        request = r.parse(control.NoteVerifiedRequest, body)
        return await self._write(lambda: self._imports.note_verified(request))

    async def _set_completeness(self, body: bytes) -> Message:
        request = r.parse(control.SetCompletenessRequest, body)
        return await self._write(lambda: self._imports.set_completeness(request))

    async def _status(self, body: bytes) -> Message:
        r.parse(control.StatusRequest, body)
        return await self._look(self._status_now)

    def _status_now(self) -> control.StatusResponse:
        with self._store.snapshot():
            return control.StatusResponse(
                applied_seq=self._store.applied_seq,
                collections=[
                    control.CollectionState(
                        name=collection.name,
                        completeness=collection.completeness or control.COMPLETENESS_EMPTY,  # type: ignore[arg-type]
                        points=collection.points,
                        as_of_seq=collection.as_of_seq,
                        index_lag=self._index.lag(collection.cid),
                        resume_at=collection.resume_at,
                        expected_points=collection.expected_points,
                        index_state=self._index.state(collection.cid),
                        verified_unix_ns=self._store.verified_unix_ns(collection.cid),
                        doubt_number=collection.doubt_number,
                    )
                    for collection in self._store.collections()
                ],
                catalogue_known=catalogue.is_known(self._store),
                remote_version=self._store.meta(catalogue.REMOTE_VERSION),
                pid=os.getpid(),
            )

    # --- threads -----------------------------------------------------------------------------------------------------

    async def _read(self, work: Callable[[Event], T]) -> T:
        given_up = Event()
        try:
            return await self._run(self._readers, lambda: work(given_up))
        except asyncio.CancelledError:
            # The thread cannot be stopped from here: it looks at this between pages.
            given_up.set()
            raise

    async def _look(self, work: Callable[[], T]) -> T:
        return await self._run(self._aside, work)

    async def _write(self, work: Callable[[], T]) -> T:
        # A caller that hangs up must not leave the loop believing that nothing was written.
        return await asyncio.shield(asyncio.ensure_future(self._write_whole(work)))

    async def _write_whole(self, work: Callable[[], T]) -> T:
        result, applied_seq = await self._run(self._writer, lambda: (work(), self._store.applied_seq))
        self._applied_seq = applied_seq
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        return result

    async def _run(self, threads: Executor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    async def _applied(self, seq: int) -> None:
        """Wait until the entries up to `seq` are in."""
        while self._applied_seq < seq:
            await self._moved.wait()


def _unknown(method: str) -> Reply:
    return refuse(Code.UNIMPLEMENTED, f"the replica knows no method {method}")


def collection_named_in(row: Method, body: bytes) -> str:
    """The collection that a request names: field 1 of every request that names one, mostly the first bytes."""
    if not body or "collection_name" not in row.request.DESCRIPTOR.fields_by_name:
        return ""
    if len(body) > 1 and body[0] == 0x0A and body[1] < 0x80 and len(body) >= 2 + body[1]:
        return body[2 : 2 + body[1]].decode("utf-8", "replace")
    name: str = getattr(r.parse(row.request, body), "collection_name", "")
    return name
