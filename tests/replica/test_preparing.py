"""Writes share calls to the replica: how many, in which order, and who is told what."""

from __future__ import annotations

import asyncio

import pytest

from generated.understudy.replica.v1 import replica_pb2 as control
from server.errors import ReplicaRefused, ReplicaUnavailable, UnderstudyError
from server.replica.preparing import Preparing
from server.rpc import Code


class Replica:
    """Answers each write with its own name; calls wait until they are let go."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.error: UnderstudyError | None = None
        self.leaves_out = 0
        self.at_once = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()

    async def send(self, request: control.PrepareGroupRequest) -> control.PrepareGroupResponse:
        self.calls.append([each.method for each in request.requests])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.gate.wait()
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        answers = [
            control.PrepareResponse(details=each.method, failed=each.method == "fails") for each in request.requests
        ]
        return control.PrepareGroupResponse(responses=answers[: len(answers) - self.leaves_out])


def write(name: str, size_bytes: int = 0) -> control.PrepareRequest:
    return control.PrepareRequest(method=name, request=b"x" * size_bytes)


async def begun(preparing: Preparing, *requests: control.PrepareRequest) -> list[asyncio.Task[control.PrepareResponse]]:
    """The writes, each in a task of its own that waits by now."""
    tasks = [asyncio.create_task(preparing.prepare(request)) for request in requests]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def preparing(replica: Replica, group_entries: int = 100, group_bytes: int = 10_000) -> Preparing:
    return Preparing(replica.send, group_entries=group_entries, group_bytes=group_bytes)


async def test_those_that_come_during_a_call_go_as_one_with_the_next() -> None:
    replica = Replica()
    queue = preparing(replica)
    tasks = await begun(queue, write("a"))
    tasks += await begun(queue, write("b"), write("c"))
    tasks += await begun(queue, write("d"))
    assert replica.calls == [["a"]]
    replica.gate.set()
    assert [(await task).details for task in tasks] == ["a", "b", "c", "d"]
    assert replica.calls == [["a"], ["b", "c", "d"]]
    assert replica.most_at_once == 1
    assert (await queue.prepare(write("e"))).details == "e"


async def test_limits_of_a_group() -> None:
    replica = Replica()
    queue = preparing(replica, group_entries=2, group_bytes=100)
    tasks = await begun(queue, write("first"), *map(write, "abc"), write("large", 500), write("d", 40), write("e", 60))
    replica.gate.set()
    await asyncio.gather(*tasks)
    assert replica.calls == [["first", "a"], ["b", "c"], ["large"], ["d"], ["e"]]


async def test_one_that_fails_takes_nobody_with_it() -> None:
    replica = Replica()
    replica.gate.set()
    tasks = await begun(preparing(replica), write("a"), write("fails"), write("b"))
    first, failed, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, control.PrepareResponse)
    assert isinstance(last, control.PrepareResponse)
    assert (first.details, last.details) == ("a", "b")
    assert isinstance(failed, ReplicaUnavailable)
    assert "failed at Prepare" in str(failed)


@pytest.mark.parametrize(
    "error", [ReplicaUnavailable("away"), ReplicaRefused("no", code=Code.UNIMPLEMENTED, details="")]
)
async def test_a_call_that_fails_is_told_to_each_and_the_next_is_made(error: UnderstudyError) -> None:
    replica = Replica()
    replica.error = error
    queue = preparing(replica)
    tasks = await begun(queue, write("a"), write("b"))
    later = await begun(queue, write("c"))
    replica.gate.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [error, error]
    replica.error = None
    assert isinstance((await asyncio.gather(*later, return_exceptions=True))[0], type(error) | control.PrepareResponse)
    assert (await queue.prepare(write("d"))).details == "d"


async def test_who_gives_up_is_left_out_and_takes_nobody_with_it() -> None:
    replica = Replica()
    queue = preparing(replica)
    tasks = await begun(queue, write("a"), write("b"))
    waiting = await begun(queue, write("c"), write("d"))
    tasks[0].cancel()
    waiting[0].cancel()
    await asyncio.sleep(0)
    replica.gate.set()
    assert (await tasks[1]).details == "b"
    assert (await waiting[1]).details == "d"
    assert replica.calls == [["a", "b"], ["d"]]
    assert tasks[0].cancelled()
    assert waiting[0].cancelled()


async def test_a_write_without_an_answer_is_not_left_waiting() -> None:
    replica = Replica()
    replica.leaves_out = 1
    replica.gate.set()
    tasks = await begun(preparing(replica), write("a"), write("b"))
    first, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, control.PrepareResponse)
    assert isinstance(last, ReplicaUnavailable)
