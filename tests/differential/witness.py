"""The engine as a witness between the replica and local mode: which points a condition finds, indexes and all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import COLLECTIONS, POINTS
from tests.replica.edge_engine import Inexpressible

from .answers import Id, said
from .calls import Call, Gap, Oracle, Refused
from .engine_queries import filter_from
from .engine_writes import INDEXES
from .rewrites import lists_for_uuids
from .searches import EVERYTHING
from .values import spelt

Concerns = Callable[["Witness", common.FieldCondition], bool]


class Witness:
    """A shard with the payloads and the indexes of a collection as the oracle has them. Use as a context manager."""

    def __init__(self, oracle: Oracle, collection: str) -> None:
        info = oracle.answer(
            Call(COLLECTIONS + "Get", collections.GetCollectionInfoRequest(collection_name=collection))
        )
        found = oracle.answer(Call(POINTS + "Scroll", pb.ScrollPoints(collection_name=collection, limit=EVERYTHING)))
        self.indexes: dict[str, int] = {}
        self._points: list[Any] = []
        if not isinstance(info, Refused | Gap) and not isinstance(found, Refused | Gap):
            self.indexes = {key: one.data_type for key, one in info.result.payload_schema.items()}
            self._points = said(POINTS + "Scroll", found).hits

    def __enter__(self) -> Witness:
        """Make the shard."""
        self._directory = tempfile.TemporaryDirectory()
        vectors = {"": edge.EdgeVectorParams(1, edge.Distance.Dot)}
        self._shard = edge.EdgeShard.create(
            str(Path(self._directory.name)), edge.EdgeConfig(vectors=vectors, wal_enabled=False)
        )
        points = [edge.Point(hit.id, {}, hit.payload or {}) for hit in self._points]
        self._shard.update(edge.UpdateOperation.upsert_points(points))
        for key, kind in self.indexes.items():
            self._shard.update(edge.UpdateOperation.create_field_index(key, INDEXES[kind - 1]))
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        self._shard.close()
        self._directory.cleanup()

    def matching(self, condition: common.Condition) -> list[Id]:
        """Ids of the points that pass. Raises Inexpressible."""
        asked = common.Filter(must=[condition])
        lists_for_uuids(asked)
        query = filter_from(asked)
        records, _ = self._shard.scroll(edge.ScrollRequest(limit=EVERYTHING, filter=query))
        return [record.id if isinstance(record.id, int) else str(record.id) for record in records]

    def settle(self, request: Message, concerns: Concerns) -> bool:
        """Put in the place of conditions the ids that they find; whether any finds others than before is not asked."""
        is_changed = False
        for condition in list(_conditions(request)):
            if condition.HasField("field") and concerns(self, condition.field):
                try:
                    found = self.matching(condition)
                except Inexpressible:
                    continue
                condition.has_id.has_id.extend(spelt(identity) for identity in found)
                is_changed = True
        return is_changed


def _conditions(message: Message) -> Iterator[common.Condition]:
    """All conditions of a request but those inside of nested ones, which see no indexes."""
    for descriptor, value in message.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE or descriptor.message_type.GetOptions().map_entry:
            continue
        for part in value if descriptor.is_repeated else (value,):
            if isinstance(part, common.Condition):
                yield part
            if not isinstance(part, common.NestedCondition):
                yield from _conditions(part)


def sees_index(witness: Witness, field: common.FieldCondition) -> bool:
    """A match or a range over a field that has an index of numbers, times, UUIDs, truths or words."""
    return field.key in witness.indexes and any(field.HasField(one) for one in ("match", "range", "datetime_range"))


def sees_several_values(witness: Witness, field: common.FieldCondition) -> bool:
    """Whether a field is empty, or null, said as a condition of the field."""
    return field.HasField("is_empty") or field.HasField("is_null")
