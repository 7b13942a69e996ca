"""The router on a real log, real locks and a real mirror; Qdrant and the replica are fakes that record."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from generated.qdrant import points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from generated.understudy.wal.v1 import entry_pb2
from server import rpc
from server.clock import SystemClock
from server.config import Keys, Settings
from server.conflicts import Conflicts
from server.credentials import Credentials
from server.deletions import Deletions
from server.errors import ReplicaUnavailable, UpstreamTimeout, UpstreamUnreachable, WalFull
from server.gate import WriteGate
from server.health.detector import Verdict
from server.health.state import State
from server.local_answers import PAYLOAD_KEY
from server.mirror import Mirror
from server.mode import Mode
from server.pace import DrainPace
from server.repairs import Repairs
from server.router import Parts, Router
from server.rpc import WAL_KINDS, Call, Code, Reply
from server.scrub import Scrubber
from server.telemetry import Telemetry
from server.wal.files import RealDisk
from server.wal.log import Log, WalLimits
from server.wal.record import EntryState, NewRecord

UPSERT = "/qdrant.Points/Upsert"
GET = "/qdrant.Points/Get"
CLOCK = SystemClock()


@dataclass
class FakeQdrant:
    """Answers what it is told to; an exception is raised."""

    answers: list[Reply | Exception] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def handle(self, call: Call, *, reserve_seconds: float = 0.0) -> Reply:
        self.calls.append(call)
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers.pop(0) if self.answers else Reply(b"remote")
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class FakeReplica:
    """Keeps what it is given."""

    applied: list[control_pb.LogEntry] = field(default_factory=list)
    refusal: control_pb.PrepareResponse = field(default_factory=control_pb.PrepareResponse)
    reads: list[Call] = field(default_factory=list)
    answer: Reply = field(default_factory=lambda: Reply(b"local", trailers=((rpc.COMPLETENESS, "complete"),)))
    freshness: control_pb.Freshness = field(default_factory=control_pb.Freshness)
    hold: asyncio.Event | None = None
    marked: list[str] = field(default_factory=list)
    hold_marks: asyncio.Event | None = None
    prepared_alone: list[str] = field(default_factory=list)
    prepared_together: list[str] = field(default_factory=list)

    async def attach(self, request: control_pb.AttachRequest) -> control_pb.AttachResponse:
        return control_pb.AttachResponse(applied_seq=0)

    async def prepare(self, request: control_pb.PrepareRequest) -> control_pb.PrepareResponse:
        self.prepared_alone.append(request.method)
        return self.refusal

    async def prepare_together(self, request: control_pb.PrepareRequest) -> control_pb.PrepareResponse:
        self.prepared_together.append(request.method)
        return self.refusal

    async def apply(self, request: control_pb.ApplyRequest) -> control_pb.ApplyResponse:
        if self.hold is not None:
            await self.hold.wait()
        self.applied.extend(request.entries)
        results = [
            control_pb.Applied(seq=entry.seq, reply=b"applied", freshness=self.freshness) for entry in request.entries
        ]
        return control_pb.ApplyResponse(results=results, applied_seq=request.entries[-1].seq)

    async def handle(self, call: Call) -> Reply:
        self.reads.append(call)
        return self.answer

    async def set_completeness(self, request: control_pb.SetCompletenessRequest) -> None:
        if self.hold_marks is not None:
            await self.hold_marks.wait()
        self.marked.append(request.collection)


@dataclass
class Rig:
    """Everything around one router."""

    router: Router
    qdrant: FakeQdrant
    replica: FakeReplica
    log: Log
    mode: Mode
    failures: list[str]
    marker: Path
    conflicts: Conflicts

    async def entries(self) -> list[tuple[EntryState, entry_pb2.Entry]]:
        records = await self.log.read(0, 1000, 10**9)
        return [(record.state, entry_pb2.Entry.FromString(record.body)) for record in records]

    def online(self) -> Rig:
        self.mode.upstream_changed(Verdict(up=True, since=0.0, reason="test"), pending=self.log.pending_count)
        return self


MakeRig = Callable[..., Rig]


@pytest.fixture
async def make_rig(tmp_path: Path) -> AsyncIterator[MakeRig]:
    tasks: list[asyncio.Task[None]] = []
    logs: list[Log] = []

    def make(settings: Settings | None = None, *, had_upstream: bool = False) -> Rig:
        settings = settings or Settings()
        telemetry = Telemetry.silent()
        (tmp_path / "wal").mkdir(mode=0o700)
        (tmp_path / "store").mkdir(mode=0o700)
        limits = WalLimits.from_settings(settings.wal)
        log = Log.open(tmp_path / "wal", disk=RealDisk(), clock=CLOCK, limits=limits, kinds=frozenset(WAL_KINDS))
        logs.append(log)
        qdrant, replica = FakeQdrant(), FakeReplica()
        mirror = Mirror(log, replica, settings.replica, telemetry)
        tasks.append(asyncio.create_task(mirror.run()))
        mode = Mode(has_upstream=True, sync_on_connect=True, clock=CLOCK, telemetry=telemetry)
        failures: list[str] = []

        def connection_failed(reason: str) -> None:
            failures.append(reason)
            mode.upstream_changed(Verdict(up=False, since=0.0, reason=reason), pending=log.pending_count)

        repairs = Repairs(
            tmp_path / "store",
            mode,
            deletions=Deletions(RealDisk(), tmp_path / "store", [].append),
            is_marked=Path.exists,
            write_durably=lambda path: path.touch(),
            remove_durably=lambda path: path.unlink(),
            set_completeness=replica.set_completeness,
            copy_again=replica.marked.append,
            connection_failed=connection_failed,
            telemetry=telemetry,
        )
        credentials = Credentials(
            tmp_path / "store" / "ledger",
            secret=b"s" * 32,
            configured=Keys(),
            upstream_key=None,
            has_upstream=had_upstream,
            clock=CLOCK,
        )
        parts = Parts(
            settings=settings,
            mode=mode,
            upstream=qdrant,
            replica=replica,
            replica_writes=replica,
            log=log,
            mirror=mirror,
            conflicts=Conflicts(),
            gate=WriteGate(),
            pace=DrainPace(
                is_draining=lambda: mode.is_draining,
                pending_count=lambda: log.pending_count,
                hold_seconds=0.0,
                clock=CLOCK,
            ),
            credentials=credentials,
            scrubber=Scrubber.load(None),
            repairs=repairs,
            telemetry=telemetry,
            clock=CLOCK,
        )
        return Rig(
            Router(parts), qdrant, replica, log, mode, failures, tmp_path / "store" / "in-doubt", parts.conflicts
        )

    yield make
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for log in logs:
        await log.close()


def upsert(number: int = 1, text: str = "hello") -> Call:
    request = points_pb2.UpsertPoints(collection_name="c", wait=True)
    point = request.points.add(id=common.PointId(num=number))
    point.vectors.vector.dense.data.extend([1.0, 2.0])
    point.payload["text"].string_value = text
    return Call(UPSERT, request.SerializeToString(), deadline=CLOCK.monotonic() + 30)


def get(number: int = 1) -> Call:
    request = points_pb2.GetPoints(collection_name="c", ids=[common.PointId(num=number)])
    return Call(GET, request.SerializeToString(), deadline=CLOCK.monotonic() + 30)


def source(reply: Reply) -> str:
    return str(dict(reply.trailers)[rpc.SOURCE])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_read_is_forwarded_as_it_came(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    call = get()
    reply = await rig.router.handle(call)
    assert rig.qdrant.calls[0] is call
    assert (reply.body, source(reply)) == (b"remote", "remote")
    assert not rig.replica.reads


async def test_a_healthy_read_is_not_parsed(make_rig: MakeRig) -> None:
    """A body that no parser would take reaches Qdrant, so nothing on the way looked into it."""
    rig = make_rig().online()
    call = Call(GET, b"\xff\xff\xff")
    assert (await rig.router.handle(call)).body == b"remote"
    assert rig.qdrant.calls == [call]


def test_the_proxy_process_loads_neither_sqlite_nor_chroma() -> None:
    """What is not loaded cannot be on the path of a read."""
    program = "import sys, server.app; print(sorted({'sqlite3', 'chromadb', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_method_of_a_newer_client_is_forwarded(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    reply = await rig.router.handle(Call("/qdrant.Points/FromTheFuture", b"\x08\x01"))
    assert (reply.body, source(reply)) == (b"remote", "remote")


@pytest.mark.parametrize(
    ("failure", "connection_failed"),
    [
        (UpstreamUnreachable("refused", maybe_applied=False), True),
        (UpstreamTimeout("slow", maybe_applied=True), False),
        (Reply(code=Code.UNAVAILABLE, details="shard 3 is missing"), False),
    ],
)
async def test_a_failed_read_is_answered_by_the_replica(make_rig: MakeRig, failure, connection_failed: bool) -> None:
    rig = make_rig().online()
    rig.qdrant.answers = [failure]
    reply = await rig.router.handle(get())
    assert (reply.body, source(reply)) == (b"local", "local")
    assert bool(rig.failures) is connection_failed
    trailers = dict(reply.trailers)
    assert trailers[rpc.PENDING] == "0" and trailers[rpc.COMPLETENESS] == "complete" and rpc.STALE_WARNING in trailers


@pytest.mark.parametrize(
    "code",
    [
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.FAILED_PRECONDITION,
        Code.UNIMPLEMENTED,
        Code.RESOURCE_EXHAUSTED,
        Code.INTERNAL,
    ],
)
@pytest.mark.parametrize("call", [upsert(), get()], ids=["write", "read"])
async def test_refusals_of_qdrant_pass_untouched(make_rig: MakeRig, code: Code, call: Call) -> None:
    rig = make_rig().online()
    rig.qdrant.answers = [Reply(code=code, details="as Qdrant says", trailers=(("retry-after", "3"),))]
    reply = await rig.router.handle(call)
    assert (reply.code, reply.details, source(reply)) == (code, "as Qdrant says", "remote")
    assert ("retry-after", "3") in reply.trailers
    assert await rig.entries() == []
    assert rig.mode.state is State.REMOTE


async def test_an_acknowledged_write_is_mirrored_without_its_secrets(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    secret = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    call = upsert(text=f"token {secret}")
    reply = await rig.router.handle(call)
    assert (reply.body, source(reply)) == (b"remote", "remote")
    assert rig.qdrant.calls[0].body == call.body
    ((state, entry),) = await rig.entries()
    assert state is EntryState.SYNCED
    assert secret.encode() not in entry.request
    await until(lambda: len(rig.replica.applied) == 1)
    assert rig.replica.applied[0].synced
    assert rig.mode.state is State.REMOTE and rig.log.pending_count == 0


@pytest.mark.parametrize(
    ("failure", "maybe_applied", "after"),
    [
        (UpstreamUnreachable("refused", maybe_applied=False), False, State.LOCAL),
        (UpstreamUnreachable("reset", maybe_applied=True), True, State.LOCAL),
        (UpstreamTimeout("slow", maybe_applied=True), True, State.DRAINING),
        (Reply(code=Code.UNAVAILABLE, details="shard 3 is missing"), True, State.DRAINING),
    ],
)
async def test_a_write_that_qdrant_did_not_answer_goes_to_the_log(
    make_rig: MakeRig, failure, maybe_applied: bool, after: State
) -> None:
    rig = make_rig().online()
    rig.qdrant.answers = [failure]
    reply = await rig.router.handle(upsert())
    assert (reply.code, reply.body, source(reply)) == (Code.OK, b"applied", "local")
    ((state, entry),) = await rig.entries()
    assert (state, entry.maybe_applied, entry.collection) == (EntryState.PENDING, maybe_applied, "c")
    assert rig.mode.state is after
    # From now on reads must not ask Qdrant, which lacks the write.
    assert source(await rig.router.handle(get())) == "local"


@pytest.mark.parametrize(("batch", "logged"), [(False, 1), (True, 0)])
async def test_what_qdrant_changed_although_it_refused_is_mirrored(make_rig: MakeRig, batch: bool, logged: int) -> None:
    """One of two ids is missing: Qdrant answers NOT_FOUND and has changed the other point."""
    rig = make_rig().online()
    ids = points_pb2.PointsIdsList(ids=[common.PointId(num=1), common.PointId(num=777)])
    selector = points_pb2.PointsSelector(points=ids)
    if batch:
        part = points_pb2.PointsUpdateOperation(
            clear_payload=points_pb2.PointsUpdateOperation.ClearPayload(points=selector)
        )
        call = Call(
            "/qdrant.Points/UpdateBatch",
            points_pb2.UpdateBatchPoints(collection_name="c", operations=[part]).SerializeToString(),
        )
    else:
        request = points_pb2.SetPayloadPoints(collection_name="c", points_selector=selector, wait=True)
        call = Call("/qdrant.Points/SetPayload", request.SerializeToString())
    refusal = Reply(code=Code.NOT_FOUND, details="Not found: No point with id 777 found")
    rig.qdrant.answers = [refusal]
    reply = await rig.router.handle(call)
    assert (reply.code, reply.details) == (refusal.code, refusal.details)
    assert len(await rig.entries()) == logged
    await until(lambda: len(rig.replica.applied) == logged)
    await until(lambda: rig.replica.marked == ["c", "c", "c"] * (1 - logged))


_WRONG = "Wrong input: Vector dimension error: expected dim: 2, got 3"


@pytest.mark.parametrize(
    ("parts", "code", "details", "doubted"),
    [
        (2, Code.INVALID_ARGUMENT, _WRONG, True),
        (2, Code.INTERNAL, "Service internal error", True),
        (1, Code.INVALID_ARGUMENT, _WRONG, False),
        (2, Code.INVALID_ARGUMENT, "Validation error in body: [operations[0].x: wrong]", False),
        (2, Code.NOT_FOUND, "Not found: Collection `c` doesn't exist!", False),
        (2, Code.PERMISSION_DENIED, "no", False),
        (2, Code.PERMISSION_DENIED, "Forbidden: too many points. Help: send fewer", True),
        (2, Code.RESOURCE_EXHAUSTED, "Rate limiting exceeded: write", True),
    ],
)
async def test_a_batch_that_qdrant_refused_in_the_middle_leaves_a_doubt(
    make_rig: MakeRig, parts: int, code: Code, details: str, doubted: bool
) -> None:
    """The parts before the wrong one are done at Qdrant, and the answer does not say which they are."""
    rig = make_rig().online()
    part = points_pb2.PointsUpdateOperation(upsert=points_pb2.PointsUpdateOperation.PointStructList())
    batch = points_pb2.UpdateBatchPoints(collection_name="c", operations=[part] * parts)
    rig.qdrant.answers = [Reply(code=code, details=details)]
    reply = await rig.router.handle(Call("/qdrant.Points/UpdateBatch", batch.SerializeToString()))
    assert (reply.code, reply.details) == (code, details)
    assert await rig.entries() == []
    if doubted:
        await until(lambda: bool(rig.replica.marked))
    for _ in range(100):
        await asyncio.sleep(0)
    assert bool(rig.replica.marked) is doubted


_INSIDE = "Service internal error: panic"


@pytest.mark.parametrize(
    ("code", "details", "doubted"),
    [
        (Code.INTERNAL, _INSIDE, True),
        (Code.INTERNAL, "Service internal error: 1 out of 2 shards failed to apply operation", True),
        (Code.INVALID_ARGUMENT, f"Wrong input: 1 out of 2 shards failed to apply operation. First: {_WRONG}", True),
        (Code.DEADLINE_EXCEEDED, "Timeout error: Operation 'update' timed out", True),
        (Code.ABORTED, "", True),
        (Code.CANCELLED, "operation was cancelled", True),
        (Code.UNKNOWN, "", True),
        (Code.DATA_LOSS, "Checksum mismatch", True),
        (Code.INTERNAL, "failed to decode Protobuf message: buffer underflow", False),
        (Code.INTERNAL, "Service internal error: No space left on device: WAL buffer size exceeds available", False),
        (Code.INVALID_ARGUMENT, _WRONG, False),
        (Code.NOT_FOUND, "Not found: Collection `c` doesn't exist!", False),
        (Code.FAILED_PRECONDITION, "Storage locked: write operations are forbidden", False),
        (Code.RESOURCE_EXHAUSTED, "Rate limiting exceeded: write", False),
        (Code.PERMISSION_DENIED, "", False),
    ],
)
async def test_an_answer_that_proves_no_refusal_leaves_a_doubt(
    make_rig: MakeRig, code: Code, details: str, doubted: bool
) -> None:
    """Qdrant may have done the write, or do it yet: the replica must not call itself whole."""
    rig = make_rig().online()
    rig.qdrant.answers = [Reply(code=code, details=details, trailers=(("x", "y"),))]
    reply = await rig.router.handle(upsert())
    assert (reply.code, reply.details, source(reply), reply.trailers[0]) == (code, details, "remote", ("x", "y"))
    assert (await rig.entries(), rig.mode.state) == ([], State.REMOTE)
    for _ in range(100):
        await asyncio.sleep(0)
    assert rig.replica.marked == ["c", "c", "c"] * doubted


async def test_offline_writes_are_logged_in_the_order_of_acknowledgement(make_rig: MakeRig) -> None:
    rig = make_rig()

    async def client(number: int) -> None:
        for turn in range(10):
            await rig.router.handle(upsert(100 * number + turn))

    await asyncio.gather(*(client(number) for number in range(4)))
    logged = [points_pb2.UpsertPoints.FromString(entry.request).points[0].id.num for _, entry in await rig.entries()]
    for number in range(4):
        assert [one for one in logged if one // 100 == number] == [100 * number + turn for turn in range(10)]
    assert rig.log.pending_count == 40


async def test_what_the_replica_refuses_is_not_logged(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.replica.refusal = control_pb.PrepareResponse(code=3, details="Wrong input: Vector dimension error")
    reply = await rig.router.handle(upsert())
    assert (reply.code, reply.details) == (Code.INVALID_ARGUMENT, "Wrong input: Vector dimension error")
    assert await rig.entries() == [] and not rig.replica.applied


async def test_what_is_done_of_a_batch_before_it_stops_is_logged(make_rig: MakeRig) -> None:
    rig = make_rig()
    done = entry_pb2.Operation(method=UPSERT, request=upsert().body)
    rig.replica.refusal = control_pb.PrepareResponse(code=5, details="Not found: x", resolved=[done])
    batch = points_pb2.UpdateBatchPoints(collection_name="c", wait=True)
    reply = await rig.router.handle(Call(rpc.UPDATE_BATCH, batch.SerializeToString()))
    assert (reply.code, reply.details, reply.body) == (Code.NOT_FOUND, "Not found: x", b"")
    [(state, entry)] = await rig.entries()
    assert state is EntryState.PENDING and list(entry.resolved) == [done]
    assert [one.entry for one in rig.replica.applied] == [entry]


def _by_filter(parts: int) -> Call:
    part = points_pb2.PointsUpdateOperation.DeletePoints(points=points_pb2.PointsSelector(filter=common.Filter()))
    operations = [points_pb2.PointsUpdateOperation(delete_points=part)] * parts
    batch = points_pb2.UpdateBatchPoints(collection_name="c", operations=operations, wait=True)
    return Call("/qdrant.Points/UpdateBatch", batch.SerializeToString(), deadline=CLOCK.monotonic() + 30)


async def test_a_batch_that_must_not_be_sent_twice_is_an_entry_for_each_part(make_rig: MakeRig) -> None:
    rig = make_rig()
    reply = await rig.router.handle(_by_filter(3))
    assert [(state, entry.method) for state, entry in await rig.entries()] == [
        (EntryState.PENDING, "/qdrant.Points/Delete")
    ] * 3
    results = points_pb2.UpdateBatchResponse.FromString(reply.body).result
    assert [(each.operation_id, each.status) for each in results] == [(3, points_pb2.Completed)] * 3
    assert (reply.code, source(reply), rig.log.pending_count) == (Code.OK, "local", 3)
    assert len(rig.replica.applied) == 3


async def test_what_the_replica_refuses_of_such_a_batch_is_told(make_rig: MakeRig) -> None:
    rig = make_rig()
    apply = rig.replica.apply

    async def refusing(request: control_pb.ApplyRequest) -> control_pb.ApplyResponse:
        response = await apply(request)
        for result in response.results:
            if result.seq == 2:
                result.code, result.details = int(Code.NOT_FOUND), "gone"
        return response

    rig.replica.apply = refusing  # type: ignore[method-assign]
    reply = await rig.router.handle(_by_filter(3))
    assert (reply.code, reply.details, len(await rig.entries())) == (Code.NOT_FOUND, "gone", 3)


@pytest.mark.parametrize(("parts", "code", "logged"), [(1, Code.OK, 1), (2, Code.UNAVAILABLE, 0)])
async def test_a_batch_of_unknown_outcome_that_must_not_be_sent_twice_is_refused_and_doubted(
    make_rig: MakeRig, parts: int, code: Code, logged: int
) -> None:
    """Qdrant may have it. Sent again it would delete what it set the first time: nobody is promised that."""
    rig = make_rig().online()
    rig.qdrant.answers = [UpstreamUnreachable("reset", maybe_applied=True)]
    reply = await rig.router.handle(_by_filter(parts))
    assert (reply.code, source(reply), len(await rig.entries())) == (code, "local", logged)
    assert ("may have done it" in reply.details) is (logged == 0)
    await until(lambda: rig.replica.marked == ["c", "c", "c"] * (1 - logged))


async def test_a_batch_that_certainly_did_not_reach_qdrant_is_logged(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    rig.qdrant.answers = [UpstreamUnreachable("refused", maybe_applied=False)]
    assert (await rig.router.handle(_by_filter(2))).is_ok
    assert len(await rig.entries()) == 2
    assert rig.replica.marked == []


async def test_a_batch_stops_where_the_log_takes_no_more(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Qdrant takes no more: what was done stays done, and the next write is checked on top of it."""
    rig = make_rig()
    append, taken = rig.log.append, 0

    async def full(record: NewRecord) -> int:
        nonlocal taken
        taken += 1
        if taken == 2:
            raise WalFull("full")
        return await append(record)

    monkeypatch.setattr(rig.log, "append", full)
    with pytest.raises(WalFull):
        await rig.router.handle(_by_filter(3))
    assert [entry.method for _, entry in await rig.entries()] == ["/qdrant.Points/Delete"]
    assert rig.router._unseen_seq == 1
    assert (await rig.router.handle(get())).is_ok
    assert len(rig.replica.applied) == 1


async def test_quick_writes_are_prepared_together_and_others_alone(make_rig: MakeRig) -> None:
    """What tries a filter on a whole collection may take long, and nobody should wait for it in one call."""
    rig = make_rig()
    everything = points_pb2.PointsSelector(filter=common.Filter())
    delete = points_pb2.DeletePoints(collection_name="c", points=everything)
    assert (await rig.router.handle(upsert())).is_ok
    assert (await rig.router.handle(Call("/qdrant.Points/Delete", delete.SerializeToString()))).is_ok
    assert rig.replica.prepared_together == [UPSERT]
    assert rig.replica.prepared_alone == ["/qdrant.Points/Delete"]


async def test_local_answers_to_writes_say_how_fresh_they_are(make_rig: MakeRig) -> None:
    rig = make_rig(Settings.model_validate({"replica": {"local_reads": "complete_only"}}))
    rig.replica.freshness = control_pb.Freshness(completeness=control_pb.COMPLETENESS_HYDRATING, as_of_seq=7)
    reply = await rig.router.handle(upsert())
    trailers = dict(reply.trailers)
    # `complete_only` is about reads: this write is in the log.
    assert reply.is_ok and (trailers[rpc.COMPLETENESS], trailers[rpc.AS_OF]) == ("hydrating", "7")
    rig.replica.refusal = control_pb.PrepareResponse(code=3, details="no", freshness=rig.replica.freshness)
    reply = await rig.router.handle(upsert())
    trailers = dict(reply.trailers)
    assert not reply.is_ok and (trailers[rpc.COMPLETENESS], trailers[rpc.AS_OF]) == ("hydrating", "7")


@pytest.mark.parametrize("online", [True, False])
async def test_a_body_that_is_no_protobuf_is_refused_as_qdrant_does(make_rig: MakeRig, online: bool) -> None:
    rig = make_rig().online() if online else make_rig()
    reply = await rig.router.handle(Call(UPSERT, b"\xff\xff\xff"))
    assert reply.code is Code.INTERNAL
    assert reply.details.startswith("failed to decode Protobuf message")
    assert await rig.entries() == []


async def test_offline_refusals_say_why(make_rig: MakeRig) -> None:
    rig = make_rig()
    snapshot = await rig.router.handle(Call("/qdrant.Snapshots/Create", b""))
    unknown = await rig.router.handle(Call("/qdrant.Points/FromTheFuture", b""))
    assert (snapshot.code, unknown.code) == (Code.UNAVAILABLE, Code.UNAVAILABLE)
    assert "snapshots are files" in snapshot.details and "FromTheFuture" in unknown.details


async def test_a_client_that_hangs_up_does_not_stop_a_write_halfway(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    rig.qdrant.hold = asyncio.Event()
    call = asyncio.create_task(rig.router.handle(upsert()))
    await until(lambda: len(rig.qdrant.calls) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    rig.qdrant.hold.set()
    await until(lambda: len(rig.replica.applied) == 1)
    await rig.router.settle(10)


async def test_a_later_write_to_the_same_point_waits_for_the_earlier_one(make_rig: MakeRig) -> None:
    """The first fails over to the log; the second, sent meanwhile, must not reach Qdrant before it."""
    rig = make_rig().online()
    rig.qdrant.hold = asyncio.Event()
    rig.qdrant.answers = [UpstreamUnreachable("reset", maybe_applied=True)]
    first = asyncio.create_task(rig.router.handle(upsert(7, "first")))
    await until(lambda: len(rig.qdrant.calls) == 1)
    second = asyncio.create_task(rig.router.handle(upsert(7, "second")))
    other = asyncio.create_task(rig.router.handle(upsert(8, "other")))
    await until(lambda: len(rig.qdrant.calls) == 2)
    rig.qdrant.hold.set()
    assert [source(reply) for reply in await asyncio.gather(first, second, other)] == ["local", "local", "remote"]
    texts = {
        points_pb2.UpsertPoints.FromString(call.body).points[0].payload["text"].string_value
        for call in rig.qdrant.calls
    }
    assert texts == {"first", "other"}


async def test_reads_after_the_switch_see_what_qdrant_acknowledged(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    rig.replica.hold = asyncio.Event()
    await rig.router.handle(upsert())
    rig.qdrant.answers = [UpstreamUnreachable("gone", maybe_applied=False)]
    reading = asyncio.create_task(rig.router.handle(get()))
    await until(lambda: len(rig.qdrant.calls) == 2)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not rig.replica.reads
    rig.replica.hold.set()
    assert source(await reading) == "local"
    assert [entry.seq for entry in rig.replica.applied] == [1]


async def test_an_acknowledged_write_that_the_log_refuses_puts_its_collection_in_doubt(make_rig: MakeRig) -> None:
    settings = Settings.model_validate({"wal": {"entry_bytes": 5000}})
    rig = make_rig(settings).online()
    reply = await rig.router.handle(upsert(text="x" * 9000))
    assert (reply.code, source(reply)) == (Code.OK, "remote")
    await until(lambda: rig.replica.marked == ["c", "c", "c"])
    assert rig.marker.exists()


async def test_an_entry_says_what_its_alias_stood_for(make_rig: MakeRig) -> None:
    rig = make_rig()
    await rig.router.handle(upsert())
    rig.conflicts.know_aliases({"c": "behind-the-alias"})
    await rig.router.handle(upsert())
    rig.online()
    await rig.router.handle(upsert())
    entries = [entry for _, entry in await rig.entries()]
    assert [each.collection for each in entries] == ["c"] * 3
    assert [each.real_collection for each in entries] == ["", "behind-the-alias", "behind-the-alias"]


async def test_a_doubt_about_an_alias_is_one_about_its_collection(make_rig: MakeRig) -> None:
    rig = make_rig(Settings.model_validate({"wal": {"entry_bytes": 5000}})).online()
    rig.conflicts.know_aliases({"c": "behind-the-alias"})
    await rig.router.handle(upsert(text="x" * 9000))
    await until(lambda: rig.replica.marked == ["behind-the-alias"] * 3)


async def test_complete_only_refuses_what_is_not_whole(make_rig: MakeRig) -> None:
    rig = make_rig(Settings.model_validate({"replica": {"local_reads": "complete_only"}}))
    rig.replica.answer = Reply(b"local", trailers=((rpc.COMPLETENESS, "hydrating"),))
    reply = await rig.router.handle(get())
    assert reply.code is Code.UNAVAILABLE and "hydrating" in reply.details


async def test_best_effort_marks_what_is_not_whole(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.replica.answer = Reply(b"local", trailers=((rpc.COMPLETENESS, "hydrating"),))
    reply = await rig.router.handle(get())
    assert reply.is_ok and dict(reply.trailers)[rpc.COMPLETENESS] == "hydrating"


async def test_the_stale_warning_goes_into_payloads_when_asked(make_rig: MakeRig) -> None:
    rig = make_rig(Settings.model_validate({"responses": {"stale_warning": "payload"}}))
    answer = points_pb2.GetResponse(result=[points_pb2.RetrievedPoint(id=common.PointId(num=1))])
    rig.replica.answer = Reply(answer.SerializeToString())
    reply = await rig.router.handle(get())
    assert PAYLOAD_KEY in points_pb2.GetResponse.FromString(reply.body).result[0].payload


async def test_the_marker_of_doubt_is_there_while_a_crash_would_lose_a_mirror_entry(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    assert not rig.marker.exists()
    rig.qdrant.hold = asyncio.Event()
    writing = asyncio.create_task(rig.router.handle(upsert()))
    await until(lambda: len(rig.qdrant.calls) == 1)
    assert rig.marker.exists()
    rig.qdrant.hold.set()
    await writing
    # The next write finds Qdrant gone; its fsync covers the online write as well.
    rig.qdrant.answers = [UpstreamUnreachable("gone", maybe_applied=False)]
    await rig.router.handle(upsert(2))
    await rig.router.handle(upsert(3))
    assert not rig.marker.exists()


async def test_a_local_read_waits_for_a_write_that_qdrant_may_have_shown_to_others(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    rig.qdrant.hold = asyncio.Event()
    rig.qdrant.answers = [UpstreamUnreachable("reset", maybe_applied=True)]
    writing = asyncio.create_task(rig.router.handle(upsert()))
    await until(lambda: len(rig.qdrant.calls) == 1)
    rig.mode.upstream_changed(Verdict(up=False, since=1.0, reason="reset"), pending=0)
    reading = asyncio.create_task(rig.router.handle(get()))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not rig.replica.reads
    rig.qdrant.hold.set()
    assert (await writing).code is Code.OK
    reply = await reading
    assert dict(reply.trailers)[rpc.COMPLETENESS] == "complete"
    assert rig.log.last_seq == 1 and len(rig.replica.applied) == 1


async def test_a_local_read_does_not_wait_for_ever_and_says_so(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    rig.qdrant.hold = asyncio.Event()
    writing = asyncio.create_task(rig.router.handle(upsert()))
    await until(lambda: len(rig.qdrant.calls) == 1)
    rig.mode.upstream_changed(Verdict(up=False, since=1.0, reason="reset"), pending=0)
    reply = await rig.router.handle(get())
    assert reply.body == b"local" and dict(reply.trailers)[rpc.COMPLETENESS] == "stale"
    rig.qdrant.hold.set()
    await writing


async def test_a_write_that_qdrant_may_have_and_the_log_has_not_is_a_doubt(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    rig.replica.refusal = control_pb.PrepareResponse(code=Code.UNAVAILABLE, details="not now")
    for maybe_applied, marked in ((False, 0), (True, 3)):
        rig.online()
        rig.qdrant.answers = [UpstreamUnreachable("reset", maybe_applied=maybe_applied)]
        assert (await rig.router.handle(upsert())).code is Code.UNAVAILABLE
        await until(lambda marked=marked: rig.replica.marked == ["c"] * marked)
    assert await rig.entries() == []


@pytest.mark.parametrize(
    ("code", "completeness", "doubted"),
    [
        (Code.NOT_FOUND, control_pb.COMPLETENESS_COMPLETE, False),
        (Code.NOT_FOUND, control_pb.COMPLETENESS_STALE, True),
        (Code.NOT_FOUND, control_pb.COMPLETENESS_HYDRATING, True),
        (Code.NOT_FOUND, control_pb.COMPLETENESS_UNSPECIFIED, True),
        (Code.INVALID_ARGUMENT, control_pb.COMPLETENESS_COMPLETE, True),
    ],
)
async def test_what_the_whole_replica_does_not_find_qdrant_did_not_do(
    make_rig: MakeRig, code: Code, completeness: control_pb.Completeness, doubted: bool
) -> None:
    rig = make_rig().online()
    freshness = control_pb.Freshness(completeness=completeness)
    rig.replica.refusal = control_pb.PrepareResponse(code=code, details="no point 7", freshness=freshness)
    rig.qdrant.answers = [UpstreamUnreachable("reset", maybe_applied=True)]
    assert (await rig.router.handle(upsert())).code is code
    assert bool(rig.replica.marked) is doubted
    assert await rig.entries() == []


async def test_a_write_is_checked_when_those_before_it_are_applied_even_if_nobody_waited_for_them(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    rig.replica.hold = asyncio.Event()
    with pytest.raises(ReplicaUnavailable):
        await rig.router.handle(replace(upsert(), deadline=CLOCK.monotonic() + 0.1))
    assert [state for state, _ in await rig.entries()] == [EntryState.PENDING]
    behind = asyncio.create_task(rig.router.handle(upsert()))
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(rig.replica.prepared_together) == 1
    rig.replica.hold.set()
    assert (await behind).is_ok
    assert len(rig.replica.prepared_together) == 2


async def test_a_local_write_waits_until_the_replica_knows_of_doubts(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.replica.hold_marks = asyncio.Event()
    rig.router._repairs.in_doubt("c", "test")
    # A read does not wait, and is not passed off as whole.
    assert dict((await rig.router.handle(get())).trailers)[rpc.COMPLETENESS] == "stale"
    writing = asyncio.create_task(rig.router.handle(upsert()))
    for _ in range(50):
        await asyncio.sleep(0)
    assert rig.replica.prepared_together == []
    rig.replica.hold_marks.set()
    assert (await writing).is_ok
    assert dict((await rig.router.handle(get())).trailers)[rpc.COMPLETENESS] == "complete"


async def test_qdrant_is_asked_about_a_caller_whom_nobody_knows_while_it_is_up(make_rig: MakeRig) -> None:
    """Its keys were changed in an outage: during the drain the new ones are unknown here, and good."""
    rig = make_rig(had_upstream=True).online()
    rig.mode.write_logged()
    assert rig.mode.is_draining

    async def outcome(key: str | None) -> Code:
        metadata = () if key is None else (("api-key", key), ("x-other", "1"))
        body = points_pb2.GetPoints(collection_name="c").SerializeToString()
        return (await rig.router.handle(Call(GET, body, metadata))).code

    unknown = Reply(code=Code.UNAUTHENTICATED, details="Invalid API key or JWT")
    rig.qdrant.answers = [Reply(b""), unknown, unknown, UpstreamTimeout("slow", maybe_applied=False)]
    assert await outcome("new") is Code.OK
    assert await outcome("new") is Code.OK
    assert await outcome("wrong") is Code.UNAUTHENTICATED
    assert await outcome(None) is Code.UNAUTHENTICATED
    assert await outcome("slow") is Code.UNAUTHENTICATED
    asked = [(call.method, call.metadata) for call in rig.qdrant.calls]
    assert asked == [("/qdrant.Collections/List", (("api-key", key),)) for key in ("new", "wrong")] + [
        ("/qdrant.Collections/List", ()),
        ("/qdrant.Collections/List", (("api-key", "slow"),)),
    ]
    rig.mode.upstream_changed(Verdict(up=False, since=0.0, reason="gone"), pending=1)
    assert await outcome("other") is Code.UNAUTHENTICATED
    assert await outcome("new") is Code.OK
    assert len(rig.qdrant.calls) == 4
