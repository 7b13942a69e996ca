"""The log against a file per entry and against the bare loop: `python -m bench.wal [--seconds S] [--directory D]`.

Promises: all contestants take turns in the same run on the same file system; entries are 2 KB; every acknowledged entry
was synced. Prints one table. Does not promise that the machine was idle.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from server.clock import SystemClock
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.record import EntryState, NewRecord

BODY = os.urandom(2048)
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement."""

    per_second: float
    p50_ms: float
    p99_ms: float


def figure(latencies: list[float], seconds: float) -> Figure:
    """From latencies in seconds."""
    cuts = statistics.quantiles(latencies, n=100)
    return Figure(len(latencies) / seconds, cuts[49] * 1000, cuts[98] * 1000)


def in_threads(writers: int, seconds: float, write: Callable[[int, int], None]) -> Figure:
    """`write(writer, number)` from threads, as a blocking scheme would be used."""
    latencies: list[list[float]] = [[] for _ in range(writers)]
    start = time.perf_counter()

    def run(writer: int) -> None:
        number = 0
        while (began := time.perf_counter()) < start + seconds:
            write(writer, number)
            number += 1
            latencies[writer].append(time.perf_counter() - began)

    threads = [threading.Thread(target=run, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return figure([value for each in latencies for value in each], time.perf_counter() - start)


def file_per_entry(directory: Path, writers: int, seconds: float) -> Figure:
    """Temporary file, fsync, rename: one file for each entry."""

    def write(writer: int, number: int) -> None:
        name = f"{directory}/{writer}-{number}"
        descriptor = os.open(name + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, BODY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.rename(name + ".tmp", name)  # noqa: PTH104 - the bare call is what is measured

    return in_threads(writers, seconds, write)


def floor(directory: Path, writers: int, seconds: float) -> Figure:
    """One file, one write and one fdatasync at a time: what the disk does."""
    descriptor = os.open(directory / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    turn = threading.Lock()

    def write(writer: int, number: int) -> None:
        with turn:
            os.write(descriptor, BODY)
            os.fdatasync(descriptor)

    try:
        return in_threads(writers, seconds, write)
    finally:
        os.close(descriptor)


def the_log(directory: Path, writers: int, seconds: float, state: EntryState = EntryState.PENDING) -> Figure:
    """The log, with its writers as coroutines."""

    async def run() -> Figure:
        log = Log.open(directory / "wal", disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds={1})
        latencies: list[float] = []
        start = time.perf_counter()

        async def write() -> None:
            while (began := time.perf_counter()) < start + seconds:
                await log.append(NewRecord(1, state, BODY, points=1))
                latencies.append(time.perf_counter() - began)

        tasks: list[Awaitable[None]] = [write() for _ in range(writers)]
        await asyncio.gather(*tasks)
        took = time.perf_counter() - start
        await log.close()
        return figure(latencies, took)

    return asyncio.run(run())


CONTESTANTS: dict[str, Callable[[Path, int, float], Figure]] = {
    "file per entry": file_per_entry,
    "floor": floor,
    "log, PENDING": the_log,
    "log, SYNCED": lambda directory, writers, seconds: the_log(directory, writers, seconds, EntryState.SYNCED),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--directory", type=Path, default=None, help="where to write; the default is a temporary one")
    arguments = parser.parse_args()
    print(f"{'writers':>7}  {'scheme':<16} {'entries/s':>10} {'p50 ms':>8} {'p99 ms':>8}  x file per entry")
    for writers in (1, 8, 32, 128):
        found: dict[str, list[Figure]] = {name: [] for name in CONTESTANTS}
        for _ in range(ROUNDS):
            for name, contestant in CONTESTANTS.items():
                with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                    found[name].append(contestant(Path(directory), writers, arguments.seconds))
        peer = statistics.median(each.per_second for each in found["file per entry"])
        for name, figures in found.items():
            middle = sorted(figures, key=lambda each: each.per_second)[len(figures) // 2]
            print(
                f"{writers:>7}  {name:<16} {middle.per_second:>10,.0f} {middle.p50_ms:>8.2f} {middle.p99_ms:>8.2f}"
                f"  {middle.per_second / peer:.1f}"
            )


if __name__ == "__main__":
    main()
