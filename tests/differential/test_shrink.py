"""A broken replica is found out, and what shows it is made short."""

from __future__ import annotations

from functools import partial

import pytest

from generated.qdrant import points_pb2 as pb
from server.replica import conditions

from .engine import Engine
from .running import ORACLES, Workload, attempt, report
from .shapes import BY_NAME
from .shrink import Shrinker, reductions

MADE = Workload(BY_NAME["empty-name"], seed=0)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica in which `lt` means `lte`."""
    within = conditions._within

    def too_wide(bounds: object) -> object:
        copy = type(bounds)()  # type: ignore[call-arg]
        copy.CopyFrom(bounds)
        if copy.HasField("lt"):
            copy.lte = copy.lt
            copy.ClearField("lt")
        return within(copy)

    monkeypatch.setattr(conditions, "_within", too_wide)


@pytest.mark.usefixtures("broken")
def test_a_broken_comparison_is_found_and_made_short() -> None:
    play = partial(attempt, MADE.shape, open_oracle=ORACLES[Engine.name])
    calls = MADE.calls()
    found, _ = play(calls)
    assert found is not None
    short = Shrinker(lambda some: play(some)[0], tries=300).shrink(calls, found)
    assert len(short.calls) <= 4 < found.at
    assert "lt" in str(short.calls[-1])
    again, _ = play(short.calls)
    assert again is not None and again.at == len(short.calls) - 1


@pytest.mark.usefixtures("broken")
def test_the_report_names_the_seed_and_the_call() -> None:
    found, _ = attempt(MADE.shape, MADE.calls(), ORACLES[Engine.name])
    assert found is not None
    told = report(MADE, found, ORACLES[Engine.name])
    assert "seed=0" in told and str(found.call) in told and "short (" in told


def test_reductions_take_one_part_each() -> None:
    request = pb.ScrollPoints(collection_name="c", limit=3)
    request.filter.must.add().field.key = "a"
    request.filter.must.add().has_id.has_id.add().num = 1
    made = [smaller.SerializeToString() for smaller in reductions(request)]
    assert len(made) == len(set(made)) and request.SerializeToString() not in made
    assert all(len(smaller) < len(request.SerializeToString()) for smaller in made)
    assert all(pb.ScrollPoints.FromString(smaller).limit == 3 for smaller in made)
