"""The calls of `qdrant.Collections`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from grpc import StatusCode
from qdrant_client.conversions.conversion import GrpcToRest
from qdrant_client.local.local_collection import LocalCollection
from qdrant_client.local.payload_value_extractor import value_by_key

from generated.qdrant import collections_pb2 as pb

from . import checks
from .catalogue import updated
from .refusal import Refused, collection_exists, invalid, no_collection, wrong_input

if TYPE_CHECKING:
    from .engine import Engine


class CollectionCalls:
    """Collections and aliases."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._local = engine.local
        self._catalogue = engine.catalogue

    def answers(self) -> Mapping[str, Callable[[Any], Message]]:
        """Method names with what answers them."""
        return {
            "Get": self._get,
            "List": self._list,
            "Create": self._create,
            "Update": self._update,
            "Delete": self._delete,
            "UpdateAliases": self._update_aliases,
            "ListCollectionAliases": self._collection_aliases,
            "ListAliases": self._aliases,
            "CollectionExists": self._exists,
            "CollectionClusterInfo": self._cluster_info,
            "ListShardKeys": self._shard_keys,
        }

    def _get(self, request: pb.GetCollectionInfoRequest) -> pb.GetCollectionInfoResponse:
        name = self._engine.resolve(request.collection_name)
        collection = self._local.collections[name]
        info = pb.CollectionInfo(
            status=pb.Green,
            optimizer_status=pb.OptimizerStatus(ok=True),
            segments_count=2,
            points_count=collection.count().count,
            indexed_vectors_count=0,
            update_queue=pb.UpdateQueueInfo(length=0),
        )
        info.config.CopyFrom(self._catalogue.config(name))
        for field, schema in self._catalogue.indexes(name).items():
            info.payload_schema[field].CopyFrom(schema)
            info.payload_schema[field].points = _indexed(collection, field, schema.data_type)
        return pb.GetCollectionInfoResponse(result=info)

    def _list(self, request: pb.ListCollectionsRequest) -> pb.ListCollectionsResponse:
        return pb.ListCollectionsResponse(
            collections=[pb.CollectionDescription(name=name) for name in self._local.collections]
        )

    def _create(self, request: pb.CreateCollection) -> pb.CollectionOperationResponse:
        name = request.collection_name
        checks.collection_name(name)
        if name in self._local.collections:
            raise collection_exists(name)
        if name in self._local.aliases:
            raise wrong_input(f"Can't create collection with name {name}. Alias with the same name already exists")
        vectors = None
        if request.vectors_config.WhichOneof("config") is not None:
            vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
            _check_params(request.vectors_config)
        sparse = None
        if request.HasField("sparse_vectors_config"):
            sparse = GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config)
        self._local.create_collection(
            name, vectors, sparse, metadata=GrpcToRest.convert_payload(request.metadata) or None
        )
        self._catalogue.created(name, request)
        return pb.CollectionOperationResponse(result=True)

    def _update(self, request: pb.UpdateCollection) -> pb.CollectionOperationResponse:
        name = self._engine.resolve(request.collection_name)
        given = GrpcToRest.convert_update_collection(request)
        self._local.update_collection(
            name, sparse_vectors_config=given.sparse_vectors, metadata=given.metadata, vectors_config=given.vectors
        )
        config = pb.CollectionConfig()
        config.CopyFrom(self._catalogue.config(name))
        updated(config, request)
        self._catalogue.save(name, config)
        return pb.CollectionOperationResponse(result=True)

    def _delete(self, request: pb.DeleteCollection) -> pb.CollectionOperationResponse:
        name = request.collection_name
        existed = self._local.delete_collection(name)
        self._catalogue.dropped(name)
        return pb.CollectionOperationResponse(result=existed)

    def _update_aliases(self, request: pb.ChangeAliases) -> pb.CollectionOperationResponse:
        aliases = set(self._local.aliases)
        for action in request.actions:
            self._check_alias(action, aliases)
        self._local.update_collection_aliases([GrpcToRest.convert_alias_operations(a) for a in request.actions])
        return pb.CollectionOperationResponse(result=True)

    def _check_alias(self, action: pb.AliasOperations, aliases: set[str]) -> None:
        """One action after those that left these aliases."""
        kind = action.WhichOneof("action")
        if kind is None:
            raise invalid("Malformed AliasOperations type")
        if kind == "create_alias":
            if action.create_alias.collection_name not in self._local.collections:
                raise no_collection(action.create_alias.collection_name)
            if action.create_alias.alias_name in self._local.collections:
                raise collection_exists(action.create_alias.alias_name)
            aliases.add(action.create_alias.alias_name)
        if kind == "delete_alias":
            aliases.discard(action.delete_alias.alias_name)
        if kind == "rename_alias":
            old = action.rename_alias.old_alias_name
            if old not in aliases:
                raise Refused(StatusCode.NOT_FOUND, f"Not found: Alias {old} does not exists!")
            aliases.remove(old)
            aliases.add(action.rename_alias.new_alias_name)

    def _collection_aliases(self, request: pb.ListCollectionAliasesRequest) -> pb.ListAliasesResponse:
        # Of a name that is no collection, alias or not, a server knows no alias (1.18 source).
        return _aliases({a: c for a, c in self._local.aliases.items() if c == request.collection_name})

    def _aliases(self, request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
        return _aliases(self._local.aliases)

    def _exists(self, request: pb.CollectionExistsRequest) -> pb.CollectionExistsResponse:
        name = request.collection_name
        exists = name in self._local.collections or name in self._local.aliases
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    def _cluster_info(self, request: pb.CollectionClusterInfoRequest) -> pb.CollectionClusterInfoResponse:
        name = self._engine.resolve(request.collection_name)
        points = self._local.collections[name].count().count
        shard = pb.LocalShardInfo(shard_id=0, points_count=points, state=pb.Active)
        return pb.CollectionClusterInfoResponse(peer_id=1, shard_count=1, local_shards=[shard])

    def _shard_keys(self, request: pb.ListShardKeysRequest) -> pb.ListShardKeysResponse:
        self._engine.resolve(request.collection_name)
        return pb.ListShardKeysResponse()


def _aliases(given: Mapping[str, str]) -> pb.ListAliasesResponse:
    return pb.ListAliasesResponse(
        aliases=[pb.AliasDescription(alias_name=alias, collection_name=name) for alias, name in given.items()]
    )


def _check_params(config: pb.VectorsConfig) -> None:
    kind = config.WhichOneof("config")
    every = [config.params] if kind == "params" else list(config.params_map.map.values())
    for params in every:
        if not 1 <= params.size <= 65536:
            raise invalid(
                f"Validation error in body: [vectors_config.config.params.size: value {params.size} invalid, "
                "must be from 1 to 65536]"
            )
        if params.distance == pb.UnknownDistance:
            raise invalid("Wrong input: Malformed distance")


def _indexed(collection: LocalCollection, field: str, kind: pb.PayloadSchemaType) -> int:
    """How many points have a value at the field that an index of the kind takes up."""
    takes_up = _TAKES_UP[kind]
    return sum(
        any(map(takes_up, value_by_key(payload, field) or []))
        for payload, is_deleted in zip(collection.payload, collection.deleted, strict=True)
        if not is_deleted
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_TAKES_UP: dict[pb.PayloadSchemaType, Callable[[Any], bool]] = {
    pb.Keyword: _is_text,
    pb.Text: _is_text,
    pb.Datetime: _is_text,
    pb.Uuid: _is_text,
    pb.Integer: lambda value: _is_number(value) and float(value).is_integer(),
    pb.Float: _is_number,
    pb.Bool: lambda value: isinstance(value, bool),
    pb.Geo: lambda value: isinstance(value, dict) and "lon" in value and "lat" in value,
}
