"""Where calls go now: REMOTE, LOCAL or DRAINING, since when and why.

Promises: changes state only along the table in `health/state.py`, in the event loop, at once; REMOTE means that
nothing is pending. Subscribers hear of every change, in order, after it took effect. Does not decide whether Qdrant
is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from server.clock import Clock
from server.health.callbacks import Subscribers
from server.health.detector import Verdict
from server.health.state import Event, State, step
from server.logs import Message
from server.telemetry import Telemetry

T = TypeVar("T")

_MESSAGES = {
    State.LOCAL: Message.FALLBACK_ON,
    State.DRAINING: Message.DRAINING,
    State.REMOTE: Message.FALLBACK_OFF,
}


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state. `at` is in seconds on the monotonic clock."""

    before: State
    after: State
    at: float
    reason: str


class Mode:
    """The state of the proxy. Belongs to one event loop.

    `on_change` is called in the loop as part of the change, before the subscribers hear of it, and must not wait.
    """

    def __init__(self, *, has_upstream: bool, sync_on_connect: bool, clock: Clock, telemetry: Telemetry) -> None:
        self.state = State.LOCAL
        self.reason = "Qdrant was not reached yet" if has_upstream else "no Qdrant is configured"
        self.since_ns = clock.wall_ns()
        self.upstream_up = False
        self.on_change: Callable[[Change], None] | None = None
        self.subscribers: Subscribers[Change] = Subscribers()
        self._sync_on_connect = sync_on_connect
        self._sync_wanted = False
        self._until_remote: set[asyncio.Timeout] = set()
        self._clock = clock
        self._telemetry = telemetry
        telemetry.metrics.state(int(self.state))

    @property
    def is_remote(self) -> bool:
        """Whether calls are forwarded."""
        return self.state is State.REMOTE

    async def unless_remote(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`; None, with the work given up, when calls are forwarded first."""
        if self.is_remote:
            work.close()
            return None
        # A limit that nobody knows yet: cheaper than a task for each write.
        limit = asyncio.timeout(None)
        self._until_remote.add(limit)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            return None
        finally:
            self._until_remote.discard(limit)

    @property
    def is_draining(self) -> bool:
        """Whether the log is on its way to Qdrant."""
        return self.state is State.DRAINING

    def upstream_changed(self, verdict: Verdict, *, pending: int, must_look: bool = False) -> None:
        """Qdrant came or went. `must_look`: before calls go there, what it may have lost is looked at."""
        self.upstream_up = verdict.up
        if not verdict.up:
            self._step(verdict.reason, Event.UPSTREAM_DOWN)
        elif not pending and not must_look:
            self._step(verdict.reason, Event.UPSTREAM_UP, Event.DRAINED)
        elif not pending or self._may_sync or self.state is not State.LOCAL:
            self._step(verdict.reason, Event.UPSTREAM_UP)
        else:
            self._step(verdict.reason, Event.SYNC_REFUSED)
        if self.state is State.LOCAL:
            # Why calls stay here changes with Qdrant, though the state does not.
            self.reason = (
                "Qdrant is up, sync_on_connect is off: run `understudy sync`" if verdict.up else verdict.reason
            )

    def write_logged(self) -> None:
        """A write went to the log: until it is replayed Qdrant's answers would be old."""
        self._step("a write went to the log", Event.WRITE_LOGGED)

    def look_is_due(self) -> None:
        """What Qdrant may have lost is looked for before calls go there again."""
        self._step("what Qdrant may have lost is looked for", Event.LOOK_DUE)

    def drained(self) -> None:
        """Nothing is pending and no local write is under way."""
        self._step("nothing is pending", Event.DRAINED)

    def sync_requested(self, *, pending: int) -> None:
        """An operator asks for the replay that sync_on_connect does not start.

        While Qdrant is down the wish is kept: it holds until nothing is pending, through further outages too.
        """
        self._sync_wanted = pending > 0
        if self.upstream_up:
            self._step("asked for by the operator", Event.SYNC_REQUESTED)

    @property
    def _may_sync(self) -> bool:
        return self._sync_on_connect or self._sync_wanted

    def _step(self, reason: str, *events: Event) -> None:
        """Go along the table; only where it ends is told."""
        before = after = self.state
        for event in events:
            after = step(after, event)
        if after is before:
            return
        change = Change(before, after, self._clock.monotonic(), reason)
        self.state = after
        self.reason = reason
        if after is State.REMOTE:
            self._sync_wanted = False
            while self._until_remote:
                # Each once: one that is expiring already cannot be told again.
                self._until_remote.pop().reschedule(asyncio.get_running_loop().time())
        self.since_ns = self._clock.wall_ns()
        self._telemetry.metrics.state(int(after))
        self._telemetry.log.info(_MESSAGES[after], before=before.name, after=after.name, reason=reason)
        self._telemetry.moment("state.changed", before=before.name, after=after.name, reason=reason)
        if self.on_change is not None:
            self.on_change(change)
        self.subscribers.fire(change)
