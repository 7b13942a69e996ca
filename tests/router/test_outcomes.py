"""Who waits for which open writes, and what it costs when there are many of both."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from server.outcomes import OpenWrites


async def waiting(writes: OpenWrites, seconds: float = 60.0) -> asyncio.Task[bool]:
    """Somebody who waits by now."""
    task = asyncio.create_task(writes.settled(seconds))
    await turns()
    return task


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_nothing_open_nothing_to_wait_for() -> None:
    assert await OpenWrites().settled(0.0)


async def test_only_the_writes_open_then_are_waited_for() -> None:
    writes, first, second, later = OpenWrites(), ExitStack(), ExitStack(), ExitStack()
    first.enter_context(writes.open())
    second.enter_context(writes.open())
    early = await waiting(writes)
    later.enter_context(writes.open())
    late = await waiting(writes)
    # Not in the order in which they were opened.
    second.close()
    await turns()
    assert not early.done()
    first.close()
    await turns()
    assert early.done()
    assert await early
    assert not late.done()
    later.close()
    assert await late


async def test_a_write_that_fails_is_closed_too() -> None:
    writes = OpenWrites()
    with pytest.raises(KeyError), writes.open():
        raise KeyError
    assert await writes.settled(0.0)


async def test_who_waited_long_enough_or_gave_up_is_forgotten() -> None:
    writes = OpenWrites()
    with writes.open():
        assert not await writes.settled(0.0)
        gone = await waiting(writes)
        stays = await waiting(writes)
        gone.cancel()
        await turns()
        assert len(writes._waiting) == 1
    assert await stays
    assert not writes._waiting


async def test_many_of_both_cost_no_more_than_each() -> None:
    """Turns of the event loop are counted, not time: one write that ends wakes nobody but those that it held up."""
    writes, opened = OpenWrites(), [ExitStack() for _ in range(300)]
    for one in opened:
        one.enter_context(writes.open())
    tasks = [asyncio.create_task(writes.settled(60.0)) for _ in range(300)]
    await turns()
    handles = 0
    loop = asyncio.get_running_loop()
    call_soon = loop.call_soon

    def counted(*arguments: object, **options: object) -> asyncio.Handle:
        nonlocal handles
        handles += 1
        return call_soon(*arguments, **options)  # type: ignore[arg-type]

    loop.call_soon = counted  # type: ignore[method-assign, assignment]
    try:
        for one in reversed(opened[1:]):
            one.close()
        await asyncio.sleep(0)
        # Only the first one holds everybody up.
        assert handles < 10
        opened[0].close()
        assert all(await asyncio.gather(*tasks))
    finally:
        del loop.call_soon  # type: ignore[method-assign]
