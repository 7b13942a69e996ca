"""Upkeep of a log that clients keep writing to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

import pytest

from server.mirror import Mirror
from server.telemetry import Telemetry
from server.upkeep import Upkeep
from server.wal.limits import WalLimits
from server.wal.log import Log
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import SYNCED, entry, failing, opened

GRACE_SECONDS = 60
ENTRY_BYTES = 1000


@dataclass
class AtTheEnd:
    """A replica that has applied everything."""

    log: Log
    lag_entries: int = 0

    @property
    def applied_seq(self) -> int:
        return self.log.last_seq


def upkeep(log: Log, clock: ManualClock, *, retention_days: float = 0) -> Upkeep:
    mirror = cast(Mirror, AtTheEnd(log))
    return Upkeep(
        log, mirror, retention_days=retention_days, clock=clock, telemetry=Telemetry.silent(), sleep=clock.sleep
    )


@pytest.mark.parametrize("share", [0.35, 0.85])
async def test_a_log_that_fills_within_minutes_takes_every_write(share: float) -> None:
    """Clients write this share of the whole log in each grace time; all of it could go when that is over."""
    total_bytes = int(GRACE_SECONDS * ENTRY_BYTES / share)
    limits = WalLimits(segment_bytes=3 * ENTRY_BYTES, total_bytes=total_bytes, grace_seconds=GRACE_SECONDS)
    disk, clock = CrashDisk(), ManualClock()
    log = opened(disk=disk, clock=clock, limits=limits)
    running = asyncio.create_task(upkeep(log, clock, retention_days=7).run())
    for _ in range(5 * GRACE_SECONDS):
        await log.append(entry(bytes(ENTRY_BYTES - 200), SYNCED))
        await clock.somebody_sleeps()
        clock.advance(1)
    running.cancel()
    # Segments went, and none before its time.
    assert log.last_seq - log.first_seq >= GRACE_SECONDS
    assert log.first_seq > GRACE_SECONDS
    await log.close()


async def test_segments_go_although_the_quarantine_cannot_be_read() -> None:
    disk, clock = CrashDisk(), ManualClock()
    log = opened(disk=disk, clock=clock, limits=WalLimits(segment_bytes=900))
    for number in range(12):
        await log.append(entry(b"%0200d" % number))
    await log.mark_replayed(log.last_seq)
    assert log.segment_count > 3
    disk.on_call = failing("names", name="quarantine")
    running = asyncio.create_task(upkeep(log, clock).run())
    await clock.somebody_sleeps()
    running.cancel()
    assert log.segment_count == 1
    await log.close()
