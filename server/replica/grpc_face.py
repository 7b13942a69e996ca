"""The gRPC face of a replica that runs alone: the Qdrant API, as raw bytes.

Promises: statuses, texts and trailing metadata as the backend gives them. Does not check credentials.
"""

from __future__ import annotations

from typing import TypeAlias

import grpc
import grpc.aio

from server.rpc import GRPC_HEALTH_CHECK, METHODS, Backend, Call

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.http2.max_ping_strikes", 0),
)


def grpc_server(backend: Backend) -> grpc.aio.Server:
    """A server that answers with this backend; ports are the caller's to add."""
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_Router(backend),))
    return server


class _Router(grpc.GenericRpcHandler):
    """Hands every method of the Qdrant API, and the standard question for health, to the backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """See grpc.GenericRpcHandler."""
        method: str = details.method
        if method not in METHODS and method != GRPC_HEALTH_CHECK:
            return None

        async def handle(body: bytes, context: _Context) -> bytes:
            metadata = tuple((key, value) for key, value in context.invocation_metadata() or ())
            reply = await self._backend.handle(Call(method, body, metadata))
            context.set_trailing_metadata(reply.trailers)
            if not reply.is_ok:
                await context.abort(_STATUS[int(reply.code)], reply.details)
            return reply.body

        return grpc.unary_unary_rpc_method_handler(handle)
