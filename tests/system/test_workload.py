"""The instrument is right: against an upstream without a proxy it finds nothing, and it finds what is made wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from qdrant_client import models

from tests.system import workload
from tests.system.digits import Digits
from tests.system.test_outage import Crowd, gather
from tests.system.workload import Acknowledged, differences, out_of_order
from tests.upstream.process import Standin


async def run(standin: Standin, digits: Digits, writes: int) -> Crowd:
    """A crowd straight at the upstream."""
    client = standin.client()
    client.create_collection("mixed", models.VectorParams(size=64, distance=models.Distance.EUCLID))
    crowd = gather([workload.threaded(client)] * 6, digits)
    await crowd.after(writes)
    await crowd.end()
    client.close()
    return crowd


async def test_finds_nothing_where_nothing_is_wrong(standin: Standin, digit_data: Digits) -> None:
    record = (await run(standin, digit_data, 300)).record
    assert (record.errors, record.stale) == ([], [])
    assert record.reads > 50
    client = standin.client()
    assert differences(client, "mixed", record.expected) == []
    first = workload.arrivals(standin.writes())
    assert len(record.acknowledged) > 100
    assert out_of_order(record.acknowledged, first) == []

    # And what is made wrong is found.
    some = sorted(record.expected)[:3]
    client.delete("mixed", [some[0]])
    client.set_payload("mixed", {"other": 1}, [some[1]])
    client.upsert("mixed", [models.PointStruct(id=99999, vector=[0.0] * 64)])
    changed = client.retrieve("mixed", [some[2]], with_vectors=True)[0].vector
    assert isinstance(changed, list)
    client.update_vectors("mixed", [models.PointVectors(id=some[2], vector=[changed[0] + 1, *changed[1:]])])
    found = differences(client, "mixed", record.expected)
    assert [one.split(":")[0] for one in found] == ["lost", "left over", "different", "different"]
    ends = sorted(record.acknowledged, key=lambda one: one.ended)
    swapped = {**first, ends[0].op: first[ends[-1].op], ends[-1].op: first[ends[0].op]}
    assert out_of_order(record.acknowledged, swapped)
    assert out_of_order([*record.acknowledged, replace(ends[0], op=10**6)], first) == ["never arrived: op 1000000"]
    client.close()


def test_concurrent_writes_may_arrive_either_way() -> None:
    together = [Acknowledged(1, 0.0, 2.0), Acknowledged(2, 1.0, 3.0)]
    assert out_of_order(together, {1: 1, 2: 0}) == []
    after = [Acknowledged(1, 0.0, 1.0), Acknowledged(2, 1.5, 3.0)]
    assert out_of_order(after, {1: 1, 2: 0}) != []


async def test_a_lost_answer_is_an_error_that_is_counted(standin: Standin, digit_data: Digits) -> None:
    client = standin.client(timeout=1)
    client.create_collection("mixed", models.VectorParams(size=64, distance=models.Distance.EUCLID))
    standin.fault("Upsert", "fail", skip=3)
    crowd = gather([workload.threaded(client)] * 4, digit_data)
    await crowd.after(200)
    await crowd.end()
    assert len(crowd.record.errors) == 1
    await asyncio.to_thread(client.close)
