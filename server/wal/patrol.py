"""Closed segments of an open log, read again and again, slowly: what rots is found while a copy may still exist.

Promises: reads only; at most the given number of bytes in one step, but at least one frame; `problems` holds the first
flaw of each segment that had one when it was last read, until the segment is whole again or gone. Does not look at the
segment that is being written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from server.wal.files import Disk
from server.wal.reader import SegmentReader, Stretch
from server.wal.record import SEGMENT_HEADER_BYTES, Flaw, FrameRules
from server.wal.recovery import Verdict
from server.wal.scan import Problem

_ANY = FrameRules(None, entry_bytes=2**32, entry_points=2**32)


class PatrolledLog(Protocol):
    """What the patrol needs of a log."""

    def written(self) -> list[Stretch]:
        """Every segment, as far as it is written."""
        ...

    def holds(self, path: Path) -> bool:
        """Whether a file is one of the log's segments."""
        ...


class Patrol:
    """See the module. Belongs to one event loop; the disk is read on other threads."""

    def __init__(self, log: PatrolledLog, disk: Disk) -> None:
        self._log = log
        self._disk = disk
        self._found: dict[Path, Problem] = {}
        self._stretch: Stretch | None = None
        self._reader: SegmentReader | None = None
        self._last = -1
        self.rounds = 0
        self.bytes_read = 0

    @property
    def problems(self) -> list[Problem]:
        """What is wrong now, as far as it was seen."""
        return [problem for path, problem in sorted(self._found.items()) if self._log.holds(path)]

    async def step(self, budget_bytes: int) -> Problem | None:
        """Read on for about `budget_bytes`; a flaw that was not known before."""
        if self._stretch is None:
            self._stretch = self._next(self._log.written()[:-1])
            self._reader = None
        stretch = self._stretch
        if stretch is None:
            return None
        try:
            done, problem = await asyncio.to_thread(self._read, stretch, budget_bytes)
        except OSError as error:
            done, problem = True, _problem(stretch, 0, f"it cannot be read: {error.strerror or error}")
        if done:
            self._stretch = None
        if not self._log.holds(stretch.path):
            # Retired meanwhile.
            self._stretch = None
            return None
        if problem is None:
            if done:
                self._found.pop(stretch.path, None)
            return None
        is_new = self._found.get(stretch.path) != problem
        self._found[stretch.path] = problem
        return problem if is_new else None

    def _next(self, closed: Sequence[Stretch]) -> Stretch | None:
        """The segment after the last one looked at; the first again after the last."""
        following = [stretch for stretch in closed if stretch.codec.header.number > self._last]
        if not following and closed:
            self.rounds += 1
            following = list(closed)
        if not following:
            return None
        self._last = following[0].codec.header.number
        return following[0]

    def _read(self, stretch: Stretch, budget_bytes: int) -> tuple[bool, Problem | None]:
        """Whether the segment is done with, and its first flaw."""
        reader = self._reader
        if reader is None:
            codec = stretch.codec
            if self._disk.read(stretch.path, 0, SEGMENT_HEADER_BYTES) != codec.encoded:
                return True, _problem(stretch, 0, "header: it is not what was written", Flaw.FORGED)
            reader = self._reader = SegmentReader(self._disk, stretch, _ANY, codec.head_mac)
        start = reader.offset
        while reader.offset - start < budget_bytes:
            frame = reader.next()
            if frame is None:
                self.bytes_read += reader.offset - start
                return True, self._after(stretch)
            if isinstance(frame, Flaw):
                return True, _problem(
                    stretch, reader.offset, f"the frame is not what was written: {frame.value}", frame
                )
        self.bytes_read += reader.offset - start
        return False, None

    def _after(self, stretch: Stretch) -> Problem | None:
        """Something behind the last frame of a closed segment is nothing that we wrote."""
        facts = self._disk.facts(stretch.path)
        if facts is not None and facts.size != stretch.end:
            return _problem(stretch, stretch.end, f"it ends at {facts.size}, where {stretch.end} was written")
        return None


def _problem(stretch: Stretch, offset: int, text: str, flaw: Flaw = Flaw.ILLEGAL) -> Problem:
    return Problem(stretch.path.name, offset, text, Verdict.REFUSE, flaw)
