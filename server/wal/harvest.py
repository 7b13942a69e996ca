"""What of a damaged log can be proven to be ours.

Promises: reads only; whatever it yields as proven carries a signature made with the log's key over exactly these bytes,
checked against the signature before it. That one may be the frame's before, the one stored where the frame before
should end, or another one of the same file; HMAC makes no difference between them. Where only checksum or signature of
a frame were damaged, the signature of the frame after it vouches for the content. Holds one segment in memory at a
time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from server.wal.files import Disk
from server.wal.record import (
    CRC_BYTES,
    FRAME_MAGIC,
    FRAME_TRAILER_BYTES,
    SEGMENT_HEADER_BYTES,
    Flaw,
    Frame,
    FrameRules,
    FrameType,
    Record,
    SegmentCodec,
    SegmentHeader,
    decode_segment_header,
)
from server.wal.signing import MAC_BYTES

ANY_RULES = FrameRules(None, entry_bytes=2**32, entry_points=2**32)
# Frames out of their place are tried against every signature of their file, up to so many tries.
_TRIES_MAX = 200_000
_SALT_AT, _MAC_AT = 80, 128


class Finding(Enum):
    """What a stretch of a file turned out to be."""

    PROVEN = "proven"
    MARK = "proven, and no entry"
    NOT_ALLOWED = "proven, and not allowed by the present limits or methods"
    FORGED = "its checksum is right and its signature is not: changed by somebody without the key"
    UNREADABLE = "not what was written"
    UNKNOWN = "nothing here can be tied to this log: key, salt or log id are not known"


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `start` to `end` of a segment. `frame` and the signature before it where it is proven."""

    start: int
    end: int
    finding: Finding
    frame: Frame | None = None
    mac: bytes = b""
    is_strict: bool = True


@dataclass(slots=True)
class Run:
    """Proven frames one after the other in one file: entries `first_seq` to `last_seq`, without gaps."""

    path: Path
    codec: SegmentCodec
    start: int
    end: int
    mac: bytes
    first_seq: int
    last_seq: int
    last_mac: bytes
    is_strict: bool

    @classmethod
    def blank(cls, path: Path, codec: SegmentCodec, piece: Piece) -> Run:
        """A run that begins at a piece and has no entry yet."""
        return cls(path, codec, piece.start, piece.end, piece.mac, 0, 0, b"", piece.is_strict)


@dataclass(frozen=True, slots=True)
class Aside:
    """Bytes of a file that are not kept, and why."""

    file: str
    start: int
    end: int
    finding: Finding
    text: str = ""


@dataclass(slots=True)
class Harvest:
    """Everything provable of a directory."""

    runs: list[Run] = field(default_factory=list)
    asides: list[Aside] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    replayed_seq: int = 0
    known_seq: int = 0
    generation: int = 0
    first_seqs: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Source:
    """A segment file and the codecs that may fit it, each with the signatures its first frame may follow."""

    path: Path
    size: int
    codecs: Sequence[tuple[SegmentCodec, Sequence[bytes]]]
    is_header_whole: bool


def source_of(data: bytes, path: Path, number: int, keys: Iterable[bytes], log_ids: Sequence[bytes]) -> Source:
    """How to read a segment: by its header, or where that is damaged by what can be known without it."""
    keys = list(keys)
    for key in keys:
        codec = decode_segment_header(data[:SEGMENT_HEADER_BYTES], key)
        if isinstance(codec, SegmentCodec):
            if log_ids and codec.header.log_id not in log_ids:
                return Source(path, len(data), [], is_header_whole=False)
            return Source(path, len(data), [(codec, [codec.head_mac])], is_header_whole=True)
    if len(data) < SEGMENT_HEADER_BYTES:
        return Source(path, len(data), [], is_header_whole=False)
    stored = data[_MAC_AT : _MAC_AT + MAC_BYTES]
    guesses = []
    for key in keys:
        for log_id in log_ids or [data[24:40]]:
            header = _guessed(data, number, log_id)
            codec = SegmentCodec.of(header, key)
            guesses.append((codec, [stored, codec.head_mac]))
    return Source(path, len(data), guesses, is_header_whole=False)


def _guessed(data: bytes, number: int, log_id: bytes) -> SegmentHeader:
    """The header with what is known from elsewhere put right. The salt is known from nowhere else."""

    def u64(at: int) -> int:
        return int.from_bytes(data[at : at + 8], "little")

    return SegmentHeader(
        key_id=data[16:24],
        log_id=log_id,
        number=number,
        first_seq=u64(48),
        replayed_seq=u64(56),
        wall_ns=u64(64),
        previous_bytes=u64(72),
        salt=data[_SALT_AT : _SALT_AT + 16],
        previous_mac=data[96:128],
    )


def pieces(codec: SegmentCodec, data: bytes, macs: Sequence[bytes]) -> Iterator[Piece]:
    """A segment's bytes after its header, told apart. The first frame follows one of `macs`."""
    prover = _Prover(codec, data)
    at = SEGMENT_HEADER_BYTES
    while at < len(data):
        piece = prover.frame_at(at, macs)
        if piece is None:
            piece = prover.unproven(at)
        if piece.frame is not None:
            macs = [piece.frame.mac]
        elif piece.end >= SEGMENT_HEADER_BYTES + FRAME_TRAILER_BYTES:
            macs = [*macs, _mac_before(data, piece.end)]
        yield piece
        at = piece.end


def _mac_before(data: bytes, at: int) -> bytes:
    return data[at - FRAME_TRAILER_BYTES : at - CRC_BYTES]


class _Prover:
    """Looks for signatures that hold in one segment."""

    def __init__(self, codec: SegmentCodec, data: bytes) -> None:
        self._codec = codec
        self._data = data
        self._pool: list[bytes] | None = None
        self._tries = 0

    def frame_at(self, at: int, macs: Sequence[bytes]) -> Piece | None:
        """The frame at `at`, when its signature holds."""
        for mac in macs:
            frame = self._codec.decode(self._data, at, mac, ANY_RULES)
            if isinstance(frame, Frame):
                return Piece(at, at + frame.length, _finding(frame), frame, mac)
        for mac in macs:
            mended = self._mended(at, mac)
            if mended is not None:
                return Piece(at, at + mended.length, _finding(mended), mended, mac, is_strict=False)
        found = self._moved(at) if self._is_checked(at) else None
        if found is None:
            return None
        moved, mac = found
        return Piece(at, at + moved.length, _finding(moved), moved, mac)

    def unproven(self, at: int) -> Piece:
        """The bytes from `at` to the next frame that can be proven, or to the end."""
        end = self._data.find(FRAME_MAGIC, at + 1)
        while end >= 0 and not self._is_proven(end):
            end = self._data.find(FRAME_MAGIC, end + 1)
        finding = Finding.FORGED if self._is_checked(at) else Finding.UNREADABLE
        return Piece(at, len(self._data) if end < 0 else end, finding)

    def _is_proven(self, at: int) -> bool:
        if not self._is_checked(at):
            return False
        frame = self._codec.decode(self._data, at, _mac_before(self._data, at), ANY_RULES)
        return isinstance(frame, Frame) or self._moved(at) is not None

    def _is_checked(self, at: int) -> bool:
        """Whether a whole frame with right checksums is here."""
        return self._codec.durable_before(self._data, at) is not None

    def _mended(self, at: int, mac: bytes) -> Frame | None:
        """The frame at `at` without regard to its checksums, when a signature vouches for it: its own or the next."""
        whole = self._codec.mended(self._data, at, mac)
        if whole is None:
            return None
        frame = self._codec.decode(whole, 0, mac, ANY_RULES)
        if not isinstance(frame, Frame):
            return None
        end = at + frame.length
        if frame.mac == _mac_before(self._data, end):
            return frame
        following = self._codec.decode(self._data, end, frame.mac, ANY_RULES)
        return frame if isinstance(following, Frame) else None

    def _moved(self, at: int) -> tuple[Frame, bytes] | None:
        """A frame in another place than it was written: it follows some other signature of the file."""
        if self._pool is None:
            self._pool = self._every_mac()
        for mac in self._pool:
            self._tries += 1
            if self._tries > _TRIES_MAX:
                return None
            frame = self._codec.decode(self._data, at, mac, ANY_RULES)
            if isinstance(frame, Frame):
                return frame, mac
        return None

    def _every_mac(self) -> list[bytes]:
        found = [self._codec.head_mac, self._data[_MAC_AT : _MAC_AT + MAC_BYTES]]
        at = self._data.find(FRAME_MAGIC, SEGMENT_HEADER_BYTES)
        while at >= 0:
            length = self._codec.frame_bytes(self._data, at)
            if not isinstance(length, Flaw) and at + length <= len(self._data):
                found.append(_mac_before(self._data, at + length))
            at = self._data.find(FRAME_MAGIC, at + 1)
        return list(dict.fromkeys(found))


def _finding(frame: Frame) -> Finding:
    return Finding.PROVEN if frame.state is not None else Finding.MARK


def gather(disk: Disk, source: Source, rules: FrameRules, harvest: Harvest) -> bool:
    """Add what a file proves to the harvest; whether it proved anything."""
    data = disk.read(source.path, 0, source.size)
    found: list[Piece] = []
    chosen: SegmentCodec | None = None
    for codec, macs in source.codecs:
        found = list(pieces(codec, data, macs))
        if source.is_header_whole or any(piece.frame is not None for piece in found):
            chosen = codec
            break
    if chosen is None:
        harvest.asides.append(Aside(source.path.name, 0, source.size, Finding.UNKNOWN))
        return False
    if source.is_header_whole:
        harvest.first_seqs.append(chosen.header.first_seq)
        harvest.replayed_seq = max(harvest.replayed_seq, chosen.header.replayed_seq)
        harvest.known_seq = max(harvest.known_seq, chosen.header.first_seq - 1)
    else:
        harvest.asides.append(Aside(source.path.name, 0, SEGMENT_HEADER_BYTES, Finding.UNREADABLE))
    if found and found[-1].frame is None and not data[found[-1].start :].strip(b"\0"):
        # Room that was made for more.
        found.pop()
    run: Run | None = None
    for piece in found:
        run = _take(harvest, Run.blank(source.path, chosen, piece), piece, rules, run)
    return True


def _take(harvest: Harvest, fresh: Run, piece: Piece, rules: FrameRules, run: Run | None) -> Run | None:
    """Note one piece; returns the run that the next one may continue."""
    frame = piece.frame
    if frame is None:
        harvest.asides.append(Aside(fresh.path.name, piece.start, piece.end, piece.finding))
        return None
    harvest.generation = max(harvest.generation, frame.head_generation)
    harvest.known_seq = max(harvest.known_seq, frame.seq)
    continues = run is not None and run.is_strict and piece.is_strict and run.last_mac == piece.mac
    if frame.state is None:
        harvest.replayed_seq = max(harvest.replayed_seq, min(frame.replayed_seq, frame.seq))
        if frame.gap_seq > frame.seq:
            harvest.gaps.append((frame.seq + 1, frame.gap_seq))
            harvest.known_seq = max(harvest.known_seq, frame.gap_seq)
        if continues and run is not None:
            run.end, run.last_mac = piece.end, frame.mac
            return run
        return None
    body_bytes = len(frame.payload) - frame.principal_bytes - frame.trace_bytes
    objection = rules.objection(frame.kind, body_bytes, frame.points)
    if objection:
        text = f"entry {frame.seq}: {objection}"
        harvest.asides.append(Aside(fresh.path.name, piece.start, piece.end, Finding.NOT_ALLOWED, text))
        return None
    if continues and run is not None and frame.seq == run.last_seq + 1:
        run.end, run.last_seq, run.last_mac = piece.end, frame.seq, frame.mac
        return run
    fresh.first_seq = fresh.last_seq = frame.seq
    fresh.last_mac = frame.mac
    harvest.runs.append(fresh)
    return fresh


def ordered(runs: Sequence[Run]) -> list[tuple[Run, int]]:
    """Runs in the order of their entries, each with the number below which its entries are held already."""
    found = []
    held = 0
    for run in sorted(runs, key=lambda each: (each.first_seq, not each.is_strict, each.codec.header.number)):
        if run.last_seq > held:
            found.append((run, max(held, run.first_seq - 1)))
            held = run.last_seq
    return found


def records_of(disk: Disk, run: Run, after_seq: int) -> Iterator[Record]:
    """Entries of a run after `after_seq`, proven again."""
    data = disk.read(run.path, run.start, run.end - run.start)
    if not run.is_strict:
        data = run.codec.mended(data, 0, run.mac) or b""
    at, mac = 0, run.mac
    while at < len(data):
        frame = run.codec.decode(data, at, mac, ANY_RULES)
        if not isinstance(frame, Frame) or (not run.is_strict and frame.mac != run.last_mac):
            raise OSError(5, f"{run.path} changed while it was read")
        if frame.type is FrameType.ENTRY and frame.seq > after_seq and (record := frame.record) is not None:
            yield record
        at, mac = at + frame.length, frame.mac
