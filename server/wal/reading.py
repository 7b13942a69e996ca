"""What an open log tells and hands out.

Promises: entries come back verified, in order, and only such as were acknowledged; reading goes on while the log takes
no writes. Belongs to one event loop; the disk is read on other threads.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.errors import WalDamaged, WalError
from server.wal.files import Disk
from server.wal.ledger import Ledger
from server.wal.reader import read_entries
from server.wal.record import EntryState, FrameRules, Record

_PENDING = EntryState.PENDING


class Reading:
    """See the module: the part of a `Log` that reads."""

    def __init__(self, ledger: Ledger, disk: Disk, directory: Path, rules: FrameRules) -> None:
        self._ledger = ledger
        self._disk = disk
        self._directory = directory
        self._rules = rules
        self._bytes = sum(segment.size for segment in ledger.segments)

    @property
    def last_seq(self) -> int:
        """The newest entry that readers may see."""
        return self._ledger.last_seq

    @property
    def first_seq(self) -> int:
        """The oldest entry that is still held, or would be."""
        return self._ledger.segments[0].first_seq

    @property
    def replayed_seq(self) -> int:
        """Every entry up to here is at Qdrant or in quarantine."""
        return self._ledger.replayed_seq

    @property
    def pending_count(self) -> int:
        """Entries that Qdrant does not have yet."""
        return len(self._ledger.pending)

    @property
    def pending_bytes(self) -> int:
        """Their size in the log."""
        return self._ledger.pending.total_bytes

    @property
    def oldest_pending_ns(self) -> int | None:
        """Wall time of the oldest of them."""
        return self._ledger.pending.oldest_ns

    @property
    def total_bytes(self) -> int:
        """Size of all segments, with what is on its way."""
        return self._bytes

    @property
    def is_pressed(self) -> bool:
        """Whether space is short, so that segments may go before their retention is over: retire them soon."""
        return self._ledger.is_pressed(self._bytes)

    @property
    def segment_count(self) -> int:
        """Number of segments."""
        return len(self._ledger.segments)

    async def read(self, after_seq: int, limit_entries: int, limit_bytes: int) -> list[Record]:
        """Entries after `after_seq`, in order, verified: up to both limits, at least one if there is one.

        Entries before `first_seq` are retired and are left out. Raises WalDamaged when the disk does not hold what was
        written.
        """
        after_seq = max(after_seq, self.first_seq - 1)
        if after_seq >= self.last_seq:
            return []
        cached = self._ledger.cache.read(after_seq, limit_entries, limit_bytes)
        if cached is not None:
            return cached
        while True:
            stretches = self._ledger.stretches(after_seq)
            try:
                return await asyncio.to_thread(
                    read_entries,
                    self._disk,
                    stretches,
                    self._rules,
                    after_seq=after_seq,
                    limit_entries=limit_entries,
                    limit_bytes=limit_bytes,
                )
            except FileNotFoundError as error:
                # Retired meanwhile: look at what follows. Otherwise somebody took it away.
                if self._ledger.holds(stretches[0].path):
                    raise WalDamaged(f"a segment is gone: {error.filename}") from error
                after_seq = max(after_seq, self._ledger.leaving_seq)
            except OSError as error:
                raise WalError(f"cannot read the log in {self._directory}: {error.strerror or error}") from error

    async def read_pending(self, limit_entries: int, limit_bytes: int) -> list[Record]:
        """The oldest entries that Qdrant does not have, in order: up to both limits, at least one if there is one."""
        found: list[Record] = []
        size = 0
        seq = self._ledger.pending.first_from(0)
        while seq is not None and len(found) < limit_entries and (not found or size < limit_bytes):
            records = await self.read(seq - 1, limit_entries - len(found), limit_bytes - size)
            found += (record for record in records if record.state is _PENDING)
            size = sum(len(record.body) for record in found)
            seq = self._ledger.pending.first_from(records[-1].seq + 1) if records else None
        return found
