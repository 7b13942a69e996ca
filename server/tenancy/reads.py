"""PURE. Reads, confined to one tenant.

Promises: each filter of a request, at every level, selects only points of the tenant; each point that stands for its
vector must be shown to be the tenant's; points looked up for groups come with their tenant, for `reveal` to see.
Does not hide what is computed over a whole collection: counts of a collection, and term statistics of sparse vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import Code
from server.tenancy.filters import narrow
from server.tenancy.plan import Claims, Must, Refused

Recommending: TypeAlias = points.RecommendPoints | points.RecommendPointGroups
Querying: TypeAlias = points.QueryPoints | points.QueryPointGroups
Filtering: TypeAlias = (
    points.ScrollPoints
    | points.CountPoints
    | points.FacetCounts
    | points.SearchMatrixPoints
    | points.SearchPoints
    | points.SearchPointGroups
)
Stepping: TypeAlias = points.QueryPoints | points.QueryPointGroups | points.PrefetchQuery


class Reads:
    """Confines reads in place for one tenant; `key` is the payload key that holds the tenant."""

    def __init__(self, condition: common.Condition, key: str, claims: Claims) -> None:
        self._condition = condition
        self._key = key
        self._claims = claims

    def filtered(self, request: Filtering) -> None:
        """A request whose points are chosen by its filter alone."""
        narrow(request.filter, self._condition)
        if isinstance(request, points.SearchPoints | points.SearchPointGroups):
            self._params(request)
        if isinstance(request, points.SearchPointGroups):
            self._lookup(request)

    def search_batch(self, request: points.SearchBatchPoints) -> None:
        """Searches together."""
        for part in request.search_points:
            _same_collection(request.collection_name, part.collection_name)
            self.filtered(part)

    def query(self, request: Querying) -> None:
        """The universal query, with all it prefetches."""
        self._step(request, request.collection_name)
        if isinstance(request, points.QueryPointGroups):
            self._lookup(request)

    def query_batch(self, request: points.QueryBatchPoints) -> None:
        """Queries together."""
        for part in request.query_points:
            _same_collection(request.collection_name, part.collection_name)
            self._step(part, request.collection_name)

    def recommend(self, request: Recommending, collection: str = "") -> None:
        """Recommend by the vectors of points."""
        self._narrow_with_params(request)
        where = _looked_up_in(request, collection or request.collection_name)
        self._claims.add(Must.BE_OWN, where, [*request.positive, *request.negative])
        if isinstance(request, points.RecommendPointGroups):
            self._lookup(request)

    def recommend_batch(self, request: points.RecommendBatchPoints) -> None:
        """Recommendations together."""
        for part in request.recommend_points:
            _same_collection(request.collection_name, part.collection_name)
            self.recommend(part, request.collection_name)

    def discover(self, request: points.DiscoverPoints, collection: str = "") -> None:
        """Discover between the vectors of points."""
        self._narrow_with_params(request)
        examples = [request.target.single]
        for pair in request.context:
            examples += [pair.positive, pair.negative]
        where = _looked_up_in(request, collection or request.collection_name)
        self._claims.add(Must.BE_OWN, where, [one.id for one in examples if one.HasField("id")])

    def discover_batch(self, request: points.DiscoverBatchPoints) -> None:
        """Discoveries together."""
        for part in request.discover_points:
            _same_collection(request.collection_name, part.collection_name)
            self.discover(part, request.collection_name)

    def get(self, request: points.GetPoints) -> None:
        """Points by id: asked for with their tenant; `reveal` drops what is not the tenant's."""
        include_key(request.with_payload, self._key, unset_means_all=False)

    def _step(self, step: Stepping, collection: str) -> None:
        narrow(step.filter, self._condition)
        self._params(step)
        where = _looked_up_in(step, collection)
        self._claims.add(Must.BE_OWN, where, [one.id for one in examples_of(step.query) if one.HasField("id")])
        for below in step.prefetch:
            self._step(below, collection)

    def _narrow_with_params(self, request: Recommending | points.DiscoverPoints) -> None:
        narrow(request.filter, self._condition)
        self._params(request)

    def _params(
        self, request: Stepping | Recommending | points.DiscoverPoints | points.SearchPoints | points.SearchPointGroups
    ) -> None:
        """The points that term statistics are taken from, when the client names any."""
        if request.params.HasField("idf") and request.params.idf.HasField("corpus"):
            narrow(request.params.idf.corpus, self._condition)

    def _lookup(
        self, request: points.SearchPointGroups | points.QueryPointGroups | points.RecommendPointGroups
    ) -> None:
        if request.HasField("with_lookup"):
            include_key(request.with_lookup.with_payload, self._key, unset_means_all=True)


def examples_of(query: points.Query) -> Iterator[points.VectorInput]:
    """Every vector or point that a query compares with."""
    form = query.WhichOneof("variant")
    if form == "nearest":
        yield query.nearest
    elif form == "nearest_with_mmr":
        yield query.nearest_with_mmr.nearest
    elif form == "recommend":
        yield from query.recommend.positive
        yield from query.recommend.negative
    elif form == "discover":
        yield query.discover.target
        yield from _in_pairs(query.discover.context.pairs)
    elif form == "context":
        yield from _in_pairs(query.context.pairs)
    elif form == "relevance_feedback":
        yield query.relevance_feedback.target
        yield from (item.example for item in query.relevance_feedback.feedback)


def _in_pairs(pairs: Iterable[points.ContextInputPair]) -> Iterator[points.VectorInput]:
    for pair in pairs:
        yield pair.positive
        yield pair.negative


def _looked_up_in(request: Stepping | Recommending | points.DiscoverPoints, collection: str) -> str:
    """The collection whose vectors the ids stand for."""
    return request.lookup_from.collection_name if request.HasField("lookup_from") else collection


def _same_collection(outer: str, inner: str) -> None:
    if inner not in ("", outer):
        raise Refused(Code.PERMISSION_DENIED, "A batch that names several collections cannot be confined to a tenant")


def include_key(selector: points.WithPayloadSelector, key: str, *, unset_means_all: bool) -> None:
    """Change what is asked of a payload, in place, so that `key` comes with it."""
    form = selector.WhichOneof("selector_options")
    if form is None and unset_means_all:
        selector.enable = True
    elif form is None or (form == "enable" and not selector.enable):
        selector.include.fields.append(key)
    elif form == "include":
        if key not in selector.include.fields:
            selector.include.fields.append(key)
    elif form == "exclude":
        kept = [one for one in selector.exclude.fields if root_of(one) != key]
        del selector.exclude.fields[:]
        selector.exclude.fields.extend(kept)
        selector.exclude.SetInParent()


def asked_for(selector: points.WithPayloadSelector, key: str, *, unset_means_all: bool) -> bool:
    """Whether a client that asked like this sees `key`."""
    form = selector.WhichOneof("selector_options")
    if form is None:
        return unset_means_all
    if form == "enable":
        return bool(selector.enable)
    if form == "include":
        return key in selector.include.fields
    return all(root_of(one) != key for one in selector.exclude.fields)


def root_of(path: str) -> str:
    """The first name of a payload path: `a.b` → `a`, `a[0]` → `a`, `"a".b` → `a`."""
    text = path.strip()
    if text.startswith('"'):
        return text[1:].partition('"')[0]
    return text.partition(".")[0].partition("[")[0].strip()
