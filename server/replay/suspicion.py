"""PURE. Qdrant fails inside at an entry: is the entry to blame, or Qdrant?

Promises: an entry is blamed when Qdrant failed inside at it `tries` times in a row. After that the fault may be
Qdrant's own, so the next one is blamed as soon only when something was done in between; else it takes `tries` more
failures, each a rest of `rest_seconds` after the one before. So a Qdrant that fails at everything for a while costs one
entry, and entries at which it always fails hold the others up for a limited time each. Does not promise to tell a
Qdrant that fails at everything for longer than that from a collection that is broken.
"""

from __future__ import annotations


class Suspicion:
    """What is known of the entry that is first in line. Entry 0 stands for what is sent before any of them."""

    def __init__(self, tries: int, rest_seconds: float) -> None:
        self._tries = tries
        self._rest_seconds = rest_seconds
        self._may_blame = True
        self._seq = 0
        self._failures = 0
        self._rested_failures = 0
        self._counted_at = 0.0

    def would_blame(self, seq: int, now: float) -> bool:
        """Whether the entry is to blame if Qdrant fails inside at it this time, too."""
        if seq != self._seq:
            return self._may_blame and self._tries <= 1
        if self._may_blame:
            return self._failures + 1 >= self._tries
        return self._rested_failures + self._is_rested(now) >= self._tries

    def failed(self, seq: int, now: float, *, inside: bool) -> None:
        """The entry must be sent again. `inside` = the server failed, else something stood between."""
        if seq != self._seq or not inside or not self._failures:
            self._seq, self._failures, self._rested_failures, self._counted_at = seq, 0, 0, now
        elif self._is_rested(now):
            self._rested_failures += 1
            self._counted_at = now
        self._failures += inside

    def blamed(self) -> None:
        """An entry was taken for the cause of it."""
        self._may_blame = False

    def done(self) -> None:
        """Qdrant did something."""
        self._may_blame = True

    def passed(self) -> None:
        """Another entry is first in line."""
        self._failures = self._rested_failures = 0

    def _is_rested(self, now: float) -> bool:
        return self._failures > 0 and now - self._counted_at >= self._rest_seconds
