"""How much may wait for the disk.

Promises: at most `queue_entries` and `queue_bytes` are on their way to the writer, but always one; who waits is let in
as soon as there may be room. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio

from server.wal.limits import WalLimits


class Turnstile:
    """Counts what waits, and holds back who comes when it is too much."""

    def __init__(self, limits: WalLimits) -> None:
        self._limits = limits
        self.entries = 0
        self.bytes = 0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        return self.entries == 0

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be queued."""
        limits = self._limits
        return self.entries == 0 or (self.entries < limits.queue_entries and self.bytes + size <= limits.queue_bytes)

    async def turn(self, turn: asyncio.Future[None]) -> None:
        """Wait until there may be room."""
        self._waiting.append(turn)
        await turn

    def entered(self, size: int) -> None:
        """One more on its way."""
        self.entries += 1
        self.bytes += size

    def left(self, size: int) -> None:
        """One less."""
        self.entries -= 1
        self.bytes -= size

    def let_in(self) -> None:
        """Wake everybody who waits: they look again."""
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
