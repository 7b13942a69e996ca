"""The disk: the only module that syncs.

Promises: `Disk` is every system call that the log makes on files, so that a simulated disk can stand in; files are made
0600 and directories 0700 whatever the umask; symbolic links are not followed; `append` writes all or raises. Does not
promise that the medium keeps what it was told to keep: see "Assumptions" in docs/wal-format.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from server.errors import DataDirUnusable, WalLocked

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
TEMP_SUFFIX = ".tmp"
# writev takes at most this many buffers (IOV_MAX on Linux).
_BUFFERS_MAX = 1024
_ZEROS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What lstat says about a name."""

    is_file: bool
    is_link: bool
    mode: int
    is_ours: bool
    size: int
    is_roots: bool = field(default=False, compare=False)


class OpenFile(Protocol):
    """A file open for appending: its end is where the last append that worked has ended."""

    def append(self, parts: Sequence[bytes]) -> None:
        """Write all parts at the end; OSError when not all was written."""
        ...

    def make_room(self, length: int) -> None:
        """Write zeros behind the end, which stays where it is: once synced, appends there leave the size alone."""
        ...

    def sync(self) -> None:
        """fdatasync: what was appended, and the size, are on the medium when this returns."""
        ...

    def close(self) -> None:
        """Close without syncing."""
        ...


class Lock(Protocol):
    """A held lock."""

    def release(self) -> None:
        """Let others have the directory."""
        ...


class Disk(Protocol):
    """Every call on files that the log makes. Paths are absolute; errors are OSError unless said otherwise."""

    def make_directory(self, path: Path) -> None:
        """Make a directory 0700 with its parents, durably; tighten one of ours that is looser."""
        ...

    def names(self, path: Path) -> list[str]:
        """Names in a directory, sorted; empty when there is no directory."""
        ...

    def facts(self, path: Path) -> FileFacts | None:
        """What is known of a name without following links; None when there is nothing."""
        ...

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        ...

    def create(self, path: Path) -> OpenFile:
        """A new empty file, 0600; FileExistsError when the name is taken."""
        ...

    def open_append(self, path: Path) -> OpenFile:
        """An existing file, to be appended to."""
        ...

    def rewrite(self, path: Path, offset: int, data: bytes) -> None:
        """Write over bytes that are there, with the same ones or with zeros, and sync the file."""
        ...

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file and sync it."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Rename over whatever is there; durable after sync_directory."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file; durable after sync_directory."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Names in this directory are on the medium when this returns."""
        ...

    def allocate(self, path: Path, size: int) -> None:
        """Make or adjust a file, 0600, to `size` bytes with real blocks, and sync it. Its content is of no use."""
        ...

    def free_bytes(self, path: Path) -> int:
        """What unprivileged processes may still write on the file system of a directory."""
        ...

    def lock(self, path: Path) -> Lock:
        """Take the lock file or raise WalLocked at once."""
        ...


def publish(disk: Disk, path: Path, parts: Sequence[bytes]) -> None:
    """Make or replace a file so that a crash leaves the old one or the new one, whole.

    Temporary name, sync, rename, sync the directory. What a failed attempt leaves is a `*.tmp`; the next open removes
    it.
    """
    publish_all(disk, {path: parts})


def publish_all(disk: Disk, files: Mapping[Path, Sequence[bytes]]) -> None:
    """The same for several files, with one sync of each directory: a crash leaves each of them old or new."""
    for path, parts in files.items():
        temporary = path.with_name(path.name + TEMP_SUFFIX)
        if disk.facts(temporary) is not None:
            disk.remove(temporary)
        file = disk.create(temporary)
        try:
            file.append(parts)
            file.sync()
        finally:
            file.close()
        disk.rename(temporary, path)
    for directory in dict.fromkeys(path.parent for path in files):
        disk.sync_directory(directory)


def cut_off(disk: Disk, path: Path, offset: int) -> None:
    """Cut a file at `offset`, durably, so that what was there never comes back.

    A power cut in a later write to the same place may leave what the medium held there before. Whole frames would have
    the right checksum and follow others than those before them: they would look forged. So zeros go over them first.
    """
    facts = disk.facts(path)
    end = offset if facts is None else facts.size
    for start in range(offset, end, _ZEROS_BYTES):
        disk.rewrite(path, start, bytes(min(_ZEROS_BYTES, end - start)))
    disk.truncate(path, offset)


class _RealFile:
    """See OpenFile."""

    def __init__(self, descriptor: int, end: int) -> None:
        self._descriptor = descriptor
        self._end = end

    def append(self, parts: Sequence[bytes]) -> None:
        end = self._end
        for start in range(0, len(parts), _BUFFERS_MAX):
            end = _write_all(self._descriptor, parts[start : start + _BUFFERS_MAX], end)
        self._end = end

    def make_room(self, length: int) -> None:
        _write_all(self._descriptor, [bytes(length)], self._end)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        # Linux frees the number even when close reports an error: a second close would hit somebody else's file.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _write_all(descriptor: int, parts: Sequence[bytes], offset: int) -> int:
    """Returns the offset behind them."""
    end = offset + sum(map(len, parts))
    offset += os.pwritev(descriptor, parts, offset)
    if offset == end:
        return end
    rest = memoryview(b"".join(parts))[offset - end :]
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        if written == 0:
            raise OSError(errno.EIO, "the disk took no more bytes")
        offset += written
        rest = rest[written:]
    return end


class _RealLock:
    """See Lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        os.close(self._descriptor)


class RealDisk:
    """See Disk: the disk of this machine."""

    def make_directory(self, path: Path) -> None:
        try:
            for part in (*reversed(path.parents), path):
                if not part.exists():
                    part.mkdir(DIRECTORY_MODE)
                    part.chmod(DIRECTORY_MODE)
            self._tighten(path)
            self._sync_names_up_to(path)
        except OSError as error:
            raise DataDirUnusable(f"cannot make directory {error.filename}: {error.strerror}") from error

    def _sync_names_up_to(self, path: Path) -> None:
        """A directory found here may come from an attempt that a crash ended before its name was synced."""
        for part in (path, *path.parents[:-1]):
            try:
                self.sync_directory(part.parent)
            except PermissionError:
                # Above what is ours: whoever made it is not us.
                return

    def _tighten(self, path: Path) -> None:
        found = path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise DataDirUnusable(f"{path} is not a directory")
        if found.st_uid != os.geteuid():
            raise DataDirUnusable(f"{path} belongs to user {found.st_uid}, not to us ({os.geteuid()})")
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(DIRECTORY_MODE)

    def names(self, path: Path) -> list[str]:
        try:
            return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []

    def facts(self, path: Path) -> FileFacts | None:
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        return FileFacts(
            is_file=stat.S_ISREG(found.st_mode),
            is_link=stat.S_ISLNK(found.st_mode),
            mode=stat.S_IMODE(found.st_mode),
            is_ours=found.st_uid == os.geteuid(),
            size=found.st_size,
            is_roots=found.st_uid == 0,
        )

    def read(self, path: Path, offset: int, length: int) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            parts = []
            while length > 0:
                part = os.pread(descriptor, length, offset)
                if not part:
                    break
                parts.append(part)
                offset += len(part)
                length -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(descriptor)

    def create(self, path: Path) -> OpenFile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, FILE_MODE)
        try:
            # The umask can only take bits away; an umask such as 0377 would leave a file that we cannot read back.
            os.fchmod(descriptor, FILE_MODE)
        except OSError:
            os.close(descriptor)
            raise
        return _RealFile(descriptor, 0)

    def open_append(self, path: Path) -> OpenFile:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return _RealFile(descriptor, os.fstat(descriptor).st_size)
        except OSError:
            os.close(descriptor)
            raise

    def rewrite(self, path: Path, offset: int, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            rest = memoryview(data)
            while rest:
                written = os.pwrite(descriptor, rest, offset)
                offset += written
                rest = rest[written:]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, path: Path, size: int) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def allocate(self, path: Path, size: int) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        try:
            os.fchmod(descriptor, FILE_MODE)
            os.ftruncate(descriptor, size)
            os.posix_fallocate(descriptor, 0, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def lock(self, path: Path) -> Lock:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise DataDirUnusable(f"cannot open lock file {path}: {error.strerror}") from error
        try:
            _take_lock(descriptor, path)
        except WalLocked:
            os.close(descriptor)
            raise
        except OSError as error:
            os.close(descriptor)
            raise DataDirUnusable(f"cannot lock {path}: {error.strerror}") from error
        return _RealLock(descriptor)


def refuse_when_held(path: Path) -> None:
    """Raise WalLocked when another process holds this lock file; changes nothing on disk, makes nothing.

    For those who want to know before they do anything else. Only `Disk.lock` holds it for what comes after.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        # None is there, or it is not to be opened: taking it says what is wrong.
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _held_by(descriptor, path) from error
    finally:
        os.close(descriptor)


def _held_by(descriptor: int, path: Path) -> WalLocked:
    holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return WalLocked(f"the log in {path.parent} is in use by process {holder or 'unknown'}")


def _take_lock(descriptor: int, path: Path) -> None:
    """Lock the open file and leave our process id in it, for whoever finds it locked."""
    os.fchmod(descriptor, FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _held_by(descriptor, path) from error
    # Whoever renamed or removed the directory meanwhile locks another file than we do.
    if not os.path.samestat(os.fstat(descriptor), path.lstat()):
        raise WalLocked(f"the log in {path.parent} was moved while it was being opened")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
