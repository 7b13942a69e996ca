"""What the replica does with each field of a request; the fields that are not named here are honoured.

The tests hold every line to the cases of the table: a field without effect changes no answer when it is left out, a
refused one is refused in each case that sets it. `docs/compatibility.md` is made from this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message


class Effect(Enum):
    """What becomes of a field."""

    HONOURED = "honoured"
    TOLD = "kept and told"
    NONE = "accepted, no effect"
    REFUSED = "refused"


@dataclass(frozen=True)
class Line:
    """What happens to a field, and why."""

    effect: Effect
    why: str


_NO_INFERENCE = Line(Effect.REFUSED, "the vector is made by the server's inference")
_ONE_COPY = Line(Effect.NONE, "there is one copy")
_FAST = Line(
    Effect.NONE,
    "a local answer waits for no other server; the deadline of the call holds; a strict mode may limit it",
)
_EXACT = Line(Effect.NONE, "answers are as exact as they can be without it; a strict mode may limit it")
_SHARDS = Line(Effect.REFUSED, "see [shard keys](decisions/shard-keys-are-refused.md)")
_STORED = Line(Effect.TOLD, "says how the server stores or builds; it changes no answer")
_STRICT = Line(Effect.HONOURED, "row by row in `tests/differential/strict_rows.py`")
_OF_THE_SERVER = Line(Effect.TOLD, "about the server's files and load; not enforced offline")

# "Message.field", "Message.*" or "*.field"; the first that fits holds.
LINES: Mapping[str, Line] = {
    "*.read_consistency": _ONE_COPY,
    "*.ordering": Line(Effect.NONE, "writes to a point are in order anyway; replayed with it"),
    "*.shard_key_selector": _SHARDS,
    "*.document": _NO_INFERENCE,
    "*.image": _NO_INFERENCE,
    "Document.*": _NO_INFERENCE,
    "Image.*": _NO_INFERENCE,
    "Vector.object": _NO_INFERENCE,
    "VectorInput.object": _NO_INFERENCE,
    "InferenceObject.*": _NO_INFERENCE,
    "Query.text": Line(Effect.REFUSED, "BM25 over a text index is the server's"),
    "TextQuery.*": Line(Effect.REFUSED, "BM25 over a text index is the server's"),
    "Bm25Params.*": Line(Effect.REFUSED, "BM25 over a text index is the server's"),
    "PointsUpdateOperation.OverwritePayload.key": Line(Effect.NONE, "the whole payload is replaced, as by Qdrant"),
    "ShardKeySelector.*": _SHARDS,
    "ShardKey.*": _SHARDS,
    "ReadConsistency.*": _ONE_COPY,
    "*.timeout": _FAST,
    "SearchParams.hnsw_ef": _EXACT,
    "SearchParams.exact": _EXACT,
    "SearchParams.quantization": _EXACT,
    "SearchParams.indexed_only": Line(Effect.NONE, "points that the index lacks are found too"),
    "SearchParams.acorn": Line(Effect.NONE, "answers are as exact as they can be without it"),
    "SearchParams.idf": Line(
        Effect.HONOURED, "compared with Qdrant's engine in `tests/replica/test_newer_queries_engine.py`"
    ),
    "QuantizationSearchParams.*": _EXACT,
    "AcornSearchParams.*": Line(Effect.NONE, "answers are as exact as they can be without it"),
    "CountPoints.exact": Line(Effect.NONE, "counts are exact; a strict mode may forbid it"),
    "FacetCounts.exact": Line(Effect.NONE, "counts are exact"),
    "WriteOrdering.*": Line(Effect.NONE, "writes to a point are in order anyway; replayed with it"),
    "StrictModeConfig.max_collection_vector_size_bytes": _OF_THE_SERVER,
    "StrictModeConfig.max_collection_payload_size_bytes": _OF_THE_SERVER,
    "StrictModeConfig.read_rate_limit": _OF_THE_SERVER,
    "StrictModeConfig.write_rate_limit": _OF_THE_SERVER,
    "StrictModeConfig.max_resident_memory_percent": _OF_THE_SERVER,
    "StrictModeConfig.*": _STRICT,
    "StrictModeMultivectorConfig.*": _STRICT,
    "StrictModeMultivector.*": _STRICT,
    "StrictModeSparseConfig.*": _STRICT,
    "StrictModeSparse.*": _STRICT,
    "*.strict_mode_config": _STRICT,
    "*.hnsw_config": _STORED,
    "*.quantization_config": _STORED,
    "*.optimizers_config": _STORED,
    "*.wal_config": _STORED,
    "HnswConfigDiff.*": _STORED,
    "OptimizersConfigDiff.*": _STORED,
    "MaxOptimizationThreads.*": _STORED,
    "WalConfigDiff.*": _STORED,
    "QuantizationConfig.*": _STORED,
    "QuantizationConfigDiff.*": _STORED,
    "ScalarQuantization.*": _STORED,
    "ProductQuantization.*": _STORED,
    "BinaryQuantization.*": _STORED,
    "BinaryQuantizationQueryEncoding.*": _STORED,
    "TurboQuantization.*": _STORED,
    "SparseIndexConfig.*": _STORED,
    "SparseVectorParams.index": _STORED,
    "PayloadStorageParams.*": _STORED,
    "IdTrackerParams.*": _STORED,
    "CollectionParamsDiff.*": _STORED,
    "CreateCollection.shard_number": _STORED,
    "CreateCollection.replication_factor": _STORED,
    "CreateCollection.write_consistency_factor": _STORED,
    "CreateCollection.on_disk_payload": _STORED,
    "CreateCollection.payload": _STORED,
    "CreateCollection.id_tracker": _STORED,
    "CreateCollection.metadata": Line(Effect.TOLD, "for the application to read"),
    "UpdateCollection.metadata": Line(Effect.TOLD, "for the application to read"),
    "UpdateCollection.params": _STORED,
    "SparseVectorCreationConfig.datatype": _STORED,
    "*.on_disk": _STORED,
    "*.memory": _STORED,
    "*.enable_hnsw": _STORED,
    "*.is_tenant": _STORED,
    "*.is_principal": _STORED,
    "KeywordIndexParams.prefix": _STORED,
    **{
        f"{kind}IndexParams.nested": Line(Effect.TOLD, "conditions inside of `nested` are answered from the payload")
        for kind in ("Keyword", "Integer", "Float", "Geo", "Text", "Bool", "Datetime", "Uuid")
    },
    "TextIndexParams.scoring": Line(Effect.TOLD, "queries by text are refused, see `Query.text`"),
    "StopwordsSet.languages": Line(
        Effect.TOLD, "stopwords by language are the server's tables: text conditions on such a field are UNAVAILABLE"
    ),
}


def fits(key: str, message: str, field: str) -> bool:
    """Whether a line is about a field."""
    return key in (f"{message}.{field}", f"*.{field}", f"{message}.*")


def line_of(message: str, field: str) -> Line:
    """What happens to a field of a message (its name without `qdrant.`)."""
    for key in (f"{message}.{field}", f"*.{field}", f"{message}.*"):
        if key in LINES:
            return LINES[key]
    return Line(Effect.HONOURED, "")


def short(descriptor: Descriptor) -> str:
    """The name of a message without its package."""
    name: str = descriptor.full_name
    return name.removeprefix("qdrant.").removeprefix("google.protobuf.")


def is_map(descriptor: Descriptor) -> bool:
    """Whether a message is an entry of a map."""
    return bool(descriptor.GetOptions().map_entry)


def messages_below(descriptor: Descriptor) -> dict[str, Descriptor]:
    """The messages that a request may hold, itself included, entries of maps left out."""
    found = {short(descriptor): descriptor}
    waiting = [descriptor]
    while waiting:
        for field in waiting.pop().fields:
            below = field.message_type
            if below is not None and short(below) not in found:
                found[short(below)] = below
                waiting.append(below)
    return {name: below for name, below in found.items() if not is_map(below)}


def has_one_value(field: FieldDescriptor) -> bool:
    """Whether a field can say one thing only, and so cannot be seen to be set."""
    return field.enum_type is not None and not field.has_presence and len(field.enum_type.values) == 1


def set_fields(message: Message) -> Iterator[tuple[str, str]]:
    """Every (message, field) that is set somewhere in a request."""
    for field, value in message.ListFields():
        if not is_map(message.DESCRIPTOR):
            yield short(message.DESCRIPTOR), field.name
        for part in parts(field, value):
            yield from set_fields(part)


def parts(field: FieldDescriptor, value: Any) -> list[Message]:
    """The messages in the value of a field."""
    if field.message_type is None:
        return []
    if is_map(field.message_type):
        return [one for one in value.values() if isinstance(one, Message)]
    return list(value) if field.is_repeated else [value]


def without(message: Message, effect: Effect) -> None:
    """Take the fields with an effect out of a request."""
    for field, value in message.ListFields():
        if line_of(short(message.DESCRIPTOR), field.name).effect is effect:
            message.ClearField(field.name)
        else:
            for part in parts(field, value):
                without(part, effect)
