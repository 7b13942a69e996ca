"""What a server knows of its collections and qdrant-client's local mode does not keep.

The whole configuration of each collection, its payload index schemas and its operation counter, in one SQLite file next
to the engine's own files.

Promises: what was set survives SIGKILL. Does not promise to survive a power cut: there is no fsync here.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points

_SCHEMA = """
CREATE TABLE IF NOT EXISTS collections (name TEXT PRIMARY KEY, config BLOB, next_operation INTEGER, created REAL);
CREATE TABLE IF NOT EXISTS indexes (collection TEXT, field TEXT, info BLOB, PRIMARY KEY (collection, field));
"""
_TYPES = {
    points.FieldTypeKeyword: collections.Keyword,
    points.FieldTypeInteger: collections.Integer,
    points.FieldTypeFloat: collections.Float,
    points.FieldTypeGeo: collections.Geo,
    points.FieldTypeText: collections.Text,
    points.FieldTypeBool: collections.Bool,
    points.FieldTypeDatetime: collections.Datetime,
    points.FieldTypeUuid: collections.Uuid,
}
_RANGES = {collections.Integer, collections.Float, collections.Datetime}
_FACETS = {collections.Keyword, collections.Integer, collections.Bool, collections.Uuid}


class Catalogue:
    """Configurations, index schemas and operation counters by collection name."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.executescript(_SCHEMA)
        self._configs: dict[str, collections.CollectionConfig] = {
            name: collections.CollectionConfig.FromString(config)
            for name, config in self._db.execute("SELECT name, config FROM collections")
        }
        self._indexes: dict[str, dict[str, collections.PayloadSchemaInfo]] = {name: {} for name in self._configs}
        for name, field, info in self._db.execute("SELECT collection, field, info FROM indexes"):
            self._indexes.setdefault(name, {})[field] = collections.PayloadSchemaInfo.FromString(info)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def config(self, name: str) -> collections.CollectionConfig:
        """The configuration of a collection."""
        return self._configs[name]

    def names(self) -> set[str]:
        """The collections that have a configuration here."""
        return set(self._configs)

    def indexes(self, name: str) -> dict[str, collections.PayloadSchemaInfo]:
        """The payload indexes of a collection, by field."""
        return self._indexes.setdefault(name, {})

    def created(self, name: str, request: collections.CreateCollection) -> None:
        """Note a new collection with the server's defaults filled in."""
        self.save(name, config_of(request))
        self._db.execute("UPDATE collections SET next_operation = 0, created = ? WHERE name = ?", (time.time(), name))

    def save(self, name: str, config: collections.CollectionConfig) -> None:
        """Replace the configuration of a collection."""
        self._configs[name] = config
        self._indexes.setdefault(name, {})
        self._db.execute(
            "INSERT INTO collections VALUES (?, ?, 0, ?) ON CONFLICT (name) DO UPDATE SET config = excluded.config",
            (name, config.SerializeToString(), time.time()),
        )

    def dropped(self, name: str) -> None:
        """Forget a collection."""
        self._configs.pop(name, None)
        self._indexes.pop(name, None)
        self._db.execute("DELETE FROM collections WHERE name = ?", (name,))
        self._db.execute("DELETE FROM indexes WHERE collection = ?", (name,))

    def index_created(self, name: str, request: points.CreateFieldIndexCollection) -> None:
        """Note a payload index."""
        info = collections.PayloadSchemaInfo(data_type=_data_type(request))
        if request.HasField("field_index_params"):
            info.params.CopyFrom(request.field_index_params)
        self.indexes(name)[request.field_name] = info
        self._db.execute(
            "INSERT OR REPLACE INTO indexes VALUES (?, ?, ?)", (name, request.field_name, info.SerializeToString())
        )

    def index_dropped(self, name: str, field: str) -> None:
        """Forget a payload index."""
        self.indexes(name).pop(field, None)
        self._db.execute("DELETE FROM indexes WHERE collection = ? AND field = ?", (name, field))

    def next_operation(self, name: str) -> int:
        """A number for one update: 0, 1, 2 … for each collection, across restarts."""
        row = self._db.execute(
            "UPDATE collections SET next_operation = next_operation + 1 WHERE name = ? RETURNING next_operation",
            (name,),
        ).fetchone()
        return int(row[0]) - 1

    def has_range_index(self, name: str, field: str) -> bool:
        """Whether `order_by` may use the field."""
        info = self.indexes(name).get(field)
        if info is None or info.data_type not in _RANGES:
            return False
        integer = info.params.integer_index_params
        return not (integer.HasField("range") and not integer.range)

    def has_match_index(self, name: str, field: str) -> bool:
        """Whether a facet may use the field."""
        info = self.indexes(name).get(field)
        return info is not None and info.data_type in _FACETS


def _data_type(request: points.CreateFieldIndexCollection) -> collections.PayloadSchemaType:
    if request.HasField("field_type"):
        return _TYPES[request.field_type]
    kind = request.field_index_params.WhichOneof("index_params") or "keyword_index_params"
    return collections.PayloadSchemaType.Value(kind.removesuffix("_index_params").capitalize())


def config_of(request: collections.CreateCollection) -> collections.CollectionConfig:
    """The configuration that a server makes of a create request."""
    config = collections.CollectionConfig(
        params=collections.CollectionParams(
            shard_number=request.shard_number or 1,
            replication_factor=request.replication_factor or 1,
            write_consistency_factor=request.write_consistency_factor or 1,
            on_disk_payload=request.on_disk_payload if request.HasField("on_disk_payload") else True,
        ),
        hnsw_config=collections.HnswConfigDiff(
            m=16, ef_construct=100, full_scan_threshold=10000, max_indexing_threads=0, on_disk=False
        ),
        optimizer_config=collections.OptimizersConfigDiff(
            deleted_threshold=0.2,
            vacuum_min_vector_number=1000,
            default_segment_number=0,
            indexing_threshold=10000,
            flush_interval_sec=5,
        ),
        wal_config=collections.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0, wal_retain_closed=1),
    )
    config.hnsw_config.MergeFrom(request.hnsw_config)
    config.optimizer_config.MergeFrom(request.optimizers_config)
    config.wal_config.MergeFrom(request.wal_config)
    params = config.params
    for name, target in (
        ("vectors_config", params.vectors_config),
        ("sparse_vectors_config", params.sparse_vectors_config),
        ("payload", params.payload),
        ("id_tracker", params.id_tracker),
        ("quantization_config", config.quantization_config),
        ("strict_mode_config", config.strict_mode_config),
    ):
        if request.HasField(name):
            target.CopyFrom(getattr(request, name))
    if request.HasField("sharding_method"):
        params.sharding_method = request.sharding_method
    for key, value in request.metadata.items():
        config.metadata[key].CopyFrom(value)
    return config


def updated(config: collections.CollectionConfig, request: collections.UpdateCollection) -> None:
    """Merge an update request into a configuration, in place."""
    config.hnsw_config.MergeFrom(request.hnsw_config)
    config.optimizer_config.MergeFrom(request.optimizers_config)
    if request.HasField("params"):
        for descriptor, value in request.params.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                getattr(config.params, descriptor.name).CopyFrom(value)
            else:
                setattr(config.params, descriptor.name, value)
    if request.HasField("strict_mode_config"):
        config.strict_mode_config.MergeFrom(request.strict_mode_config)
    if request.HasField("quantization_config"):
        _quantization(config, request.quantization_config)
    for name, diff in request.vectors_config.params_map.map.items():
        _vector(config.params.vectors_config.params_map.map[name], diff)
    if request.vectors_config.WhichOneof("config") == "params":
        _vector(config.params.vectors_config.params, request.vectors_config.params)
    for name, sparse in request.sparse_vectors_config.map.items():
        config.params.sparse_vectors_config.map[name].MergeFrom(sparse)
    for key, value in request.metadata.items():
        config.metadata[key].CopyFrom(value)


def _vector(params: collections.VectorParams, diff: collections.VectorParamsDiff) -> None:
    params.hnsw_config.MergeFrom(diff.hnsw_config)
    if diff.HasField("quantization_config"):
        _quantization(params, diff.quantization_config)
    for name in ("on_disk", "memory"):
        if diff.HasField(name):
            setattr(params, name, getattr(diff, name))


def _quantization(
    config: collections.CollectionConfig | collections.VectorParams, diff: collections.QuantizationConfigDiff
) -> None:
    kind = diff.WhichOneof("quantization")
    if kind == "disabled":
        config.ClearField("quantization_config")
    elif kind is not None:
        getattr(config.quantization_config, kind).CopyFrom(getattr(diff, kind))
