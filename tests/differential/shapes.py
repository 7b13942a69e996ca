"""PURE. The collections that workloads run on: every vector kind, metric and datatype."""

from __future__ import annotations

from dataclasses import dataclass, field

from generated.qdrant import collections_pb2 as collections

COLLECTION = "c"
OTHER = "other"
"""A second collection of the same shape, to look vectors and payloads up in."""

_DISTANCES = {
    "cosine": collections.Cosine,
    "dot": collections.Dot,
    "euclid": collections.Euclid,
    "manhattan": collections.Manhattan,
}


@dataclass(frozen=True, slots=True)
class Vector:
    """One vector of a collection; size 0 = sparse."""

    size: int
    distance: str = "dot"
    is_multi: bool = False
    has_idf: bool = False
    datatype: int = collections.Default
    is_exact: bool = False
    """Values have few bits, so that the datatype holds them exactly."""

    @property
    def is_sparse(self) -> bool:
        """Whether it lists only what is not 0."""
        return self.size == 0

    @property
    def is_bytes(self) -> bool:
        """Whether it is kept as whole numbers from 0 to 255."""
        return self.datatype == collections.Uint8

    @property
    def is_normalised_to_halves(self) -> bool:
        """Whether its rows are kept as float16 after they were made one long."""
        return self.datatype == collections.Float16 and self.distance == "cosine"

    @property
    def has_large_scores(self) -> bool:
        """Whether its products and distances go into the thousands: squashed into 0 to 1, many are one float32."""
        return self.is_exact or (self.is_bytes and self.distance != "cosine")


@dataclass(frozen=True, slots=True)
class Shape:
    """The vectors of a collection by name. `is_unnamed`: the one vector was made without a map of names."""

    name: str
    vectors: dict[str, Vector]
    is_unnamed: bool = False
    by_columns: bool = False
    """Filters go by columns, as in larger collections."""
    not_for: dict[str, str] = field(default_factory=dict)
    """Oracles that cannot hold it, and why."""

    def create(self, name: str) -> collections.CreateCollection:
        """The request that makes the collection."""
        request = collections.CreateCollection(collection_name=name)
        for vector_name, vector in self.vectors.items():
            if vector.is_sparse:
                params = request.sparse_vectors_config.map[vector_name]
                params.SetInParent()
                if vector.has_idf:
                    params.modifier = collections.Idf
            elif self.is_unnamed:
                request.vectors_config.params.CopyFrom(params_of(vector))
            else:
                request.vectors_config.params_map.map[vector_name].CopyFrom(params_of(vector))
        return request


def params_of(vector: Vector) -> collections.VectorParams:
    """The parameters of a dense vector."""
    params = collections.VectorParams(size=vector.size, distance=_DISTANCES[vector.distance])  # type: ignore[arg-type]
    if vector.is_multi:
        params.multivector_config.comparator = collections.MaxSim
    if vector.datatype != collections.Default:
        params.datatype = vector.datatype  # type: ignore[assignment]
    return params


_ROUNDED = {"local mode": "keeps the numbers as they came, whatever the datatype"}

SHAPES = (
    Shape("unnamed", {"": Vector(6, "cosine")}, is_unnamed=True, by_columns=True),
    Shape("empty-name", {"": Vector(6, "euclid"), "man": Vector(4, "manhattan")}),
    Shape(
        "named",
        {
            "dot": Vector(6, "dot"),
            "cos": Vector(5, "cosine"),
            "plain": Vector(0),
            "idf": Vector(0, has_idf=True),
        },
        by_columns=True,
    ),
    Shape(
        "multi",
        {
            "late": Vector(3, "cosine", is_multi=True),
            "far": Vector(3, "euclid", is_multi=True),
            "one": Vector(3, "manhattan"),
            "inner": Vector(3, "dot", is_multi=True),
        },
    ),
    Shape(
        "datatypes",
        {
            "u8": Vector(6, "dot", datatype=collections.Uint8, is_exact=True),
            "u8far": Vector(6, "euclid", datatype=collections.Uint8, is_exact=True),
            "f16": Vector(6, "manhattan", datatype=collections.Float16, is_exact=True),
            "f32": Vector(6, "dot", datatype=collections.Float32),
        },
        by_columns=True,
    ),
    Shape(
        "rounded",
        {
            "u8": Vector(6, "dot", datatype=collections.Uint8),
            "u8cos": Vector(6, "cosine", datatype=collections.Uint8),
            "f16": Vector(6, "cosine", datatype=collections.Float16),
            "f16dot": Vector(6, "dot", datatype=collections.Float16),
            "late": Vector(3, "cosine", is_multi=True, datatype=collections.Float16),
            "late8": Vector(3, "cosine", is_multi=True, datatype=collections.Uint8),
            "far8": Vector(3, "euclid", is_multi=True, datatype=collections.Uint8),
        },
        not_for=_ROUNDED,
    ),
)
BY_NAME = {shape.name: shape for shape in SHAPES}
