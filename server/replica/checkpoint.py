"""Keeps the write-ahead file of SQLite short, however reads overlap.

Promises: a file that has grown past a limit is written back and cut to nothing as soon as no snapshot is open; for that
new snapshots are held back for a moment, never for longer than `HELD_BACK_SECONDS`. A snapshot that is open longer puts
it off until the file has grown by as much again. What goes wrong here is told and tried again: the commit before it is
done.

SQLite by itself begins at the front of the file again only when nobody reads: with reads that overlap, never.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

LIMIT_BYTES = 64 * 1024 * 1024
HELD_BACK_SECONDS = 0.25


class Checkpoint:
    """The file `path`, cut by the one writer's connection. `busy_seconds`: how long that connection waits otherwise."""

    def __init__(self, path: Path, *, busy_seconds: float) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._may_begin = threading.Event()
        self._may_begin.set()
        self._put_off_until_bytes = 0

    def let_in(self) -> None:
        """Before a snapshot begins: waits while the file is being cut."""
        self._may_begin.wait(2 * HELD_BACK_SECONDS)

    def shorten(self, writer: sqlite3.Connection) -> None:
        """After a commit: cut the file if it is too long."""
        if self._size() < max(self._put_off_until_bytes, LIMIT_BYTES):
            return
        self._may_begin.clear()
        try:
            # The pragma takes no parameters.
            writer.execute(f"PRAGMA busy_timeout = {int(HELD_BACK_SECONDS * 1000)}")
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            logger.warning("the replica's store was not written back; it is tried again later: %s", error)
        finally:
            self._may_begin.set()
            writer.execute(f"PRAGMA busy_timeout = {int(self._busy_seconds * 1000)}")
        left = self._size()
        self._put_off_until_bytes = left + LIMIT_BYTES if left else 0

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            # SQLite makes it with the first write.
            return 0
