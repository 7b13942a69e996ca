"""Many seeds, in this process or in several."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tests.simulation.plan import Plan, plan_of
from tests.simulation.shrink import command, report, shrink
from tests.simulation.world import Result, run

_CHUNK = 10


@dataclass
class Tally:
    """What came of several seeds."""

    seeds: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.counts += other.counts
        self.failures += other.failures


def examine(seeds: range, *, forgetful: bool = False) -> Tally:
    """Run seeds in this process."""
    tally, began = Tally(), time.process_time()
    for seed in seeds:
        result = run(plan_of(seed, forgetful=forgetful))
        tally.seeds += 1
        tally.seconds += result.seconds
        tally.counts.update(result.counts)
        if result.violations:
            first = result.violations[0]
            tally.failures.append((seed, f"{first.promise}: {first.text}"))
    tally.cpu_seconds = time.process_time() - began
    return tally


def examine_many(seeds: range, jobs: int, *, forgetful: bool = False) -> Iterator[Tally]:
    """The same over several processes, a few seeds at a time."""
    if jobs == 1:
        for start in range(seeds.start, seeds.stop, _CHUNK):
            yield examine(range(start, min(start + _CHUNK, seeds.stop)), forgetful=forgetful)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        chunks = [range(start, min(start + _CHUNK, seeds.stop)) for start in range(seeds.start, seeds.stop, _CHUNK)]
        yield from pool.map(_examine_forgetful if forgetful else examine, chunks)


def _examine_forgetful(seeds: range) -> Tally:
    return examine(seeds, forgetful=True)


def explain_failure(result: Result, whole: Plan) -> str:
    """The failure as found, then made shorter."""
    short = shrink(result, result.violations[0].promise)
    return f"{report(short, whole)}\nwhole: {command(whole, whole)}"
