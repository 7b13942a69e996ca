"""The state table over its whole domain."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.health.state import TRANSITIONS, Event, IllegalStep, State, diagram, step

REMOTE, LOCAL, DRAINING = State.REMOTE, State.LOCAL, State.DRAINING

# Every pair, by hand: the state after, or None where the pair cannot happen.
EXPECTED = {
    (REMOTE, Event.UPSTREAM_UP): REMOTE,
    (REMOTE, Event.UPSTREAM_DOWN): LOCAL,
    (REMOTE, Event.WRITE_LOGGED): DRAINING,
    (REMOTE, Event.LOOK_DUE): DRAINING,
    (REMOTE, Event.DRAINED): REMOTE,
    (REMOTE, Event.SYNC_REFUSED): None,
    (REMOTE, Event.SYNC_REQUESTED): REMOTE,
    (LOCAL, Event.UPSTREAM_UP): DRAINING,
    (LOCAL, Event.UPSTREAM_DOWN): LOCAL,
    (LOCAL, Event.WRITE_LOGGED): LOCAL,
    (LOCAL, Event.LOOK_DUE): LOCAL,
    (LOCAL, Event.DRAINED): LOCAL,
    (LOCAL, Event.SYNC_REFUSED): LOCAL,
    (LOCAL, Event.SYNC_REQUESTED): DRAINING,
    (DRAINING, Event.UPSTREAM_UP): DRAINING,
    (DRAINING, Event.UPSTREAM_DOWN): LOCAL,
    (DRAINING, Event.WRITE_LOGGED): DRAINING,
    (DRAINING, Event.LOOK_DUE): DRAINING,
    (DRAINING, Event.DRAINED): REMOTE,
    (DRAINING, Event.SYNC_REFUSED): None,
    (DRAINING, Event.SYNC_REQUESTED): DRAINING,
}


def test_the_expectation_covers_every_pair() -> None:
    assert set(EXPECTED) == set(product(State, Event))


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)), ids=lambda one: one.name)
def test_every_pair(state: State, event: Event) -> None:
    expected = EXPECTED[state, event]
    if expected is None:
        with pytest.raises(IllegalStep, match=f"{event.name} cannot happen in state {state.name}"):
            step(state, event)
    else:
        assert step(state, event) is expected


def test_the_numbers_are_those_of_the_metric() -> None:
    assert [int(state) for state in (REMOTE, LOCAL, DRAINING)] == [0, 1, 2]


@given(st.lists(st.sampled_from(Event)))
def test_remote_needs_that_qdrant_came_up_and_nothing_is_pending(events: list[Event]) -> None:
    """From the start, along any legal run: REMOTE is entered by DRAINED alone, and never while Qdrant is down."""
    state, up = LOCAL, False
    for event in events:
        if event in (Event.UPSTREAM_UP, Event.SYNC_REFUSED):
            up = True
        elif event is Event.UPSTREAM_DOWN:
            up = False
        elif event is Event.SYNC_REQUESTED and not up:
            continue  # its meaning includes that Qdrant is up
        try:
            before, state = state, step(state, event)
        except IllegalStep:
            continue
        if state is not LOCAL:
            assert up
        if state is REMOTE and before is not REMOTE:
            assert event is Event.DRAINED
        if event in (Event.WRITE_LOGGED, Event.LOOK_DUE):
            assert state is not REMOTE


def test_the_diagram_shows_each_change_once() -> None:
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> LOCAL"]
    changes = {(before, after) for (before, _), after in TRANSITIONS.items() if before is not after}
    for before, after in changes:
        assert any(line.startswith(f"    {before.name} --> {after.name}: ") for line in lines)
    assert len(lines) - 2 == sum(before is not after for (before, _), after in TRANSITIONS.items())
