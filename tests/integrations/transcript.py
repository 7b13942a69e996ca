"""What an application was told, in plain values, and how two such records are compared.

Promises: every field of a document, score and exception is in the record; numbers keep their type. Not in it: what
must differ from run to run (addresses, times).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import grpc
from haystack.dataclasses import Document as HaystackDocument
from llama_index.core.schema import BaseNode
from pydantic import BaseModel

TOLERANCE = 1e-4
# What gRPC adds for people who look for the peer: its address and the time.
_DEBUG = re.compile(r"debug_error_string = .*")


class Transcript:
    """The answers of one phase, by the name of the step."""

    def __init__(self) -> None:
        """Empty."""
        self.steps: dict[str, Any] = {}

    def say(self, step: str, answer: Any) -> None:
        """Keep an answer that has something in it."""
        value = plain(answer)
        if is_nothing(value):
            raise AssertionError(f"{step}: {value!r} shows nothing")
        self._keep(step, value)

    def say_fused(self, step: str, ranked: Iterable[tuple[Any, float]]) -> None:
        """Keep a fused list of items with their scores.

        A fusion of ranks gives many points the same score, and Qdrant leaves open which of them comes first: they are
        kept as one set. Of the last score only how many there are counts, for others with it may have been cut off.
        """
        tied = [(score, [plain(item) for item, _ in group]) for score, group in groupby(ranked, key=lambda one: one[1])]
        if not tied:
            raise AssertionError(f"{step}: shows nothing")
        sets = [[score, sorted(items, key=_text)] for score, items in tied[:-1]]
        self._keep(step, [*sets, [tied[-1][0], len(tied[-1][1])]])

    def say_nothing(self, step: str, answer: Any) -> None:
        """Keep an answer that has nothing in it."""
        value = plain(answer)
        if not is_nothing(value):
            raise AssertionError(f"{step}: {value!r} is not nothing")
        self._keep(step, value)

    def refused(self, step: str, call: Callable[[], Any]) -> None:
        """Make a call that must raise, and keep what it raised."""
        try:
            answer = call()
        except Exception as error:  # noqa: BLE001 - whatever the application sees is what is compared
            self._keep(step, raised(error))
        else:
            raise AssertionError(f"{step}: not refused, but {plain(answer)!r}")

    def _keep(self, step: str, value: Any) -> None:
        if step in self.steps:
            raise AssertionError(f"two steps are called {step}")
        self.steps[step] = value


def is_nothing(value: Any) -> bool:
    """Empty, or a dict of nothing but empty values such as `{"documents": []}`."""
    if isinstance(value, dict):
        return all(is_nothing(one) for one in value.values())
    return value in (None, [], 0, False)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def raised(error: BaseException) -> dict[str, Any]:
    """Type, status and text of an exception, and of what caused it."""
    told: dict[str, Any] = {"type": type(error).__name__}
    if isinstance(error, grpc.RpcError):
        told |= {"code": error.code().name, "details": error.details()}  # type: ignore[attr-defined]
    else:
        told["text"] = _DEBUG.sub("", str(error))
    if error.__cause__ is not None:
        told["cause"] = raised(error.__cause__)
    return told


def plain(value: Any) -> Any:
    """Lists, dicts and scalars for what the packages answer with."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, HaystackDocument):
        return plain(value.to_dict(flatten=False))
    if isinstance(value, BaseNode):
        # The vector is not a part of what `to_dict` tells.
        return plain(value.to_dict()) | {"embedding": plain(value.embedding)}
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"no plain form for {type(value)}")


def differences(wanted: Any, seen: Any, where: str = "") -> list[str]:
    """Where two records differ; floats may by `TOLERANCE`, all else must be equal in type and value."""
    if type(wanted) is not type(seen):
        return [f"{where}: wanted {wanted!r}, got {seen!r}"]
    if isinstance(wanted, dict):
        found = [f"{where}: no {key!r}, wanted {wanted[key]!r}" for key in wanted if key not in seen]
        found += [f"{where}: {key!r} is too much: {seen[key]!r}" for key in seen if key not in wanted]
        for key in wanted:
            if key in seen:
                found += differences(wanted[key], seen[key], f"{where}/{key}")
        return found
    if isinstance(wanted, list):
        found = [] if len(wanted) == len(seen) else [f"{where}: wanted {len(wanted)} items, got {len(seen)}"]
        for number, (one, other) in enumerate(zip(wanted, seen, strict=False)):
            found += differences(one, other, f"{where}/{number}")
        return found
    if isinstance(wanted, float):
        same = math.isclose(wanted, seen, rel_tol=0, abs_tol=TOLERANCE) or (math.isnan(wanted) and math.isnan(seen))
        return [] if same else [f"{where}: wanted {wanted!r}, got {seen!r}"]
    return [] if wanted == seen else [f"{where}: wanted {wanted!r}, got {seen!r}"]
