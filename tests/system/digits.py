"""scikit-learn's digits: 1,797 real images of 8 by 8 pixels with labels, and a client's k-NN accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

NEIGHBOURS = 5
# Pixels are whole numbers, so many points are equally far; which of them stand first differs between engines, and
# with the machine for those that sort with numpy. So more are asked for, and ties are put in the order of ids.
_ASKED = 4 * NEIGHBOURS


@dataclass(frozen=True, slots=True)
class Digits:
    """Vectors and labels; point ids are row numbers."""

    vectors: NDArray[np.float32]
    labels: list[int]

    def point(self, row: int) -> models.PointStruct:
        """One row as a point."""
        payload = {"label": self.labels[row], "row": row, "even": self.labels[row] % 2 == 0}
        return models.PointStruct(id=row, vector=self.vectors[row].tolist(), payload=payload)


def load() -> Digits:
    """The data set, which ships with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Digits(bunch.data.astype(np.float32), [int(label) for label in bunch.target])


def accuracy(
    client: QdrantClient,
    collection: str,
    digits: Digits,
    rows: Sequence[int],
    ask: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> float:
    """Share of rows whose label most of their nearest points have. The rows must not be in the collection.

    `ask` makes each call, so that a caller can count and time them; it may answer None for a call that failed.
    """
    right = 0
    for row in rows:
        vector = digits.vectors[row].tolist()
        answer = ask(
            lambda vector=vector: client.query_points(collection, vector, limit=_ASKED, with_payload=["label"])
        )
        found = answer.points if answer else []
        if len(found) == _ASKED and round(found[NEIGHBOURS - 1].score, 3) == round(found[-1].score, 3):
            raise ValueError(f"row {row}: more points tie than were asked for")
        nearest = sorted(found, key=lambda hit: (round(hit.score, 3), hit.id))[:NEIGHBOURS]
        votes = Counter(hit.payload["label"] for hit in nearest) or Counter([-1])
        right += votes.most_common(1)[0][0] == digits.labels[row]
    return right / len(rows)
