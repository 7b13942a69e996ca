"""A bare grpc.aio raw passthrough proxy: the baseline that Understudy is measured against.

It does what any proxy must do (raw bytes, metadata, deadline, status, trailers) and nothing else.
`python -m bench.passthrough --upstream HOST:PORT [--listen HOST:PORT]` prints `listening on HOST:PORT`.
"""

from __future__ import annotations

import argparse
import asyncio

import grpc
import grpc.aio

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]
SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]


class Passthrough(grpc.GenericRpcHandler):
    """Any method, sent on as it came."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """See grpc.GenericRpcHandler."""
        handler = self._handlers.get(details.method)
        if handler is None:
            handler = self._handlers[details.method] = self._forwarding(details.method)
        return handler

    def _forwarding(self, method: str) -> grpc.RpcMethodHandler:
        send = self._channel.unary_unary(method)

        async def forward(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            metadata = tuple(pair for pair in context.invocation_metadata() if pair[0] != "user-agent")
            call = send(body, timeout=context.time_remaining(), metadata=metadata)
            try:
                answer = await call
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            if initial := await call.initial_metadata():
                await context.send_initial_metadata(tuple(initial))
            if trailers := await call.trailing_metadata():
                context.set_trailing_metadata(tuple(trailers))
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    options = parser.parse_args()
    async with grpc.aio.insecure_channel(options.upstream, options=CHANNEL_OPTIONS) as channel:
        server = grpc.aio.server(handlers=(Passthrough(channel),), options=SERVER_OPTIONS)
        port = server.add_insecure_port(options.listen)
        await server.start()
        print(f"listening on {options.listen.rpartition(':')[0]}:{port}", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
