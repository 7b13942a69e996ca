"""The log that the rest of Understudy calls.

Promises: `append` of a PENDING entry returns after it is on the medium, of a SYNCED entry once it is written; both
return in the order of the log. Entries are read back verified. What is pending survives any crash. All methods belong to one
event loop; frames are encoded there, so that under load the writer's thread needs the interpreter twice a batch and not
twice an entry.
Does not promise that a cancelled `append` left nothing: the entry may be logged all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.clock import Clock
from server.errors import EntryRefused, WalDamaged, WalError, WalFull, WalLatched
from server.wal import quarantine
from server.wal.files import Disk
from server.wal.keyring import Entropy
from server.wal.limits import WalLimits
from server.wal.memory import TailCache
from server.wal.opening import Opened, new_segment, open_directory
from server.wal.quarantine import QuarantineItem
from server.wal.record import (
    FRAME_OVERHEAD_BYTES,
    PRINCIPAL_BYTES,
    SEGMENT_HEADER_BYTES,
    TRACE_BYTES_MAX,
    EntryState,
    FrameRules,
    FrameType,
    NewRecord,
    Record,
)
from server.wal.scan import Segment, entries_between, segment_name
from server.wal.writer import Outcome, Retire, Roll, Stop, Tip, Write, Writer

_PENDING = EntryState.PENDING


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A part of a segment to be read: frames from `start` to `end`."""

    segment: Segment
    start: int
    end: int


class Log:
    """See the module; made by `Log.open`."""

    def __init__(
        self, opened: Opened, *, disk: Disk, clock: Clock, limits: WalLimits, rules: FrameRules, entropy: Entropy
    ):
        found = opened.survey
        self._opened = opened
        self._disk = disk
        self._clock = clock
        self._limits = limits
        self._rules = rules
        self._entropy = entropy
        self._directory = found.directory
        self._segments = found.segments
        self._pending = found.pending
        self._cache = TailCache(limits.cache_bytes)
        self._tip = opened.tip
        self._epoch = 0
        self._synced = opened.tip
        self._generation = opened.head.generation
        self._bytes = sum(segment.size for segment in found.segments)
        self._queued_entries = 0
        self._queued_bytes = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._beyond: list[tuple[int, asyncio.Future[None]]] = []
        self._retiring = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._cursor = found.replayed_seq
        self.log_id = opened.head.log_id.hex()
        self.opened_at_seq = found.last_seq
        self.last_seq = found.last_seq
        self.recovery = opened.recovery
        self.latched: str | None = None
        self._writer = Writer(
            self._directory,
            disk=disk,
            clock=clock,
            limits=limits,
            key=opened.key,
            head=opened.head,
            tip=opened.tip,
            deliver=self._deliver,
        )
        self._writer.start()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        disk: Disk,
        clock: Clock,
        limits: WalLimits,
        kinds: Collection[int],
        entropy: Entropy = os.urandom,
    ) -> Log:
        """Lock, verify and recover a directory; blocking.

        Raises WalLocked, WalDamaged, WalKeyMissing, WalKeyUnsafe, DataDirUnusable; then nothing on disk was changed.
        """
        rules = FrameRules(frozenset(kinds), limits.entry_bytes, limits.entry_points)
        directory = directory.absolute()
        try:
            opened = open_directory(disk, directory, rules, clock, entropy)
        except OSError as error:
            raise WalError(f"cannot open the log in {directory}: {error.strerror or error}") from error
        return cls(opened, disk=disk, clock=clock, limits=limits, rules=rules, entropy=entropy)

    # --- what is known without reading -------------------------------------------------------------------------------

    @property
    def replayed_seq(self) -> int:
        """Every entry up to here is at Qdrant or in quarantine."""
        oldest = self._pending.first_from(0)
        return self.last_seq if oldest is None else max(self._cursor, oldest - 1)

    @property
    def first_seq(self) -> int:
        """The oldest entry that is still held, or would be."""
        return self._segments[0].first_seq

    @property
    def pending_count(self) -> int:
        """Entries that Qdrant does not have yet."""
        return len(self._pending)

    @property
    def pending_bytes(self) -> int:
        """Their size in the log."""
        return self._pending.total_bytes

    @property
    def oldest_pending_ns(self) -> int | None:
        """Wall time of the oldest of them."""
        return self._pending.oldest_ns

    @property
    def total_bytes(self) -> int:
        """Size of all segments, with what is on its way."""
        return self._bytes

    @property
    def segment_count(self) -> int:
        """Number of segments."""
        return len(self._segments)

    # --- appending ---------------------------------------------------------------------------------------------------

    async def append(self, record: NewRecord) -> int:
        """Log one entry and return its sequence number.

        Raises EntryRefused (nothing was written), WalFull (nothing is kept), WalLatched (the disk failed).
        """
        objection = _objection(self._rules, record)
        if objection:
            raise EntryRefused(objection)
        size = FRAME_OVERHEAD_BYTES + len(record.principal) + len(record.trace) + len(record.body)
        await self._wait_for_room(size)
        if self._bytes + size > self._limits.total_bytes:
            raise WalFull(
                f"the log holds {self._bytes} bytes and may hold {self._limits.total_bytes} (wal.total_bytes)"
            )
        write = self._encode_entry(record, size)
        await write.done
        return write.tip.seq

    async def mark_replayed(self, seq: int) -> None:
        """Everything up to `seq` is at Qdrant or in quarantine. Durable on return; concurrent calls share one fsync."""
        if seq > self.last_seq:
            raise ValueError(f"entry {seq} was never logged; the last one is {self.last_seq}")
        if seq <= self.replayed_seq:
            return
        await self._wait_for_room(FRAME_OVERHEAD_BYTES)
        tip = self._make_tip_fit(FRAME_OVERHEAD_BYTES)
        frame, mac = tip.codec.mark(
            FrameType.CURSOR,
            tip.seq,
            seq,
            tip.mac,
            wall_ns=self._clock.wall_ns(),
            durable_before=self._durable_before(),
            head_generation=self._generation,
        )
        replayed = max(tip.replayed_seq, seq)
        if replayed >= tip.last_pending_seq:
            replayed = tip.seq
        after = Tip(tip.codec, tip.offset + len(frame), mac, tip.seq, replayed, tip.last_pending_seq)
        await self._queue(Write(frame, after, True, self._epoch, self._future(), tip.offset, None, seq)).done

    def _encode_entry(self, new: NewRecord, size: int) -> Write:
        tip = self._make_tip_fit(size)
        seq = tip.seq + 1
        record = Record(seq, new.kind, new.state, self._clock.wall_ns(), new.principal, new.trace, new.body, new.points)
        frame, mac = tip.codec.entry(record, tip.mac, self._durable_before(), self._generation)
        is_pending = new.state is _PENDING
        is_all_replayed = not is_pending and tip.replayed_seq >= tip.last_pending_seq
        after = Tip(
            tip.codec,
            tip.offset + size,
            mac,
            seq,
            seq if is_all_replayed else tip.replayed_seq,
            seq if is_pending else tip.last_pending_seq,
        )
        return self._queue(Write(frame, after, is_pending, self._epoch, self._future(), tip.offset, record))

    def _queue(self, write: Write) -> Write:
        size = len(write.frame)
        self._tip = write.tip
        self._bytes += size
        self._queued_entries += 1
        self._queued_bytes += size
        self._writer.put(write)
        return write

    def _future(self) -> asyncio.Future[None]:
        return self._running_loop().create_future()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _durable_before(self) -> int:
        """What is known to be durable of the segment that is being written."""
        return self._synced.offset if self._synced.codec is self._tip.codec else SEGMENT_HEADER_BYTES

    def _make_tip_fit(self, size: int) -> Tip:
        """The tip, in a new segment when the present one would grow too large."""
        tip = self._tip
        if tip.offset + size > self._limits.segment_bytes and tip.offset > SEGMENT_HEADER_BYTES:
            return self._roll()
        return tip

    def _roll(self) -> Tip:
        tip = self._tip
        codec = new_segment(
            self._opened.head,
            self._opened.key,
            self._clock,
            self._entropy,
            number=tip.codec.header.number + 1,
            seq=tip.seq,
            replayed_seq=tip.replayed_seq,
            previous_bytes=tip.offset,
            previous_mac=tip.mac,
        )
        self._tip = Tip(codec, SEGMENT_HEADER_BYTES, codec.head_mac, tip.seq, tip.replayed_seq, tip.last_pending_seq)
        self._bytes += SEGMENT_HEADER_BYTES
        self._writer.put(Roll(self._tip, self._epoch))
        return self._tip

    async def _wait_for_room(self, size: int) -> None:
        """Hold back while too much waits for the disk."""
        self._refuse_when_shut()
        while not self._has_room(size):
            turn = self._future()
            self._room.append(turn)
            await turn
            self._refuse_when_shut()

    def _has_room(self, size: int) -> bool:
        limits = self._limits
        return self._queued_entries == 0 or (
            self._queued_entries < limits.queue_entries and self._queued_bytes + size <= limits.queue_bytes
        )

    def _refuse_when_shut(self) -> None:
        if self.latched is not None:
            raise WalLatched(self.latched)
        if self._closed:
            raise WalLatched("the log is closed", hint="Understudy is stopping")

    # --- what the writer reports -------------------------------------------------------------------------------------

    def _deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Called on the writer's thread."""
        loop = self._loop
        if loop is not None:
            # A closed loop has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._take, outcomes)

    def _take(self, outcomes: Sequence[Outcome]) -> None:
        before = self.last_seq
        for outcome in outcomes:
            self._synced, self._generation = outcome.synced, outcome.generation
            self.latched = outcome.latched
            for command in outcome.commands:
                match command:
                    case Write():
                        self._take_write(command, outcome)
                    case Roll(tip=tip):
                        self._take_roll(tip, outcome)
                    case Retire(done=done) | Stop(done=done):
                        _settle(done, outcome)
            if outcome.rewind_to is not None:
                self._tip = outcome.rewind_to
                self._epoch += 1
        waiting, self._room = self._room, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
        if self.last_seq != before:
            self._tell_readers()

    def _take_write(self, write: Write, outcome: Outcome) -> None:
        size = len(write.frame)
        self._queued_entries -= 1
        self._queued_bytes -= size
        if outcome.error is not None:
            self._bytes -= size
            _settle(write.done, outcome)
            return
        segment = self._segments[-1]
        segment.size = write.tip.offset
        record = write.record
        if record is None:
            self._cursor = max(self._cursor, write.replayed_seq)
            self._pending.drop_through(self._cursor)
        else:
            self.last_seq = segment.last_seq = record.seq
            segment.last_wall_ns = record.wall_ns
            segment.index.note(record.seq, write.start)
            self._cache.add(record)
            if record.state is _PENDING:
                self._pending.add(record.seq, size, record.wall_ns)
        if not write.done.done():
            write.done.set_result(None)

    def _take_roll(self, tip: Tip, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._bytes -= SEGMENT_HEADER_BYTES
            return
        header = tip.codec.header
        path = self._directory / segment_name(header.number)
        self._segments.append(Segment(path, tip.codec, SEGMENT_HEADER_BYTES, tip.seq, header.wall_ns))

    def _tell_readers(self) -> None:
        still = []
        for seq, waiter in self._beyond:
            if self.last_seq <= seq:
                still.append((seq, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._beyond = still

    # --- reading -----------------------------------------------------------------------------------------------------

    async def wait_beyond(self, seq: int) -> int:
        """Wait until there is an entry after `seq`; returns the last one."""
        while self.last_seq <= seq:
            if self._closed:
                raise WalLatched("the log is closed", hint="Understudy is stopping")
            waiter = self._future()
            self._beyond.append((seq, waiter))
            await waiter
        return self.last_seq

    async def read(self, after_seq: int, limit_entries: int, limit_bytes: int) -> list[Record]:
        """Entries after `after_seq`, in order, verified: up to both limits, at least one if there is one.

        Entries before `first_seq` are retired and are left out. Raises WalDamaged when the disk does not hold what was
        written.
        """
        last_seq = self.last_seq
        if after_seq >= last_seq:
            return []
        cached = self._cache.read(after_seq, last_seq, limit_entries, limit_bytes)
        if cached is not None:
            return cached
        while True:
            stretches = self._stretches(after_seq)
            try:
                return await asyncio.to_thread(self._read_disk, stretches, after_seq, limit_entries, limit_bytes)
            except FileNotFoundError as error:
                if stretches[0].segment in self._segments:
                    raise WalDamaged(f"segment {stretches[0].segment.path} is gone") from error
            except OSError as error:
                raise WalError(f"cannot read the log in {self._directory}: {error.strerror or error}") from error

    async def read_pending(self, limit_entries: int, limit_bytes: int) -> list[Record]:
        """The oldest entries that Qdrant does not have, in order: up to both limits, at least one if there is one."""
        found: list[Record] = []
        size = 0
        seq = self._pending.first_from(0)
        while seq is not None and len(found) < limit_entries and size < limit_bytes:
            records = await self.read(seq - 1, limit_entries - len(found), limit_bytes - size)
            for record in records:
                if record.state is _PENDING:
                    found.append(record)
                    size += len(record.body)
            seq = self._pending.first_from(records[-1].seq + 1) if records else None
        return found

    def _stretches(self, after_seq: int) -> list[_Stretch]:
        """Where entries after `after_seq` are, as far as they are visible now."""
        stretches = []
        for segment in self._segments:
            if segment.last_seq > after_seq:
                start = segment.index.start_for(after_seq + 1, SEGMENT_HEADER_BYTES)
                stretches.append(_Stretch(segment, start, segment.size))
        return stretches

    def _read_disk(
        self, stretches: Sequence[_Stretch], after_seq: int, limit_entries: int, limit_bytes: int
    ) -> list[Record]:
        """On a thread of its own."""
        found: list[Record] = []
        size = 0
        for part in stretches:
            frames = entries_between(
                self._disk, part.segment, self._rules, after_seq=after_seq, start=part.start, end=part.end
            )
            for frame in frames:
                if frame.record is None:
                    continue
                size += len(frame.record.body)
                if len(found) >= limit_entries or (found and size > limit_bytes):
                    return found
                found.append(frame.record)
        return found

    # --- keeping and letting go --------------------------------------------------------------------------------------

    async def quarantine(self, record: Record, *, code: int, details: str) -> None:
        """Keep a refused entry, durably; call it before `mark_replayed`. Keeping one twice is harmless."""
        head, key = self._opened.head, self._opened.key
        data = quarantine.encode_item(
            record, head.key_id, key, head.log_id, code=code, details=details, now_ns=self._clock.wall_ns()
        )
        try:
            await asyncio.to_thread(quarantine.keep, self._disk, self._directory, record.seq, data)
        except OSError as error:
            raise WalError(f"cannot quarantine entry {record.seq}: {error.strerror or error}") from error

    def quarantined(self) -> list[QuarantineItem]:
        """Every refused entry, oldest first; blocking."""
        return quarantine.list_items(self._disk, self._directory, self._opened.survey.keyring)

    def quarantined_entries(self) -> Iterator[tuple[QuarantineItem, Record]]:
        """Each refused entry that is to be trusted, with the entry itself, oldest first; blocking, one at a time."""
        keyring = self._opened.survey.keyring
        for item in self.quarantined():
            found = quarantine.load(self._disk, item.path, keyring)
            if not isinstance(found, str):
                yield found

    async def retire(self, applied_seq: int, now_ns: int, retention_seconds: float) -> int:
        """Drop segments that both readers passed and that are older than the retention; returns how many.

        Under pressure (`WalLimits.pressure_share`) a segment goes as soon as it is older than the grace time.
        """
        async with self._retiring:
            self._refuse_when_shut()
            passed = min(applied_seq, self.replayed_seq)
            oldest_kept_ns = now_ns - int(retention_seconds * 1e9)
            if self._bytes > self._limits.total_bytes * self._limits.pressure_share:
                oldest_kept_ns = max(oldest_kept_ns, now_ns - int(self._limits.grace_seconds * 1e9))
            if self._is_tip_over(passed, oldest_kept_ns):
                self._roll()
            victims: list[Segment] = []
            for segment, following in zip(self._segments, self._numbers_after(), strict=False):
                if segment.last_seq > passed or segment.last_wall_ns > oldest_kept_ns:
                    break
                victims.append(segment)
                first_kept = following
            if not victims:
                return 0
            done = self._future()
            self._writer.put(Retire(first_kept, [segment.path for segment in victims], done))
            await done
            del self._segments[: len(victims)]
            self._bytes -= sum(segment.size for segment in victims)
            return len(victims)

    def _is_tip_over(self, passed: int, oldest_kept_ns: int) -> bool:
        """Whether the segment being written holds only entries that may go: then a new one is begun."""
        last = self._segments[-1]
        return (
            self._queued_entries == 0
            and self._tip.codec is last.codec
            and last.first_seq <= last.last_seq <= passed
            and last.last_wall_ns <= oldest_kept_ns
        )

    def _numbers_after(self) -> list[int]:
        """For each segment that has a successor, its number; the segment being written is never retired."""
        numbers = [segment.number for segment in self._segments[1:]]
        if self._tip.codec is not self._segments[-1].codec:
            numbers.append(self._tip.codec.header.number)
        return numbers

    async def close(self) -> None:
        """Write what is queued, sign the head, release the directory. Raises WalLatched when that failed."""
        if self._closed:
            return
        self._closed = True
        done = self._future()
        self._writer.put(Stop(done))
        try:
            await done
        finally:
            await asyncio.to_thread(self._writer.join)
            self._opened.lock.release()
            for turn in (*self._room, *(waiter for _, waiter in self._beyond)):
                if not turn.done():
                    turn.set_result(None)


def _settle(done: asyncio.Future[None], outcome: Outcome) -> None:
    if done.done():
        return
    if outcome.error is None:
        done.set_result(None)
    else:
        done.set_exception(outcome.error)


def _objection(rules: FrameRules, record: NewRecord) -> str:
    """Why an entry may not be logged; empty when it may."""
    if len(record.principal) not in (0, PRINCIPAL_BYTES):
        return f"a principal is {PRINCIPAL_BYTES} bytes, not {len(record.principal)}"
    if len(record.trace) > TRACE_BYTES_MAX or not record.trace.isascii():
        return f"a trace context is at most {TRACE_BYTES_MAX} ASCII characters"
    return rules.objection(record.kind, len(record.body), record.points)
