"""Qdrant stops answering (SIGSTOP), or dies with an answer owed: clients with a deadline of 5 s see no error."""

from __future__ import annotations

import asyncio

import pytest
from qdrant_client import models

from tests.system import workload
from tests.system.digits import Digits
from tests.system.test_outage import gather
from tests.system.understudy import Understudy
from tests.system.workload import differences
from tests.upstream.process import Standin


async def busy(understudy: Understudy, digits: Digits) -> tuple[list[object], object]:
    """A crowd at work on an empty collection."""
    client = understudy.client()
    client.create_collection("mixed", models.VectorParams(size=64, distance=models.Distance.EUCLID))
    client.close()
    clients = [understudy.async_client() for _ in range(6)]
    crowd = gather([workload.direct(one) for one in clients], digits)
    return list(clients), crowd


async def settle(standin: Standin, understudy: Understudy, clients: list[object], crowd: object) -> None:
    """End, drain, compare."""
    await crowd.end()  # type: ignore[attr-defined]
    record: workload.Record = crowd.record  # type: ignore[attr-defined]
    assert record.errors == []
    assert record.stale == []
    await asyncio.to_thread(understudy.wait_drained)
    upstream = standin.client()
    assert differences(upstream, "mixed", record.expected) == []
    assert workload.out_of_order(record.acknowledged, workload.arrivals(standin.writes())) == []
    upstream.close()
    for client in clients:
        await client.close()  # type: ignore[attr-defined]


async def test_a_frozen_upstream(standin: Standin, understudy: Understudy, digit_data: Digits) -> None:
    clients, crowd = await busy(understudy, digit_data)
    await crowd.after(80)  # type: ignore[attr-defined]
    standin.stop_signal()
    try:
        await crowd.after(150)  # type: ignore[attr-defined]
        assert await asyncio.to_thread(understudy.state) == "local"
    finally:
        standin.continue_signal()
    await crowd.after(150)  # type: ignore[attr-defined]
    await settle(standin, understudy, clients, crowd)


@pytest.mark.parametrize("action", ["die", "die_after"])
async def test_the_upstream_dies_on_a_write(
    standin: Standin, understudy: Understudy, digit_data: Digits, action: str
) -> None:
    """Before and after it applied the write: nobody can tell from outside, and nobody needs to."""
    clients, crowd = await busy(understudy, digit_data)
    for _ in range(2):
        await crowd.after(60)  # type: ignore[attr-defined]
        standin.fault("Upsert", action)
        await asyncio.to_thread(standin.wait_dead)
        await crowd.after(60)  # type: ignore[attr-defined]
        await asyncio.to_thread(standin.start)
        await asyncio.to_thread(understudy.wait_drained)
    await settle(standin, understudy, clients, crowd)


async def test_the_upstream_shuts_its_port_for_a_while(
    standin: Standin, understudy: Understudy, digit_data: Digits
) -> None:
    """The process lives, connections are dropped and refused, and it comes back with everything it had."""
    clients, crowd = await busy(understudy, digit_data)
    for _ in range(3):
        await crowd.after(50)  # type: ignore[attr-defined]
        standin.control("refuse")
        await crowd.after(80)  # type: ignore[attr-defined]
        standin.control("accept")
    await settle(standin, understudy, clients, crowd)
