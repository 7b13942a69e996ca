"""Histories of 1,000 calls across failovers: for each point one order explains what all clients saw, in every one."""

from __future__ import annotations

import contextlib
import os

import pytest

from tests.simulation.histories import CALLS, FAILOVERS_LEAST, history_of
from tests.simulation.seeds import Tally, examine_many
from tests.simulation.shrink import command

HISTORIES = int(os.environ.get("SIMULATION_HISTORIES", "40"))
SOAK_HISTORIES = 2_000


def hold(seeds: range, jobs: int) -> Tally:
    """Run them; the first failure is told, with the command that makes it short."""
    total = Tally()
    # Closed, it leaves the histories alone that nobody has begun.
    with contextlib.closing(examine_many(seeds, jobs, history_of, chunk=1)) as tallies:
        for tally in tallies:
            if tally.failures:
                seed, text = tally.failures[0]
                pytest.fail(f"seed {seed}: {text}\nagain: {command(history_of(seed), history_of(seed))}")
            # Each by itself: what does not happen is not tested.
            assert tally.counts["calls made"] == CALLS
            assert tally.counts["failovers"] >= FAILOVERS_LEAST // 2
            total.add(tally)
    return total


def test_every_history_has_an_order() -> None:
    judge(hold(range(HISTORIES), 2), HISTORIES)


@pytest.mark.soak
def test_every_history_has_an_order_for_long() -> None:
    judge(hold(range(1_000_000, 1_000_000 + SOAK_HISTORIES), 2), SOAK_HISTORIES)


def judge(total: Tally, histories: int) -> None:
    """Whether the verdicts were sharp: on nearly all points and calls, of every kind, on both sides."""
    counts = total.counts
    assert total.seeds == histories
    assert counts["failovers"] >= FAILOVERS_LEAST * histories
    assert counts["points judged"] > 4 * counts["points not judged"]
    assert counts["calls judged"] > CALLS * histories
    for kind in ("get", "count", "scroll", "upsert", "set", "swap", "insert", "delete", "drop"):
        assert counts[f"{kind} ok local"] > histories // 10, kind
        assert counts[f"{kind} ok remote"] > histories, kind
