"""Entries that Qdrant refuses: one signed file each, kept until an operator decides.

Promises: a file is whole or absent after a crash; what is listed without a flaw was signed by this log; an entry leaves
only by `release`. A file that the disk does not give back has a flaw, and stands in the way of nothing else.
"""

from __future__ import annotations

import errno
import hmac
import logging
import struct
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import google_crc32c

from server.errors import WalDamaged, WalError
from server.wal.files import TEMP_SUFFIX, Disk, publish_all
from server.wal.keyring import Keyring
from server.wal.record import CRC_BYTES, VERSION, EntryState, Record
from server.wal.scan import QUARANTINE_DIRECTORY
from server.wal.signing import MAC_BYTES, Signer, subkey

MAGIC = b"USTDYQTN"
DETAILS_BYTES_MAX = 4096
_ITEM = struct.Struct("<8sHHI8s16sQHBBiIHHIIqq")
_U32 = struct.Struct("<I")
SUFFIX = ".entry"
# Errors that tell of this process and not of the file: another try may read it.
_OF_THE_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_log = logging.getLogger("understudy.wal")


@dataclass(frozen=True, slots=True)
class Refused:
    """An entry to be kept. `code` and `details` are Qdrant's."""

    record: Record
    code: int
    details: str


@dataclass(frozen=True, slots=True)
class QuarantineItem:
    """One refused entry. `code` and `details` are Qdrant's; `flaw` is set when the file is not to be trusted."""

    seq: int
    kind: int
    code: int
    details: str
    wall_ns: int
    path: Path
    flaw: str = ""


def encode_item(refused: Refused, key_id: bytes, key: bytes, log_id: bytes, *, now_ns: int) -> bytes:
    """The whole file of one refused entry."""
    record = refused.record
    text = _shortened(refused.details).encode()
    trace = record.trace.encode("ascii")
    plain = _ITEM.pack(
        MAGIC,
        VERSION,
        _ITEM.size,
        0,
        key_id,
        log_id,
        record.seq,
        record.kind,
        record.state.value,
        0,
        refused.code,
        record.points,
        len(record.principal),
        len(trace),
        len(text),
        len(record.body),
        record.wall_ns,
        now_ns,
    )
    signed = b"".join((plain, text, record.principal, trace, record.body))
    signed += Signer(subkey(key, "quarantine", log_id)).mac(signed)
    return signed + _U32.pack(google_crc32c.value(signed))


def _shortened(details: str) -> str:
    """Text that fits, cut between characters."""
    return details.encode("utf-8", "replace")[:DETAILS_BYTES_MAX].decode("utf-8", "ignore")


def decode_item(data: bytes, keyring: Keyring, path: Path) -> tuple[QuarantineItem, Record] | str:
    """The item and its entry, or what is wrong with the file."""
    if len(data) < _ITEM.size + MAC_BYTES + CRC_BYTES:
        return "the file is too short"
    if google_crc32c.value(data[:-CRC_BYTES]) != _U32.unpack(data[-CRC_BYTES:])[0]:
        return "its checksum does not match"
    fields = _ITEM.unpack_from(data)
    magic, version, _, _, key_id, log_id, seq, kind, state, _, code, points, *lengths, wall_ns, now_ns = fields
    if magic != MAGIC or version != VERSION:
        return "it has a format version that this Understudy does not know"
    key = keyring.keys.get(key_id)
    if key is None:
        return f"key {key_id.hex()} is missing"
    signed, mac = data[: -CRC_BYTES - MAC_BYTES], data[-CRC_BYTES - MAC_BYTES : -CRC_BYTES]
    if not hmac.compare_digest(mac, Signer(subkey(key, "quarantine", log_id)).mac(signed)):
        return "its signature does not match"
    principal_bytes, trace_bytes, text_bytes, body_bytes = lengths
    text_end = _ITEM.size + text_bytes
    principal_end = text_end + principal_bytes
    trace_end = principal_end + trace_bytes
    if trace_end + body_bytes != len(signed):
        return "its lengths do not add up"
    record = Record(
        seq=seq,
        kind=kind,
        state=EntryState(state),
        wall_ns=wall_ns,
        principal=data[text_end:principal_end],
        trace=data[principal_end:trace_end].decode("ascii"),
        body=data[trace_end : trace_end + body_bytes],
        points=points,
    )
    item = QuarantineItem(seq, kind, code, data[_ITEM.size : text_end].decode("utf-8", "replace"), now_ns, path)
    return item, record


class Quarantine:
    """The refused entries of one log. Blocking; safe to use from several threads.

    `guard` is held for each change, with its syncs. Who asks what is there does not wait for it, but for the first look
    at the directory; `count` and `sign_with` wait for nothing, so that the event loop may call them.
    """

    def __init__(self, disk: Disk, directory: Path, keyring: Keyring, key_id: bytes, log_id: bytes) -> None:
        self._disk = disk
        self._folder = directory / QUARANTINE_DIRECTORY
        self._keyring = keyring
        self._key_id = key_id
        self._log_id = log_id
        self.guard = threading.Lock()
        # Held for steps in memory only.
        self._memory = threading.Lock()
        # By name; set once, under the guard, and changed in place.
        self._items: dict[str, QuarantineItem] | None = None
        self._listed: int | None = None

    def keep(self, refused: Sequence[Refused], now_ns: int) -> None:
        """Write entries durably; the same entry again replaces it. A crash or an error may leave some of them there."""
        with self.guard:
            with self._memory:
                keyring, key_id = self._keyring, self._key_id
            key = keyring.key(key_id, "the quarantine")
            known = self._known()
            files = {}
            kept = {}
            for each in refused:
                record, path = each.record, self._path(each.record.seq)
                files[path] = [encode_item(each, key_id, key, self._log_id, now_ns=now_ns)]
                details = _shortened(each.details)
                kept[path.name] = QuarantineItem(record.seq, record.kind, each.code, details, now_ns, path)
            publish_all(self._disk, files)
            with self._memory:
                known |= kept

    def sign_with(self, keyring: Keyring, key_id: bytes) -> None:
        """Entries kept from now on are signed with this key; those before, and one that is on its way, are not."""
        with self._memory:
            self._keyring, self._key_id = keyring, key_id

    @property
    def count(self) -> int:
        """How many entries there are, damaged ones too. The names are listed once, until the directory is read."""
        known = self._items
        if known is not None:
            return len(known)
        if self._listed is None:
            self._listed = len(self._names())
        return self._listed

    def items(self) -> list[QuarantineItem]:
        """Every refused entry, oldest first; damaged ones carry a flaw."""
        known = self._read()
        with self._memory:
            found = list(known.items())
        return [item for _, item in sorted(found)]

    def entries(self, seqs: Collection[int] | None = None) -> Iterator[tuple[QuarantineItem, Record]]:
        """What is to be trusted, oldest first, each with its entry: all, or these. Files with a flaw are read again."""
        flawed = []
        for item in self.items() if seqs is None else self._among(seqs):
            decoded = self._load(item.path)
            if not isinstance(decoded, str):
                if item.flaw:
                    self._found(item, decoded[0])
                yield decoded
            elif self._found(item, replace(item, flaw=decoded)):
                flawed.append(item.path)
        if flawed:
            _log.warning("%d entries in quarantine are not to be trusted, the first: %s", len(flawed), flawed[0])

    def record(self, seq: int) -> Record:
        """The entry itself. Raises WalDamaged when its file is not to be trusted, WalError when there is none."""
        path = self._path(seq)
        if self._disk.facts(path) is None:
            raise WalError(f"entry {seq} is not in quarantine", hint="`understudy wal quarantine list` shows what is")
        decoded = self._load(path)
        if isinstance(decoded, str):
            raise WalDamaged(f"{path}: {decoded}", hint="Keep the file; `understudy wal quarantine drop` removes it")
        return decoded[1]

    def release(self, seq: int) -> None:
        """Remove an entry, durably."""
        path = self._path(seq)
        with self.guard:
            known = self._known()
            if self._disk.facts(path) is not None:
                self._disk.remove(path)
                self._disk.sync_directory(self._folder)
            with self._memory:
                known.pop(path.name, None)

    def _among(self, seqs: Collection[int]) -> list[QuarantineItem]:
        """Those of these entries that are here, oldest first."""
        known = self._read()
        found = (known.get(self._path(seq).name) for seq in sorted(seqs))
        return [item for item in found if item is not None]

    def _found(self, before: QuarantineItem, now: QuarantineItem) -> bool:
        """What a file looks like by now; False when it was released or replaced meanwhile."""
        known = self._read()
        with self._memory:
            if known.get(before.path.name) is not before:
                return False
            known[before.path.name] = now
            return True

    def _path(self, seq: int) -> Path:
        return self._folder / f"{seq:020d}{SUFFIX}"

    def _names(self) -> list[str]:
        return [name for name in self._disk.names(self._folder) if not name.endswith(TEMP_SUFFIX)]

    def _read(self) -> dict[str, QuarantineItem]:
        """What is known, for whoever does not hold the guard: it is taken for the first look only."""
        known = self._items
        if known is None:
            with self.guard:
                known = self._known()
        return known

    def _known(self) -> dict[str, QuarantineItem]:
        """What the directory holds, read once: nobody else changes it while we hold the lock of the log."""
        if self._items is None:
            self._items = {name: self._look(self._folder / name) for name in self._names()}
        return self._items

    def _look(self, path: Path) -> QuarantineItem:
        decoded = self._load(path)
        if isinstance(decoded, str):
            digits = path.name.removesuffix(SUFFIX)
            return QuarantineItem(int(digits) if digits.isdecimal() else 0, 0, 0, "", 0, path, decoded)
        return decoded[0]

    def _load(self, path: Path) -> tuple[QuarantineItem, Record] | str:
        try:
            facts = self._disk.facts(path)
            if facts is None or not facts.is_file:
                return "it is not a plain file"
            data = self._disk.read(path, 0, facts.size)
        except OSError as error:
            if error.errno in _OF_THE_PROCESS:
                raise
            return f"it cannot be read: {error.strerror or error}"
        decoded = decode_item(data, self._keyring, path)
        if not isinstance(decoded, str) and path != self._path(decoded[1].seq):
            return f"it is entry {decoded[1].seq} under another name"
        return decoded
