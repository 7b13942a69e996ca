"""From entries to frames: the end of the log as seen by the event loop.

Promises: every frame is chained to the one before, in the order of the calls; a new segment is begun when the present
one would grow too large. Writes nothing: frames go to the writer, whose outcomes come back through `learn`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from server.clock import Clock
from server.wal.keyring import Entropy
from server.wal.limits import WalLimits
from server.wal.opening import new_segment
from server.wal.record import (
    FRAME_OVERHEAD_BYTES,
    SEGMENT_HEADER_BYTES,
    EntryState,
    FrameType,
    Head,
    NewRecord,
    Record,
)
from server.wal.signing import key_id_of
from server.wal.writer import Outcome, Tip

_PENDING = EntryState.PENDING


def frame_bytes_of(new: NewRecord) -> int:
    """Size of an entry in the log."""
    return FRAME_OVERHEAD_BYTES + len(new.principal) + len(new.trace) + len(new.body)


@dataclass(slots=True)
class Encoder:
    """See the module. `tip` is where the next frame goes; `epoch` counts how often the log stepped back.

    `key` signs the next segment and is named by `head`; `keys` are those it may have to go back to.
    """

    head: Head
    key: bytes
    clock: Clock
    limits: WalLimits
    entropy: Entropy
    tip: Tip
    synced: Tip
    generation: int
    epoch: int = 0
    keys: dict[bytes, bytes] = field(default_factory=dict)

    def sign_with(self, key: bytes) -> None:
        """The next segment is signed with `key`."""
        self.keys[self.head.key_id] = self.key
        self.key, self.head = key, replace(self.head, key_id=key_id_of(key))

    def fits(self, size: int) -> bool:
        """Whether a frame may go into the present segment; the first one always may."""
        return self.tip.offset + size <= self.limits.segment_bytes or self.tip.offset == SEGMENT_HEADER_BYTES

    def entry(self, new: NewRecord) -> tuple[bytes, Record]:
        """The frame of the next entry."""
        tip = self.tip
        seq = tip.seq + 1
        record = Record(seq, new.kind, new.state, self.clock.wall_ns(), new.principal, new.trace, new.body, new.points)
        frame, mac = tip.codec.entry(record, tip.mac, self._durable_before(), self.generation)
        if new.state is _PENDING:
            replayed, last_pending = tip.replayed_seq, seq
        else:
            replayed = seq if tip.replayed_seq >= tip.last_pending_seq else tip.replayed_seq
            last_pending = tip.last_pending_seq
        self.tip = Tip(tip.codec, tip.offset + len(frame), mac, seq, replayed, last_pending)
        return frame, record

    def cursor(self, replayed_seq: int) -> bytes:
        """The frame that says how far Qdrant has come."""
        tip = self.tip
        frame, mac = tip.codec.mark(
            FrameType.CURSOR,
            tip.seq,
            replayed_seq,
            tip.mac,
            wall_ns=self.clock.wall_ns(),
            durable_before=self._durable_before(),
            head_generation=self.generation,
        )
        replayed = max(tip.replayed_seq, replayed_seq)
        if replayed >= tip.last_pending_seq:
            replayed = tip.seq
        self.tip = Tip(tip.codec, tip.offset + len(frame), mac, tip.seq, replayed, tip.last_pending_seq)
        return frame

    def roll(self) -> Tip:
        """Begin the next segment; returns its tip, which the writer has to publish first."""
        tip = self.tip
        codec = new_segment(
            self.head,
            self.key,
            self.clock,
            self.entropy,
            number=tip.codec.header.number + 1,
            seq=tip.seq,
            replayed_seq=tip.replayed_seq,
            previous_bytes=tip.offset,
            previous_mac=tip.mac,
        )
        self.tip = Tip(codec, SEGMENT_HEADER_BYTES, codec.head_mac, tip.seq, tip.replayed_seq, tip.last_pending_seq)
        return self.tip

    def learn(self, outcome: Outcome) -> None:
        """What is durable now, and where the log goes on when it had to step back."""
        self.synced, self.generation = outcome.synced, outcome.generation
        if outcome.rewind_to is not None:
            self.tip = outcome.rewind_to
            self.epoch += 1
            if self.tip.codec.header.key_id != self.head.key_id:
                # The segment of the new key could not be made.
                self.sign_with(self.keys[self.tip.codec.header.key_id])

    def _durable_before(self) -> int:
        """What is known to be durable of the segment that is being written."""
        return self.synced.offset if self.synced.codec is self.tip.codec else SEGMENT_HEADER_BYTES
