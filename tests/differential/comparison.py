"""Whether two outcomes of a call say the same.

Promises: statuses, ids, payloads, vectors and order are equal, scores to 1e-4. Ties may stand in any order, and where a
limit cuts among them either may be on the page; but then every point of our page has, by the oracle's own answer to the
same request without a limit, the score that we gave it. So a point that does not belong on the page never passes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from generated.qdrant import points_pb2 as pb
from server.rpc import POINTS

from .answers import Group, Hit, Page, Pairs, said
from .calls import Call, Gap, Outcome, Refused
from .searches import EVERYTHING

TOLERANCE = 1e-4
DEFAULT_GROUP_SIZE = 3
Ask: TypeAlias = Callable[[Call], Outcome]


class Differs(Exception):
    """Two answers are not the same; says where."""


def difference(call: Call, ours: Outcome, theirs: Outcome, ask: Ask) -> str:
    """Where two outcomes differ, "" where they do not. `ask` puts further questions to the oracle."""
    try:
        _compare(call, ours, theirs, ask)
    except Differs as differs:
        return str(differs)
    return ""


def _answered(call: Call, ask: Ask) -> Any:
    """What the oracle says to a further question. Raises Differs when it has no answer."""
    found = ask(call)
    _demand(not isinstance(found, Refused | Gap), f"the oracle does not answer without a limit: {_told(found)}")
    return said(call.method, found)


def _compare(call: Call, ours: Outcome, theirs: Outcome, ask: Ask) -> None:
    _demand(not isinstance(theirs, Gap), f"the oracle cannot say it: {_told(theirs)}")
    if isinstance(ours, Refused) or isinstance(theirs, Refused):
        mine, other = (one.status if isinstance(one, Refused) else "OK" for one in (ours, theirs))
        _demand(mine == other, f"status {_told(ours)}, oracle {_told(theirs)}")
        return
    mine, other = said(call.method, ours), said(call.method, theirs)
    match other:
        case Page():
            _pages(call, mine, other, ask)
        case [Page(), *_]:
            _demand(len(mine) == len(other), f"{len(mine)} answers, oracle {len(other)}")
            for single, one, its in zip(parts_of(call), mine, other, strict=True):
                _pages(single, one, its, ask)
        case [Group(), *_]:
            _groups(call, mine, other, ask)
        case Pairs():
            _pairs(call, mine, other, ask)
        case _ if call.name == "Facet":
            _facets(call, mine, other, ask)
        case _:
            _demand(mine == other, f"{mine!r}, oracle {other!r}")


def _told(outcome: Outcome) -> str:
    return str(outcome) if isinstance(outcome, Refused | Gap) else "OK"


def _demand(holds: bool, where: str) -> None:
    if not holds:
        raise Differs(where)


def is_close(mine: float | None, other: float | None) -> bool:
    """Equal to the tolerance, relative above 1."""
    if mine is None or other is None:
        return mine is other
    if math.isnan(mine) or math.isnan(other):
        return math.isnan(mine) and math.isnan(other)
    return mine == other or abs(mine - other) <= TOLERANCE * max(1.0, abs(other))


# --- pages -----------------------------------------------------------------------------------------------------------


def _is_by_id(call: Call) -> bool:
    """Whether the order of a page is that of ids (or of the request), without ties."""
    request = call.request
    if call.name == "Get":
        return True
    if call.name == "Scroll":
        return not request.HasField("order_by")
    return call.name == "Query" and not request.HasField("query") and not request.prefetch


def _pages(call: Call, mine: Page, other: Page, ask: Ask) -> None:
    ids = [hit.id for hit in mine.hits]
    theirs = [hit.id for hit in other.hits]
    _demand(len(ids) == len(theirs), f"{len(ids)} points {ids}, oracle {len(theirs)} {theirs}")
    _demand(mine.following == other.following, f"next page at {mine.following}, oracle {other.following}")
    if _is_by_id(call):
        _demand(ids == theirs, f"points {ids}, oracle {theirs}")
    is_sample = call.name == "Query" and call.request.query.WhichOneof("variant") == "sample"
    for rank, (one, its) in enumerate(zip(mine.hits, other.hits, strict=True)):
        _demand(
            is_sample or (is_close(one.score, its.score) and is_close(one.order, its.order)),
            f"rank {rank}: {one.id} {one.score} {one.order}, oracle {its.id} {its.score} {its.order}",
        )
    _known(call, mine.hits, other.hits, ask)


def _known(call: Call, mine: Sequence[Hit], other: Sequence[Hit], ask: Ask) -> None:
    """Each of our points is as the oracle has it, on its page or, among ties, beyond."""
    _demand(
        all(count == 1 for count in Counter((hit.id, hit.order) for hit in mine).values()), "a point twice on a page"
    )
    at = {(hit.id, hit.order): hit for hit in other}
    if any((hit.id, hit.order) not in at for hit in mine):
        at = {(hit.id, hit.order): hit for hit in _everything(call, ask)}
    for one in mine:
        its = at.get((one.id, one.order))
        _demand(its is not None, f"point {one.id}, which the oracle does not find")
        assert its is not None
        same_point(one, its)


def same_point(one: Hit, its: Hit) -> None:
    """Score, payload and vectors of one point. Raises Differs."""
    _demand(is_close(one.score, its.score), f"score of {one.id} {one.score}, oracle {its.score}")
    _demand((one.payload or {}) == (its.payload or {}), f"payload of {one.id} {one.payload}, oracle {its.payload}")
    mine, other = one.vectors or {}, its.vectors or {}
    _demand(mine.keys() == other.keys(), f"vectors of {one.id} {sorted(mine)}, oracle {sorted(other)}")
    for name, vector in mine.items():
        _demand(is_same_vector(vector, other[name]), f"vector `{name}` of {one.id} {vector}, oracle {other[name]}")


def is_same_vector(mine: Any, other: Any) -> bool:
    """Whether the numbers of two vectors are the same, to the tolerance."""
    if isinstance(mine, dict) or isinstance(other, dict):
        return (
            isinstance(mine, dict)
            and isinstance(other, dict)
            and mine.keys() == other.keys()
            and all(is_close(mine[index], other[index]) for index in mine)
        )
    if isinstance(mine, list):
        return (
            isinstance(other, list)
            and len(mine) == len(other)
            and all(is_same_vector(one, its) for one, its in zip(mine, other, strict=True))
        )
    return not isinstance(other, list) and is_close(mine, other)


def parts_of(call: Call) -> list[Call]:
    """A batch of searches as single calls."""
    name = call.name.removesuffix("Batch")
    listed = getattr(call.request, {"Query": "query_points"}.get(name, f"{name.lower()}_points"))
    return [Call(POINTS + name, one) for one in listed]


def _everything(call: Call, ask: Ask) -> list[Hit]:
    return list(_answered(call.changed(widen), ask).hits)


def widen(request: Any) -> None:
    """Take limit and offset away."""
    if isinstance(request, pb.QueryPoints) and request.query.HasField("nearest_with_mmr"):
        mmr = request.query.nearest_with_mmr.mmr
        if not mmr.HasField("candidates_limit"):
            mmr.candidates_limit = request.limit if request.HasField("limit") else 10
    request.limit = EVERYTHING
    if "offset" in request.DESCRIPTOR.fields_by_name:
        request.ClearField("offset")
    if "group_size" in request.DESCRIPTOR.fields_by_name:
        request.group_size = EVERYTHING


# --- groups, facets, pairs -------------------------------------------------------------------------------------------


def _groups(call: Call, mine: list[Group], other: list[Group], ask: Ask) -> None:
    _demand(len(mine) == len(other), f"{len(mine)} groups, oracle {len(other)}")
    all_groups: dict[Any, Group] = {}
    for rank, (one, its) in enumerate(zip(mine, other, strict=True)):
        _demand(
            is_close(one.hits[0].score, its.hits[0].score),
            f"group {rank}: {one.value!r} {one.hits[0].score}, oracle {its.value!r} {its.hits[0].score}",
        )
        if one.value == its.value and [hit.id for hit in one.hits] == [hit.id for hit in its.hits]:
            whole = its
        else:
            if not all_groups:
                all_groups = {group.value: group for group in _answered(call.changed(widen), ask)}
            _demand(one.value in all_groups, f"group {one.value!r}, which the oracle does not find")
            whole = all_groups[one.value]
        _same_group(one, whole, call.request.group_size or DEFAULT_GROUP_SIZE)


def _same_group(one: Group, whole: Group, size: int) -> None:
    where = f"group {one.value!r}"
    _demand(len(one.hits) == min(len(whole.hits), size), f"{where} has {len(one.hits)}, oracle {len(whole.hits)}")
    by_id = {hit.id: hit for hit in whole.hits}
    for hit, its in zip(one.hits, whole.hits, strict=False):
        _demand(is_close(hit.score, its.score), f"{where}: {hit.id} {hit.score}, oracle {its.id} {its.score}")
        _demand(hit.id in by_id, f"{where}: point {hit.id}, which the oracle does not find")
        same_point(hit, by_id[hit.id])
    _demand((one.lookup is None) == (whole.lookup is None), f"{where}: lookup {one.lookup}, oracle {whole.lookup}")
    if one.lookup is not None and whole.lookup is not None:
        _demand(one.lookup.id == whole.lookup.id, f"{where}: lookup {one.lookup.id}, oracle {whole.lookup.id}")
        same_point(one.lookup, whole.lookup)


def _facets(call: Call, mine: list[tuple[Any, int]], other: list[tuple[Any, int]], ask: Ask) -> None:
    counts = [count for _, count in mine]
    _demand(counts == [count for _, count in other], f"{mine}, oracle {other}")
    at = {_typed(value): count for value, count in other}
    if any(_typed(value) not in at for value, _ in mine):
        at = {_typed(value): count for value, count in _answered(call.changed(widen), ask)}
    for value, count in mine:
        _demand(at.get(_typed(value)) == count, f"{value!r} {count} times, oracle {at.get(_typed(value))}")


def _typed(value: Any) -> tuple[type, Any]:
    """True is not 1 here."""
    return type(value), value


def _pairs(call: Call, mine: Pairs, other: Pairs, ask: Ask) -> None:
    if mine.ids is not None and other.ids is not None:
        _demand(mine.ids == other.ids, f"points {sorted(map(str, mine.ids))}, oracle {sorted(map(str, other.ids))}")
    first, second = (_by_first(pairs) for pairs in (mine, other))
    _demand(first.keys() == second.keys(), f"pairs of {sorted(map(str, first))}, oracle {sorted(map(str, second))}")
    at = dict(other.scores)
    if mine.scores.keys() != other.scores.keys():
        at = _answered(call.changed(widen), ask).scores
    for point, scores in first.items():
        _demand(
            len(scores) == len(second[point]) and all(map(is_close, scores, second[point])),
            f"scores of pairs with {point} {scores}, oracle {second[point]}",
        )
    for pair, score in mine.scores.items():
        _demand(pair in at and is_close(score, at[pair]), f"pair {pair} {score}, oracle {at.get(pair)}")


def _by_first(pairs: Pairs) -> dict[Any, list[float]]:
    found: dict[Any, list[float]] = {}
    for (first, _), score in pairs.scores.items():
        found.setdefault(first, []).append(score)
    return {first: sorted(scores, reverse=True) for first, scores in found.items()}
