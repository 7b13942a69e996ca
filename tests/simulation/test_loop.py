"""The virtual loop: time, threads, and what is left of a process that died."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.simulation.loop import Life, Stuck, VirtualLoop


def test_time_jumps_to_the_next_timer() -> None:
    loop = VirtualLoop(random.Random(1))
    seen: list[float] = []

    async def sleeper(seconds: float) -> None:
        await loop.sleep(seconds)
        seen.append(loop.monotonic() - 1000.0)

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.gather(sleeper(7200), sleeper(60), asyncio.to_thread(lambda: None))
        return loop.wall_ns()

    before = loop.wall_ns()
    assert loop.run(main()) - before == 3600 * 10**9
    assert seen == [60.0]


def test_the_dead_do_nothing_more() -> None:
    loop = VirtualLoop(random.Random(1))
    done: list[str] = []

    async def worker() -> None:
        try:
            await loop.sleep(5)
            done.append("after")
        finally:
            done.append("finally")
            await loop.sleep(1)
            done.append("cleaned up")

    async def main() -> None:
        life = loop.outside.copy().run(Life, "test")
        task = loop.create_task(worker(), context=life.context)
        loop.call_later(2, done.append, "timer", context=life.context.copy())
        await loop.sleep(1)
        life.end()
        await loop.sleep(10)
        assert not done and not task.done()
        life.bury()
        # Burying unwinds the coroutines; nothing that they still want comes about.
        assert done == ["finally"]
        await loop.sleep(10)
        assert done == ["finally"]

    loop.run(main())
    assert not loop.unhandled


def test_waiting_for_nothing_is_told() -> None:
    loop = VirtualLoop(random.Random(1))

    async def main() -> None:
        await loop.create_future()

    with pytest.raises(Stuck):
        loop.run(main())
