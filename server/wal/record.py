"""PURE. The bytes of the log: segment header, frame, head.

Promises: encode and decode are inverse; decoding never raises on any input and never allocates more than the input
holds; every bit of a segment, frame or head is covered by a CRC32C and by an HMAC-SHA256. Does no I/O, reads no clock.
The drawing of every byte is docs/wal-format.md.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import google_crc32c

from server.wal.signing import MAC_BYTES, Signer, subkey

VERSION = 1
CRC_BYTES = 4
PRINCIPAL_BYTES = 32
TRACE_BYTES_MAX = 512

SEGMENT_MAGIC = b"USTDYSEG"
HEAD_MAGIC = b"USTDYHED"
FRAME_MAGIC = b"\xf5UwF"

_SEGMENT = struct.Struct("<8sHHI8s16sQQQQQ16s32s")
_HEAD = struct.Struct("<8sHHI8s16sQQQQQQQ32s")
_FRAME = struct.Struct("<4sBBHIHHIIQQQQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

SEGMENT_HEADER_BYTES = _SEGMENT.size + MAC_BYTES + CRC_BYTES
HEAD_BYTES = _HEAD.size + MAC_BYTES + CRC_BYTES
FRAME_HEADER_BYTES = _FRAME.size + CRC_BYTES
FRAME_TRAILER_BYTES = MAC_BYTES + CRC_BYTES
FRAME_OVERHEAD_BYTES = FRAME_HEADER_BYTES + FRAME_TRAILER_BYTES

_HEAD_CLEAN = 1


class EntryState(Enum):
    """What Qdrant knew of an entry when it was appended."""

    PENDING = 1
    SYNCED = 2


class FrameType(IntEnum):
    """What a frame is."""

    ENTRY = 1
    CURSOR = 2
    SEAL = 3
    GAP = 4


@dataclass(frozen=True, slots=True)
class NewRecord:
    """An entry to be appended. `principal` is 32 bytes or empty, `trace` a traceparent or empty."""

    kind: int
    state: EntryState
    body: bytes
    principal: bytes = b""
    trace: str = ""
    points: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """An entry of the log."""

    seq: int
    kind: int
    state: EntryState
    wall_ns: int
    principal: bytes
    trace: str
    body: bytes
    points: int


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """First bytes of a segment. `previous_mac` and `previous_bytes` tie it to the segment before."""

    key_id: bytes
    log_id: bytes
    number: int
    first_seq: int
    replayed_seq: int
    wall_ns: int
    previous_bytes: int
    salt: bytes
    previous_mac: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The signed statement of how far the log reached when it was written.

    Everything up to `tail_offset` of segment `tail_segment` was durable, so a log that ends earlier was cut.
    `tail_offset` 0 = that segment may not exist yet. Segments below `first_segment` are retired.
    """

    key_id: bytes
    log_id: bytes
    generation: int
    first_segment: int
    tail_segment: int
    tail_offset: int
    last_seq: int
    replayed_seq: int
    wall_ns: int
    tail_mac: bytes
    clean: bool


class Flaw(Enum):
    """What is wrong with bytes that should be a frame, a header or a head."""

    SHORT = "the file ends inside it"
    GARBLED = "its checksum does not match"
    FORGED = "its signature does not match"
    UNKNOWN_VERSION = "it has a format version that this Understudy does not know"
    ILLEGAL = "it is signed and yet not allowed here"


class Frame(NamedTuple):
    """One decoded frame. What is not a field of every frame is looked at through `record` and `replayed_seq`."""

    type: FrameType
    seq: int
    length: int
    mac: bytes
    durable_before: int
    head_generation: int
    kind: int
    state: EntryState | None
    wall_ns: int
    points: int
    principal_bytes: int
    trace_bytes: int
    payload: bytes

    @property
    def record(self) -> Record | None:
        """The entry of an ENTRY frame."""
        if self.state is None:
            return None
        body_at = self.principal_bytes + self.trace_bytes
        return Record(
            self.seq,
            self.kind,
            self.state,
            self.wall_ns,
            self.payload[: self.principal_bytes],
            self.payload[self.principal_bytes : body_at].decode("ascii"),
            self.payload[body_at:],
            self.points,
        )

    @property
    def replayed_seq(self) -> int:
        """What a CURSOR frame says; 0 for others."""
        return int(_U64.unpack(self.payload)[0]) if self.type is FrameType.CURSOR else 0

    @property
    def gap_seq(self) -> int:
        """What a GAP frame says: entries after its own number up to this one are lost; 0 for others."""
        return int(_U64.unpack(self.payload)[0]) if self.type is FrameType.GAP else 0


_ENTRY = FrameType.ENTRY.value
_MARKS = {int(type_): type_ for type_ in (FrameType.CURSOR, FrameType.SEAL, FrameType.GAP)}
_STATES = {state.value: state for state in EntryState}
_DURABLE_BEFORE_AT = 40


@dataclass(frozen=True, slots=True)
class FrameRules:
    """What a frame may hold; checked when it is written and again when it is read."""

    kinds: frozenset[int] | None
    entry_bytes: int
    entry_points: int

    def objection(self, kind: int, body_bytes: int, points: int) -> str:
        """Why an entry may not be in the log; empty when it may."""
        if self.kinds is not None and kind not in self.kinds:
            return f"kind {kind} is not a method that may be logged"
        if body_bytes > self.entry_bytes:
            return f"entry of {body_bytes} bytes is over the limit of {self.entry_bytes} (wal.entry_bytes)"
        if points > self.entry_points:
            return f"entry of {points} points is over the limit of {self.entry_points} (wal.entry_points)"
        return ""


@dataclass(frozen=True, slots=True)
class SegmentCodec:
    """Encodes and decodes the frames of one segment.

    Checksums start from the segment's random salt, so bytes that a client chose are no frame of it.
    """

    header: SegmentHeader
    signer: Signer
    salt_crc: int
    head_mac: bytes
    encoded: bytes = field(repr=False)

    @classmethod
    def of(cls, header: SegmentHeader, key: bytes) -> SegmentCodec:
        """The codec of a segment, from its header and the log's key."""
        signer = Signer(subkey(key, "segment", header.log_id, _U64.pack(header.number), header.salt))
        plain = _SEGMENT.pack(
            SEGMENT_MAGIC,
            VERSION,
            SEGMENT_HEADER_BYTES,
            0,
            header.key_id,
            header.log_id,
            header.number,
            header.first_seq,
            header.replayed_seq,
            header.wall_ns,
            header.previous_bytes,
            header.salt,
            header.previous_mac,
        )
        signed = plain + signer.mac(plain)
        encoded = signed + _U32.pack(google_crc32c.value(signed))
        return cls(header, signer, google_crc32c.value(header.salt), signed[-MAC_BYTES:], encoded)

    def entry(
        self, record: Record, previous_mac: bytes, durable_before: int, head_generation: int
    ) -> tuple[bytes, bytes]:
        """(frame, its MAC) of an entry. The caller has checked the rules."""
        trace = record.trace.encode("ascii")
        plain = _FRAME.pack(
            FRAME_MAGIC,
            _ENTRY,
            1 if record.state is EntryState.PENDING else 2,
            record.kind,
            record.points,
            len(record.principal),
            len(trace),
            len(record.body),
            0,
            record.seq,
            record.wall_ns,
            durable_before,
            head_generation,
        )
        return self._seal(plain, record.principal + trace, record.body, previous_mac)

    def mark(
        self,
        type_: FrameType,
        seq: int,
        value: int,
        previous_mac: bytes,
        *,
        wall_ns: int,
        durable_before: int,
        head_generation: int,
    ) -> tuple[bytes, bytes]:
        """(frame, its MAC) of a mark.

        The value of a CURSOR is replayed_seq, of a SEAL the generation of the head, of a GAP the last entry that is
        lost.
        """
        plain = _FRAME.pack(
            FRAME_MAGIC, type_, 0, 0, 0, 0, 0, _U64.size, 0, seq, wall_ns, durable_before, head_generation
        )
        return self._seal(plain, b"", _U64.pack(value), previous_mac)

    def _seal(self, plain: bytes, prefix: bytes, body: bytes, previous_mac: bytes) -> tuple[bytes, bytes]:
        header_crc = google_crc32c.extend(self.salt_crc, plain)
        header = plain + _U32.pack(header_crc)
        mac = self.signer.mac(previous_mac, header, prefix, body)
        crc = google_crc32c.extend(google_crc32c.extend(google_crc32c.extend(header_crc, prefix), body), mac)
        return b"".join((header, prefix, body, mac, _U32.pack(crc))), mac

    def frame_bytes(self, data: bytes, at: int) -> int | Flaw:
        """Length of the frame at `at`, from its header alone. SHORT when the header is not whole."""
        if len(data) - at < FRAME_HEADER_BYTES:
            return Flaw.SHORT
        plain = data[at : at + _FRAME.size]
        if not plain.startswith(FRAME_MAGIC) or not self._header_crc_holds(data, at, plain):
            return Flaw.GARBLED
        fields = _FRAME.unpack(plain)
        return int(FRAME_OVERHEAD_BYTES + fields[5] + fields[6] + fields[7])

    def durable_before(self, data: bytes, at: int) -> int | None:
        """What a frame with right checksums says was durable when it was made; None when the checksums are wrong."""
        length = self.frame_bytes(data, at)
        if isinstance(length, Flaw) or len(data) - at < length:
            return None
        crc = google_crc32c.extend(
            _U32.unpack_from(data, at + _FRAME.size)[0], data[at + FRAME_HEADER_BYTES : at + length - CRC_BYTES]
        )
        if crc != _U32.unpack_from(data, at + length - CRC_BYTES)[0]:
            return None
        return int(_U64.unpack_from(data, at + _DURABLE_BEFORE_AT)[0])

    def mended(self, data: bytes, at: int, previous_mac: bytes) -> bytes | None:
        """What lies at `at`, with checksums and MAC made anew; None when it is too short. Proves nothing by itself."""
        if len(data) - at < FRAME_OVERHEAD_BYTES or not data.startswith(FRAME_MAGIC, at):
            return None
        plain = data[at : at + _FRAME.size]
        fields = _FRAME.unpack(plain)
        end = at + FRAME_OVERHEAD_BYTES + fields[5] + fields[6] + fields[7]
        if end > len(data):
            return None
        return self._seal(plain, b"", data[at + FRAME_HEADER_BYTES : end - FRAME_TRAILER_BYTES], previous_mac)[0]

    def _header_crc_holds(self, data: bytes, at: int, plain: bytes) -> bool:
        return bool(_U32.unpack_from(data, at + _FRAME.size)[0] == google_crc32c.extend(self.salt_crc, plain))

    def decode(self, data: bytes, at: int, previous_mac: bytes, rules: FrameRules) -> Frame | Flaw:
        """The frame at `at`, verified. SHORT when `data` ends inside it; bytes after it are not looked at."""
        body_at = at + FRAME_HEADER_BYTES
        available = len(data) - at
        if available < FRAME_HEADER_BYTES:
            return Flaw.SHORT
        header = data[at:body_at]
        plain = header[: _FRAME.size]
        header_crc = google_crc32c.extend(self.salt_crc, plain)
        if not header.startswith(FRAME_MAGIC) or _U32.unpack_from(header, _FRAME.size)[0] != header_crc:
            return Flaw.GARBLED
        fields = _FRAME.unpack(plain)
        length = FRAME_OVERHEAD_BYTES + fields[5] + fields[6] + fields[7]
        if available < length:
            return Flaw.SHORT
        end = at + length
        payload = data[body_at : end - FRAME_TRAILER_BYTES]
        mac = data[end - FRAME_TRAILER_BYTES : end - CRC_BYTES]
        crc = google_crc32c.extend(google_crc32c.extend(header_crc, payload), mac)
        if crc != _U32.unpack_from(data, end - CRC_BYTES)[0]:
            return Flaw.GARBLED
        if not hmac.compare_digest(mac, self.signer.mac(previous_mac, header, payload)):
            return Flaw.FORGED
        return _frame(fields, payload, length, mac, rules)


def _frame(fields: tuple[Any, ...], payload: bytes, length: int, mac: bytes, rules: FrameRules) -> Frame | Flaw:
    """A frame whose signature holds, when what it says is allowed."""
    _, type_, state, kind, points, principal_bytes, trace_bytes, body_bytes, reserved, seq, wall_ns, durable, head = (
        fields
    )
    if type_ == _ENTRY:
        known_state = _STATES.get(state)
        if (
            known_state is None
            or reserved
            or principal_bytes not in (0, PRINCIPAL_BYTES)
            or trace_bytes > TRACE_BYTES_MAX
            or not payload[principal_bytes : principal_bytes + trace_bytes].isascii()
            or rules.objection(kind, body_bytes, points)
        ):
            return Flaw.ILLEGAL
        known_type = FrameType.ENTRY
    else:
        known_state = None
        if type_ not in _MARKS or reserved or len(payload) != _U64.size:
            return Flaw.ILLEGAL
        known_type = _MARKS[type_]
    return Frame(
        known_type,
        seq,
        length,
        mac,
        durable,
        head,
        kind,
        known_state,
        wall_ns,
        points,
        principal_bytes,
        trace_bytes,
        payload,
    )


def _opened(data: bytes, layout: struct.Struct, magic: bytes) -> tuple[object, ...] | Flaw:
    """Fields of a header or head whose checksum holds. The version is looked at first: later ones may differ after."""
    size = layout.size + MAC_BYTES + CRC_BYTES
    if len(data) < size:
        return Flaw.SHORT
    if data[:8] != magic:
        return Flaw.GARBLED
    signed, crc = data[: size - CRC_BYTES], _U32.unpack_from(data, size - CRC_BYTES)[0]
    if google_crc32c.value(signed) != crc:
        version = int.from_bytes(data[8:10], "little")
        declared = int.from_bytes(data[10:12], "little")
        newer = version > VERSION and declared > size
        return Flaw.UNKNOWN_VERSION if newer else Flaw.GARBLED
    fields = layout.unpack_from(data)
    if fields[1] != VERSION:
        return Flaw.UNKNOWN_VERSION
    return fields


def peek_key_id(data: bytes) -> bytes:
    """Id of the key that signed a segment header or a head; to be believed only once the MAC is checked."""
    return data[16:24]


def decode_segment_header(data: bytes, key: bytes) -> SegmentCodec | Flaw:
    """The codec of the segment that begins with `data`."""
    fields = _opened(data, _SEGMENT, SEGMENT_MAGIC)
    if isinstance(fields, Flaw):
        return fields
    header = SegmentHeader(*fields[4:])  # type: ignore[arg-type]
    codec = SegmentCodec.of(header, key)
    if not hmac.compare_digest(codec.encoded, data[:SEGMENT_HEADER_BYTES]):
        return Flaw.FORGED
    return codec


def encode_head(head: Head, key: bytes) -> bytes:
    """The whole file `head`."""
    plain = _HEAD.pack(
        HEAD_MAGIC,
        VERSION,
        HEAD_BYTES,
        _HEAD_CLEAN if head.clean else 0,
        head.key_id,
        head.log_id,
        head.generation,
        head.first_segment,
        head.tail_segment,
        head.tail_offset,
        head.last_seq,
        head.replayed_seq,
        head.wall_ns,
        head.tail_mac,
    )
    signed = plain + Signer(subkey(key, "head", head.log_id)).mac(plain)
    return signed + _U32.pack(google_crc32c.value(signed))


def decode_head(data: bytes, key: bytes) -> Head | Flaw:
    """The head, verified; anything after it makes it GARBLED."""
    fields = _opened(data, _HEAD, HEAD_MAGIC)
    if isinstance(fields, Flaw):
        return fields
    head = Head(*fields[4:], clean=bool(int(fields[3]) & _HEAD_CLEAN))  # type: ignore[arg-type,call-overload,misc]
    if len(data) != HEAD_BYTES:
        return Flaw.GARBLED
    if not hmac.compare_digest(encode_head(head, key), data):
        return Flaw.FORGED
    return head
