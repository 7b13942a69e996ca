"""PURE. The one verb (`Backend.handle`) and one row per RPC of the Qdrant API.

Promises: every method of `qdrant.Points`, `qdrant.Collections`, `qdrant.Snapshots`, `qdrant.Qdrant`,
`qdrant.StorageRead` (where the pinned API has it) and `grpc.health.v1.Health` that a client may call has a row in
`METHODS`; a test compares the rows with the descriptors. Does no I/O and imports no gRPC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Protocol, TypeAlias

from google.protobuf.message import DecodeError, Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_pb2, snapshots_service_pb2

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]


class Code(IntEnum):
    """gRPC status codes, by number, so that pure modules need no gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# Three bytes of a header for each: clients take 8 kB of them.
_DETAILS_LIMIT_BYTES = 2048
_CUT = b" [cut off]"

# gRPC's own refusal of a message, and Qdrant's of a call that its rate limit could not let through in a whole minute.
_TOO_LARGE = ("larger than max", "larger than rate limiter capacity")


def is_too_large(code: Code, details: str) -> bool:
    """Whether a status says that less must be asked for, or sent, at a time; waiting would not help."""
    return code is Code.RESOURCE_EXHAUSTED and any(text in details for text in _TOO_LARGE)


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way in.

    `body` is the serialized request. `deadline` is in seconds on the monotonic clock of the process, None = none.
    """

    method: str
    body: bytes
    metadata: Metadata = ()
    deadline: float | None = None
    tenant: str = ""

    def with_body(self, body: bytes) -> Call:
        """The same call with another request."""
        return replace(self, body=body)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer on its way out: a serialized response with OK, or a status code with its text."""

    body: bytes = b""
    code: Code = Code.OK
    details: str = ""
    initial: Metadata = ()
    trailers: Metadata = ()

    @property
    def is_ok(self) -> bool:
        """Whether the call succeeded."""
        return self.code is Code.OK

    def with_trailers(self, *more: tuple[str, str | bytes]) -> Reply:
        """The same reply with trailing metadata added."""
        return replace(self, trailers=self.trailers + more)


def refuse(code: Code, details: str) -> Reply:
    """A reply that says no. What clients would not take in, because the text quotes a request, is cut off."""
    text = details.encode(errors="replace")
    if len(text) > _DETAILS_LIMIT_BYTES:
        details = text[: _DETAILS_LIMIT_BYTES - len(_CUT)].decode(errors="ignore") + _CUT.decode()
    return Reply(code=code, details=details)


class Backend(Protocol):
    """Whoever answers calls: router, upstream, replica, every fake."""

    async def handle(self, call: Call) -> Reply:
        """Answer one call.

        Statuses of the other side come back as a Reply; raises `UpstreamUnreachable` when there was no other side.
        """
        ...


class Kind(Enum):
    """What a method does to the data."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class Offline(Enum):
    """What happens to a method while Qdrant is away."""

    SERVED = "served by the replica"
    LOGGED = "logged, applied, replayed"
    REFUSED = "refused with UNAVAILABLE"


class Scope(Enum):
    """What a method touches: nothing of one collection, one collection's points, or its existence."""

    NONE = "none"
    POINTS = "points"
    COLLECTION = "collection"
    ALIASES = "aliases"


@dataclass(frozen=True, slots=True)
class Method:
    """One row. `wal_kind` is the number in the log's records: never reused, 0 = never logged."""

    path: str
    kind: Kind
    offline: Offline
    request: type[Message]
    scope: Scope = Scope.NONE
    idempotent: bool = True
    wal_kind: int = 0
    why_refused: str = ""


def parse(row: Method, body: bytes) -> Message | Reply:
    """The request of a call, or Qdrant's refusal of one that is none."""
    request = row.request()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        return refuse(Code.INTERNAL, f"failed to decode Protobuf message: {error}")
    return request


POINTS = "/qdrant.Points/"
COLLECTIONS = "/qdrant.Collections/"
_SNAPSHOTS = "/qdrant.Snapshots/"


def _read(path: str, request: type[Message], scope: Scope = Scope.POINTS) -> Method:
    return Method(path, Kind.READ, Offline.SERVED, request, scope)


def _write(number: int, path: str, request: type[Message], scope: Scope = Scope.POINTS, *, plain: bool) -> Method:
    return Method(path, Kind.WRITE, Offline.LOGGED, request, scope, idempotent=plain, wal_kind=number)


def _refused(path: str, request: type[Message], kind: Kind, why: str) -> Method:
    return Method(path, kind, Offline.REFUSED, request, idempotent=False, why_refused=why)


_NO_SNAPSHOTS = "snapshots are files of the Qdrant server, which cannot be reached"
_NO_SHARDS = "shard keys and cluster set-up belong to the Qdrant server, which cannot be reached"

_ROWS = (
    _read(POINTS + "Query", points.QueryPoints),
    _read(POINTS + "QueryBatch", points.QueryBatchPoints),
    _read(POINTS + "QueryGroups", points.QueryPointGroups),
    _read(POINTS + "Search", points.SearchPoints),
    _read(POINTS + "SearchBatch", points.SearchBatchPoints),
    _read(POINTS + "SearchGroups", points.SearchPointGroups),
    _read(POINTS + "Recommend", points.RecommendPoints),
    _read(POINTS + "RecommendBatch", points.RecommendBatchPoints),
    _read(POINTS + "RecommendGroups", points.RecommendPointGroups),
    _read(POINTS + "Discover", points.DiscoverPoints),
    _read(POINTS + "DiscoverBatch", points.DiscoverBatchPoints),
    _read(POINTS + "Scroll", points.ScrollPoints),
    _read(POINTS + "Get", points.GetPoints),
    _read(POINTS + "Count", points.CountPoints),
    _read(POINTS + "Facet", points.FacetCounts),
    _read(POINTS + "SearchMatrixPairs", points.SearchMatrixPoints),
    _read(POINTS + "SearchMatrixOffsets", points.SearchMatrixPoints),
    _read(COLLECTIONS + "Get", collections.GetCollectionInfoRequest, Scope.COLLECTION),
    _read(COLLECTIONS + "List", collections.ListCollectionsRequest, Scope.NONE),
    _read(COLLECTIONS + "CollectionExists", collections.CollectionExistsRequest, Scope.COLLECTION),
    _read(COLLECTIONS + "ListAliases", collections.ListAliasesRequest, Scope.NONE),
    _read(COLLECTIONS + "ListCollectionAliases", collections.ListCollectionAliasesRequest, Scope.COLLECTION),
    _read("/qdrant.Qdrant/HealthCheck", qdrant_pb2.HealthCheckRequest, Scope.NONE),
    _write(1, POINTS + "Upsert", points.UpsertPoints, plain=True),
    _write(2, POINTS + "Delete", points.DeletePoints, plain=True),
    _write(3, POINTS + "UpdateVectors", points.UpdatePointVectors, plain=True),
    _write(4, POINTS + "DeleteVectors", points.DeletePointVectors, plain=True),
    _write(5, POINTS + "SetPayload", points.SetPayloadPoints, plain=True),
    _write(6, POINTS + "OverwritePayload", points.SetPayloadPoints, plain=True),
    _write(7, POINTS + "DeletePayload", points.DeletePayloadPoints, plain=True),
    _write(8, POINTS + "ClearPayload", points.ClearPayloadPoints, plain=True),
    _write(9, POINTS + "UpdateBatch", points.UpdateBatchPoints, plain=True),
    _write(10, POINTS + "CreateFieldIndex", points.CreateFieldIndexCollection, Scope.COLLECTION, plain=True),
    _write(11, POINTS + "DeleteFieldIndex", points.DeleteFieldIndexCollection, Scope.COLLECTION, plain=True),
    _write(12, POINTS + "CreateVectorName", points.CreateVectorNameRequest, Scope.COLLECTION, plain=True),
    _write(13, POINTS + "DeleteVectorName", points.DeleteVectorNameRequest, Scope.COLLECTION, plain=True),
    _write(14, COLLECTIONS + "Create", collections.CreateCollection, Scope.COLLECTION, plain=False),
    _write(15, COLLECTIONS + "Update", collections.UpdateCollection, Scope.COLLECTION, plain=True),
    _write(16, COLLECTIONS + "Delete", collections.DeleteCollection, Scope.COLLECTION, plain=True),
    _write(17, COLLECTIONS + "UpdateAliases", collections.ChangeAliases, Scope.ALIASES, plain=False),
    _refused(COLLECTIONS + "CollectionClusterInfo", collections.CollectionClusterInfoRequest, Kind.READ, _NO_SHARDS),
    _refused(
        COLLECTIONS + "UpdateCollectionClusterSetup",
        collections.UpdateCollectionClusterSetupRequest,
        Kind.ADMIN,
        _NO_SHARDS,
    ),
    _refused(COLLECTIONS + "CreateShardKey", collections.CreateShardKeyRequest, Kind.ADMIN, _NO_SHARDS),
    _refused(COLLECTIONS + "DeleteShardKey", collections.DeleteShardKeyRequest, Kind.ADMIN, _NO_SHARDS),
    _refused(COLLECTIONS + "ListShardKeys", collections.ListShardKeysRequest, Kind.READ, _NO_SHARDS),
    _refused(_SNAPSHOTS + "Create", snapshots_service_pb2.CreateSnapshotRequest, Kind.ADMIN, _NO_SNAPSHOTS),
    _refused(_SNAPSHOTS + "List", snapshots_service_pb2.ListSnapshotsRequest, Kind.READ, _NO_SNAPSHOTS),
    _refused(_SNAPSHOTS + "Delete", snapshots_service_pb2.DeleteSnapshotRequest, Kind.ADMIN, _NO_SNAPSHOTS),
    _refused(_SNAPSHOTS + "CreateFull", snapshots_service_pb2.CreateFullSnapshotRequest, Kind.ADMIN, _NO_SNAPSHOTS),
    _refused(_SNAPSHOTS + "ListFull", snapshots_service_pb2.ListFullSnapshotsRequest, Kind.READ, _NO_SNAPSHOTS),
    _refused(_SNAPSHOTS + "DeleteFull", snapshots_service_pb2.DeleteFullSnapshotRequest, Kind.ADMIN, _NO_SNAPSHOTS),
)

METHODS: Mapping[str, Method] = {row.path: row for row in _ROWS}
WAL_KINDS: Mapping[int, str] = {row.wal_kind: row.path for row in _ROWS if row.wal_kind}

# Methods that more than one module must name.
UPSERT = POINTS + "Upsert"
UPDATE_BATCH = POINTS + "UpdateBatch"
LIST_ALIASES = COLLECTIONS + "ListAliases"

# How Qdrant, and so whoever stands in for it, introduces itself.
HEALTH_TITLE = "qdrant - vector search engine"
# What Understudy says it is until it has seen a real Qdrant: the release whose behaviour the replica mirrors.
ASSUMED_VERSION = "1.18.3"

HEALTH_CHECK = "/qdrant.Qdrant/HealthCheck"
GRPC_HEALTH_CHECK = "/grpc.health.v1.Health/Check"

# Trailing metadata keys, fixed in the design.
SOURCE = "x-understudy-source"
STALE_WARNING = "x-understudy-stale-warning"
COMPLETENESS = "x-understudy-completeness"
AS_OF = "x-understudy-as-of"
PENDING = "x-understudy-pending"
# Asked for with a read: `1` wants the plan of a local answer, `local` a local answer with its plan whatever the state.
EXPLAIN = "x-understudy-explain"
PLAN = "x-understudy-plan"


def explains(metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Whether the plan of the answer is asked for."""
    return any(key == EXPLAIN for key, _ in metadata)


def wants_local(call: Call) -> bool:
    """Whether the replica is to answer also while Qdrant is up."""
    return (EXPLAIN, "local") in call.metadata


def unexplained(call: Call) -> Call:
    """The same call with no plan asked for."""
    if not explains(call.metadata):
        return call
    return replace(call, metadata=tuple(pair for pair in call.metadata if pair[0] != EXPLAIN))
