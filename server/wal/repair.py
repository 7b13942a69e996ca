"""Repair of a log that open refuses: only when an operator asks for it.

Promises: everything is copied aside, durably, before anything is changed; what is kept was proven to be ours, entry by
entry, and keeps its number and its place in the order; what was changed by anyone else is never kept. What is not kept
stays beside the log as `*.corrupted.*` and in the copy. A crash at any moment leaves the old log or the repaired one:
the signed head alone decides which, and a second repair of either works. Does not bring back what cannot be proven, and
says which entries that are.

The kept entries are written anew, as segments that follow the old ones in number; then the head is signed, which
retires the old ones. A gap between kept entries is a GAP frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from server.clock import Clock
from server.errors import WalDamaged, WalError, WalKeyMissing
from server.wal.files import TEMP_SUFFIX, Disk, OpenFile
from server.wal.harvest import Aside, Finding, Harvest, Run, gather, ordered, records_of, source_of
from server.wal.keyring import KEYS_DIRECTORY, Entropy, Keyring, load_keys
from server.wal.keysource import ExternalKeys
from server.wal.limits import WalLimits
from server.wal.opening import new_segment, stamp
from server.wal.quarantine import decode_item
from server.wal.record import (
    FRAME_OVERHEAD_BYTES,
    HEAD_BYTES,
    SEGMENT_HEADER_BYTES,
    Flaw,
    FrameRules,
    FrameType,
    Head,
    Record,
    SegmentCodec,
    decode_head,
    decode_segment_header,
    encode_head,
    peek_key_id,
)
from server.wal.scan import (
    HEAD_NAME,
    LOCK_NAME,
    QUARANTINE_DIRECTORY,
    segment_name,
    segment_number,
    survey,
)

_COPY_BYTES = 1024 * 1024
# Not part of what was written: who holds the log, where the server listens, blocks kept free.
_NOT_COPIED = frozenset((LOCK_NAME, "control", "ballast"))


class Fate(Enum):
    """What a repair does with a stretch of bytes."""

    KEEP = "written anew, with the same number"
    USE = "what it says is taken over, it is not written again"
    SET_ASIDE = "copied beside the log, not kept"


TABLE: Mapping[Finding, Fate] = {
    Finding.PROVEN: Fate.KEEP,
    Finding.MARK: Fate.USE,
    Finding.NOT_ALLOWED: Fate.SET_ASIDE,
    Finding.FORGED: Fate.SET_ASIDE,
    Finding.UNREADABLE: Fate.SET_ASIDE,
    Finding.UNKNOWN: Fate.SET_ASIDE,
}


@dataclass(frozen=True, slots=True)
class Loss:
    """Entries that cannot be proven: `first_seq` to `last_seq`. `at_qdrant`: the log says that Qdrant has them."""

    first_seq: int
    last_seq: int
    at_qdrant: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """Entries to be written anew: from a run of a segment, or one from the quarantine."""

    first_seq: int
    last_seq: int
    run: Run | None = None
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a repair would do. `flaws` is empty when there is nothing to repair."""

    directory: Path
    flaws: tuple[str, ...]
    kept: tuple[Kept, ...]
    asides: tuple[Aside, ...]
    losses: tuple[Loss, ...]
    replayed_seq: int
    tail_bytes: int
    head_is_whole: bool
    log_id: bytes
    key_id: bytes
    generation: int
    first_number: int
    old_numbers: tuple[int, ...]
    gaps: tuple[tuple[int, int], ...]

    @property
    def kept_count(self) -> int:
        """How many entries are kept."""
        return sum(each.last_seq - each.first_seq + 1 for each in self.kept)

    @property
    def last_seq(self) -> int:
        """The last entry that is kept; 0 when none is."""
        return self.kept[-1].last_seq if self.kept else 0


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did."""

    plan: Plan
    backup: Path
    copies: tuple[str, ...]
    segments: int
    pending: int


@dataclass(frozen=True, slots=True)
class Tools:
    """What a repair works with. `without_missing_keys`: an operator says that a key is gone for good."""

    disk: Disk
    clock: Clock
    entropy: Entropy
    limits: WalLimits
    kinds: Collection[int] | None
    external: ExternalKeys | None = None
    without_missing_keys: bool = False

    @property
    def rules(self) -> FrameRules:
        """What an entry may hold."""
        kinds = None if self.kinds is None else frozenset(self.kinds)
        return FrameRules(kinds, self.limits.entry_bytes, self.limits.entry_points)


def repair(directory: Path, tools: Tools, agree: Callable[[Plan], bool]) -> Repaired | Plan:
    """Look, ask, repair; blocking. The Plan alone when there is nothing to repair or `agree` says no.

    Raises WalLocked, WalKeyMissing, WalKeyUnsafe, WalDamaged for a later version, WalError when the disk fails. An
    error before the head is signed leaves the log as it was.
    """
    directory = directory.absolute()
    try:
        lock = tools.disk.lock(directory / LOCK_NAME)
        try:
            plan = plan_repair(directory, tools)
            if not plan.flaws or not agree(plan):
                return plan
            return _carry_out(plan, tools)
        finally:
            lock.release()
    except OSError as error:
        hint = "The log is as it was or repaired, never in between; mend the disk, then run `understudy wal repair`"
        raise WalError(f"cannot repair the log in {directory}: {error.strerror or error}", hint=hint) from error


# --- deciding --------------------------------------------------------------------------------------------------------


def plan_repair(directory: Path, tools: Tools) -> Plan:
    """What can be proven of a directory, and what follows from it. Reads only; the caller holds the lock."""
    disk = tools.disk
    names = disk.names(directory)
    keyring = load_keys(disk, directory, disk.names(directory / KEYS_DIRECTORY), tools.external)
    if not keyring.keys:
        hint = "Put the key file back: without it nothing can be proven. If it is gone for good: `understudy wal reset`"
        raise WalKeyMissing(f"there is no key in {keyring.directory}", hint=hint)
    numbers = [number for name in names if (number := segment_number(name)) is not None]
    numbers = [number for number in numbers if _is_plain(disk, directory / segment_name(number))]
    head = _head(disk, directory, keyring, tools.without_missing_keys)
    if head is not None:
        numbers = [number for number in numbers if number >= head.first_segment]
    heads = {number: disk.read(directory / segment_name(number), 0, SEGMENT_HEADER_BYTES) for number in numbers}
    whole = _whole_headers(directory, heads, keyring, tools.without_missing_keys)
    flaws = _flaws(directory, tools)
    log_ids = [head.log_id] if head is not None else _likeliest([codec.header.log_id for codec in whole.values()])
    harvest = Harvest()
    for number in sorted(numbers):
        path = directory / segment_name(number)
        data = _all_of(disk, path)
        source = source_of(data, path, number, keyring.keys.values(), log_ids)
        if gather(disk, source, tools.rules, harvest) and not log_ids:
            log_ids = [data[24:40]]
    if head is not None:
        harvest.known_seq = max(harvest.known_seq, head.last_seq)
        harvest.replayed_seq = max(harvest.replayed_seq, head.replayed_seq)
        harvest.generation = max(harvest.generation, head.generation)
    last_key_id = (
        head.key_id if head else next((codec.header.key_id for codec in reversed(whole.values())), min(keyring.keys))
    )
    if last_key_id not in keyring.keys:
        last_key_id = min(keyring.keys)
    kept = _kept(harvest, _from_quarantine(disk, directory, keyring, log_ids, tools.rules))
    last_kept = kept[-1].last_seq if kept else 0
    starts_at_one = (head.first_segment if head is not None else min(numbers, default=1)) == 1
    first = 1 if starts_at_one else min([*harvest.first_seqs, *(each.first_seq for each in kept)], default=1)
    return Plan(
        directory=directory,
        flaws=flaws,
        kept=tuple(kept),
        asides=tuple(aside for aside in harvest.asides if TABLE[aside.finding] is Fate.SET_ASIDE),
        losses=tuple(_losses(kept, first, harvest)),
        replayed_seq=min(harvest.replayed_seq, last_kept),
        tail_bytes=_tail_bytes(harvest),
        head_is_whole=head is not None,
        log_id=log_ids[0] if log_ids else tools.entropy(16),
        key_id=keyring.signing(last_key_id),
        generation=harvest.generation + 1,
        first_number=max([*numbers, head.tail_segment if head is not None else 0, *_all_numbers(names)]) + 1,
        old_numbers=tuple(_all_numbers(names)),
        gaps=tuple(harvest.gaps),
    )


def _flaws(directory: Path, tools: Tools) -> tuple[str, ...]:
    """What keeps the log shut, or shows when it is read."""
    try:
        found = survey(tools.disk, directory, tools.rules, deep=True, external=tools.external)
    except WalKeyMissing as missing:
        if not tools.without_missing_keys:
            raise
        return (str(missing.args[0]),)
    unknown = next((problem for problem in found.refusals if problem.flaw is Flaw.UNKNOWN_VERSION), None)
    if unknown is not None:
        raise WalDamaged(f"{directory}: {unknown}", hint="Repair it with the version of Understudy that wrote it")
    return tuple(str(problem) for problem in found.refusals)


def _all_numbers(names: Sequence[str]) -> list[int]:
    return [number for name in names if (number := segment_number(name)) is not None]


def _is_plain(disk: Disk, path: Path) -> bool:
    facts = disk.facts(path)
    return facts is not None and facts.is_file


def _all_of(disk: Disk, path: Path) -> bytes:
    facts = disk.facts(path)
    return disk.read(path, 0, facts.size if facts is not None else 0)


def _head(disk: Disk, directory: Path, keyring: Keyring, without_missing_keys: bool) -> Head | None:
    """The head, when it can be proven."""
    path = directory / HEAD_NAME
    if not _is_plain(disk, path):
        return None
    data = disk.read(path, 0, HEAD_BYTES + 1)
    found = decode_head(data, keyring.keys.get(peek_key_id(data), bytes(32)))
    if found is Flaw.FORGED and peek_key_id(data) not in keyring.keys and not without_missing_keys:
        raise _missing(keyring, peek_key_id(data), path)
    return found if isinstance(found, Head) else None


def _whole_headers(
    directory: Path, heads: Mapping[int, bytes], keyring: Keyring, without_missing_keys: bool
) -> dict[int, SegmentCodec]:
    """Segments whose header can be proven, in order. A whole header of an absent key is no damage: WalKeyMissing."""
    found = {}
    for number, data in sorted(heads.items()):
        codec = decode_segment_header(data, keyring.keys.get(peek_key_id(data), bytes(32)))
        if isinstance(codec, SegmentCodec):
            found[number] = codec
        elif codec is Flaw.FORGED and peek_key_id(data) not in keyring.keys and not without_missing_keys:
            raise _missing(keyring, peek_key_id(data), directory / segment_name(number))
    return found


def _missing(keyring: Keyring, key_id: bytes, path: Path) -> WalKeyMissing:
    return WalKeyMissing(
        f"{path} was signed with key {key_id.hex()}, which is not here",
        hint=f"Put {key_id.hex()}.key into {keyring.directory}. If it is gone for good, repair with "
        "--without-missing-keys: what only that key can prove is then set aside",
    )


def _likeliest(log_ids: Sequence[bytes]) -> list[bytes]:
    """The log id of most segments. Without a head nothing else tells a segment of another log."""
    return [Counter(log_ids).most_common(1)[0][0]] if log_ids else []


def _from_quarantine(
    disk: Disk, directory: Path, keyring: Keyring, log_ids: Sequence[bytes], rules: FrameRules
) -> dict[int, Record]:
    """Entries that Qdrant refused, as far as they are proven: their numbers must not be given anew."""
    found = {}
    folder = directory / QUARANTINE_DIRECTORY
    for name in disk.names(folder):
        if name.endswith(TEMP_SUFFIX) or not _is_plain(disk, folder / name):
            continue
        data = _all_of(disk, folder / name)
        decoded = decode_item(data, keyring, folder / name)
        if not isinstance(decoded, str) and data[24:40] in log_ids:
            record = decoded[1]
            if not rules.objection(record.kind, len(record.body), record.points):
                found[record.seq] = record
    return found


def _kept(harvest: Harvest, refused: Mapping[int, Record]) -> list[Kept]:
    """Proven entries in the order of their numbers, each once. The quarantine fills in what the segments lack."""
    kept = [Kept(after + 1, run.last_seq, run=run) for run, after in ordered(harvest.runs)]
    missing = [seq for seq in refused if not any(each.first_seq <= seq <= each.last_seq for each in kept)]
    # What is before the first entry was retired, and its number is not given again.
    first = kept[0].first_seq if kept else 0
    kept += [Kept(seq, seq, record=refused[seq]) for seq in missing if seq > first]
    return sorted(kept, key=lambda each: each.first_seq)


def _losses(kept: Sequence[Kept], first_seq: int, harvest: Harvest) -> Iterator[Loss]:
    """What the log is known to have held and is not kept; gaps of an earlier repair are not told again."""
    held = sorted([*((each.first_seq, each.last_seq) for each in kept), *harvest.gaps])
    expected = first_seq
    for first, last in [*held, (harvest.known_seq + 1, harvest.known_seq)]:
        if expected < first:
            yield from _split(expected, first - 1, harvest.replayed_seq)
        expected = max(expected, last + 1)


def _split(first: int, last: int, replayed_seq: int) -> Iterator[Loss]:
    if first <= replayed_seq:
        yield Loss(first, min(last, replayed_seq), at_qdrant=True)
    if last > replayed_seq:
        yield Loss(max(first, replayed_seq + 1), last, at_qdrant=False)


def _tail_bytes(harvest: Harvest) -> int:
    """Bytes after the last proven entry that may have been entries; how many nobody can say."""
    last = max((run for run in harvest.runs), key=lambda run: run.last_seq, default=None)
    return sum(
        aside.end - aside.start
        for aside in harvest.asides
        if aside.finding is not Finding.NOT_ALLOWED
        and aside.end - aside.start >= FRAME_OVERHEAD_BYTES
        and (last is None or (aside.file, aside.start) >= (last.path.name, last.end))
    )


# --- doing -----------------------------------------------------------------------------------------------------------


def _carry_out(plan: Plan, tools: Tools) -> Repaired:
    disk, directory = tools.disk, plan.directory
    time = stamp(tools.clock.wall_ns())
    backup = _back_up(disk, directory, time)
    copies = _set_aside(disk, plan, time)
    keyring = load_keys(disk, directory, disk.names(directory / KEYS_DIRECTORY), tools.external)
    key = keyring.key(plan.key_id, str(directory / HEAD_NAME))
    rewriter = _Rewriter(plan, tools, key)
    head = rewriter.run()
    _publish_slowly(disk, directory / HEAD_NAME, [encode_head(head, key)])
    found = survey(disk, directory, tools.rules, deep=True, external=tools.external)
    if found.refusals:
        raise WalError(f"the repaired log does not verify: {found.refusals[0]}", hint=f"The old one is in {backup}")
    for number in plan.old_numbers:
        path = directory / segment_name(number)
        if _is_plain(disk, path):
            disk.remove(path)
        else:
            disk.rename(path, path.with_name(f"{path.name}.corrupted.{time}"))
    for path in found.temporaries:
        disk.remove(path)
    disk.sync_directory(directory)
    return Repaired(plan, backup, tuple(copies), rewriter.segments, len(found.pending))


def _back_up(disk: Disk, directory: Path, time: str) -> Path:
    """Copy the directory, key included, beside itself. An interrupted copy is called so."""
    base = f"{directory.name}.before-repair-{time}"
    taken = set(disk.names(directory.parent))
    name = next(name for n in range(len(taken) + 1) if (name := f"{base}-{n}" if n else base) not in taken)
    backup = directory.with_name(name)
    for folder in ("", KEYS_DIRECTORY, QUARANTINE_DIRECTORY):
        source, target = directory / folder, backup / folder
        disk.make_directory(target)
        for each in disk.names(source):
            if each not in _NOT_COPIED and not each.endswith(TEMP_SUFFIX) and _is_plain(disk, source / each):
                _publish_slowly(disk, target / each, _chunks(disk, source / each, 0, None), sync_names=False)
        disk.sync_directory(target)
    disk.sync_directory(backup.parent)
    return backup


def _set_aside(disk: Disk, plan: Plan, time: str) -> list[str]:
    """Copies of what is not kept, beside the log."""
    made = []
    for aside in plan.asides:
        name = f"{aside.file}.at-{aside.start}.corrupted.{time}"
        chunks = _chunks(disk, plan.directory / aside.file, aside.start, aside.end)
        _publish_slowly(disk, plan.directory / name, chunks, sync_names=False)
        made.append(name)
    if not plan.head_is_whole and _is_plain(disk, plan.directory / HEAD_NAME):
        name = f"{HEAD_NAME}.corrupted.{time}"
        chunks = _chunks(disk, plan.directory / HEAD_NAME, 0, None)
        _publish_slowly(disk, plan.directory / name, chunks, sync_names=False)
        made.append(name)
    disk.sync_directory(plan.directory)
    return made


def _chunks(disk: Disk, path: Path, start: int, end: int | None) -> Iterator[bytes]:
    at = start
    while data := disk.read(path, at, _COPY_BYTES if end is None else min(_COPY_BYTES, end - at)):
        yield data
        at += len(data)


def _publish_slowly(
    disk: Disk, path: Path, chunks: Iterator[bytes] | Sequence[bytes], *, sync_names: bool = True
) -> None:
    """As `files.publish`, without holding all of it; the caller may sync the names of several files at once."""
    temporary = path.with_name(path.name + TEMP_SUFFIX)
    file = _fresh(disk, temporary)
    try:
        for chunk in chunks:
            file.append([chunk])
        file.sync()
    finally:
        file.close()
    disk.rename(temporary, path)
    if sync_names:
        disk.sync_directory(path.parent)


def _fresh(disk: Disk, path: Path) -> OpenFile:
    if disk.facts(path) is not None:
        disk.remove(path)
    return disk.create(path)


class _Rewriter:
    """Writes the kept entries as new segments under temporary names, then gives them their names."""

    def __init__(self, plan: Plan, tools: Tools, key: bytes) -> None:
        self._plan = plan
        self._tools = tools
        self._key = key
        self._now_ns = tools.clock.wall_ns()
        self._names: list[str] = []
        self._file: OpenFile | None = None
        self._head = Head(
            key_id=plan.key_id,
            log_id=plan.log_id,
            generation=plan.generation,
            first_segment=plan.first_number,
            tail_segment=plan.first_number,
            tail_offset=0,
            last_seq=0,
            replayed_seq=plan.replayed_seq,
            wall_ns=self._now_ns,
            tail_mac=bytes(32),
            clean=True,
        )
        self._seq = plan.kept[0].first_seq - 1 if plan.kept else 0
        self._codec: SegmentCodec | None = None
        self._offset = 0
        self._mac = bytes(32)

    @property
    def segments(self) -> int:
        """How many were written."""
        return len(self._names)

    def run(self) -> Head:
        """The head that the new segments need; it is not written yet."""
        disk, directory = self._tools.disk, self._plan.directory
        try:
            self._begin()
            for kept in self._plan.kept:
                for record in self._records(kept):
                    self._write(record)
            self._end()
        finally:
            if self._file is not None:
                self._file.close()
        for name in self._names:
            disk.rename(directory / (name + TEMP_SUFFIX), directory / name)
        disk.sync_directory(directory)
        return Head(
            key_id=self._head.key_id,
            log_id=self._head.log_id,
            generation=self._head.generation,
            first_segment=self._head.first_segment,
            tail_segment=self._head.first_segment + len(self._names) - 1,
            tail_offset=self._offset,
            last_seq=self._seq,
            replayed_seq=self._head.replayed_seq,
            wall_ns=self._now_ns,
            tail_mac=self._mac,
            clean=True,
        )

    def _records(self, kept: Kept) -> Iterator[Record]:
        if kept.record is not None:
            yield kept.record
        if kept.run is not None:
            yield from records_of(self._tools.disk, kept.run, kept.first_seq - 1)

    def _write(self, record: Record) -> None:
        if record.seq > self._seq + 1:
            self._append(self._gap(record.seq - 1))
            self._seq = record.seq - 1
        size = FRAME_OVERHEAD_BYTES + len(record.principal) + len(record.trace) + len(record.body)
        is_full = self._offset + size > self._tools.limits.segment_bytes and self._offset > SEGMENT_HEADER_BYTES
        if is_full:
            self._end()
            self._begin()
        self._append(self._in_use.entry(record, self._mac, SEGMENT_HEADER_BYTES, self._plan.generation - 1))
        self._seq = record.seq

    @property
    def _in_use(self) -> SegmentCodec:
        assert self._codec is not None
        return self._codec

    def _gap(self, last_lost: int) -> tuple[bytes, bytes]:
        return self._in_use.mark(
            FrameType.GAP,
            self._seq,
            last_lost,
            self._mac,
            wall_ns=self._now_ns,
            durable_before=SEGMENT_HEADER_BYTES,
            head_generation=self._plan.generation - 1,
        )

    def _append(self, frame: tuple[bytes, bytes]) -> None:
        assert self._file is not None
        self._file.append([frame[0]])
        self._offset += len(frame[0])
        self._mac = frame[1]

    def _begin(self) -> None:
        number = self._head.first_segment + len(self._names)
        self._codec = codec = new_segment(
            self._head,
            self._key,
            self._tools.clock,
            self._tools.entropy,
            number=number,
            seq=self._seq,
            replayed_seq=self._head.replayed_seq,
            previous_bytes=self._offset,
            previous_mac=self._mac,
        )
        name = segment_name(number)
        self._names.append(name)
        self._file = _fresh(self._tools.disk, self._plan.directory / (name + TEMP_SUFFIX))
        self._file.append([codec.encoded])
        self._offset, self._mac = SEGMENT_HEADER_BYTES, codec.head_mac

    def _end(self) -> None:
        assert self._file is not None
        self._file.sync()
        self._file.close()
        self._file = None
