"""What the stand-in can be told to do wrong.

A fault is a rule: for the next `times` calls of `method`, do `action`. Rules are tried in the order in which they came.

Promises: a rule counts each call it took exactly once; `release` ends every stall. Does not promise which of several
concurrent calls takes a rule with few `times`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from grpc import StatusCode


class Action(Enum):
    """What happens to a call. `*_AFTER` means after the engine applied it, so that only the answer is missing."""

    FAIL = "fail"
    FAIL_AFTER = "fail_after"
    STALL = "stall"
    STALL_AFTER = "stall_after"
    DIE = "die"
    DIE_AFTER = "die_after"


@dataclass(slots=True)
class Fault:
    """One rule. `method` is a full path, a bare name such as `Upsert`, or `*`; health checks need their own rule."""

    method: str
    action: Action
    times: int | None = 1
    code: StatusCode = StatusCode.UNAVAILABLE
    text: str = "told to fail"
    seconds: float | None = None
    skip: int = 0
    trailers: tuple[tuple[str, str], ...] = ()
    taken: int = 0

    @classmethod
    def parse(cls, given: dict[str, Any]) -> Fault:
        """From the control call's JSON; raises ValueError, KeyError or TypeError for what is not a rule."""
        fields = dict(given)
        fields["action"] = Action(fields["action"])
        if "code" in fields:
            fields["code"] = StatusCode[fields["code"]]
        fields["trailers"] = tuple((key, value) for key, value in fields.get("trailers", ()))
        return cls(**fields)

    def matches(self, method: str) -> bool:
        """Whether the rule is about this method."""
        if self.method == "*":
            return "Health" not in method
        return self.method in (method, method.rsplit("/", 1)[-1])

    @property
    def is_spent(self) -> bool:
        """Whether the rule has no calls left."""
        return self.times is not None and self.taken >= self.times


@dataclass(slots=True)
class Faults:
    """The rules in force."""

    rules: list[Fault] = field(default_factory=list)
    stalled: int = 0
    _gate: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, fault: Fault) -> None:
        """Put a rule in force."""
        self.rules.append(fault)

    def take(self, method: str) -> Fault | None:
        """The rule for this call, counted; None = nothing is wrong."""
        for rule in self.rules:
            if rule.is_spent or not rule.matches(method):
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            rule.taken += 1
            return rule
        return None

    async def stall(self, fault: Fault) -> None:
        """Wait for the rule's seconds, or until released."""
        self.stalled += 1
        try:
            async with asyncio.timeout(fault.seconds):
                await self._gate.wait()
        except TimeoutError:
            pass
        finally:
            self.stalled -= 1

    def release(self) -> None:
        """Let every stalled call go on."""
        self._gate.set()
        self._gate = asyncio.Event()

    def clear(self) -> None:
        """Drop every rule and let stalled calls go on."""
        self.rules.clear()
        self.release()
