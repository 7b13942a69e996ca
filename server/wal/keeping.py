"""The quarantine of an open log, off the event loop.

Promises: entries are in quarantine, durably, when `quarantine` returns, also on a full disk while there is ballast.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Sequence
from functools import partial

from server.clock import Clock
from server.errors import WalError
from server.wal.ballast import Space
from server.wal.quarantine import Quarantine, QuarantineItem, Refused
from server.wal.record import Record


class Keeping:
    """See the module: the part of a `Log` that keeps what Qdrant refuses."""

    def __init__(self, quarantine: Quarantine, space: Space, clock: Clock) -> None:
        self._quarantine = quarantine
        self._space = space
        self._clock = clock

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        """Keep refused entries, durably; call it before `mark_replayed`. The same entry again replaces it."""
        keep = partial(self._quarantine.keep, refused, self._clock.wall_ns())
        with _told(f"cannot quarantine {_named([each.record.seq for each in refused])}"):
            await asyncio.to_thread(self._space.with_reserve, keep)

    @property
    def quarantined_count(self) -> int:
        """How many refused entries there are; the event loop may ask as often as it likes."""
        with _told("cannot look at the quarantine"):
            return self._quarantine.count

    def quarantined(self) -> list[QuarantineItem]:
        """Every refused entry, oldest first. Blocking: it reads the directory the first time."""
        with _told("cannot read the quarantine"):
            return self._quarantine.items()

    def quarantined_entries(self, seqs: Collection[int] | None = None) -> Iterator[tuple[QuarantineItem, Record]]:
        """What is in quarantine and to be trusted, oldest first, each with its entry: all, or these. Blocking: it reads
        each file when its turn comes.

        One that cannot be read or trusted is left out and warned of: it must not keep the others from being looked at.
        """
        with _told("cannot read the quarantine"):
            yield from self._quarantine.entries(seqs)

    async def read_quarantined(self, seq: int) -> Record:
        """One refused entry, as it was put there. Raises WalDamaged when its file is not to be trusted."""
        with _told(f"cannot read entry {seq} in quarantine"):
            return await asyncio.to_thread(self._quarantine.record, seq)

    async def release_quarantined(self, seq: int) -> None:
        """An operator has decided: the entry leaves the quarantine, durably."""
        with _told(f"cannot release entry {seq}"):
            await asyncio.to_thread(self._quarantine.release, seq)


def _named(seqs: Sequence[int]) -> str:
    return f"{'entry' if len(seqs) == 1 else 'entries'} {', '.join(map(str, seqs))}"


@contextlib.contextmanager
def _told(what_failed: str) -> Iterator[None]:
    """What the disk reports, as an error of the log."""
    try:
        yield
    except OSError as error:
        raise WalError(f"{what_failed}: {error.strerror or error}") from error
