"""Calls that change Qdrant and that no entry of the log tells the replica of."""

from __future__ import annotations

import asyncio

import pytest

from generated.qdrant import collections_pb2
from server import rpc
from server.errors import UpstreamTimeout, UpstreamUnreachable
from server.rpc import METHODS, Call, Code, Reply
from tests.router.test_router import MakeRig, get, make_rig, source, until

__all__ = ["make_rig"]

DELETE_SHARD_KEY = "/qdrant.Collections/DeleteShardKey"
SET_UP = "/qdrant.Collections/UpdateCollectionClusterSetup"
NEWER_WRITE = "/qdrant.Points/FromTheFuture"
NEWER_READ = "/qdrant.Points/QueryPairs"


def call(method: str, collection: str = "c") -> Call:
    request = collections_pb2.DeleteShardKeyRequest(collection_name=collection)
    request.request.shard_key.keyword = "a"
    if method == SET_UP:
        operation = collections_pb2.DeleteShardKey()
        return Call(
            method,
            collections_pb2.UpdateCollectionClusterSetupRequest(
                collection_name=collection, delete_shard_key=operation
            ).SerializeToString(),
        )
    return Call(method, request.SerializeToString())


@pytest.mark.parametrize("method", [DELETE_SHARD_KEY, SET_UP, NEWER_WRITE])
@pytest.mark.parametrize(
    ("answer", "doubted"),
    [
        (Reply(b"done"), True),
        (UpstreamUnreachable("reset", maybe_applied=True), True),
        (UpstreamTimeout("slow", maybe_applied=True), True),
        (Reply(code=Code.DEADLINE_EXCEEDED, details="Timeout error: waiting for consensus"), True),
        (Reply(code=Code.UNAVAILABLE, details="shard 3 is missing"), True),
        (UpstreamUnreachable("refused", maybe_applied=False), False),
        (Reply(code=Code.NOT_FOUND, details="Not found: Shard key a doesn't exist"), False),
        (Reply(code=Code.PERMISSION_DENIED, details="Global manage access is required"), False),
        (Reply(code=Code.UNIMPLEMENTED), False),
    ],
)
async def test_what_qdrant_may_have_done_past_the_log_is_a_doubt(
    make_rig: MakeRig, method: str, answer: Reply | Exception, doubted: bool
) -> None:
    rig = make_rig().online()
    rig.qdrant.answers = [answer]
    if isinstance(answer, UpstreamTimeout):
        with pytest.raises(UpstreamTimeout):
            await rig.router.handle(call(method))
    else:
        reply = await rig.router.handle(call(method))
        if isinstance(answer, Reply):
            told = (reply.body, reply.code, reply.details, source(reply))
            assert told == (answer.body, answer.code, answer.details, "remote")
    assert rig.router._repairs.is_log_whole("c") is not doubted
    for _ in range(100):
        await asyncio.sleep(0)
    assert rig.replica.marked == ["c", "c", "c"] * doubted
    assert await rig.entries() == []


async def test_a_local_read_meanwhile_and_afterwards_is_not_passed_off_as_whole(make_rig: MakeRig) -> None:
    """Qdrant may have shown others that the points are gone."""
    rig = make_rig().online()
    rig.qdrant.hold, rig.replica.hold_marks = asyncio.Event(), asyncio.Event()
    deleting = asyncio.create_task(rig.router.handle(call(DELETE_SHARD_KEY)))
    await until(lambda: len(rig.qdrant.calls) == 1)
    asked = get()
    asked = Call(asked.method, asked.body, ((rpc.EXPLAIN, "local"),))
    assert dict((await rig.router.handle(asked)).trailers)[rpc.COMPLETENESS] == "stale"
    rig.qdrant.hold.set()
    assert (await deleting).is_ok
    assert dict((await rig.router.handle(asked)).trailers)[rpc.COMPLETENESS] == "stale"
    rig.replica.hold_marks.set()


async def test_a_doubt_by_an_alias_is_about_its_collection_and_outlasts_a_client_that_hangs_up(
    make_rig: MakeRig,
) -> None:
    rig = make_rig().online()
    rig.conflicts.know_aliases({"live": "blue"})
    rig.qdrant.hold = asyncio.Event()
    deleting = asyncio.create_task(rig.router.handle(call(DELETE_SHARD_KEY, "live")))
    await until(lambda: len(rig.qdrant.calls) == 1)
    assert rig.marker.exists()
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    rig.qdrant.hold.set()
    await until(lambda: rig.replica.marked == ["blue"] * 3)
    await rig.router.settle(10)


async def test_a_kill_before_the_answer_leaves_the_deletion_noted(make_rig: MakeRig) -> None:
    """What is absent afterwards must not be taken for what Qdrant lost."""
    rig = make_rig().online()
    rig.qdrant.hold = asyncio.Event()
    deleting = asyncio.create_task(rig.router.handle(call(DELETE_SHARD_KEY)))
    await until(lambda: len(rig.qdrant.calls) == 1)
    assert b"+" + b"c".hex().encode() in (rig.marker.parent / "deletions").read_bytes()
    rig.qdrant.hold.set()
    assert (await deleting).is_ok


@pytest.mark.parametrize(
    "method",
    [
        NEWER_READ,
        *(row.path for row in METHODS.values() if not row.wal_kind and row.path not in (DELETE_SHARD_KEY, SET_UP)),
    ],
)
async def test_reads_and_what_moves_no_points_leave_none(make_rig: MakeRig, method: str) -> None:
    rig = make_rig().online()
    assert (await rig.router.handle(call(method))).body == b"remote"
    for _ in range(100):
        await asyncio.sleep(0)
    assert rig.replica.marked == [] and rig.router._repairs.is_log_whole("c") and not rig.marker.exists()
