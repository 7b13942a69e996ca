"""From a directory to a log that may be appended to.

Promises: takes the lock first; refuses before it changes anything; what it recovers is durable before it returns. On a
full disk it uses the ballast of the life before.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from server.clock import Clock
from server.errors import WalKeyUnsafe
from server.wal.ballast import Space
from server.wal.files import Disk, Lock, OpenFile, cut_off, publish
from server.wal.keyring import KEYS_DIRECTORY, Entropy, create_key
from server.wal.keysource import ExternalKeys
from server.wal.keyuse import prune
from server.wal.reader import CHUNK_BYTES
from server.wal.record import SEGMENT_HEADER_BYTES, FrameRules, Head, SegmentCodec, SegmentHeader, encode_head
from server.wal.recovery import Cut, Recovery
from server.wal.scan import (
    HEAD_NAME,
    LOCK_NAME,
    QUARANTINE_DIRECTORY,
    Problem,
    Segment,
    Survey,
    damaged,
    segment_name,
    survey,
)
from server.wal.signing import key_id_of
from server.wal.writer import Tip

SALT_BYTES = 16
LOG_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Opened:
    """A log directory, held and recovered."""

    lock: Lock
    survey: Survey
    head: Head
    key: bytes
    tip: Tip
    file: OpenFile
    rules: FrameRules
    recovery: Recovery


@dataclass(slots=True)
class _Mended:
    """What attempts to open have changed: a later one does not find it any more."""

    created: bool = False
    cuts: list[Cut] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


def open_directory(
    disk: Disk,
    directory: Path,
    rules: FrameRules,
    clock: Clock,
    entropy: Entropy,
    *,
    space: Space,
    external: ExternalKeys | None = None,
) -> Opened:
    """Lock, read, recover. Raises WalLocked, WalDamaged, WalKeyMissing, WalKeyUnsafe, DataDirUnusable."""
    disk.make_directory(directory)
    lock = disk.lock(directory / LOCK_NAME)
    mended = _Mended()

    def recover() -> Opened:
        return _recover(
            disk, directory, rules, clock=clock, entropy=entropy, lock=lock, external=external, mended=mended
        )

    try:
        return space.with_reserve(recover)
    except BaseException:
        lock.release()
        raise


def _recover(
    disk: Disk,
    directory: Path,
    rules: FrameRules,
    *,
    clock: Clock,
    entropy: Entropy,
    lock: Lock,
    external: ExternalKeys | None,
    mended: _Mended,
) -> Opened:
    found = survey(disk, directory, rules, external=external)
    if found.refusals:
        raise damaged(found)
    if external is not None:
        _refuse_replaced_key(found, external)
    mended.leftovers += _sweep(disk, found)
    # Names found here may come from an attempt that ended before it synced them; they are about to be relied upon.
    for folder in (directory / KEYS_DIRECTORY, directory / QUARANTINE_DIRECTORY):
        disk.make_directory(folder)
        disk.sync_directory(folder)
    disk.sync_directory(directory)
    mended.created |= found.is_empty
    head = _first_head(disk, found, clock, entropy) if found.head is None else found.head
    for problem in found.cuts:
        mended.cuts.append(_cut(disk, found, problem, clock))
    if found.segments:
        _end_at_last_frame(disk, found.segments[-1])
        _make_durable(disk, found, head)
    else:
        _begin_segment(disk, found, head, clock=clock, entropy=entropy)
    # The key of the last segment, also when a crash came before the head that names it; or another one from outside.
    head = replace(head, key_id=found.keyring.signing(found.segments[-1].codec.header.key_id))
    if found.segments[-1].codec.header.key_id != head.key_id:
        _begin_segment(disk, found, head, clock=clock, entropy=entropy)
    last = found.segments[-1]
    key = found.keyring.key(head.key_id, str(last.path))
    tip = Tip(
        codec=last.codec,
        offset=last.size,
        mac=found.tail_mac,
        seq=found.last_seq,
        replayed_seq=found.replayed_seq,
        last_pending_seq=found.pending.last_seq or 0,
    )
    renewed = replace(
        head,
        generation=head.generation + 1,
        tail_segment=last.number,
        tail_offset=tip.offset,
        last_seq=tip.seq,
        replayed_seq=tip.replayed_seq,
        wall_ns=clock.wall_ns(),
        tail_mac=tip.mac,
        clean=False,
    )
    publish(disk, directory / HEAD_NAME, [encode_head(renewed, key)])
    with contextlib.suppress(OSError):
        # A file that cannot be read may need any key, so all stay: each retire tries again, and says why it cannot.
        found.keyring = prune(disk, directory, found.keyring, {head.key_id})
    recovery = Recovery(
        created=mended.created,
        clean=head.clean and not mended.cuts,
        cuts=tuple(mended.cuts),
        segments=len(found.segments),
        entries_verified=found.entries_verified,
        leftovers_removed=tuple(mended.leftovers),
    )
    return Opened(lock, found, renewed, key, tip, disk.open_append(last.path), rules, recovery)


def _first_head(disk: Disk, found: Survey, clock: Clock, entropy: Entropy) -> Head:
    """Sign the birth of a log. A key that is there already comes from an attempt that a crash ended."""
    if found.keyring.external is not None:
        key = found.keyring.external.key
    elif found.keyring.keys:
        _, key = min(found.keyring.keys.items())
    else:
        found.keyring, key = create_key(disk, found.keyring, entropy)
    head = Head(
        key_id=key_id_of(key),
        log_id=entropy(LOG_ID_BYTES),
        generation=1,
        first_segment=1,
        tail_segment=1,
        tail_offset=0,
        last_seq=0,
        replayed_seq=0,
        wall_ns=clock.wall_ns(),
        tail_mac=bytes(32),
        clean=True,
    )
    publish(disk, found.directory / HEAD_NAME, [encode_head(head, key)])
    found.head = head
    return head


def _begin_segment(disk: Disk, found: Survey, head: Head, *, clock: Clock, entropy: Entropy) -> None:
    """Add a segment that is signed with the key of `head` to the end of what was found."""
    last = found.segments[-1] if found.segments else None
    codec = new_segment(
        head,
        found.keyring.key(head.key_id, str(found.directory / HEAD_NAME)),
        clock,
        entropy,
        number=head.first_segment if last is None else last.number + 1,
        seq=found.last_seq,
        replayed_seq=found.replayed_seq,
        previous_bytes=0 if last is None else last.size,
        previous_mac=bytes(32) if last is None else found.tail_mac,
    )
    path = found.directory / segment_name(codec.header.number)
    publish(disk, path, [codec.encoded])
    found.segments.append(Segment(path, codec, SEGMENT_HEADER_BYTES, found.last_seq, codec.header.wall_ns))
    found.tail_mac = codec.head_mac


def _refuse_replaced_key(found: Survey, external: ExternalKeys) -> None:
    """A key that was replaced may be known to somebody: it does not come back while the log holds what it signed."""
    before = [segment.codec.header.key_id for segment in found.segments]
    if external.key_id in before and before[-1] != external.key_id:
        raise WalKeyUnsafe(
            f"{external.origin} gives key {external.key_id.hex()} first, which key {before[-1].hex()} has replaced",
            hint=f"Put {before[-1].hex()} first again, or a fresh key, and keep the others after it",
        )


def new_segment(
    head: Head,
    key: bytes,
    clock: Clock,
    entropy: Entropy,
    *,
    number: int,
    seq: int,
    replayed_seq: int,
    previous_bytes: int = 0,
    previous_mac: bytes = bytes(32),
) -> SegmentCodec:
    """A fresh segment that follows entry `seq`."""
    header = SegmentHeader(
        key_id=head.key_id,
        log_id=head.log_id,
        number=number,
        first_seq=seq + 1,
        replayed_seq=replayed_seq,
        wall_ns=clock.wall_ns(),
        previous_bytes=previous_bytes,
        salt=entropy(SALT_BYTES),
        previous_mac=previous_mac,
    )
    return SegmentCodec.of(header, key)


def stamp(wall_ns: int) -> str:
    """A time for file names: 20260131T235959.123456789Z."""
    seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%S}.{nanoseconds:09d}Z"


def _cut(disk: Disk, found: Survey, problem: Problem, clock: Clock) -> Cut:
    """Keep the torn bytes beside the segment, then cut them off."""
    path = found.directory / problem.file
    facts = disk.facts(path)
    length = facts.size - problem.offset if facts is not None else 0
    name = f"{problem.file}.at-{problem.offset}.corrupted.{stamp(clock.wall_ns())}"
    publish(disk, path.with_name(name), [disk.read(path, problem.offset, length)])
    cut_off(disk, path, problem.offset)
    return Cut(problem.file, problem.offset, length, name)


def _end_at_last_frame(disk: Disk, last: Segment) -> None:
    """Take away the room that a killed process left. Whether its zeros are on the medium nobody knows.

    A cut whose sync failed looks done and may not be on the medium: so it is made again where there is nothing to cut.
    """
    cut_off(disk, last.path, last.size)


def _sweep(disk: Disk, found: Survey) -> tuple[str, ...]:
    """Remove what an interrupted publish or retire left."""
    for path in (*found.temporaries, *found.retired):
        disk.remove(path)
    return tuple(path.name for path in (*found.temporaries, *found.retired))


def _make_durable(disk: Disk, found: Survey, head: Head) -> None:
    """Write what the head does not vouch for over itself and sync it.

    After a failed sync the page cache shows bytes that the medium does not have and that no later sync writes. What was
    read here is about to be relied upon, so it is made dirty again first.
    """
    last = found.segments[-1]
    is_tail = head.tail_segment == last.number
    offset = max(head.tail_offset, SEGMENT_HEADER_BYTES) if is_tail else SEGMENT_HEADER_BYTES
    while offset < last.size:
        data = disk.read(last.path, offset, min(CHUNK_BYTES, last.size - offset))
        disk.rewrite(last.path, offset, data)
        offset += len(data)
