"""PURE. The search calls of older clients (Search, Recommend, Discover) as the Query that a server makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common


def search(given: points.SearchPoints) -> points.QueryPoints:
    """A search."""
    query = _query(given)
    if given.HasField("vector_name"):
        query.using = given.vector_name
    query.query.nearest.CopyFrom(_nearest(given))
    query.limit = given.limit
    return query


def recommend(given: points.RecommendPoints) -> points.QueryPoints:
    """A recommendation."""
    query = _query(given)
    _recommendation(given, query)
    query.limit = given.limit
    return query


def discover(given: points.DiscoverPoints) -> points.QueryPoints:
    """A discovery, or a context search when there is no target."""
    query = _query(given)
    if given.HasField("using"):
        query.using = given.using
    if given.HasField("lookup_from"):
        query.lookup_from.CopyFrom(given.lookup_from)
    pairs = points.ContextInput(
        pairs=[
            points.ContextInputPair(positive=_example(p.positive), negative=_example(p.negative)) for p in given.context
        ]
    )
    if given.HasField("target"):
        query.query.discover.target.CopyFrom(_example(given.target.single))
        query.query.discover.context.CopyFrom(pairs)
    else:
        query.query.context.CopyFrom(pairs)
    query.limit = given.limit
    return query


def search_groups(given: points.SearchPointGroups) -> points.QueryPointGroups:
    """A grouped search."""
    query = points.QueryPointGroups()
    _fill(given, query)
    if given.HasField("vector_name"):
        query.using = given.vector_name
    query.query.nearest.CopyFrom(_nearest(given))
    return _grouped(given, query)


def recommend_groups(given: points.RecommendPointGroups) -> points.QueryPointGroups:
    """A grouped recommendation."""
    query = points.QueryPointGroups()
    _fill(given, query)
    _recommendation(given, query)
    return _grouped(given, query)


def _grouped(given: Any, query: points.QueryPointGroups) -> points.QueryPointGroups:
    query.group_by = given.group_by
    query.group_size = given.group_size
    query.limit = given.limit
    if given.HasField("with_lookup"):
        query.with_lookup.CopyFrom(given.with_lookup)
    return query


def _query(given: Any) -> points.QueryPoints:
    query = points.QueryPoints()
    _fill(given, query)
    if given.HasField("offset"):
        query.offset = given.offset
    return query


def _fill(given: Any, query: Any) -> None:
    query.collection_name = given.collection_name
    for name in ("filter", "with_payload", "params", "with_vectors"):
        if given.HasField(name):
            getattr(query, name).CopyFrom(getattr(given, name))
    if "score_threshold" in given.DESCRIPTOR.fields_by_name and given.HasField("score_threshold"):
        query.score_threshold = given.score_threshold


def _nearest(given: Any) -> points.VectorInput:
    if given.HasField("sparse_indices"):
        sparse = points.SparseVector(values=given.vector, indices=given.sparse_indices.data)
        return points.VectorInput(sparse=sparse)
    return points.VectorInput(dense=points.DenseVector(data=given.vector))


def _recommendation(given: Any, query: Any) -> None:
    if given.HasField("using"):
        query.using = given.using
    if given.HasField("lookup_from"):
        query.lookup_from.CopyFrom(given.lookup_from)
    recommendation = query.query.recommend
    recommendation.positive.extend(_examples(given.positive, given.positive_vectors))
    recommendation.negative.extend(_examples(given.negative, given.negative_vectors))
    if given.HasField("strategy"):
        recommendation.strategy = given.strategy


def _examples(ids: Iterable[common.PointId], vectors: Iterable[points.Vector]) -> list[points.VectorInput]:
    return [points.VectorInput(id=point_id) for point_id in ids] + [_vector(vector) for vector in vectors]


def _example(given: points.VectorExample) -> points.VectorInput:
    if given.WhichOneof("example") == "id":
        return points.VectorInput(id=given.id)
    return _vector(given.vector)


def _vector(given: points.Vector) -> points.VectorInput:
    kind = given.WhichOneof("vector")
    if kind is not None:
        return points.VectorInput(**{kind: getattr(given, kind)})
    if given.HasField("indices"):
        return points.VectorInput(sparse=points.SparseVector(values=given.data, indices=given.indices.data))
    if given.vectors_count > 1:
        width = len(given.data) // given.vectors_count
        rows = [
            points.DenseVector(data=given.data[start : start + width])
            for start in range(0, len(given.data), width or 1)
        ]
        return points.VectorInput(multi_dense=points.MultiDenseVector(vectors=rows))
    return points.VectorInput(dense=points.DenseVector(data=given.data))
