"""Whether one order of calls explains what all of them saw: linearizability of one object, decided by search.

Promises: `explain` accepts exactly when the certain steps, and any choice of the uncertain ones, can be put in one
order in which each takes effect between its start and its end, and each fits the state that those before it left. A
step without an end may take effect at any time after its start, or never. It gives up past `nodes_most` steps of the
search, and that is told apart from a verdict: what is undecided is not right. Knows nothing of points: a step says
itself where it fits.

The search is the one of Wing and Gong with the memory of Lowe: nothing is tried twice from the same set of done steps
and the same state. Two things are never tried, for what they could explain is explained without them. A look that
fits now is not put off: it changes nothing. An uncertain step is not followed by a blind one: it might as well not have
happened. Without the second rule the uncertain steps of a few kills make more orders than can be tried. And an order
with few uncertain steps is looked for before all orders are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)
NODES_MOST = 200_000
# Of the short searches that come first: how many uncertain steps they may use, and their share of the steps.
_FEW_UNCERTAIN = (0, 1, 2, 4, 8)
_SHORT = 10
NEVER = 1 << 60


class Step(Protocol[S]):
    """One call on one object. `ended` is NEVER where its outcome is unknown; moments are whole numbers."""

    @property
    def began(self) -> int: ...

    @property
    def ended(self) -> int: ...

    @property
    def label(self) -> str: ...

    @property
    def only_looks(self) -> bool:
        """Whether it leaves the state as it is wherever it fits."""
        ...

    @property
    def fits(self) -> tuple[S, ...]:
        """States in which a look fits, as far as they are known: a guide for the search, not part of the verdict."""
        ...

    @property
    def is_blind(self) -> bool:
        """Whether it fits everywhere and leaves the same, whatever was there before."""
        ...

    def after(self, state: S) -> tuple[bool, S]:
        """Whether it may come now, and what it leaves."""
        ...


class Undecided(Exception):
    """Too many orders to try."""


class _Node(NamedTuple):
    """A place in the search. `is_open`: an uncertain step came last, and nothing has depended on it yet."""

    done: int
    state: Hashable
    is_open: bool


def explain(initial: S, steps: Sequence[Step[S]], *, nodes_most: int = NODES_MOST) -> str:
    """Empty when one order explains everything, else what does not fit. `steps` are sorted by their start."""
    with contextlib.suppress(Undecided):
        return _search(initial, steps, len(steps), nodes_most // _SHORT)
    for uncertain_most in _FEW_UNCERTAIN:
        # Few uncertain steps may explain it; that they do not says nothing.
        with contextlib.suppress(Undecided):
            if not _search(initial, steps, uncertain_most, nodes_most // _SHORT):
                return ""
    return _search(initial, steps, len(steps), nodes_most)


def _search(initial: S, steps: Sequence[Step[S]], uncertain_most: int, nodes_most: int) -> str:
    """What `explain` says, with no more than so many uncertain steps."""
    certain = sum(1 << at for at, step in enumerate(steps) if step.ended != NEVER)
    everything = (1 << len(steps)) - 1
    seen: set[_Node] = set()
    stack = [_Node(0, initial, is_open=False)]
    furthest = 0
    while stack:
        node = stack.pop()
        if node.done & certain == certain:
            return ""
        if node in seen or (node.done & ~certain).bit_count() > uncertain_most:
            continue
        if len(seen) >= nodes_most:
            raise Undecided(f"{len(steps)} calls, more than {nodes_most} steps of the search")
        seen.add(node)
        if (node.done & certain).bit_count() > (furthest & certain).bit_count():
            furthest = node.done
        stack.extend(_following(steps, everything & ~node.done, node))
    left = [step for at, step in enumerate(steps) if certain >> at & 1 and not furthest >> at & 1]
    return "; ".join(step.label for step in left[:3])


def _following(steps: Sequence[Step[Any]], left: int, node: _Node) -> list[_Node]:
    """What may come next, the most promising last."""
    candidates, wanted = [], set()
    for at in _that_may_be_next(steps, left):
        step = steps[at]
        may, after = step.after(node.state)
        is_certain = step.ended != NEVER
        if step.only_looks and not may:
            wanted.update(step.fits)
        elif step.only_looks and is_certain:
            return [_Node(node.done | 1 << at, after, is_open=False)]
        elif may and not (node.is_open and step.is_blind) and (is_certain or after != node.state):
            candidates.append((at, after))
    # First what leaves a state that somebody saw, then what has an answer, the earliest one first.
    candidates.sort(key=lambda each: (each[1] not in wanted, steps[each[0]].ended), reverse=True)
    return [_Node(node.done | 1 << at, after, steps[at].ended == NEVER) for at, after in candidates]


def _that_may_be_next(steps: Sequence[Step[Any]], left: int) -> list[int]:
    """Those that began before any other one had ended."""
    frontier, found = NEVER, []
    while left:
        lowest = left & -left
        left ^= lowest
        at = lowest.bit_length() - 1
        step = steps[at]
        if step.began > frontier:
            break
        frontier = min(frontier, step.ended)
        found.append(at)
    return [at for at in found if steps[at].began <= frontier]
