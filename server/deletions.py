"""In which collections an online deletion was under way when this process ended.

Promises: a deletion is noted before it is sent, and as over once the log has it or Qdrant has refused it; so after a
kill `left_over` names every collection where a point may be absent by a deletion of ours that the log lacks. Nothing is
synced: what a power cut takes away is another matter (`repairs`). A disk that takes no note stops no deletion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from server.wal.files import TEMP_SUFFIX, Disk, OpenFile

_FILE = "deletions"
_ROOM_BYTES = 64 * 1024
# Whether it begins or is over, and the name of the collection in hexadecimal.
_LINE = re.compile(rb"([+-])((?:[0-9a-f]{2})*);")


class Deletions:
    """The notes in `directory`. `on_problem` hears of each time that the disk takes none."""

    def __init__(self, disk: Disk, directory: Path, on_problem: Callable[[OSError], None]) -> None:
        self._disk = disk
        self._path = directory / _FILE
        self._on_problem = on_problem
        self._file: OpenFile | None = None
        self._size = 0
        self._whole_size = 0
        self._under_way = Counter[str]()
        # Where one ended by an exception, and for which the file has a note already: one is enough for all.
        self._kept: set[str] = set()
        self._noted: set[str] = set()
        self.left_over = self._read()

    @contextmanager
    def under_way(self, collection: str) -> Iterator[None]:
        """Around a deletion, until the log has it. One that ends by an exception stays noted."""
        self._under_way[collection] += 1
        if collection not in self._noted and self._note("+", collection):
            self._noted.add(collection)
        try:
            yield
        except BaseException:
            self._kept.add(collection)
            self._under_way[collection] -= 1
            raise
        self._under_way[collection] -= 1
        if not self._under_way[collection] and collection in self._noted:
            self._note_end(collection)
        # What still counts may be much: no more of it is written again than was noted since.
        if self._size > max(_ROOM_BYTES, 2 * self._whole_size):
            self._write_anew()

    def _note_end(self, collection: str) -> None:
        if collection not in self._kept and collection not in self.left_over:
            # A note that fails may be there all the same: so the next deletion is noted anew either way.
            self._noted.discard(collection)
            self._note("-", collection)

    def settled(self) -> None:
        """What was left over is of no use any more: everything was copied since."""
        if self.left_over:
            self.left_over = frozenset()
            self._write_anew()

    # --- the file ----------------------------------------------------------------------------------------------------

    def _read(self) -> frozenset[str]:
        facts = self._disk.facts(self._path)
        if facts is None:
            return frozenset()
        self._size = facts.size
        noted = Counter[str]()
        for line in self._disk.read(self._path, 0, facts.size).split(b"\n"):
            # Cut off: one that begins was not sent, one that ends counts as under way. A power cut leaves anything.
            if (found := _LINE.fullmatch(line)) is not None:
                noted[bytes.fromhex(found[2].decode()).decode("utf-8", "replace")] += 1 if found[1] == b"+" else -1
        return frozenset(+noted)

    def _note(self, sign: str, collection: str) -> bool:
        try:
            if self._file is None:
                is_there = self._disk.facts(self._path) is not None
                self._file = self._disk.open_append(self._path) if is_there else self._disk.create(self._path)
            self._size += self._append(self._file, sign, collection)
        except OSError as error:
            self._on_problem(error)
            return False
        return True

    @staticmethod
    def _append(file: OpenFile, sign: str, collection: str) -> int:
        # An end of line on both sides: one that was cut off takes no other with it.
        line = f"\n{sign}{collection.encode().hex()};\n".encode()
        file.append([line])
        return len(line)

    def _write_anew(self) -> None:
        """Only what still counts, in place of all that was ever noted."""
        still = sorted({*self.left_over, *(+self._under_way), *self._kept})
        temporary = self._path.with_name(_FILE + TEMP_SUFFIX)
        try:
            if self._disk.facts(temporary) is not None:
                self._disk.remove(temporary)
            file = self._disk.create(temporary)
            size = sum(self._append(file, "+", collection) for collection in still)
            self._disk.rename(temporary, self._path)
        except OSError as error:
            self._on_problem(error)
            return
        if self._file is not None:
            self._file.close()
        self._file, self._size, self._whole_size = file, size, size
        self._noted = set(still)
