"""Whole runs: workloads of all shapes beside one oracle, and what to say when one disagrees."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.replica import tables

from .calls import Call, Oracle
from .differences import DIFFERENCES
from .engine import Engine
from .local_mode import LocalMode
from .play import Disagreement, Play, Tally
from .replica import Replica
from .rows import Difference
from .shapes import SHAPES, Shape
from .shrink import Shrinker
from .workload import workload

CALLS = 250
"""Calls of one workload."""
SHRINK_RUNS = 300
SHRUNK_MOST = 12
"""Disagreements of a run that are made short; further ones are told as they were found."""

# Thousands of small databases are made and thrown away; where there is a disk in memory they need no other.
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

Opening = Callable[[Path, Sequence[str]], Oracle]
"""Opens an oracle in a directory, with the names of what it is to mend."""
ORACLES: dict[str, Opening] = {Engine.name: Engine, LocalMode.name: LocalMode}


@dataclass(frozen=True, slots=True)
class Workload:
    """What makes a workload: the same again for the same three."""

    shape: Shape
    seed: int
    length: int = CALLS

    def calls(self) -> list[Call]:
        """The calls."""
        return workload(self.shape, self.seed, self.length)

    def __str__(self) -> str:
        return f"workload(BY_NAME[{self.shape.name!r}], seed={self.seed}, length={self.length})"


def attempt(
    shape: Shape, calls: Sequence[Call], open_oracle: Opening, rows: Sequence[Difference] = DIFFERENCES
) -> tuple[Disagreement | None, Tally]:
    """Play calls on a new replica beside a new oracle."""
    least_points = tables._LEAST_POINTS
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        oracle = open_oracle(Path(directory) / "oracle", [row.name for row in rows])
        replica = Replica(Path(directory) / "replica", oracle.version)
        play = Play(replica, oracle, rows, shape)
        # Small collections are walked; by columns they go as larger ones do.
        tables._LEAST_POINTS = 0 if shape.by_columns else least_points
        try:
            found = play.run(calls)
        finally:
            tables._LEAST_POINTS = least_points
            replica.close()
            oracle.close()
    return found, play.tally


def report(made: Workload, found: Disagreement, open_oracle: Opening, *, is_shrunk: bool = True) -> str:
    """The failing call, its seed, and a short workload that fails in the same way."""
    if not is_shrunk:
        return f"{made}\n{found}"
    calls = made.calls()
    short = Shrinker(lambda some: attempt(made.shape, some, open_oracle)[0], SHRINK_RUNS).shrink(calls, found)
    listed = "\n".join(f"  {call}" for call in short.calls)
    return f"{made}\n{found}\nshort ({short.tries} runs):\n{listed}\n  {short.disagreement.where}"


@dataclass(slots=True)
class Run:
    """What many workloads came to. `where`: the workloads in which each row was used."""

    tally: Tally = field(default_factory=Tally)
    where: dict[str, list[Workload]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def told(self) -> str:
        """Every failure."""
        return "\n\n".join((f"{len(self.failures)} workloads failed", *self.failures))

    def add(self, made: Workload, oracle: str) -> None:
        """Play one more workload."""
        try:
            found, tally = attempt(made.shape, made.calls(), ORACLES[oracle])
            if found is not None:
                is_shrunk = len(self.failures) < SHRUNK_MOST
                self.failures.append(report(made, found, ORACLES[oracle], is_shrunk=is_shrunk))
        except Exception:  # noqa: BLE001 - what breaks down fails the run like a disagreement, and the others go on
            self.failures.append(f"{made}\n{traceback.format_exc()}")
            return
        self.tally.add(tally)
        for name in tally.used:
            self.where.setdefault(name, []).append(made)


def run(oracle: str, seeds: Sequence[int], also: Sequence[Workload] = ()) -> Run:
    """Workloads of every shape that the oracle can hold, with these seeds, and some of their own."""
    made = Run()
    for one in also:
        made.add(one, oracle)
    for shape in SHAPES:
        for seed in seeds if oracle not in shape.not_for else ():
            made.add(Workload(shape, seed), oracle)
    return made
