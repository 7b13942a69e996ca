"""Others change points while Qdrant is away from us: each policy, seen from both sides."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generated.qdrant import collections_pb2
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import conflict_pb2, entry_pb2
from server.config import ConflictPolicy
from server.errors import ReplicaUnavailable, WalError
from server.replay.bisect import keys_of, operations_of
from server.replay.progress import ReplayState
from server.replica import baseline_rows
from server.replica import requests as r
from server.rpc import Backend, Call, Code, Reply
from tests.faults.backends import FlakyBackend, LostAnswer, Pass, says
from tests.replica.local_store import where

from .divided import Divided, Request, kept_payload
from .fakes import create, delete, drop, point, sent, set_payload, upsert

LOCAL, REMOTE, QUARANTINE = ConflictPolicy.LOCAL_WINS, ConflictPolicy.REMOTE_WINS, ConflictPolicy.QUARANTINE

# name → what others did, what we did meanwhile, and under each policy what Qdrant holds of point 1 in the end.
THEIRS = upsert(point(1, v=7))
CASES: dict[str, tuple[Request, Request, dict[str, int] | None, dict[str, int] | None]] = {
    "both changed it": (THEIRS, upsert(point(1, v=2)), {"v": 2}, {"v": 7}),
    "both changed its payload": (set_payload(1, a=7), set_payload(1, v=2), {"v": 2, "a": 7}, {"v": 1, "a": 7}),
    "they moved its vector": (upsert(point(1, (5.0, 5.0), v=1)), set_payload(1, v=2), {"v": 2}, {"v": 1}),
    "we deleted what they changed": (THEIRS, delete(1), None, {"v": 7}),
    "they deleted what we wrote anew": (delete(1), upsert(point(1, v=2)), {"v": 2}, None),
}


@pytest.fixture
def divided(tmp_path: Path) -> Iterator[Divided]:
    made = Divided(tmp_path)
    made.online(upsert(point(1, v=1), point(2, v=1), point(3, v=1)))
    yield made
    made.close()


@pytest.mark.parametrize("name", CASES)
async def test_local_wins(divided: Divided, name: str) -> None:
    theirs, ours, after, kept = CASES[name]
    divided.others(theirs)
    seq = divided.offline(ours)
    divided.offline(upsert(point(2, v=2)))
    await divided.drain(LOCAL)
    assert divided.at_qdrant() == {**({1: after} if after else {}), 2: {"v": 2}, 3: {"v": 1}}
    assert divided.outcomes() == [("overwritten", 1, seq)]
    (row,) = divided.rows
    assert (row.is_gone, kept_payload(row)) == (kept is None, kept or {})
    assert row.collection == "c"
    assert row.method == ours[0]
    assert divided.log.kept == {}
    # Where Qdrant holds some of both, the replica is compared with it.
    is_whole = ours[0].endswith(("/Upsert", "/Delete"))
    assert divided.mixed == ([] if is_whole else ["c"])
    assert (divided.at_qdrant() == divided.at_replica()) or divided.mixed


@pytest.mark.parametrize("name", CASES)
async def test_remote_wins(divided: Divided, name: str) -> None:
    theirs, ours, _, kept = CASES[name]
    divided.others(theirs)
    seq = divided.offline(ours)
    divided.offline(upsert(point(2, v=2)))
    await divided.drain(REMOTE)
    expected = {**({1: kept} if kept else {}), 2: {"v": 2}, 3: {"v": 1}}
    assert divided.at_qdrant() == divided.at_replica() == expected
    assert divided.here.points() == divided.qdrant.local.points()
    assert divided.outcomes() == [("not_written", 1, seq)]
    (left_out,) = divided.rows[0].left_out
    assert left_out.method == ours[0]
    assert divided.log.kept == {}


@pytest.mark.parametrize("name", CASES)
async def test_quarantine(divided: Divided, name: str) -> None:
    theirs, ours, _, kept = CASES[name]
    divided.others(theirs)
    seq = divided.offline(ours)
    divided.offline(upsert(point(2, v=2)))
    follower = divided.offline(set_payload(2, w=3))
    await divided.drain(QUARANTINE)
    assert divided.at_qdrant() == {**({1: kept} if kept else {}), 2: {"v": 2, "w": 3}, 3: {"v": 1}}
    assert divided.outcomes() == [("quarantined", 1, seq)]
    assert list(divided.log.kept) == [seq]
    item = divided.log.kept[seq]
    assert item.code == Code.ABORTED
    assert "conflict: others changed point 1 " in item.details
    assert follower not in divided.log.kept


async def test_a_payload_for_a_point_that_others_deleted(divided: Divided) -> None:
    """Local wins, but there is nothing left that it could win over: Qdrant refuses, as ever."""
    divided.others(delete(1))
    seq = divided.offline(set_payload(1, v=2))
    await divided.drain(LOCAL)
    assert divided.outcomes() == [("overwritten", 1, seq)]
    assert divided.log.kept[seq].code == Code.NOT_FOUND
    assert 1 not in divided.at_qdrant()


async def test_what_others_left_alone_is_no_conflict(divided: Divided) -> None:
    divided.others(upsert(point(9, v=7)))
    for request in (upsert(point(1, v=2), point(4, v=2)), delete(2, 8), set_payload(3, v=2)):
        divided.offline(request)
    for policy in (LOCAL, REMOTE, QUARANTINE):
        await divided.drain(policy)
    assert divided.rows == []
    assert divided.unknown() == 0
    assert divided.at_qdrant() == {1: {"v": 2}, 3: {"v": 2}, 4: {"v": 2}, 9: {"v": 7}}


async def test_what_others_made_the_same_is_no_conflict(divided: Divided) -> None:
    divided.others(upsert(point(1, v=2)))
    divided.others(delete(2))
    divided.offline(upsert(point(1, v=2)))
    divided.offline(delete(2))
    await divided.drain(QUARANTINE)
    assert divided.rows == []
    assert divided.log.kept == {}


async def test_a_point_that_both_made(divided: Divided) -> None:
    divided.others(upsert(point(4, v=7)))
    seq = divided.offline(upsert(point(4, v=2), point(5, v=2)))
    await divided.drain(REMOTE)
    assert divided.outcomes() == [("not_written", 4, seq)]
    assert divided.at_qdrant() == divided.at_replica()
    assert divided.at_qdrant()[4] == {"v": 7}
    assert divided.at_qdrant()[5] == {"v": 2}


async def test_only_the_points_concerned_of_a_batch(divided: Divided) -> None:
    divided.others(upsert(point(2, v=7)))
    steps = [
        pb.PointsUpdateOperation(
            upsert=pb.PointsUpdateOperation.PointStructList(points=[point(1, v=2), point(2, v=2)])
        ),
        pb.PointsUpdateOperation(
            set_payload=pb.PointsUpdateOperation.SetPayload(
                payload=point(1, w=3).payload,
                points_selector=pb.PointsSelector(points=pb.PointsIdsList(ids=[point(1).id, point(2).id])),
            )
        ),
    ]
    seq = divided.offline((r.UPDATE_BATCH, pb.UpdateBatchPoints(collection_name="c", operations=steps, wait=True)))
    await divided.drain(QUARANTINE)
    assert divided.at_qdrant() == {1: {"v": 2, "w": 3}, 2: {"v": 7}, 3: {"v": 1}}
    held = divided.log.kept[seq].record
    assert held.points == 2
    # The operator decides for ours: what was held, and nothing else, reaches Qdrant.
    entry = entry_pb2.Entry.FromString(held.body)
    divided.log.kept.clear()
    divided.offline((entry.method, pb.UpdateBatchPoints.FromString(entry.request)), retry_of=seq)
    await divided.drain(QUARANTINE)
    assert divided.at_qdrant()[2] == {"v": 2, "w": 3}
    assert divided.log.kept == {}


async def test_a_part_of_a_batch_that_matches_nothing_hides_nobodys_change(divided: Divided) -> None:
    divided.others(THEIRS)
    batch = pb.UpdateBatchPoints(collection_name="c", wait=True)
    batch.operations.add().upsert.points.append(point(1, v=2))
    batch.operations.add().delete_points.points.CopyFrom(where("k", "nobody"))
    prepared = divided.here.prepare(r.UPDATE_BATCH, batch)
    seq = divided.offline((r.UPDATE_BATCH, batch), *prepared)
    await divided.drain(REMOTE)
    assert divided.at_qdrant() == divided.at_replica() == {1: {"v": 7}, 2: {"v": 1}, 3: {"v": 1}}
    assert divided.outcomes() == [("not_written", 1, seq)]
    assert divided.unknown() == 0


async def test_what_others_won_does_not_come_back_by_way_of_the_quarantine(divided: Divided) -> None:
    """Qdrant refuses what is left of the entry: only that is kept for a retry."""
    divided.others(THEIRS)
    seq = divided.offline(upsert(point(1, v=2), point(2, v=2)))
    divided.calls.script.append(says(Code.INVALID_ARGUMENT))
    await divided.drain(REMOTE)
    kept = entry_pb2.Entry.FromString(divided.log.kept[seq].record.body)
    assert [each.id.num for each in pb.UpsertPoints.FromString(kept.request).points] == [2]
    assert divided.outcomes() == [("not_written", 1, seq)]


async def test_later_writes_to_a_quarantined_point_follow(divided: Divided) -> None:
    divided.others(THEIRS)
    first = divided.offline(upsert(point(1, v=2)))
    second = divided.offline(upsert(point(1, v=3), point(2, v=3)))
    await divided.drain(QUARANTINE)
    assert sorted(divided.log.kept) == [first, second]
    assert divided.log.kept[second].details == f"follows seq {first}"
    assert divided.at_qdrant() == {1: {"v": 7}, 2: {"v": 3}, 3: {"v": 1}}
    # A follower is no conflict of its own.
    assert divided.outcomes() == [("quarantined", 1, first)]


async def test_remote_wins_over_all_that_was_pending_and_not_over_what_comes_after(divided: Divided) -> None:
    divided.others(THEIRS)
    first = divided.offline(upsert(point(1, v=2)))
    second = divided.offline(set_payload(1, v=3))
    replayer = divided.replayer(REMOTE)
    assert await replayer.drain_now()
    assert divided.at_replica()[1] == divided.at_qdrant()[1] == {"v": 7}
    assert divided.outcomes() == [("not_written", 1, first), ("not_written", 1, second)]
    # It is written on top of what the replica took over, so it counts.
    divided.offline(set_payload(1, w=4))
    assert await replayer.drain_now()
    assert divided.at_replica()[1] == divided.at_qdrant()[1] == {"v": 7, "w": 4}
    assert len(divided.rows) == 2


# --- our own hand ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [LOCAL, REMOTE, QUARANTINE])
async def test_a_write_of_unknown_outcome_that_qdrant_has_is_no_conflict(
    divided: Divided, policy: ConflictPolicy
) -> None:
    divided.others(upsert(point(1, v=2)))
    divided.offline(upsert(point(1, v=2)), maybe_applied=True)
    divided.offline(upsert(point(1, v=3)))
    await divided.drain(policy)
    assert divided.rows == []
    assert divided.log.kept == {}
    assert divided.at_qdrant()[1] == {"v": 3}


@pytest.mark.parametrize("policy", [LOCAL, REMOTE, QUARANTINE])
async def test_a_drain_that_broke_off_sees_its_own_work_and_knows_it(divided: Divided, policy: ConflictPolicy) -> None:
    """Two of three writes to one point reached Qdrant; the cursor does not say so, for the process died."""
    divided.offline(upsert(point(1, v=2)))
    divided.offline(upsert(point(1, v=3)))
    divided.offline(upsert(point(1, v=4)))
    before = divided.log.replayed_seq
    divided.calls.script.extend([Pass(), LostAnswer()])
    assert not await divided.replayer(policy, merge_points=1).drain_now()
    assert divided.at_qdrant()[1] == {"v": 3}
    divided.log.replayed_seq = before
    await divided.drain(policy)
    assert divided.rows == []
    assert divided.log.kept == {}
    assert divided.at_qdrant()[1] == {"v": 4}


@pytest.mark.parametrize("policy", [LOCAL, REMOTE, QUARANTINE])
async def test_a_write_that_came_during_the_drain_is_known_as_our_own_after_a_crash(
    divided: Divided, policy: ConflictPolicy
) -> None:
    """The point was looked at, its first write is done and forgotten; the next one is sent, and the process dies."""
    divided.offline(upsert(point(1, v=2)))
    replayer = divided.replayer(policy, merge_points=1)
    assert await replayer.drain_now()
    before = divided.log.replayed_seq
    divided.offline(upsert(point(1, v=3)))
    divided.calls.script.append(LostAnswer())
    assert not await replayer.drain_now()
    assert divided.at_qdrant()[1] == {"v": 3}
    divided.log.replayed_seq = before
    divided.offline(upsert(point(1, v=4)))
    await divided.drain(policy)
    assert divided.rows == []
    assert divided.log.kept == {}
    assert divided.at_qdrant()[1] == {"v": 4}


@pytest.mark.parametrize("policy", [REMOTE, QUARANTINE])
async def test_what_was_decided_is_kept_to_after_a_crash(divided: Divided, policy: ConflictPolicy) -> None:
    """The decision is on disk, and the process dies while it acts."""
    divided.others(THEIRS)
    first = divided.offline(upsert(point(1, v=2), point(2, v=2)))
    second = divided.offline(upsert(point(1, v=3)))
    divided.calls.script.append(LostAnswer())
    assert not await divided.replayer(policy, merge_points=1).drain_now()
    assert divided.log.kept == {}
    await divided.drain(policy)
    assert divided.at_qdrant() == {1: {"v": 7}, 2: {"v": 2}, 3: {"v": 1}}
    if policy is REMOTE:
        assert {row.seq for row in divided.rows} == {first, second}
    else:
        assert sorted(divided.log.kept) == [first, second]


async def test_a_second_outage_has_a_baseline_of_its_own(divided: Divided, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for points whose old baseline nobody had the time to remove."""
    monkeypatch.setattr(baseline_rows, "_PURGED_PER_APPLY", 0)
    divided.offline(upsert(point(1, v=2)))
    await divided.drain()
    divided.offline(upsert(point(1, v=3)))
    await divided.drain()
    assert divided.rows == []
    divided.others(THEIRS)
    seq = divided.offline(upsert(point(1, v=4)))
    await divided.drain()
    assert divided.outcomes() == [("overwritten", 1, seq)]


async def test_a_collection_made_anew_has_nobody_elses_points(divided: Divided) -> None:
    for request in (drop(), create(), upsert(point(1, v=2)), delete(2)):
        divided.offline(request)
    await divided.drain(QUARANTINE)
    assert divided.rows == []
    assert divided.log.kept == {}
    assert divided.at_qdrant() == {1: {"v": 2}}


# --- what nobody can tell --------------------------------------------------------------------------------------------


async def test_a_collection_that_is_not_whole_has_no_baseline(divided: Divided) -> None:
    divided.here.set_completeness(control.COMPLETENESS_STALE)
    divided.others(THEIRS)
    divided.offline(upsert(point(1, v=2), point(2, v=2)))
    await divided.drain(REMOTE)
    assert divided.rows == []
    assert divided.unknown() == 2
    assert divided.at_qdrant()[1] == {"v": 2}


async def test_a_replica_that_cannot_be_asked_holds_nothing_up(divided: Divided) -> None:
    divided.others(THEIRS)
    divided.offline(upsert(point(1, v=2)))
    divided.control.failure = ReplicaUnavailable("gone")
    await divided.drain(QUARANTINE)
    assert divided.unknown() == 1
    assert divided.at_qdrant()[1] == {"v": 2}


async def test_a_qdrant_that_writes_and_cannot_read_holds_nothing_up(divided: Divided) -> None:
    divided.offline(upsert(point(1, v=2)))
    broken = FlakyBackend(divided.qdrant, [says(Code.INTERNAL)] * 3, only=lambda call: call.method.endswith("/Get"))
    replayer = divided.replayer(LOCAL, broken, doubtful_tries=3)
    assert not await replayer.drain_now()
    assert not await replayer.drain_now()
    assert divided.at_qdrant()[1] == {"v": 1}
    assert await replayer.drain_now()
    assert divided.at_qdrant()[1] == {"v": 2}
    assert divided.unknown() == 1


async def test_a_collection_that_others_dropped_is_for_the_quarantine(divided: Divided) -> None:
    seq = divided.offline(upsert(point(1, v=2)))
    divided.others(drop())
    await divided.drain(REMOTE)
    assert divided.rows == []
    assert divided.log.kept[seq].code == Code.NOT_FOUND


@pytest.mark.parametrize(
    "text",
    [
        "CLIENT: Received message larger than max (9 vs. 4)",
        "Rate limiting exceeded: Read rate limit exceeded, request larger than rate limiter capacity, please try to "
        "split your request",
    ],
)
async def test_answers_that_are_too_large_are_asked_for_in_parts(divided: Divided, text: str) -> None:
    divided.others(upsert(point(3, v=7)))
    seq = divided.offline(upsert(point(1, v=2), point(2, v=2), point(3, v=2), point(4, v=2)))

    class Narrow:
        async def handle(self, call: Call) -> Reply:
            if call.method.endswith("/Get") and len(sent(call).ids) > 1:
                return says(Code.RESOURCE_EXHAUSTED, text)
            return await divided.qdrant.handle(call)

    assert await divided.replayer(LOCAL, Narrow()).drain_now()
    assert divided.outcomes() == [("overwritten", 3, seq)]
    assert divided.unknown() == 0


async def test_each_point_of_a_large_entry_has_its_row(divided: Divided) -> None:
    many = [point(number, v=2) for number in range(100, 900)]
    divided.others(upsert(*(point(number, v=7) for number in range(100, 900))))
    divided.offline(upsert(*many, point(1, v=2)))
    await divided.drain(REMOTE, merge_points=1)
    assert len(divided.rows) == 800
    for row in divided.rows:
        (left_out,) = left_out_of(row)
        assert left_out.id.SerializeToString() == row.point_id
    assert divided.at_qdrant()[1] == {"v": 2}
    assert divided.at_qdrant()[500] == {"v": 7}


def left_out_of(row: conflict_pb2.Conflict) -> list[pb.PointStruct]:
    """The points that a row says were left out."""
    (operation,) = row.left_out
    return list(pb.UpsertPoints.FromString(operation.request).points)


# --- the conflict log ------------------------------------------------------------------------------------------------


async def test_many_points_are_looked_at_with_one_call(divided: Divided) -> None:
    for number in range(400):
        divided.offline(upsert(point(number, v=number)))
    await divided.drain(page_entries=256)
    asked = [len(sent(call).ids) for call in divided.calls.calls if call.method.endswith("/Get")]
    assert sum(asked) == 400
    assert len(asked) == 2


async def test_what_goes_as_one_was_looked_at_whole(divided: Divided) -> None:
    """As many points as are looked at together end within a run of entries that are sent together."""
    size, many = 3, [*range(100, 148)]
    divided.online(upsert(*(point(number, v=1) for number in many)))
    divided.others(upsert(*(point(number, v=7) for number in many[7:])))
    for at in range(0, len(many), size):
        divided.offline(upsert(*(point(number, v=2) for number in many[at : at + size])))
    await divided.drain(REMOTE, conflict_points=7, merge_points=20)
    assert divided.at_qdrant() == divided.at_replica()
    assert {number: divided.at_qdrant()[number]["v"] for number in many} == {
        number: 2 if number < many[7] else 7 for number in many
    }
    assert {number for _, number, _ in divided.outcomes()} == {*many[7:]}


class _Halting:
    """Qdrant, which does not answer its `at`th read until it may."""

    def __init__(self, inner: Backend, at: int) -> None:
        self.inner = inner
        self.left = at
        self.reached, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        if call.method.endswith("/Get"):
            self.left -= 1
            if not self.left:
                self.reached.set()
                await self.may_go_on.wait()
        return await self.inner.handle(call)


@pytest.mark.parametrize("policy", [REMOTE, QUARANTINE])
async def test_another_attempt_during_a_look_forgets_nothing_of_it(divided: Divided, policy: ConflictPolicy) -> None:
    """An entry of more points than are looked at together; the drain goes on, in another hand, before it is sent."""
    divided.others(upsert(*(point(number, v=7) for number in (1, 2, 3))))
    divided.offline(upsert(*(point(number, v=2) for number in (1, 2, 3))))
    upstream = _Halting(divided.calls, 2)
    replayer = divided.replayer(policy, upstream, conflict_points=1)
    first = asyncio.create_task(replayer.drain_now())
    await upstream.reached.wait()
    replayer.request_sync("writes did not pause")
    goes_on = asyncio.create_task(replayer.run())
    while replayer.progress.state is not ReplayState.RUNNING:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    upstream.may_go_on.set()
    assert await first
    goes_on.cancel()
    await asyncio.wait([goes_on])
    assert divided.at_qdrant() == {number: {"v": 7} for number in (1, 2, 3)}
    assert len(divided.outcomes()) == 3


async def test_entries_that_were_looked_at_together_go_together(divided: Divided) -> None:
    for at in range(20):
        divided.offline(upsert(*(point(100 + 3 * at + each) for each in range(3))))
    await divided.drain(REMOTE, conflict_points=20, merge_points=20)
    by_method = [[], []]  # type: list[list[int]]
    for call in divided.calls.calls:
        is_look = call.method.endswith("/Get")
        by_method[is_look].append(len(sent(call).ids if is_look else sent(call).points))
    assert by_method == [[18, 18, 18, 6], [18, 18, 18, 6]]


async def test_a_point_is_looked_at_once_a_drain(divided: Divided) -> None:
    for value in range(300):
        divided.offline(upsert(point(1, v=value)))
    await divided.drain(page_entries=10)
    assert len([call for call in divided.calls.calls if call.method.endswith("/Get")]) == 1


async def test_nothing_is_overwritten_that_could_not_be_kept(divided: Divided, monkeypatch: pytest.MonkeyPatch) -> None:
    divided.others(THEIRS)
    divided.offline(upsert(point(1, v=2)))
    replayer = divided.replayer(LOCAL)

    def full(rows: list[bytes]) -> int:
        raise WalError(f"no room for {len(rows)}")

    with monkeypatch.context() as patched:
        patched.setattr(divided.kept, "append", full)
        assert not await replayer.drain_now()
        assert divided.at_qdrant()[1] == {"v": 7}
    assert await replayer.drain_now()
    assert divided.at_qdrant()[1] == {"v": 2}
    assert len(divided.rows) == 1


async def test_files_are_ours_alone_and_hold_no_secret(divided: Divided, tmp_path: Path) -> None:
    secret = "ghp_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8"
    theirs = point(1)
    theirs.payload["token"].string_value = secret
    divided.others(upsert(theirs))
    divided.offline(upsert(point(1, v=2)))
    await divided.drain()
    (file,) = (tmp_path / "conflicts").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    (row,) = divided.rows
    assert b"token" in row.remote
    assert secret.encode() not in file.read_bytes()


def collection(datatype: int) -> Request:
    """One Cosine vector with a datatype of its own."""
    method, request = create("d", size=3)
    assert isinstance(request, collections_pb2.CreateCollection)
    request.vectors_config.params.distance = collections_pb2.Distance.Cosine
    request.vectors_config.params.datatype = datatype  # type: ignore[assignment]
    return method, request


@pytest.mark.parametrize("datatype", [collections_pb2.Datatype.Float32, collections_pb2.Datatype.Float16])
async def test_rounding_is_no_conflict(divided: Divided, datatype: int) -> None:
    """Each side normalises by itself: the last bits differ, and a half float may be rounded to either side."""
    divided.online(collection(datatype))
    divided.online(upsert(point(1, (1.0, 2.0, 3.0), v=1), point(2, (1.0, 2.0, 3.0), v=1), collection="d"))
    nearly = 1e-7 if datatype == collections_pb2.Datatype.Float32 else 1e-3
    with divided.qdrant.local.store.transaction() as tx:
        found = tx.collection("d")
        assert found is not None
        for record in tx.scan(found.cid):
            vectors = pb.NamedVectors.FromString(record.vectors)
            vectors.vectors[""].dense.data[0] += nearly
            tx.put(found.cid, [replace(record, vectors=vectors.SerializeToString(deterministic=True))])
    divided.others(set_payload(2, v=7, collection="d"))
    divided.offline(upsert(point(1, (3.0, 2.0, 1.0), v=2), collection="d"))
    seq = divided.offline(upsert(point(2, (3.0, 2.0, 1.0), v=2), collection="d"))
    await divided.drain()
    assert divided.outcomes() == [("overwritten", 2, seq)]


@pytest.mark.parametrize("policy", [LOCAL, REMOTE, QUARANTINE])
async def test_what_both_have_deleted_leaves_nothing_in_quarantine(divided: Divided, policy: ConflictPolicy) -> None:
    """Ours wrote to the point before that, and Qdrant no longer finds it."""
    divided.others(delete(2))
    divided.offline(set_payload(2, w=1))
    divided.offline(set_payload(2, 1, w=2))
    divided.offline(delete(2))
    await divided.drain(policy)
    assert divided.log.kept == {}
    assert divided.rows == []
    assert divided.at_qdrant() == divided.at_replica() == {1: {"v": 1, "w": 2}, 3: {"v": 1}}
    divided.offline(upsert(point(2, v=9)))
    await divided.drain(policy)
    assert divided.at_qdrant()[2] == {"v": 9}


_ACTS = st.tuples(
    st.sampled_from(["theirs", "ours"]), st.sampled_from(["upsert", "delete", "payload"]), st.integers(1, 4)
)


@pytest.mark.parametrize("policy", [LOCAL, REMOTE, QUARANTINE])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(_ACTS, min_size=1, max_size=12), breaks=st.lists(st.integers(0, 3), max_size=3), data=st.data())
async def test_both_sides_end_the_same_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory,
    policy: ConflictPolicy,
    acts: list[tuple[str, str, int]],
    breaks: list[int],
    data: st.DataObject,
) -> None:
    """Any mixture of their writes and ours; then drains, each in a new process, of which some break off."""
    made = Divided(tmp_path_factory.mktemp("divided"))
    try:
        made.online(upsert(point(1, v=1), point(2, v=1), point(3, v=1)))
        ours, theirs = set[int](), set[int]()
        for value, (who, kind, number) in enumerate(acts, 10):
            held = made.at_qdrant() if who == "theirs" else made.at_replica()
            request = {"upsert": upsert(point(number, v=value)), "delete": delete(number)}.get(kind)
            if request is None:
                if number not in held:
                    continue
                request = set_payload(number, w=value)
            if who == "theirs":
                made.others(request)
                theirs.add(number)
            else:
                made.offline(request)
                ours.add(number)
        before = made.at_qdrant()

        def die() -> None:
            # What the cursor was to pass after this is not on disk.
            made.log.failing = True

        for passed in breaks:
            made.calls.script.extend([*[Pass()] * passed, LostAnswer(die)])
            await made.replayer(policy, merge_points=data.draw(st.sampled_from([1, 500]))).drain_now()
            made.calls.script.clear()
            made.log.failing = False
        await made.drain(policy)
        there, here = made.at_qdrant(), made.at_replica()
        contested = {number for _, number, _ in made.outcomes()}
        assert contested <= ours & theirs
        refused = {number for item in made.log.kept.values() for number in _points_in(item.record.body)}
        assert policy is LOCAL or not made.mixed
        for number in ours - refused - (contested if made.mixed else set()):
            assert there.get(number) == here.get(number), number
        if policy is not LOCAL:
            for number in contested:
                assert there.get(number) == before.get(number), number
        for number in theirs - ours:
            assert there.get(number) == before.get(number), number
        if policy is REMOTE:
            assert not refused
    finally:
        made.close()


def _points_in(body: bytes) -> set[int]:
    return {
        key for operation in operations_of(entry_pb2.Entry.FromString(body)) for key in map(int, keys_of(operation))
    }
