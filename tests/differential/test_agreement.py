"""The replica beside the engine and beside local mode: random workloads, every outcome the same.

A failure prints the call, the seed and a short workload. To play it again:

    from tests.differential.running import ORACLES, Workload, attempt
    from tests.differential.shapes import BY_NAME
    made = Workload(BY_NAME["named"], seed=7)
    print(attempt(made.shape, made.calls(), ORACLES["engine"])[0])
"""

from __future__ import annotations

from functools import cache

import pytest

from server.rpc import COLLECTIONS, METHODS, POINTS, Kind, Offline

from .differences import DIFFERENCES
from .engine import Engine
from .local_mode import LocalMode
from .running import ORACLES, Run, Workload, attempt, run
from .shapes import BY_NAME

# With 250 calls each: 10,500 beside the engine in six shapes, 8,750 beside local mode in five.
SEEDS = {Engine.name: range(7), LocalMode.name: range(7)}
# What comes up seldom.
ALSO = {Engine.name: (Workload(BY_NAME["multi"], 49),), LocalMode.name: (Workload(BY_NAME["unnamed"], 131),)}
SOAK_SEEDS = {Engine.name: range(100, 168), LocalMode.name: (*range(100, 180), 300)}
CALLS_LEAST = {Engine.name: 5_500, LocalMode.name: 8_000}
both = pytest.mark.parametrize("oracle", list(ORACLES))


@cache
def short_run(oracle: str) -> Run:
    """The run that `make test` makes, once for all tests here."""
    return run(oracle, SEEDS[oracle], ALSO[oracle])


@pytest.mark.timeout(900)
@both
def test_every_outcome_is_the_same(oracle: str) -> None:
    made = short_run(oracle)
    assert not made.failures, made.told()
    assert sum(made.tally.compared.values()) >= CALLS_LEAST[oracle]


@both
def test_every_row_is_used(oracle: str) -> None:
    assert set(short_run(oracle).tally.used) == {row.name for row in DIFFERENCES if row.oracle == oracle}


@pytest.mark.parametrize("name", [row.name for row in DIFFERENCES])
def test_without_its_row_a_difference_is_seen(name: str) -> None:
    [oracle] = [row.oracle for row in DIFFERENCES if row.name == name]
    others = [row for row in DIFFERENCES if row.name != name]
    workloads: list[Workload] = short_run(oracle).where[name]
    assert any(attempt(made.shape, made.calls(), ORACLES[oracle], others)[0] for made in workloads)


def test_every_method_is_compared() -> None:
    served = {path for path, row in METHODS.items() if row.offline is not Offline.REFUSED and path.startswith(POINTS)}
    served |= {
        path for path, row in METHODS.items() if row.offline is not Offline.REFUSED and path.startswith(COLLECTIONS)
    }
    together = short_run(Engine.name).tally.compared + short_run(LocalMode.name).tally.compared
    assert served <= set(together)
    refused = short_run(Engine.name).tally.refused + short_run(LocalMode.name).tally.refused
    assert len([path for path in refused if METHODS[path].kind is Kind.WRITE]) >= 5


@pytest.mark.soak
@both
def test_every_outcome_is_the_same_for_long(oracle: str) -> None:
    made = run(oracle, SOAK_SEEDS[oracle])
    assert not made.failures, made.told()
    assert sum(made.tally.compared.values()) >= 80_000
