"""The real Qdrant engine of `qdrant-edge-py` as an oracle: shards in a directory behind requests of the wire.

The engine is what lies below a server's collections, so calls that only those answer are gaps.
What it raises is given the status that a server gives it (FACTS 3 and 3.1).
"""

from __future__ import annotations

import re
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

from .answers import Id, id_of
from .calls import Call, Gap, Outcome, Refused
from .engine_answers import filter_given, payload_wanted, plain, point_shown, rank_of, vectors_wanted
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
from .engine_shard import Shard
from .engine_writes import METHODS_OF_SHARDS, operation_of, parts_of
from .searches import EVERYTHING
from .values import spelt

# What a server answers with where the engine only has a text.
_STATUSES = (
    (re.compile(r"No point with id|Vector with name"), "NOT_FOUND"),
    (re.compile(r""), "INVALID_ARGUMENT"),
)

NULLS_KEPT = "nulls set on no payload"
_SHAPING = (
    pb.CreateFieldIndexCollection,
    pb.DeleteFieldIndexCollection,
    pb.CreateVectorNameRequest,
    pb.DeleteVectorNameRequest,
)


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
                with_payload=payload_wanted(request, default=False),
                with_vector=vectors_wanted(request),
            )
        )
        scored = [point_shown(hit, pb.ScoredPoint(score=hit.score)) for hit in hits]
        if request.query.HasField("order_by"):
            # Merging the shards' answers, a server drops a point that stands there twice running. Which of two points
            # with one value comes first is nobody's promise; here it is the id that says so.
            scored.sort(key=rank_of, reverse=request.query.order_by.direction == pb.Desc)
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
        records = shard.shard.retrieve(ids, payload_wanted(request, default=False), vectors_wanted(request))
        return pb.GetResponse(result=[point_shown(record, pb.RetrievedPoint()) for record in records])

    def _scroll(self, request: pb.ScrollPoints) -> Message:
        shard = self._shard(request.collection_name)
        if request.HasField("limit") and request.limit == 0:
            raise Inexpressible("limits are checked above the shard")
        checked_above(request)
        records, following = shard.shard.scroll(
            edge.ScrollRequest(
                offset=id_of(request.offset) if request.HasField("offset") else None,
                limit=request.limit if request.HasField("limit") else DEFAULT_LIMIT,
                filter=filter_given(request),
                with_payload=payload_wanted(request, default=True),
                with_vector=vectors_wanted(request),
                order_by=order_of(request.order_by) if request.HasField("order_by") else None,
            )
        )
        response = pb.ScrollResponse(result=[point_shown(record, pb.RetrievedPoint()) for record in records])
        if following is not None:
            response.next_page_offset.CopyFrom(spelt(plain(following)))
        return response

    def _count(self, request: pb.CountPoints) -> Message:
        shard = self._shard(request.collection_name)
        count = shard.shard.count(edge.CountRequest(exact=True, filter=filter_given(request)))
        return pb.CountResponse(result=pb.CountResult(count=count))

    def _facet(self, request: pb.FacetCounts) -> Message:
        shard = self._shard(request.collection_name)
        limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        found = shard.shard.facet(edge.FacetRequest(request.key, limit=limit, exact=True, filter=filter_given(request)))
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
