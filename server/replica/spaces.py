"""PURE. The vector spaces of a collection: which names exist, and how two vectors in one are compared.

Promises: similarities in Qdrant's inner orientation, where larger is always better (dot product, minus the squared
Euclidean distance, minus the Manhattan distance), in float32; `shown` turns them into the score that clients see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from generated.qdrant import collections_pb2 as collections
from server.replica import scan
from server.replica.refusal import no_vector_name
from server.replica.vector_forms import Field, fields_of

Floats = npt.NDArray[np.float32]


class Metric(Enum):
    """How two dense vectors compare."""

    DOT = "dot"
    COSINE = "cosine"
    EUCLID = "euclid"
    MANHATTAN = "manhattan"


_METRICS = {
    collections.Distance.Dot: Metric.DOT,
    collections.Distance.Cosine: Metric.COSINE,
    collections.Distance.Euclid: Metric.EUCLID,
    collections.Distance.Manhattan: Metric.MANHATTAN,
}

# Rows compared at once where the comparison needs a temporary as large as its input, which should stay in the cache.
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Space:
    """One named vector of a collection."""

    field: Field
    metric: Metric
    has_idf: bool = False

    @property
    def name(self) -> str:
        """Its name, "" for the unnamed one."""
        return self.field.name

    @property
    def smaller_is_better(self) -> bool:
        """Whether the score that clients see falls with likeness."""
        return self.metric in (Metric.EUCLID, Metric.MANHATTAN)

    @property
    def without_metric(self) -> Space:
        """The same vectors as they are stored, nothing made of them to compare them."""
        return replace(self, metric=Metric.DOT)

    def passes(self, shown: float, threshold: float) -> bool:
        """Whether a shown score is on the good side of a score threshold: strictly."""
        return shown < threshold if self.smaller_is_better else shown > threshold

    @property
    def needs_normalising(self) -> bool:
        """Whether cosine has to be made when comparing: bytes are stored as they came."""
        return self.metric is Metric.COSINE and self.field.datatype == collections.Datatype.Uint8

    def shown(self, similarity: float) -> float:
        """The score that clients see for a similarity to a vector."""
        if self.metric is Metric.EUCLID:
            return float(np.sqrt(np.float32(abs(similarity))))
        return abs(similarity) if self.metric is Metric.MANHATTAN else similarity

    def hidden(self, score: float) -> float:
        """The similarity that is shown as this score: the inverse of `shown`."""
        if self.metric is Metric.EUCLID:
            return -(score * score) if score > 0 else float(-score)
        return -score if self.metric is Metric.MANHATTAN else score


@lru_cache(maxsize=256)
def spaces_of(config: bytes) -> dict[str, Space]:
    """The spaces of a collection by name, from its serialized CollectionConfig. Do not change the result."""
    params = collections.CollectionConfig.FromString(config).params
    spaces: dict[str, Space] = {}
    for name, field in fields_of(params).items():
        if field.is_sparse:
            idf = params.sparse_vectors_config.map[name].modifier == collections.Modifier.Idf
            spaces[name] = Space(field, Metric.DOT, idf)
        else:
            form = params.vectors_config
            dense = form.params if form.WhichOneof("config") == "params" else form.params_map.map[name]
            spaces[name] = Space(field, _METRICS.get(dense.distance, Metric.DOT))
    return spaces


def space_of(config: bytes, name: str) -> Space:
    """One space. Raises the refusal that Qdrant gives for an unknown name."""
    space = spaces_of(config).get(name)
    if space is None:
        raise no_vector_name(name)
    return space


def similarities(metric: Metric, rows: Floats, query: Floats) -> Floats:
    """Of each row (n by d) to one vector (d): n values, larger is better."""
    if metric in (Metric.DOT, Metric.COSINE):
        return scan.products(rows, query)

    def distances(where: slice, result: Floats) -> None:
        for start in range(where.start, where.stop, _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, where.stop)
            difference = rows[start:end] - query
            if metric is Metric.EUCLID:
                np.einsum("ij,ij->i", difference, difference, out=result[start:end])
            else:
                np.sum(np.abs(difference, out=difference), axis=1, out=result[start:end])

    found = scan.in_parts(len(rows), rows.shape[1] * 4, distances)
    return np.negative(found, out=found)
