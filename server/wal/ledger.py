"""What the log holds, as far as readers may see it.

Promises: an entry appears here only once it is written (SYNCED) or durable (PENDING), in the order of the log. Not
thread-safe: used from the event loop only.
"""

from __future__ import annotations

from pathlib import Path

from server.wal.limits import WalLimits
from server.wal.memory import TailCache
from server.wal.reader import Stretch
from server.wal.record import SEGMENT_HEADER_BYTES, EntryState
from server.wal.scan import Segment, Survey, segment_name
from server.wal.writer import Tip, Write


class Ledger:
    """Segments, pending entries, cursor and the cache of recent entries."""

    def __init__(self, found: Survey, limits: WalLimits) -> None:
        self._limits = limits
        self._directory: Path = found.directory
        self.segments = found.segments
        self.pending = found.pending
        self.cache = TailCache(limits.cache_bytes)
        self.last_seq = found.last_seq
        self._cursor = found.replayed_seq
        # For each retirement under way the first segment that stays: those before it may be gone at any moment.
        self._leaving: list[int] = []

    @property
    def replayed_seq(self) -> int:
        """Every entry up to here is at Qdrant or in quarantine; SYNCED entries are from the start."""
        oldest = self.pending.first_from(0)
        return self.last_seq if oldest is None else max(self._cursor, oldest - 1)

    def wrote(self, write: Write) -> None:
        """A frame is where it should be."""
        segment = self.segments[-1]
        segment.size = write.tip.offset
        record = write.record
        if record is None:
            self._cursor = max(self._cursor, write.replayed_seq)
            self.pending.drop_through(self._cursor)
            return
        self.last_seq = segment.last_seq = record.seq
        segment.last_wall_ns = record.wall_ns
        segment.index.note(record.seq, write.start)
        self.cache.add(record)
        if record.state is EntryState.PENDING:
            self.pending.add(record.seq, len(write.frame), record.wall_ns)

    def began(self, tip: Tip) -> None:
        """A new segment is there."""
        header = tip.codec.header
        path = self._directory / segment_name(header.number)
        self.segments.append(Segment(path, tip.codec, SEGMENT_HEADER_BYTES, tip.seq, header.wall_ns))

    def stretches(self, after_seq: int) -> list[Stretch]:
        """Where the entries after `after_seq` are."""
        found = []
        for segment in self.segments:
            if segment.last_seq > after_seq:
                start = segment.index.start_for(after_seq + 1, SEGMENT_HEADER_BYTES)
                found.append(Stretch(segment.path, segment.codec, start, segment.size))
        return found

    def holds(self, path: Path) -> bool:
        """Whether a file is one of the log's segments; one that is about to be removed is not."""
        first_number = max(self._leaving, default=0)
        return any(segment.path == path and segment.number >= first_number for segment in self.segments)

    @property
    def leaving_seq(self) -> int:
        """Entries up to here are in segments that are about to be removed."""
        first_number = max(self._leaving, default=0)
        return max((segment.last_seq for segment in self.segments if segment.number < first_number), default=0)

    def retires(self, number: int) -> None:
        """Segments before this one are about to be removed."""
        self._leaving.append(number)

    def retired(self, number: int) -> None:
        """They were removed, or could not be."""
        self._leaving.remove(number)

    def oldest_kept_ns(self, now_ns: int, retention_seconds: float, total_bytes: int) -> int:
        """Segments whose last entry is older may go. Retention shrinks to the grace time when space is short."""
        seconds = retention_seconds
        if self.is_pressed(total_bytes):
            seconds = min(seconds, self._limits.grace_seconds)
        return now_ns - int(seconds * 1e9)

    def is_pressed(self, total_bytes: int) -> bool:
        """Whether so much is held that retention shrinks to the grace time."""
        return total_bytes > self._limits.total_bytes * self._limits.pressure_share

    def is_last_over(self, passed_seq: int, oldest_kept_ns: int) -> bool:
        """Whether the last segment holds entries, and only such as may go."""
        last = self.segments[-1]
        return last.first_seq <= last.last_seq <= passed_seq and last.last_wall_ns <= oldest_kept_ns

    def over(self, passed_seq: int, oldest_kept_ns: int) -> list[Segment]:
        """The leading segments that may go, were there always another one after them."""
        found = []
        for segment in self.segments:
            if segment.last_seq > passed_seq or segment.last_wall_ns > oldest_kept_ns:
                break
            found.append(segment)
        return found

    def begins_at(self, number: int) -> int:
        """Segments before this one are gone; returns their size in bytes."""
        gone_bytes = 0
        while self.segments[0].number < number:
            gone_bytes += self.segments.pop(0).size
        return gone_bytes
