"""What drives the log's writer: a thread of its own.

Promises: batches are taken up one after the other, in the order in which they were put; `step` is never run twice at
once. Knows nothing of what a command does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

C = TypeVar("C")
# Carries a batch out, False = that was the last one.
Step = Callable[[list[C]], bool]


class Runner(Protocol[C]):
    """Takes commands from the event loop to the writer. `start` comes first, `join` last, each once."""

    def start(self, step: Step[C], *, wait_seconds: Callable[[], float | None], is_last: Callable[[C], bool]) -> None:
        """Call `step` with all that waits, up to a command that `is_last`; with nothing after `wait_seconds` of rest.

        `wait_seconds` None = there is no need to. Stops when `step` says so.
        """
        ...

    def put(self, commands: Sequence[C]) -> None:
        """Hand commands over; returns at once."""
        ...

    def join(self) -> None:
        """Wait until it has stopped."""
        ...


class ThreadRunner(Runner[C]):
    """See Runner: a daemon thread and a queue."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Sequence[C]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, step: Step[C], *, wait_seconds: Callable[[], float | None], is_last: Callable[[C], bool]) -> None:
        """See Runner."""

        def run() -> None:
            while step(self._next_batch(wait_seconds(), is_last)):
                pass

        self._thread = threading.Thread(target=run, name="understudy-wal", daemon=True)
        self._thread.start()

    def put(self, commands: Sequence[C]) -> None:
        """See Runner; the caller keeps the queue within its limits."""
        self._queue.put(commands)

    def join(self) -> None:
        """See Runner."""
        assert self._thread is not None
        self._thread.join()

    def _next_batch(self, timeout: float | None, is_last: Callable[[C], bool]) -> list[C]:
        batch: list[C] = []
        try:
            batch.extend(self._queue.get(timeout=timeout))
            while not is_last(batch[-1]):
                batch.extend(self._queue.get_nowait())
        except queue.Empty:
            pass
        return batch
