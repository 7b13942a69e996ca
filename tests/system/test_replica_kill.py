"""Chroma's process dies by SIGKILL under load: nobody notices, it returns by itself, and its answers are right."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests.processes import children_of, is_alive, send
from tests.system import workload
from tests.system.digits import Digits
from tests.system.test_outage import create, gather
from tests.system.understudy import Understudy
from tests.system.workload import differences
from tests.upstream.process import Standin, until

ROWS = range(1700, 1750)


def check_answers(client: QdrantClient, digits: Digits) -> None:
    """The five nearest, filtered and not, as numpy computes them."""
    loaded = digits.vectors[:1200]
    even = np.asarray([label % 2 == 0 for label in digits.labels[:1200]])
    only_even = models.Filter(must=[models.FieldCondition(key="even", match=models.MatchValue(value=True))])
    for row in ROWS:
        distances = np.linalg.norm(loaded - digits.vectors[row], axis=1)
        for chosen, query_filter in ((distances, None), (np.where(even, distances, np.inf), only_even)):
            hits = client.query_points(
                "digits", query=digits.vectors[row].tolist(), limit=5, query_filter=query_filter
            ).points
            assert [hit.score for hit in hits] == pytest.approx(sorted(chosen)[:5], rel=1e-5)
            assert [chosen[int(hit.id)] for hit in hits] == pytest.approx([hit.score for hit in hits], rel=1e-5)


@pytest.mark.parametrize("upstream", ["away", "there"])
async def test_the_replica_is_killed_under_load(
    standin: Standin, understudy: Understudy, digit_data: Digits, upstream: str
) -> None:
    client = understudy.client()
    await asyncio.to_thread(create, client, digit_data)
    clients = [understudy.async_client() for _ in range(6)]
    crowd = gather([workload.direct(one) for one in clients], digit_data)
    record = crowd.record
    await crowd.after(50)
    if upstream == "away":
        await asyncio.to_thread(standin.kill)
    await crowd.after(50)
    killed = []
    for _ in range(3):
        victim = await asyncio.to_thread(understudy.replica_pid)
        send(victim, signal.SIGKILL)
        killed.append(victim)
        await crowd.after(60)
        await asyncio.to_thread(
            until, lambda victim=victim: understudy.replica_pid() not in (0, victim), 30, "a new replica process"
        )
        await crowd.after(40)
    await crowd.end()
    assert record.errors == []
    assert record.stale == []
    assert not any(is_alive(victim) for victim in killed)
    if upstream == "there":
        await asyncio.to_thread(standin.kill)
        await asyncio.to_thread(understudy.wait_state, "local")
    await asyncio.to_thread(check_answers, client, digit_data)
    assert differences(client, "mixed", record.expected) == []
    await asyncio.to_thread(standin.start)
    await asyncio.to_thread(understudy.wait_drained)
    with_upstream = standin.client()
    assert differences(with_upstream, "mixed", record.expected) == []
    with_upstream.close()
    client.close()
    for one in clients:
        await one.close()


async def test_the_replica_ends_with_the_proxy(understudy: Understudy) -> None:
    """No orphan holds the store when the proxy dies by SIGKILL."""
    replica = understudy.replica_pid()
    assert is_alive(replica)
    understudy.kill()
    await asyncio.to_thread(until, lambda: not is_alive(replica), 20, "the orphaned replica ends by itself")


async def test_a_damaged_store_stops_no_write_and_is_filled_again(standin: Standin, understudy: Understudy) -> None:
    """Pages of the replica's file go bad while it is open; Qdrant is up all the time."""
    client = understudy.client()
    client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT))

    def write(turn: int) -> None:
        for start in range(0, 3000, 500):
            ids = range(start, start + 500)
            points = [models.PointStruct(id=n, vector=[n, turn], payload={"text": f"{n} " * 60}) for n in ids]
            client.upsert("c", points)

    await asyncio.to_thread(write, 1)
    await asyncio.to_thread(understudy.wait_hydrated, "c")
    # Another process, so that everything is in the file and next to nothing of it in memory.
    before = understudy.replica_pid()
    send(before, signal.SIGTERM)
    await asyncio.to_thread(until, lambda: understudy.replica_pid() not in (0, before), 30, "a new replica process")
    damaged = understudy.replica_pid()
    file = next(understudy.data.rglob("replica.sqlite"))
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 3 // 8192 * 8192)
        opened.write(b"\xa5" * (file.stat().st_size // 3))
    await asyncio.wait_for(asyncio.to_thread(write, 2), 60)
    await asyncio.to_thread(until, lambda: understudy.replica_pid() not in (0, damaged), 30, "a new replica process")
    await asyncio.to_thread(understudy.wait_hydrated, "c")
    assert len([path for path in file.parent.iterdir() if path.match("replica.sqlite.corrupted.*[0-9]")]) == 1
    assert "was damaged" in understudy.log_path.read_text()
    await asyncio.to_thread(standin.kill)
    await asyncio.to_thread(understudy.wait_state, "local")
    held = client.retrieve("c", list(range(0, 3000, 7)), with_vectors=True)
    assert [point.vector for point in held] == [[n, 2] for n in range(0, 3000, 7)]
    assert client.count("c").count == 3000
    client.close()


@contextlib.contextmanager
def no_replica(understudy: Understudy) -> Iterator[None]:
    """Whatever process the proxy starts is killed as soon as it is there."""
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            for pid in children_of(understudy.pid):
                with contextlib.suppress(ProcessLookupError):
                    send(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        stop.set()
        killer.join()


def test_a_replica_that_cannot_run_is_no_error_for_clients_while_qdrant_is_up(standin: Standin, tmp_path: Path) -> None:
    """Past `mirror_queue_entries`, and after a blip that asks for a look at what Qdrant lost."""
    with Understudy(
        tmp_path / "u",
        standin.address,
        UNDERSTUDY_REPLICA_MIRROR_QUEUE_ENTRIES="20",
        UNDERSTUDY_REPLICA_RESTART_MAX_SECONDS="0.5",
        UNDERSTUDY_REPLAY_GRACE_PATIENCE_SECONDS="1",
    ) as understudy:
        client = understudy.client()
        client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT))

        def put(number: int) -> None:
            client.upsert("c", [models.PointStruct(id=number, vector=[1.0, 2.0], payload={"v": number})])

        put(1)
        understudy.wait_state("remote")
        with no_replica(understudy):
            for number in range(2, 60):
                put(number)
            standin.kill()
            understudy.wait_state("local")
            standin.start()
            understudy.wait_state("remote")
            for number in range(60, 120):
                put(number)
                assert [each.payload for each in client.retrieve("c", [number])] == [{"v": number}]
            grace = understudy.status()["grace"]
            assert grace["is_owed"]
        until(lambda: understudy.replica_pid() != 0, 30, "a replica that runs")
        until(lambda: understudy.status()["grace"]["looks"] > grace["looks"], 30, "the look that was put off is made")
        understudy.wait_state("remote")
        assert not understudy.status()["grace"]["is_owed"]
        standin.kill()
        understudy.wait_state("local")
        assert client.count("c").count == 119
        standin.start()
        understudy.wait_drained()
        assert standin.client().count("c").count == 119
        client.close()
