"""SIGTERM at random moments under load, and a second one after the first: it ends in time, and nothing is lost.

With Qdrant there and without, in the middle of drains too. The seed is printed, and `UNDERSTUDY_TEST_SEED` sets it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from qdrant_client import models

from tests.processes import send
from tests.system import workload
from tests.system.digits import Digits
from tests.system.presence import QUICK_CHANNEL, Absences, Pace
from tests.system.test_kill_cycles import CALLS_PER_SECOND, CLIENTS, SEED, settle
from tests.system.test_outage import Crowd, gather
from tests.system.understudy import Understudy
from tests.system.workload import Record
from tests.upstream.process import Standin

EXIT_MOST_SECONDS = 10.0
# At once: what remains is the kernel's work, on a machine that may be busy.
AT_ONCE_SECONDS = 1.0


@dataclass(slots=True)
class Stops:
    """How long it took to end, in seconds."""

    after_one: list[float] = field(default_factory=list)
    after_two: list[float] = field(default_factory=list)
    while_qdrant_was_away: int = 0


@pytest.mark.parametrize("stops", [20, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.timeout(3600)
async def test_it_ends_in_time_and_loses_nothing(tmp_path: Path, digit_data: Digits, stops: int) -> None:
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
        seen = Stops()
        # Every second one gets a second signal; Qdrant comes or goes before every third.
        for number in range(stops):
            await crowd.after(chance.randrange(1, 60))
            if number % 3 == 2:
                await asyncio.to_thread(standin.kill if standin.pid else standin.start)
                await crowd.after(chance.randrange(1, 60))
            seen.while_qdrant_was_away += not standin.pid
            await asyncio.sleep(chance.random() * 0.03)
            await stop(proxy, crowd, seen, chance, is_impatient=number % 2 == 1)
        if not standin.pid:
            await asyncio.to_thread(standin.start)
        await settle(standin, proxy, crowd)
        print(f"after one signal at most {max(seen.after_one):.2f} s, after a second {max(seen.after_two):.3f} s")
        print(f"{absences.cancelled} calls met a server that was about to stop")
        print(f"{seen.while_qdrant_was_away} of {stops} while Qdrant was away, {record.writes} writes")
        assert stops // 4 < seen.while_qdrant_was_away < stops
        for one in clients:
            await one.close()


async def stop(proxy: Understudy, crowd: Crowd, seen: Stops, chance: random.Random, *, is_impatient: bool) -> None:
    """One signal, or two; and a new process, which the same clients call."""
    assert crowd.record.absences is not None
    pause = chance.choice((0.0, chance.random() * 0.05, chance.random() * 0.5))
    with crowd.record.absences.absent(is_stopped=True):
        code, seconds = await asyncio.to_thread(_signalled, proxy, pause if is_impatient else None)
        if is_impatient and code != 0:
            # In its very last moments, with everything closed, nobody listens for signals any more.
            assert code in (128 + signal.SIGTERM, -signal.SIGTERM)
            seen.after_two.append(seconds)
            assert seconds < AT_ONCE_SECONDS, f"UNDERSTUDY_TEST_SEED={SEED}"
        else:
            # It may have ended before the second signal came.
            assert code == 0, f"UNDERSTUDY_TEST_SEED={SEED}"
            seen.after_one.append(seconds)
            assert seconds < EXIT_MOST_SECONDS, f"UNDERSTUDY_TEST_SEED={SEED}"
        await asyncio.to_thread(proxy.start)


def _signalled(proxy: Understudy, pause: float | None) -> tuple[int, float]:
    """Exit code, and the seconds from the last signal to the end. `pause` None = one signal only."""
    pid = proxy.pid
    began = time.monotonic()
    send(pid, signal.SIGTERM)
    if pause is not None and not proxy.has_ended(pause):
        began = time.monotonic()
        send(pid, signal.SIGTERM)
    code = proxy.wait_ended()
    return code, time.monotonic() - began
