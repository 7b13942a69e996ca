"""The log that the rest of Understudy calls.

Promises: `append` of a PENDING entry returns after it is on the medium, of a SYNCED entry once it is written; both
return in the order of the log. Entries are read back verified. What is pending survives any crash. All methods belong
to one event loop; frames are encoded there, so that under load the writer's thread needs the interpreter twice a batch
and not twice an entry.
Does not promise that a cancelled `append` left nothing: the entry may be logged all the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from server.clock import Clock
from server.errors import EntryRefused, WalError, WalFull, WalLatched
from server.wal.ballast import Room, Space
from server.wal.encoder import Encoder, frame_bytes_of
from server.wal.files import Disk
from server.wal.keeping import Keeping
from server.wal.keyring import Entropy
from server.wal.keysource import ExternalKeys
from server.wal.ledger import Ledger
from server.wal.limits import WalLimits
from server.wal.opening import Opened, open_directory
from server.wal.quarantine import Quarantine, QuarantineItem
from server.wal.reader import Stretch
from server.wal.reading import Reading
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
from server.wal.reopening import Pause
from server.wal.rotation import LogKeys
from server.wal.runner import Runner, ThreadRunner
from server.wal.turnstile import Turnstile
from server.wal.writer import Command, Outcome, Reopen, Retire, Roll, Stop, Write, Writer

__all__ = ["EntryState", "Log", "NewRecord", "QuarantineItem", "Record", "WalLimits"]

_PENDING = EntryState.PENDING
_CURSOR_TRIES = 3


class Log(Reading, Keeping):
    """See the module; made by `Log.open`."""

    def __init__(
        self,
        opened: Opened,
        *,
        disk: Disk,
        clock: Clock,
        limits: WalLimits,
        entropy: Entropy,
        space: Space,
        runner: Runner[Command, Sequence[Outcome]],
    ) -> None:
        found, head = opened.survey, opened.head
        self._limits = limits
        self._lock = opened.lock
        Reading.__init__(self, Ledger(found, limits), disk, found.directory, opened.rules)
        self._encoder = Encoder(
            head, opened.key, clock, limits, entropy, tip=opened.tip, synced=opened.tip, generation=head.generation
        )
        self._space = space
        Keeping.__init__(self, Quarantine(disk, found.directory, found.keyring, head.key_id, head.log_id), space, clock)
        self.keys = LogKeys(
            disk,
            found.directory,
            found.keyring,
            entropy=entropy,
            encoder=self._encoder,
            quarantine=self._quarantine,
        )
        self._outgoing: list[Command] = []
        self._turnstile = Turnstile(limits)
        self._waiting_beyond: list[tuple[int, asyncio.Future[None]]] = []
        self._retiring = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.log_id = head.log_id.hex()
        self.opened_at_seq = found.last_seq
        self.recovery = opened.recovery
        self.latched: str | None = None
        # Called on the event loop when the log stops or begins to take writes again.
        self.on_change: Callable[[], None] = _nothing
        self._pause = Pause(limits.reopen_seconds, limits.reopen_seconds_max)
        self._writer = Writer(
            found.directory,
            disk=disk,
            clock=clock,
            limits=limits,
            key=opened.key,
            head=head,
            tip=opened.tip,
            file=opened.file,
            rules=opened.rules,
            space=space,
            hear=self._take,
            runner=runner,
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
        external: ExternalKeys | None = None,
        runner: Runner[Command, Sequence[Outcome]] | None = None,
    ) -> Log:
        """Lock, verify and recover a directory; blocking. `runner` drives the writer, None = a thread.

        Raises WalLocked, WalDamaged, WalKeyMissing, WalKeyUnsafe, DataDirUnusable; then nothing on disk was changed.
        """
        rules = FrameRules(frozenset(kinds), limits.entry_bytes, limits.entry_points)
        directory = directory.absolute()
        space = Space(disk, directory, limits)
        try:
            opened = open_directory(disk, directory, rules, clock, entropy, space=space, external=external)
        except OSError as error:
            raise WalError(f"cannot open the log in {directory}: {error.strerror or error}") from error
        runner = ThreadRunner() if runner is None else runner
        return cls(opened, disk=disk, clock=clock, limits=limits, entropy=entropy, space=space, runner=runner)

    # --- what is known without reading -------------------------------------------------------------------------------

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
            Stretch(segment.path, segment.codec, SEGMENT_HEADER_BYTES, segment.size)
            for segment in self._ledger.segments
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
        why_full = self._why_full(size, record.state)
        if why_full is not None:
            raise why_full
        self._make_room_in_segment(size)
        start = self._encoder.tip.offset
        frame, entry = self._encoder.entry(record)
        await self._queue(frame, start, is_durable=record.state is _PENDING, record=entry)
        return entry.seq

    async def mark_replayed(self, seq: int) -> None:
        """Everything up to `seq` is at Qdrant or in quarantine. Durable on return; concurrent calls share one fsync."""
        if seq > self.last_seq:
            raise ValueError(f"entry {seq} was never logged; the last one is {self.last_seq}")
        tries_left = _CURSOR_TRIES
        while seq > self.replayed_seq:
            await self._wait_for_room(FRAME_OVERHEAD_BYTES)
            self._make_room_in_segment(FRAME_OVERHEAD_BYTES)
            start = self._encoder.tip.offset
            try:
                await self._queue(self._encoder.cursor(seq), start, is_durable=True, replayed_seq=seq)
            except WalFull:
                # The disk was full for the entries beside it; without them, and with the ballast, there may be room.
                tries_left -= 1
                if not tries_left:
                    raise

    def _why_full(self, size: int, state: EntryState) -> WalFull | None:
        """Why an entry is refused for want of room, before anything is written."""
        if self._bytes + size > self._limits.total_bytes:
            return WalFull(
                f"the log holds {self._bytes} bytes and may hold {self._limits.total_bytes} (wal.total_bytes)"
            )
        room = self._space.room
        if room is Room.AMPLE or (room is Room.LOW and state is not _PENDING):
            return None
        return self._space.refusal()

    def _queue(
        self, frame: bytes, start: int, *, is_durable: bool, record: Record | None = None, replayed_seq: int = 0
    ) -> asyncio.Future[None]:
        """Hand a frame to the writer. No await between its encoding and this."""
        done = self._future()
        size = len(frame)
        self._bytes += size
        self._turnstile.entered(size)
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
        self._send(Roll(tip, self._encoder.epoch, self._encoder.key))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _future(self) -> asyncio.Future[None]:
        return self._running_loop().create_future()

    async def _wait_for_room(self, size: int) -> None:
        """Hold back while too much waits for the disk."""
        self._refuse_when_shut()
        while not self._turnstile.has_room(size):
            await self._turnstile.turn(self._future())
            self._refuse_when_shut()

    def _refuse_when_shut(self) -> None:
        if self.latched is not None:
            raise WalLatched(self.latched)
        if self._closed:
            raise WalLatched("the log is closed", hint="Understudy is stopping")

    # --- what the writer reports -------------------------------------------------------------------------------------

    def _take(self, outcomes: Sequence[Outcome]) -> None:
        before = self.last_seq
        for outcome in outcomes:
            self._latch_changed(outcome.latched)
            self._bytes -= self._ledger.begins_at(outcome.first_segment)
            for command in outcome.commands:
                match command:
                    case Write():
                        self._take_write(command, outcome)
                    case Roll(tip=tip) if outcome.error is None:
                        self._ledger.began(tip)
                        self.keys.began(tip.codec.header.key_id)
                    case Roll():
                        self._bytes -= SEGMENT_HEADER_BYTES
                    case Retire(first_segment=number):
                        self._ledger.retired(number)
                        _settle(command.done, outcome)
                    case _:
                        _settle(command.done, outcome)
            self._encoder.learn(outcome)
        self._turnstile.let_in()
        if self.last_seq != before:
            self._tell_readers()

    def _latch_changed(self, latched: str | None) -> None:
        before, self.latched = self.latched, latched
        if (before is None) is not (latched is None):
            if latched is not None:
                self._pause.begin(self._clock.monotonic())
            self.on_change()

    def _take_write(self, write: Write, outcome: Outcome) -> None:
        size = len(write.frame)
        self._turnstile.left(size)
        if outcome.error is None:
            self._ledger.wrote(write)
        else:
            self._bytes -= size
        _settle(write.done, outcome)

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

    # --- when the disk fails or is full -----------------------------------------------------------------------------

    @property
    def why_no_writes(self) -> str:
        """Why a PENDING entry would be refused now; empty when it would be taken. Reads go on in any case."""
        if self.latched is not None:
            return self.latched
        why_full = self._why_full(FRAME_OVERHEAD_BYTES, _PENDING)
        return "" if why_full is None else str(why_full)

    @property
    def space(self) -> Space:
        """What is known of the room on the disk."""
        return self._space

    async def reopen(self) -> None:
        """After a failed write or sync: take writes again, in a new file. Nothing to do while nothing has failed.

        Then the log holds what was acknowledged and nothing of what was reported as failed. Raises WalLatched with
        the reason when the disk still fails; the log stays as it was.
        """
        if self._closed:
            self._refuse_when_shut()
        if self.latched is not None:
            done = self._future()
            self._send(Reopen(done))
            await done

    async def tend(self) -> None:
        """To be called about once a second: looks at the free space, and after a failure tries to reopen now and then.

        Raises WalError when the disk does not say how much is free, WalLatched when an attempt to reopen failed.
        """
        room = self._space.room
        try:
            await asyncio.to_thread(self._space.look)
        except OSError as error:
            raise WalError(f"cannot look at the disk of {self._directory}: {error.strerror or error}") from error
        finally:
            if self._space.room is not room:
                self.on_change()
            if not self._closed and self.latched is not None and self._pause.is_over(self._clock.monotonic()):
                await self.reopen()

    # --- keeping and letting go --------------------------------------------------------------------------------------

    async def retire(self, applied_seq: int, now_ns: int, retention_seconds: float) -> int:
        """Drop segments that both readers passed and that are older than the retention; returns how many.

        Under pressure (`WalLimits.pressure_share`) a segment goes as soon as it is older than the grace time.
        """
        async with self._retiring:
            count = await self._retire(applied_seq, now_ns, retention_seconds)
            await self.keys.prune()
            return count

    async def rotate_key(self) -> str:
        """Sign with a new key from here on; returns its id. On return nothing new depends on the key before.

        Raises WalKeyExternal, WalFull, WalLatched; then the log goes on with the key before, or with the new one.
        """
        async with self._retiring:
            self._refuse_when_shut()
            key = await self.keys.make()
            self._refuse_when_shut()
            self._encoder.sign_with(key)
            self._roll()
            # Signs the head and removes nothing.
            await self._begin_at(self._ledger.segments[0].number, ())
            return self.keys.took_over(key)

    async def _retire(self, applied_seq: int, now_ns: int, retention_seconds: float) -> int:
        self._refuse_when_shut()
        ledger = self._ledger
        passed = min(applied_seq, self.replayed_seq)
        oldest_kept_ns = ledger.oldest_kept_ns(now_ns, retention_seconds, self._bytes)
        is_idle = self._turnstile.is_idle and self._encoder.tip.codec is ledger.segments[-1].codec
        ends_last = is_idle and ledger.is_last_over(passed, oldest_kept_ns)
        if ends_last:
            self._roll()
        over = ledger.over(passed, oldest_kept_ns)
        if over and over[-1] is ledger.segments[-1] and not ends_last:
            # What is on its way may go there, also when the next one has been begun and is not known of yet.
            over.pop()
        if not over:
            return 0
        first_number = over[0].number
        await self._begin_at(over[-1].number + 1, [segment.path for segment in over])
        return ledger.segments[0].number - first_number

    def _begin_at(self, number: int, over: Sequence[Path]) -> asyncio.Future[None]:
        """Sign the head and remove the segments before this one."""
        done = self._future()
        self._ledger.retires(number)
        self._send(Retire(number, over, done))
        return done

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
            await self._writer.join()
            try:
                self._lock.release()
            except OSError as error:
                raise WalError(f"cannot close the lock of {self._directory}: {error.strerror or error}") from error
            finally:
                self._turnstile.let_in()
                self._tell_readers()


def _nothing() -> None:
    """What happens on a change that nobody watches."""


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
