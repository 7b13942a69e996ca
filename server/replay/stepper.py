"""One step of a replay: the first pending entry to Qdrant, its outcome to breaker, quarantine and cursor.

Promises: steps never overlap; who asks while one is under way shares it, and cancelling who asks does not cancel the
step. The quarantine is on disk before the cursor passes an entry. Entries share a cursor record, and the refused among
them a sync of the quarantine, only while sending all of them again would change nothing (`unmarked`); they share a call
only when it does the same (`merge`). Does not wait, retry or decide when to stop: that is the replayer's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

from server import config
from server.clock import Clock
from server.config import QuarantinePolicy
from server.errors import ReplicaUnavailable, WalError
from server.health.breaker import Breaker, Permit, Phase
from server.logs import Message
from server.replay.bisect import Operation
from server.replay.causality import Causality
from server.replay.delivery import Answer, Delivered, Delivery
from server.replay.examining import Examiner
from server.replay.judge import Outcome
from server.replay.looking_back import LookBack
from server.replay.merge import fewer, merge
from server.replay.parcel import Parcel, unpack
from server.replay.ports import PendingLog
from server.replay.suspicion import Suspicion
from server.replay.unmarked import Unmarked, shares_a_record
from server.replay.withheld import Withheld
from server.rpc import Backend, Code, Metadata
from server.telemetry import Span, Telemetry
from server.wal.quarantine import Refused


class Step(Enum):
    """How one step of the loop ended."""

    ADVANCED = "advanced"
    DRAINED = "drained"
    FAILED = "failed"
    DOWN = "down"
    RESTING = "resting"
    NO_CREDENTIAL = "no credential"
    HALTED = "halted"
    LOG_FAILED = "log failed"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the replay stands after a step, and why; `retry_after_seconds` is what Qdrant asked for."""

    step: Step
    why: str = ""
    retry_after_seconds: float = 0.0


_ADVANCED = Standing(Step.ADVANCED)


class Stepper:
    """The head of the line. `is_up` tells whether Qdrant counts as up, `unreachable` hears of dead connections."""

    def __init__(
        self,
        log: PendingLog,
        upstream: Backend,
        *,
        breaker: Breaker,
        settings: config.Replay,
        clock: Clock,
        telemetry: Telemetry,
        credential: Callable[[], Metadata | None],
        kinds: Mapping[int, str],
        is_up: Callable[[], bool],
        unreachable: Callable[[str], None],
        examiner: Examiner | None = None,
        look_back: LookBack | None = None,
    ) -> None:
        self._log = log
        self._look_back = look_back
        self._breaker = breaker
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._credential = credential
        self._kinds = kinds
        self._is_up = is_up
        self._unreachable = unreachable
        self._examiner = examiner
        self._delivery = Delivery(upstream, settings, clock, credential)
        self._in_flight: asyncio.Task[Standing] | None = None
        self._turn = asyncio.Lock()
        self._page: deque[Parcel] = deque()
        self._unmarked = Unmarked()
        self._causality = Causality()
        self._quarantined: frozenset[int] = frozenset()
        self._withheld = Withheld()
        # Not in quarantine on disk yet: the cursor is before them.
        self._refused: list[Refused] = []
        self._recalled = False
        self._suspicion = Suspicion(settings.doubtful_tries, settings.breaker_open_seconds)
        # Entries up to here failed as one: they go singly.
        self._singly_until = 0
        # Of the entries up to here Qdrant refuses one: fewer of them go as one.
        self._refused_until = 0
        self.failures = 0
        self.replayed = 0

    @property
    def remaining(self) -> int:
        """Entries that Qdrant has yet to get."""
        return max(0, self._log.pending_count - self._unmarked.count)

    @property
    def quarantined_count(self) -> int:
        """Entries in quarantine, as of the last look."""
        return len(self._quarantined)

    @property
    def is_under_way(self) -> bool:
        """Whether a step is under way."""
        return self._in_flight is not None and not self._in_flight.done()

    def look_again(self) -> None:
        """Operators may have changed the quarantine: read it anew before the next entry."""
        self._recalled = False
        if self._examiner is not None:
            self._examiner.forget()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """No step is under way inside, and none begins; afterwards the quarantine is read anew. Raises WalError."""
        async with self._turn:
            await self._mark()
            try:
                yield
            finally:
                self.look_again()

    async def advance(self) -> Standing:
        """One step, or the rest of the one under way."""
        if self._in_flight is None or self._in_flight.done():
            self._in_flight = asyncio.create_task(self._step(), name="replay step")
        return await asyncio.shield(self._in_flight)

    async def finish(self, grace_seconds: float) -> None:
        """The entry under way may end within the grace, then it is given up; the cursor is written."""
        step = self._in_flight
        if step is not None and not step.done():
            await asyncio.wait({step}, timeout=grace_seconds)
            if not step.done():
                step.cancel()
                await asyncio.wait({step})
            if not step.cancelled() and (error := step.exception()) is not None:
                self._telemetry.log.error("the last step of the replay failed", error=repr(error))
        try:
            await self._mark()
        except WalError as failure:
            self._telemetry.log.error("the cursor was not written; entries will be sent again", error=str(failure))

    async def _step(self) -> Standing:
        try:
            async with self._turn:
                standing = await self._next()
                if standing.step is not Step.ADVANCED:
                    await self._mark()
        except WalError as error:
            self._telemetry.log.error("replay cannot use the log", error=str(error))
            self._page.clear()
            self.failures += 1
            return Standing(Step.LOG_FAILED, str(error))
        return standing

    async def _next(self) -> Standing:
        if self._look_back is not None and self._look_back.is_due:
            return await self._look(self._look_back)
        if not self._recalled:
            # An attempt begins: what others did since the last one is to be seen.
            self._page.clear()
        if not self._page:
            await self._mark()
            await self._load()
        if not self._page:
            return Standing(Step.DRAINED)
        if not self._recalled:
            await self._recall()
        if self._page[0].entry.retry_of in self._quarantined:
            # A retry that a crash cut short: what it repeats is still in quarantine, and that one counts.
            self._done([self._page[0]])
            return _ADVANCED
        if self._settings.quarantine_policy is QuarantinePolicy.HALT and self._is_past_a_refused_one:
            return Standing(Step.HALTED, "the quarantine is not empty: `understudy wal quarantine list`")
        if not self._is_up():
            return Standing(Step.DOWN)
        permit = self._breaker.allow(self._clock.monotonic())
        if permit is None:
            return Standing(Step.RESTING, "the circuit breaker is open")
        try:
            failure = await self._examine()
            if failure is not None:
                return self._not_now(_name(self._page[0]), self._page[0].seq, failure, permit)
            merged = self._mergeable()
            if merged is not None:
                return await self._send_merged(*merged, permit)
            parcel = self._page[0]
            with self._span([parcel]):
                delivered = await self._deliver(parcel)
        except BaseException:
            # Cancelled, or the log failed: nobody will report for this permit.
            self._breaker.abandon(permit)
            raise
        return await self._conclude(parcel, delivered, permit)

    async def _look(self, look_back: LookBack) -> Standing:
        """A part of the look at what Qdrant may have lost: before any newer entry."""
        self._delivery.forget()
        await self._mark()
        self._page.clear()
        if not self._recalled or not look_back.is_under_way:
            # What was refused since the last look counts, too.
            await self._recall()
        if not self._is_up():
            return Standing(Step.DOWN)
        permit = self._breaker.allow(self._clock.monotonic())
        if permit is None:
            return Standing(Step.RESTING, "the circuit breaker is open")
        began = self._clock.monotonic()
        try:
            answer = await look_back.step(self._delivery, self._withheld)
        except ReplicaUnavailable as error:
            self._breaker.abandon(permit)
            if not self._log.pending_count and look_back.put_off(began, self._clock.monotonic()):
                return _ADVANCED
            self.failures += 1
            return Standing(Step.FAILED, str(error))
        except BaseException:
            self._breaker.abandon(permit)
            raise
        if answer.outcome is not Outcome.DONE:
            return self._not_now("a look at what Qdrant may have lost", 0, answer, permit)
        before = self._breaker.phase
        self._breaker.success(permit)
        self._breaker_changed(before)
        self.failures = 0
        return _ADVANCED

    def _span(self, parcels: list[Parcel]) -> Span:
        """A span with links to the calls that caused the entries."""
        links = [parcel.record.trace for parcel in parcels if parcel.record.trace]
        first = parcels[0]
        return self._telemetry.span(
            "replay.entry", links=links, wal__seq=first.seq, entries=len(parcels), method=first.method
        )

    async def _examine(self) -> Answer | None:
        """Learn what others changed, before the first entry is sent; an Answer when Qdrant cannot be asked now."""
        if self._examiner is None or self._page[0].is_examined:
            return None
        # While the breaker tries Qdrant, it is asked about a single entry only.
        ahead = self._page if self._breaker.phase is Phase.CLOSED else [self._page[0]]
        follows = self._settings.quarantine_policy is QuarantinePolicy.CAUSAL
        found = await self._examiner.examine(ahead, self._causality if follows else None, self._delivery.sent_seq)
        if isinstance(found, Answer):
            return found
        for at, parcel in enumerate(found):
            self._page[at] = parcel
        return None

    # --- several as one ----------------------------------------------------------------------------------------------

    def _mergeable(self) -> tuple[list[Parcel], Operation] | None:
        """Entries from the front that may go as one. Never while the breaker tries Qdrant with a single entry."""
        if self._breaker.phase is not Phase.CLOSED or self._page[0].seq <= self._singly_until:
            return None
        parcels: Iterable[Parcel] = self._page
        if self._page[0].seq <= self._refused_until:
            parcels = fewer([parcel for parcel in self._page if parcel.seq <= self._refused_until])
        if self._examiner is not None:
            # What others changed is not known of the entries behind these.
            parcels = takewhile(lambda parcel: parcel.is_examined, parcels)
        if self._quarantined:
            parcels = takewhile(self._is_free, parcels)
        return merge(parcels, limit_points=self._settings.merge_points, limit_bytes=self._settings.merge_bytes)

    def _is_free(self, parcel: Parcel) -> bool:
        """Whether an entry is not in quarantine, and follows nothing that is."""
        if parcel.seq in self._quarantined:
            return False
        if self._settings.quarantine_policy is not QuarantinePolicy.CAUSAL:
            return True
        return all(self._causality.split(operation, parcel.seq).follows is None for operation in parcel.operations)

    async def _send_merged(self, run: list[Parcel], operation: Operation, permit: Permit) -> Standing:
        """One call for several entries. Refused, fewer go until one is alone; failed, they go singly."""
        if self._unmarked.bars(run):
            await self._mark()
        with self._span(run):
            answer = await self._delivery.send(operation, run[-1].seq)
        if answer.outcome is Outcome.DONE:
            self._breaker.success(permit)
            self._suspicion.done()
            self._done(run)
            return _ADVANCED
        if answer.outcome is Outcome.PERMANENT:
            self._refused_until = run[-1].seq
            self._breaker.permanent(permit)
            return _ADVANCED
        self._singly_until = run[-1].seq
        return self._not_now(_name(run[0]), run[0].seq, answer, permit)

    def _done(self, parcels: list[Parcel]) -> None:
        """Entries at the front are dealt with."""
        for _ in parcels:
            self._page.popleft()
        self.failures = 0
        self._suspicion.passed()
        self.replayed += len(parcels)
        self._unmarked.add(parcels)

    # --- one ---------------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        records = await self._log.read_pending(self._settings.page_entries, self._settings.page_bytes)
        self._page.extend(unpack(record, self._kinds) for record in records)

    async def _recall(self) -> None:
        """What is in quarantine now decides who follows; operators may have changed it since the last sync."""
        await self._mark()
        self._causality, self._quarantined, self._withheld = await asyncio.to_thread(self._causality_of_quarantine)
        self._recalled = True
        self._telemetry.metrics.quarantine(len(self._quarantined))

    def _causality_of_quarantine(self) -> tuple[Causality, frozenset[int], Withheld]:
        causality, withheld = Causality(), Withheld()
        seqs = set()
        for item, record in self._log.quarantined_entries():
            parcel = unpack(record, self._kinds)
            parcel.taint(causality, Code(item.code), item.details)
            withheld.note(parcel)
            seqs.add(item.seq)
        return causality, frozenset(seqs), withheld

    @property
    def _is_past_a_refused_one(self) -> bool:
        """Not so when a crash came between the quarantine and the cursor: the cursor passes the refused one first."""
        return any(seq < self._page[0].seq for seq in self._quarantined)

    async def _deliver(self, parcel: Parcel) -> Delivered:
        if parcel.problem:
            return parcel.unreadable()
        if self._unmarked.bars([parcel]):
            # What was sent before must not be sent again after this one.
            await self._mark()
        to_blame = self._suspicion.would_blame(parcel.seq, self._clock.monotonic())
        doubtful = Outcome.PERMANENT if to_blame else Outcome.TRANSIENT
        follows = self._settings.quarantine_policy is QuarantinePolicy.CAUSAL
        delivered = await self._delivery.deliver(
            parcel.operations, self._causality if follows else None, parcel.seq, doubtful=doubtful
        )
        return parcel.with_held(delivered)

    async def _conclude(self, parcel: Parcel, delivered: Delivered, permit: Permit) -> Standing:
        answer = delivered.answer
        if answer.outcome is not Outcome.DONE:
            return self._not_now(_name(parcel), parcel.seq, answer, permit)
        before = self._breaker.phase
        if delivered.calls:
            # Done or refused for good: either way somebody answered.
            self._breaker.success(permit)
        else:
            self._breaker.abandon(permit)
        self._breaker_changed(before)
        if parcel.seq in self._quarantined:
            await self._judge_again(parcel, delivered)
        if delivered.left_over:
            self._quarantine(parcel, delivered)
        if any(blame.answer.doubtful for blame in delivered.blames):
            self._suspicion.blamed()
        elif delivered.applied:
            self._suspicion.done()
        self._done([parcel])
        if delivered.blames:
            # The one to blame is found: those behind it may go as one again.
            self._refused_until = 0
        if delivered.applied and not shares_a_record(parcel):
            await self._mark()
        return _ADVANCED

    async def _judge_again(self, parcel: Parcel, delivered: Delivered) -> None:
        """A crash came between the quarantine and the cursor: what Qdrant says now is what counts."""
        if not delivered.left_over:
            await self._log.release_quarantined(parcel.seq)
        if not delivered.left_over or parcel.seq == max(self._quarantined):
            self._recalled = False

    def _not_now(self, what: str, seq: int, answer: Answer, permit: Permit) -> Standing:
        """It stays first: tell the breaker, count, say why."""
        before = self._breaker.phase
        why = f"{what}: {answer.code.name} {answer.details}"
        if answer.outcome is Outcome.AUTH:
            self._breaker.permanent(permit)
            self._breaker_changed(before)
            self._telemetry.metrics.sync_error("auth")
            if self._credential() is None:
                self._telemetry.log.warning(Message.CREDENTIAL_MISSING, seq=seq)
            return Standing(Step.NO_CREDENTIAL, why)
        self.failures += 1
        self._suspicion.failed(seq, self._clock.monotonic(), inside=answer.doubtful)
        self._telemetry.metrics.sync_error("transient")
        if not self._is_up():
            # Known to be down by now: that explains the failure.
            self._breaker.abandon(permit)
        elif answer.retry_after_seconds is not None:
            self._breaker.permanent(permit)
        else:
            self._breaker.transient_failure(permit, self._clock.monotonic())
        self._breaker_changed(before)
        if not answer.answered and not answer.timed_out:
            self._unreachable(answer.details)
        wait = min(answer.retry_after_seconds or 0.0, self._settings.breaker_open_seconds)
        return Standing(Step.FAILED, why, wait)

    def _quarantine(self, parcel: Parcel, delivered: Delivered) -> None:
        refusal = delivered.blames[0].answer if delivered.blames else None
        if refusal is not None:
            code, details = refusal.code, refusal.details
        else:
            code, details = Code.FAILED_PRECONDITION, f"follows seq {delivered.after_seq}"
        record = parcel.left_over(delivered)
        self._refused.append(Refused(record, int(code), details))
        # As after a restart: what only follows keeps its followers back, too.
        unpack(record, self._kinds).taint(self._causality, code, details)
        self._quarantined |= {parcel.seq}
        self._telemetry.metrics.quarantine(len(self._quarantined))
        if refusal is not None:
            self._telemetry.metrics.sync_error("permanent")
        self._telemetry.log.warning(
            Message.ENTRY_QUARANTINED,
            seq=parcel.seq,
            method=parcel.method,
            code=code.name,
            details=details,
            points=record.points,
        )

    async def _mark(self) -> None:
        """Write what was refused to the quarantine, then the cursor past what was dealt with."""
        if self._refused:
            await self._log.quarantine(self._refused)
            self._refused = []
        if self._unmarked.count:
            await self._log.mark_replayed(self._unmarked.last_seq)
            self._unmarked.clear()

    def _breaker_changed(self, before: Phase) -> None:
        after = self._breaker.phase
        if after is before:
            return
        self._telemetry.metrics.breaker(after.value)
        if after is Phase.OPEN:
            self._telemetry.log.warning(Message.BREAKER_OPEN, seconds=self._settings.breaker_open_seconds)
        elif after is Phase.CLOSED:
            self._telemetry.log.info(Message.BREAKER_CLOSED)


def _name(parcel: Parcel) -> str:
    return f"{parcel.method} (entry {parcel.seq})"
