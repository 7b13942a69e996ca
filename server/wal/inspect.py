"""What the `understudy wal` commands look at: a log at rest, and (the functions `…_open`) a log in use.

Promises: at rest, every function takes the lock of the directory for as long as it runs and raises WalLocked when a
server holds it; `inspect_status`, `verify`, `list_records`, `show_record` and `quarantined` change nothing but the lock
file; they block and are not to be called from an event loop. In use, what is being written meanwhile is left out and
never taken for damage.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TypeAlias, TypeVar

from server.clock import Clock
from server.errors import DataDirUnusable, WalError
from server.wal.conflict_log import ConflictLog, KeptRow
from server.wal.files import Disk, RealDisk
from server.wal.keyring import KEY_SUFFIX, KEYS_DIRECTORY, load_keys
from server.wal.keysource import ExternalKeys
from server.wal.keyuse import KeyUse, key_uses, signing_now
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Quarantine, QuarantineItem
from server.wal.reader import SegmentReader, Stretch
from server.wal.record import SEGMENT_HEADER_BYTES, EntryState, Flaw, FrameRules, Record
from server.wal.recovery import Verdict
from server.wal.scan import HEAD_NAME, LOCK_NAME, Problem, Survey, segment_number, survey

LIST_LIMIT = 1000
# A list with a filter that matches little goes through the log in bites of so many entries and bytes.
_SCAN_ENTRIES = 10_000
_PAGE_ENTRIES = 1000
_PAGE_BYTES = 16 * 1024 * 1024
T = TypeVar("T")

_ANY = FrameRules(None, entry_bytes=2**32, entry_points=2**32)


class ListState(Enum):
    """What became of an entry."""

    PENDING = "pending"
    REPLAYED = "replayed"
    SYNCED = "synced"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """One entry and what became of it."""

    record: Record
    state: ListState


Wanted: TypeAlias = Callable[[ListedRecord], bool]


@dataclass(frozen=True, slots=True)
class WalStatus:
    """A log. `problems` is empty when it would open as it is; `clean` is how it was closed, never of one in use."""

    directory: Path
    log_id: str
    key_ids: tuple[str, ...]
    head_generation: int
    clean: bool
    segments: int
    total_bytes: int
    first_seq: int
    last_seq: int
    replayed_seq: int
    pending_count: int
    pending_bytes: int
    oldest_pending_ns: int | None
    entries_verified: int
    quarantined: tuple[QuarantineItem, ...]
    corrupted_copies: tuple[str, ...]
    problems: tuple[Problem, ...]
    running: bool = False
    latched: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """Some of the entries that were asked for. `next_after` is where to go on, None at the end of the log."""

    records: list[ListedRecord]
    next_after: int | None


@dataclass(frozen=True, slots=True)
class Compacted:
    """What `compact` did."""

    segments_removed: int
    bytes_freed: int


def inspect_status(directory: Path, *, disk: Disk | None = None, external: ExternalKeys | None = None) -> WalStatus:
    """Counts and cursors; frames of segments that are wholly replayed are not read."""
    return _status(directory, disk or RealDisk(), _ANY, external, deep=False)


def verify(
    directory: Path,
    *,
    disk: Disk | None = None,
    kinds: Collection[int] | None = None,
    external: ExternalKeys | None = None,
) -> WalStatus:
    """As `inspect_status`, with every frame of every segment verified and `problems` complete."""
    rules = FrameRules(None if kinds is None else frozenset(kinds), _ANY.entry_bytes, _ANY.entry_points)
    return _status(directory, disk or RealDisk(), rules, external, deep=True)


def list_records(
    directory: Path,
    *,
    wanted: Wanted | None = None,
    after_seq: int = 0,
    limit: int = LIST_LIMIT,
    disk: Disk | None = None,
    external: ExternalKeys | None = None,
) -> list[ListedRecord]:
    """Entries in order, up to `limit` of those that are wanted, as far as they are intact."""
    with _held(directory, disk or RealDisk()) as (real, path):
        return list(itertools.islice(_list(real, path, wanted, after_seq, external), limit))


def show_record(
    directory: Path, seq: int, *, disk: Disk | None = None, external: ExternalKeys | None = None
) -> ListedRecord:
    """One entry. Raises WalError when the log does not hold it."""
    return _the_one(list_records(directory, after_seq=seq - 1, limit=1, disk=disk, external=external), seq)


def quarantined(
    directory: Path, *, disk: Disk | None = None, external: ExternalKeys | None = None
) -> Iterator[tuple[QuarantineItem, Record | None]]:
    """Every refused entry with its contents; None where its file is not to be trusted. The lock is held meanwhile."""
    with _held(directory, disk or RealDisk()) as (real, path):
        kept = _quarantine(real, survey(real, path, _ANY, external=external))
        for item in kept.items():
            yield item, None if item.flaw else kept.record(item.seq)


def conflicts(directory: Path, *, disk: Disk | None = None) -> list[KeptRow]:
    """The rows of the conflict log, oldest first."""
    with _held(directory, disk or RealDisk()) as (real, path):
        return list(ConflictLog(real, path, 0).rows())


def drop_conflicts(directory: Path, numbers: Collection[int] | None, *, disk: Disk | None = None) -> list[int]:
    """Remove rows of the conflict log, None = all that can be read; returns which."""
    with _held(directory, disk or RealDisk()) as (real, path):
        return ConflictLog(real, path, 0).drop(numbers)


def list_keys(directory: Path, *, disk: Disk | None = None, external: ExternalKeys | None = None) -> list[KeyUse]:
    """Every key that is here or that something needs, missing ones too; the one that signs comes first."""
    with _held(directory, disk or RealDisk()) as (real, path):
        keyring = load_keys(real, path, real.names(path / KEYS_DIRECTORY), external)
        return key_uses(real, path, keyring, keyring.signing(signing_now(real, path)))


# --- in use ----------------------------------------------------------------------------------------------------------


def status_open(log: Log, disk: Disk) -> WalStatus:
    """Counts and cursors of a log in use. Blocking: it reads the names in the directory."""
    keys = sorted(name.removesuffix(KEY_SUFFIX) for name in disk.names(log.directory / KEYS_DIRECTORY))
    return WalStatus(
        directory=log.directory,
        log_id=log.log_id,
        key_ids=tuple(keys),
        head_generation=log.head_generation,
        clean=False,
        segments=log.segment_count,
        total_bytes=log.total_bytes,
        first_seq=log.first_seq,
        last_seq=log.last_seq,
        replayed_seq=log.replayed_seq,
        pending_count=log.pending_count,
        pending_bytes=log.pending_bytes,
        oldest_pending_ns=log.oldest_pending_ns,
        entries_verified=0,
        quarantined=tuple(log.quarantined()),
        corrupted_copies=_corrupted_copies(disk, log.directory),
        problems=(),
        running=True,
        latched=log.latched,
    )


async def verify_open(log: Log, disk: Disk, kinds: Collection[int]) -> WalStatus:
    """Read every frame again that was written by now; segments that are retired meanwhile are left out."""
    rules = FrameRules(frozenset(kinds), _ANY.entry_bytes, _ANY.entry_points)
    stretches = log.written()
    problems: list[Problem] = []
    verified = 0
    for number, stretch in enumerate(stretches):
        before = stretches[number - 1] if number else None
        try:
            entries, problem = await asyncio.to_thread(_verify_stretch, disk, stretch, before, rules)
        except FileNotFoundError:
            entries, problem = 0, Problem(stretch.path.name, 0, "the segment is missing", Verdict.REFUSE)
        except OSError as error:
            raise WalError(f"cannot read {stretch.path}: {error.strerror or error}") from error
        if log.holds(stretch.path):
            verified += entries
            problems += [problem] if problem is not None else []
    # On the event loop, to which the counts belong: another thread could find them half-changed.
    status = status_open(log, disk)
    return replace(status, entries_verified=verified, problems=tuple(problems))


def _verify_stretch(
    disk: Disk, stretch: Stretch, before: Stretch | None, rules: FrameRules
) -> tuple[int, Problem | None]:
    """How many entries of a segment are as they were written, and the first flaw."""
    codec, name = stretch.codec, stretch.path.name
    if disk.read(stretch.path, 0, SEGMENT_HEADER_BYTES) != codec.encoded:
        return 0, Problem(name, 0, "header: it is not what was written", Verdict.REFUSE, Flaw.FORGED)
    if before is not None and codec.header.previous_bytes != before.end:
        return 0, Problem(name, 0, f"it does not follow {before.path.name}", Verdict.REFUSE)
    reader = SegmentReader(disk, stretch, rules, codec.head_mac)
    entries = 0
    while (frame := reader.next()) is not None:
        if isinstance(frame, Flaw):
            text = f"frame {entries + 1} of the segment or near it: {frame.value}"
            return entries, Problem(name, reader.offset, text, Verdict.REFUSE, frame)
        entries += frame.record is not None
    return entries, None


async def list_open(log: Log, *, wanted: Wanted | None, after_seq: int, limit: int) -> Listed:
    """Up to `limit` entries of a log in use; fewer, with `next_after` set, when a long stretch held little wanted."""
    quarantined_seqs = {item.seq for item in await asyncio.to_thread(log.quarantined)}
    found: list[ListedRecord] = []
    scanned = size = 0
    while records := await log.read(after_seq, _PAGE_ENTRIES, _PAGE_BYTES):
        for record in records:
            after_seq = record.seq
            listed = ListedRecord(record, became(record, log.replayed_seq, quarantined_seqs))
            if wanted is None or wanted(listed):
                found.append(listed)
                size += len(record.body)
            if len(found) >= limit or size > _PAGE_BYTES:
                return Listed(found, after_seq)
        scanned += len(records)
        if scanned >= _SCAN_ENTRIES:
            return Listed(found, after_seq)
    return Listed(found, None)


async def show_open(log: Log, seq: int) -> ListedRecord:
    """One entry of a log in use. Raises WalError when it does not hold it."""
    return _the_one((await list_open(log, wanted=None, after_seq=seq - 1, limit=1)).records, seq)


def _the_one(found: list[ListedRecord], seq: int) -> ListedRecord:
    if not found or found[0].record.seq != seq:
        raise WalError(f"entry {seq} is not in the log", hint="`understudy wal list` shows what is")
    return found[0]


# --- at rest, changed ------------------------------------------------------------------------------------------------


def compact(
    directory: Path,
    *,
    applied_seq: int,
    retention_seconds: float,
    clock: Clock,
    kinds: Collection[int],
    limits: WalLimits | None = None,
    disk: Disk | None = None,
    external: ExternalKeys | None = None,
) -> Compacted:
    """Drop segments that the replica (`applied_seq`) and Qdrant have passed and that are older than the retention."""

    async def run(log: Log) -> Compacted:
        return await compact_open(log, applied_seq, clock.wall_ns(), retention_seconds)

    return with_open(
        directory, run, clock=clock, kinds=kinds, limits=limits or WalLimits(), disk=disk, external=external
    )


async def compact_open(log: Log, applied_seq: int, now_ns: int, retention_seconds: float) -> Compacted:
    """As `compact`, of a log in use."""
    before = log.total_bytes
    removed = await log.retire(applied_seq, now_ns, retention_seconds)
    return Compacted(removed, max(0, before - log.total_bytes))


def with_open(
    directory: Path,
    work: Callable[[Log], Awaitable[T]],
    *,
    clock: Clock,
    kinds: Collection[int],
    limits: WalLimits,
    disk: Disk | None = None,
    external: ExternalKeys | None = None,
) -> T:
    """Open the log that is in `directory`, do something with it, close it."""
    must_hold_a_log(directory, disk or RealDisk())

    async def run() -> T:
        log = Log.open(directory, disk=disk or RealDisk(), clock=clock, limits=limits, kinds=kinds, external=external)
        try:
            return await work(log)
        finally:
            await log.close()

    return asyncio.run(run())


def rotate_key(
    directory: Path,
    *,
    clock: Clock,
    kinds: Collection[int],
    limits: WalLimits | None = None,
    disk: Disk | None = None,
    external: ExternalKeys | None = None,
) -> str:
    """Sign with a new key from here on; returns its id. Raises WalKeyExternal when keys come from elsewhere."""
    return with_open(
        directory,
        Log.rotate_key,
        clock=clock,
        kinds=kinds,
        limits=limits or WalLimits(),
        disk=disk,
        external=external,
    )


def reset(directory: Path, backup_suffix: str, *, disk: Disk | None = None) -> Path:
    """Move the whole directory, key included, to `<directory>.<backup_suffix>` and return that path.

    The next start makes an empty log with another id, so the replica knows that what it holds may be out of date.
    """
    real = disk or RealDisk()
    directory = directory.absolute()
    backup = directory.with_name(f"{directory.name}.{backup_suffix}")
    with _held(directory, real):
        if real.facts(backup) is not None:
            raise DataDirUnusable(f"{backup} is in the way", hint="Move it or choose another suffix")
        try:
            real.rename(directory, backup)
            real.sync_directory(directory.parent)
        except OSError as error:
            hint = f"Stop Understudy and move the contents of {directory} elsewhere by hand"
            raise DataDirUnusable(f"cannot move {directory} to {backup}: {error.strerror}", hint=hint) from error
    return backup


def must_hold_a_log(directory: Path, disk: Disk) -> None:
    """Raises DataDirUnusable where nothing of a log is."""
    names = disk.names(directory)
    if not any(name in (HEAD_NAME, KEYS_DIRECTORY) or segment_number(name) is not None for name in names):
        raise DataDirUnusable(f"there is no log in {directory}", hint="Is --data-dir right?")


@contextmanager
def _held(directory: Path, disk: Disk) -> Iterator[tuple[Disk, Path]]:
    directory = directory.absolute()
    must_hold_a_log(directory, disk)
    lock = disk.lock(directory / LOCK_NAME)
    try:
        yield disk, directory
    except OSError as error:
        raise WalError(f"cannot read the log in {directory}: {error.strerror or error}") from error
    finally:
        lock.release()


def _status(directory: Path, disk: Disk, rules: FrameRules, external: ExternalKeys | None, *, deep: bool) -> WalStatus:
    with _held(directory, disk) as (_, path):
        found = survey(disk, path, rules, deep=deep, external=external)
        head = found.head
        return WalStatus(
            directory=path,
            log_id=head.log_id.hex() if head else "",
            key_ids=tuple(key_id.hex() for key_id in found.keyring.keys),
            head_generation=head.generation if head else 0,
            clean=bool(head and head.clean and not found.problems),
            segments=len(found.segments),
            total_bytes=sum(segment.size for segment in found.segments),
            first_seq=found.segments[0].first_seq if found.segments else 0,
            last_seq=found.last_seq,
            replayed_seq=found.replayed_seq,
            pending_count=len(found.pending),
            pending_bytes=found.pending.total_bytes,
            oldest_pending_ns=found.pending.oldest_ns,
            entries_verified=found.entries_verified,
            quarantined=tuple(_quarantine(disk, found).items()),
            corrupted_copies=_corrupted_copies(disk, path),
            problems=tuple(found.problems),
        )


def _corrupted_copies(disk: Disk, directory: Path) -> tuple[str, ...]:
    return tuple(name for name in disk.names(directory) if ".corrupted." in name)


def _quarantine(disk: Disk, found: Survey) -> Quarantine:
    return Quarantine(disk, found.directory, found.keyring, b"", b"")


def _list(
    disk: Disk, directory: Path, wanted: Wanted | None, after_seq: int, external: ExternalKeys | None
) -> Iterator[ListedRecord]:
    found = survey(disk, directory, _ANY, external=external)
    quarantined_seqs = {item.seq for item in _quarantine(disk, found).items()}
    for segment in found.segments:
        if segment.last_seq <= after_seq:
            continue
        start = segment.index.start_for(after_seq + 1, SEGMENT_HEADER_BYTES)
        reader = SegmentReader.inside(disk, Stretch(segment.path, segment.codec, start, segment.size), _ANY)
        while (frame := reader.next()) is not None and not isinstance(frame, Flaw):
            record = frame.record if frame.seq > after_seq else None
            if record is None:
                continue
            listed = ListedRecord(record, became(record, found.replayed_seq, quarantined_seqs))
            if wanted is None or wanted(listed):
                yield listed


def became(record: Record, replayed_seq: int, quarantined: Collection[int]) -> ListState:
    """What became of an entry of a log that is replayed up to `replayed_seq`."""
    if record.seq in quarantined:
        return ListState.QUARANTINED
    if record.state is EntryState.SYNCED:
        return ListState.SYNCED
    return ListState.REPLAYED if record.seq <= replayed_seq else ListState.PENDING
