"""The data directories: made private, and refused with a clear line when they cannot be.

Promises: what this makes is 0700 or 0600 whatever the umask; a secret is whole or absent after a crash. Does not follow
symbolic links to secrets.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from server.errors import DataDirUnusable
from server.wal.files import Disk, RealDisk, publish

SECRET_BYTES = 32
# sun_path holds 108 bytes with its end.
_MOST_SOCKET_BYTES = 107
_SOCKET_NAME_BYTES = 16


def prepare_directory(path: Path) -> Path:
    """Make `path` a private directory of ours that can be written; raises DataDirUnusable."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.is_dir():
            raise DataDirUnusable(f"{path} is not a directory")
        path.chmod(0o700)
    except OSError as error:
        raise DataDirUnusable(f"cannot use directory {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataDirUnusable(f"cannot write to directory {path}")
    return path


def read_or_make_secret(path: Path, disk: Disk | None = None) -> bytes:
    """The 32 secret bytes in `path`, made when it is not there; raises DataDirUnusable when it cannot be trusted.

    What it returns is on the medium. A start that a full disk or a crash ended leaves nothing that the next one minds.
    """
    disk = RealDisk() if disk is None else disk
    try:
        if disk.facts(path) is None:
            publish(disk, path, [secrets.token_bytes(SECRET_BYTES)])
        return _read_secret(path, disk)
    except OSError as error:
        raise DataDirUnusable(f"cannot read or make {path}: {error.strerror or error}") from error


def _read_secret(path: Path, disk: Disk) -> bytes:
    facts = disk.facts(path)
    if facts is None or not facts.is_file:
        raise DataDirUnusable(f"{path} is not a plain file", hint="Replace the link by the file itself")
    if facts.mode & 0o077 or not facts.is_ours:
        raise DataDirUnusable(f"{path} may be read by others", hint=f"chmod 600 {path} and check its owner")
    secret = disk.read(path, 0, SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        raise DataDirUnusable(
            f"{path} does not hold {SECRET_BYTES} bytes",
            hint="Put the file back from a copy; or remove it: then each credential counts again once Qdrant took it",
        )
    return secret


def socket_directory(prefix: str) -> Path:
    """A new directory, mode 0700, with a path short enough for sockets in it (names of up to 15 bytes)."""
    usual = Path(tempfile.mkdtemp(prefix=prefix))
    if len(os.fsencode(usual)) + _SOCKET_NAME_BYTES <= _MOST_SOCKET_BYTES:
        return usual
    usual.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
