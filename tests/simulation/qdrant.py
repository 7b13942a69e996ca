"""Qdrant and the way to it: a server with one queue, and a gRPC channel over one connection.

The server does requests in the order in which they arrive, each after a while, and answers in any order. It
acknowledges before it syncs: a power cut takes what came in the last seconds. The channel behaves as `server.upstream`
says of gRPC: one connection at a time, bytes in order, backoff, keepalive; statuses of the server are replies, all else
is UpstreamUnreachable. A request that was sent may be done whatever becomes of its caller.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from google.protobuf.message import Message

from generated.qdrant import collections_pb2, qdrant_pb2
from server.errors import UpstreamTimeout, UpstreamUnreachable
from server.rpc import GRPC_HEALTH_CHECK, HEALTH_CHECK, METHODS, Call, Code, Kind, Reply, refuse
from server.upstream import Connectivity, Probe, channel_options
from tests.simulation import points as p
from tests.simulation.loop import VirtualLoop

FLUSH_SECONDS = 5.0
# Answers to a write that may be done.
NO_PROOF = frozenset((Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE))
_KEEPALIVE_SECONDS = 12.0
_CONNECT_SECONDS = 5.0
_VERSION = "1.18.3"


@dataclass
class Done:
    """A write that Qdrant has done."""

    at: float
    request: Any


@dataclass
class Qdrant:
    """The server. `refusal` is what it answers to every write and read just now, though not to health checks.

    Where that does not prove that a write was refused (`NO_PROOF`), some are done; with `is_forgetful` none: what is
    not acknowledged, and lost later, is on no disk any more, whoever has seen it.
    """

    loop: VirtualLoop
    chance: random.Random
    own_key: str
    points: p.Points = field(default_factory=dict)
    is_up: bool = True
    is_hung: bool = False
    is_cut_off: bool = False
    is_forgetful: bool = False
    service_seconds: float = 0.0
    refusal: Reply | None = None
    journal: list[Done] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    trace: Callable[..., None] = print
    # Whether the proxy sends points that were lost here: those are no entries of its log.
    is_restored: Callable[[], bool] = lambda: False
    restored: int = 0
    # Values of every write that was ever done, forgotten or not; when each was last replayed, by count of writes.
    ever_done: set[int] = field(default_factory=set)
    last_replayed: dict[int, int] = field(default_factory=dict)
    # Told of every call that leaves the proxy's machine, whether it arrives or not.
    on_sent: Callable[[Call], None] = lambda call: None
    # Told of every write of ours: by whom, the request, and the points that it changes as they were before.
    on_write: Callable[[str, Any, p.Points], None] = lambda by, request, before: None

    def __post_init__(self) -> None:
        self._queue: deque[tuple[Connection, Flight]] = deque()
        self._is_busy = False
        self._epoch = 0
        self._writes = 0
        self._initial = dict(self.points)
        self.forgot = False

    # --- faults ------------------------------------------------------------------------------------------------------

    def crash(self, *, forgets: bool) -> None:
        """Killed; with a power cut it forgets what it had not synced."""
        self.is_up, self.is_hung = False, False
        self._epoch += 1
        self._queue.clear()
        self._is_busy = False
        if forgets:
            self._forget()
        for connection in list(self.connections):
            connection.breaks("Socket closed")

    def start(self) -> None:
        """It serves again."""
        self.is_up = True

    def hang(self) -> None:
        """SIGSTOP."""
        self.is_hung = True
        self._watch_silence()

    def wake(self) -> None:
        """SIGCONT: it does what lies in its buffers."""
        self.is_hung = False
        self._serve()

    def cut_off(self) -> None:
        """No packet passes."""
        self.is_cut_off = True
        self._watch_silence()

    def rejoin(self) -> None:
        """Packets pass again: what was under way on living connections arrives, in order."""
        self.is_cut_off = False
        for connection in list(self.connections):
            connection.resume()

    def _watch_silence(self) -> None:
        for connection in list(self.connections):
            connection.watch_silence()

    def _forget(self) -> None:
        self.forgot = True
        kept_until = self.loop.now - self.chance.uniform(0.0, FLUSH_SECONDS)
        self.journal = [each for each in self.journal if each.at <= kept_until]
        self.points = dict(self._initial)
        for each in self.journal:
            p.apply(self.points, each.request)

    def write(self, request: Message) -> None:
        """Somebody else writes, past the network of the proxy."""
        p.apply(self.points, request)
        self.journal.append(Done(self.loop.now, request))

    # --- service -----------------------------------------------------------------------------------------------------

    def arrived(self, connection: Connection, flight: Flight) -> None:
        """A request is in the server's buffer."""
        self._queue.append((connection, flight))
        self._serve()

    def _serve(self) -> None:
        if self._is_busy or self.is_hung or not self.is_up or not self._queue:
            return
        self._is_busy = True
        seconds = self.chance.uniform(0.0001, 0.002)
        if not self._queue[0][1].is_probe:
            seconds += self.service_seconds
        self.loop.call_later(seconds, self._next, self._epoch, context=self.loop.outside)

    def _next(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        self._is_busy = False
        if self.is_hung:
            return
        connection, flight = self._queue.popleft()
        # A stream that was reset before its turn is seen by the server, or is not.
        if not flight.is_reset or self.chance.random() < 0.5:
            reply = self._answer(flight)
            connection.answer(flight, reply)
        self._serve()

    def _answer(self, flight: Flight) -> Reply:
        call = flight.call
        if call.method == GRPC_HEALTH_CHECK:
            return Reply()
        if call.method == HEALTH_CHECK:
            return Reply(qdrant_pb2.HealthCheckReply(title="qdrant", version=_VERSION).SerializeToString())
        if self.refusal is not None:
            self._do_it_all_the_same(call, self.refusal)
            return self.refusal
        try:
            return Reply(self._do(call).SerializeToString())
        except p.Refusal as refusal:
            return refuse(refusal.code, refusal.details)

    def _do_it_all_the_same(self, call: Call, refusal: Reply) -> None:
        """A server that fails inside, or stops waiting, has done some of the writes; which, is no matter of dice."""
        if self.is_forgetful:
            return
        if refusal.code in NO_PROOF and METHODS[call.method].kind is Kind.WRITE and crc32(call.body) % 2:
            with suppress(p.Refusal):
                self._do(call)

    def _do(self, call: Call) -> Message:
        row = METHODS[call.method]
        request: Any = row.request.FromString(call.body)
        if call.method == p.LIST:
            listed = [collections_pb2.CollectionDescription(name=p.COLLECTION)]
            return collections_pb2.ListCollectionsResponse(collections=listed)
        if call.method == p.INFO:
            return collections_pb2.GetCollectionInfoResponse(result=p.info(len(self.points)))
        if call.method == p.ALIASES:
            return collections_pb2.ListAliasesResponse()
        if request.collection_name != p.COLLECTION:
            raise p.no_collection(request.collection_name)
        if row.kind is Kind.READ:
            return p.answer(self.points, call.method, request)
        if p.is_poisoned(request):
            raise p.Refusal(Code.INVALID_ARGUMENT, "Wrong input: poison")
        absent = p.missing(self.points, request)
        before = dict(self.points)
        p.apply(self.points, request)
        is_ours = dict(call.metadata).get("api-key") == self.own_key
        by = ("restored" if self.is_restored() else "replay") if is_ours else ""
        self.trace("qdrant did", call.method, p.named(request), sorted(p.values(request)), by)
        self.on_write(by, request, before)
        self.journal.append(Done(self.loop.now, request))
        self._writes += 1
        self.ever_done |= p.values(request)
        self.restored += by == "restored"
        if by == "replay":
            self.last_replayed.update(dict.fromkeys(p.values(request), self._writes))
        if absent is not None:
            raise p.no_point(absent)
        return p.done(len(self.journal))


@dataclass(eq=False)
class Flight:
    """One call on its way."""

    call: Call
    future: asyncio.Future[Reply]
    is_sent: bool = False
    is_reset: bool = False

    @property
    def is_probe(self) -> bool:
        return self.call.method in (GRPC_HEALTH_CHECK, HEALTH_CHECK)


class Connection:
    """A TCP connection: bytes arrive in order or not at all."""

    def __init__(self, network: Network, on_break: Callable[[Connection, str], None]) -> None:
        self.is_open = True
        self._network = network
        self._loop = network.qdrant.loop
        self._on_break = on_break
        self._outgoing: deque[Flight] = deque()
        self._is_moving = False
        self._answers: list[tuple[Flight, Reply]] = []
        network.qdrant.connections.append(self)

    def send(self, flight: Flight) -> None:
        flight.is_sent = True
        self._network.qdrant.on_sent(flight.call)
        self._outgoing.append(flight)
        self._move()

    def resume(self) -> None:
        """After a partition: what waits in either direction goes on."""
        self._move()
        answers, self._answers = self._answers, []
        for flight, reply in answers:
            self.answer(flight, reply)

    def _move(self) -> None:
        if self._is_moving or not self._outgoing or self._network.qdrant.is_cut_off:
            return
        self._is_moving = True
        self._loop.call_later(self._network.delay(), self._arrive, context=self._loop.outside)

    def _arrive(self) -> None:
        self._is_moving = False
        if not self.is_open or self._network.qdrant.is_cut_off:
            return
        # Everything that was written by now comes in one piece.
        while self._outgoing:
            self._network.qdrant.arrived(self, self._outgoing.popleft())

    def answer(self, flight: Flight, reply: Reply) -> None:
        """The server's answer leaves; each stream takes its own time, some answers come twice, some never."""
        if not self.is_open:
            return
        if self._network.qdrant.is_cut_off:
            self._answers.append((flight, reply))
            return
        if not flight.is_probe and self._network.loses_answer():
            self._network.qdrant.trace("answer lost", flight.call.method)
            return
        for _ in range(2 if self._network.doubles_answer() else 1):
            self._loop.call_later(self._network.delay(), self._deliver, flight, reply, context=self._loop.outside)

    def _deliver(self, flight: Flight, reply: Reply) -> None:
        if self._network.qdrant.is_cut_off and self.is_open:
            self._answers.append((flight, reply))
        elif self.is_open and not flight.future.done():
            flight.future.set_result(reply)

    def watch_silence(self) -> None:
        """Keepalive: a peer that stays silent is given up."""

        def look() -> None:
            qdrant = self._network.qdrant
            if self.is_open and (qdrant.is_hung or qdrant.is_cut_off):
                self.breaks("keepalive watchdog timeout")

        self._loop.call_later(_KEEPALIVE_SECONDS, look, context=self._loop.outside)

    def breaks(self, why: str) -> None:
        """Reset: what had not arrived never will."""
        if self.is_open:
            self.is_open = False
            self._network.qdrant.connections.remove(self)
            self._outgoing.clear()
            self._on_break(self, why)

    def abandoned(self) -> None:
        """The proxy's process is gone. What it had written may still arrive; then the connection is closed."""
        self._on_break = lambda connection, why: None
        if self._network.chance.random() < 0.5:
            self.breaks("gone")


@dataclass
class Network:
    """Between proxy and Qdrant. The probabilities are those of one answer."""

    qdrant: Qdrant
    chance: random.Random
    most_seconds: float = 0.01
    lost: float = 0.0
    doubled: float = 0.0

    def delay(self) -> float:
        """How long a packet takes."""
        return self.chance.uniform(0.0001, self.most_seconds)

    def loses_answer(self) -> bool:
        return self.lost > 0 and self.chance.random() < self.lost

    def doubles_answer(self) -> bool:
        return self.doubled > 0 and self.chance.random() < self.doubled


class Channel:
    """Stands in for `server.upstream.Upstream`; belongs to one life of the proxy."""

    def __init__(self, network: Network, max_backoff_seconds: float) -> None:
        self.name = "Qdrant"
        self.in_flight: dict[Flight, None] = {}
        self.most_replays = 0
        self._network = network
        self._loop = network.qdrant.loop
        options = dict(channel_options(-1, max_backoff_seconds))
        self._max_backoff_seconds = options["grpc.max_reconnect_backoff_ms"] / 1000
        self._state = Connectivity.IDLE
        self._changed = asyncio.Event()
        self._connection: Connection | None = None
        self._waiting: list[Flight] = []
        self._backoff = 0.2
        self._attempt = 0
        self._version = ""

    async def handle(self, call: Call, *, reserve_seconds: float = 0.0) -> Reply:
        timeout = None
        if call.deadline is not None:
            timeout = call.deadline - self._loop.now - reserve_seconds
            if timeout <= 0:
                raise UpstreamTimeout(f"no time left to send {call.method}", maybe_applied=False)
        if self._state is Connectivity.SHUTDOWN:
            raise UpstreamUnreachable("closed by Understudy", maybe_applied=False)
        if self._state is Connectivity.TRANSIENT_FAILURE:
            raise UpstreamUnreachable("connections to all backends failing", maybe_applied=False)
        flight = Flight(call, self._loop.create_future())
        self.in_flight[flight] = None
        try:
            self._send(flight)
            async with asyncio.timeout(timeout):
                return await flight.future
        except TimeoutError:
            raise UpstreamTimeout("Deadline Exceeded", maybe_applied=True) from None
        finally:
            flight.is_reset = True
            self.in_flight.pop(flight, None)

    def abort_in_flight(self, reason: str) -> int:
        aborted = [flight for flight in self.in_flight if not flight.is_probe]
        for flight in aborted:
            self._fail(flight, reason, maybe_applied=True)
        return len(aborted)

    def connectivity(self) -> Connectivity:
        return self._state

    async def wait_for_change(self, last: Connectivity) -> Connectivity:
        while self._state is last and last is not Connectivity.SHUTDOWN:
            await self._changed.wait()
        return self._state

    def connect(self) -> None:
        if self._state is Connectivity.IDLE:
            self._connect()

    async def probe(self, timeout_seconds: float, *, asks_version: bool = False) -> Probe:
        deadline = self._loop.now + timeout_seconds
        try:
            reply = await self.handle(Call(GRPC_HEALTH_CHECK, b"", deadline=deadline))
            if not self._version or asks_version:
                reply = await self.handle(Call(HEALTH_CHECK, b"", deadline=deadline))
                self._version = qdrant_pb2.HealthCheckReply.FromString(reply.body).version
        except UpstreamUnreachable as error:
            return Probe(False, str(error), self._version, not isinstance(error, UpstreamTimeout))
        return Probe(reply.is_ok, "it answered", self._version)

    async def close(self) -> None:
        self.abort_in_flight("closed by Understudy")
        if self._connection is not None:
            self._connection.breaks("closed by Understudy")
        self._set(Connectivity.SHUTDOWN)

    def abandoned(self) -> None:
        """The process is gone."""
        if self._connection is not None:
            self._connection.abandoned()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _send(self, flight: Flight) -> None:
        if self._connection is not None:
            self._connection.send(flight)
        else:
            self._waiting.append(flight)
            self.connect()

    def _connect(self) -> None:
        self._set(Connectivity.CONNECTING)
        self._attempt += 1
        if self._network.qdrant.is_cut_off or self._network.qdrant.is_hung:
            # A stopped process has its handshake done by the kernel, but no HTTP/2 settings come.
            self._loop.call_later(_CONNECT_SECONDS, self._failed, self._attempt, "connect timed out")
            return
        self._loop.call_later(2 * self._network.delay(), self._connected, self._attempt)

    def _connected(self, attempt: int) -> None:
        if attempt != self._attempt or self._state is not Connectivity.CONNECTING:
            return
        if not self._network.qdrant.is_up:
            self._failed(attempt, "connection refused")
            return
        self._backoff = 0.2
        self._connection = Connection(self._network, self._in_this_life(self._broken))
        self._set(Connectivity.READY)
        waiting, self._waiting = self._waiting, []
        for flight in waiting:
            if not flight.future.done():
                self._connection.send(flight)

    def _in_this_life(self, act: Callable[..., None]) -> Callable[..., None]:
        """A callback for the world that acts in this process, as long as it lives."""
        context = contextvars.copy_context()

        def in_context(*args: Any) -> None:
            self._loop.call_soon(act, *args, context=context)

        return in_context

    def _failed(self, attempt: int, why: str) -> None:
        if attempt != self._attempt or self._state is not Connectivity.CONNECTING:
            return
        self._set(Connectivity.TRANSIENT_FAILURE)
        waiting, self._waiting = self._waiting, []
        for flight in waiting:
            self._fail(flight, f"failed to connect to all addresses: {why}", maybe_applied=False)
        pause = self._backoff * self._network.chance.uniform(0.8, 1.2)
        self._backoff = min(self._backoff * 1.6, self._max_backoff_seconds)
        self._loop.call_later(pause, self._again)

    def _again(self) -> None:
        if self._state is Connectivity.TRANSIENT_FAILURE:
            self._connect()

    def _broken(self, connection: Connection, why: str) -> None:
        if self._connection is not connection:
            return
        self._connection = None
        if self._state is not Connectivity.SHUTDOWN:
            self._set(Connectivity.IDLE)
        for flight in list(self.in_flight):
            if flight.is_sent:
                self._fail(flight, why, maybe_applied=True)

    @staticmethod
    def _fail(flight: Flight, why: str, *, maybe_applied: bool) -> None:
        if not flight.future.done():
            flight.future.set_exception(UpstreamUnreachable(f"Qdrant: {why}", maybe_applied=maybe_applied))

    def _set(self, state: Connectivity) -> None:
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
