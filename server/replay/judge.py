"""PURE. What Qdrant's answer to a write means: for a replayed one, and for what the replica knows of an online one.

Promises: every pair of method and status code has exactly one outcome, given by the first row of `ROWS` that matches;
nothing that Qdrant might accept later is called permanent, nothing that it did is called refused. An answer is called
a proof of refusal only when Qdrant gives it before it does anything. Does not promise to know every text of every
server version: texts only make an outcome more exact, the code alone is always enough.

    DONE        Qdrant holds the effect of the write
    TRANSIENT   not now: the same entry again, later; never skipped
    PERMANENT   refused for good: quarantine
    AUTH        the credential is at fault, not the entry: hold until another one is known
    DOUBTFUL    the server failed inside: perhaps this entry's fault, perhaps not; a few more tries decide
    COMPARE     refused because something is there (or gone) already: DONE when it is what the write wanted
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from google.protobuf.message import DecodeError

from generated.qdrant import collections_pb2, points_pb2
from server.replica import paths
from server.rpc import COLLECTIONS, POINTS, UPDATE_BATCH, Code, Metadata, Reply

CREATE = COLLECTIONS + "Create"
DELETE = COLLECTIONS + "Delete"
ALIASES = COLLECTIONS + "UpdateAliases"
CREATE_VECTOR = POINTS + "CreateVectorName"
DELETE_VECTOR = POINTS + "DeleteVectorName"
CREATE_INDEX = POINTS + "CreateFieldIndex"


class Outcome(Enum):
    """See the module."""

    DONE = "done"
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    AUTH = "auth"
    DOUBTFUL = "doubtful"
    COMPARE = "compare"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `method` None = any, `text` None = any details; `text` is searched, not matched whole.

    `may_be_done`: with such an answer Qdrant may have done the write, or does it yet.
    """

    method: str | None
    code: Code
    text: str | None
    outcome: Outcome
    why: str
    may_be_done: bool = False

    def matches(self, method: str, code: Code, details: str) -> bool:
        """Whether this line is about the answer."""
        return (
            self.code is code
            and self.method in (None, method)
            and (self.text is None or re.search(self.text, details) is not None)
        )


_ANY = (
    (Code.OK, Outcome.DONE, "applied"),
    (Code.CANCELLED, Outcome.TRANSIENT, "given up on the way"),
    (Code.UNKNOWN, Outcome.DOUBTFUL, "an intermediary or a panic"),
    (Code.INVALID_ARGUMENT, Outcome.PERMANENT, "the request will never be right"),
    (Code.DEADLINE_EXCEEDED, Outcome.TRANSIENT, "too slow now"),
    (Code.NOT_FOUND, Outcome.PERMANENT, "collection or point gone"),
    (Code.ALREADY_EXISTS, Outcome.PERMANENT, "the name is taken"),
    (Code.PERMISSION_DENIED, Outcome.AUTH, "the credential may not"),
    (Code.RESOURCE_EXHAUSTED, Outcome.TRANSIENT, "rate limit or disk full"),
    (Code.FAILED_PRECONDITION, Outcome.TRANSIENT, "locked, or a replica set that is not ready: state of the server"),
    (Code.ABORTED, Outcome.TRANSIENT, "a race inside the server"),
    (Code.OUT_OF_RANGE, Outcome.PERMANENT, "message larger than the server takes"),
    (Code.UNIMPLEMENTED, Outcome.PERMANENT, "this server does not know the method"),
    (Code.INTERNAL, Outcome.DOUBTFUL, "the server failed inside"),
    (Code.UNAVAILABLE, Outcome.TRANSIENT, "a missing shard, or going away"),
    (Code.DATA_LOSS, Outcome.DOUBTFUL, "a checksum of the server"),
    (Code.UNAUTHENTICATED, Outcome.AUTH, "no credential, or a wrong one"),
)

# Qdrant gives up waiting for a write that is in its queue, fails in the middle of it, or an intermediary speaks for it.
_MAY_BE_DONE = frozenset(
    (
        Code.CANCELLED,
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.ABORTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    )
)

ROWS: tuple[Row, ...] = (
    Row(CREATE, Code.ALREADY_EXISTS, None, Outcome.COMPARE, "created already, perhaps by this very entry"),
    Row(CREATE, Code.INVALID_ARGUMENT, "already exists", Outcome.COMPARE, "the same from older servers"),
    Row(CREATE_VECTOR, Code.ALREADY_EXISTS, None, Outcome.COMPARE, "created already"),
    Row(CREATE_VECTOR, Code.INVALID_ARGUMENT, "already exist", Outcome.COMPARE, "created already"),
    Row(CREATE_INDEX, Code.INVALID_ARGUMENT, "maximum number of payload indices", Outcome.COMPARE, "perhaps with it"),
    Row(ALIASES, Code.NOT_FOUND, None, Outcome.COMPARE, "renamed or deleted already"),
    Row(ALIASES, Code.ALREADY_EXISTS, None, Outcome.COMPARE, "the alias is there already"),
    Row(DELETE, Code.NOT_FOUND, None, Outcome.DONE, "gone is what was wanted"),
    Row(DELETE_VECTOR, Code.INVALID_ARGUMENT, "Not existing vector name", Outcome.DONE, "gone is what was wanted"),
    Row(None, Code.INTERNAL, "failed to decode Protobuf", Outcome.PERMANENT, "the request cannot be read"),
    Row(
        None, Code.INTERNAL, "WAL buffer size exceeds", Outcome.TRANSIENT, "disk full, seen before anything is written"
    ),
    Row(None, Code.RESOURCE_EXHAUSTED, "larger than max", Outcome.PERMANENT, "message larger than a peer takes"),
    Row(None, Code.RESOURCE_EXHAUSTED, "larger than rate limiter capacity", Outcome.PERMANENT, "more than a minute's"),
    Row(None, Code.PERMISSION_DENIED, r"\bHelp:", Outcome.PERMANENT, "strict mode of older servers"),
    *(Row(None, code, None, outcome, why, code in _MAY_BE_DONE) for code, outcome, why in _ANY),
)

# Where the code and the text are those of one shard, others may have done their part.
_ON_SOME_SHARDS = "shards failed to apply operation"
_COLLECTION_GONE = re.compile(r"Collection `.*` doesn't exist", re.DOTALL)


def judge(method: str, code: Code, details: str) -> Outcome:
    """The outcome of one answer by its status alone."""
    return _row(method, code, details).outcome


def proves_refusal(method: str, reply: Reply) -> bool:
    """Whether an answer that is not OK shows that Qdrant did nothing of a write that is no batch, and never will."""
    return _ON_SOME_SHARDS not in reply.details and not _row(method, reply.code, reply.details).may_be_done


def _row(method: str, code: Code, details: str) -> Row:
    return next(row for row in ROWS if row.matches(method, code, details))


def judge_reply(method: str, reply: Reply) -> Outcome:
    """The outcome of one answer; an OK may still say that the write was not applied."""
    outcome = judge(method, reply.code, reply.details)
    if outcome is not Outcome.DONE or not reply.is_ok:
        return outcome
    try:
        return _judge_body(method, reply.body)
    except DecodeError:
        return Outcome.DOUBTFUL


_NOT_APPLIED = (points_pb2.UpdateStatus.ClockRejected, points_pb2.UpdateStatus.WaitTimeout)


def _judge_body(method: str, body: bytes) -> Outcome:
    if method.startswith(COLLECTIONS):
        # Deleting what is not there: OK with result=false.
        done = method == DELETE or collections_pb2.CollectionOperationResponse.FromString(body).result
        return Outcome.DONE if done else Outcome.DOUBTFUL
    if method == UPDATE_BATCH:
        results = list(points_pb2.UpdateBatchResponse.FromString(body).result)
    else:
        results = [points_pb2.PointsOperationResponse.FromString(body).result]
    return Outcome.TRANSIENT if any(result.status in _NOT_APPLIED for result in results) else Outcome.DONE


def is_about_collection(method: str, code: Code, details: str) -> bool:
    """Whether a refusal concerns the existence of a collection (or alias), so that none of its points can do better."""
    if method in (CREATE, DELETE, ALIASES):
        return True
    return code is Code.NOT_FOUND and _COLLECTION_GONE.search(details) is not None


def retry_after_seconds(trailers: Metadata) -> float | None:
    """How long the server asks to be left alone."""
    for key, value in trailers:
        if key.lower() == "retry-after":
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            try:
                seconds = float(text)
            except ValueError:
                return None
            return seconds if 0 <= seconds < float("inf") else None
    return None


# --- is it there already? --------------------------------------------------------------------------------------------


def is_same_collection(wanted: collections_pb2.CreateCollection, found: collections_pb2.CollectionInfo) -> bool:
    """Whether a collection has the vectors that a Create asks for: names, sizes, distances, datatypes, modifiers."""
    params = found.config.params
    return _dense(wanted.vectors_config) == _dense(params.vectors_config) and _sparse(
        wanted.sparse_vectors_config
    ) == _sparse(params.sparse_vectors_config)


def has_vector(wanted: points_pb2.CreateVectorNameRequest, found: collections_pb2.CollectionInfo) -> bool:
    """Whether a collection has the vector that a CreateVectorName asks for."""
    params = found.config.params
    if wanted.HasField("sparse_config"):
        modifier = wanted.sparse_config.modifier
        return _sparse(params.sparse_vectors_config).get(wanted.vector_name) == modifier
    config = wanted.dense_config
    wish = _shape(
        collections_pb2.VectorParams(
            size=config.size,
            distance=config.distance,
            datatype=config.datatype,
            multivector_config=config.multivector_config if config.HasField("multivector_config") else None,
        )
    )
    return _dense(params.vectors_config).get(wanted.vector_name) == wish


def has_index(wanted: points_pb2.CreateFieldIndexCollection, found: collections_pb2.CollectionInfo) -> bool:
    """Whether a collection has an index of that kind on the field of a CreateFieldIndex."""
    # The two enums list the same types, one begins with "unknown".
    return found.payload_schema[paths.canonical(wanted.field_name)].data_type == wanted.field_type + 1


def are_aliases_settled(wanted: collections_pb2.ChangeAliases, found: dict[str, str]) -> bool:
    """Whether the aliases (alias → collection) look as they would after the changes.

    A rename leaves no trace of the collection it was about: the new name there and the old one gone counts as done.
    """
    present: dict[str, str | None] = {}
    absent: set[str] = set()
    for action in wanted.actions:
        kind = action.WhichOneof("action")
        if kind == "create_alias":
            present[action.create_alias.alias_name] = action.create_alias.collection_name
            absent.discard(action.create_alias.alias_name)
        elif kind == "delete_alias":
            present.pop(action.delete_alias.alias_name, None)
            absent.add(action.delete_alias.alias_name)
        elif kind == "rename_alias":
            old, new = action.rename_alias.old_alias_name, action.rename_alias.new_alias_name
            present[new] = present.pop(old, None)
            absent.discard(new)
            absent.add(old)
    return all(
        alias in found and collection in (None, found[alias]) for alias, collection in present.items()
    ) and not any(alias in found for alias in absent)


_Shape = tuple[int, int, int, bool]


def _shape(params: collections_pb2.VectorParams) -> _Shape:
    # Unset, Default and Float32 are one datatype.
    datatype = params.datatype or collections_pb2.Datatype.Float32
    return params.size, params.distance, datatype, params.HasField("multivector_config")


def _dense(config: collections_pb2.VectorsConfig) -> dict[str, _Shape]:
    if config.WhichOneof("config") == "params":
        return {"": _shape(config.params)}
    return {name: _shape(params) for name, params in config.params_map.map.items()}


def _sparse(config: collections_pb2.SparseVectorConfig) -> dict[str, int]:
    return {name: params.modifier for name, params in config.map.items()}
