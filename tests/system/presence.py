"""When the proxy was not there, for clients that call it all the time; and how often they call.

Promises: `explain` excuses a failed call only when the proxy was killed, stopped or not yet started while the call was
under way, or when the client's own channel says that it could not connect, shortly after that. A deadline is excused
only when nearly all the time that the client gave was one without a proxy. Everything else that reaches a client is an
error of the proxy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

# A channel that could not connect says so to every call until it tries again: see QUICK_CHANNEL.
_NOTICED_SECONDS = 2.0
# What a client must at least have left once there is a proxy again: the channel has to connect first.
_ENOUGH_SECONDS = 1.0
QUICK_CHANNEL = {"grpc.initial_reconnect_backoff_ms": 50, "grpc.max_reconnect_backoff_ms": 200}


@dataclass(slots=True)
class Absences:
    """From when to when there was no proxy at `address`. Times are monotonic seconds."""

    address: str
    spans: list[list[float]] = field(default_factory=list)
    # How many calls met a proxy that was about to stop.
    cancelled: int = 0
    _is_stopping: bool = False

    @contextmanager
    def absent(self, *, is_stopped: bool = False) -> Iterator[None]:
        """Around the end of a proxy and the start of the next one. `is_stopped`: by SIGTERM, not by SIGKILL."""
        span = [time.monotonic(), float("inf")]
        self.spans.append(span)
        self._is_stopping = is_stopped
        yield
        span[1] = time.monotonic()
        self._is_stopping = False

    def explain(self, error: Exception, started: float) -> bool:
        """Whether a call that began at `started` and failed just now met nobody, or somebody who died."""
        if not isinstance(error, grpc.RpcError):
            return False
        if self._is_stopping and error.code() is grpc.StatusCode.CANCELLED:
            # gRPC says so of calls that arrived and that no handler has begun when its server stops (grpc/grpc#41785).
            self.cancelled += 1
            return time.monotonic() - self.spans[-1][0] < _NOTICED_SECONDS
        ended = time.monotonic()
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            absent = sum(max(0.0, min(over, ended) - max(began, started)) for began, over in self.spans)
            return absent > 0.0 and ended - started - absent < _ENOUGH_SECONDS
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return False
        if any(began <= ended and started <= over for began, over in self.spans):
            return True
        port = self.address.rpartition(":")[2]
        could_not_connect = "failed to connect" in (error.details() or "") and f":{port}" in (error.details() or "")
        return could_not_connect and any(over <= started <= over + _NOTICED_SECONDS for _, over in self.spans)


@dataclass(slots=True)
class Pace:
    """Turns at a steady rate, shared by all clients. Who is late goes at once; what was missed is not made up for."""

    calls_per_second: float
    _next: float = 0.0

    async def turn(self) -> None:
        """Wait for a turn."""
        now = time.monotonic()
        mine = self._next = max(self._next + 1.0 / self.calls_per_second, now)
        if mine > now:
            await asyncio.sleep(mine - now)

    def spend(self) -> None:
        """A call that takes a turn away from the others, and does not wait for it."""
        self._next += 1.0 / self.calls_per_second
