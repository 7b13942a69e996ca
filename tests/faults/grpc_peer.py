"""A small gRPC server in its own process, to be killed, frozen and asked to misbehave.

`GrpcPeer` is the test's side; `python -m tests.faults.grpc_peer` the server. It says on stdout what it does, a line per
event, so that a test waits for `peer.saw("hang")` and not for time. Methods of `/peer.Test/`:
Echo sends back body and metadata, Say answers with a status, Hang never answers. Also `grpc.health.v1` (unless
`health=False`) and Qdrant's HealthCheck.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType

import grpc
import grpc.aio

from generated.qdrant import qdrant_pb2

ROOT = Path(__file__).resolve().parents[2]

ECHO = "/peer.Test/Echo"
SAY = "/peer.Test/Say"
HANG = "/peer.Test/Hang"
SET_HEALTH = "/peer.Test/SetHealth"
SERVING = b"\x08\x01"
NOT_SERVING = b"\x08\x02"
VERSION = "9.8.7"


def rounded_up(seconds: float) -> float:
    """The most that a deadline of so many seconds (10 or more) may be after one hop: gRPC rounds what it sends up."""
    return seconds * 1.01


class GrpcPeer:
    """`async with GrpcPeer() as peer`. Restarting keeps the port."""

    def __init__(self, *, health: bool = True, listen: str = "127.0.0.1:0") -> None:
        self.address = listen
        self._arguments = [] if health else ["--no-health"]
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._seen: Counter[str] = Counter()
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Start it; returns when it listens."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.grpc_peer", self.address, *self._arguments),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode().strip()
        assert line.startswith("listening "), f"the peer did not start: {line!r}"
        self.address = line.removeprefix("listening ")
        self._reader = asyncio.create_task(self._read(self._process.stdout))

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None and self._reader is not None:
            process, self._process = self._process, None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await self._reader

    async def terminate(self) -> None:
        """SIGTERM: it stops with GOAWAY and ends calls in flight; wait for the end."""
        assert self._process is not None
        process, self._process = self._process, None
        process.terminate()
        await process.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def saw(self, event: str, times: int = 1) -> None:
        """Wait until it has said this so often, since it was first started."""
        while self._seen[event] < times:
            self._news.clear()
            await self._news.wait()

    def count(self, event: str) -> int:
        """How often it has said this."""
        return self._seen[event]

    async def __aenter__(self) -> GrpcPeer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def _read(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            self._seen[line.decode().strip()] += 1
            self._news.set()


# --- the server ------------------------------------------------------------------------------------------------------


def _say(event: str) -> None:
    print(event, flush=True)


class _Peer(grpc.GenericRpcHandler):
    def __init__(self, has_health: bool) -> None:
        self._health = SERVING
        self._methods = {ECHO: self._echo, SAY: self._status, HANG: self._hang, SET_HEALTH: self._set_health}
        self._methods["/qdrant.Qdrant/HealthCheck"] = self._health_check
        if has_health:
            self._methods["/grpc.health.v1.Health/Check"] = self._check

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        behaviour = self._methods.get(details.method)
        return None if behaviour is None else grpc.unary_unary_rpc_method_handler(behaviour)

    async def _echo(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        _say("echo")
        metadata = tuple((f"got-{key}", value) for key, value in context.invocation_metadata())
        remaining = context.time_remaining()
        await context.send_initial_metadata((("x-initial", "first"), ("x-initial-bin", b"\x00\xff")))
        context.set_trailing_metadata((*metadata, ("x-deadline", "none" if remaining is None else f"{remaining:.3f}")))
        return body

    async def _status(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Body: CODE NUMBER, details, and trailers as `key=value`, one a line."""
        number, details, *trailers = body.decode().split("\n")
        pairs = tuple(tuple(line.split("=", 1)) for line in trailers)
        status = next(one for one in grpc.StatusCode if one.value[0] == int(number))
        await context.abort(status, details, pairs)

    async def _hang(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        _say("hang")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            _say("hang cancelled")
            raise
        return b""

    async def _set_health(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self._health = body
        return b""

    async def _check(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        _say("check")
        return self._health

    async def _health_check(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        _say("health check")
        return qdrant_pb2.HealthCheckReply(title="peer", version=VERSION).SerializeToString()


async def _serve(address: str, has_health: bool) -> None:
    server = grpc.aio.server(
        handlers=(_Peer(has_health),),
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_metadata_size", 65536),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.max_ping_strikes", 0),
        ],
    )
    port = server.add_insecure_port(address)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    _say(f"listening {address}" if address.startswith("unix:") else f"listening 127.0.0.1:{port}")
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], "--no-health" not in sys.argv))
