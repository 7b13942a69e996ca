"""What a repair keeps, what it sets aside and what is lost: a table, and a plan made by it.

Promises: reads only; each finding has one row; nothing is kept that was not proven; every number that the log is known
to have given and that is not kept is in `Plan.losses`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from server.clock import Clock
from server.errors import WalDamaged, WalKeyMissing
from server.wal.files import TEMP_SUFFIX, Disk
from server.wal.harvest import Aside, Finding, Harvest, Run, gather, ordered, source_of
from server.wal.keyring import KEYS_DIRECTORY, Entropy, Keyring, load_keys
from server.wal.keysource import ExternalKeys
from server.wal.limits import WalLimits
from server.wal.quarantine import decode_item
from server.wal.record import (
    FRAME_OVERHEAD_BYTES,
    HEAD_BYTES,
    SEGMENT_HEADER_BYTES,
    Flaw,
    FrameRules,
    Head,
    Record,
    SegmentCodec,
    SegmentHeader,
    decode_head,
    decode_segment_header,
    peek_key_id,
)
from server.wal.scan import HEAD_NAME, QUARANTINE_DIRECTORY, segment_name, segment_number, survey


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


def plan_repair(directory: Path, tools: Tools) -> Plan:
    """What can be proven of a directory, and what follows from it. Reads only; the caller holds the lock."""
    disk = tools.disk
    names = disk.names(directory)
    keyring = load_keys(disk, directory, disk.names(directory / KEYS_DIRECTORY), tools.external)
    if not keyring.keys:
        hint = "Put the key file back: without it nothing can be proven. If it is gone for good: `understudy wal reset`"
        raise WalKeyMissing(f"there is no key in {keyring.directory}", hint=hint)
    numbers = [number for name in names if (number := segment_number(name)) is not None]
    numbers = [number for number in numbers if is_plain(disk, directory / segment_name(number))]
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
    ours = [codec.header for codec in whole.values() if codec.header.log_id in log_ids]
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
        key_id=keyring.signing(_last_key_id(ours, head) or min(keyring.keys)),
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


def is_plain(disk: Disk, path: Path) -> bool:
    """Whether a file is there that is neither a link nor a directory."""
    facts = disk.facts(path)
    return facts is not None and facts.is_file


def _all_of(disk: Disk, path: Path) -> bytes:
    facts = disk.facts(path)
    return disk.read(path, 0, facts.size if facts is not None else 0)


def _head(disk: Disk, directory: Path, keyring: Keyring, without_missing_keys: bool) -> Head | None:
    """The head, when it can be proven."""
    path = directory / HEAD_NAME
    if not is_plain(disk, path):
        return None
    data = disk.read(path, 0, HEAD_BYTES + 1)
    found = decode_head(data, keyring.verifying(peek_key_id(data)))
    if found is Flaw.FORGED and peek_key_id(data) not in keyring.keys and not without_missing_keys:
        raise _missing(keyring, peek_key_id(data), path)
    return found if isinstance(found, Head) else None


def _whole_headers(
    directory: Path, heads: Mapping[int, bytes], keyring: Keyring, without_missing_keys: bool
) -> dict[int, SegmentCodec]:
    """Segments whose header can be proven, in order. A whole header of an absent key is no damage: WalKeyMissing."""
    found = {}
    for number, data in sorted(heads.items()):
        codec = decode_segment_header(data, keyring.verifying(peek_key_id(data)))
        if isinstance(codec, SegmentCodec):
            found[number] = codec
        elif codec is Flaw.FORGED and peek_key_id(data) not in keyring.keys and not without_missing_keys:
            raise _missing(keyring, peek_key_id(data), directory / segment_name(number))
    return found


def _last_key_id(whole: Sequence[SegmentHeader], head: Head | None) -> bytes:
    """Id of the key that the newest segment or the head was signed with, empty when there is neither.

    As in an open, a rotation that a crash ended before the head stays, and a key that was replaced does not come back.
    """
    signed = [(header.number, header.key_id) for header in whole]
    if head is not None:
        signed.append((head.tail_segment, head.key_id))
    present, replaced = b"", set[bytes]()
    # The head is signed after its tail segment was made, and before the next one.
    for _, key_id in sorted(signed, key=lambda each: each[0]):
        if key_id != present and key_id not in replaced:
            replaced.add(present)
            present = key_id
    return present


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
        if name.endswith(TEMP_SUFFIX) or not is_plain(disk, folder / name):
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
