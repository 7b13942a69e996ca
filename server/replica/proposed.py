"""Nearest points: by way of the vector index, or exactly.

Promises: every candidate that the index proposes passes the exact filter and is scored from its stored vector, together
with all points that the index may have out of date; more candidates are asked for until enough of them pass. An index
that takes a candidate for nearer or farther than it is holds something else than the store: it is not believed, and
built again. Where the vectors fit in memory, the index serves only while it is the faster way and was found to miss
next to nothing.
"""

from __future__ import annotations

import numpy as np

from server.replica.chunks import Block, Sparse
from server.replica.index_part import Proposal
from server.replica.indexing import Index
from server.replica.records import Key
from server.replica.scoring import Nearest, Scored, best
from server.replica.session import Selection, Session
from server.replica.spaces import Floats, Metric, Space

_ROOM = 4
_LEAST_CANDIDATES = 64
_MOST_CANDIDATES = 1024
_RECALL_LEAST = 0.99
# Float32 sums in another order.
_ROUNDING = 1e-4


def nearest(session: Session, scorer: Nearest, selection: Selection, count: int) -> list[Scored]:
    """The best `count` points that pass, as (id, score)."""
    space = (session.collection.cid, scorer.space.name)
    if session.index is not None and _may_serve(session, session.index, scorer, selection):
        started = session.now()
        found = _by_index(session, scorer, selection, count)
        session.pace.index_took(space, session.now() - started)
        if found is not None:
            return found
        session.plan.step("index", of=scorer.space.name, gave_up=True)
    if not (selection.is_everything and session.fits(scorer.space)):
        return best(scorer, session.blocks(scorer.space, selection), count)
    # Loading the vectors happens once and says nothing about the pace.
    blocks = list(session.blocks(scorer.space, selection))
    started = session.now()
    found = best(scorer, blocks, count)
    session.pace.exact_took(space, session.now() - started)
    return found


def _may_serve(session: Session, index: Index, scorer: Nearest, selection: Selection) -> bool:
    space = scorer.space
    if selection.only is not None or isinstance(scorer.vector, Sparse) or space.field.is_multi:
        return False
    recall = index.recall(session.collection.cid, space.name)
    if not session.fits(space):
        return recall > 0
    return recall >= _RECALL_LEAST and session.pace.prefers_index((session.collection.cid, space.name))


def _by_index(session: Session, scorer: Nearest, selection: Selection, count: int) -> list[Scored] | None:
    """None: the index cannot serve, or so few points pass that an exact search is cheaper."""
    index = session.index
    assert index is not None and not isinstance(scorer.vector, Sparse)
    # As a filter lets fewer through, more are asked for.
    asked = count if selection.is_everything else max(_ROOM * count, _LEAST_CANDIDATES)
    while asked <= _MOST_CANDIDATES:
        proposal = index.propose(session.collection, scorer.space, scorer.vector, asked)
        if proposal is None:
            return None
        passing = _passing(session, selection, [*proposal.candidates, *proposal.fresh])
        known = [key for key in proposal.candidates if key in passing and key not in proposal.fresh]
        session.plan.step(
            "index",
            of=scorer.space.name,
            asked=asked,
            proposed=len(proposal.candidates),
            fresh=len(proposal.fresh),
            passing=len(passing),
            wanted=count,
        )
        if len(known) >= count:
            block = session.block_of_keys(scorer.space, passing)
            if not _agrees(scorer.space, scorer.vector, block, proposal):
                index.doubt("a distance that it gave is not that of the stored vector")
                return None
            return best(scorer, [(block, None)], count)
        if len(proposal.candidates) < asked:
            return None
        asked *= _ROOM
    return None


def _agrees(space: Space, vector: Floats, block: Block, proposal: Proposal) -> bool:
    """Whether the index took the candidates to be as far from the query as they are."""
    taken = dict(zip(proposal.candidates, proposal.distances.tolist(), strict=True))
    rows = [row for row, key in enumerate(block.keys) if key in taken and key not in proposal.fresh]
    similarity = block.similarity(vector)[rows]
    # Chroma's distances: 1 - product for "ip", the squared distance for "l2".
    known = -similarity if space.metric is Metric.EUCLID else 1 - similarity
    given = np.asarray([taken[block.keys[row]] for row in rows], dtype=np.float32)
    # Products of long vectors that are nearly at right angles are small differences of large numbers.
    longest = float(np.linalg.norm(block.data[rows], axis=1).max(initial=0.0)) * float(np.linalg.norm(vector))
    return bool(np.allclose(given, known, rtol=_ROUNDING, atol=_ROUNDING * max(1.0, longest), equal_nan=True))


def _passing(session: Session, selection: Selection, keys: list[Key]) -> set[Key]:
    if selection.matcher is None:
        return set(keys)
    matcher = selection.matcher
    records = session.reads.fetch(
        session.collection.cid, dict.fromkeys(keys), payload=matcher.needs_payload, vectors=matcher.needs_vectors
    )
    return {record.key for record in matcher.select(records.values())}
