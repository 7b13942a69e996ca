"""Nearest points by way of the vector index.

Promises: every candidate that the index proposes passes the exact filter and is scored from its stored vector, together
with all points that the index may have out of date; more candidates are asked for until enough of them pass. None when
the index cannot serve, or when so few points pass that an exact search is cheaper.
"""

from __future__ import annotations

from server.replica.chunks import Sparse
from server.replica.records import Key
from server.replica.scoring import Nearest, Scored, best
from server.replica.session import Selection, Session

_ROOM = 4
_LEAST_CANDIDATES = 64
_MOST_CANDIDATES = 1024


def nearest(
    session: Session, scorer: Nearest, selection: Selection, count: int, threshold: float | None
) -> list[Scored] | None:
    """The best `count` points that pass, as (id, score); None = search exactly."""
    index, vector = session.index, scorer.vector
    if index is None or selection.only is not None or isinstance(vector, Sparse) or scorer.space.field.is_multi:
        return None
    # As a filter lets fewer through, more are asked for.
    asked = count if selection.is_everything else max(_ROOM * count, _LEAST_CANDIDATES)
    while asked <= _MOST_CANDIDATES:
        proposal = index.propose(session.collection, scorer.space, vector, asked)
        if proposal is None:
            return None
        passing = _passing(session, selection, [*proposal.candidates, *proposal.fresh])
        known = [key for key in proposal.candidates if key in passing and key not in proposal.fresh]
        if len(known) >= count:
            block = session.block_of_keys(scorer.space, passing)
            return best(scorer, [(block, None)], count, threshold)
        if len(proposal.candidates) < asked:
            return None
        asked *= _ROOM
    return None


def _passing(session: Session, selection: Selection, keys: list[Key]) -> set[Key]:
    if selection.matcher is None:
        return set(keys)
    matcher = selection.matcher
    records = session.reads.fetch(
        session.collection.cid, dict.fromkeys(keys), payload=matcher.needs_payload, vectors=matcher.needs_vectors
    )
    return {record.key for record in matcher.select(records.values())}
