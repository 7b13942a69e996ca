"""PURE. Stored vectors of many points as arrays, and their similarity to a query vector.

Promises: a `Block` holds the vectors of one space for a run of points, cut out of the stored bytes; points that lack
the vector are not in it. Rows keep the order of the records. Nothing is copied twice for dense vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from generated.qdrant import points_pb2 as points
from server.replica.records import Key, Record
from server.replica.spaces import Floats, Space, similarities

Integers: TypeAlias = npt.NDArray[np.int64]

_VARINT = 0
_LENGTH_DELIMITED = 2
_DENSE_FIELD = 101


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse vector: `indices` strictly rising (uint32), `values` (float32) beside them."""

    indices: npt.NDArray[np.uint32]
    values: Floats


QueryVector: TypeAlias = "Floats | Sparse"
"""Dense (d), multi (m by d) or sparse."""


class Picked(Sequence[Key]):
    """Some of a sequence of keys: of thousands of rows only the keys of the best few are ever looked at."""

    def __init__(self, keys: Sequence[Key], rows: npt.NDArray[np.intp]) -> None:
        self._keys = keys
        self._rows = rows

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Key: ...

    @overload
    def __getitem__(self, at: slice) -> list[Key]: ...

    def __getitem__(self, at: int | slice) -> Key | list[Key]:
        """The key of one row, or a list of several."""
        if isinstance(at, slice):
            return [self._keys[row] for row in self._rows[at].tolist()]
        return self._keys[int(self._rows[at])]

    def __iter__(self) -> Iterator[Key]:
        """All of them."""
        return map(self._keys.__getitem__, self._rows.tolist())


@dataclass(frozen=True)
class Postings:
    """The values of sparse vectors by index: sorted `indices`, and beside each its row and value."""

    indices: npt.NDArray[np.uint32]
    rows: Integers
    values: Floats

    def of(self, index: int) -> slice:
        """Where the entries of one index stand."""
        low, high = np.searchsorted(self.indices, np.array([index, index + 1], dtype=np.uint64))
        return slice(int(low), int(high))


@dataclass(frozen=True)
class Block:
    """Vectors of one space. Dense: `data` is n by d and `starts` empty. Multi: the rows of point i are
    data[starts[i]:starts[i+1]]. Sparse: the same cut through `data` (values) and `indices`.
    """

    space: Space
    keys: Sequence[Key]
    data: Floats
    starts: Integers
    indices: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        """Number of points."""
        return len(self.keys)

    @property
    def byte_size(self) -> int:
        """Memory that the arrays and keys take, about."""
        return self.data.nbytes + self.starts.nbytes + self.indices.nbytes + 120 * len(self.keys)

    def vector(self, row: int) -> QueryVector:
        """The vector of one point."""
        if not len(self.starts):
            dense: Floats = self.data[row]
            return dense
        part = slice(self.starts[row], self.starts[row + 1])
        if self.space.field.is_sparse:
            return Sparse(self.indices[part], self.data[part])
        rows: Floats = self.data[part]
        return rows

    def similarity(self, query: QueryVector) -> Floats:
        """Of each point to the query, larger is better. Sparse without a common index: 0."""
        if isinstance(query, Sparse):
            return self._sparse_similarity(query)[0]
        if self.space.field.is_multi:
            return self._multi_similarity(query)
        return similarities(self.space.metric, self.data, query)

    def overlap(self, query: Sparse) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Similarity to a sparse query, and which points share an index with it."""
        return self._sparse_similarity(query)

    def _multi_similarity(self, query: Floats) -> Floats:
        total = np.zeros(len(self.keys), dtype=np.float32)
        if not len(self.keys):
            return total
        for row in query:
            best = np.maximum.reduceat(similarities(self.space.metric, self.data, row), self.starts[:-1])
            total += best
        return total

    def _sparse_similarity(self, query: Sparse) -> tuple[Floats, npt.NDArray[np.bool_]]:
        size = len(self.keys)
        scores = np.zeros(size, dtype=np.float32)
        found = np.zeros(size, dtype=np.bool_)
        for index, value in zip(query.indices.tolist(), query.values, strict=True):
            entries = self.postings.of(index)
            # An index stands once in a vector, so no row comes twice.
            rows = self.postings.rows[entries]
            scores[rows] += self.postings.values[entries] * value
            found[rows] = True
        return scores, found

    @cached_property
    def postings(self) -> Postings:
        """Made once: the vectors of a block do not change."""
        owners = np.repeat(np.arange(len(self.keys), dtype=np.int64), np.diff(self.starts))
        order = np.argsort(self.indices, kind="stable")
        return Postings(self.indices[order], owners[order], self.data[order])

    def document_frequency(self, indices: npt.NDArray[np.uint32], gone: npt.NDArray[np.bool_] | None) -> Integers:
        """For each index, how many points have it; those marked in `gone` do not count."""
        counts = np.zeros(len(indices), dtype=np.int64)
        for at, index in enumerate(indices.tolist()):
            rows = self.postings.rows[self.postings.of(index)]
            counts[at] = len(rows) if gone is None else np.count_nonzero(~gone[rows])
        return counts


_NO_INTEGERS: Integers = np.empty(0, dtype=np.int64)
_NO_INDICES: npt.NDArray[np.uint32] = np.empty(0, dtype=np.uint32)


def block_of(space: Space, records: Sequence[Record]) -> Block:
    """The vectors of one space of these records."""
    if space.field.is_sparse:
        return _sparse_block(space, records)
    if space.field.is_multi:
        return _multi_block(space, records)
    return _dense_block(space, records)


def stored_vector(space: Space, record: Record) -> QueryVector | None:
    """The vector of one point as it is stored, whatever has to be made of it to compare it."""
    block = block_of(space.without_metric, [record])
    return block.vector(0) if len(block) else None


def take(block: Block, rows: npt.NDArray[np.intp]) -> Block:
    """Some rows of a block, in the order given."""
    keys = Picked(block.keys, rows)
    if not len(block.starts):
        return Block(block.space, keys, np.take(block.data, rows, axis=0), _NO_INTEGERS, _NO_INDICES)
    lengths = np.diff(block.starts)[rows]
    starts = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths)))
    positions = np.repeat(block.starts[rows] - starts[:-1], lengths) + np.arange(starts[-1])
    indices = block.indices[positions] if block.space.field.is_sparse else _NO_INDICES
    return Block(block.space, keys, block.data[positions], starts, indices)


def join(space: Space, blocks: Sequence[Block]) -> Block:
    """Blocks one after the other."""
    keys = [key for block in blocks for key in block.keys]
    width = space.field.size
    empty = np.empty(0 if space.field.is_sparse else (0, width), dtype=np.float32)
    data = np.concatenate([block.data for block in blocks]) if blocks else empty
    if not (space.field.is_sparse or space.field.is_multi):
        return Block(space, keys, data, _NO_INTEGERS, _NO_INDICES)
    lengths = [np.diff(block.starts) for block in blocks]
    starts = np.concatenate([np.zeros(1, dtype=np.int64), *([np.cumsum(np.concatenate(lengths))] if blocks else [])])
    indices = np.concatenate([block.indices for block in blocks]) if blocks else _NO_INDICES
    return Block(space, keys, data, starts.astype(np.int64), indices)


def _dense_block(space: Space, records: Sequence[Record]) -> Block:
    size = 4 * space.field.size
    parts: list[memoryview] = []
    keys: list[Key] = []
    name = space.name.encode()
    for record in records:
        part = dense_bytes(record.vectors, name)
        if part is not None and len(part) == size:
            parts.append(part)
            keys.append(record.key)
    data = np.frombuffer(b"".join(parts), dtype="<f4").astype(np.float32, copy=False)
    data = data.reshape(len(keys), space.field.size)
    if space.needs_normalising:
        data = _normalised_rows(data)
    return Block(space, keys, data, _NO_INTEGERS, _NO_INDICES)


def _normalised_rows(data: Floats) -> Floats:
    """Bytes are stored as they came, so their cosine is made when they are compared."""
    lengths = np.linalg.norm(data, axis=1, keepdims=True)
    result: Floats = (data / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    return result


def dense_bytes(vectors: bytes, name: bytes) -> memoryview | None:
    """The little-endian floats of one dense vector, cut out of a serialized NamedVectors without decoding the rest.

    NamedVectors { map entry 1: { 1: name, 2: Vector { 101: DenseVector { 1: packed floats } } } }
    """
    view = memoryview(vectors)
    at = 0
    while at < len(view):
        _, entry, at = _next_field(view, at)
        found, value = b"", None
        inside = 0
        while inside < len(entry):
            number, content, inside = _next_field(entry, inside)
            if number == 1:
                found = bytes(content)
            else:
                value = content
        if found == name:
            return None if value is None else _dense_in_vector(value)
    return None


def _dense_in_vector(vector: memoryview) -> memoryview | None:
    at = 0
    while at < len(vector):
        number, content, at = _next_field(vector, at)
        if number == _DENSE_FIELD:
            return _next_field(content, 0)[1] if len(content) else content
    return None


def _next_field(view: memoryview, at: int) -> tuple[int, memoryview, int]:
    """Number, content and end of a length-delimited field; the store's canonical form has no others on the way.

    What was stored before that form left deprecated fields out may have `vectors_count`, whose content is of no use.
    """
    tag, at = _varint(view, at)
    if tag & 7 != _LENGTH_DELIMITED:
        if tag & 7 != _VARINT:
            raise ValueError("a stored vector is not in its canonical form")
        return tag >> 3, view[at:at], _varint(view, at)[1]
    length, at = _varint(view, at)
    return tag >> 3, view[at : at + length], at + length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = view[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7


def _stored(record: Record, name: str, form: str) -> points.Vector | None:
    vectors = points.NamedVectors.FromString(record.vectors).vectors
    if name not in vectors or vectors[name].WhichOneof("vector") != form:
        return None
    return vectors[name]


def _multi_block(space: Space, records: Sequence[Record]) -> Block:
    keys: list[Key] = []
    rows: list[Floats] = []
    starts = [0]
    for record in records:
        vector = _stored(record, space.name, "multi_dense")
        if vector is None or not vector.multi_dense.vectors:
            continue
        keys.append(record.key)
        rows.extend(np.fromiter(row.data, dtype=np.float32) for row in vector.multi_dense.vectors)
        starts.append(len(rows))
    data = np.stack(rows) if rows else np.empty((0, space.field.size), dtype=np.float32)
    if space.needs_normalising:
        data = _normalised_rows(data)
    return Block(space, keys, data, np.array(starts, dtype=np.int64), _NO_INDICES)


def _sparse_block(space: Space, records: Sequence[Record]) -> Block:
    keys: list[Key] = []
    values: list[Floats] = []
    indices: list[npt.NDArray[np.uint32]] = []
    starts = [0]
    for record in records:
        vector = _stored(record, space.name, "sparse")
        if vector is None:
            continue
        keys.append(record.key)
        values.append(np.fromiter(vector.sparse.values, dtype=np.float32))
        indices.append(np.fromiter(vector.sparse.indices, dtype=np.uint32))
        starts.append(starts[-1] + len(values[-1]))
    return Block(
        space,
        keys,
        np.concatenate(values) if values else np.empty(0, dtype=np.float32),
        np.array(starts, dtype=np.int64),
        np.concatenate(indices) if indices else _NO_INDICES,
    )
