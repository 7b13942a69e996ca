"""The strict mode of a collection: what Qdrant refuses online for its limits is refused offline too.

Promises: the status and texts of Qdrant 1.18 (of 1.20 for what only that knows), from its source, and its order: the
parts of a request, its limit, its filter, its search parameters, its timeout. Only what a client asks while Qdrant is
away comes here: what Qdrant has accepted is never judged again.

    judged      max_query_limit, max_timeout, unindexed_filtering_retrieve and _update, filter_max_conditions,
                condition_max_size, search_allow_exact, search_max_hnsw_ef, search_max_oversampling,
                search_max_batchsize, upsert_max_batchsize, max_payload_index_count, max_points_count (of a collection
                that is here as a whole), multivector_config, sparse_config
    not judged  max_collection_vector_size_bytes, max_collection_payload_size_bytes: of the server's own files
                read_rate_limit, write_rate_limit, max_resident_memory_percent: of the server's load

Does not promise the moment at which Qdrant notices a limit on points: it counts anew every 32 writes, this always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import catalogue, groups, listing, matrix, paths, strict_filters, universal
from server.replica.fields import Fields
from server.replica.reads import Reads
from server.replica.records import Collection
from server.replica.refusal import Refusal, invalid
from server.replica.vector_forms import with_oneof

_QUERIES = (points.QueryPoints, points.PrefetchQuery, points.QueryPointGroups)
_SEES_BARE_SCROLLS_SINCE = (1, 20, 0)
_NO_VECTOR_SEARCH = frozenset(("fusion", "rrf", "order_by", "formula", "sample"))


def check_read(reads: Reads, request: Message) -> None:
    """Raises Refusal for a read of points that the strict mode of its collection forbids."""
    several = _BATCHES.get(type(request))
    # The requests of a batch go to its collection.
    parts: list[Any] = [request] if several is None else list(getattr(request, several))
    own: str = getattr(request, "collection_name", "")
    rules = _rules(reads, own or next((part.collection_name for part in parts), ""))
    if rules is None:
        return
    if several is not None:
        rules.at_most(len(parts), "search_max_batchsize", "search batch size")
    for part in parts:
        rules.check_query(part)
    rules.check_timeout(request)


def check_write(reads: Reads, request: Message) -> None:
    """Raises Refusal for a write to points, or a new payload index, that the strict mode of its collection forbids."""
    check = _WRITES.get(type(request))
    rules = None if check is None else _rules(reads, getattr(request, "collection_name", ""))
    if check is not None and rules is not None:
        check(rules, request)
        rules.check_timeout(request)


def _rules(reads: Reads, name: str) -> _Rules | None:
    """The limits of a collection; None when it has none. One that is not there is another check's business."""
    collection = reads.collection(name) if name else None
    limits = None if collection is None else _limits(collection.config)
    return None if collection is None or limits is None else _Rules(limits, collection, reads)


@lru_cache(maxsize=256)
def _limits(config: bytes) -> collections.StrictModeConfig | None:
    limits = collections.CollectionConfig.FromString(config).strict_mode_config
    return limits if limits.enabled else None


def _refused(problem: str, advice: str) -> Refusal:
    return invalid(f"Bad request: {problem}. Help: {advice}")


def _number(value: float) -> str:
    """As Qdrant writes numbers: the shortest that reads as the same, without an exponent."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")


@dataclass(frozen=True)
class _Rules:
    """The limits of one collection. Every method raises Refusal."""

    limits: collections.StrictModeConfig
    collection: Collection
    reads: Reads

    @cached_property
    def fields(self) -> Fields:
        """The payload indexes."""
        return Fields.of(self.collection.schema, self.reads.meta(catalogue.REMOTE_VERSION))

    def forbids(self, switch: str) -> bool:
        """Whether a switch is set, and to false."""
        return self.limits.HasField(switch) and not getattr(self.limits, switch)

    def at_most(self, value: float, limit: str, name: str) -> None:
        """A number that a request gives, or stands for."""
        most = getattr(self.limits, limit)
        if self.limits.HasField(limit) and value > most:
            raise _refused(
                f'Limit exceeded {_number(value)} > {_number(most)} for "{name}"',
                f'Reduce the "{name}" parameter to or below {_number(most)}.',
            )

    def check_timeout(self, request: Any) -> None:
        """The patience of the request as a whole."""
        if "timeout" in request.DESCRIPTOR.fields_by_name and request.HasField("timeout"):
            self.at_most(request.timeout, "max_timeout", "timeout")

    # --- reads -------------------------------------------------------------------------------------------------------

    def check_query(self, request: Any) -> None:
        """One read that is no batch, or a prefetch of one."""
        if isinstance(request, points.QueryPoints | points.PrefetchQuery):
            for inner in request.prefetch:
                self.check_query(inner)
        if isinstance(request, _QUERIES) and request.HasField("query"):
            if isinstance(request, points.PrefetchQuery) or not request.prefetch:
                self._check_full_scan(request)
            self._check_formula(request.query)
        if "group_by" in request.DESCRIPTOR.fields_by_name:
            self._check_grouping(request.group_by)
        limit_of = _LIMITS.get(type(request))
        if limit_of is not None and self._names_limit(request):
            self.at_most(limit_of(request), "max_query_limit", "limit")
        if "filter" in request.DESCRIPTOR.fields_by_name and request.HasField("filter"):
            self._check_filter(request.filter, "unindexed_filtering_retrieve")
        if isinstance(request, points.CountPoints):
            self._check_exact(request.exact or not request.HasField("exact"))
        if "params" in request.DESCRIPTOR.fields_by_name and request.HasField("params"):
            self._check_params(request.params)

    def _names_limit(self, request: Any) -> bool:
        """Whether a limit is looked at: until 1.20 not that of a scroll that names none."""
        is_bare = isinstance(request, points.ScrollPoints) and not request.HasField("limit")
        return not is_bare or self.fields.version >= _SEES_BARE_SCROLLS_SINCE

    def _check_params(self, params: points.SearchParams) -> None:
        if params.quantization.HasField("oversampling"):
            self.at_most(params.quantization.oversampling, "search_max_oversampling", "oversampling")
        if params.HasField("hnsw_ef"):
            self.at_most(params.hnsw_ef, "search_max_hnsw_ef", "hnsw_ef")
        if params.idf.HasField("corpus"):
            self._check_filter(params.idf.corpus, "unindexed_filtering_retrieve")
        self._check_exact(params.exact)

    def _check_exact(self, is_exact: bool) -> None:
        if is_exact and self.forbids("search_allow_exact"):
            raise _refused("Exact search disabled!", "Set exact=false.")

    def _check_filter(self, given: common.Filter, switch: str) -> None:
        key = strict_filters.searched_for_substring(given)
        if key is not None:
            raise _refused(
                f'Substring matching is not allowed, used for "{key}": it scans every value of the field, with or '
                "without an index",
                "Use a prefix match or a full-text match instead.",
            )
        conditions, size = strict_filters.count(given), strict_filters.largest(given)
        if self.limits.HasField("filter_max_conditions") and conditions > self.limits.filter_max_conditions:
            raise _refused(
                f"Filter condition limit reached ({conditions} > {self.limits.filter_max_conditions})",
                "Reduce the amount of conditions of your filter.",
            )
        if self.limits.HasField("condition_max_size") and size > self.limits.condition_max_size:
            raise _refused(
                f"Condition size limit reached ({size} > {self.limits.condition_max_size})",
                "Reduce the size of your condition.",
            )
        if self.forbids(switch):
            self._demand_index(strict_filters.lacking_in_filter(given, self.fields), "filter")

    @staticmethod
    def _demand_index(lacking: strict_filters.Lacking, other: str) -> None:
        if lacking is not None:
            path, kinds = lacking
            raise _refused(
                f'Index required but not found for "{paths.text_of(path)}" of one of the following types: [{kinds}]',
                f"Create an index for this key or use a different {other}.",
            )

    def _check_formula(self, query: points.Query) -> None:
        if query.WhichOneof("variant") == "formula" and self.forbids("unindexed_filtering_retrieve"):
            lacking = strict_filters.lacking_in_formula(query.formula.expression, self.fields)
            self._demand_index(lacking, "formula expression")

    def _check_grouping(self, group_by: str) -> None:
        if not self.forbids("unindexed_filtering_retrieve"):
            return
        path = paths.parse_or_refuse(group_by)
        index, key = self.fields.index(path), paths.text_of(path)
        advice = "Create an index supporting `match` for this key."
        if index is None:
            raise _refused(f'Index required but not found for "{key}"', advice)
        if not strict_filters.supports_match(index):
            kind = collections.PayloadSchemaType.Name(index.kind)
            raise _refused(f'Index of type "{kind}" found for "{key}"', advice)

    def _check_full_scan(self, request: Any) -> None:
        """A vector without a graph is searched exactly, which `search_allow_exact` forbids too."""
        is_by_vector = request.query.WhichOneof("variant") not in (None, *_NO_VECTOR_SEARCH)
        config = catalogue.config_of(self.collection)
        if not is_by_vector or not self.forbids("search_allow_exact"):
            return
        if request.using in config.params.sparse_vectors_config.map:
            return
        vectors = config.params.vectors_config
        own = vectors.params if vectors.WhichOneof("config") == "params" else vectors.params_map.map.get(request.using)
        hnsw = collections.HnswConfigDiff() if own is None else own.hnsw_config
        m = hnsw.m if hnsw.HasField("m") else config.hnsw_config.m
        every = config.hnsw_config.payload_m if config.hnsw_config.HasField("payload_m") else m
        payload_m = hnsw.payload_m if hnsw.HasField("payload_m") else every
        if m > 0:
            return
        where = f" on '{request.using}'" if request.using else ""
        if not (request.HasField("filter") and strict_filters.is_for_tenants(request.filter, self.fields)):
            raise _refused(
                f"Request is forbidden{where} because global vector indexing is disabled (hnsw_config.m = 0)",
                "Use tenant-specific filter, enable global vector indexing or enable strict mode `search_allow_exact` "
                "option",
            )
        if payload_m == 0:
            raise _refused(
                f"Request is forbidden{where} because vector indexing is disabled (hnsw_config.m = 0 and "
                "hnsw_config.payload_m = 0)",
                "Enable vector indexing, use a prefetch query with indexed vectors or enable strict mode "
                "`search_allow_exact` option",
            )

    # --- writes ------------------------------------------------------------------------------------------------------

    def check_upsert(self, request: points.UpsertPoints) -> None:
        """How many points, in the request and in the collection, and how large their vectors are."""
        self.at_most(len(request.points), "upsert_max_batchsize", "upsert limit")
        self._check_points(request)

    def check_update_vectors(self, request: points.UpdatePointVectors) -> None:
        """The same of an update."""
        self.at_most(len(request.points), "upsert_max_batchsize", "update limit")
        self._check_points(request)

    def _check_points(self, request: points.UpsertPoints | points.UpdatePointVectors) -> None:
        most = self.limits.max_points_count
        is_known = self.limits.HasField("max_points_count") and catalogue.is_whole(self.collection)
        if is_known and self.collection.points >= most:
            raise invalid(f"Bad request: Max points count limit of {most} reached!")
        multi, sparse = self.limits.multivector_config.multivector_config, self.limits.sparse_config.sparse_config
        if not multi and not sparse:
            return
        for point in request.points:
            is_unnamed = point.vectors.WhichOneof("vectors_options") == "vector"
            named = {"": point.vectors.vector} if is_unnamed else point.vectors.vectors.vectors
            for name, vector in named.items():
                if name in multi and multi[name].HasField("max_vectors"):
                    _check_multi(name, with_oneof(vector), multi[name].max_vectors)
                if not is_unnamed and name in sparse and sparse[name].HasField("max_length"):
                    _check_sparse(name, with_oneof(vector), sparse[name].max_length)

    def check_selector(self, request: Any) -> None:
        """The filter of a write that chooses its points by one."""
        field = "points" if "points" in request.DESCRIPTOR.fields_by_name else "points_selector"
        selector: points.PointsSelector = getattr(request, field)
        if selector.WhichOneof("points_selector_one_of") == "filter":
            self._check_filter(selector.filter, "unindexed_filtering_update")

    def check_field_index(self, request: points.CreateFieldIndexCollection) -> None:
        """How many payload indexes there are; one that is there already is no exception."""
        most = self.limits.max_payload_index_count
        if self.limits.HasField("max_payload_index_count") and len(self.collection.schema) >= most:
            raise _refused(
                f"Collection already has the maximum number of payload indices ({most})",
                "Please delete an existing index before creating a new one.",
            )


def _check_multi(name: str, vector: points.Vector, most: int) -> None:
    rows = len(vector.multi_dense.vectors)
    if rows > most:
        raise invalid(f"Bad request: Multivector '{name}' has a limit of {most} vectors, but {rows} were provided!")


def _check_sparse(name: str, vector: points.Vector, most: int) -> None:
    length = len(vector.sparse.indices)
    if max(length, len(vector.sparse.values)) > most:
        raise invalid(f"Bad request: Sparse vector '{name}' has a limit of {most} indices, but {length} were provided!")


_BATCHES: Mapping[type[Message], str] = {
    points.QueryBatchPoints: "query_points",
    points.SearchBatchPoints: "search_points",
    points.RecommendBatchPoints: "recommend_points",
    points.DiscoverBatchPoints: "discover_points",
}


def _given(request: Any, field: str, default: int) -> int:
    value: int = getattr(request, field) if request.HasField(field) else default
    return value


# How many results a request asks for.
_LIMITS: Mapping[type[Message], Callable[[Any], int]] = {
    points.QueryPoints: lambda r: _given(r, "limit", universal.DEFAULT_LIMIT),
    points.PrefetchQuery: lambda r: _given(r, "limit", universal.DEFAULT_LIMIT),
    points.QueryPointGroups: lambda r: (
        _given(r, "limit", groups.DEFAULT_LIMIT) * _given(r, "group_size", groups.DEFAULT_SIZE)
    ),
    points.SearchPoints: lambda r: int(r.limit),
    points.SearchPointGroups: lambda r: int(r.limit * r.group_size),
    points.RecommendPoints: lambda r: int(r.limit),
    points.RecommendPointGroups: lambda r: int(r.limit * r.group_size),
    points.DiscoverPoints: lambda r: int(r.limit),
    points.ScrollPoints: lambda r: _given(r, "limit", listing.DEFAULT_SCROLL_LIMIT),
    points.FacetCounts: lambda r: _given(r, "limit", listing.DEFAULT_FACET_LIMIT),
    points.SearchMatrixPoints: lambda r: (
        _given(r, "limit", matrix.DEFAULT_LIMIT) * _given(r, "sample", matrix.DEFAULT_SAMPLE)
    ),
}

_Check: TypeAlias = Callable[[_Rules, Any], None]
_WRITES: Mapping[type[Message], _Check] = {
    points.UpsertPoints: _Rules.check_upsert,
    points.UpdatePointVectors: _Rules.check_update_vectors,
    points.DeletePoints: _Rules.check_selector,
    points.ClearPayloadPoints: _Rules.check_selector,
    points.SetPayloadPoints: _Rules.check_selector,
    points.DeletePayloadPoints: _Rules.check_selector,
    points.DeletePointVectors: _Rules.check_selector,
    points.CreateFieldIndexCollection: _Rules.check_field_index,
}
