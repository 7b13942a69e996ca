"""Groups of a query as a server gathers them above its shards, page by page of the engine's answers.

Written from what a server does (1.18 source), beside `server.replica.group_rounds` and without its code. Lookups are
not answered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from qdrant_client.conversions.conversion import grpc_to_payload
from qdrant_client.local.payload_value_extractor import value_by_key

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from tests.replica.edge_engine import Inexpressible

from .answers import Id, id_of
from .values import spelt

ROUNDS = 5
DEFAULT_LIMIT = 10
DEFAULT_SIZE = 3

Page = list[pb.ScoredPoint]
Ask = Callable[[pb.QueryPoints], Page]


class Gathering:
    """Scores by group and point."""

    def __init__(self, request: pb.QueryPointGroups, ask: Ask) -> None:
        if request.HasField("with_lookup"):
            raise Inexpressible("lookups are done above the shard")
        self._request = request
        self._ask = ask
        self._limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        self._size = request.group_size if request.HasField("group_size") else DEFAULT_SIZE
        self._points: dict[Id, pb.ScoredPoint] = {}
        self._groups: dict[Any, dict[Id, float]] = defaultdict(dict)
        self._sign = 0.0

    def groups(self) -> list[tuple[Any, Page]]:
        """The groups, best first, with their points."""
        if not self._collect():
            self._fill()
        return [
            (value, [self._points[one] for one in self._ranked(self._groups[value])[: self._size]])
            for value in self._best()
        ]

    def _collect(self) -> bool:
        for _ in range(ROUNDS):
            if not self._page("except_", [one for one, held in self._groups.items() if len(held) >= self._size]):
                return False
            if self._is_enough():
                return True
        return False

    def _fill(self) -> None:
        for _ in range(ROUNDS):
            lacking = [one for one in self._best() if len(self._groups[one]) < self._size]
            if not self._page("", lacking) or self._is_enough():
                return

    def _is_enough(self) -> bool:
        return sum(len(self._groups[one]) >= self._size for one in self._best()) >= self._limit

    def _ranked(self, scores: dict[Any, float]) -> list[Any]:
        return sorted(scores, key=lambda one: self._sign * scores[one])

    def _best(self) -> list[Any]:
        bests = {
            value: min(held.values(), key=lambda score: self._sign * score) for value, held in self._groups.items()
        }
        return self._ranked(bests)[: self._limit]

    def _page(self, prefix: str, values: Iterable[Any]) -> bool:
        """Ask for more; False when there are none."""
        page = self._ask(self._query(prefix, list(values)))
        scores = [point.score for point in page]
        if not self._sign and len(set(scores)) > 1 and not self._request.query.HasField("nearest_with_mmr"):
            self._sign = -1.0 if scores[0] > scores[-1] else 1.0
        for point in page:
            found = value_by_key(grpc_to_payload(point.payload), self._request.group_by) or []
            values = [one for value in found for one in (value if isinstance(value, list) else [value])]
            if all(isinstance(one, str | int) and not isinstance(one, bool) for one in values):
                for one in values:
                    self._points[id_of(point.id)] = point
                    self._groups[one][id_of(point.id)] = point.score
        return bool(page)

    def _query(self, prefix: str, values: list[Any]) -> pb.QueryPoints:
        request = self._request
        query = pb.QueryPoints(collection_name=request.collection_name, prefetch=request.prefetch, using=request.using)
        for name in ("query", "filter", "params", "lookup_from"):
            if request.HasField(name):
                getattr(query, name).CopyFrom(getattr(request, name))
        if request.HasField("score_threshold"):
            query.score_threshold = request.score_threshold
        _settle_mmr(query.query, self._limit)
        query.limit = self._limit * self._size
        stack = list(query.prefetch)
        while stack:
            inner = stack.pop()
            limit = inner.limit if inner.HasField("limit") else DEFAULT_LIMIT
            _settle_mmr(inner.query, limit)
            inner.limit = limit * self._size
            stack.extend(inner.prefetch)
        whole = [one for one in values if isinstance(one, int)]
        texts = [one for one in values if isinstance(one, str)]
        if whole:
            match = common.Match(**{f"{prefix}integers": common.RepeatedIntegers(integers=whole)})
            query.filter.must.add().field.CopyFrom(common.FieldCondition(key=request.group_by, match=match))
        if texts:
            name = f"{prefix}keywords"
            match = common.Match(**{name: common.RepeatedStrings(strings=texts)})
            query.filter.must.add().field.CopyFrom(common.FieldCondition(key=request.group_by, match=match))
        if self._points:
            query.filter.must_not.add().has_id.has_id.extend(spelt(one) for one in self._points)
        query.filter.must_not.add().is_empty.key = request.group_by
        query.with_payload.enable = True
        return query


def _settle_mmr(query: pb.Query, limit: int) -> None:
    """A server takes the number of candidates from the limit that was asked for, then multiplies limits."""
    if query.HasField("nearest_with_mmr") and not query.nearest_with_mmr.mmr.HasField("candidates_limit"):
        query.nearest_with_mmr.mmr.candidates_limit = limit
