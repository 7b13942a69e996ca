"""The slow and plain way to find the points that match: look at every one."""

from __future__ import annotations

from generated.qdrant import qdrant_common_pb2 as common
from server.replica.fields import Fields
from server.replica.filters import compile_filter
from server.replica.reads import Reads
from server.replica.records import Collection, Key


def scan(reads: Reads, collection: Collection, condition: common.Filter) -> list[Key]:
    """Keys of the points that match, in key order."""
    matcher = compile_filter(condition, Fields.of(collection.schema))
    return [record.key for record in matcher.select(reads.scan(collection.cid, limit=1_000_000))]
