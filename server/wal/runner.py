"""What drives the log's writer: a thread of its own.

Promises: batches are taken up one after the other, in the order in which they were put; `step` is never run twice at
once. What it tells is heard on the event loop, in that order. Knows nothing of what a command does.
"""

from __future__ import annotations

import asyncio
import collections
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

C = TypeVar("C")
N = TypeVar("N")


@dataclass(frozen=True, slots=True)
class Work(Generic[C, N]):
    """What a runner drives.

    `step` gets all that waits, up to a command that `is_last`, and nothing after `wait_seconds` of rest (None = there
    is no need to); False = that was the last batch. `hear` gets on the event loop what is told.
    """

    step: Callable[[list[C]], bool]
    hear: Callable[[N], None]
    wait_seconds: Callable[[], float | None]
    is_last: Callable[[C], bool]


class Runner(Protocol[C, N]):
    """Takes commands from the event loop to the writer, and its news back. `start` comes first, `join` last, each once.

    `tell` is the writer's; everything else belongs to one event loop.
    """

    def start(self, work: Work[C, N]) -> None:
        """Begin; stops when `step` says so."""
        ...

    def put(self, commands: Sequence[C]) -> None:
        """Hand commands over; returns at once. Nothing can be told before the first ones."""
        ...

    def tell(self, news: N) -> None:
        """Hand something back; returns at once."""
        ...

    async def join(self) -> None:
        """Wait until it has stopped."""
        ...


class ThreadRunner(Runner[C, N]):
    """See Runner: a daemon thread and a queue, and an eventfd for the way back.

    `call_soon_threadsafe` would do. Its socket costs a lone writer of the log one entry in ten.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Sequence[C]] = queue.SimpleQueue()
        self._news: collections.deque[N] = collections.deque()
        self._thread: threading.Thread | None = None
        self._hear: Callable[[N], None]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell = -1

    def start(self, work: Work[C, N]) -> None:
        """See Runner."""

        def run() -> None:
            while work.step(self._next_batch(work.wait_seconds(), work.is_last)):
                pass

        self._hear = work.hear
        self._thread = threading.Thread(target=run, name="understudy-wal", daemon=True)
        self._thread.start()

    def put(self, commands: Sequence[C]) -> None:
        """See Runner; the caller keeps the queue within its limits."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
            self._loop.add_reader(self._bell, self._rung)
        self._queue.put(commands)

    def tell(self, news: N) -> None:
        """See Runner."""
        self._news.append(news)
        os.eventfd_write(self._bell, 1)

    async def join(self) -> None:
        """See Runner."""
        assert self._thread is not None and self._loop is not None
        await asyncio.to_thread(self._thread.join)
        self._loop.remove_reader(self._bell)
        os.close(self._bell)

    def _rung(self) -> None:
        """Once for each of the news."""
        os.eventfd_read(self._bell)
        self._hear(self._news.popleft())

    def _next_batch(self, timeout: float | None, is_last: Callable[[C], bool]) -> list[C]:
        batch: list[C] = []
        try:
            batch.extend(self._queue.get(timeout=timeout))
            while not is_last(batch[-1]):
                batch.extend(self._queue.get_nowait())
        except queue.Empty:
            pass
        return batch
