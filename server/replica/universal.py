"""The universal query: every form, nested prefetches, fusion, re-scoring.

Promises: the plan is Qdrant's. Filters of outer levels hold in the inner ones; ids that any level refers to are left
out of the result; the inner queries give candidates, the outer one ranks them. Results are (id, score[, order value]).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import formula, inputs, ordering, proposed, ranking, scoring
from server.replica.chunks import QueryVector, Sparse
from server.replica.idf import weighted
from server.replica.inputs import Source
from server.replica.ordering import OrderValue
from server.replica.records import Key
from server.replica.refusal import NotServed, Refusal, bad_body, invalid
from server.replica.session import EVERYTHING, Selection, Session, both, excluding, only
from server.replica.spaces import Space

Node = points.QueryPoints | points.PrefetchQuery

DEFAULT_LIMIT = 10
_MMR_DIVERSITY = 0.5
_MMR_CANDIDATES_MOST = 16_384


@dataclass(frozen=True, slots=True)
class Hit:
    """One result."""

    key: Key
    score: float
    order: OrderValue | None = None


def _bad_request(why: str) -> Refusal:
    return invalid(f"Bad request: {why}")


class Universal:
    """Runs universal queries of one session. `open_session` finds other collections; `chance` samples."""

    def __init__(
        self, session: Session, open_session: Callable[[str], Session], chance: random.Random, most_points: int
    ) -> None:
        self._session = session
        self._open = open_session
        self._chance = chance
        self._most_points = most_points
        self._excluded = EVERYTHING
        self._is_for_groups = False

    def run(self, request: points.QueryPoints, *, limit: int | None = None) -> list[Hit]:
        """The results of a request; `limit` replaces that of the request. Raises Refusal."""
        session = self._session
        session.select(request.filter)
        asked = request.limit if request.HasField("limit") else DEFAULT_LIMIT
        if asked == 0 and limit is None:
            raise bad_body("limit", "value 0 invalid, must be 1 or larger")
        here, elsewhere = self._referenced(request)
        for source, keys in [(session, here), *elsewhere]:
            inputs.demand(source, keys)
        self._check(request)
        is_sample = request.query.WhichOneof("variant") == "sample" and not request.prefetch
        offset = 0 if is_sample else request.offset
        wanted = asked if limit is None else limit
        count = self._capped(request, wanted + offset)
        self._excluded = excluding(here)
        self._is_for_groups = limit is not None
        hits = self._level(request, request.filter, count, "", wanted)
        if request.query.WhichOneof("variant") == "order_by":
            # Merging what its shards answer, Qdrant drops a point that stands there twice running.
            hits = [next(same) for _, same in groupby(hits, key=lambda hit: hit.key)]
        self._note(request, "query", count, len(hits))
        self._refuse_huge(len(hits))
        return hits[offset : offset + wanted]

    def _capped(self, node: Node, count: int) -> int:
        """Never more than there can be, and no more than shows that an answer is larger than answers may be."""
        most = min(count, self._most_points + 1)
        if node.query.WhichOneof("variant") == "order_by":
            # A point comes once for each value that it is ordered by.
            return most
        return min(most, max(self._session.collection.points, 1))

    def _note(self, node: Node, place: str, limit: int, results: int) -> None:
        """For the plan: a level is done."""
        if self._session.plan.is_wanted:
            form = node.query.WhichOneof("variant") if node.HasField("query") else None
            self._session.plan.step(
                place, form=form or "by id", using=node.using, limit=limit, results=results, merges=len(node.prefetch)
            )

    def _refuse_huge(self, count: int) -> None:
        if count > self._most_points:
            raise NotServed(f"the answer would hold more than {self._most_points} points (replica.response_max_points)")

    def _referenced(self, node: Node) -> tuple[list[Key], list[tuple[Session, list[Key]]]]:
        """Ids that a request and its prefetches refer to, here and in other collections."""
        here: list[Key] = []
        elsewhere: list[tuple[Session, list[Key]]] = []
        keys = inputs.referenced(vector_inputs(node.query)) if node.HasField("query") else []
        if keys:
            source = self._source(node)
            if source.is_other:
                elsewhere.append((source.session, keys))
            else:
                here.extend(keys)
        for inner in node.prefetch:
            more_here, more_elsewhere = self._referenced(inner)
            here.extend(more_here)
            elsewhere.extend(more_elsewhere)
        return here, elsewhere

    def _source(self, node: Node) -> Source:
        lookup = node.lookup_from if node.HasField("lookup_from") else None
        return inputs.source_of(lookup, node.using, self._session, self._open)

    def _check(self, node: Node) -> None:
        """What Qdrant refuses before it looks at points, at every level."""
        form = node.query.WhichOneof("variant") if node.HasField("query") else None
        if node.prefetch and form is None:
            raise _bad_request(
                "A query is needed to merge the prefetches. Can't have prefetches without defining a query."
            )
        if node.HasField("score_threshold"):
            if form == "order_by":
                raise _bad_request("Can't use score_threshold with an order_by query.")
            if form is None:
                raise _bad_request(
                    "A query is needed to use the score_threshold. Can't have score_threshold without defining a query."
                )
        if form in ("fusion", "rrf") and node.using:
            raise _bad_request("Fusion queries cannot be combined with the 'using' field.")
        if form in ("fusion", "rrf") and not node.prefetch:
            raise _bad_request("cannot apply Fusion without prefetches")
        if form == "formula" and not node.prefetch:
            raise _bad_request("cannot apply Formula without prefetches")
        if form == "nearest_with_mmr":
            _check_mmr(node.query.nearest_with_mmr.mmr)
        for inner in node.prefetch:
            self._check(inner)

    def _level(self, node: Node, query_filter: common.Filter, count: int, where: str, asked: int) -> list[Hit]:
        """The first `count` results of one level; `asked` is the limit of the request, offset not counted.

        `query_filter` holds the filters of the outer levels too.
        """
        sources: list[list[Hit]] = []
        for number, inner in enumerate(node.prefetch):
            place = f"{where}prefetch[{number}]."
            self._session.select(inner.filter, f"{place}filter")
            narrowed = merged(query_filter, inner.filter)
            limit = inner.limit if inner.HasField("limit") else DEFAULT_LIMIT
            if limit == 0:
                raise bad_body(f"{place}limit", "value 0 invalid, must be 1 or larger")
            sources.append(self._level(inner, narrowed, self._capped(inner, limit), place, limit))
            self._refuse_huge(len(sources[-1]))
            self._note(inner, place.removesuffix("."), limit, len(sources[-1]))
        form = node.query.WhichOneof("variant") if node.HasField("query") else None
        threshold = node.score_threshold if node.HasField("score_threshold") else None
        if form in ("fusion", "rrf"):
            return _above(self._fused(node.query, sources), threshold)[:count]
        if form == "formula":
            scored = formula.rescore(self._session, node.query.formula, [_pairs(source) for source in sources])
            return _above([Hit(key, score) for key, score in scored], threshold)[:count]
        if form == "nearest_with_mmr" and sources and isinstance(node, points.PrefetchQuery):
            # Of a wrong query there is a refusal without candidates too.
            self._mmr_nearest(node)
            return self._diverse(node, _first_of_each([hit for source in sources for hit in source]), count)
        if sources:
            # The filter was merged into those of the prefetches and is not asked again: where both have a `should`,
            # candidates that pass only theirs stay. Without candidates a wrong query is refused all the same.
            selection = only({hit.key for source in sources for hit in source})
        else:
            selection = both(self._session.select(query_filter), self._excluded)
        return self._ranked(node, selection, count, asked, threshold)

    def _fused(self, query: points.Query, sources: Sequence[Sequence[Hit]]) -> list[Hit]:
        pairs = [_pairs(source) for source in sources]
        if query.WhichOneof("variant") == "rrf":
            weights = list(query.rrf.weights)
            if weights and len(weights) != len(pairs):
                raise _bad_request("RRF weights must have the same length as the prefetches")
            k = query.rrf.k if query.rrf.HasField("k") else ranking.DEFAULT_RRF_K
            if k == 0:
                raise bad_body("query.rrf.k", "value 0 invalid, must be 1 or larger")
            fused = ranking.reciprocal_rank_fusion(pairs, k, weights)
        elif query.fusion == points.Fusion.DBSF:
            fused = ranking.distribution_fusion(pairs)
        else:
            fused = ranking.reciprocal_rank_fusion(pairs, ranking.DEFAULT_RRF_K, [])
        # A point is what it was where it was found first.
        orders = {hit.key: hit.order for source in reversed(sources) for hit in reversed(source)}
        return [Hit(key, score, orders[key]) for key, score in fused]

    def _ranked(self, node: Node, selection: Selection, count: int, asked: int, threshold: float | None) -> list[Hit]:
        match node.query.WhichOneof("variant") if node.HasField("query") else None:
            case None:
                return [Hit(key, 1.0) for key in islice(self._session.keys(selection), count)]
            case "order_by":
                # A point comes once for each of its values, so there may be more results than points.
                offset = node.offset if isinstance(node, points.QueryPoints) else 0
                most = min(asked + offset, self._most_points + 1)
                found = ordering.ordered(self._session, node.query.order_by, selection, most)
                self._refuse_huge(len(found))
                return [Hit(key, 1.0, value) for key, value in found]
            case "sample":
                return [Hit(key, 1.0) for key in self.sample(selection, count)]
            case "text":
                raise NotServed("a query by text needs the server's full-text scoring")
            case "nearest_with_mmr":
                return self._mmr(node, selection, count, asked, threshold)
            case _:
                scorer = self._scorer(node, node.query)
                space = self._session.space(node.using)
                return self._best(scorer, space, selection, count, threshold)

    def _best(
        self, scorer: scoring.Scorer, space: Space, selection: Selection, count: int, threshold: float | None
    ) -> list[Hit]:
        if isinstance(scorer, scoring.Nearest):
            if selection.is_everything and not self._is_for_groups:
                # Qdrant's sparse index has nothing to say of them; the few points of a filter it scores one by one,
                # and for groups it filters by the field that makes them.
                scorer = replace(scorer, skips_zeros=True)
            found = proposed.nearest(self._session, scorer, selection, count)
        else:
            found = scoring.best(scorer, self._session.blocks(space, selection), count)
        return [Hit(key, score) for key, score in scoring.within(found, space, threshold)]

    def sample(self, selection: Selection, count: int) -> list[Key]:
        """Random matching points."""
        keys = list(self._session.keys(selection))
        return self._chance.sample(keys, min(count, len(keys)))

    def _mmr(self, node: Node, selection: Selection, count: int, asked: int, threshold: float | None) -> list[Hit]:
        """The nearest, of which MMR chooses; in a prefetch, Qdrant leaves them all to the query over it."""
        candidates = self._capped(node, _mmr_candidates(node, asked))
        nearest = self._mmr_nearest(node)
        found = self._best(nearest, nearest.space, selection, candidates, threshold)
        if isinstance(node, points.PrefetchQuery):
            return found
        return self._diverse(node, found, count)

    def _mmr_nearest(self, node: Node) -> scoring.Nearest:
        space = self._session.space(node.using)
        given = inputs.demanded(node.query.nearest_with_mmr.nearest, self._source(node))
        return self._nearest(node, space, inputs.prepared(given, space))

    def _diverse(self, node: Node, found: Sequence[Hit], count: int) -> list[Hit]:
        """What MMR chooses of these, with the scores that they have; those that lack the vector are left out."""
        if len(found) > _MMR_CANDIDATES_MOST:
            raise NotServed(f"MMR among more than {_MMR_CANDIDATES_MOST} points is not served")
        space = self._session.space(node.using)
        given = inputs.demanded(node.query.nearest_with_mmr.nearest, self._source(node))
        hits = {hit.key: hit for hit in found}
        block = self._session.block_of_keys(space, hits)
        stored = self._session.block_of_keys(space.without_metric, hits) if space.needs_normalising else block
        share = 1 - _mmr_diversity(node)
        picked = ranking.maximal_marginal_relevance(block, stored, inputs.unrounded(given, space), share, count)
        return [hits[key] for key in picked]

    def _nearest(self, node: Node, space: Space, vector: QueryVector) -> scoring.Nearest:
        corpus = EVERYTHING
        if node.params.idf.HasField("corpus"):
            corpus = self._session.select(node.params.idf.corpus, "params.idf.corpus")
        return self.nearest_to(space, vector, corpus)

    def nearest_to(self, space: Space, vector: QueryVector, corpus: Selection = EVERYTHING) -> scoring.Nearest:
        """Weighted by inverse document frequency where the space asks for it."""
        if isinstance(vector, Sparse) and space.has_idf:
            vector = weighted(self._session, space, vector, corpus)
        return scoring.Nearest(space, vector)

    def _scorer(self, node: Node, query: points.Query) -> scoring.Scorer:
        space = self._session.space(node.using)
        source = self._source(node)

        def vector(one: points.VectorInput) -> QueryVector:
            return self._nearest(node, space, inputs.prepared(inputs.demanded(one, source), space)).vector

        match query.WhichOneof("variant"):
            case "nearest":
                return scoring.Nearest(space, vector(query.nearest))
            case "recommend":
                return self._recommend(node, query.recommend, space, source)
            case "discover":
                pairs = [(vector(pair.positive), vector(pair.negative)) for pair in query.discover.context.pairs]
                return scoring.Discover(vector(query.discover.target), pairs)
            case "context":
                return scoring.Context([(vector(p.positive), vector(p.negative)) for p in query.context.pairs])
            case "relevance_feedback":
                feedback = query.relevance_feedback
                if feedback.strategy.WhichOneof("variant") != "naive":
                    raise invalid("Malformed feedback strategy")
                naive = feedback.strategy.naive
                items = [(vector(item.example), item.score) for item in feedback.feedback]
                return scoring.Feedback(vector(feedback.target), items, naive.a, naive.b, naive.c)
            case form:
                raise NotServed(f"the query form `{form}` is not known to the replica")

    def _recommend(self, node: Node, query: points.RecommendInput, space: Space, source: Source) -> scoring.Scorer:
        """Examples that lack the vector are left out, as in Qdrant."""
        positive = [vector for one in query.positive if (vector := inputs.given(one, source)) is not None]
        negative = [vector for one in query.negative if (vector := inputs.given(one, source)) is not None]
        if query.strategy == points.RecommendStrategy.AverageVector:
            if not positive:
                raise _bad_request("At least one positive vector ID required with this strategy")
            inputs.check_averageable([*positive, *negative], space)
            return self._nearest(node, space, inputs.prepared(scoring.average(positive, negative), space))
        if not (query.positive or query.negative):
            raise _bad_request("At least one positive or negative vector ID required with this strategy")
        liked = [self._nearest(node, space, inputs.prepared(one, space)).vector for one in positive]
        disliked = [self._nearest(node, space, inputs.prepared(one, space)).vector for one in negative]
        if query.strategy == points.RecommendStrategy.BestScore:
            return scoring.BestScore(liked, disliked)
        return scoring.SumScores(liked, disliked)


def merged(outer: common.Filter, inner: common.Filter) -> common.Filter:
    """The filter of a prefetch under an outer filter, as Qdrant puts them together: list by list.

    So the `should` lists of the two become alternatives of each other.
    """
    both_filters = common.Filter()
    both_filters.CopyFrom(outer)
    both_filters.MergeFrom(inner)
    if outer.HasField("min_should") and inner.HasField("min_should"):
        both_filters.min_should.min_count = max(outer.min_should.min_count, inner.min_should.min_count)
    return both_filters


def _pairs(hits: Sequence[Hit]) -> list[scoring.Scored]:
    return [(hit.key, hit.score) for hit in hits]


def _first_of_each(hits: Sequence[Hit]) -> list[Hit]:
    """Each point where it is found first."""
    return list({hit.key: hit for hit in reversed(hits)}.values())[::-1]


def _mmr_diversity(node: Node) -> float:
    mmr = node.query.nearest_with_mmr.mmr
    return mmr.diversity if mmr.HasField("diversity") else _MMR_DIVERSITY


def _mmr_candidates(node: Node, asked: int) -> int:
    mmr = node.query.nearest_with_mmr.mmr
    return mmr.candidates_limit if mmr.HasField("candidates_limit") else asked


def _check_mmr(mmr: points.Mmr) -> None:
    if mmr.HasField("diversity") and not 0 <= mmr.diversity <= 1:
        raise bad_body("query.mmr.diversity", f"value {mmr.diversity} invalid, must be from 0.0 to 1.0")
    if mmr.candidates_limit > _MMR_CANDIDATES_MOST:
        why = f"value {mmr.candidates_limit} invalid, must be {_MMR_CANDIDATES_MOST} or smaller"
        raise bad_body("query.mmr.candidates_limit", why)


def _above(hits: list[Hit], threshold: float | None) -> list[Hit]:
    """Scores of fusion and formula pass when they reach the threshold."""
    return hits if threshold is None else [hit for hit in hits if hit.score >= threshold]


def vector_inputs(query: points.Query) -> Iterator[points.VectorInput]:
    """All inputs of a vector query."""
    match query.WhichOneof("variant"):
        case "nearest":
            yield query.nearest
        case "nearest_with_mmr":
            yield query.nearest_with_mmr.nearest
        case "recommend":
            yield from query.recommend.positive
            yield from query.recommend.negative
        case "discover":
            yield query.discover.target
            yield from _pair_inputs(query.discover.context)
        case "context":
            yield from _pair_inputs(query.context)
        case "relevance_feedback":
            yield query.relevance_feedback.target
            yield from (item.example for item in query.relevance_feedback.feedback)
        case _:
            return


def _pair_inputs(context: points.ContextInput) -> Iterator[points.VectorInput]:
    for pair in context.pairs:
        yield pair.positive
        yield pair.negative
