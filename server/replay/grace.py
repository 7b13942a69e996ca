"""Which entries Qdrant may have lost although it acknowledged them, for it acknowledges before it syncs.

Promises: whenever the connection to Qdrant was lost, and when this process starts, a look is due at everything that
Qdrant acknowledged within `grace_seconds` before; a point that such a look put back counts as acknowledged anew. Kept
are a few numbers, whatever happens. A probe that was slow on a connection that stayed does not count.

A look that is put off is owed: it is made when it is taken up, at the latest with the next one that is due.

Does not promise that anything was lost: over gRPC a restart looks like a cut of the network. After a start it counts
everything after the entry up to which an earlier process had let go (`grace_notes`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from server.clock import Clock

_SAMPLES_PER_GRACE = 60


@dataclass(frozen=True, slots=True)
class _Sample:
    """At that moment, Qdrant had acknowledged every entry up to `seq` for some time."""

    moment: float
    seq: int


class GraceWindow:
    """Belongs to one event loop. `replayed_seq` tells up to where Qdrant has acknowledged all entries."""

    def __init__(self, grace_seconds: float, replayed_seq: Callable[[], int], clock: Clock) -> None:
        self._grace_seconds = grace_seconds
        self._replayed_seq = replayed_seq
        self._clock = clock
        self._pause_seconds = max(1.0, grace_seconds / _SAMPLES_PER_GRACE)
        self.is_due = self.is_on
        # A look that was due could not be made: what it is about is kept for the next one.
        self._owed = asyncio.Event()
        self.losses = 0
        self.begin(0)

    def begin(self, past_seq: int) -> None:
        """Entries up to `past_seq` were acknowledged longer ago than the grace, as far as anybody can tell."""
        self._samples = deque([_Sample(self._clock.monotonic(), past_seq)])
        self._since_seq = past_seq

    @property
    def is_on(self) -> bool:
        """Whether anything is looked after."""
        return self._grace_seconds > 0

    @property
    def is_owed(self) -> bool:
        """Whether a look was put off and not made since."""
        return self._owed.is_set()

    @property
    def since_seq(self) -> int:
        """The look that is due is at entries after this one."""
        return self._since_seq

    @property
    def forgets_through_seq(self) -> int:
        """No look will be at entries up to here."""
        floor = self._floor()
        return min(floor, self._since_seq) if self.is_due or self.is_owed else floor

    def forgettable(self) -> int | None:
        """The same; None = nobody will ever look."""
        return self.forgets_through_seq if self.is_on else None

    def observe(self) -> None:
        """Note how far Qdrant is."""
        self._note(self._replayed_seq())

    async def keep(self, forget: Callable[[], Awaitable[None]]) -> None:
        """Observe until cancelled; `forget` lets go of what no look will be at."""
        told = -1
        while True:
            self.observe()
            if self.forgets_through_seq > told:
                told = self.forgets_through_seq
                await forget()
            await asyncio.sleep(self._pause_seconds)

    def connection_lost(self) -> None:
        """The connection to Qdrant is gone: what it acknowledged lately may be gone with it."""
        if not self.is_on:
            return
        self._since_seq = self.forgets_through_seq
        self._become_due()

    def looked(self, losses: int, *, has_sent: bool) -> None:
        """A look that began after `losses` losses is over. `has_sent`: Qdrant got points, and may lose them too."""
        if has_sent:
            self._note(self._since_seq)
        if losses == self.losses:
            self.is_due = False

    def put_off(self) -> None:
        """The look that is due is made later; nothing of it is forgotten."""
        if self.is_due:
            self.is_due = False
            self._owed.set()

    async def owed(self) -> None:
        """Wait until a look is owed."""
        await self._owed.wait()

    def take_up(self) -> bool:
        """Make the look that is owed due again; False when none is owed any more."""
        if not self.is_owed:
            return False
        self._become_due()
        return True

    def _become_due(self) -> None:
        self._owed.clear()
        self.is_due = True
        self.losses += 1

    def _note(self, seq: int) -> None:
        now = self._clock.monotonic()
        last = self._samples[-1]
        if now - last.moment < self._pause_seconds and len(self._samples) > 1:
            # Both moments as one, on the safe side.
            self._samples[-1] = _Sample(last.moment if seq >= last.seq else now, min(seq, last.seq))
        else:
            self._samples.append(_Sample(now, seq))
        while len(self._samples) > 1 and self._samples[1].moment <= now - self._grace_seconds:
            self._samples.popleft()

    def _floor(self) -> int:
        """Entries up to here were acknowledged longer than the grace ago."""
        return min(sample.seq for sample in self._samples)
