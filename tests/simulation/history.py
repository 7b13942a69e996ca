"""What clients saw, point by point, as steps for `linear` to put into one order.

Promises: each call becomes one step for each point that it is about, and that step fits exactly where Qdrant would
have answered so. A write without an answer may take effect at any time after its start, or never; a read without one
says nothing. Writes by a filter or to several points, and reads of several, are judged point by point: that they happen
at once is not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from tests.simulation.linear import NEVER
from tests.simulation.points import Payload, merged

State: TypeAlias = "Payload | None"


class Outcome(Enum):
    """What a client knows of its call."""

    OK = "ok"
    MISSING = "the point is not there"
    UNKNOWN = "no answer"
    REFUSED = "refused, nothing was done"


@dataclass(eq=False)
class Seen:
    """One call as its client saw it. `began` and `ended` are numbers of events."""

    kind: str
    ids: tuple[int, ...]
    value: int
    began: int
    ended: int = NEVER
    outcome: Outcome = Outcome.UNKNOWN
    found: dict[int, Payload] = field(default_factory=dict)
    # How many a count found.
    counted: int = 0
    # The value that a conditional write wants to find.
    expected: int = 0
    poisoned: tuple[int, ...] = ()
    label: str = ""
    # Where the answer came from: remote or local, and when (also if it counts as none).
    source: str = ""
    answered: int = NEVER
    error: str = ""

    @property
    def is_look(self) -> bool:
        """Whether it changes nothing."""
        return self.kind in LOOKS

    @property
    def is_by_filter(self) -> bool:
        """Whether it waits for every write before it, and every write after it waits for it."""
        return self.kind in ("wipe", "drop")


LOOKS = ("read", "count")


@dataclass(frozen=True, slots=True)
class _Step:
    began: int
    ended: int
    kind: str
    value: int
    state: State
    outcome: Outcome
    label: str
    expected: int = 0
    counted: int = 0

    @property
    def only_looks(self) -> bool:
        return self.kind in LOOKS or self.outcome is Outcome.MISSING

    @property
    def fits(self) -> tuple[State, ...]:
        return (self.state,) if self.kind == "read" else ()

    @property
    def is_blind(self) -> bool:
        return self.kind in ("upsert", "delete")

    def after(self, state: State) -> tuple[bool, State]:
        """Whether it may come now, and what it leaves."""
        match self.kind:
            case "read":
                return state == self.state, state
            case "count":
                return (state is not None) == bool(self.counted), state
            case "upsert":
                return True, self.state
            case "delete":
                return True, None
            case "insert":
                return True, self.state if state is None else state
            case "swap":
                return True, self.state if _has(state, self.expected) else state
            case "drop":
                return True, None if _has(state, self.expected) else state
            case _:
                if self.outcome is Outcome.MISSING:
                    return state is None, state
                if state is None:
                    return self.outcome is Outcome.UNKNOWN, state
                return True, merged(state, self.value)


def _has(state: State, value: int) -> bool:
    return state is not None and ("v", value) in state


def steps_of(number: int, calls: Sequence[Seen]) -> list[_Step]:
    """The part of a history that is about one point."""
    found = []
    for call in calls:
        if call.outcome is Outcome.REFUSED or (call.ids and number not in call.ids):
            continue
        ended = NEVER if call.outcome is Outcome.UNKNOWN else call.ended
        if call.is_look and ended == NEVER:
            continue
        found.append(
            _Step(
                call.began,
                ended,
                "delete" if call.kind == "wipe" else call.kind,
                call.value,
                _state_of(number, call),
                call.outcome,
                call.label,
                call.expected,
                call.counted,
            )
        )
    return sorted(found, key=lambda step: step.began)


def _state_of(number: int, call: Seen) -> State:
    """What a read saw of a point, or what a write puts there."""
    if call.kind == "read":
        return call.found.get(number)
    if call.kind in ("upsert", "insert", "swap"):
        payload = {"v": call.value}
        if number in call.poisoned:
            payload["poison"] = 1
        return tuple(sorted(payload.items()))
    return None
