"""The monitor against a real process that is killed, frozen and brought back. Waits for verdicts, never for time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

import pytest

from server import config
from server.clock import SystemClock
from server.errors import UpstreamUnreachable
from server.health.detector import Verdict
from server.health.monitor import Monitor
from server.rpc import Call
from server.telemetry import Telemetry
from server.upstream import Connectivity, Probe, Upstream
from tests.faults.grpc_peer import ECHO, HANG, NOT_SERVING, SERVING, SET_HEALTH, VERSION, GrpcPeer
from tests.faults.tcp_toxics import TcpToxics

CLOCK = SystemClock()
FAST = config.Health(probe_interval_seconds=0.05, probe_timeout_seconds=0.5, dwell_seconds=0, backoff_max_seconds=0.3)
QUIET_SECONDS = 3600.0


class Watched:
    """A monitor that runs, and every verdict that it gave."""

    def __init__(self, upstream: Any, settings: config.Health, ping_seconds: float) -> None:
        self.telemetry = Telemetry.silent()
        self.monitor = Monitor(upstream, settings, ping_seconds, CLOCK, self.telemetry)
        self.monitor.on_change = self._note
        self.verdicts: list[Verdict] = []
        self.counts: Counter[str] = Counter()
        self._news = asyncio.Event()
        self.run = asyncio.ensure_future(self.monitor.run())
        count = self.telemetry.metrics.health_check

        def health_check(result: str) -> None:
            self.counts[result] += 1
            self._news.set()
            count(result)

        self.telemetry.metrics.health_check = health_check  # type: ignore[method-assign]

    def _note(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self._news.set()

    async def until(self, up: bool) -> Verdict:
        """The present verdict, once it is this."""
        while self.monitor.verdict.up is not up or not self.verdicts:
            await self._something_new()
        return self.monitor.verdict

    async def counted(self, result: str, times: int) -> None:
        """Wait for so many more probes with this result."""
        goal = self.counts[result] + times
        while self.counts[result] < goal:
            await self._something_new()

    async def _something_new(self) -> None:
        self._news.clear()
        news = asyncio.ensure_future(self._news.wait())
        await asyncio.wait((news, self.run), return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        if self.run.done():
            self.run.result()


@asynccontextmanager
async def watching(
    upstream: Any, settings: config.Health = FAST, *, ping_seconds: float = QUIET_SECONDS
) -> AsyncIterator[Watched]:
    watched = Watched(upstream, settings, ping_seconds)
    try:
        yield watched
    finally:
        watched.run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watched.run


@pytest.fixture
async def peer() -> AsyncIterator[GrpcPeer]:
    async with GrpcPeer() as peer:
        yield peer


@pytest.fixture
async def upstream(peer: GrpcPeer) -> AsyncIterator[Upstream]:
    upstream = Upstream(peer.address, clock=CLOCK, max_backoff_seconds=0.3)
    yield upstream
    await upstream.close()


# --- the first verdict -----------------------------------------------------------------------------------------------


async def test_up_at_the_first_good_probe(upstream: Upstream) -> None:
    # Rise and dwell do not hold back the first verdict.
    settings = FAST.model_copy(update={"rise": 1000, "dwell_seconds": 3600})
    async with watching(upstream, settings) as watched:
        verdict = await watched.monitor.first_verdict(60)
        assert verdict.up
        assert watched.verdicts == [verdict]
        assert watched.monitor.version == VERSION
        assert watched.counts["ok"] >= 1


async def test_down_at_once_when_nobody_listens() -> None:
    upstream = Upstream("127.0.0.1:1", clock=CLOCK)
    async with watching(upstream) as watched:
        verdict = await watched.monitor.first_verdict(60)
        assert not verdict.up
        assert "failed to connect" in verdict.reason
        assert watched.counts["failed"] >= 1
    await upstream.close()


async def test_down_when_no_answer_comes_in_time(peer: GrpcPeer, upstream: Upstream) -> None:
    peer.freeze()
    settings = FAST.model_copy(update={"probe_timeout_seconds": 3600.0})
    async with watching(upstream, settings) as watched:
        verdict = await watched.monitor.first_verdict(0.2)
        assert not verdict.up
        assert "no answer within 0.2 s" in verdict.reason
        peer.thaw()
        await watched.until(up=True)


async def test_before_run_it_is_down() -> None:
    upstream = Upstream("127.0.0.1:1", clock=CLOCK)
    monitor = Monitor(upstream, FAST, QUIET_SECONDS, CLOCK, Telemetry.silent())
    assert not monitor.verdict.up
    assert not (await monitor.first_verdict(0.01)).up
    await upstream.close()


# --- going and coming back -------------------------------------------------------------------------------------------


async def test_sigkill_with_calls_in_flight(peer: GrpcPeer, upstream: Upstream) -> None:
    # A slow cadence: it is the broken connection that shows it, not the next probe in an hour.
    settings = FAST.model_copy(update={"probe_interval_seconds": 3600.0, "backoff_max_seconds": 0.3})
    async with watching(upstream, settings) as watched:
        await watched.until(up=True)
        calls = [asyncio.ensure_future(upstream.handle(Call(HANG, b""))) for _ in range(10)]
        await peer.saw("hang", 10)
        await peer.kill()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, UpstreamUnreachable)
            assert outcome.maybe_applied
        await watched.until(up=False)
        await peer.start()
        await watched.until(up=True)
        assert [verdict.up for verdict in watched.verdicts] == [True, False, True]


async def test_sigkill_while_nothing_is_in_flight_is_noticed_without_waiting_for_the_next_probe(
    peer: GrpcPeer, upstream: Upstream
) -> None:
    settings = FAST.model_copy(update={"probe_interval_seconds": 3600.0})
    async with watching(upstream, settings) as watched:
        await watched.until(up=True)
        await peer.kill()
        await watched.until(up=False)


async def test_a_connection_that_is_lost_counts_at_once_and_is_told_first(peer: GrpcPeer, upstream: Upstream) -> None:
    async with watching(upstream) as watched:
        told: list[bool] = []
        watched.monitor.on_connection_lost = lambda: told.append(watched.monitor.verdict.up)
        await watched.until(up=True)
        assert told == []
        await peer.kill()
        await watched.until(up=False)
        # A probe may have met the dead connection before the watcher did.
        while not told:
            await watched.counted("failed", 1)
        await peer.start()
        await watched.until(up=True)
        assert len(told) == 1


async def test_a_slow_peer_whose_connection_stays_has_lost_nothing(peer: GrpcPeer, upstream: Upstream) -> None:
    async with watching(upstream) as watched:
        told: list[bool] = []
        watched.monitor.on_connection_lost = lambda: told.append(True)
        await watched.until(up=True)
        peer.freeze()
        await watched.until(up=False)
        peer.thaw()
        await watched.until(up=True)
        assert told == []


async def test_a_graceful_restart_is_noticed(peer: GrpcPeer, upstream: Upstream) -> None:
    async with watching(upstream) as watched:
        await watched.until(up=True)
        await peer.terminate()
        await watched.until(up=False)
        await peer.start()
        await watched.until(up=True)


async def test_a_frozen_peer_is_down_and_up_again_when_thawed(peer: GrpcPeer, upstream: Upstream) -> None:
    async with watching(upstream) as watched:
        await watched.until(up=True)
        peer.freeze()
        verdict = await watched.until(up=False)
        assert "in time" in verdict.reason
        assert upstream.connectivity() is Connectivity.READY  # READY is not health
        assert upstream.abort_in_flight("down") == 0
        peer.thaw()
        await watched.until(up=True)


def test_the_defaults_find_a_frozen_peer_within_three_seconds() -> None:
    defaults = config.Health()
    # The freeze comes just after a probe was answered; `fall` probes then start one interval apart, each with its time.
    assert defaults.fall * defaults.probe_interval_seconds + defaults.probe_timeout_seconds <= 3.0


async def test_a_black_hole_between_us(peer: GrpcPeer) -> None:
    host, port = peer.address.split(":")
    async with TcpToxics(host, int(port)) as toxics:
        upstream = Upstream(toxics.address, clock=CLOCK, max_backoff_seconds=0.3)
        async with watching(upstream) as watched:
            await watched.until(up=True)
            toxics.black_hole(on=True)
            await watched.until(up=False)
            toxics.black_hole(on=False)
            await watched.until(up=True)
        await upstream.close()


async def test_refused_then_accepted(peer: GrpcPeer) -> None:
    host, port = peer.address.split(":")
    async with TcpToxics(host, int(port)) as toxics:
        upstream = Upstream(toxics.address, clock=CLOCK, max_backoff_seconds=0.3)
        async with watching(upstream) as watched:
            await watched.until(up=True)
            await toxics.refuse()
            await toxics.reset()
            await watched.until(up=False)
            await watched.counted("failed", 3)
            await toxics.accept()
            await watched.until(up=True)
        await upstream.close()


class ToxicsBeside:
    """A TCP proxy in a thread of its own: it runs on while the event loop of the test is busy."""

    def __init__(self, peer: GrpcPeer) -> None:
        host, port = peer.address.split(":")
        self.toxics = TcpToxics(host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for something done there."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def __enter__(self) -> ToxicsBeside:
        self._thread.start()
        self.do(self.toxics.accept())
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.toxics.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.mark.parametrize("cuts", [1, 3])
async def test_a_connection_that_is_lost_and_replaced_while_the_loop_is_busy_is_told(peer: GrpcPeer, cuts: int) -> None:
    """Behind a load balancer the next connection is there at once: when the watcher gets its turn it is READY again."""
    with ToxicsBeside(peer) as beside:
        upstream = Upstream(beside.toxics.address, clock=CLOCK, max_backoff_seconds=0.3)
        async with watching(upstream) as watched:
            told: list[bool] = []
            watched.monitor.on_connection_lost = lambda: told.append(watched.monitor.verdict.up)
            await watched.until(up=True)
            await watched.counted("ok", 1)
            give_up_at = CLOCK.monotonic() + 20
            for _ in range(cuts):
                beside.do(beside.toxics.reset())
                while upstream.connectivity() is Connectivity.READY and CLOCK.monotonic() < give_up_at:
                    pass
                while upstream.connectivity() is not Connectivity.READY and CLOCK.monotonic() < give_up_at:
                    upstream.connect()
            assert (beside.toxics.accepted, told) == (cuts + 1, [])
            await watched.counted("ok", 2)
            assert told == [True]
            assert [verdict.up for verdict in watched.verdicts[:2]] == [True, False]
            await watched.until(up=True)
        await upstream.close()


async def test_a_peer_that_says_it_is_not_serving(peer: GrpcPeer, upstream: Upstream) -> None:
    async with watching(upstream) as watched:
        await watched.until(up=True)
        await upstream.handle(Call(SET_HEALTH, NOT_SERVING))
        assert "not serving" in (await watched.until(up=False)).reason
        await upstream.handle(Call(SET_HEALTH, SERVING))
        await watched.until(up=True)


# --- reports, ping, counting -----------------------------------------------------------------------------------------


async def test_a_reported_failure_counts_at_once_and_probes_show_otherwise(upstream: Upstream) -> None:
    async with watching(upstream) as watched:
        await watched.until(up=True)
        watched.monitor.report_failure("a call was reset")
        assert watched.verdicts[-1].up is False
        assert watched.verdicts[-1].reason == "a call was reset"
        watched.monitor.report_failure("another call was reset")
        assert len(watched.verdicts) == 2
        await watched.until(up=True)


async def test_the_slow_ping_goes_on_when_all_else_is_quiet(peer: GrpcPeer, upstream: Upstream) -> None:
    settings = FAST.model_copy(update={"probe_interval_seconds": 3600.0})
    async with watching(upstream, settings, ping_seconds=0.05) as watched:
        await watched.until(up=True)
        # It also asks for the version: a Qdrant may be upgraded behind an address that never closes.
        await peer.saw("health check", 4)
        await watched.counted("ok", 2)


async def test_no_ping_when_its_interval_is_zero(peer: GrpcPeer, upstream: Upstream) -> None:
    async with watching(upstream, ping_seconds=0) as watched:
        await watched.until(up=True)
        await watched.counted("ok", 5)
        assert peer.count("health check") == 1


async def test_subscribers_hear_every_verdict_and_the_hook_comes_first(peer: GrpcPeer, upstream: Upstream) -> None:
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[tuple[Verdict, int]] = asyncio.Queue()
    async with watching(upstream) as watched:

        def subscriber(verdict: Verdict) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, (verdict, len(watched.verdicts)))

        watched.monitor.subscribers.subscribe(subscriber)
        for up in (True, False):
            verdict, noted = await heard.get()
            assert verdict.up is up
            assert noted >= watched.verdicts.index(verdict) + 1
            if up:
                await peer.kill()


async def test_metrics_show_the_verdict_and_the_checks(upstream: Upstream) -> None:
    async with watching(upstream) as watched:
        await watched.until(up=True)
        text = watched.telemetry.metrics.prometheus().decode()
        assert 'fallback_health_checks_total{result="ok"}' in text


# --- our own lateness ------------------------------------------------------------------------------------------------


class Scripted:
    """An upstream whose probes are answered by the test."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[Probe]] = asyncio.Queue()
        self.state = Connectivity.READY

    async def probe(self, timeout_seconds: float, *, asks_version: bool = False) -> Probe:
        answer: asyncio.Future[Probe] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        return await answer

    def connectivity(self) -> Connectivity:
        return self.state

    async def wait_for_change(self, last: Connectivity) -> Connectivity:
        await asyncio.Event().wait()
        raise AssertionError

    async def answer(self, probe: Probe) -> None:
        (await self.asked.get()).set_result(probe)


GOOD = Probe(True, "serving")
SILENT = Probe(False, "no answer in time")
REFUSED = Probe(False, "refused", is_refused=True)


class LateClock:
    """The real clock, plus what the test adds: as if the event loop had stood still for so long."""

    def __init__(self) -> None:
        self.added_seconds = 0.0

    def monotonic(self) -> float:
        return CLOCK.monotonic() + self.added_seconds

    def wall_ns(self) -> int:
        return CLOCK.wall_ns()


@asynccontextmanager
async def scripted(settings: config.Health = FAST) -> AsyncIterator[tuple[Watched, Scripted, LateClock]]:
    upstream, clock = Scripted(), LateClock()
    async with watching(upstream, settings) as watched:
        watched.monitor._clock = clock
        watched.monitor._lag._clock = clock
        yield watched, upstream, clock


async def test_probes_that_fail_while_we_ran_late_are_ignored_and_counted_so() -> None:
    async with scripted(FAST.model_copy(update={"fall": 1})) as (watched, upstream, clock):
        await upstream.answer(GOOD)
        await watched.until(up=True)
        for _ in range(5):
            answer = await upstream.asked.get()
            clock.added_seconds += 10
            answer.set_result(SILENT)
            await watched.counted("ignored", 1)
        assert watched.monitor.verdict.up
        # A refused connection is no matter of time.
        answer = await upstream.asked.get()
        clock.added_seconds += 10
        answer.set_result(REFUSED)
        await watched.until(up=False)


async def test_silent_probes_overlap_and_a_late_failure_of_an_old_one_is_no_news() -> None:
    async with scripted() as (watched, upstream, _):
        await upstream.answer(GOOD)
        await watched.until(up=True)
        old = await upstream.asked.get()
        newer = await upstream.asked.get()  # started although the old one is silent
        newer.set_result(GOOD)
        await watched.counted("ok", 1)
        failed = watched.counts["failed"]
        old.set_result(SILENT)
        await watched.counted("failed", 1)
        assert watched.counts["failed"] == failed + 1
        for _ in range(FAST.fall - 1):
            await upstream.answer(SILENT)
            await watched.counted("failed", 1)
            assert watched.monitor.verdict.up
        await upstream.answer(SILENT)
        await watched.until(up=False)


async def test_the_number_of_silent_probes_is_bounded() -> None:
    settings = FAST.model_copy(update={"fall": 1000})
    async with scripted(settings) as (watched, upstream, _):
        await upstream.answer(GOOD)
        await watched.until(up=True)
        waiting = [await upstream.asked.get() for _ in range(1 + round(0.5 / 0.05))]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await upstream.asked.get()
        waiting[0].set_result(GOOD)
        await upstream.asked.get()


async def test_an_answer_over_a_connection_that_is_gone_does_not_count() -> None:
    async with scripted() as (watched, upstream, _):
        upstream.state = Connectivity.IDLE
        for _ in range(3):
            await upstream.answer(GOOD)
            await watched.counted("ok", 1)
        assert not watched.verdicts
        upstream.state = Connectivity.READY
        await upstream.answer(GOOD)
        await watched.until(up=True)


async def test_while_down_probes_come_one_at_a_time_and_ever_slower() -> None:
    async with scripted() as (watched, upstream, _):
        await upstream.answer(REFUSED)
        await watched.until(up=False)
        pauses = []
        for _ in range(5):
            await upstream.answer(REFUSED)
            await watched.counted("failed", 1)
            pauses.append(watched.monitor._next_pause())
            assert upstream.asked.empty()
        assert pauses == sorted(pauses)
        assert pauses[-1] == pytest.approx(FAST.backoff_max_seconds - 0.05)
        # The first good one brings back the fast pace.
        await upstream.answer(GOOD)
        await watched.counted("ok", 1)
        assert watched.monitor._next_pause() < FAST.probe_interval_seconds


async def test_the_first_good_answer_ends_a_long_pause_that_began_before_it() -> None:
    settings = FAST.model_copy(update={"backoff_max_seconds": 5.0})
    async with scripted(settings) as (watched, upstream, _):
        await upstream.answer(REFUSED)
        await watched.until(up=False)
        for _ in range(8):
            watched.monitor.report_failure("look again")
            await upstream.answer(REFUSED)
            await watched.counted("failed", 1)
        watched.monitor.report_failure("look again")
        slow = await upstream.asked.get()
        # Meanwhile the pause begins: five seconds.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await upstream.asked.get()
        slow.set_result(GOOD)
        async with asyncio.timeout(3):
            await upstream.answer(GOOD)
            await watched.until(up=True)


async def test_the_end_to_end_call_after_everything(peer: GrpcPeer, upstream: Upstream) -> None:
    """Probes, pings and calls share one channel and leave each other alone."""
    async with watching(upstream, ping_seconds=0.05) as watched:
        await watched.until(up=True)
        for number in range(50):
            body = str(number).encode()
            assert (await upstream.handle(Call(ECHO, body))).body == body
        await watched.counted("ok", 3)
        assert [verdict.up for verdict in watched.verdicts] == [True]
