"""The end of a drain: from DRAINING to REMOTE.

Promises: the switch happens only while no local write is under way and nothing is pending, so that no write can end up
behind in the log; writes pause for at most `barrier_seconds`. When that is not enough the drain goes on and it is tried
again. Does not replay anything itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from server.gate import WriteGate
from server.mode import Mode
from server.telemetry import Telemetry


class CutOver:
    """Called by the replayer whenever it finds nothing left to replay."""

    def __init__(
        self,
        mode: Mode,
        gate: WriteGate,
        *,
        drain_now: Callable[[], Awaitable[bool]],
        drain_again: Callable[[str], None],
        pending_count: Callable[[], int],
        barrier_seconds: float,
        telemetry: Telemetry,
    ) -> None:
        self._mode = mode
        self._gate = gate
        self._drain_now = drain_now
        self._drain_again = drain_again
        self._pending_count = pending_count
        self._barrier_seconds = barrier_seconds
        self._telemetry = telemetry

    async def __call__(self) -> None:
        """Try to switch; asks for another drain when writes kept coming."""
        if not self._mode.is_draining:
            return
        try:
            async with asyncio.timeout(self._barrier_seconds), self._gate.shut():
                if await self._drain_now() and not self._pending_count():
                    self._mode.drained()
                    return
        except TimeoutError:
            self._telemetry.log.info("drain goes on", reason="writes did not pause in time")
        self._drain_again("writes came in at the end of the drain")
