"""Query vectors out of requests: given in the request, or meant by a point's id.

Promises: kind and dimension are checked against the searched space with Qdrant's texts; an id that does not exist is
NOT_FOUND; what Qdrant would have to compute by inference is NotServed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from generated.qdrant import points_pb2 as points
from server.replica.chunks import QueryVector, Sparse, stored_vector
from server.replica.points import key_of, text_of
from server.replica.records import Key
from server.replica.refusal import NotServed, Refusal, bad_body, no_point, wrong_input
from server.replica.session import Session
from server.replica.spaces import Floats, Metric, Space
from server.replica.vector_forms import stored_values
from server.rpc import Code

_INFERENCE = frozenset(("document", "image", "object"))


@dataclass(frozen=True, slots=True)
class Source:
    """Where vectors of ids come from: a collection (`is_other`: not the searched one) and a vector name in it."""

    session: Session
    name: str
    is_other: bool


def source_of(
    lookup: points.LookupLocation | None, using: str, here: Session, open_: Callable[[str], Session]
) -> Source:
    """The source that a request's `lookup_from` names, else the searched collection."""
    if lookup is None:
        return Source(here, using, is_other=False)
    name = lookup.vector_name if lookup.HasField("vector_name") else using
    session = open_(lookup.collection_name)
    return Source(session, name, is_other=session.collection.cid != here.collection.cid)


def referenced(inputs: Iterable[points.VectorInput]) -> list[Key]:
    """The ids among the inputs."""
    return [key_of(one.id) for one in inputs if one.WhichOneof("variant") == "id"]


def demand(session: Session, keys: list[Key]) -> None:
    """Raise NOT_FOUND for the first id that does not exist."""
    missing = session.missing(keys)
    if missing:
        raise no_point(text_of(missing[0]))


def given(one: points.VectorInput, source: Source) -> QueryVector | None:
    """The vector that an input gives or means; None when the point has no such vector."""
    form = one.WhichOneof("variant")
    match form:
        case "id":
            return _stored(key_of(one.id), source)
        case "dense":
            return np.fromiter(one.dense.data, dtype=np.float32)
        case "sparse":
            return _sparse(one.sparse)
        case "multi_dense":
            return _multi(one.multi_dense)
        case None:
            raise Refusal(Code.INVALID_ARGUMENT, "VectorInput variant is missing")
        case _:
            raise NotServed(
                "a query made by Qdrant's own inference (Document, Image, InferenceObject) needs the server"
            )


def demanded(one: points.VectorInput, source: Source) -> QueryVector:
    """As `given`; a point without the vector is NOT_FOUND."""
    vector = given(one, source)
    if vector is None:
        raise Refusal(Code.NOT_FOUND, f'Not found: Vector with name "{source.name}" for point not found')
    return vector


def _stored(key: Key, source: Source) -> QueryVector | None:
    space = source.session.space(source.name)
    record = source.session.reads.fetch(source.session.collection.cid, [key], payload=False).get(key)
    if record is None:
        raise no_point(text_of(key))
    return stored_vector(space, record)


def _sparse(sparse: points.SparseVector) -> Sparse:
    if len(sparse.values) != len(sparse.indices):
        raise bad_body("indices", "must be the same length as values")
    indices = np.fromiter(sparse.indices, dtype=np.uint32)
    if len(np.unique(indices)) != len(indices):
        raise bad_body("indices", "must be unique")
    order = np.argsort(indices)
    return Sparse(indices[order], np.fromiter(sparse.values, dtype=np.float32)[order])


def _multi(multi: points.MultiDenseVector) -> QueryVector:
    rows = [np.fromiter(row.data, dtype=np.float32) for row in multi.vectors]
    if not rows:
        raise wrong_input("multi vector must not be empty")
    if any(len(row) != len(rows[0]) for row in rows):
        raise wrong_input("all vectors of a multi vector must have the same dimension")
    return np.stack(rows)


def check_fit(vector: QueryVector, space: Space) -> None:
    """Raises Refusal for a vector that is not of the space's kind and size."""
    field = space.field
    if isinstance(vector, Sparse) != field.is_sparse:
        raise wrong_input("Conversion between sparse and regular vectors failed")
    if isinstance(vector, Sparse):
        return
    if vector.ndim == 2 and not field.is_multi:
        raise wrong_input("Conversion between multi and regular vectors failed")
    if vector.shape[-1] != field.size:
        raise wrong_input(f"Vector dimension error: expected dim: {field.size}, got {vector.shape[-1]}")


def check_averageable(vectors: Sequence[QueryVector], space: Space) -> None:
    """Raises Refusal for examples of several kinds, or of which one does not fit.

    Qdrant fills up and cuts examples of several sizes, which it counts as a fault (docs/compatibility.md).
    """
    if len({0 if isinstance(vector, Sparse) else vector.ndim for vector in vectors}) > 1:
        raise wrong_input("Can't average vectors with different types")
    for vector in vectors:
        check_fit(vector, space)


def prepared(vector: QueryVector, space: Space) -> QueryVector:
    """A query vector as the space compares it: of its kind and size, normalised for Cosine. Raises Refusal."""
    check_fit(vector, space)
    if isinstance(vector, Sparse):
        return vector
    if space.field.is_multi:
        rows = vector if vector.ndim == 2 else vector.reshape(1, -1)
        return np.stack([_as_stored(row, space) for row in rows])
    return _as_stored(vector, space)


def _as_stored(row: Floats, space: Space) -> Floats:
    values = stored_values(row, space.field)
    return _of_length_one(values) if space.needs_normalising else values


def _of_length_one(row: Floats) -> Floats:
    length = np.float32(np.linalg.norm(row))
    return (row / length).astype(np.float32) if length > 0 else row


def unrounded(vector: QueryVector, space: Space) -> QueryVector:
    """A query vector as it is compared by diversity: of length 1 for Cosine, and not rounded to the datatype."""
    if isinstance(vector, Sparse):
        return vector
    if space.field.is_multi:
        vector = vector.reshape(-1, space.field.size)
    if space.metric is not Metric.COSINE:
        return vector
    return _of_length_one(vector) if vector.ndim == 1 else np.stack([_of_length_one(row) for row in vector])
