"""What goes to the quarantine, and what follows it there: the same whenever the proxy restarts."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from generated.qdrant import collections_pb2
from generated.qdrant import points_pb2 as pb
from server import config
from server.config import QuarantinePolicy
from server.health.breaker import Breaker
from server.replay import Replayer
from server.rpc import WAL_KINDS, Backend, Code
from server.telemetry import Telemetry
from server.wal.quarantine import Refused
from tests.faults.clock import ManualClock

from .fakes import (
    COLLECTIONS,
    POINTS,
    MemoryLog,
    MiniQdrant,
    create,
    delete,
    drop,
    point,
    selector,
    set_payload,
    upsert,
)

Request = tuple[str, Message]


def life(log: MemoryLog, qdrant: Backend, **chosen: Any) -> Replayer:
    """A process with nothing in mind but what is in the log."""
    made = Replayer(
        log,
        qdrant,
        Breaker(),
        config.Replay(**chosen),
        ManualClock(),
        Telemetry.silent(),
        lambda: None,
        WAL_KINDS,
    )
    made.upstream_up = True
    return made


def alias(name: str, collection: str) -> Request:
    """An alias is put on a collection, wherever it was before."""
    request = collections_pb2.ChangeAliases()
    request.actions.add().create_alias.CopyFrom(
        collections_pb2.CreateAlias(alias_name=name, collection_name=collection)
    )
    return COLLECTIONS + "UpdateAliases", request


def verdicts(log: MemoryLog) -> dict[int, tuple[str, str, bytes]]:
    """What is in quarantine, and why."""
    return {seq: (Code(item.code).name, item.details, item.record.body) for seq, item in log.kept.items()}


# --- followers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [False, True])
async def test_writes_by_an_alias_follow_a_switch_that_follows(restarts: bool) -> None:
    """A collection is filled anew and takes over the alias; others have made one of its name and of another size."""
    qdrant = MiniQdrant("old")
    qdrant.points |= {"old": {1: {"v": 1}, 2: {"v": 1}}, "new": {}}
    qdrant.sizes["new"] = 3
    qdrant.aliases["docs"] = "old"
    log = MemoryLog(create("new"), upsert(point(1, v=2), collection="new"), alias("docs", "new"))
    one = life(log, qdrant)
    assert not restarts or await one.drain_now()
    for request in (upsert(point(1, v=3), collection="docs"), delete(2, collection="docs")):
        log.append(request)
    assert await (life(log, qdrant) if restarts else one).drain_now()
    assert qdrant.points == {"old": {1: {"v": 1}, 2: {"v": 1}}, "new": {}}
    assert [item.details for item in log.quarantined()][1:] == ["follows seq 1"] * 2 + ["follows seq 3"] * 2


# --- restarts --------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["x", "y", "z", "ax", "ay"])
IDS = st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True)
VALUES = st.integers(0, 99)
SIZES = st.sampled_from([2, 2, 2, 1])


def _upsert(name: str, ids: list[int], value: int, size: int) -> Request:
    return upsert(*(point(each, (1.0,) * size, v=value) for each in ids), collection=name)


def _batch(name: str, parts: list[tuple[str, list[int], int]]) -> Request:
    request = pb.UpdateBatchPoints(collection_name=name)
    for kind, ids, value in parts:
        step = request.operations.add()
        if kind == "upsert":
            step.upsert.points.extend(point(each, v=value) for each in ids)
        elif kind == "delete":
            step.delete_points.points.CopyFrom(selector(*ids))
        else:
            step.set_payload.CopyFrom(pb.PointsUpdateOperation.SetPayload(points_selector=selector(*ids)))
            step.set_payload.payload["s"].integer_value = value
    return POINTS + "UpdateBatch", request


PARTS = st.lists(st.tuples(st.sampled_from(["upsert", "delete", "payload"]), IDS, VALUES), min_size=1, max_size=3)
REQUESTS = st.one_of(
    st.builds(_upsert, NAMES, IDS, VALUES, SIZES),
    st.builds(_upsert, NAMES, IDS, VALUES, SIZES),
    st.builds(lambda name, ids, value: set_payload(*ids, collection=name, s=value), NAMES, IDS, VALUES),
    st.builds(lambda name, ids: delete(*ids, collection=name), NAMES, IDS),
    st.builds(_batch, NAMES, PARTS),
    st.builds(create, st.sampled_from("xyz"), st.sampled_from([1, 2])),
    st.builds(drop, st.sampled_from("xyz")),
    st.builds(alias, st.sampled_from(["ax", "ay"]), st.sampled_from("xyz")),
)


def _world() -> MiniQdrant:
    qdrant = MiniQdrant("x", "y")
    qdrant.aliases = {"ax": "x", "ay": "y"}
    qdrant.points = {name: {number: {"v": number} for number in (1, 2, 3)} for name in "xy"}
    qdrant.refused = {5}
    return qdrant


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=14),
    policy=st.sampled_from([QuarantinePolicy.CAUSAL, QuarantinePolicy.CAUSAL, QuarantinePolicy.SKIP]),
)
def test_restarts_change_no_verdict(requests: list[Request], policy: QuarantinePolicy) -> None:
    asyncio.run(_same_verdicts(requests, policy))


async def _same_verdicts(requests: list[Request], policy: QuarantinePolicy) -> None:
    """One life for all of them, and a new one before each."""
    once, often = _world(), _world()
    log, again = MemoryLog(*requests), MemoryLog()
    assert await life(log, once, quarantine_policy=policy).drain_now()
    for request in requests:
        again.append(copy.deepcopy(request))
        assert await life(again, often, quarantine_policy=policy).drain_now()
    assert verdicts(again) == verdicts(log)
    assert (often.points, often.aliases) == (once.points, once.aliases)


# --- a crash between the quarantine and the cursor -------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


class CutLog(MemoryLog):
    """Whenever something new is in quarantine, the process ends before the cursor is written."""

    is_cut = False

    async def quarantine(self, refused: Sequence[Refused]) -> None:
        self.is_cut = any(each.record.seq not in self.kept for each in refused)
        await super().quarantine(refused)

    async def mark_replayed(self, seq: int) -> None:
        if self.is_cut:
            self.is_cut = False
            raise Crash
        await super().mark_replayed(seq)


async def lives(log: CutLog, qdrant: Backend, **chosen: Any) -> int:
    """One life after the other until nothing is pending or an operator is waited for; gives their number."""
    for number in itertools.count(1):
        with suppress(Crash):
            await life(log, qdrant, **chosen).drain_now()
            return number
    raise AssertionError


@settings(max_examples=150, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=2, max_size=14), page=st.sampled_from([1, 3, 256]))
def test_crashes_before_the_cursor_change_no_verdict(requests: list[Request], page: int) -> None:
    asyncio.run(_same_with_crashes(requests, page))


async def _same_with_crashes(requests: list[Request], page: int) -> None:
    once, often = _world(), _world()
    log, cut = MemoryLog(*requests), CutLog(*requests)
    assert await life(log, once, page_entries=page).drain_now()
    await lives(cut, often, page_entries=page)
    assert cut.pending_count == 0
    assert verdicts(cut) == verdicts(log)
    assert (often.points, often.aliases) == (once.points, once.aliases)


async def test_what_was_sent_before_a_crash_does_not_follow_what_came_after_it() -> None:
    qdrant = MiniQdrant("c")
    log = CutLog(upsert(point(1, v=1)), upsert(point(2, v=1)), upsert(point(1, (1.0,), v=2)))
    assert await lives(log, qdrant) == 2
    assert qdrant.points["c"] == {1: {"v": 1}, 2: {"v": 1}}
    assert list(log.kept) == [3]


async def test_what_is_in_quarantine_keeps_its_reason_and_its_followers() -> None:
    qdrant = MiniQdrant("other")
    log = CutLog(upsert(point(1, v=1)))
    assert await lives(log, qdrant) == 2
    assert (Code(log.kept[1].code), log.kept[1].details[:9]) == (Code.NOT_FOUND, "Not found")
    qdrant.points["c"], qdrant.sizes["c"] = {}, 2
    log.append(upsert(point(2, v=1)))
    assert await lives(log, qdrant) == 2
    assert qdrant.points["c"] == {}
    assert log.kept[2].details == "follows seq 1"


async def test_what_qdrant_takes_after_the_crash_leaves_the_quarantine() -> None:
    qdrant = MiniQdrant()
    log = CutLog(upsert(point(1, v=1)), upsert(point(2, v=1)))
    with suppress(Crash):
        await life(log, qdrant, quarantine_policy=QuarantinePolicy.SKIP).drain_now()
    assert sorted(log.kept) == [1, 2]
    qdrant.points["c"], qdrant.sizes["c"] = {}, 2
    await life(log, qdrant, quarantine_policy=QuarantinePolicy.SKIP).drain_now()
    assert qdrant.points["c"] == {1: {"v": 1}, 2: {"v": 1}}
    assert (log.kept, log.pending_count) == ({}, 0)


async def test_what_qdrant_takes_of_an_entry_after_the_crash_keeps_nothing_back() -> None:
    qdrant = MiniQdrant("c")
    qdrant.refused = {1, 2}
    log = CutLog(upsert(point(1, v=1), point(2, v=1)))
    with suppress(Crash):
        await life(log, qdrant).drain_now()
    qdrant.refused = {1}
    log.append(upsert(point(2, v=2)))
    assert await lives(log, qdrant) == 1
    assert qdrant.points["c"] == {2: {"v": 2}}
    assert {seq: item.record.points for seq, item in log.kept.items()} == {1: 1}


async def test_a_halted_replay_passes_what_it_halts_for() -> None:
    qdrant = MiniQdrant("c")
    log = CutLog(upsert(point(1, v=1)), upsert(point(2, (1.0,))), upsert(point(3, v=1)))
    assert await lives(log, qdrant, quarantine_policy=QuarantinePolicy.HALT, merge_points=1) == 2
    assert (log.replayed_seq, list(log.kept), qdrant.points["c"]) == (2, [2], {1: {"v": 1}})
