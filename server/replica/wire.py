"""Frames between the proxy and its replica process, over one Unix socket.

    frame = u32 length of head ‖ u32 length of body ‖ head ‖ body      little-endian

The head is a `Question` from the proxy, an `Answer` from the replica; the body is the request or the response of the
method, apart so that a large one is copied as seldom as can be.

Promises: a frame is handed on whole or not at all, in the order of its arrival; who sends waits while the other side
does not read. A frame longer than any may be ends the connection. Does not know calls: see `asking` and `answering`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable

from generated.understudy.replica.v1 import wire_pb2
from server.rpc import Metadata

_LENGTHS = struct.Struct("<II")
_HEAD_LIMIT_BYTES = 1 << 24
# No protobuf message is longer.
_BODY_LIMIT_BYTES = (1 << 31) - 1
# Up to here one copy costs less than a second call of the kernel.
_JOINED_BYTES = 1 << 16


def packed(metadata: Metadata) -> list[wire_pb2.Metadatum]:
    """Metadata for a head. What is not text is for Qdrant only."""
    return [wire_pb2.Metadatum(key=key, value=value) for key, value in metadata if isinstance(value, str)]


def unpacked(metadata: Iterable[wire_pb2.Metadatum]) -> Metadata:
    """The inverse."""
    return tuple((one.key, one.value) for one in metadata)


class Frames(asyncio.Protocol):
    """One end of a connection. `received` gets head and body of each frame, `ended` is called once, after the last."""

    def __init__(self, received: Callable[[bytes, bytes], None], ended: Callable[[], None]) -> None:
        self._received = received
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._turn = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether something sent now may arrive."""
        return self._transport is not None and not self._transport.is_closing()

    def put(self, head: bytes, body: bytes = b"") -> None:
        """Send one frame; on a connection that is gone, do nothing: `ended` tells of it.

        Raises ValueError for a frame that is longer than any may be.
        """
        if len(head) > _HEAD_LIMIT_BYTES or len(body) > _BODY_LIMIT_BYTES:
            raise ValueError(f"a frame of {len(head)} + {len(body)} bytes is too long")
        if self._transport is None or not self.is_open:
            return
        start = _LENGTHS.pack(len(head), len(body)) + head
        if len(body) <= _JOINED_BYTES:
            self._transport.write(start + body)
        else:
            self._transport.write(start)
            self._transport.write(body)

    async def send(self, head: bytes, body: bytes = b"") -> None:
        """The same once there is room, each in its turn, and wait until there is room for the next one."""
        if self._turn.locked() or not self._may_write.is_set():
            async with self._turn:
                await self._may_write.wait()
                self.put(head, body)
        else:
            self.put(head, body)
        await self._may_write.wait()

    def close(self) -> None:
        """End the connection once everything that was put is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._buffer += data
        start = 0
        with memoryview(self._buffer) as view:
            while len(view) >= start + _LENGTHS.size:
                head_bytes, body_bytes = _LENGTHS.unpack_from(view, start)
                if head_bytes > _HEAD_LIMIT_BYTES or body_bytes > _BODY_LIMIT_BYTES:
                    self.abort()
                    return
                middle = start + _LENGTHS.size + head_bytes
                if len(view) < middle + body_bytes:
                    break
                head, body = bytes(view[start + _LENGTHS.size : middle]), bytes(view[middle : middle + body_bytes])
                start = middle + body_bytes
                self._received(head, body)
        del self._buffer[:start]

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._may_write.set()
        self._ended()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._may_write.set()
