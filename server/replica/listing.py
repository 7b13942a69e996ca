"""Get, scroll, count and facet: points without a query.

Promises: order, offsets, defaults and refusals of Qdrant. A scroll page holds `limit` points and tells the id of the
next one; ordered scrolls have no offset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from server.replica import ordering, outputs, paths
from server.replica.fields import Index, Scalar
from server.replica.paths import Path, Values, selector
from server.replica.points import id_of, key_of, keys_of
from server.replica.records import Record
from server.replica.refusal import NotServed, bad_body, wrong_input
from server.replica.session import EVERYTHING, Session

DEFAULT_SCROLL_LIMIT = 10
DEFAULT_FACET_LIMIT = 10
# Descriptions of collections: up to so many points are walked, and up to so many are loaded to count them.
_COUNT_WALKED_MOST = 500
_COUNT_LOADED_MOST = 5000
_WARMED_AT_ONCE_MOST = 1000


def get(session: Session, request: points.GetPoints) -> points.GetResponse:
    """Points by id, in the order asked for, each once; missing ones are left out."""
    parts = outputs.wanted(request)
    keys = keys_of(request.ids)
    found = session.reads.fetch(session.collection.cid, keys, payload=parts.payload, vectors=parts.vectors)
    if found:
        session.demand(parts.names)
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
        if ordered:
            session.demand(parts.names)
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
    if page:
        session.demand(parts.names)
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


def indexed_points(session: Session) -> dict[str, int]:
    """By field, of how many points a payload index holds a value.

    Without fields for which too much is not in memory (yet): clients ask for a collection's description before almost
    any other call, and it must not cost a scan.
    """
    counts: dict[str, int] = {}
    walked: dict[str, tuple[Path, Index]] = {}
    for text, path, index in _indexes(session):
        coded = session.codes(path) if _is_cheap(session, path, index) else None
        if coded is not None:
            dictionary, codes = coded
            held = dictionary.derived(_holding(index), partial(_holds, index))
            counts[text] = int(np.count_nonzero(np.array(held, dtype=np.bool_)[codes]))
        elif session.collection.points <= _COUNT_WALKED_MOST:
            walked[text] = (path, index)
    if walked:
        counts.update(dict.fromkeys(walked, 0))
        select = {text: selector(path) for text, (path, _) in walked.items()}
        for record in session.records(EVERYTHING, payload=True):
            payload = points.PointStruct.FromString(record.payload).payload
            for text, (_, index) in walked.items():
                counts[text] += _holds(index, select[text](payload))
    return counts


def warm_indexed_points(session: Session) -> None:
    """Look at what columns in memory hold, a little at a time: readers wait for the same dictionary."""
    for _, path, index in _indexes(session):
        dictionary = session.kept(path)
        while dictionary is not None and dictionary.lacking(_holding(index)):
            dictionary.derived(_holding(index), partial(_holds, index), _WARMED_AT_ONCE_MOST)


def _indexes(session: Session) -> Iterator[tuple[str, Path, Index]]:
    for text in session.collection.schema:
        try:
            path = paths.parse(text)
        except paths.BadPath:
            continue
        yield text, path, session.fields.indexes[path]


def _is_cheap(session: Session, path: Path, index: Index) -> bool:
    if session.collection.points <= _COUNT_LOADED_MOST:
        return True
    dictionary = session.kept(path)
    return dictionary is not None and dictionary.lacking(_holding(index)) <= _COUNT_LOADED_MOST


def _holding(index: Index) -> tuple[str, int]:
    return ("holds", index.kind)


def _holds(index: Index, values: Values) -> bool:
    return bool(index.held_of(values))
