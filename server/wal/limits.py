"""Every limit of the log in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from server import config

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class WalLimits:
    """Limits, with their units. `total_bytes` counts segments; cursor records are always taken."""

    segment_bytes: int = 64 * MIB
    total_bytes: int = 4096 * MIB
    entry_bytes: int = 10_000_000
    entry_points: int = 10_000
    queue_entries: int = 4096
    queue_bytes: int = 64 * MIB
    cache_bytes: int = 16 * MIB
    # Zeros are written so far ahead of small batches; a batch of a sixteenth of it or more pays for its own size.
    room_bytes: int = MIB
    # The head is renewed after this much has been appended since the last one, or once this time has passed.
    head_bytes: int = 8 * MIB
    head_seconds: float = 1.0
    # Above this share of total_bytes segments that both readers passed go before their retention is over ...
    pressure_share: float = 0.8
    # ... but never earlier than this: Qdrant acknowledges before its own fsync.
    grace_seconds: float = 60.0
    # Below this much free space on the disk no new PENDING entries; the ballast is given up when the disk is full.
    free_bytes_min: int = 64 * MIB
    ballast_bytes: int = 16 * MIB
    # After a failed write or sync: the first try to take writes again, and the longest pause between tries.
    reopen_seconds: float = 1.0
    reopen_seconds_max: float = 60.0

    @classmethod
    def from_settings(cls, settings: config.Wal) -> WalLimits:
        """The limits of section `wal` of the configuration."""
        return cls(
            segment_bytes=settings.segment_bytes,
            total_bytes=settings.total_bytes,
            entry_bytes=settings.entry_bytes,
            entry_points=settings.entry_points,
            queue_entries=settings.queue_entries,
            queue_bytes=settings.queue_bytes,
            cache_bytes=settings.cache_bytes,
            head_bytes=settings.head_bytes,
            head_seconds=settings.head_seconds,
            pressure_share=settings.pressure_share,
            grace_seconds=settings.grace_seconds,
            free_bytes_min=settings.free_bytes_min,
            ballast_bytes=settings.ballast_bytes,
            reopen_seconds=settings.reopen_seconds,
            reopen_seconds_max=settings.reopen_seconds_max,
        )
