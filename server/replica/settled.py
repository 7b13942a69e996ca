"""PURE. Up to which log entry Qdrant certainly shows what it has acknowledged.

Qdrant acknowledges a write with `wait=false` before it applies it. A page read at once may lack it, and must not count
as newer than it. So a page is dated back to the last entry that was in the log `settle_seconds` ago.

Promises: `since` never names an entry that was first seen less than `settle_seconds` ago. Keeps at most
`_HISTORY` observations; forgetting only dates pages further back, which is safe.
"""

from __future__ import annotations

from collections import deque

_HISTORY = 256
_LEAST_WAIT_SECONDS = 0.001


class Settled:
    """Observations of the end of the log. Times are seconds on one monotonic clock."""

    def __init__(self, settle_seconds: float) -> None:
        self._settle_seconds = settle_seconds
        self._seen: deque[tuple[float, int]] = deque(maxlen=_HISTORY)
        self._since: int | None = None

    def observe(self, now: float, last_seq: int, age_seconds: float = 0.0) -> None:
        """The log ends at `last_seq`; its last entry is known to be at least `age_seconds` old."""
        if not self._seen or self._seen[-1][1] != last_seq:
            self._seen.append((now - age_seconds, last_seq))

    def since(self, now: float) -> int | None:
        """The last entry that has settled; None when that is not known yet."""
        while self._seen and self._seen[0][0] <= now - self._settle_seconds:
            at, self._since = self._seen.popleft()
            if not self._seen:
                # Still the end of the log: remember that it was seen.
                self._seen.append((at, self._since))
                break
        return self._since

    def wait_seconds(self, now: float) -> float:
        """How long until `since` knows something."""
        if self.since(now) is not None or not self._seen:
            return 0.0
        # Rounding may make this nothing although the moment has not come.
        return max(_LEAST_WAIT_SECONDS, self._seen[0][0] + self._settle_seconds - now)
