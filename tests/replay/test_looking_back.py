"""What Qdrant lost, judged by the replica's own store, beside entries that Qdrant does not have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1.entry_pb2 import Entry
from server import config
from server.health.breaker import Breaker
from server.replay import Replayer
from server.replay.bisect import keys_of, operations_of
from server.replay.grace import GraceWindow
from server.replay.looking_back import LookBack
from server.replay.parcel import unpack
from server.replay.withheld import Withheld
from server.replica.former_desk import FormerDesk
from server.replica.writes import Writes
from server.rpc import UPDATE_BATCH, WAL_KINDS, Call, Code, Reply
from server.telemetry import Telemetry
from tests.faults.clock import ManualClock
from tests.replica import matching

from .divided import Divided
from .fakes import POINTS, alias, create, delete, entry, point, set_payload, upsert
from .test_replayer import Lines

Request = tuple[str, Message]


class Looked(Divided):
    """The replica keeps what points were; Qdrant refuses methods in `refused`; each drain begins with a look."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.refused: set[str] = set()
        here = self.here
        here.writes = Writes(
            here.store, matching.scan, here.touched, ManualClock(), resolved_points=20, former_points=100
        )
        plain = here.writes.apply
        here.writes.apply = lambda entries, seq=0, **more: plain(entries, seq, **{**more, "keeps_former": True})  # type: ignore[method-assign]
        self.desk = FormerDesk(here.store)
        self.telemetry = Telemetry.silent()
        self.lines = self.telemetry.log = Lines()  # type: ignore[assignment]
        self.window = GraceWindow(60.0, lambda: self.log.replayed_seq, ManualClock())
        self.look_back = LookBack(
            self.window,
            self,
            self,
            caught_up=self.caught_up,
            is_log_whole=lambda _: True,
            settings=config.Replay(),
            telemetry=self.telemetry,
        )
        self.looking = Replayer(
            self.log,
            self,
            Breaker(),
            config.Replay(),
            ManualClock(),
            self.telemetry,
            lambda: None,
            WAL_KINDS,
            look_back=self.look_back,
        )
        self.looking.upstream_up = True

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        if call.method in self.refused:
            return Reply(code=Code.INVALID_ARGUMENT, details="Bad request: not here")
        return await self.qdrant.handle(call)

    async def list_former(self, request: control.ListFormerRequest) -> control.ListFormerResponse:
        """See FormerControl."""
        return self.desk.list_points(request)

    async def judge_former(self, request: control.JudgeFormerRequest) -> control.JudgeFormerResponse:
        """See FormerControl."""
        return self.desk.judge(request)

    async def caught_up(self, seq: int) -> None:
        """The replica is never behind here."""

    @property
    def last_seq(self) -> int:
        """See LogPosition."""
        return len(self.log.records)

    @property
    def replayed_seq(self) -> int:
        """See LogPosition."""
        return self.log.replayed_seq

    async def drop(self, seq: int) -> None:
        """What `understudy wal quarantine drop` does."""
        parcel = unpack(self.log.kept.pop(seq).record, WAL_KINDS)
        withheld = Withheld()
        withheld.note(parcel)
        self.here.writes.apply((), given_up=withheld.entries())
        self.looking._stepper.look_again()

    async def look(self, *refused: str) -> None:
        """A connection was lost and is there again."""
        self.refused = {POINTS + name for name in refused}
        self.window.connection_lost()
        assert await self.looking.drain_now()


@pytest.fixture
def looked(tmp_path: Path) -> Iterator[Looked]:
    made = Looked(tmp_path)
    yield made
    made.close()


def delete_where_v_is_there() -> Request:
    request = pb.DeletePoints(collection_name="c", wait=True)
    request.points.filter.must_not.add().is_empty.key = "v"
    return POINTS + "Delete", request


@pytest.mark.parametrize("name", ["c", "a"])
async def test_what_is_in_quarantine_is_not_sent_whatever_name_it_was_written_by(looked: Looked, name: str) -> None:
    looked.online(alias("a", "c"))
    looked.online(upsert(point(1, v=1)))
    looked.offline(upsert(point(1, v=2), collection=name))
    await looked.look("Upsert")
    (seq,) = looked.log.kept
    await looked.look()
    assert (list(looked.log.kept), looked.at_qdrant()) == ([seq], {1: {"v": 1}})


@pytest.mark.parametrize("completeness", [control.COMPLETENESS_COMPLETE, control.COMPLETENESS_STALE])
async def test_a_filter_in_quarantine_is_not_carried_out_point_by_point(looked: Looked, completeness: Any) -> None:
    looked.online(upsert(*(point(number, v=1) for number in range(1, 31))))
    looked.here.set_completeness(completeness)
    looked.offline(delete_where_v_is_there())
    await looked.look("Delete")
    assert looked.at_replica() == {}
    await looked.look()
    assert len(looked.log.kept) == 1
    assert len(looked.at_qdrant()) == 30


@pytest.mark.parametrize("dropped", [False, True])
async def test_what_qdrant_may_have_taken_of_an_entry_is_left_alone(looked: Looked, dropped: bool) -> None:
    """Point 1 was A, then B, then A again by a batch of which Qdrant refuses another part, a filter."""
    looked.here.set_completeness(control.COMPLETENESS_STALE)
    looked.online(upsert(point(1, v=1)))
    looked.online(upsert(point(1, v=2)))
    batch = pb.UpdateBatchPoints(collection_name="c", wait=True)
    batch.operations.add().upsert.points.append(point(1, v=1))
    batch.operations.add().delete_points.points.filter.must.add().is_empty.key = "v"
    seq = looked.offline((UPDATE_BATCH, batch))

    async def choosy(call: Call) -> Reply:
        if call.method == UPDATE_BATCH:
            steps = pb.UpdateBatchPoints.FromString(call.body).operations
            if any(step.WhichOneof("operation") == "delete_points" for step in steps):
                return Reply(code=Code.INVALID_ARGUMENT, details="Bad request: not here")
        return await looked.qdrant.handle(call)

    looked.handle = choosy  # type: ignore[method-assign]
    await looked.look()
    assert (list(looked.log.kept), looked.at_qdrant()) == ([seq], {1: {"v": 1}})
    if dropped:
        await looked.drop(seq)
    await looked.look()
    assert looked.at_qdrant() == {1: {"v": 1}}


async def test_what_qdrant_took_of_an_entry_is_still_looked_after(looked: Looked) -> None:
    """Two points of one entry: one is in quarantine, the other was acknowledged and is lost."""
    looked.online(upsert(point(1, v=1), point(2, v=1)))
    looked.offline(upsert(point(1, (1.0, 2.0), v=2), point(2, (1.0, 2.0), v=2)))

    async def choosy(call: Call) -> Reply:
        request = pb.UpsertPoints.FromString(call.body)
        if call.method == POINTS + "Upsert" and any(each.id.num == 1 for each in request.points):
            return Reply(code=Code.INVALID_ARGUMENT, details="Bad request: not here")
        return await looked.qdrant.handle(call)

    looked.handle = choosy  # type: ignore[method-assign]
    await looked.look()
    assert looked.at_qdrant() == {1: {"v": 1}, 2: {"v": 2}}
    del looked.handle
    looked.others(upsert(point(2, v=1)))
    await looked.look()
    assert looked.at_qdrant() == {1: {"v": 1}, 2: {"v": 2}}
    assert looked.look_back.restored == 1


def under(key: str, request: Request) -> Request:
    request[1].shard_key_selector.shard_keys.add(keyword=key)  # type: ignore[attr-defined]
    return request


def sharded(looked: Looked) -> None:
    """Collection `s` with custom sharding. The store that plays Qdrant does with keys what it would do without."""
    method, made = create("s")
    made.sharding_method = collections.ShardingMethod.Custom  # type: ignore[attr-defined]
    looked.online((method, made))
    store = looked.qdrant.local
    plain = store.do

    def do(method: str, request: Any) -> Any:
        if isinstance(request, pb.UpsertPoints):
            return plain(method, request)
        seq = store.store.applied_seq + 1
        store.writes.apply([control.LogEntry(seq=seq, entry=entry((method, request)))], replayed_seq=seq)
        return pb.PointsOperationResponse()

    store.do = do  # type: ignore[method-assign]


async def test_points_go_back_under_their_shard_keys(looked: Looked) -> None:
    sharded(looked)
    for number, key in enumerate("xyx", start=1):
        looked.online(under(key, upsert(point(number, v=1), collection="s")))
        looked.online(under(key, upsert(point(number, v=2), collection="s")))
    looked.online(under("y", upsert(point(4, v=1), collection="s")))
    looked.online(under("y", delete(4, collection="s")))
    looked.online(under("x", set_payload(1, collection="s", w=3)))
    for number, key in enumerate("xyxy", start=1):
        looked.others(under(key, upsert(point(number, v=1), collection="s")))
    sent: list[tuple[str, str, list[int]]] = []

    async def seen(call: Call) -> Reply:
        reply = await looked.qdrant.handle(call)
        if call.method != POINTS + "Get" and reply.is_ok:
            operation = operations_of(Entry(method=call.method, request=call.body))[0]
            request: Any = operation.request
            sent.append((call.method, request.shard_key_selector.shard_keys[0].keyword, keys_of(operation)))
        return reply

    looked.handle = seen  # type: ignore[method-assign]
    await looked.look()
    assert sent == [
        (POINTS + "Upsert", "x", [1, 3]),
        (POINTS + "Upsert", "y", [2]),
        (POINTS + "Delete", "y", [4]),
    ]
    assert looked.qdrant.local.payloads("s") == {1: {"v": 2, "w": 3}, 2: {"v": 2}, 3: {"v": 2}}


async def test_points_whose_shard_key_is_not_known_are_told(looked: Looked) -> None:
    sharded(looked)
    looked.online(under("x", upsert(point(1, v=1), collection="s")))
    looked.online(under("x", upsert(point(1, v=2), collection="s")))
    looked.others(under("x", upsert(point(1, v=1), collection="s")))
    with looked.here.store.transaction() as tx:  # as before the column
        tx.connection().execute("UPDATE former SET shard_keys = x''")
    await looked.look()
    assert looked.look_back.restored == 0
    told = [(text, fields.get("points")) for _, text, fields in looked.lines.lines if "acknowledged" in text]
    assert told == [("Qdrant refuses what it had acknowledged", 1)]


async def test_a_dropped_entry_is_not_sent_and_the_look_at_others_goes_on(looked: Looked) -> None:
    looked.online(upsert(point(1, v=1), point(2, v=1)))
    looked.online(upsert(point(2, v=2)))
    seq = looked.offline(upsert(point(1, v=2)))
    await looked.look("Upsert")
    await looked.drop(seq)
    looked.others(upsert(point(2, v=1)))
    await looked.look()
    assert looked.at_qdrant() == {1: {"v": 1}, 2: {"v": 2}}


async def test_a_later_write_of_the_whole_point_is_looked_after(looked: Looked) -> None:
    looked.online(upsert(point(1, v=1)))
    looked.offline(upsert(point(1, v=2)))
    await looked.look("Upsert")
    looked.refused.clear()
    looked.online(upsert(point(1, v=3)))
    looked.others(upsert(point(1, v=1)))
    await looked.look()
    assert looked.at_qdrant() == {1: {"v": 3}}
    # A change of a part of it, behind another one that was refused: nobody knows what that would be.
    looked.offline(set_payload(1, w=4))
    await looked.look("SetPayload")
    looked.online(set_payload(1, x=5))
    looked.others(upsert(point(1, v=3)))
    await looked.look()
    assert looked.at_qdrant() == {1: {"v": 3}}
