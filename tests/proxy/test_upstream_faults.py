"""Upstream when the network or the peer breaks: real sockets, real signals, and raw HTTP/2 frames."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from server.clock import SystemClock
from server.errors import UpstreamTimeout, UpstreamUnreachable
from server.rpc import Call, Code, Reply
from server.upstream import Connectivity, Upstream
from tests.faults.grpc_peer import ECHO, HANG, GrpcPeer
from tests.faults.tcp_toxics import TcpToxics

CLOCK = SystemClock()


@pytest.fixture
async def peer() -> AsyncIterator[GrpcPeer]:
    async with GrpcPeer() as peer:
        yield peer


@asynccontextmanager
async def upstream_at(address: str) -> AsyncIterator[Upstream]:
    upstream = Upstream(address, clock=CLOCK)
    try:
        yield upstream
    finally:
        await upstream.close()


@asynccontextmanager
async def toxic(peer: GrpcPeer) -> AsyncIterator[tuple[Upstream, TcpToxics]]:
    host, port = peer.address.split(":")
    async with TcpToxics(host, int(port)) as toxics, upstream_at(toxics.address) as upstream:
        yield upstream, toxics


async def unreachable(upstream: Upstream, method: str = ECHO) -> UpstreamUnreachable:
    """The error of one call; it must not be a timeout of ours."""
    with pytest.raises(UpstreamUnreachable) as raised:
        await upstream.handle(Call(method, b"body", deadline=CLOCK.monotonic() + 60))
    assert not isinstance(raised.value, UpstreamTimeout)
    return raised.value


# --- nobody there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["127.0.0.1:1", "unix:/nonexistent/socket", "nosuch.invalid:1"])
async def test_nobody_there_means_not_sent(target: str) -> None:
    async with upstream_at(target) as upstream:
        assert not (await unreachable(upstream)).maybe_applied


async def test_a_connection_that_is_reset_before_the_handshake_means_not_sent() -> None:
    # Nobody behind the proxy: it accepts and resets.
    async with TcpToxics("127.0.0.1", 1) as toxics, upstream_at(toxics.address) as upstream:
        assert not (await unreachable(upstream)).maybe_applied


async def test_something_else_that_listens_means_not_sent() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with upstream_at(f"{host}:{port}") as upstream:
        assert not (await unreachable(upstream)).maybe_applied
    server.close()


async def test_tls_towards_plain_text_means_not_sent(peer: GrpcPeer) -> None:
    upstream = Upstream(peer.address, clock=CLOCK, secure=True)
    assert not (await unreachable(upstream)).maybe_applied
    await upstream.close()


# --- it goes away with calls in flight -------------------------------------------------------------------------------


async def test_sigkill_fails_every_call_in_flight_as_maybe_applied(peer: GrpcPeer) -> None:
    async with upstream_at(peer.address) as upstream:
        calls = [asyncio.ensure_future(unreachable(upstream, HANG)) for _ in range(20)]
        await peer.saw("hang", 20)
        await peer.kill()
        assert all(error.maybe_applied for error in await asyncio.gather(*calls))
        assert not (await unreachable(upstream)).maybe_applied
        # IDLE, in failure, or trying again by now.
        assert upstream.connectivity() is not Connectivity.READY
        # Back on the same port: the next calls get through without a new channel.
        await peer.start()
        state = upstream.connectivity()
        while state is not Connectivity.READY:
            upstream.connect()
            state = await upstream.wait_for_change(state)
        assert (await upstream.handle(Call(ECHO, b"back"))).body == b"back"


async def test_a_graceful_stop_fails_calls_in_flight_as_maybe_applied(peer: GrpcPeer) -> None:
    async with upstream_at(peer.address) as upstream:
        call = asyncio.ensure_future(unreachable(upstream, HANG))
        await peer.saw("hang")
        await peer.terminate()
        assert (await call).maybe_applied


async def test_a_stop_fails_calls_that_it_has_not_begun_as_well(peer: GrpcPeer) -> None:
    """A server of gRPC core says CANCELLED to those, which nobody had asked for."""
    async with upstream_at(peer.address) as upstream:

        async def call_on() -> UpstreamUnreachable:
            while True:
                try:
                    reply = await upstream.handle(Call(ECHO, b"body", deadline=CLOCK.monotonic() + 60))
                except UpstreamUnreachable as error:
                    return error
                assert reply.is_ok, reply

        calls = [asyncio.ensure_future(call_on()) for _ in range(40)]
        await peer.saw("echo", 200)
        await peer.terminate()
        assert not any(isinstance(error, UpstreamTimeout) for error in await asyncio.gather(*calls))


async def test_a_reset_connection_means_maybe_applied(peer: GrpcPeer) -> None:
    async with toxic(peer) as (upstream, toxics):
        call = asyncio.ensure_future(unreachable(upstream, HANG))
        await peer.saw("hang")
        await toxics.reset()
        assert (await call).maybe_applied


async def once_connected(upstream: Upstream, call: Call) -> Reply:
    async with asyncio.timeout(20):
        while True:
            try:
                return await upstream.handle(call)
            except UpstreamUnreachable:
                await asyncio.sleep(0)


async def test_a_response_that_is_lost_after_the_work_was_done_means_maybe_applied(peer: GrpcPeer) -> None:
    async with toxic(peer) as (upstream, toxics):
        assert (await upstream.handle(Call(ECHO, b"warm"))).is_ok
        toxics.cut_at_response()
        assert (await unreachable(upstream)).maybe_applied
        await peer.saw("echo", 2)
        await toxics.response_was_cut()
        # Never retried behind our back. The channel may take a moment to see that the old connection is gone; what is
        # sent into it breaks on our side and never gets there, so that the count below stays exact.
        assert (await once_connected(upstream, Call(ECHO, b"next"))).body == b"next"
        await peer.saw("echo", 3)
        assert peer.count("echo") == 3


# --- it is silent ----------------------------------------------------------------------------------------------------


async def test_a_black_hole_is_a_timeout_and_heals(peer: GrpcPeer) -> None:
    async with toxic(peer) as (upstream, toxics):
        assert (await upstream.handle(Call(ECHO, b"warm"))).is_ok
        toxics.black_hole(on=True)
        with pytest.raises(UpstreamTimeout) as raised:
            await upstream.handle(Call(ECHO, b"", deadline=CLOCK.monotonic() + 0.2))
        assert raised.value.maybe_applied
        toxics.black_hole(on=False)
        assert (await upstream.handle(Call(ECHO, b"healed"))).body == b"healed"


async def test_a_black_hole_from_the_start_is_a_timeout(peer: GrpcPeer) -> None:
    async with toxic(peer) as (upstream, toxics):
        toxics.black_hole(on=True)
        with pytest.raises(UpstreamTimeout):
            await upstream.handle(Call(ECHO, b"", deadline=CLOCK.monotonic() + 0.2))


async def test_slices_and_latency_change_nothing(peer: GrpcPeer) -> None:
    async with toxic(peer) as (upstream, toxics):
        toxics.slice(7)
        toxics.delay(0.005)
        body = bytes(range(256)) * 8
        assert (await upstream.handle(Call(ECHO, body))).body == body


# --- what an HTTP/2 peer may do that grpc's own server never does ----------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def headers(stream: int, *pairs: tuple[str, str]) -> bytes:
    """HEADERS that end the stream, each header as a literal without index."""
    block = b"".join(
        b"\x00" + bytes((len(key),)) + key.encode() + bytes((len(value),)) + value.encode() for key, value in pairs
    )
    return frame(1, 5, stream, block)


Act = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


def rst(code: int) -> Act:
    async def act(writer: asyncio.StreamWriter, stream: int) -> None:
        writer.write(frame(3, 0, stream, struct.pack(">I", code)))

    return act


def goaway(last_stream: int, code: int, text: bytes, *, closes: bool) -> Act:
    async def act(writer: asyncio.StreamWriter, stream: int) -> None:
        writer.write(frame(7, 0, 0, struct.pack(">II", last_stream, code) + text))
        if closes:
            await writer.drain()
            writer.close()

    return act


def answer(*pairs: tuple[str, str]) -> Act:
    async def act(writer: asyncio.StreamWriter, stream: int) -> None:
        writer.write(headers(stream, *pairs))

    return act


@asynccontextmanager
async def raw_peer(act: Act) -> AsyncIterator[str]:
    """An HTTP/2 server of a few lines that does `act` at the end of each request."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            await reader.readexactly(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
            writer.write(frame(4, 0, 0))
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind == 4 and not flags & 1:
                    writer.write(frame(4, 1, 0))
                elif kind == 6 and not flags & 1:
                    writer.write(frame(6, 1, 0, b"\0" * 8))
                elif kind == 0 and flags & 1:
                    await act(writer, stream)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


LOST = {
    "refused stream": rst(7),
    "cancelled stream": rst(8),
    "goaway, stream not taken": goaway(0, 0, b"bye", closes=False),
    "goaway, then closed": goaway(2**31 - 1, 0, b"bye", closes=True),
    "goaway, too many pings": goaway(1, 11, b"too_many_pings", closes=True),
    "a gateway's 502": answer((":status", "502"), ("content-type", "text/html")),
    "a gateway's 404": answer((":status", "404"), ("content-type", "text/html")),
    "Envoy without a backend": answer(
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "14"),
        ("grpc-message", "no healthy upstream"),
        ("server", "envoy"),
    ),
}


@pytest.mark.parametrize("act", LOST.values(), ids=LOST.keys())
async def test_lost(act: Act) -> None:
    async with raw_peer(act) as address, upstream_at(address) as upstream:
        assert (await unreachable(upstream)).maybe_applied


async def test_a_peer_that_kept_our_time_limit_for_us_is_a_timeout() -> None:
    act = answer(
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "1"),
        ("grpc-message", "Timeout expired"),
    )
    async with raw_peer(act) as address, upstream_at(address) as upstream:
        with pytest.raises(UpstreamTimeout):
            await upstream.handle(Call(ECHO, b""))


@pytest.mark.parametrize(("reset", "code"), [(1, Code.INTERNAL), (2, Code.INTERNAL), (11, Code.RESOURCE_EXHAUSTED)])
async def test_a_stream_that_crashed_on_a_connection_that_lives_is_the_peers_answer(reset: int, code: Code) -> None:
    async with raw_peer(rst(reset)) as address, upstream_at(address) as upstream:
        reply = await upstream.handle(Call(ECHO, b""))
        assert reply.code is code


@pytest.mark.parametrize("has_more", [False, True])
async def test_the_words_of_the_transport_with_trailers_are_the_peers(has_more: bool) -> None:
    act = answer(
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "14"),
        ("grpc-message", "failed to connect to all addresses"),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        *((("x-from", "shard"),) if has_more else ()),
    )
    async with raw_peer(act) as address, upstream_at(address) as upstream:
        reply = await upstream.handle(Call(ECHO, b""))
        assert reply.code is Code.UNAVAILABLE
        assert reply.trailers == ((("x-from", "shard"),) if has_more else ())
