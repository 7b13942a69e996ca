"""PURE. Random universal queries: every form, with prefetches and formulas."""

from __future__ import annotations

from typing import Any

from qdrant_client import models as m
from qdrant_client.conversions.conversion import RestToGrpc

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common

from .values import Values, as_payload

ORDERED = ("n", "f", "when")


class Queries:
    """Queries for a shape. In prefetches, forms that give many points the same score are left out.

    Which of the points that tie a limit in the middle of a query keeps is nobody's promise, and what comes after it
    differs.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._chance = values.chance

    def using(self) -> str:
        """The name of a vector to search."""
        return self._values.name()

    def query(self, name: str, *, in_prefetch: bool = False, is_leaf: bool = False) -> pb.Query:
        """A query by vectors. MMR is over nothing in prefetches but in their leaves: `test_mmr.py` has the rest."""
        chance, values = self._chance, self._values
        vector = values.shape.vectors[name]
        kind = chance.random()
        # In a prefetch, points without a common index would tie at 0.
        if kind < 0.4 or (in_prefetch and vector.is_sparse):
            return pb.Query(nearest=values.input(name))
        # Discover squashes scores: of large ones many tie, in either engine, and fusion gives each of them its rank.
        if kind >= 0.75 and in_prefetch and vector.has_large_scores:
            return pb.Query(nearest=values.input(name))
        if kind < 0.5 and (is_leaf or not in_prefetch):
            mmr = pb.Mmr()
            if chance.random() < 0.7:
                mmr.diversity = chance.choice((0.0, 0.3, 1.0))
            if chance.random() < 0.5:
                mmr.candidates_limit = 20
            return pb.Query(nearest_with_mmr=pb.NearestInputWithMmr(nearest=values.input(name), mmr=mmr))
        if kind < 0.7:
            return pb.Query(recommend=self._recommend(name, in_prefetch=in_prefetch))
        if kind < 0.75:
            return pb.Query(relevance_feedback=self._feedback(name))
        # Never the same point on both sides: what is nearer to neither is a matter of rounding.
        pairs = [
            pb.ContextInputPair(positive=values.input(name), negative=values.input(name, by_id=0))
            for _ in range(chance.randint(1, 2))
        ]
        if kind < 0.9 or in_prefetch:
            discover = pb.DiscoverInput(target=values.input(name), context=pb.ContextInput(pairs=pairs))
            return pb.Query(discover=discover)
        return pb.Query(context=pb.ContextInput(pairs=pairs))

    def _recommend(self, name: str, *, in_prefetch: bool) -> pb.RecommendInput:
        strategies = [None, pb.AverageVector, pb.SumScores]
        if not (in_prefetch and self._values.shape.vectors[name].has_large_scores):
            # The best score is squashed as that of Discover is.
            strategies.append(pb.BestScore)
        strategy = self._chance.choice(strategies)
        positive = [self._values.input(name, by_id=0.5) for _ in range(self._chance.randint(0, 2))]
        negative = [self._values.input(name, by_id=0.5) for _ in range(self._chance.randint(0, 2))]
        if in_prefetch or strategy in (None, pb.AverageVector) or not negative:
            # Not only ids, of which each may lack the vector: without examples all points tie, and of a query with two
            # faults nobody says which is refused.
            positive.append(self._values.input(name, by_id=0))
        return pb.RecommendInput(positive=positive, negative=negative, strategy=strategy)

    def _feedback(self, name: str) -> pb.RelevanceFeedbackInput:
        feedback = [
            pb.FeedbackItem(example=self._values.input(name), score=self._chance.random())
            for _ in range(self._chance.randint(1, 3))
        ]
        naive = pb.NaiveFeedbackStrategy(a=1.0, b=0.5, c=0.3)
        return pb.RelevanceFeedbackInput(
            target=self._values.input(name), feedback=feedback, strategy=pb.FeedbackStrategy(naive=naive)
        )

    def prefetch(self, depth: int = 0) -> pb.PrefetchQuery:
        """Candidates for an outer query, perhaps with their own."""
        name = self.using()
        query = self.query(name, in_prefetch=True, is_leaf=True)
        made = pb.PrefetchQuery(query=query, using=name, limit=self._chance.randint(3, 30))
        if depth == 0 and self._chance.random() < 0.3:
            made.prefetch.append(self.prefetch(depth + 1))
            if query.HasField("nearest_with_mmr"):
                made.query.nearest.CopyFrom(query.nearest_with_mmr.nearest)
        if self._chance.random() < 0.4:
            made.filter.CopyFrom(self._values.filter())
        if self._chance.random() < 0.15:
            made.score_threshold = 0.1
        return made

    def request(self) -> pb.QueryPoints:
        """A whole query without selectors, limit and filter."""
        kind = self._chance.random()
        if kind < 0.5:
            name = self.using()
            return pb.QueryPoints(query=self.query(name), using=name)
        if kind < 0.58:
            return pb.QueryPoints()
        if kind < 0.66:
            return pb.QueryPoints(query=pb.Query(order_by=self.order_by()))
        if kind < 0.69:
            return pb.QueryPoints(query=pb.Query(sample=pb.Sample.Random))
        prefetch = [self.prefetch() for _ in range(self._chance.randint(1, 3))]
        if kind < 0.8:
            return pb.QueryPoints(query=self._fusion(len(prefetch)), prefetch=prefetch)
        if kind < 0.92:
            return pb.QueryPoints(query=self._formula(), prefetch=prefetch)
        name = self.using()
        return pb.QueryPoints(query=self.query(name, in_prefetch=True), using=name, prefetch=prefetch)

    def order_by(self) -> pb.OrderBy:
        """An order by a field that may have an index."""
        key = self._chance.choice(ORDERED)
        order = pb.OrderBy(key=key)
        if self._chance.random() < 0.7:
            order.direction = self._chance.choice((pb.Asc, pb.Desc))
        if self._chance.random() < 0.4:
            start: dict[str, Any] = {"n": {"integer": 2}, "f": {"float": 4.5}, "when": {"datetime": "2024-01-10"}}
            order.start_from.CopyFrom(pb.StartFrom(**start[key]))
        return order

    def _fusion(self, sources: int) -> pb.Query:
        kind = self._chance.random()
        if kind < 0.35:
            return pb.Query(fusion=pb.Fusion.RRF)
        if kind < 0.7:
            return pb.Query(fusion=pb.Fusion.DBSF)
        rrf = pb.Rrf()
        if self._chance.random() < 0.7:
            rrf.k = self._chance.choice((1, 5, 60))
        if self._chance.random() < 0.5:
            rrf.weights.extend([1.0 + number for number in range(sources)])
        return pb.Query(rrf=rrf)

    def _formula(self) -> pb.Query:
        defaults = {"missing": 2.0, "$score[1]": 0.5, "geo": {"lon": 3.0, "lat": 4.0}}
        chosen = {name: value for name, value in defaults.items() if self._chance.random() < 0.8}
        return pb.Query(formula=pb.Formula(expression=self._expression(), defaults=as_payload(chosen)))

    def _leaf(self) -> Any:
        chance = self._chance
        condition = m.FieldCondition(key=chance.choice(("a", "k", "n")), match=m.MatchAny(any=["x", "red"]))
        origin = m.GeoDistanceParams(origin=m.GeoPoint(lon=1, lat=2), to="geo")
        return chance.choice(
            (
                round(chance.uniform(-3, 3), 2),
                "f",
                "$score",
                "$score[1]",
                chance.choice(("n", "missing", "o.y")),
                condition,
                m.DatetimeKeyExpression(datetime_key="when"),
                m.DatetimeExpression(datetime="2024-01-05T00:00:00Z"),
                m.GeoDistance(geo_distance=origin),
            )
        )

    def _model(self, depth: int = 0) -> Any:
        """Any expression; some fail for some points."""
        chance = self._chance
        if depth > 2 or chance.random() < 0.3:
            return self._leaf()

        def inner() -> Any:
            return self._model(depth + 1)

        decay = m.DecayParamsExpression(x=inner(), target=chance.choice((None, 2.0)), scale=5.0, midpoint=0.3)
        return chance.choice(
            (
                lambda: m.SumExpression(sum=[inner() for _ in range(3)]),
                lambda: m.MultExpression(mult=[inner(), inner()]),
                lambda: m.MaxExpression(max=[inner(), inner()]),
                lambda: m.MinExpression(min=[inner(), inner()]),
                lambda: m.DivExpression(
                    div=m.DivParams(left=inner(), right=inner(), by_zero_default=chance.choice((None, 1.5)))
                ),
                lambda: m.NegExpression(neg=inner()),
                lambda: m.AbsExpression(abs=inner()),
                lambda: m.SqrtExpression(sqrt=m.AbsExpression(abs=inner())),
                lambda: m.PowExpression(pow=m.PowParams(base=inner(), exponent=2.0)),
                lambda: m.ExpExpression(exp=m.NegExpression(neg=m.AbsExpression(abs=inner()))),
                lambda: m.LnExpression(ln=inner()),
                lambda: m.Log10Expression(log10=m.SumExpression(sum=[1.0, m.AbsExpression(abs=inner())])),
                lambda: m.ExpDecayExpression(exp_decay=decay),
                lambda: m.GaussDecayExpression(gauss_decay=decay),
                lambda: m.LinDecayExpression(lin_decay=decay),
            )
        )()

    def _expression(self) -> pb.Expression:
        return RestToGrpc.convert_expression(self._model())

    # --- what a request asks for ---

    def payload_selector(self) -> pb.WithPayloadSelector:
        """All, none, some fields, all but some."""
        return self._chance.choice(
            (
                pb.WithPayloadSelector(enable=True),
                pb.WithPayloadSelector(enable=True),
                pb.WithPayloadSelector(enable=False),
                pb.WithPayloadSelector(include=pb.PayloadIncludeSelector(fields=["a", "l[].x", "o.x"])),
                pb.WithPayloadSelector(exclude=pb.PayloadExcludeSelector(fields=["a", "o.y", "l[].x"])),
            )
        )

    def vectors_selector(self) -> pb.WithVectorsSelector:
        """All, none, some."""
        names = pb.VectorsSelector(names=[self.using()])
        return self._chance.choice(
            (
                pb.WithVectorsSelector(enable=True),
                pb.WithVectorsSelector(enable=False),
                pb.WithVectorsSelector(include=names),
            )
        )

    def params(self) -> pb.SearchParams:
        """Search parameters: accepted, and of no effect where search is exact."""
        return self._chance.choice(
            (
                pb.SearchParams(exact=True),
                pb.SearchParams(hnsw_ef=64),
                pb.SearchParams(indexed_only=False),
                pb.SearchParams(quantization=pb.QuantizationSearchParams(rescore=True)),
            )
        )

    def maybe_filter(self, request: Any, share: float = 0.5) -> None:
        """A filter, in about that share of requests."""
        if self._chance.random() < share:
            request.filter.CopyFrom(self._values.filter())

    def lookup(self, collection: str, name: str) -> pb.LookupLocation:
        """Another collection to take the vectors of ids from."""
        return pb.LookupLocation(collection_name=collection, vector_name=name)

    def filter(self) -> common.Filter:
        """A filter."""
        return self._values.filter()
