"""The thread that writes and syncs, for all waiting writers at once.

Promises: frames reach the file in the order in which they were queued; a batch that holds anything durable is synced
once, before anyone in it is told; results are delivered to the event loop in one call per batch; after a failed write
or sync the file is never written or synced again and every later command fails, until Reopen has put another file in
its place that holds what was acknowledged and nothing else. Makes new segments and renews the head.
Does not decide what is written: frames arrive encoded, in order, chained.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from server.clock import Clock
from server.errors import UnderstudyError, WalError, WalFull, WalLatched
from server.wal.ballast import NO_SPACE, Space
from server.wal.files import Disk, OpenFile, cut_off, publish
from server.wal.limits import WalLimits
from server.wal.record import SEGMENT_HEADER_BYTES, FrameRules, FrameType, Head, Record, SegmentCodec, encode_head
from server.wal.reopening import Kept, probe, replace_segment
from server.wal.runner import Runner, Work
from server.wal.scan import HEAD_NAME, segment_name, segment_number

_log = logging.getLogger("understudy.wal")


class Tip(NamedTuple):
    """The end of the log: what the next frame is chained to."""

    codec: SegmentCodec
    offset: int
    mac: bytes
    seq: int
    replayed_seq: int
    last_pending_seq: int


@dataclass(slots=True)
class Write:
    """Append one frame. `tip` is the end of the log after it; `epoch` counts rewinds; the rest is for the caller."""

    frame: bytes
    tip: Tip
    is_durable: bool
    epoch: int
    done: asyncio.Future[None]
    start: int
    record: Record | None
    replayed_seq: int = 0


@dataclass(slots=True)
class Roll:
    """Begin the segment of `tip`, whose key signs the head from there on."""

    tip: Tip
    epoch: int
    key: bytes


@dataclass(slots=True)
class Retire:
    """Segments below `first_segment` are over: say so in the head, then remove them."""

    first_segment: int
    paths: Sequence[Path]
    done: asyncio.Future[None]


@dataclass(slots=True)
class Reopen:
    """After a failure: go on in a new file from what was acknowledged. Nothing to do while nothing has failed."""

    done: asyncio.Future[None]


@dataclass(slots=True)
class Stop:
    """Sync, sign the head and end."""

    done: asyncio.Future[None]


Command = Write | Roll | Retire | Reopen | Stop


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run of commands: all done (`error` None) or none acknowledged.

    `synced` is the end of what is durable. `rewind_to` is set when the log goes on from an earlier end: the disk was
    full and what was half-written is cut, or the log was reopened. Segments before `first_segment` are gone.
    """

    commands: Sequence[Command]
    error: UnderstudyError | None
    synced: Tip
    generation: int
    first_segment: int
    rewind_to: Tip | None = None
    latched: str | None = None


class Writer:
    """See the module. `hear` is called on the event loop with the Outcomes of each batch, in order."""

    def __init__(
        self,
        directory: Path,
        *,
        disk: Disk,
        clock: Clock,
        limits: WalLimits,
        key: bytes,
        head: Head,
        tip: Tip,
        file: OpenFile,
        rules: FrameRules,
        space: Space,
        hear: Callable[[Sequence[Outcome]], None],
        runner: Runner[Command, Sequence[Outcome]],
    ) -> None:
        self._directory = directory
        self._disk = disk
        self._clock = clock
        self._limits = limits
        self._key = key
        self._head = head
        self._hear = hear
        self._runner = runner
        self._file = file
        self._rules = rules
        self._space = space
        # The end of what is in the file, of what a sync covered, and of what somebody was told.
        self._written = self._synced = self._settled = tip
        # Up to where the file holds zeros that a sync covered; nothing of it is counted on after a failure.
        self._room_end = tip.offset
        self._is_room_refused = False
        # What was told and no sync covers yet: the renewal of the head bounds it.
        self._unsynced: list[bytes] = []
        self._generation = head.generation
        self._dirty_since: float | None = None
        self._is_head_due = False
        self._epoch = 0
        self._latched: str | None = None
        self._cause = ""

    def start(self) -> None:
        """Begin to take commands."""
        self._runner.start(
            Work(self._step, self._hear, self._head_due_seconds, lambda command: isinstance(command, Stop))
        )

    def put(self, commands: Sequence[Command]) -> None:
        """Queue commands; the caller keeps the queue within its limits."""
        self._runner.put(commands)

    async def join(self) -> None:
        """Wait until Stop has been carried out."""
        await self._runner.join()

    def _step(self, batch: Sequence[Command]) -> bool:
        """One batch, empty when the head is due; False after a Stop."""
        outcomes = self._carry_out(batch)
        if outcomes:
            self._runner.tell(outcomes)
        renewal = self._renew_head_when_due()
        if renewal is not None:
            self._runner.tell([renewal])
        if not (batch and isinstance(batch[-1], Stop)):
            return True
        try:
            self._file.close()
        except OSError as failure:
            _log.error("closing the log in %s: %s", self._directory, failure)
        return False

    def _head_due_seconds(self) -> float | None:
        """How long until the head must be renewed; None while there is nothing new to sign."""
        if self._dirty_since is None or self._latched is not None:
            return None
        return max(0.0, self._dirty_since + self._limits.head_seconds - self._clock.monotonic())

    def _carry_out(self, batch: Sequence[Command]) -> list[Outcome]:
        """Do the batch in runs: neighbouring writes of one epoch together, every other command by itself."""
        outcomes = []
        start = 0
        for end in range(1, len(batch) + 1):
            if end < len(batch) and _goes_with(batch[start], batch[end]):
                continue
            outcomes.append(self._carry_out_run(batch[start:end]))
            if isinstance(batch[start], Roll) and (renewal := self._renew_head_when_due()):
                # Before anything in the new segment is acknowledged, so that its absence would show.
                outcomes.append(renewal)
            start = end
        return outcomes

    def _carry_out_run(self, run: Sequence[Command]) -> Outcome:
        first = run[0]
        if self._latched is not None and not isinstance(first, Reopen):
            return self._outcome(run, WalLatched(self._latched))
        if isinstance(first, Write | Roll) and first.epoch != self._epoch:
            # Encoded before a rewind: chained to frames that are no longer there.
            return self._outcome(run, self._disk_full())
        releases = self._space.releases
        try:
            rewind_to = self._do(run)
        except OSError as failure:
            if failure.errno not in NO_SPACE:
                return self._outcome(run, self._latch(f"{failure.strerror or failure}"))
            return self._without_space(run, failure, releases)
        except WalError as failure:
            return self._outcome(run, self._latch(str(failure)))
        except Exception as failure:  # noqa: BLE001 - outermost loop of the thread: whoever waits must be told
            _log.exception("the log's writer failed")
            return self._outcome(run, self._latch(f"internal error: {failure!r}"))
        return self._outcome(run, None, rewind_to)

    def _without_space(self, run: Sequence[Command], failure: OSError, releases_before: int) -> Outcome:
        """Give the ballast up; writes step back, what must not fail for want of space is tried once more."""
        first = run[0]
        try:
            was_released = self._space.release(releases_before)
            if isinstance(first, Write | Roll):
                self._step_back(first)
                return self._outcome(run, self._disk_full(), self._written)
            if not was_released:
                raise failure
            if isinstance(first, Stop):
                self._cut_half_written()
            return self._outcome(run, None, self._do(run))
        except OSError as again:
            if isinstance(first, Retire) and again.errno in NO_SPACE:
                # The head could not be signed; the end of the log stays where it is.
                return self._outcome(run, self._disk_full())
            return self._outcome(run, self._latch(f"{again.strerror or again}"))
        except WalError as again:
            return self._outcome(run, self._latch(str(again)))

    def _disk_full(self) -> WalFull:
        return WalFull(f"the disk of {self._directory} is full", hint="Free space there; no restart is needed")

    def _latch(self, reason: str) -> WalLatched:
        if self._latched is None:
            self._latched = self._cause = f"writing the log in {self._directory} failed: {reason}"
        else:
            self._latched = f"{self._cause}; it could not be reopened yet: {reason}"
        return WalLatched(self._latched)

    def _outcome(self, run: Sequence[Command], error: UnderstudyError | None, rewind_to: Tip | None = None) -> Outcome:
        head = self._head
        return Outcome(run, error, self._synced, head.generation, head.first_segment, rewind_to, self._latched)

    def _step_back(self, command: Write | Roll) -> None:
        """Undo what a full disk left half-done, so that the log goes on once there is space."""
        if isinstance(command, Write):
            self._cut_half_written()
        elif self._disk.facts(self._path_of(command.tip)) is not None:
            self._disk.remove(self._path_of(command.tip))
            self._disk.sync_directory(self._directory)
        self._epoch += 1

    def _cut_half_written(self) -> None:
        cut_off(self._disk, self._path_of(self._written), self._written.offset)
        self._room_end = self._written.offset

    def _do(self, run: Sequence[Command]) -> Tip | None:
        """Carry a run out; returns where the log goes on when that is not where it was."""
        match run[0]:
            case Write():
                self._write([command for command in run if isinstance(command, Write)])
            case Roll(tip=tip, key=key):
                self._roll(tip, key)
            case Retire(first_segment=first, paths=paths):
                self._retire(first, paths)
            case Reopen() if self._latched is not None:
                return self._reopen()
            case Stop():
                self._stop()
        return None

    def _write(self, writes: Sequence[Write]) -> None:
        frames = [write.frame for write in writes]
        is_durable = any(write.is_durable for write in writes)
        if is_durable:
            self._make_room(sum(map(len, frames)))
        self._file.append(frames)
        self._written = writes[-1].tip
        if self._dirty_since is None:
            self._dirty_since = self._clock.monotonic()
        if is_durable:
            self._sync()
        else:
            self._unsynced += (write.frame for write in writes)
        self._settled = self._written
        if self._written.offset - self._head.tail_offset >= self._limits.head_bytes:
            self._is_head_due = True

    def _make_room(self, length: int) -> None:
        """Zeros for this batch and those to come, when they are small.

        A sync of bytes that only replace others costs a file system one write; when the file has grown, it has to write
        down the new size as well.
        """
        end = self._written.offset
        room = min(self._limits.room_bytes, self._limits.segment_bytes - end)
        is_small = length <= room and length * 16 <= self._limits.room_bytes
        if end + length <= self._room_end or not is_small or self._is_room_refused:
            return
        try:
            self._file.make_room(room)
        except OSError as failure:
            if failure.errno not in NO_SPACE:
                raise
            # What is left of the disk is for frames.
            self._is_room_refused = True
            self._disk.truncate(self._path_of(self._written), end)
            return
        self._sync_file()
        self._room_end = end + room

    def _take_room_away(self, end: int) -> None:
        """A segment that is over ends with its last frame."""
        if self._room_end > end:
            self._disk.truncate(self._path_of(self._written), end)
        self._room_end = end

    def _sync(self) -> None:
        if self._synced is not self._written:
            self._sync_file()

    def _sync_file(self) -> None:
        try:
            self._file.sync()
        except OSError as failure:
            # Whatever the reason, a full disk included: after a failed sync nobody knows what the file holds.
            raise OSError(errno.EIO, f"sync failed: {failure.strerror}") from failure
        self._synced = self._written
        self._unsynced.clear()

    def _roll(self, tip: Tip, key: bytes) -> None:
        self._sync()
        self._take_room_away(self._written.offset)
        publish(self._disk, self._path_of(tip), [tip.codec.encoded])
        file = self._disk.open_append(self._path_of(tip))
        self._file.close()
        self._go_on_in(file, tip)
        self._key, self._head = key, replace(self._head, key_id=tip.codec.header.key_id)
        self._is_head_due = True

    def _go_on_in(self, file: OpenFile, tip: Tip) -> None:
        """Another file, synced, which ends at `tip`: there is no room in it."""
        self._file = file
        self._written = self._synced = self._settled = tip
        self._room_end, self._is_room_refused = tip.offset, False
        self._unsynced.clear()

    def _renew_head_when_due(self) -> Outcome | None:
        """Keep the head recent. A full disk puts it off; any other failure latches."""
        if self._latched is not None:
            return None
        now = self._clock.monotonic()
        is_late = self._dirty_since is not None and now >= self._dirty_since + self._limits.head_seconds
        if not (is_late or self._is_head_due):
            return None
        try:
            self._space.with_reserve(self._renew_head)
        except OSError as failure:
            if failure.errno in NO_SPACE:
                self._dirty_since, self._is_head_due = now, False
                return None
            return self._outcome((), self._latch(f"{failure.strerror or failure}"))
        return self._outcome((), None)

    def _renew_head(self, *, clean: bool = False, first_segment: int | None = None) -> None:
        """Sync, then sign how far the log reaches."""
        self._sync()
        tip = self._synced
        # Never the same twice: a head whose publishing failed may be there all the same.
        self._generation += 1
        head = replace(
            self._head,
            generation=self._generation,
            first_segment=self._head.first_segment if first_segment is None else first_segment,
            tail_segment=tip.codec.header.number,
            tail_offset=tip.offset,
            last_seq=tip.seq,
            replayed_seq=tip.replayed_seq,
            wall_ns=self._clock.wall_ns(),
            tail_mac=tip.mac,
            clean=clean,
        )
        publish(self._disk, self._directory / HEAD_NAME, [encode_head(head, self._key)])
        self._head = head
        self._dirty_since, self._is_head_due = None, False

    def _retire(self, first_segment: int, paths: Sequence[Path]) -> None:
        # Whoever asked may not have known yet that more is gone, nor that the segment that was to follow could not be
        # made: then the one that is being written stays.
        first_segment = min(max(first_segment, self._head.first_segment), self._written.codec.header.number)
        self._renew_head(first_segment=first_segment)
        for path in paths:
            if path != self._path_of(self._written) and self._disk.facts(path) is not None:
                self._disk.remove(path)
        self._disk.sync_directory(self._directory)

    def _reopen(self) -> Tip:
        """Go on in another file. Every step may fail and be done again."""
        probe(self._disk, self._directory)
        tip = self._settled
        strays = [number for number in map(segment_number, self._disk.names(self._directory)) if number is not None]
        for number in strays:
            # Begun and not heard of, or retired and not removed.
            if not self._head.first_segment <= number <= tip.codec.header.number:
                self._disk.remove(self._directory / segment_name(number))
        self._disk.sync_directory(self._directory)
        is_synced = self._synced.codec is tip.codec
        synced_offset = self._synced.offset if is_synced else SEGMENT_HEADER_BYTES
        kept = Kept(tip.codec, synced_offset, tuple(self._unsynced), tip.offset, tip.mac)
        file = replace_segment(self._disk, self._path_of(tip), kept, self._rules)
        failed = self._file
        self._go_on_in(file, tip)
        failed.close()
        self._renew_head()
        self._latched = None
        self._epoch += 1
        return tip

    def _stop(self) -> None:
        """The seal after the last head shows an older head for what it is."""
        self._renew_head(clean=True)
        tip, generation = self._synced, self._head.generation
        frame, _ = tip.codec.mark(
            FrameType.SEAL,
            tip.seq,
            generation,
            tip.mac,
            wall_ns=self._clock.wall_ns(),
            durable_before=tip.offset,
            head_generation=generation,
        )
        self._file.append([frame])
        self._sync_file()
        self._take_room_away(tip.offset + len(frame))

    def _path_of(self, tip: Tip) -> Path:
        return self._directory / segment_name(tip.codec.header.number)


def _goes_with(first: Command, later: Command) -> bool:
    return isinstance(first, Write) and isinstance(later, Write) and first.epoch == later.epoch
