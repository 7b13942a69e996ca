"""Three lives of a log, each the same at every run: `python -m tests.wal.syscall_victim`.

A line of input says `WORKLOAD SCALE THREAD DIRECTORY`. The child stops itself (SIGSTOP) at the start of the thread with
that name and prints `gate TID`; whoever wants to trace that thread attaches then and lets it go on (SIGCONT). Before
every act it prints what it asks for, after it what it was promised.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from server.wal import inspect
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from server.wal.record import FRAME_MAGIC, EntryState
from tests.faults.clock import ManualClock
from tests.wal.nursery import nurse, say
from tests.wal.support import KINDS, PENDING, SYNCED, Entropy, entry

LIMITS = WalLimits(segment_bytes=1600, head_bytes=1000, cache_bytes=0)
MAIN, WORKER = "main", "worker"
# Any process may trace a victim, also where the kernel allows it to parents only (Yama).
_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, ctypes.c_ulong(-1)
_libc = ctypes.CDLL(None, use_errno=True)


class Life:
    """One log, and what it was asked for and promised."""

    def __init__(self, directory: Path, seed: str) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.entropy = Entropy(seed)
        self.count = 0

    def open(self) -> Log:
        """Open, on a clock that stands still and bytes that are the same in every run."""
        log = Log.open(
            self.directory, disk=RealDisk(), clock=self.clock, limits=LIMITS, kinds=KINDS, entropy=self.entropy
        )
        say("id", log.log_id)
        return log

    async def append(self, log: Log, *states: EntryState, size: int = 100) -> None:
        """Append entries at once, as so many writers."""

        async def one(body: bytes, state: EntryState) -> None:
            say("ok-entry", await log.append(entry(body, state)))

        bodies = []
        for state in states:
            self.count += 1
            bodies.append(f"{self.count}/".encode().ljust(size, b"x"))
            say("ask-entry", state.name, bodies[-1].decode())
        await asyncio.gather(*map(one, bodies, states))

    async def replayed(self, log: Log, seq: int) -> None:
        """Move the cursor."""
        say("ask-cursor", seq)
        await log.mark_replayed(seq)
        say("ok-cursor", seq)

    async def quarantine(self, log: Log, seqs: Sequence[int], details: str) -> None:
        """Keep entries that Qdrant refuses."""
        records = [(await log.read(seq - 1, 1, 1))[0] for seq in seqs]
        for seq in seqs:
            say("ask-quarantine", seq)
        await log.quarantine([Refused(record, 3, details) for record in records])
        for seq in seqs:
            say("ok-quarantine", seq)

    async def release(self, log: Log, seq: int) -> None:
        """An operator has decided about it."""
        say("ask-release", seq)
        await log.release_quarantined(seq)
        say("ok-release", seq)

    async def retire(self, log: Log, applied_seq: int) -> None:
        """Drop segments that both readers have passed."""
        say("ask-retire", min(applied_seq, log.replayed_seq))
        await log.retire(applied_seq, self.clock.wall_ns(), 0.0)
        say("ok-retire", log.first_seq)


async def birth(life: Life, scale: int) -> None:
    """A new log, entries of both kinds, several writers at once, cursors; it is never closed."""
    log = life.open()
    await life.append(log, PENDING)
    for number in range(scale):
        await life.append(log, SYNCED)
        await life.append(log, PENDING, PENDING, SYNCED, PENDING)
        await life.replayed(log, log.last_seq - 2)
        await life.append(log, PENDING, size=300 + number)


async def upkeep(life: Life, scale: int) -> None:
    """Rolls, quarantine, release, retire, a clean close, compaction by the command, another life."""
    log = life.open()
    for number in range(scale):
        first = log.last_seq + 1
        for _ in range(3):
            await life.append(log, PENDING, PENDING, SYNCED, size=250)
        await life.quarantine(log, [first, first + 1, first + 2], "no")
        await life.quarantine(log, [first], "no, said again")
        await life.replayed(log, first + 6)
        if number % 2 == 0:
            await life.release(log, first + 1)
        await life.retire(log, first + 4)
    await life.append(log, PENDING)
    await life.replayed(log, log.last_seq)
    last_seq = log.last_seq
    await log.close()
    say("ask-retire", last_seq)
    await asyncio.to_thread(_compact, life, last_seq)
    log = life.open()
    say("ok-retire", log.first_seq)
    await life.append(log, PENDING)
    await log.close()


class _OneWorker(asyncio.DefaultEventLoopPolicy):
    """Loops with one thread for what blocks: whether a second one begins is chance."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = super().new_event_loop()
        loop.set_default_executor(ThreadPoolExecutor(1, "inner"))
        return loop


def _compact(life: Life, applied_seq: int) -> None:
    """What `understudy wal compact` does: in a loop of its own."""
    asyncio.set_event_loop_policy(_OneWorker())
    inspect.compact(
        life.directory,
        applied_seq=applied_seq,
        retention_seconds=0.0,
        clock=life.clock,
        kinds=KINDS,
        limits=LIMITS,
    )


async def ruin(life: Life, scale: int) -> None:
    """Not traced: a log that a crash left with a torn tail, retired segments and half-made files."""
    log = life.open()
    for _ in range(2 + scale):
        await life.append(log, PENDING, SYNCED, PENDING, size=350)
    await life.quarantine(log, [1], "no")
    await life.replayed(log, 4)
    kept = {path: path.read_bytes() for path in life.directory.glob("segment-*")}
    await life.retire(log, 4)
    gone = [path for path in kept if not path.exists()]
    assert gone
    await life.append(log, PENDING, size=200)
    for path in gone:
        path.write_bytes(kept[path])
    for name in ("head", "keys/0123456789abcdef.key", "quarantine/00000000000000000042.entry", "segment-00ff.wal"):
        (life.directory / f"{name}.tmp").write_bytes(b"half")
    with max(life.directory.glob("segment-*.wal")).open("ab") as last:
        last.write(FRAME_MAGIC + bytes(range(90)))
    for path in life.directory.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


async def recovery(life: Life, scale: int) -> None:
    """Open what `ruin` left, read it all, go on, close; open it again."""
    life.count = 3 * (2 + scale) + 1
    log = life.open()
    assert len(log.recovery.cuts) == 1
    assert len(log.recovery.leftovers_removed) > 4
    seq = log.first_seq - 1
    while records := await log.read(seq, 3, 10_000):
        seq = records[-1].seq
    for _ in range(scale):
        await life.append(log, PENDING, SYNCED)
    await life.replayed(log, log.last_seq - 1)
    await log.close()
    log = life.open()
    await life.append(log, PENDING)
    await log.close()


Workload = Callable[[Life, int], Coroutine[Any, Any, None]]
WORKLOADS: dict[str, Workload] = {"birth": birth, "upkeep": upkeep, "recovery": recovery}


async def _alone(workload: Workload, life: Life, scale: int) -> None:
    # One thread for what blocks: which of several takes a piece of work is chance.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, WORKER))
    await workload(life, scale)


def _stop_here() -> None:
    say("gate", threading.get_native_id())
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _stop_in(wanted: str) -> Callable[[FrameType, str, object], None]:
    """For every thread as it starts: threads of one name are told apart by a number, `name#2`."""
    seen: Counter[str] = Counter()

    def began(frame: FrameType, event: str, argument: object) -> None:
        sys.setprofile(None)
        name = threading.current_thread().name.removesuffix("_0")
        seen[name] += 1
        label = name if seen[name] == 1 else f"{name}#{seen[name]}"
        say("thread", label)
        if label == wanted:
            _stop_here()

    return began


def live(words: list[str]) -> None:
    """One life; see the module."""
    workload, scale, thread, directory = words[0], int(words[1]), words[2], Path(words[3])
    _libc.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    if workload == "ruin":
        asyncio.run(_alone(ruin, Life(directory, "ruin"), scale))
        os._exit(0)
    threading.setprofile(_stop_in(thread))
    if thread == MAIN:
        _stop_here()
    asyncio.run(_alone(WORKLOADS[workload], Life(directory, workload), scale))


def main() -> None:
    """A life in this process first, so that the others find every module loaded."""
    stdout = os.dup(1)
    with Path(os.devnull).open("ab") as nowhere, TemporaryDirectory() as scratch:
        os.dup2(nowhere.fileno(), 1)
        asyncio.run(_alone(upkeep, Life(Path(scratch) / "wal", "warm"), 1))
    os.dup2(stdout, 1)
    os.close(stdout)
    nurse(live)


if __name__ == "__main__":
    main()
