"""What is remembered of credentials that Qdrant accepted: keyed hashes and rights, in RAM and in one file.

Promises: the file holds HMAC-SHA256 values under a secret that lies elsewhere, never a credential; it is replaced
whole, 0600 and synced; a file that was changed, or made under another secret, is set aside and nothing in it counts.
The number of credentials, and of collections for each, is bounded: the one unused for longest goes first.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import DataDirUnusable
from server.wal.files import Disk, publish

FORMAT = 1
COLLECTIONS_PER_TOKEN = 256
FILE_BYTES = 64 * 1024 * 1024
_FILE_LABEL = b"understudy credentials file v1"
_VALUE_LABEL = b"understudy credential v1"


@dataclass(slots=True)
class Grant:
    """What Qdrant was seen to allow. A token tied to collections has `read_in` and `write_in`, any other the flags."""

    reads: bool = False
    writes: bool = False
    read_in: set[str] = field(default_factory=set)
    write_in: set[str] = field(default_factory=set)
    expires: int | None = None
    is_used: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of it."""
        return not (self.reads or self.writes or self.read_in or self.write_in)


@dataclass(slots=True)
class Ledger:
    """The memory. `had_upstream`: a Qdrant was configured once. `is_open`: Qdrant serves calls without a key."""

    had_upstream: bool = False
    is_open: bool = False
    grants: dict[bytes, Grant] = field(default_factory=dict)

    def make_room(self, limit: int, now_s: int) -> None:
        """Forget until one more fits: first tokens past their time, then whoever was not used since the last look."""
        if len(self.grants) < limit:
            return
        past = [one for one, grant in self.grants.items() if grant.expires is not None and grant.expires <= now_s]
        for digest in past:
            del self.grants[digest]
        while len(self.grants) >= limit:
            digest, grant = next(iter(self.grants.items()))
            del self.grants[digest]
            if grant.is_used:
                grant.is_used = False
                self.grants[digest] = grant

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        return {
            "had_upstream": self.had_upstream,
            "open": self.is_open,
            "grants": {
                digest.hex(): {
                    "reads": grant.reads,
                    "writes": grant.writes,
                    "read_in": sorted(grant.read_in),
                    "write_in": sorted(grant.write_in),
                    "expires": grant.expires,
                }
                for digest, grant in self.grants.items()
            },
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Ledger:
        """Reverse of `to_json`; raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            had_upstream=bool(content["had_upstream"]),
            is_open=bool(content["open"]),
            grants={
                bytes.fromhex(digest): Grant(
                    reads=bool(entry["reads"]),
                    writes=bool(entry["writes"]),
                    read_in=set(map(str, entry["read_in"])),
                    write_in=set(map(str, entry["write_in"])),
                    expires=None if entry["expires"] is None else int(entry["expires"]),
                    is_used=False,
                )
                for digest, entry in content["grants"].items()
            },
        )


class LedgerFile:
    """The ledger on disk. All methods block."""

    def __init__(self, path: Path, secret: bytes, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._file_key = hmac.digest(secret, _FILE_LABEL, "sha256")
        self._value_key = hmac.digest(secret, _VALUE_LABEL, "sha256")

    def digest(self, value: str) -> bytes:
        """32 bytes that stand for a credential and say nothing about it without the secret."""
        return hmac.digest(self._value_key, value.encode("utf-8", "surrogatepass"), "sha256")

    def load(self, now_ns: int) -> tuple[Ledger, str | None]:
        """The ledger, and what was wrong with the file if anything was. A bad file is renamed, never overwritten.

        Raises DataDirUnusable when the name is taken by something that is no file of ours.
        """
        facts = self._disk.facts(self._path)
        if facts is None:
            return Ledger(), None
        if not facts.is_file or not facts.is_ours:
            raise DataDirUnusable(f"{self._path} is not a file of ours")
        ledger = self._decoded(self._disk.read(self._path, 0, min(facts.size, FILE_BYTES)))
        if ledger is not None:
            return ledger, None
        aside = self._path.with_name(f"{self._path.name}.corrupted.{now_ns}")
        self._disk.rename(self._path, aside)
        self._disk.sync_directory(self._path.parent)
        # Whoever changed the file may have meant to open the door: a Qdrant is taken to have been there.
        return Ledger(had_upstream=True), f"{self._path} was changed or belongs to another secret; kept as {aside.name}"

    def save(self, content: dict[str, Any]) -> None:
        """Replace the file; raises OSError."""
        body = _canonical(content)
        frame = {"format": FORMAT, "mac": self._mac(body), "ledger": content}
        publish(self._disk, self._path, [_canonical(frame) + b"\n"])

    def _decoded(self, raw: bytes) -> Ledger | None:
        try:
            frame = json.loads(raw)
            content, mac = frame["ledger"], str(frame["mac"])
            if frame["format"] != FORMAT or not hmac.compare_digest(mac, self._mac(_canonical(content))):
                return None
            return Ledger.from_json(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def _mac(self, body: bytes) -> str:
        return hmac.new(self._file_key, body, hashlib.sha256).hexdigest()


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
