"""Entries that Qdrant refuses: one signed file each, kept until an operator decides.

Promises: a file is whole or absent after a crash; what is listed was signed by this log; nothing is removed here.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from server.wal.files import TEMP_SUFFIX, Disk, publish
from server.wal.keyring import Keyring
from server.wal.record import CRC_BYTES, MAC_BYTES, VERSION, EntryState, Record, Signer, subkey
from server.wal.scan import QUARANTINE_DIRECTORY

MAGIC = b"USTDYQTN"
DETAILS_BYTES_MAX = 4096
_ITEM = struct.Struct("<8sHHI8s16sQHBBiIHHIIqq")
_U32 = struct.Struct("<I")
SUFFIX = ".entry"


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


def encode_item(
    record: Record, key_id: bytes, key: bytes, log_id: bytes, *, code: int, details: str, now_ns: int
) -> bytes:
    """The whole file of one refused entry."""
    text = details.encode("utf-8", "replace")[:DETAILS_BYTES_MAX].decode("utf-8", "ignore").encode()
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
        code,
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


def keep(disk: Disk, directory: Path, seq: int, data: bytes) -> Path:
    """Write one item durably."""
    folder = directory / QUARANTINE_DIRECTORY
    disk.make_directory(folder)
    path = folder / f"{seq:020d}{SUFFIX}"
    publish(disk, path, [data])
    return path


def list_items(disk: Disk, directory: Path, keyring: Keyring) -> list[QuarantineItem]:
    """Every item, oldest first; damaged ones carry a flaw."""
    folder = directory / QUARANTINE_DIRECTORY
    items = []
    for name in disk.names(folder):
        if name.endswith(TEMP_SUFFIX):
            continue
        path = folder / name
        decoded = load(disk, path, keyring)
        if isinstance(decoded, str):
            digits = name.removesuffix(SUFFIX)
            items.append(QuarantineItem(int(digits) if digits.isdecimal() else 0, 0, 0, "", 0, path, decoded))
        else:
            items.append(decoded[0])
    return items


def load(disk: Disk, path: Path, keyring: Keyring) -> tuple[QuarantineItem, Record] | str:
    """One item from its file, or what is wrong with it."""
    facts = disk.facts(path)
    if facts is None or not facts.is_file:
        return "it is not a plain file"
    return decode_item(disk.read(path, 0, facts.size), keyring, path)
