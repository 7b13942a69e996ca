"""Run seeds of the simulation.

    python -m tests.simulation 17                    one seed; a failure is made shorter and shown
    python -m tests.simulation 17 --trace            every event of it
    python -m tests.simulation 17 --faults 2,5 --operations 1,4,9     a part of it
    python -m tests.simulation 0-1000 --jobs 2       many
    python -m tests.simulation 0-100 --foreign       others write to Qdrant during outages
    python -m tests.simulation 0-200 --history       histories of 1,000 calls across failovers

Exit code 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tests.simulation.foreign import foreign_of
from tests.simulation.histories import history_of
from tests.simulation.plan import Plan, plan_of
from tests.simulation.seeds import Tally, examine_many, explain_failure
from tests.simulation.shrink import report
from tests.simulation.world import run


def main() -> int:
    """See the module."""
    arguments = _arguments()
    first, _, last = arguments.seeds.partition("-")
    if not last:
        return _one(int(first), arguments)
    began, total = time.perf_counter(), Tally()
    chunk = 1 if arguments.history else 10
    for tally in examine_many(range(int(first), int(last)), arguments.jobs, _maker(arguments), chunk=chunk):
        total.add(tally)
        for seed, text in tally.failures:
            print(f"seed {seed}: {text[:240]}", flush=True)
    took = time.perf_counter() - began
    print(f"{total.seeds} seeds, {len(total.failures)} with a broken promise")
    print(f"{took:.1f} s, {total.seeds / took:.1f} seeds/s, {total.seconds:.0f} s of virtual time")
    print(f"{total.seconds / took:.0f} times as fast as real time, {total.seconds / total.cpu_seconds:.0f} a processor")
    if arguments.counts:
        for name, count in sorted(total.counts.items()):
            print(f"  {count:8} {name}")
    return 1 if total.failures else 0


def _one(seed: int, arguments: argparse.Namespace) -> int:
    whole = _maker(arguments)(seed)
    plan = replace(whole.only(arguments.operations, arguments.faults), trace=arguments.trace)
    result = run(plan)
    print("\n".join(result.trace))
    print(f"seed {seed}: {result.seconds:.1f} s of virtual time, {result.turns} steps, digest {result.digest[:16]}")
    if not result.violations:
        return 0
    is_part = arguments.operations is not None or arguments.faults is not None
    print(report(result, whole) if is_part or arguments.trace else explain_failure(result, whole))
    return 1


def _maker(arguments: argparse.Namespace) -> Callable[[int], Plan]:
    if arguments.foreign:
        return foreign_of
    return history_of if arguments.history else partial(plan_of, forgetful=arguments.forgetful)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("seeds", help="a seed, or FIRST-LAST (LAST is left out)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--trace", action="store_true", help="print every event")
    parser.add_argument("--counts", action="store_true", help="how often each kind of call and fault came")
    parser.add_argument("--forgetful", action="store_true", help="Qdrant also loses power, and what it had not synced")
    parser.add_argument("--foreign", action="store_true", help="others change points during outages")
    parser.add_argument("--history", action="store_true", help="seeds stand for histories of 1,000 calls")
    parser.add_argument("--operations", type=_numbers, help="only these calls")
    parser.add_argument("--faults", type=_numbers, help="only these faults")
    return parser.parse_args()


def _numbers(text: str) -> frozenset[int]:
    return frozenset() if text == "none" else frozenset(map(int, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
