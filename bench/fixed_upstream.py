"""A Qdrant that answers every call with the same ready-made bytes: the floor of what a proxy costs.

`python -m bench.fixed_upstream --listen 127.0.0.1:0` prints `listening on HOST:PORT`.
"""

from __future__ import annotations

import argparse
import asyncio

import grpc

from generated.qdrant import points_pb2, qdrant_pb2
from generated.qdrant import qdrant_common_pb2 as common

POINTS = 10


def ready_answer() -> bytes:
    """A QueryResponse of ten points with a small payload."""
    response = points_pb2.QueryResponse(time=0.001)
    for number in range(POINTS):
        point = response.result.add(id=common.PointId(num=number), score=1.0 - number / 100, version=number)
        point.payload["title"].string_value = f"a document with the number {number}"
        point.payload["tag"].string_value = "news"
        point.payload["year"].integer_value = 2000 + number
    return response.SerializeToString()


class Handler(grpc.GenericRpcHandler):
    """Any method, one answer."""

    def __init__(self) -> None:
        answer = ready_answer()
        health = qdrant_pb2.HealthCheckReply(title="fixed", version="1.18.3").SerializeToString()
        serving = b"\x08\x01"

        async def query(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
            return answer

        async def health_check(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
            return health

        async def grpc_health(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
            return serving

        async def nothing(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
            return b""

        self._rows = {
            "/qdrant.Points/Query": grpc.unary_unary_rpc_method_handler(query),
            "/qdrant.Qdrant/HealthCheck": grpc.unary_unary_rpc_method_handler(health_check),
            "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(grpc_health),
        }
        self._other = grpc.unary_unary_rpc_method_handler(nothing)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The row of a method."""
        return self._rows.get(handler_call_details.method, self._other)


async def serve(listen: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port(listen)
    await server.start()
    print(f"listening on {listen.rsplit(':', 1)[0]}:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0")
    asyncio.run(serve(parser.parse_args().listen))
