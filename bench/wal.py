"""The log against a file per entry and against the bare loop: `make bench`, or `python -m bench.wal` alone.

Promises: all contestants take turns in the same run on the same file system; entries are 2 KB; every acknowledged entry
was synced (SYNCED ones excepted). Does not promise that the machine was idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.page import ROOT, machine, publish
from server.clock import SystemClock
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.record import EntryState, NewRecord

BODY = os.urandom(2048)
WRITERS = (1, 8, 32, 128)
PENDING_ENTRIES = 50_000


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
# (what, figure, one contestant, the other, writers, the line of the issue that it is held against)
RATIOS = (
    ("entries/s, 32 writers: log / file per entry", "per_second", "log, PENDING", "file per entry", 32, ">= 6"),
    ("entries/s, one writer: log / floor", "per_second", "log, PENDING", "floor", 1, ">= 0.8"),
    ("p99, 32 writers: log / floor", "p99_ms", "log, PENDING", "floor", 32, "<= 3"),
    ("p99, 32 writers: log / floor with one writer", "p99_ms", "log, PENDING", "floor", (32, 1), ""),
)


def take_turns(writers: int, rounds: int, seconds: float, where: Path | None) -> dict[str, list[Figure]]:
    """Every contestant once a round, each on an empty directory."""
    found: dict[str, list[Figure]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, contestant in CONTESTANTS.items():
            with tempfile.TemporaryDirectory(dir=where) as directory:
                found[name].append(contestant(Path(directory), writers, seconds))
    return found


def ratio(one: list[Figure], other: list[Figure], attribute: str) -> float:
    """Median over rounds of one contestant's figure by the other's."""
    pairs: Iterator[tuple[Figure, Figure]] = zip(one, other, strict=True)
    found: list[float] = [getattr(left, attribute) / getattr(right, attribute) for left, right in pairs]
    return statistics.median(found)


# --- opening ---------------------------------------------------------------------------------------------------------


def fill(directory: Path) -> None:
    """A log with many pending entries, closed."""

    async def run() -> None:
        log = Log.open(directory, disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds={1})
        for start in range(0, PENDING_ENTRIES, 1000):
            await asyncio.gather(
                *(log.append(NewRecord(1, EntryState.PENDING, BODY, points=1)) for _ in range(start, start + 1000))
            )
        await log.close()

    asyncio.run(run())


def open_once(directory: str) -> None:
    """In a process of its own: open, print what it took, leave without closing."""
    before = resident_bytes()
    cpu, wall = time.process_time(), time.perf_counter()
    log = Log.open(Path(directory), disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds={1})
    took = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    assert log.pending_count == log.recovery.entries_verified == PENDING_ENTRIES
    print(json.dumps({**took, "bytes_per_entry": (resident_bytes() - before) / PENDING_ENTRIES}), flush=True)
    os._exit(0)


def resident_bytes() -> int:
    """Memory of this process that is in RAM (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def opening(rounds: int, where: Path | None) -> dict[str, float]:
    """Medians over `rounds` openings of one log."""
    with tempfile.TemporaryDirectory(dir=where) as directory:
        log = Path(directory) / "wal"
        fill(log)
        command = [sys.executable, "-m", "bench.wal", "--open", str(log)]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
            for _ in range(rounds)
        ]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


# --- what comes out --------------------------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        f"Machine: {result['machine']}. Medians of {result['rounds']} rounds of {result['seconds']} s; 2 KB entries."
    ]
    lines += ["", "| writers | scheme | entries/s | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for row in result["appends"]:
        figures = f"{row['per_second']:,.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f}"
        lines.append(f"| {row['writers']} | {row['scheme']} | {figures} |")
    lines += ["", "| ratio (median of pairs) | | wanted |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['ratio']:.2f} | {row['wanted']} |" for row in result["ratios"]]
    found = result["opening"]
    lines += [
        "",
        f"| opening with {PENDING_ENTRIES:,} pending entries, every signature verified | | wanted |",
        "|---|---|---|",
    ]
    lines.append(f"| wall seconds | {found['wall_seconds']:.2f} | <= 1.0 |")
    lines.append(f"| CPU seconds | {found['cpu_seconds']:.2f} | |")
    lines.append(f"| memory, bytes an entry | {found['bytes_per_entry']:.0f} | <= 100 |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write bench/out/wal.json and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--directory", type=Path, default=None, help="where to write; the default is a temporary one")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md alone")
    parser.add_argument("--open", metavar="LOG", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.open:
        open_once(chosen.open)
    appends, runs = [], {}
    for writers in WRITERS:
        runs[writers] = take_turns(writers, chosen.rounds, chosen.seconds, chosen.directory)
        for name, figures in runs[writers].items():
            middle = {
                field: statistics.median(getattr(each, field) for each in figures)
                for field in ("per_second", "p50_ms", "p99_ms")
            }
            appends.append({"writers": writers, "scheme": name, **middle})
    ratios = []
    for what, attribute, one, other, writers_of, wanted in RATIOS:
        mine, theirs = writers_of if isinstance(writers_of, tuple) else (writers_of, writers_of)
        found = ratio(runs[mine][one], runs[theirs][other], attribute)
        ratios.append({"what": what, "ratio": found, "wanted": wanted})
    result = {
        "machine": machine(),
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
        "appends": appends,
        "ratios": ratios,
        "opening": opening(chosen.rounds, chosen.directory),
    }
    publish("wal", result, report(result), chosen.out, docs=not chosen.no_docs)


if __name__ == "__main__":
    main()
