"""How well an index finds: vectors near stored ones, and what an exact search finds for them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from server.replica.chunks import block_of
from server.replica.reads import Reads
from server.replica.records import Key
from server.replica.scoring import Nearest, Scored, best
from server.replica.spaces import Floats, Space

RESULTS = 10
# Asked for beyond these, where points changed since the index saw them.
RESULTS_MORE_MOST = 100
_PROBES = 24
_PAGE = 4096


def probes(reads: Reads, cid: int, space: Space) -> list[Floats]:
    """Stored vectors from all over the collection, each moved by as much again."""
    step = max(reads.count(cid) // _PROBES, 1)
    keys = list(islice(reads.keys(cid), 0, None, step))[:_PROBES]
    data = block_of(space, list(reads.fetch(cid, keys, payload=False).values())).data
    noise = np.random.default_rng(cid).normal(size=data.shape)
    lengths = np.linalg.norm(data, axis=1, keepdims=True) / np.sqrt(max(space.field.size, 1))
    return list((data + noise * lengths).astype(np.float32))


def nearest(reads: Reads, cid: int, space: Space, vectors: Sequence[Floats]) -> list[set[Key]]:
    """The nearest points of each vector, in one walk over the collection."""
    found: list[list[Scored]] = [[] for _ in vectors]
    after: Key | None = None
    while records := reads.scan(cid, after, _PAGE, payload=False):
        block = block_of(space, records)
        for at, vector in enumerate(vectors):
            more = best(Nearest(space, vector), [(block, None)], RESULTS)
            together = sorted([*found[at], *more], key=lambda one: one[1], reverse=not space.smaller_is_better)
            found[at] = together[:RESULTS]
        after = records[-1].key
    return [{key for key, _ in one} for one in found]
