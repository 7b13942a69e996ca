"""What became of writes to points that others changed meanwhile: rows in files, for an operator to look at.

Promises: a row is on the medium when `append` returns; numbers go up, and one comes again only when all from it on
were dropped before a restart; past the size limit the oldest rows go, are counted, and the limit holds again; a file
that was damaged is told and left alone. Rows are bytes to it. Not a part of the log: nothing here is ever replayed, so
nothing is signed.

    file = header, then for each row: number u64, length u32, bytes; then CRC32C u32 of all before it
    header, 24 bytes: magic "USTDYCFT", version u16, length of the header u16, rows u32, zeros
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from server.errors import DataDirUnusable, WalError
from server.wal.files import TEMP_SUFFIX, Disk, publish

DIRECTORY = "conflicts"
_SUFFIX = ".rows"
_MAGIC = b"USTDYCFT"
_VERSION = 1
_HEADER = struct.Struct("<8sHHI8x")
_ROW = struct.Struct("<QI")
_U32 = struct.Struct("<I")
# A file is closed past this size, so that the oldest rows can go in small steps.
_FILE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class KeptRow:
    """One row. `flaw`: its file is damaged; then there is no body, and `number` is the first of the file."""

    number: int
    body: bytes
    flaw: str = ""


@dataclass(slots=True)
class _File:
    path: Path
    rows: int
    size: int


class ConflictLog:
    """The rows in `directory`/conflicts. Blocking; safe to use from several threads. Whoever uses it holds the log."""

    def __init__(self, disk: Disk, directory: Path, limit_bytes: int) -> None:
        """Raises WalError when the directory cannot be read."""
        self._disk = disk
        self._folder = directory / DIRECTORY
        self._limit_bytes = limit_bytes
        self._guard = threading.Lock()
        try:
            self._files = [self._look(path) for path in self._paths()]
        except OSError as error:
            raise WalError(f"the conflict log in {self._folder} cannot be read: {error.strerror}") from error
        self._next = 1 + max((row.number for row in self.rows()), default=0)
        self._is_ready = False
        self.dropped = 0

    @property
    def count(self) -> int:
        """Rows that are kept."""
        return sum(one.rows for one in self._files)

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(one.size for one in self._files)

    def append(self, rows: Sequence[bytes]) -> int:
        """Keep rows, durably; returns how many older ones had to go for them. Raises WalError."""
        with self._guard:
            try:
                self._make_ready()
                for group in _grouped(rows):
                    self._publish(self._next, list(enumerate(group, self._next)))
                    self._next += len(group)
                gone = self._make_room()
            except (OSError, DataDirUnusable) as error:
                raise WalError(
                    f"the conflict log cannot be written: {error}",
                    hint="Mend the disk; replay waits, so that nothing is overwritten that was not kept",
                ) from error
            self.dropped += gone
            return gone

    def rows(self) -> Iterator[KeptRow]:
        """Every row, oldest first."""
        for path in [one.path for one in self._files]:
            found = self._load(path)
            if isinstance(found, str):
                yield KeptRow(_number_in(path), b"", found)
            else:
                yield from (KeptRow(number, body) for number, body in found)

    def drop(self, numbers: Container[int] | None) -> list[int]:
        """Remove rows, None = all that can be read; returns which. Raises WalError."""
        gone: list[int] = []
        with self._guard:
            try:
                for one in list(self._files):
                    gone += self._drop_from(one, numbers)
            except OSError as error:
                raise WalError(f"the conflict log cannot be changed: {error.strerror}") from error
        return gone

    # --- inside ------------------------------------------------------------------------------------------------------

    def _drop_from(self, one: _File, numbers: Container[int] | None) -> list[int]:
        found = self._load(one.path)
        if isinstance(found, str):
            if numbers is None or _number_in(one.path) not in numbers:
                return []
            self._remove(one)
            return [_number_in(one.path)]
        kept = [(number, body) for number, body in found if numbers is not None and number not in numbers]
        if len(kept) == len(found):
            return []
        if kept:
            self._files.remove(one)
            self._publish(_number_in(one.path), kept)
        else:
            self._remove(one)
        left = {number for number, _ in kept}
        return [number for number, _ in found if number not in left]

    def _publish(self, first: int, rows: Sequence[tuple[int, bytes]]) -> None:
        parts = [_HEADER.pack(_MAGIC, _VERSION, _HEADER.size, len(rows))]
        for number, body in rows:
            parts += [_ROW.pack(number, len(body)), body]
        plain = b"".join(parts)
        path = self._folder / f"{first:020d}{_SUFFIX}"
        publish(self._disk, path, [plain, _U32.pack(google_crc32c.value(plain))])
        self._files.append(_File(path, len(rows), len(plain) + _U32.size))
        self._files.sort(key=lambda each: each.path)

    def _make_room(self) -> int:
        gone = 0
        while len(self._files) > 1 and self.size_bytes > self._limit_bytes:
            gone += self._files[0].rows
            self._remove(self._files[0])
        return gone

    def _remove(self, one: _File) -> None:
        self._disk.remove(one.path)
        self._disk.sync_directory(self._folder)
        self._files.remove(one)

    def _make_ready(self) -> None:
        """Once, before the first row: the directory is there, and nothing that a crash left."""
        if self._is_ready:
            return
        self._disk.make_directory(self._folder)
        for name in self._disk.names(self._folder):
            if name.endswith(TEMP_SUFFIX):
                self._disk.remove(self._folder / name)
        self._is_ready = True

    def _paths(self) -> list[Path]:
        """The files, oldest first; other names are left alone."""
        names = (name for name in self._disk.names(self._folder) if name.endswith(_SUFFIX))
        return [self._folder / name for name in sorted(names) if name.removesuffix(_SUFFIX).isdecimal()]

    def _look(self, path: Path) -> _File:
        found = self._load(path)
        facts = self._disk.facts(path)
        return _File(path, 0 if isinstance(found, str) else len(found), facts.size if facts else 0)

    def _load(self, path: Path) -> list[tuple[int, bytes]] | str:
        try:
            facts = self._disk.facts(path)
            if facts is None or not facts.is_file:
                return "it is not a plain file"
            return _decoded(self._disk.read(path, 0, facts.size))
        except OSError as error:
            return f"it cannot be read: {error.strerror}"


def _decoded(data: bytes) -> list[tuple[int, bytes]] | str:
    """The rows of a file, or what is wrong with it."""
    plain = data[: -_U32.size]
    if len(plain) < _HEADER.size or google_crc32c.value(plain) != _U32.unpack(data[-_U32.size :])[0]:
        return "its checksum does not match"
    magic, version, at, count = _HEADER.unpack_from(plain)
    if magic != _MAGIC or version != _VERSION:
        return "it has a format version that this Understudy does not know"
    rows = []
    for _ in range(count):
        number, length = _ROW.unpack_from(plain, at)
        at += _ROW.size
        rows.append((number, plain[at : at + length]))
        at += length
    return rows


def _grouped(rows: Iterable[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for row in rows:
        if group and size + len(row) > _FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row)
    if group:
        yield group


def _number_in(path: Path) -> int:
    return int(path.name.removesuffix(_SUFFIX))
