"""The best of many scores, against sorting all of them."""

from __future__ import annotations

import numpy as np
import pytest

from server.replica import scoring
from server.replica.spaces import Floats

SIZES = (0, 1, 5, 128, 20 * 128, 41 * 128 + 7)


def scores_of(kind: str, size: int, chance: np.random.Generator) -> Floats:
    """Scores with the trouble that their kind says."""
    scores = chance.standard_normal(size).astype(np.float32)
    match kind:
        case "ties":
            scores = np.round(scores)
        case "one":
            scores[:] = 2.0
        case "infinite":
            scores[chance.random(size) < 0.3] = -np.inf
            scores[chance.random(size) < 0.01] = np.inf
        case "nan":
            scores[chance.random(size) < 0.002] = np.nan
        case "all nan":
            scores[:] = np.nan
        case "rising":
            scores = np.sort(scores)
    return scores


def wanted(scores: Floats, rows: list[int], count: int) -> set[int]:
    """By sorting: the largest and all that tie with the last of them."""
    nans = [row for row in rows if np.isnan(scores[row])]
    others = sorted((row for row in rows if not np.isnan(scores[row])), key=lambda row: scores[row], reverse=True)
    if len(rows) <= count:
        return set(rows)
    if count == 0:
        return set()
    if len(nans) >= count:
        return set(nans)
    last = scores[others[count - len(nans) - 1]]
    return {*nans, *(row for row in others if scores[row] >= last)}


@pytest.mark.parametrize("kind", ["plain", "ties", "one", "infinite", "nan", "all nan", "rising"])
@pytest.mark.parametrize("size", SIZES)
def test_the_largest_are_found_with_their_ties(kind: str, size: int) -> None:
    chance = np.random.default_rng(size)
    for count in (0, 1, 3, 10, 50):
        scores = scores_of(kind, size, chance)
        gone = chance.random(size) < 0.2
        defined = chance.random(size) < 0.9
        for mask, is_gone in ((None, None), (None, gone), (defined, None), (defined, gone)):
            allowed = np.ones(size, dtype=np.bool_)
            allowed = allowed if mask is None else allowed & mask
            allowed = allowed if is_gone is None else allowed & ~is_gone
            found = scoring._wanted_rows(scores, mask, is_gone, count).tolist()
            assert found == sorted(found)
            assert set(found) == wanted(scores, np.flatnonzero(allowed).tolist(), count)
