"""The edge carries calls both ways unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from server import config
from server.edge import MAX_PREPARED_METHODS, server_options, status_of
from server.errors import (
    AddressInUse,
    EntryRefused,
    ReplicaUnavailable,
    UnderstudyError,
    UpstreamTimeout,
    UpstreamUnreachable,
    WalFull,
    WalLatched,
)
from server.rpc import HEALTH_CHECK, METHODS, Call, Code, Reply, refuse
from server.telemetry import Telemetry
from server.upstream import Upstream
from tests.faults.backends import RecordingBackend
from tests.faults.grpc_peer import ECHO, HANG, SAY, GrpcPeer, rounded_up
from tests.faults.tcp_toxics import TcpToxics
from tests.proxy.edge_support import CLOCK, HEALTH_REPLY, Answering, Hanging, LogRecorder, client, failing, serving

UPSERT = "/qdrant.Points/Upsert"


async def echo(call: Call) -> Reply:
    """The request as the answer."""
    return Reply(call.body)


@pytest.fixture
async def peer() -> AsyncIterator[GrpcPeer]:
    async with GrpcPeer() as peer:
        yield peer


# --- in --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "/qdrant.Points/FromTheFuture", "/other.Service/Method"])
async def test_every_method_reaches_the_backend_but_the_health_check(method: str) -> None:
    backend = RecordingBackend(reply=Reply(b"answer"))
    async with serving(backend) as (_, address), client(address) as channel:
        answer = await channel.unary_unary(method)(b"\x00raw\xff")
    if method == HEALTH_CHECK:
        assert answer == HEALTH_REPLY
        assert not backend.calls
    else:
        assert answer == b"answer"
        assert [(call.method, call.body) for call in backend.calls] == [(method, b"\x00raw\xff")]


async def test_metadata_and_deadline_arrive() -> None:
    backend = RecordingBackend()
    sent = (("api-key", "secret"), ("x-blob-bin", b"\x00\xff"), ("x-twice", "1"), ("x-twice", "2"))
    async with serving(backend) as (_, address), client(address) as channel:
        await channel.unary_unary(UPSERT)(b"", metadata=sent, timeout=100)
        await channel.unary_unary(UPSERT)(b"")
    limited, unlimited = backend.calls
    assert [pair for pair in limited.metadata if pair[0] != "user-agent"] == list(sent)
    assert limited.deadline is not None
    assert 0 < limited.deadline - CLOCK.monotonic() <= rounded_up(100)
    assert unlimited.deadline is None


async def test_the_clients_cancellation_reaches_the_backend() -> None:
    hanging = Hanging()
    async with serving(hanging) as (_, address), client(address) as channel:
        call = channel.unary_unary(UPSERT)(b"")
        await hanging.entered.wait()
        call.cancel()
        await hanging.cancelled.wait()
        hanging.cancelled.clear()
        error = await failing(channel.unary_unary(UPSERT)(b"", timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await hanging.cancelled.wait()


async def test_many_calls_run_at_once() -> None:
    everyone_in = asyncio.Barrier(100)

    async def meet(call: Call) -> Reply:
        await everyone_in.wait()
        return Reply(call.body)

    async with serving(Answering(meet)) as (_, address), client(address) as channel:
        method = channel.unary_unary(UPSERT)
        bodies = [str(number).encode() for number in range(100)]
        assert await asyncio.gather(*(method(body) for body in bodies)) == bodies


async def test_a_flood_of_method_names_is_served_and_not_remembered() -> None:
    async with serving(RecordingBackend(reply=Reply(b"x"))) as (_, address), client(address) as channel:
        for number in range(MAX_PREPARED_METHODS + 10):
            assert await channel.unary_unary(f"/x.Y/M{number}")(b"") == b"x"


# --- out -------------------------------------------------------------------------------------------------------------


async def test_initial_metadata_and_trailers_are_sent() -> None:
    reply = Reply(
        b"body", initial=(("x-i", "1"), ("x-i-bin", b"\x00\xff")), trailers=(("x-t", "2"), ("x-t-bin", b"\xfe"))
    )
    async with serving(RecordingBackend(reply=reply)) as (_, address), client(address) as channel:
        call = channel.unary_unary(UPSERT)(b"")
        assert await call == b"body"
        assert tuple(await call.initial_metadata()) == reply.initial
        assert tuple(await call.trailing_metadata()) == reply.trailers


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
async def test_every_status_with_text_and_trailers(code: Code) -> None:
    details = "Not found: Collection `größe` doesn't exist!"
    reply = Reply(
        code=code, details=details, initial=(("x-i", "1"),), trailers=(("retry-after", "3"), ("x-b-bin", b"\xff"))
    )
    async with serving(RecordingBackend(reply=reply)) as (_, address), client(address) as channel:
        error = await failing(channel.unary_unary(UPSERT)(b""))
    assert error.code().value[0] == code
    assert error.details() == details
    assert tuple(error.trailing_metadata() or ()) == reply.trailers
    assert tuple(error.initial_metadata() or ()) == reply.initial


async def test_a_status_without_text() -> None:
    async with serving(RecordingBackend(reply=refuse(Code.NOT_FOUND, ""))) as (_, address), client(address) as channel:
        error = await failing(channel.unary_unary(UPSERT)(b""))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert not error.details()


async def test_big_messages_both_ways() -> None:
    body = bytes(range(256)) * (20 * 4096)
    async with serving(Answering(echo)) as (_, address), client(address) as channel:
        assert await channel.unary_unary(UPSERT)(body) == body


async def test_the_limit_of_messages() -> None:
    settings = config.Edge(max_message_bytes=1000)
    async with serving(Answering(echo), settings) as (_, address), client(address) as channel:
        assert await channel.unary_unary(UPSERT)(b"x" * 1000) == b"x" * 1000
        error = await failing(channel.unary_unary(UPSERT)(b"x" * 1001))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("setting", list(config.Compression))
async def test_compressed_requests(algorithm: grpc.Compression, setting: config.Compression) -> None:
    backend = RecordingBackend(Answering(echo))
    body = b"compressible" * 10_000
    async with (
        serving(backend, config.Edge(compression=setting)) as (_, address),
        client(address, compression=algorithm) as channel,
    ):
        assert await channel.unary_unary(UPSERT)(body) == body
    assert backend.calls[0].body == body


@pytest.mark.parametrize(("setting", "is_small"), [(config.Compression.NONE, False), (config.Compression.GZIP, True)])
async def test_compression_of_answers(setting: config.Compression, is_small: bool) -> None:
    body = b"compressible" * 10_000
    async with serving(Answering(echo), config.Edge(compression=setting)) as (_, address):
        host, port = address.split(":")
        async with TcpToxics(host, int(port)) as wire, client(wire.address) as channel:
            assert await channel.unary_unary(UPSERT)(body) == body
            assert (wire.bytes_back < len(body) / 10) is is_small


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UpstreamUnreachable("no connection", maybe_applied=False), Code.UNAVAILABLE),
        (UpstreamTimeout("silent", maybe_applied=True), Code.DEADLINE_EXCEEDED),
        (ReplicaUnavailable("restarting"), Code.UNAVAILABLE),
        (WalFull("4 GB"), Code.RESOURCE_EXHAUSTED),
        (WalLatched("fsync failed"), Code.UNAVAILABLE),
        (EntryRefused("11 MB"), Code.RESOURCE_EXHAUSTED),
        (UnderstudyError("something"), Code.UNAVAILABLE),
        (AddressInUse("any other"), Code.UNAVAILABLE),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else one.name,
)
async def test_errors_of_ours_keep_their_text(error: UnderstudyError, code: Code) -> None:
    async def fail(call: Call) -> Reply:
        raise error

    assert status_of(error) is code
    telemetry, log = Telemetry.silent(), LogRecorder()
    telemetry.log = log  # type: ignore[assignment]
    async with serving(Answering(fail), telemetry=telemetry) as (_, address), client(address) as channel:
        seen = await failing(channel.unary_unary(UPSERT)(b""))
    assert seen.code().value[0] == code
    assert seen.details() == str(error)
    assert not log.errors


async def test_any_other_error_is_logged_and_not_shown() -> None:
    async def fail(call: Call) -> Reply:
        raise KeyError("a secret of the payload")

    telemetry, log = Telemetry.silent(), LogRecorder()
    telemetry.log = log  # type: ignore[assignment]
    async with serving(Answering(fail), telemetry=telemetry) as (_, address), client(address) as channel:
        error = await failing(channel.unary_unary(UPSERT)(b""))
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        assert not error.trailing_metadata()
        # And the edge lives.
        await failing(channel.unary_unary(UPSERT)(b""))
    assert len(log.errors) == 2
    _, fields = log.errors[0]
    assert fields["method"] == UPSERT
    assert isinstance(fields["exc_info"], KeyError)
    assert fields["exc_info"].__traceback__ is not None


# --- the whole way: client → edge → upstream → peer -------------------------------------------------------------------


async def test_edge_and_upstream_together_are_transparent(peer: GrpcPeer) -> None:
    upstream = Upstream(peer.address, clock=CLOCK)
    sent = (("api-key", "secret"), ("x-blob-bin", b"\x00\xff"))
    async with client(peer.address) as direct, serving(upstream) as (_, address), client(address) as proxied:
        answers = []
        for channel in (direct, proxied):
            call = channel.unary_unary(ECHO)(b"body", metadata=sent)
            body = await call
            trailers = [pair for pair in await call.trailing_metadata() if pair[0] != "got-user-agent"]
            answers.append((body, tuple(await call.initial_metadata()), trailers))
        assert answers[0] == answers[1]
        errors = []
        for channel in (direct, proxied):
            for body in (b"14\nshard missing\nretry-after=3", b"8\nslow down", b"5\n"):
                error = await failing(channel.unary_unary(SAY)(body))
                errors.append((error.code(), error.details(), tuple(error.trailing_metadata() or ())))
            error = await failing(channel.unary_unary("/no.Such/Method")(b""))
            errors.append((error.code(), error.details(), ()))
        assert errors[:4] == errors[4:]
    await upstream.close()


async def test_long_metadata_and_long_error_texts_pass(peer: GrpcPeer) -> None:
    # More than gRPC's default of 8 kB, which refuses some calls and not others: hence the repetition.
    token, text = "t" * 12_000, "e" * 12_000
    upstream = Upstream(peer.address, clock=CLOCK)
    async with serving(upstream) as (_, address), client(address) as channel:
        for _ in range(20):
            call = channel.unary_unary(ECHO)(b"body", metadata=(("authorization", token),))
            assert await call == b"body"
            assert dict(await call.trailing_metadata())["got-authorization"] == token
            error = await failing(channel.unary_unary(SAY)(f"3\n{text}".encode()))
            assert error.details() == text
    await upstream.close()


async def test_the_deadline_of_the_client_is_the_deadline_at_the_peer(peer: GrpcPeer) -> None:
    upstream = Upstream(peer.address, clock=CLOCK)
    async with serving(upstream) as (_, address), client(address) as channel:
        call = channel.unary_unary(ECHO)(b"", timeout=50)
        await call
        remaining = float(dict(await call.trailing_metadata())["x-deadline"])
        assert 0 < remaining <= rounded_up(rounded_up(50))  # two hops
        error = await failing(channel.unary_unary(HANG)(b"", timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await peer.saw("hang cancelled")
    await upstream.close()


def test_server_options() -> None:
    options = dict(server_options(-1))
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.min_ping_interval_without_data_ms"] <= 5000
    assert options["grpc.http2.max_ping_strikes"] == 0
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == -1
