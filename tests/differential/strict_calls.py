"""Requests in JSON form for the rows of `strict_rows`, and the words with which Qdrant refuses them."""

from __future__ import annotations

from typing import Any

from server.rpc import POINTS
from tests.proxy.offline_data import Json, dense

NAME = "strict_mode"
Q = [0.2, 0.1, 0.9, 0.7]


# --- requests --------------------------------------------------------------------------------------------------------


def named(vector: Json) -> Json:
    """The vectors of a point: the one without a name."""
    return {"vectors": {"vectors": {"": vector}}}


def search(limit: int = 3, **more: Any) -> tuple[str, Json]:
    """The old search."""
    return POINTS + "Search", {"vector": Q, "limit": limit, **more}


def query(**more: Any) -> tuple[str, Json]:
    """A query by vector."""
    return POINTS + "Query", {"query": {"nearest": dense(*Q)}, **more}


def queries(count: int) -> tuple[str, Json]:
    """So many in a batch."""
    one = {"collection_name": NAME, **query(limit=1)[1]}
    return POINTS + "QueryBatch", {"query_points": [one] * count}


def upsert(*numbers: int, vectors: Json | None = None, **more: Any) -> tuple[str, Json]:
    """Points."""
    made = [{"id": {"num": number}, "vectors": vectors or named(dense(1, 2, 3, 5))} for number in numbers]
    return POINTS + "Upsert", {"points": made, "wait": True, **more}


def update_vectors(*numbers: int, **more: Any) -> tuple[str, Json]:
    """Vectors of points."""
    made = [{"id": {"num": number}, "vectors": named(dense(1, 2, 3, 5))} for number in numbers]
    return POINTS + "UpdateVectors", {"points": made, "wait": True, **more}


def batch(*parts: Json) -> tuple[str, Json]:
    """Several writes."""
    return POINTS + "UpdateBatch", {"operations": list(parts), "wait": True}


def with_vector(name: str, vector: Json) -> Json:
    """One named vector."""
    return {"vectors": {"vectors": {name: vector}}}


def on(key: str, **condition: Any) -> Json:
    """A condition on a field."""
    return {"field": {"key": key, **condition}}


def must(*conditions: Json) -> Json:
    """A filter."""
    return {"must": list(conditions)}


def chosen(given: Json) -> Json:
    """Points by a filter, for most writes."""
    return {"points_selector": {"filter": given}, "wait": True}


BERLIN = must(on("city", match={"keyword": "Berlin"}))


# --- words -----------------------------------------------------------------------------------------------------------


def over(value: object, most: object, name: str = "limit") -> str:
    """A number too large."""
    return (
        f'Bad request: Limit exceeded {value} > {most} for "{name}". '
        f'Help: Reduce the "{name}" parameter to or below {most}.'
    )


def no_index(key: str, kinds: str, other: str = "filter") -> str:
    """A field without an index."""
    return (
        f'Bad request: Index required but not found for "{key}" of one of the following types: [{kinds}]. '
        f"Help: Create an index for this key or use a different {other}."
    )


NOT_EXACT = "Bad request: Exact search disabled!. Help: Set exact=false."
FEWER = "Help: Reduce the amount of conditions of your filter."
SMALLER = "Help: Reduce the size of your condition."
GROUPING = "Help: Create an index supporting `match` for this key."
NO_GRAPH = (
    "because global vector indexing is disabled (hnsw_config.m = 0). Help: Use tenant-specific filter, enable global "
    "vector indexing or enable strict mode `search_allow_exact` option"
)
ALL_KINDS = "bool, datetime, float, geo, integer, keyword, text, text (with phrase_matching: true), uuid"


def trip(call: tuple[str, Json], words: str) -> tuple[str, Json, str]:
    """A call that is refused with these words."""
    return *call, words
