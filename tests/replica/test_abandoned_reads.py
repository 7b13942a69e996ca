"""Reads that nobody waits for any more: they end early, and hold up nobody who has something to do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from server import config
from server.clock import SystemClock
from server.replica import catalogue
from server.replica import requests as r
from server.replica.composition import Parts, open_parts
from server.replica.service import CONTROL
from server.rpc import Call, Reply
from tests.replica import local_store as make

POINTS = 10_000
ANSWER_SECONDS = 10


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    """A replica with one thread for reads, and points of several pages."""
    settings = config.Replica(index=False, warm_seconds=0, read_threads=1)
    made = open_parts(tmp_path / "store", settings, SystemClock(), alone=True)
    with made.store.transaction() as tx:
        tx.set_meta(catalogue.KNOWN, "1")
    assert (await ask(made, make.CREATE, make.create())).is_ok
    points = make.upsert(*(make.point(number, make.dense(number, 1)) for number in range(POINTS)))
    assert (await ask(made, r.UPSERT, points)).is_ok
    yield made
    await asyncio.to_thread(made.close)


async def ask(parts: Parts, method: str, request: Any) -> Reply:
    """One call."""
    return await asyncio.wait_for(parts.service.handle(Call(method, request.SerializeToString())), ANSWER_SECONDS)


class Stalled:
    """Pages of the store come when they may."""

    def __init__(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.may_go_on = threading.Event()
        self.pages = 0
        scan = parts.store.scan

        def stalled(*arguments: Any, **more: Any) -> Any:
            self.pages += 1
            self.begun.set()
            assert self.may_go_on.wait(ANSWER_SECONDS)
            return scan(*arguments, **more)

        monkeypatch.setattr(parts.store, "scan", stalled)


async def test_a_read_that_is_given_up_ends_and_writes_do_not_wait_for_it(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = Stalled(parts, monkeypatch)
    everything = pb.ScrollPoints(collection_name="c", limit=999_999_999)
    reading = asyncio.create_task(ask(parts, r.POINTS + "Scroll", everything))
    assert await asyncio.to_thread(stalled.begun.wait, ANSWER_SECONDS)
    # All threads for reads are taken.
    write = control.PrepareRequest(method=r.UPSERT, request=make.upsert(make.point(1)).SerializeToString())
    prepared = await ask(parts, CONTROL + "PrepareGroup", control.PrepareGroupRequest(requests=[write]))
    [response] = control.PrepareGroupResponse.FromString(prepared.body).responses
    assert (response.code, response.failed, response.details) == (0, False, "")
    assert (await ask(parts, CONTROL + "Status", control.StatusRequest())).is_ok
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    stalled.may_go_on.set()
    # Answered by the same thread, so what was given up has ended.
    answer = await ask(parts, r.POINTS + "Get", pb.GetPoints(collection_name="c", ids=[make.point_id(7)]))
    assert len(pb.GetResponse.FromString(answer.body).result) == 1
    assert stalled.pages == 1


async def test_a_read_that_is_waited_for_goes_on(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = Stalled(parts, monkeypatch)
    stalled.may_go_on.set()
    answer = await ask(parts, r.POINTS + "Scroll", pb.ScrollPoints(collection_name="c", limit=999_999_999))
    assert len(pb.ScrollResponse.FromString(answer.body).result) == POINTS
    assert stalled.pages > 2
