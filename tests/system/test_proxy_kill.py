"""The proxy itself dies by SIGKILL, again and again, while Qdrant is away: what it acknowledged is there, in order."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from qdrant_client import models

from tests.system import workload
from tests.system.digits import Digits
from tests.system.test_outage import gather
from tests.system.understudy import Understudy
from tests.system.workload import differences
from tests.upstream.process import Standin

OUTAGES = 3
KILLS_PER_OUTAGE = 9
THEATRES = 2
SEED = 20261123


@pytest.mark.timeout(900)
async def test_what_was_acknowledged_survives_fifty_kills_of_the_proxy(tmp_path: Path, digit_data: Digits) -> None:
    """Two proxies at once, each with its own Qdrant: a restart is mostly one core's work."""
    assert THEATRES * OUTAGES * KILLS_PER_OUTAGE >= 50
    await asyncio.gather(*(play(tmp_path / str(n), digit_data, random.Random(SEED + n)) for n in range(THEATRES)))


async def play(folder: Path, digits: Digits, rng: random.Random) -> None:
    """Kill points are drawn in writes, then in milliseconds: they fall anywhere on a write's way to the disk."""
    with Standin(folder / "upstream") as standin, Understudy(folder / "understudy", standin.address) as understudy:
        client = understudy.client()
        client.create_collection("mixed", models.VectorParams(size=64, distance=models.Distance.EUCLID))
        clients = [understudy.async_client() for _ in range(4)]
        crowd = gather([workload.direct(one) for one in clients], digits, retry=True)
        for _ in range(OUTAGES):
            await crowd.after(20)
            await asyncio.to_thread(standin.kill)
            for _ in range(KILLS_PER_OUTAGE):
                await crowd.after(rng.randrange(1, 40))
                await asyncio.sleep(rng.random() * 0.02)
                await asyncio.to_thread(understudy.kill)
                await asyncio.to_thread(understudy.start)
            await crowd.after(5)
            await asyncio.to_thread(standin.start)
            await asyncio.to_thread(understudy.wait_drained)
        await crowd.end()
        await asyncio.to_thread(understudy.wait_drained)
        await asyncio.to_thread(check, standin, understudy, crowd.record)
        client.close()
        for one in clients:
            await one.close()


def check(standin: Standin, understudy: Understudy, record: workload.Record) -> None:
    """Nothing acknowledged is missing on either side, and it arrived in order."""
    assert record.errors == []
    assert record.stale == []
    for side in (standin.client(), understudy.client()):
        assert differences(side, "mixed", record.expected) == []
        side.close()
    assert workload.out_of_order(record.acknowledged, workload.arrivals(standin.writes())) == []
    assert understudy.status()["quarantine"] == 0
