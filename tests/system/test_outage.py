"""Qdrant is killed in the middle of mixed reads and writes, stays away, and comes back: nobody notices.

Runs with the blocking and with the asyncio client, unmodified, with their default deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from qdrant_client import QdrantClient, models

from tests.system import workload
from tests.system.digits import Digits, accuracy
from tests.system.understudy import Understudy
from tests.system.workload import Reader, Record, Writer, differences
from tests.upstream.process import Standin

WRITERS = 4
LOADED = 1200
QUERIES = range(1700, 1797)


@dataclass(slots=True)
class Crowd:
    """Several clients at work."""

    record: Record
    writers: list[Writer]
    readers: list[Reader]
    tasks: list[asyncio.Task[None]]

    async def after(self, writes: int) -> None:
        """Wait for so many more acknowledged writes; an error ends the wait."""
        goal = self.record.writes + writes
        async with asyncio.timeout(120):
            while self.record.writes < goal and not self.record.errors:
                self.record.changed.clear()
                await self.record.changed.wait()

    async def end(self) -> None:
        """Let everybody finish the call they are in."""
        for one in [*self.writers, *self.readers]:
            one.stopped = True
        await asyncio.gather(*self.tasks)


def gather(calls: list[workload.Call], digits: Digits, *, retry: bool = False, record: Record | None = None) -> Crowd:
    """Writers on disjoint ids, readers on everything, one client each."""
    record = record or Record()
    writers = [
        Writer(call, record, "mixed", 1000 * n, 60, digits.vectors, seed=n, retry=retry)
        for n, call in enumerate(calls[:WRITERS], 1)
    ]
    readers = [Reader(call, record, "mixed", digits.vectors, seed=n) for n, call in enumerate(calls[WRITERS:])]
    return Crowd(record, writers, readers, [asyncio.create_task(one.run()) for one in [*writers, *readers]])


@pytest.fixture(params=["sync", "async"])
async def calls(request: pytest.FixtureRequest, understudy: Understudy) -> AsyncIterator[list[workload.Call]]:
    """Two readers more than writers, each with a client of its own."""
    if request.param == "sync":
        blocking = [understudy.client() for _ in range(WRITERS + 2)]
        yield [workload.threaded(client) for client in blocking]
        for client in blocking:
            client.close()
    else:
        clients = [understudy.async_client() for _ in range(WRITERS + 2)]
        yield [workload.direct(client) for client in clients]
        for client in clients:
            await client.close()


def create(client: QdrantClient, digits: Digits) -> None:
    """The two collections: digits to search in, and one to be busy in."""
    for name in ("digits", "mixed"):
        client.create_collection(name, models.VectorParams(size=64, distance=models.Distance.EUCLID))
    for start in range(0, LOADED, 100):
        client.upsert("digits", [digits.point(row) for row in range(start, start + 100)])


async def test_an_outage_is_not_noticed(
    standin: Standin, understudy: Understudy, digit_data: Digits, calls: list[workload.Call]
) -> None:
    async def off_loop(work: Callable[..., object], *arguments: object) -> object:
        return await asyncio.to_thread(work, *arguments)

    client = understudy.client()
    await off_loop(create, client, digit_data)
    online = await off_loop(accuracy, client, "digits", digit_data, QUERIES)
    assert isinstance(online, float)
    assert online > 0.9

    crowd = gather(calls, digit_data)
    record = crowd.record
    await crowd.after(150)
    await off_loop(standin.kill)
    await crowd.after(400)
    assert understudy.state() == "local"
    assert await off_loop(accuracy, client, "digits", digit_data, QUERIES) == online
    rest = [digit_data.point(row) for row in range(LOADED, QUERIES.start)]
    await off_loop(client.upsert, "digits", rest)
    whole = await off_loop(accuracy, client, "digits", digit_data, QUERIES)
    await off_loop(standin.restart)
    await crowd.after(200)
    await crowd.end()
    assert record.errors == []
    assert record.stale == []

    await off_loop(understudy.wait_drained)
    upstream = standin.client()
    assert differences(upstream, "mixed", record.expected) == []
    assert differences(client, "mixed", record.expected) == []
    assert workload.out_of_order(record.acknowledged, workload.arrivals(standin.writes())) == []
    everything = {
        row: workload.Point(digit_data.vectors[row].tolist(), digit_data.point(row).payload or {})
        for row in range(QUERIES.start)
    }
    assert differences(upstream, "digits", everything) == []
    assert await off_loop(accuracy, upstream, "digits", digit_data, QUERIES) == whole
    upstream.close()
    client.close()
