"""PURE. What of a point goes into an answer: payload and vector selectors.

Promises: selectors as Qdrant reads them (a tree of paths, `[]` for array elements); vectors in the form of the version
that is mirrored: since 1.17 in the oneof, before in the deprecated fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from google.protobuf.message import Message

from generated.qdrant import json_with_int_pb2 as json_pb2
from generated.qdrant import points_pb2 as points
from server.replica import paths
from server.replica.fields import UNKNOWN_VERSION, Version
from server.replica.points import id_of
from server.replica.records import Record
from server.replica.refusal import invalid

_ONEOF_SINCE = (1, 17, 0)
# Field 3 and field 2, length-delimited.
_STORED_TAG = 0x1A
_ANSWER_TAG = b"\x12"

# Step of a path → what is selected below it; `_ALL` selects everything.
Tree: TypeAlias = "dict[object, Any]"
_ALL: Tree = {}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which parts of a point an answer carries. `include`/`exclude`: None = not given."""

    payload: bool = False
    include: Tree | None = None
    exclude: Tree | None = None
    vectors: bool = False
    names: tuple[str, ...] | None = None

    @property
    def is_bare(self) -> bool:
        """Whether only ids are wanted."""
        return not (self.payload or self.vectors)


def wanted(request: Message, *, payload_by_default: bool = False) -> Wanted:
    """From the fields `with_payload` and `with_vectors` of a request. Raises Refusal."""
    payload, include, exclude = payload_by_default, None, None
    if request.HasField("with_payload"):
        payload, include, exclude = _payload_wanted(getattr(request, "with_payload"))  # noqa: B009
    vectors, names = False, None
    if request.HasField("with_vectors"):
        selector: points.WithVectorsSelector = getattr(request, "with_vectors")  # noqa: B009
        form = selector.WhichOneof("selector_options")
        if form is None:
            raise invalid("No WithVectorsSelector")
        vectors = selector.enable if form == "enable" else True
        names = tuple(selector.include.names) if form == "include" else None
    return Wanted(payload, include, exclude, vectors, names)


def _payload_wanted(selector: points.WithPayloadSelector) -> tuple[bool, Tree | None, Tree | None]:
    match selector.WhichOneof("selector_options"):
        case "enable":
            return selector.enable, None, None
        case "include":
            return True, _tree(tuple(selector.include.fields)), None
        case "exclude":
            return True, None, _tree(tuple(selector.exclude.fields))
        case _:
            raise invalid("No PayloadSelector")


@lru_cache(maxsize=256)
def _tree(fields: tuple[str, ...]) -> Tree:
    tree: Tree = {}
    for field in fields:
        node = tree
        *parents, last = paths.parse_or_refuse(field)
        for step in parents:
            node = node.setdefault(step, {})
            if node is _ALL:
                break
        else:
            node[last] = _ALL
    return tree


Fields: TypeAlias = Mapping[str, json_pb2.Value]


def _include(source: Fields, tree: Tree, target: Any) -> None:
    for name, below in tree.items():
        if isinstance(name, str) and name in source:
            if below is _ALL:
                target[name].CopyFrom(source[name])
            else:
                _include_value(source[name], below, target[name])


def _include_value(source: json_pb2.Value, tree: Tree, target: json_pb2.Value) -> None:
    kind = source.WhichOneof("kind")
    if kind == "struct_value":
        target.struct_value.SetInParent()
        _include(source.struct_value.fields, tree, target.struct_value.fields)
    elif kind == "list_value":
        # Only `[]` reaches into an array, an index selects nothing.
        target.list_value.SetInParent()
        below = tree.get(paths.WILDCARD)
        if below is _ALL:
            target.CopyFrom(source)
        elif below is not None:
            for item in source.list_value.values:
                _include_value(item, below, target.list_value.values.add())
    else:
        target.CopyFrom(source)


def _exclude(source: Fields, tree: Tree, target: Any) -> None:
    for name, value in source.items():
        below = tree.get(name)
        if below is None:
            target[name].CopyFrom(value)
        elif below is not _ALL:
            _exclude_value(value, below, target[name])


def _exclude_value(source: json_pb2.Value, tree: Tree, target: json_pb2.Value) -> None:
    kind = source.WhichOneof("kind")
    if kind == "struct_value":
        target.struct_value.SetInParent()
        _exclude(source.struct_value.fields, tree, target.struct_value.fields)
    elif kind == "list_value" and paths.WILDCARD in tree:
        target.list_value.SetInParent()
        below = tree[paths.WILDCARD]
        if below is not _ALL:
            for item in source.list_value.values:
                _exclude_value(item, below, target.list_value.values.add())
    else:
        target.CopyFrom(source)


Answered: TypeAlias = "points.RetrievedPoint | points.ScoredPoint"


def fill(target: Answered, record: Record, parts: Wanted, version: Version) -> None:
    """Put id and the wanted parts of a stored point into a point of an answer."""
    target.id.CopyFrom(id_of(record.key))
    if parts.payload:
        if parts.include is None and parts.exclude is None:
            target.MergeFromString(as_answer(record.payload))
        else:
            payload = points.PointStruct.FromString(record.payload).payload
            if parts.include is not None:
                _include(payload, parts.include, target.payload)
            elif parts.exclude is not None:
                _exclude(payload, parts.exclude, target.payload)
    if parts.vectors:
        _fill_vectors(target, points.NamedVectors.FromString(record.vectors).vectors, parts.names, version)


def as_answer(payload: bytes) -> bytes:
    """A stored payload as the payload of an answer: the same map entries under another field number.

    PointStruct has its payload in field 3, RetrievedPoint and ScoredPoint in field 2. Decoding and copying the entries
    costs ten times as much.
    """
    parts: list[bytes] = []
    at = 0
    while at < len(payload):
        if payload[at] != _STORED_TAG:
            raise ValueError("a stored payload holds something else")
        end = at + 1
        length = shift = 0
        while True:
            byte = payload[end]
            end += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        parts += (_ANSWER_TAG, payload[at + 1 : end + length])
        at = end + length
    return b"".join(parts)


def _fill_vectors(
    target: Answered, vectors: Mapping[str, points.Vector], names: tuple[str, ...] | None, version: Version
) -> None:
    chosen = sorted(vectors) if names is None else [name for name in dict.fromkeys(names) if name in vectors]
    if chosen == [""]:
        _fill_vector(target.vectors.vector, vectors[""], version)
        return
    target.vectors.vectors.SetInParent()
    for name in chosen:
        _fill_vector(target.vectors.vectors.vectors[name], vectors[name], version)


def _fill_vector(output: points.VectorOutput, vector: points.Vector, version: Version) -> None:
    if version >= _ONEOF_SINCE or version == UNKNOWN_VERSION:
        # The messages agree in the three forms that are stored.
        output.MergeFromString(vector.SerializeToString())
        return
    match vector.WhichOneof("vector"):
        case "dense":
            output.data.extend(vector.dense.data)
        case "sparse":
            output.data.extend(vector.sparse.values)
            output.indices.data.extend(vector.sparse.indices)
        case "multi_dense":
            rows = vector.multi_dense.vectors
            output.data.extend(number for row in rows for number in row.data)
            output.vectors_count = len(rows)
