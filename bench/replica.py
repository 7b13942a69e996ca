"""Local answers beside bare Chroma, a numpy scan, qdrant-client's local mode and SQLite: `python -m bench.replica`.

Promises: the same points and queries for everybody in one run, 384 dimensions, random (the hardest case for a graph),
top 10 with payload; Understudy is asked over gRPC, through the proxy, the others inside this process. Contestants take
turns in every round. Chroma has settings with which it finds nearly all there is to find (its defaults do not).
Does not promise that the machine was idle.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.contestants import (
    KINDS,
    POINTS,
    SIZE,
    TOP,
    Ask,
    Data,
    Sqlite,
    Understudy,
    chroma,
    local_mode,
    numpy_scan,
    upsert,
)
from bench.page import ROOT, machine, publish
from bench.proxy import process
from generated.qdrant import points_pb2 as points

# What two gRPC hops (client to proxy, proxy to replica) may take, in milliseconds.
HOPS_MS = 3.0


def timed(ask: Callable[[int], Any], times: int) -> list[float]:
    """Milliseconds of each of `times` calls, with the numbers 0, 1, …"""
    took = []
    for number in range(times):
        began = time.perf_counter()
        ask(number)
        took.append((time.perf_counter() - began) * 1000)
    return took


def turns(contestants: dict[str, Callable[[int], Any]], rounds: int, times: int) -> dict[str, list[list[float]]]:
    """Everybody once a round, in an order that turns round."""
    found: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants) if number % 2 == 0 else reversed(list(contestants)):
            found[name].append(timed(contestants[name], times))
    return found


def percentile(runs: list[list[float]], share: float) -> float:
    """Median over the rounds."""
    return statistics.median(float(np.percentile(run, share)) for run in runs)


def paired(runs: dict[str, list[list[float]]], one: str, other: str) -> float:
    """Median over the rounds of the p50 of one by the p50 of the other."""
    pairs = zip(runs[one], runs[other], strict=True)
    return statistics.median(float(np.percentile(mine, 50) / np.percentile(theirs, 50)) for mine, theirs in pairs)


def recall(ask: Ask, data: Data, kind: int | None, times: int) -> float:
    """Share of the truly nearest that was found."""
    return sum(len(set(ask(number)) & set(data.nearest(number, kind))) for number in range(times)) / (TOP * times)


@contextmanager
def writing(address: str, per_second: float, count: int) -> Iterator[None]:
    """Points written at a rate by another process meanwhile: new ones and old ones by turns."""
    arguments = ["-m", "bench.replica", "--write", address, "--rate", str(per_second), "--sizes", str(count)]
    writer = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        yield
        if writer.poll() is not None:
            raise SystemExit("the writer ended")
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def write(address: str, per_second: float, count: int) -> None:
    """Until killed: one point after the other at a steady rate."""
    understudy = Understudy(address, "")
    vectors = Data.of(1000, 2).vectors
    began, number = time.perf_counter(), 0
    print("writing", flush=True)
    while True:
        due = began + number / per_second
        time.sleep(max(0.0, due - time.perf_counter()))
        target = count + number if number % 2 else number * 7919 % count
        understudy.call(POINTS + "Upsert", upsert([target], vectors), points.PointsOperationResponse)
        number += 1


# --- one size --------------------------------------------------------------------------------------------------------


def one_size(count: int, work: Path, rounds: int, times: int, rate: float) -> dict[str, Any]:
    """Everything for one number of points."""
    data = Data.of(count, 1)
    arguments = ["-m", "server.cli", "serve", "--listen", "127.0.0.1:0", "--data-dir", str(work / "data")]
    admin = f"127.0.0.1:{free_port()}"
    environment = {"UNDERSTUDY_LOGS_LEVEL": "error", "UNDERSTUDY_ADMIN": admin}
    with process(arguments, "understudy: listening on", **environment) as (_, address):
        understudy = Understudy(address, admin)
        load_seconds = understudy.load(data)
        index_seconds = understudy.wait_for_index()
        note(f"{count} points: loaded in {load_seconds:.0f} s, index after {index_seconds:.0f} s more")
        bare, chroma_seconds = chroma(data, work / "chroma")
        scan, local = numpy_scan(data), local_mode(data)
        note(f"{count} points: peers loaded")
        result: dict[str, Any] = {
            "points": count,
            "load_points_per_second": count / load_seconds,
            "index_points_per_second": count / index_seconds,
            "chroma_points_per_second": count / chroma_seconds,
        }
        runs = {}
        for what, kind in (("unfiltered", None), ("keyword filter", 3)):
            contestants = {
                "understudy": understudy.query(data, kind),
                "bare Chroma": bare(kind),
                "numpy scan": scan(kind),
            }
            runs[what] = turns({**contestants, "hops": lambda _: understudy.nothing()}, rounds, times)
            # A hundred times as slow with a filter, so it is asked less often.
            runs[what] |= turns({"local mode": local(kind)}, rounds, max(times // 10, 2))
            result[what] = {name: figures(found) for name, found in runs[what].items()}
            for name in ("understudy", "bare Chroma"):
                result[what][name]["recall"] = recall(contestants[name], data, kind, times)
        result["lookups"] = lookups(understudy, count, work, rounds, times)
        result["busy"] = busy(understudy, data, rounds, times, rate)
    return result


def lookups(understudy: Understudy, count: int, work: Path, rounds: int, times: int) -> dict[str, dict[str, float]]:
    """Filtered counts and pages."""
    plain, indexed = Sqlite(count, work, indexed=False), Sqlite(count, work, indexed=True)
    starts = [number * 7919 % count for number in range(times)]
    for number in range(3):
        assert understudy.count(number) == plain.count(number) == indexed.count(number)
        pages = [one.page(number, starts[number]) for one in (understudy, plain, indexed)]
        assert pages[0] == pages[1] == pages[2]
    runs = turns(
        {
            "hops": lambda _: understudy.nothing(),
            "count: understudy": lambda number: understudy.count(number % KINDS),
            "count: SQLite, no index": lambda number: plain.count(number % KINDS),
            "count: SQLite, indexed column": lambda number: indexed.count(number % KINDS),
            "page: understudy": lambda number: understudy.page(number % KINDS, starts[number]),
            "page: SQLite, no index": lambda number: plain.page(number % KINDS, starts[number]),
            "page: SQLite, indexed column": lambda number: indexed.page(number % KINDS, starts[number]),
        },
        rounds,
        times,
    )
    return {name: figures(found) for name, found in runs.items()}


def busy(understudy: Understudy, data: Data, rounds: int, times: int, rate: float) -> dict[str, dict[str, float]]:
    """The same reads, alone and while points are written."""
    reads: dict[str, Callable[[int], Any]] = {
        "query": understudy.query(data, None),
        "query, keyword filter": understudy.query(data, 3),
        "count": lambda number: understudy.count(number % KINDS),
        "page": lambda number: understudy.page(number % KINDS, number * 7919 % len(data.vectors)),
    }
    found = {}
    for name, ask in reads.items():
        idle = [timed(ask, times) for _ in range(rounds)]
        with writing(understudy.address, rate, len(data.vectors)):
            under = [timed(ask, times) for _ in range(rounds)]
        found[name] = {
            "idle_p50_ms": percentile(idle, 50),
            "idle_p99_ms": percentile(idle, 99),
            "busy_p50_ms": percentile(under, 50),
            "busy_p99_ms": percentile(under, 99),
            "ratio_p99": percentile(under, 99) / percentile(idle, 99),
        }
    return found


def figures(runs: list[list[float]]) -> dict[str, float]:
    """Medians over the rounds, in milliseconds."""
    return {"p50_ms": percentile(runs, 50), "p99_ms": percentile(runs, 99)}


def free_port() -> int:
    """A port that nobody listens on now."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def note(text: str) -> None:
    """Progress."""
    print(f"  {text}", file=sys.stderr, flush=True)


# --- what comes out --------------------------------------------------------------------------------------------------


def verdicts(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What, figure, and the most that it may be."""
    plain, filtered, by = found["unfiltered"], found["keyword filter"], found["lookups"]
    mine = plain["understudy"]["p50_ms"]
    hops = by["hops"]["p50_ms"]
    rows = [
        ("query p50, ms: at most 2 x bare Chroma + 3 ms", mine, 2 * plain["bare Chroma"]["p50_ms"] + HOPS_MS),
        ("query p50, ms: at most numpy scan + 3 ms", mine, plain["numpy scan"]["p50_ms"] + HOPS_MS),
        (
            "filtered query p50, ms: at most bare Chroma's `where`",
            filtered["understudy"]["p50_ms"],
            filtered["bare Chroma"]["p50_ms"],
        ),
        ("1 - recall@10", 1 - min(plain["understudy"]["recall"], filtered["understudy"]["recall"]), 0.01),
    ]
    for what in ("count", "page"):
        for peer in ("SQLite, no index", "SQLite, indexed column"):
            most = 2 * (by[f"{what}: {peer}"]["p50_ms"] + hops)
            figure = by[f"{what}: understudy"]["p50_ms"]
            rows.append((f"filtered {what} p50, ms: at most 2 x ({peer} + the same hops)", figure, most))
    rows += [
        (f"{what}: p99 while 200 points/s are written, by idle p99", row["ratio_p99"], 5.0)
        for what, row in found["busy"].items()
    ]
    return rows


def report(result: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        f"Machine: {result['machine']}. Medians of {result['rounds']} rounds of {result['queries']} queries; "
        f"{SIZE} dimensions, top {TOP} with payload.",
    ]
    for found in result["sizes"]:
        lines += ["", f"### {found['points']:,} points", ""]
        lines += [
            "| | query p50 ms | p99 ms | recall | filtered p50 ms | p99 ms | recall |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, plain in found["unfiltered"].items():
            filtered = found["keyword filter"][name]
            cells = [
                f"{one['p50_ms']:.2f} | {one['p99_ms']:.2f} | " + (f"{one['recall']:.3f}" if "recall" in one else "-")
                for one in (plain, filtered)
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", "| lookup | p50 ms | p99 ms |", "|---|---|---|"]
        lines += [f"| {name} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} |" for name, one in found["lookups"].items()]
        lines += ["", "| held against | figure | at most | |", "|---|---|---|---|"]
        lines += [
            f"| {what} | {figure:.3g} | {most:.3g} | {'holds' if figure <= most else 'MISSED'} |"
            for what, figure, most in verdicts(found)
        ]
        lines += [
            "",
            f"Loaded through the proxy at {found['load_points_per_second']:,.0f} points/s, the index built at "
            f"{found['index_points_per_second']:,.0f} points/s after that; bare Chroma loaded at "
            f"{found['chroma_points_per_second']:,.0f} points/s.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write bench/out/replica.json and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=100, help="calls of everybody in a round, at most 200")
    parser.add_argument("--rate", type=float, default=200.0, help="points written per second meanwhile")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md alone")
    parser.add_argument("--write", metavar="HOST:PORT", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.write:
        write(chosen.write, chosen.rate, chosen.sizes[0])
    result: dict[str, Any] = {"machine": machine(), "rounds": chosen.rounds, "queries": chosen.queries, "sizes": []}
    for count in chosen.sizes:
        work = Path(tempfile.mkdtemp(prefix="understudy-bench-"))
        try:
            result["sizes"].append(one_size(count, work, chosen.rounds, chosen.queries, chosen.rate))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    publish("replica", result, report(result), chosen.out, docs=not chosen.no_docs)


if __name__ == "__main__":
    main()
