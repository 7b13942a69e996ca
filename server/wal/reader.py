"""Frames of a segment, read in chunks and verified one by one.

Promises: memory stays within a chunk and one entry; nothing unverified is handed out. Blocking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import WalDamaged
from server.wal.files import Disk
from server.wal.record import (
    FRAME_OVERHEAD_BYTES,
    FRAME_TRAILER_BYTES,
    PRINCIPAL_BYTES,
    TRACE_BYTES_MAX,
    Flaw,
    Frame,
    FrameRules,
    Record,
    SegmentCodec,
)
from server.wal.signing import MAC_BYTES

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of a segment: whole frames from `start` to `end`."""

    path: Path
    codec: SegmentCodec
    start: int
    end: int


class SegmentReader:
    """Frames of one stretch, one after the other. `mac` is what the next frame is chained to."""

    def __init__(self, disk: Disk, stretch: Stretch, rules: FrameRules, mac: bytes) -> None:
        self._disk = disk
        self._stretch = stretch
        self._rules = rules
        self._data = b""
        self._base = stretch.start
        self.offset = stretch.start
        self.mac = mac

    @classmethod
    def inside(cls, disk: Disk, stretch: Stretch, rules: FrameRules) -> SegmentReader:
        """A reader that begins at any frame: the MAC before it is read from the file."""
        mac = disk.read(stretch.path, stretch.start - FRAME_TRAILER_BYTES, MAC_BYTES)
        return cls(disk, stretch, rules, mac)

    def next(self) -> Frame | Flaw | None:
        """The next frame; None at the end; a flaw leaves the reader where it is."""
        end = self._stretch.end
        if self.offset >= end:
            return None
        result = self._decode()
        while result is Flaw.SHORT and (known := self._base + len(self._data)) < end:
            length = self._stretch.codec.frame_bytes(self._data, self.offset - self._base)
            needed = length if isinstance(length, int) else 0
            if needed > self._rules.entry_bytes + FRAME_OVERHEAD_BYTES + PRINCIPAL_BYTES + TRACE_BYTES_MAX:
                return Flaw.ILLEGAL
            wanted = min(max(CHUNK_BYTES, needed), end - self.offset)
            self._data = self._disk.read(self._stretch.path, self.offset, wanted)
            self._base = self.offset
            if self._base + len(self._data) <= known:
                return Flaw.SHORT
            result = self._decode()
        if isinstance(result, Frame):
            self.offset += result.length
            self.mac = result.mac
        return result

    def _decode(self) -> Frame | Flaw:
        return self._stretch.codec.decode(self._data, self.offset - self._base, self.mac, self._rules)


def read_entries(
    disk: Disk,
    stretches: Sequence[Stretch],
    rules: FrameRules,
    *,
    after_seq: int,
    limit_entries: int,
    limit_bytes: int,
) -> list[Record]:
    """Entries after `after_seq`: up to both limits, at least one if there is one. Raises WalDamaged at a flaw."""
    found: list[Record] = []
    size = 0
    for stretch in stretches:
        reader = SegmentReader.inside(disk, stretch, rules)
        while (frame := reader.next()) is not None:
            if isinstance(frame, Flaw):
                if found:
                    return found
                raise WalDamaged(
                    f"{stretch.path} at offset {reader.offset}: the frame is not what was written: {frame.value}",
                    hint="`understudy wal verify` lists every flaw; keep the file",
                )
            record = frame.record if frame.seq > after_seq else None
            if record is None:
                continue
            size += len(record.body)
            if found and (len(found) >= limit_entries or size > limit_bytes):
                return found
            found.append(record)
    return found
