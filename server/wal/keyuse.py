"""What needs which key, and when an old one goes.

Promises: a key file is removed only after every file of the directory was looked at and none names it, and never one
that signs. What needs a key is read from the files themselves: segments, head, quarantined entries and whole copies
of them, under whatever name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from server.wal.files import TEMP_SUFFIX, Disk
from server.wal.keyring import KEY_SUFFIX, KEYS_DIRECTORY, Keyring
from server.wal.quarantine import MAGIC as QUARANTINE_MAGIC
from server.wal.record import HEAD_MAGIC, SEGMENT_MAGIC, peek_key_id
from server.wal.scan import HEAD_NAME, segment_number

_MAGICS = (SEGMENT_MAGIC, HEAD_MAGIC, QUARANTINE_MAGIC)
_PEEK_BYTES = 24


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One key: where it is (empty: nowhere), whether it signs what comes next, and the files that need it."""

    key_id: str
    origin: str
    signs: bool
    needed_by: tuple[str, ...]


def needs(disk: Disk, directory: Path) -> dict[bytes, list[str]]:
    """Files of a log by the id of the key that signed them, as far as their first bytes say."""
    found: dict[bytes, list[str]] = {}
    for path in _files(disk, directory):
        start = disk.read(path, 0, _PEEK_BYTES)
        if len(start) == _PEEK_BYTES and start.startswith(_MAGICS):
            found.setdefault(peek_key_id(start), []).append(str(path.relative_to(directory)))
    return found


def signing_now(disk: Disk, directory: Path) -> bytes:
    """Id of the key that the last segment names, else the head; empty when there is neither."""
    numbered = {number: name for name in disk.names(directory) if (number := segment_number(name)) is not None}
    name = numbered[max(numbered)] if numbered else HEAD_NAME
    if disk.facts(directory / name) is None:
        return b""
    return peek_key_id(disk.read(directory / name, 0, _PEEK_BYTES))


def key_uses(disk: Disk, directory: Path, keyring: Keyring, signing: bytes) -> list[KeyUse]:
    """Every key that is here or that something needs; the one that signs comes first."""
    needed = needs(disk, directory)
    rows = [
        KeyUse(key_id.hex(), _origin(keyring, key_id), key_id == signing, tuple(needed.get(key_id, ())))
        for key_id in {**dict.fromkeys(keyring.keys), **dict.fromkeys(needed)}
    ]
    return sorted(rows, key=lambda row: (not row.signs, row.key_id))


def prune(disk: Disk, directory: Path, keyring: Keyring, signing: Collection[bytes]) -> Keyring:
    """Remove key files that nothing needs and that sign nothing, durably; returns the keyring without them."""
    unused = keyring.files.difference(signing)
    if unused:
        unused -= needs(disk, directory).keys()
    if not unused:
        return keyring
    for key_id in sorted(unused):
        path = keyring.directory / (key_id.hex() + KEY_SUFFIX)
        if disk.facts(path) is not None:
            disk.remove(path)
    disk.sync_directory(keyring.directory)
    return keyring.without_files(unused)


def _origin(keyring: Keyring, key_id: bytes) -> str:
    if key_id in keyring.files:
        return str(keyring.directory / (key_id.hex() + KEY_SUFFIX))
    return keyring.external.origin if keyring.external is not None and key_id in keyring.keys else ""


def _files(disk: Disk, directory: Path) -> Iterator[Path]:
    """Plain files of a directory and of those in it. Key files and what an interrupted publish left are none of them.

    Links are not followed.
    """
    for name in disk.names(directory):
        path = directory / name
        facts = disk.facts(path)
        if facts is None or facts.is_link or name == KEYS_DIRECTORY or name.endswith(TEMP_SUFFIX):
            continue
        if facts.is_file:
            yield path
        else:
            yield from _files(disk, path)
