"""When what is pending may go to Qdrant: by itself, or only when the operator asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.clock import SystemClock
from server.health.detector import Verdict
from server.health.state import State
from server.mode import Mode
from server.telemetry import Telemetry

UP = Verdict(up=True, since=0.0, reason="it answers")
DOWN = Verdict(up=False, since=0.0, reason="it is gone")


def mode(*, sync_on_connect: bool = False) -> Mode:
    return Mode(has_upstream=True, sync_on_connect=sync_on_connect, clock=SystemClock(), telemetry=Telemetry.silent())


def test_by_itself() -> None:
    made = mode(sync_on_connect=True)
    made.upstream_changed(UP, pending=3)
    assert made.state is State.DRAINING


def test_what_qdrant_may_have_lost_is_looked_at_before_calls_go_there() -> None:
    for sync_on_connect in (True, False):
        made = mode(sync_on_connect=sync_on_connect)
        # Nobody has to ask for a look: nothing of the log is sent by it.
        made.upstream_changed(UP, pending=0, must_look=True)
        assert made.state is State.DRAINING
        made.drained()
        assert made.state is State.REMOTE
        made.upstream_changed(DOWN, pending=0)
        made.upstream_changed(UP, pending=0)
        assert made.state is State.REMOTE
    made = mode()
    made.upstream_changed(UP, pending=1, must_look=True)
    assert made.state is State.LOCAL


def test_only_when_asked_and_the_status_says_so() -> None:
    made = mode()
    made.upstream_changed(UP, pending=3)
    assert made.state is State.LOCAL
    assert "understudy sync" in made.reason
    made.upstream_changed(DOWN, pending=3)
    assert (made.state, made.reason) == (State.LOCAL, "it is gone")
    made.upstream_changed(UP, pending=3)
    made.sync_requested(pending=3)
    assert made.state is State.DRAINING


def test_asked_while_qdrant_is_away_it_begins_when_qdrant_is_back() -> None:
    made = mode()
    made.sync_requested(pending=3)
    assert made.state is State.LOCAL
    made.upstream_changed(UP, pending=3)
    assert made.state is State.DRAINING


def test_the_wish_outlasts_an_outage_and_ends_when_nothing_is_pending() -> None:
    made = mode()
    made.upstream_changed(UP, pending=3)
    made.sync_requested(pending=3)
    made.upstream_changed(DOWN, pending=2)
    made.upstream_changed(UP, pending=2)
    assert made.state is State.DRAINING
    made.drained()
    assert made.state is State.REMOTE
    made.upstream_changed(DOWN, pending=0)
    made.upstream_changed(UP, pending=1)
    assert made.state is State.LOCAL


def test_a_wish_with_nothing_pending_is_none() -> None:
    made = mode()
    made.sync_requested(pending=0)
    made.upstream_changed(UP, pending=1)
    assert made.state is State.LOCAL


def test_with_nothing_pending_nobody_has_to_ask() -> None:
    made = mode()
    made.upstream_changed(UP, pending=0)
    assert made.state is State.REMOTE


def test_each_change_is_one_line_and_one_moment_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    made = mode(sync_on_connect=True)
    moments: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(made._telemetry, "moment", lambda name, **more: moments.append((name, more)))
    made.upstream_changed(UP, pending=3)
    made.upstream_changed(UP, pending=3)
    made.upstream_changed(DOWN, pending=2)
    told = [(more["before"], more["after"], more["reason"]) for name, more in moments if name == "state.changed"]
    assert told == [("LOCAL", "DRAINING", "it answers"), ("DRAINING", "LOCAL", "it is gone")]


HAPPENINGS = st.lists(st.sampled_from(("up", "down", "write", "replayed", "sync")), max_size=30)


@given(HAPPENINGS, st.booleans(), st.integers(0, 2))
def test_whatever_happens_no_step_is_illegal_and_the_state_follows_from_two_facts(
    happenings: list[str], sync_on_connect: bool, pending: int
) -> None:
    """Everything that the parts may tell, in any order: never a pair that the table lacks."""
    made = mode(sync_on_connect=sync_on_connect)
    for happening in happenings:
        match happening:
            case "up" | "down":
                made.upstream_changed(UP if happening == "up" else DOWN, pending=pending)
            case "write":
                # While REMOTE one of unknown outcome: the connection broke, and health does not know it yet.
                pending += 1
                made.write_logged()
            case "replayed" if made.is_draining:
                pending = 0
                made.drained()
            case "sync":
                made.sync_requested(pending=pending)
            case _:
                continue
        if made.is_remote:
            assert made.upstream_up
            assert pending == 0
        elif made.upstream_up and (pending == 0 or sync_on_connect):
            assert made.is_draining
        if not made.upstream_up:
            assert made.state is State.LOCAL
