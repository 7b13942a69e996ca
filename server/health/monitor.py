"""Watches Qdrant: connectivity, fast probes, a slow ping. Feeds the detector and tells of each new verdict.

Promises: up means that a probe was answered in time over a connection that is READY. A connection that goes away is
followed by a probe at once. While Qdrant is up a fast probe starts every `probe_interval_seconds`, also while earlier
ones are silent, so one that hangs counts as down after `probe_timeout_seconds + fall * probe_interval_seconds` at most.
While it is down, probes come at pauses that double up to `backoff_max_seconds`, and at once when the channel connects.
Every probe is counted in `fallback_health_checks_total`; how late the event loop ran is measured and held against a
failed probe. Does not promise that a verdict is still true when it arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable

from server import config
from server.clock import Clock
from server.health.callbacks import Subscribers
from server.health.detector import Detector, Verdict
from server.telemetry import Telemetry
from server.upstream import Connectivity, Probe, Upstream

_TICK_SECONDS = 0.1
# Two probes start no closer than this, whatever the channel does: a peer that accepts and closes could spin us.
_LEAST_GAP_SECONDS = 0.05


class Monitor:
    """Belongs to one event loop. `run` does the work; the rest may be called at any time.

    `on_change` is called in the event loop, before the subscribers are told, and must not wait. With
    `on_connection_lost`, which is called just before, a connection that goes away counts at once: who is connected to
    next may be another Qdrant.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: config.Health,
        ping_interval_seconds: float,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self.verdict = Verdict(False, clock.monotonic(), "not probed yet")
        self.version = ""
        self.subscribers: Subscribers[Verdict] = Subscribers()
        self.on_change: Callable[[Verdict], None] | None = None
        self.on_connection_lost: Callable[[], None] | None = None
        self._upstream = upstream
        self._settings = settings
        self._ping_interval_seconds = ping_interval_seconds
        self._clock = clock
        self._telemetry = telemetry
        self._detector = Detector(
            fall=settings.fall,
            rise=settings.rise,
            dwell_seconds=settings.dwell_seconds,
            lag_tolerance_seconds=settings.lag_tolerance_seconds,
        )
        self._decided = asyncio.Event()
        self._is_probe_wanted = False
        # Something that may end the pause between two probes, or shorten it.
        self._news = asyncio.Event()
        self._pause_seconds = settings.probe_interval_seconds
        self._probes: set[asyncio.Task[None]] = set()
        # Enough that a probe starts at every interval although all before it hang.
        self._probes_limit = 1 + math.ceil(settings.probe_timeout_seconds / settings.probe_interval_seconds)
        self._last_good_start = -math.inf
        self._lag = _Lag(clock, settings.probe_timeout_seconds)

    async def first_verdict(self, timeout_seconds: float) -> Verdict:
        """The first verdict; down if none is found in time. `run` must be running."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._decided.wait()
        except TimeoutError:
            self.report_failure(f"no answer within {timeout_seconds:g} s")
        return self.verdict

    def report_failure(self, reason: str) -> None:
        """A call met a refused or reset connection: counts at once, then probes must show otherwise."""
        self._apply(self._detector.transport_failed(self._clock.monotonic(), reason))
        self._want_probe()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._lag.run(self._telemetry.metrics.loop_lag), name="health-lag")
            tasks.create_task(self._watch(), name="health-watch")
            tasks.create_task(self._ping(tasks), name="health-ping")
            await self._probe_regularly(tasks)

    # --- the three sources -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        last = self._upstream.connectivity()
        while last is not Connectivity.SHUTDOWN:
            now = await self._upstream.wait_for_change(last)
            # The probe that follows also makes an idle channel connect.
            if Connectivity.READY in (last, now):
                self._want_probe()
            if last is Connectivity.READY and now is not Connectivity.SHUTDOWN and self.on_connection_lost is not None:
                self.on_connection_lost()
                self.report_failure("the connection was lost")
            last = now

    async def _probe_regularly(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            # While Qdrant is down one probe at a time is enough.
            while len(self._probes) >= (self._probes_limit if self.verdict.up else 1):
                await asyncio.wait(self._probes, return_when=asyncio.FIRST_COMPLETED)
            self._is_probe_wanted = False
            self._start_probe(tasks, asks_version=False)
            await asyncio.sleep(_LEAST_GAP_SECONDS)
            await self._pause()

    async def _pause(self) -> None:
        """Until the next probe is due, or wanted. The answer to the last one may come in the pause, and shorten it."""
        began = self._clock.monotonic()
        while not self._is_probe_wanted:
            left = began + self._next_pause() - self._clock.monotonic()
            if left <= 0:
                return
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    def _want_probe(self) -> None:
        self._is_probe_wanted = True
        self._news.set()

    async def _ping(self, tasks: asyncio.TaskGroup) -> None:
        while self._ping_interval_seconds > 0:
            await asyncio.sleep(self._ping_interval_seconds)
            if len(self._probes) < self._probes_limit:
                self._start_probe(tasks, asks_version=True)

    # --- one probe ---------------------------------------------------------------------------------------------------

    def _start_probe(self, tasks: asyncio.TaskGroup, *, asks_version: bool) -> None:
        task = tasks.create_task(self._probe(asks_version), name="health-probe")
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _probe(self, asks_version: bool) -> None:
        started = self._clock.monotonic()
        probe = await self._upstream.probe(self._settings.probe_timeout_seconds, asks_version=asks_version)
        lag_seconds = self._lag.worst_since(started)
        self._count(probe, lag_seconds)
        if probe.ok and self._upstream.connectivity() is not Connectivity.READY:
            # It answered and was gone: the watcher asks for another probe.
            return
        if probe.version:
            self.version = probe.version
        if probe.ok:
            self._last_good_start = max(self._last_good_start, started)
        elif started < self._last_good_start and not probe.is_refused:
            # An earlier probe that took longer than a later one that was answered is old news.
            return
        self._apply(self._judge(probe, lag_seconds))
        if not probe.ok and not self.verdict.up:
            self._pause_seconds = min(self._pause_seconds * 2, self._settings.backoff_max_seconds)
        self._news.set()

    def _judge(self, probe: Probe, lag_seconds: float) -> Verdict | None:
        now = self._clock.monotonic()
        if probe.is_refused:
            return self._detector.transport_failed(now, probe.detail)
        return self._detector.probe_result(probe.ok, now, lag_seconds=lag_seconds, detail=probe.detail)

    def _count(self, probe: Probe, lag_seconds: float) -> None:
        if probe.ok:
            result = "ok"
        elif self._detector.is_discounted(lag_seconds) and not probe.is_refused:
            result = "ignored"
        else:
            result = "failed"
        self._telemetry.metrics.health_check(result)

    def _next_pause(self) -> float:
        if self.verdict.up or self._detector.is_rising or self._detector.verdict is None:
            self._pause_seconds = self._settings.probe_interval_seconds
        pause = self._pause_seconds
        if not self.verdict.up:
            pause = min(pause, self._settings.backoff_max_seconds)
        return max(0.0, pause - _LEAST_GAP_SECONDS)

    def _apply(self, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        self.verdict = verdict
        self._telemetry.metrics.upstream_up(verdict.up)
        self._telemetry.log.info("Qdrant is up" if verdict.up else "Qdrant is down", reason=verdict.reason)
        if self.on_change is not None:
            self.on_change(verdict)
        self.subscribers.fire(verdict)
        self._decided.set()


class _Lag:
    """How late the event loop runs, by a tick that should come every `_TICK_SECONDS`."""

    def __init__(self, clock: Clock, window_seconds: float) -> None:
        self._clock = clock
        self._due = clock.monotonic()
        # (when the tick came, how late), for somewhat longer than a probe lasts.
        self._ticks: deque[tuple[float, float]] = deque(maxlen=10 + math.ceil(2 * window_seconds / _TICK_SECONDS))

    def worst_since(self, since: float) -> float:
        """The worst lateness seen since then, in seconds; a tick that is overdue now counts."""
        overdue = max(0.0, self._clock.monotonic() - self._due)
        return max([overdue, *(late for at, late in self._ticks if at >= since)])

    async def run(self, report: Callable[[float], None]) -> None:
        while True:
            self._due = self._clock.monotonic() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            now = self._clock.monotonic()
            late = max(0.0, now - self._due)
            self._ticks.append((now, late))
            report(late)
