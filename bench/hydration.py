"""What copying a collection costs: one command, JSON and a table out.

`python -m bench.hydration [--points N] [--rounds N] [--seconds S] [--rate R] [--out DIR] [--no-docs]`

The upstream (`bench.scroll_upstream`) holds points of 384 numbers and 1 KB of payload and answers pages at once.
Peers in the same run: a bare client that scrolls the same pages and throws them away (nobody can copy faster than
that), and calls straight to the upstream. Per round: the bare scroll; a fresh Understudy copies everything while
nobody calls; another one copies while clients call at a fixed rate; the same one under the same calls when the copy is
done. The p99 of the last two makes the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bench.page import ROOT, machine, publish
from bench.proxy import QUERY, cpu_seconds, process, query_body, write_bodies
from bench.scroll_upstream import COLLECTION
from generated.qdrant import points_pb2
from server.config import Settings
from tests.upstream.process import free_port

PAGE_POINTS = Settings().hydrate.page_points
LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Copying:
    """An Understudy that copies: where clients and operators reach it."""

    address: str
    admin: str
    pid: int

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        with urllib.request.urlopen(f"http://{self.admin}/status", timeout=30) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    def points(self) -> tuple[int, bool]:
        """Points copied so far, and whether that is all."""
        rows = [row for row in self.status()["hydration"] if row["collection"] == COLLECTION]
        return (rows[0]["points"], rows[0]["state"] == "complete") if rows else (0, False)

    def until_done(self) -> None:
        """Wait for the end of the copy."""
        give_up_at = time.monotonic() + LIMIT_SECONDS
        while not self.points()[1]:
            if time.monotonic() > give_up_at:
                raise SystemExit("the copy does not end")
            time.sleep(0.1)

    def until_indexed(self) -> None:
        """Wait until the index has every point too: it is built behind the copy and takes its share of the machine."""
        give_up_at = time.monotonic() + LIMIT_SECONDS
        while any(each["index_state"] != "ready" or each["index_lag"] for each in self.status()["collections"]):
            if time.monotonic() > give_up_at:
                raise SystemExit("the index does not end")
            time.sleep(0.2)

    def until_begun(self) -> None:
        """Wait for the first page."""
        while not self.points()[0]:
            time.sleep(0.05)

    @property
    def replica_pid(self) -> int:
        """The process of the replica."""
        pid: int = self.status()["replica"]["pid"]
        return pid


def resident_mib(pid: int) -> float:
    """Memory of a process at its peak so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return round(int(found.group(1)) / 1024, 1) if found else 0.0


@contextmanager
def copying(upstream: str, data: Path, rate: int | None = None) -> Iterator[Copying]:
    """A fresh Understudy in front of `upstream`; `rate` = its limit in points a second, None = the default."""
    admin = f"127.0.0.1:{free_port()}"
    arguments = ["-m", "server.cli", "serve", "--listen", "127.0.0.1:0", "--admin", admin]
    arguments += ["--upstream", upstream, "--data-dir", str(data)]
    environment = {"UNDERSTUDY_LOGS_LEVEL": "error", "UNDERSTUDY_TRACING_ENABLED": "false"}
    if rate is not None:
        environment["UNDERSTUDY_HYDRATE_POINTS_PER_SECOND"] = str(rate)
    with process(arguments, "understudy: listening on", **environment) as (child, address):
        yield Copying(address, admin, child.pid)


async def scroll_all(address: str) -> float:
    """The bare client: every page, read and thrown away; points a second."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        scroll = channel.unary_unary("/qdrant.Points/Scroll")
        request = points_pb2.ScrollPoints(collection_name=COLLECTION, limit=PAGE_POINTS)
        request.with_payload.enable = request.with_vectors.enable = True
        points, begun = 0, time.perf_counter()
        while True:
            answer = points_pb2.ScrollResponse.FromString(await scroll(request.SerializeToString(), timeout=60))
            points += len(answer.result)
            if not answer.HasField("next_page_offset"):
                return points / (time.perf_counter() - begun)
            request.offset.CopyFrom(answer.next_page_offset)


def load(address: str, body: Path, rate: float, seconds: float) -> dict[str, float]:
    """Clients that call at a fixed rate for so long."""
    arguments = ["-m", "bench.load", "--target", address, "--method", QUERY, "--bodies", str(body)]
    arguments += ["--callers", "16", "--rate", str(rate), "--seconds", str(seconds)]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def copy_alone(upstream: str, work: Path, points: int, rate: int | None) -> dict[str, float]:
    """A copy while nobody calls."""
    with copying(upstream, work, rate) as understudy:
        understudy.until_begun()
        first, begun, cpu = understudy.points()[0], time.perf_counter(), _cpu(understudy)
        understudy.until_done()
        seconds = time.perf_counter() - begun
        copied = points - first
        return {
            "points_per_second": round(copied / seconds, 1),
            "proxy_cpu_us_per_point": round((_cpu(understudy)[0] - cpu[0]) / copied * 1e6, 1),
            "replica_cpu_us_per_point": round((_cpu(understudy)[1] - cpu[1]) / copied * 1e6, 1),
            "proxy_peak_mib": resident_mib(understudy.pid),
            "replica_peak_mib": resident_mib(understudy.replica_pid),
        }


def _cpu(understudy: Copying) -> tuple[float, float]:
    return cpu_seconds(understudy.pid), cpu_seconds(understudy.replica_pid)


def copy_under_calls(upstream: str, work: Path, body: Path, chosen: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Calls while a copy runs at its pace, then the same calls after it."""
    rate, seconds = chosen.rate, chosen.seconds
    with copying(upstream, work, chosen.copy_rate) as understudy:
        load(understudy.address, body, rate, 0.5)
        understudy.until_begun()
        first, begun = understudy.points()[0], time.perf_counter()
        during = load(understudy.address, body, rate, seconds)
        points, done = understudy.points()
        during["points_per_second"] = round((points - first) / (time.perf_counter() - begun), 1)
        if done:
            raise SystemExit("the copy ended before the calls did: ask for more --points or fewer --seconds")
        understudy.until_done()
        understudy.until_indexed()
        return {"during": during, "after": load(understudy.address, body, rate, seconds)}


def run_round(upstream: str, work: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Every peer once."""
    body = write_bodies(work / "query.hex", [query_body([0.5] * 384)])
    result: dict[str, Any] = {"bare_scroll_points_per_second": round(asyncio.run(scroll_all(upstream)), 1)}
    result["alone"] = copy_alone(upstream, work / "alone", chosen.points, 0)
    shutil.rmtree(work / "alone")
    result |= copy_under_calls(upstream, work / "called", body, chosen)
    shutil.rmtree(work / "called")
    result["direct"] = load(upstream, body, chosen.rate, chosen.seconds)
    return result


def middle(rounds: list[dict[str, Any]], *path: str) -> float:
    """Median of one figure over the rounds."""
    values: list[float] = []
    for found in rounds:
        value: Any = found
        for key in path:
            value = value[key]
        values.append(value)
    return statistics.median(values)


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rounds = result["rounds"]
    bare, alone = middle(rounds, "bare_scroll_points_per_second"), middle(rounds, "alone", "points_per_second")
    called = middle(rounds, "during", "points_per_second")
    ratio = statistics.median(one["during"]["p99_ms"] / one["after"]["p99_ms"] for one in rounds)
    lines = [
        f"Machine: {result['machine']}. {result['points']:,} points of 384 numbers and 1 KB of payload, medians of "
        f"{len(rounds)} rounds.",
        "",
        "| copy | points/s |",
        "|---|---|",
        f"| a bare client that scrolls and throws away | {bare:,.0f} |",
        f"| Understudy, no limit, nobody calls | {alone:,.0f} |",
        f"| Understudy, default limit, {result['rate']:g} calls/s | {called:,.0f} |",
        "",
        "| cost of a copied point | |",
        "|---|---|",
    ]
    for name, key in (
        ("CPU of the proxy, µs", "proxy_cpu_us_per_point"),
        ("of the replica, µs", "replica_cpu_us_per_point"),
    ):
        lines.append(f"| {name} | {middle(rounds, 'alone', key):,.0f} |")
    for name, key in (("peak memory of the proxy, MiB", "proxy_peak_mib"), ("of the replica, MiB", "replica_peak_mib")):
        lines.append(f"| {name} | {middle(rounds, 'alone', key):,.0f} |")
    lines += ["", f"| {result['rate']:g} calls/s | p50 ms | p99 ms | errors |", "|---|---|---|---|"]
    for name, key in (("direct", "direct"), ("through Understudy while it copies", "during"), ("after", "after")):
        errors = sum(int(one[key]["errors"]) for one in rounds)
        lines.append(
            f"| {name} | {middle(rounds, key, 'p50_ms'):.2f} | {middle(rounds, key, 'p99_ms'):.2f} | {errors} |"
        )
    lines += ["", f"p99 while it copies / after, median of the rounds: **{ratio:.2f}**"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the rounds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second")
    parser.add_argument("--copy-rate", type=int, help="points a second while clients call; not given: the default")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md alone")
    chosen = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="understudy-bench-"))
    result: dict[str, Any] = {"machine": machine(), "points": chosen.points, "rate": chosen.rate, "rounds": []}
    try:
        with ExitStack() as stack:
            arguments = ["-m", "bench.scroll_upstream", "--points", str(chosen.points)]
            _, upstream = stack.enter_context(process(arguments, "listening on"))
            for number in range(chosen.rounds):
                print(f"  round {number + 1}/{chosen.rounds} …", file=sys.stderr, flush=True)
                result["rounds"].append(run_round(upstream, work, chosen))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    publish("hydration", result, report(result), chosen.out, docs=not chosen.no_docs)


if __name__ == "__main__":
    main()
