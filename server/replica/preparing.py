"""Writes that are prepared at the same time share one call to the replica.

Promises: at most one such call is under way; those that come meanwhile go with the next one, in the order in which they
came, as many as the limits allow. Each is answered, refused or failed by itself, and one whose caller gave up takes
nobody with it. Does not try again. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from generated.understudy.replica.v1 import replica_pb2 as control
from server.errors import ReplicaUnavailable, UnderstudyError

Send = Callable[[control.PrepareGroupRequest], Awaitable[control.PrepareGroupResponse]]


@dataclass(frozen=True, slots=True)
class _Place:
    """One write that waits."""

    request: control.PrepareRequest
    size_bytes: int
    answer: asyncio.Future[control.PrepareResponse]


class Preparing:
    """The queue in front of the replica. `send` makes one call; it raises ReplicaUnavailable or ReplicaRefused."""

    def __init__(self, send: Send, *, group_entries: int, group_bytes: int) -> None:
        self._send = send
        self._group_entries = group_entries
        self._group_bytes = group_bytes
        self._waiting: deque[_Place] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def prepare(self, request: control.PrepareRequest) -> control.PrepareResponse:
        """The answer to one write. Raises what `send` raises, and ReplicaUnavailable when it failed at this one."""
        answer: asyncio.Future[control.PrepareResponse] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Place(request, request.ByteSize(), answer))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all(), name="prepare")
        return await answer

    async def _send_all(self) -> None:
        try:
            while group := self._next_group():
                await self._send_group(group)
        finally:
            _give_up(self._waiting, ReplicaUnavailable("no more writes are prepared"))
            self._waiting.clear()

    def _next_group(self) -> list[_Place]:
        """From the front, at least one if any is still wanted."""
        group: list[_Place] = []
        size_bytes = 0
        while self._waiting and len(group) < self._group_entries:
            place = self._waiting[0]
            if not place.answer.done():
                size_bytes += place.size_bytes
                if group and size_bytes > self._group_bytes:
                    break
                group.append(place)
            self._waiting.popleft()
        return group

    async def _send_group(self, group: list[_Place]) -> None:
        request = control.PrepareGroupRequest(requests=[place.request for place in group])
        try:
            for place, response in zip(group, (await self._send(request)).responses, strict=False):
                if place.answer.done():
                    continue
                if response.failed:
                    _give_up([place], ReplicaUnavailable(f"the replica failed at Prepare: {response.details}"))
                else:
                    place.answer.set_result(response)
        except UnderstudyError as error:
            _give_up(group, error)
        finally:
            _give_up(group, ReplicaUnavailable("the replica did not answer for this write"))


def _give_up(places: Iterable[_Place], error: UnderstudyError) -> None:
    """Tell those who still wait."""
    for place in places:
        if not place.answer.done():
            place.answer.set_exception(error)
            # Its caller may be gone at this very moment, with all of this process's work: that is no error of ours.
            place.answer.exception()
