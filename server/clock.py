"""Time as an argument.

Promises: the only module that reads the clocks of the machine. Does not promise that wall time never steps back;
nothing but display and retention uses it.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds; only differences mean anything."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def wall_ns(self) -> int:
        """See Clock."""
        return time.time_ns()
