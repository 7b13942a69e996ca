"""What clients saw, point by point, and whether one order of all calls explains it.

Promises: a history is accepted exactly when its calls can be put in one order in which each takes effect between its
start and its end, and each read shows what the writes before it left (linearizability, for each point by itself). A
write without an answer may take effect at any time after its start, or never. Gives up past `_NODES_MOST` steps: that
counts as undecided, never as right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from tests.simulation.points import Payload, merged

State: TypeAlias = "Payload | None"
_NODES_MOST = 200_000
NEVER = 1 << 60


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
    poisoned: tuple[int, ...] = ()
    label: str = ""
    # Where the answer came from: remote or local, and when (also if it counts as none).
    source: str = ""
    answered: int = NEVER
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Step:
    began: int
    ended: int
    kind: str
    value: int
    state: State
    outcome: Outcome
    label: str

    def after(self, state: State) -> tuple[bool, State]:
        """Whether it may come now, and what it leaves."""
        match self.kind:
            case "read":
                return state == self.state, state
            case "upsert":
                return True, self.state
            case "delete":
                return True, None
            case _:
                if self.outcome is Outcome.MISSING:
                    return state is None, state
                if state is None:
                    return self.outcome is Outcome.UNKNOWN, state
                return True, merged(state, self.value)


def steps_of(number: int, calls: Sequence[Seen]) -> list[_Step]:
    """The part of a history that is about one point."""
    found = []
    for call in calls:
        if call.outcome is Outcome.REFUSED or (call.ids and number not in call.ids):
            continue
        ended = NEVER if call.outcome is Outcome.UNKNOWN else call.ended
        state: State = None
        kind = call.kind
        if kind == "read":
            if call.outcome is Outcome.UNKNOWN:
                continue
            state = call.found.get(number)
        elif kind == "upsert":
            payload = {"v": call.value}
            if number in call.poisoned:
                payload["poison"] = 1
            state = tuple(sorted(payload.items()))
        elif kind == "wipe":
            kind = "delete"
        found.append(_Step(call.began, ended, kind, call.value, state, call.outcome, call.label))
    return sorted(found, key=lambda step: step.began)


class Undecided(Exception):
    """Too many orders to try."""


def explain(initial: State, steps: Sequence[_Step]) -> str:
    """Empty when one order explains everything, else what does not fit."""
    certain = 0
    for at, step in enumerate(steps):
        if step.ended != NEVER:
            certain |= 1 << at
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, initial)]
    furthest = 0
    while stack:
        done, state = stack.pop()
        if done & certain == certain:
            return ""
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > _NODES_MOST:
            raise Undecided(f"{len(steps)} calls, more than {_NODES_MOST} orders")
        if (done & certain).bit_count() > (furthest & certain).bit_count():
            furthest = done
        frontier = min(step.ended for at, step in enumerate(steps) if not done >> at & 1)
        following = []
        for at, step in enumerate(steps):
            if done >> at & 1:
                continue
            if step.began > frontier:
                break
            may, after = step.after(state)
            if may:
                if step.kind == "read" and step.ended != NEVER:
                    # A read that fits changes nothing: it may as well come now.
                    following = [(done | 1 << at, after)]
                    break
                following.append((done | 1 << at, after))
        # What has an answer is tried first.
        stack.extend(reversed(following))
    left = [step for at, step in enumerate(steps) if certain >> at & 1 and not furthest >> at & 1]
    return "; ".join(f"{step.label}" for step in left[:3])
