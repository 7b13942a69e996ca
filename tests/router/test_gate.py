"""The gate: quiet while shut, open afterwards."""

from __future__ import annotations

import asyncio

import pytest

from server.gate import WriteGate


async def test_shut_waits_for_writes_under_way_and_keeps_new_ones_out() -> None:
    gate = WriteGate()
    finish = asyncio.Event()
    seen: list[str] = []

    async def write(name: str) -> None:
        async with gate:
            seen.append(f"{name} began")
            await finish.wait()
            seen.append(f"{name} ended")

    first = asyncio.create_task(write("first"))
    await asyncio.sleep(0)

    async def switch() -> None:
        async with gate.shut():
            seen.append("switched")

    switching = asyncio.create_task(switch())
    await asyncio.sleep(0)
    second = asyncio.create_task(write("second"))
    await asyncio.sleep(0)
    finish.set()
    await asyncio.wait_for(asyncio.gather(first, switching, second), timeout=10)
    assert seen == ["first began", "first ended", "switched", "second began", "second ended"]


async def test_the_gate_opens_again_when_the_switch_fails_or_takes_too_long() -> None:
    gate = WriteGate()
    with pytest.raises(RuntimeError):
        async with gate.shut():
            raise RuntimeError
    held = gate
    await held.__aenter__()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), gate.shut():
            raise AssertionError("a write is under way")
    await held.__aexit__(None, None, None)
    await asyncio.wait_for(gate.__aenter__(), timeout=10)
