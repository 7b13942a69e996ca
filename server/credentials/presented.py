"""PURE. What a call presents to be let in, read as Qdrant reads it.

Promises: the same header wins as in Qdrant (`api-key`, else `authorization: Bearer …`); everything that Qdrant could
take for a JSON web token is taken for one here. Does not check signatures: the secret is Qdrant's. The claims of a
token are believed only once Qdrant has accepted that very token.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from server.rpc import Metadata

API_KEY = "api-key"
AUTHORIZATION = "authorization"
BEARER = "Bearer "
_NS = 1_000_000_000


class Absent(Enum):
    """A call without one clear credential."""

    ANONYMOUS = "none presented"
    AMBIGUOUS = "different ones presented in one header"


@dataclass(frozen=True, slots=True)
class Claims:
    """What matters of a token's claims.

    `collections` is None for a token that is good for all of them. `is_manager`: it may write anywhere. `is_checkable`
    is False for a token with a condition that only Qdrant can check (`value_exists`) or that we do not understand.
    `indexable`: those of the collections in which it may also make and drop payload indexes.
    """

    expires: int | None = None
    collections: frozenset[str] | None = None
    is_manager: bool = False
    is_checkable: bool = True
    indexable: frozenset[str] = frozenset()

    def is_expired(self, now_ns: int) -> bool:
        """Whether the token is too old. Qdrant allows 30 s of clock skew; this does not."""
        return self.expires is not None and now_ns >= self.expires * _NS


@dataclass(frozen=True, slots=True)
class Credential:
    """A key or token. Its value never shows in a representation."""

    value: str = field(repr=False)
    claims: Claims | None = field(default=None, repr=False)

    @property
    def is_token(self) -> bool:
        """Whether Qdrant could take it for a JSON web token."""
        return self.claims is not None

    @property
    def is_good_everywhere(self) -> bool:
        """Whether it is not tied to collections."""
        return self.claims is None or self.claims.collections is None


Presented: TypeAlias = Credential | Absent


def raw_value(metadata: Metadata) -> str | Absent:
    """The text of the credential. Cheap: runs on each call."""
    key: str | None = None
    bearer: str | None = None
    for name, value in metadata:
        if name == API_KEY:
            if key is not None and key != value:
                return Absent.AMBIGUOUS
            key = value if isinstance(value, str) else value.decode("latin-1")
        elif name == AUTHORIZATION:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if bearer is not None and bearer != text:
                return Absent.AMBIGUOUS
            bearer = text
    if key is not None:
        return key
    if bearer is not None and bearer.startswith(BEARER):
        return bearer[len(BEARER) :]
    return Absent.ANONYMOUS


def presented(metadata: Metadata) -> Presented:
    """What a call presents."""
    value = raw_value(metadata)
    return value if isinstance(value, Absent) else Credential(value, claims_of(value))


def claims_of(value: str) -> Claims | None:
    """The claims of what may be a JSON web token; None for what cannot be one.

    A token whose claims cannot be read is a token all the same, one that is never good offline.
    """
    parts = value.split(".")
    if len(parts) != 3 or not isinstance(_json(parts[0]), dict):
        return None
    content = _json(parts[1])
    if not isinstance(content, dict):
        return Claims(is_checkable=False)
    return _claims(content)


def _claims(content: dict[str, Any]) -> Claims:
    expires = content.get("exp")
    checkable = content.get("value_exists") is None
    if expires is not None and (not isinstance(expires, int) or isinstance(expires, bool) or expires < 0):
        checkable, expires = False, None
    access = content.get("access", "m")
    if access in ("r", "m"):
        return Claims(expires, None, access == "m", checkable)
    if not isinstance(access, list):
        return Claims(expires, frozenset(), is_checkable=False)
    names, narrowed, unindexable = set[str](), set[str](), set[str]()
    for entry in access:
        if not isinstance(entry, dict) or not isinstance(entry.get("collection"), str):
            return Claims(expires, frozenset(), is_checkable=False)
        names.add(entry["collection"])
        # A token narrowed to points by their payload: the narrowing cannot be kept offline.
        if entry.get("payload") is not None:
            narrowed.add(entry["collection"])
        if entry.get("access") != "rw":
            unindexable.add(entry["collection"])
    good = frozenset(names - narrowed)
    return Claims(expires, good, is_checkable=checkable, indexable=good - unindexable)


def _json(part: str) -> Any:
    """A base64url part as JSON; None when it is none. More is accepted than by Qdrant, never less."""
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        return json.loads(raw)
    except (binascii.Error, ValueError, RecursionError):
        return None
