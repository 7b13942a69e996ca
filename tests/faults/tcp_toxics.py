"""A TCP proxy that can be told to be bad, in front of any server.

Promises: bytes arrive in order and unchanged until a toxic says otherwise; a toxic takes effect on connections that are
open already. `close` leaves no task and no socket. Toxics: `latency_seconds`, `slice_bytes`, `black_hole` (held, not
lost), `refuse`, `reset`, `cut_at_response`. Counts `accepted` connections and `bytes_back` to clients. One event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType

_CHUNK_BYTES = 65536
_FRAME_HEADER_BYTES = 9
_HEADERS_FRAME = 1


class TcpToxics:
    """`async with TcpToxics(host, port) as toxics: connect(toxics.address)`."""

    def __init__(self, host: str, port: int) -> None:
        self.latency_seconds = 0.0
        self.slice_bytes = 0
        self.accepted = 0
        self.responses_cut = 0
        self.bytes_back = 0
        self._target = (host, port)
        self._port = 0
        self._cuts_left = 0
        self._changed = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut = asyncio.Event()
        self._listener: socket.socket | None = None
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    @property
    def address(self) -> str:
        """HOST:PORT to connect to; stays the same through `refuse` and `accept`."""
        return f"127.0.0.1:{self._port}"

    @property
    def open_links(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    # --- toxics ------------------------------------------------------------------------------------------------------

    def delay(self, seconds: float) -> None:
        """Hold every chunk this long, each way; 0 lets go of what is held."""
        self.latency_seconds = seconds
        self._changed.set()
        self._changed = asyncio.Event()

    def slice(self, size_bytes: int) -> None:
        """Pass on pieces of this size, one write each; 0 = as they come."""
        self.slice_bytes = size_bytes

    def black_hole(self, *, on: bool) -> None:
        """Pass on nothing and say nothing, on old and new connections. Off: what was held goes on its way."""
        if on:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def refuse(self) -> None:
        """Refuse new connections. Open ones go on."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    async def accept(self) -> None:
        """Listen (again), on the same port."""
        if self._listener is None:
            # asyncio's own server drops what it has accepted and not yet begun to serve when it is closed.
            self._listener = listener = socket.create_server(("127.0.0.1", self._port))
            listener.setblocking(False)
            self._port = listener.getsockname()[1]
            asyncio.get_running_loop().add_reader(listener, self._connected, listener)

    async def reset(self) -> None:
        """RST on every open connection, both sides."""
        for writers in self._links.values():
            for writer in writers:
                _reset(writer)
        await self._links_end()

    def cut_at_response(self, times: int = 1) -> None:
        """HTTP/2: reset a connection in place of the next response, after the server has applied the request."""
        self._cuts_left = times
        self._cut.clear()

    async def response_was_cut(self) -> None:
        """Wait until the last of those cuts has happened."""
        await self._cut.wait()

    # --- life --------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        await self.refuse()
        for link in list(self._links):
            link.cancel()
        await self._links_end()

    async def __aenter__(self) -> TcpToxics:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _links_end(self) -> None:
        if self._links:
            await asyncio.wait(list(self._links))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _connected(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            # Gone before it was let in.
            return
        self.accepted += 1
        link = asyncio.get_running_loop().create_task(self._serve(client))
        self._links[link] = []
        # A task that is cancelled before it begins does nothing of its own.
        link.add_done_callback(lambda _: client.close())
        link.add_done_callback(self._links.pop)

    async def _serve(self, client: socket.socket) -> None:
        link = asyncio.current_task()
        assert link is not None
        try:
            reader, writer = await asyncio.open_connection(sock=client)
            self._links[link].append(writer)
            there, back = await asyncio.open_connection(*self._target)
            self._links[link].append(back)
            await self._join(reader, writer, there, back)
        except (OSError, asyncio.CancelledError):
            # Nobody behind, or closed by the test: the client sees a reset.
            pass
        finally:
            for one in self._links[link]:
                _reset(one)
                with contextlib.suppress(OSError):
                    await one.wait_closed()

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> None:
        pumps = [
            asyncio.ensure_future(self._pump(reader, back, None)),
            asyncio.ensure_future(self._pump(there, writer, _Frames())),
        ]
        try:
            # A half that ends leaves the other open, as in TCP; an error ends both.
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: _Frames | None) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await self._flowing.wait()
            if self.latency_seconds:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.latency_seconds):
                        await self._changed.wait()
            if frames is not None and frames.has_response(chunk) and self._cuts_left:
                self._cuts_left -= 1
                self.responses_cut += 1
                if not self._cuts_left:
                    self._cut.set()
                raise ConnectionResetError("cut by the test")
            if frames is not None:
                self.bytes_back += len(chunk)
            step = self.slice_bytes or len(chunk)
            for start in range(0, len(chunk), step):
                writer.write(chunk[start : start + step])
                await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class _Frames:
    """Finds HEADERS frames in what an HTTP/2 server sends."""

    def __init__(self) -> None:
        self._header = b""
        self._skip = 0

    def has_response(self, chunk: bytes) -> bool:
        found = False
        while chunk:
            if self._skip:
                skipped = min(self._skip, len(chunk))
                self._skip -= skipped
                chunk = chunk[skipped:]
                continue
            missing = _FRAME_HEADER_BYTES - len(self._header)
            self._header += chunk[:missing]
            chunk = chunk[missing:]
            if len(self._header) == _FRAME_HEADER_BYTES:
                self._skip = int.from_bytes(self._header[:3], "big")
                found = found or self._header[3] == _HEADERS_FRAME
                self._header = b""
        return found


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
