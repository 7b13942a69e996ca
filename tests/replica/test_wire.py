"""The socket between the proxy and its replica process: real sockets, both ends, and strangers on either side."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from generated.understudy.replica.v1 import wire_pb2
from server.errors import UpstreamUnreachable
from server.replica.answering import Answering
from server.replica.asking import Asking
from server.rpc import GRPC_HEALTH_CHECK, Backend, Call, Code, Reply

LARGE = 64 * 1024 * 1024


class Echo:
    """Answers with what it was asked; `hold` keeps it from answering what asks to be held."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.asked: list[Call] = []
        self.cancelled: list[str] = []

    async def handle(self, call: Call) -> Reply:
        """See Backend."""
        self.asked.append(call)
        try:
            if call.method == "/held":
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled.append(call.method)
            raise
        if call.method == "/broken":
            raise RuntimeError("broken by the test")
        if call.method == "/unspeakable":
            return Reply(code=Code.NOT_FOUND, details="\ud800")
        if call.method == "/endless":
            return Reply(code=Code.NOT_FOUND, details="x" * (1 << 24))
        if call.method == "/refused":
            return Reply(code=Code.NOT_FOUND, details="no such thing ä", trailers=(("a", "1"), ("b", "2")))
        return Reply(call.body, trailers=(("method", call.method),))


@asynccontextmanager
async def serving(backend: Backend, folder: Path) -> AsyncIterator[Path]:
    """A socket on which the backend answers."""
    answering = Answering(backend)
    await answering.start(folder / "s")
    try:
        yield folder / "s"
    finally:
        await answering.stop(0.0)


@asynccontextmanager
async def connected(backend: Backend, folder: Path) -> AsyncIterator[Asking]:
    """Both ends."""
    async with serving(backend, folder) as path:
        asking = await Asking.connect(path)
        try:
            yield asking
        finally:
            asking.close()


@asynccontextmanager
async def facing_a_stranger(folder: Path) -> AsyncIterator[tuple[Asking, socket.socket]]:
    """The proxy's end, and the bare socket that it is connected to."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        asking = await Asking.connect(folder / "s")
        peer, _ = listener.accept()
        with peer:
            yield asking, peer
        asking.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until the condition holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0)


def frame(head: bytes, body: bytes = b"") -> bytes:
    """As the docstring of `wire` draws it."""
    return struct.pack("<II", len(head), len(body)) + head + body


def question(number: int, method: str) -> bytes:
    """A head."""
    return wire_pb2.Question(number=number, method=method).SerializeToString()


async def test_call_and_reply_come_through_as_they_are(tmp_path: Path) -> None:
    echo = Echo()
    async with connected(echo, tmp_path) as asking:
        metadata = (("x-understudy-explain", "1"), ("trace-bin", b"\x00\xff"))
        assert await asking.handle(Call("/a.B/C", b"\x00body", metadata)) == Reply(
            b"\x00body", trailers=(("method", "/a.B/C"),)
        )
        assert echo.asked == [Call("/a.B/C", b"\x00body", (("x-understudy-explain", "1"),))]
        assert await asking.handle(Call("/refused", b"")) == Reply(
            code=Code.NOT_FOUND, details="no such thing ä", trailers=(("a", "1"), ("b", "2"))
        )
        assert await asking.is_there(5.0)
        assert echo.asked[-1].method == GRPC_HEALTH_CHECK


async def test_answers_come_in_any_order_each_to_its_question(tmp_path: Path) -> None:
    echo = Echo()
    async with connected(echo, tmp_path) as asking:
        held = [asyncio.create_task(asking.handle(Call("/held", str(n).encode()))) for n in range(50)]
        quick = await asyncio.gather(*(asking.handle(Call("/quick", str(n).encode())) for n in range(50)))
        assert [reply.body for reply in quick] == [str(n).encode() for n in range(50)]
        assert not any(task.done() for task in held)
        echo.hold.set()
        assert [reply.body for reply in await asyncio.gather(*held)] == [str(n).encode() for n in range(50)]


async def test_large_ones_come_through_and_others_pass(tmp_path: Path) -> None:
    async with connected(Echo(), tmp_path) as asking:
        body = bytes(range(256)) * (LARGE // 256)
        large = asyncio.create_task(asking.handle(Call("/large", body)))
        replies = await asyncio.gather(*(asking.handle(Call("/small", str(n).encode())) for n in range(20)))
        assert [reply.body for reply in replies] == [str(n).encode() for n in range(20)]
        assert (await large).body == body


@pytest.mark.parametrize("method", ["/broken", "/unspeakable", "/endless"])
async def test_what_cannot_be_answered_is_said_to_the_one_who_asked(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(Echo(), tmp_path) as asking:
        reply = await asking.handle(Call(method, b""))
        assert reply.code is Code.INTERNAL
        assert method in reply.details
        assert f"{method} is not answered" in caplog.text
        assert (await asking.handle(Call("/other", b"x"))).body == b"x"


async def test_what_is_given_up_is_taken_back(tmp_path: Path) -> None:
    echo = Echo()
    async with connected(echo, tmp_path) as asking:
        waiting = asyncio.create_task(asking.handle(Call("/held", b"")))
        await until(lambda: bool(echo.asked))
        waiting.cancel()
        await until(lambda: bool(echo.cancelled))
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await asking.handle(Call("/after", b"x"))).body == b"x"


async def test_an_end_of_the_connection_is_told_to_all_who_wait(tmp_path: Path) -> None:
    echo = Echo()
    async with serving(echo, tmp_path) as path:
        asking = await Asking.connect(path)
        waiting = [asyncio.create_task(asking.handle(Call("/held", b""))) for _ in range(3)]
        await until(lambda: len(echo.asked) == 3)
    for task in waiting:
        with pytest.raises(UpstreamUnreachable) as lost:
            await task
        assert lost.value.maybe_applied
    assert len(echo.cancelled) == 3
    with pytest.raises(UpstreamUnreachable) as refused:
        await asking.handle(Call("/after", b""))
    assert not refused.value.maybe_applied
    assert not await asking.is_there(5.0)


async def test_a_proxy_that_ends_takes_its_questions_with_it(tmp_path: Path) -> None:
    echo = Echo()
    async with serving(echo, tmp_path) as path:
        asking = await Asking.connect(path)
        waiting = asyncio.create_task(asking.handle(Call("/held", b"")))
        await until(lambda: bool(echo.asked))
        asking.close()
        with pytest.raises(UpstreamUnreachable, match="closed by Understudy"):
            await waiting
        await until(lambda: bool(echo.cancelled))


async def test_a_stop_lets_answers_out_that_come_in_time(tmp_path: Path) -> None:
    echo = Echo()
    answering = Answering(echo)
    await answering.start(tmp_path / "s")
    asking = await Asking.connect(tmp_path / "s")
    waiting = asyncio.create_task(asking.handle(Call("/held", b"x" * 1_000_000)))
    await until(lambda: bool(echo.asked))
    stopping = asyncio.create_task(answering.stop(20.0))
    await asyncio.sleep(0)
    echo.hold.set()
    assert (await waiting).body == b"x" * 1_000_000
    await stopping
    asking.close()


async def test_frames_may_come_byte_by_byte_and_many_at_once(tmp_path: Path) -> None:
    async with serving(Echo(), tmp_path) as path:
        reader, writer = await asyncio.open_unix_connection(str(path))
        for byte in frame(question(1, "/slow"), b"body"):
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"".join(frame(question(number, "/many"), str(number).encode()) for number in range(2, 200)))
        bodies = {}
        for _ in range(199):
            lengths = struct.unpack("<II", await reader.readexactly(8))
            head, body = [await reader.readexactly(length) for length in lengths]
            bodies[wire_pb2.Answer.FromString(head).number] = body
        assert bodies == {1: b"body", **{number: str(number).encode() for number in range(2, 200)}}
        writer.close()


@pytest.mark.parametrize(
    "said",
    [
        frame(b"\xff\xff\xff"),
        struct.pack("<II", 1 << 30, 0),
        struct.pack("<II", 0, (1 << 32) - 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["no question", "long head", "long body", "another protocol"],
)
async def test_who_talks_nonsense_is_left_and_the_others_are_served(tmp_path: Path, said: bytes) -> None:
    async with connected(Echo(), tmp_path) as asking:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(said)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        assert (await asking.handle(Call("/other", b"x"))).body == b"x"


@pytest.mark.parametrize(
    "said",
    [frame(b"\xff\xff\xff"), frame(wire_pb2.Answer(number=1, code=99).SerializeToString())],
    ids=["head", "code"],
)
async def test_a_replica_that_talks_nonsense_counts_as_gone(tmp_path: Path, said: bytes) -> None:
    async with facing_a_stranger(tmp_path) as (asking, peer):
        waiting = asyncio.create_task(asking.handle(Call("/held", b"")))
        await asyncio.sleep(0)
        peer.sendall(said)
        with pytest.raises(UpstreamUnreachable):
            await waiting


async def test_who_sends_waits_while_nobody_reads(tmp_path: Path) -> None:
    async with facing_a_stranger(tmp_path) as (asking, peer):
        waiting = asyncio.create_task(asking.handle(Call("/large", bytes(LARGE))))
        assert not await asking.is_there(0.05)
        assert not waiting.done()
        peer.close()
        with pytest.raises(UpstreamUnreachable):
            await waiting


async def test_what_was_given_up_before_there_was_room_is_never_sent(tmp_path: Path) -> None:
    body = bytes(5_000_000)
    async with facing_a_stranger(tmp_path) as (asking, peer):
        given_up = [asyncio.create_task(asking.handle(Call("/large", body))) for _ in range(10)]
        await asyncio.sleep(0)
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
        last = asyncio.create_task(asking.handle(Call("/last", b"")))
        heard = 0
        peer.settimeout(20)
        while not (said := await asyncio.to_thread(peer.recv, 1 << 20)).endswith(b"/last"):
            heard += len(said)
        assert heard < 2 * len(body)
        peer.sendall(frame(wire_pb2.Answer(number=11).SerializeToString()))
        assert await last == Reply()


async def test_many_at_once_are_sent_in_turn_and_the_connection_may_end_meanwhile(tmp_path: Path) -> None:
    async with facing_a_stranger(tmp_path) as (asking, peer):
        waiting = [asyncio.create_task(asking.handle(Call("/large", bytes(1_000_000)))) for _ in range(10)]
        await asyncio.sleep(0)
        peer.close()
        for lost in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20):
            assert isinstance(lost, UpstreamUnreachable)
