"""What an outage costs those who call: one command, JSON and tables out.

`python -m bench.failover [--crashes N] [--hangs N] [--switches N] [--outages N] [--proxies N] [--flap-seconds S]
[--rounds N] [--seconds S] [--only losses|comebacks|writes] [--out DIR] [--no-docs]`

Real processes: the stand-in for Qdrant, `understudy serve` with its default settings, unmodified Qdrant clients. Part 1
(`bench.losses`): the upstream is killed, stopped, cut off under mixed load. Part 2 (`bench.comebacks`): it returns, it
flaps, calls switch back. Part 3 (`bench.offline_writes`): writes online, offline and straight, and the drain.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import comebacks, losses, offline_writes
from bench.page import ROOT, machine, publish

CALLS_PER_SECOND = 200.0
PARTS = ("losses", "comebacks", "writes")


@dataclass(frozen=True)
class Verdict:
    """A figure and what is wanted of it."""

    what: str
    figure: float
    wanted: float
    at_least: bool = False

    @property
    def row(self) -> str:
        """A line of the table."""
        holds = self.figure >= self.wanted if self.at_least else self.figure <= self.wanted
        sign = "≥" if self.at_least else "≤"
        return f"| {self.what} | {self.figure:,.3g} | {sign} {self.wanted:,.3g} | {'holds' if holds else 'MISSED'} |"


def percentile(values: list[float], share: float) -> float:
    """Of all values; 0 of none."""
    return float(np.percentile(values, share)) if values else 0.0


def middle(rounds: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> float:
    """Median over the rounds."""
    return statistics.median(figure(one) for one in rounds)


# --- what is wanted --------------------------------------------------------------------------------------------------


def of_losses(found: dict[str, Any]) -> list[Verdict]:
    """Part 1."""
    added = found["crash"]["affected_added_ms"]
    rows = [
        Verdict("crash, hang, black hole: errors of clients", sum(each["errors"] for each in found.values()), 0),
        Verdict("crash: added latency of affected calls, median, ms", percentile(added, 50), 20),
        Verdict("the same, p99, ms", percentile(added, 99), 100),
    ]
    for name in ("hang", "black hole"):
        rows.append(Verdict(f"{name}: known after, the longest, s", max(found[name]["known_after_ms"]) / 1000, 3))
    longest = max(each["longest_wait_known_seconds"] for each in found.values())
    return [*rows, Verdict("longest wait of a call for an upstream known to be away, s", longest, 1)]


def of_comebacks(found: dict[str, Any]) -> list[Verdict]:
    """Part 2."""
    return [
        Verdict("return noticed after, the longest, s", max(found["noticed_seconds"]), 6),
        Verdict("switch back: pause of writes, p99, ms", percentile(found["cutover"]["pauses_ms"], 99), 100),
        Verdict(
            "switch back, flapping: errors of clients", found["cutover"]["errors"] + found["flapping"]["errors"], 0
        ),
        Verdict(
            f"{found['flapping']['seconds']:g} s of flapping at 1 Hz: changes of state, the most",
            max(found["flapping"]["switches"]),
            2,
        ),
    ]


def of_writes(rounds: list[dict[str, Any]]) -> list[Verdict]:
    """Part 3."""
    direct = {callers: f"direct, {callers}" for callers in (1, offline_writes.CALLERS)}
    rows = [
        Verdict(
            "offline single-point upserts: rate by the rate online",
            middle(rounds, lambda one: one["offline"]["calls_per_second"] / one["online"]["calls_per_second"]),
            0.5,
            at_least=True,
        ),
        Verdict(
            "the same at half the rate, p99, ms",
            middle(rounds, lambda one: one["offline, half the rate"]["p99_ms"]),
            30,
        ),
        Verdict(
            f"offline batches of {offline_writes.BATCH_POINTS} x {offline_writes.BATCH_SIZE}-d, points/s",
            middle(rounds, lambda one: one["batches"]["points_per_second"]),
            5000,
            at_least=True,
        ),
        Verdict(
            "drain, entries/s", middle(rounds, lambda one: one["drain"]["entries_per_second"]), 1000, at_least=True
        ),
    ]
    for callers, name in direct.items():
        rows.append(
            Verdict(
                f"drain by the direct rate of {callers} caller{'s' if callers > 1 else ''}",
                middle(
                    rounds, lambda one, name=name: one["drain"]["entries_per_second"] / one[name]["calls_per_second"]
                ),
                0.5,
                at_least=True,
            )
        )
    rows.append(
        Verdict(
            "drain of entries that go one by one, by the direct rate of 1 caller",
            middle(
                rounds,
                lambda one: (
                    one["drain one by one"]["entries_per_second"] / one["direct, one by one"]["calls_per_second"]
                ),
            ),
            0.5,
            at_least=True,
        )
    )
    errors = sum(int(figures["errors"]) for one in rounds for figures in one.values() if "errors" in figures)
    return [*rows, Verdict("errors of callers", errors, 0)]


# --- the tables ------------------------------------------------------------------------------------------------------


def table_of_losses(found: dict[str, Any]) -> list[str]:
    """How the upstream was lost, and what became of the calls."""
    lines = [
        f"Unmodified clients, blocking and asyncio, {CALLS_PER_SECOND:g} calls/s in all, half of them writes.",
        "",
        "| the upstream is | times | known after, median, s | longest | calls | errors | usual read ms | write ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    words = {"crash": "killed", "hang": "stopped", "black hole": "cut off, connections stay"}
    for name, each in found.items():
        known = [one / 1000 for one in each["known_after_ms"]]
        usual = each["usual_ms"]
        lines.append(
            f"| {words[name]} | {len(known)} | {statistics.median(known):.3f} | {max(known):.3f} | {each['calls']:,} "
            f"| {each['errors']} | {usual['read']:.1f} | {usual['write']:.1f} |"
        )
    lines += ["", "| killed: added latency | calls | median ms | p99 ms | most ms |", "|---|---|---|---|---|"]
    for what, key in (
        ("calls in flight, or begun before it was known", "affected_added_ms"),
        ("calls of the second after", "first_second_added_ms"),
    ):
        added = found["crash"][key]
        lines.append(
            f"| {what} | {len(added)} | {percentile(added, 50):.1f} | {percentile(added, 99):.1f} "
            f"| {percentile(added, 100):.1f} |"
        )
    return lines


def table_of_comebacks(found: dict[str, Any]) -> list[str]:
    """Returns and switches."""
    noticed, pauses, flapping = found["noticed_seconds"], found["cutover"]["pauses_ms"], found["flapping"]
    return [
        "| | times | median | p99 | most |",
        "|---|---|---|---|---|",
        f"| return noticed after, s | {len(noticed)} | {percentile(noticed, 50):.2f} | {percentile(noticed, 99):.2f} "
        f"| {max(noticed):.2f} |",
        f"| switch back: pause of writes, ms | {len(pauses)} | {percentile(pauses, 50):.1f} "
        f"| {percentile(pauses, 99):.1f} | {max(pauses):.1f} |",
        f"| changes of state in {flapping['seconds']:g} s of flapping | {len(flapping['switches'])} "
        f"| {percentile(flapping['switches'], 50):g} | | {max(flapping['switches'])} |",
    ]


def table_of_writes(rounds: list[dict[str, Any]]) -> list[str]:
    """Who wrote how fast."""
    many = offline_writes.CALLERS
    lines = [
        f"Upserts with `wait`, {many} callers.",
        "",
        "| | calls/s | p50 ms | p99 ms | errors |",
        "|---|---|---|---|---|",
    ]
    names = {
        "online": "single points, through Understudy, online",
        "offline": "the same, offline",
        "offline, half the rate": "the same, offline, at half that rate",
        "direct, 1": "the same, straight to the upstream, one caller",
        f"direct, {many}": f"the same, straight to the upstream, {many} callers",
        "direct, one by one": "payload of one point, straight to the upstream, one caller",
        "batches": f"{offline_writes.BATCH_POINTS} points of {offline_writes.BATCH_SIZE} numbers, offline",
    }
    for key, name in names.items():
        lines.append(
            f"| {name} | {middle(rounds, lambda one, key=key: one[key]['calls_per_second']):,.0f} "
            f"| {middle(rounds, lambda one, key=key: one[key]['p50_ms']):.2f} "
            f"| {middle(rounds, lambda one, key=key: one[key]['p99_ms']):.2f} "
            f"| {sum(int(one[key]['errors']) for one in rounds)} |"
        )
    lines += ["", "| drain of | entries | entries/s |", "|---|---|---|"]
    for key, name in (("drain", "single-point upserts"), ("drain one by one", "payload of single points, each a call")):
        lines.append(
            f"| {name} | {middle(rounds, lambda one, key=key: one[key]['entries']):,.0f} "
            f"| {middle(rounds, lambda one, key=key: one[key]['entries_per_second']):,.0f} |"
        )
    return lines


_TABLES: dict[str, tuple[str, Callable[[Any], list[str]], Callable[[Any], list[Verdict]]]] = {
    "losses": ("The upstream is lost", table_of_losses, of_losses),
    "comebacks": ("It comes back", table_of_comebacks, of_comebacks),
    "writes": ("Offline writes and the drain", table_of_writes, of_writes),
}


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"Machine: {result['machine']}. Medians of {len(result.get('writes', []))} rounds where there are rounds."]
    rows: list[Verdict] = []
    for part in PARTS:
        if part in result:
            title, table, verdicts = _TABLES[part]
            lines += ["", f"### {title}", "", *table(result[part])]
            rows += verdicts(result[part])
    lines += [
        "",
        "### Wanted and measured",
        "",
        "| | figure | wanted | |",
        "|---|---|---|---|",
        *(row.row for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crashes", type=int, default=10)
    parser.add_argument("--hangs", type=int, default=2, help="of each kind")
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--outages", type=int, default=2)
    parser.add_argument("--proxies", type=int, default=3, help="that watch one upstream return and flap")
    parser.add_argument("--flap-seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md alone")
    chosen = parser.parse_args()
    measures: dict[str, Callable[[Path], Any]] = {
        "losses": lambda work: losses.measure(work, crashes=chosen.crashes, hangs=chosen.hangs, rate=CALLS_PER_SECOND),
        "comebacks": lambda work: comebacks.measure(
            work,
            proxies=chosen.proxies,
            outages=chosen.outages,
            flap_seconds=chosen.flap_seconds,
            switches=chosen.switches,
        ),
        "writes": lambda work: offline_writes.measure(work, rounds=chosen.rounds, seconds=chosen.seconds),
    }
    work = Path(tempfile.mkdtemp(prefix="understudy-bench-"))
    result: dict[str, Any] = {"machine": machine()}
    try:
        for part in PARTS:
            if chosen.only in (None, part):
                result[part] = measures[part](work / part)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    publish("failover", result, report(result), chosen.out, docs=not (chosen.no_docs or chosen.only))


if __name__ == "__main__":
    main()
