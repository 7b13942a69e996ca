"""Writes while an alias is moved: they keep their order, and those that have nothing to do with it do not wait."""

from __future__ import annotations

import asyncio

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import COLLECTIONS, POINTS, Call, Reply
from tests.router.test_router import CLOCK, MakeRig, Rig, make_rig, source, until

__all__ = ["make_rig"]


def text_of(body: bytes) -> str:
    return points_pb2.UpsertPoints.FromString(body).points[0].payload["text"].string_value


def put(rig: Rig, collection: str, text: str, seconds: float = 20) -> asyncio.Task[Reply]:
    request = points_pb2.UpsertPoints(collection_name=collection)
    point = request.points.add(id=common.PointId(num=1))
    point.vectors.vector.dense.data.append(1.0)
    point.payload["text"].string_value = text
    call = Call(POINTS + "Upsert", request.SerializeToString(), deadline=CLOCK.monotonic() + seconds)
    return asyncio.create_task(rig.router.handle(call))


def move(rig: Rig, alias: str, collection: str) -> asyncio.Task[Reply]:
    create = collections_pb2.CreateAlias(alias_name=alias, collection_name=collection)
    change = collections_pb2.ChangeAliases(actions=[collections_pb2.AliasOperations(create_alias=create)])
    return asyncio.create_task(rig.router.handle(Call(COLLECTIONS + "UpdateAliases", change.SerializeToString())))


async def test_qdrant_and_the_log_have_the_same_last_write_by_an_alias_that_was_moved(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    rig.conflicts.know_aliases({"live": "blue"})
    moved, answered = asyncio.Event(), {text: asyncio.Event() for text in "ABC"}
    arrived: list[str] = []

    async def handle(call: Call, *, reserve_seconds: float = 0.0) -> Reply:
        if call.method.endswith("UpdateAliases"):
            await moved.wait()
        else:
            arrived.append(text_of(call.body))
            await answered[arrived[-1]].wait()
        return Reply(b"ok")

    rig.qdrant.handle = handle  # type: ignore[method-assign]
    moving = move(rig, "live", "green")
    waiting = [put(rig, "live", "A"), put(rig, "green", "B")]
    await asyncio.sleep(0)
    moved.set()
    await moving
    waiting.append(put(rig, "live", "C"))
    for expected in ("A", "AB", "ABC"):
        await until(lambda expected=expected: len(arrived) >= len(expected))  # type: ignore[misc]
        for _ in range(20):
            await asyncio.sleep(0)
        assert "".join(arrived) == expected
        answered[expected[-1]].set()
    await asyncio.gather(*waiting)
    entries = [entry for _, entry in await rig.entries() if entry.method.endswith("Upsert")]
    assert [text_of(entry.request) for entry in entries] == ["A", "B", "C"]
    assert [entry.real_collection for entry in entries] == ["green", "", "green"]


async def test_a_move_behind_a_slow_index_does_not_stop_other_collections(make_rig: MakeRig) -> None:
    rig = make_rig().online()
    made = asyncio.Event()

    async def handle(call: Call, *, reserve_seconds: float = 0.0) -> Reply:
        if call.method.endswith("CreateFieldIndex"):
            await made.wait()
        return Reply(b"ok")

    rig.qdrant.handle = handle  # type: ignore[method-assign]
    index = points_pb2.CreateFieldIndexCollection(collection_name="big", field_name="f", wait=True)
    call = Call(POINTS + "CreateFieldIndex", index.SerializeToString())
    indexing = asyncio.create_task(rig.router.handle(call))
    await asyncio.sleep(0)
    of_big, of_small = move(rig, "of-big", "big"), move(rig, "live", "small")
    for collection in ("other", "small", "live"):
        assert source(await asyncio.wait_for(put(rig, collection, "x"), 10)) == "remote", collection
    assert of_small.done() and not of_big.done() and not indexing.done()
    made.set()
    await asyncio.gather(indexing, of_big)
