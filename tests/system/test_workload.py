"""The instrument is right: against an upstream without a proxy it finds nothing, and it finds what is made wrong."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import grpc
import pytest
from qdrant_client import models

from tests.system import workload
from tests.system.digits import Digits
from tests.system.presence import Absences
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


def failure(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    """An error as a client gets it."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
LATE, REFUSED = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INVALID_ARGUMENT
# Of a proxy that was away from 10 to 5 seconds ago: the code, when the call began (seconds ago), what it says, excused?
EXCUSES = [
    (UNAVAILABLE, 11.0, "Socket closed", True),
    (UNAVAILABLE, 7.0, "Socket closed", True),
    (UNAVAILABLE, 4.0, "Socket closed", False),
    (UNAVAILABLE, 4.0, "failed to connect to all addresses: 127.0.0.1:7001", True),
    (UNAVAILABLE, 4.0, "failed to connect to all addresses: 127.0.0.1:7002", False),
    (UNAVAILABLE, 1.0, "failed to connect to all addresses: 127.0.0.1:7001", False),
    (LATE, 7.0, "", False),
    (LATE, 4.0, "", False),
    (REFUSED, 7.0, "", False),
    (CANCELLED, 7.0, "", False),
]


@pytest.mark.parametrize(("code", "began", "details", "is_excused"), EXCUSES)
def test_only_what_met_no_proxy_is_excused(code: grpc.StatusCode, began: float, details: str, is_excused: bool) -> None:
    now = time.monotonic()
    absences = Absences("127.0.0.1:7001", [[now - 10.0, now - 5.0]])
    assert absences.explain(failure(code, details), now - began) is is_excused
    assert not Absences("127.0.0.1:7001").explain(failure(code, details), now - began)


@pytest.mark.parametrize(("left", "is_excused"), [(0.2, True), (0.9, True), (1.1, False)])
def test_a_deadline_is_excused_when_hardly_any_time_was_left(left: float, is_excused: bool) -> None:
    now = time.monotonic()
    absences = Absences("127.0.0.1:7001", [[now - 60.0, now - 50.0], [now - 10.0, now - left]])
    assert absences.explain(failure(LATE), now - 5.0) is is_excused
    assert not absences.explain(failure(LATE), now - 40.0)


def test_while_there_is_no_proxy_a_deadline_is_excused_and_a_cancellation_only_at_a_stop() -> None:
    absences = Absences("127.0.0.1:7001")
    with absences.absent():
        began = time.monotonic()
        assert absences.explain(failure(LATE), began)
        assert not absences.explain(failure(LATE), began - 10.0)
        assert not absences.explain(failure(CANCELLED), began)
        assert not absences.explain(ValueError("of a client"), began)
    with absences.absent(is_stopped=True):
        assert absences.explain(failure(CANCELLED), time.monotonic())
    assert not absences.explain(failure(CANCELLED), time.monotonic())
    assert absences.cancelled == 1
