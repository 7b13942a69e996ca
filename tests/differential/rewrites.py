"""Requests put in other words, so that local mode does with them what a server does.

Each changes a request in place and says whether it found something to change. A row of `differences` holds where the
oracle, asked in these words, says what we say.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import POINTS
from tests.upstream import legacy

from .answers import said
from .calls import Call, Gap, Oracle, Refused
from .comparison import parts_of
from .shapes import Shape

Rewrite: TypeAlias = Callable[["Words", Any], bool]
_LEGACY: dict[str, tuple[str, Callable[[Any], Message]]] = {
    "Search": ("Query", legacy.search),
    "Recommend": ("Query", legacy.recommend),
    "Discover": ("Query", legacy.discover),
    "SearchGroups": ("QueryGroups", legacy.search_groups),
    "RecommendGroups": ("QueryGroups", legacy.recommend_groups),
}


def modern(call: Call) -> Call:
    """A search of older clients as the query that a server makes of it."""
    single = call.name.removesuffix("Batch")
    if single in _LEGACY and single != call.name:
        queries = [_LEGACY[single][1](part.request) for part in parts_of(call)]
        name = call.request.collection_name
        return Call(POINTS + "QueryBatch", pb.QueryBatchPoints(collection_name=name, query_points=queries))
    if call.name not in _LEGACY:
        return Call(call.method, _copied(call.request))
    name, convert = _LEGACY[call.name]
    return Call(POINTS + name, convert(call.request))


def _copied(request: Any) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


class Words:
    """What a rewrite may look at: the collection's vectors, and the points in the oracle."""

    def __init__(self, oracle: Oracle, shape: Shape) -> None:
        self.oracle = oracle
        self.shape = shape

    def vector(self, node: Any, identity: common.PointId, collection: str) -> Any:
        """The vector that an id means in a query or prefetch; None for none."""
        name = node.using
        if node.HasField("lookup_from"):
            collection = node.lookup_from.collection_name
            name = node.lookup_from.vector_name if node.lookup_from.HasField("vector_name") else node.using
        request = pb.GetPoints(collection_name=collection, ids=[identity])
        request.with_vectors.enable = True
        found = self.oracle.answer(Call(POINTS + "Get", request))
        if isinstance(found, Refused | Gap):
            return None
        hits = said(POINTS + "Get", found).hits
        return hits[0].vectors.get(name) if hits else None


def levels(request: Any) -> Iterator[tuple[Any, Any]]:
    """Each query of a request with the outermost one that it belongs to: itself, prefetches, parts of a batch."""
    if isinstance(request, pb.QueryBatchPoints):
        for one in request.query_points:
            yield from levels(one)
        return
    if isinstance(request, pb.QueryPoints | pb.QueryPointGroups):
        stack = [request]
        while stack:
            node = stack.pop()
            yield node, request
            stack.extend(node.prefetch)


def inputs_of(query: pb.Query) -> list[pb.VectorInput]:
    """The vectors that a query gives."""
    match query.WhichOneof("variant"):
        case "nearest":
            return [query.nearest]
        case "nearest_with_mmr":
            return [query.nearest_with_mmr.nearest]
        case "recommend":
            return [*query.recommend.positive, *query.recommend.negative]
        case "discover":
            pairs = [one for pair in query.discover.context.pairs for one in (pair.positive, pair.negative)]
            return [query.discover.target, *pairs]
        case "context":
            return [one for pair in query.context.pairs for one in (pair.positive, pair.negative)]
        case "relevance_feedback":
            feedback = query.relevance_feedback
            return [feedback.target, *(item.example for item in feedback.feedback)]
        case _:
            return []


def one_row(words: Words, request: Any) -> bool:
    """A dense query of a vector with rows is one row."""
    is_changed = False
    for node, _ in levels(request):
        vector = words.shape.vectors.get(node.using)
        if vector is None or not vector.is_multi:
            continue
        for one in inputs_of(node.query):
            if one.WhichOneof("variant") == "dense":
                one.multi_dense.vectors.add(data=list(one.dense.data))
                is_changed = True
    return is_changed


def nearest_for_mmr(_: Words, request: Any) -> bool:
    """MMR in a prefetch over nothing: its candidates, of which it chooses none."""
    is_changed = False
    for node, root in list(levels(request)):
        if node is root or node.prefetch or not node.query.HasField("nearest_with_mmr"):
            continue
        mmr = node.query.nearest_with_mmr
        if mmr.mmr.HasField("candidates_limit"):
            node.limit = mmr.mmr.candidates_limit
        nearest = pb.VectorInput()
        nearest.CopyFrom(mmr.nearest)
        node.query.nearest.CopyFrom(nearest)
        is_changed = True
    return is_changed


def ids_of_prefetches(words: Words, request: Any) -> bool:
    """Points that any level refers to are left out of the whole result, not of that prefetch only."""
    is_changed = False
    for node, root in list(levels(request)):
        if node is root or node.HasField("lookup_from"):
            continue
        for one in inputs_of(node.query):
            if one.WhichOneof("variant") == "id":
                _exclude(root, one.id)
                is_changed = True
    return is_changed


def filters_of_candidates(words: Words, request: Any) -> bool:
    """Filters are merged into those of the innermost prefetches and are not asked again over what those found.

    That the points of the query itself are no results is a filter too: it makes room for others in the prefetches.
    """
    roots = {id(root): root for node, root in levels(request) if node is root and root.prefetch}
    before = request.SerializeToString()
    for root in roots.values():
        for one in inputs_of(root.query) if not root.HasField("lookup_from") else ():
            if one.WhichOneof("variant") == "id":
                _exclude(root, one.id)
        _push(root, common.Filter())
    return bool(request.SerializeToString() != before)


def _push(node: Any, outer: common.Filter) -> None:
    """Merge an outer filter list by list into that of the node, and on into its prefetches."""
    merged = common.Filter()
    merged.CopyFrom(outer)
    merged.MergeFrom(node.filter)
    if outer.HasField("min_should") and node.filter.HasField("min_should"):
        merged.min_should.min_count = max(outer.min_should.min_count, node.filter.min_should.min_count)
    node.ClearField("filter")
    for inner in node.prefetch:
        _push(inner, merged)
    if not node.prefetch and merged.ListFields():
        node.filter.CopyFrom(merged)


def _exclude(root: Any, identity: common.PointId) -> None:
    root.filter.must_not.add().has_id.has_id.add().CopyFrom(identity)


def vectors_for_ids(words: Words, request: Any) -> bool:
    """An id that another collection is asked for is the vector there, and no point of this one."""
    is_changed = False
    for node, root in levels(request):
        for one in inputs_of(node.query):
            if one.WhichOneof("variant") != "id":
                continue
            vector = words.vector(node, one.id, root.collection_name)
            if vector is None:
                continue
            if not node.HasField("lookup_from"):
                _exclude(root, one.id)
            one.CopyFrom(_input(vector))
            is_changed = True
        if node.HasField("lookup_from"):
            node.ClearField("lookup_from")
            is_changed = True
    return is_changed


def _input(vector: Any) -> pb.VectorInput:
    if isinstance(vector, dict):
        return pb.VectorInput(sparse=pb.SparseVector(indices=list(vector), values=list(vector.values())))
    if vector and isinstance(vector[0], list):
        return pb.VectorInput(multi_dense=pb.MultiDenseVector(vectors=[pb.DenseVector(data=row) for row in vector]))
    return pb.VectorInput(dense=pb.DenseVector(data=vector))


def examples_without_vector(words: Words, request: Any) -> bool:
    """Examples of a recommendation that lack the vector are left out."""
    is_changed = False
    for node, root in levels(request):
        if not node.query.HasField("recommend"):
            continue
        for listed in (node.query.recommend.positive, node.query.recommend.negative):
            for at in reversed(range(len(listed))):
                if listed[at].WhichOneof("variant") != "id":
                    continue
                if words.vector(node, listed[at].id, root.collection_name) is None:
                    if not node.HasField("lookup_from"):
                        _exclude(root, listed[at].id)
                    del listed[at]
                    is_changed = True
    return is_changed


def whole_averages(words: Words, request: Any) -> bool:
    """The average of examples, rounded to the datatype: bytes have no fraction and no sign."""
    is_changed = False
    for node, root in levels(request):
        vector = words.shape.vectors.get(node.using)
        recommend = node.query.recommend
        if vector is None or vector.datatype == 0 or not node.query.HasField("recommend"):
            continue
        if recommend.strategy != pb.AverageVector:
            continue
        rows = [
            [
                list(one.dense.data) if one.HasField("dense") else words.vector(node, one.id, root.collection_name)
                for one in listed
            ]
            for listed in (recommend.positive, recommend.negative)
        ]
        if not rows[0] or any(row is None for listed in rows for row in listed):
            continue
        for one in inputs_of(node.query):
            if one.WhichOneof("variant") == "id" and not node.HasField("lookup_from"):
                _exclude(root, one.id)
        mean = np.mean(np.array(rows[0], dtype=np.float32), axis=0)
        if rows[1]:
            mean = mean + mean - np.mean(np.array(rows[1], dtype=np.float32), axis=0)
        if vector.is_bytes:
            mean = np.trunc(np.clip(mean, 0, 255))
        elif vector.datatype == collections.Float16:
            mean = mean.astype(np.float16)
        node.query.nearest.dense.data.extend(mean.tolist())
        is_changed = True
    return is_changed


def lists_for_uuids(message: Message) -> bool:
    """A match of one text that reads as a UUID becomes a match of any of a list with that one text.

    Both mean the same. Only of the first an index of numbers believes that it can answer it: it makes a number of the
    UUID and finds what has that number.
    """
    is_changed = False
    for descriptor, value in message.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE or descriptor.message_type.GetOptions().map_entry:
            continue
        for part in value if descriptor.is_repeated else (value,):
            if isinstance(part, common.FieldCondition):
                if _is_uuid(part.match.keyword):
                    part.match.keywords.strings.append(part.match.keyword)
                    is_changed = True
            elif lists_for_uuids(part):
                is_changed = True
    return is_changed


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
