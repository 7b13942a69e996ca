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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import WalError
from server.wal.files import TEMP_SUFFIX, Disk, OpenFile
from server.wal.harvest import records_of
from server.wal.keyring import KEYS_DIRECTORY, load_keys
from server.wal.opening import new_segment, stamp
from server.wal.record import (
    FRAME_OVERHEAD_BYTES,
    SEGMENT_HEADER_BYTES,
    FrameType,
    Head,
    Record,
    SegmentCodec,
    encode_head,
)
from server.wal.salvage import Kept, Plan, Tools, is_plain, plan_repair
from server.wal.scan import HEAD_NAME, LOCK_NAME, QUARANTINE_DIRECTORY, segment_name, survey

_COPY_BYTES = 1024 * 1024
# Not part of what was written: who holds the log, where the server listens, blocks kept free.
_NOT_COPIED = frozenset((LOCK_NAME, "control", "ballast"))


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did."""

    plan: Plan
    backup: Path
    copies: tuple[str, ...]
    segments: int
    pending: int


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
        if is_plain(disk, path):
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
            if each not in _NOT_COPIED and not each.endswith(TEMP_SUFFIX) and is_plain(disk, source / each):
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
    if not plan.head_is_whole and is_plain(disk, plan.directory / HEAD_NAME):
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
