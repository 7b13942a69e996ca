"""Universal queries in the types of `qdrant_edge`, and what Qdrant does with them above its shards.

Above a shard a server takes ids for the vectors of their points, leaves those points out of the result, and makes one
vector of the examples of an average recommendation. That is done here; the shard does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import qdrant_edge as edge
from google.protobuf.message import Message
from qdrant_client.conversions.conversion import GrpcToRest, grpc_to_payload

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from tests.replica.edge_engine import Inexpressible, condition_of, filter_of

from .answers import Id, id_of
from .calls import Refused

DEFAULT_LIMIT = 10
MMR_DIVERSITY = 0.5
RRF_K = 2

Lookup = Callable[[Any, Id], Any]
"""The vector that an id means in a query or prefetch; raises Refusal."""


class Refusal(Exception):
    """The layers above the shard refuse a call."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.refused = Refused(status, text)


def filter_from(given: common.Filter) -> Any:
    """A filter of the wire in the engine's types. Conditions with nothing in them are no constraint."""
    copy = common.Filter()
    copy.CopyFrom(given)
    _drop_empty(copy)
    return filter_of(GrpcToRest.convert_filter(copy))


def checked_above(request: Message) -> None:
    """Raise for what the layers above the shard refuse: field conditions that say nothing."""
    for condition in _conditions(request):
        if condition.HasField("field") and len(condition.field.ListFields()) <= 1:
            raise Inexpressible("field conditions that say nothing are refused above the shard")


def _conditions(message: Message) -> Iterator[common.Condition]:
    for descriptor, value in message.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE or descriptor.message_type.GetOptions().map_entry:
            continue
        for part in value if descriptor.is_repeated else (value,):
            if isinstance(part, common.Condition):
                yield part
            yield from _conditions(part)


def _drop_empty(given: common.Filter) -> None:
    for listed in (given.must, given.should, given.must_not, given.min_should.conditions):
        for number in reversed(range(len(listed))):
            kind = listed[number].WhichOneof("condition_one_of")
            if kind is None:
                del listed[number]
            elif kind == "filter":
                _drop_empty(listed[number].filter)


def referenced(query: Message) -> list[Id]:
    """Ids of points that a query refers to by their vectors."""
    found: list[Id] = []
    for descriptor, value in query.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE or descriptor.message_type.full_name == "qdrant.Filter":
            continue
        parts = value if descriptor.is_repeated else (value,)
        if descriptor.message_type.GetOptions().map_entry:
            continue
        for part in parts:
            if isinstance(part, pb.VectorInput):
                if part.WhichOneof("variant") == "id":
                    found.append(id_of(part.id))
            else:
                found.extend(referenced(part))
    return found


def without(query_filter: common.Filter, ids: Iterable[Id]) -> common.Filter:
    """The filter, and not these points."""
    unwanted = list(dict.fromkeys(ids))
    if not unwanted:
        return query_filter
    narrowed = common.Filter()
    narrowed.CopyFrom(query_filter)
    has = narrowed.must_not.add().has_id.has_id
    for one in unwanted:
        has.add(**({"num": one} if isinstance(one, int) else {"uuid": one}))
    return narrowed


class Translator:
    """One query; `lookup` gives stored vectors, `is_averaged` says which vectors can be averaged here."""

    def __init__(self, lookup: Lookup, is_plain: Callable[[str], bool]) -> None:
        self._lookup = lookup
        self._is_plain = is_plain

    def query(self, given: pb.QueryPoints | pb.PrefetchQuery, asked: int) -> Any:
        """The scoring part of a query or prefetch, None for none."""
        if not given.HasField("query"):
            return None
        query = given.query
        form = query.WhichOneof("variant")
        match form:
            case "order_by":
                return order_of(query.order_by)
            case "sample":
                return edge.Sample.Random
            case "fusion":
                return edge.Fusion.Dbsf() if query.fusion == pb.Fusion.DBSF else edge.Fusion.Rrf(RRF_K)
            case "rrf":
                k = query.rrf.k if query.rrf.HasField("k") else RRF_K
                return edge.Fusion.Rrf(k, list(query.rrf.weights) or None)
            case "formula":
                defaults = grpc_to_payload(query.formula.defaults)
                return edge.Formula(expression_of(query.formula.expression), defaults)
            case "nearest_with_mmr":
                return self._mmr(given, asked)
            case _:
                return self._by_vectors(given, form)

    def _input(self, given: pb.VectorInput, node: Any) -> Any:
        match given.WhichOneof("variant"):
            case "id":
                return self._lookup(node, id_of(given.id))
            case "dense":
                return list(given.dense.data)
            case "sparse":
                if not given.sparse.indices:
                    raise Inexpressible("the bindings break down over a sparse vector of nothing")
                return edge.SparseVector(list(given.sparse.indices), list(given.sparse.values))
            case "multi_dense":
                return [list(row.data) for row in given.multi_dense.vectors]
            case kind:
                raise Inexpressible(f"a vector by {kind}")

    def _mmr(self, given: Any, asked: int) -> Any:
        part = given.query.nearest_with_mmr
        diversity = part.mmr.diversity if part.mmr.HasField("diversity") else MMR_DIVERSITY
        candidates = part.mmr.candidates_limit if part.mmr.HasField("candidates_limit") else asked
        return edge.Mmr(self._input(part.nearest, given), 1 - diversity, candidates, given.using)

    def _by_vectors(self, given: Any, form: str | None) -> Any:
        query, using = given.query, given.using

        def inputs(several: Iterable[pb.VectorInput]) -> list[Any]:
            return [self._input(one, given) for one in several]

        def pairs(context: pb.ContextInput) -> list[Any]:
            return [edge.ContextPair(*inputs((pair.positive, pair.negative))) for pair in context.pairs]

        match form:
            case "nearest":
                return edge.Query.Nearest(self._input(query.nearest, given), using)
            case "recommend":
                return self._recommend(query.recommend, given)
            case "discover":
                target = self._input(query.discover.target, given)
                return edge.Query.Discover(edge.DiscoverQuery(target, pairs(query.discover.context)), using)
            case "context":
                return edge.Query.Context(edge.ContextQuery(pairs(query.context)), using)
            case "relevance_feedback":
                given_back = query.relevance_feedback
                items = [edge.FeedbackItem(self._input(one.example, given), one.score) for one in given_back.feedback]
                naive = given_back.strategy.naive
                strategy = edge.NaiveFeedbackStrategy(naive.a, naive.b, naive.c)
                target = self._input(given_back.target, given)
                return edge.Query.FeedbackNaive(edge.FeedbackNaiveQuery(target, items, strategy), using)
            case _:
                raise Inexpressible(f"a query of the form {form}")

    def _recommend(self, given: pb.RecommendInput, node: Any) -> Any:
        using = node.using

        def examples(several: Iterable[pb.VectorInput]) -> list[Any]:
            """Those that have the vector: a server leaves the others out."""
            found = []
            for one in several:
                try:
                    found.append(self._input(one, node))
                except Refusal as refusal:
                    if "Vector with name" not in refusal.refused.text:
                        raise
            return found

        positive, negative = examples(given.positive), examples(given.negative)
        if given.strategy == pb.AverageVector:
            if not positive:
                raise Refusal("INVALID_ARGUMENT", "At least one positive vector ID required")
            if not self._is_plain(using):
                raise Inexpressible("the average of sparse vectors or of vectors of several rows")
            average = np.mean(np.array(positive, dtype=np.float32), axis=0)
            if negative:
                average = average + average - np.mean(np.array(negative, dtype=np.float32), axis=0)
            return edge.Query.Nearest(average.tolist(), using)
        if not given.positive and not given.negative:
            raise Refusal("INVALID_ARGUMENT", "At least one positive or negative vector ID required")
        query = edge.RecommendQuery(positive, negative)
        if given.strategy == pb.BestScore:
            return edge.Query.RecommendBestScore(query, using)
        return edge.Query.RecommendSumScores(query, using)

    def prefetch(self, given: pb.PrefetchQuery) -> Any:
        """A prefetch with its own prefetches."""
        limit = given.limit if given.HasField("limit") else DEFAULT_LIMIT
        return edge.Prefetch(
            limit,
            query=self.query(given, limit),
            prefetches=[self.prefetch(one) for one in given.prefetch],
            filter=filter_from(given.filter) if given.HasField("filter") else None,
            score_threshold=given.score_threshold if given.HasField("score_threshold") else None,
        )


def order_of(given: pb.OrderBy) -> Any:
    """An order by a field."""
    start: Any = None
    if given.HasField("start_from"):
        form = given.start_from.WhichOneof("value")
        start = getattr(given.start_from, form) if form else None
        if form in ("timestamp", "datetime"):
            start = start.ToJsonString() if form == "timestamp" else start
    direction = edge.Direction.Desc if given.direction == pb.Desc else edge.Direction.Asc
    return edge.OrderBy(given.key, direction, start)


_SEVERAL: dict[str, Callable[..., Any]] = {
    "mult": edge.Expression.Mult,
    "sum": edge.Expression.Sum,
    "max": edge.Expression.Max,
    "min": edge.Expression.Min,
}
_ONE: dict[str, Callable[..., Any]] = {
    "abs": edge.Expression.Abs,
    "neg": edge.Expression.Neg,
    "exp": edge.Expression.Exp,
    "log10": edge.Expression.Log10,
    "ln": edge.Expression.Ln,
    "sqrt": edge.Expression.Sqrt,
}
_DECAYS = {
    "exp_decay": edge.DecayKind.Exp,
    "gauss_decay": edge.DecayKind.Gauss,
    "lin_decay": edge.DecayKind.Lin,
}


def expression_of(given: pb.Expression) -> Any:
    """An expression of a formula."""
    form = given.WhichOneof("variant")
    if form is None:
        raise Inexpressible("an expression of no form is refused above the shard")
    part = getattr(given, form)
    if form in _SEVERAL:
        return _SEVERAL[form]([expression_of(one) for one in getattr(part, form)])
    if form in _ONE:
        return _ONE[form](expression_of(part))
    if form in _DECAYS:
        return edge.Expression.Decay(
            _DECAYS[form],
            expression_of(part.x),
            target=expression_of(part.target) if part.HasField("target") else None,
            midpoint=part.midpoint if part.HasField("midpoint") else None,
            scale=part.scale if part.HasField("scale") else None,
        )
    match form:
        case "constant":
            return edge.Expression.Constant(part)
        case "variable":
            return edge.Expression.Variable(part)
        case "condition":
            return edge.Expression.Condition(condition_of(GrpcToRest.convert_condition(part)))
        case "geo_distance":
            return edge.Expression.GeoDistance(edge.GeoPoint(part.origin.lon, part.origin.lat), part.to)
        case "datetime":
            return edge.Expression.Datetime(part)
        case "datetime_key":
            return edge.Expression.DatetimeKey(part)
        case "div":
            default = part.by_zero_default if part.HasField("by_zero_default") else None
            return edge.Expression.Div(expression_of(part.left), expression_of(part.right), default)
        case "pow":
            return edge.Expression.Pow(expression_of(part.base), expression_of(part.exponent))
        case _:
            raise Inexpressible(f"an expression of the form {form}")
