"""The replica's process from the proxy's side: starts, serves, dies, comes back, ends."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_pb2
from generated.understudy.replica.v1 import replica_pb2 as control
from server import config
from server.clock import SystemClock
from server.errors import DataDirUnusable, ReplicaRefused, ReplicaUnavailable
from server.replica import requests as r
from server.replica.asking import Asking
from server.replica.process import ReplicaControl, ReplicaProcess
from server.rpc import AS_OF, COMPLETENESS, HEALTH_CHECK, Call, Code, Reply
from server.telemetry import Telemetry
from tests.processes import send
from tests.replica.local_store import CREATE, Local, create, dense, entry, ids, payload, point, upsert

GET = r.COLLECTIONS + "Get"


@asynccontextmanager
async def _running(directory: Path, **settings: Any) -> AsyncIterator[ReplicaProcess]:
    replica = ReplicaProcess(directory, config.Replica(**settings), clock=SystemClock(), telemetry=Telemetry.silent())
    await replica.start()
    try:
        yield replica
    finally:
        await replica.stop()


async def _apply(replica: ReplicaProcess, *entries: control.LogEntry) -> control.ApplyResponse:
    return await replica.control.apply(control.ApplyRequest(entries=entries))


def _kill(replica: ReplicaProcess, number: signal.Signals = signal.SIGKILL) -> None:
    assert replica.pid is not None
    send(replica.pid, number)


async def _alive(replica: ReplicaProcess, killed: set[int]) -> int:
    """The process id of a replica that nobody has killed yet; waits for the one that takes a killed one's place."""
    while (pid := replica.pid) is None or pid in killed:  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0)
    return pid


async def test_secrets_do_not_reach_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*config.secret_variables(), "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "for the proxy only")
    async with _running(tmp_path / "store") as replica:
        theirs = Path(f"/proc/{replica.pid}/environ").read_bytes()  # noqa: ASYNC240 - no disk behind it
        assert b"PATH=" in theirs
        assert b"for the proxy only" not in theirs


async def test_it_starts_serves_and_ends(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        pid = replica.pid
        assert pid is not None
        attached = await replica.control.attach(control.AttachRequest(log_id="L", last_seq=0))
        assert (attached.applied_seq, attached.rewound) == (0, False)
        prepared = await replica.control.prepare(
            control.PrepareRequest(method=CREATE, request=create().SerializeToString())
        )
        assert (prepared.code, list(prepared.resolved)) == (0, [])
        answer = await _apply(replica, entry(1, CREATE, create()), entry(2, r.UPSERT, upsert(point(1))))
        assert [result.code for result in answer.results] == [0, 0]
        status = await replica.control.status()
        assert (status.pid, status.applied_seq) == (pid, 2)
        [state] = status.collections
        assert (state.name, state.points, state.completeness) == ("c", 1, control.COMPLETENESS_COMPLETE)
    assert not Path(f"/proc/{pid}").exists()  # noqa: ASYNC240 - no disk behind it
    assert replica.pid is None


async def test_reads_carry_completeness_and_age(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        await _apply(replica, entry(1, CREATE, create()))
        request = collections.GetCollectionInfoRequest(collection_name="c").SerializeToString()
        reply = await replica.backend.handle(Call(GET, request))
        assert reply.is_ok
        assert collections.GetCollectionInfoResponse.FromString(reply.body).result.points_count == 0
        trailers = dict(reply.trailers)
        assert (trailers[COMPLETENESS], trailers[AS_OF]) == ("complete", "1")
        await replica.control.set_completeness(
            control.SetCompletenessRequest(completeness=control.COMPLETENESS_HYDRATING)
        )
        reply = await replica.backend.handle(Call(GET, request))
        assert dict(reply.trailers)[COMPLETENESS] == "hydrating"


async def test_statuses_come_through(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        unknown = collections.GetCollectionInfoRequest(collection_name="c").SerializeToString()
        assert (await replica.backend.handle(Call(GET, unknown))).code is Code.UNAVAILABLE
        await replica.control.import_catalogue(control.ImportCatalogueRequest(whole=True, remote_version="1.19.0"))
        reply = await replica.backend.handle(Call(GET, unknown))
        assert (reply.code, reply.details) == (Code.NOT_FOUND, "Not found: Collection `c` doesn't exist!")
        health = await replica.backend.handle(Call(HEALTH_CHECK, b""))
        assert qdrant_pb2.HealthCheckReply.FromString(health.body).version == "1.19.0"
        assert (await replica.backend.handle(Call("/qdrant.Points/Upsertt", b""))).code is Code.UNIMPLEMENTED
        snapshots = await replica.backend.handle(Call("/qdrant.Snapshots/List", b""))
        assert snapshots.code is Code.UNAVAILABLE
        assert "snapshots" in snapshots.details
        direct = await replica.backend.handle(Call(r.UPSERT, upsert(point(1)).SerializeToString()))
        assert direct.code is Code.FAILED_PRECONDITION
        garbage = await replica.backend.handle(Call(GET, b"\xff\xff"))
        assert garbage.code is Code.INTERNAL
        assert garbage.details.startswith("failed to decode Protobuf message: ")
        prepared = await replica.control.prepare(
            control.PrepareRequest(method=r.UPSERT, request=upsert(point(1)).SerializeToString())
        )
        assert (prepared.code, prepared.details) == (Code.NOT_FOUND, "Not found: Collection `c` doesn't exist!")


async def test_writes_prepared_at_once_are_answered_each_by_itself(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        await _apply(replica, entry(1, CREATE, create()), entry(2, r.UPSERT, upsert(point(1))))
        missing = pb.SetPayloadPoints(collection_name="c", wait=True)
        missing.points_selector.points.ids.add(num=77)
        insert = upsert(point(1), point(2))
        insert.update_mode = pb.UpdateMode.InsertOnly
        asked = [
            control.PrepareRequest(method=method, request=request.SerializeToString())
            for method, request in (
                (r.UPSERT, upsert(point(3))),
                (r.SET_PAYLOAD, missing),
                (r.UPSERT, insert),
                (r.UPSERT, upsert(point(1, dense(1, 2, 3)))),
            )
        ]
        # More than one call can hold, so that it takes several.
        answers = await asyncio.gather(*(replica.control.prepare_together(each) for each in asked * 40))
        alone = [await replica.control.prepare(each) for each in asked]
        assert answers == alone * 40
        assert [(answer.code, answer.details) for answer in alone[1::2]] == [
            (Code.NOT_FOUND, "Not found: No point with id 77 found"),
            (Code.INVALID_ARGUMENT, "Wrong input: Vector dimension error: expected dim: 2, got 3"),
        ]
        assert alone[1].freshness.completeness == control.COMPLETENESS_COMPLETE
        [plain] = alone[2].resolved
        assert [each.id.num for each in pb.UpsertPoints.FromString(plain.request).points] == [2]


async def test_a_write_that_breaks_the_replica_spares_those_beside_it(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        await _apply(replica, entry(1, CREATE, create()))
        good = control.PrepareRequest(method=r.UPSERT, request=upsert(point(1)).SerializeToString())
        # A batch needs the writer's thread.
        bad = control.PrepareRequest(method=r.UPDATE_BATCH, request=b"")
        first, failed, last = await asyncio.gather(
            *(replica.control.prepare_together(each) for each in (good, bad, good)), return_exceptions=True
        )
        assert first == last == control.PrepareResponse()
        assert isinstance(failed, ReplicaUnavailable)


@pytest.mark.parametrize("seqs", [{"since_seq": 2}, {"since_seq": 1, "read_seq": 2}], ids=["since", "read"])
async def test_a_page_waits_for_the_entries_that_it_may_show(tmp_path: Path, seqs: dict[str, int]) -> None:
    async with _running(tmp_path / "store") as replica:
        await _apply(replica, entry(1, CREATE, create()))
        vectors = pb.VectorsOutput(vector=pb.VectorOutput(dense=pb.DenseVector(data=[1, 1])))
        page = pb.ScrollResponse(result=[pb.RetrievedPoint(id=point(1).id, vectors=vectors)])
        importing = asyncio.create_task(
            replica.control.import_page(
                control.ImportPageRequest(collection="c", page=page.SerializeToString(), **seqs)  # type: ignore[arg-type]
            )
        )
        for _ in range(5):
            assert (await replica.control.status()).applied_seq == 1
        assert not importing.done()
        await _apply(replica, entry(2, r.UPSERT, upsert(point(1, a="older"), point(2))))
        answer = await importing
        assert (answer.imported, answer.removed, len(answer.skipped)) == (
            (1, 1, 0) if seqs["since_seq"] == 2 else (0, 0, 2)
        )


async def test_a_refusal_is_told(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        await _apply(replica, entry(1, CREATE, create()))
    async with _running(tmp_path / "store") as replica:
        with pytest.raises(ReplicaRefused) as refused:
            await replica.control.import_page(control.ImportPageRequest(collection="c", since_seq=0))
        assert refused.value.code == Code.FAILED_PRECONDITION


class _Answers:
    """A backend that gives one answer."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def handle(self, call: Call) -> Reply:
        return self._reply


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.INTERNAL, ReplicaUnavailable),
        (Code.UNKNOWN, ReplicaUnavailable),
        (Code.FAILED_PRECONDITION, ReplicaRefused),
        (Code.NOT_FOUND, ReplicaRefused),
    ],
)
async def test_a_failure_inside_is_worth_another_try_and_a_refusal_is_not(code: Code, error: type[Exception]) -> None:
    answers = ReplicaControl(
        _Answers(Reply(code=code, details="why")), SystemClock(), config.Replica(call_timeout_seconds=1.0)
    )
    with pytest.raises(error, match="why"):
        await answers.apply(control.ApplyRequest())


async def test_files_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        async with _running(tmp_path / "store") as replica:
            await _apply(replica, entry(1, CREATE, create()))
            sockets = replica._sockets
            assert sockets is not None
            assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
            for path in (tmp_path / "store").rglob("*"):
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    finally:
        os.umask(old)
    assert not sockets.exists()


async def test_a_temporary_directory_with_a_long_name_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    async with _running(tmp_path / "store") as replica:
        assert (await replica.control.status()).applied_seq == 0
    assert not list(long.iterdir())


async def test_it_comes_back_after_a_kill_and_calls_wait_for_it(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        restarted = asyncio.Event()
        replica.on_restart = restarted.set
        first = replica.pid
        await _apply(replica, entry(1, CREATE, create()), entry(2, r.UPSERT, upsert(point(1, a=1))))
        _kill(replica)
        status = await replica.control.status()
        assert status.applied_seq == 2
        assert status.pid != first
        await restarted.wait()
        assert replica.restarts == 1
        assert replica.pid == status.pid


async def test_a_call_that_outlasts_a_process_told_to_end_is_answered_by_the_next_one(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        restarted = asyncio.Event()
        replica.on_restart = restarted.set
        await _apply(replica, entry(1, CREATE, create()))
        waiting = asyncio.create_task(
            replica.control.import_catalogue(control.ImportCatalogueRequest(since_seq=2, remote_version="1.20.0"))
        )
        # Answered only after the import has reached the process: both go over one connection.
        await replica.control.status()
        _kill(replica, signal.SIGTERM)
        await restarted.wait()
        assert not waiting.done()
        await _apply(replica, entry(2, r.UPSERT, upsert(point(1, a=1))))
        await asyncio.wait_for(waiting, 20)
        assert (await replica.control.status()).remote_version == "1.20.0"


async def test_a_call_does_not_wait_beyond_its_deadline(tmp_path: Path) -> None:
    clock = SystemClock()
    async with _running(tmp_path / "store") as replica:
        _kill(replica, signal.SIGSTOP)
        try:
            with pytest.raises(ReplicaUnavailable):
                await replica.backend.handle(Call(HEALTH_CHECK, b"", deadline=clock.monotonic() + 0.2))
        finally:
            _kill(replica, signal.SIGCONT)


async def test_a_process_that_hangs_is_replaced(tmp_path: Path) -> None:
    async with _running(tmp_path / "store", hang_seconds=0.6) as replica:
        restarted = asyncio.Event()
        replica.on_restart = restarted.set
        first = replica.pid
        _kill(replica, signal.SIGSTOP)
        await restarted.wait()
        assert (await replica.control.status()).pid != first


async def test_it_may_crash_many_times(tmp_path: Path) -> None:
    async with _running(tmp_path / "store", restart_max_seconds=0.2) as replica:
        for _ in range(4):
            status = await replica.control.status()
            send(status.pid, signal.SIGKILL)
        assert (await replica.control.status()).pid != status.pid
        assert replica.restarts >= 3


async def test_a_process_that_can_no_longer_be_asked_is_replaced(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        restarted = asyncio.Event()
        replica.on_restart = restarted.set
        first = replica.pid
        asking = await replica.serving()
        assert isinstance(asking, Asking)
        asking.close()
        # Far sooner than a process that hangs.
        async with asyncio.timeout(config.Replica().hang_seconds / 2):
            assert (await replica.control.status()).pid != first
            await restarted.wait()


async def test_a_call_under_which_one_process_after_the_other_ends_is_given_up(tmp_path: Path) -> None:
    async with _running(tmp_path / "store", restart_max_seconds=0.2) as replica:
        fatal = asyncio.create_task(replica.control.import_catalogue(control.ImportCatalogueRequest(since_seq=1)))
        killed: set[int] = set()
        while not fatal.done():
            pid = await _alive(replica, killed)
            await replica.control.status()
            send(pid, signal.SIGKILL)
            killed.add(pid)
            await _alive(replica, killed)
        with pytest.raises(ReplicaUnavailable, match="processes ended while they were asked"):
            await fatal
        # One that ended before it was asked does not count.
        assert 3 <= len(killed) <= 5
        assert (await replica.control.status()).pid not in killed


async def test_a_request_that_is_quoted_in_its_refusal_harms_nobody(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        request = collections.GetCollectionInfoRequest(collection_name="ü" * 10_000_000)
        reply = await replica.backend.handle(Call(GET, request.SerializeToString()))
        assert not reply.is_ok
        assert reply.details.endswith("[cut off]")
        assert len(reply.details.encode()) <= 2048
        assert replica.restarts == 0
        assert (await replica.control.status()).pid == replica.pid


async def test_sockets_of_processes_that_are_gone_are_not_left(tmp_path: Path) -> None:
    async with _running(tmp_path / "store", restart_max_seconds=0.2) as replica:
        folder = replica._sockets
        assert folder is not None
        killed: set[int] = set()
        for _ in range(3):
            pid = await _alive(replica, killed)
            assert len(list(folder.iterdir())) == 1
            send(pid, signal.SIGKILL)
            killed.add(pid)
        await _alive(replica, killed)
        assert len(list(folder.iterdir())) == 1
    assert not _is_there(str(folder))


async def test_a_folder_of_sockets_that_somebody_tidied_away_is_made_anew(tmp_path: Path) -> None:
    async with _running(tmp_path / "store") as replica:
        folder = replica._sockets
        assert folder is not None
        shutil.rmtree(folder)
        first = replica.pid
        _kill(replica)
        assert (await replica.control.status()).pid != first


async def test_a_process_that_cannot_be_reached_at_first_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, refused = Asking.connect, []

    async def fail_once(socket: Path) -> Asking:
        if not refused:
            refused.append(socket)
            raise OSError(errno.EMFILE, "broken by the test")
        return await connect(socket)

    monkeypatch.setattr(Asking, "connect", fail_once)
    async with _running(tmp_path / "store", start_timeout_seconds=20.0) as replica:
        assert (await replica.control.status()).pid == replica.pid
        assert len(refused) == 1


async def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    replica = ReplicaProcess(tmp_path / "store", config.Replica(), clock=SystemClock(), telemetry=Telemetry.silent())
    starting = asyncio.create_task(replica.start())
    await asyncio.sleep(0)
    folder = replica._sockets
    assert folder is not None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await replica.stop()
    assert not _is_there(str(folder))


async def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a directory")
    replica = ReplicaProcess(
        tmp_path / "store",
        config.Replica(start_timeout_seconds=1.0),
        clock=SystemClock(),
        telemetry=Telemetry.silent(),
    )
    with pytest.raises(DataDirUnusable):
        await replica.start()
    await replica.stop()


_PROXY = """
import asyncio, sys
from pathlib import Path
from server import config
from server.clock import SystemClock
from server.replica.process import ReplicaProcess
from server.telemetry import Telemetry

async def main():
    replica = ReplicaProcess(Path(sys.argv[1]), config.Replica(), clock=SystemClock(), telemetry=Telemetry.silent())
    await replica.start()
    print(replica._sockets, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_it_does_not_outlive_a_proxy_that_is_killed(tmp_path: Path) -> None:
    proxy = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROXY, str(tmp_path / "store"), stdout=subprocess.PIPE
    )
    assert proxy.stdout is not None
    sockets = (await proxy.stdout.readline()).decode().strip()
    assert _is_there(sockets)
    proxy.kill()
    await proxy.wait()
    # The directory has one holder at a time: that this one starts means that the other is gone.
    async with _running(tmp_path / "store") as replica:
        assert (await replica.control.status()).applied_seq == 0
    assert not _is_there(sockets)


def _is_there(path: str) -> bool:
    return Path(path).is_dir()


def _random_entry(seq: int, rng: random.Random) -> control.LogEntry:
    some = rng.sample(range(30), rng.randint(1, 4))
    kind = rng.randrange(4)
    if kind == 0:
        return entry(seq, r.DELETE, pb.DeletePoints(collection_name="c", points=ids(*some)))
    if kind == 1:
        change = payload({f"k{rng.randrange(3)}": seq})
        return entry(
            seq, r.SET_PAYLOAD, pb.SetPayloadPoints(collection_name="c", points_selector=ids(*some), payload=change)
        )
    return entry(seq, r.UPSERT, upsert(*[point(number, dense(seq, number), seq=seq) for number in some]))


async def test_killed_at_random_moments_it_holds_exactly_the_entries_up_to_its_cursor(tmp_path: Path) -> None:
    rng = random.Random(7)
    entries = [entry(1, CREATE, create()), *(_random_entry(seq, rng) for seq in range(2, 600))]
    batches = [entries[first : first + 20] for first in range(0, len(entries), 20)]
    doomed = set(rng.sample(range(len(batches)), 12))
    killed: set[int] = set()
    async with _running(tmp_path / "store", restart_max_seconds=0.1) as replica:
        for number, batch in enumerate(batches):
            applying = asyncio.create_task(_apply(replica, *batch))
            if number in doomed:
                # Somewhere within the call: its sending, the transaction, the answer; or just after it.
                pid = await _alive(replica, killed)
                await asyncio.sleep(rng.random() * 0.02)
                send(pid, signal.SIGKILL)
                killed.add(pid)
            answer = await applying
            assert answer.applied_seq == batch[-1].seq
    assert len(killed) == 12
    model = Local(tmp_path / "model")
    for one in entries:
        model.writes.apply([one])
    survivor = Local(tmp_path / "store")
    try:
        assert survivor.store.applied_seq == len(entries)
        assert survivor.points() == model.points()
        assert len(survivor.points()) > 5
    finally:
        survivor.close()
        model.close()
