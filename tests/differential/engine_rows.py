"""PURE. Where the engine of qdrant-edge-py differs from a server."""

from __future__ import annotations

from .calls import Call, Gap, Refused
from .comparison import difference
from .engine import NULLS_KEPT, Engine
from .rewrites import lists_for_uuids
from .rows import Case, Difference, is_same, mended


def _mmr_over_sparse(case: Case) -> bool:
    """The bindings look for the metric among dense vectors only."""
    return (
        isinstance(case.theirs, Refused) and "vector data config for vector" in case.theirs.text and _has_mmr(case.call)
    )


def _has_mmr(call: Call) -> bool:
    if call.name not in ("Query", "QueryBatch"):
        return False
    queries = call.request.query_points if call.name == "QueryBatch" else [call.request]
    return any(query.query.HasField("nearest_with_mmr") for query in queries)


def _shown_by_mmr(case: Case) -> bool:
    """The vector that MMR compared, in the answer though nobody asked for it."""
    if isinstance(case.theirs, Refused) or not _has_mmr(case.call):
        return False
    corrected = type(case.theirs)()
    corrected.CopyFrom(case.theirs)
    is_batch = case.call.name == "QueryBatch"
    queries = case.call.request.query_points if is_batch else [case.call.request]
    for query, result in zip(queries, corrected.result if is_batch else [corrected], strict=True):
        wanted = query.with_vectors
        if query.query.HasField("nearest_with_mmr") and not wanted.enable and query.using not in wanted.include.names:
            for point in result.result:
                point.vectors.vectors.vectors.pop(query.using, None)
    return is_same(case, case.call, corrected)


def _is_settled(case: Case) -> bool:
    """Whether the engine says what we say when it holds the same points and never held others."""
    assert isinstance(case.oracle, Engine)
    engine = case.oracle.settled()
    try:
        return not difference(case.call, case.ours, engine.answer(case.call), engine.answer)
    finally:
        engine.close()


def _facets_of_nothing(case: Case) -> bool:
    """Values that only deleted points had, listed with the count 0."""
    return case.call.name == "Facet" and _is_settled(case)


def _frequencies_of_nothing(case: Case) -> bool:
    """Scores by inverse document frequency, with deleted points counted."""
    return '"idf"' in str(case.call) and _is_settled(case)


def _postings_of_nothing(case: Case) -> bool:
    """A sparse vector found by what it held before it was taken away and given anew."""
    names = [name for name, vector in case.shape.vectors.items() if vector.is_sparse and not vector.has_idf]
    return any(f'"{name}"' in str(case.call) for name in names) and _is_settled(case)


def _uuid_among_numbers(case: Case) -> bool:
    """The engine says what we say when texts that read as a UUID are looked for as lists of one."""
    request = type(case.call.request)()
    request.CopyFrom(case.call.request)
    if not lists_for_uuids(request):
        return False
    call = Call(case.call.method, request)
    asked = case.oracle.answer(call)
    return not isinstance(asked, Gap) and is_same(case, call, asked)


ENGINE_ROWS = (
    Difference(
        name="a UUID among numbers",
        oracle="engine",
        follows="1.18 source: where the plan does not ask the index, the payload decides",
        why="an index of numbers or times takes the text for a number that nobody has, if the plan asks it at all",
        explains=_uuid_among_numbers,
    ),
    Difference(
        name="MMR over sparse vectors",
        oracle="engine",
        follows="1.18 (a collection knows the metric of its sparse vectors: dot product)",
        why="the bindings refuse it, a server answers",
        explains=_mmr_over_sparse,
    ),
    Difference(
        name="MMR shows what it compared",
        oracle="engine",
        follows="1.18 (vectors are filled in above the shard, as asked for)",
        why="the bindings leave the compared vector in the answer of the shard",
        explains=_shown_by_mmr,
    ),
    Difference(
        name=NULLS_KEPT,
        oracle="engine",
        follows="1.18.3 (FACTS 3.1: a null is removed or never set)",
        why="where a point has no payload, the engine stores what is set as it is, nulls too",
        explains=mended,
    ),
    Difference(
        name="facets of nothing",
        oracle="engine",
        follows="local mode; no server measured",
        why="the engine's index keeps values that no point has any more, with the count 0",
        explains=_facets_of_nothing,
    ),
    Difference(
        name="frequencies of nothing",
        oracle="engine",
        follows="local mode; a server gets there when it has optimised its segments",
        why="the engine's sparse index counts points that are deleted until it is built anew",
        explains=_frequencies_of_nothing,
    ),
    Difference(
        name="postings of nothing",
        oracle="engine",
        follows="local mode; a server gets there when it has optimised its segments",
        why="after a vector is deleted and given anew, the engine's sparse index still has the old one",
        explains=_postings_of_nothing,
    ),
)
