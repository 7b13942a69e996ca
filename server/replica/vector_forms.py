"""PURE. The one form in which the replica keeps vectors, and the checks that Qdrant makes before it stores one.

Promises: every spelling of a vector (oneof, deprecated fields, one vector or named ones) becomes a map of name →
qdrant.Vector with the oneof set, the unnamed vector under ""; sparse indices sorted; vectors of Cosine fields
normalised as Qdrant does; values rounded to the field's datatype where that datatype is plain (Float16, Uint8).
Does not promise the rounding of quantised datatypes: those keep the values that came in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from server.replica.refusal import NotServed, Refusal, invalid, no_vector_name, wrong_input

Floats: TypeAlias = npt.NDArray[np.float32]
VectorMap: TypeAlias = dict[str, points.Vector]

UNNAMED = ""

# Squared lengths this near to 0 or 1 count as zero or as normalised already, and are left alone.
_ZERO_LENGTH = np.float32(1.1920929e-07)
_UNIT_TOLERANCE = np.float32(1.0e-6)
_ROUNDED = frozenset((collections.Datatype.Uint8, collections.Datatype.Float16))
_PLAIN = frozenset((collections.Datatype.Default, collections.Datatype.Float32, collections.Datatype.Uint8))
_INFERENCE = frozenset(("document", "image", "object"))
_NO_INFERENCE = "vectors made by Qdrant's own inference (Document, Image, InferenceObject) need the server"


@dataclass(frozen=True, slots=True)
class Field:
    """One vector of a collection: dense (`size` > 0), dense with many rows, or sparse."""

    name: str
    size: int = 0
    is_cosine: bool = False
    is_multi: bool = False
    is_sparse: bool = False
    datatype: int = collections.Datatype.Default

    @property
    def is_repeatable(self) -> bool:
        """Whether two sides that stored one vector give back the same numbers, but for the last bits of a length.

        Half floats of a normalised vector may be rounded to either side; quantised datatypes answer with other numbers.
        """
        if self.is_sparse or self.datatype in _PLAIN:
            return True
        return self.datatype == collections.Datatype.Float16 and not self.is_cosine


Fields: TypeAlias = Mapping[str, Field]


def fields_of(params: collections.CollectionParams) -> dict[str, Field]:
    """The vectors that a collection has, by name."""
    fields: dict[str, Field] = {}
    form = params.vectors_config.WhichOneof("config")
    if form == "params":
        fields[UNNAMED] = _dense_field(UNNAMED, params.vectors_config.params)
    elif form == "params_map":
        for name, dense in params.vectors_config.params_map.map.items():
            fields[name] = _dense_field(name, dense)
    for name in params.sparse_vectors_config.map:
        fields[name] = Field(name, is_sparse=True)
    return fields


def _dense_field(name: str, params: collections.VectorParams) -> Field:
    return Field(
        name,
        size=params.size,
        is_cosine=params.distance == collections.Distance.Cosine,
        is_multi=params.HasField("multivector_config"),
        datatype=params.datatype,
    )


def canonical_map(vectors: points.Vectors, fields: Fields, place: str) -> VectorMap:
    """All vectors of one point as they are stored. `place` names the point in messages, such as `points[0]`.

    Raises Refusal as Qdrant would: unknown name, wrong dimension, empty vector, sparse for dense.
    """
    return {name: _stored(vector, fields[name]) for name, vector in checked_map(vectors, fields, place).items()}


def checked_map(vectors: points.Vectors, fields: Fields, place: str, *, tells_names: bool = True) -> VectorMap:
    """All vectors of one point with their oneof set, values as they came. Raises as `canonical_map` does.

    `tells_names`: a refused dimension comes with the name of the vector, as Qdrant's early check of upserts has it;
    vectors that are updated meet only a later check, which does not know the name.
    """
    form = vectors.WhichOneof("vectors_options")
    if form is None:
        raise invalid("Expected some vectors")
    if form == "vector":
        return {UNNAMED: _checked(vectors.vector, fields.get(UNNAMED), UNNAMED, f"{place}.vector.vector")}
    return {
        name: _checked(vector, fields.get(name), name, f"{place}.vector.vectors.{name}", named=tells_names)
        for name, vector in sorted(vectors.vectors.vectors.items())
    }


def canonical(vector: points.Vector, field: Field | None, name: str, place: str) -> points.Vector:
    """One vector as its field stores it. Raises as `canonical_map` does."""
    checked = _checked(vector, field, name, place)
    return checked if field is None else _stored(checked, field)


def _checked(
    vector: points.Vector, field: Field | None, name: str, place: str, *, named: bool = False
) -> points.Vector:
    vector = with_oneof(vector)
    form = vector.WhichOneof("vector")
    if form in _INFERENCE:
        raise NotServed(_NO_INFERENCE)
    if form == "dense" and not vector.dense.data:
        raise wrong_input(f"{place}: dense vector must not be empty")
    if form == "multi_dense":
        _check_rows(vector.multi_dense, place)
    if field is None:
        raise no_vector_name(name)
    if field.is_sparse:
        if form != "sparse":
            kind = "multi" if form == "multi_dense" else "sparse"
            raise wrong_input(f"Conversion between {kind} and regular vectors failed")
        return points.Vector(sparse=_sorted_sparse(vector.sparse, place))
    if form == "sparse":
        raise wrong_input("Conversion between sparse and regular vectors failed")
    rows = [vector.dense] if form == "dense" else list(vector.multi_dense.vectors)
    if not field.is_multi and form == "multi_dense":
        raise wrong_input("Conversion between multi and regular vectors failed")
    suffix = f" for vector '{name}'" if named else ""
    for row in rows:
        if len(row.data) != field.size:
            raise wrong_input(
                f"Vector dimension error: expected dim: {field.size}, got {len(row.data)}{suffix}",
            )
    if field.is_multi and form == "dense":
        return points.Vector(multi_dense=points.MultiDenseVector(vectors=rows))
    return vector


def _stored(vector: points.Vector, field: Field) -> points.Vector:
    """A checked vector with the values that its field keeps."""
    if field.is_sparse or not (field.is_cosine or field.datatype in _ROUNDED):
        return vector
    if field.is_multi:
        rows = [_stored_row(row, field) for row in vector.multi_dense.vectors]
        return points.Vector(multi_dense=points.MultiDenseVector(vectors=rows))
    return points.Vector(dense=_stored_row(vector.dense, field))


def _stored_row(row: points.DenseVector, field: Field) -> points.DenseVector:
    return dense_of(stored_values(floats_of(row), field))


# A DenseVector on the wire is one field, packed floats: by way of its bytes it becomes an array and back in one copy,
# a hundred times as fast as float by float.
_DATA_TAG = b"\x0a"


def floats_of(row: points.DenseVector) -> Floats:
    """The values of a dense vector. Read-only."""
    if not row.data:
        return np.empty(0, dtype=np.float32)
    body = row.SerializeToString()
    size = 4 * len(row.data)
    # Tag and length, then the values; unknown fields of a newer client would follow.
    start = 1 + len(_varint(size))
    return np.frombuffer(body, dtype="<f4", count=len(row.data), offset=start)


def dense_of(values: Floats) -> points.DenseVector:
    """A dense vector of these values."""
    body = values.astype("<f4", copy=False).tobytes()
    return points.DenseVector.FromString(_DATA_TAG + _varint(len(body)) + body)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def with_oneof(vector: points.Vector) -> points.Vector:
    """The vector in its oneof form alone; the deprecated fields are read as Qdrant reads them, only without it."""
    form = vector.WhichOneof("vector")
    if form is not None:
        if not (vector.data or vector.HasField("indices") or vector.HasField("vectors_count")):
            return vector
        alone = points.Vector()
        getattr(alone, form).CopyFrom(getattr(vector, form))
        return alone
    if vector.HasField("indices"):
        return points.Vector(sparse=points.SparseVector(values=vector.data, indices=vector.indices.data))
    if vector.HasField("vectors_count"):
        return points.Vector(multi_dense=_split_rows(vector.data, vector.vectors_count))
    return points.Vector(dense=points.DenseVector(data=vector.data))


def _split_rows(data: Iterable[float], count: int) -> points.MultiDenseVector:
    values = list(data)
    if count == 0 or len(values) % count:
        raise invalid("Validation error in body: [data: invalid dimension for vector data]")
    size = len(values) // count
    return points.MultiDenseVector(
        vectors=[points.DenseVector(data=values[at : at + size]) for at in range(0, len(values), size or 1)]
    )


def _check_rows(multi: points.MultiDenseVector, place: str) -> None:
    if not multi.vectors:
        raise wrong_input(f"{place}: multi vector must not be empty")
    size = len(multi.vectors[0].data)
    if any(not row.data for row in multi.vectors):
        raise wrong_input(f"{place}: all vectors of a multi vector must be non-empty")
    if any(len(row.data) != size for row in multi.vectors):
        raise wrong_input(f"{place}: all vectors of a multi vector must have the same dimension")


def _sorted_sparse(sparse: points.SparseVector, place: str) -> points.SparseVector:
    if len(sparse.indices) != len(sparse.values):
        raise _bad_sparse(place, "must be the same length as indices")
    pairs = sorted(zip(sparse.indices, sparse.values, strict=True))
    if any(first[0] == second[0] for first, second in pairwise(pairs)):
        raise _bad_sparse(place, "must be unique")
    return points.SparseVector(indices=[index for index, _ in pairs], values=[value for _, value in pairs])


def _bad_sparse(place: str, why: str) -> Refusal:
    return invalid(f"Validation error in body: [{place}.sparse: {why}]")


def stored_values(data: Iterable[float], field: Field) -> Floats:
    """Values as the field stores them: normalised for Cosine, rounded to the datatype."""
    values: Floats = data if isinstance(data, np.ndarray) else np.fromiter(data, dtype=np.float32)
    if field.datatype == collections.Datatype.Uint8:
        # Rust's `as u8`: cuts, saturates, NaN is 0. Qdrant does not normalise bytes.
        values = np.nan_to_num(np.clip(np.trunc(values), 0, 255), nan=0.0).astype(np.float32)
    elif field.is_cosine:
        values = normalised(values)
    if field.datatype == collections.Datatype.Float16:
        with np.errstate(over="ignore"):
            values = values.astype(np.float16).astype(np.float32)
    return values


def normalised(values: Floats) -> Floats:
    """The vector at length 1; zero and (nearly) normalised vectors come back as they are, as in Qdrant."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.dot(values, values)
        if length < _ZERO_LENGTH or abs(length - np.float32(1.0)) <= _UNIT_TOLERANCE:
            return values
        scaled: Floats = (values / np.sqrt(length)).astype(np.float32)
    return scaled


def named(vectors: VectorMap) -> bytes:
    """The bytes that the store keeps: a serialized qdrant.NamedVectors, the same for equal vectors."""
    return points.NamedVectors(vectors=vectors).SerializeToString(deterministic=True)


def from_output(vectors: points.VectorsOutput) -> VectorMap:
    """Vectors as an answer of Qdrant carries them, in the canonical form; they are stored values already."""
    form = vectors.WhichOneof("vectors_options")
    if form is None:
        return {}
    if form == "vector":
        return {UNNAMED: _output_vector(vectors.vector)}
    return {name: _output_vector(vector) for name, vector in vectors.vectors.vectors.items()}


def _output_vector(output: points.VectorOutput) -> points.Vector:
    # The two messages agree in every field that an output has.
    return with_oneof(points.Vector.FromString(output.SerializeToString()))
