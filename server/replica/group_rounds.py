"""Groups over what prefetches found, gathered in rounds.

Promises: the rounds are Qdrant's. Each asks for as many points as all groups can hold, of those not seen yet, with the
limits of prefetches times the size of a group. At most five leave out the groups that are full, until enough of the
best are; at most five more ask for the best that are not. What prefetches find depends on the round, and so do scores:
one longer answer would give other groups. Does not promise an order where Qdrant has none (MMR, samples).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.replica.groups import Group, GroupId, identified
from server.replica.points import id_of
from server.replica.records import Key, Record
from server.replica.session import Session
from server.replica.universal import DEFAULT_LIMIT, Hit

_COLLECTING_ROUNDS = 5
_FILLING_ROUNDS = 5
_U64_MAX = 2**64 - 1
_U32_MAX = 2**32 - 1

Rank: TypeAlias = Callable[[Hit], "int | float"]


def wants_rounds(query: points.QueryPoints) -> bool:
    """Whether a longer answer to a query need not begin with the shorter one."""
    return bool(query.prefetch) or query.query.WhichOneof("variant") == "nearest_with_mmr"


@dataclass(slots=True)
class Rounds:
    """Groups under way: at most `limit`, with `size` hits in each."""

    session: Session
    group_by: str
    limit: int
    size: int
    _groups: dict[tuple[type, GroupId], Group] = field(default_factory=dict)
    _seen: set[Key] = field(default_factory=set)

    def gather(self, query: points.QueryPoints, run: Callable[[points.QueryPoints], Sequence[Hit]]) -> list[Group]:
        """The best groups of a query. Raises Refusal."""
        rank = _rank(self.session, query)
        shaped = self._shaped(query)
        for fills, most in ((False, _COLLECTING_ROUNDS), (True, _FILLING_ROUNDS)):
            for _ in range(most):
                best = self._best(rank)
                asked = [one.id for one in (best if fills else self._groups.values()) if self._is_full(one) != fills]
                hits = run(self._round(shaped, _matches(self.group_by, asked, fills=fills)))
                self._add(identified(self.session, hits, self.group_by))
                if sum(map(self._is_full, self._best(rank))) >= self.limit:
                    return self._cut(rank)
                if not hits:
                    break
        return self._cut(rank)

    def _shaped(self, query: points.QueryPoints) -> points.QueryPoints:
        """What all rounds ask."""
        shaped = points.QueryPoints()
        shaped.CopyFrom(query)
        _keep_candidates(shaped, self.limit)
        for inner in shaped.prefetch:
            _lengthen(inner, self.size)
        shaped.limit = min(self.limit * self.size, _U64_MAX)
        shaped.ClearField("offset")
        shaped.filter.must_not.add().is_empty.key = self.group_by
        return shaped

    def _round(self, shaped: points.QueryPoints, matches: Iterable[common.Condition]) -> points.QueryPoints:
        """What one round asks: also for these conditions, and for no point that is in a group."""
        one = points.QueryPoints()
        one.CopyFrom(shaped)
        one.filter.must.extend(matches)
        if self._seen:
            one.filter.must_not.add().has_id.has_id.extend(map(id_of, self._seen))
        return one

    def _add(self, hits: Iterable[tuple[Hit, Record, list[GroupId]]]) -> None:
        for hit, record, ids in hits:
            for group_id in ids:
                group = self._groups.setdefault((type(group_id), group_id), Group(group_id))
                if hit.key not in group.keys:
                    group.keys.add(hit.key)
                    group.hits.append((hit, record))
                    self._seen.add(hit.key)

    def _is_full(self, group: Group) -> bool:
        return len(group.hits) >= self.size

    def _best(self, rank: Rank) -> list[Group]:
        """The groups with the best hits."""
        return sorted(self._groups.values(), key=lambda group: min(rank(hit) for hit, _ in group.hits))[: self.limit]

    def _cut(self, rank: Rank) -> list[Group]:
        """The best groups with the best hits of each. A group grows beyond its size while others are filled."""
        best = self._best(rank)
        for group in best:
            group.hits = sorted(group.hits, key=lambda one: rank(one[0]))[: self.size]
        return best


def _rank(session: Session, query: points.QueryPoints) -> Rank:
    """Smaller is better; all the same where only the order of arrival counts."""
    match query.query.WhichOneof("variant"):
        case "order_by":
            sign = -1 if query.query.order_by.direction == points.Direction.Desc else 1
            return lambda hit: 0 if hit.order is None else sign * hit.order
        case "sample" | "nearest_with_mmr" | None:
            return lambda _: 0
        case "nearest":
            is_distance = True
        case form:
            is_distance = form == "recommend" and query.query.recommend.strategy == points.AverageVector
    if is_distance and session.space(query.using).smaller_is_better:
        return lambda hit: hit.score
    return lambda hit: -hit.score


def _keep_candidates(node: points.QueryPoints | points.PrefetchQuery, limit: int) -> None:
    """MMR chooses among as many as its query was to return before limits were made longer."""
    if node.query.WhichOneof("variant") == "nearest_with_mmr":
        mmr = node.query.nearest_with_mmr.mmr
        if not mmr.HasField("candidates_limit"):
            mmr.candidates_limit = min(limit, _U32_MAX)


def _lengthen(node: points.PrefetchQuery, factor: int) -> None:
    limit = node.limit if node.HasField("limit") else DEFAULT_LIMIT
    _keep_candidates(node, limit)
    node.limit = min(limit * factor, _U64_MAX)
    for inner in node.prefetch:
        _lengthen(inner, factor)


def _matches(key: str, ids: Iterable[GroupId], *, fills: bool) -> list[common.Condition]:
    """Conditions that let only these groups through, or all but these."""
    numbers = common.RepeatedIntegers(integers=[one for one in ids if isinstance(one, int)])
    texts = common.RepeatedStrings(strings=[one for one in ids if isinstance(one, str)])
    conditions: list[common.Condition] = []
    if numbers.integers:
        match = common.Match(integers=numbers) if fills else common.Match(except_integers=numbers)
        conditions.append(common.Condition(field=common.FieldCondition(key=key, match=match)))
    if texts.strings:
        match = common.Match(keywords=texts) if fills else common.Match(except_keywords=texts)
        conditions.append(common.Condition(field=common.FieldCondition(key=key, match=match)))
    return conditions
