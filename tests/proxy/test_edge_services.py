"""What the edge answers itself (health, reflection), and its life: start, TLS, keepalive, stop."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from server import config
from server import edge as edge_module
from server.edge import QDRANT_SERVICES, REFLECTION_SERVICES, parse_listen
from server.errors import AddressInUse, ConfigError
from server.rpc import HEALTH_CHECK, Call, Reply
from tests.faults.backends import RecordingBackend
from tests.proxy.edge_support import PLAIN, Answering, Hanging, client, failing, make_edge, serving

UPSERT = "/qdrant.Points/Upsert"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# --- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["", "grpc.health.v1.Health", *QDRANT_SERVICES])
async def test_health_check(service: str) -> None:
    async with serving(RecordingBackend()) as (edge, address), client(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await stub.Check(request)).status == SERVING
        edge.set_serving(False)
        assert (await stub.Check(request)).status == NOT_SERVING
        edge.set_serving(True)
        assert (await stub.Check(request)).status == SERVING


@pytest.mark.parametrize(
    ("service", "status"),
    [
        ("", NOT_SERVING),
        ("qdrant.Points", NOT_SERVING),
        ("qdrant.Collections", NOT_SERVING),
        ("understudy.writes", NOT_SERVING),
        ("understudy.reads", SERVING),
        ("qdrant.Qdrant", SERVING),
        ("qdrant.Snapshots", SERVING),
        ("grpc.health.v1.Health", SERVING),
    ],
)
async def test_health_while_no_writes_are_taken(service: str, status: int) -> None:
    async with serving(RecordingBackend()) as (edge, address), client(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        watch = stub.Watch(request)
        assert (await watch.read()).status == SERVING
        edge.set_writable(False)
        assert (await stub.Check(request)).status == status
        if status == NOT_SERVING:
            assert (await watch.read()).status == NOT_SERVING
        edge.set_writable(True)
        assert (await stub.Check(request)).status == SERVING
        if status == NOT_SERVING:
            assert (await watch.read()).status == SERVING
        edge.set_serving(False)
        # Of a service that did not change nothing was heard meanwhile.
        assert (await watch.read()).status == NOT_SERVING
        assert (await stub.Check(request)).status == NOT_SERVING
        watch.cancel()


async def test_health_of_a_service_that_is_not_there() -> None:
    async with serving(RecordingBackend()) as (_, address), client(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="qdrant.Nothing")
        error = await failing(stub.Check(request))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(request)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


async def test_watchers_hear_each_change_and_the_end() -> None:
    async with serving(RecordingBackend()) as (edge, address), client(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for watch in watches:
            assert (await watch.read()).status == SERVING
        edge.set_serving(True)  # no change, no message
        for serves, status in ((False, NOT_SERVING), (True, SERVING)):
            edge.set_serving(serves)
            for watch in watches:
                assert (await watch.read()).status == status
        stop = asyncio.ensure_future(edge.stop(3600))
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF
        await stop  # streams do not use up the grace


async def test_qdrants_health_check_needs_no_backend() -> None:
    answers = iter((b"\x0a\x01a", b"\x0a\x01b"))
    backend = RecordingBackend()
    async with serving(backend, health_reply=lambda: next(answers)) as (_, address), client(address) as channel:
        method = channel.unary_unary(HEALTH_CHECK)
        assert [await method(b""), await method(b"anything")] == [b"\x0a\x01a", b"\x0a\x01b"]
    assert not backend.calls


# --- reflection ------------------------------------------------------------------------------------------------------


class Reflection:
    """A client of either version."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        self.stream = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()

    async def ask(self, **request: object) -> reflection_pb2.ServerReflectionResponse:
        await self.stream.write(reflection_pb2.ServerReflectionRequest(**request))
        return await self.stream.read()


@pytest.mark.parametrize("service", REFLECTION_SERVICES)
async def test_reflection_describes_every_service_that_it_lists(service: str) -> None:
    async with serving(RecordingBackend()) as (_, address), client(address) as channel:
        reflection = Reflection(channel, service)
        listed = await reflection.ask(list_services="*")
        names = [one.name for one in listed.list_services_response.service]
        assert set(names) == {"grpc.health.v1.Health", *QDRANT_SERVICES, *REFLECTION_SERVICES}
        for name in names:
            found = await reflection.ask(file_containing_symbol=name)
            files = {}
            for raw in found.file_descriptor_response.file_descriptor_proto:
                proto = descriptor_pb2.FileDescriptorProto.FromString(raw)
                files[proto.name] = proto
            assert DescriptorTree(files).has_service(name)
        by_name = await reflection.ask(file_by_filename="points_service.proto")
        assert by_name.file_descriptor_response.file_descriptor_proto
        missing = await reflection.ask(file_containing_symbol="qdrant.Nothing")
        assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        # Nothing that this process happens to hold besides.
        internal = await reflection.ask(file_containing_symbol="understudy.replica.v1.ReplicaService")
        assert internal.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        await reflection.stream.done_writing()
        assert await reflection.stream.read() is grpc.aio.EOF


class DescriptorTree:
    """The files of an answer: complete enough to build the service from nothing else."""

    def __init__(self, files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
        self._files = files
        self._pool = DescriptorPool()
        self._added: set[str] = set()
        for name in files:
            self._add(name)

    def has_service(self, name: str) -> bool:
        return bool(self._pool.FindServiceByName(name).methods)

    def _add(self, name: str) -> None:
        if name not in self._added:
            self._added.add(name)
            for dependency in self._files[name].dependency:
                self._add(dependency)
            self._pool.Add(self._files[name])


async def test_an_open_reflection_stream_does_not_hold_up_the_stop() -> None:
    async with serving(RecordingBackend()) as (edge, address), client(address) as channel:
        reflection = Reflection(channel, REFLECTION_SERVICES[0])
        await reflection.ask(list_services="*")
        await edge.stop(3600)
        assert await reflection.stream.read() is grpc.aio.EOF


# --- addresses and TLS -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:6334", ("127.0.0.1", 6334)), ("localhost:0", ("localhost", 0)), ("[::1]:1", ("::1", 1))],
)
def test_addresses_to_listen_on(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    "text", ["", "6334", ":6334", "host", "host:", "host:http", "host:65536", "host:-1", "::1:6334"]
)
def test_bad_addresses_to_listen_on(text: str) -> None:
    with pytest.raises(ConfigError, match="bad address to listen on"):
        parse_listen(text)


async def test_a_second_proxy_does_not_share_the_port() -> None:
    async with serving(RecordingBackend()) as (_, address):
        with pytest.raises(AddressInUse, match=f"cannot listen on {address}: the port is taken"):
            await make_edge(RecordingBackend(), listen=address).start()


async def test_a_port_that_is_taken_between_the_check_and_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "_check_free", lambda host, port: None)
    async with serving(RecordingBackend()) as (_, address):
        with pytest.raises(AddressInUse, match="cannot listen on"):
            await make_edge(RecordingBackend(), listen=address).start()


@pytest.mark.parametrize("listen", ["nosuch.invalid:0", "203.0.113.1:0"])
async def test_an_address_that_is_not_ours(listen: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        await make_edge(RecordingBackend(), listen=listen).start()


async def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 on this machine")
    try:
        edge = make_edge(RecordingBackend(reply=Reply(b"six")), listen="[::1]:0")
        host, port = await edge.start()
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    async with client(f"[{host}]:{port}") as channel:
        assert await channel.unary_unary(UPSERT)(b"") == b"six"
    await edge.stop(0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return cert, key


async def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    settings = config.Edge(tls_cert_path=cert, tls_key_path=key)
    async with serving(RecordingBackend(reply=Reply(b"safe")), settings, listen="localhost:0") as (_, address):
        trusted = grpc.ssl_channel_credentials(root_certificates=cert.read_bytes())
        async with grpc.aio.secure_channel(address, trusted) as channel:
            assert await channel.unary_unary(UPSERT)(b"") == b"safe"
        async with client(address) as plain:
            assert (await failing(plain.unary_unary(UPSERT)(b""))).code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_settings_that_make_no_sense(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, _ = certificate
    with pytest.raises(ConfigError, match="belong together"):
        await make_edge(RecordingBackend(), config.Edge(tls_cert_path=cert)).start()
    settings = config.Edge(tls_cert_path=cert, tls_key_path=tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.pem"):
        await make_edge(RecordingBackend(), settings).start()


# --- keepalive -------------------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", 0) + payload


async def test_pings_without_a_call_are_answered_however_many_come() -> None:
    """What clients in Go do every 10 s, all at once: a server with gRPC's defaults answers with GOAWAY."""
    async with serving(RecordingBackend()) as (_, address):
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, b""))
        kinds = []
        for number in range(50):
            writer.write(frame(6, 0, struct.pack(">Q", number)))
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kinds.append(head[3])
                if head[3] == 6 and head[4] & 1 and payload == struct.pack(">Q", number):
                    break
        assert 7 not in kinds  # GOAWAY
        writer.close()
        await writer.wait_closed()


# --- stop ------------------------------------------------------------------------------------------------------------


async def closed(address: str) -> None:
    """Wait until nobody listens any more."""
    host, port = address.split(":")
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:  # accepted while the port was closing
            continue


async def test_stop_lets_a_call_in_flight_end() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def wait(call: Call) -> Reply:
        entered.set()
        await go_on.wait()
        return Reply(b"finished", trailers=(("x-t", "1"),))

    async with serving(Answering(wait)) as (edge, address), client(address) as channel:
        call = channel.unary_unary(UPSERT)(b"")
        await entered.wait()
        stop = asyncio.ensure_future(edge.stop(3600))
        await closed(address)
        # Its own connection: on the open one gRPC answers CANCELLED to what crosses its GOAWAY.
        async with grpc.aio.insecure_channel(address, options=[*PLAIN, ("grpc.use_local_subchannel_pool", 1)]) as late:
            error = await failing(late.unary_unary(UPSERT)(b"", timeout=30))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert not stop.done()
        go_on.set()
        assert await call == b"finished"
        await stop


async def test_stop_cancels_what_outlasts_the_grace() -> None:
    hanging = Hanging()
    async with serving(hanging) as (edge, address), client(address) as channel:
        call = channel.unary_unary(UPSERT)(b"")
        await hanging.entered.wait()
        await edge.stop(0.1)
        await hanging.cancelled.wait()
        assert (await failing(call)).code() is grpc.StatusCode.UNAVAILABLE
        await edge.stop(0.1)


async def test_stop_before_start_and_start_again_on_the_same_port() -> None:
    await make_edge(RecordingBackend()).stop(0)
    async with serving(RecordingBackend()) as (edge, address):
        await edge.stop(0)
        async with serving(RecordingBackend(reply=Reply(b"again")), listen=address), client(address) as channel:
            assert await channel.unary_unary(UPSERT)(b"") == b"again"
