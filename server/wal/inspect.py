"""The log without a running server: what the `understudy wal` commands do.

Promises: every function takes the lock of the directory for as long as it runs and raises WalLocked when a server holds
it; `inspect_status`, `verify`, `list_records` and `show_record` change nothing but the lock file. Blocking; not to be
called from an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from server.clock import Clock
from server.errors import DataDirUnusable, WalError
from server.wal.files import Disk, RealDisk
from server.wal.keyring import KEYS_DIRECTORY
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Quarantine, QuarantineItem
from server.wal.reader import SegmentReader, Stretch
from server.wal.record import SEGMENT_HEADER_BYTES, EntryState, Flaw, FrameRules, Record
from server.wal.scan import HEAD_NAME, LOCK_NAME, Problem, Survey, segment_number, survey

LIST_LIMIT = 1000
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


@dataclass(frozen=True, slots=True)
class WalStatus:
    """A log at rest. `problems` is empty when it would open as it is."""

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


@dataclass(frozen=True, slots=True)
class Compacted:
    """What `compact` did."""

    segments_removed: int
    bytes_freed: int


def inspect_status(directory: Path, *, disk: Disk | None = None) -> WalStatus:
    """Counts and cursors; frames of segments that are wholly replayed are not read."""
    return _status(directory, disk or RealDisk(), _ANY, deep=False)


def verify(directory: Path, *, disk: Disk | None = None, kinds: Collection[int] | None = None) -> WalStatus:
    """As `inspect_status`, with every frame of every segment verified and `problems` complete."""
    rules = FrameRules(None if kinds is None else frozenset(kinds), _ANY.entry_bytes, _ANY.entry_points)
    return _status(directory, disk or RealDisk(), rules, deep=True)


def list_records(
    directory: Path,
    *,
    state: ListState | None = None,
    after_seq: int = 0,
    limit: int = LIST_LIMIT,
    disk: Disk | None = None,
) -> list[ListedRecord]:
    """Entries in order, up to `limit`, as far as they are intact."""
    with _held(directory, disk or RealDisk()) as (real, path):
        return list(_list(real, path, state, after_seq, limit))


def show_record(directory: Path, seq: int, *, disk: Disk | None = None) -> ListedRecord:
    """One entry. Raises WalError when the log does not hold it."""
    found = list_records(directory, after_seq=seq - 1, limit=1, disk=disk)
    if not found or found[0].record.seq != seq:
        raise WalError(f"entry {seq} is not in the log", hint="`understudy wal list` shows what is")
    return found[0]


def compact(
    directory: Path,
    *,
    applied_seq: int,
    retention_seconds: float,
    clock: Clock,
    kinds: Collection[int],
    limits: WalLimits | None = None,
    disk: Disk | None = None,
) -> Compacted:
    """Drop segments that the replica (`applied_seq`) and Qdrant have passed and that are older than the retention."""
    _must_hold_a_log(directory, disk or RealDisk())

    async def run() -> Compacted:
        log = Log.open(directory, disk=disk or RealDisk(), clock=clock, limits=limits or WalLimits(), kinds=kinds)
        try:
            before = log.total_bytes
            removed = await log.retire(applied_seq, clock.wall_ns(), retention_seconds)
            return Compacted(removed, before - log.total_bytes)
        finally:
            await log.close()

    return asyncio.run(run())


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


def _must_hold_a_log(directory: Path, disk: Disk) -> None:
    names = disk.names(directory)
    if not any(name in (HEAD_NAME, KEYS_DIRECTORY) or segment_number(name) is not None for name in names):
        raise DataDirUnusable(f"there is no log in {directory}", hint="Is --data-dir right?")


@contextmanager
def _held(directory: Path, disk: Disk) -> Iterator[tuple[Disk, Path]]:
    directory = directory.absolute()
    _must_hold_a_log(directory, disk)
    lock = disk.lock(directory / LOCK_NAME)
    try:
        yield disk, directory
    except OSError as error:
        raise WalError(f"cannot read the log in {directory}: {error.strerror or error}") from error
    finally:
        lock.release()


def _status(directory: Path, disk: Disk, rules: FrameRules, *, deep: bool) -> WalStatus:
    with _held(directory, disk) as (_, path):
        found = survey(disk, path, rules, deep=deep)
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
            corrupted_copies=tuple(name for name in disk.names(path) if ".corrupted." in name),
            problems=tuple(found.problems),
        )


def _quarantine(disk: Disk, found: Survey) -> Quarantine:
    return Quarantine(disk, found.directory, found.keyring, b"", b"")


def _list(disk: Disk, directory: Path, state: ListState | None, after_seq: int, limit: int) -> Iterator[ListedRecord]:
    found = survey(disk, directory, _ANY)
    quarantined = {item.seq for item in _quarantine(disk, found).items()}
    count = 0
    for segment in found.segments:
        if segment.last_seq <= after_seq:
            continue
        start = segment.index.start_for(after_seq + 1, SEGMENT_HEADER_BYTES)
        reader = SegmentReader.inside(disk, Stretch(segment.path, segment.codec, start, segment.size), _ANY)
        while (frame := reader.next()) is not None and not isinstance(frame, Flaw):
            record = frame.record if frame.seq > after_seq else None
            if record is None:
                continue
            became = _became(record, found.replayed_seq, quarantined)
            if state is None or state is became:
                if count >= limit:
                    return
                count += 1
                yield ListedRecord(record, became)


def _became(record: Record, replayed_seq: int, quarantined: Collection[int]) -> ListState:
    if record.seq in quarantined:
        return ListState.QUARANTINED
    if record.state is EntryState.SYNCED:
        return ListState.SYNCED
    return ListState.REPLAYED if record.seq <= replayed_seq else ListState.PENDING
