"""The loop that brings pending entries to Qdrant, first in, first out.

Promises: an entry is sent only when every earlier one was applied or is in quarantine on disk, across restarts too; a
transient failure means the same entry again, later, never the next one. Cancelling a caller never cancels an entry that
is under way; only the end of `run` does, after `stop_grace_seconds`. Belongs to one event loop.

Does not promise that an entry is sent once: after a crash the entries since the last cursor are sent again, which is
harmless because only entries that may repeat share a cursor. Does not decide whether Qdrant is up (`upstream_up` is set
by the owner) nor when the proxy turns REMOTE (`on_drained`).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from server import config
from server.clock import Clock
from server.health.breaker import Breaker
from server.logs import Message
from server.replay.examining import Examiner
from server.replay.looking_back import LookBack
from server.replay.ports import PendingLog
from server.replay.progress import Progress, ReplayState
from server.replay.stepper import Standing, Step, Stepper
from server.rpc import Backend, Metadata
from server.telemetry import Telemetry

_STATES = {
    Step.FAILED: ReplayState.BACKING_OFF,
    Step.DOWN: ReplayState.WAITING_UPSTREAM,
    Step.RESTING: ReplayState.BREAKER_OPEN,
    Step.NO_CREDENTIAL: ReplayState.WAITING_CREDENTIAL,
    Step.HALTED: ReplayState.HALTED,
    Step.LOG_FAILED: ReplayState.LOG_FAILED,
}


class Replayer:
    """Drains the log on request, while Qdrant is up.

    `examiner` looks for what others changed, None = nobody looks. `credential` gives the metadata for Qdrant, None
    when none is known. `jitter` gives numbers in [0, 1). `look_back` comes before entries. `on_drained` is awaited when
    nothing is pending or to be looked at; `on_unreachable` hears of dead connections, so that health can look at once.
    """

    def __init__(  # noqa: PLR0917
        self,
        log: PendingLog,
        upstream: Backend,
        breaker: Breaker,
        settings: config.Replay,
        clock: Clock,
        telemetry: Telemetry,
        credential: Callable[[], Metadata | None],
        kinds: Mapping[int, str],
        *,
        look_back: LookBack | None = None,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        stop_grace_seconds: float = 5.0,
        examiner: Examiner | None = None,
    ) -> None:
        self._log = log
        self._breaker = breaker
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._credential = credential
        self._jitter = jitter
        self._sleep = sleep
        self._stop_grace_seconds = stop_grace_seconds
        self.on_drained: Callable[[], Awaitable[None]] | None = None
        self.on_unreachable: Callable[[str], None] | None = None
        self._up = asyncio.Event()
        self._wanted = asyncio.Event()
        self._nudge = asyncio.Event()
        self._requests: deque[str] = deque()
        self._stepper = Stepper(
            log,
            upstream,
            breaker=breaker,
            settings=settings,
            clock=clock,
            telemetry=telemetry,
            credential=credential,
            kinds=kinds,
            is_up=self._up.is_set,
            unreachable=self._unreachable,
            examiner=examiner,
            look_back=look_back,
        )
        self._look_back = look_back
        self._state = ReplayState.IDLE
        self._attempt = 0
        self._started: int | None = None
        self._last_sync: int | None = None
        self._last_error = ""
        # When Qdrant began to take entries this time, and how many it had taken by then.
        self._running_since = 0.0
        self._replayed_before = 0

    # --- what the owner sees -----------------------------------------------------------------------------------------

    @property
    def upstream_up(self) -> bool:
        """Whether Qdrant counts as up. Set by the owner; entries are sent only while it is True."""
        return self._up.is_set()

    @upstream_up.setter
    def upstream_up(self, up: bool) -> None:
        if up:
            self._up.set()
        else:
            self._up.clear()

    def request_sync(self, reason: str) -> None:
        """Ask for a drain. Those that wait are answered by one drain; past `queue_limit` further ones add nothing."""
        if reason not in self._requests and len(self._requests) < self._settings.queue_limit:
            self._requests.append(reason)
        self._wanted.set()
        self._nudge.set()

    @property
    def waiting_requests(self) -> int:
        """Sync requests that no drain has taken up yet."""
        return len(self._requests)

    @property
    def remaining(self) -> int:
        """Entries that Qdrant has yet to get."""
        return self._stepper.remaining

    @property
    def progress(self) -> Progress:
        """How the replay stands."""
        return Progress(
            self._state,
            self._attempt,
            self.remaining,
            self._stepper.replayed,
            self._stepper.quarantined_count,
            self._started,
            self._last_sync,
            self._last_error,
            self._entries_per_second(),
        )

    async def run(self) -> None:
        """Drain on request, until cancelled; then the entry under way gets its grace and the cursor is written."""
        try:
            while True:
                self._state = ReplayState.IDLE
                await self._wanted.wait()
                try:
                    await self._drain()
                except Exception as error:
                    # Nothing is lost by it: the cursor has not moved. The wish stays, so that it is tried again.
                    self._telemetry.log.exception("replay stumbled", error=repr(error))
                    self._last_error = repr(error)
                    self._wanted.set()
                    await self._sleep(self._settings.retry_max_seconds)
        finally:
            self._state = ReplayState.IDLE
            await self._stepper.finish(self._stop_grace_seconds)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nothing is sent inside, so that an operator may change the quarantine; a halted replay looks again after."""
        async with self._stepper.held():
            yield
        if self._state is ReplayState.HALTED:
            self.request_sync("the quarantine was changed")

    async def drain_now(self) -> bool:
        """Send what is pending at this moment, without pauses; True when nothing is left.

        Bound it with a timeout: cancelling it leaves the entry under way to the loop, which goes on from there.
        """
        while True:
            # A step that began before this call may have found the log empty before the last write joined it.
            joined = self._stepper.is_under_way
            standing = await self._stepper.advance()
            if standing.step is Step.ADVANCED or (standing.step is Step.DRAINED and joined):
                continue
            return standing.step is Step.DRAINED and self._is_done

    # --- one drain ---------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Until nothing is pending."""
        reasons = self._take_requests()
        self._attempt = 0
        self._started = self._clock.wall_ns()
        began = self._clock.monotonic()
        while True:
            if not self.upstream_up:
                self._state = ReplayState.WAITING_UPSTREAM
                await self._up.wait()
            self._attempt += 1
            self._state = ReplayState.RUNNING
            self._running_since, self._replayed_before = self._clock.monotonic(), self._stepper.replayed
            self._stepper.look_again()
            had_work = self._log.pending_count > 0
            if had_work:
                self._say(Message.SYNC_STARTED, reasons=reasons)
            standing = await self._advance_far()
            if standing.step is Step.DRAINED:
                if had_work:
                    self._completed(began)
                if await self._is_over():
                    return
                began = self._clock.monotonic()
                continue
            self._state = _STATES[standing.step]
            if standing.step is not Step.DOWN:
                self._last_error = standing.why
                self._say(Message.SYNC_FAILED, error=standing.why)
            await self._pause(standing)

    async def _is_over(self) -> bool:
        """Tell the owner that nothing is pending; True when that still holds afterwards."""
        self._take_requests()
        if self.on_drained is not None:
            await self.on_drained()
        return self._is_done

    @property
    def _is_done(self) -> bool:
        return self._log.pending_count == 0 and not (self._look_back is not None and self._look_back.is_due)

    def _completed(self, began: float) -> None:
        self._last_sync = self._clock.wall_ns()
        self._last_error = ""
        seconds = self._clock.monotonic() - began
        self._telemetry.metrics.sync_duration(seconds)
        self._say(Message.SYNC_COMPLETE, seconds=round(seconds, 3), replayed=self._stepper.replayed)

    async def _advance_far(self) -> Standing:
        """Step until something stands in the way or nothing is pending."""
        while True:
            standing = await self._stepper.advance()
            if standing.step is not Step.ADVANCED:
                return standing

    async def _pause(self, standing: Standing) -> None:
        """Wait as long as the standing asks for, or until something happened that may change it."""
        match standing.step:
            case Step.DOWN:
                return
            case Step.HALTED:
                self._wanted.clear()
                await self._wanted.wait()
            case Step.NO_CREDENTIAL:
                await self._await_credential()
            case Step.RESTING:
                await self._sleep(self._breaker.wait_seconds(self._clock.monotonic()))
            case _:
                await self._sleep(max(self._backoff_seconds(), standing.retry_after_seconds))

    def _entries_per_second(self) -> float:
        if self._state is not ReplayState.RUNNING:
            return 0.0
        seconds = self._clock.monotonic() - self._running_since
        return (self._stepper.replayed - self._replayed_before) / seconds if seconds > 0 else 0.0

    def _backoff_seconds(self) -> float:
        """Exponential with the number of failures in a row, between half and the whole of it."""
        doubled = self._settings.retry_initial_seconds * 2.0 ** min(max(self._stepper.failures - 1, 0), 30)
        return min(doubled, self._settings.retry_max_seconds) * (0.5 + 0.5 * self._jitter())

    async def _await_credential(self) -> None:
        """Until another credential is known, somebody asks, or `credential_retry_seconds` have passed."""
        refused = self._credential()
        until = self._clock.monotonic() + self._settings.credential_retry_seconds
        self._nudge.clear()
        while self._credential() == refused and not self._nudge.is_set():
            left = until - self._clock.monotonic()
            if left <= 0:
                return
            await self._sleep(min(left, self._settings.retry_max_seconds))

    # --- words -------------------------------------------------------------------------------------------------------

    def _unreachable(self, reason: str) -> None:
        if self.on_unreachable is not None:
            self.on_unreachable(reason)

    def _take_requests(self) -> list[str]:
        reasons = list(self._requests)
        self._requests.clear()
        self._wanted.clear()
        return reasons

    def _say(self, message: Message, **fields: object) -> None:
        level = self._telemetry.log.warning if message is Message.SYNC_FAILED else self._telemetry.log.info
        level(message, attempt=self._attempt, remaining=self.remaining, **fields)
