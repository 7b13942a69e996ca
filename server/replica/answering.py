"""The replica's end of the connection to its proxy.

Promises: every question is answered, in whatever order the answers are ready; a question that is given up is cancelled
if it has not got beyond the point where it may be. The event loop never waits for an answer that nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from generated.understudy.replica.v1 import wire_pb2
from server.replica.wire import Frames, packed, unpacked
from server.rpc import Backend, Call, Code, Reply, refuse

logger = logging.getLogger(__name__)


class Answering:
    """Serves a backend on a Unix socket."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self, socket: Path) -> None:
        """Serve. Raises OSError when the socket cannot be made."""
        self._server = await asyncio.get_running_loop().create_unix_server(self._connect, str(socket))

    async def stop(self, grace_seconds: float) -> None:
        """Take no more connections; questions that are being answered may be, within the grace."""
        if self._server is not None:
            self._server.close()
        tasks = [task for connection in self._connections for task in connection.tasks.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for connection in list(self._connections):
            connection.close()

    def _connect(self) -> Frames:
        connection = _Connection(self._backend, self._connections.discard)
        self._connections.add(connection)
        return connection.frames


class _Connection:
    """One proxy."""

    def __init__(self, backend: Backend, gone: Callable[[_Connection], None]) -> None:
        self.frames = Frames(self._asked, self._ended)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self._backend = backend
        self._gone = gone

    def close(self) -> None:
        """Give up what is being answered; answers that are ready still go."""
        self._cancel_all()
        self.frames.close()

    def _asked(self, head: bytes, body: bytes) -> None:
        try:
            question = wire_pb2.Question.FromString(head)
        except DecodeError:
            logger.error("what the proxy says is no question")
            self._cancel_all()
            self.frames.abort()
            return
        if question.given_up:
            task = self.tasks.get(question.number)
            if task is not None:
                task.cancel()
            return
        task = asyncio.get_running_loop().create_task(self._answer(question, body))
        self.tasks[question.number] = task
        task.add_done_callback(lambda _: self.tasks.pop(question.number, None))

    async def _answer(self, question: wire_pb2.Question, body: bytes) -> None:
        try:
            reply = await self._backend.handle(Call(question.method, body, unpacked(question.metadata)))
            await self.frames.send(_head(question.number, reply), reply.body)
        except Exception:  # the outermost frame of a call: whoever asked would wait for ever
            logger.exception("%s is not answered", question.method)
            failed = refuse(Code.INTERNAL, f"the replica failed to answer {question.method}; its log says why")
            await self.frames.send(_head(question.number, failed))

    def _ended(self) -> None:
        self._cancel_all()
        self._gone(self)

    def _cancel_all(self) -> None:
        for task in self.tasks.values():
            task.cancel()


def _head(number: int, reply: Reply) -> bytes:
    return wire_pb2.Answer(
        number=number, code=int(reply.code), details=reply.details, trailers=packed(reply.trailers)
    ).SerializeToString()
