"""One life of a log under many writers: `python -m tests.wal.fifo_victim DIRECTORY`, one line of input for each life.

The line says `LIFE WRITERS ENTRIES`. Every acknowledgement is told in the order in which it came, as a line
`ok SEQ WRITER NUMBER`; each writer numbers its own entries through all lives.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from server.clock import SystemClock
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import EntryState, Log, NewRecord
from tests.wal.nursery import nurse, say
from tests.wal.support import KINDS

LIMITS = WalLimits(segment_bytes=1 << 20, head_bytes=1 << 18, cache_bytes=0, queue_entries=100)
# What is left over a restart is verified at every open; this is how much of it a life leaves.
LEFT_PENDING = 1000


async def write(log: Log, writer: int, life: int, entries: int) -> None:
    """Append one after the other; the number of an entry grows with the life."""
    rng = random.Random(f"{writer}/{life}")
    for number in range(life * entries, (life + 1) * entries):
        state = EntryState.SYNCED if rng.random() < 0.2 else EntryState.PENDING
        seq = await log.append(NewRecord(1, state, b"%d/%d/" % (writer, number) + bytes(rng.randrange(40))))
        say("ok", seq, writer, number)


async def live(directory: Path, life: int, writers: int, entries: int) -> None:
    """Open, write, replay nearly all, close."""
    log = Log.open(directory, disk=RealDisk(), clock=SystemClock(), limits=LIMITS, kinds=KINDS)
    say("opened", log.last_seq)
    await asyncio.gather(*(write(log, writer, life, entries // writers) for writer in range(writers)))
    await log.mark_replayed(log.last_seq - LEFT_PENDING)
    say("written")
    await log.close()


if __name__ == "__main__":
    nurse(lambda words: asyncio.run(live(Path(sys.argv[1]), *map(int, words))))
