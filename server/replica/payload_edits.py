"""PURE. Changes to payloads, by key path, as Qdrant makes them, and the numbers that it takes.

Promises: set merges the top level and drops nulls, set with a path creates objects on its way and follows `[]` and
`[i]` only into arrays that exist, delete removes what a path reaches but for single items of arrays. Payloads are the
`payload` map of qdrant.PointStruct and are changed in place. Does no I/O.

Does not promise one oddity of Qdrant: set, on a point whose payload was cleared and not written since, keeps nulls.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import TypeAlias

from generated.qdrant import json_with_int_pb2 as json_pb
from server.replica.paths import Path
from server.replica.refusal import invalid

Payload: TypeAlias = MutableMapping[str, json_pb.Value]


def is_null(value: json_pb.Value) -> bool:
    """A null, or a value with nothing in it, which Qdrant reads as null."""
    return value.WhichOneof("kind") in (None, "null_value")


def merge(payload: Payload, changes: Mapping[str, json_pb.Value]) -> None:
    """Set the keys of `changes`; a null removes its key."""
    for key, value in changes.items():
        if is_null(value):
            if key in payload:
                del payload[key]
        else:
            _assign(payload, key, value)


def set_at(payload: Payload, path: Path, changes: Mapping[str, json_pb.Value]) -> None:
    """Merge `changes` into the object at `path`, which is created where it is missing or no object."""
    _set_value(payload[_first_key(path)], path[1:], changes)


def overwrite(payload: Payload, new: Mapping[str, json_pb.Value]) -> None:
    """Replace the payload as a whole; nulls stay."""
    payload.clear()
    for key, value in new.items():
        _assign(payload, key, value)


def delete_at(payload: Payload, path: Path) -> None:
    """Remove what `path` reaches; nothing there is no error."""
    first = _first_key(path)
    if first not in payload:
        return
    if len(path) > 1:
        _delete_in(payload[first], path[1:])
    else:
        del payload[first]


def _first_key(path: Path) -> str:
    """Every path begins with a key."""
    first = path[0]
    assert isinstance(first, str)
    return first


def _assign(payload: Payload, key: str, value: json_pb.Value) -> None:
    payload[key].CopyFrom(value)
    if value.WhichOneof("kind") is None:
        payload[key].null_value = json_pb.NullValue.NULL_VALUE


def _set_value(value: json_pb.Value, path: Path, changes: Mapping[str, json_pb.Value]) -> None:
    if not path:
        merge(_object_in(value), changes)
        return
    part, rest = path[0], path[1:]
    if isinstance(part, str):
        _set_value(_object_in(value)[part], rest, changes)
        return
    if value.WhichOneof("kind") != "list_value":
        value.list_value.SetInParent()
        return
    items = value.list_value.values
    if not isinstance(part, int):
        for item in items:
            _set_value(item, rest, changes)
    elif part < len(items):
        _set_value(items[part], rest, changes)


def _object_in(value: json_pb.Value) -> Payload:
    value.struct_value.SetInParent()
    return value.struct_value.fields


def _delete_in(value: json_pb.Value, path: Path) -> None:
    part, rest = path[0], path[1:]
    kind = value.WhichOneof("kind")
    if isinstance(part, str):
        if kind != "struct_value" or part not in value.struct_value.fields:
            return
        if rest:
            _delete_in(value.struct_value.fields[part], rest)
        else:
            del value.struct_value.fields[part]
        return
    if kind != "list_value":
        return
    items = value.list_value.values
    if not isinstance(part, int):
        if rest:
            for item in items:
                _delete_in(item, rest)
        else:
            del items[:]
    elif rest and part < len(items):
        # An index at the end of the path removes nothing: done twice, it would remove two items.
        _delete_in(items[part], rest)


# A value that is a double, as every encoder writes it: nine bytes, of which the last two hold the exponent, all ones.
_PERHAPS_UNFIT = re.compile(rb"\x09\x11.{6}[\xf0-\xff][\x7f\xff]", re.DOTALL)


def may_hold_unfit_numbers(body: bytes) -> bool:
    """Whether a request should be looked through for numbers that JSON lacks; hardly ever for nothing."""
    return _PERHAPS_UNFIT.search(body) is not None


def check_numbers(values: Iterable[json_pb.Value]) -> None:
    """Raises Refusal for a NaN or an infinity at any depth: Qdrant keeps payloads as JSON, which has neither."""
    for value in values:
        match value.WhichOneof("kind"):
            case "double_value":
                if not math.isfinite(value.double_value):
                    raise invalid("cannot convert to json number")
            case "struct_value":
                check_numbers(value.struct_value.fields.values())
            case "list_value":
                check_numbers(value.list_value.values)
