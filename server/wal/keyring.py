"""Keys that sign the log: 32 bytes each, one file each, outside the segments, or given from elsewhere.

Promises: a key comes from the system's CSPRNG and is made for a log that holds nothing yet, or when an operator rotates
it; a key file that others may touch, that belongs to somebody else, or that is not a plain file, is refused. Never
remakes a key.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.errors import WalKeyMissing, WalKeyUnsafe
from server.wal.files import Disk, publish
from server.wal.keysource import ExternalKeys
from server.wal.signing import KEY_BYTES, key_id_of

KEYS_DIRECTORY = "keys"
KEY_SUFFIX = ".key"

Entropy = Callable[[int], bytes]

# Made anew by each process and never written: a fixed one could be signed with.
_NOBODYS_KEY = secrets.token_bytes(KEY_BYTES)


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys by id. `files` are those that have a file in `directory`; `external` are those given from elsewhere."""

    directory: Path
    keys: Mapping[bytes, bytes] = field(repr=False)
    files: frozenset[bytes] = frozenset()
    external: ExternalKeys | None = None

    def verifying(self, key_id: bytes) -> bytes:
        """The key to check a signature with; for an unknown id one that nobody knows, so that no signature fits."""
        return self.keys.get(key_id, _NOBODYS_KEY)

    def key(self, key_id: bytes, what: str) -> bytes:
        """The key with this id, which signed `what`; WalKeyMissing when it is not here."""
        try:
            return self.keys[key_id]
        except KeyError:
            name = key_id.hex() + KEY_SUFFIX
            if self.external is None:
                held = f"is not in {self.directory}"
                hint = f"Put {name} back there, or set wal.key_path or wal.key if the key is kept elsewhere"
            else:
                held = f"is neither in {self.external.origin} nor in {self.directory}"
                hint = f"Write the old key after the present one in {self.external.origin}, or put {name} there"
            raise WalKeyMissing(
                f"{what} was signed with key {key_id.hex()}, which {held}",
                hint=f"{hint}; without it no entry can be trusted and none is replayed",
            ) from None

    def signing(self, last_key_id: bytes) -> bytes:
        """Id of the key that signs from now on, after a log that ends with one signed with `last_key_id`."""
        return last_key_id if self.external is None else self.external.key_id

    def with_file(self, key: bytes) -> Keyring:
        """And this key, which has a file now."""
        key_id = key_id_of(key)
        return Keyring(self.directory, {**self.keys, key_id: key}, self.files | {key_id}, self.external)

    def without_files(self, gone: frozenset[bytes]) -> Keyring:
        """What is left when these files are gone."""
        given = self.external.by_id if self.external is not None else {}
        keys = {key_id: key for key_id, key in self.keys.items() if key_id not in gone or key_id in given}
        return Keyring(self.directory, keys, self.files - gone, self.external)


def load_keys(disk: Disk, wal_directory: Path, names: Sequence[str], external: ExternalKeys | None = None) -> Keyring:
    """The keys among the names in `keys/`, and those from elsewhere. Raises WalKeyUnsafe for one not to be trusted."""
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
    given = external.by_id if external is not None else {}
    return Keyring(directory, {**keys, **given}, frozenset(keys), external)


def create_key(disk: Disk, keyring: Keyring, entropy: Entropy) -> tuple[Keyring, bytes]:
    """Make a key, durably; the directory is there. Returns the keyring that has it, and the key."""
    key = entropy(KEY_BYTES)
    publish(disk, keyring.directory / (key_id_of(key).hex() + KEY_SUFFIX), [key])
    return keyring.with_file(key), key


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
