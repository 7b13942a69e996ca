"""An asyncio event loop on a virtual clock, and processes that can die on it.

Promises: callbacks run in the order in which asyncio runs them; when nothing is ready, time jumps to the next timer.
What a `Life` scheduled never runs again once it has ended: no `finally`, no `except`, as after a kill -9. Work for
threads is done on the loop, after a delay. No set iterates in the order of addresses: tasks and futures hash by number.
Does not promise signals, sockets or subprocesses: there are none here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from server.wal.runner import Work

_LIFE: contextvars.ContextVar[Life] = contextvars.ContextVar("life")
START_NS = 1_700_000_000_000_000_000


class Stuck(Exception):
    """Nothing is ready and no timer is set, but somebody still waits."""


class Gone(BaseException):
    """Unwinds a process that has died in the middle of a call."""


class Life:
    """One process from its start to its death. What runs in its context belongs to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.context = contextvars.copy_context()
        self.context.run(_LIFE.set, self)
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = 64

    def note(self, task: asyncio.Task[Any]) -> None:
        """A task of this life."""
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._tasks = [each for each in self._tasks if not each.done()]
            self._prune_at = 2 * len(self._tasks) + 64

    def end(self) -> None:
        """From here on nothing of it runs."""
        self.is_alive = False

    def bury(self) -> None:
        """Take apart what the dead left waiting; nothing that it still does reaches anyone."""
        assert not self.is_alive
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                self.context.copy().run(_unwind, task.get_coro())
        self._tasks.clear()


def _unwind(coroutine: Any) -> None:
    """Throw it out of every place where it waits, until it is over."""
    for _ in range(10_000):
        try:
            coroutine.throw(Gone("buried"))
        except (StopIteration, Gone):
            return
        except Exception:  # noqa: BLE001 - it is dead: what goes wrong inside it reaches nobody
            return
    raise AssertionError(f"{coroutine} does not end")


class _Numbered:
    _numbers = itertools.count(1)

    def __hash__(self) -> int:
        return self._number


class Task(_Numbered, asyncio.Task):  # type: ignore[type-arg]
    """A task whose hash is its number."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self._number = next(_Numbered._numbers)
        super().__init__(*args, **more)


class Future(_Numbered, asyncio.Future):  # type: ignore[type-arg]
    """A future whose hash is its number."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self._number = next(_Numbered._numbers)
        super().__init__(*args, **more)


class Handle:
    """A callback that may be cancelled."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "life", "time")

    def __init__(
        self, time: float, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.time = time
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context
        self.life = context.get(_LIFE)
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.time


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. `on_still` is called whenever nothing is ready, before time moves."""

    def __init__(self, chance: random.Random) -> None:
        self.now = 1000.0
        self.turns = 0
        self.wall_offset_ns = 0
        self.on_still: Callable[[], None] = _nothing
        self.on_gone: Callable[[Life], None] = _ignore
        # What a thread's work takes: given by the world, which may make it slow.
        self.thread_seconds: Callable[[], float] = lambda: chance.uniform(0.0001, 0.002)
        self.unhandled: list[dict[str, Any]] = []
        self.outside = contextvars.copy_context()
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._order = itertools.count()
        self._closed = False
        _Numbered._numbers = itertools.count(1)

    # --- clocks: `server.clock.Clock` --------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; may jump."""
        return START_NS + round((self.now - 1000.0) * 1e9) + self.wall_offset_ns

    def time(self) -> float:
        return self.now

    # --- scheduling --------------------------------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        handle = Handle(self.now, callback, args, contextvars.copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        handle = Handle(when, callback, args, contextvars.copy_context() if context is None else context)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Handle:
        return self.call_at(self.now + max(0.0, delay), callback, *args, context=context)

    def create_future(self) -> Future:
        return Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> Task:
        context = contextvars.copy_context() if context is None else context
        task = Task(coro, loop=self, name=name, context=context)
        life = context.get(_LIFE)
        if life is not None:
            life.note(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Future:  # type: ignore[override]
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Gone:
                raise
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits, as a thread pool does
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.call_later(self.thread_seconds(), work)
        return future

    async def sleep(self, seconds: float) -> None:
        """Until so much virtual time has passed."""
        await asyncio.sleep(seconds)

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Until `main` has ended; its result."""
        task = self.create_task(main)
        with self.entered():
            while not task.done():
                self._turn()
        return task.result()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Inside, this is the running loop."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def _turn(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            self.on_still()
        if not ready:
            while timers and (timers[0][2].is_cancelled or _is_dead(timers[0][2])):
                heapq.heappop(timers)
            if not timers:
                raise Stuck(f"nothing is left to happen at {self.now - 1000.0:.3f} s")
            self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            self._run_one(ready.popleft())

    def _run_one(self, handle: Handle) -> None:
        callback = handle.callback
        if callback is None or _is_dead(handle):
            return
        self.turns += 1
        try:
            handle.context.run(callback, *handle.args)
        except Gone:
            assert handle.life is not None
        except Exception as error:  # noqa: BLE001 - as asyncio's loop does; the world fails the run for it
            self.call_exception_handler({"message": f"in {callback!r}", "exception": error})
        life = handle.life
        if life is not None and not life.is_alive:
            self.outside.copy().run(self.on_gone, life)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.unhandled.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.unhandled.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def _timer_handle_cancelled(self, handle: object) -> None:
        """Nothing: cancelled timers are passed over."""

    async def shutdown_asyncgens(self) -> None:
        """There is nothing to wait for."""


def _is_dead(handle: Handle) -> bool:
    return handle.life is not None and not handle.life.is_alive


def _nothing() -> None:
    """What happens when nobody watches."""


def _ignore(_life: Life) -> None:
    """What happens to the dead when nobody looks after them."""


class LoopRunner:
    """`server.wal.runner.Runner` on a virtual loop: one batch at a time, each after as long as a disk takes."""

    def __init__(self, loop: VirtualLoop, disk_seconds: Callable[[], float]) -> None:
        self._loop = loop
        self._disk_seconds = disk_seconds
        self._waiting: list[Any] = []
        self._is_due = False
        self._has_stopped = False
        self._timer: Handle | None = None
        self._work: Work[Any, Any]

    def start(self, work: Work[Any, Any]) -> None:
        self._work = work

    def put(self, commands: Any) -> None:
        self._waiting.extend(commands)
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(self._disk_seconds(), self._go)

    def tell(self, news: Any) -> None:
        self._loop.call_soon(self._work.hear, news)

    async def join(self) -> None:
        assert self._has_stopped

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._has_stopped:
            return
        cut = next((at + 1 for at, each in enumerate(self._waiting) if self._work.is_last(each)), len(self._waiting))
        batch, self._waiting = self._waiting[:cut], self._waiting[cut:]
        self._is_due = False
        if not self._work.step(batch):
            self._has_stopped = True
            return
        wait = self._work.wait_seconds()
        if self._waiting:
            self._is_due = True
            self._loop.call_later(self._disk_seconds(), self._go)
        elif wait is not None:
            self._timer = self._loop.call_later(wait, self._go)
