"""Qdrant and the proxy die by SIGKILL and come back, in turns, together, in the middle of a drain, under 200 calls/s.

No client error but those of a proxy that was not there, every client reads its own writes, and in the end Qdrant and
the replica hold exactly what the clients were told. The seed is printed, and `UNDERSTUDY_TEST_SEED` sets it.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from qdrant_client import models

from tests.system import workload
from tests.system.digits import Digits
from tests.system.presence import QUICK_CHANNEL, Absences, Pace
from tests.system.test_outage import Crowd, gather
from tests.system.test_replica_kills import Replica
from tests.system.understudy import Understudy
from tests.system.workload import Record, differences
from tests.upstream.process import Standin

CALLS_PER_SECOND = 200.0
CLIENTS = 10
# Who dies in ten cycles, in an order of chance.
VICTIMS = ("qdrant",) * 5 + ("proxy",) * 3 + ("both",) * 2
SEED = int(os.environ.get("UNDERSTUDY_TEST_SEED", random.randrange(2**32)))


@dataclass(slots=True)
class Theatre:
    """A Qdrant, a proxy and clients that never rest."""

    standin: Standin
    proxy: Understudy
    crowd: Crowd
    absences: Absences
    chance: random.Random
    deaths: Counter[str] = field(default_factory=Counter)
    died_in: Counter[str] = field(default_factory=Counter)

    async def cycle(self, victim: str) -> None:
        """One victim, or both, at a random moment; Qdrant stays away for a while."""
        await self.crowd.after(self.chance.randrange(1, 60))
        await asyncio.sleep(self.chance.random() * 0.03)
        self.deaths[victim] += 1
        self.died_in[await asyncio.to_thread(self.proxy.state)] += 1
        if victim == "qdrant":
            await asyncio.to_thread(self.standin.kill)
            await self._while_qdrant_is_away()
            await asyncio.to_thread(self.standin.start)
        elif victim == "proxy":
            with self.absences.absent():
                await asyncio.to_thread(self.proxy.kill)
                await asyncio.to_thread(self.proxy.start)
        else:
            await self._both_die()
        if self.chance.random() < 0.4:
            await asyncio.to_thread(self.proxy.wait_drained)

    async def _both_die(self) -> None:
        """At once, or one after the other; and whoever returns first is alone for a while."""
        with self.absences.absent():
            for end in self.chance.sample((self.standin.kill, self.proxy.kill), 2):
                await asyncio.to_thread(end)
                await asyncio.sleep(self.chance.random() * 0.1)
            is_qdrant_first = self.chance.random() < 0.3
            if is_qdrant_first:
                await asyncio.to_thread(self.standin.start)
            await asyncio.to_thread(self.proxy.start)
        if not is_qdrant_first:
            await self._while_qdrant_is_away()
            await asyncio.to_thread(self.standin.start)

    async def _while_qdrant_is_away(self) -> None:
        await self.crowd.after(self.chance.randrange(5, 120))


async def settle(standin: Standin, proxy: Understudy, crowd: Crowd) -> None:
    """Everything is drained, and compared."""
    await crowd.end()
    await asyncio.to_thread(proxy.wait_drained)
    await asyncio.to_thread(proxy.wait_hydrated, "mixed")
    await asyncio.to_thread(compare, standin, proxy, crowd.record)


def compare(standin: Standin, proxy: Understudy, record: Record) -> None:
    """Qdrant, the replica and what clients are answered are what they were told."""
    assert (record.errors, record.stale) == ([], []), f"UNDERSTUDY_TEST_SEED={SEED}"
    upstream, client = standin.client(), proxy.client()
    for side in (upstream, client, Replica(proxy)):
        assert differences(side, "mixed", record.expected) == [], f"UNDERSTUDY_TEST_SEED={SEED}"
    assert workload.out_of_order(record.acknowledged, workload.arrivals(standin.writes())) == []
    assert proxy.status()["quarantine"] == 0
    upstream.close()
    client.close()


@pytest.mark.parametrize("cycles", [20, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.timeout(3600)
async def test_kills_of_qdrant_and_of_the_proxy_under_load(tmp_path: Path, digit_data: Digits, cycles: int) -> None:
    print(f"UNDERSTUDY_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    with Standin(tmp_path / "upstream") as standin, Understudy(tmp_path / "understudy", standin.address) as proxy:
        client = proxy.client()
        client.create_collection("mixed", models.VectorParams(size=64, distance=models.Distance.EUCLID))
        client.close()
        absences = Absences(proxy.address)
        record = Record(absences=absences, pace=Pace(CALLS_PER_SECOND))
        clients = [proxy.async_client(grpc_options=dict(QUICK_CHANNEL)) for _ in range(CLIENTS)]
        crowd = gather([workload.direct(one) for one in clients], digit_data, record=record)
        theatre = Theatre(standin, proxy, crowd, absences, chance)
        began = time.monotonic()
        for _ in range(cycles // len(VICTIMS)):
            for victim in chance.sample(VICTIMS, len(VICTIMS)):
                await theatre.cycle(victim)
        calls, seconds = record.reads + record.writes, time.monotonic() - began
        away = sum(over - start for start, over in absences.spans)
        await settle(standin, proxy, crowd)
        print(f"{cycles} cycles in {seconds:.0f} s, deaths {dict(theatre.deaths)}, in state {dict(theatre.died_in)}")
        print(
            f"{calls} calls, {calls / (seconds - away):.0f} a second while the proxy was there, {record.retries} again"
        )
        assert sum(theatre.deaths.values()) == cycles
        for one in clients:
            await one.close()
