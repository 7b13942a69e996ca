"""A store's file that is damaged: noticed, marked for the next start, set aside there.

Promises: what is set aside is kept whole as `*.corrupted.*`, and nothing of it is beside the file that takes its place.
The marker is there for whoever starts next, also when the disk is full. Only SQLite's own word for damage counts: a
full disk or a failed read is none. Does not notice bytes that SQLite does not judge, such as those of a payload.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from server.errors import DataDirUnusable, UnderstudyError

_CODES = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
# SQLite tells more in the bits above those of the code itself.
_PRIMARY_BITS = 0xFF


class StoreDamaged(UnderstudyError):
    """The file holds something other than what was written."""

    exit_code = DataDirUnusable.exit_code
    hint = "Start again: the damaged file is kept as *.corrupted.*, and an empty one takes its place"


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is damaged."""
    # Errors of Python's own module have no code.
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY_BITS in _CODES


def mark(file: Path, why: str) -> None:
    """Leave word that the file is to be set aside before it is opened again. Raises OSError."""
    marker = os.open(_marker(file), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # On a full disk the word has no text, and is there all the same.
        with suppress(OSError):
            os.write(marker, why.encode())
    finally:
        os.close(marker)


def heed(file: Path, wall_ns: int) -> str:
    """Set the file aside if it is marked; says what was done, "" for nothing."""
    marker = _marker(file)
    if not marker.exists():
        return ""
    done = set_aside(file, marker.read_text("utf-8", "replace"), wall_ns) if file.exists() else ""
    marker.unlink()
    return done


def set_aside(file: Path, why: str, wall_ns: int) -> str:
    """Rename a file and what SQLite keeps beside it; says what was done."""
    kept = f"{file.name}.corrupted.{wall_ns}"
    # The file itself last: a new one beside the old one's log would take it for its own.
    for suffix in ("-wal", "-shm", ""):
        with_suffix = file.with_name(file.name + suffix)
        if with_suffix.exists():
            with_suffix.rename(file.with_name(kept + suffix))
    return f"{file} was damaged ({why}); kept as {kept}, started empty"


def _marker(file: Path) -> Path:
    return file.with_name(file.name + ".damaged")
