"""The comparison of id ranges, over its whole domain: every kind of difference, every pair of looks."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generated.qdrant import points_pb2 as pb
from server.replica.looks import Digest, Look, Verdict, judge
from server.replica.ranges import agree, look
from server.replica.records import Record
from server.replica.vector_forms import dense_of, named, normalised

NONE: frozenset[str] = frozenset()
COSINE = frozenset(("",))


def record(number: int, *values: float, text: str = "", name: str = "") -> Record:
    payload = pb.PointStruct()
    if text:
        payload.payload["text"].string_value = text
    vectors = {name: pb.Vector(dense=dense_of(np.array(values, dtype=np.float32)))} if values else {}
    return Record(b"\x00" + number.to_bytes(8, "big"), payload.SerializeToString(deterministic=True), named(vectors))


def keyed(*records: Record) -> dict[bytes, Record]:
    return {each.key: each for each in records}


A, B, C = (record(number, 1.0, float(number)) for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("there", "here", "differing"),
    [
        ((), (), 0),
        ((A, B, C), (A, B, C), 0),
        ((A, B), (A, B, C), 1),
        ((A, C), (A, B), 2),
        ((), (A, B), 2),
        ((A, B), (), 2),
        ((record(1, 1.0, 1.5), B), (A, B), 1),
        ((record(1, 1.0, 1.0, text="x"), B), (A, B), 1),
        ((record(1, 1.0, 1.0, name="v"), B), (A, B), 1),
        ((record(1), B), (A, B), 1),
    ],
)
def test_every_kind_of_difference_counts(there: tuple[Record, ...], here: tuple[Record, ...], differing: int) -> None:
    seen = look(keyed(*there), here, COSINE)
    assert seen.differing == differing
    assert (seen.remote.points, seen.local.points) == (len(there), len(here))
    assert (seen.remote == seen.local) == (differing == 0)


def test_rounding_is_no_difference_where_both_sides_normalise() -> None:
    values = normalised(np.random.default_rng(1).standard_normal(384).astype(np.float32))
    near = np.nextafter(values, np.float32(2), dtype=np.float32)
    one, other = record(1, *values), record(1, *near)
    assert one.vectors != other.vectors
    assert agree(one, other, COSINE)
    assert not agree(one, other, NONE)
    assert not agree(one, other, frozenset(("other",)))
    moved = values.copy()
    moved[7] += 1e-3
    assert not agree(one, record(1, *moved), COSINE)
    seen = look(keyed(one), [other], COSINE)
    assert seen.differing == 0
    assert seen.remote != seen.local


def test_rounding_of_many_rows_and_never_of_sparse_values() -> None:
    def multi(*rows: tuple[float, ...]) -> Record:
        vectors = [pb.DenseVector(data=row) for row in rows]
        return Record(A.key, b"", named({"": pb.Vector(multi_dense=pb.MultiDenseVector(vectors=vectors))}))

    def sparse(value: float) -> Record:
        return Record(A.key, b"", named({"": pb.Vector(sparse=pb.SparseVector(indices=[1], values=[value]))}))

    assert agree(multi((0.6, 0.8), (0.0, 1.0)), multi((0.6000001, 0.8), (0.0, 1.0)), COSINE)
    assert not agree(multi((0.6, 0.8), (0.0, 1.0)), multi((0.6, 0.8)), COSINE)
    assert not agree(multi((0.6, 0.8)), multi((0.6, 0.8, 0.0)), COSINE)
    assert not agree(multi((0.6, 0.8)), record(1, 0.6, 0.8), NONE)
    assert not agree(sparse(1.0), sparse(1.0000001), COSINE)


def test_nan_equals_itself() -> None:
    nan = float("nan")
    assert agree(record(1, nan, 1.0), record(1, nan, 1.0000001), COSINE)


@given(
    st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=3), st.binary(max_size=3)), max_size=4),
    st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=3), st.binary(max_size=3)), max_size=4),
)
def test_equal_digests_mean_equal_content(
    first: list[tuple[bytes, bytes, bytes]], second: list[tuple[bytes, bytes, bytes]]
) -> None:
    """Parts and points do not run into each other."""
    one, other = ([Record(*parts) for parts in each] for each in (first, second))
    digests = [look({}, each, NONE).local for each in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_the_order_of_a_page_does_not_matter() -> None:
    assert look(keyed(C, A, B), [A, B, C], NONE) == look(keyed(A, B, C), [A, B, C], NONE)


X, Y = Digest(1, b"x"), Digest(1, b"y")
SIDES = (X, Y)


@pytest.mark.parametrize("remote", SIDES)
@pytest.mark.parametrize("local", SIDES)
@pytest.mark.parametrize("differing", [0, 1, 5])
def test_the_table_of_verdicts(remote: Digest, local: Digest, differing: int) -> None:
    now = Look(remote, local, differing)
    for before in [None, *(Look(r, lo, d) for r, lo, d in product(SIDES, SIDES, (0, 1)))]:
        held_still = before is not None and (before.remote, before.local) == (remote, local)
        expected = Verdict.EQUAL if not differing else Verdict.DRIFTED if held_still else Verdict.MOVING
        assert judge(before, now) is expected
