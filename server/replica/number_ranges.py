"""PURE. The ranges of the numbers in requests about collections.

Promises: what Qdrant's own table of them refuses is a Refusal with its status and text, before the collection is looked
for. Only numbers that are set count: one that is left out has a default. Sizes of vectors are in `checks.py`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from server.replica.refusal import bad_body

_ANY_FROM_1 = (1, None)

# Message → field → the least and the greatest value, None = no greatest. Messages without numbers hold others.
_RANGES: dict[str, dict[str, tuple[float, float | None]]] = {
    "CreateCollection": dict.fromkeys(
        ("shard_number", "timeout", "replication_factor", "write_consistency_factor"), _ANY_FROM_1
    ),
    "UpdateCollection": {"timeout": _ANY_FROM_1},
    "DeleteCollection": {"timeout": _ANY_FROM_1},
    "ChangeAliases": {"timeout": _ANY_FROM_1},
    "CollectionParamsDiff": dict.fromkeys(("replication_factor", "write_consistency_factor"), _ANY_FROM_1),
    "HnswConfigDiff": {"ef_construct": (4, None)},
    "WalConfigDiff": dict.fromkeys(("wal_capacity_mb", "wal_retain_closed"), _ANY_FROM_1),
    "OptimizersConfigDiff": {
        "deleted_threshold": (0.0, 1.0),
        "vacuum_min_vector_number": (100, None),
        "max_segment_size": _ANY_FROM_1,
    },
    "ScalarQuantization": {"quantile": (0.5, 1.0)},
    "StrictModeConfig": dict.fromkeys(
        ("max_query_limit", "max_timeout", "read_rate_limit", "write_rate_limit", "max_points_count"), _ANY_FROM_1
    ),
    "StrictModeSparse": {"max_length": _ANY_FROM_1},
    "StrictModeMultivector": {"max_vectors": _ANY_FROM_1},
    "QuantizationConfig": {},
    "QuantizationConfigDiff": {},
    "StrictModeMultivectorConfig": {},
    "StrictModeSparseConfig": {},
    "VectorParams": {},
    "VectorParamsDiff": {},
    "VectorParamsDiffMap": {},
    "VectorParamsMap": {},
    "VectorsConfig": {},
    "VectorsConfigDiff": {},
}


def check(message: Message, place: str = "") -> None:
    """Raise Refusal for the first number out of its range."""
    ranges = _RANGES[message.DESCRIPTOR.name]
    for field, value in message.ListFields():
        here = f"{place}{_name_of(field)}"
        if (kind := field.message_type) is not None:
            for inner, mark in _messages_in(kind, value):
                check(inner, f"{here}{mark}.")
        elif field.name in ranges:
            _check_number(value, ranges[field.name], here)


def _name_of(field: FieldDescriptor) -> str:
    """The name of a field; of a variant, that of the choice. A field that may be left out is a choice of one."""
    choice = field.containing_oneof
    return field.name if choice is None or choice.name.startswith("_") else choice.name


def _messages_in(kind: Descriptor, value: Any) -> list[tuple[Message, str]]:
    """The messages of a field of that kind that hold numbers, and how each is marked in the place."""
    if not kind.GetOptions().map_entry:
        return [(value, "")] if kind.name in _RANGES else []
    held = kind.fields_by_name["value"].message_type
    return [(one, ".[]") for one in value.values()] if held is not None and held.name in _RANGES else []


def _check_number(value: float, within: tuple[float, float | None], place: str) -> None:
    least, most = within
    if value < least or (most is not None and value > most):
        allowed = f"must be {least} or larger" if most is None else f"must be from {least} to {most}"
        raise bad_body(place, f"value {value} invalid, {allowed}")
