"""PURE. Point ids and their keys.

Promises: keys sort bytewise as Qdrant sorts ids (all numbers, then all UUIDs), one key for every spelling of a UUID
that Qdrant accepts, ids come back canonical. Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias
from uuid import UUID

from generated.qdrant import qdrant_common_pb2 as common
from server.replica.refusal import Refusal
from server.rpc import Code

Key: TypeAlias = bytes

_NUMBER = b"\x00"
_UUID = b"\x01"
_NUMBER_BYTES = 8
_UUID_BYTES = 16

# The spellings of Rust's uuid crate: hyphenated, simple, braced, URN. Python's own parser takes more than those.
_HYPHENATED = re.compile(r"(?:urn:uuid:)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_SIMPLE = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)


class BadPointId(Refusal):
    """An id that Qdrant refuses: INVALID_ARGUMENT with its text."""

    def __init__(self, details: str) -> None:
        super().__init__(Code.INVALID_ARGUMENT, details)


def key_of(point_id: common.PointId) -> Key:
    """The key of an id. Raises BadPointId for an empty id or a text that is no UUID."""
    form = point_id.WhichOneof("point_id_options")
    if form == "num":
        return _NUMBER + point_id.num.to_bytes(_NUMBER_BYTES, "big")
    if form == "uuid":
        return _UUID + uuid_bytes(point_id.uuid)
    raise BadPointId("Empty ID is not allowed")


def id_of(key: Key) -> common.PointId:
    """The id of a key; UUIDs in lower case with hyphens."""
    if key[:1] == _NUMBER and len(key) == 1 + _NUMBER_BYTES:
        return common.PointId(num=int.from_bytes(key[1:], "big"))
    if key[:1] == _UUID and len(key) == 1 + _UUID_BYTES:
        return common.PointId(uuid=str(UUID(bytes=key[1:])))
    raise ValueError(f"not a point key: {key.hex()}")


def text_of(key: Key) -> str:
    """The id as Qdrant writes it in messages."""
    point_id = id_of(key)
    return point_id.uuid or str(point_id.num)


def keys_of(ids: Iterable[common.PointId]) -> list[Key]:
    """The keys of ids in their order, each once. Raises BadPointId."""
    return list(dict.fromkeys(key_of(point_id) for point_id in ids))


def uuid_bytes(text: str) -> bytes:
    """The 16 bytes of a UUID. Raises BadPointId."""
    plain = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    braced = plain is not text
    if _HYPHENATED.fullmatch(plain) and not (braced and plain[:4].lower() == "urn:"):
        return bytes.fromhex(plain[-36:].replace("-", ""))
    if _SIMPLE.fullmatch(plain) and not braced:
        return bytes.fromhex(plain)
    raise BadPointId(f"Unable to parse UUID: {text}")
