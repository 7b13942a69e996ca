"""What Understudy costs: one command, JSON and tables out.

`make bench` (or this part alone: `python -m bench.proxy [--rounds N] [--seconds S] [--out DIR] [--no-docs]`)

Part 1, overhead: a Qdrant stand-in that answers at once with fixed bytes; direct, through a bare grpc.aio
passthrough, through Understudy with tracing off, and with 10 % of the traces sampled and exported. All targets take
turns in every round, so that a ratio compares neighbours in time; the median of the rounds is quoted. Part 2, real
answers: the test stand-in on scikit-learn's digits; direct, through Understudy online, and offline after the upstream
was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models
from sklearn.datasets import load_digits

from bench.page import ROOT, machine, publish
from generated.qdrant import points_pb2
from generated.qdrant import qdrant_common_pb2 as common

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
QUERY = "/qdrant.Points/Query"
UPSERT = "/qdrant.Points/Upsert"


@dataclass(frozen=True)
class Target:
    """A port to call and the process whose CPU is counted (None = nobody between)."""

    name: str
    address: str
    pid: int | None


@contextmanager
def process(
    arguments: list[str], ready: str, *, lines: Path | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A child that has printed its `ready` line; yields it and the address at the end of the line.

    Its standard error goes to the file `lines`, if given.
    """
    with (lines or Path(os.devnull)).open("w") as errors:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if line.startswith(ready):
                yield child, line.split()[-1]
                break
        else:
            raise SystemExit(f"{arguments} ended before it was ready")
    finally:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def understudy(upstream: str, data: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Understudy in front of `upstream`."""
    arguments = ["-m", "server.cli", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    arguments += ["--upstream", upstream, "--data-dir", str(data)]
    with process(arguments, "understudy: listening on", UNDERSTUDY_LOGS_LEVEL="error", **environment) as running:
        yield running


def cpu_seconds(pid: int) -> float:
    """CPU time of one process so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def measure(
    target: Target, method: str, bodies: Path, callers: int, seconds: float, *, rate: float = 0.0
) -> dict[str, float]:
    """One run of the load generator against one target, `rate` calls a second in all (0 = as fast as answers come)."""
    before = cpu_seconds(target.pid) if target.pid else 0.0
    arguments = ["-m", "bench.load", "--target", target.address, "--method", method]
    arguments += ["--bodies", str(bodies), "--callers", str(callers), "--seconds", str(seconds), "--rate", str(rate)]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{target.name}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, float] = json.loads(done.stdout)
    if target.pid:
        result["cpu_ms_per_call"] = round((cpu_seconds(target.pid) - before) * 1000 / result["calls"], 3)
    return result


def take_turns(
    targets: list[Target], method: str, bodies: Path, *, callers: int, seconds: float, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Every target once per round, the order turned round each time."""
    runs: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
    for number in range(rounds):
        for target in targets if number % 2 == 0 else reversed(targets):
            print(f"  round {number + 1}/{rounds}: {target.name} …", file=sys.stderr, flush=True)
            runs[target.name].append(measure(target, method, bodies, callers, seconds))
    return runs


def median(runs: list[dict[str, float]], figure: str) -> float | None:
    """Median of one figure over the rounds."""
    values = [run[figure] for run in runs if figure in run]
    return statistics.median(values) if values else None


def ratio(runs: dict[str, list[dict[str, float]]], one: str, other: str) -> float:
    """Median over the rounds of throughput(one) / throughput(other), pair by pair."""
    pairs = zip(runs[one], runs[other], strict=True)
    return round(statistics.median(a["calls_per_second"] / b["calls_per_second"] for a, b in pairs), 3)


def query_body(vector: list[float]) -> bytes:
    """A nearest-neighbour query with payload."""
    request = points_pb2.QueryPoints(collection_name="digits", limit=10)
    request.query.nearest.dense.data.extend(vector)
    request.with_payload.enable = True
    return request.SerializeToString()


def upsert_body(first_id: int, vectors: list[list[float]]) -> bytes:
    """An upsert of a few points, wait=true."""
    request = points_pb2.UpsertPoints(collection_name="digits", wait=True)
    for number, vector in enumerate(vectors):
        point = request.points.add(id=common.PointId(num=first_id + number))
        point.vectors.vector.dense.data.extend(vector)
        point.payload["label"].integer_value = number % 10
    return request.SerializeToString()


def write_bodies(path: Path, bodies: list[bytes]) -> Path:
    """Store requests for the load generator."""
    path.write_text("\n".join(body.hex() for body in bodies))
    return path


def overhead(work: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Part 1."""
    with ExitStack() as stack:
        start = stack.enter_context
        _, upstream = start(process(["-m", "bench.fixed_upstream"], "listening on"))
        _, collector = start(process(["-m", "bench.fixed_upstream"], "listening on"))
        bare, bare_address = start(
            process(["-m", "bench.passthrough", "--listen", "127.0.0.1:0", "--upstream", upstream], "listening on")
        )
        quiet, quiet_address = start(understudy(upstream, work / "quiet", UNDERSTUDY_TRACING_ENABLED="false"))
        traced, traced_address = start(
            understudy(
                upstream,
                work / "traced",
                UNDERSTUDY_TRACING_SAMPLE_RATIO="0.1",
                OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://{collector}",
                OTEL_EXPORTER_OTLP_TRACES_INSECURE="true",
            )
        )
        targets = [
            Target("direct", upstream, None),
            Target("bare passthrough", bare_address, bare.pid),
            Target("understudy, tracing off", quiet_address, quiet.pid),
            Target("understudy, 10 % sampled", traced_address, traced.pid),
        ]
        bodies = write_bodies(work / "query.hex", [query_body([0.5] * 64)])
        busy = take_turns(targets, QUERY, bodies, callers=32, seconds=seconds, rounds=rounds)
        alone = take_turns(targets, QUERY, bodies, callers=1, seconds=seconds, rounds=rounds)
    return {
        "32 callers": busy,
        "1 caller": alone,
        "ratios": {
            "tracing off / bare passthrough": ratio(busy, "understudy, tracing off", "bare passthrough"),
            "10 % sampled / bare passthrough": ratio(busy, "understudy, 10 % sampled", "bare passthrough"),
        },
    }


def real_answers(work: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Part 2."""
    digits = load_digits()
    vectors = [[float(x) for x in row] for row in digits.data]
    queries = write_bodies(work / "queries.hex", [query_body(vector) for vector in vectors[:200]])
    upserts = write_bodies(work / "upserts.hex", [upsert_body(100_000 + n, [vectors[n]]) for n in range(500)])
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        standin, address = stack.enter_context(
            process(["-m", "tests.upstream.standin", "--data", str(work / "qdrant")], "standin: listening on")
        )
        proxy, proxy_address = stack.enter_context(
            understudy(address, work / "proxy", UNDERSTUDY_TRACING_ENABLED="false")
        )
        host, port = proxy_address.rsplit(":", 1)
        client = QdrantClient(host=host, grpc_port=int(port), prefer_grpc=True, check_compatibility=False, timeout=60)
        client.create_collection("digits", vectors_config=models.VectorParams(size=64, distance=models.Distance.EUCLID))
        client.upload_points(
            "digits",
            [
                models.PointStruct(id=n, vector=vector, payload={"label": int(digits.target[n])})
                for n, vector in enumerate(vectors)
            ],
            wait=True,
        )
        online = [Target("direct", address, None), Target("understudy online", proxy_address, proxy.pid)]
        results["query"] = take_turns(online, QUERY, queries, callers=8, seconds=seconds, rounds=rounds)
        results["upsert"] = take_turns(online, UPSERT, upserts, callers=8, seconds=seconds, rounds=rounds)
        standin.kill()
        standin.wait()
        offline = [Target("understudy offline", proxy_address, proxy.pid)]
        results["query"] |= take_turns(offline, QUERY, queries, callers=8, seconds=seconds, rounds=rounds)
        results["upsert"] |= take_turns(offline, UPSERT, upserts, callers=8, seconds=seconds, rounds=rounds)
    return results


def table(runs: dict[str, list[dict[str, float]]]) -> list[str]:
    """A Markdown table of medians."""
    lines = ["| target | calls/s | p50 ms | p99 ms | CPU ms per call | errors |", "|---|---|---|---|---|---|"]
    for name, rows in runs.items():
        cpu = median(rows, "cpu_ms_per_call")
        lines.append(
            f"| {name} | {median(rows, 'calls_per_second'):,.0f} | {median(rows, 'p50_ms'):.2f} "
            f"| {median(rows, 'p99_ms'):.2f} | {'-' if cpu is None else f'{cpu:.2f}'} "
            f"| {sum(int(row['errors']) for row in rows)} |"
        )
    return lines


def report(result: dict[str, Any]) -> str:
    """The whole result as Markdown."""
    lines = [f"Machine: {result['machine']}. Medians of {result['rounds']} rounds of {result['seconds']} s.", ""]
    lines += [
        "### Overhead: an upstream that answers at once, 32 callers",
        "",
        *table(result["overhead"]["32 callers"]),
    ]
    lines += ["", "| throughput ratio (median of pairs) | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in result["overhead"]["ratios"].items()]
    lines += ["", "### Overhead: the same, one caller", "", *table(result["overhead"]["1 caller"])]
    lines += [
        "",
        "### Digits (1,797 vectors of 64), nearest 10 with payload, 8 callers",
        "",
        *table(result["digits"]["query"]),
    ]
    lines += ["", "### Digits, upsert of one point, wait=true, 8 callers", "", *table(result["digits"]["upsert"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run both parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md alone")
    chosen = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="understudy-bench-"))
    try:
        result: dict[str, Any] = {"machine": machine(), "rounds": chosen.rounds, "seconds": chosen.seconds}
        result["overhead"] = overhead(work, chosen.rounds, chosen.seconds)
        result["digits"] = real_answers(work, chosen.rounds, chosen.seconds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    publish("proxy", result, report(result), chosen.out, docs=not chosen.no_docs)


if __name__ == "__main__":
    main()
