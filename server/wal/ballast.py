"""Room on the disk: what is taken while it is short, and the file that is given up for it.

Promises: entries are refused before the last bytes are gone, so that cursors, quarantine, the head and a clean shutdown
still find room: by a mark on the free space, and by a ballast file of real blocks that is removed when the disk is full
and made again when space returns. No restart is needed. Blocking; safe to use from several threads. Does not promise
room when others fill the disk faster than they are looked at (once a second) and take what the ballast gave back.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TypeVar

from server.errors import WalFull
from server.wal.files import Disk
from server.wal.limits import WalLimits

BALLAST_NAME = "ballast"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Below this share of its size left free the ballast is given up before anybody meets a full disk.
_SCARCE_SHARE = 0.25

_log = logging.getLogger("understudy.wal")
T = TypeVar("T")


class Ballast(Enum):
    """What there is of the file."""

    HELD = "there"
    MISSING = "given up, or not made yet"
    UNWANTED = "wal.ballast_bytes is 0"


class Free(Enum):
    """How much others may still write, see `free_of`."""

    SCARCE = "nearly nothing"
    LOW = "below the mark"
    AMPLE = "above the mark"
    ROOMY = "above the mark, and would be with the ballast"


class Act(Enum):
    """What is done with the file."""

    KEEP = "nothing"
    RELEASE = "remove it"
    MAKE = "make it"


class Room(Enum):
    """What the log takes. Cursors, quarantine and the head are always taken."""

    AMPLE = "every entry"
    LOW = "entries that Qdrant has (SYNCED), no others"
    SPENT = "no entries"


TABLE: Mapping[tuple[Ballast, Free], tuple[Act, Room]] = {
    (Ballast.HELD, Free.SCARCE): (Act.RELEASE, Room.SPENT),
    (Ballast.HELD, Free.LOW): (Act.KEEP, Room.LOW),
    (Ballast.HELD, Free.AMPLE): (Act.KEEP, Room.AMPLE),
    (Ballast.HELD, Free.ROOMY): (Act.KEEP, Room.AMPLE),
    # What was given up is for cursors and the like: no entry may use it.
    (Ballast.MISSING, Free.SCARCE): (Act.KEEP, Room.SPENT),
    (Ballast.MISSING, Free.LOW): (Act.KEEP, Room.SPENT),
    (Ballast.MISSING, Free.AMPLE): (Act.KEEP, Room.AMPLE),
    (Ballast.MISSING, Free.ROOMY): (Act.MAKE, Room.AMPLE),
    (Ballast.UNWANTED, Free.SCARCE): (Act.KEEP, Room.LOW),
    (Ballast.UNWANTED, Free.LOW): (Act.KEEP, Room.LOW),
    (Ballast.UNWANTED, Free.AMPLE): (Act.KEEP, Room.AMPLE),
    (Ballast.UNWANTED, Free.ROOMY): (Act.KEEP, Room.AMPLE),
}


def free_of(free_bytes: int, *, ballast_bytes: int, free_bytes_min: int) -> Free:
    """PURE. Where the free space stands."""
    if free_bytes < ballast_bytes * _SCARCE_SHARE:
        return Free.SCARCE
    if free_bytes < free_bytes_min:
        return Free.LOW
    return Free.AMPLE if free_bytes < free_bytes_min + ballast_bytes else Free.ROOMY


class Space:
    """The disk of one log. `room` may be read at any time; it is at most one `look` old."""

    def __init__(self, disk: Disk, directory: Path, limits: WalLimits) -> None:
        self._disk = disk
        self._directory = directory
        self._path = directory / BALLAST_NAME
        self._limits = limits
        self._guard = threading.Lock()
        self._has_looked = False
        # How often room was made: who failed before the last time may try again.
        self.releases = 0
        self.ballast = Ballast.MISSING if limits.ballast_bytes else Ballast.UNWANTED
        self.room = Room.AMPLE
        self.free_bytes: int | None = None

    def look(self) -> None:
        """See how much is free and act on it. Raises OSError when the disk does not say."""
        with self._guard:
            self._adopt()
            self.free_bytes = self._disk.free_bytes(self._directory)
            limits = self._limits
            free = free_of(self.free_bytes, ballast_bytes=limits.ballast_bytes, free_bytes_min=limits.free_bytes_min)
            act, room = TABLE[self.ballast, free]
            try:
                if act is Act.RELEASE:
                    self._remove()
                elif act is Act.MAKE and not self._make():
                    # A quota: the file system has room, and not for us.
                    room = Room.SPENT
            finally:
                # Whatever became of the file: entries are taken or refused by what is free.
                self.room = room

    def release(self, releases_before: int) -> bool:
        """The disk is full: give the ballast up. False when there is none to give.

        `releases_before` is what `releases` was before the attempt that failed: room made since then is for it, too.
        """
        with self._guard:
            if self.releases != releases_before:
                return True
            # Also before the first look: an earlier process may have left one.
            is_released = self._adopt()
            if self.ballast is Ballast.HELD:
                self._remove()
                is_released = True
            if is_released:
                self.releases += 1
                self.room = Room.SPENT
            return is_released

    def refusal(self) -> WalFull:
        """The error for an entry that is not taken."""
        free = "unknown" if self.free_bytes is None else str(self.free_bytes)
        if self.room is Room.SPENT:
            why = f"it was full, and the ballast ({self._limits.ballast_bytes} bytes) has no room yet"
        else:
            why = f"new offline writes are taken above {self._limits.free_bytes_min} (wal.free_bytes_min)"
        return WalFull(
            f"the disk of {self._directory} is short of space: {why}; {free} bytes are free",
            hint="Free space there; no restart is needed, replay goes on",
        )

    def with_reserve(self, act: Callable[[], T]) -> T:
        """Do something that must not fail for want of space: once more in the room of the ballast if it does."""
        before = self.releases
        try:
            return act()
        except OSError as failure:
            if failure.errno not in NO_SPACE or not self.release(before):
                raise
            return act()

    def _adopt(self) -> bool:
        """What an earlier process left, once: kept when it is the file that we would make. True when it was removed."""
        if self._has_looked:
            return False
        found = self._disk.facts(self._path)
        is_ours = found is not None and found.is_file and found.size == self._limits.ballast_bytes
        if is_ours and self.ballast is Ballast.MISSING:
            self.ballast = Ballast.HELD
        elif found is not None:
            self._disk.remove(self._path)
            self._disk.sync_directory(self._directory)
        self._has_looked = True
        return found is not None and self.ballast is not Ballast.HELD

    def _remove(self) -> None:
        # Gone for the table even when that fails: it must not be counted upon.
        self.ballast = Ballast.MISSING
        self._disk.remove(self._path)
        # Blocks of a removed file may be used again only after this.
        self._disk.sync_directory(self._directory)
        _log.warning("the disk of %s is short of space: the ballast of the log was given up", self._directory)

    def _make(self) -> bool:
        try:
            self._disk.allocate(self._path, self._limits.ballast_bytes)
            self._disk.sync_directory(self._directory)
        except OSError as failure:
            if self._disk.facts(self._path) is not None:
                self._disk.remove(self._path)
            if failure.errno not in NO_SPACE:
                raise
            return False
        self.ballast = Ballast.HELD
        return True
