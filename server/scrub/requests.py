"""PURE. Which strings of a request are text that a client wrote, and a request without the secrets in them.

Promises: every string value of a payload (nested ones too), of a collection's metadata, of texts and options for
inference, and every value that a filter matches, is scrubbed in each request that may be logged. Fields that these
protos do not know yet are dropped when a secret lies in them. Does not touch ids, vectors, names (of collections,
vectors, fields), nor the keys of a payload: a redacted key could meet another one, and a value would be lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from server import rpc
from server.errors import UnderstudyError
from server.scrub import rules
from server.scrub.engine import Engine

# The leaves that hold text of clients; every other string is a name, an id or a setting.
TEXTS: Mapping[str, frozenset[str]] = {
    "qdrant.Value": frozenset({"string_value"}),
    "qdrant.Document": frozenset({"text"}),
    "qdrant.TextQuery": frozenset({"query"}),
    "qdrant.Match": frozenset({"keyword", "text", "phrase", "text_any", "prefix", "substring"}),
    "qdrant.RepeatedStrings": frozenset({"strings"}),
}
_FILTER = "qdrant.Filter"
_FIELD_CONDITION = "qdrant.FieldCondition"
_DEPTH = 64


class UndecodableRequest(UnderstudyError):
    """A request is no message of its method: it can be neither scrubbed nor written to disk."""

    hint = "The client sent something other than the request of this method"


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A request without secrets. `body` is the very object given when there were none.

    `in_filters` of the `redactions` were in values that filters match: such a filter selects other points than the
    client meant, so it must not be evaluated against stored data.
    """

    body: bytes
    redactions: int = 0
    in_filters: int = 0


@dataclass(slots=True)
class _Tally:
    redactions: int = 0
    in_filters: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a text lies: `name` is the nearest payload key above it, or the field that a condition is about."""

    name: str = ""
    in_filter: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """One field worth looking at in a kind of message."""

    name: str
    repeated: bool
    is_text: bool
    is_map: bool


class Scrubber:
    """The rules, ready for texts and requests."""

    def __init__(self, chosen: tuple[rules.Rule, ...]) -> None:
        self._engine = Engine(chosen)
        self._steps: dict[str, dict[str, _Step]] = {}

    @classmethod
    def load(cls, rules_path: Path | None = None) -> Scrubber:
        """Our rules and those of the file; raises ConfigError where the file cannot be used."""
        return cls(rules.load(rules_path))

    @property
    def rule_ids(self) -> tuple[str, ...]:
        """Ids of the rules that run, in order."""
        return tuple(rule.id for rule in self._engine.rules)

    def scrub_text(self, text: str) -> str:
        """The text with each secret replaced by `[REDACTED:rule-id]`; the same object when there is none."""
        return self._engine.scrub(text)[0]

    def scrub_request(self, method: str, body: bytes) -> tuple[bytes, int]:
        """The request without secrets and how many there were; see `scrub`."""
        result = self.scrub(method, body)
        return result.body, result.redactions

    def scrub(self, method: str, body: bytes) -> Scrubbed:
        """A request that may be logged, without secrets; any other request as it is, for it never reaches disk.

        Raises UndecodableRequest for a body that is no message of the method.
        """
        row = rpc.METHODS.get(method)
        if row is None or not row.wal_kind or not self._engine.may_hold_secrets(body):
            return Scrubbed(body)
        return self._scrubbed(row.request, body, row.path)

    def scrub_message(self, kind: type[Message], body: bytes) -> tuple[bytes, int]:
        """Any other message on its way to disk, such as a page of points from Qdrant; the same object when clean.

        Raises UndecodableRequest for a body that is no message of this kind.
        """
        if not self._engine.may_hold_secrets(body):
            return body, 0
        result = self._scrubbed(kind, body, kind.DESCRIPTOR.full_name)
        return result.body, result.redactions

    def _scrubbed(self, kind: type[Message], body: bytes, what: str) -> Scrubbed:
        message = _parsed(kind, body, what)
        tally = _Tally()
        self._walk(message, _Place(), tally)
        self._drop_unknown(message, tally)
        if not tally.redactions:
            return Scrubbed(body)
        return Scrubbed(message.SerializeToString(deterministic=True), tally.redactions, tally.in_filters)

    def secrets_in_filters(self, method: str, body: bytes) -> int:
        """How many values that filters match hold a secret, for any known method, reads included.

        The replica stores `[REDACTED:…]` in place of secrets, so such a filter has no right answer offline.
        """
        row = rpc.METHODS.get(method)
        if row is None or not self._engine.may_hold_secrets(body):
            return 0
        tally = _Tally()
        self._walk(_parsed(row.request, body, row.path), _Place(), tally)
        return tally.in_filters

    def _walk(self, message: Message, place: _Place, tally: _Tally) -> None:
        """Scrub in place."""
        kind = message.DESCRIPTOR.full_name
        if kind == _FILTER:
            place = _Place(place.name, True)
        elif kind == _FIELD_CONDITION:
            place = _Place(_last_name(message.key), place.in_filter)  # type: ignore[attr-defined]
        steps = self._steps_of(message.DESCRIPTOR)
        for field, value in message.ListFields():
            step = steps.get(field.name)
            if step is None:
                continue
            if step.is_text:
                self._scrub_leaf(message, step, place, tally)
            elif step.is_map:
                for key, entry in value.items():
                    self._walk(entry, _Place(key, place.in_filter), tally)
            elif step.repeated:
                for entry in value:
                    self._walk(entry, place, tally)
            else:
                self._walk(value, place, tally)

    def _scrub_leaf(self, message: Message, step: _Step, place: _Place, tally: _Tally) -> None:
        value = getattr(message, step.name)
        texts = list(value) if step.repeated else [value]
        found = 0
        for position, text in enumerate(texts):
            texts[position], count = self._engine.scrub(text, place.name)
            found += count
        if not found:
            return
        if step.repeated:
            value[:] = texts
        else:
            setattr(message, step.name, texts[0])
        tally.redactions += found
        tally.in_filters += found if place.in_filter else 0

    def _steps_of(self, descriptor: Any) -> dict[str, _Step]:
        known = self._steps.get(descriptor.full_name)
        if known is None:
            known = {step.name: step for step in _steps(descriptor)}
            self._steps[descriptor.full_name] = known
        return known

    def _drop_unknown(self, message: Message, tally: _Tally) -> None:
        """Fields of a newer API that hold a secret are left out: they cannot be redacted in place."""
        whole = message.ByteSize()
        bare = type(message)()
        bare.CopyFrom(message)
        bare.DiscardUnknownFields()
        if bare.ByteSize() == whole:
            return
        for inner in _messages(message):
            found = sum(self._engine.scrub(text)[1] for text in _unknown_texts(UnknownFieldSet(inner), _DEPTH))
            if found:
                inner.DiscardUnknownFields()
                tally.redactions += found


def _parsed(kind: type[Message], body: bytes, what: str) -> Message:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise UndecodableRequest(f"{what}: failed to decode Protobuf message") from error


def _steps(descriptor: Any) -> Iterator[_Step]:
    texts = TEXTS.get(descriptor.full_name, frozenset())
    for field in descriptor.fields:
        is_map = _is_map(field)
        if field.name in texts:
            yield _Step(field.name, field.is_repeated, is_text=True, is_map=False)
        elif is_map and _leads_to_text(field.message_type.fields_by_name["value"], frozenset()):
            yield _Step(field.name, True, is_text=False, is_map=True)
        elif not is_map and _leads_to_text(field, frozenset()):
            yield _Step(field.name, field.is_repeated, is_text=False, is_map=False)


def _leads_to_text(field: Any, seen: frozenset[str]) -> bool:
    inner = field.message_type
    if inner is None or inner.full_name in seen:
        return False
    if inner.full_name in TEXTS:
        return True
    return any(_leads_to_text(below, seen | {inner.full_name}) for below in inner.fields)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _last_name(path: str) -> str:
    """The last name of a payload path: `meta.keys[0]."api key"` → `api key`."""
    return path.rpartition(".")[2].partition("[")[0].strip('"')


def _messages(message: Message) -> Iterator[Message]:
    """The message and every message inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if _is_map(field):
            if field.message_type.fields_by_name["value"].message_type is not None:
                for entry in value.values():
                    yield from _messages(entry)
        elif field.is_repeated:
            for entry in value:
                yield from _messages(entry)
        else:
            yield from _messages(value)


def _unknown_texts(fields: Any, depth: int) -> Iterator[str]:
    """Every run of bytes in unknown fields, read as text, and what lies inside when it reads as fields again."""
    for field in fields:
        if isinstance(field.data, bytes):
            yield field.data.decode("utf-8", "replace")
            if depth:
                yield from _inside(field.data, depth - 1)
        elif not isinstance(field.data, int | float):
            yield from _unknown_texts(field.data, depth - 1) if depth else ()


def _inside(data: bytes, depth: int) -> Iterator[str]:
    from google.protobuf.empty_pb2 import Empty

    try:
        inner = Empty.FromString(data)
    except DecodeError:
        return
    yield from _unknown_texts(UnknownFieldSet(inner), depth)
