"""Where qdrant-client's local mode differs from a server."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import Any

from qdrant_client.local.payload_value_extractor import value_by_key

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server.rpc import COLLECTIONS, POINTS

from . import rewrites
from .answers import id_of, id_order, said
from .calls import Call, Gap, Oracle, Refused
from .comparison import difference, parts_of, widen
from .local_mode import MENDS
from .rewrites import Rewrite, Words
from .rows import Case, Difference, is_same, mended
from .searches import EVERYTHING
from .witness import Concerns, Witness, sees_index, sees_several_values


def _in_words(rewrite: Rewrite) -> Callable[[Case], bool]:
    """The oracle says what we say when it is asked in other words: in these, or in these and the others too."""

    def explains(case: Case) -> bool:
        words = Words(case.oracle, case.shape)
        call = rewrites.modern(case.call)
        if not case.together:
            return rewrite(words, call.request) and _says_it(case, call)
        changed = [
            one for name, one in _REWRITES.items() if (name in case.rows or one is rewrite) and one(words, call.request)
        ]
        return rewrite in changed and len(changed) > 1 and _says_it(case, call)

    return explains


def _says_it(case: Case, call: Call) -> bool:
    asked = case.oracle.answer(call)
    if isinstance(asked, Gap):
        # It missed a vector before it came to what it cannot do. Asked like this at first, the call would be a gap.
        return isinstance(case.theirs, Refused) and "Vector with name" in case.theirs.text
    return not difference(call, case.ours, asked, case.oracle.answer)


def _looked_for_late(case: Case) -> bool:
    """We refuse a point that the oracle lacks, or a vector that its point lacks; the oracle never got so far.

    It answers, or it came to another fault of the request before.
    """
    if not isinstance(case.ours, Refused) or case.ours.status != "NOT_FOUND":
        return False
    words = Words(case.oracle, case.shape)
    return any(
        one.WhichOneof("variant") == "id" and words.vector(node, one.id, root.collection_name) is None
        for node, root in rewrites.levels(rewrites.modern(case.call).request)
        for one in rewrites.inputs_of(node.query)
    )


def _no_example_left(case: Case) -> bool:
    """None of the examples of a recommendation by scores has the vector: it cannot be put in other words."""
    call = rewrites.modern(case.call)
    if isinstance(case.ours, Refused) or not rewrites.examples_without_vector(
        Words(case.oracle, case.shape), call.request
    ):
        return False
    recommended = [
        node.query.recommend for node, _ in rewrites.levels(call.request) if node.query.HasField("recommend")
    ]
    return any(not (one.positive or one.negative) and one.strategy != pb.AverageVector for one in recommended)


def _witnessed(concerns: Concerns) -> Rewrite:
    """Conditions give place to the ids that the engine finds for them."""

    def rewrite(words: Words, request: Any) -> bool:
        with Witness(words.oracle, request.collection_name) as witness:
            return witness.settle(request, concerns)

    return rewrite


def _twice_running(case: Case) -> bool:
    """Ordered by a field, a point that stands there twice running is one result."""
    if case.call.name not in ("Query", "QueryBatch"):
        return False
    call, theirs = case.call, case.theirs
    if case.together:
        # Another query of the batch, or the filter, has to be put in other words too.
        call = rewrites.modern(call)
        words = Words(case.oracle, case.shape)
        for name, rewrite in _REWRITES.items():
            if name in case.rows:
                rewrite(words, call.request)
        theirs = case.oracle.answer(call)
    if isinstance(theirs, Refused | Gap):
        return False
    corrected = type(theirs)()
    corrected.CopyFrom(theirs)
    is_batch = call.name == "QueryBatch"
    parts = parts_of(call) if is_batch else [call]
    is_changed = False
    for part, answer in zip(parts, corrected.result if is_batch else [corrected], strict=True):
        if part.request.query.HasField("order_by"):
            page = _once_running(case.oracle, part)
            if page is None:
                return False
            del answer.result[:]
            answer.result.extend(page)
            is_changed = True
    return is_changed and is_same(case, call, corrected)


def _once_running(oracle: Oracle, call: Call) -> list[pb.ScoredPoint] | None:
    """The page of a query that orders, without what stands there twice running. Equal values come in any order."""
    request = call.request
    found = oracle.answer(call.changed(widen))
    if isinstance(found, Refused | Gap):
        return None
    points = sorted(
        found.result,
        key=lambda one: (getattr(one.order_value, one.order_value.WhichOneof("variant")), id_order(id_of(one.id))),
        reverse=request.query.order_by.direction == pb.Desc,
    )
    limit = request.limit if request.HasField("limit") else 10
    page = [next(same) for _, same in groupby(points[: limit + request.offset], key=lambda one: id_of(one.id))]
    return page[request.offset :]


def _held(kind: int, value: Any) -> Any:
    """What an index of a kind holds of a value; None for nothing."""
    match kind:
        case collections.Keyword:
            return value if isinstance(value, str) else None
        case collections.Bool:
            return value if isinstance(value, bool) else None
        case collections.Integer if not isinstance(value, bool) and isinstance(value, int | float):
            return int(value) if float(value).is_integer() else None
        case collections.Uuid if isinstance(value, str):
            try:
                return str(uuid.UUID(value))
            except ValueError:
                return None
        case _:
            return None


def _values_of_the_index(case: Case) -> bool:
    """A facet counts what the index of the field holds, and nothing else: counted here over the oracle's points."""
    if case.call.name != "Facet":
        return False
    facet = case.call.request
    name = facet.collection_name
    info = case.oracle.answer(Call(COLLECTIONS + "Get", collections.GetCollectionInfoRequest(collection_name=name)))
    scroll = pb.ScrollPoints(collection_name=name, limit=EVERYTHING, filter=facet.filter)
    if case.together:
        words = Words(case.oracle, case.shape)
        for row in ("what an index changes", "emptiness of several values"):
            if row in case.rows:
                _REWRITES[row](words, scroll)
    found = case.oracle.answer(Call(POINTS + "Scroll", scroll))
    if isinstance(info, Refused | Gap) or isinstance(found, Refused | Gap):
        return False
    kind = info.result.payload_schema[facet.key].data_type
    counts = Counter[Any]()
    for hit in said(POINTS + "Scroll", found).hits:
        held = {_held(kind, value) for value in value_by_key(hit.payload, facet.key) or ()}
        counts.update(held - {None})
    limit = facet.limit if facet.HasField("limit") else 10
    ours = said(case.call.method, case.ours)
    ranked = sorted(counts.values(), reverse=True)[:limit]
    return [count for _, count in ours] == ranked and all(counts[value] == count for value, count in ours)


_AN_INDEX = _witnessed(sees_index)
_SEVERAL_VALUES = _witnessed(sees_several_values)
# In this order: what a rewrite adds to the filter of the whole query has to be there before filters are merged.
_REWRITES: dict[str, Rewrite] = {
    "examples without the vector": rewrites.examples_without_vector,
    "averages by datatype": rewrites.whole_averages,
    "a dense query of rows": rewrites.one_row,
    "ids that prefetches refer to": rewrites.ids_of_prefetches,
    "filters over candidates": rewrites.filters_of_candidates,
    "MMR in a prefetch": rewrites.nearest_for_mmr,
    "what an index changes": _AN_INDEX,
    "emptiness of several values": _SEVERAL_VALUES,
}
LOCAL_ROWS = (
    Difference(
        name="a dense query of rows",
        oracle="local mode",
        follows="1.18 source: a dense vector is a vector of one row",
        why="local mode looks for a dense vector of that name",
        explains=_in_words(rewrites.one_row),
    ),
    Difference(
        name="ids that prefetches refer to",
        oracle="local mode",
        follows="1.18 source: they are left out of the whole result",
        why="local mode leaves them out of that prefetch",
        explains=_in_words(rewrites.ids_of_prefetches),
    ),
    Difference(
        name="examples without the vector",
        oracle="local mode",
        follows="1.18.3 (FACTS 3.1: such an example is left out)",
        why="local mode refuses the recommendation",
        explains=_in_words(rewrites.examples_without_vector),
    ),
    Difference(
        name="no example has the vector",
        oracle="local mode",
        follows="the engine, beside which the scores are compared",
        why="local mode refuses a recommendation without examples",
        explains=_no_example_left,
    ),
    Difference(
        name="ids looked for late",
        oracle="local mode",
        follows="1.18.3 (FACTS 3.1: a missing point is refused): a server looks for all ids first",
        why="local mode looks for them when it gets there, and never does where a prefetch found nothing",
        explains=_looked_for_late,
    ),
    Difference(
        name="averages by datatype",
        oracle="local mode",
        follows="the engine: a query vector is rounded to the datatype of the stored ones",
        why="local mode keeps what the datatype cannot hold",
        explains=_in_words(rewrites.whole_averages),
    ),
    Difference(
        name="a point twice running",
        oracle="local mode",
        follows="1.18 source: merging the shards' answers drops it",
        why="local mode gives a point once for each value, also one after the other",
        explains=_twice_running,
    ),
    Difference(
        name="facets of other types",
        oracle="local mode",
        follows="the engine: a facet counts what the index holds",
        why="local mode counts every value of the field",
        explains=_values_of_the_index,
    ),
    Difference(
        name="what an index changes",
        oracle="local mode",
        follows="the engine, which is asked as a witness",
        why="local mode has no indexes: whole floats among integers, spellings of a UUID, times as numbers",
        explains=_in_words(_AN_INDEX),
    ),
    Difference(
        name="emptiness of several values",
        oracle="local mode",
        follows="the engine, which is asked as a witness: any value decides",
        why="in local mode all values decide",
        explains=_in_words(_SEVERAL_VALUES),
    ),
    Difference(
        name="filters over candidates",
        oracle="local mode",
        follows="the engine: only the innermost queries are filtered, by the merged filters",
        why="local mode asks each filter again over the candidates, also where merged `should` lists let more through",
        explains=_in_words(rewrites.filters_of_candidates),
    ),
    Difference(
        name="MMR in a prefetch",
        oracle="local mode",
        follows="the engine, and the source of 1.18 to 1.20: a leaf of the plan is a search for the candidates",
        why="in local mode MMR chooses among them",
        explains=_in_words(rewrites.nearest_for_mmr),
    ),
    *(
        Difference(name=name, oracle="local mode", follows=follows, why=why, explains=mended)
        for name, (follows, why) in MENDS.items()
    ),
)
