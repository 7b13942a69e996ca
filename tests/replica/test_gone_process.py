"""Calls while no process of the replica can be started."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from server import config
from server.clock import SystemClock
from server.errors import ReplicaUnavailable
from server.replica.process import ReplicaProcess
from server.rpc import HEALTH_CHECK, Call
from server.telemetry import Telemetry
from tests.processes import send


async def test_a_call_without_a_deadline_ends_while_no_process_starts(tmp_path: Path) -> None:
    clock, store, aside = SystemClock(), tmp_path / "store", tmp_path / "aside"
    settings = config.Replica(call_timeout_seconds=0.3, restart_max_seconds=0.2)
    replica = ReplicaProcess(store, settings, clock=clock, telemetry=Telemetry.silent())
    await replica.start()
    try:
        assert (await replica.backend.handle(Call(HEALTH_CHECK, b""))).is_ok
        # A file in the place of its directory: every process ends at once.
        store.rename(aside)
        store.write_bytes(b"")
        assert replica.pid is not None
        send(replica.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while replica.pid is not None:  # noqa: ASYNC110 - what it waits for has no event
                await asyncio.sleep(0)
            with pytest.raises(ReplicaUnavailable, match=r"no replica process for 0\.3 s"):
                await replica.backend.handle(Call(HEALTH_CHECK, b""))
        store.unlink()
        aside.rename(store)
        assert (await replica.backend.handle(Call(HEALTH_CHECK, b"", deadline=clock.monotonic() + 60))).is_ok
    finally:
        await replica.stop()
