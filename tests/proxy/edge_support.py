"""An edge on a free port with a backend of the test's choice, and a raw client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from generated.qdrant import qdrant_pb2
from server import config
from server.clock import SystemClock
from server.edge import Edge
from server.rpc import Backend, Call, Reply
from server.telemetry import Telemetry

CLOCK = SystemClock()
HEALTH_REPLY = qdrant_pb2.HealthCheckReply(title="understudy", version="1.19.0").SerializeToString()
PLAIN = [
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 65536),
]


class Answering:
    """A backend made of one function."""

    def __init__(self, answer: Callable[[Call], Awaitable[Reply]]) -> None:
        self._answer = answer

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        return await self._answer(call)


class Hanging:
    """A backend that never answers, and tells when a call came and when it was cancelled."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Reply()


class LogRecorder:
    """Keeps what is logged as errors."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        """See structlog."""
        self.errors.append((event, fields))


def make_edge(
    backend: Backend,
    settings: config.Edge | None = None,
    *,
    listen: str = "127.0.0.1:0",
    telemetry: Telemetry | None = None,
    health_reply: Callable[[], bytes] = lambda: HEALTH_REPLY,
) -> Edge:
    """An edge that is not started."""
    return Edge(
        backend,
        settings or config.Edge(),
        listen,
        CLOCK,
        telemetry or Telemetry.silent(),
        health_reply=health_reply,
    )


@asynccontextmanager
async def serving(
    backend: Backend, settings: config.Edge | None = None, **more: Any
) -> AsyncIterator[tuple[Edge, str]]:
    """An edge that serves, and its HOST:PORT."""
    edge = make_edge(backend, settings, **more)
    host, port = await edge.start()
    try:
        yield edge, f"{host}:{port}"
    finally:
        await edge.stop(0)


@asynccontextmanager
async def client(address: str, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A plain channel."""
    async with grpc.aio.insecure_channel(address, options=PLAIN, **options) as channel:
        yield channel


async def failing(call: Awaitable[bytes]) -> grpc.aio.AioRpcError:
    """The error of a call that must fail."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")
