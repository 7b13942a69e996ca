"""Back-pressure on local writes while the log drains, so that a drain ends although clients keep writing.

Promises: during a drain, at most one new write is let in for every two that Qdrant has taken, after a first few; so
what is pending shrinks. A write is held for at most `hold_seconds`, or less if its caller has less time: when the
replay itself stands still, writes go on into the log. Outside a drain it costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from server.clock import Clock

_FREE_WRITES = 32
_REPLAYS_PER_WRITE = 2
_LOOK_EVERY_SECONDS = 0.005


class DrainPace:
    """Asked by each local write before it is logged. Belongs to one event loop."""

    def __init__(
        self,
        *,
        is_draining: Callable[[], bool],
        pending_count: Callable[[], int],
        hold_seconds: float,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._is_draining = is_draining
        self._pending_count = pending_count
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._sleep = sleep
        self._was_draining = False
        self._pending_at_start = 0
        self._admitted = 0

    async def admit(self, most_seconds: float | None = None) -> None:
        """Return when one more write may join the tail of the log, or after `most_seconds`."""
        if not self._is_draining():
            self._was_draining = False
            return
        if not self._was_draining:
            self._was_draining = True
            self._pending_at_start = self._pending_count()
            self._admitted = 0
        hold_seconds = self._hold_seconds if most_seconds is None else min(self._hold_seconds, most_seconds)
        give_up_at = self._clock.monotonic() + hold_seconds
        while self._is_draining() and not self._is_due() and self._clock.monotonic() < give_up_at:
            await self._sleep(_LOOK_EVERY_SECONDS)
        self._admitted += 1

    def _is_due(self) -> bool:
        replayed = self._pending_at_start + self._admitted - self._pending_count()
        return self._admitted < _FREE_WRITES + replayed // _REPLAYS_PER_WRITE
