"""PURE. The circuit breaker in front of replay.

    CLOSED ── `failures` transient failures in a row ──▶ OPEN ── `open_seconds` ──▶ HALF_OPEN
      ▲                                                   ▲                            │
      └──────────── any answer to the probe ──────────────┼────────────────────────────┤
                                                          └── transient failure ───────┘

Promises: it opens at exactly the nth transient failure in a row. Half open, exactly one caller is let through, whatever
the number of callers, threads or tasks. What that caller reports decides: an answer closes, a transient failure opens
for another `open_seconds`. A permanent refusal is an answer: it proves that Qdrant is alive, so it ends a row of
failures and closes a half-open breaker just as success does. A probe that is abandoned frees its place at once; one
that never reports frees it after `lease_seconds`, so no caller can make the breaker stick. A report that comes with a
permit from before the last change of phase, or of a probe that was replaced, says nothing about the present and is
ignored.

Time is passed in, in seconds of any monotonic clock. Does not promise any order among callers that come back after a
refusal.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """What the breaker does with callers."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to try once. Hand it back with the report."""

    epoch: int


class Breaker:
    """Counts transient failures in a row and refuses callers for a while when there were too many. Thread-safe.

    `lease_seconds` must exceed the longest attempt: a half-open probe that has not reported by then is replaced.
    """

    def __init__(self, failures: int = 5, open_seconds: float = 300.0, *, lease_seconds: float = 120.0) -> None:
        if failures < 1 or open_seconds < 0 or lease_seconds <= 0:
            raise ValueError("failures ≥ 1, open_seconds ≥ 0 and lease_seconds > 0 are needed")
        self._limit = failures
        self._open_seconds = open_seconds
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._phase = Phase.CLOSED
        self._failures = 0
        self._opened_at = 0.0
        self._leased_until: float | None = None
        self._epoch = 0

    @property
    def phase(self) -> Phase:
        """The phase as of the last call: OPEN turns HALF_OPEN when a caller asks after `open_seconds`."""
        return self._phase

    @property
    def failures_in_row(self) -> int:
        """Transient failures since the last answer."""
        return self._failures

    def wait_seconds(self, now: float) -> float:
        """How long until `allow` can say yes; 0 when it would now."""
        with self._lock:
            if self._phase is Phase.OPEN:
                return max(0.0, self._opened_at + self._open_seconds - now)
            if self._phase is Phase.HALF_OPEN and self._leased_until is not None:
                return max(0.0, self._leased_until - now)
            return 0.0

    def allow(self, now: float) -> Permit | None:
        """A permit to try once, or None."""
        with self._lock:
            if self._phase is Phase.OPEN and now >= self._opened_at + self._open_seconds:
                self._enter(Phase.HALF_OPEN)
            if self._phase is Phase.CLOSED:
                return Permit(self._epoch)
            if self._phase is Phase.OPEN or (self._leased_until is not None and now < self._leased_until):
                return None
            # A new epoch for each probe: what an earlier one may still report is void.
            self._epoch += 1
            self._leased_until = now + self._lease_seconds
            return Permit(self._epoch)

    def success(self, permit: Permit) -> None:
        """Qdrant did what it was asked."""
        with self._lock:
            if permit.epoch != self._epoch or self._phase is Phase.OPEN:
                return
            if self._phase is Phase.HALF_OPEN:
                self._enter(Phase.CLOSED)
            self._failures = 0

    def permanent(self, permit: Permit) -> None:
        """Qdrant refused for good: it is alive, which is all that the breaker asks."""
        self.success(permit)

    def transient_failure(self, permit: Permit, now: float) -> None:
        """Qdrant did not answer, or could not do it now."""
        with self._lock:
            if permit.epoch != self._epoch or self._phase is Phase.OPEN:
                return
            self._failures += 1
            if self._phase is Phase.HALF_OPEN or self._failures >= self._limit:
                self._enter(Phase.OPEN)
                self._opened_at = now

    def abandon(self, permit: Permit) -> None:
        """The attempt was given up and says nothing: a half-open probe's place is free again."""
        with self._lock:
            if permit.epoch == self._epoch and self._phase is Phase.HALF_OPEN:
                self._epoch += 1
                self._leased_until = None

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._epoch += 1
        self._leased_until = None
