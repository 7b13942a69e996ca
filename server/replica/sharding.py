"""Shard keys in requests: what Qdrant would do with them, as far as the replica can tell.

Promises: a call that names shard keys is never answered as if it had named none. On a collection without custom
sharding Qdrant knows no shard key and refuses: so does the replica. On one with custom sharding the replica does not
know which point lies under which key: calls that name keys are NotServed. The one exception is a plain upsert: it says
itself where its points belong, and is logged with it.
Does not know the keys that exist, and holds one point for each id, where Qdrant may hold one under each key.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from server.replica.reads import Reads
from server.replica.refusal import NotServed, Refusal, invalid, wrong_input
from server.rpc import Code

_SELECTOR = points.ShardKeySelector.DESCRIPTOR
_LOOKUP = points.LookupLocation.DESCRIPTOR
_FIELD = "shard_key_selector"


def check_read(reads: Reads, request: Message) -> None:
    """Raises Refusal for shard keys that Qdrant would refuse or that the replica cannot honour, at any depth."""
    _check_read(reads, request, "")


def _check_read(reads: Reads, message: Message, inherited: str) -> None:
    own: str = getattr(message, "collection_name", "")
    # The requests of a batch go to its collection; a lookup goes to the one that it names.
    name = own if message.DESCRIPTOR is _LOOKUP else inherited or own
    for field in _leading_to_selectors(message.DESCRIPTOR):
        value: Any = getattr(message, field.name)
        if field.is_repeated:
            for part in value:
                _check_read(reads, part, name)
        elif not message.HasField(field.name):
            continue
        elif field.message_type is _SELECTOR:
            _check_selector(reads, name, value, to_read=True)
        else:
            _check_read(reads, value, name)


@cache
def _leading_to_selectors(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields below which shard keys may be named."""
    return tuple(
        field for field in descriptor.fields if field.message_type is not None and _reaches(field.message_type)
    )


def _reaches(start: Descriptor) -> bool:
    seen = {start.full_name: start}
    waiting = [start]
    while waiting:
        for field in waiting.pop().fields:
            below = field.message_type
            if below is not None and below.full_name not in seen:
                seen[below.full_name] = below
                waiting.append(below)
    return _SELECTOR.full_name in seen


def check_write(reads: Reads, request: Any) -> None:
    """Raises Refusal for a write to points that Qdrant would refuse for its shard keys, or that cannot be told here."""
    if _FIELD not in request.DESCRIPTOR.fields_by_name:
        return
    if request.HasField(_FIELD):
        if not (_is_plain_upsert(request) and _is_custom(reads, request.collection_name)):
            _check_selector(reads, request.collection_name, request.shard_key_selector, to_read=False)
    elif _is_custom(reads, request.collection_name):
        raise wrong_input("Shard key not specified")


def selector_of(request: Any) -> bytes:
    """The serialized selector of a write to points, empty when it names no shard keys."""
    if _FIELD not in request.DESCRIPTOR.fields_by_name or not request.HasField(_FIELD):
        return b""
    selector: points.ShardKeySelector = request.shard_key_selector
    return selector.SerializeToString(deterministic=True)


def names_one_key(selector: bytes) -> bool:
    """Whether a point that was written by this serialized selector can lie under one key only."""
    named = points.ShardKeySelector.FromString(selector)
    return len(named.shard_keys) == 1 and not named.HasField("fallback")


def _is_plain_upsert(request: Any) -> bool:
    return (
        isinstance(request, points.UpsertPoints)
        and request.update_mode == points.UpdateMode.Upsert
        and not request.HasField("update_filter")
        and bool(request.shard_key_selector.shard_keys)
    )


def _is_custom(reads: Reads, name: str) -> bool:
    collection = reads.collection(name)
    return collection is not None and _is_sharded_by_key(collection.config)


@lru_cache(maxsize=1024)
def _is_sharded_by_key(config: bytes) -> bool:
    return collections.CollectionConfig.FromString(config).params.sharding_method == collections.ShardingMethod.Custom


def _check_selector(reads: Reads, name: str, selector: points.ShardKeySelector, *, to_read: bool) -> None:
    if reads.collection(name) is None:
        # That there is no such collection is said first, by whoever looks for it.
        return
    if _is_custom(reads, name):
        raise NotServed(f"the replica does not know which points of `{name}` lie under which shard key")
    if not selector.shard_keys:
        raise NotServed("a shard key selector without shard keys is for the server to read")
    first = _told(selector.shard_keys[0])
    if selector.HasField("fallback"):
        raise Refusal(
            Code.NOT_FOUND,
            f"Not found: Neither target shard key {first} nor fallback shard key {_told(selector.fallback)} exist",
        )
    raise invalid(f"{'Bad request' if to_read else 'Wrong input'}: Shard key {first} not found")


def _told(key: collections.ShardKey) -> str:
    return str(key.number) if key.WhichOneof("key") == "number" else f'"{key.keyword}"'
