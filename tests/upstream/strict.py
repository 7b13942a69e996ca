"""The limits of a strict mode that matter to who asks for much at a time: pages, exact counts, batches.

Promises: the words of a Qdrant server. The other limits of a strict mode are not looked at.
"""

from __future__ import annotations

from typing import Any

from generated.qdrant import collections_pb2 as collections

from .refusal import Refused, invalid

_LIMITED = ("Scroll", "Query", "Search", "Recommend", "Discover")


def check(name: str, request: Any, limits: collections.StrictModeConfig) -> None:
    """Raises Refused for a request (of the method `name`) that goes beyond the limits of its collection."""
    if not limits.enabled:
        return
    if name in _LIMITED and limits.HasField("max_query_limit"):
        _at_most(request.limit, limits.max_query_limit, "limit")
    allows_exact = limits.search_allow_exact or not limits.HasField("search_allow_exact")
    if name == "Count" and not allows_exact and (request.exact or not request.HasField("exact")):
        raise invalid("Bad request: Exact search disabled!. Help: Set exact=false.")
    if limits.HasField("upsert_max_batchsize"):
        _batches(name, request, limits.upsert_max_batchsize)


def _batches(name: str, request: Any, most: int) -> None:
    if name == "Upsert":
        _at_most(len(request.points), most, "upsert limit")
    if name == "UpdateVectors":
        _at_most(len(request.points), most, "update limit")


def _at_most(value: int, most: int, what: str) -> None:
    if value > most:
        raise _over(value, most, what)


def _over(value: int, most: int, what: str) -> Refused:
    return invalid(
        f'Bad request: Limit exceeded {value} > {most} for "{what}". '
        f'Help: Reduce the "{what}" parameter to or below {most}.'
    )
