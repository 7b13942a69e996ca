"""The short pause of local writes at the end of a drain.

Promises: while the gate is shut no local write is under way and none begins; it opens again whatever happens. Writers
that come meanwhile wait; they are let in when it opens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType


class WriteGate:
    """`async with gate:` around each local write; `gate.shut()` around the switch. Belongs to one event loop."""

    def __init__(self) -> None:
        self._active = 0
        self._open = asyncio.Event()
        self._open.set()
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def __aenter__(self) -> None:
        """Wait until the gate is open, then count as a write under way."""
        while not self._open.is_set():
            await self._open.wait()
        self._active += 1
        self._quiet.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The write is over."""
        self._active -= 1
        if self._active == 0:
            self._quiet.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Keep new writes out and wait for those under way; bound it with a timeout of your own."""
        self._open.clear()
        try:
            await self._quiet.wait()
            yield
        finally:
            self._open.set()
