"""The proxy's end of the connection to its replica process: many calls at once over one socket.

Promises: each call gets the answer to it, or UpstreamUnreachable once the connection is gone; a call whose caller gives
up is taken back. Nothing is repeated, and deadlines are the caller's. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

from google.protobuf.message import DecodeError

from generated.understudy.replica.v1 import wire_pb2
from server.errors import UpstreamUnreachable
from server.replica.wire import Frames, packed, unpacked
from server.rpc import GRPC_HEALTH_CHECK, Call, Code, Reply


class Asking:
    """A `rpc.Backend`: the way to one replica process. `gone` is set once nothing can be asked any more."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self._frames = Frames(self._answered, self._ended)
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._reason = ""

    @classmethod
    async def connect(cls, socket: Path) -> Asking:
        """Raises OSError when nobody listens there."""
        asking = cls()
        await asyncio.get_running_loop().create_unix_connection(lambda: asking._frames, str(socket))
        return asking

    async def handle(self, call: Call) -> Reply:
        """See Backend. The deadline is not looked at."""
        number = next(self._numbers)
        if self.gone.is_set() or not self._frames.is_open:
            raise UpstreamUnreachable(f"replica: {self._reason or 'not connected'}", maybe_applied=False)
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        question = wire_pb2.Question(number=number, method=call.method, metadata=packed(call.metadata))
        try:
            await self._frames.send(question.SerializeToString(), call.body)
            return await answer
        except asyncio.CancelledError:
            self._frames.put(wire_pb2.Question(number=number, given_up=True).SerializeToString())
            raise
        finally:
            self._waiting.pop(number, None)

    async def is_there(self, timeout_seconds: float) -> bool:
        """Whether the process answers in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return (await self.handle(Call(GRPC_HEALTH_CHECK, b""))).is_ok
        except (TimeoutError, UpstreamUnreachable):
            return False

    def close(self) -> None:
        """Give up what is in flight. Final."""
        self._end("closed by Understudy")
        self._frames.abort()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _answered(self, head: bytes, body: bytes) -> None:
        try:
            answer = wire_pb2.Answer.FromString(head)
        except DecodeError:
            self._end("what it says is no answer")
            self._frames.abort()
            return
        waiting = self._waiting.get(answer.number)
        # Whoever gave up may still be answered.
        if waiting is not None and not waiting.done():
            waiting.set_result(Reply(body, Code(answer.code), answer.details, trailers=unpacked(answer.trailers)))

    def _ended(self) -> None:
        self._end("the connection ended")

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self.gone.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(UpstreamUnreachable(f"replica: {self._reason}", maybe_applied=True))
                # Whoever waits may be giving up at this very moment: then nobody looks, and that is no error.
                waiting.exception()
