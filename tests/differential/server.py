"""A server over gRPC as an oracle: a real Qdrant, or the stand-in's process."""

from __future__ import annotations

from collections import Counter

import grpc

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_pb2
from server.rpc import COLLECTIONS, HEALTH_CHECK, POINTS

from .answers import ANSWERS
from .calls import Call, Outcome, Refused

DEADLINE_SECONDS = 60.0
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Server:
    """What listens at an address. Collections that a workload makes are dropped at the end."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self.mends = Counter[str]()
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        reply = self._call(HEALTH_CHECK, b"")
        self.version = qdrant_pb2.HealthCheckReply.FromString(reply).version
        self._made: set[str] = set()

    def answer(self, call: Call) -> Outcome:
        """Send one call."""
        if isinstance(call.request, collections.CreateCollection):
            self._made.add(call.request.collection_name)
        try:
            reply = self._call(call.method, call.request.SerializeToString())
        except grpc.RpcError as error:
            return Refused(error.code().name, error.details() or "")
        if not call.is_read and call.method.startswith(POINTS) and not call.request.wait:
            self._catch_up(call.request.collection_name)
        return ANSWERS[call.method].FromString(reply)

    def _catch_up(self, collection: str) -> None:
        """Wait until an acknowledged write is done: a later one, which changes nothing, is waited for."""
        request = pb.DeleteFieldIndexCollection(collection_name=collection, wait=True, field_name="no.such.index")
        self._call(POINTS + "DeleteFieldIndex", request.SerializeToString())

    def _call(self, method: str, body: bytes) -> bytes:
        # No serializers: bytes in, bytes out.
        return bytes(self._channel.unary_unary(method)(body, timeout=DEADLINE_SECONDS))

    def close(self) -> None:
        """Drop what the workload made and hang up."""
        for name in sorted(self._made):
            self._call(COLLECTIONS + "Delete", collections.DeleteCollection(collection_name=name).SerializeToString())
        self._channel.close()
