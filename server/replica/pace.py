"""Which of two ways to the nearest points is the faster one, by what they took so far.

Promises: decides from running means alone; the way not taken is tried now and then, so that a change is noticed. Times
are passed in. Thread-safe in the sense that a lost update costs nothing but a little accuracy.
"""

from __future__ import annotations

from collections.abc import Hashable

# Below this an exact search is not worth leaving.
_FAST_SECONDS = 0.003
_WEIGHT = 0.2
_TRY_EVERY = 200
_REMEMBERED_MOST = 4096


class Pace:
    """Running means of search times, exact and by index, for each space."""

    def __init__(self) -> None:
        self._exact: dict[Hashable, float] = {}
        self._index: dict[Hashable, float] = {}
        self._asked: dict[Hashable, int] = {}

    def exact_took(self, space: Hashable, seconds: float) -> None:
        """An exact search over a whole space."""
        _learn(self._exact, space, seconds)

    def index_took(self, space: Hashable, seconds: float) -> None:
        """A search by way of the index, checks included."""
        _learn(self._index, space, seconds)

    def prefers_index(self, space: Hashable) -> bool:
        """Which way to go now."""
        exact, index = self._exact.get(space), self._index.get(space)
        if exact is None or exact < _FAST_SECONDS:
            return False
        if index is None:
            return True
        asked = self._asked[space] = self._asked.get(space, 0) + 1
        is_index_faster = index < exact
        return not is_index_faster if asked % _TRY_EVERY == 0 else is_index_faster


def _learn(means: dict[Hashable, float], space: Hashable, seconds: float) -> None:
    if len(means) > _REMEMBERED_MOST:
        means.clear()
    before = means.get(space)
    means[space] = seconds if before is None else before + _WEIGHT * (seconds - before)
