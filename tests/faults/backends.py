"""Backends that record what they get and fail when told to.

Promises: calls are recorded in the order in which they came, before anything is answered. A script is used up from its
front; when it is empty the backend behind answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from server.errors import UpstreamTimeout, UpstreamUnreachable
from server.rpc import Backend, Call, Code, Reply


class RecordingBackend:
    """Answers every call with `reply`, or with what `behind` says, and keeps the calls."""

    def __init__(self, behind: Backend | None = None, *, reply: Reply | None = None) -> None:
        self._behind = behind
        self._reply = reply if reply is not None else Reply()
        self.calls: list[Call] = []

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        self.calls.append(call)
        if self._behind is not None:
            return await self._behind.handle(call)
        return self._reply

    @property
    def methods(self) -> list[str]:
        """The bare names of the methods called."""
        return [call.method.rsplit("/", 1)[-1] for call in self.calls]


@dataclass(frozen=True, slots=True)
class Refused:
    """The transport finds nobody."""

    maybe_applied: bool = False


@dataclass(frozen=True, slots=True)
class LostAnswer:
    """The backend behind does its work, then the connection breaks; `then` happens with it."""

    then: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Silence:
    """Nobody answers in time."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Wait for an event, then go on as if nothing had been."""

    until: asyncio.Event
    reached: asyncio.Event


@dataclass(frozen=True, slots=True)
class Pass:
    """Nothing wrong with this call."""


Fault: TypeAlias = Refused | LostAnswer | Silence | Stall | Pass | Reply


class FlakyBackend:
    """A backend with a script of faults in front of it. `only` limits the script to some calls."""

    def __init__(
        self, behind: Backend, script: Iterable[Fault] = (), *, only: Callable[[Call], bool] = lambda call: True
    ) -> None:
        self._behind = behind
        self._only = only
        self.script: deque[Fault] = deque(script)
        self.calls: list[Call] = []

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        self.calls.append(call)
        fault: Fault = Pass()
        if self.script and self._only(call):
            fault = self.script.popleft()
        match fault:
            case Refused(maybe_applied):
                raise UpstreamUnreachable("connection refused", maybe_applied=maybe_applied)
            case Silence():
                raise UpstreamTimeout("no answer in time", maybe_applied=True)
            case LostAnswer(then):
                await self._behind.handle(call)
                then()
                raise UpstreamUnreachable("connection reset", maybe_applied=True)
            case Stall(until, reached):
                reached.set()
                await until.wait()
            case Reply():
                return fault
        return await self._behind.handle(call)


def says(code: Code, details: str = "told to fail", **trailers: str) -> Reply:
    """A status. Trailer names: `_` stands for `-`."""
    pairs = tuple((key.replace("_", "-"), value) for key, value in trailers.items())
    return Reply(code=code, details=details, trailers=pairs)
