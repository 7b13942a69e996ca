"""Distances among a sample of points.

Promises: up to `sample` random points that have the vector; for each the `limit` nearest of the others in the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

from generated.qdrant import points_pb2 as points
from server.replica import scoring
from server.replica.points import id_of
from server.replica.records import Key
from server.replica.refusal import bad_body
from server.replica.session import Session, only
from server.replica.universal import Universal

DEFAULT_SAMPLE = 10
DEFAULT_LIMIT = 3
_LEAST_SAMPLE = 2


@dataclass(frozen=True, slots=True)
class Sampled:
    """The sample in id order, and of each point its nearest in the sample."""

    keys: list[Key]
    nearest: list[list[scoring.Scored]]


def sampled(session: Session, universal: Universal, request: points.SearchMatrixPoints) -> Sampled:
    """Draw the sample and compare. Raises Refusal."""
    size = request.sample if request.HasField("sample") else DEFAULT_SAMPLE
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    if size < _LEAST_SAMPLE:
        raise bad_body("sample", f"value {size} invalid, must be {_LEAST_SAMPLE} or larger")
    if limit == 0:
        raise bad_body("limit", "value 0 invalid, must be 1 or larger")
    space = session.space(request.using)
    selection = session.select(request.filter if request.HasField("filter") else None)
    having = [
        key
        for block, gone in session.blocks(space, selection)
        for row, key in enumerate(block.keys)
        if gone is None or not gone[row]
    ]
    keys = sorted(universal.sample(only(having), size))
    if len(keys) < _LEAST_SAMPLE:
        return Sampled([], [])
    block = session.block_of_keys(space, keys)
    nearest = []
    for row, key in enumerate(keys):
        found = scoring.best(universal.nearest_to(space, block.vector(row)), [(block, None)], limit + 1)
        nearest.append([one for one in found if one[0] != key][:limit])
    return Sampled(keys, nearest)


def pairs(sample: Sampled) -> points.SearchMatrixPairsResponse:
    """As a list of pairs."""
    response = points.SearchMatrixPairsResponse(result=points.SearchMatrixPairs())
    for key, nearest in zip(sample.keys, sample.nearest, strict=True):
        for other, score in nearest:
            response.result.pairs.add(a=id_of(key), b=id_of(other), score=score)
    return response


def offsets(sample: Sampled) -> points.SearchMatrixOffsetsResponse:
    """As a sparse matrix in coordinate form over the sample."""
    position = {key: at for at, key in enumerate(sample.keys)}
    result = points.SearchMatrixOffsets(ids=[id_of(key) for key in sample.keys])
    for row, nearest in enumerate(sample.nearest):
        for other, score in nearest:
            result.offsets_row.append(row)
            result.offsets_col.append(position[other])
            result.scores.append(score)
    return points.SearchMatrixOffsetsResponse(result=result)
