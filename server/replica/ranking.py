"""PURE. Ranks out of ranks: fusion of result lists, and MMR's choice among candidates.

Promises: reciprocal rank fusion (k = 2 unless given, weights) and distribution-based score fusion in float32 as Qdrant
does; MMR picks as Qdrant picks, ties included. Ties of fused scores go by id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from server.replica.chunks import Block, QueryVector
from server.replica.records import Key
from server.replica.scoring import Scored

DEFAULT_RRF_K = 2


def by_score(scores: dict[Key, np.float32]) -> list[Scored]:
    """Best first, ties by id."""
    return sorted(((key, float(score)) for key, score in scores.items()), key=lambda one: (-one[1], one[0]))


def reciprocal_rank_fusion(sources: Sequence[Sequence[Scored]], k: int, weights: Sequence[float]) -> list[Scored]:
    """Σ 1 / ((rank + 1) / weight + k - 1) over the sources; no weights = all 1."""
    total: dict[Key, np.float32] = {}
    for number, source in enumerate(sources):
        weight = np.float32(weights[number] if weights else 1)
        for rank, (key, _) in enumerate(source):
            score = np.float32(0)
            if weight > 0:
                score = np.float32(1) / (np.float32(rank + 1) / weight + np.float32(k - 1))
            total[key] = np.float32(total.get(key, np.float32(0)) + score)
    return by_score(total)


def distribution_fusion(sources: Sequence[Sequence[Scored]]) -> list[Scored]:
    """Scores of each source scaled so that mean ± 3 standard deviations is 0…1, then added."""
    total: dict[Key, np.float32] = {}
    for source in sources:
        if not source:
            continue
        scores = np.array([score for _, score in source], dtype=np.float32)
        scaled = np.full(len(scores), 0.5, dtype=np.float32)
        deviation = np.std(scores.astype(np.float64), ddof=1) if len(scores) > 1 else 0.0
        if deviation > 0:
            low = np.mean(scores.astype(np.float64)) - 3 * deviation
            scaled = ((scores - low) / (6 * deviation)).astype(np.float32)
        for (key, _), score in zip(source, scaled, strict=True):
            total[key] = np.float32(total.get(key, np.float32(0)) + score)
    return by_score(total)


def maximal_marginal_relevance(
    block: Block, stored: Block, query: QueryVector, relevance_share: float, count: int
) -> list[Key]:
    """Up to `count` keys of a block, each the best of `share · relevance - (1 - share) · likeness to the chosen`.

    `stored` has the same rows as they are stored: bytes are not normalised when they are compared with each other.
    The rows of the block come best first. Qdrant keeps what is left in a set whose last member moves into the place of
    the one taken out, and takes the last of equal maxima; so does this.
    """
    relevance = stored.similarity(query)
    share, rest = np.float32(relevance_share), np.float32(1 - relevance_share)
    # Likeness of each row, as the query, to each row: of multi-vectors it is not the same both ways.
    likeness = np.stack([stored.similarity(block.vector(row)) for row in range(len(block))]) if len(block) else None
    left = list(range(len(block)))
    nearest_chosen = np.full(len(block), -np.inf, dtype=np.float32)
    chosen: list[Key] = []
    while left and len(chosen) < count:
        scores = relevance[left] if not chosen else share * relevance[left] - rest * nearest_chosen[left]
        if chosen and np.all(np.isneginf(scores)):
            break
        position = len(left) - 1 - int(np.argmax(scores[::-1]))
        row = left[position]
        left[position] = left[-1]
        left.pop()
        chosen.append(block.keys[row])
        if likeness is not None:
            np.maximum(nearest_chosen, likeness[:, row], out=nearest_chosen)
    return chosen
