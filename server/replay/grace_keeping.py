"""The grace from one process to the next: what a look is at, whatever became of the replica's store.

Promises: what `grace` lets go of is noted beside the log before the replica forgets it; a replica that begins anew is
looked at no further back than the one before it, and not at all where nobody noted how far that is. Belongs to one
event loop; the disk is met on other threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from generated.understudy.replica.v1 import replica_pb2 as control
from server.clock import Clock
from server.errors import WalError
from server.replay.grace import GraceWindow
from server.replay.grace_notes import GraceNotes
from server.telemetry import Telemetry
from server.wal.files import Disk
from server.wal.log import Log


class Follower(Protocol):
    """Whoever carries the log to the replica."""

    async def forget(self) -> None:
        """Let the replica forget what no look will be at."""
        ...

    async def give_up(self, entries: Sequence[control.RefusedEntry], timeout_seconds: float) -> None:
        """Tell the replica that Qdrant will never have these."""
        ...


class GraceKeeping:
    """The window, and its notes on the disk. Made by `open`."""

    def __init__(self, window: GraceWindow, notes: GraceNotes, log: Log, telemetry: Telemetry) -> None:
        self.window = window
        self._notes = notes
        self._log = log
        self._telemetry = telemetry
        self._problem = ""

    @classmethod
    async def open(cls, log: Log, disk: Disk, grace_seconds: float, clock: Clock, telemetry: Telemetry) -> GraceKeeping:
        """Read the notes. Raises WalError when one that is out of date cannot be removed."""
        notes = await asyncio.to_thread(GraceNotes, disk, log.directory, log.log_id, log.replayed_seq)
        window = GraceWindow(grace_seconds, lambda: log.replayed_seq, clock)
        if notes.flaw:
            telemetry.log.error("what Qdrant lost before this start is not looked for", reason=notes.flaw)
        if window.is_on:
            window.begin(notes.past_seq or 0)
        elif notes.past_seq is not None:
            await asyncio.to_thread(notes.forget)
        return cls(window, notes, log, telemetry)

    def given_up(self) -> Sequence[control.RefusedEntry]:
        """What an operator dropped, of entries that a look may still be at."""
        return self._notes.given_up

    def replica_is_new(self) -> None:
        """It will hold rows of the whole log, most of them of entries that no look is at any more."""
        if self._notes.past_seq is None:
            self.window.begin(self._log.replayed_seq)

    def keep(self, follower: Follower) -> Coroutine[Any, Any, None]:
        """See `GraceWindow.keep`."""

        async def let_go() -> None:
            await self._let_go(self.window.forgets_through_seq)
            await follower.forget()

        return self.window.keep(let_go)

    async def give_up(
        self, entries: Sequence[control.RefusedEntry], follower: Follower, timeout_seconds: float
    ) -> None:
        """An operator drops entries: what they did to a replica must not be taken for what Qdrant lost.

        Raises WalError, ReplicaUnavailable.
        """
        await asyncio.to_thread(self._notes.give_up, entries)
        await follower.give_up(entries, timeout_seconds)

    async def _let_go(self, past_seq: int) -> None:
        try:
            await asyncio.to_thread(self._notes.let_go, past_seq)
            self._problem = ""
        except WalError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._telemetry.log.warning(
                    "after the loss of its store a look would go further back", error=str(error)
                )
