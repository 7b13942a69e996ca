"""Metadata on its whole way: raw HTTP/2 → edge → upstream → peer, and back."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest

from server.rpc import Call, Reply
from server.upstream import Upstream
from tests.faults.grpc_peer import ECHO, GrpcPeer
from tests.proxy.edge_support import CLOCK, Answering, client, failing, serving
from tests.proxy.test_upstream_faults import frame, raw_peer

# A name in latin-1 and in UTF-8, a tab, and DEL: as clients in other languages and load balancers send them.
ODD = (b"Jos\xe9", "José".encode(), b"a\tb", b"\x7f")
_ENDS_STREAM, _ENDS_HEADERS = 1, 4


def headers(stream: int, flags: int, *pairs: tuple[bytes, bytes]) -> bytes:
    """HEADERS, each header as a literal without index."""
    block = b"".join(b"\x00" + bytes((len(key),)) + key + bytes((len(value),)) + value for key, value in pairs)
    return frame(1, flags | _ENDS_HEADERS, stream, block)


def message(body: bytes) -> bytes:
    """A message of gRPC, uncompressed."""
    return b"\0" + len(body).to_bytes(4, "big") + body


async def call_raw(address: str, body: bytes, *pairs: tuple[bytes, bytes]) -> bytes:
    """The DATA of the answer to one call of `ECHO`; a call that fails has none."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
    request = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", ECHO.encode()),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    writer.write(headers(1, 0, *request, *pairs) + frame(0, _ENDS_STREAM, 1, message(body)))
    data, ended = b"", False
    while not ended:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        if kind == 0:
            data += payload
        assert kind not in (3, 7), "the stream or the connection was given up"
        ended = stream == 1 and kind in (0, 1) and bool(flags & _ENDS_STREAM)
    writer.close()
    await writer.wait_closed()
    return data


@pytest.mark.parametrize("odd", ODD)
async def test_a_header_that_grpc_does_not_send_does_not_fail_the_call(odd: bytes) -> None:
    replies: list[Reply] = []

    async def forward(call: Call) -> Reply:
        replies.append(await upstream.handle(call))
        return replies[-1]

    async with GrpcPeer() as peer, serving(Answering(forward)) as (_, address):
        upstream = Upstream(peer.address, clock=CLOCK)
        pairs = ((b"x-plain", b" a~b "), (b"x-user", odd), (b"x-blob-bin", b"AP8"))
        assert await call_raw(address, b"body", *pairs) == message(b"body")
        await upstream.close()
    seen = dict(replies[0].trailers)
    assert (seen["got-x-plain"], seen["got-x-blob-bin"]) == (" a~b ", b"\x00\xff")
    assert "got-x-user" not in seen


@pytest.mark.parametrize("odd", ODD)
async def test_an_answer_with_such_a_header_arrives(odd: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter, stream: int) -> None:
        begin = ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"x-first", b"1"), (b"x-user", odd))
        writer.write(headers(stream, 0, *begin) + frame(0, 0, stream, message(b"answer")))
        writer.write(headers(stream, _ENDS_STREAM, (b"grpc-status", b"0"), (b"x-user", odd), (b"x-last", b"2")))

    async with raw_peer(answer) as peer_address:
        upstream = Upstream(peer_address, clock=CLOCK)
        async with serving(upstream) as (_, address), client(address) as channel:
            call = channel.unary_unary(ECHO)(b"")
            assert await call == b"answer"
            assert tuple(await call.initial_metadata()) == (("x-first", "1"),)
            assert tuple(await call.trailing_metadata()) == (("x-last", "2"),)
        await upstream.close()


# google.rpc.Status with a code and a text, as a proxy before Qdrant may send it; when to call again, in milliseconds.
_DETAILS, _PUSHBACK = b"\x08\x08\x12\x04slow", "700"


async def refuse_with_details(writer: asyncio.StreamWriter, stream: int) -> None:
    """RESOURCE_EXHAUSTED, at once, without any message."""
    status = ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"8"))
    more = (
        (b"grpc-message", b"slow down"),
        (b"grpc-status-details-bin", b64encode(_DETAILS).rstrip(b"=")),
        (b"grpc-retry-pushback-ms", _PUSHBACK.encode()),
    )
    writer.write(headers(stream, _ENDS_STREAM, *status, *more))


async def test_the_details_of_an_error_arrive() -> None:
    told = []
    async with raw_peer(refuse_with_details) as peer_address:
        upstream = Upstream(peer_address, clock=CLOCK)
        async with (
            serving(upstream) as (_, address),
            client(peer_address) as direct,
            client(address) as proxied,
        ):
            for channel in (direct, proxied):
                error = await failing(channel.unary_unary(ECHO)(b""))
                told.append((error.code(), error.details(), dict(error.trailing_metadata() or ())))
        await upstream.close()
    assert told[0] == told[1]
    assert told[1][2] == {"grpc-status-details-bin": _DETAILS, "grpc-retry-pushback-ms": _PUSHBACK}


async def test_the_details_of_a_success_and_the_number_of_tries_arrive() -> None:
    async def answer(call: Call) -> Reply:
        reply = await upstream.handle(call)
        return Reply(reply.body, trailers=(("grpc-status-details-bin", _DETAILS), *reply.trailers))

    async with GrpcPeer() as peer, serving(Answering(answer)) as (_, address):
        upstream = Upstream(peer.address, clock=CLOCK)
        async with client(address) as channel:
            call = channel.unary_unary(ECHO)(b"", metadata=(("grpc-previous-rpc-attempts", "2"),))
            await call
            trailers = dict(await call.trailing_metadata())
        await upstream.close()
    assert trailers["grpc-status-details-bin"] == _DETAILS
    assert trailers["got-grpc-previous-rpc-attempts"] == "2"
