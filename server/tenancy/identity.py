"""PURE. Which tenant a call is made for.

Promises: exactly one well-formed name, or a refusal that says what is wrong. A name is never guessed, cut or repaired.
"""

from __future__ import annotations

import re

from server.config import Tenancy
from server.errors import ConfigError
from server.rpc import Call, Code, Metadata, Reply, refuse

# Printable ASCII. A comma is left out: proxies join repeated metadata with it.
_NAME = re.compile(r"[!-+\--~](?:[ !-+\--~]*[!-+\--~])?")
# Plain names: a payload key that Qdrant reads as a path, or wants quoted, could be written one way and matched another.
_PAYLOAD_KEY = re.compile(r"[A-Za-z0-9_-]+")
_METADATA_KEY = re.compile(r"[a-z0-9_.-]+")


def check_settings(settings: Tenancy) -> None:
    """Raises ConfigError for keys that cannot be confined by."""
    if not _PAYLOAD_KEY.fullmatch(settings.payload_key):
        raise ConfigError(
            f"tenancy.payload_key `{settings.payload_key}` must be letters, digits, `_` and `-`: a key, not a path"
        )
    key = settings.metadata_key.lower()
    if not _METADATA_KEY.fullmatch(key) or key.endswith("-bin") or key.startswith("grpc-"):
        raise ConfigError(f"tenancy.metadata_key `{settings.metadata_key}` must be the name of a text header")


def tenant_of(call: Call, settings: Tenancy) -> str | Reply:
    """The name of the tenant, or why there is none."""
    key = settings.metadata_key.lower()
    values = _values(call.metadata, key)
    if not values:
        return refuse(Code.UNAUTHENTICATED, f"No tenant: this server needs the metadata `{key}` on every call")
    if len(set(values)) > 1:
        return refuse(Code.INVALID_ARGUMENT, f"Different tenants in the metadata `{key}`: exactly one is needed")
    name = values[0]
    if not name.strip():
        return refuse(Code.UNAUTHENTICATED, f"No tenant: the metadata `{key}` is empty")
    if len(name) > settings.max_length:
        return refuse(Code.INVALID_ARGUMENT, f"The tenant in `{key}` is longer than {settings.max_length} characters")
    if not _NAME.fullmatch(name):
        return refuse(
            Code.INVALID_ARGUMENT,
            f"The tenant in `{key}` must be printable ASCII without commas, with no space at either end",
        )
    return name


def _values(metadata: Metadata, key: str) -> list[str]:
    return [
        value if isinstance(value, str) else value.decode("latin-1") for name, value in metadata if name.lower() == key
    ]
