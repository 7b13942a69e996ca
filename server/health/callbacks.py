"""Subscribers that cannot harm whoever tells them, nor each other.

Promises: copy-before-fire. `fire` copies the list of subscribers under the lock, releases the lock, and only then hands
the event to each one's own queue, so it never waits for a callback. Each subscriber gets every event that was fired
while it was subscribed, once, in the one order of all, on a thread of its own: it may block, raise, subscribe,
unsubscribe or fire. The thread lives only while there is something to deliver.
Limit: a subscriber that lags `limit` events behind loses the oldest ones; `Subscription.dropped` counts them and the
log says so. Does not promise that two subscribers hear of an event at the same time, nor delivery after the process
ends.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

E = TypeVar("E")

DEFAULT_LIMIT = 1000

_LOG = logging.getLogger(__name__)


class Subscription(Generic[E]):
    """One subscriber's place. Made by `Subscribers.subscribe`."""

    def __init__(self, callback: Callable[[E], None], limit: int, leave: Callable[[Subscription[E]], None]) -> None:
        self.dropped = 0
        self._callback = callback
        self._limit = limit
        self._leave = leave
        self._lock = threading.Lock()
        self._events: deque[E] = deque()
        self._is_delivering = False
        self._is_cancelled = False

    def cancel(self) -> None:
        """Hear of nothing more. A callback that runs at this moment ends on its own; waits for nothing."""
        self._leave(self)
        with self._lock:
            self._is_cancelled = True
            self._events.clear()

    def _put(self, event: E) -> None:
        with self._lock:
            if self._is_cancelled:
                return
            is_full = len(self._events) >= self._limit
            if is_full:
                self._events.popleft()
                self.dropped += 1
            self._events.append(event)
            starts, self._is_delivering = not self._is_delivering, True
        if is_full:
            _LOG.error("a subscriber blocks, its oldest event is dropped (%d so far)", self.dropped)
        if starts:
            try:
                threading.Thread(target=self._deliver, name="understudy-subscriber", daemon=True).start()
            except RuntimeError as error:
                # The machine has no thread left. The event stays queued for the next attempt.
                with self._lock:
                    self._is_delivering = False
                _LOG.error("no thread to tell a subscriber: %s", error)

    def _deliver(self) -> None:
        while True:
            with self._lock:
                if not self._events:
                    self._is_delivering = False
                    return
                event = self._events.popleft()
            try:
                self._callback(event)
            except (Exception, SystemExit):  # noqa: BLE001
                # The outermost frame of this thread: the next event is delivered all the same.
                _LOG.exception("a subscriber failed")


class Subscribers(Generic[E]):
    """The list. Thread-safe."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        if limit < 1:
            raise ValueError("limit ≥ 1 is needed")
        self._limit = limit
        self._lock = threading.Lock()
        # Re-entrant: a log handler that fires must not hang.
        self._order = threading.RLock()
        self._subscriptions: list[Subscription[E]] = []

    def subscribe(self, callback: Callable[[E], None]) -> Subscription[E]:
        """Have `callback` told of every event from now on, on a thread of its own."""
        subscription = Subscription(callback, self._limit, self._remove)
        with self._lock:
            self._subscriptions.append(subscription)
        return subscription

    def fire(self, event: E) -> None:
        """Tell every subscriber of this moment. Returns at once, whatever they do."""
        # One order for all, also when callbacks or several threads fire: queueing calls nobody, so nobody can block it.
        with self._order:
            with self._lock:
                subscriptions = list(self._subscriptions)
            for subscription in subscriptions:
                subscription._put(event)

    def _remove(self, subscription: Subscription[E]) -> None:
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
