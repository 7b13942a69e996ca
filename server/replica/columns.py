"""What the points of a collection hold at single paths, as codes in arrays, so that a filter need not walk payloads.

Promises: a column gives each point a code, and each code the exact list of values at the path; so a condition on the
path is answered exactly by testing each distinct list once. `Table.bounds` gives, for a compiled filter, the points
that surely pass and those that may: the two are the same unless a part of the filter has no column.

    base rows, in id order      0 … n-1       `gone` marks those that changed since
    recent rows, in id order    n … n+m-1     the changed points as they are now
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from generated.qdrant import json_with_int_pb2 as json_pb2
from generated.qdrant import points_pb2 as points
from server.replica.filters import Combined, HasId, HasVector, InSlice, Node, OnValues, Point
from server.replica.paths import Path, Payload, Values, flattened, selector
from server.replica.records import Key, Record

Mask: TypeAlias = npt.NDArray[np.bool_]
Codes: TypeAlias = npt.NDArray[np.int32]

_MERGE_LEAST = 1024
_LENGTH_BYTES = 4
_FIRST_STRETCH = 1024


@dataclass(frozen=True, slots=True)
class VectorNames:
    """The column that tells which vectors a point has."""


Source: TypeAlias = "Path | VectorNames"
VECTOR_NAMES = VectorNames()


def pack(values: Values) -> bytes:
    """A list of values as bytes, the same for equal lists."""
    parts = [value.SerializeToString(deterministic=True) for value in values]
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "little") + part for part in parts)


def unpack(packed: bytes) -> Values:
    """The inverse of `pack`."""
    values: Values = []
    at = 0
    while at < len(packed):
        end = at + _LENGTH_BYTES + int.from_bytes(packed[at : at + _LENGTH_BYTES], "little")
        values.append(json_pb2.Value.FromString(packed[at + _LENGTH_BYTES : end]))
        at = end
    return values


class Dictionary:
    """The distinct contents of a column, numbered. It only grows; shared by all versions of the column."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: dict[bytes, int] = {}
        self.contents: list[bytes] = []
        self.content_bytes = 0
        self.byte_size = 0
        self._holders: dict[bytes, list[int]] = {}
        self._indexed = 0
        self._derived: dict[Hashable, list[Any]] = {}

    def code(self, content: bytes) -> int:
        """The number of a content."""
        found = self._codes.get(content)
        if found is not None:
            return found
        with self._lock:
            found = self._codes.get(content)
            if found is None:
                found = len(self.contents)
                self.contents.append(content)
                self._codes[content] = found
                self.content_bytes += len(content)
                self.byte_size += 2 * len(content) + 150
            return found

    def holding(self, values: Iterable[bytes]) -> list[int]:
        """The codes of contents in which one of these values (serialized) stands, arrays opened one level."""
        with self._lock:
            for code in range(self._indexed, len(self.contents)):
                for value in flattened(unpack(self.contents[code])):
                    holders = self._holders.setdefault(value.SerializeToString(deterministic=True), [])
                    if not holders or holders[-1] != code:
                        holders.append(code)
                        self.byte_size += 100
            self._indexed = len(self.contents)
            return [code for value in values for code in self._holders.get(value, ())]

    def lacking(self, what: Hashable) -> int:
        """Of how many contents `what` is not derived yet."""
        return len(self.contents) - len(self._derived.get(what, ()))

    def derived(self, what: Hashable, derive: Callable[[Values], Any], most: int | None = None) -> Sequence[Any]:
        """`derive` of each content, by code; made once for each content and `what`, now for `most` more at most."""
        with self._lock:
            made = self._derived.setdefault(what, [])
            end = len(self.contents) if most is None else min(len(made) + most, len(self.contents))
            for code in range(len(made), end):
                made.append(derive(unpack(self.contents[code])))
                self.byte_size += 100
            return made


@dataclass(frozen=True, slots=True)
class Column:
    """Codes of the base rows and of the recent rows."""

    dictionary: Dictionary
    base: Codes
    recent: Codes

    def codes(self, mask: Mask) -> Codes:
        """The codes of the rows in a mask."""
        return np.concatenate((self.base, self.recent))[mask]

    def mask(self, passes: npt.NDArray[np.bool_]) -> Mask:
        """From which codes pass to which rows pass."""
        return np.concatenate((passes[self.base], passes[self.recent]))

    @property
    def byte_size(self) -> int:
        """Memory taken, about."""
        return self.base.nbytes + self.recent.nbytes + self.dictionary.byte_size


class Encoder:
    """Makes the contents of columns out of records."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._selectors: dict[Source, Callable[[Payload], Values]] = {
            source: selector(source) for source in sources if not isinstance(source, VectorNames)
        }
        self._names = VECTOR_NAMES in set(sources)

    @property
    def needs_payload(self) -> bool:
        """Whether payloads have to be read."""
        return bool(self._selectors)

    @property
    def needs_vectors(self) -> bool:
        """Whether vectors have to be read."""
        return self._names

    def contents(self, record: Record) -> dict[Source, bytes]:
        """The content of each column for one point."""
        made: dict[Source, bytes] = {}
        if self._selectors:
            payload = points.PointStruct.FromString(record.payload).payload
            for source, select in self._selectors.items():
                made[source] = pack(select(payload))
        if self._names:
            names = Point(record.key, record.vectors).vector_names
            made[VECTOR_NAMES] = pack([json_pb2.Value(string_value=name) for name in sorted(names)])
        return made


@dataclass(frozen=True)
class Table:
    """The points of a collection at one revision."""

    keys: Sequence[Key]
    gone: Mask
    recent: tuple[Key, ...] = ()
    columns: dict[Source, Column] = field(default_factory=dict)

    @property
    def byte_size(self) -> int:
        """Memory taken, about."""
        return 70 * len(self.keys) + len(self.gone) + sum(column.byte_size for column in self.columns.values())

    def with_columns(self, records: Iterable[Record], sources: Sequence[Source], most_bytes: float = math.inf) -> Table:
        """The table with more columns; `records` are all points in id order.

        Without a column whose distinct contents take more than `most_bytes`: it is given up as soon as that shows.
        """
        encoder = Encoder(sources)
        dictionaries = {source: Dictionary() for source in sources}
        codes: dict[Source, list[int]] = {source: [] for source in sources}
        keys: list[Key] = []
        for record in records:
            keys.append(record.key)
            for source, content in encoder.contents(record).items():
                codes[source].append(dictionaries[source].code(content))
                if dictionaries[source].content_bytes > most_bytes:
                    del codes[source], dictionaries[source]
                    encoder = Encoder(dictionaries)
            if not dictionaries:
                return self
        sources = list(dictionaries)
        if len(self.recent) or self.gone.any() or len(keys) != len(self.keys):
            return self._compacted(keys, dictionaries, codes)
        none = np.empty(0, dtype=np.int32)
        added = {s: Column(dictionaries[s], np.array(codes[s], dtype=np.int32), none) for s in sources}
        return Table(self.keys, self.gone, (), {**self.columns, **added})

    def _compacted(
        self, keys: list[Key], dictionaries: dict[Source, Dictionary], codes: dict[Source, list[int]]
    ) -> Table:
        """All points are at hand: recent rows go into the base, with the codes that they have."""
        whole = self.compacted()
        none = np.empty(0, dtype=np.int32)
        added = {s: Column(dictionaries[s], np.array(codes[s], dtype=np.int32), none) for s in dictionaries}
        return Table(keys, np.zeros(len(keys), dtype=np.bool_), (), {**whole.columns, **added})

    def compacted(self) -> Table:
        """The same points with no recent rows."""
        rows = np.flatnonzero(~self.gone)
        pairs = [(self.keys[row], row) for row in rows.tolist()]
        pairs += [(key, len(self.keys) + at) for at, key in enumerate(self.recent)]
        pairs.sort()
        order = np.array([row for _, row in pairs], dtype=np.intp)
        none = np.empty(0, dtype=np.int32)
        columns = {
            source: Column(column.dictionary, np.concatenate((column.base, column.recent))[order], none)
            for source, column in self.columns.items()
        }
        return Table([key for key, _ in pairs], np.zeros(len(pairs), dtype=np.bool_), (), columns)

    def changed(self, keys: set[Key], records: Iterable[Record]) -> Table:
        """The table after `keys` were touched; `records` are those of them that exist, as they are now."""
        gone = self.gone.copy()
        for key in keys:
            row = self._base_row(key)
            if row is not None:
                gone[row] = True
        encoder = Encoder(self.columns)
        now = {record.key: encoder.contents(record) for record in sorted(records, key=lambda record: record.key)}
        # Read after each write, a loop over all recent rows would be most of the answer: arrays are cut and filled.
        old = [at for at in map(self._recent_row, keys) if at is not None]
        names = list(self.recent)
        for at in sorted(old, reverse=True):
            del names[at]
        places = [bisect_left(names, key) for key in now]
        for at, key in enumerate(now):
            names.insert(places[at] + at, key)
        columns = {}
        for source, column in self.columns.items():
            new = [column.dictionary.code(contents[source]) for contents in now.values()]
            kept = np.delete(column.recent, np.array(old, dtype=np.intp))
            codes = np.insert(kept, np.array(places, dtype=np.intp), np.array(new, dtype=np.int32))
            columns[source] = Column(column.dictionary, column.base, codes)
        table = Table(self.keys, gone, tuple(names), columns)
        is_ragged = len(names) + int(np.count_nonzero(gone)) > max(_MERGE_LEAST, len(self.keys) // 8)
        return table.compacted() if is_ragged else table

    def _base_row(self, key: Key) -> int | None:
        row = bisect_left(self.keys, key)
        return row if row < len(self.keys) and self.keys[row] == key else None

    def _recent_row(self, key: Key) -> int | None:
        row = bisect_left(self.recent, key)
        return row if row < len(self.recent) and self.recent[row] == key else None

    def without(self, sources: Iterable[Source]) -> Table:
        """The table without some of its columns."""
        unwanted = set(sources)
        return replace(self, columns={name: column for name, column in self.columns.items() if name not in unwanted})

    def missing(self, node: Node) -> list[Source]:
        """The columns that a filter needs and that are not there."""
        return [source for source in sources_of(node) if source not in self.columns]

    def bounds(self, node: Node) -> tuple[Mask, Mask]:
        """Rows that surely pass and rows that may."""
        surely, maybe = self._bounds(node)
        live = np.concatenate((~self.gone, np.ones(len(self.recent), dtype=np.bool_)))
        return surely & live, maybe & live

    def _bounds(self, node: Node) -> tuple[Mask, Mask]:
        match node:
            case Combined():
                return self._combined(node)
            case OnValues():
                return self._on_column(node.path, lambda content: node.check(unpack(content)), node.equals)
            case HasVector():
                wanted = json_pb2.Value(string_value=node.name).SerializeToString()
                return self._on_column(VECTOR_NAMES, lambda _: False, frozenset((wanted,)))
            case HasId():
                mask = self._all(False)
                for key in node.keys:
                    self._mark(mask, key)
                return mask, mask
            case InSlice():
                rows = [*self.keys, *self.recent]
                mask = np.fromiter((node.test({}, Point(key, b"")) for key in rows), dtype=np.bool_, count=len(rows))
                return mask, mask
            case _:
                return self._all(False), self._all(True)

    def _mark(self, mask: Mask, key: Key) -> None:
        row = self._base_row(key)
        if row is not None:
            mask[row] = True
        at = self._recent_row(key)
        if at is not None:
            mask[len(self.keys) + at] = True

    def _all(self, value: bool) -> Mask:
        return np.full(len(self.keys) + len(self.recent), value, dtype=np.bool_)

    def _on_column(
        self, source: Source, check: Callable[[bytes], bool], equals: frozenset[bytes] | None
    ) -> tuple[Mask, Mask]:
        column = self.columns.get(source)
        if column is None:
            return self._all(False), self._all(True)
        contents = column.dictionary.contents
        if equals is not None:
            holding = column.dictionary.holding(equals)
            passes = np.zeros(len(contents), dtype=np.bool_)
            passes[holding] = True
        else:
            count = len(contents)
            passes = np.fromiter((check(contents[code]) for code in range(count)), dtype=np.bool_, count=count)
        mask = column.mask(passes)
        return mask, mask

    def _combined(self, node: Combined) -> tuple[Mask, Mask]:
        surely, maybe = self._all(True), self._all(True)
        for inner in node.must:
            low, high = self._bounds(inner)
            surely, maybe = surely & low, maybe & high
        for inner in node.must_not:
            low, high = self._bounds(inner)
            surely, maybe = surely & ~high, maybe & ~low
        if node.should:
            pairs = [self._bounds(inner) for inner in node.should]
            surely = surely & np.logical_or.reduce([low for low, _ in pairs])
            maybe = maybe & np.logical_or.reduce([high for _, high in pairs])
        if node.least:
            pairs = [self._bounds(inner) for inner in node.at_least]
            low_count = np.sum([low for low, _ in pairs], axis=0) if pairs else np.zeros(len(surely))
            high_count = np.sum([high for _, high in pairs], axis=0) if pairs else np.zeros(len(surely))
            surely, maybe = surely & (low_count >= node.least), maybe & (high_count >= node.least)
        return surely, maybe

    def keys_by_row(self, mask: Mask) -> Iterator[Key]:
        """The ids of the rows in a mask, in the order of the rows: base, then recent."""
        size = len(self.keys)
        yield from (self.keys[row] for row in np.flatnonzero(mask[:size]).tolist())
        yield from (self.recent[at] for at in np.flatnonzero(mask[size:]).tolist())

    def keys_of(self, mask: Mask, start: Key | None = None) -> Iterator[Key]:
        """The ids of the rows in a mask, in order, from `start` on."""
        size = len(self.keys)
        first = bisect_left(self.keys, start) if start is not None else 0
        base = map(self.keys.__getitem__, _rows_of(mask[:size], first))
        if not len(self.recent):
            return base
        recent = (self.recent[at] for at in np.flatnonzero(mask[size:]).tolist())
        return merge(base, (key for key in recent if start is None or key >= start))


def _rows_of(mask: Mask, first: int) -> Iterator[int]:
    """The rows in a mask from `first` on; whoever wants a few does not wait for all."""
    stretch = _FIRST_STRETCH
    while first < len(mask):
        yield from (np.flatnonzero(mask[first : first + stretch]) + first).tolist()
        first += stretch
        stretch *= 4


def sources_of(node: Node) -> list[Source]:
    """The columns that a filter looks at, each once."""
    found: dict[Source, None] = {}

    def walk(part: Node) -> None:
        match part:
            case Combined():
                for inner in (*part.must, *part.must_not, *part.should, *part.at_least):
                    walk(inner)
            case OnValues():
                found[part.path] = None
            case HasVector():
                found[VECTOR_NAMES] = None

    walk(node)
    return list(found)
