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

OUTAGES = 5
KILLS_PER_OUTAGE = 10
SEED = 20261123


@pytest.mark.timeout(900)
async def test_what_was_acknowledged_survives_fifty_kills_of_the_proxy(
    standin: Standin, tmp_path: Path, digit_data: Digits
) -> None:
    """Kill points are drawn in writes, then in milliseconds: they fall anywhere on a write's way to the disk."""
    rng = random.Random(SEED)
    with Understudy(tmp_path / "understudy", standin.address) as understudy:
        client = understudy.client()
        client.create_collection("mixed", models.VectorParams(size=64, distance=models.Distance.EUCLID))
        clients = [understudy.async_client() for _ in range(4)]
        crowd = gather([workload.direct(one) for one in clients], digit_data, retry=True)
        record = crowd.record
        kills = 0
        for _ in range(OUTAGES):
            await crowd.after(20)
            await asyncio.to_thread(standin.kill)
            for _ in range(KILLS_PER_OUTAGE):
                await crowd.after(rng.randrange(1, 40))
                await asyncio.sleep(rng.random() * 0.02)
                await asyncio.to_thread(understudy.kill)
                kills += 1
                await asyncio.to_thread(understudy.start)
            await crowd.after(5)
            await asyncio.to_thread(standin.start)
            await asyncio.to_thread(understudy.wait_drained)
        await crowd.end()
        assert kills >= 50
        assert record.errors == []
        assert record.stale == []
        await asyncio.to_thread(understudy.wait_drained)
        with_upstream = standin.client()
        assert differences(with_upstream, "mixed", record.expected) == []
        assert differences(client, "mixed", record.expected) == []
        assert workload.out_of_order(record.acknowledged, workload.arrivals(standin.writes())) == []
        assert understudy.status()["quarantine"] in (0, [])
        with_upstream.close()
        client.close()
        for one in clients:
            await one.close()
