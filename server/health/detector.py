"""PURE. From single observations to a verdict: is Qdrant up?

Promises: down after `fall` failed probes in a row, or at once on a connection that was refused or reset; up again
after `rise` good probes in a row, and not before `dwell_seconds` have passed since a failure was last seen, so one that
comes and goes faster than that stays down. The first observation decides at once, for there is no verdict yet to hold
on to. A probe that failed while this process itself ran late says nothing. Time is passed in, in seconds of any
monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether Qdrant is up, since when (monotonic seconds), and what showed it."""

    up: bool
    since: float
    reason: str


class Detector:
    """Holds the present verdict (None before the first observation) and the two counts that may change it."""

    def __init__(self, *, fall: int = 3, rise: int = 2, dwell_seconds: float = 1.0, lag_tolerance_seconds: float = 0.5):
        if fall < 1 or rise < 1 or dwell_seconds < 0 or lag_tolerance_seconds < 0:
            raise ValueError("fall ≥ 1, rise ≥ 1, dwell_seconds ≥ 0 and lag_tolerance_seconds ≥ 0 are needed")
        self.verdict: Verdict | None = None
        self._fall = fall
        self._rise = rise
        self._dwell_seconds = dwell_seconds
        self._lag_tolerance_seconds = lag_tolerance_seconds
        self._good = 0
        self._failed = 0
        self._last_failure = -math.inf

    @property
    def is_rising(self) -> bool:
        """Whether Qdrant counts as down and the last observation that counted was a good probe."""
        return self._good > 0 and self.verdict is not None and not self.verdict.up

    def is_discounted(self, lag_seconds: float) -> bool:
        """Whether we ran too late for a failed probe to count."""
        return lag_seconds > self._lag_tolerance_seconds

    def probe_result(self, ok: bool, now: float, *, lag_seconds: float, detail: str) -> Verdict | None:
        """Take in one probe; `lag_seconds` is how late we ran meanwhile. Returns the verdict if it changed."""
        if ok:
            return self._good_probe(now, detail)
        if self.is_discounted(lag_seconds):
            return None
        self._good = 0
        self._failed += 1
        self._last_failure = now
        if self.verdict is not None and (not self.verdict.up or self._failed < self._fall):
            return None
        return self._decide(False, now, detail)

    def transport_failed(self, now: float, reason: str) -> Verdict | None:
        """A connection was refused or reset. Returns the verdict if it changed."""
        self._good = 0
        self._last_failure = now
        if self.verdict is not None and not self.verdict.up:
            return None
        return self._decide(False, now, reason)

    def _good_probe(self, now: float, detail: str) -> Verdict | None:
        self._failed = 0
        self._good += 1
        if self.verdict is not None:
            if self.verdict.up or self._good < self._rise:
                return None
            if now - self._last_failure < self._dwell_seconds:
                return None
        return self._decide(True, now, detail)

    def _decide(self, up: bool, now: float, reason: str) -> Verdict:
        self._good = self._failed = 0
        self.verdict = Verdict(up, now, reason)
        return self.verdict
