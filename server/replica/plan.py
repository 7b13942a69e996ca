"""What a read did, for whoever asks why it is slow or whether it was exact.

Promises: steps in the order in which they ended, each with the milliseconds since the read began; as one line of JSON
that fits into trailing metadata. Recording costs a read nothing unless it was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeAlias

Fact: TypeAlias = "str | int | float | bool"

# Metadata of a whole call is limited to 8 kB by the defaults of gRPC.
_MOST_STEPS = 60
_MOST_BYTES = 5000


class Plan:
    """A record of one read. `now` is a monotonic clock in seconds, None for a plan that records nothing."""

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        self._now = now
        self._started = now() if now is not None else 0.0
        self._steps: list[dict[str, Fact]] = []
        self._left_out = 0

    @property
    def is_wanted(self) -> bool:
        """Whether anybody will look at it: ask before counting something for a step."""
        return self._now is not None

    def step(self, name: str, **facts: Fact) -> None:
        """Note a step that has ended; beyond the limit steps are only counted."""
        if self._now is None:
            return
        if len(self._steps) >= _MOST_STEPS:
            self._left_out += 1
            return
        at = round(1000 * (self._now() - self._started), 3)
        self._steps.append({"step": name, **facts, "at_ms": at})

    def as_json(self) -> str:
        """ASCII, at most 5000 bytes: the last steps are left out when it would be more."""
        steps = list(self._steps)
        while True:
            left_out = self._left_out + len(self._steps) - len(steps)
            text = json.dumps({"steps": steps, "left_out": left_out}, separators=(",", ":"))
            if len(text) <= _MOST_BYTES or not steps:
                return text
            steps.pop()


NO_PLAN = Plan()
