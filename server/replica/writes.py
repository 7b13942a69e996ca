"""The write side of the replica: prepare a write, apply log entries.

Promises: entries are applied in order, each once, in one transaction with the cursor: after a crash the store holds
the entries up to `applied_seq` and nothing of later ones. An entry that cannot be applied (its collection is gone, it
is not understood) does not stop those behind it: its answer says why, and its collection is marked STALE where the two
sides may now differ. Only one thread may apply at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import entry_pb2 as wal
from server.clock import Clock
from server.replica import baseline_rows, catalogue, former_rows
from server.replica import requests as r
from server.replica.applying import Applier
from server.replica.baseline_rows import Keeper
from server.replica.former_rows import FormerRows
from server.replica.payload_edits import may_hold_unfit_numbers
from server.replica.reads import Reads
from server.replica.refusal import Halted, NotServed, Refusal, no_point
from server.replica.resolving import Matching, Plain, Resolved, Resolver, is_nothing
from server.replica.store import Store, Transaction
from server.replica.touched import Touched
from server.rpc import METHODS, Code, Method

logger = logging.getLogger(__name__)

# What a request that was never meant to be may raise in the code that applies it.
_UNFIT = (DecodeError, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError)

# Writes that name points by id, so that a missing point is an answer.
_NAMING = frozenset(
    (r.UPDATE_VECTORS, r.DELETE_VECTORS, r.SET_PAYLOAD, r.OVERWRITE_PAYLOAD, r.DELETE_PAYLOAD, r.CLEAR_PAYLOAD)
)


class _RolledBack(Exception):
    """Ends a transaction that was only a trial."""


class Writes:
    """Prepares and applies."""

    def __init__(
        self,
        store: Store,
        matching: Matching,
        touched: Touched,
        clock: Clock,
        *,
        resolved_points: int,
        former_points: int = 0,
    ) -> None:
        self._store = store
        self._matching = matching
        self._touched = touched
        self._clock = clock
        self._resolved_points = resolved_points
        self._former_points = former_points

    # --- prepare -----------------------------------------------------------------------------------------------------

    def prepare(self, method: str, body: bytes) -> list[wal.Operation]:
        """The plain operations that replace a write, [] when it is plain as it stands.

        Raises Refusal; Halted for a batch of which Qdrant would do the first parts.
        """
        row = _row(method)
        request = r.parse(row.request, body)
        is_odd = may_hold_unfit_numbers(body)
        if isinstance(request, pb.UpdateBatchPoints):
            resolved = self._resolve_batch(request, is_odd)
        else:
            with self._store.snapshot():
                resolved = self._resolver(self._store, is_odd).resolve(method, request)
        return _operations(resolved or ())

    def _resolver(self, reads: Reads, checks_numbers: bool) -> Resolver:
        return Resolver(reads, self._matching, self._resolved_points, checks_numbers=checks_numbers)

    def _resolve_batch(self, batch: pb.UpdateBatchPoints, checks_numbers: bool) -> Resolved:
        """Resolve each part in the state that the parts before it leave: on trial, in a transaction rolled back.

        As in Qdrant, a part that is refused leaves the parts before it done and those behind it undone.
        """
        resolved: list[tuple[str, Message]] = []
        is_plain = True
        try:
            with self._store.transaction() as tx:
                resolver = self._resolver(tx, checks_numbers)
                applier = Applier(tx, self._matching, Touched(0), 0, synced=False)
                for method, part in r.parts_of(batch):
                    replaced = resolver.resolve(method, part)
                    missing = _missing_point(applier, method, part)
                    is_plain = is_plain and replaced is None
                    for plain_method, plain in [(method, part)] if replaced is None else replaced:
                        applier.apply(plain_method, plain)
                        resolved.append((plain_method, plain))
                    if missing:
                        # The points of this part that are there were changed.
                        raise no_point(missing)
                raise _RolledBack
        except _RolledBack:
            return None if is_plain else _with_effect(resolved)
        except Refusal as refusal:
            if resolved:
                raise Halted(refusal, _operations(_with_effect(resolved))) from refusal
            raise

    # --- apply -------------------------------------------------------------------------------------------------------

    def apply(
        self,
        entries: Iterable[control.LogEntry],
        replayed_seq: int = 0,
        *,
        keeps_former: bool = False,
        forgets_through_seq: int = 0,
        given_up: Sequence[control.RefusedEntry] = (),
    ) -> control.ApplyResponse:
        """Apply log entries; those already in are answered without being done again. Qdrant has those up to
        `replayed_seq`, and will never have what an operator took out of the quarantine, `given_up`: that is on the
        medium when this returns.
        """
        response = control.ApplyResponse()
        keeps_former = keeps_former and self._former_points > 0
        with self._store.durable_transaction() if given_up else self._store.transaction() as tx:
            former: FormerRows | None = None
            if keeps_former:
                former = FormerRows(self._former_points, forgets_through_seq, int(tx.meta(former_rows.BEGAN_AT) or 0))
            if former is None:
                former_rows.forget_all(tx)
            else:
                former_rows.forget(tx, forgets_through_seq)
            applied_seq = tx.applied_seq
            baseline_rows.purge(tx, replayed_seq)
            for entry in entries:
                if entry.seq <= applied_seq:
                    response.results.append(_past(entry))
                else:
                    response.results.append(self._apply_entry(tx, entry, replayed_seq, former))
                    applied_seq = entry.seq
                if not entry.synced:
                    # Qdrant has answered the others.
                    told = catalogue.freshness_of(tx, entry.entry.collection, applied_seq)
                    response.results[-1].freshness.CopyFrom(told)
            former_rows.give_up(tx, given_up)
            tx.set_applied_seq(applied_seq)
        response.applied_seq = applied_seq
        return response

    def apply_direct(self, method: str, body: bytes) -> bytes:
        """A write without a log: prepared and applied under the next number. Raises Refusal."""
        halted: Halted | None = None
        try:
            resolved = self.prepare(method, body)
        except Halted as refusal:
            halted, resolved = refusal, list(refusal.done)
        entry = wal.Entry(method=method, request=body, resolved=resolved)
        seq = self._store.applied_seq + 1
        # Nobody will send it to a Qdrant: there is nothing to compare later.
        result = self.apply([control.LogEntry(seq=seq, entry=entry)], replayed_seq=seq).results[0]
        if halted is not None:
            raise halted
        if result.code:
            raise Refusal(Code(result.code), result.details)
        return result.reply

    def _apply_entry(
        self, tx: Transaction, entry: control.LogEntry, replayed_seq: int, former: FormerRows | None
    ) -> control.Applied:
        started = self._clock.monotonic()
        tx.connection().execute("SAVEPOINT entry")
        try:
            keeper = _keeper(tx, entry, replayed_seq)
            reply = self._reply_to(tx, entry, keeper, former, lambda: self._clock.monotonic() - started)
        except Refusal as refusal:
            if entry.synced and refusal.code != Code.NOT_FOUND:
                # Qdrant has done it and the replica cannot, such as vectors that the server's inference made.
                self._distrust(tx, entry.entry.collection)
            reply = control.Applied(seq=entry.seq, code=refusal.code, details=refusal.details)
        except _UNFIT as error:
            # A fault of ours or a body that no client sends. Stopping here would stop every later write for ever.
            logger.exception("log entry %d (%s) cannot be applied", entry.seq, entry.entry.method)
            tx.connection().execute("ROLLBACK TO entry")
            self._distrust(tx, entry.entry.collection)
            reply = control.Applied(
                seq=entry.seq, code=Code.INTERNAL, details=f"the replica cannot apply this: {error}"
            )
        tx.connection().execute("RELEASE entry")
        return reply

    def _distrust(self, tx: Transaction, name: str) -> None:
        collection = tx.collection(name)
        if collection is not None:
            catalogue.distrust(tx, collection)

    def _reply_to(
        self,
        tx: Transaction,
        entry: control.LogEntry,
        keeper: Keeper | None,
        former: FormerRows | None,
        elapsed: Callable[[], float],
    ) -> control.Applied:
        row = _row(entry.entry.method)
        request = r.parse(row.request, entry.entry.request)
        applier = Applier(
            tx,
            self._matching,
            self._touched,
            entry.seq,
            synced=entry.synced,
            retry_of=entry.entry.retry_of,
            keeper=keeper,
            former=former,
        )
        missing = ""
        if not entry.synced and row.path in _NAMING and getattr(request, "wait", False):
            missing = applier.missing_point(request)
        existed = _names_existing(tx, request)
        if entry.entry.resolved:
            for operation in entry.entry.resolved:
                applier.apply(operation.method, r.parse(_row(operation.method).request, operation.request))
        else:
            applier.apply(row.path, request)
        if missing:
            refusal = no_point(missing)
            return control.Applied(seq=entry.seq, code=refusal.code, details=refusal.details)
        body = response_to(row, request, entry.seq, existed=existed, seconds=elapsed())
        return control.Applied(seq=entry.seq, reply=body.SerializeToString())


def _keeper(tx: Transaction, entry: control.LogEntry, replayed_seq: int) -> Keeper | None:
    """What keeps the points that an entry changes, while Qdrant does not have it."""
    if entry.synced or entry.seq <= replayed_seq:
        return None
    is_ours = entry.entry.maybe_applied or bool(entry.entry.retry_of)
    return Keeper(tx, entry.seq, replayed_seq, is_ours=is_ours)


def _missing_point(applier: Applier, method: str, part: Any) -> str:
    return applier.missing_point(part) if method in _NAMING and part.wait else ""


def _with_effect(parts: list[Plain]) -> list[Plain]:
    """The parts that change something, one at least: what names no points keeps replay from looking at the others'."""
    return [part for part in parts if not is_nothing(*part)] or parts[:1]


def _operations(plain: Iterable[tuple[str, Message]]) -> list[wal.Operation]:
    return [wal.Operation(method=method, request=request.SerializeToString()) for method, request in plain]


def _row(method: str) -> Method:
    row = METHODS.get(method)
    if row is None or not row.wal_kind:
        raise NotServed(f"the replica has no write {method}")
    return row


def _names_existing(tx: Transaction, request: Message) -> bool:
    """Whether a request to delete a collection finds it."""
    if not isinstance(request, collections.DeleteCollection):
        return True
    found = tx.collection(request.collection_name)
    return found is not None and found.name == request.collection_name


def _past(entry: control.LogEntry) -> control.Applied:
    """The answer to an entry that is in already."""
    try:
        row = _row(entry.entry.method)
        request = r.parse(row.request, entry.entry.request)
    except Refusal as refusal:
        return control.Applied(seq=entry.seq, code=refusal.code, details=refusal.details)
    body = response_to(row, request, entry.seq, existed=True, seconds=0.0)
    return control.Applied(seq=entry.seq, reply=body.SerializeToString())


def response_to(row: Method, request: Any, seq: int, *, existed: bool, seconds: float) -> Message:
    """Qdrant's answer to a write that was done."""
    if row.path.startswith(r.COLLECTIONS):
        return collections.CollectionOperationResponse(result=existed, time=seconds)
    status = pb.UpdateStatus.Completed if request.wait else pb.UpdateStatus.Acknowledged
    result = pb.UpdateResult(operation_id=seq, status=status)
    if isinstance(request, pb.UpdateBatchPoints):
        return pb.UpdateBatchResponse(result=[result] * len(request.operations), time=seconds)
    return pb.PointsOperationResponse(result=result, time=seconds)
