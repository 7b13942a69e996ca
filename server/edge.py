"""gRPC in: bytes → Call → Backend → bytes.

Promises: every method of every service reaches the backend as raw bytes with its metadata, and the time left as a
deadline on our clock; what the backend answers (body, status, text, initial and trailing metadata) reaches the client
unchanged; a client that goes away cancels its call. Answered here: `grpc.health.v1`, reflection (v1 and v1alpha) and
`qdrant.Qdrant/HealthCheck`. Does not promise streaming methods: Qdrant's API has none.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from generated.qdrant import qdrant_pb2
from server import config
from server.clock import Clock
from server.errors import AddressInUse, ConfigError, EntryRefused, UnderstudyError, UpstreamTimeout, WalFull
from server.rpc import HEALTH_CHECK, SOURCE, Backend, Call, Code, Reply, refuse
from server.telemetry import Telemetry

# What a client sees for an error that no layer below turned into an answer; the nearest base class counts.
STATUS_OF: Mapping[type[UnderstudyError], Code] = {
    UpstreamTimeout: Code.DEADLINE_EXCEEDED,
    WalFull: Code.RESOURCE_EXHAUSTED,
    EntryRefused: Code.RESOURCE_EXHAUSTED,
    UnderstudyError: Code.UNAVAILABLE,
}

# Methods are named by clients, so the cache of prepared handlers needs a limit. The API has about 60.
MAX_PREPARED_METHODS = 256

HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
QDRANT_SERVICES = ("qdrant.Collections", "qdrant.Points", "qdrant.Qdrant", "qdrant.Snapshots")

# Names of our own in `grpc.health.v1`, and the names that are NOT_SERVING while no writes are taken.
READS, WRITES = "understudy.reads", "understudy.writes"
NEED_WRITES = frozenset(("", WRITES, "qdrant.Collections", "qdrant.Points"))

_STATUS = {Code(status.value[0]): status for status in grpc.StatusCode}
_COMPRESSION = {config.Compression.NONE: None, config.Compression.GZIP: grpc.Compression.Gzip}

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Behaviour: TypeAlias = Callable[[bytes, _Context], Awaitable[bytes]]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """PURE. How the server behaves; each differs from gRPC's default for a reason."""
    return [
        # The default is 4 MB for requests; Qdrant has no limit.
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # The default refuses requests with more than 8 kB of metadata at random; Qdrant takes 16 kB.
        ("grpc.max_metadata_size", 16384),
        # Clients in Go ping every 10 s without a call, and would be sent away with too_many_pings.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1000),
        ("grpc.http2.max_ping_strikes", 0),
        # Otherwise a second proxy silently shares the port.
        ("grpc.so_reuseport", 0),
    ]


def status_of(error: UnderstudyError) -> Code:
    """PURE. The status of an error of ours."""
    for base in type(error).__mro__:
        if issubclass(base, UnderstudyError) and base in STATUS_OF:
            return STATUS_OF[base]
    return Code.INTERNAL


def parse_listen(text: str) -> tuple[str, int]:
    """PURE. `HOST:PORT` or `[V6]:PORT` → (host, port); raises ConfigError."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"bad address to listen on `{text}`: expected HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigError(f"bad address to listen on `{text}`: write IPv6 as [ADDRESS]:PORT")
    return host.strip("[]"), int(port)


class Edge:
    """The port that Qdrant clients connect to."""

    def __init__(
        self,
        backend: Backend,
        settings: config.Edge,
        listen: str,
        clock: Clock,
        telemetry: Telemetry,
        *,
        health_reply: Callable[[], bytes],
    ) -> None:
        """`listen` is HOST:PORT. `health_reply` gives a serialized `HealthCheckReply`, at once and without waiting."""
        self._backend = backend
        self._settings = settings
        self._listen = listen
        self._clock = clock
        self._telemetry = telemetry
        self._health_reply = health_reply
        self._health = _Health()
        self._stopping = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> tuple[str, int]:
        """Listen. Returns host and port; raises AddressInUse, or ConfigError for an address or TLS file that is bad."""
        host, port = parse_listen(self._listen)
        credentials = _credentials(self._settings)
        _check_free(host, port)
        server = grpc.aio.server(
            handlers=(_Handlers(self._local_handlers(), self._forwarding),),
            options=server_options(self._settings.max_message_bytes),
            compression=_COMPRESSION[self._settings.compression],
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressInUse(f"cannot listen on {address}") from error
        await server.start()
        self._server = server
        return host, bound

    def set_serving(self, serving: bool) -> None:
        """What `grpc.health.v1` tells from now on, watchers included."""
        self._health.set_serving(serving)

    def set_writable(self, writable: bool) -> None:
        """Whether writes are taken: `grpc.health.v1` tells it for the server as a whole and for what writes."""
        self._health.set_writable(writable)

    async def stop(self, grace_seconds: float) -> None:
        """Take no more calls, give those in flight `grace_seconds`, then cancel them."""
        if self._server is None:
            return
        self._health.set_serving(False)
        # Streams of health and reflection would otherwise last for the whole grace.
        self._stopping.set()
        server, self._server = self._server, None
        await server.stop(grace_seconds)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _forwarding(self, path: str) -> _Handler:
        handle, clock, server_span = self._backend.handle, self._clock, self._telemetry.server_span
        metrics = self._telemetry.metrics

        async def forward(body: bytes, context: _Context) -> bytes:
            remaining, started = context.time_remaining(), clock.monotonic()
            call = Call(
                path,
                body,
                context.invocation_metadata() or (),  # type: ignore[arg-type]
                None if remaining is None else started + remaining,
            )
            reply = _HUNG_UP
            metrics.request_started()
            try:
                with server_span(call) as span:
                    try:
                        reply = await handle(call)
                    except Exception as error:  # noqa: BLE001  (the outermost frame of the call's task)
                        reply = self._failed(path, error)
                    if reply.code is not Code.OK:
                        span.fail(reply.code.name)
            finally:
                metrics.request(path, _source(reply), reply.code, clock.monotonic() - started)
            return await _send(reply, context)

        return grpc.unary_unary_rpc_method_handler(forward)

    def _failed(self, path: str, error: Exception) -> Reply:
        if isinstance(error, UnderstudyError):
            return refuse(status_of(error), str(error))
        # Its text may quote a payload: for our log, not for the client.
        self._telemetry.log.error("call failed inside Understudy", method=path, exc_info=error)
        return refuse(Code.INTERNAL, "internal error")

    # --- answered here -----------------------------------------------------------------------------------------------

    def _local_handlers(self) -> dict[str, _Handler]:
        async def health_check(body: bytes, context: _Context) -> bytes:
            return self._health_reply()

        reflect = grpc.stream_stream_rpc_method_handler(
            _reflecting(self._stopping),
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return {
            HEALTH_CHECK: grpc.unary_unary_rpc_method_handler(health_check),
            f"/{HEALTH_SERVICE}/Check": grpc.unary_unary_rpc_method_handler(
                self._health.check,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
            f"/{HEALTH_SERVICE}/Watch": grpc.unary_stream_rpc_method_handler(
                self._health.watcher(self._stopping),
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
            **{f"/{service}/ServerReflectionInfo": reflect for service in REFLECTION_SERVICES},
        }


class _Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a method: our own, or one that forwards."""

    def __init__(self, local: dict[str, _Handler], forwarding: Callable[[str], _Handler]) -> None:
        self._known = local
        self._forwarding = forwarding

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler:
        """See grpc.GenericRpcHandler."""
        path = handler_call_details.method
        handler = self._known.get(path)
        if handler is None:
            handler = self._forwarding(path)
            if len(self._known) < MAX_PREPARED_METHODS:
                self._known[path] = handler
        return handler


# What is counted when the client did not wait for its answer.
_HUNG_UP = refuse(Code.CANCELLED, "")


def _source(reply: Reply) -> str:
    """Who answered: "remote" or "local"; "none" for what was refused here."""
    for key, value in reply.trailers:
        if key == SOURCE and isinstance(value, str):
            return value
    return "none"


async def _send(reply: Reply, context: _Context) -> bytes:
    if reply.initial:
        await context.send_initial_metadata(reply.initial)
    if reply.code is not Code.OK:
        # Raises. Not set_code: that would send an empty message before the status.
        await context.abort(_STATUS[reply.code], reply.details, reply.trailers)
    if reply.trailers:
        context.set_trailing_metadata(reply.trailers)
    return reply.body


class _Health:
    """`grpc.health.v1`: for the whole server, for each Qdrant service, for reads and for writes."""

    _SERVICES = frozenset(("", HEALTH_SERVICE, READS, WRITES, *QDRANT_SERVICES))

    def __init__(self) -> None:
        self._is_serving = True
        self._is_writable = True
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        self._is_serving = serving
        self._wake()

    def set_writable(self, writable: bool) -> None:
        self._is_writable = writable
        self._wake()

    def _wake(self) -> None:
        # Each watcher holds the event of the state that it last told.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        if request.service not in self._SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self._response(request.service)

    def watcher(self, stopping: asyncio.Event) -> Callable[..., AsyncIterator[health_pb2.HealthCheckResponse]]:
        async def watch(
            request: health_pb2.HealthCheckRequest, context: _Context
        ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
            told = None
            while True:
                changed, response = self._changed, self._response(request.service)
                if response != told:
                    told = response
                    yield response
                await _any_set(changed, stopping)
                if not changed.is_set():
                    return

        return watch

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        kinds = health_pb2.HealthCheckResponse
        if service not in self._SERVICES:
            return kinds(status=kinds.SERVICE_UNKNOWN)
        serves = self._is_serving and (self._is_writable or service not in NEED_WRITES)
        return kinds(status=kinds.SERVING if serves else kinds.NOT_SERVING)


def _reflecting(stopping: asyncio.Event) -> Callable[..., AsyncIterator[reflection_pb2.ServerReflectionResponse]]:
    """The reflection service. Both versions are the same messages under two names."""
    names = (HEALTH_SERVICE, *QDRANT_SERVICES, *REFLECTION_SERVICES)
    servicer = reflection.aio.ReflectionServicer(names, pool=_reflection_pool())

    async def answer(
        requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], context: _Context
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        async for response in servicer.ServerReflectionInfo(_until(stopping, requests), context):
            yield response

    return answer


async def _until(
    stopping: asyncio.Event, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest]
) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            request = asyncio.ensure_future(anext(requests))
            await asyncio.wait((request, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not request.done():
                request.cancel()
                return
            try:
                yield request.result()
            except StopAsyncIteration:
                return
    finally:
        stopped.cancel()


def _reflection_pool() -> DescriptorPool:
    """What reflection shows: the served APIs and nothing else that this process happens to hold."""
    pool = DescriptorPool()
    seen: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name not in seen:
            seen.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            pool.AddSerializedFile(file.serialized_pb)

    for served in (qdrant_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        add(served)
    # Nobody ships v1 for Python, and it is v1alpha under another package.
    text = reflection_pb2.DESCRIPTOR.serialized_pb
    proto = descriptor_pb2.FileDescriptorProto.FromString(text)
    proto.name, proto.package = "grpc/reflection/v1/reflection.proto", "grpc.reflection.v1"
    for message in proto.message_type:
        for field in filter(lambda one: one.type_name, message.field):
            field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for method in proto.service[0].method:
        method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
        method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    pool.AddSerializedFile(proto.SerializeToString())
    return pool


async def _any_set(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _credentials(settings: config.Edge) -> grpc.ServerCredentials | None:
    cert, key = settings.tls_cert_path, settings.tls_key_path
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("edge.tls_cert_path and edge.tls_key_path belong together: one of them is missing")
    return grpc.ssl_server_credentials([(_read(key), _read(cert))])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _check_free(host: str, port: int) -> None:
    """Bind for a moment: gRPC says only that it could not, and says it at length."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"cannot listen on {host}:{port}: the port is taken") from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
