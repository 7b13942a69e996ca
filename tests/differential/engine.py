"""The real Qdrant engine of `qdrant-edge-py` as an oracle: shards in a directory behind requests of the wire.

The engine is what lies below a server's collections, so calls that only those answer are gaps (`GAPS` says which).
What it raises is given the status that a server gives it (FACTS 3 and 3.1).
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.rpc import COLLECTIONS, POINTS
from tests.replica.edge_engine import Inexpressible
from tests.upstream import legacy

from .answers import Id, id_of, id_order
from .calls import Call, Gap, Outcome, Refused
from .engine_queries import (
    DEFAULT_LIMIT,
    Refusal,
    Translator,
    checked_above,
    filter_from,
    order_of,
    referenced,
    without,
)
from .engine_writes import DISTANCES, METHODS_OF_SHARDS, operation_of, parts_of
from .searches import EVERYTHING
from .values import as_payload, spelt

# What a server answers with where the engine only has a text.
_STATUSES = (
    (re.compile(r"No point with id|Vector with name"), "NOT_FOUND"),
    (re.compile(r""), "INVALID_ARGUMENT"),
)
_DATATYPES = {
    collections.Uint8: edge.VectorStorageDatatype.Uint8,
    collections.Float16: edge.VectorStorageDatatype.Float16,
    collections.Float32: edge.VectorStorageDatatype.Float32,
}


NULLS_KEPT = "nulls set on no payload"
_SHAPING = (
    pb.CreateFieldIndexCollection,
    pb.DeleteFieldIndexCollection,
    pb.CreateVectorNameRequest,
    pb.DeleteVectorNameRequest,
)


class Shard:
    """One collection."""

    def __init__(self, directory: Path, request: collections.CreateCollection) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        config = request.vectors_config
        self.is_unnamed = config.WhichOneof("config") == "params"
        self.dense = {"": config.params} if self.is_unnamed else dict(config.params_map.map)
        sparse = request.sparse_vectors_config.map
        self.names = {*self.dense, *sparse}
        self._request = request
        self._shaping: list[Any] = []
        self.shard = edge.EdgeShard.create(
            str(directory),
            edge.EdgeConfig(
                vectors={name: _dense(params) for name, params in self.dense.items()},
                sparse_vectors={name: _sparse(params) for name, params in sparse.items()},
                wal_enabled=False,
            ),
        )

    def close(self) -> None:
        """Release the shard and its directory."""
        self.shard.close()
        shutil.rmtree(self.directory)

    def update(self, operation: Any, *, is_shaping: bool = False) -> None:
        """Apply one operation. `is_shaping`: it changes indexes or vectors, not points."""
        self.shard.update(operation)
        if is_shaping:
            self._shaping.append(operation)

    def keep_payloads(self) -> None:
        """Give every point without a payload an empty one, which is the same to everybody who asks."""
        records, _ = self.shard.scroll(edge.ScrollRequest(limit=100_000, with_payload=True))
        bare = [record.id for record in records if not record.payload]
        if bare:
            self.shard.update(edge.UpdateOperation.set_payload(bare, {}))

    def copied(self, directory: Path) -> Shard:
        """A shard with the same points that never held others."""
        made = Shard(directory, self._request)
        for operation in self._shaping:
            made.update(operation, is_shaping=True)
        records, _ = self.shard.scroll(edge.ScrollRequest(limit=100_000, with_payload=True, with_vector=True))
        points = [edge.Point(record.id, record.vector or {}, record.payload or {}) for record in records]
        made.update(edge.UpdateOperation.upsert_points(points))
        made.names = set(self.names)
        return made

    def vector(self, identity: Id, using: str) -> Any:
        """The stored vector of a point. Raises Refusal."""
        found = self.shard.retrieve([identity], False, True)
        if not found:
            raise Refusal("NOT_FOUND", f"Not found: No point with id {identity} found")
        vectors = found[0].vector
        named = vectors if isinstance(vectors, dict) else {"": vectors}
        if named.get(using) is None:
            raise Refusal("NOT_FOUND", f'Not found: Vector with name "{using}" for point not found')
        return named[using]

    def demand(self, ids: list[Id]) -> None:
        """Raise Refusal for the first point that does not exist: a server looks before it does anything else."""
        found = {_plain(record.id) for record in self.shard.retrieve(list(dict.fromkeys(ids)), False, False)}
        for one in ids:
            if one not in found:
                raise Refusal("NOT_FOUND", f"Not found: No point with id {one} found")

    def is_plain(self, name: str) -> bool:
        """Whether a vector is dense and of one row."""
        return name in self.dense and not self.dense[name].HasField("multivector_config")


def _dense(params: collections.VectorParams) -> Any:
    multi = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim) if params.HasField("multivector_config") else None
    return edge.EdgeVectorParams(
        params.size, DISTANCES[params.distance], multivector_config=multi, datatype=_DATATYPES.get(params.datatype)
    )


def _sparse(params: collections.SparseVectorParams) -> Any:
    return edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if params.modifier == collections.Idf else None)


class Engine:
    """Collections by name; no aliases."""

    name = "engine"
    version = "1.20.0"

    def __init__(self, directory: Path, mended: Collection[str] = ()) -> None:
        self._directory = directory
        self._mended = mended
        self.mends = Counter[str]()
        self._made = 0
        self._shards: dict[str, Shard] = {}
        self._answers: Mapping[str, Callable[[Any], Message]] = {
            COLLECTIONS + "Create": self._create,
            **{
                POINTS + name: answer
                for name, answer in {
                    "UpdateBatch": self._batch,
                    "Query": lambda r: pb.QueryResponse(result=self._query(r)),
                    "Search": lambda r: pb.SearchResponse(result=self._query(legacy.search(r))),
                    "Recommend": lambda r: pb.RecommendResponse(result=self._query(legacy.recommend(r))),
                    "Discover": lambda r: pb.DiscoverResponse(result=self._query(legacy.discover(r))),
                    "QueryBatch": self._query_batch,
                    "SearchBatch": self._search_batch,
                    "RecommendBatch": self._recommend_batch,
                    "DiscoverBatch": self._discover_batch,
                    "Get": self._get,
                    "Scroll": self._scroll,
                    "Count": self._count,
                    "Facet": self._facet,
                }.items()
            },
        }

    def answer(self, call: Call) -> Outcome:
        """Answer one call, refuse it, or say that only a server can."""
        answer = self._answers.get(call.method)
        if answer is None and call.method in METHODS_OF_SHARDS:
            answer = partial(self._write, call.method)
        if answer is None:
            return Gap(f"{call.name} is answered above the shard")
        try:
            return answer(call.request)
        except Inexpressible as error:
            return Gap(str(error))
        except Refusal as refusal:
            return refusal.refused
        except Exception as error:
            if type(error) is not Exception and not isinstance(error, ValueError):
                raise
            text = str(error)
            return Refused(next(status for pattern, status in _STATUSES if pattern.search(text)), text)

    def close(self) -> None:
        """Release all shards."""
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()

    def settled(self) -> Engine:
        """The same collections, made anew: nothing is left in them of points that were deleted."""
        made = Engine(self._directory / f"settled-{self._made}")
        self._made += 1
        for name, shard in self._shards.items():
            made._shards[name] = shard.copied(made._directory / name)
        return made

    def _shard(self, name: str) -> Shard:
        if name not in self._shards:
            raise Refusal("NOT_FOUND", f"Not found: Collection `{name}` doesn't exist!")
        return self._shards[name]

    # --- writes ---

    def _create(self, request: collections.CreateCollection) -> Message:
        name = request.collection_name
        if name in self._shards:
            raise Refusal("ALREADY_EXISTS", f"Wrong input: Collection `{name}` already exists!")
        if "/" in name:
            raise Inexpressible("names of collections are checked above the shard")
        self._made += 1
        self._shards[name] = Shard(self._directory / str(self._made), request)
        return collections.CollectionOperationResponse(result=True)

    def _write(self, method: str, request: Any) -> Message:
        operation = operation_of(method, request)
        if isinstance(request, pb.DeletePointVectors):
            shard = self._shard(request.collection_name)
            for name in request.vectors.names:
                if name not in shard.names:
                    # A server looks at the names before it looks for the points.
                    raise Refusal("INVALID_ARGUMENT", f"Wrong input: Not existing vector name error: {name}")
        if not isinstance(request, pb.CreateVectorNameRequest | pb.DeleteVectorNameRequest):
            return self._done(request, operation)
        shard = self._shard(request.collection_name)
        if isinstance(request, pb.DeleteVectorNameRequest):
            shard.names.discard(request.vector_name)
        elif request.vector_name in shard.names:
            raise Inexpressible("whether a vector name is free is checked above the shard")
        else:
            shard.names.add(request.vector_name)
        return self._done(request, operation)

    def _done(self, request: Any, operation: Any) -> pb.PointsOperationResponse:
        shard = self._shard(request.collection_name)
        try:
            shard.update(operation, is_shaping=isinstance(request, _SHAPING))
        except Exception as error:
            # Without wait a server has acknowledged before it finds that a point is missing.
            if request.wait or "No point with id" not in str(error):
                raise
        finally:
            # Also when one point is missing: the others are changed all the same.
            if isinstance(request, pb.ClearPayloadPoints) and NULLS_KEPT in self._mended:
                self.mends[NULLS_KEPT] += 1
                shard.keep_payloads()
        status = pb.Completed if request.wait else pb.Acknowledged
        return pb.PointsOperationResponse(result=pb.UpdateResult(status=status))

    def _batch(self, request: pb.UpdateBatchPoints) -> Message:
        # All of it is translated before any of it is done, so that a gap changes nothing.
        parts = [(part, operation_of(method, part)) for method, part in parts_of(request)]
        return pb.UpdateBatchResponse(result=[self._done(part, operation).result for part, operation in parts])

    # --- reads ---

    def _query(self, request: pb.QueryPoints) -> list[pb.ScoredPoint]:
        shard = self._shard(request.collection_name)
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        if limit == 0:
            raise Inexpressible("limits are checked above the shard")
        checked_above(request)
        ids = self._demanded(request, shard)
        query_filter = without(request.filter, ids)
        translator = Translator(partial(self._lookup, shard), shard.is_plain)
        hits = shard.shard.query(
            edge.QueryRequest(
                EVERYTHING if request.query.HasField("order_by") else limit + request.offset,
                query=translator.query(request, limit),
                prefetches=[translator.prefetch(one) for one in request.prefetch],
                filter=filter_from(query_filter) if query_filter.ListFields() else None,
                score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
                with_payload=_payload(request, default=False),
                with_vector=_with_vectors(request),
            )
        )
        scored = [_point(hit, pb.ScoredPoint(score=hit.score)) for hit in hits]
        if request.query.HasField("order_by"):
            # Merging the shards' answers, a server drops a point that stands there twice running. Which of two points
            # with one value comes first is nobody's promise; here it is the id that says so.
            scored.sort(key=_rank, reverse=request.query.order_by.direction == pb.Desc)
            scored = scored[: limit + request.offset]
            scored = [next(same) for _, same in groupby(scored, key=lambda point: id_of(point.id))]
        return scored[request.offset :]

    def _lookup(self, shard: Shard, node: Any, identity: Id) -> Any:
        """The vector that an id in a query or prefetch means."""
        if not node.HasField("lookup_from"):
            return shard.vector(identity, node.using)
        place = node.lookup_from
        name = place.vector_name if place.HasField("vector_name") else node.using
        return self._shard(place.collection_name).vector(identity, name)

    def _demanded(self, node: Any, shard: Shard) -> list[Id]:
        """The collection's own points that a query and its prefetches refer to. Raises Refusal when one is missing."""
        ids = referenced(node.query)
        found: list[Id] = []
        if node.HasField("lookup_from"):
            self._shard(node.lookup_from.collection_name).demand(ids)
        else:
            shard.demand(ids)
            found.extend(ids)
        for inner in node.prefetch:
            found.extend(self._demanded(inner, shard))
        return found

    def _query_batch(self, request: pb.QueryBatchPoints) -> Message:
        results = [self._query(one) for one in request.query_points]
        return pb.QueryBatchResponse(result=[pb.BatchResult(result=result) for result in results])

    def _search_batch(self, request: pb.SearchBatchPoints) -> Message:
        results = [self._query(legacy.search(one)) for one in request.search_points]
        return pb.SearchBatchResponse(result=[pb.BatchResult(result=result) for result in results])

    def _recommend_batch(self, request: pb.RecommendBatchPoints) -> Message:
        results = [self._query(legacy.recommend(one)) for one in request.recommend_points]
        return pb.RecommendBatchResponse(result=[pb.BatchResult(result=result) for result in results])

    def _discover_batch(self, request: pb.DiscoverBatchPoints) -> Message:
        results = [self._query(legacy.discover(one)) for one in request.discover_points]
        return pb.DiscoverBatchResponse(result=[pb.BatchResult(result=result) for result in results])

    def _get(self, request: pb.GetPoints) -> Message:
        shard = self._shard(request.collection_name)
        ids = list(dict.fromkeys(id_of(one) for one in request.ids))
        records = shard.shard.retrieve(ids, _payload(request, default=False), _with_vectors(request))
        return pb.GetResponse(result=[_point(record, pb.RetrievedPoint()) for record in records])

    def _scroll(self, request: pb.ScrollPoints) -> Message:
        shard = self._shard(request.collection_name)
        if request.HasField("limit") and request.limit == 0:
            raise Inexpressible("limits are checked above the shard")
        checked_above(request)
        records, following = shard.shard.scroll(
            edge.ScrollRequest(
                offset=id_of(request.offset) if request.HasField("offset") else None,
                limit=request.limit if request.HasField("limit") else DEFAULT_LIMIT,
                filter=_filter(request),
                with_payload=_payload(request, default=True),
                with_vector=_with_vectors(request),
                order_by=order_of(request.order_by) if request.HasField("order_by") else None,
            )
        )
        response = pb.ScrollResponse(result=[_point(record, pb.RetrievedPoint()) for record in records])
        if following is not None:
            response.next_page_offset.CopyFrom(spelt(_plain(following)))
        return response

    def _count(self, request: pb.CountPoints) -> Message:
        shard = self._shard(request.collection_name)
        count = shard.shard.count(edge.CountRequest(exact=True, filter=_filter(request)))
        return pb.CountResponse(result=pb.CountResult(count=count))

    def _facet(self, request: pb.FacetCounts) -> Message:
        shard = self._shard(request.collection_name)
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        found = shard.shard.facet(edge.FacetRequest(request.key, limit=limit, exact=True, filter=_filter(request)))
        response = pb.FacetResponse()
        for hit in found.hits:
            one = response.hits.add(count=hit.count)
            if isinstance(hit.value, bool):
                one.value.bool_value = hit.value
            elif isinstance(hit.value, int):
                one.value.integer_value = hit.value
            else:
                one.value.string_value = str(hit.value)
        return response


def _filter(request: Any) -> Any:
    return filter_from(request.filter) if request.HasField("filter") else None


def _payload(request: Any, *, default: bool) -> Any:
    given = request.with_payload
    match given.WhichOneof("selector_options") if request.HasField("with_payload") else None:
        case "enable":
            return given.enable
        case "include":
            return edge.PayloadSelector.Include(list(given.include.fields))
        case "exclude":
            return edge.PayloadSelector.Exclude(list(given.exclude.fields))
        case _:
            return default


def _with_vectors(request: Any) -> Any:
    given = request.with_vectors
    match given.WhichOneof("selector_options") if request.HasField("with_vectors") else None:
        case "enable":
            return given.enable
        case "include":
            return list(given.include.names)
        case _:
            return False


def _rank(point: pb.ScoredPoint) -> tuple[float, tuple[bool, Id]]:
    return float(getattr(point.order_value, point.order_value.WhichOneof("variant") or "")), id_order(id_of(point.id))


def _plain(identity: Any) -> Id:
    return identity if isinstance(identity, int) else str(identity)


def _point(found: Any, target: Any) -> Any:
    """A point of the engine as a message."""
    target.id.CopyFrom(spelt(_plain(found.id)))
    for key, value in as_payload(found.payload or {}).items():
        target.payload[key].CopyFrom(value)
    vectors = found.vector
    if vectors is not None:
        for name, vector in (vectors if isinstance(vectors, dict) else {"": vectors}).items():
            _fill_vector(target.vectors.vectors.vectors[name], vector)
    if found.order_value is not None:
        if isinstance(found.order_value, int):
            target.order_value.int = found.order_value
        else:
            target.order_value.float = found.order_value
    return target


def _fill_vector(target: pb.VectorOutput, vector: Any) -> None:
    if isinstance(vector, edge.SparseVector):
        target.sparse.indices.extend(vector.indices)
        target.sparse.values.extend(vector.values)
    elif vector and isinstance(vector[0], list):
        for row in vector:
            target.multi_dense.vectors.add(data=row)
    else:
        target.dense.data.extend(vector)
