"""Two tenants' data, and random requests that try to reach across."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from generated.qdrant import json_with_int_pb2 as json_pb
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common

KEY = "tenant_id"
UUIDS = ["550e8400-e29b-41d4-a716-44665544000" + str(number) for number in range(4)]
COLLECTIONS = ["main", "other"]
# In `main` 1 to 7 belong to A, 8 to 13 to B, 14 and 15 to nobody; 16 to 18 are free. In `other` A's end at 4.
NUMBERS = range(1, 19)
PAYLOAD_KEYS = ["city", "n", "meta", KEY, "tags"]


def has_ties(request: Any) -> bool:
    """Whether points score alike by design; which of them a limit cuts off is then for the engine to say."""
    own = request.query.WhichOneof("variant") in ("context", "discover", "fusion")
    return own or any(has_ties(below) for below in request.prefetch)


class Maker:
    """Makes requests from a seed."""

    def __init__(self, seed: int) -> None:
        self.chooser = random.Random(seed)

    def one_of(self, *choices: Any) -> Any:
        return self.chooser.choice(choices)

    def maybe(self, share: float = 0.5) -> bool:
        return self.chooser.random() < share

    def id(self) -> common.PointId:
        if self.maybe(0.15):
            text = self.one_of(*UUIDS)
            return common.PointId(uuid=text.replace("-", "") if self.maybe(0.3) else text)
        return common.PointId(num=self.chooser.choice(NUMBERS))

    def own_id(self) -> common.PointId:
        return common.PointId(num=self.chooser.randint(1, 7)) if self.maybe(0.9) else self.id()

    def ids(self, most: int = 5) -> list[common.PointId]:
        return [self.id() for _ in range(self.chooser.randint(0, most))]

    def vector(self) -> list[float]:
        return [round(self.chooser.uniform(-1, 1), 3) for _ in range(3)]

    def value(self) -> json_pb.Value:
        made = json_pb.Value()
        kind = self.chooser.randrange(5)
        if kind == 0:
            made.string_value = self.one_of("A", "B", "Rome", "Oslo")
        elif kind == 1:
            made.integer_value = self.chooser.randint(0, 5)
        elif kind == 2:
            made.null_value = json_pb.NULL_VALUE
        elif kind == 3:
            made.list_value.values.add().string_value = self.one_of("A", "B", "x")
        else:
            made.struct_value.fields[self.one_of("a", KEY)].string_value = "B"
        return made

    def payload(self, target: Any, *, tenant: float = 0.2) -> None:
        for _ in range(self.chooser.randint(0, 3)):
            target[self.one_of("city", "n", "meta", "tags")].CopyFrom(self.value())
        if self.maybe(tenant):
            target[KEY].CopyFrom(self.value() if self.maybe(0.6) else json_pb.Value(string_value="A"))

    def condition(self, depth: int) -> common.Condition:
        made = common.Condition()
        kind = self.chooser.randrange(9 if depth else 7)
        key = self.one_of("city", "n", KEY, "meta.a", "tags[]")
        if kind <= 1:
            made.field.key = key
            made.field.match.keyword = self.one_of("A", "B", "Rome", "Oslo", "x")
        elif kind == 2:
            made.field.key = "n"
            made.field.range.gte = self.chooser.randint(0, 4)
        elif kind == 3:
            made.has_id.SetInParent()
            made.has_id.has_id.extend(self.ids())
        elif kind == 4:
            made.is_empty.key = key
        elif kind == 5:
            made.is_null.key = key
        elif kind == 6:
            made.field.key = key
            made.field.match.except_keywords.strings.extend([self.one_of("A", "Rome")])
        else:
            made.filter.CopyFrom(self.filter(depth - 1))
        return made

    def filter(self, depth: int = 2) -> common.Filter:
        made = common.Filter()
        for clause in (made.must, made.should, made.must_not):
            if self.maybe(0.4):
                clause.extend(self.condition(depth) for _ in range(self.chooser.randint(1, 2)))
        if self.maybe(0.15):
            made.min_should.min_count = 1
            made.min_should.conditions.extend(self.condition(depth) for _ in range(2))
        return made

    def selector(self, target: points.PointsSelector) -> None:
        kind = self.chooser.randrange(10)
        if kind < 5:
            target.points.SetInParent()
            target.points.ids.extend(self.ids())
        elif kind < 9:
            target.filter.CopyFrom(self.filter())

    def with_payload(self, target: points.WithPayloadSelector) -> None:
        kind = self.chooser.randrange(5)
        if kind == 0:
            target.enable = True
        elif kind == 1:
            target.enable = False
        elif kind == 2:
            target.include.SetInParent()
            target.include.fields.extend(self.chooser.sample(PAYLOAD_KEYS, 2))
        elif kind == 3:
            target.exclude.SetInParent()
            target.exclude.fields.extend(self.chooser.sample(PAYLOAD_KEYS, 2))

    def shown(self, request: Any) -> None:
        self.with_payload(request.with_payload)
        if self.maybe(0.3):
            request.with_vectors.enable = True
        if self.maybe(0.7):
            request.filter.CopyFrom(self.filter())

    def input(self) -> points.VectorInput:
        if self.maybe(0.6):
            return points.VectorInput(id=self.own_id())
        return points.VectorInput(dense=points.DenseVector(data=self.vector()))

    def query(self, *, fusing: bool) -> points.Query:
        made = points.Query()
        kind = self.chooser.randrange(7)
        if fusing and self.maybe():
            made.fusion = points.RRF
        elif kind == 0:
            made.recommend.positive.extend([self.input(), self.input()])
            made.recommend.negative.extend([self.input()] if self.maybe() else [])
        elif kind == 1:
            made.discover.target.CopyFrom(self.input())
            made.discover.context.pairs.add(positive=self.input(), negative=self.input())
        elif kind == 2:
            made.context.pairs.add(positive=self.input(), negative=self.input())
        elif kind == 3:
            made.nearest_with_mmr.nearest.CopyFrom(self.input())
            made.nearest_with_mmr.mmr.diversity = 0.5
        else:
            made.nearest.CopyFrom(self.input())
        return made

    def step(self, request: Any, depth: int) -> None:
        for _ in range(self.chooser.randint(0, 2) if depth and self.maybe(0.4) else 0):
            below = request.prefetch.add(limit=self.chooser.randint(1, 10))
            if self.maybe():
                below.filter.CopyFrom(self.filter(1))
            self.step(below, depth - 1)
        if self.maybe(0.9) or not request.prefetch:
            request.query.CopyFrom(self.query(fusing=bool(request.prefetch)))
        if has_ties(request):
            request.limit = 50
        if self.maybe(0.15):
            request.lookup_from.collection_name = "other"

    # --- whole requests ---

    def read(self, name: str) -> Any:
        makers: dict[str, Callable[[], Any]] = {
            "Query": self._query, "QueryBatch": self._query_batch, "QueryGroups": self._query_groups,
            "Search": self._search, "SearchBatch": self._search_batch, "SearchGroups": self._search_groups,
            "Recommend": self._recommend, "RecommendBatch": self._recommend_batch,
            "RecommendGroups": self._recommend_groups, "Discover": self._discover,
            "DiscoverBatch": self._discover_batch, "Scroll": self._scroll, "Get": self._get, "Count": self._count,
            "Facet": self._facet, "SearchMatrixPairs": self._matrix, "SearchMatrixOffsets": self._matrix,
        }  # fmt: skip
        return makers[name]()

    def _query(self) -> points.QueryPoints:
        request = points.QueryPoints(collection_name="main", limit=self.chooser.randint(1, 20))
        self.step(request, 2)
        self.shown(request)
        return request

    def _query_batch(self) -> points.QueryBatchPoints:
        return points.QueryBatchPoints(collection_name="main", query_points=[self._query() for _ in range(2)])

    def _query_groups(self) -> points.QueryPointGroups:
        request = points.QueryPointGroups(collection_name="main", group_by=self.one_of("n", KEY, "city"))
        self.step(request, 1)
        self.shown(request)
        return self._grouped(request)

    def _grouped(self, request: Any) -> Any:
        tied = isinstance(request, points.QueryPointGroups) and has_ties(request)
        request.limit, request.group_size = (50, 50) if tied else (self.chooser.randint(1, 6), 4)
        if self.maybe(0.6):
            request.with_lookup.collection = "other"
            self.with_payload(request.with_lookup.with_payload)
            if self.maybe(0.3):
                request.with_lookup.with_vectors.enable = True
        return request

    def _search(self) -> points.SearchPoints:
        request = points.SearchPoints(collection_name="main", vector=self.vector(), limit=self.chooser.randint(1, 20))
        self.shown(request)
        return request

    def _search_batch(self) -> points.SearchBatchPoints:
        return points.SearchBatchPoints(collection_name="main", search_points=[self._search() for _ in range(2)])

    def _search_groups(self) -> points.SearchPointGroups:
        request = points.SearchPointGroups(
            collection_name="main", vector=self.vector(), group_by=self.one_of("n", "city")
        )
        self.shown(request)
        made: points.SearchPointGroups = self._grouped(request)
        return made

    def _recommended(self, request: Any) -> Any:
        request.positive.extend(self.own_id() for _ in range(self.chooser.randint(1, 2)))
        request.negative.extend(self.own_id() for _ in range(self.chooser.randint(0, 1)))
        if self.maybe(0.15):
            request.lookup_from.collection_name = "other"
        self.shown(request)
        return request

    def _recommend(self) -> points.RecommendPoints:
        made: points.RecommendPoints = self._recommended(points.RecommendPoints(collection_name="main", limit=10))
        return made

    def _recommend_batch(self) -> points.RecommendBatchPoints:
        return points.RecommendBatchPoints(
            collection_name="main", recommend_points=[self._recommend() for _ in range(2)]
        )

    def _recommend_groups(self) -> points.RecommendPointGroups:
        request = points.RecommendPointGroups(collection_name="main", group_by=self.one_of("n", "city"))
        made: points.RecommendPointGroups = self._grouped(self._recommended(request))
        return made

    def _example(self) -> points.VectorExample:
        if self.maybe(0.6):
            return points.VectorExample(id=self.own_id())
        return points.VectorExample(vector=points.Vector(data=self.vector()))

    def _discover(self) -> points.DiscoverPoints:
        request = points.DiscoverPoints(collection_name="main", limit=50)
        if self.maybe(0.7):
            request.target.single.CopyFrom(self._example())
        request.context.add(positive=self._example(), negative=self._example())
        if self.maybe(0.15):
            request.lookup_from.collection_name = "other"
        self.shown(request)
        return request

    def _discover_batch(self) -> points.DiscoverBatchPoints:
        return points.DiscoverBatchPoints(collection_name="main", discover_points=[self._discover() for _ in range(2)])

    def _scroll(self) -> points.ScrollPoints:
        request = points.ScrollPoints(collection_name="main", limit=self.chooser.randint(1, 20))
        if self.maybe(0.3):
            request.order_by.key = "n"
        elif self.maybe(0.3):
            request.offset.CopyFrom(self.id())
        self.shown(request)
        return request

    def _get(self) -> points.GetPoints:
        request = points.GetPoints(collection_name="main", ids=self.ids(8))
        self.with_payload(request.with_payload)
        if self.maybe():
            request.with_vectors.enable = True
        return request

    def _count(self) -> points.CountPoints:
        return points.CountPoints(collection_name="main", filter=self.filter(), exact=True)

    def _facet(self) -> points.FacetCounts:
        return points.FacetCounts(
            collection_name="main", key=self.one_of("city", KEY, "n"), filter=self.filter(), exact=True
        )

    def _matrix(self) -> points.SearchMatrixPoints:
        request = points.SearchMatrixPoints(collection_name="main", sample=100, limit=5)
        if self.maybe():
            request.filter.CopyFrom(self.filter())
        return request

    def write(self, name: str) -> Any:
        makers: dict[str, Callable[[], Any]] = {
            "Upsert": lambda: self._upserted(points.UpsertPoints()),
            "Delete": lambda: self._selected(points.DeletePoints(), "points"),
            "UpdateVectors": lambda: self._vectors(points.UpdatePointVectors()),
            "DeleteVectors": lambda: self._selected(self._names(points.DeletePointVectors()), "points_selector"),
            "SetPayload": lambda: self._payload_set(points.SetPayloadPoints()),
            "OverwritePayload": lambda: self._payload_set(points.SetPayloadPoints(), paths=0.05),
            "DeletePayload": lambda: self._payload_deleted(points.DeletePayloadPoints()),
            "ClearPayload": lambda: self._selected(points.ClearPayloadPoints(), "points"),
            "UpdateBatch": self._batch,
        }  # fmt: skip
        request = makers[name]()
        request.collection_name = "main"
        request.wait = True
        return request

    def _upserted(self, request: Any) -> Any:
        for _ in range(self.chooser.randint(1, 3)):
            point = request.points.add()
            point.id.CopyFrom(self.own_id() if self.maybe(0.6) else self.id())
            point.vectors.vector.dense.data.extend(self.vector())
            self.payload(point.payload)
        if self.maybe(0.3):
            request.update_filter.CopyFrom(self.filter())
        if self.maybe(0.3):
            request.update_mode = self.one_of(points.Upsert, points.InsertOnly, points.UpdateOnly)
        return request

    def _vectors(self, request: Any) -> Any:
        for _ in range(self.chooser.randint(1, 2)):
            point = request.points.add()
            point.id.CopyFrom(self.own_id())
            point.vectors.vector.dense.data.extend(self.vector())
        if self.maybe(0.3):
            request.update_filter.CopyFrom(self.filter())
        return request

    def _names(self, request: Any) -> Any:
        request.vectors.names.append("")
        return request

    def _selected(self, request: Any, field: str) -> Any:
        self.selector(getattr(request, field))
        return request

    def _payload_set(self, request: Any, paths: float = 0.2) -> Any:
        self.payload(request.payload)
        if self.maybe(paths):
            request.key = self.one_of("meta", "meta.deep", KEY, f'"{KEY}"', f"{KEY}[0]", f"{KEY}.x")
        self.selector(request.points_selector)
        return request

    def _payload_deleted(self, request: Any) -> Any:
        request.keys.extend(self.chooser.sample(["city", "n", "meta.a", "tags"], 2))
        if self.maybe(0.1):
            request.keys.append(self.one_of(KEY, f'"{KEY}"'))
        self.selector(request.points_selector)
        return request

    def _batch(self) -> points.UpdateBatchPoints:
        request = points.UpdateBatchPoints()
        for _ in range(self.chooser.randint(1, 3)):
            operation = request.operations.add()
            form = self.one_of(*(field.name for field in operation.DESCRIPTOR.fields))
            part = getattr(operation, form)
            part.SetInParent()
            if form == "upsert":
                self._upserted(part)
            elif form == "update_vectors":
                self._vectors(part)
            elif form in ("delete_deprecated", "clear_payload_deprecated"):
                self.selector(part)
            elif form in ("delete_points", "clear_payload"):
                self.selector(part.points)
            elif form == "delete_vectors":
                self._selected(self._names(part), "points_selector")
            elif form == "delete_payload":
                self._payload_deleted(part)
            else:
                self._payload_set(part, paths=0.05)
        return request
