"""An upstream that is silent, not closed: it is known to be away soon, by default, and then nobody waits for it.

The upstream stays silent until everything is checked, and the deadline of every call is far longer than a check may
take: whatever waited for the upstream would show.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from qdrant_client import models

from server.config import Health
from tests.faults.tcp_toxics import TcpToxics
from tests.system.understudy import Understudy
from tests.system.workload import Call, direct, threaded
from tests.upstream.process import Standin

DEFAULTS = {f"UNDERSTUDY_HEALTH_{name.upper()}": str(value) for name, value in Health().model_dump().items()}
DEADLINE_SECONDS = 120
# `bench.failover` measures this (3 s, and 1 s); here it is about waiting or not waiting, on a machine that is busy.
KNOWN_SECONDS = 15.0
ANSWER_SECONDS = 20.0
CALLS = 12


def point(number: int) -> models.PointStruct:
    return models.PointStruct(id=number, vector=[float(number), 1.0], payload={"number": number})


@asynccontextmanager
async def stopped(standin: Standin, on_the_way: TcpToxics) -> AsyncIterator[None]:
    standin.stop_signal()
    try:
        yield
    finally:
        standin.continue_signal()


@asynccontextmanager
async def cut_off(standin: Standin, on_the_way: TcpToxics) -> AsyncIterator[None]:
    on_the_way.black_hole(on=True)
    try:
        yield
    finally:
        on_the_way.black_hole(on=False)


@asynccontextmanager
async def stuck_inside(standin: Standin, on_the_way: TcpToxics) -> AsyncIterator[None]:
    """Its transport lives and answers pings, so that keepalive never ends what waits, as it does with the others."""
    for method in ("*", "/grpc.health.v1.Health/Check", "/qdrant.Qdrant/HealthCheck"):
        await asyncio.to_thread(standin.fault, method, "stall", times=None)
    try:
        yield
    finally:
        await asyncio.to_thread(standin.control, "clear")


def mixed(call: Call, first: int) -> list[asyncio.Task[object]]:
    """Reads and writes at once, each write with a point of its own."""
    writes = [call("upsert", "silent", [point(first + number)]) for number in range(CALLS)]
    reads = [call("retrieve", "silent", [1]) for _ in range(CALLS)]
    return [asyncio.ensure_future(one) for one in [*writes, *reads]]


@asynccontextmanager
async def in_front_of(address: str, directory: Path) -> AsyncIterator[Understudy]:
    """A proxy with default settings; started beside this event loop, through which its upstream is reached."""
    proxy = Understudy(directory, address, **DEFAULTS)
    await asyncio.to_thread(proxy.start)
    try:
        yield proxy
    finally:
        proxy.stop()


@pytest.mark.parametrize("silence", [stopped, cut_off, stuck_inside], ids=["SIGSTOP", "black hole", "stuck"])
async def test_nobody_waits_for_a_silent_upstream(
    standin: Standin, tmp_path: Path, silence: Callable[..., AbstractAsyncContextManager[None]]
) -> None:
    # Blocking calls that wait need threads, and so do the questions about the state.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4 * CALLS))
    host, port = standin.address.rsplit(":", 1)
    async with TcpToxics(host, int(port)) as on_the_way, in_front_of(on_the_way.address, tmp_path / "proxy") as proxy:
        client, unblocked = proxy.client(timeout=DEADLINE_SECONDS), proxy.async_client(timeout=DEADLINE_SECONDS)
        await unblocked.create_collection("silent", models.VectorParams(size=2, distance=models.Distance.DOT))
        await unblocked.upsert("silent", [point(1)])
        async with silence(standin, on_the_way):
            begun_before = [*mixed(threaded(client), 100), *mixed(direct(unblocked), 200)]
            await asyncio.to_thread(proxy.wait_state, "local", KNOWN_SECONDS)
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.gather(*begun_before)
                await asyncio.gather(*mixed(threaded(client), 300), *mixed(direct(unblocked), 400))
            assert await asyncio.to_thread(proxy.state) == "local"
        await asyncio.to_thread(proxy.wait_drained)
        with_upstream = standin.client()
        held = {record.id for record in with_upstream.scroll("silent", limit=1000)[0]}
        assert held == {1, *(first + number for first in (100, 200, 300, 400) for number in range(CALLS))}
        with_upstream.close()
        await unblocked.close()
        client.close()
