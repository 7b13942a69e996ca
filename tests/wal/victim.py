"""A process that writes a log until it is killed: `python -m tests.wal.victim DIRECTORY`.

For each line on stdin it forks a child and prints `pid N`; the child prints what it was promised, a line at a time.
One import serves many kills.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from server.clock import SystemClock
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from tests.wal.support import KINDS, PENDING, SYNCED, entry

LIMITS = WalLimits(segment_bytes=20_000, head_bytes=8_000, head_seconds=0.02, cache_bytes=4_000)


def say(*words: object) -> None:
    """One line, at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def write(log: Log, name: str, rng: random.Random) -> None:
    """Append for ever; `w` before a seq is known would tell nothing, so only what was promised is told."""
    number = 0
    while True:
        number += 1
        state = PENDING if rng.random() < 0.8 else SYNCED
        body = f"{name}/{number}/".encode() + bytes(rng.choice((0, 100, 3000)))
        seq = await log.append(entry(body, state))
        say("entry", seq, state.name, f"{name}/{number}/", len(body))


async def replay(log: Log, rng: random.Random) -> None:
    """Quarantine some, move the cursor, retire."""
    while True:
        await log.wait_beyond(log.replayed_seq + rng.randrange(5, 40))
        records = await log.read_pending(rng.randrange(1, 20), 1 << 20)
        if not records:
            await asyncio.sleep(0)
            continue
        await log.quarantine([Refused(records[0], 3, "no")])
        say("quarantined", records[0].seq)
        say("cursor-asked", records[-1].seq)
        await log.mark_replayed(records[-1].seq)
        say("cursor", records[-1].seq)
        if rng.random() < 0.2:
            say("retired-asked", log.replayed_seq)
            await log.retire(log.last_seq, SystemClock().wall_ns(), 0.0)


async def live(directory: Path, seed: int) -> None:
    """Open, write with several writers, close now and then."""
    rng = random.Random(seed)
    log = Log.open(directory, disk=RealDisk(), clock=SystemClock(), limits=LIMITS, kinds=KINDS)
    say("opened", log.last_seq)
    tasks = [asyncio.create_task(write(log, f"{seed}.{number}", rng)) for number in range(rng.choice((1, 4, 12)))]
    tasks.append(asyncio.create_task(replay(log, rng)))
    await asyncio.gather(*tasks)


def main() -> None:
    """Fork one writer per line of input."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(live(Path(sys.argv[1]), int(line)))
            os._exit(0)
        say("pid", pid)
        os.waitpid(pid, 0)
        say("gone", pid)


if __name__ == "__main__":
    main()
