"""Keys that sign the log: 32 bytes each, one file each, outside the segments.

Promises: a key comes from the system's CSPRNG and is made once, for a log that holds nothing yet; a key file that
others may touch, that belongs to somebody else, or that is not a plain file, is refused. Never remakes a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import WalKeyMissing, WalKeyUnsafe
from server.wal.files import Disk, publish
from server.wal.signing import KEY_BYTES, key_id_of

KEYS_DIRECTORY = "keys"
KEY_SUFFIX = ".key"

Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys by id."""

    directory: Path
    keys: Mapping[bytes, bytes]

    def key(self, key_id: bytes, what: str) -> bytes:
        """The key with this id, which signed `what`; WalKeyMissing when it is not here."""
        try:
            return self.keys[key_id]
        except KeyError:
            raise WalKeyMissing(
                f"{what} was signed with key {key_id.hex()}, which is not in {self.directory}",
                hint=f"Put {key_id.hex()}{KEY_SUFFIX} back; without it no entry can be trusted and none is replayed",
            ) from None


def load_keys(disk: Disk, wal_directory: Path, names: Sequence[str]) -> Keyring:
    """The keys among the names in `keys/`. Raises WalKeyUnsafe for a file that cannot be trusted."""
    directory = wal_directory / KEYS_DIRECTORY
    keys = {}
    for name in names:
        if name.endswith(KEY_SUFFIX):
            key = _load_key(disk, directory / name)
            if name != key_id_of(key).hex() + KEY_SUFFIX:
                raise WalKeyUnsafe(
                    f"key file {directory / name} holds key {key_id_of(key).hex()}",
                    hint="It was changed or renamed: put the right file back",
                )
            keys[key_id_of(key)] = key
    return Keyring(directory, keys)


def create_key(disk: Disk, wal_directory: Path, entropy: Entropy) -> Keyring:
    """Make the first key of an empty log; the directory is there."""
    directory = wal_directory / KEYS_DIRECTORY
    key = entropy(KEY_BYTES)
    key_id = key_id_of(key)
    publish(disk, directory / (key_id.hex() + KEY_SUFFIX), [key])
    return Keyring(directory, {key_id: key})


def _load_key(disk: Disk, path: Path) -> bytes:
    facts = disk.facts(path)
    if facts is None or facts.is_link or not facts.is_file:
        raise WalKeyUnsafe(f"key file {path} is not a plain file", hint="Replace the link by the file itself")
    if not facts.is_ours:
        raise WalKeyUnsafe(f"key file {path} belongs to another user", hint="chown it to the user that runs Understudy")
    if facts.mode & 0o077:
        raise WalKeyUnsafe(f"key file {path} has mode {facts.mode:04o}", hint=f"chmod 600 {path}")
    key = disk.read(path, 0, KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise WalKeyUnsafe(
            f"key file {path} does not hold {KEY_BYTES} bytes", hint="It was changed: put the right file back"
        )
    return key
