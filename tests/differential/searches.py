"""PURE. Random reads: every method of `qdrant.Points` and `qdrant.Collections` that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.rpc import COLLECTIONS, POINTS

from .calls import Call
from .changes import ALIAS
from .queries import Queries
from .shapes import COLLECTION, OTHER
from .values import Values

EVERYTHING = 1_000
GROUP_KEYS = ("k", "n", "a", "t")


class Searches:
    """Reads of one collection, now and then through its alias."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._chance = values.chance
        self._queries = Queries(values)

    def _finish(self, request: Any, *, with_params: bool = True, share: float = 0.5) -> Any:
        """Collection, filter, selectors, parameters."""
        request.collection_name = ALIAS if self._chance.random() < 0.05 else COLLECTION
        self._queries.maybe_filter(request, share)
        if self._chance.random() < 0.7:
            request.with_payload.CopyFrom(self._queries.payload_selector())
        if self._chance.random() < 0.5:
            request.with_vectors.CopyFrom(self._queries.vectors_selector())
        if with_params and self._chance.random() < 0.1:
            request.params.CopyFrom(self._queries.params())
        return request

    def _limit(self) -> int:
        return self._chance.choice((1, 3, 10, 200))

    def _query_points(self) -> pb.QueryPoints:
        request: pb.QueryPoints = self._finish(self._queries.request())
        form = request.query.WhichOneof("variant")
        if self._chance.random() < 0.9:
            request.limit = self._limit()
        if self._chance.random() < 0.3:
            request.offset = self._chance.choice((0, 3))
        if form == "sample":
            # Any points will do, so only all of them can be compared.
            request.limit, request.offset = EVERYTHING, 0
        if form not in (None, "order_by", "sample") and self._chance.random() < 0.2:
            request.score_threshold = self._chance.choice((0.0, 0.317, 2.03))
        if form in ("nearest", "recommend", "discover") and self._chance.random() < 0.1:
            request.lookup_from.CopyFrom(self._queries.lookup(OTHER, request.using))
        return request

    def query(self) -> Call:
        """Query."""
        return Call(POINTS + "Query", self._query_points())

    def query_batch(self) -> Call:
        """QueryBatch."""
        queries = [self._query_points() for _ in range(self._chance.randint(1, 3))]
        for one in queries:
            one.collection_name = COLLECTION
        return Call(POINTS + "QueryBatch", pb.QueryBatchPoints(collection_name=COLLECTION, query_points=queries))

    def query_groups(self) -> Call:
        """QueryGroups."""
        name = self._queries.using()
        request = pb.QueryPointGroups(query=self._queries.query(name, in_prefetch=True), using=name)
        self._grouped(self._finish(request))
        if self._chance.random() < 0.1:
            request.score_threshold = 0.2
        return Call(POINTS + "QueryGroups", request)

    def _grouped(self, request: Any) -> None:
        request.group_by = self._chance.choice(GROUP_KEYS)
        request.limit, request.group_size = self._chance.choice((1, 3, 50)), self._chance.choice((1, 2, 4))
        if self._chance.random() < 0.2:
            request.with_lookup.collection = OTHER
            request.with_lookup.with_payload.enable = True

    # --- legacy ---

    def _search_request(self, request: Any) -> Any:
        name = self._queries.using()
        vector = self._values.shape.vectors[name]
        if vector.is_sparse:
            sparse = self._values.sparse()
            request.vector.extend(sparse.values)
            request.sparse_indices.data.extend(sparse.indices)
        else:
            request.vector.extend(self._values.row(vector))
        if not self._values.shape.is_unnamed or self._chance.random() < 0.5:
            request.vector_name = name
        if self._chance.random() < 0.2:
            request.score_threshold = self._chance.choice((0.0, 0.5))
        return self._finish(request)

    def _paged(self, request: Any) -> Any:
        request.limit = self._limit()
        if self._chance.random() < 0.2:
            request.offset = 2
        return request

    def search(self) -> Call:
        """Search."""
        return Call(POINTS + "Search", self._paged(self._search_request(pb.SearchPoints())))

    def search_batch(self) -> Call:
        """SearchBatch."""
        some = [self._paged(self._search_request(pb.SearchPoints())) for _ in range(2)]
        for one in some:
            one.collection_name = COLLECTION
        return Call(POINTS + "SearchBatch", pb.SearchBatchPoints(collection_name=COLLECTION, search_points=some))

    def search_groups(self) -> Call:
        """SearchGroups."""
        request = self._search_request(pb.SearchPointGroups())
        self._grouped(request)
        return Call(POINTS + "SearchGroups", request)

    def _recommend_request(self, request: Any) -> Any:
        name = self._queries.using()
        request.using = name
        request.positive.extend(self._values.ids(2))
        if self._chance.random() < 0.5:
            request.negative.extend(self._values.ids(2))
        if self._chance.random() < 0.3:
            request.positive_vectors.append(self._values.vector(name))
        if self._chance.random() < 0.2:
            request.negative_vectors.append(self._values.vector(name))
        if self._chance.random() < 0.7:
            request.strategy = self._chance.choice((pb.AverageVector, pb.BestScore, pb.SumScores))
        return self._finish(request)

    def recommend(self) -> Call:
        """Recommend."""
        return Call(POINTS + "Recommend", self._paged(self._recommend_request(pb.RecommendPoints())))

    def recommend_batch(self) -> Call:
        """RecommendBatch."""
        some = [self._paged(self._recommend_request(pb.RecommendPoints())) for _ in range(2)]
        for one in some:
            one.collection_name = COLLECTION
        return Call(
            POINTS + "RecommendBatch", pb.RecommendBatchPoints(collection_name=COLLECTION, recommend_points=some)
        )

    def recommend_groups(self) -> Call:
        """RecommendGroups."""
        request = self._recommend_request(pb.RecommendPointGroups())
        self._grouped(request)
        if request.HasField("with_lookup"):
            # The collection may be missing: with examples that all lack the vector there would be two faults.
            request.positive_vectors.append(self._values.vector(request.using))
        return Call(POINTS + "RecommendGroups", request)

    def _example(self, name: str) -> pb.VectorExample:
        if self._chance.random() < 0.5:
            return pb.VectorExample(id=self._values.point_id())
        return pb.VectorExample(vector=self._values.vector(name))

    def _discover_request(self) -> pb.DiscoverPoints:
        name = self._queries.using()
        request = pb.DiscoverPoints(using=name)
        if self._chance.random() < 0.8:
            request.target.single.CopyFrom(self._example(name))
        for _ in range(self._chance.randint(1, 2)):
            request.context.add(
                positive=self._example(name), negative=pb.VectorExample(vector=self._values.vector(name))
            )
        done: pb.DiscoverPoints = self._paged(self._finish(request))
        return done

    def discover(self) -> Call:
        """Discover."""
        return Call(POINTS + "Discover", self._discover_request())

    def discover_batch(self) -> Call:
        """DiscoverBatch."""
        some = [self._discover_request() for _ in range(2)]
        for one in some:
            one.collection_name = COLLECTION
        return Call(POINTS + "DiscoverBatch", pb.DiscoverBatchPoints(collection_name=COLLECTION, discover_points=some))

    # --- without vectors ---

    def get(self) -> Call:
        """Get, one id sometimes twice."""
        request = pb.GetPoints(collection_name=COLLECTION, ids=self._values.ids(6))
        if self._chance.random() < 0.8:
            request.with_payload.CopyFrom(self._queries.payload_selector())
        if self._chance.random() < 0.6:
            request.with_vectors.CopyFrom(self._queries.vectors_selector())
        return Call(POINTS + "Get", request)

    def scroll(self) -> Call:
        """Scroll, by id or by a field."""
        request = self._finish(pb.ScrollPoints(), with_params=False)
        if self._chance.random() < 0.9:
            request.limit = self._limit()
        if self._chance.random() < 0.25:
            request.order_by.CopyFrom(self._queries.order_by())
        elif self._chance.random() < 0.4:
            request.offset.CopyFrom(self._values.point_id())
        return Call(POINTS + "Scroll", request)

    def everything(self) -> Call:
        """All that a collection holds."""
        request = pb.ScrollPoints(collection_name=COLLECTION, limit=EVERYTHING)
        request.with_payload.enable = request.with_vectors.enable = True
        return Call(POINTS + "Scroll", request)

    def count(self) -> Call:
        """Count."""
        request = pb.CountPoints(collection_name=COLLECTION, exact=True)
        self._queries.maybe_filter(request, 0.9)
        return Call(POINTS + "Count", request)

    def facet(self) -> Call:
        """Facet."""
        request = pb.FacetCounts(
            collection_name=COLLECTION, key=self._chance.choice(("k", "n", "b", "a", "o.x", "c")), exact=True
        )
        if self._chance.random() < 0.7:
            request.limit = self._chance.choice((2, 20))
        self._queries.maybe_filter(request)
        return Call(POINTS + "Facet", request)

    def matrix(self) -> Call:
        """SearchMatrixPairs or SearchMatrixOffsets, over all points: a sample is anybody's."""
        request = pb.SearchMatrixPoints(
            collection_name=COLLECTION,
            sample=EVERYTHING,
            limit=self._chance.choice((1, 4)),
            using=self._queries.using(),
        )
        self._queries.maybe_filter(request, 0.6)
        return Call(POINTS + self._chance.choice(("SearchMatrixPairs", "SearchMatrixOffsets")), request)

    def collections(self) -> Call:
        """What collections and aliases there are, and how they are made."""
        name = self._chance.choice((COLLECTION, OTHER, ALIAS, "former", "missing"))
        return self._chance.choice(
            (
                Call(COLLECTIONS + "Get", collections.GetCollectionInfoRequest(collection_name=name)),
                Call(COLLECTIONS + "List", collections.ListCollectionsRequest()),
                Call(COLLECTIONS + "CollectionExists", collections.CollectionExistsRequest(collection_name=name)),
                Call(COLLECTIONS + "ListAliases", collections.ListAliasesRequest()),
                Call(
                    COLLECTIONS + "ListCollectionAliases",
                    collections.ListCollectionAliasesRequest(collection_name=name),
                ),
            )
        )

    def any(self) -> Call:
        """One of these."""
        makers: list[tuple[Callable[[], Call], int]] = [
            (self.query, 30),
            (self.query_batch, 2),
            (self.query_groups, 5),
            (self.search, 5),
            (self.search_batch, 1),
            (self.search_groups, 2),
            (self.recommend, 4),
            (self.recommend_batch, 1),
            (self.recommend_groups, 2),
            (self.discover, 4),
            (self.discover_batch, 1),
            (self.get, 4),
            (self.scroll, 14),
            (self.count, 12),
            (self.facet, 5),
            (self.matrix, 2),
            (self.collections, 4),
        ]
        return self._chance.choices([maker for maker, _ in makers], [weight for _, weight in makers])[0]()
