"""PURE. What the forms of a vector query say about a block of vectors, and the best of them.

Promises: float32 scores as Qdrant's scorers give them; scores always rise with liking here, `shown` turns them into
what clients see (distances for Euclid and Manhattan). The best come sorted, ties by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, takewhile
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from server.replica.chunks import Block, QueryVector, Sparse
from server.replica.records import Key
from server.replica.spaces import Floats, Space

_EPSILON = np.float32(1.1920929e-7)
Mask: TypeAlias = "npt.NDArray[np.bool_] | None"


class Scorer(Protocol):
    """One form of vector query."""

    def scores(self, block: Block) -> tuple[Floats, Mask]:
        """A score for each row, and which rows have one (None = all)."""
        ...

    def shown(self, score: float) -> float:
        """The score as clients see it."""
        ...


class _Plain:
    """Scores are shown as they are, larger is better."""

    def shown(self, score: float) -> float:
        return score


@dataclass(frozen=True, slots=True)
class Nearest:
    """Likeness to one vector. A sparse vector that shares no index with the query is not a result."""

    space: Space
    vector: QueryVector
    skips_zeros: bool = False
    """Whether sparse vectors whose score is 0 are no results either."""

    def scores(self, block: Block) -> tuple[Floats, Mask]:
        """See Scorer."""
        if isinstance(self.vector, Sparse):
            scores, shares = block.overlap(self.vector)
            return scores, shares & (scores != 0) if self.skips_zeros else shares
        return block.similarity(self.vector), None

    def shown(self, score: float) -> float:
        """See Scorer."""
        return self.space.shown(score)


def _sigmoid(values: Floats) -> Floats:
    """x / (1 + |x|), infinities left alone."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(values), values / (np.float32(1) + np.abs(values)), values).astype(np.float32)


def _half_sigmoid(values: Floats) -> Floats:
    return (np.float32(0.5) * (_sigmoid(values) + np.float32(1))).astype(np.float32)


class BestScore(_Plain):
    """Recommend by the best single example."""

    def __init__(self, positive: Sequence[QueryVector], negative: Sequence[QueryVector]) -> None:
        self._positive = positive
        self._negative = negative

    def scores(self, block: Block) -> tuple[Floats, Mask]:
        """See Scorer. Without any example nothing is liked, so nothing is a result."""
        if not (self._positive or self._negative):
            return np.zeros(len(block), dtype=np.float32), np.zeros(len(block), dtype=np.bool_)
        liked = _best(block, self._positive)
        disliked = _best(block, self._negative)
        return np.where(liked > disliked, _half_sigmoid(liked), -_half_sigmoid(disliked)).astype(np.float32), None


def _best(block: Block, examples: Sequence[QueryVector]) -> Floats:
    best = np.full(len(block), -np.inf, dtype=np.float32)
    for example in examples:
        np.maximum(best, block.similarity(example), out=best)
    return best


class SumScores(_Plain):
    """Recommend by the sum over all examples."""

    def __init__(self, positive: Sequence[QueryVector], negative: Sequence[QueryVector]) -> None:
        self._positive = positive
        self._negative = negative

    def scores(self, block: Block) -> tuple[Floats, Mask]:
        """See Scorer."""
        total = np.zeros(len(block), dtype=np.float32)
        for example in self._positive:
            total += block.similarity(example)
        for example in self._negative:
            total -= block.similarity(example)
        return total, None


Pair: TypeAlias = tuple[QueryVector, QueryVector]
"""(positive, negative)."""


class Discover(_Plain):
    """Near a target, in the zone that context pairs mark out."""

    def __init__(self, target: QueryVector, pairs: Sequence[Pair]) -> None:
        self._target = target
        self._pairs = pairs

    def scores(self, block: Block) -> tuple[Floats, Mask]:
        """See Scorer. Ranks are summed first: added one by one to the likeness, they would round it away."""
        rank = np.zeros(len(block), dtype=np.float32)
        for positive, negative in self._pairs:
            rank += np.sign(block.similarity(positive) - block.similarity(negative))
        return rank + _half_sigmoid(block.similarity(self._target)), None


class Context(_Plain):
    """Away from the negative side of every pair; no target."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def scores(self, block: Block) -> tuple[Floats, Mask]:
        """See Scorer."""
        total = np.zeros(len(block), dtype=np.float32)
        for positive, negative in self._pairs:
            loss = block.similarity(positive) - block.similarity(negative) - _EPSILON
            total += _sigmoid(np.minimum(loss, np.float32(0)))
        return total, None


class Feedback(_Plain):
    """Relevance feedback, the naive strategy: a·sim(target) + Σ confidence^b · c · (sim(better) - sim(worse))."""

    def __init__(
        self, target: QueryVector, items: Sequence[tuple[QueryVector, float]], a: float, b: float, c: float
    ) -> None:
        self._target = target
        self._a = np.float32(a)
        self._pairs = [
            (better, worse, np.float32((score - other) ** b * c))
            for (better, score), (worse, other) in permutations(items, 2)
            if score - other > 0
        ]

    def scores(self, block: Block) -> tuple[Floats, Mask]:
        """See Scorer."""
        total = self._a * block.similarity(self._target)
        for better, worse, weight in self._pairs:
            total = total + weight * (block.similarity(better) - block.similarity(worse))
        return total.astype(np.float32), None


Scored: TypeAlias = tuple[Key, float]


def best(scorer: Scorer, blocks: Iterable[tuple[Block, Mask]], count: int) -> list[Scored]:
    """The best `count` rows as (key, shown score), best first, ties by id."""
    found: list[tuple[float, Key]] = []
    for block, gone in blocks:
        scores, defined = scorer.scores(block)
        rows = _wanted_rows(scores, defined, gone, count)
        # NaN sorts as the largest number there is, as in Qdrant.
        found.extend((-np.inf if np.isnan(scores[row]) else -float(scores[row]), block.keys[row]) for row in rows)
        if len(found) > 4 * count + 1024:
            found = sorted(found)[:count]
    return [(key, scorer.shown(float("nan") if value == -np.inf else -value)) for value, key in sorted(found)[:count]]


def within(scored: Sequence[Scored], space: Space, threshold: float | None) -> list[Scored]:
    """The results up to the first that is not on the good side of a threshold, strictly.

    The good side is that of the vector's metric whatever the query: with Euclid and Manhattan a score has to be below
    the threshold, also where larger scores are better, as in a recommendation by the best score.
    """
    if threshold is None:
        return list(scored)
    return list(takewhile(lambda one: space.passes(one[1], threshold), scored))


def _wanted_rows(scores: Floats, defined: Mask, gone: Mask, count: int) -> npt.NDArray[np.intp]:
    """The best `count` rows and all that tie with the last of them."""
    allowed = defined
    if gone is not None:
        allowed = ~gone if allowed is None else allowed & ~gone
    if allowed is None:
        return _largest(scores, count)
    rows = np.flatnonzero(allowed)
    kept: npt.NDArray[np.intp] = rows[_largest(scores[rows], count)]
    return kept


def _largest(scores: Floats, count: int) -> npt.NDArray[np.intp]:
    """Where the largest `count` stand and all that tie with the last of them; NaN is larger than all."""
    if len(scores) <= count:
        return np.arange(len(scores))
    if count == 0:
        return np.empty(0, dtype=np.intp)
    floor = np.partition(scores, len(scores) - count)[len(scores) - count]
    return np.flatnonzero(np.isnan(scores) if np.isnan(floor) else ~(scores < floor))


def average(positive: Sequence[QueryVector], negative: Sequence[QueryVector]) -> QueryVector:
    """The vector of Recommend's average strategy: mean(positive) · 2 - mean(negative), or all rows for multi."""
    first = positive[0]
    if isinstance(first, Sparse):
        return _sparse_average(
            [v for v in positive if isinstance(v, Sparse)], [v for v in negative if isinstance(v, Sparse)]
        )
    liked = [v for v in positive if not isinstance(v, Sparse)]
    disliked = [v for v in negative if not isinstance(v, Sparse)]
    if first.ndim == 2:
        return np.concatenate([*liked, *(-rows for rows in disliked)])
    mean: Floats = np.mean(np.stack(liked), axis=0, dtype=np.float32)
    if not disliked:
        return mean
    result: Floats = (mean + mean - np.mean(np.stack(disliked), axis=0, dtype=np.float32)).astype(np.float32)
    return result


def _sparse_average(positive: Sequence[Sparse], negative: Sequence[Sparse]) -> Sparse:
    def mean(vectors: Sequence[Sparse]) -> dict[int, float]:
        total: dict[int, float] = {}
        for vector in vectors:
            for index, value in zip(vector.indices.tolist(), vector.values.tolist(), strict=True):
                total[index] = total.get(index, 0.0) + value
        return {index: value / len(vectors) for index, value in total.items()}

    liked, disliked = mean(positive), mean(negative) if negative else {}
    indices = sorted({*liked, *disliked})
    values = [2 * liked.get(i, 0.0) - disliked.get(i, 0.0) if negative else liked[i] for i in indices]
    return Sparse(np.array(indices, dtype=np.uint32), np.array(values, dtype=np.float32))
