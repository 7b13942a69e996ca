"""PURE. Qdrant's payload paths (`a.b`, `a[].b`, `a[0]`, `"a.b".c`) and what they select.

Promises: parses and resolves as Qdrant does, on the protobuf values themselves, without turning a payload into Python
objects. A path selects values; an array at its end is one value (conditions look into it one level deep).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias

import regex

from generated.qdrant import json_with_int_pb2 as json_pb2
from server.replica.refusal import invalid

Payload: TypeAlias = Mapping[str, json_pb2.Value]
Values: TypeAlias = list[json_pb2.Value]


class _Wildcard:
    """The step `[]`."""


WILDCARD = _Wildcard()
Step: TypeAlias = "str | int | _Wildcard"
Path: TypeAlias = tuple[Step, ...]

_U64_MAX = 2**64 - 1
# As Rust sees letters and digits: Python's own `isalnum` lacks the vowel signs that many scripts write as marks.
_PLAIN_KEY = regex.compile(r"[\p{Alphabetic}\p{N}_-]+")


class BadPath(ValueError):
    """The text is no path."""


@lru_cache(maxsize=4096)
def parse(text: str) -> Path:
    """The steps of a path, the first always a key. Raises BadPath."""
    steps: list[Step] = []
    rest = text
    while True:
        key, rest = _key(rest)
        steps.append(key)
        while rest.startswith("["):
            step, rest = _bracket(rest)
            steps.append(step)
        if not rest:
            return tuple(steps)
        if not rest.startswith("."):
            raise BadPath(text)
        rest = rest[1:]


def _key(text: str) -> tuple[str, str]:
    if text.startswith('"'):
        end = text.find('"', 1)
        if end < 0 or "\\" in text[:end]:
            raise BadPath(text)
        return text[1:end], text[end + 1 :]
    plain = _PLAIN_KEY.match(text)
    if plain is None:
        raise BadPath(text)
    return plain.group(), text[plain.end() :]


def _bracket(text: str) -> tuple[Step, str]:
    end = text.find("]")
    inside = text[1:end] if end > 0 else "?"
    if not inside:
        return WILDCARD, text[end + 1 :]
    if not (inside.isascii() and inside.isdigit()) or int(inside) > _U64_MAX:
        raise BadPath(text)
    return int(inside), text[end + 1 :]


def parse_or_refuse(text: str) -> Path:
    """As `parse`, with the refusal that Qdrant gives."""
    try:
        return parse(text)
    except BadPath as error:
        raise invalid(f"Invalid json path: '{text}'") from error


def text_of(path: Path) -> str:
    """The path as Qdrant writes it."""
    text = ""
    for step in path:
        if not isinstance(step, str):
            text += "[]" if step is WILDCARD else f"[{step}]"
            continue
        text += ("." if text else "") + (step if _PLAIN_KEY.fullmatch(step) else f'"{step}"')
    return text


def canonical(text: str) -> str:
    """A path as Qdrant writes it; what is none stays as it is."""
    try:
        return text_of(parse(text))
    except BadPath:
        return text


def selector(path: Path) -> Callable[[Payload], Values]:
    """A function that lists the values at `path`; empty when there are none."""
    first = path[0]
    assert isinstance(first, str)
    rest = path[1:]
    if not rest:
        return lambda payload: [payload[first]] if first in payload else []

    def select(payload: Payload) -> Values:
        if first not in payload:
            return []
        found: Values = []
        _walk(payload[first], rest, found)
        return found

    return select


def _walk(value: json_pb2.Value, steps: Path, found: Values) -> None:
    if not steps:
        found.append(value)
        return
    step, rest = steps[0], steps[1:]
    kind = value.WhichOneof("kind")
    if isinstance(step, str):
        if kind == "struct_value" and step in value.struct_value.fields:
            _walk(value.struct_value.fields[step], rest, found)
    elif kind == "list_value":
        items = value.list_value.values
        if isinstance(step, int):
            if step < len(items):
                _walk(items[step], rest, found)
        else:
            for item in items:
                _walk(item, rest, found)


def flattened(values: Values) -> Values:
    """The values that a condition looks at: arrays opened one level."""
    opened: Values = []
    for value in values:
        if value.WhichOneof("kind") == "list_value":
            opened.extend(value.list_value.values)
        else:
            opened.append(value)
    return opened


def array_path(path: Path) -> Path:
    """The path of a nested condition: always with `[]` at its end."""
    return path if path[-1] is WILDCARD else (*path, WILDCARD)


def below(path: Path, prefix: Path) -> Path | None:
    """What remains of `path` below `prefix`; None when it does not lie there."""
    return path[len(prefix) :] if len(path) > len(prefix) and path[: len(prefix)] == prefix else None
