"""A Qdrant that holds one collection of any size in no memory, and answers pages of it at once.

`python -m bench.scroll_upstream --points 100000 --listen 127.0.0.1:0` prints `listening on HOST:PORT`. Point N has a
vector of its own (its first number is N), a payload of `--payload-bytes` of text and a key `n`. It serves what
hydration asks for (catalogue, Count, Scroll, Get) and a fixed answer to Query; pages that were asked for once are kept
while they fit, so that a second scroll of the same pages measures the reader alone.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import grpc
import numpy as np
from google.protobuf.message import Message

from bench.fixed_upstream import ready_answer
from generated.qdrant import collections_pb2, points_pb2, qdrant_pb2
from generated.qdrant import qdrant_common_pb2 as common

COLLECTION = "bulk"
DISTINCT = 1024
DISTINCT_BYTES = 16 * 1024 * 1024
KEPT_BYTES = 512 * 1024 * 1024
TEXT = """the river keeps its course between meadows and a small town where people trade wool salt paper and news
every week a boat brings letters for the school and the mill its keeper writes down who came and what they paid"""
WORDS = TEXT.split()


class Points:
    """Points as the bytes of a ScrollResponse; only their numbers are put in when they are asked for."""

    def __init__(self, count: int, size: int, payload_bytes: int, version: str = "1.18.3") -> None:
        self.count = count
        self.size = size
        self.version = version
        has_oneof = tuple(map(int, version.split(".")[:2])) >= (1, 17)
        random_state = np.random.default_rng(7)
        words = random.Random(7)
        self._bodies: list[tuple[bytes, bytes]] = []
        for _ in range(min(DISTINCT, DISTINCT_BYTES // (4 * size + payload_bytes) + 1, count)):
            vector = random_state.standard_normal(size).astype("<f4")
            point = points_pb2.RetrievedPoint()
            output = point.vectors.vector
            (output.dense if has_oneof else output).data.extend(vector)
            point.payload["text"].string_value = _text(words, payload_bytes)
            body = point.SerializeToString(deterministic=True)
            at = body.index(vector.tobytes())
            self._bodies.append((body[:at], body[at + 4 :]))
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._kept_bytes = 0

    def page(self, first: int, limit: int) -> bytes:
        """A ScrollResponse of the points from `first` on."""
        known = self._kept.get((first, limit))
        if known is not None:
            return known
        after = min(first + limit, self.count)
        response = points_pb2.ScrollResponse(time=0.001)
        if after < self.count:
            response.next_page_offset.num = after
        body = response.SerializeToString() + b"".join(self._point(2, number) for number in range(first, after))
        self._kept[first, limit] = body
        self._kept_bytes += len(body)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return body

    def some(self, numbers: Sequence[int]) -> bytes:
        """A GetResponse of these points."""
        return b"".join(self._point(1, number) for number in numbers if number < self.count)

    def _point(self, field: int, number: int) -> bytes:
        before, behind = self._bodies[number % len(self._bodies)]
        own = points_pb2.RetrievedPoint(id=common.PointId(num=number))
        own.payload["n"].integer_value = number
        body = b"".join((own.SerializeToString(), before, struct.pack("<f", number), behind))
        return bytes((field << 3 | 2,)) + _varint(len(body)) + body


def _text(words: random.Random, length: int) -> str:
    return " ".join(words.choices(WORDS, k=length // 3 + 1))[:length]


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*digits, number))


class Handler(grpc.GenericRpcHandler):
    """What hydration and a reading client ask."""

    def __init__(self, points: Points) -> None:
        self._points = points
        params = collections_pb2.VectorParams(size=points.size, distance=collections_pb2.Distance.Euclid)
        info = collections_pb2.CollectionInfo(
            status=collections_pb2.CollectionStatus.Green, points_count=points.count, segments_count=1
        )
        info.config.params.vectors_config.params.CopyFrom(params)
        listed = collections_pb2.ListCollectionsResponse(
            collections=[collections_pb2.CollectionDescription(name=COLLECTION)]
        )
        ready: dict[str, Message | bytes] = {
            "/qdrant.Points/Query": ready_answer(),
            "/qdrant.Points/Count": points_pb2.CountResponse(result=points_pb2.CountResult(count=points.count)),
            "/qdrant.Qdrant/HealthCheck": qdrant_pb2.HealthCheckReply(title="scroll", version=points.version),
            "/grpc.health.v1.Health/Check": b"\x08\x01",
            "/qdrant.Collections/List": listed,
            "/qdrant.Collections/Get": collections_pb2.GetCollectionInfoResponse(result=info),
            "/qdrant.Collections/ListAliases": collections_pb2.ListAliasesResponse(),
            "/qdrant.Points/Upsert": points_pb2.PointsOperationResponse(
                result=points_pb2.UpdateResult(status=points_pb2.UpdateStatus.Completed)
            ),
        }
        self._rows = {path: grpc.unary_unary_rpc_method_handler(_always(answer)) for path, answer in ready.items()}
        self._rows["/qdrant.Points/Scroll"] = grpc.unary_unary_rpc_method_handler(self._scroll)
        self._rows["/qdrant.Points/Get"] = grpc.unary_unary_rpc_method_handler(self._get)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The row of a method."""
        return self._rows.get(handler_call_details.method)

    async def _scroll(self, body: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        request = points_pb2.ScrollPoints.FromString(body)
        return self._points.page(request.offset.num, request.limit)

    async def _get(self, body: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return self._points.some([each.num for each in points_pb2.GetPoints.FromString(body).ids])


def _always(answer: Message | bytes) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
    body = answer if isinstance(answer, bytes) else answer.SerializeToString()

    async def handle(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return body

    return handle


async def serve(listen: str, points: Points) -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((Handler(points),))
    port = server.add_insecure_port(listen)
    await server.start()
    print(f"listening on {listen.rsplit(':', 1)[0]}:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=384, help="numbers in a vector")
    parser.add_argument("--payload-bytes", type=int, default=1024)
    parser.add_argument("--version", default="1.18.3", help="below 1.17 vectors come in the deprecated fields")
    chosen = parser.parse_args()
    held = Points(chosen.points, chosen.size, chosen.payload_bytes, chosen.version)
    asyncio.run(serve(chosen.listen, held))
