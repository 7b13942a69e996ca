"""Writes during the drain join the tail of the log; nothing overtakes, and readers never see an older value."""

from __future__ import annotations

import asyncio
import itertools
import threading

from qdrant_client import QdrantClient, models

from generated.qdrant import points_pb2
from tests.system.understudy import Understudy
from tests.upstream.process import Standin, until


def write(client: QdrantClient, value: int, point_id: int = 1) -> None:
    """Write a value to a point, waiting for the acknowledgement."""
    client.upsert("order", [models.PointStruct(id=point_id, vector=[float(value), 1.0], payload={"value": value})])


def read(client: QdrantClient) -> int:
    """The value that a reader sees."""
    (record,) = client.retrieve("order", [1], with_payload=True)
    assert record.payload is not None
    return int(record.payload["value"])


def arrived(standin: Standin) -> list[int]:
    """The values of point 1 in the order in which the upstream applied them, repetitions taken out."""
    values = [
        point.payload["value"].integer_value
        for entry in standin.writes()
        if entry.method.endswith("Upsert") and entry.was_applied
        for point in points_pb2.UpsertPoints.FromString(entry.body).points
        if point.id.num == 1
    ]
    return [value for value, _ in itertools.groupby(values)]


def create(client: QdrantClient) -> None:
    """The collection."""
    client.create_collection("order", models.VectorParams(size=2, distance=models.Distance.DOT))


def test_one_point_before_during_and_after_the_drain(standin: Standin, understudy: Understudy) -> None:
    """The drain is held up by stalling the replay of its first entry, so that `during` is certain."""
    client = understudy.client()
    create(client)
    write(client, 1)
    standin.kill()
    write(client, 2)
    for other in range(100, 120):
        write(client, other, other)
    write(client, 3)
    standin.start()
    standin.fault("Upsert", "stall", times=None)
    until(lambda: standin.report()["stalled"] > 0, 60, "the replay has reached the upstream")
    understudy.wait_state("draining")
    assert read(client) == 3
    write(client, 4)
    assert read(client) == 4
    assert arrived(standin) == [1]
    standin.control("clear")
    understudy.wait_drained()
    assert read(client) == 4
    write(client, 5)
    assert read(client) == 5
    assert arrived(standin) == [1, 2, 3, 4, 5]
    with_upstream = standin.client()
    assert read(with_upstream) == 5
    with_upstream.close()
    client.close()


def test_a_point_written_all_the_time_only_ever_goes_forward(standin: Standin, understudy: Understudy) -> None:
    client, watcher = understudy.client(), understudy.client()
    create(client)
    write(client, 0)
    acknowledged = 0
    errors: list[str] = []
    stopped = threading.Event()

    def writer() -> None:
        nonlocal acknowledged
        for value in itertools.count(1):
            if stopped.is_set():
                return
            write(client, value)
            acknowledged = value

    def reader() -> None:
        while not stopped.is_set():
            least = acknowledged
            seen = read(watcher)
            if seen < least:
                errors.append(f"saw {seen} when {least} was acknowledged")

    def guarded(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except Exception as error:  # noqa: BLE001 - whatever reaches a client is an error here
            errors.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (writer, reader)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            floor = acknowledged
            until(lambda floor=floor: acknowledged > floor + 30 or bool(errors), 60, "writes online")
            standin.kill()
            floor = acknowledged
            until(lambda floor=floor: acknowledged > floor + 60 or bool(errors), 60, "writes offline")
            standin.start()
            understudy.wait_drained()
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    assert errors == []
    understudy.wait_drained()
    values = arrived(standin)
    # A write whose answer was lost is sent again; it may then appear twice, before anything newer.
    assert values == sorted(values)
    assert set(range(1, acknowledged + 1)) <= set(values)
    client.close()
    watcher.close()


async def test_filter_deletes_keep_their_place_among_writes(standin: Standin, understudy: Understudy) -> None:
    """Delete by filter, offline, then write again: what came later stays."""
    client = understudy.client()
    create(client)
    for point_id in range(1, 21):
        write(client, point_id, point_id)
    await asyncio.to_thread(standin.kill)
    low = models.Filter(must=[models.FieldCondition(key="value", range=models.Range(lte=10))])
    client.delete("order", models.FilterSelector(filter=low))
    assert client.count("order").count == 10
    write(client, 5, 5)
    write(client, 6, 15)
    await asyncio.to_thread(standin.start)
    await asyncio.to_thread(understudy.wait_drained)
    with_upstream = standin.client()
    held = {record.id: (record.payload or {})["value"] for record in with_upstream.scroll("order", limit=100)[0]}
    assert held == {5: 5, **{n: n for n in range(11, 21)}, 15: 6}
    with_upstream.close()
    client.close()
