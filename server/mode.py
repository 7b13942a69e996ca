"""Where calls go now: REMOTE, LOCAL or DRAINING, since when and why.

Promises: changes state only along the table in `health/state.py`, in the event loop, at once; REMOTE means that
nothing is pending. Subscribers hear of every change, in order, after it took effect. Does not decide whether Qdrant
is up.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.clock import Clock
from server.health.callbacks import Subscribers
from server.health.detector import Verdict
from server.health.state import Event, State, step
from server.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state. `at` is in seconds on the monotonic clock."""

    before: State
    after: State
    at: float
    reason: str


class Mode:
    """The state of the proxy. Belongs to one event loop."""

    def __init__(self, *, sync_on_connect: bool, pending: int, clock: Clock, telemetry: Telemetry) -> None:
        self.state = State.LOCAL
        self.reason = "starting"
        self.since_ns = clock.wall_ns()
        self.upstream_up = False
        self.subscribers: Subscribers[Change] = Subscribers()
        self._sync_on_connect = sync_on_connect
        self._pending = pending
        self._clock = clock
        self._telemetry = telemetry
        telemetry.metrics.state(int(self.state))

    @property
    def is_remote(self) -> bool:
        """Whether calls are forwarded."""
        return self.state is State.REMOTE

    @property
    def is_draining(self) -> bool:
        """Whether the log is on its way to Qdrant."""
        return self.state is State.DRAINING

    def upstream_changed(self, verdict: Verdict, *, pending: int) -> None:
        """Qdrant came or went."""
        self.upstream_up = verdict.up
        if not verdict.up:
            self._step(Event.UPSTREAM_DOWN, verdict.reason)
        elif pending and not self._sync_on_connect:
            self._step(Event.SYNC_REFUSED, "Qdrant is up, sync_on_connect is off: run `understudy sync`")
        else:
            self._step(Event.UPSTREAM_UP, verdict.reason)
            if not pending:
                self._step(Event.DRAINED, verdict.reason)

    def write_logged(self) -> None:
        """A write went to the log: until it is replayed Qdrant's answers would be old."""
        self._step(Event.WRITE_LOGGED, "a write went to the log")

    def drained(self) -> None:
        """Nothing is pending and no local write is under way."""
        self._step(Event.DRAINED, "nothing is pending")

    def sync_requested(self) -> None:
        """An operator asks for the replay that sync_on_connect does not start."""
        if self.upstream_up:
            self._step(Event.SYNC_REQUESTED, "asked for by the operator")

    def _step(self, event: Event, reason: str) -> None:
        before = self.state
        after = step(before, event)
        if after is before:
            return
        self.state = after
        self.reason = reason
        self.since_ns = self._clock.wall_ns()
        self._telemetry.metrics.state(int(after))
        self._telemetry.log.info(
            "fallback on" if after is State.LOCAL else "state changed",
            before=before.name,
            after=after.name,
            reason=reason,
        )
        self.subscribers.fire(Change(before, after, self._clock.monotonic(), reason))
