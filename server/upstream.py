"""gRPC out: to Qdrant and to the replica's socket, as raw bytes.

Promises: a status that the other side chose comes back as a `Reply`, its text untouched, and its metadata but for what
`forwardable` leaves behind; everything that the transport made up is raised as `UpstreamUnreachable` or
`UpstreamTimeout`, which tell whether the request may have been applied. Nothing is retried. Never adds a credential to
a call that it forwards.
Does not promise that READY means healthy: ask `probe`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from generated.qdrant import qdrant_pb2
from server.clock import Clock
from server.errors import ConfigError, UpstreamTimeout, UpstreamUnreachable
from server.rpc import GRPC_HEALTH_CHECK, HEALTH_CHECK, Call, Code, Metadata, Reply

DEFAULT_PORT = 6334

# With gRPC's jitter a pause stays below nine tenths of its limit, which leaves time for the probes that must follow.
_BACKOFF_SHARE = 0.75

# Methods are named by clients, so the cache of prepared methods needs a limit. The API has about 60.
MAX_PREPARED_METHODS = 256

# Owned by each hop of HTTP/2 or gRPC: never carried over to the next one. `date` is written by Qdrant's HTTP layer.
_HOP_KEYS = frozenset(
    ("user-agent", "content-type", "te", "connection", "host", "accept-encoding", "content-length", "date")
)
_HOP_PREFIXES = ("grpc-", ":")
# Named like a hop's own, and meant for the two ends: what an error is in detail, and when and how often to call again.
_END_TO_END = frozenset(("grpc-status-details-bin", "grpc-retry-pushback-ms", "grpc-previous-rpc-attempts"))

_RawMethod: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
_RawCall: TypeAlias = "grpc.aio.UnaryUnaryCall[bytes, bytes]"


class Connectivity(Enum):
    """State of the channel, as gRPC names it."""

    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    TRANSIENT_FAILURE = "transient failure"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Probe:
    """What one probe found. `version` is the one that Qdrant last told, else empty.

    `is_refused`: there was no connection, or it broke; a probe that merely got no answer in time is not.
    """

    ok: bool
    detail: str
    version: str = ""
    is_refused: bool = False


class Fault(Enum):
    """Who made a status that is not OK."""

    PEER = "the other side answered"
    NOT_SENT = "no connection: the request never left"
    LOST = "the connection or the stream broke: the request may have been applied"
    TIMEOUT = "our own time limit: the request may have been applied"


# What gRPC core and gateways say when no peer answered. A row is (codes, start of the text, fault); the first that fits
# counts. gRPC has no field that tells a status of the transport from one of the peer: the text is all there is.
_ANY = frozenset(Code)
_GONE = frozenset((Code.UNAVAILABLE,))
_STREAM = "Stream removed ("
_RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code "
_TRANSPORT_TEXTS: tuple[tuple[frozenset[Code], str, Fault], ...] = (
    (_GONE, "failed to connect to all addresses", Fault.NOT_SENT),
    (_GONE, "connections to all backends failing", Fault.NOT_SENT),
    (_GONE, "errors resolving ", Fault.NOT_SENT),
    (_GONE, "DNS resolution failed", Fault.NOT_SENT),
    (_GONE, "empty address list", Fault.NOT_SENT),
    (frozenset((Code.DEADLINE_EXCEEDED,)), "Stream removed (Deadline Exceeded", Fault.TIMEOUT),
    (frozenset((Code.DEADLINE_EXCEEDED,)), "Deadline Exceeded", Fault.TIMEOUT),
    # Refused and cancelled streams: a server that is going away. Other resets (a handler that crashed) concern one
    # call on a connection that lives.
    (_ANY, _RESET + "7)", Fault.LOST),
    (_ANY, _RESET + "8)", Fault.LOST),
    (_ANY, _RESET, Fault.PEER),
    (_GONE, _STREAM, Fault.LOST),
    (_GONE, "Socket closed", Fault.LOST),
    (_GONE, "recvmsg:", Fault.LOST),
    (_GONE, "sendmsg:", Fault.LOST),
    (_GONE, "Connection reset", Fault.LOST),
    (_GONE, "Broken pipe", Fault.LOST),
    (_GONE, "GOAWAY received", Fault.LOST),
    (_GONE, "ping timeout", Fault.LOST),
    (_GONE, "keepalive watchdog timeout", Fault.LOST),
    (_GONE, "Transport closed", Fault.LOST),
    (_GONE, "Endpoint closed", Fault.LOST),
    # A gRPC core server that is shutting down.
    (_GONE, "Cancelling all calls", Fault.LOST),
    # The same, of calls that it had not begun. Those that we cancel ourselves never come here.
    (frozenset((Code.CANCELLED,)), "CANCELLED", Fault.LOST),
)
# Said by something in front of Qdrant, or by Qdrant's transport layer, with or without metadata of its own.
_GATEWAY_TEXTS: tuple[tuple[frozenset[Code], str, Fault], ...] = (
    # A server of gRPC says 200 to everything.
    (_ANY, "Received http2 header with status: ", Fault.LOST),
    (_GONE, "upstream connect error", Fault.LOST),
    (_GONE, "no healthy upstream", Fault.LOST),
    # The peer kept our own time limit for us and was a moment faster.
    (frozenset((Code.CANCELLED, Code.DEADLINE_EXCEEDED)), "Timeout expired", Fault.TIMEOUT),
)


def classify(code: Code, details: str, *, has_trailers: bool) -> Fault:
    """PURE. Who made this status: the peer, or the transport on its behalf.

    An unknown text counts as the peer's: a wrong guess then costs one call, not a fallback of the whole proxy. Trailing
    metadata never comes from the transport.
    """
    for codes, start, fault in _GATEWAY_TEXTS:
        if code in codes and details.startswith(start):
            return fault
    if has_trailers:
        return Fault.PEER
    for codes, start, fault in _TRANSPORT_TEXTS:
        if code in codes and details.startswith(start):
            return fault
    return Fault.PEER


def forwardable(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """PURE. What may travel on to the next hop; values of `-bin` keys stay bytes.

    gRPC takes in any text and sends visible ASCII and spaces only: one other letter would fail the whole call. Such a
    header stays behind.
    """
    return tuple(
        [
            (key, value)
            for key, value in metadata
            if key not in _HOP_KEYS
            and (not key.startswith(_HOP_PREFIXES) or key in _END_TO_END)
            and (isinstance(value, bytes) or (value.isascii() and value.isprintable()))
        ]
    )


def parse_target(text: str) -> tuple[str, bool]:
    """PURE. `http://h:p`, `https://h:p`, `h:p`, `h`, or any gRPC target → (gRPC target, whether TLS is wanted).

    A missing port is Qdrant's 6334. Raises ConfigError for anything else.
    """
    text = text.strip()
    if text.startswith(("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:")):
        return text, False
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"bad address `{text}`: {error}") from error
    if parts.scheme not in ("http", "https", "grpc", "grpcs"):
        raise ConfigError(f"bad address `{text}`: unknown scheme `{parts.scheme}`")
    if not host or any(letter.isspace() for letter in text):
        raise ConfigError(f"bad address `{text}`: expected HOST:PORT")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"bad address `{text}`: only scheme, host and port may be given")
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{DEFAULT_PORT if port is None else port}", parts.scheme in ("https", "grpcs")


def channel_options(max_message_bytes: int, max_backoff_seconds: float) -> list[tuple[str, int]]:
    """PURE. How the channel behaves; each differs from gRPC's default for a reason."""
    max_backoff_ms = max(200, round(max_backoff_seconds * 1000))
    return [
        # The default gives up for up to 120 s. gRPC makes a pause up to a fifth longer than it is told.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", max(200, round(max_backoff_ms * _BACKOFF_SHARE))),
        # Also the time limit of one attempt to connect (20 s by default): a black hole that ends is noticed.
        ("grpc.min_reconnect_backoff_ms", max_backoff_ms),
        # By default names are looked up again after 30 s at the earliest.
        ("grpc.dns_min_time_between_resolutions_ms", min(1000, max_backoff_ms)),
        # A retry that we do not see could apply a write twice, and a proxy of the environment could swallow calls.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        # A peer that is silent, not closed: found within 15 s without any call. Both timeouts are needed.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.ping_timeout_ms", 5_000),
        # The default is 4 MB; Qdrant has no limit.
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # The default refuses answers with more than 8 kB of metadata, long error texts included, at random.
        ("grpc.max_metadata_size", 65536),
        # Otherwise two channels to one address share a connection and its backoff.
        ("grpc.use_local_subchannel_pool", 1),
    ]


_CODES = {status: Code(status.value[0]) for status in grpc.StatusCode}
_CONNECTIVITY = {
    grpc.ChannelConnectivity.IDLE: Connectivity.IDLE,
    grpc.ChannelConnectivity.CONNECTING: Connectivity.CONNECTING,
    grpc.ChannelConnectivity.READY: Connectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE: Connectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN: Connectivity.SHUTDOWN,
}
_CORE_CONNECTIVITY = {ours: theirs for theirs, ours in _CONNECTIVITY.items()}

# Statuses to a probe that prove a working server behind them, whatever it thinks of the probe.
_ALIVE = frozenset((Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.RESOURCE_EXHAUSTED))


class Upstream:
    """One gRPC channel. Implements `rpc.Backend`.

    The channel is made at first use, so the object may be built outside the event loop; all else belongs to one loop.
    `own_metadata` carries the configured key, for calls that Understudy makes for itself.
    """

    def __init__(
        self,
        target: str,
        *,
        clock: Clock,
        api_key: str | None = None,
        tls_roots: bytes | None = None,
        secure: bool = False,
        max_message_bytes: int = -1,
        max_backoff_seconds: float = 5.0,
        name: str = "upstream",
    ) -> None:
        self.target = target
        self.name = name
        self.own_metadata: Metadata = (("api-key", api_key),) if api_key else ()
        self._clock = clock
        self._secure = secure
        self._tls_roots = tls_roots
        self._options = channel_options(max_message_bytes, max_backoff_seconds)
        self._channel: grpc.aio.Channel | None = None
        self._closed = False
        self._methods: dict[str, _RawMethod] = {}
        self._in_flight: set[_RawCall] = set()
        self._aborted: dict[_RawCall, str] = {}
        self._watches: set[asyncio.Future[None]] = set()
        self._has_grpc_health = True
        self._version = ""
        self._version_is_fresh = False

    async def handle(self, call: Call, *, reserve_seconds: float = 0.0) -> Reply:
        """Send one call and wait for its answer, leaving `reserve_seconds` of its deadline unused.

        Raises UpstreamUnreachable or UpstreamTimeout when there was no answer. Cancelling the caller cancels the RPC.
        """
        timeout = None
        if call.deadline is not None:
            timeout = call.deadline - self._clock.monotonic() - reserve_seconds
            if timeout <= 0:
                raise UpstreamTimeout(f"{self.name}: no time left to send {call.method}", maybe_applied=False)
        method = self._methods.get(call.method) or self._prepare(call.method)
        rpc = method(call.body, timeout=timeout, metadata=forwardable(call.metadata))
        self._in_flight.add(rpc)
        try:
            return await self._answer(rpc)
        except asyncio.CancelledError:
            reason = self._aborted.get(rpc)
            if reason is None or _caller_is_cancelled():
                raise
            raise UpstreamUnreachable(f"{self.name}: {reason}", maybe_applied=True) from None
        finally:
            self._in_flight.discard(rpc)
            if self._aborted:
                self._aborted.pop(rpc, None)

    def abort_in_flight(self, reason: str) -> int:
        """Give up every call in flight; each raises UpstreamUnreachable. Returns their number. Probes go on."""
        aborted = list(self._in_flight)
        for rpc in aborted:
            self._aborted[rpc] = reason
            rpc.cancel()
        return len(aborted)

    def connectivity(self) -> Connectivity:
        """The state of the channel, now."""
        if self._closed:
            return Connectivity.SHUTDOWN
        return _CONNECTIVITY[self._open().get_state()]

    async def wait_for_change(self, last: Connectivity) -> Connectivity:
        """Wait until the state is another than `last`, and return it.

        A connection that was lost counts as IDLE also when there is another one by then.
        """
        while (now := self.connectivity()) is last and now is not Connectivity.SHUTDOWN:
            # gRPC never wakes a watcher whose channel is closed, so close() does.
            watch = asyncio.ensure_future(self._open().wait_for_state_change(_CORE_CONNECTIVITY[last]))
            self._watches.add(watch)
            try:
                await asyncio.wait((watch,))
            finally:
                self._watches.discard(watch)
                watch.cancel()
            if not watch.cancelled() and (error := watch.exception()) and not self._closed:
                raise error
            if last is Connectivity.READY and self.connectivity() is last:
                # gRPC tells that it was left, not what came next: whoever is connected to now may be another Qdrant.
                return Connectivity.IDLE
        return now

    def connect(self) -> None:
        """Start connecting if the channel is idle."""
        if not self._closed:
            self._open().get_state(try_to_connect=True)

    async def probe(self, timeout_seconds: float, *, asks_version: bool = False) -> Probe:
        """Ask the other side how it is: `grpc.health.v1`, else Qdrant's own HealthCheck. Raises nothing of its own.

        The version is asked for after a failed probe, or with `asks_version`. Neither call needs a key in Qdrant, so a
        good probe proves nothing about one.
        """
        if asks_version:
            self._version_is_fresh = False
        deadline = self._clock.monotonic() + timeout_seconds
        try:
            probe = await self._probe_once(deadline)
        except UpstreamUnreachable as error:
            probe = Probe(False, str(error), self._version, not isinstance(error, UpstreamTimeout))
        if not probe.ok:
            # It may come back as another version.
            self._version_is_fresh = False
        return probe

    async def close(self) -> None:
        """Give up what is in flight and close the channel. Final."""
        if self._closed:
            return
        self._closed = True
        self.abort_in_flight("closed by Understudy")
        self._methods.clear()
        for watch in self._watches:
            watch.cancel()
        if self._channel is not None:
            await self._channel.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            if self._secure:
                credentials = grpc.ssl_channel_credentials(root_certificates=self._tls_roots)
                self._channel = grpc.aio.secure_channel(self.target, credentials, options=self._options)
            else:
                self._channel = grpc.aio.insecure_channel(self.target, options=self._options)
        return self._channel

    def _prepare(self, path: str) -> _RawMethod:
        if self._closed:
            raise UpstreamUnreachable(f"{self.name}: closed", maybe_applied=False)
        # No serializers: bytes in, bytes out.
        method: _RawMethod = self._open().unary_unary(path)
        if len(self._methods) < MAX_PREPARED_METHODS:
            self._methods[path] = method
        return method

    async def _answer(self, rpc: _RawCall) -> Reply:
        """The one place where gRPC's exceptions become ours."""
        try:
            body = await rpc
        except grpc.aio.AioRpcError as error:
            return self._status(error)
        # Known since the call ended: these do not wait.
        initial = await rpc.initial_metadata()
        trailers = await rpc.trailing_metadata()
        return Reply(body, initial=_pairs(initial), trailers=_pairs(trailers))

    def _status(self, error: grpc.aio.AioRpcError) -> Reply:
        code = _CODES[error.code()]
        details = error.details() or ""
        trailers = error.trailing_metadata()
        fault = classify(code, details, has_trailers=bool(trailers))
        if fault is Fault.PEER:
            initial = _pairs(error.initial_metadata())
            return Reply(code=code, details=details, initial=initial, trailers=_pairs(trailers))
        if fault is Fault.TIMEOUT:
            raise UpstreamTimeout(f"{self.name}: no answer in time", maybe_applied=True) from error
        raise UpstreamUnreachable(f"{self.name}: {details}", maybe_applied=fault is Fault.LOST) from error

    async def _ask(self, path: str, deadline: float) -> Reply:
        """A call of our own that `abort_in_flight` leaves alone."""
        timeout = deadline - self._clock.monotonic()
        if timeout <= 0:
            raise UpstreamTimeout(f"{self.name}: no answer in time", maybe_applied=False)
        method = self._methods.get(path) or self._prepare(path)
        try:
            return await self._answer(method(b"", timeout=timeout, metadata=self.own_metadata))
        except asyncio.CancelledError:
            if not self._closed or _caller_is_cancelled():
                raise
            raise UpstreamUnreachable(f"{self.name}: closed by Understudy", maybe_applied=True) from None

    async def _probe_once(self, deadline: float) -> Probe:
        if self._has_grpc_health:
            reply = await self._ask(GRPC_HEALTH_CHECK, deadline)
            if reply.is_ok:
                serving = _is_serving(reply.body)
                if serving and not self._version_is_fresh:
                    return await self._probe_qdrant(deadline)
                return Probe(serving, "serving" if serving else "answers that it is not serving", self._version)
            if reply.code is Code.UNIMPLEMENTED:
                self._has_grpc_health = False
            elif reply.code not in _ALIVE:
                return Probe(False, f"health check: {reply.code.name} {reply.details}", self._version)
        return await self._probe_qdrant(deadline)

    async def _probe_qdrant(self, deadline: float) -> Probe:
        reply = await self._ask(HEALTH_CHECK, deadline)
        if not reply.is_ok:
            self._version_is_fresh = reply.code in _ALIVE
            return Probe(reply.code in _ALIVE, f"HealthCheck: {reply.code.name} {reply.details}", self._version)
        try:
            self._version = qdrant_pb2.HealthCheckReply.FromString(reply.body).version
        except DecodeError:
            return Probe(False, "HealthCheck: the answer is not Qdrant's", self._version)
        self._version_is_fresh = True
        return Probe(True, "serving", self._version)


def _caller_is_cancelled() -> bool:
    """Whether a CancelledError is meant for this task, not only for the RPC that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    return forwardable(metadata) if metadata else ()


def _is_serving(body: bytes) -> bool:
    try:
        response = health_pb2.HealthCheckResponse.FromString(body)
    except DecodeError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
