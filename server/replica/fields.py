"""PURE. The payload indexes of a collection, as far as they change what a condition or a request means.

Promises: `Fields` answers which indexes lie on a path; what Qdrant's indexes hold of a payload value is here and
nowhere else. Does not promise an index: nothing is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import json_with_int_pb2 as json_pb2
from server.replica import paths, scalars
from server.replica.paths import Path

Scalar: TypeAlias = "str | int | float | bool | bytes"
Version: TypeAlias = tuple[int, int, int]
UNKNOWN_VERSION: Version = (0, 0, 0)

_I64 = 2**63
_TOKENISES_SINCE = (1, 19, 1)
# Of any of some words: with a later change than of all of them.
_TOKENISES_ANY_SINCE = (1, 20, 0)
_COUNTS_MISSING_SINCE = (1, 20, 0)
_SEES_NULLS_SINCE = (1, 19, 1)
_CHECKS_SHAPES_SINCE = (1, 19, 0)
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


@lru_cache(maxsize=4096)
def _schema_info(info: bytes) -> collections.PayloadSchemaInfo:
    return collections.PayloadSchemaInfo.FromString(info)


@dataclass(frozen=True, slots=True)
class Index:
    """One payload index."""

    kind: int
    params: collections.PayloadIndexParams

    @property
    def has_range(self) -> bool:
        """Whether it can order: integer with range, float, datetime."""
        if self.kind == collections.Integer:
            integer = self.params.integer_index_params
            return integer.range or not integer.HasField("range")
        return self.kind in (collections.Float, collections.Datetime)

    @property
    def has_lookup(self) -> bool:
        """Whether it finds exact values: keyword, integer with lookup, UUID, bool."""
        if self.kind == collections.Integer:
            integer = self.params.integer_index_params
            return integer.lookup or not integer.HasField("lookup")
        return self.kind in (collections.Keyword, collections.Uuid, collections.Bool)

    def held(self, value: json_pb2.Value) -> Scalar | None:
        """What the index holds of a scalar value; None = nothing."""
        kind = value.WhichOneof("kind")
        match self.kind:
            case collections.Keyword | collections.Text if kind == "string_value":
                return value.string_value
            case collections.Integer:
                return _integer(value)
            case collections.Float:
                return scalars.number(value)
            case collections.Bool if kind == "bool_value":
                return value.bool_value
            case collections.Uuid if kind == "string_value":
                return scalars.uuid_of(value.string_value)
            case collections.Datetime:
                return scalars.time_of(value)
            case collections.Geo:
                return None if scalars.place_on_earth(value) is None else "place"
            case _:
                return None

    def held_of(self, values: Iterable[json_pb2.Value]) -> list[Scalar]:
        """What the index holds of the values at its path, arrays opened one level."""
        held = (self.held(value) for value in paths.flattened(list(values)))
        return [value for value in held if value is not None]


def _integer(value: json_pb2.Value) -> int | None:
    """An integer, or a float without a fraction, in 64 bits: an integer index holds both."""
    kind = value.WhichOneof("kind")
    if kind == "integer_value":
        return value.integer_value
    if kind == "double_value" and value.double_value.is_integer() and -_I64 <= value.double_value < _I64:
        return int(value.double_value)
    return None


def version_of(text: str) -> Version:
    """The numbers of a version such as "1.19.1" or "1.19.1-dev"; UNKNOWN_VERSION when it has none."""
    numbers = _VERSION.match(text)
    return (int(numbers[1]), int(numbers[2]), int(numbers[3] or 0)) if numbers else UNKNOWN_VERSION


@dataclass(frozen=True)
class Fields:
    """The indexes of a collection by path, and the version of Qdrant to mirror."""

    indexes: Mapping[Path, Index] = field(default_factory=dict)
    version: Version = UNKNOWN_VERSION
    is_nested: bool = False
    """Whether these are the fields of objects inside of a point."""

    @classmethod
    def of(cls, schema: Mapping[str, bytes], version: str = "") -> Fields:
        """From `Collection.schema` (path text → serialized PayloadSchemaInfo) and a version such as "1.18.3"."""
        indexes: dict[Path, Index] = {}
        for text, info in schema.items():
            try:
                path = paths.parse(text)
            except paths.BadPath:
                continue
            parsed = _schema_info(info)
            indexes[path] = Index(parsed.data_type, parsed.params)
        return cls(indexes, version_of(version))

    def index(self, path: Path) -> Index | None:
        """The index on a path."""
        return self.indexes.get(path)

    def nested(self, prefix: Path) -> Fields:
        """The text indexes below a nested path: the only ones that change what a condition in there means."""
        inner = {
            rest: index
            for path, index in self.indexes.items()
            if index.kind == collections.Text and (rest := paths.below(path, prefix)) and isinstance(rest[0], str)
        }
        return Fields(inner, self.version, is_nested=True)

    @property
    def sees_nulls_in_arrays(self) -> bool:
        """Whether `is_null` counts an array that holds a null (Qdrant 1.19.1) or only does with an index (before)."""
        return self.version >= _SEES_NULLS_SINCE

    @property
    def counts_missing_as_zero(self) -> bool:
        """Whether a field that is not there has zero values (Qdrant 1.20) or fails every count (before)."""
        return self.version >= _COUNTS_MISSING_SINCE

    @property
    def checks_shapes(self) -> bool:
        """Whether shapes of conditions have to be some (Qdrant 1.19) or open rings are closed (before)."""
        return self.version >= _CHECKS_SHAPES_SINCE

    @property
    def tokenises_plain_text(self) -> bool:
        """Whether text and phrases without an index are compared by words (Qdrant 1.19.1) or as substrings (before)."""
        return self.version >= _TOKENISES_SINCE

    @property
    def tokenises_any_plain_text(self) -> bool:
        """As `tokenises_plain_text`, of the condition for any of some words (Qdrant 1.20)."""
        return self.version >= _TOKENISES_ANY_SINCE
