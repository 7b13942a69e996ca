"""What the log keeps in memory: little per entry, and never more bodies than a limit.

Promises: 20 bytes per pending entry, one index row per 64 KiB of log, and at most `cache_bytes` of recent entries.
Not thread-safe: used from the event loop only.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque

from server.wal.record import FRAME_OVERHEAD_BYTES, Record

INDEX_STEP_BYTES = 64 * 1024
_COMPACT_AT = 4096


class OffsetIndex:
    """Where to begin reading in one segment: a row per INDEX_STEP_BYTES."""

    __slots__ = ("_offsets", "_seqs")

    def __init__(self) -> None:
        self._seqs = array("Q")
        self._offsets = array("Q")

    def note(self, seq: int, offset: int) -> None:
        """An entry's frame begins here. Rows that are not further on are left out."""
        if not self._offsets or (offset >= self._offsets[-1] + INDEX_STEP_BYTES and seq > self._seqs[-1]):
            self._seqs.append(seq)
            self._offsets.append(offset)

    def start_for(self, seq: int, default: int) -> int:
        """An offset at or before the frame of `seq`."""
        row = bisect_right(self._seqs, seq) - 1
        return self._offsets[row] if row >= 0 else default


class PendingIndex:
    """Number, size and age of the entries that Qdrant does not have yet."""

    __slots__ = ("_first", "_seqs", "_sizes", "_times", "total_bytes")

    def __init__(self) -> None:
        self._seqs = array("Q")
        self._sizes = array("I")
        self._times = array("Q")
        self._first = 0
        self.total_bytes = 0

    def __len__(self) -> int:
        """How many are pending."""
        return len(self._seqs) - self._first

    def add(self, seq: int, size_bytes: int, wall_ns: int) -> None:
        """One more at the end."""
        self._seqs.append(seq)
        self._sizes.append(size_bytes)
        self._times.append(wall_ns)
        self.total_bytes += size_bytes

    def drop_through(self, seq: int) -> None:
        """Everything up to `seq` is done."""
        while self._first < len(self._seqs) and self._seqs[self._first] <= seq:
            self.total_bytes -= self._sizes[self._first]
            self._first += 1
        if self._first >= _COMPACT_AT and self._first * 2 >= len(self._seqs):
            del self._seqs[: self._first], self._sizes[: self._first], self._times[: self._first]
            self._first = 0

    def first_from(self, seq: int) -> int | None:
        """The first pending entry at or after `seq`."""
        row = max(self._first, bisect_right(self._seqs, seq - 1))
        return self._seqs[row] if row < len(self._seqs) else None

    @property
    def last_seq(self) -> int | None:
        """The newest pending entry."""
        return self._seqs[-1] if len(self) else None

    @property
    def oldest_ns(self) -> int | None:
        """Wall time of the oldest one."""
        return self._times[self._first] if len(self) else None


class TailCache:
    """The most recent entries, without gaps, up to a number of bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._records: deque[Record] = deque()
        self._bytes = 0

    def add(self, record: Record) -> None:
        """The next entry. One that is too large by itself empties the cache."""
        if self._records and record.seq != self._records[-1].seq + 1:
            self._records.clear()
            self._bytes = 0
        self._records.append(record)
        self._bytes += len(record.body) + FRAME_OVERHEAD_BYTES
        while self._bytes > self._limit_bytes:
            self._bytes -= len(self._records.popleft().body) + FRAME_OVERHEAD_BYTES

    def read(self, after_seq: int, limit_entries: int, limit_bytes: int) -> list[Record] | None:
        """Entries after `after_seq`; None when the cache does not reach back that far."""
        if not self._records or self._records[0].seq > after_seq + 1:
            return None
        first = self._records[0].seq
        found: list[Record] = []
        total = 0
        for seq in range(after_seq + 1, self._records[-1].seq + 1):
            record = self._records[seq - first]
            total += len(record.body)
            if len(found) >= limit_entries or (found and total > limit_bytes):
                break
            found.append(record)
        return found
