"""PURE. Random ids, vectors, payloads and filters as messages, from one chance."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models as m
from qdrant_client.conversions.conversion import RestToGrpc, json_to_value

from generated.qdrant import json_with_int_pb2 as json_pb
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from tests.replica import workload

from .shapes import Shape, Vector

NUMBERS = 36
UUIDS = tuple(f"00000000-0000-4000-8000-{number:012x}" for number in range(8))
FIELDS = (*workload.FIELDS, "n", "f", "k", "when", "t")
TEXTS = ("night sky", "Night", "sky", "ig", "red sea", "the sea", "über", "")
PATHS = ("a", "b", "o.x", "o", "l[0]", "l[].y", "l[1].x", "new", "new.deep.er", "tags[0]", "b.c[0].d", '"k"')


class Values:
    """Random values for a shape."""

    def __init__(self, shape: Shape, chance: random.Random) -> None:
        self.shape = shape
        self.chance = chance

    # --- ids ---

    def identity(self) -> int | str:
        """An id that a point may have."""
        return self.chance.choice(UUIDS) if self.chance.random() < 0.15 else self.chance.randrange(NUMBERS)

    def point_id(self) -> common.PointId:
        """An id, sometimes spelt in another way; seldom of no point."""
        if self.chance.random() < 0.02:
            return common.PointId(num=self.chance.choice((777, 2**63 + 5)))
        return spelt(self.identity())

    def ids(self, most: int) -> list[common.PointId]:
        """A few ids, sometimes one of them twice."""
        return [self.point_id() for _ in range(self.chance.randint(1, most))]

    # --- vectors ---

    def name(self) -> str:
        """The name of a vector."""
        return self.chance.choice(list(self.shape.vectors))

    def row(self, vector: Vector) -> list[float]:
        """The numbers of one dense vector."""
        if vector.is_exact and vector.is_bytes:
            return [float(self.chance.randint(0, 255)) for _ in range(vector.size)]
        if vector.is_exact:
            # Eleven bits each, as half a float holds, at different places: the sums of whole numbers would often tie.
            return [self.chance.randint(0, 2000) * 4.0**-place for place in range(vector.size)]
        if vector.is_bytes:
            # What is below 0 becomes 0, so with many such numbers points would tie.
            return [self.chance.uniform(-10, 270) for _ in range(vector.size)]
        while True:
            row = [self.chance.gauss(0, 1) for _ in range(vector.size)]
            if not (vector.is_normalised_to_halves and is_open_to_either_half(row)):
                return row

    def sparse(self) -> pb.SparseVector:
        """A sparse vector; indices in any order."""
        indices = self.chance.sample(range(12), self.chance.randint(1, 6))
        return pb.SparseVector(indices=indices, values=[self.chance.random() + 0.1 for _ in indices])

    def multi(self, vector: Vector) -> pb.MultiDenseVector:
        """A few rows."""
        rows = [pb.DenseVector(data=self.row(vector)) for _ in range(self.chance.randint(1, 3))]
        return pb.MultiDenseVector(vectors=rows)

    def vector(self, name: str) -> pb.Vector:
        """A vector to store, sometimes in the deprecated spelling."""
        vector = self.shape.vectors[name]
        is_old = self.chance.random() < 0.2
        if vector.is_sparse:
            sparse = self.sparse()
            if is_old:
                return pb.Vector(data=sparse.values, indices=pb.SparseIndices(data=sparse.indices))
            return pb.Vector(sparse=sparse)
        if vector.is_multi:
            multi = self.multi(vector)
            if is_old:
                data = [number for row in multi.vectors for number in row.data]
                return pb.Vector(data=data, vectors_count=len(multi.vectors))
            return pb.Vector(multi_dense=multi)
        row = self.row(vector)
        return pb.Vector(data=row) if is_old else pb.Vector(dense=pb.DenseVector(data=row))

    def vectors(self, *, least: int = 0) -> pb.Vectors:
        """The vectors of a point, some of them missing."""
        if self.shape.is_unnamed and self.chance.random() < 0.8:
            return pb.Vectors(vector=self.vector(""))
        names = [name for name in self.shape.vectors if self.chance.random() < 0.8]
        if len(names) < least:
            names = [self.name()]
        return pb.Vectors(vectors=pb.NamedVectors(vectors={name: self.vector(name) for name in names}))

    def input(self, name: str, *, by_id: float = 0.25) -> pb.VectorInput:
        """A vector to search with, or the id of a point whose vector is meant."""
        if self.chance.random() < by_id:
            return pb.VectorInput(id=self.point_id())
        vector = self.shape.vectors[name]
        if vector.is_sparse:
            return pb.VectorInput(sparse=self.sparse())
        if vector.is_multi:
            return pb.VectorInput(multi_dense=self.multi(vector))
        return pb.VectorInput(dense=pb.DenseVector(data=self.row(vector)))

    # --- payloads ---

    def payload(self) -> dict[str, Any]:
        """A payload with fields of every type."""
        chance = self.chance
        made = workload.payload(chance)
        made["n"] = chance.choice([chance.randint(-3, 6), [chance.randint(0, 3), chance.randint(0, 3)], None])
        if isinstance(made["n"], list) and made["n"][0] == made["n"][1]:
            # Two values that nothing comes between, for what is ordered by them.
            made["n"] = [50 + 10 * made["n"][0], 51 + 10 * made["n"][0]]
        made["f"] = round(chance.random() * 10, 2)
        made["k"] = chance.choice(["x", "y", "z", ["x", "z"]])
        made["when"] = f"2024-01-{chance.randint(1, 28):02d}T00:00:00Z"
        made["t"] = chance.choice((*TEXTS, ["red", "night sea"], 4, None))
        return {key: value for key, value in made.items() if chance.random() < 0.9}

    def point(self, identity: common.PointId | None = None) -> pb.PointStruct:
        """A whole point."""
        return pb.PointStruct(
            id=identity or spelt(self.identity()), vectors=self.vectors(), payload=as_payload(self.payload())
        )

    # --- filters ---

    def filter(self) -> common.Filter:
        """A filter of any conditions."""
        chance = self.chance
        if chance.random() < 0.03:
            return common.Filter()
        made = RestToGrpc.convert_filter(workload.filter_(chance))
        place = getattr(made, chance.choice(("must", "should", "must_not")))
        if chance.random() < 0.5:
            place.append(self.special())
        if chance.random() < 0.03:
            place.append(common.Condition())
        return made

    def special(self) -> common.Condition:
        """The conditions that `tests.replica.workload` leaves out."""
        chance = self.chance
        text = chance.choice(TEXTS)
        key = chance.choice(("t", "a", "o.x"))
        return chance.choice(
            (
                lambda: _matches(key, common.Match(text=text)),
                lambda: _matches(key, common.Match(text_any=text)),
                lambda: _matches(key, common.Match(phrase=text)),
                lambda: common.Condition(has_vector=common.HasVectorCondition(has_vector=self.name())),
                lambda: common.Condition(has_id=common.HasIdCondition(has_id=self.ids(6))),
                lambda: common.Condition(filter=self.filter()),
                lambda: common.Condition(field=common.FieldCondition(key="l[].x", is_empty=chance.random() < 0.5)),
                lambda: common.Condition(field=common.FieldCondition(key="l[].y", is_null=chance.random() < 0.5)),
                lambda: _matches("k", common.Match(keyword=chance.choice("xyz"))),
                lambda: _matches("n", common.Match(integer=chance.randint(-3, 6))),
                lambda: RestToGrpc.convert_condition(m.FieldCondition(key="f", range=m.Range(gte=2.5, lt=7.5))),
            )
        )()


def is_open_to_either_half(row: Sequence[float]) -> bool:
    """Whether a number of the normalised row lies so near the middle of two float16 that either is right.

    Its last bit as a float32 depends on the order in which a processor adds squares, and so decides which one is kept.
    """
    numbers = np.asarray(row, dtype=np.float32).astype(np.float64)
    numbers /= np.linalg.norm(numbers)
    kept = numbers.astype(np.float16)
    middles = [(kept.astype(np.float64) + np.nextafter(kept, end)) / 2 for end in np.float16([-np.inf, np.inf])]
    away = np.min(np.abs(middles - numbers), axis=0)
    return bool(np.any(away <= 2 * np.spacing(np.abs(numbers).astype(np.float32))))


def _matches(key: str, match: common.Match) -> common.Condition:
    return common.Condition(field=common.FieldCondition(key=key, match=match))


def spelt(identity: int | str) -> common.PointId:
    """An id as the wire carries it."""
    return common.PointId(num=identity) if isinstance(identity, int) else common.PointId(uuid=identity)


def as_payload(values: Mapping[str, Any]) -> dict[str, json_pb.Value]:
    """A payload as the wire carries it."""
    return {key: json_to_value(value) for key, value in values.items()}


def selector(ids: Iterable[common.PointId]) -> pb.PointsSelector:
    """Points by id."""
    return pb.PointsSelector(points=pb.PointsIdsList(ids=ids))
