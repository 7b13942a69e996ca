"""After a failed write or sync: the segment anew, in another file, from what is known.

Promises: the failed file is read and never written or synced; its place is taken by a copy that holds exactly what was
acknowledged, every MAC verified, synced before it gets the name. What the failed sync left in the page cache is not
believed: frames that no sync covered come from memory. Nothing is lost when any step fails or the machine stops: the
name leads to the old file or to the whole copy. Blocking. Does not decide when to try (`Pause` says when).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import WalDamaged
from server.wal.files import TEMP_SUFFIX, Disk, OpenFile
from server.wal.reader import CHUNK_BYTES, SegmentReader, Stretch
from server.wal.record import SEGMENT_HEADER_BYTES, Flaw, FrameRules, SegmentCodec

_PROBE_NAME = f"probe{TEMP_SUFFIX}"
_PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Kept:
    """What the copy holds: bytes of the old file up to `synced_offset`, then `frames`; it ends at `offset`, `mac`."""

    codec: SegmentCodec
    synced_offset: int
    frames: Sequence[bytes]
    offset: int
    mac: bytes


def probe(disk: Disk, directory: Path) -> None:
    """A small file, written, synced and removed: raises OSError while the disk takes nothing."""
    path = directory / _PROBE_NAME
    if disk.facts(path) is not None:
        disk.remove(path)
    file = disk.create(path)
    try:
        file.append([bytes(_PROBE_BYTES)])
        file.sync()
    finally:
        file.close()
    disk.remove(path)


def replace_segment(disk: Disk, path: Path, kept: Kept, rules: FrameRules) -> OpenFile:
    """Publish the copy in the place of the segment and open it. Raises OSError, or WalDamaged when it is not whole."""
    copy = path.with_name(path.name + TEMP_SUFFIX)
    if disk.facts(copy) is not None:
        disk.remove(copy)
    file = disk.create(copy)
    try:
        _fill(disk, file, path, kept)
        _check(disk, copy, kept, rules)
    except OSError:
        # On a full disk it would be in the way.
        disk.remove(copy)
        raise
    disk.rename(copy, path)
    disk.sync_directory(path.parent)
    return disk.open_append(path)


def _fill(disk: Disk, file: OpenFile, path: Path, kept: Kept) -> None:
    try:
        for chunk in _chunks(disk, path, kept.synced_offset):
            file.append([chunk])
        if kept.frames:
            file.append(kept.frames)
        file.sync()
    finally:
        file.close()


def _chunks(disk: Disk, path: Path, end: int) -> Iterator[bytes]:
    offset = 0
    while offset < end:
        data = disk.read(path, offset, min(CHUNK_BYTES, end - offset))
        if not data:
            raise WalDamaged(f"{path} ends at offset {offset}; {end} bytes of it were durable")
        yield data
        offset += len(data)


def _check(disk: Disk, copy: Path, kept: Kept, rules: FrameRules) -> None:
    """Every frame of the copy, and that it ends where the log ended."""
    if disk.read(copy, 0, SEGMENT_HEADER_BYTES) != kept.codec.encoded:
        raise WalDamaged(f"the header of {copy.name.removesuffix(TEMP_SUFFIX)} is not what was written")
    reader = SegmentReader(
        disk, Stretch(copy, kept.codec, SEGMENT_HEADER_BYTES, kept.offset), rules, kept.codec.head_mac
    )
    while (frame := reader.next()) is not None:
        if isinstance(frame, Flaw):
            break
    if (reader.offset, reader.mac) != (kept.offset, kept.mac):
        name = copy.name.removesuffix(TEMP_SUFFIX)
        raise WalDamaged(f"{name} at offset {reader.offset}: it does not hold what was written and synced")


class Pause:
    """When to try again: at once doubled after each try, up to a limit."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._seconds = first_seconds
        self._due: float | None = None

    def begin(self, now: float) -> None:
        """It failed; the first try comes after the first pause."""
        self._seconds = self._first
        self._due = now + self._seconds

    def is_over(self, now: float) -> bool:
        """Whether to try now; then the next pause has begun."""
        if not self._first or self._due is None or now < self._due:
            return False
        self._seconds = min(2 * self._seconds, self._longest)
        self._due = now + self._seconds
        return True
