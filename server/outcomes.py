"""Writes that Qdrant was sent and that are in the log neither as done nor as pending yet, and who waits for them.

Promises: whoever waits, waits for the writes that were open then, not for later ones. Opening, closing and waiting take
no longer when many are open or many wait: after a hang it is hundreds of each. `OpenWrites` does not know how a write
came out; `Sent` does.
Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class OpenWrites:
    """`with writes.open():` around a write; `await writes.settled(seconds)` before a read."""

    def __init__(self) -> None:
        self._next_number = 0
        # Plain dicts take longer for their first key the more keys were removed before it.
        self._open: OrderedDict[int, None] = OrderedDict()
        # Each with the number of the first write that it does not wait for.
        self._waiting: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Around a write from before Qdrant is sent it until it is in the log, or never will be."""
        number = self._next_number
        self._next_number += 1
        self._open[number] = None
        try:
            yield
        finally:
            del self._open[number]
            self._tell()

    async def settled(self, most_seconds: float) -> bool:
        """Wait until the writes that are open now are not any more; False when that takes longer."""
        if not self._open:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = self._next_number
        try:
            async with asyncio.timeout(most_seconds):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiting.pop(waiter, None)
        return True

    def _tell(self) -> None:
        oldest = next(iter(self._open), self._next_number)
        while self._waiting:
            waiter, until = next(iter(self._waiting.items()))
            if until > oldest:
                return
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_result(None)


@dataclass(slots=True)
class Sent:
    """A write on its way into the log: whether Qdrant may have it, and its number once the log has it.

    `was_tried`: Qdrant was asked, and is not asked again. `is_refused`: the replica, whole, lacks what the write is
    about, so Qdrant did not do it either.
    """

    was_tried: bool = False
    maybe_applied: bool = False
    seq: int = 0
    is_refused: bool = False

    @property
    def leaves_doubt(self) -> bool:
        """Whether Qdrant may have a write that the replica will not hear of."""
        return self.maybe_applied and not self.seq and not self.is_refused
