"""Get, scroll, count and facet: points without a query.

Promises: order, offsets, defaults and refusals of Qdrant. A scroll page holds `limit` points and tells the id of the
next one; ordered scrolls have no offset.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from server.replica import ordering, outputs, paths
from server.replica.fields import Scalar
from server.replica.points import id_of, key_of, keys_of
from server.replica.records import Record
from server.replica.refusal import NotServed, bad_body, wrong_input
from server.replica.session import Session

DEFAULT_SCROLL_LIMIT = 10
DEFAULT_FACET_LIMIT = 10


def get(session: Session, request: points.GetPoints) -> points.GetResponse:
    """Points by id, in the order asked for, each once; missing ones are left out."""
    parts = outputs.wanted(request)
    keys = keys_of(request.ids)
    found = session.reads.fetch(session.collection.cid, keys, payload=parts.payload, vectors=parts.vectors)
    response = points.GetResponse()
    for key in keys:
        if key in found:
            outputs.fill(response.result.add(), found[key], parts, session.fields.version)
    return response


def scroll(session: Session, request: points.ScrollPoints, most_points: int) -> points.ScrollResponse:
    """One page. Raises Refusal, NotServed when the page would be larger than answers may be."""
    limit = request.limit if request.HasField("limit") else DEFAULT_SCROLL_LIMIT
    if limit == 0:
        raise bad_body("limit", "value 0 invalid, must be 1 or larger")
    parts = outputs.wanted(request, payload_by_default=True)
    selection = session.select(request.filter if request.HasField("filter") else None)
    response = points.ScrollResponse()
    if request.HasField("order_by"):
        if request.HasField("offset"):
            raise wrong_input(
                "Cannot use an `offset` when using `order_by`. The alternative for paging is to use "
                "`order_by.start_from` and a filter to exclude the IDs that you've already seen for the "
                "`order_by.start_from` value"
            )
        ordered = ordering.ordered(session, request.order_by, selection, min(limit, most_points + 1))
        _refuse_huge(len(ordered), most_points)
        keys = [key for key, _ in ordered]
        found = session.reads.fetch(session.collection.cid, keys, payload=parts.payload, vectors=parts.vectors)
        for key, value in ordered:
            target = response.result.add()
            outputs.fill(target, found[key], parts, session.fields.version)
            target.order_value.CopyFrom(ordering.order_value(value))
        return response
    start = key_of(request.offset) if request.HasField("offset") else None
    taken = min(limit, most_points) + 1
    matching = session.records(selection, start=start, payload=parts.payload, vectors=parts.vectors, expected=taken)
    page: list[Record] = list(islice(matching, taken))
    if len(page) > limit:
        response.next_page_offset.CopyFrom(id_of(page.pop().key))
    _refuse_huge(len(page), most_points)
    for record in page:
        outputs.fill(response.result.add(), record, parts, session.fields.version)
    return response


def _refuse_huge(count: int, most_points: int) -> None:
    if count > most_points:
        raise NotServed(f"the answer would hold more than {most_points} points (replica.response_max_points)")


def count(session: Session, request: points.CountPoints) -> points.CountResponse:
    """The exact number of matching points."""
    selection = session.select(request.filter if request.HasField("filter") else None)
    return points.CountResponse(result=points.CountResult(count=session.count(selection)))


def facet(session: Session, request: points.FacetCounts) -> points.FacetResponse:
    """How many points have each value of a field; most first, then by value."""
    path = paths.parse_or_refuse(request.key)
    limit = request.limit if request.HasField("limit") else DEFAULT_FACET_LIMIT
    selection = session.select(request.filter if request.HasField("filter") else None)
    index = session.fields.index(path)
    if index is None or not index.has_lookup:
        raise wrong_input(
            f"No appropriate index for faceting: `{request.key}`. Please create one to facet on this field. "
            "Check https://qdrant.tech/documentation/concepts/indexing/#payload-index to see which payload schemas "
            "support Match conditions"
        )
    counts: Counter[Scalar] = Counter()
    coded = session.coded(selection, path) if limit else None
    if coded is not None:
        held = coded.dictionary.derived(("held", index.kind), lambda values: tuple(set(index.held_of(values))))
        for code, number in enumerate(np.bincount(coded.codes).tolist()):
            counts.update(dict.fromkeys(held[code], number) if number else {})
    else:
        for _, values in session.walked(selection, path) if limit else ():
            counts.update(set(index.held_of(values)))
    response = points.FacetResponse()
    for value, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]:
        hit = response.hits.add(count=number)
        if index.kind == collections.Uuid:
            assert isinstance(value, bytes)
            hit.value.string_value = id_of(b"\x01" + value).uuid
        elif isinstance(value, bool):
            hit.value.bool_value = value
        elif isinstance(value, int):
            hit.value.integer_value = value
        else:
            hit.value.string_value = str(value)
    return response
