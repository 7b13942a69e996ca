"""Make a workload that disagrees short: fewer calls, then smaller requests, as long as it still disagrees.

Promises: what comes out disagrees, in its last call, as `play` says; it is run anew each time, so a disagreement that
does not come again is handed back as it was. At most `tries` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .calls import Call
from .play import Disagreement

Attempt: TypeAlias = Callable[[Sequence[Call]], "Disagreement | None"]
"""Runs calls on a new replica and a new oracle."""

# Fields without which a request is another one, or none at all.
_KEPT = frozenset(
    ("collection_name", "limit", "sample", "group_by", "group_size", "data", "values", "indices", "vector", "id")
)
_NEEDED = frozenset(
    ("query", "lookup_from", "strategy", "naive", "vectors", "points_selector", "points", "using", "vector_name")
) | frozenset(
    (
        "target",
        "context",
        "feedback",
        "example",
        "integers",
        "strings",
        "lt",
        "lte",
        "gt",
        "gte",
        "formula",
        "expression",
    )
)


@dataclass(slots=True)
class Shrunk:
    """The short workload and what differs in it."""

    calls: list[Call]
    disagreement: Disagreement
    tries: int = 0


class _Spent(Exception):
    """No more runs."""


class Shrinker:
    """One shrinking."""

    def __init__(self, attempt: Attempt, tries: int) -> None:
        self._attempt = attempt
        self._most = tries
        self._tries = 0

    def shrink(self, calls: Sequence[Call], found: Disagreement) -> Shrunk:
        """The shortest workload that was found."""
        self._best = Shrunk(list(calls[: found.at + 1]), found)
        try:
            self._fails([*self._reads_dropped()])
            self._drop()
            self._simplify()
            self._drop()
        except _Spent:
            pass
        self._best.tries = self._tries
        return self._best

    def _fails(self, calls: list[Call]) -> bool:
        """Whether calls still disagree; if they do they are the best."""
        if self._tries >= self._most:
            raise _Spent
        self._tries += 1
        found = self._attempt(calls)
        if found is None or not self._is_alike(found):
            return False
        self._best = Shrunk(calls[: found.at + 1], found)
        return True

    def _is_alike(self, found: Disagreement) -> bool:
        """Whether it is the disagreement that is looked for, not one that a smaller request brought about."""
        wanted = self._best.disagreement
        return found.call.method == wanted.call.method and found.is_of_status == wanted.is_of_status

    def _reads_dropped(self) -> Iterator[Call]:
        *before, last = self._best.calls
        yield from (call for call in before if not call.is_read)
        yield last

    def _drop(self) -> None:
        """Drop runs of calls, long ones first, never the last call."""
        size = max(1, len(self._best.calls) // 2)
        while size:
            at = 0
            while at < len(self._best.calls) - 1:
                calls = self._best.calls
                end = min(at + size, len(calls) - 1)
                if not self._fails(calls[:at] + calls[end:]):
                    at += size
            size //= 2

    def _simplify(self) -> None:
        """Take parts out of requests, the last call's first."""
        at = len(self._best.calls) - 1
        while at >= 0:
            if at < len(self._best.calls):
                while self._simplified(at):
                    pass
            at = min(at, len(self._best.calls)) - 1

    def _simplified(self, at: int) -> bool:
        calls = self._best.calls
        if at >= len(calls):
            return False
        call = calls[at]
        if call.name.startswith("Create"):
            # What is set up stays as it is: with less, other things go wrong.
            return False
        for smaller in reductions(call.request):
            if self._fails([*calls[:at], Call(call.method, smaller), *calls[at + 1 :]]):
                return True
        return False


def reductions(message: Any) -> Iterator[Any]:
    """Copies of a message, each with one field or one item less, the large parts first."""
    for descriptor, value in message.ListFields():
        if descriptor.name in _KEPT:
            continue
        is_map = descriptor.type == descriptor.TYPE_MESSAGE and descriptor.message_type.GetOptions().map_entry
        oneof = descriptor.containing_oneof
        # One of several forms is no part: without it nothing is said.
        if descriptor.name not in _NEEDED and (oneof is None or len(oneof.fields) == 1):
            yield _changed(message, lambda copy, name=descriptor.name: copy.ClearField(name))
        if is_map:
            for key in list(value):
                if len(value) > 1:
                    yield _changed(message, lambda copy, name=descriptor.name, key=key: getattr(copy, name).pop(key))
                if hasattr(value[key], "ListFields"):
                    for smaller in reductions(value[key]):
                        yield _changed(
                            message,
                            lambda copy, name=descriptor.name, key=key, one=smaller: getattr(copy, name)[key].CopyFrom(
                                one
                            ),
                        )
        elif descriptor.is_repeated:
            yield from _fewer(message, descriptor, value)
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            for smaller in reductions(value):
                yield _changed(
                    message, lambda copy, name=descriptor.name, one=smaller: getattr(copy, name).CopyFrom(one)
                )


def _fewer(message: Any, descriptor: Any, value: Any) -> Iterator[Any]:
    is_message = descriptor.type == descriptor.TYPE_MESSAGE
    # Numbers of a vector are no parts: it would have another size.
    for at in (
        range(len(value)) if len(value) > 1 and (is_message or descriptor.name in ("fields", "names", "keys")) else ()
    ):
        yield _changed(message, lambda copy, name=descriptor.name, at=at: getattr(copy, name).__delitem__(at))
    if is_message:
        for at in range(len(value)):
            for smaller in reductions(value[at]):
                yield _changed(
                    message,
                    lambda copy, name=descriptor.name, at=at, one=smaller: getattr(copy, name)[at].CopyFrom(one),
                )


def _changed(message: Any, change: Callable[[Any], Any]) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    change(copy)
    return copy
