"""The replica dies by SIGKILL at random moments under writes, again and again: each time it comes back whole.

Asked is the replica itself, on its own socket: through the proxy a healthy Qdrant would answer for it. The seed is
printed, and `UNDERSTUDY_TEST_SEED` sets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest

from generated.qdrant import points_pb2
from server.replica.asking import Asking
from server.rpc import Call, Reply
from tests.processes import send
from tests.system import workload
from tests.system.digits import Digits
from tests.system.test_outage import Crowd, gather
from tests.system.understudy import Understudy
from tests.system.workload import differences
from tests.upstream.process import Standin, until

THEATRES = 2
CALM_SECONDS = 60.0
# Where the replica dies every other second, a pause that grows with every death would be most of the test.
QUICK_RESTARTS = {"UNDERSTUDY_REPLICA_RESTART_MAX_SECONDS": "0.1"}
SEED = int(os.environ.get("UNDERSTUDY_TEST_SEED", random.randrange(2**32)))


class Replica:
    """The replica of a proxy, as `differences` asks a server."""

    def __init__(self, proxy: Understudy) -> None:
        self._proxy = proxy

    def pid(self) -> int:
        """The process that serves; 0 while there is none."""
        return self._proxy.replica_pid()

    def wait_another(self, pid: int) -> None:
        """Wait for a process that is not `pid`, and until it has all of the log."""

        def is_level() -> bool:
            status = self._proxy.status()
            return status["replica"]["pid"] not in (None, 0, pid) and status["applied_seq"] >= status["last_seq"]

        until(is_level, CALM_SECONDS, "another replica process, level with the log")

    def scroll(self, collection: str, **options: Any) -> tuple[list[models.Record], None]:
        """All points, in one page."""
        arguments = Path(f"/proc/{self.pid()}/cmdline").read_bytes().split(b"\0")
        socket = arguments[arguments.index(b"--socket") + 1].decode()
        request = points_pb2.ScrollPoints(collection_name=collection, limit=100_000)
        request.with_payload.enable = request.with_vectors.enable = True
        reply = asyncio.run(asked(Path(socket), Call("/qdrant.Points/Scroll", request.SerializeToString())))
        assert reply.is_ok, reply.details
        found = points_pb2.ScrollResponse.FromString(reply.body).result
        records = [GrpcToRest.convert_retrieved_point(one) for one in found]
        ids = [record.id for record in records]
        assert len(ids) == len(set(ids)), "a point is there twice"
        return records, None


async def asked(socket: Path, call: Call) -> Reply:
    """What the replica that listens there answers."""
    asking = await Asking.connect(socket)
    try:
        async with asyncio.timeout(CALM_SECONDS):
            return await asking.handle(call)
    finally:
        asking.close()


@dataclass(slots=True)
class Tally:
    """What was done."""

    kills: int = 0
    restarts_compared: int = 0
    writes: int = 0
    kills_while_upstream_was_there: int = 0


@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=pytest.mark.soak)])
@pytest.mark.timeout(3600)
async def test_after_any_kill_the_replica_equals_the_model(tmp_path: Path, digit_data: Digits, kills: int) -> None:
    """Two proxies at once: a restart is mostly one core's work."""
    print(f"UNDERSTUDY_TEST_SEED={SEED}")
    theatres = [
        play(tmp_path / str(number), digit_data, random.Random(SEED + number), kills // THEATRES)
        for number in range(THEATRES)
    ]
    tallies = await asyncio.gather(*theatres)
    for tally in tallies:
        print(tally)
    assert sum(tally.kills for tally in tallies) >= kills
    assert all(tally.kills_while_upstream_was_there > tally.kills // 4 for tally in tallies)
    assert all(tally.kills > tally.kills_while_upstream_was_there for tally in tallies)


async def play(folder: Path, digits: Digits, rng: random.Random, kills: int) -> Tally:
    """Half of the kills with Qdrant there, half without, in turns of a few."""
    tally = Tally()
    with (
        Standin(folder / "upstream") as standin,
        Understudy(folder / "understudy", standin.address, **QUICK_RESTARTS) as proxy,
    ):
        client = proxy.client(timeout=60)
        await asyncio.to_thread(
            client.create_collection, "mixed", models.VectorParams(size=64, distance=models.Distance.EUCLID)
        )
        clients = [proxy.async_client(timeout=60) for _ in range(4)]
        crowd = gather([workload.direct(one) for one in clients], digits)
        replica = Replica(proxy)
        for turn in range(4):
            is_there = turn % 2 == 0
            if not is_there:
                await asyncio.to_thread(standin.kill)
            elif turn:
                await asyncio.to_thread(standin.start)
                await asyncio.to_thread(proxy.wait_drained)
            goal = kills * (turn + 1) // 4
            while tally.kills < goal:
                killed = await strike(replica, crowd, rng)
                tally.kills += killed
                tally.kills_while_upstream_was_there += killed if is_there else 0
                tally.restarts_compared += 1
        await crowd.end()
        tally.writes = crowd.record.writes
        assert crowd.record.writes > 5 * tally.kills
        await asyncio.to_thread(standin.start)
        await asyncio.to_thread(proxy.wait_drained)
        upstream = standin.client()
        assert differences(upstream, "mixed", crowd.record.expected) == []
        upstream.close()
        client.close()
        for one in clients:
            await one.close()
    return tally


async def strike(replica: Replica, crowd: Crowd, rng: random.Random) -> int:
    """Kill it anywhere on a write's way, at times again while it starts or catches up; then compare. Returns kills."""
    await crowd.after(rng.randrange(1, 25))
    await asyncio.sleep(rng.random() * 0.05)
    pid = await asyncio.to_thread(replica.pid)
    send(pid, signal.SIGKILL)
    kills = 1
    if rng.random() < 0.25:
        await asyncio.to_thread(until, lambda: replica.pid() not in (0, pid), CALM_SECONDS, "another process")
        await asyncio.sleep(rng.random() * 0.2)
        second = await asyncio.to_thread(replica.pid)
        if second:
            with contextlib.suppress(ProcessLookupError):
                send(second, signal.SIGKILL)
                kills, pid = 2, second
    await crowd.after(rng.randrange(1, 10))
    async with crowd_at_rest(crowd):
        await asyncio.to_thread(replica.wait_another, pid)
        assert (crowd.record.errors, crowd.record.stale) == ([], []), f"UNDERSTUDY_TEST_SEED={SEED}"
        found = await asyncio.to_thread(differences, replica, "mixed", crowd.record.expected)
        assert found == [], f"UNDERSTUDY_TEST_SEED={SEED}"
    return kills


@contextlib.asynccontextmanager
async def crowd_at_rest(crowd: Crowd) -> Any:
    """Nobody has a call under way, so that it is known what must be there; then they go on."""
    await crowd.end()
    yield
    for one in [*crowd.writers, *crowd.readers]:
        one.stopped = False
    crowd.tasks[:] = [asyncio.create_task(one.run()) for one in [*crowd.writers, *crowd.readers]]
