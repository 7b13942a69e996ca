"""The log that the rest of Understudy calls.

Promises: `append` of a PENDING entry returns after it is on the medium, of a SYNCED entry once it is written; both
return in the order of the log. Entries are read back verified. What is pending survives any crash. All methods belong
to one event loop; frames are encoded there, so that under load the writer's thread needs the interpreter twice a batch
and not twice an entry.
Does not promise that a cancelled `append` left nothing: the entry may be logged all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from server.clock import Clock
from server.errors import EntryRefused, WalDamaged, WalError, WalFull, WalLatched
from server.wal.encoder import Encoder, frame_bytes_of
from server.wal.files import Disk
from server.wal.keyring import Entropy
from server.wal.ledger import Ledger
from server.wal.limits import WalLimits
from server.wal.opening import Opened, open_directory
from server.wal.quarantine import Quarantine, QuarantineItem
from server.wal.reader import Stretch, read_entries
from server.wal.record import (
    FRAME_OVERHEAD_BYTES,
    PRINCIPAL_BYTES,
    SEGMENT_HEADER_BYTES,
    TRACE_BYTES_MAX,
    EntryState,
    FrameRules,
    NewRecord,
    Record,
)
from server.wal.writer import Command, Outcome, Retire, Roll, Stop, Write, Writer

__all__ = ["EntryState", "Log", "NewRecord", "QuarantineItem", "Record", "WalLimits"]

_PENDING = EntryState.PENDING


class Log:
    """See the module; made by `Log.open`."""

    def __init__(self, opened: Opened, *, disk: Disk, clock: Clock, limits: WalLimits, entropy: Entropy) -> None:
        found, head = opened.survey, opened.head
        self._disk = disk
        self._clock = clock
        self._limits = limits
        self._rules = opened.rules
        self._lock = opened.lock
        self._directory = found.directory
        self._ledger = Ledger(found, limits)
        self._encoder = Encoder(
            head, opened.key, clock, limits, entropy, tip=opened.tip, synced=opened.tip, generation=head.generation
        )
        self._quarantine = Quarantine(disk, found.directory, found.keyring, head.key_id, head.log_id)
        self._bytes = sum(segment.size for segment in found.segments)
        self._outgoing: list[Command] = []
        self._queued_entries = 0
        self._queued_bytes = 0
        self._waiting_for_room: deque[asyncio.Future[None]] = deque()
        self._waiting_beyond: list[tuple[int, asyncio.Future[None]]] = []
        self._retiring = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.log_id = head.log_id.hex()
        self.opened_at_seq = found.last_seq
        self.recovery = opened.recovery
        self.latched: str | None = None
        self._writer = Writer(
            found.directory,
            disk=disk,
            clock=clock,
            limits=limits,
            key=opened.key,
            head=head,
            tip=opened.tip,
            file=opened.file,
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
        return cls(opened, disk=disk, clock=clock, limits=limits, entropy=entropy)

    # --- what is known without reading -------------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        """The newest entry that readers may see."""
        return self._ledger.last_seq

    @property
    def first_seq(self) -> int:
        """The oldest entry that is still held, or would be."""
        return self._ledger.segments[0].first_seq

    @property
    def replayed_seq(self) -> int:
        """Every entry up to here is at Qdrant or in quarantine."""
        return self._ledger.replayed_seq

    @property
    def pending_count(self) -> int:
        """Entries that Qdrant does not have yet."""
        return len(self._ledger.pending)

    @property
    def pending_bytes(self) -> int:
        """Their size in the log."""
        return self._ledger.pending.total_bytes

    @property
    def oldest_pending_ns(self) -> int | None:
        """Wall time of the oldest of them."""
        return self._ledger.pending.oldest_ns

    @property
    def total_bytes(self) -> int:
        """Size of all segments, with what is on its way."""
        return self._bytes

    @property
    def segment_count(self) -> int:
        """Number of segments."""
        return len(self._ledger.segments)

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self._directory

    @property
    def head_generation(self) -> int:
        """How often the head was signed, as far as is known to be on disk."""
        return self._encoder.generation

    def written(self) -> list[Stretch]:
        """Every segment, from its first frame up to the end of what is written now."""
        return [
            Stretch(segment.path, segment.codec, SEGMENT_HEADER_BYTES, segment.size) for segment in self._ledger.segments
        ]

    def holds(self, path: Path) -> bool:
        """Whether a file is one of the log's segments; it is not any more once it is retired."""
        return self._ledger.holds(path)

    # --- appending ---------------------------------------------------------------------------------------------------

    async def append(self, record: NewRecord) -> int:
        """Log one entry and return its sequence number.

        Raises EntryRefused (nothing was written), WalFull (nothing is kept), WalLatched (the disk failed).
        """
        objection = _objection(self._rules, record)
        if objection:
            raise EntryRefused(objection)
        size = frame_bytes_of(record)
        await self._wait_for_room(size)
        if self._bytes + size > self._limits.total_bytes:
            raise WalFull(
                f"the log holds {self._bytes} bytes and may hold {self._limits.total_bytes} (wal.total_bytes)"
            )
        self._make_room_in_segment(size)
        start = self._encoder.tip.offset
        frame, entry = self._encoder.entry(record)
        await self._queue(frame, start, is_durable=record.state is _PENDING, record=entry)
        return entry.seq

    async def mark_replayed(self, seq: int) -> None:
        """Everything up to `seq` is at Qdrant or in quarantine. Durable on return; concurrent calls share one fsync."""
        if seq > self.last_seq:
            raise ValueError(f"entry {seq} was never logged; the last one is {self.last_seq}")
        if seq <= self.replayed_seq:
            return
        await self._wait_for_room(FRAME_OVERHEAD_BYTES)
        self._make_room_in_segment(FRAME_OVERHEAD_BYTES)
        start = self._encoder.tip.offset
        await self._queue(self._encoder.cursor(seq), start, is_durable=True, replayed_seq=seq)

    def _queue(
        self, frame: bytes, start: int, *, is_durable: bool, record: Record | None = None, replayed_seq: int = 0
    ) -> asyncio.Future[None]:
        """Hand a frame to the writer. No await between its encoding and this."""
        done = self._future()
        size = len(frame)
        self._bytes += size
        self._queued_entries += 1
        self._queued_bytes += size
        encoder = self._encoder
        self._send(Write(frame, encoder.tip, is_durable, encoder.epoch, done, start, record, replayed_seq))
        return done

    def _send(self, command: Command) -> None:
        """To the writer, with everything else that this turn of the event loop brings: it is woken once for all."""
        if not self._outgoing:
            self._running_loop().call_soon(self._flush)
        self._outgoing.append(command)

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        self._writer.put(outgoing)

    def _make_room_in_segment(self, size: int) -> None:
        if not self._encoder.fits(size):
            self._roll()

    def _roll(self) -> None:
        tip = self._encoder.roll()
        self._bytes += SEGMENT_HEADER_BYTES
        self._send(Roll(tip, self._encoder.epoch))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _future(self) -> asyncio.Future[None]:
        return self._running_loop().create_future()

    async def _wait_for_room(self, size: int) -> None:
        """Hold back while too much waits for the disk."""
        self._refuse_when_shut()
        while not self._has_room(size):
            turn = self._future()
            self._waiting_for_room.append(turn)
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
        """Called on the writer's thread, which has nothing to tell before the event loop has sent it something."""
        # A closed loop has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._running_loop().call_soon_threadsafe(self._take, outcomes)

    def _take(self, outcomes: Sequence[Outcome]) -> None:
        before = self.last_seq
        for outcome in outcomes:
            self.latched = outcome.latched
            for command in outcome.commands:
                match command:
                    case Write():
                        self._take_write(command, outcome)
                    case Roll(tip=tip) if outcome.error is None:
                        self._ledger.began(tip)
                    case Roll():
                        self._bytes -= SEGMENT_HEADER_BYTES
                    case Retire(paths=paths, done=done):
                        if outcome.error is None:
                            self._bytes -= self._ledger.retired(len(paths))
                        _settle(done, outcome)
                    case Stop(done=done):
                        _settle(done, outcome)
            self._encoder.learn(outcome)
        self._let_in()
        if self.last_seq != before:
            self._tell_readers()

    def _take_write(self, write: Write, outcome: Outcome) -> None:
        size = len(write.frame)
        self._queued_entries -= 1
        self._queued_bytes -= size
        if outcome.error is None:
            self._ledger.wrote(write)
        else:
            self._bytes -= size
        _settle(write.done, outcome)

    def _let_in(self) -> None:
        waiting, self._waiting_for_room = self._waiting_for_room, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def _tell_readers(self) -> None:
        still = []
        for seq, waiter in self._waiting_beyond:
            if self.last_seq <= seq and not self._closed:
                still.append((seq, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._waiting_beyond = still

    # --- reading -----------------------------------------------------------------------------------------------------

    async def wait_beyond(self, seq: int) -> int:
        """Wait until there is an entry after `seq`; returns the last one. Raises WalLatched when the log closes."""
        while self.last_seq <= seq:
            if self._closed:
                raise WalLatched("the log is closed", hint="Understudy is stopping")
            waiter = self._future()
            self._waiting_beyond.append((seq, waiter))
            try:
                await waiter
            except asyncio.CancelledError:
                self._waiting_beyond = [each for each in self._waiting_beyond if each[1] is not waiter]
                raise
        return self.last_seq

    async def read(self, after_seq: int, limit_entries: int, limit_bytes: int) -> list[Record]:
        """Entries after `after_seq`, in order, verified: up to both limits, at least one if there is one.

        Entries before `first_seq` are retired and are left out. Raises WalDamaged when the disk does not hold what was
        written.
        """
        after_seq = max(after_seq, self.first_seq - 1)
        if after_seq >= self.last_seq:
            return []
        cached = self._ledger.cache.read(after_seq, limit_entries, limit_bytes)
        if cached is not None:
            return cached
        while True:
            stretches = self._ledger.stretches(after_seq)
            try:
                return await asyncio.to_thread(
                    read_entries,
                    self._disk,
                    stretches,
                    self._rules,
                    after_seq=after_seq,
                    limit_entries=limit_entries,
                    limit_bytes=limit_bytes,
                )
            except FileNotFoundError as error:
                # Retired meanwhile: look again. Otherwise somebody took it away.
                if self._ledger.holds(stretches[0].path):
                    raise WalDamaged(f"a segment is gone: {error.filename}") from error
            except OSError as error:
                raise WalError(f"cannot read the log in {self._directory}: {error.strerror or error}") from error

    async def read_pending(self, limit_entries: int, limit_bytes: int) -> list[Record]:
        """The oldest entries that Qdrant does not have, in order: up to both limits, at least one if there is one."""
        found: list[Record] = []
        size = 0
        seq = self._ledger.pending.first_from(0)
        while seq is not None and len(found) < limit_entries and (not found or size < limit_bytes):
            records = await self.read(seq - 1, limit_entries - len(found), limit_bytes - size)
            found += (record for record in records if record.state is _PENDING)
            size = sum(len(record.body) for record in found)
            seq = self._ledger.pending.first_from(records[-1].seq + 1) if records else None
        return found

    # --- keeping and letting go --------------------------------------------------------------------------------------

    async def quarantine(self, record: Record, *, code: int, details: str) -> None:
        """Keep a refused entry, durably; call it before `mark_replayed`. The same entry again replaces it."""
        now_ns = self._clock.wall_ns()
        try:
            await asyncio.to_thread(self._quarantine.keep, record, code=code, details=details, now_ns=now_ns)
        except OSError as error:
            raise WalError(f"cannot quarantine entry {record.seq}: {error.strerror or error}") from error

    def quarantined(self) -> list[QuarantineItem]:
        """Every refused entry, oldest first. Reads the directory the first time."""
        return self._quarantine.items()

    def quarantined_entries(self) -> Iterator[tuple[QuarantineItem, Record]]:
        """What is in quarantine and to be trusted, oldest first, each with its entry. Blocking: it reads every file."""
        for item in self._quarantine.items():
            if not item.flaw:
                yield item, self._quarantine.record(item.seq)

    async def read_quarantined(self, seq: int) -> Record:
        """One refused entry, as it was put there. Raises WalDamaged when its file is not to be trusted."""
        return await asyncio.to_thread(self._quarantine.record, seq)

    async def release_quarantined(self, seq: int) -> None:
        """An operator has decided: the entry leaves the quarantine, durably."""
        try:
            await asyncio.to_thread(self._quarantine.release, seq)
        except OSError as error:
            raise WalError(f"cannot release entry {seq}: {error.strerror or error}") from error

    async def retire(self, applied_seq: int, now_ns: int, retention_seconds: float) -> int:
        """Drop segments that both readers passed and that are older than the retention; returns how many.

        Under pressure (`WalLimits.pressure_share`) a segment goes as soon as it is older than the grace time.
        """
        async with self._retiring:
            self._refuse_when_shut()
            ledger = self._ledger
            passed = min(applied_seq, self.replayed_seq)
            oldest_kept_ns = ledger.oldest_kept_ns(now_ns, retention_seconds, self._bytes)
            is_idle = self._queued_entries == 0 and self._encoder.tip.codec is ledger.segments[-1].codec
            if is_idle and ledger.is_last_over(passed, oldest_kept_ns):
                self._roll()
            over = ledger.over(passed, oldest_kept_ns)
            # The segment that is being written stays.
            numbers = [segment.number for segment in over if segment.codec is not self._encoder.tip.codec]
            over = over[: len(numbers)]
            if not over:
                return 0
            done = self._future()
            self._send(Retire(numbers[-1] + 1, [segment.path for segment in over], done))
            await done
            return len(over)

    async def close(self) -> None:
        """Write what is queued, sign the head, release the directory. Raises WalLatched when that failed."""
        if self._closed:
            return
        self._closed = True
        done = self._future()
        self._send(Stop(done))
        try:
            await done
        finally:
            await asyncio.to_thread(self._writer.join)
            self._lock.release()
            self._let_in()
            self._tell_readers()


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
