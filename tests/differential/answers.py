"""PURE. What an answer says, whatever way it is spelt: responses as plain values that can be compared.

Promises: ids, scores, payloads, vectors by name, order values and statuses are kept exactly; the time a call took, the
numbers of operations and versions, and counts that only a server has (segments) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.message import Message
from qdrant_client.conversions.conversion import grpc_to_payload

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import collections_service_pb2, points_service_pb2
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import COLLECTIONS, POINTS

Id: TypeAlias = "int | str"
Vector: TypeAlias = Any
"""A list of numbers, a list of such lists, or a dict of the values of a sparse vector by index."""


@dataclass(slots=True)
class Hit:
    """One point of an answer. Parts that were not asked for are empty."""

    id: Id
    score: float | None = None
    payload: Any = None
    vectors: Mapping[str, Vector] | None = None
    order: int | float | None = None


@dataclass(slots=True)
class Page:
    """Points in their order; `following`: the first id of the next page."""

    hits: list[Hit]
    following: Id | None = None


@dataclass(slots=True)
class Group:
    """Points that share a value."""

    value: Any
    hits: list[Hit]
    lookup: Hit | None = None


def _responses() -> dict[str, type[Message]]:
    found = {}
    for file, prefix in ((points_service_pb2, POINTS), (collections_service_pb2, COLLECTIONS)):
        service = file.DESCRIPTOR.services_by_name[prefix.strip("/").split(".")[-1]]
        for method in service.methods:
            found[prefix + method.name] = method.output_type._concrete_class
    return found


ANSWERS = _responses()
"""The response message of each method."""


def id_of(given: common.PointId) -> Id:
    """A number or the text of a UUID."""
    return given.num if given.WhichOneof("point_id_options") == "num" else given.uuid


def id_order(identity: Id) -> tuple[bool, Id]:
    """The key of Qdrant's order of ids: numbers first, then UUIDs by their bytes."""
    return isinstance(identity, str), identity


def vectors_of(given: pb.VectorsOutput) -> dict[str, Vector]:
    """Vectors by name."""
    match given.WhichOneof("vectors_options"):
        case "vector":
            return {"": vector_of(given.vector)}
        case "vectors":
            return {name: vector_of(one) for name, one in given.vectors.vectors.items()}
        case _:
            return {}


def vector_of(given: pb.VectorOutput) -> Vector:
    """One vector, in the new spelling or in the deprecated one."""
    match given.WhichOneof("vector"):
        case "dense":
            return list(given.dense.data)
        case "sparse":
            return dict(zip(given.sparse.indices, given.sparse.values, strict=True))
        case "multi_dense":
            return [list(row.data) for row in given.multi_dense.vectors]
        case _:
            pass
    if given.HasField("indices"):
        return dict(zip(given.indices.data, given.data, strict=True))
    if given.HasField("vectors_count"):
        width = len(given.data) // given.vectors_count
        return [list(given.data[start : start + width]) for start in range(0, len(given.data), width)]
    return list(given.data)


def _order(given: Any) -> int | float | None:
    return (
        getattr(given.order_value, given.order_value.WhichOneof("variant")) if given.HasField("order_value") else None
    )


def hit_of(given: pb.ScoredPoint | pb.RetrievedPoint) -> Hit:
    """One point."""
    return Hit(
        id_of(given.id),
        given.score if isinstance(given, pb.ScoredPoint) else None,
        grpc_to_payload(given.payload),
        vectors_of(given.vectors),
        _order(given),
    )


def _hits(response: Any) -> Page:
    return Page([hit_of(one) for one in response.result])


def _pages(response: Any) -> list[Page]:
    return [_hits(one) for one in response.result]


def _scroll(response: pb.ScrollResponse) -> Page:
    following = id_of(response.next_page_offset) if response.HasField("next_page_offset") else None
    return Page([hit_of(one) for one in response.result], following)


def _groups(response: Any) -> list[Group]:
    return [
        Group(
            getattr(group.id, group.id.WhichOneof("kind")),
            [hit_of(one) for one in group.hits],
            hit_of(group.lookup) if group.HasField("lookup") else None,
        )
        for group in response.result.groups
    ]


def _facets(response: pb.FacetResponse) -> list[tuple[Any, int]]:
    return [(getattr(hit.value, hit.value.WhichOneof("variant")), hit.count) for hit in response.hits]


@dataclass(slots=True)
class Pairs:
    """Pairs of points that are near to each other, with their scores."""

    scores: dict[tuple[Id, Id], float]
    ids: frozenset[Id] | None = None
    """The points that were sampled, where the answer says it."""


def _pairs(response: pb.SearchMatrixPairsResponse) -> Pairs:
    return Pairs({(id_of(pair.a), id_of(pair.b)): pair.score for pair in response.result.pairs})


def _offsets(response: pb.SearchMatrixOffsetsResponse) -> Pairs:
    result = response.result
    ids = [id_of(one) for one in result.ids]
    offsets = zip(result.offsets_row, result.offsets_col, result.scores, strict=True)
    return Pairs({(ids[row], ids[col]): score for row, col, score in offsets}, frozenset(ids))


def _status(response: pb.PointsOperationResponse) -> str:
    return pb.UpdateStatus.Name(response.result.status)


def _statuses(response: pb.UpdateBatchResponse) -> list[str]:
    return [pb.UpdateStatus.Name(one.status) for one in response.result]


def _info(response: collections.GetCollectionInfoResponse) -> dict[str, Any]:
    """What clients look at: how many points, which vectors, which indexes."""
    info = response.result
    config = info.config.params.vectors_config
    dense = {"": config.params} if config.WhichOneof("config") == "params" else config.params_map.map
    return {
        "points": info.points_count,
        "dense": {
            name: (one.size, one.distance, one.HasField("multivector_config"), one.datatype)
            for name, one in dense.items()
        },
        "sparse": {name: one.modifier for name, one in info.config.params.sparse_vectors_config.map.items()},
        "indexes": {field: schema.data_type for field, schema in info.payload_schema.items()},
    }


def _aliases(response: collections.ListAliasesResponse) -> list[tuple[str, str]]:
    return sorted((one.alias_name, one.collection_name) for one in response.aliases)


_READERS: dict[str, Callable[[Any], Any]] = {
    "Query": _hits,
    "Search": _hits,
    "Recommend": _hits,
    "Discover": _hits,
    "Get": _hits,
    "QueryBatch": _pages,
    "SearchBatch": _pages,
    "RecommendBatch": _pages,
    "DiscoverBatch": _pages,
    "QueryGroups": _groups,
    "SearchGroups": _groups,
    "RecommendGroups": _groups,
    "Scroll": _scroll,
    "Count": lambda response: response.result.count,
    "Facet": _facets,
    "SearchMatrixPairs": _pairs,
    "SearchMatrixOffsets": _offsets,
    "UpdateBatch": _statuses,
    "Collections/Get": _info,
    "Collections/List": lambda response: sorted(one.name for one in response.collections),
    "Collections/CollectionExists": lambda response: response.result.exists,
    "Collections/ListAliases": _aliases,
    "Collections/ListCollectionAliases": _aliases,
}


def said(method: str, response: Any) -> Any:
    """What a response says."""
    name = method.rsplit("/", 1)[-1]
    if not method.startswith(COLLECTIONS):
        return _READERS.get(name, _status)(response)
    reader = _READERS.get(f"Collections/{name}")
    return reader(response) if reader else response.result
