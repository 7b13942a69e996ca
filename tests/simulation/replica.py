"""The replica as a model: the service that the proxy talks to, over points in memory.

Promises what `server.replica` promises the proxy: entries applied in order, each once, with the cursor in one
transaction; imports that leave alone what later entries touched; a kill loses nothing that was committed, a power cut
the last transactions (SQLite with `synchronous=NORMAL`). One collection; its vectors are not modelled.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf.message import Message

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import entry_pb2
from server import config
from server.clock import Clock
from server.errors import ReplicaUnavailable
from server.replica.former import Finding, Kept, formers_of, judge
from server.replica.process import ReplicaControl
from server.replica.records import Record
from server.replica.touched import Touched
from server.rpc import AS_OF, COMPLETENESS, METHODS, Call, Code, Reply, refuse
from server.telemetry import Telemetry
from tests.simulation import points as p
from tests.simulation.loop import VirtualLoop

_SERVICE = "/understudy.replica.v1.ReplicaService/"
_NAMES = {
    control.COMPLETENESS_EMPTY: "empty",
    control.COMPLETENESS_HYDRATING: "hydrating",
    control.COMPLETENESS_COMPLETE: "complete",
    control.COMPLETENESS_STALE: "stale",
}
_CID = 1
_MOST_SECONDS = 0.003
_CHANGING = frozenset(
    _SERVICE + name
    for name in (
        "Apply",
        "ImportPage",
        "ImportCatalogue",
        "SetCompleteness",
        "NoteVerified",
        "CompareBaselines",
        "SettleBaselines",
    )
)


_Look: TypeAlias = control.CompareBaselinesRequest | control.SettleBaselinesRequest


@dataclass(frozen=True)
class Before:
    """A point before its first pending write; `is_open`: whether it is to be judged yet; `looker`: by whom it was.

    Once it was judged: its fate, up to which entry, what Qdrant had of it then, and when that was. `origin` is what it
    was at first, also when what went into the conflict log took the place of `payload`.
    """

    first_seq: int
    last_seq: int
    payload: p.Payload | None
    is_open: bool
    looker: int = field(default=0, repr=False)
    origin: p.Payload | None = field(default=None, repr=False)
    # The first pending write has a filter: nobody looks at what it matches.
    is_by_filter: bool = field(default=False, repr=False)
    fate: int = field(default=control.FATE_LOCAL, repr=False)
    until_seq: int = field(default=0, repr=False)
    seen: p.Payload | None = field(default=None, repr=False)
    judged_at: float = field(default=0.0, repr=False)

    def is_to_judge(self, touch: control.Touch, look: _Look) -> bool:
        """Whether it is, or is again, for nothing that touches it was sent."""
        is_again = self.fate == control.FATE_LOCAL and 0 != self.looker == look.looker
        return self.first_seq == touch.seq and self.first_seq > look.sent_seq and (self.is_open or is_again)


@dataclass(frozen=True)
class Change:
    """What a pending entry does to a point."""

    seq: int
    values: frozenset[int]


@dataclass(frozen=True)
class Row:
    """What a point was before an entry."""

    seq: int
    synced: bool
    number: int
    is_known: bool
    payload: p.Payload | None
    is_whole: bool
    retry_of: int


@dataclass
class Stored:
    """What is in the database. `exists`: whether it knows the collection."""

    points: p.Points = field(default_factory=dict)
    applied_seq: int = 0
    log_id: str = ""
    is_known: bool = False
    exists: bool = False
    completeness: int = control.COMPLETENESS_EMPTY
    resume_at: bytes = b""
    as_of_seq: int = 0
    expected_points: int = 0
    verified_unix_ns: int = 0
    doubt_number: int = 0
    befores: dict[int, Before] = field(default_factory=dict)
    former: tuple[Row, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.completeness == control.COMPLETENESS_COMPLETE

    def distrust(self) -> None:
        self.doubt_number += 1
        if self.completeness in (control.COMPLETENESS_COMPLETE, control.COMPLETENESS_STALE):
            self.completeness = control.COMPLETENESS_STALE
        self.resume_at = b""


class Database:
    """The replica's disk: outlives every process. The last few transactions may go in a power cut."""

    def __init__(self) -> None:
        self.now = Stored()
        self._recent: deque[Stored] = deque(maxlen=6)

    def commit(self, state: Stored, *, durable: bool = False) -> None:
        self._recent.append(self.now)
        self.now = state
        if durable:
            self._recent.clear()

    def power_cut(self, chance: random.Random) -> None:
        """Back to one of the last states."""
        states = [*self._recent, self.now]
        self.now = chance.choice(states)
        self._recent.clear()


class Replica:
    """One process at a time on one database; serves the proxy's calls."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, database: Database) -> None:
        self.database = database
        self.is_up = False
        self.is_hung = False
        self.generation = 0
        self.most_seconds = _MOST_SECONDS
        self.trace: Callable[..., None] = print
        # Points that it took for changed by others, and those of which it could say that nobody had.
        self.conflicts = 0
        self.judged = 0
        # Which points those were, and what pending entries do to each.
        self.blamed: set[int] = set()
        self.changes: dict[int, list[Change]] = {}
        # Values that need not be sent: the point is gone on both sides.
        self.moot: set[int] = set()
        # Points that were taken for lost although nobody knows what they were before.
        self.guessed: set[int] = set()
        # Told of a write that was prepared while points may be missing here.
        self.on_unresolved: Callable[[Any], None] = lambda request: None
        self._loop = loop
        self._chance = chance
        self._touched = Touched(0)

    def start(self) -> None:
        self.generation += 1
        self.is_up, self.is_hung = True, False
        self._touched = Touched(self.database.now.applied_seq)

    def crash(self) -> None:
        self.generation += 1
        self.is_up = False

    async def handle(self, call: Call) -> Reply:
        """Answer, however often the process is replaced meanwhile: see `_Patient` of the real one."""
        left = None if call.deadline is None else max(0.0, call.deadline - self._loop.now)
        try:
            async with asyncio.timeout(left):
                while True:
                    reply = await self._try(call)
                    if reply is not None:
                        return reply
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise ReplicaUnavailable(f"the replica did not answer {call.method} in time") from error

    async def _try(self, call: Call) -> Reply | None:
        generation = self.generation
        # Reads go on beside a transaction that takes its time.
        most = self.most_seconds if call.method in _CHANGING else _MOST_SECONDS
        await asyncio.sleep(self._chance.uniform(0.0001, most))
        while self.is_hung and generation == self.generation:  # noqa: ASYNC110 - on a clock that jumps
            await asyncio.sleep(0.05)
        if not self.is_up or generation != self.generation:
            return None
        try:
            since = _since_of(call)
            while self.database.now.applied_seq < since:
                await asyncio.sleep(0.01)
                if generation != self.generation:
                    return None
            reply = self._answer(call)
        except p.Refusal as refusal:
            reply = refuse(refusal.code, refusal.details)
        await asyncio.sleep(self._chance.uniform(0.0001, 0.002))
        return reply if generation == self.generation else None

    def _answer(self, call: Call) -> Reply:
        name = call.method.removeprefix(_SERVICE)
        act = _CONTROL.get(name)
        if act is not None:
            return Reply(act(self, call.body).SerializeToString())
        state = self.database.now
        if call.method == p.ALIASES:
            return Reply(collections_pb2.ListAliasesResponse().SerializeToString())
        request = METHODS[call.method].request.FromString(call.body)
        self._find(state)
        trailers = (
            (COMPLETENESS, _NAMES[state.completeness]),
            (AS_OF, str(state.applied_seq if state.is_whole else state.as_of_seq)),
        )
        return Reply(p.answer(state.points, call.method, request).SerializeToString(), trailers=trailers)

    def _find(self, state: Stored) -> None:
        if not state.exists:
            if state.is_known:
                raise p.no_collection(p.COLLECTION)
            raise p.Refusal(Code.UNAVAILABLE, "the replica has not seen Qdrant's catalogue yet")

    def _change(self) -> Stored:
        state = self.database.now
        return replace(state, points=dict(state.points), befores=dict(state.befores))

    # --- the log -----------------------------------------------------------------------------------------------------

    def _attach(self, body: bytes) -> Message:
        request = control.AttachRequest.FromString(body)
        state = self._change()
        is_other = state.log_id != request.log_id and (state.log_id != "" or state.applied_seq > 0)
        follows = max(0 if is_other else min(state.applied_seq, request.last_seq), request.first_seq - 1)
        rewound = is_other or follows != state.applied_seq
        if rewound:
            # As in `server.replica.former_rows.rewind`.
            state.former = (
                ()
                if is_other
                else tuple(replace(row, seq=follows, synced=True) if row.seq > follows else row for row in state.former)
            )
            state.applied_seq = follows
            state.befores.clear()
            self._touched.restart(follows)
        if rewound or request.in_doubt:
            state.distrust()
        state.log_id = request.log_id
        self.database.commit(state)
        return control.AttachResponse(applied_seq=state.applied_seq, rewound=rewound)

    def _prepare(self, body: bytes) -> Message:
        asked = control.PrepareRequest.FromString(body)
        state = self.database.now
        request: Any = METHODS[asked.method].request.FromString(asked.request)
        try:
            self._find(state)
            if not state.is_whole:
                self.on_unresolved(request)
                return control.PrepareResponse()
            absent = p.missing(state.points, request)
            if absent is not None:
                raise p.no_point(absent)
        except p.Refusal as refusal:
            return control.PrepareResponse(code=refusal.code, details=refusal.details)
        plain = p.resolved(state.points, request)
        if plain is None:
            return control.PrepareResponse()
        return control.PrepareResponse(
            resolved=[entry_pb2.Operation(method=p.method_of(plain), request=plain.SerializeToString())]
        )

    def _prepare_group(self, body: bytes) -> Message:
        requests = control.PrepareGroupRequest.FromString(body).requests
        answers = [self._prepare(each.SerializeToString()) for each in requests]
        return control.PrepareGroupResponse(responses=answers)  # type: ignore[arg-type]

    def _apply(self, body: bytes) -> Message:
        request = control.ApplyRequest.FromString(body)
        state, response = self._change(), control.ApplyResponse()
        through = request.forgets_through_seq
        state.former = tuple(row for row in state.former if row.seq > through) if request.keeps_former else ()
        state.befores = {k: each for k, each in state.befores.items() if each.last_seq > request.replayed_seq}
        for entry in request.entries:
            result = control.Applied(seq=entry.seq, reply=p.done(entry.seq).SerializeToString())
            if entry.seq > state.applied_seq:
                is_pending = not entry.synced and entry.seq > request.replayed_seq
                keeps_former = request.keeps_former
                self._apply_entry(state, entry, result, is_pending=is_pending, keeps_former=keeps_former)
                state.applied_seq = entry.seq
            response.results.append(result)
        self.database.commit(state)
        self.trace("replica applied up to", state.applied_seq)
        response.applied_seq = state.applied_seq
        return response

    def _apply_entry(
        self,
        state: Stored,
        entry: control.LogEntry,
        result: control.Applied,
        *,
        is_pending: bool,
        keeps_former: bool,
    ) -> None:
        whole = entry.entry
        parts = [(part.method, part.request) for part in whole.resolved] or [(whole.method, whole.request)]
        if not state.exists:
            result.code, result.details, result.reply = int(Code.NOT_FOUND), "no collection", b""
            return
        for method, raw in parts:
            request: Any = METHODS[method].request.FromString(raw)
            absent = p.missing(state.points, request)
            if absent is not None and not entry.synced and state.is_whole:
                result.code, result.details, result.reply = int(Code.NOT_FOUND), p.no_point(absent).details, b""
            before = dict(state.points)
            touched = p.apply(state.points, request)
            for number in touched if is_pending else ():
                is_open = state.is_whole and not whole.maybe_applied and not whole.retry_of
                is_by_filter = p.named(request) is None
                was = before.get(number)
                new = Before(entry.seq, 0, was, is_open, origin=was, is_by_filter=is_by_filter)
                first = state.befores.get(number) or new
                state.befores[number] = replace(first, last_seq=entry.seq)
                self.changes.setdefault(number, []).append(Change(entry.seq, frozenset(p.values(request))))
            if keeps_former:
                state.former += self._rows(state, entry, request, before, touched)
            if p.named(request) is None:
                self._touched.collection(_CID, entry.seq)
            self._touched.points(_CID, map(_key, touched), entry.seq)

    @staticmethod
    def _rows(
        state: Stored, entry: control.LogEntry, request: Any, before: p.Points, touched: list[int]
    ) -> tuple[Row, ...]:
        """Rows for what an entry changes; a SetPayload changes only what is here."""
        sets = isinstance(request, points_pb2.SetPayloadPoints)
        is_whole = not sets and not p.is_conditional(request)
        retry_of = entry.entry.retry_of
        return tuple(
            Row(
                entry.seq,
                entry.synced,
                number,
                state.is_whole or number in before,
                before.get(number),
                is_whole,
                retry_of,
            )
            for number in touched
            if not sets or number in before
        )

    def _list_former(self, body: bytes) -> Message:
        request = control.ListFormerRequest.FromString(body)
        rows = [row for row in self.database.now.former if _is_acknowledged(row, request.window)]
        page = rows[request.after : request.after + request.limit_points]
        ids = dict.fromkeys(row.number for row in page)
        return control.ListFormerResponse(
            collection=p.COLLECTION,
            ids=[common.PointId(num=number).SerializeToString() for number in ids],
            next_after=request.after + len(page),
        )

    def _judge_former(self, body: bytes) -> Message:
        request = control.JudgeFormerRequest.FromString(body)
        page = points_pb2.GetResponse.FromString(request.page)
        there = {point.id.num: _record(point.id.num, p.payload_of(point)) for point in page.result}
        state, response = self.database.now, control.JudgeFormerResponse()
        for raw in request.ids:
            number = common.PointId.FromString(raw).num
            rows = [
                Kept(row.seq, row.synced, row.is_known, _record(number, row.payload), row.is_whole, row.retry_of)
                for row in state.former
                if row.number == number and row.seq > request.window.since_seq
            ]
            refused = {each.seq for each in request.refused if not each.ids or raw in each.ids}
            in_part = {each.seq for each in request.refused if each.in_part}
            formers = formers_of(rows, request.window.replayed_seq, refused.__contains__, in_part.__contains__)
            here = _record(number, state.points.get(number))
            self.guessed.discard(number)
            judged = judge(
                there.get(number),
                here,
                formers,
                frozenset(),
                is_log_whole=request.is_log_whole,
                is_unbroken=request.is_unbroken,
            )
            self.trace("replica judges", number, judged.finding.name, there.get(number), judged.wanted)
            if judged.finding is Finding.FOREIGN:
                response.foreign += 1
            elif judged.finding is Finding.LOST:
                if not any(each.is_known and each.record == there.get(number) is not None for each in formers):
                    self.guessed.add(number)
                if judged.wanted is None:
                    response.remove.append(raw)
                else:
                    response.put.append(judged.wanted.payload)
        return response

    # --- what comes from Qdrant --------------------------------------------------------------------------------------

    def _demand_memory(self, since: int) -> None:
        if not self._touched.knows(since):
            raise p.Refusal(Code.FAILED_PRECONDITION, f"what came after entry {since} is not known")

    def _import_catalogue(self, body: bytes) -> Message:
        request = control.ImportCatalogueRequest.FromString(body)
        self._demand_memory(request.since_seq)
        state = self._change()
        state.exists = state.is_known = True
        self.database.commit(state)
        return control.ImportCatalogueResponse(wanted=[] if state.is_whole else [p.COLLECTION])

    def _import_page(self, body: bytes) -> Message:
        request = control.ImportPageRequest.FromString(body)
        self._demand_memory(request.since_seq)
        kind = points_pb2.GetResponse if request.single_ids else points_pb2.ScrollResponse
        page = {point.id.num: p.payload_of(point) for point in kind.FromString(request.page).result}
        state = self._change()
        gone = self._gone(state, request, page)
        skipped = [each for each in [*page, *gone] if self._touched.is_point_later(_CID, _key(each), request.since_seq)]
        before = dict(state.points)
        for number, payload in page.items():
            if number not in skipped:
                state.points[number] = payload
        for number in gone:
            if number not in skipped:
                state.points.pop(number, None)
        self.database.commit(state)
        self.trace("replica imported", sorted(page), "gone", gone, "skipped", skipped)
        return control.ImportPageResponse(
            imported=len(page),
            skipped=[common.PointId(num=each).SerializeToString() for each in sorted(skipped)],
            changed=_differing(before, state.points),
        )

    def _compare_page(self, body: bytes) -> Message:
        request = control.ComparePageRequest.FromString(body)
        page = {each.id.num: p.payload_of(each) for each in points_pb2.ScrollResponse.FromString(request.page).result}
        here = {number: payload for number, payload in self.database.now.points.items() if _is_in(request, number)}
        self.trace("replica compared", sorted(page), "differing", _differing(page, here))
        return control.ComparePageResponse(remote=_digest(page), local=_digest(here), differing=_differing(page, here))

    def _compare_baselines(self, body: bytes) -> Message:
        """As `server.replica.baselines.Baselines.compare`."""
        request = control.CompareBaselinesRequest.FromString(body)
        there = p.read(p.GET, request.page)
        state = self._change()
        response = control.CompareBaselinesResponse(applied_seq=state.applied_seq)
        moot, new = [], []
        for touch in request.touches:
            number = common.PointId.FromString(touch.point_id).num
            known = state.befores.get(number)
            if known is None or known.first_seq > touch.seq:
                continue
            if known.fate in (control.FATE_REMOTE, control.FATE_MOOT):
                if touch.seq <= known.until_seq:
                    response.changed.add(
                        point_id=touch.point_id,
                        fate=known.fate,  # type: ignore[arg-type]
                        until_seq=known.until_seq,
                    )
            elif known.first_seq != touch.seq:
                continue
            elif known.fate == control.FATE_HELD:
                response.changed.add(point_id=touch.point_id, fate=control.FATE_HELD)
            elif not known.is_to_judge(touch, request):
                continue
            elif known.payload is not None and number not in there and number not in state.points:
                moot.append(touch)
                response.changed.add(point_id=touch.point_id, fate=control.FATE_MOOT, until_seq=response.applied_seq)
            elif there.get(number) not in (known.payload, state.points.get(number)):
                new.append(number)
                response.changed.add(point_id=touch.point_id)
                self.trace("replica takes for changed:", number, there.get(number), known, state.points.get(number))
            else:
                self.judged += 1
        self.conflicts += len(new)
        self.blamed.update(new)
        if moot:
            self._judged(state, request, there, moot, control.FATE_MOOT)
        if not new:
            self._judged(state, request, there, request.touches)
        self.trace("replica compared baselines, changed", len(response.changed))
        return response

    def _settle_baselines(self, body: bytes) -> Message:
        """As `server.replica.baselines.Baselines.settle`."""
        request = control.SettleBaselinesRequest.FromString(body)
        there = p.read(p.GET, request.page)
        changed = {common.PointId.FromString(each).num for each in request.changed}
        state = self._change()
        taken = [touch for touch in request.touches if common.PointId.FromString(touch.point_id).num in changed]
        left = [touch for touch in request.touches if touch not in taken]
        opened = self._judged(state, request, there, taken, request.fate)
        self._judged(state, request, there, left)
        for number in opened:
            if request.fate == control.FATE_LOCAL:
                # It is in the conflict log: what comes on top of it before our write is another conflict.
                state.befores[number] = replace(state.befores[number], payload=there.get(number))
            elif request.fate == control.FATE_REMOTE and number in there:
                state.points[number] = there[number]
            elif request.fate == control.FATE_REMOTE:
                state.points.pop(number, None)
        self.database.commit(state, durable=True)
        return control.SettleBaselinesResponse(until_seq=state.applied_seq)

    def _judged(
        self,
        state: Stored,
        look: _Look,
        there: p.Points,
        touches: Iterable[control.Touch],
        fate: int = control.FATE_LOCAL,
    ) -> list[int]:
        """Note what becomes of points that are to be judged; returns them."""
        opened = []
        for touch in touches:
            number = common.PointId.FromString(touch.point_id).num
            known = state.befores.get(number)
            if known is None or not known.is_to_judge(touch, look):
                continue
            opened.append(number)
            state.befores[number] = replace(
                known,
                is_open=False,
                looker=look.looker,
                fate=fate,
                until_seq=state.applied_seq,
                seen=there.get(number),
                judged_at=self._loop.now,
            )
            if fate == control.FATE_MOOT:
                self.moot.update(*(each.values for each in self.changes[number] if each.seq <= state.applied_seq))
        self.database.commit(state, durable=True)
        return opened

    def _note_verified(self, body: bytes) -> Message:
        state = self._change()
        if state.is_whole:
            state.verified_unix_ns = control.NoteVerifiedRequest.FromString(body).verified_unix_ns
            self.database.commit(state)
        return control.NoteVerifiedResponse()

    @staticmethod
    def _gone(state: Stored, request: control.ImportPageRequest, page: p.Points) -> list[int]:
        if request.single_ids:
            absent = {common.PointId.FromString(each).num for each in request.absent}
            return sorted(number for number in absent if number in state.points and number not in page)
        return sorted(number for number in state.points if _is_in(request, number) and number not in page)

    def _set_completeness(self, body: bytes) -> Message:
        request = control.SetCompletenessRequest.FromString(body)
        state = self._change()
        is_copy = request.HasField("doubt_number")
        if is_copy and request.doubt_number != state.doubt_number:
            raise p.Refusal(Code.FAILED_PRECONDITION, "the collection was put in doubt meanwhile")
        was_whole = state.completeness in (control.COMPLETENESS_COMPLETE, control.COMPLETENESS_STALE)
        if request.completeness == control.COMPLETENESS_STALE and not is_copy:
            state.distrust()
        if state.exists and (is_copy or was_whole or request.completeness != control.COMPLETENESS_STALE):
            state.completeness, state.resume_at = request.completeness, request.resume_at
            state.as_of_seq, state.expected_points = request.as_of_seq, request.expected_points
            state.verified_unix_ns = request.verified_unix_ns or state.verified_unix_ns
        self.database.commit(state, durable=request.completeness == control.COMPLETENESS_COMPLETE)
        self.trace("replica is", _NAMES[state.completeness])
        return control.SetCompletenessResponse()

    def _status(self, body: bytes) -> Message:
        del body
        state = self.database.now
        response = control.StatusResponse(applied_seq=state.applied_seq, catalogue_known=state.is_known)
        if state.exists:
            response.collections.add(
                name=p.COLLECTION,
                completeness=state.completeness,  # type: ignore[arg-type]
                points=len(state.points),
                as_of_seq=state.as_of_seq,
                resume_at=state.resume_at,
                expected_points=state.expected_points,
                verified_unix_ns=state.verified_unix_ns,
                doubt_number=state.doubt_number,
            )
        return response


_CONTROL: dict[str, Callable[[Replica, bytes], Message]] = {
    "Attach": Replica._attach,
    "Prepare": Replica._prepare,
    "PrepareGroup": Replica._prepare_group,
    "Apply": Replica._apply,
    "ImportCatalogue": Replica._import_catalogue,
    "ImportPage": Replica._import_page,
    "ComparePage": Replica._compare_page,
    "CompareBaselines": Replica._compare_baselines,
    "SettleBaselines": Replica._settle_baselines,
    "ListFormer": Replica._list_former,
    "JudgeFormer": Replica._judge_former,
    "NoteVerified": Replica._note_verified,
    "SetCompleteness": Replica._set_completeness,
    "Status": Replica._status,
}


def _is_acknowledged(row: Row, window: control.FormerWindow) -> bool:
    return row.seq > window.since_seq and (row.synced or row.seq <= window.replayed_seq)


def _record(number: int, payload: p.Payload | None) -> Record | None:
    """A point as a request would carry it."""
    if payload is None:
        return None
    return Record(_key(number), p.struct(number, payload).SerializeToString(deterministic=True))


def _is_in(request: control.ImportPageRequest | control.ComparePageRequest, number: int) -> bool:
    """Whether a point lies in the range of a request."""
    first = common.PointId.FromString(request.first).num if request.first else 0
    after = common.PointId.FromString(request.after).num if request.after else 1 << 62
    return first <= number < after


def _differing(one: p.Points, other: p.Points) -> int:
    """Points that one side lacks or has otherwise."""
    return sum(one.get(number) != other.get(number) for number in one.keys() | other.keys())


def _digest(points: p.Points) -> control.RangeDigest:
    content = hashlib.blake2b(repr(sorted(points.items())).encode(), digest_size=16).digest()
    return control.RangeDigest(points=len(points), content=content)


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _since_of(call: Call) -> int:
    """Imports wait until the replica holds every entry that the page may show."""
    name = call.method.removeprefix(_SERVICE)
    if name == "ImportCatalogue":
        catalogue = control.ImportCatalogueRequest.FromString(call.body)
        return max(catalogue.since_seq, catalogue.read_seq)
    if name == "ComparePage":
        return control.ComparePageRequest.FromString(call.body).since_seq
    if name == "CompareBaselines":
        return control.CompareBaselinesRequest.FromString(call.body).since_seq
    if name == "ImportPage":
        page = control.ImportPageRequest.FromString(call.body)
        return max(page.since_seq, page.read_seq)
    return 0


class Process:
    """Stands in for `server.replica.process.ReplicaProcess`; belongs to one life of the proxy."""

    def __init__(
        self, replica: Replica, store: Path, settings: config.Replica, *, clock: Clock, telemetry: Telemetry
    ) -> None:
        del store, telemetry
        self.pid: int | None = None
        self.restarts = 0
        self.on_restart: Callable[[], None] | None = None
        self.backend = replica
        self.control = ReplicaControl(replica, clock, settings)
        self._replica = replica

    async def start(self) -> None:
        await asyncio.sleep(0.5)
        self._replica.start()
        self.pid = 1

    async def stop(self) -> None:
        self._replica.crash()
        self.pid = None

    def restarted(self) -> None:
        """The supervisor has put another process in place of a dead one."""
        self._replica.start()
        self.restarts += 1
        if self.on_restart is not None:
            self.on_restart()
