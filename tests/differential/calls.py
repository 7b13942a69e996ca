"""PURE. A call and its outcome, as every oracle and the replica see them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from google.protobuf import text_format
from google.protobuf.message import Message

from server.rpc import METHODS, Kind


@dataclass(frozen=True, slots=True)
class Call:
    """A method and its request."""

    method: str
    request: Any

    @property
    def name(self) -> str:
        """The method without its service."""
        return self.method.rsplit("/", 1)[-1]

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        return METHODS[self.method].kind is Kind.READ

    def changed(self, change: Any) -> Call:
        """The same call with `change` done to a copy of its request."""
        copy = type(self.request)()
        copy.CopyFrom(self.request)
        change(copy)
        return Call(self.method, copy)

    def __str__(self) -> str:
        return f"{self.method} {{ {text_format.MessageToString(self.request, as_one_line=True)} }}"


@dataclass(frozen=True, slots=True)
class Refused:
    """No answer but a status. Two refusals are equal when their status is; texts are for people."""

    status: str
    text: str

    def __str__(self) -> str:
        return f"{self.status}: {self.text}"


@dataclass(frozen=True, slots=True)
class Gap:
    """An oracle has no way to say this call."""

    why: str


Outcome: TypeAlias = "Message | Refused | Gap"


class Oracle(Protocol):
    """Something that answers calls: a twin of the replica."""

    name: str
    version: str
    """The Qdrant version that it speaks for."""
    mends: Counter[str]
    """How often it did something else than it would have, so that a row of `differences` holds."""

    def answer(self, call: Call) -> Outcome:
        """Answer one call. A write that is a Gap changes nothing."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
