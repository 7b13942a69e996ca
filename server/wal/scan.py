"""A log directory as it is found.

Promises: reads only; every header, and every frame of the segments that may hold pending entries (`deep`: of all), is
verified; each flaw is reported with file, offset and verdict; memory stays within a chunk however large the log is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from server.errors import WalDamaged, WalKeyMissing
from server.wal.files import TEMP_SUFFIX, Disk
from server.wal.keyring import KEYS_DIRECTORY, Keyring, load_keys
from server.wal.keysource import ExternalKeys
from server.wal.memory import OffsetIndex, PendingIndex
from server.wal.reader import SegmentReader, Stretch
from server.wal.record import (
    CRC_BYTES,
    FRAME_TRAILER_BYTES,
    HEAD_BYTES,
    SEGMENT_HEADER_BYTES,
    EntryState,
    Flaw,
    Frame,
    FrameRules,
    FrameType,
    Head,
    SegmentCodec,
    decode_head,
    decode_segment_header,
    peek_key_id,
)
from server.wal.recovery import TABLE, Place, Verdict, place_of, proof_after

HEAD_NAME = "head"
LOCK_NAME = "lock"
QUARANTINE_DIRECTORY = "quarantine"
_PREFIX, _SUFFIX = "segment-", ".wal"


def segment_name(number: int) -> str:
    """File name of a segment: its number in 16 hex digits, so that names sort as numbers."""
    return f"{_PREFIX}{number:016x}{_SUFFIX}"


def segment_number(name: str) -> int | None:
    """The number in a segment's file name; None for other names."""
    digits = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    if len(digits) != 16 or set(digits) - set("0123456789abcdef") or name != f"{_PREFIX}{digits}{_SUFFIX}":
        return None
    return int(digits, 16)


@dataclass(slots=True)
class Segment:
    """A segment that opened: where its frames end and what they reach."""

    path: Path
    codec: SegmentCodec
    size: int
    last_seq: int
    last_wall_ns: int
    index: OffsetIndex = field(default_factory=OffsetIndex)

    @property
    def number(self) -> int:
        """Its place among the segments."""
        return self.codec.header.number

    @property
    def first_seq(self) -> int:
        """Sequence number of the first entry it holds or would hold."""
        return self.codec.header.first_seq


@dataclass(frozen=True, slots=True)
class Problem:
    """One flaw: place, kind and what follows from it."""

    file: str
    offset: int
    text: str
    verdict: Verdict
    flaw: Flaw = Flaw.ILLEGAL

    def __str__(self) -> str:
        """One line for an operator."""
        return f"{self.file} at offset {self.offset}: {self.text}"


@dataclass(slots=True)
class Survey:
    """What a directory holds."""

    directory: Path
    keyring: Keyring
    head: Head | None = None
    segments: list[Segment] = field(default_factory=list)
    pending: PendingIndex = field(default_factory=PendingIndex)
    problems: list[Problem] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    temporaries: list[Path] = field(default_factory=list)
    retired: list[Path] = field(default_factory=list)
    last_seq: int = 0
    replayed_seq: int = 0
    entries_verified: int = 0
    tail_mac: bytes = b""
    tail_offset: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever logged here."""
        return self.head is None and not self.segments and not self.problems

    @property
    def refusals(self) -> list[Problem]:
        """Problems that keep the log shut."""
        return [problem for problem in self.problems if problem.verdict is Verdict.REFUSE]

    @property
    def cuts(self) -> list[Problem]:
        """Torn tails."""
        return [problem for problem in self.problems if problem.verdict is Verdict.CUT]


def survey(
    disk: Disk, directory: Path, rules: FrameRules, *, deep: bool = False, external: ExternalKeys | None = None
) -> Survey:
    """Read a directory. Raises WalKeyMissing and WalKeyUnsafe; everything else becomes a Problem."""
    names = disk.names(directory)
    key_names = disk.names(directory / KEYS_DIRECTORY)
    quarantine_names = disk.names(directory / QUARANTINE_DIRECTORY)
    found = Survey(directory, load_keys(disk, directory, key_names, external))
    numbers = sorted(number for name in names if (number := segment_number(name)) is not None)
    found.temporaries = [
        folder / name
        for folder, names_there in (
            (directory, names),
            (directory / KEYS_DIRECTORY, key_names),
            (directory / QUARANTINE_DIRECTORY, quarantine_names),
        )
        for name in names_there
        if name.endswith(TEMP_SUFFIX)
    ]
    quarantined = [name for name in quarantine_names if not name.endswith(TEMP_SUFFIX)]
    if not found.keyring.keys and (numbers or HEAD_NAME in names or quarantined):
        raise WalKeyMissing(f"{directory} holds a log and no key in {found.keyring.directory}")
    if HEAD_NAME in names:
        _read_head(disk, found)
    elif numbers or quarantined:
        found.problems.append(Problem(HEAD_NAME, 0, "the head is missing", Verdict.REFUSE))
    if found.head is not None:
        first = found.head.first_segment
        found.retired = [directory / segment_name(number) for number in numbers if number < first]
        _read_segments(disk, found, [number for number in numbers if number >= first], rules, deep)
    # SYNCED entries need no cursor: whatever is not pending has been replayed.
    oldest = found.pending.first_from(0)
    found.replayed_seq = found.last_seq if oldest is None else oldest - 1
    return found


def _read_head(disk: Disk, found: Survey) -> None:
    data = disk.read(found.directory / HEAD_NAME, 0, HEAD_BYTES + 1)
    head: Head | Flaw = Flaw.SHORT
    if len(data) >= HEAD_BYTES:
        key_id = peek_key_id(data)
        head = decode_head(data, found.keyring.verifying(key_id))
        # Not for any flaw: the key id of a damaged head may be a flipped bit, which is no missing key.
        if head is Flaw.FORGED and key_id not in found.keyring.keys:
            found.keyring.key(key_id, str(found.directory / HEAD_NAME))
    if isinstance(head, Flaw):
        found.problems.append(Problem(HEAD_NAME, 0, head.value, Verdict.REFUSE, head))
    else:
        found.head = head


def _read_segments(disk: Disk, found: Survey, numbers: list[int], rules: FrameRules, deep: bool) -> None:
    head = found.head
    assert head is not None
    found.last_seq = head.last_seq if not numbers else 0
    found.replayed_seq = head.replayed_seq
    needed = range(head.first_segment, head.tail_segment + (1 if head.tail_offset else 0))
    for number in needed:
        if number not in numbers:
            text = "the segment is missing"
            found.problems.append(Problem(segment_name(number), 0, text, Verdict.REFUSE))
    for number in numbers:
        _open_segment(disk, found, number, is_last=number == numbers[-1])
    _check_keys(found, head)
    for row, segment in enumerate(found.segments):
        following = found.segments[row + 1] if row + 1 < len(found.segments) else None
        _check_link(found, found.segments[row - 1] if row else None, segment)
        is_cold = following is not None and following.first_seq - 1 <= head.replayed_seq
        if following is not None and is_cold and not deep:
            _skim(disk, found, segment, following)
        else:
            _Walk(disk, found, segment, rules, head=head, is_last=following is None).run()


def _open_segment(disk: Disk, found: Survey, number: int, *, is_last: bool) -> None:
    path = found.directory / segment_name(number)
    facts = disk.facts(path)
    assert facts is not None
    if not facts.is_file:
        found.problems.append(Problem(path.name, 0, "it is not a plain file", Verdict.REFUSE))
        return
    data = disk.read(path, 0, SEGMENT_HEADER_BYTES)
    codec: SegmentCodec | Flaw = Flaw.SHORT
    if len(data) == SEGMENT_HEADER_BYTES:
        key_id = peek_key_id(data)
        codec = decode_segment_header(data, found.keyring.verifying(key_id))
        if codec is Flaw.FORGED and key_id not in found.keyring.keys:
            found.keyring.key(key_id, str(path))
    place = place_of(is_last=is_last, offset=0, proven_offset=SEGMENT_HEADER_BYTES)
    if isinstance(codec, Flaw):
        text = f"header: {codec.value}"
        found.problems.append(Problem(path.name, 0, text, TABLE[place, codec], codec))
        return
    head = found.head
    assert head is not None
    if codec.header.number != number or codec.header.log_id != head.log_id:
        found.problems.append(Problem(path.name, 0, "it is a segment of another place or log", Verdict.REFUSE))
        return
    header = codec.header
    found.segments.append(Segment(path, codec, facts.size, header.first_seq - 1, header.wall_ns))


def _check_keys(found: Survey, head: Head) -> None:
    """A key that was replaced signs nothing any more, so whoever has got hold of it cannot go on with the log."""
    replaced: set[bytes] = set()
    present: bytes | None = None
    for segment in found.segments:
        key_id = segment.codec.header.key_id
        if present is not None and key_id != present:
            replaced.add(present)
        present = key_id
        if key_id in replaced:
            text = f"it is signed with key {key_id.hex()}, which another one had replaced"
            found.problems.append(Problem(segment.path.name, 0, text, Verdict.REFUSE))
        if segment.number == head.tail_segment and key_id != head.key_id:
            text = f"it is signed with key {head.key_id.hex()}, {segment.path.name} with {key_id.hex()}"
            found.problems.append(Problem(HEAD_NAME, 0, text, Verdict.REFUSE))


def _check_link(found: Survey, before: Segment | None, segment: Segment) -> None:
    """A segment's header names the end of the one before it, which has been walked or skimmed by now."""
    header = segment.codec.header
    if before is None:
        found.last_seq = max(found.last_seq, header.first_seq - 1)
        found.replayed_seq = max(found.replayed_seq, header.replayed_seq)
        return
    ends = (before.number + 1, before.size, found.tail_mac, before.last_seq + 1)
    if ends != (header.number, header.previous_bytes, header.previous_mac, header.first_seq):
        text = f"it does not follow {before.path.name}: something between them was cut, added or exchanged"
        found.problems.append(Problem(segment.path.name, 0, text, Verdict.REFUSE))
        # Already refused; the rest is read all the same, for the report.
        found.last_seq = header.first_seq - 1


def _skim(disk: Disk, found: Survey, segment: Segment, following: Segment) -> None:
    """A segment whose entries are all replayed: its links are checked now, its frames when they are read."""
    start = max(segment.size - FRAME_TRAILER_BYTES, 0)
    found.tail_mac = disk.read(segment.path, start, FRAME_TRAILER_BYTES)[: FRAME_TRAILER_BYTES - CRC_BYTES]
    segment.last_seq = following.first_seq - 1
    segment.last_wall_ns = following.codec.header.wall_ns
    found.last_seq = segment.last_seq
    found.replayed_seq = max(found.replayed_seq, following.codec.header.replayed_seq)


class _Walk:
    """Reads every frame of one segment into the survey."""

    def __init__(
        self, disk: Disk, found: Survey, segment: Segment, rules: FrameRules, *, head: Head, is_last: bool
    ) -> None:
        self._disk = disk
        self._found = found
        self._segment = segment
        self._head = head
        self._is_last = is_last
        is_tail = head.tail_segment == segment.number and head.tail_offset > 0
        self._promised = head.tail_offset if is_tail else SEGMENT_HEADER_BYTES
        self._promised_mac = head.tail_mac if is_tail else segment.codec.head_mac
        stretch = Stretch(segment.path, segment.codec, SEGMENT_HEADER_BYTES, segment.size)
        self._reader = SegmentReader(disk, stretch, rules, segment.codec.head_mac)

    def run(self) -> None:
        """Walk to the end or to the first flaw."""
        reader, found = self._reader, self._found
        kept_promise = False
        while True:
            at = reader.offset
            if at == self._promised:
                kept_promise = reader.mac == self._promised_mac
            frame = reader.next()
            if frame is None:
                break
            if isinstance(frame, Flaw):
                self._flawed(at, frame)
                break
            objection = self._take(at, frame)
            if objection:
                self._report(at, objection, Verdict.REFUSE)
                break
        found.tail_mac = reader.mac
        found.tail_offset = reader.offset
        if not kept_promise and not any(problem.file == self._segment.path.name for problem in found.refusals):
            text = f"the head says that the log was durable up to offset {self._promised} of this segment"
            text += "; what is here is shorter or another" if reader.offset >= self._promised else "; it ends here"
            self._report(reader.offset, text, Verdict.REFUSE)

    def _report(self, offset: int, text: str, verdict: Verdict, flaw: Flaw = Flaw.ILLEGAL) -> None:
        self._found.problems.append(Problem(self._segment.path.name, offset, text, verdict, flaw))

    def _flawed(self, at: int, flaw: Flaw) -> None:
        proven = self._promised
        if self._is_last and TABLE[Place.UNPROVEN, flaw] is Verdict.CUT:
            # It may be torn, unless something after it shows that it was durable.
            data = self._disk.read(self._segment.path, at, self._segment.size - at)
            if not data.strip(b"\0"):
                # Room. Where frames should be, what the head promised is missing, and `run` says so.
                self._segment.size = at
                return
            proven = max(proven, proof_after(self._segment.codec, data, 0, at))
        place = place_of(is_last=self._is_last, offset=at, proven_offset=proven)
        text = f"the frame after entry {self._found.last_seq}: {flaw.value} ({place.value})"
        self._report(at, text, TABLE[place, flaw], flaw)
        if TABLE[place, flaw] is Verdict.CUT:
            self._segment.size = at

    def _take(self, at: int, frame: Frame) -> str:
        """Add a frame to the survey, or say why it cannot be here."""
        found, segment = self._found, self._segment
        if frame.head_generation > self._head.generation:
            return (
                f"it was written under head {frame.head_generation}, the head is {self._head.generation}: an old copy"
            )
        if frame.durable_before > at:
            return "it claims that bytes after itself were durable"
        if frame.state is None:
            if frame.seq != found.last_seq or not frame.replayed_seq <= frame.seq:
                return f"it does not belong after entry {found.last_seq}"
            if frame.type is FrameType.CURSOR:
                found.replayed_seq = max(found.replayed_seq, frame.replayed_seq)
                found.pending.drop_through(found.replayed_seq)
            if frame.type is FrameType.GAP:
                if frame.gap_seq <= found.last_seq:
                    return f"it claims a gap from entry {found.last_seq} back to {frame.gap_seq}"
                found.gaps.append((found.last_seq + 1, frame.gap_seq))
                found.last_seq = segment.last_seq = frame.gap_seq
            return ""
        seq = frame.seq
        if seq != found.last_seq + 1:
            return f"entry {seq} follows entry {found.last_seq}"
        found.last_seq = segment.last_seq = seq
        segment.last_wall_ns = frame.wall_ns
        segment.index.note(seq, at)
        found.entries_verified += 1
        if frame.state is EntryState.PENDING and seq > found.replayed_seq:
            found.pending.add(seq, frame.length, frame.wall_ns)
        return ""


def damaged(found: Survey) -> WalDamaged:
    """The error for a survey with refusals: the first flaw and the next command."""
    first, more = found.refusals[0], len(found.refusals) - 1
    others = f" (and {more} more)" if more else ""
    return WalDamaged(
        f"the log in {found.directory} is damaged: {first}{others}. Nothing was changed",
        hint="`understudy wal verify` lists every flaw; `understudy wal repair` shows what can be kept, asks, "
        "makes a backup and keeps it",
    )
