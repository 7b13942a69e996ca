"""The data directories: made private, and refused with a clear line when they cannot be.

Promises: what this makes is 0700 or 0600 whatever the umask. Does not follow symbolic links to secrets.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

from server.errors import DataDirUnusable

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


def read_or_make_secret(path: Path) -> bytes:
    """The 32 secret bytes in `path`, made when it is not there; raises DataDirUnusable when it cannot be trusted."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return _read_secret(path, flags)
    except FileNotFoundError:
        _make_secret(path)
        return _read_secret(path, flags)
    except OSError as error:
        raise DataDirUnusable(f"cannot read {path}: {error.strerror}") from error


def _read_secret(path: Path, flags: int) -> bytes:
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid():
            raise DataDirUnusable(f"{path} may be read by others", hint=f"chmod 600 {path} and check its owner")
        secret = file.read(SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        raise DataDirUnusable(f"{path} does not hold {SECRET_BYTES} bytes", hint="Put the file back from a copy")
    return secret


def _make_secret(path: Path) -> None:
    # Written under another name first: a crash must not leave a short secret behind.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(secrets.token_bytes(SECRET_BYTES))
        temporary.rename(path)
    except OSError as error:
        raise DataDirUnusable(f"cannot write {path}: {error.strerror}") from error


def socket_directory(prefix: str) -> Path:
    """A new directory, mode 0700, with a path short enough for sockets in it (names of up to 15 bytes)."""
    usual = Path(tempfile.mkdtemp(prefix=prefix))
    if len(os.fsencode(usual)) + _SOCKET_NAME_BYTES <= _MOST_SOCKET_BYTES:
        return usual
    usual.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
