"""Results grouped by a payload field.

Promises: groups in the order of their best result, the best results in each, a point in every group that its field
names; a point whose field holds something other than a text or an integer is in none, as in Qdrant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.replica import outputs, paths
from server.replica.points import BadPointId, key_of
from server.replica.records import Key, Record
from server.replica.refusal import bad_body, invalid
from server.replica.session import Session
from server.replica.universal import Hit

DEFAULT_LIMIT = 10
DEFAULT_SIZE = 3
_PAGE = 1000
_I64_MAX = 2**63 - 1

GroupId: TypeAlias = "str | int"


@dataclass(slots=True)
class Group:
    """One group under way."""

    id: GroupId
    hits: list[tuple[Hit, Record]] = field(default_factory=list)
    keys: set[Key] = field(default_factory=set)


def check(group_by: str, limit: int, size: int) -> None:
    """What Qdrant refuses before it looks at the query."""
    if not group_by:
        raise bad_body("group_by", 'value "" invalid, must be at least 1 characters')
    for name, value in (("limit", limit), ("group_size", size)):
        if value == 0:
            raise bad_body(name, "value 0 invalid, must be 1 or larger")


def gather(session: Session, hits: Sequence[Hit], group_by: str, limit: int, size: int) -> list[Group]:
    """The first `limit` groups of ranked hits, `size` hits in each."""
    groups: dict[tuple[type, GroupId], Group] = {}
    for hit, record, ids in identified(session, hits, group_by):
        for group_id in ids:
            name_of = (type(group_id), group_id)
            if name_of not in groups:
                if len(groups) >= limit:
                    continue
                groups[name_of] = Group(group_id)
            group = groups[name_of]
            if len(group.hits) < size and hit.key not in group.keys:
                group.keys.add(hit.key)
                group.hits.append((hit, record))
        if len(groups) >= limit and all(len(group.hits) >= size for group in groups.values()):
            break
    return list(groups.values())


def identified(session: Session, hits: Sequence[Hit], group_by: str) -> Iterator[tuple[Hit, Record, list[GroupId]]]:
    """Hits with their records and the groups that they are in, read a page at a time."""
    select = paths.selector(paths.parse_or_refuse(group_by))
    for start in range(0, len(hits), _PAGE):
        page = hits[start : start + _PAGE]
        found = session.reads.fetch(session.collection.cid, [hit.key for hit in page])
        for hit in page:
            record = found.get(hit.key)
            if record is not None:
                yield hit, record, _ids(select(points.PointStruct.FromString(record.payload).payload))


def _ids(values: paths.Values) -> list[GroupId]:
    ids: list[GroupId] = []
    for value in paths.flattened(values):
        kind = value.WhichOneof("kind")
        if kind == "string_value":
            ids.append(value.string_value)
        elif kind == "integer_value":
            ids.append(value.integer_value)
        else:
            return []
    return list(dict.fromkeys(ids))


def result(
    groups: Sequence[Group],
    lookup: points.WithLookup | None,
    *,
    open_session: Callable[[str], Session],
    fill: Callable[[points.ScoredPoint, Hit, Record], None],
) -> points.GroupsResult:
    """Groups as an answer carries them, with the points that a lookup asks for."""
    answer = points.GroupsResult()
    other = open_session(lookup.collection) if lookup is not None else None
    lookup_parts = _lookup_parts(lookup) if lookup is not None else None
    for group in groups:
        target = answer.groups.add()
        if isinstance(group.id, str):
            target.id.string_value = group.id
        elif 0 <= group.id <= _I64_MAX:
            target.id.unsigned_value = group.id
        else:
            target.id.integer_value = group.id
        for hit, record in group.hits:
            fill(target.hits.add(), hit, record)
        if other is not None and lookup_parts is not None:
            _look_up(group.id, other, lookup_parts, target)
    return answer


def _lookup_parts(lookup: points.WithLookup) -> outputs.Wanted:
    if not lookup.collection:
        raise invalid("Malformed WithLookup")
    return outputs.wanted(lookup, payload_by_default=True)


def _look_up(group_id: GroupId, session: Session, parts: outputs.Wanted, target: points.PointGroup) -> None:
    named = common.PointId(uuid=group_id) if isinstance(group_id, str) else None
    if named is None and int(group_id) < 0:
        return
    try:
        key = key_of(named if named is not None else common.PointId(num=int(group_id)))
    except BadPointId:
        return
    found = session.reads.fetch(session.collection.cid, [key])
    if key in found:
        session.demand(parts.names)
        outputs.fill(target.lookup, found[key], parts, session.fields.version)
