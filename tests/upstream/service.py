"""The gRPC face of the stand-in: official servicer classes, keys, health, faults and the journal around the engine.

Promises: every call passes, in this order, the key check, the faults, the journal, the engine (one call at a time, in
the order in which they came), the journal again. Health checks need no key and stay out of the journal.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from generated.qdrant import (
    collections_service_pb2_grpc,
    points_service_pb2_grpc,
    qdrant_pb2,
    qdrant_pb2_grpc,
    snapshots_service_pb2_grpc,
)

from .engine import VERSION, Engine
from .faults import Action, Fault, Faults
from .journal import Journal
from .refusal import Refused

Handler = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]
HEALTH = "/qdrant.Qdrant/HealthCheck"
_READS = frozenset(
    {
        "Get",
        "Scroll",
        "Count",
        "Facet",
        "Query",
        "QueryBatch",
        "QueryGroups",
        "Search",
        "SearchBatch",
        "SearchGroups",
        "Recommend",
        "RecommendBatch",
        "RecommendGroups",
        "Discover",
        "DiscoverBatch",
        "SearchMatrixPairs",
        "SearchMatrixOffsets",
        "List",
        "CollectionExists",
        "ListAliases",
        "ListCollectionAliases",
        "CollectionClusterInfo",
        "ListShardKeys",
        "ListFull",
    }
)
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True, slots=True)
class Keys:
    """Who may call; no key at all = everybody."""

    full: str | None = None
    read_only: str | None = None

    def check(self, method: str, metadata: dict[str, str | bytes]) -> None:
        """Raise Refused unless the metadata carries a key that is good for the method."""
        if self.full is None and self.read_only is None:
            return
        given = metadata.get("api-key")
        bearer = str(metadata.get("authorization", ""))
        if given is None and bearer.startswith("Bearer "):
            given = bearer.removeprefix("Bearer ")
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        if given is None:
            raise Refused(unauthenticated, "Must provide an API key or an Authorization bearer token")
        if self.full is not None and given == self.full:
            return
        if self.read_only is None or given != self.read_only:
            raise Refused(unauthenticated, "Invalid API key or JWT")
        if method.rsplit("/", 1)[-1] not in _READS:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Forbidden: Global write access is required")


class _Collector:
    """Takes the handlers that generated code registers, so that they can be wrapped."""

    def __init__(self) -> None:
        self.types: dict[str, tuple[Callable[[bytes], Message], Callable[..., Any]]] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The old way of registering; the same handlers come by the new one."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Remember the deserializer and the servicer's method of each handler."""
        for name, handler in handlers.items():
            self.types[f"/{service}/{name}"] = (handler.request_deserializer, handler.unary_unary)


class QdrantService(qdrant_pb2_grpc.QdrantServicer):
    """Says hello."""

    def HealthCheck(self, request: Any, context: Any) -> Any:
        """Title and version, as a server gives them."""
        return qdrant_pb2.HealthCheckReply(title="qdrant - vector search engine", version=VERSION, commit="standin")


def _official_methods() -> dict[str, tuple[Callable[[bytes], Message], Callable[..., Any]]]:
    collector: Any = _Collector()
    points_service_pb2_grpc.add_PointsServicer_to_server(points_service_pb2_grpc.PointsServicer(), collector)
    collections_service_pb2_grpc.add_CollectionsServicer_to_server(
        collections_service_pb2_grpc.CollectionsServicer(), collector
    )
    snapshots_service_pb2_grpc.add_SnapshotsServicer_to_server(
        snapshots_service_pb2_grpc.SnapshotsServicer(), collector
    )
    qdrant_pb2_grpc.add_QdrantServicer_to_server(QdrantService(), collector)
    return dict(collector.types)


@dataclass(slots=True)
class Desk:
    """Where calls arrive."""

    engine: Engine
    journal: Journal
    keys: Keys
    thread: ThreadPoolExecutor
    faults: Faults = field(default_factory=Faults)
    counts: Counter[str] = field(default_factory=Counter)
    health: Counter[str] = field(default_factory=Counter)
    types: dict[str, Any] = field(default_factory=_official_methods)

    async def handle(self, method: str, body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """Answer one call with bytes, or abort it with a status."""
        if method not in self.types or not self._is_here(method):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        try:
            if method != HEALTH:
                self.keys.check(method, {str(k): v for k, v in context.invocation_metadata() or ()})
            return await self._handle(method, body, context)
        except Refused as refused:
            await context.abort(refused.code, refused.text)
            raise

    def _is_here(self, method: str) -> bool:
        return method == HEALTH or self.engine.knows(method)

    async def _handle(self, method: str, body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        self.counts[method] += 1
        fault = self.faults.take(method)
        if fault is not None:
            await self._before(fault, method, body, context)
        if method == HEALTH:
            self.health["qdrant"] += 1
            return QdrantService().HealthCheck(None, None).SerializeToString()
        loop = asyncio.get_running_loop()
        # Shielded: a server goes on with what it has begun when the client hangs up.
        answer = await asyncio.shield(loop.run_in_executor(self.thread, self._apply, method, body))
        if fault is not None:
            await self._after(fault, context)
        return answer

    def _apply(self, method: str, body: bytes) -> bytes:
        """In the engine's thread."""
        try:
            request = self.types[method][0](body)
        except DecodeError as error:
            self.journal.answered(self.journal.received(method, None, body), "INTERNAL", str(error))
            text = f"failed to decode Protobuf message: {error}"
            raise Refused(grpc.StatusCode.INTERNAL, text) from error
        seq = self.journal.received(method, request, body)
        try:
            response = self.engine.answer(method, request)
        except Refused as refused:
            self.journal.answered(seq, refused.code.name, refused.text)
            raise
        result: Any = getattr(response, "result", None)
        self.journal.answered(seq, "OK", operation_id=getattr(result, "operation_id", None))
        return response.SerializeToString()

    async def _before(
        self, fault: Fault, method: str, body: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        if fault.action is Action.DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.action is Action.STALL:
            await self.faults.stall(fault)
        if fault.action is Action.FAIL:
            if method != HEALTH:
                seq = self.journal.received(method, None, body, fault=fault.action.value)
                self.journal.answered(seq, fault.code.name, fault.text)
            await context.abort(fault.code, fault.text, trailing_metadata=fault.trailers)

    async def _after(self, fault: Fault, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if fault.action is Action.DIE_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.action is Action.STALL_AFTER:
            await self.faults.stall(fault)
        if fault.action is Action.FAIL_AFTER:
            await context.abort(fault.code, fault.text, trailing_metadata=fault.trailers)

    async def check_health(self, body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """grpc.health.v1 Check."""
        fault = self.faults.take("/grpc.health.v1.Health/Check")
        if fault is not None:
            await self._before(fault, HEALTH, body, context)
        self.health["grpc"] += 1
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()


class Router(grpc.GenericRpcHandler):
    """Every method to the desk, as bytes, so that what cannot be decoded gets Qdrant's answer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler for one call."""
        method = str(handler_call_details.method)
        if method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self._desk.check_health)  # type: ignore[arg-type]

        async def handle(body: bytes, context: Any) -> bytes:
            return await self._desk.handle(method, body, context)

        return grpc.unary_unary_rpc_method_handler(handle)  # type: ignore[arg-type]
