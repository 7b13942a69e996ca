"""Back from the quarantine: what goes along, what stands in the way, and crashes in between."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.message import Message

from generated.qdrant import collections_pb2, points_pb2
from generated.understudy.replica.v1.replica_pb2 import RefusedEntry
from generated.understudy.wal.v1 import entry_pb2
from server.config import QuarantinePolicy
from server.errors import WalError, WalFull
from server.replay.bisect import Operation
from server.replay.requeue import Requeue
from server.replay.retry import Reach, meets, touched_by
from server.rpc import METHODS, WAL_KINDS, Code
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from server.wal.record import EntryState, NewRecord, Record
from tests.faults.backends import FlakyBackend, says

from .fakes import COLLECTIONS, POINTS, MiniQdrant, create, delete, drop, entry, point, selector, set_payload, upsert
from .test_with_the_log import append, opened, replayer

SYNCED = EntryState.SYNCED
BAD = (1.0,)


def requeue(log: Log, limits: WalLimits | None = None) -> Requeue:
    return Requeue(log, limits or WalLimits(), WAL_KINDS)


async def refused(log: Log, qdrant: MiniQdrant, *requests: tuple[str, Message]) -> list[int]:
    """Log and replay; gives what is in quarantine then."""
    for request in requests:
        await append(log, request)
    assert await replayer(log, qdrant).drain_now()
    return [item.seq for item in log.quarantined()]


class Crash(BaseException):
    """The process ends here."""


async def crash(_: int) -> None:
    """Instead of a write of the cursor."""
    raise Crash


class AnySize:
    """A size of vectors that every size is equal to."""

    def __eq__(self, _: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def grown(qdrant: MiniQdrant) -> None:
    """What made Qdrant refuse is mended: it takes vectors of any size."""
    qdrant.sizes = dict.fromkeys(qdrant.sizes, AnySize())  # type: ignore[arg-type]


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_is_symmetric_and_as_drawn() -> None:
    drawn = {frozenset(pair) for pair in itertools.combinations_with_replacement(Reach, 2) if meets(*pair)}
    data = {Reach.POINTS, Reach.FILTER, Reach.VECTOR_DELETED}
    schema = {Reach.SCHEMA, Reach.VECTOR_DELETED}
    expected = {frozenset(pair) for kind in (data, schema) for pair in itertools.product(kind, kind)}
    for strong in (Reach.DROP, Reach.ALIASES):
        expected |= {frozenset((strong, other)) for other in Reach}
    assert drawn == expected
    for one, other in itertools.product(Reach, Reach):
        assert meets(one, other) == meets(other, one)


def _by_filter() -> tuple[str, Message]:
    request = points_pb2.DeletePoints(collection_name="c")
    request.points.filter.must.add().field.key = "k"
    return POINTS + "Delete", request


def _index() -> tuple[str, Message]:
    return POINTS + "CreateFieldIndex", points_pb2.CreateFieldIndexCollection(collection_name="c", field_name="k")


def _alias() -> tuple[str, Message]:
    request = collections_pb2.ChangeAliases()
    request.actions.add().create_alias.CopyFrom(collections_pb2.CreateAlias(alias_name="a", collection_name="c"))
    return COLLECTIONS + "UpdateAliases", request


@pytest.mark.parametrize(
    ("request_", "reach"),
    [
        (upsert(point(1)), Reach.POINTS),
        (set_payload(1, k=1), Reach.POINTS),
        (_by_filter(), Reach.FILTER),
        (
            (POINTS + "DeleteVectorName", points_pb2.DeleteVectorNameRequest(collection_name="c", vector_name="v")),
            Reach.VECTOR_DELETED,
        ),
        (create(), Reach.CREATE),
        (_index(), Reach.SCHEMA),
        ((COLLECTIONS + "Update", collections_pb2.UpdateCollection(collection_name="c")), Reach.SCHEMA),
        (drop(), Reach.DROP),
        (_alias(), Reach.ALIASES),
    ],
)
def test_what_an_operation_may_change(request_: tuple[str, Message], reach: Reach) -> None:
    assert touched_by(Operation(*request_), str).reach is reach


# --- order -----------------------------------------------------------------------------------------------------------


async def test_followers_go_along_in_their_order(tmp_path: Path) -> None:
    qdrant = MiniQdrant("c")
    async with opened(tmp_path / "wal") as log:
        requests = (upsert(point(1, BAD, v=1)), upsert(point(2, BAD)), set_payload(1, v=2), upsert(point(3)))
        assert await refused(log, qdrant, *requests) == [1, 2, 3]
        grown(qdrant)
        assert await requeue(log).retry([1], force=False) == {1: 5, 3: 6}
        assert [item.seq for item in log.quarantined()] == [2]
        assert log.pending_count == 2
        assert await replayer(log, qdrant).drain_now()
        assert qdrant.points["c"] == {1: {"v": 2}, 3: {}}
        assert await requeue(log).retry(None, force=False) == {2: 7}
        assert await replayer(log, qdrant).drain_now()
        assert log.quarantined() == []
    assert qdrant.points["c"] == {1: {"v": 2}, 2: {}, 3: {}}


async def test_a_follower_alone_would_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await refused(log, MiniQdrant("c"), upsert(point(1, BAD)), set_payload(1, v=2))
        with pytest.raises(WalError, match="retry or drop 1 first"):
            await requeue(log).retry([2], force=False)
        await requeue(log).drop([1])
        assert await requeue(log).retry([2], force=False) == {2: 3}


@pytest.mark.parametrize(
    ("later", "state", "named"),
    [
        (upsert(point(1, v=9)), SYNCED, True),
        (upsert(point(1, v=9)), EntryState.PENDING, True),
        (delete(1), SYNCED, True),
        (_by_filter(), SYNCED, True),
        (drop(), SYNCED, True),
        (_alias(), SYNCED, True),
        (upsert(point(2)), SYNCED, False),
        (upsert(point(1), collection="other"), SYNCED, False),
        (create(), SYNCED, False),
        (_index(), SYNCED, False),
    ],
)
async def test_later_writes_are_named_and_not_overwritten(
    tmp_path: Path, later: tuple[str, Message], state: EntryState, named: bool
) -> None:
    async with opened(tmp_path / "wal") as log:
        await refused(log, MiniQdrant("c"), upsert(point(1, BAD, v=1)))
        assert await append(log, later, state=state) == 2
        forecast = await requeue(log).forecast([1])
        assert (forecast.seqs, len(forecast.objections)) == ([1], named)
        if not named:
            assert await requeue(log).retry([1], force=False) == {1: 3}
            return
        with pytest.raises(WalError, match="entries 2"):
            await requeue(log).retry([1], force=False)
        assert ([item.seq for item in log.quarantined()], log.last_seq) == ([1], 2)
        assert await requeue(log).retry([1], force=True) == {1: 3}


async def test_a_vector_that_was_made_anew_is_not_deleted(tmp_path: Path) -> None:
    removed = points_pb2.DeleteVectorNameRequest(collection_name="c", vector_name="v")
    made = points_pb2.CreateVectorNameRequest(collection_name="c", vector_name="v")
    unknown_method = FlakyBackend(MiniQdrant("c"), [says(Code.UNIMPLEMENTED)])
    async with opened(tmp_path / "wal") as log:
        await append(log, (POINTS + "DeleteVectorName", removed))
        assert await replayer(log, unknown_method).drain_now()
        await append(log, (POINTS + "CreateVectorName", made), state=SYNCED)
        with pytest.raises(WalError, match="would be overwritten by the older ones: entries 2"):
            await requeue(log).retry([1], force=False)


async def test_an_alias_is_its_collection(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await refused(log, MiniQdrant("c"), upsert(point(1, BAD)))
        await append(log, upsert(point(1), collection="a"), state=SYNCED)
        known = Requeue(log, WalLimits(), WAL_KINDS, collection_of=lambda name: {"a": "c"}.get(name, name))
        assert (await known.forecast([1])).objections
        assert not (await requeue(log).forecast([1])).objections


async def test_a_retry_is_for_what_its_alias_stands_for_now(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        qdrant = MiniQdrant("c", "d")
        qdrant.aliases["a"] = "c"
        body = entry(upsert(point(1, BAD), collection="a"))
        body.real_collection = "c"
        await log.append(NewRecord(METHODS[body.method].wal_kind, EntryState.PENDING, body.SerializeToString()))
        assert await replayer(log, qdrant).drain_now()
        # To the collection that it was for then, by name: it would be overwritten although the alias has moved on.
        await append(log, upsert(point(1), collection="c"), state=SYNCED)
        moved = Requeue(log, WalLimits(), WAL_KINDS, collection_of=lambda name: {"a": "d"}.get(name, name))
        assert (await moved.forecast([1])).objections
        assert await moved.retry([1], force=True) == {1: 3}
        (record,) = await log.read_pending(10, 10**9)
        assert (_entry_of(record).collection, _entry_of(record).real_collection) == ("a", "d")


def _entry_of(record: Record) -> entry_pb2.Entry:
    return entry_pb2.Entry.FromString(record.body)


async def test_what_the_log_no_longer_holds_cannot_be_judged(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await refused(log, MiniQdrant("c"), upsert(point(1, BAD)))
        await append(log, upsert(point(2)), state=SYNCED)
        assert await log.retire(2, 10**19, 0) == 1
        with pytest.raises(WalError, match="no longer holds"):
            await requeue(log).retry([1], force=False)
        assert await requeue(log).retry([1], force=True) == {1: 3}


async def test_an_entry_that_went_back_counts_as_its_repetition(tmp_path: Path) -> None:
    """Entry 2 is not at Qdrant, entry 4 that repeats it is: only that one would be overwritten."""
    qdrant = MiniQdrant("c")
    async with opened(tmp_path / "wal") as log:
        await append(log, upsert(point(1, BAD, v=1)))
        await append(log, upsert(point(1, BAD, v=2), point(2, v=2)))
        skipping = replayer(log, qdrant, quarantine_policy=QuarantinePolicy.SKIP)
        assert await skipping.drain_now()
        assert qdrant.points["c"] == {2: {"v": 2}}
        await append(log, upsert(point(9)), state=SYNCED)
        grown(qdrant)
        with pytest.raises(WalError, match="retry or drop 1 first"):
            await requeue(log).retry([2], force=False)
        assert await requeue(log).retry([2], force=True) == {2: 4}
        forecast = await requeue(log).forecast([1])
        assert "entries 4" in forecast.objections[0]


async def test_the_part_that_qdrant_took_counts_as_there(tmp_path: Path) -> None:
    """Entry 2 wrote points 1 and 2; point 1 follows entry 1, point 2 is at Qdrant."""
    qdrant = MiniQdrant("c")
    async with opened(tmp_path / "wal") as log:
        both = upsert(point(1, v=2), point(2, v=2))
        assert await refused(log, qdrant, upsert(point(1, BAD, v=1)), both) == [1, 2]
        assert qdrant.points["c"] == {2: {"v": 2}}
        grown(qdrant)
        assert await requeue(log).retry([1], force=False) == {1: 3, 2: 4}
        assert await replayer(log, qdrant).drain_now()
    assert qdrant.points["c"] == {1: {"v": 2}, 2: {"v": 2}}


# --- crashes ---------------------------------------------------------------------------------------------------------


class _Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("policy", list(QuarantinePolicy))
@pytest.mark.parametrize("survived", range(6))
async def test_a_crash_anywhere_loses_nothing_and_turns_nothing_round(
    tmp_path: Path, survived: int, policy: QuarantinePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three entries for one point: three appends and three releases; the crash comes after so many of them."""
    qdrant = MiniQdrant("c")
    left = itertools.count(survived, -1)

    def step() -> None:
        if next(left) == 0:
            raise _Crash

    async with opened(tmp_path / "wal") as log:
        await refused(log, qdrant, *(upsert(point(1, BAD, v=value)) for value in (1, 2, 3)))
        append_, release = log.append, log.release_quarantined

        async def appended(record: object) -> int:
            step()
            return await append_(record)  # type: ignore[arg-type]

        async def released(seq: int) -> None:
            step()
            await release(seq)

        with monkeypatch.context() as patched:
            patched.setattr(log, "append", appended)
            patched.setattr(log, "release_quarantined", released)
            with pytest.raises(_Crash):
                await requeue(log).retry(None, force=False)
    grown(qdrant)
    async with opened(tmp_path / "wal") as log:
        # Drain and retry, as an operator would. Only `causal` holds the newest back until the older ones went: with the
        # others they may be out of date by now, which is said, and they are dropped.
        for _ in range(4):
            await replayer(log, qdrant, quarantine_policy=policy).drain_now()
            try:
                await requeue(log).retry(None, force=False)
            except WalError as error:
                assert policy is not QuarantinePolicy.CAUSAL
                assert "entries 6" in str(error) or "entries 5, 6" in str(error)
                await requeue(log).drop([item.seq for item in log.quarantined()])
        assert await replayer(log, qdrant, quarantine_policy=policy).drain_now()
        assert log.quarantined() == []
    assert qdrant.points["c"] == {1: {"v": 3}}


async def test_a_repetition_is_passed_over_while_its_origin_counts(tmp_path: Path) -> None:
    qdrant = MiniQdrant("c")
    async with opened(tmp_path / "wal") as log:
        await refused(log, qdrant, upsert(point(1, BAD)))

        async def crash(_: int) -> None:
            raise _Crash

        log.release_quarantined = crash  # type: ignore[method-assign]
        with pytest.raises(_Crash):
            await requeue(log).retry([1], force=False)
    async with opened(tmp_path / "wal") as log:
        assert log.pending_count == 1
        # It would be sent as soon as its origin is gone.
        with pytest.raises(WalError, match="entry 2 repeats entry 1"):
            await requeue(log).drop([1])
        grown(qdrant)
        assert await replayer(log, qdrant).drain_now()
        assert qdrant.points["c"] == {}
        assert [item.seq for item in log.quarantined()] == [1]
        await requeue(log).drop([1])
        assert log.quarantined() == []


@pytest.mark.parametrize("is_batch", [False, True])
async def test_what_is_kept_of_an_entry_is_no_larger_than_it_was(tmp_path: Path, is_batch: bool) -> None:
    """The log takes entries up to a limit, and what is in quarantine must fit in again."""
    qdrant = MiniQdrant("c")
    count = 40
    qdrant.refused = {number for number in range(count) if number % 4}
    whole = upsert(*(point(number, v=1) for number in range(count)))
    body = entry(whole)
    if is_batch:
        request = points_pb2.UpdateBatchPoints(collection_name="c")
        request.operations.add().upsert.points.extend(whole[1].points)  # type: ignore[attr-defined]
        request.operations.add().set_payload.points_selector.CopyFrom(selector(*range(count)))
        body = entry((POINTS + "UpdateBatch", request), whole, set_payload(*range(count), w=1))
    async with opened(tmp_path / "wal") as log:
        await log.append(NewRecord(METHODS[body.method].wal_kind, EntryState.PENDING, body.SerializeToString()))
        assert await replayer(log, qdrant).drain_now()
        ((_, record),) = log.quarantined_entries()
        assert len(record.body) < body.ByteSize()
        qdrant.refused = set()
        limits = WalLimits(entry_bytes=body.ByteSize())
        assert await requeue(log, limits).retry(None, force=False) == {1: 2}
        assert await replayer(log, qdrant).drain_now()
        assert log.quarantined() == []
    assert qdrant.points["c"] == {number: {"v": 1, "w": 1} if is_batch else {"v": 1} for number in range(count)}


async def test_no_room_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await refused(log, MiniQdrant("c"), upsert(point(1, BAD)))
        before = (log.last_seq, log.total_bytes)
        with pytest.raises(WalFull):
            await requeue(log, WalLimits(total_bytes=log.total_bytes + 10)).retry([1], force=False)
        assert (log.last_seq, log.total_bytes) == before
        assert [item.seq for item in log.quarantined()] == [1]


async def test_what_was_shown_is_what_is_done(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await refused(log, MiniQdrant("c"), upsert(point(1, BAD)), upsert(point(2, BAD)))
        with pytest.raises(WalError, match="changed meanwhile"):
            await requeue(log).retry(None, force=False, expected=[1])
        assert log.last_seq == 2


# --- memory ----------------------------------------------------------------------------------------------------------

LARGE_BYTES = 1_000_000


@pytest.mark.parametrize("decision", ["forecast", "drop", "retry"])
async def test_a_decision_about_one_entry_does_not_hold_all_of_them(tmp_path: Path, decision: str) -> None:
    """What is in quarantine may be larger than the memory."""
    count = 24
    given_up = []

    async def give_up(entries: Sequence[RefusedEntry]) -> None:
        given_up.extend(entries)

    async with opened(tmp_path / "wal") as log:
        for number in range(count):
            await append(log, upsert(point(number)))
            (record,) = await log.read(number, 1, 10**9)
            large = entry(upsert(point(number, (0.5,) * (LARGE_BYTES // 4)))).SerializeToString()
            await log.quarantine([Refused(replace(record, body=large), 3, "no")])
        await log.mark_replayed(count)
    async with opened(tmp_path / "wal") as log:
        hand = requeue(log, WalLimits())
        tracemalloc.start()
        try:
            if decision == "forecast":
                assert (await hand.forecast([3])).seqs == [3]
            elif decision == "drop":
                await hand.drop([3], give_up)
                assert [(each.seq, len(each.ids)) for each in given_up] == [(3, 1)]
            else:
                assert await hand.retry([3], force=False) == {3: count + 1}
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < count // 2 * LARGE_BYTES
        assert len(log.quarantined()) == count - (decision != "forecast")


# --- halt ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", ["retry", "drop"])
async def test_a_halted_replay_goes_on_after_either_decision(tmp_path: Path, decision: str) -> None:
    qdrant = MiniQdrant("c")
    async with opened(tmp_path / "wal") as log:
        await append(log, upsert(point(1, BAD)))
        await append(log, upsert(point(2)))
        halted = replayer(log, qdrant, quarantine_policy=QuarantinePolicy.HALT)
        assert not await halted.drain_now()
        assert (log.pending_count, qdrant.points["c"]) == (1, {})
        grown(qdrant)
        hand = Requeue(log, WalLimits(), WAL_KINDS, alone=halted.held)
        if decision == "retry":
            await hand.retry([1], force=False)
        else:
            await hand.drop([1])
        assert await halted.drain_now()
        assert set(qdrant.points["c"]) == ({1, 2} if decision == "retry" else {2})


# --- a crash between the quarantine and the cursor -------------------------------------------------------------------


async def test_what_would_still_be_sent_is_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qdrant = MiniQdrant("c")
    async with opened(tmp_path / "wal") as log:
        await append(log, upsert(point(1, BAD)))
        monkeypatch.setattr(log, "mark_replayed", crash)
        with pytest.raises(Crash):
            await replayer(log, qdrant).drain_now()
    async with opened(tmp_path / "wal") as log:
        assert (log.pending_count, [item.seq for item in log.quarantined()]) == (1, [1])
        with pytest.raises(WalError, match="entry 1 is still pending"):
            await requeue(log).drop([1])
        assert [item.seq for item in log.quarantined()] == [1]
        assert await replayer(log, qdrant).drain_now()
        await requeue(log).drop([1])
        grown(qdrant)
        assert await replayer(log, qdrant).drain_now()
    assert qdrant.points["c"] == {}


async def test_what_qdrant_takes_after_a_crash_is_not_in_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qdrant = MiniQdrant("c")
    async with opened(tmp_path / "wal") as log:
        for request in (upsert(point(1, BAD, v=1)), upsert(point(1, v=2)), upsert(point(2))):
            await append(log, request)
        monkeypatch.setattr(log, "mark_replayed", crash)
        with pytest.raises(Crash):
            await replayer(log, qdrant).drain_now()
    grown(qdrant)
    async with opened(tmp_path / "wal") as log:
        assert [item.seq for item in log.quarantined()] == [1, 2]
        assert await replayer(log, qdrant).drain_now()
        assert (log.quarantined(), log.pending_count) == ([], 0)
    assert qdrant.points["c"] == {1: {"v": 2}, 2: {}}


async def test_an_entry_that_cannot_be_read_is_not_retried(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await append(log, upsert(point(1)))
        record = (await log.read(0, 1, 10**6))[0]
        entry = entry_pb2.Entry(method=POINTS + "Unknown")
        object.__setattr__(record, "body", entry.SerializeToString())
        await log.quarantine([Refused(record, 3, "no")])
        with pytest.raises(WalError, match="never logged"):
            await requeue(log).retry([1], force=False)
