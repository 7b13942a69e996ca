"""Collections, aliases and field indexes: what they are called, how they are configured, how they are told.

Promises: what a client reads of a collection is complete enough for every client (HNSW, optimizer and WAL blocks are
filled), the last real CollectionInfo of Qdrant with counts, config and schema of the replica. A name that is not here
is NOT_FOUND only when the catalogue of the remote is known, UNAVAILABLE otherwise.
Does not promise that numbers about segments and indexing are those of Qdrant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as pb
from generated.qdrant import points_pb2 as points
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import checks
from server.replica.reads import Reads
from server.replica.records import Collection
from server.replica.refusal import NotServed, Refusal, catalogue_unknown, no_collection
from server.replica.requests import parse
from server.replica.store import Transaction
from server.rpc import Code

KNOWN = "catalogue_known"
NO_REMOTE = "no_remote"
REMOTE_VERSION = "remote_version"

# What a current server uses where a request says nothing.
_DEFAULT_HNSW = pb.HnswConfigDiff(
    m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=0, on_disk=False
)
_DEFAULT_OPTIMIZERS = pb.OptimizersConfigDiff(
    deleted_threshold=0.2,
    vacuum_min_vector_number=1000,
    default_segment_number=0,
    indexing_threshold=10_000,
    flush_interval_sec=5,
)
_DEFAULT_WAL = pb.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0, wal_retain_closed=1)


def is_known(reads: Reads) -> bool:
    """Whether the remote's list of collections was read once, or no remote exists."""
    return reads.meta(KNOWN) == "1" or reads.meta(NO_REMOTE) == "1"


def find(reads: Reads, name: str) -> Collection:
    """The collection that a name or alias stands for. Raises Refusal."""
    checks.check_name(name)
    found = reads.collection(name)
    if found is None:
        raise missing(reads, name)
    return found


def missing(reads: Reads, name: str) -> Refusal:
    """Why there is no collection of that name."""
    return no_collection(name) if is_known(reads) else catalogue_unknown(name)


def is_whole(collection: Collection) -> bool:
    """Whether the replica holds all that Qdrant holds of it."""
    return collection.completeness == control.COMPLETENESS_COMPLETE


def was_whole(collection: Collection) -> bool:
    """Whether the replica held all of it once."""
    return collection.completeness in (control.COMPLETENESS_COMPLETE, control.COMPLETENESS_STALE)


def distrust(tx: Transaction, collection: Collection) -> None:
    """It may differ from Qdrant: a whole one is STALE, one that never was whole is copied from the start again.

    A copy that is under way does not end well: see `Transaction.doubt`.
    """
    tx.doubt(collection.cid)
    tx.set_completeness(
        collection.cid,
        control.COMPLETENESS_STALE if was_whole(collection) else collection.completeness,
        as_of_seq=collection.as_of_seq,
        expected_points=collection.expected_points,
    )


def freshness_of(reads: Reads, name: str, applied_seq: int) -> control.Freshness:
    """Of a collection or alias, "" or an unknown name too. `applied_seq`: log entries up to here are in."""
    collection = reads.collection(name) if name else None
    if collection is None:
        return control.Freshness(as_of_seq=applied_seq)
    return control.Freshness(
        completeness=collection.completeness or control.COMPLETENESS_EMPTY,  # type: ignore[arg-type]
        as_of_seq=applied_seq if is_whole(collection) else collection.as_of_seq,
    )


def new_config(request: pb.CreateCollection) -> pb.CollectionConfig:
    """The configuration of a collection made by this request."""
    config = pb.CollectionConfig(
        params=pb.CollectionParams(
            shard_number=request.shard_number or 1,
            on_disk_payload=request.on_disk_payload if request.HasField("on_disk_payload") else True,
            replication_factor=request.replication_factor or 1,
            write_consistency_factor=request.write_consistency_factor or 1,
        ),
        hnsw_config=_DEFAULT_HNSW,
        optimizer_config=_DEFAULT_OPTIMIZERS,
        wal_config=_DEFAULT_WAL,
    )
    _copy_given(request, config.params, ("vectors_config", "sparse_vectors_config", "payload", "id_tracker"))
    if request.HasField("sharding_method"):
        config.params.sharding_method = request.sharding_method
    config.hnsw_config.MergeFrom(request.hnsw_config)
    config.optimizer_config.MergeFrom(request.optimizers_config)
    config.wal_config.MergeFrom(request.wal_config)
    _copy_given(request, config, ("quantization_config", "strict_mode_config"))
    _merge_metadata(config, request)
    return config


def changed_config(config: pb.CollectionConfig, request: pb.UpdateCollection) -> pb.CollectionConfig:
    """The configuration after an update. The vectors that it names exist (see `checks`)."""
    changed = pb.CollectionConfig()
    changed.CopyFrom(config)
    changed.optimizer_config.MergeFrom(request.optimizers_config)
    changed.hnsw_config.MergeFrom(request.hnsw_config)
    if request.HasField("strict_mode_config"):
        changed.strict_mode_config.MergeFrom(request.strict_mode_config)
    for field, value in request.params.ListFields():
        if isinstance(value, Message):
            getattr(changed.params, field.name).CopyFrom(value)
        else:
            setattr(changed.params, field.name, value)
    if request.HasField("quantization_config"):
        _change_quantization(changed, request.quantization_config)
    for name, params in _vector_changes(request).items():
        target = _vector_params(changed.params, name)
        if target is not None:
            _change_vector(target, params)
    for name, sparse in request.sparse_vectors_config.map.items():
        changed.params.sparse_vectors_config.map[name].MergeFrom(sparse)
    _merge_metadata(changed, request)
    return changed


def _vector_changes(request: pb.UpdateCollection) -> Mapping[str, pb.VectorParamsDiff]:
    if request.vectors_config.WhichOneof("config") == "params":
        return {"": request.vectors_config.params}
    return request.vectors_config.params_map.map


def _vector_params(params: pb.CollectionParams, name: str) -> pb.VectorParams | None:
    if params.vectors_config.WhichOneof("config") == "params":
        return params.vectors_config.params if name == "" else None
    return params.vectors_config.params_map.map.get(name)


def _change_vector(target: pb.VectorParams, change: pb.VectorParamsDiff) -> None:
    target.hnsw_config.MergeFrom(change.hnsw_config)
    if change.HasField("quantization_config"):
        _change_quantization(target, change.quantization_config)
    if change.HasField("on_disk"):
        target.on_disk = change.on_disk
    if change.HasField("memory"):
        target.memory = change.memory


def _change_quantization(target: pb.CollectionConfig | pb.VectorParams, change: pb.QuantizationConfigDiff) -> None:
    form = change.WhichOneof("quantization")
    target.ClearField("quantization_config")
    if form not in (None, "disabled"):
        getattr(target.quantization_config, form).CopyFrom(getattr(change, form))


def _merge_metadata(config: pb.CollectionConfig, request: pb.CreateCollection | pb.UpdateCollection) -> None:
    for key, value in request.metadata.items():
        if value.WhichOneof("kind") == "null_value":
            config.metadata.pop(key, None)
        else:
            config.metadata[key].CopyFrom(value)


def add_vector(params: pb.CollectionParams, request: points.CreateVectorNameRequest) -> None:
    """Give a collection one more named vector. A collection with one unnamed vector then has it under ""."""
    if request.WhichOneof("vector_config") == "sparse_config":
        sparse = params.sparse_vectors_config.map[request.vector_name]
        sparse.SetInParent()
        if request.sparse_config.HasField("modifier"):
            sparse.modifier = request.sparse_config.modifier
        if request.sparse_config.HasField("datatype"):
            sparse.index.datatype = request.sparse_config.datatype
        return
    if params.vectors_config.WhichOneof("config") == "params":
        unnamed = pb.VectorParams()
        unnamed.CopyFrom(params.vectors_config.params)
        params.vectors_config.params_map.map[""].CopyFrom(unnamed)
    given = request.dense_config
    dense = params.vectors_config.params_map.map[request.vector_name]
    dense.size, dense.distance = given.size, given.distance
    if given.HasField("multivector_config"):
        dense.multivector_config.CopyFrom(given.multivector_config)
    if given.HasField("datatype"):
        dense.datatype = given.datatype


def remove_vector(params: pb.CollectionParams, name: str) -> None:
    """Take a vector away from a collection."""
    if name in params.sparse_vectors_config.map:
        del params.sparse_vectors_config.map[name]
    elif params.vectors_config.WhichOneof("config") == "params_map":
        if name in params.vectors_config.params_map.map:
            del params.vectors_config.params_map.map[name]
    elif name == "":
        params.ClearField("vectors_config")


def _copy_given(source: Message, target: Message, names: tuple[str, ...]) -> None:
    for name in names:
        if source.HasField(name):
            getattr(target, name).CopyFrom(getattr(source, name))


def config_of(collection: Collection) -> pb.CollectionConfig:
    """The configuration, parsed."""
    return pb.CollectionConfig.FromString(collection.config)


def info_of(collection: Collection) -> pb.CollectionInfo:
    """What a client is told of a collection."""
    info = pb.CollectionInfo.FromString(collection.info)
    info.status = pb.CollectionStatus.Green
    info.optimizer_status.ok = True
    info.optimizer_status.error = ""
    info.segments_count = max(1, info.segments_count)
    info.config.CopyFrom(_filled(config_of(collection)))
    info.payload_schema.clear()
    for field, schema in collection.schema.items():
        info.payload_schema[field].ParseFromString(schema)
    info.points_count = collection.points
    info.indexed_vectors_count = min(info.indexed_vectors_count, collection.points)
    info.ClearField("warnings")
    info.update_queue.SetInParent()
    info.update_queue.Clear()
    info.update_queue.SetInParent()
    return info


def _filled(config: pb.CollectionConfig) -> pb.CollectionConfig:
    filled = pb.CollectionConfig(
        hnsw_config=_DEFAULT_HNSW, optimizer_config=_DEFAULT_OPTIMIZERS, wal_config=_DEFAULT_WAL
    )
    filled.MergeFrom(config)
    return filled


def schema_of(data_type: int, request_params: pb.PayloadIndexParams | None) -> bytes:
    """The serialized PayloadSchemaInfo of a field index."""
    info = pb.PayloadSchemaInfo(data_type=data_type)  # type: ignore[arg-type]
    if request_params is not None and request_params.WhichOneof("index_params"):
        info.params.CopyFrom(request_params)
    return info.SerializeToString(deterministic=True)


# --- answers ---------------------------------------------------------------------------------------------------------


def _get(reads: Reads, body: bytes, started: Callable[[], float]) -> Message:
    request = parse(pb.GetCollectionInfoRequest, body)
    checks.check_read_name(request.collection_name)
    return pb.GetCollectionInfoResponse(result=info_of(find(reads, request.collection_name)), time=started())


def _list(reads: Reads, body: bytes, started: Callable[[], float]) -> Message:
    parse(pb.ListCollectionsRequest, body)
    _demand_known(reads)
    described = [pb.CollectionDescription(name=collection.name) for collection in reads.collections()]
    return pb.ListCollectionsResponse(collections=described, time=started())


def _exists(reads: Reads, body: bytes, started: Callable[[], float]) -> Message:
    name = parse(pb.CollectionExistsRequest, body).collection_name
    checks.check_read_name(name)
    exists = reads.collection(name) is not None
    if not exists and not is_known(reads):
        raise catalogue_unknown(name)
    return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists), time=started())


def _list_aliases(reads: Reads, body: bytes, started: Callable[[], float]) -> Message:
    parse(pb.ListAliasesRequest, body)
    _demand_known(reads)
    return pb.ListAliasesResponse(aliases=_described(reads.aliases()), time=started())


def _list_collection_aliases(reads: Reads, body: bytes, started: Callable[[], float]) -> Message:
    name = parse(pb.ListCollectionAliasesRequest, body).collection_name
    checks.check_read_name(name)
    # Of a collection that is not there Qdrant knows no alias, and says so.
    if reads.collection(name) is None and not is_known(reads):
        raise catalogue_unknown(name)
    aliases = {alias: target for alias, target in reads.aliases().items() if target == name}
    return pb.ListAliasesResponse(aliases=_described(aliases), time=started())


def _described(aliases: Mapping[str, str]) -> list[pb.AliasDescription]:
    return [pb.AliasDescription(alias_name=alias, collection_name=name) for alias, name in aliases.items()]


def _demand_known(reads: Reads) -> None:
    if not is_known(reads):
        raise NotServed("Qdrant's list of collections was never read")


GET = "/qdrant.Collections/Get"

_ANSWERS: Mapping[str, Callable[[Reads, bytes, Callable[[], float]], Message]] = {
    GET: _get,
    "/qdrant.Collections/List": _list,
    "/qdrant.Collections/CollectionExists": _exists,
    "/qdrant.Collections/ListAliases": _list_aliases,
    "/qdrant.Collections/ListCollectionAliases": _list_collection_aliases,
}


def answer(
    reads: Reads, method: str, body: bytes, elapsed: Callable[[], float], indexed: Mapping[str, int] | None = None
) -> bytes:
    """The answer to a read of qdrant.Collections. `elapsed` gives the seconds since the call came. Raises Refusal.

    `indexed`: by field, of how many points a payload index holds a value; for other fields the last known number stays.
    """
    handler = _ANSWERS.get(method)
    if handler is None:
        raise Refusal(Code.UNIMPLEMENTED, f"{method} is not a method of the replica")
    response = handler(reads, body, elapsed)
    if isinstance(response, pb.GetCollectionInfoResponse):
        schema = response.result.payload_schema
        for field, number in (indexed or {}).items():
            # An index may have gone since they were counted.
            if field in schema:
                schema[field].points = number
    return response.SerializeToString()
