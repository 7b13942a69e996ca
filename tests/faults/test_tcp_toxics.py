"""The toxics do what they say, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

import pytest

from tests.faults.tcp_toxics import TcpToxics

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Echo:
    """Sends back what it gets; remembers it."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.heard = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1000):
                self.chunks.append(chunk)
                self.heard.set()
                writer.write(chunk)
            writer.write(b"!")
            writer.write_eof()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, TcpToxics]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with TcpToxics(*server.sockets[0].getsockname()) as toxics:
        yield echo, toxics
    server.close()


Connect: TypeAlias = Callable[[TcpToxics], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    writers: list[asyncio.StreamWriter] = []

    async def connect(toxics: TcpToxics) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = toxics.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_clean_bytes_pass_unchanged_and_half_closed_streams_too(
    echo: tuple[Echo, TcpToxics], connect: Connect
) -> None:
    _, toxics = echo
    reader, writer = await connect(toxics)
    sent = bytes(range(256)) * 1000
    writer.write(sent)
    writer.write_eof()
    assert await reader.read(-1) == sent + b"!"


async def test_slices_arrive_whole(echo: tuple[Echo, TcpToxics], connect: Connect) -> None:
    _, toxics = echo
    toxics.slice(3)
    reader, writer = await connect(toxics)
    writer.write(b"0123456789")
    assert await reader.readexactly(10) == b"0123456789"


async def test_latency_holds_a_chunk_until_the_toxic_is_taken_away(
    echo: tuple[Echo, TcpToxics], connect: Connect
) -> None:
    behind, toxics = echo
    toxics.delay(3600)
    reader, writer = await connect(toxics)
    writer.write(b"late")
    answer = asyncio.ensure_future(reader.readexactly(4))
    while toxics.open_links == 0:
        await asyncio.wait((answer,), timeout=0.01)
    assert not behind.chunks
    toxics.delay(0)
    # A second chunk: the first may still have been on its way to the toxic.
    writer.write(b"r")
    assert await answer == b"late"


async def test_latency_lets_go_by_itself(echo: tuple[Echo, TcpToxics], connect: Connect) -> None:
    _, toxics = echo
    toxics.delay(0.01)
    reader, writer = await connect(toxics)
    writer.write(b"late")
    assert await reader.readexactly(4) == b"late"


async def test_black_hole_holds_bytes_and_connections_stay_open(echo: tuple[Echo, TcpToxics], connect: Connect) -> None:
    behind, toxics = echo
    reader, writer = await connect(toxics)
    writer.write(b"a")
    assert await reader.readexactly(1) == b"a"
    toxics.black_hole(on=True)
    writer.write(b"b")
    second_reader, second_writer = await connect(toxics)
    second_writer.write(b"c")
    done, _ = await asyncio.wait(
        (asyncio.ensure_future(reader.read(1)), asyncio.ensure_future(second_reader.read(1))), timeout=0.1
    )
    assert not done
    assert behind.chunks == [b"a"]
    toxics.black_hole(on=False)
    while len(behind.chunks) < 3:
        behind.heard.clear()
        await behind.heard.wait()
    assert sorted(behind.chunks) == [b"a", b"b", b"c"]


async def test_reset_is_a_reset(echo: tuple[Echo, TcpToxics], connect: Connect) -> None:
    _, toxics = echo
    reader, writer = await connect(toxics)
    writer.write(b"a")
    await reader.readexactly(1)
    await toxics.reset()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    assert toxics.open_links == 0
    # New connections are fine.
    reader, writer = await connect(toxics)
    writer.write(b"b")
    assert await reader.readexactly(1) == b"b"


async def test_refuse_and_accept_keep_the_port_and_open_connections(
    echo: tuple[Echo, TcpToxics], connect: Connect
) -> None:
    _, toxics = echo
    reader, writer = await connect(toxics)
    writer.write(b"a")
    await reader.readexactly(1)
    await toxics.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect(toxics)
    writer.write(b"b")
    assert await reader.readexactly(1) == b"b"
    await toxics.accept()
    await connect(toxics)


async def test_nobody_behind_is_a_reset(connect: Connect) -> None:
    async with TcpToxics("127.0.0.1", 1) as toxics:
        reader, _ = await connect(toxics)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)


@pytest.mark.parametrize("turns", range(6))
def test_who_connects_just_before_the_end_is_closed_too(turns: int) -> None:
    async def connect_and_close() -> None:
        with socket.create_server(("127.0.0.1", 0)) as behind:
            toxics = TcpToxics(*behind.getsockname())
            await toxics.accept()
            host, port = toxics.address.split(":")
            with socket.create_connection((host, int(port))):
                for _ in range(turns):
                    await asyncio.sleep(0)
                await toxics.close()

    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always")
        asyncio.run(connect_and_close())
        gc.collect()
    assert [str(one.message) for one in left_open] == []


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, 0]) + struct.pack(">I", 1) + payload


@pytest.mark.parametrize("slice_bytes", [0, 1, 4])
async def test_cut_at_response_lets_other_frames_pass(slice_bytes: int, connect: Connect) -> None:
    heard = asyncio.Event()
    # A settings frame whose payload looks like a frame of headers, then the response.
    settings, response = frame(4, frame(1, b"fake")), frame(1, b"answer")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        step = slice_bytes or 1000
        for at in range(0, len(settings), step):
            writer.write(settings[at : at + step])
            await writer.drain()
        await reader.readexactly(7)
        heard.set()
        writer.write(response)
        # Until the cut.
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with TcpToxics(*server.sockets[0].getsockname()) as toxics:
        toxics.cut_at_response()
        reader, writer = await connect(toxics)
        assert await reader.readexactly(len(settings)) == settings
        writer.write(b"request")
        await heard.wait()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        await toxics.response_was_cut()
        assert toxics.responses_cut == 1
        # One cut was asked for: the next response passes.
        reader, writer = await connect(toxics)
        writer.write(b"request")
        assert await reader.readexactly(len(settings) + len(response)) == settings + response
    server.close()
