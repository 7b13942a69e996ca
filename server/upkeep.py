"""The slow loops beside the calls: numbers for the metrics, old segments of the log, bit rot in closed ones.

Promises: gauges are at most a second old; a segment goes only when both readers of the log have passed it and its
retention is over (the log checks that again). Damage is told once, and changes nothing. An error is logged, keeps
nothing else from being done, and the loop goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator

from server.clock import Clock
from server.errors import UnderstudyError
from server.logs import Message
from server.mirror import Mirror
from server.telemetry import Telemetry
from server.wal.log import Log
from server.wal.patrol import Patrol

_GAUGES_EVERY_SECONDS = 1.0
_RETIRE_EVERY_SECONDS = 60.0
# While space is short: a small part of the grace time (`wal.grace_seconds`), for the log fills further meanwhile.
_RETIRE_EVERY_SECONDS_PRESSED = 5.0
_PATROL_EVERY_SECONDS = 0.25
_DAY_SECONDS = 86_400.0


class Upkeep:
    """Runs until cancelled."""

    def __init__(
        self,
        log: Log,
        mirror: Mirror,
        *,
        retention_days: float,
        clock: Clock,
        telemetry: Telemetry,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._log = log
        self._mirror = mirror
        self._retention_seconds = retention_days * _DAY_SECONDS
        self._clock = clock
        self._telemetry = telemetry
        self._sleep = sleep

    async def run(self) -> None:
        """Gauges every second, retention every minute, or every few seconds while the log is short of space."""
        retired_at = -math.inf
        while True:
            with self._logged():
                self.refresh()
            pause = _RETIRE_EVERY_SECONDS_PRESSED if self._log.is_pressed else _RETIRE_EVERY_SECONDS
            if self._clock.monotonic() >= retired_at + pause:
                retired_at = self._clock.monotonic()
                with self._logged():
                    await self._log.retire(self._mirror.applied_seq, self._clock.wall_ns(), self._retention_seconds)
            await self._sleep(_GAUGES_EVERY_SECONDS)

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except (UnderstudyError, OSError) as error:
            self._telemetry.log.error("upkeep failed", error=str(error))

    def refresh(self) -> None:
        """Bring the gauges up to date."""
        log, metrics = self._log, self._telemetry.metrics
        metrics.wal_entries("pending", log.pending_count)
        metrics.wal_entries("synced", max(0, log.last_seq - log.first_seq + 1 - log.pending_count))
        metrics.wal(log.total_bytes, oldest_pending_seconds(log, self._clock), log.latched is not None)
        metrics.mirror_lag(self._mirror.lag_entries)
        metrics.quarantine(log.quarantined_count)


async def look_again(patrol: Patrol, bytes_per_second: int, telemetry: Telemetry) -> None:
    """One step of the patrol: what it found is logged, and counted until it is gone."""
    try:
        problem = await patrol.step(max(1, int(bytes_per_second * _PATROL_EVERY_SECONDS)))
    except UnderstudyError as error:
        telemetry.log.error("the patrol of the log failed", error=str(error))
        return
    telemetry.metrics.wal_damage(len(patrol.problems))
    if problem is not None:
        telemetry.log.error(
            Message.WAL_DAMAGED,
            file=problem.file,
            offset=problem.offset,
            flaw=problem.text,
            next="copy the directory away now; then see `The log is damaged` in docs/operations.md",
        )


async def keep_looking(patrol: Patrol, bytes_per_second: int, telemetry: Telemetry) -> None:
    """Read closed segments again until cancelled."""
    while True:
        await look_again(patrol, bytes_per_second, telemetry)
        await asyncio.sleep(_PATROL_EVERY_SECONDS)


def oldest_pending_seconds(log: Log, clock: Clock) -> float:
    """Age of the oldest pending entry, 0 when there is none."""
    oldest = log.oldest_pending_ns
    return 0.0 if oldest is None else max(0.0, (clock.wall_ns() - oldest) / 1e9)
