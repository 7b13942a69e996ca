"""What the time that a client gives a call is spent on.

Promises: nobody waits for the replica past the deadline of the call; Qdrant gets so much of the time that the replica
can still answer, and all of it where the replica has no answer. A read without a deadline is not hurried, but does not
wait for ever for a replica that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

from server.clock import Clock
from server.errors import ReplicaUnavailable
from server.rpc import METHODS, Call, Offline

T = TypeVar("T")

# A write that Qdrant may have gets this long for its way into the log: else its whole collection is in doubt.
_LOG_LEAST_SECONDS = 5.0
_RESERVE_SHARE = 0.2
_RESERVE_LEAST_SECONDS = 0.2


class Deadlines:
    """Of calls whose deadlines are on this clock. `gone_seconds`: the longest wait for a replica that is not there."""

    def __init__(self, clock: Clock, gone_seconds: float) -> None:
        self._clock = clock
        self._gone_seconds = gone_seconds

    def reserve_seconds(self, call: Call) -> float:
        """Time kept back from Qdrant so that the replica can still answer within the client's deadline."""
        row = METHODS.get(call.method)
        if call.deadline is None or row is None or row.offline is Offline.REFUSED:
            return 0.0
        remaining = max(0.0, call.deadline - self._clock.monotonic())
        return min(max(_RESERVE_SHARE * remaining, _RESERVE_LEAST_SECONDS), remaining / 2)

    def with_time_to_log(self, call: Call) -> Call:
        """The same call; what Qdrant may have must get into the log although nobody may wait for it any more."""
        if call.deadline is None:
            return call
        return replace(call, deadline=max(call.deadline, self._clock.monotonic() + _LOG_LEAST_SECONDS))

    def half_the_time_left(self, call: Call) -> float | None:
        """In seconds; None without a deadline."""
        return None if call.deadline is None else max(0.0, call.deadline - self._clock.monotonic()) / 2

    async def within(self, call: Call, work: Awaitable[T]) -> T:
        """The result of `work`; raises ReplicaUnavailable past the client's deadline."""
        if call.deadline is None:
            return await work
        try:
            async with asyncio.timeout(max(0.0, call.deadline - self._clock.monotonic())):
                return await work
        except TimeoutError as error:
            raise ReplicaUnavailable("the replica did not answer within the client's deadline") from error

    async def caught_up(self, call: Call, catching_up: Awaitable[None]) -> None:
        """Until the replica has what the call must see; raises ReplicaUnavailable when that takes too long."""
        try:
            async with asyncio.timeout(self._gone_seconds if call.deadline is None else None):
                await catching_up
        except TimeoutError as error:
            raise ReplicaUnavailable(
                f"the replica is away, or behind the log, for more than {self._gone_seconds:g} s"
            ) from error
