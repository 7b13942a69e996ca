"""PURE. Which collections a request names.

Promises: every one, wherever it stands: also those that a query looks up vectors or groups in, and aliases.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError, Message

from server.rpc import METHODS, Call

# Fields that name a collection in whatever message they stand; aliases are names of collections too.
_NAMES = frozenset({"collection_name", "collection", "alias_name", "old_alias_name", "new_alias_name"})


def collections_in(call: Call) -> set[str] | None:
    """Every collection that a request names, wherever it names it; None when it cannot be read."""
    row = METHODS.get(call.method)
    if row is None:
        return None
    try:
        request = row.request.FromString(call.body)
    except DecodeError:
        return None
    names: set[str] = set()
    _gather(request, names)
    names.discard("")
    return names


def _gather(message: Message, names: set[str]) -> None:
    for field, value in message.ListFields():
        if field.message_type is None:
            if field.name in _NAMES and isinstance(value, str):
                names.add(value)
        elif field.message_type.GetOptions().map_entry:
            continue
        elif field.is_repeated:
            for entry in value:
                _gather(entry, names)
        else:
            _gather(value, names)
