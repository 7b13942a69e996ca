"""From a run that breaks a promise to a short one that breaks the same promise.

Promises: what it returns was run and breaks the promise; at most `RUNS_MOST` runs and about `STEPS_MOST` steps. Does
not promise the shortest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.simulation.plan import Plan
from tests.simulation.world import Result, run

RUNS_MOST = 150
# Of all runs together: what fails by going on and on is made short for a moment only.
STEPS_MOST = 1_000_000


def shrink(result: Result, promise: str) -> Result:
    """A shorter run with the same broken promise: fewer faults first, then fewer operations, until neither goes."""
    budget, steps = RUNS_MOST, 0
    best = result

    def still(plan: Plan) -> bool:
        nonlocal best, budget, steps
        budget -= 1
        found = run(plan)
        steps += found.turns
        if steps >= STEPS_MOST:
            budget = 0
        if any(violation.promise == promise for violation in found.violations):
            best = found
            return True
        return False

    def fewer_faults() -> list[int]:
        operations = [each.number for each in best.plan.operations]
        return _fewer(
            [each.number for each in best.plan.faults],
            lambda left: budget > 0 and still(result.plan.only(operations, left)),
        )

    def fewer_operations(faults: list[int]) -> None:
        _fewer(
            [each.number for each in best.plan.operations],
            lambda left: budget > 0 and still(result.plan.only(left, faults)),
        )

    size = -1
    while size != len(best.plan.faults) + len(best.plan.operations) and budget > 0:
        size = len(best.plan.faults) + len(best.plan.operations)
        fewer_operations(fewer_faults())
    return best


def _fewer(numbers: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Leave out pieces, large ones first, as long as the rest still fails."""
    piece = len(numbers)
    while piece >= 1:
        for left in _without(numbers, piece):
            if fails(left):
                numbers = left
                break
        else:
            piece //= 2
    return numbers


def _without(numbers: list[int], piece: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), piece):
        yield numbers[:start] + numbers[start + piece :]


def command(plan: Plan, whole: Plan) -> str:
    """What reproduces a run exactly."""
    parts = [f".venv/bin/python -m tests.simulation {plan.seed}" + (" --history" if plan.is_history else "")]
    for name in ("operations", "faults"):
        chosen = [each.number for each in getattr(plan, name)]
        if len(chosen) != len(getattr(whole, name)):
            parts.append(f"--{name} {','.join(map(str, chosen)) or 'none'}")
    return " ".join(
        [*parts, *(["--forgetful"] if whole.is_forgetful else []), *(["--foreign"] if whole.is_foreign else [])]
    )


def report(result: Result, whole: Plan) -> str:
    """A failure in words: what broke, what happened, how to see it again."""
    lines = [f"seed {result.plan.seed}: {len(result.violations)} broken promises"]
    lines += [f"  {violation.promise}: {violation.text}" for violation in result.violations[:5]]
    lines += [f"after {len(result.plan.faults)} faults and {len(result.plan.operations)} calls:"]
    events = [*result.plan.faults, *result.plan.operations]
    lines += [f"  {event}" for event in sorted(events, key=lambda each: each.at)]
    return "\n".join([*lines, f"again: {command(result.plan, whole)} --trace"])
