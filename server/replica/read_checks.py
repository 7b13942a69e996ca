"""PURE. What Qdrant refuses in the body of a read before it looks at the collection.

Promises: the status and text of Qdrant 1.18 for names, timeouts, search parameters and queries without a form, also in
prefetches and in the parts of a batch. Does not promise what needs the collection, nor limits: they are refused where
they are read.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from generated.qdrant import points_pb2 as points
from server.replica.checks import check_read_name
from server.replica.refusal import bad_body, invalid

_PARTS: dict[type[Message], str] = {
    points.QueryBatchPoints: "query_points",
    points.SearchBatchPoints: "search_points",
    points.RecommendBatchPoints: "recommend_points",
    points.DiscoverBatchPoints: "discover_points",
}
# These take a timeout of 0, which other reads refuse.
_PATIENT = (points.GetPoints, points.ScrollPoints, points.CountPoints)


def check_read(request: Message) -> None:
    """Raises Refusal for a read of points."""
    named: Any = request
    if named.collection_name:
        check_read_name(named.collection_name)
    several = _PARTS.get(type(request))
    for number, part in enumerate(() if several is None else getattr(request, several)):
        _check(part, f"{several}[{number}].")
    _check(request, "")


def _check(request: Any, where: str) -> None:
    fields = request.DESCRIPTOR.fields_by_name
    if (
        "timeout" in fields
        and request.HasField("timeout")
        and not request.timeout
        and not isinstance(request, _PATIENT)
    ):
        raise bad_body(f"{where}timeout", "value 0 invalid, must be 1 or larger")
    if "prefetch" in fields:
        _check_level(request, where)
    elif "params" in fields:
        _check_params(request.params, f"{where}params")


def _check_level(node: Any, where: str) -> None:
    """A query or a prefetch, and those in it."""
    if node.HasField("params"):
        _check_params(node.params, f"{where}params")
    if node.HasField("query") and node.query.WhichOneof("variant") is None:
        raise invalid("Query variant is missing")
    for number, inner in enumerate(node.prefetch):
        _check_level(inner, f"{where}prefetch[{number}].")


def _check_params(params: points.SearchParams, place: str) -> None:
    oversampling, selectivity = params.quantization.oversampling, params.acorn.max_selectivity
    if params.quantization.HasField("oversampling") and oversampling < 1:
        raise bad_body(f"{place}.quantization.oversampling", f"value {oversampling} invalid, must be 1.0 or larger")
    if params.acorn.HasField("max_selectivity") and not 0 <= selectivity <= 1:
        raise bad_body(f"{place}.acorn.max_selectivity", f"value {selectivity} invalid, must be from 0.0 to 1.0")
