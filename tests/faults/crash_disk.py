"""A disk with two images: what a process sees (live) and what survives a power cut (durable).

Promises: what was not synced may be lost, kept, torn at 512-byte sectors or kept out of order, with any size of the
file on the way; a sector that a file has been given and that was not written yet holds zeros, noise, what another file
had there, or what this file had there before it was cut. A name made, renamed or removed, and a directory, may be lost
or kept until the directory is synced, in any order; a rename may leave both names. What was synced stays. A sync that
fails has written some of it; no later sync writes the rest, though a process still sees it. Any call can be made to
fail, and the disk can be photographed at any call. Sector writes are atomic. Threads may share a disk.
"""

from __future__ import annotations

import errno
import functools
import os
import posixpath
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.errors import WalLocked
from server.wal.files import DIRECTORY_MODE, FILE_MODE, FileFacts

SECTOR_BYTES = 512
# Calls that change the durable image, or what may be left of it.
CHANGING = {
    *("append", "make_room", "sync", "synced", "rename", "create", "remove", "sync_directory", "truncate", "rewrite"),
    "mkdir",
}


@dataclass
class Inode:
    """One file: its live bytes, its durable bytes, and every version of each sector written since the last sync.

    `ghost` is what the medium held at the same places before the file was cut.
    """

    live: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: dict[int, list[bytes]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    ghost: bytes = b""
    mode: int = FILE_MODE
    is_ours: bool = True
    is_link: bool = False

    def twin(self) -> Inode:
        """The same file, apart from this one."""
        dirty = {sector: list(versions) for sector, versions in self.dirty.items()}
        live, durable, sizes = bytearray(self.live), bytearray(self.durable), list(self.sizes)
        return Inode(live, durable, dirty, sizes, self.ghost, self.mode, self.is_ours, self.is_link)

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.live):
            self.live.extend(bytes(end - len(self.live)))
        self.live[offset:end] = data
        self.sizes.append(len(self.live))
        for sector in range(offset // SECTOR_BYTES, (end + SECTOR_BYTES - 1) // SECTOR_BYTES):
            self._soil(sector)

    def truncate(self, size: int) -> None:
        # What was written there may have reached the medium, and stays in `dirty` as long as that is open.
        self.ghost = bytes(self.live) + self.ghost[len(self.live) :]
        del self.live[size:]
        self.sizes.append(size)
        if size % SECTOR_BYTES:
            self._soil(size // SECTOR_BYTES)

    def _soil(self, sector: int) -> None:
        start = sector * SECTOR_BYTES
        self.dirty.setdefault(sector, []).append(bytes(self.live[start : start + SECTOR_BYTES]))

    def sync(self) -> None:
        """Dirty sectors and the size reach the medium. What an earlier sync failed to write is not dirty any more."""
        size = len(self.live)
        del self.durable[size:]
        self.durable.extend(bytes(size - len(self.durable)))
        for sector, versions in self.dirty.items():
            start = sector * SECTOR_BYTES
            version = versions[-1][: max(0, size - start)]
            self.durable[start : start + len(version)] = version
        self.dirty.clear()
        self.sizes.clear()

    def fail_to_sync(self, rng: random.Random) -> None:
        """What the kernel does: some pages were written, all are marked clean, and no later sync writes the rest."""
        self.durable = self.after_crash(rng, ()).live
        self.dirty.clear()
        self.sizes = [len(self.live)]

    def only_durable(self) -> Inode:
        return Inode(bytearray(self.durable), bytearray(self.durable), mode=self.mode, is_ours=self.is_ours)

    def after_crash(self, rng: random.Random, others: Sequence[Inode]) -> Inode:
        """What might be left: any size on the way, any mix of old, new and strange sectors."""
        if not self.dirty and not self.sizes:
            return self.only_durable()
        sizes = [len(self.durable), len(self.live), *self.sizes[-4:]]
        if rng.random() < 0.25:
            # Blocks are given to a file one after the other, and the size follows them.
            sizes = [rng.randrange(min(sizes), max(sizes) + 1)]
        size = rng.choice(sizes)
        left = self.durable[:size]
        left += self._strange(rng, len(left), size, others)
        luck = rng.choice((0.0, 0.5, 0.9, 1.0))
        for sector, versions in self.dirty.items():
            if rng.random() < luck:
                start = sector * SECTOR_BYTES
                version = versions[-1] if rng.random() < 0.7 else rng.choice(versions)
                version = version[: max(0, size - start)]
                left[start : start + len(version)] = version
        return Inode(left, bytearray(left), ghost=self.ghost, mode=self.mode, is_ours=self.is_ours)

    def _strange(self, rng: random.Random, start: int, end: int, others: Sequence[Inode]) -> bytes:
        """What the medium holds from `start` to `end` when nothing of it was written."""
        length = max(0, end - start)
        match rng.randrange(4):
            case 1:
                found = rng.randbytes(length)
            case 2:
                found = self.ghost[start:end]
            case 3 if others:
                other = rng.choice(others).live
                at = rng.randrange(0, len(other) + 1, SECTOR_BYTES) + start % SECTOR_BYTES
                found = bytes(other[at : at + length])
            case _:
                found = b""
        return found.ljust(length, b"\0")


@dataclass
class _NameChange:
    """Not yet durable: names of one directory that change together. None = the name goes."""

    changes: dict[str, int | None]

    def after_crash(self, rng: random.Random) -> dict[str, int | None]:
        """The change, or a rename of which the new name is there and the old one is still there."""
        is_rename = len(self.changes) > 1
        if is_rename and rng.random() < 0.2:
            return {name: number for name, number in self.changes.items() if number is not None}
        return self.changes


@dataclass
class _Directory:
    live: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    pending: list[_NameChange] = field(default_factory=list)
    children: set[str] = field(default_factory=set)

    def twin(self) -> _Directory:
        return _Directory(dict(self.live), dict(self.durable), list(self.pending), set(self.children))

    def change(self, **changes: int | None) -> None:
        self.pending.append(_NameChange(dict(changes)))
        _apply(self.live, changes)

    def every_inode(self) -> set[int]:
        changed = {number for each in self.pending for number in each.changes.values() if number is not None}
        return changed | set(self.durable.values()) | set(self.live.values())

    def sync(self) -> None:
        self.durable = dict(self.live)
        self.pending.clear()


def _apply(names: dict[str, int], changes: dict[str, int | None]) -> None:
    for name, inode in changes.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


class _CrashFile:
    def __init__(self, disk: CrashDisk, path: Path, inode: Inode) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._end = len(inode.live)
        self.closed = False
        self.failed_sync = False

    def append(self, parts: Sequence[bytes]) -> None:
        data = b"".join(parts)
        self._write("append", data)
        self._end += len(data)

    def make_room(self, length: int) -> None:
        self._write("make_room", bytes(length))

    def _write(self, operation: str, data: bytes) -> None:
        with self._disk.guard:
            assert not self.closed
            try:
                self._disk.called(operation, self._path)
            except OSError:
                # A failing write may have written some of it.
                self._inode.write(self._end, data[: self._disk.rng.randrange(len(data) + 1)])
                raise
            self._inode.write(self._end, data)

    def sync(self) -> None:
        with self._disk.guard:
            assert not self.closed
            assert not self.failed_sync, f"{self._path} was synced again after a failed sync"
            self.failed_sync = True
            self._disk.sync_file(self._path, self._inode)
            self.failed_sync = False

    def close(self) -> None:
        self.closed = True


class _CrashLock:
    def __init__(self, disk: CrashDisk, path: Path) -> None:
        self._disk = disk
        self._path = path

    def release(self) -> None:
        self._disk.locks.discard(self._path)


@functools.cache
def _chain(path: str) -> tuple[str, ...]:
    """A directory and those above it, from the root down."""
    return ("/",) if path == "/" else (*_chain(posixpath.dirname(path)), path)


class CrashDisk:
    """A `server.wal.files.Disk` in memory. `on_call(operation, path)` runs before each call and may raise OSError."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.guard = threading.RLock()
        self.inodes: dict[int, Inode] = {}
        # By path as text: hashing a Path costs more than the rest of most calls.
        self.directories: dict[str, _Directory] = {"/": _Directory()}
        self.durable_directories: set[str] = {"/"}
        self.locks: set[Path] = set()
        self.on_call: Callable[[str, Path], None] | None = None
        self.calls: list[tuple[str, str]] = []
        self.files: list[_CrashFile] = []
        # What free_bytes tells; nothing here fills up by itself.
        self.free = 1 << 40
        self._next_inode = 1

    def called(self, operation: str, path: Path) -> None:
        self.calls.append((operation, path.name))
        if self.on_call is not None:
            self.on_call(operation, path)

    # --- photographs -------------------------------------------------------------------------------------------------

    def photograph(self) -> CrashDisk:
        """The same state of both images, apart from this disk."""
        with self.guard:
            twin = CrashDisk()
            twin.inodes = {number: inode.twin() for number, inode in self.inodes.items()}
            twin.directories = {path: directory.twin() for path, directory in self.directories.items()}
            twin.durable_directories = set(self.durable_directories)
            twin._next_inode = self._next_inode
            return twin

    def after_power_cut(self, seed: int | None) -> CrashDisk:
        """One of the states that a power cut may leave; the same seed gives the same state.

        None = the one where everything that was not synced is lost.
        """
        rng = random.Random(seed)
        twin = CrashDisk(seed or 0)
        twin._next_inode = self._next_inode
        named = {number for each in self.directories.values() for number in each.every_inode()}
        others = list(self.inodes.values())
        for number, inode in self.inodes.items():
            if number not in named:
                continue
            twin.inodes[number] = inode.after_crash(rng, others) if seed is not None else inode.only_durable()
        luck = rng.choice((0.0, 0.5, 1.0)) if seed is not None else 0.0
        for path, directory in self.directories.items():
            is_lucky = path in self.durable_directories or rng.random() < luck
            if is_lucky and (path == "/" or posixpath.dirname(path) in twin.directories):
                names = dict(directory.durable)
                for change in directory.pending:
                    if rng.random() < luck:
                        _apply(names, change.after_crash(rng))
                twin.directories[path] = _Directory(live=names, durable=dict(names))
                twin.durable_directories.add(path)
        for path in twin.directories.keys() - {"/"}:
            twin.directories[posixpath.dirname(path)].children.add(posixpath.basename(path))
        return twin

    def after_kill(self) -> CrashDisk:
        """The process is gone, the machine is not: everything written is still seen, nothing more is durable."""
        return self.photograph()

    # --- bytes for tests that tamper ---------------------------------------------------------------------------------

    def content(self, path: Path) -> bytes:
        """Live bytes of a file."""
        return bytes(self._inode(path).live)

    def put(self, path: Path, data: bytes) -> None:
        """Make or replace a file, durably, as somebody else would."""
        directory = self._directory(path.parent)
        if path.name not in directory.live:
            self.inodes[self._next_inode] = Inode()
            directory.live[path.name] = directory.durable[path.name] = self._next_inode
            self._next_inode += 1
        inode = self._inode(path)
        inode.live[:] = data
        inode.durable[:] = data
        inode.dirty.clear()
        inode.sizes.clear()

    def drop(self, path: Path) -> None:
        """Remove a file, durably, as somebody else would."""
        directory = self._directory(path.parent)
        directory.live.pop(path.name, None)
        directory.durable.pop(path.name, None)

    def everything(self) -> dict[Path, bytes]:
        """Every file with its live bytes."""
        return {
            Path(path, name): bytes(self.inodes[number].live)
            for path, directory in self.directories.items()
            for name, number in directory.live.items()
            if number in self.inodes
        }

    # --- server.wal.files.Disk ---------------------------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        with self.guard:
            for part in _chain(str(path)):
                if part not in self.directories:
                    self.called("mkdir", Path(part))
                    self.directories[part] = _Directory()
                    self.directories[posixpath.dirname(part)].children.add(posixpath.basename(part))
            for part in _chain(str(path)):
                if part not in self.durable_directories:
                    self.called("sync_directory", Path(part).parent)
                    self.durable_directories.add(part)

    def names(self, path: Path) -> list[str]:
        with self.guard:
            self.called("names", path)
            directory = self.directories.get(str(path))
            return sorted(directory.children | directory.live.keys()) if directory is not None else []

    def facts(self, path: Path) -> FileFacts | None:
        with self.guard:
            self.called("facts", path)
            if str(path) in self.directories:
                return FileFacts(is_file=False, is_link=False, mode=DIRECTORY_MODE, is_ours=True, size=0)
            directory = self.directories.get(str(path.parent))
            number = directory.live.get(path.name) if directory is not None else None
            if number is None:
                return None
            inode = self.inodes[number]
            return FileFacts(
                is_file=not inode.is_link,
                is_link=inode.is_link,
                mode=inode.mode,
                is_ours=inode.is_ours,
                size=len(inode.live),
            )

    def read(self, path: Path, offset: int, length: int) -> bytes:
        with self.guard:
            self.called("read", path)
            return bytes(self._inode(path).live[offset : offset + length])

    def create(self, path: Path) -> _CrashFile:
        with self.guard:
            self.called("create", path)
            directory = self._directory(path.parent)
            if path.name in directory.live:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            self.inodes[self._next_inode] = Inode()
            directory.change(**{path.name: self._next_inode})
            self._next_inode += 1
            return self._file(path)

    def open_append(self, path: Path) -> _CrashFile:
        with self.guard:
            self.called("open_append", path)
            return self._file(path)

    def rewrite(self, path: Path, offset: int, data: bytes) -> None:
        with self.guard:
            self.called("rewrite", path)
            inode = self._inode(path)
            there = inode.live[offset : offset + len(data)]
            assert data in (there, bytes(len(there))), "rewrite must not change a byte, except to zero"
            inode.write(offset, data)
            self.sync_file(path, inode)

    def truncate(self, path: Path, size: int) -> None:
        with self.guard:
            self.called("truncate", path)
            inode = self._inode(path)
            inode.truncate(size)
            self.sync_file(path, inode)

    def sync_file(self, path: Path, inode: Inode) -> None:
        """As fsync does it, on whatever descriptor."""
        try:
            self.called("sync", path)
        except OSError:
            inode.fail_to_sync(self.rng)
            raise
        inode.sync()
        self.called("synced", path)

    def rename(self, source: Path, target: Path) -> None:
        with self.guard:
            self.called("rename", target)
            if str(source) in self.directories:
                self._rename_directory(source, target)
                return
            directory = self._directory(source.parent)
            assert source.parent == target.parent
            number = directory.live.get(source.name)
            if number is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
            directory.change(**{source.name: None, target.name: number})

    def remove(self, path: Path) -> None:
        with self.guard:
            self.called("remove", path)
            self._inode(path)
            self._directory(path.parent).change(**{path.name: None})

    def sync_directory(self, path: Path) -> None:
        with self.guard:
            self.called("sync_directory", path)
            self._directory(path).sync()
            self.called("synced", path)

    def allocate(self, path: Path, size: int) -> None:
        with self.guard:
            self.called("allocate", path)
            directory = self._directory(path.parent)
            if path.name not in directory.live:
                self.inodes[self._next_inode] = Inode()
                directory.change(**{path.name: self._next_inode})
                self._next_inode += 1
            inode = self._inode(path)
            inode.truncate(min(size, len(inode.live)))
            inode.write(len(inode.live), bytes(size - len(inode.live)))
            self.called("sync", path)
            inode.sync()
            self.called("synced", path)

    def free_bytes(self, path: Path) -> int:
        with self.guard:
            self.called("free_bytes", path)
            self._directory(path)
            return self.free

    def lock(self, path: Path) -> _CrashLock:
        with self.guard:
            self.called("lock", path)
            if path in self.locks:
                raise WalLocked(f"the log in {path.parent} is in use")
            self.locks.add(path)
            return _CrashLock(self, path)

    def _rename_directory(self, source: Path, target: Path) -> None:
        for path in [path for path in self.directories if str(source) in _chain(path)]:
            moved = str(target) + path.removeprefix(str(source))
            self.directories[moved] = self.directories.pop(path)
            if path in self.durable_directories:
                self.durable_directories.discard(path)
                self.durable_directories.add(moved)
        self.directories[str(source.parent)].children.discard(source.name)
        self.directories[str(target.parent)].children.add(target.name)

    def _file(self, path: Path) -> _CrashFile:
        file = _CrashFile(self, path, self._inode(path))
        self.files.append(file)
        return file

    def _directory(self, path: Path) -> _Directory:
        try:
            return self.directories[str(path)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None

    def _inode(self, path: Path) -> Inode:
        number = self._directory(path.parent).live.get(path.name)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        inode = self.inodes[number]
        if inode.is_link:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return inode
