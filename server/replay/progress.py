"""What a replay is doing, for status pages and log lines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ReplayState(Enum):
    """Why the replay moves or stands."""

    IDLE = "idle"
    RUNNING = "replaying"
    WAITING_UPSTREAM = "waiting for Qdrant"
    BACKING_OFF = "pausing before the next try"
    BREAKER_OPEN = "resting, the circuit breaker is open"
    WAITING_CREDENTIAL = "waiting for a credential"
    HALTED = "halted, the quarantine is not empty"
    LOG_FAILED = "halted, the log cannot be read or written"


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot. Times are nanoseconds since the epoch, None = never; `attempt` counts from 1 within one sync.

    `entries_per_second` is the mean since Qdrant began to take entries this time, 0 while none goes to it.
    """

    state: ReplayState
    attempt: int
    remaining: int
    replayed: int
    quarantined: int
    started: int | None
    last_sync: int | None
    last_error: str
    entries_per_second: float = 0.0

    @property
    def left_seconds(self) -> float | None:
        """How long what remains takes at this pace; None = cannot be told."""
        return self.remaining / self.entries_per_second if self.remaining and self.entries_per_second else None
