"""Upstream against a real server: what passes, both ways, and how a call ends from our side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.clock import SystemClock
from server.errors import UpstreamTimeout, UpstreamUnreachable
from server.rpc import Call, Code
from server.upstream import MAX_PREPARED_METHODS, Connectivity, Upstream
from tests.faults.clock import ManualClock
from tests.faults.grpc_peer import ECHO, HANG, NOT_SERVING, SAY, SERVING, SET_HEALTH, VERSION, GrpcPeer, rounded_up

CLOCK = SystemClock()
PROBE_SECONDS = 20.0


@pytest.fixture
async def peer() -> AsyncIterator[GrpcPeer]:
    async with GrpcPeer() as peer:
        yield peer


@pytest.fixture
async def upstream(peer: GrpcPeer) -> AsyncIterator[Upstream]:
    upstream = Upstream(peer.address, clock=CLOCK, api_key="ours")
    yield upstream
    await upstream.close()


def in_seconds(seconds: float) -> float:
    return CLOCK.monotonic() + seconds


async def test_body_and_metadata_pass_both_ways(upstream: Upstream) -> None:
    sent = (("api-key", "theirs"), ("x-blob-bin", b"\x00\xff\x01"), ("x-twice", "1"), ("x-twice", "2"))
    reply = await upstream.handle(Call(ECHO, b"\x00raw\xff", metadata=(*sent, ("user-agent", "client"))))
    assert reply.is_ok
    assert reply.body == b"\x00raw\xff"
    assert reply.initial == (("x-initial", "first"), ("x-initial-bin", b"\x00\xff"))
    echoed = [(key, value) for key, value in reply.trailers if key.startswith("got-")]
    assert [(f"got-{key}", value) for key, value in sent] == [pair for pair in echoed if pair[0] != "got-user-agent"]
    assert dict(echoed)["got-user-agent"] != "client"
    assert dict(reply.trailers)["x-deadline"] == "none"


async def test_the_configured_key_is_never_added_to_a_forwarded_call(upstream: Upstream) -> None:
    reply = await upstream.handle(Call(ECHO, b""))
    assert "got-api-key" not in dict(reply.trailers)
    own = await upstream.handle(Call(ECHO, b"", metadata=upstream.own_metadata))
    assert dict(own.trailers)["got-api-key"] == "ours"


async def test_empty_and_large_bodies(upstream: Upstream) -> None:
    for body in (b"", bytes(range(256)) * (20 * 4096)):
        assert (await upstream.handle(Call(ECHO, body))).body == body


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
async def test_every_status_of_the_peer_is_a_reply(upstream: Upstream, code: Code) -> None:
    body = f"{code.value}\nNot found: Collection `größe` doesn't exist!\nretry-after=3\nx-blob=1"
    reply = await upstream.handle(Call(SAY, body.encode()))
    assert reply.code is code
    assert reply.details == "Not found: Collection `größe` doesn't exist!"
    assert reply.trailers == (("retry-after", "3"), ("x-blob", "1"))
    assert not reply.body


async def test_unavailable_without_trailers_is_a_reply_too(upstream: Upstream) -> None:
    reply = await upstream.handle(Call(SAY, b"14\nshard 3 is missing"))
    assert (reply.code, reply.details) == (Code.UNAVAILABLE, "shard 3 is missing")


async def test_an_unknown_method_is_the_peers_unimplemented(upstream: Upstream) -> None:
    reply = await upstream.handle(Call("/qdrant.Points/FromTheFuture", b"\x0a\x01x"))
    assert reply.code is Code.UNIMPLEMENTED


async def test_the_cache_of_methods_is_bounded(upstream: Upstream) -> None:
    for number in range(MAX_PREPARED_METHODS + 10):
        await upstream.handle(Call(f"/x.Y/M{number}", b""))
    assert len(upstream._methods) <= MAX_PREPARED_METHODS
    assert (await upstream.handle(Call(ECHO, b"still"))).body == b"still"


# --- time ------------------------------------------------------------------------------------------------------------


async def test_the_time_left_is_passed_on_less_the_reserve(upstream: Upstream) -> None:
    reply = await upstream.handle(Call(ECHO, b"", deadline=in_seconds(100)), reserve_seconds=60)
    assert 0 < float(dict(reply.trailers)["x-deadline"]) <= rounded_up(40)


async def test_our_own_time_limit_is_a_timeout(upstream: Upstream, peer: GrpcPeer) -> None:
    await upstream.handle(Call(ECHO, b""))
    with pytest.raises(UpstreamTimeout) as raised:
        await upstream.handle(Call(HANG, b"", deadline=in_seconds(60.2)), reserve_seconds=60)
    assert raised.value.maybe_applied
    await peer.saw("hang cancelled")


@pytest.mark.parametrize("deadline", [999.0, 1000.0, 1000.5])
async def test_without_time_left_nothing_is_sent(peer: GrpcPeer, deadline: float) -> None:
    upstream = Upstream(peer.address, clock=ManualClock(1000.0))
    with pytest.raises(UpstreamTimeout) as raised:
        await upstream.handle(Call(ECHO, b"", deadline=deadline), reserve_seconds=0.5)
    assert not raised.value.maybe_applied
    assert peer.count("echo") == 0
    await upstream.close()


# --- ending a call from our side -------------------------------------------------------------------------------------


async def test_abort_ends_every_call_in_flight_and_no_probe(upstream: Upstream, peer: GrpcPeer) -> None:
    calls = [asyncio.ensure_future(upstream.handle(Call(HANG, b""))) for _ in range(5)]
    await peer.saw("hang", 5)
    probe = asyncio.ensure_future(upstream.probe(PROBE_SECONDS))
    assert upstream.abort_in_flight("probes fail") == 5
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, UpstreamUnreachable)
        assert not isinstance(outcome, UpstreamTimeout)
        assert outcome.maybe_applied
        assert "probes fail" in str(outcome)
    assert (await probe).ok
    await peer.saw("hang cancelled", 5)
    assert upstream.abort_in_flight("again") == 0
    assert not upstream._in_flight
    assert not upstream._aborted
    assert (await upstream.handle(Call(ECHO, b"next"))).body == b"next"


async def test_the_callers_cancellation_cancels_the_rpc(upstream: Upstream, peer: GrpcPeer) -> None:
    call = asyncio.ensure_future(upstream.handle(Call(HANG, b"")))
    await peer.saw("hang")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await peer.saw("hang cancelled")
    assert not upstream._in_flight


async def test_abort_and_cancellation_at_once_is_a_cancellation(upstream: Upstream, peer: GrpcPeer) -> None:
    call = asyncio.ensure_future(upstream.handle(Call(HANG, b"")))
    await peer.saw("hang")
    upstream.abort_in_flight("probes fail")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not upstream._aborted


async def test_abort_right_after_the_start(upstream: Upstream) -> None:
    call = asyncio.ensure_future(upstream.handle(Call(HANG, b"")))
    # After the first step of the call, before any of gRPC's.
    asyncio.get_running_loop().call_soon(upstream.abort_in_flight, "at once")
    with pytest.raises(UpstreamUnreachable, match="at once"):
        await call


async def test_close_ends_calls_and_watchers(upstream: Upstream, peer: GrpcPeer) -> None:
    await upstream.handle(Call(ECHO, b""))
    call = asyncio.ensure_future(upstream.handle(Call(HANG, b"")))
    watch = asyncio.ensure_future(upstream.wait_for_change(Connectivity.READY))
    await peer.saw("hang")
    await upstream.close()
    await upstream.close()
    with pytest.raises(UpstreamUnreachable) as raised:
        await call
    assert raised.value.maybe_applied
    assert await watch is Connectivity.SHUTDOWN
    assert upstream.connectivity() is Connectivity.SHUTDOWN
    assert await upstream.wait_for_change(Connectivity.READY) is Connectivity.SHUTDOWN
    upstream.connect()
    with pytest.raises(UpstreamUnreachable, match="closed") as raised:
        await upstream.handle(Call(ECHO, b""))
    assert not raised.value.maybe_applied
    assert not (await upstream.probe(PROBE_SECONDS)).ok


async def test_close_ends_a_probe_and_does_not_cancel_who_asked(upstream: Upstream, peer: GrpcPeer) -> None:
    assert (await upstream.probe(PROBE_SECONDS)).ok
    peer.freeze()
    probe = asyncio.ensure_future(upstream.probe(3600))
    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(upstream.close()))
    assert not (await probe).ok
    peer.thaw()


def test_made_outside_the_loop_used_inside(tmp_path: Path) -> None:
    upstream = Upstream(f"unix:{tmp_path}/nobody", clock=CLOCK, name="replica")

    async def use() -> None:
        with pytest.raises(UpstreamUnreachable, match=r"^replica: ") as raised:
            await upstream.handle(Call(ECHO, b""))
        assert not raised.value.maybe_applied
        await upstream.close()

    asyncio.run(use())


async def test_a_unix_socket(tmp_path: Path) -> None:
    async with GrpcPeer(listen=f"unix:{tmp_path}/s") as peer:
        upstream = Upstream(peer.address, clock=CLOCK)
        assert (await upstream.handle(Call(ECHO, b"x"))).body == b"x"
        await upstream.close()


# --- connectivity and probes -----------------------------------------------------------------------------------------


async def test_connectivity_follows_the_peer(upstream: Upstream, peer: GrpcPeer) -> None:
    assert upstream.connectivity() is Connectivity.IDLE
    upstream.connect()
    state = Connectivity.IDLE
    while state is not Connectivity.READY:
        state = await upstream.wait_for_change(state)
    await peer.kill()
    assert await upstream.wait_for_change(Connectivity.READY) is Connectivity.IDLE
    upstream.connect()
    while state is not Connectivity.TRANSIENT_FAILURE:
        state = await upstream.wait_for_change(state)
    await peer.start()
    # By itself: nobody calls connect.
    while state is not Connectivity.READY:
        state = await upstream.wait_for_change(state)


async def test_a_probe_of_grpc_health_learns_the_version_once(upstream: Upstream, peer: GrpcPeer) -> None:
    for _ in range(3):
        probe = await upstream.probe(PROBE_SECONDS)
        assert (probe.ok, probe.version, probe.is_refused) == (True, VERSION, False)
    await peer.saw("check", 3)
    assert peer.count("health check") == 1
    assert (await upstream.probe(PROBE_SECONDS, asks_version=True)).ok
    await peer.saw("health check", 2)


async def test_a_peer_that_is_not_serving_is_not_up(upstream: Upstream) -> None:
    await upstream.handle(Call(SET_HEALTH, NOT_SERVING))
    probe = await upstream.probe(PROBE_SECONDS)
    assert (probe.ok, probe.is_refused) == (False, False)
    assert "not serving" in probe.detail
    await upstream.handle(Call(SET_HEALTH, SERVING))
    assert (await upstream.probe(PROBE_SECONDS)).ok


async def test_an_answer_that_is_no_health_is_not_up(upstream: Upstream) -> None:
    await upstream.handle(Call(SET_HEALTH, b"\xff\xff"))
    assert not (await upstream.probe(PROBE_SECONDS)).ok


async def test_without_grpc_health_qdrants_own_check_counts() -> None:
    async with GrpcPeer(health=False) as peer:
        upstream = Upstream(peer.address, clock=CLOCK)
        for times in (1, 2):
            probe = await upstream.probe(PROBE_SECONDS)
            assert (probe.ok, probe.version) == (True, VERSION)
            await peer.saw("health check", times)
        await upstream.close()


async def test_a_refused_probe_says_so_and_the_version_is_asked_again(upstream: Upstream, peer: GrpcPeer) -> None:
    assert (await upstream.probe(PROBE_SECONDS)).ok
    await peer.kill()
    probe = await upstream.probe(PROBE_SECONDS)
    assert (probe.ok, probe.is_refused) == (False, True)
    assert probe.version == VERSION
    await peer.start()
    while not (await upstream.probe(PROBE_SECONDS)).ok:
        await upstream.wait_for_change(upstream.connectivity())
    assert peer.count("health check") == 2


async def test_a_silent_probe_is_not_refused(upstream: Upstream, peer: GrpcPeer) -> None:
    assert (await upstream.probe(PROBE_SECONDS)).ok
    peer.freeze()
    probe = await upstream.probe(0.2)
    assert (probe.ok, probe.is_refused) == (False, False)
    assert "in time" in probe.detail
    peer.thaw()
    assert (await upstream.probe(PROBE_SECONDS)).ok
