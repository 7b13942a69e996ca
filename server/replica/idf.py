"""Inverse document frequency of a sparse space.

Promises: each value of a query times ln((N - n + 0.5) / (n + 0.5) + 1), where N points have the vector and n of them
the index. Counted over live points: Qdrant's count may still hold deleted ones.
"""

from __future__ import annotations

import numpy as np

from server.replica.chunks import Sparse
from server.replica.session import Selection, Session
from server.replica.spaces import Space


def weighted(session: Session, space: Space, query: Sparse, corpus: Selection) -> Sparse:
    """The query with its values weighted by the points of the corpus."""
    points = 0
    frequency = np.zeros(len(query.indices), dtype=np.int64)
    for block, gone in session.blocks(space, corpus):
        points += len(block) if gone is None else int(np.count_nonzero(~gone))
        frequency += block.document_frequency(query.indices, gone)
    weights = np.log((points - frequency + 0.5) / (frequency + 0.5) + 1)
    return Sparse(query.indices, (query.values * weights).astype(np.float32))
