"""The replay loop against a log in memory and a small Qdrant, on a manual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from generated.understudy.wal.v1 import entry_pb2
from server import config
from server.config import QuarantinePolicy, Settings
from server.health.breaker import Breaker, Phase
from server.replay import Replayer, ReplayState
from server.replay.delivery import Answer
from server.replay.judge import Outcome
from server.replay.progress import Progress
from server.rpc import WAL_KINDS, Backend, Call, Code, Metadata, Reply
from server.telemetry import Telemetry
from server.wal.record import EntryState, Record
from tests.faults.backends import FlakyBackend, LostAnswer, Refused, Silence, Stall, says
from tests.faults.clock import ManualClock

from .fakes import MemoryLog, MiniQdrant, create, delete, drop, entry, point, sent, set_payload, upsert


class Lines:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.lines.append((level, str(event), fields))

    def texts(self) -> list[str]:
        return [event for _, event, _ in self.lines]


@dataclass
class Bench:
    """A replayer with everything around it."""

    log: MemoryLog
    upstream: Backend
    settings: config.Replay = field(default_factory=lambda: config.Replay(merge_points=1))
    key: Metadata | None = None
    clock: ManualClock = field(default_factory=ManualClock)
    telemetry: Telemetry = field(default_factory=Telemetry.silent)
    drained: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.lines = Lines()
        self.telemetry.log = self.lines  # type: ignore[assignment]
        self.breaker = Breaker(self.settings.breaker_failures, self.settings.breaker_open_seconds)
        self.replayer = Replayer(
            self.log,
            self.upstream,
            self.breaker,
            self.settings,
            self.clock,
            self.telemetry,
            lambda: self.key,
            WAL_KINDS,
            jitter=lambda: 1.0,
            sleep=self.clock.sleep,
        )
        self.replayer.on_drained = self.note_drained

    async def note_drained(self) -> None:
        self.drained.set()

    @asynccontextmanager
    async def running(self, *, up: bool = True) -> AsyncIterator[Replayer]:
        self.replayer.upstream_up = up
        self.replayer.request_sync("test")
        task = asyncio.create_task(self.replayer.run())
        try:
            yield self.replayer
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let time pass, as far as somebody waits for it, until the condition holds."""
        for _ in range(200_000):
            assert "replay stumbled" not in self.lines.texts(), self.lines.lines
            if condition():
                return
            await asyncio.sleep(0)
            if not condition() and self.clock.sleeping:
                self.clock.advance(self.clock.sleeping[0])
        raise AssertionError(f"never came about; {self.replayer.progress}")

    async def drain(self) -> None:
        async with self.running():
            await self.until(self.drained.is_set)


def numbers(flaky: FlakyBackend) -> list[int]:
    """The first point of each upsert that was sent."""
    return [sent(call).points[0].id.num for call in flaky.calls if call.method.endswith("Upsert")]


async def test_first_in_first_out_with_wait() -> None:
    qdrant = MiniQdrant("c")
    flaky = FlakyBackend(qdrant)
    bench = Bench(MemoryLog(*(upsert(point(n), wait=False, timeout=3) for n in range(20))), flaky)
    await bench.drain()
    assert numbers(flaky) == list(range(20))
    assert all(sent(call).wait and not sent(call).HasField("timeout") for call in flaky.calls)
    assert bench.log.pending_count == 0
    assert bench.log.kept == {}
    progress = bench.replayer.progress
    assert (progress.replayed, progress.remaining, progress.last_error) == (20, 0, "")


async def test_the_pace_of_a_drain_and_how_long_it_will_take() -> None:
    seen: list[Progress] = []

    class Slow:
        """Takes a quarter of a second for each entry."""

        def __init__(self) -> None:
            self.qdrant = MiniQdrant("c")

        async def handle(self, call: Call) -> Reply:
            bench.clock.advance(0.25)
            seen.append(bench.replayer.progress)
            return await self.qdrant.handle(call)

    bench = Bench(MemoryLog(*(upsert(point(n)) for n in range(40))), Slow())
    await bench.drain()
    assert (seen[0].entries_per_second, seen[0].left_seconds) == (0.0, None)
    last = seen[-1]
    assert last.entries_per_second == pytest.approx(4, rel=0.1)
    assert last.left_seconds == pytest.approx(last.remaining / last.entries_per_second)
    idle = bench.replayer.progress
    assert (idle.entries_per_second, idle.left_seconds) == (0.0, None)


async def test_resolved_operations_go_instead_of_the_request() -> None:
    qdrant = MiniQdrant("c")
    by_filter = ("/qdrant.Points/Delete", type(delete(1)[1])(collection_name="c", points={"filter": {}}))
    bench = Bench(MemoryLog(upsert(point(1), point(2)), entry(by_filter, delete(1), set_payload(2, k=5))), qdrant)
    await bench.drain()
    assert qdrant.points["c"] == {2: {"k": 5}}


@pytest.mark.parametrize("fault", [Refused(), Silence(), LostAnswer(), says(Code.UNAVAILABLE), says(Code.ABORTED)])
async def test_the_same_entry_again_and_never_the_next(fault: Any) -> None:
    flaky = FlakyBackend(MiniQdrant("c"), [fault] * 3)
    bench = Bench(MemoryLog(upsert(point(1)), upsert(point(2))), flaky)
    await bench.drain()
    assert numbers(flaky) == [1, 1, 1, 1, 2]


async def test_backoff_doubles_up_to_its_limit() -> None:
    settings = config.Replay(breaker_failures=100, merge_points=1)
    bench = Bench(MemoryLog(upsert(point(1))), FlakyBackend(MiniQdrant("c"), [says(Code.UNAVAILABLE)] * 8), settings)
    pauses: list[float] = []
    async with bench.running():
        for _ in range(8):
            pauses.append(await bench.clock.somebody_sleeps())
            bench.clock.advance(pauses[-1])
            await asyncio.sleep(0)
        await bench.until(bench.drained.is_set)
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])


async def test_retry_after_is_honoured_and_proves_life() -> None:
    busy = says(Code.RESOURCE_EXHAUSTED, "rate limit", retry_after="42")
    bench = Bench(MemoryLog(upsert(point(1))), FlakyBackend(MiniQdrant("c"), [busy] * 7))
    async with bench.running():
        for _ in range(7):
            assert await bench.clock.somebody_sleeps() == 42
            bench.clock.advance(42)
            await asyncio.sleep(0)
        await bench.until(bench.drained.is_set)
    assert bench.breaker.phase is Phase.CLOSED


async def test_breaker_opens_after_five_and_lets_one_through() -> None:
    flaky = FlakyBackend(MiniQdrant("c"), [says(Code.UNAVAILABLE)] * 6)
    bench = Bench(MemoryLog(upsert(point(1)), upsert(point(2))), flaky)
    async with bench.running() as replayer:
        await bench.until(lambda: bench.breaker.phase is Phase.OPEN)
        assert len(flaky.calls) == 5
        await bench.until(lambda: replayer.progress.state is ReplayState.BREAKER_OPEN)
        assert await replayer.drain_now() is False
        assert len(flaky.calls) == 5
        bench.clock.advance(await bench.clock.somebody_sleeps())
        await bench.until(lambda: len(flaky.calls) == 6)
        await bench.until(lambda: bench.breaker.phase is Phase.OPEN)
        await bench.until(bench.drained.is_set)
    assert numbers(flaky) == [1] * 7 + [2]
    assert bench.clock.monotonic() >= 1000 + 600


async def test_failures_while_known_to_be_down_do_not_count() -> None:
    flaky = FlakyBackend(MiniQdrant("c"), [Refused()] * 20)
    bench = Bench(MemoryLog(upsert(point(1))), flaky)
    reasons: list[str] = []

    def went_down(reason: str) -> None:
        reasons.append(reason)

    async with bench.running() as replayer:
        replayer.on_unreachable = went_down
        behind = flaky.handle

        async def fails_as_it_goes_down(call: Any) -> Any:
            replayer.upstream_up = False
            return await behind(call)

        flaky.handle = fails_as_it_goes_down  # type: ignore[method-assign]
        for _ in range(20):
            await bench.until(lambda: replayer.progress.state is ReplayState.WAITING_UPSTREAM)
            replayer.upstream_up = True
            await bench.until(lambda: not replayer.upstream_up or bench.drained.is_set())
        replayer.upstream_up = True
        await bench.until(bench.drained.is_set)
    assert len(reasons) == 20
    assert bench.breaker.phase is Phase.CLOSED


async def test_nothing_is_sent_while_down() -> None:
    flaky = FlakyBackend(MiniQdrant("c"))
    bench = Bench(MemoryLog(upsert(point(1))), flaky)
    async with bench.running(up=False) as replayer:
        await bench.until(lambda: replayer.progress.state is ReplayState.WAITING_UPSTREAM)
        assert await replayer.drain_now() is False
        assert flaky.calls == []
        replayer.upstream_up = True
        await bench.until(bench.drained.is_set)


async def test_bad_points_are_found_and_the_rest_applied() -> None:
    qdrant = MiniQdrant("c")
    wrong = (1.0, 2.0, 3.0)
    points = [point(n, wrong if n in (3, 7) else (1.0, 2.0), v=n) for n in range(10)]
    bench = Bench(MemoryLog(upsert(*points)), qdrant)
    await bench.drain()
    assert set(qdrant.points["c"]) == set(range(10)) - {3, 7}
    (item,) = bench.log.kept.values()
    kept = entry_pb2.Entry.FromString(item.record.body)
    assert "Vector dimension error" in item.details
    assert item.code == Code.INVALID_ARGUMENT
    assert not kept.resolved
    assert sent_ids(entry_pb2.Operation(request=kept.request)) == [3, 7]
    assert item.record.points == kept.point_count == 2
    assert bench.breaker.phase is Phase.CLOSED


async def test_a_refused_entry_is_in_quarantine_before_the_cursor_passes_it() -> None:
    class Watched(MemoryLog):
        async def mark_replayed(self, seq: int) -> None:
            assert seq < 2 or 2 in self.kept
            await super().mark_replayed(seq)

    log = Watched(upsert(point(1)), upsert(point(2, (1.0,))), upsert(point(3)))
    await Bench(log, MiniQdrant("c")).drain()
    assert (list(log.kept), log.pending_count) == ([2], 0)


def sent_ids(operation: entry_pb2.Operation) -> list[int]:
    request = type(upsert()[1]).FromString(operation.request)
    return [each.id.num for each in request.points]  # type: ignore[attr-defined]


async def test_followers_of_a_quarantined_point() -> None:
    qdrant = MiniQdrant("c")
    log = MemoryLog(
        upsert(point(1, v=1), point(2, v=1)),
        upsert(point(1, (1.0,), v=2)),
        set_payload(1, 2, k=3),
        upsert(point(1, v=4), point(2, v=4)),
        delete(1),
        set_payload(2, k=6),
    )
    await Bench(log, qdrant).drain()
    assert qdrant.points["c"] == {1: {"v": 1}, 2: {"v": 4, "k": 6}}
    assert [(seq, item.details) for seq, item in log.kept.items()][1:] == [
        (3, "follows seq 2"),
        (4, "follows seq 2"),
        (5, "follows seq 2"),
    ]
    assert log.kept[5].record.body == log.records[4].body


async def test_followers_are_known_after_a_restart() -> None:
    qdrant = MiniQdrant("c")
    log = MemoryLog(upsert(point(1, (1.0,)), point(2)))
    await Bench(log, qdrant).drain()
    log.append(upsert(point(1), point(2, v=9)))
    await Bench(log, qdrant).drain()
    assert qdrant.points["c"] == {2: {"v": 9}}
    assert log.kept[2].details == "follows seq 1"
    del log.kept[1], log.kept[2]
    log.append(upsert(point(1)))
    await Bench(log, qdrant).drain()
    assert set(qdrant.points["c"]) == {1, 2}


async def test_a_collection_that_is_gone_takes_its_entries_with_it() -> None:
    qdrant = MiniQdrant("other")
    flaky = FlakyBackend(qdrant)
    log = MemoryLog(
        upsert(point(1), point(2)),
        upsert(point(5), collection="other"),
        delete(9),
        create(),
        upsert(point(6), collection="other"),
    )
    await Bench(log, flaky).drain()
    assert set(qdrant.points["other"]) == {5, 6}
    assert sorted(log.kept) == [1, 3, 4]
    assert [call.method.rsplit("/", 1)[-1] for call in flaky.calls] == ["Upsert"] * 3


async def test_policy_skip_tries_the_followers() -> None:
    qdrant = MiniQdrant("c")
    log = MemoryLog(upsert(point(1, (1.0,))), upsert(point(1, v=2)))
    await Bench(log, qdrant, config.Replay(quarantine_policy=QuarantinePolicy.SKIP)).drain()
    assert qdrant.points["c"] == {1: {"v": 2}}
    assert sorted(log.kept) == [1]


async def test_policy_halt_waits_for_the_operator() -> None:
    qdrant = MiniQdrant("c")
    log = MemoryLog(upsert(point(1, (1.0,))), upsert(point(2)))
    bench = Bench(log, qdrant, config.Replay(quarantine_policy=QuarantinePolicy.HALT))
    async with bench.running() as replayer:
        await bench.until(lambda: replayer.progress.state is ReplayState.HALTED)
        assert sorted(log.kept) == [1]
        assert qdrant.points["c"] == {}
        replayer.request_sync("still there")
        await bench.until(lambda: replayer.waiting_requests == 0 or replayer.progress.attempt > 1)
        await bench.until(lambda: replayer.progress.state is ReplayState.HALTED)
        assert qdrant.points["c"] == {}
        log.kept.clear()
        replayer.request_sync("the operator dropped it")
        await bench.until(bench.drained.is_set)
    assert set(qdrant.points["c"]) == {2}


async def test_create_again_with_the_same_and_with_another_shape() -> None:
    qdrant = MiniQdrant("same", "other", size=2)
    log = MemoryLog(create("same", 2), create("other", 3), upsert(point(1), collection="same"))
    await Bench(log, qdrant).drain()
    assert sorted(log.kept) == [2]
    assert set(qdrant.points["same"]) == {1}


async def test_collection_operations_are_marked_one_by_one() -> None:
    qdrant = MiniQdrant()
    log = MemoryLog(create(), upsert(point(1)), upsert(point(2)), drop(), create(size=3), upsert(point(3, (1, 2, 3))))
    await Bench(log, qdrant).drain()
    assert log.marks == [1, 3, 4, 5, 6]
    assert log.kept == {}
    assert set(qdrant.points["c"]) == {3}


async def test_deleting_a_missing_collection_is_done() -> None:
    log = MemoryLog(drop("never"))
    await Bench(log, MiniQdrant()).drain()
    assert log.kept == {}


async def test_an_entry_applied_before_whose_answer_was_lost() -> None:
    """Set payload, then delete, in one entry: the second time the point is gone, and that is right."""
    qdrant = MiniQdrant("c")
    both = entry(set_payload(1, k=1), set_payload(1, k=1), delete(1))
    flaky = FlakyBackend(qdrant, [LostAnswer()], only=lambda call: call.method.endswith("Points/Delete"))
    log = MemoryLog(upsert(point(1)), both)
    await Bench(log, flaky).drain()
    assert log.kept == {}
    assert qdrant.points["c"] == {}


async def test_waiting_for_a_credential() -> None:
    qdrant = MiniQdrant("c")
    qdrant.key = "right"
    bench = Bench(MemoryLog(upsert(point(1))), qdrant)
    async with bench.running() as replayer:
        await bench.until(lambda: replayer.progress.state is ReplayState.WAITING_CREDENTIAL)
        assert bench.log.kept == {}
        bench.key = (("api-key", "wrong"),)
        await bench.until(lambda: replayer.progress.attempt == 2)
        bench.key = (("api-key", "right"),)
        await bench.until(bench.drained.is_set)
    assert set(qdrant.points["c"]) == {1}
    assert bench.breaker.phase is Phase.CLOSED


async def test_the_servers_own_failures_blame_one_entry_at_most() -> None:
    broken = FlakyBackend(MiniQdrant("c"), [says(Code.INTERNAL, "Service internal error: panic")] * 10)
    bench = Bench(MemoryLog(upsert(point(1)), upsert(point(2)), upsert(point(3))), broken)
    await bench.drain()
    assert sorted(bench.log.kept) == [1]
    assert numbers(broken)[:4] == [1, 1, 1, 2]


async def test_neighbours_at_which_qdrant_always_fails_inside_hold_nothing_up_for_good() -> None:
    qdrant = MiniQdrant("c", "dead")

    class Dying:
        async def handle(self, call: Call) -> Reply:
            if sent(call).collection_name == "dead":
                return Reply(code=Code.INTERNAL, details="Service internal error: the shard is dead")
            return await qdrant.handle(call)

    log = MemoryLog(*(upsert(point(n), collection="dead") for n in range(3)), upsert(point(4)), upsert(point(5)))
    bench = Bench(log, Dying())
    began = bench.clock.monotonic()
    await bench.drain()
    assert set(qdrant.points["c"]) == {4, 5}
    assert sorted(log.kept) == [1, 2, 3]
    rests = 2 * bench.settings.doubtful_tries * bench.settings.breaker_open_seconds
    assert rests <= bench.clock.monotonic() - began < rests + 60


async def test_unreadable_entries_are_kept_and_never_sent() -> None:
    log = MemoryLog()
    log.append_raw(Record(1, 1, EntryState.PENDING, 0, b"", "", b"\xff\xff", 0))
    log.append(upsert(point(1)), kind=2)
    log.append_raw(Record(3, 1, EntryState.PENDING, 0, b"", "", entry_pb2.Entry(method="/x/Y").SerializeToString(), 0))
    log.append(upsert(point(4)))
    flaky = FlakyBackend(MiniQdrant("c"))
    await Bench(log, flaky).drain()
    assert sorted(log.kept) == [1, 2, 3]
    assert numbers(flaky) == [4]


async def test_a_log_that_fails_stops_the_replay_and_loses_nothing() -> None:
    qdrant = MiniQdrant("c")
    bench = Bench(MemoryLog(upsert(point(1)), upsert(point(2))), qdrant)
    bench.log.failing = True
    async with bench.running() as replayer:
        await bench.until(lambda: replayer.progress.state is ReplayState.LOG_FAILED)
        assert "fdatasync" in replayer.progress.last_error
        bench.log.failing = False
        await bench.until(bench.drained.is_set)
    assert set(qdrant.points["c"]) == {1, 2}


async def test_requests_coalesce_and_are_bounded() -> None:
    bench = Bench(MemoryLog(), MiniQdrant(), config.Replay(queue_limit=3))
    for reason in ("a", "a", "b", "c", "d", "e"):
        bench.replayer.request_sync(reason)
    assert bench.replayer.waiting_requests == 3
    await bench.drain()
    assert bench.replayer.waiting_requests == 0


async def test_stopping_lets_the_entry_under_way_end() -> None:
    stall = Stall(asyncio.Event(), asyncio.Event())
    qdrant = MiniQdrant("c")
    bench = Bench(MemoryLog(upsert(point(1)), upsert(point(2))), FlakyBackend(qdrant, [stall]))
    bench.replayer.upstream_up = True
    bench.replayer.request_sync("test")
    task = asyncio.create_task(bench.replayer.run())
    await stall.reached.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    stall.until.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(qdrant.points["c"]) == {1}
    assert bench.log.replayed_seq == 1


async def test_stopping_gives_up_an_entry_that_does_not_end() -> None:
    stall = Stall(asyncio.Event(), asyncio.Event())
    bench = Bench(MemoryLog(upsert(point(1)), upsert(point(2))), FlakyBackend(MiniQdrant("c"), [says(Code.OK), stall]))
    bench.replayer._stop_grace_seconds = 0.0
    bench.replayer.upstream_up = True
    bench.replayer.request_sync("test")
    task = asyncio.create_task(bench.replayer.run())
    await stall.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.log.replayed_seq == 1


async def test_cancelling_drain_now_leaves_the_entry_to_the_loop() -> None:
    stall = Stall(asyncio.Event(), asyncio.Event())
    qdrant = MiniQdrant("c")
    flaky = FlakyBackend(qdrant, [stall])
    bench = Bench(MemoryLog(upsert(point(1)), upsert(point(2))), flaky)
    bench.replayer.upstream_up = True
    hurried = asyncio.create_task(bench.replayer.drain_now())
    await stall.reached.wait()
    hurried.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hurried
    stall.until.set()
    assert await bench.replayer.drain_now() is True
    assert numbers(flaky) == [1, 2]


async def test_writes_that_join_during_the_last_look_are_not_forgotten() -> None:
    qdrant = MiniQdrant("c")
    bench = Bench(MemoryLog(upsert(point(0))), qdrant)
    late = iter(range(1, 4))

    async def somebody_writes() -> None:
        number = next(late, None)
        if number is not None:
            bench.log.append(upsert(point(number)))
        else:
            bench.drained.set()

    bench.replayer.on_drained = somebody_writes
    await bench.drain()
    assert set(qdrant.points["c"]) == {0, 1, 2, 3}


async def test_drain_now_does_not_trust_a_look_from_before() -> None:
    bench = Bench(MemoryLog(), MiniQdrant("c"))
    bench.replayer.upstream_up = True
    reading = asyncio.Event()
    go_on = asyncio.Event()
    read = bench.log.read_pending

    async def slow_read(entries: int, size: int) -> list[Record]:
        found = await read(entries, size)
        reading.set()
        await go_on.wait()
        return found

    bench.log.read_pending = slow_read  # type: ignore[method-assign]
    first = asyncio.create_task(bench.replayer.drain_now())
    await reading.wait()
    bench.log.append(upsert(point(1)))
    second = asyncio.create_task(bench.replayer.drain_now())
    await asyncio.sleep(0)
    go_on.set()
    assert await second is True
    assert await first in (True, False)
    assert bench.log.pending_count == 0


# --- several as one --------------------------------------------------------------------------------------------------

TOGETHER = config.Replay(merge_points=10)


async def test_upserts_in_a_row_go_as_one() -> None:
    flaky = FlakyBackend(MiniQdrant("c", "d"))
    log = MemoryLog(
        *(upsert(point(n)) for n in range(25)),
        upsert(point(3, v=1)),
        upsert(point(3, v=2)),
        upsert(point(4), collection="d"),
        delete(5),
        upsert(point(5, v=3)),
    )
    bench = Bench(log, flaky, TOGETHER)
    await bench.drain()
    assert [[each.id.num for each in sent(call).points] for call in flaky.calls if call.method.endswith("Upsert")] == [
        [*range(10)],
        [*range(10, 20)],
        [20, 21, 22, 23, 24, 3],
        [3],
        [4],
        [5],
    ]
    assert all(sent(call).wait for call in flaky.calls)
    assert bench.replayer.progress.replayed == 30


async def test_what_is_refused_as_one_is_halved_until_the_one_to_blame_is_alone() -> None:
    qdrant = MiniQdrant("c")
    qdrant.refused = {3}
    flaky = FlakyBackend(qdrant)
    log = MemoryLog(*(upsert(point(n)) for n in range(8)))
    await Bench(log, flaky, TOGETHER).drain()
    assert set(qdrant.points["c"]) == {0, 1, 2, 4, 5, 6, 7}
    assert sorted(log.kept) == [4]
    assert [[each.id.num for each in sent(call).points] for call in flaky.calls] == [
        [*range(8)],
        [0, 1, 2, 3],
        [0, 1],
        [2],
        [3],
        [4, 5, 6, 7],
    ]


@pytest.mark.parametrize("odd", [0, 3, 7])
async def test_of_what_is_refused_as_one_the_odd_vectors_go_singly_first(odd: int) -> None:
    flaky = FlakyBackend(MiniQdrant("c"))
    log = MemoryLog(*(upsert(point(n, (1.0,) if n == odd else (1.0, 2.0))) for n in range(8)))
    await Bench(log, flaky, TOGETHER).drain()
    assert sorted(log.kept) == [odd + 1]
    calls = [[each.id.num for each in sent(call).points] for call in flaky.calls]
    assert calls == [each for each in ([*range(8)], [*range(odd)], [odd], [*range(odd + 1, 8)]) if each]


async def test_what_is_refused_waits_for_the_cursor_and_comes_before_it() -> None:
    log = MemoryLog(upsert(point(1)), set_payload(8), upsert(point(2)), set_payload(9), set_payload(1, v=1))
    await Bench(log, FlakyBackend(MiniQdrant("c")), TOGETHER).drain()
    assert log.batches == [[2, 4]]
    # The cursor: before the payload of a point that was upserted just now, and at the end.
    assert log.marks == [4, 5]


async def test_what_is_refused_goes_to_quarantine_when_the_disk_takes_it_again() -> None:
    class Breaking(MiniQdrant):
        """The disk of the log fails while the second entry is sent."""

        async def handle(self, call: Call) -> Reply:
            if call.method.endswith("Upsert"):
                log.failing = sent(call).points[0].id.num == 2
            return await super().handle(call)

    log = MemoryLog(upsert(point(1, (1.0,))), upsert(point(2)), upsert(point(1)), set_payload(9))
    bench = Bench(log, Breaking("c"))
    bench.replayer.upstream_up = True
    for _ in range(2):
        assert not await bench.replayer.drain_now()
        assert (log.kept, log.replayed_seq) == ({}, 0)
    log.failing = False
    await bench.drain()
    assert sorted(log.kept) == [1, 3, 4]
    assert log.kept[3].details == "follows seq 1"


async def test_what_fails_inside_before_an_entry_is_not_its_fault() -> None:
    class Looks:
        """Looks at what Qdrant may have lost, in vain at first."""

        left = 2

        @property
        def is_due(self) -> bool:
            return self.left > 0

        async def step(self, *_: object) -> Answer:
            self.left -= 1
            return Answer(Outcome.TRANSIENT, Code.INTERNAL, "panic", doubtful=True)

    panics = FlakyBackend(MiniQdrant("c"), [says(Code.INTERNAL, "Service internal error: panic")] * 2)
    bench = Bench(MemoryLog(upsert(point(1)), upsert(point(2))), panics)
    bench.replayer._stepper._look_back = bench.replayer._look_back = Looks()  # type: ignore[assignment]
    await bench.drain()
    assert numbers(panics) == [1, 1, 1, 2]
    assert bench.log.kept == {}


async def test_what_must_follow_ends_a_call_early() -> None:
    qdrant = MiniQdrant("c")
    flaky = FlakyBackend(qdrant)
    log = MemoryLog(
        upsert(point(1, (1.0,))), *(upsert(point(n)) for n in (2, 3, 4, 5)), upsert(point(1)), upsert(point(6))
    )
    await Bench(log, flaky, TOGETHER).drain()
    assert set(qdrant.points["c"]) == {2, 3, 4, 5, 6}
    assert sorted(log.kept) == [1, 6]
    assert [[each.id.num for each in sent(call).points] for call in flaky.calls] == [
        [1, 2, 3, 4, 5],
        [1],
        [2, 3, 4, 5],
        [6],
    ]


async def test_followers_are_not_hidden_among_others() -> None:
    qdrant = MiniQdrant("c")
    log = MemoryLog(upsert(point(1, (1.0,))), upsert(point(2)), upsert(point(1)), upsert(point(3)))
    await Bench(log, qdrant, TOGETHER).drain()
    assert set(qdrant.points["c"]) == {2, 3}
    assert sorted(log.kept) == [1, 3]


async def test_a_half_open_breaker_gets_a_single_entry() -> None:
    flaky = FlakyBackend(MiniQdrant("c"))
    bench = Bench(MemoryLog(*(upsert(point(n)) for n in range(6))), flaky, TOGETHER)
    for _ in range(5):
        permit = bench.breaker.allow(bench.clock.monotonic())
        assert permit is not None
        bench.breaker.transient_failure(permit, bench.clock.monotonic())
    await bench.drain()
    assert [len(sent(call).points) for call in flaky.calls] == [1, 5]


async def test_a_transient_failure_of_several_counts_once() -> None:
    flaky = FlakyBackend(MiniQdrant("c"), [Refused(), LostAnswer()])
    bench = Bench(MemoryLog(*(upsert(point(n)) for n in range(4))), flaky, TOGETHER)
    await bench.drain()
    assert [len(sent(call).points) for call in flaky.calls] == [4, 1, 1, 1, 1, 1]
    assert bench.breaker.failures_in_row == 0


async def test_lines_and_spans_lead_to_the_calls_that_caused_the_entries() -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry.start(Settings(), clock=ManualClock(), environment={}, tracing=SimpleSpanProcessor(exporter))
    log = MemoryLog()
    traces = [f"00-{n + 1:032x}-{n + 1:016x}-01" for n in range(3)]
    for number, trace in enumerate(traces):
        log.append(upsert(point(number)), trace=trace)
    log.append(delete(1), trace=traces[0])
    bench = Bench(log, FlakyBackend(MiniQdrant("c"), [Refused()]), TOGETHER, telemetry=telemetry)
    try:
        await bench.drain()
    finally:
        telemetry.close()
    spans = [span for span in exporter.get_finished_spans() if span.name == "replay.entry"]
    assert [[link.context.trace_id for link in span.links] for span in spans] == [[1, 2, 3], [1], [2], [3], [1]]
    events = [(event, fields.get("attempt"), fields.get("remaining")) for _, event, fields in bench.lines.lines]
    assert events == [("sync started", 1, 4), ("sync failed", 1, 4), ("sync started", 2, 4), ("sync complete", 2, 0)]


# --- every history ---------------------------------------------------------------------------------------------------

Write = tuple[str, tuple[int, ...], int, int | None]
IDS = st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True).map(tuple)
VALUES = st.integers(0, 99)
WRITES = st.one_of(
    st.tuples(st.just("upsert"), IDS, VALUES, st.sampled_from([None, None, None, 1, 2, 3])),
    st.tuples(st.just("delete"), IDS, VALUES, st.none()),
    st.tuples(st.just("payload"), IDS, VALUES, st.none()),
)
FAULTS = st.lists(
    st.sampled_from(["ok", "ok", "refused", "lost", "silence", "unavailable", "crash", "crash after"]), max_size=30
)


def request_of(write: Write) -> Any:
    kind, ids, value, bad = write
    if kind == "upsert":
        return upsert(*(point(n, (1.0,) if n == bad else (1.0, 2.0), v=value) for n in ids))
    return delete(*ids) if kind == "delete" else set_payload(*ids, k=value)


def expected(writes: list[Write]) -> tuple[dict[int, dict[str, int]], dict[int, set[int]]]:
    """What must be at Qdrant and which points of which entry in quarantine, from the rules alone."""
    there: dict[int, dict[str, int]] = {}
    tainted: set[int] = set()
    kept: dict[int, set[int]] = {}
    for seq, (kind, ids, value, bad) in enumerate(writes, 1):
        for number in ids:
            refused = number == bad or (kind == "payload" and number not in there)
            if number in tainted or refused:
                tainted.add(number)
                kept.setdefault(seq, set()).add(number)
            elif kind == "upsert":
                there[number] = {"v": value}
            elif kind == "delete":
                there.pop(number, None)
            else:
                there[number] = there[number] | {"k": value}
    return there, kept


@settings(max_examples=300, deadline=None)
@given(
    writes=st.lists(WRITES, min_size=1, max_size=12),
    faults=FAULTS,
    page=st.integers(1, 8),
    together=st.sampled_from([1, 3, 5, 500]),
)
def test_any_history_with_any_faults(writes: list[Write], faults: list[str], page: int, together: int) -> None:
    asyncio.run(_any_history(writes, faults, page, together))


async def _any_history(writes: list[Write], faults: list[str], page: int, together: int) -> None:
    qdrant = MiniQdrant("c")
    log = MemoryLog(*map(request_of, writes))
    left = list(reversed(faults))
    chosen = config.Replay(page_entries=page, merge_points=together)

    class Crash(BaseException):
        """The process ends here."""

    async def handle(call: Any) -> Any:
        fault = left.pop() if left else "ok"
        if fault == "crash":
            raise Crash
        if fault in ("crash after", "lost"):
            await qdrant.handle(call)
            if fault == "crash after":
                raise Crash
        script: dict[str, Any] = {
            "refused": [Refused()], "lost": [Refused(maybe_applied=True)], "silence": [Silence()],
            "unavailable": [says(Code.UNAVAILABLE)],
        }  # fmt: skip
        return await FlakyBackend(qdrant, script.get(fault, [])).handle(call)

    upstream: Any = type("Upstream", (), {"handle": staticmethod(handle)})()
    while True:
        bench = Bench(log, upstream, chosen)
        try:
            await _drain_or_crash(bench, Crash)
        except Crash:
            continue
        break
    there, kept = expected(writes)
    assert qdrant.points["c"] == there
    found = {seq: {*ids_in(item.record)} for seq, item in log.kept.items()}
    assert found == kept


async def _drain_or_crash(bench: Bench, crash: type[BaseException]) -> None:
    """Steps of the replay until nothing is pending; a crash leaves at once, with no cursor written."""
    replayer = bench.replayer
    replayer.upstream_up = True
    while not await replayer.drain_now():
        bench.clock.advance(400)


def ids_in(record: Record) -> list[int]:
    from server.replay.bisect import keys_of, operations_of

    operations = operations_of(entry_pb2.Entry.FromString(record.body))
    return [int(key) for operation in operations for key in keys_of(operation)]
