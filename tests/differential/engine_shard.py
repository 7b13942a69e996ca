"""A shard of `qdrant_edge` in a directory: one collection of the engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from generated.qdrant import collections_pb2 as collections

from .answers import Id
from .engine_answers import plain
from .engine_queries import Refusal
from .engine_writes import DISTANCES

_DATATYPES = {
    collections.Uint8: edge.VectorStorageDatatype.Uint8,
    collections.Float16: edge.VectorStorageDatatype.Float16,
    collections.Float32: edge.VectorStorageDatatype.Float32,
}


class Shard:
    """One collection."""

    def __init__(self, directory: Path, request: collections.CreateCollection) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        config = request.vectors_config
        self.is_unnamed = config.WhichOneof("config") == "params"
        self.dense = {"": config.params} if self.is_unnamed else dict(config.params_map.map)
        sparse = request.sparse_vectors_config.map
        self.names = {*self.dense, *sparse}
        self._request = request
        self._shaping: list[Any] = []
        self.shard = edge.EdgeShard.create(
            str(directory),
            edge.EdgeConfig(
                vectors={name: _dense(params) for name, params in self.dense.items()},
                sparse_vectors={name: _sparse(params) for name, params in sparse.items()},
                wal_enabled=False,
            ),
        )

    def close(self) -> None:
        """Release the shard and its directory."""
        self.shard.close()
        shutil.rmtree(self.directory)

    def update(self, operation: Any, *, is_shaping: bool = False) -> None:
        """Apply one operation. `is_shaping`: it changes indexes or vectors, not points."""
        self.shard.update(operation)
        if is_shaping:
            self._shaping.append(operation)

    def keep_payloads(self) -> None:
        """Give every point without a payload an empty one, which is the same to everybody who asks."""
        records, _ = self.shard.scroll(edge.ScrollRequest(limit=100_000, with_payload=True))
        bare = [record.id for record in records if not record.payload]
        if bare:
            self.shard.update(edge.UpdateOperation.set_payload(bare, {}))

    def copied(self, directory: Path) -> Shard:
        """A shard with the same points that never held others."""
        made = Shard(directory, self._request)
        for operation in self._shaping:
            made.update(operation, is_shaping=True)
        records, _ = self.shard.scroll(edge.ScrollRequest(limit=100_000, with_payload=True, with_vector=True))
        points = [edge.Point(record.id, record.vector or {}, record.payload or {}) for record in records]
        made.update(edge.UpdateOperation.upsert_points(points))
        made.names = set(self.names)
        return made

    def vector(self, identity: Id, using: str) -> Any:
        """The stored vector of a point. Raises Refusal."""
        found = self.shard.retrieve([identity], False, True)
        if not found:
            raise Refusal("NOT_FOUND", f"Not found: No point with id {identity} found")
        vectors = found[0].vector
        named = vectors if isinstance(vectors, dict) else {"": vectors}
        if named.get(using) is None:
            raise Refusal("NOT_FOUND", f'Not found: Vector with name "{using}" for point not found')
        return named[using]

    def demand(self, ids: list[Id]) -> None:
        """Raise Refusal for the first point that does not exist: a server looks before it does anything else."""
        found = {plain(record.id) for record in self.shard.retrieve(list(dict.fromkeys(ids)), False, False)}
        for one in ids:
            if one not in found:
                raise Refusal("NOT_FOUND", f"Not found: No point with id {one} found")

    def is_plain(self, name: str) -> bool:
        """Whether a vector is dense and of one row."""
        return name in self.dense and not self.dense[name].HasField("multivector_config")


def _dense(params: collections.VectorParams) -> Any:
    multi = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim) if params.HasField("multivector_config") else None
    return edge.EdgeVectorParams(
        params.size, DISTANCES[params.distance], multivector_config=multi, datatype=_DATATYPES.get(params.datatype)
    )


def _sparse(params: collections.SparseVectorParams) -> Any:
    return edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if params.modifier == collections.Idf else None)
