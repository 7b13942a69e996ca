"""The promises of the design, over seeds: clients, faults and every interleaving of a run come from one number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.simulation.foreign import foreign_of
from tests.simulation.plan import FAULTS, FORGETS, OTHERS_WRITE, Plan, plan_of
from tests.simulation.seeds import Tally, examine_many, explain_failure
from tests.simulation.shrink import command
from tests.simulation.world import run

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("SIMULATION_SEEDS", "1000"))
FORGETFUL_SEEDS = int(os.environ.get("SIMULATION_FORGETFUL_SEEDS", "80"))
FOREIGN_SEEDS = int(os.environ.get("SIMULATION_FOREIGN_SEEDS", "100"))
SOAK_SEEDS = 100_000
SOAK_FORGETFUL_SEEDS = 10_000
SOAK_FOREIGN_SEEDS = 5_000


forgetful_of = partial(plan_of, forgetful=True)


def hold(seeds: range, jobs: int, make: Callable[[int], Plan] = plan_of) -> Tally:
    """Run them; the first failure is made short and told."""
    total = Tally()
    for tally in examine_many(seeds, jobs, make):
        total.add(tally)
        if tally.failures:
            plan = make(tally.failures[0][0])
            pytest.fail(explain_failure(run(plan), plan))
    return total


def test_the_promises_hold() -> None:
    total = hold(range(SEEDS), 2)
    # What does not happen is not tested.
    happened = total.counts
    assert happened.keys() >= FAULTS.keys()
    for call in (
        "upsert ok local",
        "upsert ok remote",
        "set ok local",
        "delete ok local",
        "get ok local",
        "wipe ok local",
    ):
        assert happened[call] > 0, call
    assert happened["quarantined"] > 0
    assert happened["answers of a copy that is not whole, judged"] > 0
    assert happened["upsert no answer "] + happened["upsert no answer local"] > 0


def test_the_promises_hold_when_qdrant_forgets() -> None:
    """It loses power, and with it what it acknowledged in the last seconds."""
    happened = hold(range(FORGETFUL_SEEDS), 2, forgetful_of).counts
    assert happened[FORGETS] > FORGETFUL_SEEDS // 4
    assert happened["lost and sent again"] > FORGETFUL_SEEDS // 8


def test_the_promises_hold_when_others_write() -> None:
    """They change points at Qdrant while the proxy cannot reach it; what becomes of that is for the policy to say."""
    happened = hold(range(FOREIGN_SEEDS), 2, foreign_of).counts
    assert happened[OTHERS_WRITE] - happened["others come at another time"] > FOREIGN_SEEDS
    assert happened["overwritten"] > FOREIGN_SEEDS // 8
    for outcome in ("OVERWRITTEN", "NOT_WRITTEN", "QUARANTINED"):
        assert happened[f"rows CONFLICT_OUTCOME_{outcome}"] > FOREIGN_SEEDS // 8, outcome


@pytest.mark.soak
def test_the_promises_hold_when_others_write_for_long() -> None:
    seeds = range(1_000_000, 1_000_000 + SOAK_FOREIGN_SEEDS)
    assert hold(seeds, 2, foreign_of).seeds == SOAK_FOREIGN_SEEDS


@pytest.mark.soak
def test_the_promises_hold_when_qdrant_forgets_for_long() -> None:
    seeds = range(1_000_000, 1_000_000 + SOAK_FORGETFUL_SEEDS)
    assert hold(seeds, 2, forgetful_of).seeds == SOAK_FORGETFUL_SEEDS


@pytest.mark.soak
def test_the_promises_hold_for_long() -> None:
    total = hold(range(1_000_000, 1_000_000 + SOAK_SEEDS), 2)
    assert total.seeds == SOAK_SEEDS


def test_a_seed_is_the_same_run_in_every_process() -> None:
    digests = []
    for hash_seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", "from tests.simulation.test_simulation import print_digests; print_digests()"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(done.stdout)
    assert digests[0].count("\n") == 10
    assert len(set(digests)) == 1


def print_digests() -> None:
    """The traces of some runs, the first one twice: nothing of a run is left for the next."""
    for seed in (3, *range(6), 3):
        print(seed, run(plan_of(seed)).digest)
    for seed in (3, 4):
        print("foreign", seed, run(foreign_of(seed)).digest)


def test_the_plan_of_a_seed_can_be_run_in_part() -> None:
    plan = plan_of(5)
    some = frozenset(each.number for each in plan.operations[:4])
    part = plan.only(some, frozenset())
    assert len(part.operations) == 4 and not part.faults
    assert command(part, plan).endswith(
        f"5 --operations {','.join(map(str, (e.number for e in part.operations)))} --faults none"
    )
    assert not run(part).violations
