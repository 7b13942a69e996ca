"""The calls of `qdrant.Points` that only look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

from generated.qdrant import points_pb2 as pb

from . import checks, legacy
from .refusal import invalid, no_point, wrong_input

if TYPE_CHECKING:
    from .engine import Engine

_SEE_INDEXES = (
    "Check https://qdrant.tech/documentation/concepts/indexing/#payload-index to see which payload schemas support"
)


class ReadCalls:
    """Get, scroll, count, facet and every search."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._local = engine.local
        self._catalogue = engine.catalogue

    def answers(self) -> Mapping[str, Callable[[Any], Message]]:
        """Method names with what answers them."""
        return {
            "Get": self._get,
            "Scroll": self._scroll,
            "Count": self._count,
            "Facet": self._facet,
            "Query": lambda r: pb.QueryResponse(result=self._query(r)),
            "QueryBatch": self._query_batch,
            "QueryGroups": lambda r: pb.QueryGroupsResponse(result=self._groups(r)),
            "Search": lambda r: pb.SearchResponse(result=self._query(legacy.search(r))),
            "SearchBatch": self._search_batch,
            "SearchGroups": lambda r: pb.SearchGroupsResponse(result=self._groups(legacy.search_groups(r))),
            "Recommend": lambda r: pb.RecommendResponse(result=self._recommend(r)),
            "RecommendBatch": self._recommend_batch,
            "RecommendGroups": lambda r: pb.RecommendGroupsResponse(result=self._groups(legacy.recommend_groups(r))),
            "Discover": lambda r: pb.DiscoverResponse(result=self._query(legacy.discover(r))),
            "DiscoverBatch": self._discover_batch,
            "SearchMatrixPairs": self._matrix_pairs,
            "SearchMatrixOffsets": self._matrix_offsets,
        }

    def _get(self, request: pb.GetPoints) -> pb.GetResponse:
        name = self._engine.resolve(request.collection_name)
        ids = list(dict.fromkeys(checks.point_id(given) for given in request.ids))
        records = self._local.retrieve(
            name, ids, with_payload=_payload(request, default=False), with_vectors=_vectors(request)
        )
        return pb.GetResponse(result=[RestToGrpc.convert_record(_bare(record)) for record in records])

    def _scroll(self, request: pb.ScrollPoints) -> Message:
        name = self._engine.resolve(request.collection_name)
        checks.limit(request)
        if request.HasField("order_by"):
            self._check_order(name, request.order_by)
            if request.HasField("offset"):
                raise invalid("Bad request: Cannot use offset when using order_by")
        records, following = self._local.scroll(
            name,
            scroll_filter=_filter(request),
            limit=request.limit if request.HasField("limit") else 10,
            order_by=GrpcToRest.convert_order_by(request.order_by) if request.HasField("order_by") else None,
            offset=checks.point_id(request.offset) if request.HasField("offset") else None,
            with_payload=_payload(request, default=True),
            with_vectors=_vectors(request),
        )
        response = pb.ScrollResponse(result=[RestToGrpc.convert_record(_bare(record)) for record in records])
        if following is not None:
            response.next_page_offset.CopyFrom(RestToGrpc.convert_extended_point_id(following))
        return response

    def _check_order(self, name: str, order: pb.OrderBy) -> None:
        if not self._catalogue.has_range_index(name, order.key):
            raise wrong_input(
                f"No range index for `order_by` key: `{order.key}`. Please create one to use `order_by`. "
                f"{_SEE_INDEXES} Range conditions"
            )

    def _count(self, request: pb.CountPoints) -> Message:
        name = self._engine.resolve(request.collection_name)
        return pb.CountResponse(result=pb.CountResult(count=self._local.count(name, _filter(request)).count))

    def _facet(self, request: pb.FacetCounts) -> Message:
        name = self._engine.resolve(request.collection_name)
        if not self._catalogue.has_match_index(name, request.key):
            raise wrong_input(
                f"No appropriate index for faceting: `{request.key}`. Please create one to facet on this field. "
                f"{_SEE_INDEXES} Match conditions"
            )
        limit = request.limit if request.HasField("limit") else 10
        hits = self._local.facet(name, request.key, _filter(request), limit=limit).hits if limit else []
        return pb.FacetResponse(hits=[RestToGrpc.convert_facet_value_hit(hit) for hit in hits])

    # --- searches ---

    def _query(self, request: pb.QueryPoints, *, any_limit: bool = False) -> list[pb.ScoredPoint]:
        name = self._engine.resolve(request.collection_name)
        if not any_limit:
            checks.limit(request)
        elif request.limit == 0:
            return []
        self._check_query(name, request)
        given = GrpcToRest.convert_query_points(request)
        hits = self._local.query_points(
            name,
            query=given.query,
            using=given.using or None,
            prefetch=given.prefetch,
            query_filter=_filter(request),
            search_params=given.params,
            limit=given.limit if given.limit is not None else 10,
            offset=given.offset,
            with_payload=_payload(request, default=False),
            with_vectors=_vectors(request),
            score_threshold=given.score_threshold,
            lookup_from=given.lookup_from,
        ).points
        scored = [RestToGrpc.convert_scored_point(_bare(hit)) for hit in hits]
        if not request.HasField("query") and not request.prefetch:
            for point in scored:
                point.score = 1.0
        return scored

    def _check_query(self, name: str, request: Any) -> None:
        kind = request.query.WhichOneof("variant") if request.HasField("query") else None
        sizes = self._engine.sizes(name)
        if kind == "order_by":
            self._check_order(name, request.query.order_by)
        if kind in ("nearest", "nearest_with_mmr"):
            vector = request.query.nearest if kind == "nearest" else request.query.nearest_with_mmr.nearest
            if not request.HasField("lookup_from"):
                self._check_known(name, vector)
            if vector.WhichOneof("variant") != "id":
                checks.query_input(vector, request.using, sizes)
            elif request.using not in sizes:
                raise wrong_input(f"Not existing vector name error: {request.using}")
        for prefetch in request.prefetch:
            self._check_query(name, prefetch)

    def _check_known(self, name: str, vector: pb.VectorInput) -> None:
        if vector.WhichOneof("variant") != "id":
            return
        point_id = checks.point_id(vector.id)
        if not self._local.retrieve(name, [point_id], with_payload=False):
            raise no_point(point_id)

    def _query_batch(self, request: pb.QueryBatchPoints) -> Message:
        self._engine.resolve(request.collection_name)
        results = [self._query(_named(query, request)) for query in request.query_points]
        return pb.QueryBatchResponse(result=[pb.BatchResult(result=result) for result in results])

    def _search_batch(self, request: pb.SearchBatchPoints) -> Message:
        self._engine.resolve(request.collection_name)
        results = [self._query(legacy.search(_named(query, request))) for query in request.search_points]
        return pb.SearchBatchResponse(result=[pb.BatchResult(result=result) for result in results])

    def _recommend(self, request: pb.RecommendPoints) -> list[pb.ScoredPoint]:
        return self._query(legacy.recommend(request), any_limit=True)

    def _recommend_batch(self, request: pb.RecommendBatchPoints) -> Message:
        self._engine.resolve(request.collection_name)
        results = [self._recommend(_named(query, request)) for query in request.recommend_points]
        return pb.RecommendBatchResponse(result=[pb.BatchResult(result=result) for result in results])

    def _discover_batch(self, request: pb.DiscoverBatchPoints) -> Message:
        self._engine.resolve(request.collection_name)
        results = [self._query(legacy.discover(_named(query, request))) for query in request.discover_points]
        return pb.DiscoverBatchResponse(result=[pb.BatchResult(result=result) for result in results])

    def _groups(self, request: pb.QueryPointGroups) -> pb.GroupsResult:
        name = self._engine.resolve(request.collection_name)
        checks.limit(request)
        checks.limit(request, "group_size")
        self._check_query(name, request)
        if request.prefetch and not request.HasField("with_lookup"):
            return self._groups_in_rounds(request)
        lookup = None
        if request.HasField("with_lookup"):
            self._engine.resolve(request.with_lookup.collection)
            lookup = GrpcToRest.convert_with_lookup(request.with_lookup)
        groups = self._local.query_points_groups(
            name,
            group_by=request.group_by,
            query=GrpcToRest.convert_query(request.query) if request.HasField("query") else None,
            using=request.using or None,
            prefetch=[GrpcToRest.convert_prefetch_query(p) for p in request.prefetch] or None,
            query_filter=_filter(request),
            search_params=GrpcToRest.convert_search_params(request.params) if request.HasField("params") else None,
            limit=request.limit if request.HasField("limit") else 10,
            group_size=request.group_size if request.HasField("group_size") else 3,
            with_payload=_payload(request, default=False),
            with_vectors=_vectors(request),
            score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
            with_lookup=lookup,
            lookup_from=GrpcToRest.convert_lookup_location(request.lookup_from)
            if request.HasField("lookup_from")
            else None,
        )
        for group in groups.groups:
            group.hits = [_bare(hit) for hit in group.hits]
        return RestToGrpc.convert_groups_result(groups)

    def _groups_in_rounds(self, request: pb.QueryPointGroups) -> pb.GroupsResult:
        """As a server does it: local mode lets prefetches find all of the collection, whatever their limits."""
        # Here, not above: it brings another engine, which few of those who start a stand-in need.
        from tests.differential.engine_groups import Gathering

        result = pb.GroupsResult()
        for value, page in Gathering(request, self._query).groups():
            group = result.groups.add()
            setattr(group.id, "string_value" if isinstance(value, str) else "integer_value", value)
            wanted = pb.GetPoints(collection_name=request.collection_name, ids=[hit.id for hit in page])
            wanted.with_payload.CopyFrom(request.with_payload)
            wanted.with_vectors.CopyFrom(request.with_vectors)
            shown = {record.id.SerializeToString(): record for record in self._get(wanted).result}
            for hit in page:
                record = shown[hit.id.SerializeToString()]
                vectors = record.vectors if record.HasField("vectors") else None
                group.hits.add(id=hit.id, score=hit.score, version=hit.version, payload=record.payload, vectors=vectors)
        return result

    def _matrix_pairs(self, request: pb.SearchMatrixPoints) -> Message:
        result = self._local.search_matrix_pairs(**self._matrix(request))
        return pb.SearchMatrixPairsResponse(result=RestToGrpc.convert_search_matrix_pairs(result))

    def _matrix_offsets(self, request: pb.SearchMatrixPoints) -> Message:
        result = self._local.search_matrix_offsets(**self._matrix(request))
        return pb.SearchMatrixOffsetsResponse(result=RestToGrpc.convert_search_matrix_offsets(result))

    def _matrix(self, request: pb.SearchMatrixPoints) -> dict[str, Any]:
        return {
            "collection_name": self._engine.resolve(request.collection_name),
            "query_filter": _filter(request),
            "limit": request.limit if request.HasField("limit") else 3,
            "sample": request.sample if request.HasField("sample") else 10,
            "using": request.using or None,
        }


def _filter(request: Any) -> Any:
    if not request.HasField("filter"):
        return None
    return GrpcToRest.convert_filter(request.filter)


def _payload(request: Any, *, default: bool) -> Any:
    given = request.with_payload
    if not request.HasField("with_payload") or given.WhichOneof("selector_options") is None:
        return default
    return GrpcToRest.convert_with_payload_selector(given)


def _vectors(request: Any) -> Any:
    given = request.with_vectors
    if not request.HasField("with_vectors") or given.WhichOneof("selector_options") is None:
        return False
    return GrpcToRest.convert_with_vectors_selector(given)


def _bare(record: Any) -> Any:
    """A record that converts: no payload is an empty one; a point without vectors has an empty map of them."""
    if record.payload is None:
        record.payload = {}
    return record


def _named(query: Any, batch: Any) -> Any:
    """A query of a batch, which belongs to the batch's collection when it names none."""
    if query.collection_name:
        return query
    copy = type(query)()
    copy.CopyFrom(query)
    copy.collection_name = batch.collection_name
    return copy
