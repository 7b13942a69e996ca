"""The one screen that shows remote, local, log and replica: follow a call here from top to bottom.

Promises: a read is forwarded while Qdrant is there and answered by the replica otherwise, then with every write that
Qdrant may have shown to others already, or marked stale; a write is acknowledged
when Qdrant has acknowledged it, or when it is in the log on disk and in the replica. No write overtakes an earlier
one to the same point. Qdrant's own refusals pass untouched; one that does not prove that nothing was done leaves a
doubt about the replica. Does not decide whether Qdrant is up (`health/`), nor
replay (`replay`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from generated.understudy.wal.v1 import entry_pb2
from server import local_answers, rpc
from server.clock import Clock
from server.config import LocalReads, Settings, StaleWarning
from server.conflicts import Conflicts, claim_of
from server.credentials import Credentials
from server.deadlines import Deadlines
from server.entries import (
    changes_some,
    collection_name,
    may_delete,
    names_its_points,
    pending_entries,
    synced_entries,
)
from server.errors import ReplicaUnavailable, UnderstudyError, UpstreamTimeout, UpstreamUnreachable, WalError
from server.gate import WriteGate
from server.logs import Message as M
from server.mirror import Mirror
from server.mode import Mode
from server.outcomes import OpenWrites, Sent
from server.pace import DrainPace
from server.repairs import Repairs
from server.replay.judge import proves_refusal
from server.replica.freshness import trailers
from server.rpc import METHODS, UPDATE_BATCH, Call, Code, Kind, Method, Offline, Reply, refuse
from server.scrub import Scrubbed, Scrubber
from server.telemetry import Telemetry
from server.unlogged import unlogged_change
from server.wal.log import Log
from server.wal.record import EntryState, NewRecord

T = TypeVar("T")

_FILTER_ON_REDACTED = "the filter matches on a secret; the local copy holds secrets redacted, so only Qdrant can answer"
_NOT_TWICE = (
    "Qdrant went away at a batch and may have done it or a part of it; it chooses points by what is there, so that it "
    "may have another effect when it is sent again"
)
_RETRY_PAUSE_SECONDS = 0.02
# A read waits this long at most for writes of which Qdrant did not say what became of them.
_SETTLE_MOST_SECONDS = 0.5


class Remote(Protocol):
    """Qdrant, as the router sees it."""

    async def handle(self, call: Call, *, reserve_seconds: float = 0.0) -> Reply:
        """Forward one call; raises UpstreamUnreachable."""
        ...


class ReplicaWrites(Protocol):
    """The replica's part in a local write."""

    async def prepare(self, request: control_pb.PrepareRequest) -> control_pb.PrepareResponse:
        """Validate and resolve."""
        ...

    async def prepare_together(self, request: control_pb.PrepareRequest) -> control_pb.PrepareResponse:
        """The same, in one call with others."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the router works with."""

    settings: Settings
    mode: Mode
    upstream: Remote | None
    # Waits out the replica's restarts within the deadline of the call.
    replica: rpc.Backend
    replica_writes: ReplicaWrites
    log: Log
    mirror: Mirror
    conflicts: Conflicts
    gate: WriteGate
    pace: DrainPace
    credentials: Credentials
    scrubber: Scrubber
    repairs: Repairs
    telemetry: Telemetry
    clock: Clock


class Router:
    """Decides, for each call, who answers. A `rpc.Backend`."""

    def __init__(self, parts: Parts) -> None:
        self._settings = parts.settings
        self._steps_in = parts.settings.vectorstore.fallback.enabled
        self._mode = parts.mode
        self._upstream = parts.upstream
        self._replica = parts.replica
        self._replica_writes = parts.replica_writes
        self._log = parts.log
        self._mirror = parts.mirror
        self._conflicts = parts.conflicts
        self._gate = parts.gate
        self._pace = parts.pace
        self._credentials = parts.credentials
        self._scrubber = parts.scrubber
        self._repairs = parts.repairs
        self._telemetry = parts.telemetry
        self._clock = parts.clock
        self._deadlines = Deadlines(parts.clock, parts.settings.replica.call_timeout_seconds)
        self._synced_seq = parts.log.last_seq
        # Up to here nobody may have waited until the replica had what was logged.
        self._unseen_seq = 0
        self._writing: set[asyncio.Task[Any]] = set()
        self._open_writes = OpenWrites()

    async def handle(self, call: Call) -> Reply:
        """Answer one call."""
        if not self._steps_in:
            assert self._upstream is not None
            return _from_remote(await self._upstream.handle(call))
        row = METHODS.get(call.method)
        if row is not None and row.offline is Offline.LOGGED:
            return await self._write(call, row)
        is_explained = row is not None and row.offline is Offline.SERVED and rpc.wants_local(call)
        if self._mode.is_remote and not is_explained:
            reply = await self._read_remote(call, row)
            if reply is not None:
                return reply
        return await self._read_local(call, row)

    # --- reads -------------------------------------------------------------------------------------------------------

    async def _read_remote(self, call: Call, row: Method | None) -> Reply | None:
        """Qdrant's answer; None when the replica must answer. Raises UpstreamTimeout when only Qdrant could have."""
        is_served = row is not None and row.offline is Offline.SERVED
        changed = "" if is_served else unlogged_change(call)
        forwarded = self._unhindered(self._forward_unlogged(call, changed)) if changed else self._forward(call)
        reply = await forwarded
        if isinstance(reply, UpstreamUnreachable):
            if isinstance(reply, UpstreamTimeout) and not is_served:
                # Slow is not away.
                raise reply
            return None
        self._credentials.saw(call, row.kind if row else Kind.ADMIN, reply)
        if reply.code is Code.UNAVAILABLE and is_served:
            return None
        return _from_remote(reply)

    async def _forward(self, call: Call) -> Reply | UpstreamUnreachable:
        """Qdrant's answer, or why there is none; leaves the client time for a local one."""
        assert self._upstream is not None
        try:
            with self._telemetry.span("upstream.call", method=call.method):
                return await self._upstream.handle(call, reserve_seconds=self._deadlines.reserve_seconds(call))
        except UpstreamUnreachable as failure:
            self._repairs.upstream_failed(failure)
            return failure

    async def _forward_unlogged(self, call: Call, name: str) -> Reply | UpstreamUnreachable:
        """As `_forward`. What Qdrant changes is in no entry of the log, so it leaves a doubt about the collection."""
        collection = self._conflicts.collection_of(name)
        with self._open_writes.open(), self._repairs.online_write(collection):
            reply = await self._forward(call)
            if isinstance(reply, UpstreamUnreachable):
                may_be_done = reply.maybe_applied
            else:
                may_be_done = reply.is_ok or not proves_refusal(call.method, reply)
            if may_be_done:
                self._repairs.in_doubt(collection, f"{call.method} is not in the log")
            return reply

    async def _read_local(self, call: Call, row: Method | None) -> Reply:
        if row is None:
            return refuse(Code.UNAVAILABLE, f"Qdrant is away and {call.method} is not known to Understudy")
        if row.offline is Offline.REFUSED:
            return refuse(Code.UNAVAILABLE, f"Qdrant is away: {row.why_refused}")
        request = rpc.parse(row, call.body)
        if isinstance(request, Reply):
            return request
        refusal = await self._let_in(call, row.kind, collection_name(request))
        if refusal is not None:
            return refusal
        if self._scrubber.secrets_in_filters(call.method, call.body):
            return refuse(Code.UNAVAILABLE, _FILTER_ON_REDACTED)
        is_settled = await self._writes_settled(call) and not self._repairs.has_untold_doubts
        with self._telemetry.span("replica.read", method=call.method):
            reply = await self._deadlines.within(call, self._ask_replica(call, self._log.last_seq))
        return self._from_local(call, reply if is_settled else local_answers.as_stale(reply))

    async def _let_in(self, call: Call, kind: Kind, collection: str) -> Reply | None:
        """Whether a call may be answered here; of a caller that nobody knows Qdrant is asked, if it is up."""
        refusal = self._credentials.check(call, kind, collection)
        question = self._credentials.question(call, refusal) if refusal and self._mode.upstream_up else None
        if question is None:
            return refusal
        reply = await self._forward(question)
        if isinstance(reply, Reply):
            self._credentials.saw(question, Kind.READ, reply)
        return self._credentials.check(call, kind, collection)

    async def _writes_settled(self, call: Call) -> bool:
        """Wait for the writes that Qdrant may have shown to others already; False when that takes too long."""
        half = self._deadlines.half_the_time_left(call)
        return await self._open_writes.settled(
            _SETTLE_MOST_SECONDS if half is None else min(half, _SETTLE_MOST_SECONDS)
        )

    async def _ask_replica(self, call: Call, acknowledged_seq: int) -> Reply:
        """The replica's answer, with every write acknowledged before the call."""
        await self._deadlines.caught_up(call, self._mirror.caught_up(acknowledged_seq))
        asked = ((rpc.EXPLAIN, "1"),) if rpc.explains(call.metadata) else ()
        return await self._replica.handle(replace(call, metadata=asked))

    # --- writes ------------------------------------------------------------------------------------------------------

    async def _write(self, call: Call, row: Method) -> Reply:
        request = rpc.parse(row, call.body)
        if isinstance(request, Reply):
            return request
        return await self._unhindered(self._write_in_turn(call, row, request))

    async def _unhindered(self, work: Coroutine[Any, Any, T]) -> T:
        """A client that hangs up must not stop a write halfway: Qdrant might have it and the replica not."""
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._write_ended)
        return await asyncio.shield(task)

    def _write_ended(self, task: asyncio.Task[Any]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, UnderstudyError):
            self._telemetry.log.error("write failed", error=repr(error))

    async def _write_in_turn(self, call: Call, row: Method, request: Message) -> Reply:
        async with self._conflicts.hold(claim_of(row, request)):
            sent = Sent()
            if not self._mode.is_remote:
                reply = await self._write_local(call, row, request, sent)
                if reply is not None:
                    return reply
            # Until it is in the log, on whichever way: a stop in between leaves a doubt.
            with self._open_writes.open(), self._repairs.online_write(self._loses_points_of(request)):
                sent.was_tried = True
                reply, sent.maybe_applied = await self._write_remote(call)
                if reply is not None:
                    return await self._acknowledged(call, row, request, reply)
                try:
                    reply = await self._write_local(self._deadlines.with_time_to_log(call), row, request, sent)
                    assert reply is not None
                    return reply
                finally:
                    if sent.leaves_doubt:
                        self._in_doubt(request, "Qdrant may have a write that did not get into the log")

    def _loses_points_of(self, request: Message) -> str:
        """The collection in which a write may make points absent, "" for none."""
        return self._conflicts.collection_of(collection_name(request)) if may_delete(request) else ""

    async def _write_remote(self, call: Call) -> tuple[Reply | None, bool]:
        """Qdrant's answer, or None and whether it may have applied the write all the same."""
        reply = await self._forward(call)
        if isinstance(reply, UpstreamUnreachable):
            return None, reply.maybe_applied
        if reply.code is Code.UNAVAILABLE:
            return None, True
        return reply, False

    async def _acknowledged(self, call: Call, row: Method, request: Message, reply: Reply) -> Reply:
        """Qdrant has answered: what it accepted goes to the log for the replica."""
        self._credentials.saw(call, Kind.WRITE, reply)
        if reply.is_ok or changes_some(row, request, reply):
            scrubbed = self._scrub(call)
            if scrubbed.in_filters:
                self._in_doubt(request, _FILTER_ON_REDACTED)
            elif not reply.is_ok and row.path == UPDATE_BATCH:
                self._in_doubt(request, "Qdrant stopped in the middle of a batch")
            else:
                await self._log_synced(call, row, request, scrubbed.body)
            self._conflicts.note(row, request)
            # Not so long that the answer would come too late.
            await self._mirror.admit(self._deadlines.half_the_time_left(call))
        elif not proves_refusal(call.method, reply):
            self._in_doubt(request, f"Qdrant may have done a write to which it answered {reply.code.name}")
        return _from_remote(reply)

    def _in_doubt(self, request: Message, reason: str) -> None:
        """A write that Qdrant has, or may have, is not in the log: its collection must be copied again."""
        self._repairs.in_doubt(self._conflicts.collection_of(collection_name(request)), reason)

    async def _log_synced(self, call: Call, row: Method, request: Message, body: bytes) -> None:
        limits = self._settings.wal
        parts = synced_entries(
            row, request, body, tenant=call.tenant, entry_bytes=limits.entry_bytes, entry_points=limits.entry_points
        )
        try:
            for entry in parts:
                self._synced_seq = await self._log.append(self._record(call, row, entry, EntryState.SYNCED))
        except WalError as error:
            self._telemetry.log.error(M.LOCAL_WRITE_FAILED, method=call.method, error=str(error))
            self._in_doubt(request, str(error))

    async def _write_local(self, call: Call, row: Method, request: Message, sent: Sent) -> Reply | None:
        """Check, prepare, log, apply; acknowledged when it is on disk and in the replica.

        None, with nothing done: calls go to Qdrant by now, and this one was not tried there yet.
        """
        refusal = await self._let_in(call, Kind.WRITE, collection_name(request))
        if refusal is not None:
            return refusal
        scrubbed = self._scrub(call)
        if scrubbed.in_filters:
            return refuse(Code.UNAVAILABLE, _FILTER_ON_REDACTED)
        await self._pace.admit(self._deadlines.half_the_time_left(call))
        with self._telemetry.span("replica.prepare", method=call.method):
            # Before the gate: waiting for a replica that is away must not keep the switch to Qdrant waiting.
            preparing = self._prepare(row, request, scrubbed.body)
            prepared = await self._deadlines.within(
                call, preparing if sent.was_tried else self._mode.unless_remote(preparing)
            )
        async with self._gate:
            if prepared is None or (self._mode.is_remote and not sent.was_tried):
                # The drain ended while it waited: logged now, it would begin another one.
                return None
            refused: Reply | None = None
            if prepared.code:
                refused = refuse(Code(prepared.code), prepared.details)
                if not prepared.resolved:
                    is_whole = prepared.freshness.completeness == control_pb.COMPLETENESS_COMPLETE
                    sent.is_refused = is_whole and prepared.code == Code.NOT_FOUND
                    return self._from_local(call, refused.with_trailers(*trailers(prepared.freshness)))
                # Qdrant does the first parts of a batch before it refuses one: they are logged like any write.
            entries = pending_entries(
                row,
                request,
                scrubbed.body,
                resolved=prepared.resolved,
                maybe_applied=sent.maybe_applied,
                tenant=call.tenant,
            )
            if len(entries) > 1 and sent.maybe_applied:
                refused = refuse(Code.UNAVAILABLE, _NOT_TWICE)
                return self._from_local(call, refused.with_trailers(*trailers(prepared.freshness)))
            with self._telemetry.span("wal.append", method=call.method):
                seqs = [await self._log_pending(call, entry, sent) for entry in entries]
            self._repairs.log_is_durable()
        with self._telemetry.span("replica.apply", seq=sent.seq):
            try:
                applied = await self._deadlines.within(call, self._result(row, request, seqs))
            except BaseException:
                # Those behind it are not to be checked against a replica that lacks it.
                self._unseen_seq = max(self._unseen_seq, sent.seq)
                raise
        self._conflicts.note(row, request)
        if applied is None:
            # The replica applied it, then crashed before it could answer: the write is done, its answer is gone.
            reply = refused or Reply(local_answers.plain_success(row, request, sent.seq))
            return self._from_local(call, reply.with_trailers((rpc.AS_OF, str(sent.seq))))
        reply = refused or (refuse(Code(applied.code), applied.details) if applied.code else Reply(applied.reply))
        return self._from_local(call, reply.with_trailers(*trailers(applied.freshness)))

    async def _log_pending(self, call: Call, entry: entry_pb2.Entry, sent: Sent) -> int:
        try:
            record = self._record(call, METHODS[entry.method], entry, EntryState.PENDING)
            sent.seq = await self._log.append(record)
        except WalError as error:
            self._telemetry.log.error(M.LOCAL_WRITE_FAILED, method=call.method, error=str(error))
            # The entries before it stay, as what Qdrant did of a batch before it stopped.
            self._unseen_seq = max(self._unseen_seq, sent.seq)
            raise
        self._mode.write_logged()
        return sent.seq

    async def _result(self, row: Method, request: Message, seqs: list[int]) -> control_pb.Applied | None:
        """The replica's answer to a write: to the first of its entries that it refused, else as to the whole."""
        results = [await self._mirror.result(seq) for seq in seqs]
        last = results[-1]
        if len(seqs) == 1 or last is None:
            return last
        answer = next((each for each in results if each is not None and each.code), None)
        if answer is None:
            answer = control_pb.Applied(reply=local_answers.plain_success(row, request, seqs[-1]))
        answer.freshness.CopyFrom(last.freshness)
        return answer

    async def _prepare(self, row: Method, request: Message, body: bytes) -> control_pb.PrepareResponse:
        asked = control_pb.PrepareRequest(method=row.path, request=body)
        is_quick = names_its_points(row, request)
        ask = self._replica_writes.prepare_together if is_quick else self._replica_writes.prepare
        while True:
            # Earlier conflicting local writes are applied, but those whose callers did not wait for that; what Qdrant
            # acknowledged may be on its way.
            await self._mirror.caught_up(max(self._synced_seq, self._unseen_seq))
            # Where the replica may lack a write, what a point was before this one is not known.
            await self._repairs.doubts_told()
            try:
                return await ask(asked)
            except ReplicaUnavailable:
                await asyncio.sleep(_RETRY_PAUSE_SECONDS)

    def _scrub(self, call: Call) -> Scrubbed:
        """The request as it may go to disk."""
        scrubbed = self._scrubber.scrub(call.method, call.body)
        self._telemetry.metrics.redactions(scrubbed.redactions)
        return scrubbed

    def _record(self, call: Call, row: Method, entry: entry_pb2.Entry, state: EntryState) -> NewRecord:
        entry.real_collection = self._conflicts.behind(entry.collection)
        return NewRecord(
            kind=row.wal_kind,
            state=state,
            body=entry.SerializeToString(),
            principal=self._credentials.principal(call),
            trace=self._telemetry.traceparent(),
            points=entry.point_count,
        )

    # --- the end of a drain ------------------------------------------------------------------------------------------

    async def settle(self, grace_seconds: float) -> None:
        """Wait for the writes under way, at most `grace_seconds`."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=grace_seconds)

    # --- answers -----------------------------------------------------------------------------------------------------

    def _from_local(self, call: Call, reply: Reply) -> Reply:
        pending = self._log.pending_count
        completeness = dict(reply.trailers).get(rpc.COMPLETENESS, "complete")
        if (
            reply.is_ok
            and METHODS[call.method].kind is Kind.READ
            and completeness not in ("complete", "stale")
            and self._settings.replica.local_reads is LocalReads.COMPLETE_ONLY
        ):
            return refuse(Code.UNAVAILABLE, f"Qdrant is away and the local copy is {completeness!s}")
        if reply.is_ok and self._settings.responses.stale_warning is StaleWarning.PAYLOAD:
            reply = replace(reply, body=local_answers.mark(call.method, reply.body))
        as_asked = self._mode.is_remote and rpc.wants_local(call)
        return reply.with_trailers(
            (rpc.SOURCE, "local"),
            (rpc.STALE_WARNING, local_answers.AS_ASKED if as_asked else local_answers.WARNING),
            (rpc.PENDING, str(pending)),
        )


def _from_remote(reply: Reply) -> Reply:
    return reply.with_trailers((rpc.SOURCE, "remote"))
