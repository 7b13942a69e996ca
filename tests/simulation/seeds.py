"""Many seeds, in this process or in several."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

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


def examine(seeds: range, make: Callable[[int], Plan] = plan_of) -> Tally:
    """Run seeds in this process; `make` is what a seed stands for."""
    tally, began = Tally(), time.process_time()
    for seed in seeds:
        result = run(make(seed))
        tally.seeds += 1
        tally.seconds += result.seconds
        tally.counts.update(result.counts)
        if result.violations:
            first = result.violations[0]
            tally.failures.append((seed, f"{first.promise}: {first.text}"))
    tally.cpu_seconds = time.process_time() - began
    return tally


def examine_many(
    seeds: range, jobs: int, make: Callable[[int], Plan] = plan_of, *, chunk: int = _CHUNK
) -> Generator[Tally, None, None]:
    """The same over several processes, `chunk` seeds at a time."""
    chunks = [range(start, min(start + chunk, seeds.stop)) for start in range(seeds.start, seeds.stop, chunk)]
    work = partial(examine, make=make)
    if jobs == 1:
        yield from map(work, chunks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, chunks)


def explain_failure(result: Result, whole: Plan) -> str:
    """The failure as found, then made shorter."""
    short = shrink(result, result.violations[0].promise)
    return f"{report(short, whole)}\nwhole: {command(whole, whole)}"
