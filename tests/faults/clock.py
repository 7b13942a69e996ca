"""A clock that stands still until it is moved.

Promises: `advance` wakes every sleeper whose time has come, in order of time, and nothing else moves it. Any thread may
read it; sleepers belong to one event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools


class ManualClock:
    """A `server.clock.Clock` and the sleep that goes with it."""

    def __init__(self, start: float = 1000.0, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now = start
        self._wall_ns = wall_ns
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    def monotonic(self) -> float:
        """Seconds."""
        return self._now

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        """Move time forward and wake who is due."""
        assert seconds >= 0
        self._now += seconds
        self._wall_ns += round(seconds * 1e9)
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, sleeper = heapq.heappop(self._sleepers)
            if not sleeper.done():
                sleeper.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Until somebody has advanced the clock by that much."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), sleeper))
        self._changed.set()
        await sleeper

    @property
    def sleeping(self) -> list[float]:
        """How much longer each sleeper sleeps, shortest first."""
        return sorted(at - self._now for at, _, sleeper in self._sleepers if not sleeper.done())

    async def somebody_sleeps(self) -> float:
        """Wait until somebody sleeps; the shortest time left."""
        while not self.sleeping:
            self._changed.clear()
            await self._changed.wait()
        return self.sleeping[0]
