"""PURE. The older search calls as universal queries.

Promises: Search, Recommend and Discover become the query that Qdrant makes of them, with their own defaults and checks.
"""

from __future__ import annotations

from typing import TypeAlias

from generated.qdrant import points_pb2 as points
from server.replica.refusal import NotServed, bad_body, invalid
from server.replica.vector_forms import with_oneof

_SHARED = ("filter", "params", "score_threshold", "offset", "with_payload", "with_vectors", "lookup_from", "limit")

Searched: TypeAlias = "points.SearchPoints | points.SearchPointGroups"
Recommended: TypeAlias = "points.RecommendPoints | points.RecommendPointGroups"


def _carry(source: object, target: points.QueryPoints) -> None:
    """Copy the fields that both requests have under one name."""
    descriptor = source.DESCRIPTOR  # type: ignore[attr-defined]
    for name in _SHARED:
        field = descriptor.fields_by_name.get(name)
        if field is None or (field.has_presence and not source.HasField(name)):  # type: ignore[attr-defined]
            continue
        value = getattr(source, name)
        if field.message_type is not None:
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)


def search(request: Searched) -> points.QueryPoints:
    """Search by a dense vector, or by a sparse one when `sparse_indices` is set."""
    if request.limit == 0:
        raise bad_body("limit", "value 0 invalid, must be 1 or larger")
    query = points.QueryPoints(collection_name=request.collection_name, using=request.vector_name)
    _carry(request, query)
    nearest = query.query.nearest
    if request.HasField("sparse_indices"):
        nearest.sparse.indices.extend(request.sparse_indices.data)
        nearest.sparse.values.extend(request.vector)
    else:
        nearest.dense.data.extend(request.vector)
    return query


def recommend(request: Recommended) -> points.QueryPoints:
    """Recommend by ids and vectors."""
    query = points.QueryPoints(collection_name=request.collection_name, using=request.using)
    _carry(request, query)
    target = query.query.recommend
    target.strategy = request.strategy
    for examples, ids, vectors in (
        (target.positive, request.positive, request.positive_vectors),
        (target.negative, request.negative, request.negative_vectors),
    ):
        examples.extend(points.VectorInput(id=one) for one in ids)
        examples.extend(_input(one) for one in vectors)
    return query


def discover(request: points.DiscoverPoints) -> points.QueryPoints:
    """Discover with a target, or by context alone."""
    if request.limit == 0:
        raise bad_body("limit", "value 0 invalid, must be 1 or larger")
    query = points.QueryPoints(collection_name=request.collection_name, using=request.using)
    _carry(request, query)
    pairs = [
        points.ContextInputPair(positive=_example(pair.positive), negative=_example(pair.negative))
        for pair in request.context
    ]
    if request.HasField("target"):
        query.query.discover.target.CopyFrom(_example(request.target.single))
        query.query.discover.context.pairs.extend(pairs)
    else:
        query.query.context.pairs.extend(pairs)
    return query


def _example(example: points.VectorExample) -> points.VectorInput:
    match example.WhichOneof("example"):
        case "id":
            return points.VectorInput(id=example.id)
        case "vector":
            return _input(example.vector)
        case _:
            raise invalid("VectorExample is malformed")


def _input(vector: points.Vector) -> points.VectorInput:
    vector = with_oneof(vector)
    match vector.WhichOneof("vector"):
        case "dense":
            return points.VectorInput(dense=vector.dense)
        case "sparse":
            return points.VectorInput(sparse=vector.sparse)
        case "multi_dense":
            return points.VectorInput(multi_dense=vector.multi_dense)
        case _:
            raise NotServed(
                "a query made by Qdrant's own inference (Document, Image, InferenceObject) needs the server"
            )
