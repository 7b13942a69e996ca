"""A run tells of every workload that fails, also of one in which the suite itself breaks down."""

from __future__ import annotations

import pytest

from generated.qdrant import points_pb2 as pb
from server.rpc import POINTS

from . import running
from .calls import Call, Gap, Outcome
from .comparison import difference
from .engine import Engine
from .running import SHRUNK_MOST, Run, Workload, run
from .shapes import SHAPES


class Forgetful(Engine):
    """Says that there are no points."""

    def answer(self, call: Call) -> Outcome:
        """Answer one call, as an empty engine a count."""
        return pb.CountResponse() if call.name == "Count" else super().answer(call)


class Broken(Engine):
    """Breaks down over the first count."""

    def answer(self, call: Call) -> Outcome:
        """Answer one call, but no count."""
        if call.name == "Count":
            raise AttributeError("no such part")
        return super().answer(call)


def test_every_failing_workload_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(running.ORACLES, "forgetful", Forgetful)
    monkeypatch.setitem(running.ORACLES, "broken", Broken)
    monkeypatch.setattr(running, "SHRUNK_MOST", 1)
    for oracle, text in (("forgetful", "oracle 0"), ("broken", "no such part")):
        made = Run()
        for shape in SHAPES[:2]:
            made.add(Workload(shape, seed=3), oracle)
        made.add(Workload(SHAPES[0], seed=4), oracle)
        assert len(made.failures) == 3
        told = made.told()
        assert told.startswith("3 workloads failed")
        for name, seed in ((SHAPES[0].name, 3), (SHAPES[1].name, 3), (SHAPES[0].name, 4)):
            assert f"workload(BY_NAME[{name!r}], seed={seed}," in told
        assert told.count(text) >= 3
        assert told.count("short (") == (1 if oracle == "forgetful" else 0)
    assert SHRUNK_MOST > 1


def test_a_run_takes_all_shapes_seeds_and_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[Workload] = []
    monkeypatch.setattr(Run, "add", lambda self, made, oracle: added.append(made))
    also = Workload(SHAPES[0], seed=99)
    run(Engine.name, range(2), (also,))
    assert added == [also, *(Workload(shape, seed) for shape in SHAPES for seed in range(2))]


def test_what_an_oracle_cannot_say_differs() -> None:
    call = Call(POINTS + "Facet", pb.FacetCounts(collection_name="c", key="k", limit=1))
    hit = pb.FacetHit(value=pb.FacetValue(string_value="x"), count=1)
    other = pb.FacetHit(value=pb.FacetValue(string_value="y"), count=1)
    ours, theirs = pb.FacetResponse(hits=[hit]), pb.FacetResponse(hits=[other])
    # Which of two equal counts is on the page is asked for again, without a limit.
    assert difference(call, ours, theirs, lambda _: pb.FacetResponse(hits=[other, hit])) == ""
    assert "does not answer" in difference(call, ours, theirs, lambda _: Gap("cannot"))
    assert "cannot say it" in difference(call, ours, Gap("cannot"), lambda _: theirs)
