"""What Qdrant may have lost: which entries count, and what is sent again before anything newer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from server import config
from server.errors import ReplicaUnavailable
from server.health.breaker import Breaker
from server.replay import Replayer
from server.replay.grace import GraceWindow
from server.replay.looking_back import LookBack
from server.rpc import WAL_KINDS, Call, Code, Metadata, Reply
from server.telemetry import Telemetry
from tests.faults.clock import ManualClock

from .fakes import POINTS, MemoryLog, MiniQdrant, pid, point, sent, set_payload, upsert
from .test_replayer import Lines

GRACE = 60.0


# --- which entries ----------------------------------------------------------------------------------------------------


@dataclass
class Position:
    """How far Qdrant is."""

    seq: int = 0


def windowed(grace: float = GRACE) -> tuple[GraceWindow, Position, ManualClock]:
    clock, position = ManualClock(), Position()
    return GraceWindow(grace, lambda: position.seq, clock), position, clock


def pass_time(window: GraceWindow, clock: ManualClock, seconds: int) -> None:
    for _ in range(seconds):
        clock.advance(1.0)
        window.observe()


def test_after_a_start_everything_that_is_kept_counts() -> None:
    window, _, _ = windowed()
    assert window.is_due
    assert (window.since_seq, window.forgets_through_seq) == (0, 0)


def test_what_was_acknowledged_longer_ago_than_the_grace_does_not_count() -> None:
    window, position, clock = windowed()
    window.looked(0, has_sent=False)
    assert not window.is_due
    position.seq = 10
    pass_time(window, clock, 70)
    assert window.forgets_through_seq == 10
    position.seq = 20
    pass_time(window, clock, 59)
    assert window.forgets_through_seq == 10
    window.connection_lost()
    assert window.is_due
    assert window.since_seq == 10
    # Time passes while Qdrant is away: it keeps what it was about.
    pass_time(window, clock, 600)
    assert (window.since_seq, window.forgets_through_seq) == (10, 10)
    window.looked(window.losses, has_sent=False)
    assert not window.is_due
    assert window.forgets_through_seq == 20


@pytest.mark.parametrize("seconds", range(0, 200, 7))
def test_it_never_counts_less_than_the_grace_and_little_more(seconds: int) -> None:
    window, position, clock = windowed()
    window.looked(0, has_sent=False)
    history = []
    for _ in range(100 + seconds):
        position.seq += 3
        history.append((clock.monotonic(), position.seq))
        pass_time(window, clock, 1)
    window.connection_lost()
    lost_at = clock.monotonic()
    must = min(seq for at, seq in history if at >= lost_at - GRACE)
    assert window.since_seq < must
    assert window.since_seq >= must - 3 * 4


def test_what_was_sent_again_may_be_lost_again() -> None:
    window, position, clock = windowed()
    window.looked(0, has_sent=False)
    position.seq = 5
    pass_time(window, clock, 30)
    window.connection_lost()
    position.seq = 50
    pass_time(window, clock, 600)
    window.looked(window.losses, has_sent=True)
    pass_time(window, clock, 59)
    window.connection_lost()
    assert window.since_seq == 0
    window.looked(window.losses, has_sent=False)
    pass_time(window, clock, 62)
    window.connection_lost()
    assert window.since_seq == 50


def test_a_loss_during_a_look_asks_for_another_one() -> None:
    window, _, _ = windowed()
    before = window.losses
    window.connection_lost()
    window.looked(before, has_sent=False)
    assert window.is_due
    window.looked(window.losses, has_sent=False)
    assert not window.is_due


def test_a_few_numbers_are_kept_whatever_happens() -> None:
    window, position, clock = windowed()
    for _ in range(5000):
        position.seq += 1
        clock.advance(0.1)
        window.observe()
        window.connection_lost()
        window.looked(window.losses, has_sent=True)
    assert len(window._samples) < 100


def test_without_a_grace_nothing_is_ever_due() -> None:
    window, _, _ = windowed(0.0)
    window.connection_lost()
    assert not window.is_due and not window.is_on


async def test_the_replica_is_told_what_it_may_forget() -> None:
    window, position, clock = windowed(1.0)
    window.looked(0, has_sent=False)
    position.seq = 7
    for _ in range(2):
        clock.advance(10.0)
        window.observe()
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def forget() -> None:
        told.set_result(window.forgets_through_seq)

    task = asyncio.create_task(window.keep(forget))
    assert await asyncio.wait_for(told, 10.0) == 7
    task.cancel()


# --- the look ---------------------------------------------------------------------------------------------------------


@dataclass
class FormerStates:
    """The replica's part: points by number, each with what it should be, and whether Qdrant has it otherwise."""

    wanted: dict[int, pb.PointStruct | None] = field(default_factory=dict)
    collection: str = "c"
    asked: list[control.JudgeFormerRequest] = field(default_factory=list)
    windows: list[control.FormerWindow] = field(default_factory=list)
    away: int = 0

    async def list_former(self, request: control.ListFormerRequest) -> control.ListFormerResponse:
        if self.away:
            self.away -= 1
            raise ReplicaUnavailable("it restarts")
        self.windows.append(request.window)
        numbers = [number for number in sorted(self.wanted) if number > request.after][: request.limit_points]
        ids = [pid(number).SerializeToString() for number in numbers]
        return control.ListFormerResponse(
            collection=self.collection, ids=ids, next_after=numbers[-1] if numbers else request.after
        )

    async def judge_former(self, request: control.JudgeFormerRequest) -> control.JudgeFormerResponse:
        self.asked.append(request)
        there = {point.id.num for point in pb.GetResponse.FromString(request.page).result}
        response = control.JudgeFormerResponse()
        refused = {body for each in request.refused for body in each.ids or request.ids}
        for body in request.ids:
            if body in refused:
                continue
            number = type(pid(1)).FromString(body).num
            wanted = self.wanted[number]
            if wanted is None and number in there:
                response.remove.append(body)
            elif wanted is not None and number not in there:
                response.put.append(wanted.SerializeToString())
        return response


class Readable(MiniQdrant):
    """It also answers Get. `refusals` come first."""

    def __init__(self, *collections: str) -> None:
        super().__init__(*collections)
        self.calls: list[Call] = []
        self.refusals: list[Reply] = []
        self.before: Callable[[Call], None] = lambda call: None

    async def handle(self, call: Call) -> Reply:
        self.before(call)
        if self.refusals:
            return self.refusals.pop(0)
        if self.key and dict(call.metadata).get("api-key") != self.key:
            return await super().handle(call)
        self.calls.append(call)
        if call.method == POINTS + "Get":
            request = pb.GetPoints.FromString(call.body)
            assert request.with_payload.enable and request.with_vectors.enable
            if request.collection_name not in self.points:
                return Reply(
                    code=Code.NOT_FOUND, details=f"Not found: Collection `{request.collection_name}` doesn't exist!"
                )
            held = self.points[request.collection_name]
            found = [each.num for each in request.ids if each.num in held]
            return Reply(pb.GetResponse(result=[pb.RetrievedPoint(id=pid(each)) for each in found]).SerializeToString())
        return await super().handle(call)


class Bench:
    """A replayer that looks back."""

    def __init__(self, log: MemoryLog, former: FormerStates, upstream: Readable, **settings: Any) -> None:
        self.log, self.former, self.upstream = log, former, upstream
        self.credential: Metadata | None = None
        self.settings = config.Replay(merge_points=1, grace_points=2, **settings)
        self.clock = ManualClock()
        telemetry = Telemetry.silent()
        self.lines = telemetry.log = Lines()  # type: ignore[assignment]
        self.window = GraceWindow(GRACE, lambda: log.replayed_seq, self.clock)
        self.look_back = LookBack(
            self.window,
            former,
            self,
            caught_up=self._caught_up,
            is_log_whole=lambda collection: self.is_log_whole,
            settings=self.settings,
            telemetry=telemetry,
        )
        self.breaker = Breaker(self.settings.breaker_failures, self.settings.breaker_open_seconds)
        self.replayer = Replayer(
            log,
            upstream,
            self.breaker,
            self.settings,
            self.clock,
            telemetry,
            lambda: self.credential,
            WAL_KINDS,
            look_back=self.look_back,
            jitter=lambda: 1.0,
            sleep=self.clock.sleep,
        )
        self.drained = asyncio.Event()
        self.replayer.on_drained = self._note
        self.waited_for: list[int] = []
        self.is_log_whole = True

    @property
    def last_seq(self) -> int:
        return len(self.log.records)

    @property
    def replayed_seq(self) -> int:
        return self.log.replayed_seq

    async def _note(self) -> None:
        if not self.window.is_due:
            self.drained.set()

    async def _caught_up(self, seq: int) -> None:
        self.waited_for.append(seq)

    async def drain(self) -> None:
        self.replayer.upstream_up = True
        self.replayer.request_sync("test")
        task = asyncio.create_task(self.replayer.run())
        for _ in range(100_000):
            if self.drained.is_set():
                break
            await asyncio.sleep(0)
            if self.clock.sleeping:
                self.clock.advance(self.clock.sleeping[0])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert self.drained.is_set(), self.replayer.progress

    def sent(self) -> list[tuple[str, list[int]]]:
        found = []
        for call in self.upstream.calls:
            name, request = call.method.removeprefix(POINTS), sent(call)
            if name == "Upsert":
                found.append((name, [each.id.num for each in request.points]))
            elif name == "Delete":
                found.append((name, [each.num for each in request.points.points.ids]))
            elif name != "Get":
                found.append((name, [each.num for each in request.points_selector.points.ids]))
        return found


async def test_what_was_lost_is_there_before_anything_newer_is_sent() -> None:
    qdrant = Readable("c")
    await qdrant.handle(Call(*_body(upsert(point(9)))))
    qdrant.calls.clear()
    former = FormerStates({1: point(1, a=1), 2: point(2, a=2), 3: point(3, a=3), 9: None})
    bench = Bench(MemoryLog(set_payload(1, b=5), upsert(point(4))), former, qdrant)
    await bench.drain()
    assert bench.sent() == [
        ("Upsert", [1, 2]),
        ("Upsert", [3]),
        ("Delete", [9]),
        ("SetPayload", [1]),
        ("Upsert", [4]),
    ]
    # Without the first point the change of its payload would be in quarantine.
    assert bench.log.kept == {}
    assert qdrant.points["c"].keys() == {1, 2, 3, 4}
    assert bench.waited_for == [2]
    assert {(each.since_seq, each.replayed_seq) for each in former.windows} == {(0, 0)}
    assert (bench.look_back.looks, bench.look_back.restored, bench.look_back.is_due) == (1, 4, False)
    assert all(sent(call).wait for call in qdrant.calls if call.method != POINTS + "Get")
    (told,) = [line for line in bench.lines.lines if "had lost" in line[1]]
    assert told[2] == {"points": 4, "restored": 4, "changed_by_others": 0, "unseen": 0, "refused": 0}


async def test_a_start_with_nothing_kept_needs_no_look() -> None:
    bench = Bench(MemoryLog(), FormerStates({}), Readable("c"))
    bench.former.away = 1
    await bench.look_back.begin()
    assert bench.look_back.is_due
    await bench.look_back.begin()
    assert (bench.look_back.is_due, bench.look_back.looks) == (False, 0)
    bench = Bench(MemoryLog(), FormerStates({1: point(1)}), Readable("c"))
    await bench.look_back.begin()
    assert bench.look_back.is_due


async def test_nothing_is_sent_when_nothing_was_lost() -> None:
    qdrant = Readable("c")
    await qdrant.handle(Call(*_body(upsert(point(1), point(2)))))
    qdrant.calls.clear()
    bench = Bench(MemoryLog(), FormerStates({1: point(1), 2: point(2)}), qdrant)
    await bench.drain()
    assert bench.sent() == []
    assert bench.look_back.looks == 1
    assert [each.is_log_whole for each in bench.former.asked] == [True]
    bench.drained.clear()
    bench.is_log_whole = False
    bench.window.connection_lost()
    await bench.drain()
    assert [each.is_log_whole for each in bench.former.asked] == [True, False]
    assert not any("had lost" in text for text in bench.lines.texts())


async def test_a_connection_that_is_lost_again_begins_the_look_anew() -> None:
    qdrant, former = Readable("c"), FormerStates({number: point(number) for number in range(1, 6)})
    bench = Bench(MemoryLog(), former, qdrant)
    lost = iter((True, False))

    def lose(call: Call) -> None:
        if call.method == POINTS + "Upsert" and sent(call).points[0].id.num == 3 and next(lost):
            # It has taken the first two points, and loses them.
            qdrant.points["c"].clear()
            bench.window.connection_lost()

    qdrant.before = lose
    await bench.drain()
    assert qdrant.points["c"].keys() == {1, 2, 3, 4, 5}


async def test_points_of_entries_in_quarantine_are_left_alone() -> None:
    log = MemoryLog(upsert(point(1, (1.0, 2.0, 3.0))), upsert(point(2)))
    qdrant = Readable("c")
    bench = Bench(log, FormerStates({}), qdrant)
    await bench.drain()
    assert list(log.kept) == [1]
    qdrant.calls.clear()
    bench.drained.clear()
    bench.former.wanted = {1: point(1), 3: point(3)}
    bench.window.connection_lost()
    await bench.drain()
    assert bench.sent() == [("Upsert", [3])]
    assert bench.look_back.restored == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(code=Code.UNAUTHENTICATED, details="Must provide an API key"),
        Reply(code=Code.UNIMPLEMENTED, details="no such method"),
    ],
)
async def test_a_no_for_good_does_not_hold_up_the_rest(reply: Reply) -> None:
    qdrant = Readable("c")
    qdrant.refusals = [reply]
    bench = Bench(MemoryLog(upsert(point(7))), FormerStates({1: point(1), 2: point(2), 3: point(3)}), qdrant)
    bench.credential = (("api-key", "k"),)
    await bench.drain()
    assert bench.sent() == [("Upsert", [3]), ("Upsert", [7])]
    assert [fields["points"] for _, text, fields in bench.lines.lines if text.startswith("cannot look")] == [2]


async def test_a_look_waits_until_a_key_is_known() -> None:
    """As after a start without `vectorstore.api_key`."""
    qdrant = Readable("c")
    qdrant.key = "k"
    bench = Bench(MemoryLog(upsert(point(7))), FormerStates({1: point(1)}), qdrant)
    bench.replayer.upstream_up = True
    for _ in range(2):
        assert not await bench.replayer.drain_now()
        assert bench.look_back.is_due
    bench.credential = (("api-key", "k"),)
    assert await bench.replayer.drain_now()
    assert bench.sent() == [("Upsert", [1]), ("Upsert", [7])]
    assert not any(text.startswith("cannot look") for text in bench.lines.texts())


async def test_what_could_not_be_looked_at_is_not_told_as_sent_again() -> None:
    qdrant = Readable("c")
    qdrant.refusals = [Reply(code=Code.UNIMPLEMENTED, details="no such method")]
    bench = Bench(MemoryLog(), FormerStates({1: point(1)}), qdrant)
    await bench.drain()
    assert [text for text in bench.lines.texts() if "Qdrant" in text] == ["cannot look for what Qdrant may have lost"]


async def test_not_now_is_asked_again_and_a_server_that_fails_inside_only_some_times() -> None:
    qdrant = Readable("c")
    qdrant.refusals = [Reply(code=Code.RESOURCE_EXHAUSTED, details="rate limit")] * 4
    bench = Bench(MemoryLog(), FormerStates({1: point(1)}), qdrant)
    await bench.drain()
    assert bench.sent() == [("Upsert", [1])]
    qdrant.calls.clear()
    bench.drained.clear()
    qdrant.points["c"].clear()
    qdrant.refusals = [Reply(code=Code.INTERNAL, details="panic")] * 3
    bench.window.connection_lost()
    await bench.drain()
    assert bench.sent() == []
    assert not qdrant.refusals


async def test_a_collection_that_is_gone_is_told() -> None:
    former = FormerStates({1: point(1)}, collection="gone")
    bench = Bench(MemoryLog(upsert(point(7))), former, Readable("c"))
    await bench.drain()
    assert bench.sent() == [("Upsert", [7])]
    assert any(text.startswith("cannot look") for text in bench.lines.texts())


async def test_a_replica_that_restarts_is_waited_for() -> None:
    qdrant, former = Readable("c"), FormerStates({1: point(1)}, away=8)
    bench = Bench(MemoryLog(), former, qdrant)
    await bench.drain()
    assert bench.sent() == [("Upsert", [1])]
    # Qdrant is not to blame.
    assert bench.breaker.phase.name == "CLOSED"


@pytest.mark.parametrize("is_lost_again", [True, False])
async def test_a_replica_that_cannot_run_does_not_keep_qdrant_away_and_the_look_is_made_later(
    is_lost_again: bool,
) -> None:
    qdrant, former = Readable("c"), FormerStates({1: point(1)}, away=1000)
    bench = Bench(MemoryLog(), former, qdrant)
    began = bench.clock.monotonic()
    await bench.drain()
    waited = bench.clock.monotonic() - began
    assert bench.settings.grace_patience_seconds <= waited <= bench.settings.grace_patience_seconds + 10
    assert (bench.sent(), bench.look_back.is_due, bench.look_back.looks) == ([], False, 0)
    assert [text for text in bench.lines.texts() if "put off" in text]
    # Nothing that it is about is forgotten, however long it takes.
    pass_time(bench.window, bench.clock, 600)
    assert bench.window.forgets_through_seq == 0
    former.away = 0
    bench.drained.clear()
    if is_lost_again:
        bench.window.connection_lost()
    else:
        is_due = asyncio.Event()
        taking_up = asyncio.create_task(bench.look_back.take_up(is_due.set))
        await asyncio.wait_for(is_due.wait(), 5.0)
        taking_up.cancel()
    assert (bench.window.is_owed, bench.look_back.is_due, bench.window.since_seq) == (False, True, 0)
    await bench.drain()
    assert bench.sent() == [("Upsert", [1])]


async def test_while_something_is_pending_the_look_is_not_put_off() -> None:
    former = FormerStates({1: point(1)}, away=40)
    bench = Bench(MemoryLog(upsert(point(7))), former, Readable("c"))
    await bench.drain()
    assert bench.sent() == [("Upsert", [1]), ("Upsert", [7])]


async def test_while_a_look_is_due_the_drain_is_not_over() -> None:
    bench = Bench(MemoryLog(), FormerStates({}, away=1), Readable("c"))
    bench.replayer.upstream_up = True
    assert not await bench.replayer.drain_now()
    assert await bench.replayer.drain_now()
    bench.window.connection_lost()
    bench.replayer.upstream_up = False
    assert not await bench.replayer.drain_now()


def _body(request: tuple[str, Any]) -> tuple[str, bytes]:
    return request[0], request[1].SerializeToString()


async def test_what_was_sent_of_an_entry_before_a_loss_is_sent_again() -> None:
    """Its first half was acknowledged when the rate limit stopped the second; then Qdrant lost it."""

    class Restarted(Readable):
        has_restarted = False

        async def handle(self, call: Call) -> Reply:
            points = len(sent(call).points) if call.method.endswith("Upsert") else 0
            if points > 2:
                return Reply(code=Code.RESOURCE_EXHAUSTED, details="request larger than rate limiter capacity")
            if points and self.points["c"] and not self.has_restarted:
                self.has_restarted = True
                self.points["c"].clear()
                bench.window.connection_lost()
                return Reply(code=Code.RESOURCE_EXHAUSTED, details="rate limit", trailers=(("retry-after", "5"),))
            return await super().handle(call)

    bench = Bench(MemoryLog(upsert(*map(point, range(4)))), FormerStates(), Restarted("c"))
    await bench.drain()
    assert bench.sent() == [("Upsert", [0, 1]), ("Upsert", [0, 1]), ("Upsert", [2, 3])]
    assert set(bench.upstream.points["c"]) == {0, 1, 2, 3}
