"""The log, as replay sees it: what `server.wal.log.Log` offers and test fakes imitate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from server.wal.quarantine import Refused
from server.wal.record import Record


class RefusedEntry(Protocol):
    """What the log tells of an entry in quarantine."""

    @property
    def seq(self) -> int:
        """Sequence number of the entry."""
        ...

    @property
    def code(self) -> int:
        """gRPC status code of the refusal."""
        ...

    @property
    def details(self) -> str:
        """Text of the refusal."""
        ...


class PendingLog(Protocol):
    """The reader of pending entries and the writer of the cursor and the quarantine. Raises WalError."""

    @property
    def pending_count(self) -> int:
        """Entries that the cursor has yet to pass."""
        ...

    async def read_pending(self, limit_entries: int, limit_bytes: int) -> list[Record]:
        """The first pending entries, in order."""
        ...

    async def mark_replayed(self, seq: int) -> None:
        """Move the cursor, durably."""
        ...

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        """Keep entries for the operator, durably. The same entry again replaces it."""
        ...

    async def release_quarantined(self, seq: int) -> None:
        """Let go of what is kept of an entry."""
        ...

    def quarantined_entries(self) -> Iterable[tuple[RefusedEntry, Record]]:
        """What is in quarantine and to be trusted, oldest first, each with its entry as it was put there; blocking."""
        ...
