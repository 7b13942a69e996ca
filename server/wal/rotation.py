"""The keys of an open log: how a new one takes over, and when old ones go.

Promises: a new key is on the medium before anything is signed with it. In order: the key file, a segment signed with
the key, the head; a crash between two of these leaves a log that opens, and goes on with the key of its last segment.
So do quarantined entries, whatever becomes of the head: a key that anything may still be signed with is not removed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.errors import WalError, WalFull, WalKeyExternal
from server.wal.encoder import Encoder
from server.wal.files import Disk
from server.wal.keyring import Entropy, Keyring, create_key
from server.wal.keyuse import KeyUse, key_uses, prune
from server.wal.quarantine import Quarantine
from server.wal.signing import key_id_of


class LogKeys:
    """The keys of an open log. Calls follow one another: the log holds its lock of retirement around each."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        keyring: Keyring,
        *,
        entropy: Entropy,
        encoder: Encoder,
        quarantine: Quarantine,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._keyring = keyring
        self._entropy = entropy
        self._encoder = encoder
        self._quarantine = quarantine
        # What the quarantine signs with.
        self._key_id = encoder.head.key_id

    async def make(self) -> bytes:
        """A new key, on the medium. Raises WalKeyExternal when keys come from elsewhere."""
        external = self._keyring.external
        if external is not None:
            raise WalKeyExternal(
                f"the key comes from {external.origin}, which Understudy does not write",
                hint="Put a new key first there (`openssl rand -hex 32`), keep the present one after it, and restart "
                "Understudy: it signs with the new one from then on. `understudy wal key list` shows when the old one "
                "is not needed any more",
            )
        try:
            self._keyring, key = await asyncio.to_thread(create_key, self._disk, self._keyring, self._entropy)
        except OSError as error:
            raise WalError(f"cannot write a new key to {self._keyring.directory}: {error.strerror or error}") from error
        return key

    def began(self, key_id: bytes) -> None:
        """A segment signed with this key is there: quarantined entries are from now on, too."""
        if key_id != self._key_id:
            self._quarantine.sign_with(self._keyring, key_id)
            self._key_id = key_id

    def took_over(self, key: bytes) -> str:
        """The id of a key, once segments are signed with it.

        Raises WalFull when the first one could not be made: the log goes on with the key before.
        """
        key_id = key_id_of(key)
        if self._encoder.head.key_id != key_id:
            hint = "Free space there and rotate again; nothing was signed with the new key"
            raise WalFull(f"the disk of {self._directory} is full: the log keeps its key", hint=hint)
        return key_id.hex()

    async def prune(self) -> None:
        """Remove key files that nothing needs; looks at nothing while there is one key."""
        try:
            self._keyring = await asyncio.to_thread(self._prune)
        except FileNotFoundError:
            # A file went while they were looked at: nothing is proven now, the next call looks again.
            return
        except OSError as error:
            raise WalError(f"cannot remove an old key: {error.strerror or error}") from error

    def _prune(self) -> Keyring:
        # An entry that is on its way into the quarantine was signed with a key that may be the one to go.
        with self._quarantine.guard:
            return prune(self._disk, self._directory, self._keyring, {self._encoder.head.key_id, self._key_id})

    async def uses(self) -> list[KeyUse]:
        """See `key_uses`."""
        try:
            return await asyncio.to_thread(
                key_uses, self._disk, self._directory, self._keyring, self._encoder.head.key_id
            )
        except OSError as error:
            raise WalError(f"cannot read the log in {self._directory}: {error.strerror or error}") from error
