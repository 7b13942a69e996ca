"""What the time that a client gives a call is spent on.

Promises: nobody waits for the replica past the deadline of the call; Qdrant gets so much of the time that the replica
can still answer, and all of it where the replica has no answer. A call without a deadline is not hurried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from server.clock import Clock
from server.errors import ReplicaUnavailable
from server.rpc import METHODS, Call, Offline

T = TypeVar("T")

_RESERVE_SHARE = 0.2
_RESERVE_LEAST_SECONDS = 0.2


class Deadlines:
    """Of calls whose deadlines are on this clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def reserve_seconds(self, call: Call) -> float:
        """Time kept back from Qdrant so that the replica can still answer within the client's deadline."""
        row = METHODS.get(call.method)
        if call.deadline is None or row is None or row.offline is Offline.REFUSED:
            return 0.0
        remaining = max(0.0, call.deadline - self._clock.monotonic())
        return min(max(_RESERVE_SHARE * remaining, _RESERVE_LEAST_SECONDS), remaining / 2)

    async def within(self, call: Call, work: Awaitable[T]) -> T:
        """The result of `work`; raises ReplicaUnavailable past the client's deadline."""
        if call.deadline is None:
            return await work
        try:
            async with asyncio.timeout(max(0.0, call.deadline - self._clock.monotonic())):
                return await work
        except TimeoutError as error:
            raise ReplicaUnavailable("the replica did not answer within the client's deadline") from error
