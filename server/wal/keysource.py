"""Keys of the log that come from outside its directory: a file elsewhere, the environment, a systemd credential.

Promises: reads only; a source that is named and cannot be trusted or understood is refused, never passed over for
another one; no text of an error and no `repr` holds a key. The first key signs, those after it are earlier ones.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server import config
from server.errors import ConfigError, WalKeyMissing, WalKeyUnsafe
from server.wal.files import Disk
from server.wal.signing import KEY_BYTES, key_id_of

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
CREDENTIAL_NAME = "understudy-wal-key"
SOURCE_BYTES_MAX = 16 * 1024
KEYS_MAX = 100
# 32 bytes of a CSPRNG never hold fewer different values; a placeholder does.
_DIFFERENT_BYTES_LEAST = 8
_HEX_CHARACTERS = 2 * KEY_BYTES
_FORMS = "64 hex digits or base64 of 32 bytes; `openssl rand -hex 32` makes one"


@dataclass(frozen=True, slots=True)
class ExternalKeys:
    """Keys from one source, `origin`; the first one signs."""

    origin: str
    keys: tuple[bytes, ...] = field(repr=False)

    @property
    def key(self) -> bytes:
        """The key that signs what comes next."""
        return self.keys[0]

    @property
    def key_id(self) -> bytes:
        """Its id."""
        return key_id_of(self.key)

    @property
    def by_id(self) -> dict[bytes, bytes]:
        """All of them."""
        return {key_id_of(key): key for key in self.keys}


def external_keys(settings: config.Wal, environment: Mapping[str, str], disk: Disk) -> ExternalKeys | None:
    """The keys from outside; None when the log has its own in `wal/keys`.

    `wal.key` or `wal.key_path`, else the systemd credential. Raises ConfigError for both settings at once,
    WalKeyMissing for a file that is not there, WalKeyUnsafe for one that others may touch or that holds no key.
    """
    if settings.key is not None and settings.key_path is not None:
        raise ConfigError(
            "wal.key and wal.key_path are both set", hint="Keep one of them: which key signs must not be in doubt"
        )
    if settings.key is not None:
        return parse_keys(settings.key.get_secret_value().encode(), "wal.key")
    credentials = Path(environment[CREDENTIALS_VARIABLE]) if environment.get(CREDENTIALS_VARIABLE) else None
    if settings.key_path is not None:
        path = settings.key_path.absolute()
        return _read(disk, path, f"wal.key_path {path}", is_credential=path.parent == credentials)
    if credentials is None or not _is_there(disk, credentials / CREDENTIAL_NAME):
        return None
    path = credentials / CREDENTIAL_NAME
    return _read(disk, path, f"the systemd credential {path}", is_credential=True)


def parse_keys(data: bytes, origin: str) -> ExternalKeys:
    """The keys of a text: words of hex or base64, parted by white space or commas."""
    return _checked([_decoded(word) for word in data.replace(b",", b" ").split()], origin)


def _checked(words: list[bytes], origin: str) -> ExternalKeys:
    if not words or b"" in words:
        raise WalKeyUnsafe(f"{origin} holds something that is not a key of {KEY_BYTES} bytes", hint=f"Write {_FORMS}")
    if len(words) > KEYS_MAX:
        raise WalKeyUnsafe(f"{origin} holds {len(words)} keys", hint=f"At most {KEYS_MAX}: take old ones away")
    if any(len(set(word)) < _DIFFERENT_BYTES_LEAST for word in words):
        raise WalKeyUnsafe(f"{origin} holds a key that anybody could guess", hint=f"Write {_FORMS}")
    return ExternalKeys(origin, tuple(dict.fromkeys(words)))


def _decoded(word: bytes) -> bytes:
    """One key; empty when it is none."""
    try:
        if len(word) == _HEX_CHARACTERS:
            return binascii.unhexlify(word)
        padded = word.rstrip(b"=") + b"=" * (-len(word.rstrip(b"=")) % 4)
        key = base64.b64decode(padded, altchars=b"-_" if set(word) & set(b"-_") else None, validate=True)
    except binascii.Error:
        return b""
    return key if len(key) == KEY_BYTES else b""


def _is_there(disk: Disk, path: Path) -> bool:
    try:
        return disk.facts(path) is not None
    except OSError as error:
        raise WalKeyUnsafe(f"cannot look at {path}: {error.strerror or error}") from error


def _read(disk: Disk, path: Path, origin: str, *, is_credential: bool) -> ExternalKeys:
    """The keys in a file that only we may read, or that systemd gave us."""
    try:
        facts = disk.facts(path)
        if facts is None:
            raise WalKeyMissing(f"{origin}: there is no such file", hint="Put the key there, or mend the setting")
        if facts.is_link or not facts.is_file:
            raise WalKeyUnsafe(f"{origin} is not a plain file", hint="Name the file itself, not a link to it")
        # systemd owns what it hands out; for a user's service it adds an ACL, whose mask shows as bits of the group.
        allowed = 0o740 if is_credential else 0o700
        if not (facts.is_ours or (is_credential and facts.is_roots)):
            raise WalKeyUnsafe(f"{origin} belongs to another user", hint="chown it to the user that runs Understudy")
        if facts.mode & ~allowed & 0o777:
            raise WalKeyUnsafe(f"{origin} has mode {facts.mode:04o}", hint=f"chmod 600 {path}")
        data = disk.read(path, 0, SOURCE_BYTES_MAX + 1)
    except OSError as error:
        hint = "Make it readable for the user that runs Understudy, and for nobody else"
        raise WalKeyUnsafe(f"{origin} cannot be read: {error.strerror or error}", hint=hint) from error
    if len(data) > SOURCE_BYTES_MAX:
        raise WalKeyUnsafe(f"{origin} is larger than {SOURCE_BYTES_MAX} bytes", hint=f"Write {_FORMS}")
    return _checked([data], origin) if _is_raw(data) else parse_keys(data, origin)


def _is_raw(data: bytes) -> bool:
    """Whether a file holds one key as it is. 32 characters of text are a password, or half a key."""
    return len(data) == KEY_BYTES and not (data.isascii() and data.decode("ascii").strip().isprintable())
