"""Vectors: one form for every spelling, Qdrant's checks, Qdrant's normalisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.replica import vector_forms
from server.replica.refusal import NotServed, Refusal
from server.replica.vector_forms import Field
from server.rpc import Code

DENSE = Field("", size=3)
COSINE = Field("", size=3, is_cosine=True)
MULTI = Field("m", size=2, is_multi=True)
SPARSE = Field("s", is_sparse=True)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)


def _dense(*values: float) -> pb.Vector:
    return pb.Vector(dense=pb.DenseVector(data=values))


def _kept(vector: pb.Vector, field: Field = DENSE) -> pb.Vector:
    return vector_forms.canonical(vector, field, field.name, "points[0].vector.vector")


def test_every_spelling_of_a_dense_vector() -> None:
    assert _kept(_dense(1, 2, 3)) == _kept(pb.Vector(data=[1, 2, 3])) == _dense(1, 2, 3)


@pytest.mark.parametrize(
    ("vector", "field"),
    [
        (_dense(1, 2, 3), DENSE),
        (_dense(1, 2), MULTI),
        (pb.Vector(multi_dense=pb.MultiDenseVector(vectors=[pb.DenseVector(data=[1, 2])])), MULTI),
        (pb.Vector(sparse=pb.SparseVector(indices=[1], values=[2])), SPARSE),
    ],
)
@pytest.mark.parametrize(
    "deprecated",
    [pb.Vector(vectors_count=1), pb.Vector(data=[7, 8]), pb.Vector(indices=pb.SparseIndices(data=[9]))],
)
def test_beside_the_new_spelling_the_old_one_does_not_count(
    vector: pb.Vector, field: Field, deprecated: pb.Vector
) -> None:
    both = pb.Vector.FromString(vector.SerializeToString() + deprecated.SerializeToString())
    assert both != vector
    assert _kept(both, field) == _kept(vector, field)


def test_every_spelling_of_a_sparse_vector_is_sorted() -> None:
    expected = pb.Vector(sparse=pb.SparseVector(indices=[1, 7], values=[0.5, 2.0]))
    assert _kept(pb.Vector(sparse=pb.SparseVector(indices=[7, 1], values=[2.0, 0.5])), SPARSE) == expected
    assert _kept(pb.Vector(data=[2.0, 0.5], indices=pb.SparseIndices(data=[7, 1])), SPARSE) == expected
    empty = pb.Vector(sparse=pb.SparseVector())
    assert _kept(empty, SPARSE) == empty


def test_every_spelling_of_a_multivector() -> None:
    expected = pb.Vector(
        multi_dense=pb.MultiDenseVector(vectors=[pb.DenseVector(data=[1, 2]), pb.DenseVector(data=[3, 4])])
    )
    assert _kept(expected, MULTI) == _kept(pb.Vector(data=[1, 2, 3, 4], vectors_count=2), MULTI) == expected
    one_row = pb.Vector(multi_dense=pb.MultiDenseVector(vectors=[pb.DenseVector(data=[1, 2])]))
    assert _kept(_dense(1, 2), MULTI) == one_row


@pytest.mark.parametrize(
    ("vector", "field", "text"),
    [
        (_dense(1, 2), DENSE, "Wrong input: Vector dimension error: expected dim: 3, got 2"),
        (_dense(), DENSE, "Wrong input: points[0].vector.vector: dense vector must not be empty"),
        (pb.Vector(), DENSE, "Wrong input: points[0].vector.vector: dense vector must not be empty"),
        (_dense(1, 2, 3), MULTI, "Wrong input: Vector dimension error: expected dim: 2, got 3"),
        (_dense(1), SPARSE, "Wrong input: Conversion between sparse and regular vectors failed"),
        (
            pb.Vector(sparse=pb.SparseVector(indices=[1], values=[1])),
            DENSE,
            "Wrong input: Conversion between sparse and regular vectors failed",
        ),
        (
            pb.Vector(multi_dense=pb.MultiDenseVector(vectors=[pb.DenseVector(data=[1, 2, 3])])),
            DENSE,
            "Wrong input: Conversion between multi and regular vectors failed",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_qdrants_text(vector: pb.Vector, field: Field, text: str) -> None:
    with pytest.raises(Refusal) as refused:
        _kept(vector, field)
    assert (refused.value.code, refused.value.details) == (Code.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    "vector",
    [
        pb.Vector(sparse=pb.SparseVector(indices=[1, 1], values=[1, 2])),
        pb.Vector(sparse=pb.SparseVector(indices=[1], values=[1, 2])),
        pb.Vector(multi_dense=pb.MultiDenseVector()),
        pb.Vector(multi_dense=pb.MultiDenseVector(vectors=[pb.DenseVector()])),
        pb.Vector(data=[1, 2, 3], vectors_count=2),
        pb.Vector(data=[1, 2, 3], vectors_count=0),
    ],
)
def test_malformed_vectors_are_invalid(vector: pb.Vector) -> None:
    field = SPARSE if vector.WhichOneof("vector") == "sparse" else MULTI
    with pytest.raises(Refusal) as refused:
        _kept(vector, field)
    assert refused.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "vector",
    [
        pb.Vector(document=pb.Document(text="x")),
        pb.Vector(image=pb.Image()),
        pb.Vector(object=pb.InferenceObject()),
    ],
)
def test_what_needs_the_servers_inference_is_unavailable(vector: pb.Vector) -> None:
    with pytest.raises(NotServed, match="inference") as refused:
        _kept(vector)
    assert refused.value.code is Code.UNAVAILABLE


def test_an_unknown_name_is_refused() -> None:
    vectors = pb.Vectors(vectors=pb.NamedVectors(vectors={"zz": _dense(1, 2, 3)}))
    with pytest.raises(Refusal, match="Wrong input: Not existing vector name error: zz"):
        vector_forms.canonical_map(vectors, {"": DENSE}, "points[0]")


def test_the_unnamed_vector_has_the_empty_name() -> None:
    alone = vector_forms.canonical_map(pb.Vectors(vector=_dense(1, 2, 3)), {"": DENSE}, "points[0]")
    named = pb.Vectors(vectors=pb.NamedVectors(vectors={"": _dense(1, 2, 3)}))
    assert vector_forms.canonical_map(named, {"": DENSE}, "points[0]") == alone == {"": _dense(1, 2, 3)}


@given(st.lists(floats, min_size=3, max_size=3))
def test_cosine_vectors_have_length_one_or_zero(values: list[float]) -> None:
    kept = np.array(_kept(_dense(*values), COSINE).dense.data, dtype=np.float64)
    length = math.sqrt(float(kept @ kept))
    squared = float(np.dot(np.array(values, np.float32), np.array(values, np.float32)))
    assert length == pytest.approx(1.0, abs=1e-5) if squared >= 2e-7 else length < 1e-3


@given(st.lists(floats, min_size=3, max_size=3))
def test_normalising_twice_changes_nothing(values: list[float]) -> None:
    once = _kept(_dense(*values), COSINE)
    twice = _kept(once, COSINE)
    assert list(twice.dense.data) == pytest.approx(list(once.dense.data), abs=1e-6)


def test_zero_and_nan_are_kept() -> None:
    assert _kept(_dense(0, 0, 0), COSINE) == _dense(0, 0, 0)
    assert all(math.isnan(value) for value in _kept(_dense(math.nan, 1, 2), COSINE).dense.data)


def test_rows_of_a_multivector_are_normalised_one_by_one() -> None:
    field = Field("m", size=2, is_multi=True, is_cosine=True)
    rows = _kept(pb.Vector(data=[3, 4, 0, 2], vectors_count=2), field).multi_dense.vectors
    assert [list(row.data) for row in rows] == [pytest.approx([0.6, 0.8]), [0.0, 1.0]]


def test_plain_datatypes_round() -> None:
    half = Field("", size=3, datatype=collections.Datatype.Float16)
    byte = Field("", size=3, is_cosine=True, datatype=collections.Datatype.Uint8)
    assert list(_kept(_dense(0.1, 1, 70000), half).dense.data) == [pytest.approx(0.099975586), 1.0, math.inf]
    assert list(_kept(_dense(1.9, -3, 300), byte).dense.data) == [1.0, 0.0, 255.0]


def test_outputs_of_every_version_are_read() -> None:
    old = pb.VectorsOutput(vector=pb.VectorOutput(data=[1, 2, 3]))
    new = pb.VectorsOutput(vector=pb.VectorOutput(dense=pb.DenseVector(data=[1, 2, 3])))
    assert vector_forms.from_output(old) == vector_forms.from_output(new) == {"": _dense(1, 2, 3)}
    named = pb.NamedVectorsOutput(
        vectors={"s": pb.VectorOutput(data=[1], indices=pb.SparseIndices(data=[4])), "d": pb.VectorOutput(data=[2])}
    )
    assert vector_forms.from_output(pb.VectorsOutput(vectors=named)) == {
        "s": pb.Vector(sparse=pb.SparseVector(indices=[4], values=[1])),
        "d": _dense(2),
    }
    assert vector_forms.from_output(pb.VectorsOutput()) == {}
