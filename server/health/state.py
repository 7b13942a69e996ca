"""PURE. The states of the proxy and the one table that moves between them.

Promises: REMOTE means that Qdrant is up and nothing is pending; every pair of state and event is either in the table or
raises `IllegalStep`. Holds no state itself, does not look at a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum


class State(IntEnum):
    """Where calls go. The numbers are those of the metric `fallback_state`."""

    REMOTE = 0
    """Everything is forwarded to Qdrant."""
    LOCAL = 1
    """The replica answers, writes go to the log."""
    DRAINING = 2
    """As LOCAL, while the log is replayed to Qdrant."""


class Event(Enum):
    """What may move the proxy."""

    UPSTREAM_UP = "Qdrant is up"
    UPSTREAM_DOWN = "Qdrant is down"
    WRITE_LOGGED = "a write went to the log"
    LOOK_DUE = "what Qdrant may have lost can be looked for after all"
    DRAINED = "nothing is pending"
    SYNC_REFUSED = "Qdrant is up with writes pending, and sync_on_connect is off"
    SYNC_REQUESTED = "the operator asks for a sync, and Qdrant is up"


class IllegalStep(ValueError):
    """An event that cannot happen in this state: a fault in whoever sent it."""


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.REMOTE, Event.UPSTREAM_UP): State.REMOTE,
    (State.REMOTE, Event.UPSTREAM_DOWN): State.LOCAL,
    # A write whose outcome at Qdrant is unknown: until it is replayed, Qdrant's answers may lack it.
    (State.REMOTE, Event.WRITE_LOGGED): State.DRAINING,
    # A look that was put off while the replica was away.
    (State.REMOTE, Event.LOOK_DUE): State.DRAINING,
    (State.REMOTE, Event.DRAINED): State.REMOTE,
    (State.REMOTE, Event.SYNC_REQUESTED): State.REMOTE,
    # REMOTE with SYNC_REFUSED is illegal: REMOTE has nothing pending that could be refused.
    (State.LOCAL, Event.UPSTREAM_UP): State.DRAINING,
    (State.LOCAL, Event.UPSTREAM_DOWN): State.LOCAL,
    (State.LOCAL, Event.WRITE_LOGGED): State.LOCAL,
    (State.LOCAL, Event.LOOK_DUE): State.LOCAL,
    # The last entry was applied as the connection broke: Qdrant has to come back first.
    (State.LOCAL, Event.DRAINED): State.LOCAL,
    (State.LOCAL, Event.SYNC_REFUSED): State.LOCAL,
    (State.LOCAL, Event.SYNC_REQUESTED): State.DRAINING,
    (State.DRAINING, Event.UPSTREAM_UP): State.DRAINING,
    (State.DRAINING, Event.UPSTREAM_DOWN): State.LOCAL,
    (State.DRAINING, Event.WRITE_LOGGED): State.DRAINING,
    (State.DRAINING, Event.LOOK_DUE): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.REMOTE,
    # DRAINING with SYNC_REFUSED is illegal: a drain that was allowed is not taken back while Qdrant stays up.
    (State.DRAINING, Event.SYNC_REQUESTED): State.DRAINING,
}


def step(state: State, event: Event) -> State:
    """The state after `event`. Raises IllegalStep for a pair that is not in the table."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalStep(f"{event.name} cannot happen in state {state.name}") from None


def diagram() -> str:
    """The table as a Mermaid state diagram, for the docs; steps that stay where they are left out."""
    arrows = (
        f"    {before.name} --> {after.name}: {event.value}"
        for (before, event), after in TRANSITIONS.items()
        if before is not after
    )
    return "\n".join(("stateDiagram-v2", "    [*] --> LOCAL", *arrows)) + "\n"
