"""What points were before late entries: kept with the change, listed, judged against what Qdrant shows."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import former
from server.replica import requests as r
from server.replica.former import Finding, Former, judge
from server.replica.former_desk import FormerDesk
from server.replica.points import id_of, key_of
from server.replica.records import Record
from server.replica.vector_forms import named
from server.replica.writes import Writes
from tests.faults.clock import ManualClock
from tests.replica import matching
from tests.replica.local_store import CREATE, DROP, Local, create, dense, entry, local, payload, point_id

KEY = key_of(point_id(1))
A, B, C, D = (Record(KEY, name.encode(), b"v") for name in "abcd")
WINDOW = control.FormerWindow(since_seq=0, replayed_seq=0)


# --- the judgement, over everything that can be ----------------------------------------------------------------------


def test_every_case_has_one_finding() -> None:
    states = (None, A, B, C)
    for there, here, first, second in itertools.product(states, repeat=4):
        # Two acknowledged entries: it was `first`, then `second`, and is `here`.
        formers = [Former(True, True, first), Former(True, True, second)]
        judged = judge(there, here, formers, frozenset())
        assert judged.wanted == here
        if there == here:
            assert judged.finding is Finding.SAME
        elif there in (first, second):
            assert judged.finding is Finding.LOST
        else:
            assert judged.finding is Finding.FOREIGN


def test_what_is_pending_is_not_wanted_yet() -> None:
    formers = [Former(True, True, A), Former(False, True, B), Former(False, True, C)]
    # Acknowledged: A became B. Pending: B becomes C becomes D.
    assert judge(B, D, formers, frozenset()).finding is Finding.SAME
    assert judge(A, D, formers, frozenset()) == judge(A, None, formers, frozenset())
    assert judge(A, D, formers, frozenset()).wanted == B
    # Half of what is pending was done already, by a drain that was cut short: it is done again.
    assert judge(C, D, formers, frozenset()).finding is Finding.FOREIGN
    assert judge(None, D, formers, frozenset()).finding is Finding.FOREIGN


def test_what_nobody_knew_may_have_been_anything() -> None:
    formers = [Former(True, False, None), Former(True, True, B)]
    for there in (None, A, B, D):
        assert judge(there, C, formers, frozenset()).finding is Finding.LOST
    # It may also be newer than the log.
    for there, finding in ((None, Finding.FOREIGN), (A, Finding.FOREIGN), (B, Finding.LOST), (D, Finding.FOREIGN)):
        assert judge(there, C, formers, frozenset(), is_log_whole=False).finding is finding
    assert judge(C, C, formers, frozenset()).finding is Finding.SAME
    # Where what it should be is not known either, nothing is sent.
    assert judge(A, C, [Former(True, True, A), Former(False, False, None)], frozenset()).finding is Finding.FOREIGN


def test_what_is_not_there_may_have_been_deleted_by_what_the_log_lacks() -> None:
    formers = [Former(True, True, None), Former(True, True, A)]
    assert judge(None, B, formers, frozenset()).finding is Finding.LOST
    assert judge(None, B, formers, frozenset(), is_log_whole=False).finding is Finding.FOREIGN
    assert judge(A, B, formers, frozenset(), is_log_whole=False).finding is Finding.LOST
    assert judge(A, None, formers, frozenset(), is_log_whole=False).finding is Finding.LOST


def test_what_nobody_knows_is_not_lost_where_a_crash_may_have_cut_off_a_write() -> None:
    known, unknown = Former(True, True, A), Former(True, False, None)
    assert judge(C, B, [unknown], frozenset()).finding is Finding.LOST
    assert judge(C, B, [unknown], frozenset(), is_unbroken=False).finding is Finding.FOREIGN
    assert judge(A, B, [unknown, known], frozenset(), is_unbroken=False).finding is Finding.LOST
    assert judge(None, B, [Former(True, True, None)], frozenset(), is_unbroken=False).finding is Finding.LOST


def test_what_was_taken_over_from_qdrant_since_is_not_guessed_to_be_lost() -> None:
    """Unknown before the acknowledged A; A before a held entry; then others wrote B, and the replica copied it."""
    formers = [Former(True, False, None, is_whole=True), Former(False, True, A), Former(False, True, B)]
    assert judge(B, None, formers, frozenset()).finding is Finding.FOREIGN
    assert judge(A, None, formers, frozenset()).finding is Finding.SAME
    # What the replica has never held since may be what Qdrant had before.
    assert judge(C, None, formers, frozenset()).finding is Finding.LOST


def test_rounding_is_no_difference() -> None:
    def vector(*values: float) -> bytes:
        return named({"": pb.Vector(dense=pb.DenseVector(data=values))})

    was, shown = Record(KEY, b"p", vector(0.6, 0.8)), Record(KEY, b"p", vector(0.6000001, 0.8))
    formers = [Former(True, True, was)]
    assert judge(shown, None, formers, frozenset(("",))).finding is Finding.LOST
    assert judge(shown, None, formers, frozenset()).finding is Finding.FOREIGN
    assert judge(shown, was, [], frozenset(("",))).finding is Finding.SAME


def test_what_was_refused_is_not_wanted_whatever_came_later() -> None:
    # A became B, the next was refused, and then a part of it was changed: nobody knows what that made of B.
    refused, later = Former(False, True, B), Former(True, True, C)
    for there in (None, A, B, C, D):
        assert judge(there, D, [Former(True, True, A), refused, later], frozenset()).finding is Finding.FOREIGN
    # The whole point was written: what it was before does not matter, and the refused C was never there.
    whole = Former(True, True, C, is_whole=True)
    findings = [judge(there, D, [Former(True, True, A), refused, whole], frozenset()) for there in (A, B, C, D)]
    assert [each.finding for each in findings] == [Finding.LOST, Finding.LOST, Finding.FOREIGN, Finding.SAME]
    assert {each.wanted for each in findings} == {D}
    # From there on it is known again.
    assert judge(D, A, [refused, later, whole, Former(True, True, D)], frozenset()).finding is Finding.LOST


def test_what_may_have_been_done_is_left_alone() -> None:
    doubtful, whole = Former(False, True, B, is_doubtful=True), Former(True, True, C, is_whole=True)
    for there in (None, A, B, C):
        assert judge(there, C, [Former(True, True, A), doubtful], frozenset()).finding is Finding.FOREIGN
    assert judge(A, D, [Former(True, True, A), doubtful, whole], frozenset()).finding is Finding.LOST


def kept_before(seq: int, retry_of: int = 0, *, synced: bool = False) -> former.Kept:
    return former.Kept(seq, synced, True, A, False, retry_of)


@pytest.mark.parametrize(
    ("rows", "refused", "done"),
    [
        ([kept_before(3), kept_before(5), kept_before(9)], [], [True, True, False]),
        ([kept_before(3), kept_before(5), kept_before(9, synced=True)], [3], [False, True, True]),
        # A retry that is pending, is at Qdrant, is in quarantine again, and one that a crash cut short.
        ([kept_before(3), kept_before(9, retry_of=3)], [], [False, False]),
        ([kept_before(3), kept_before(6, retry_of=3)], [], [False, True]),
        ([kept_before(3), kept_before(6, retry_of=3)], [6], [False, False]),
        ([kept_before(3), kept_before(6, retry_of=3)], [3], [False, False]),
        # Dropped by an operator.
        ([kept_before(3), replace(kept_before(5), is_given_up=True)], [], [True, False]),
    ],
)
def test_what_qdrant_has_done_of_what_the_log_is_past(
    rows: list[former.Kept], refused: list[int], done: list[bool]
) -> None:
    assert [each.is_acknowledged for each in former.formers_of(rows, 8, refused.__contains__)] == done


# --- the store -------------------------------------------------------------------------------------------------------


class Kept:
    """A write side that keeps what points were, and the desk that answers about it."""

    def __init__(self, made: Local, limit_points: int = 100) -> None:
        self.local = made
        self.desk = FormerDesk(made.store)
        self.forgets_through_seq = 0
        self.writes = Writes(
            made.store, matching.scan, made.touched, ManualClock(), resolved_points=20, former_points=limit_points
        )

    def apply(self, seq: int, method: str, request: Any, *, synced: bool = True, keeps: bool = True) -> None:
        self.writes.apply(
            [entry(seq, method, request, synced=synced)],
            keeps_former=keeps,
            forgets_through_seq=self.forgets_through_seq,
        )

    def listed(self, window: control.FormerWindow = WINDOW, limit: int = 100) -> list[tuple[str, list[int]]]:
        found, after = [], 0
        while True:
            page = self.desk.list_points(control.ListFormerRequest(window=window, after=after, limit_points=limit))
            if not page.ids:
                return found
            found.append((page.collection, [r.parse(_POINT_ID, body).num for body in page.ids]))
            after = page.next_after

    def judged(
        self,
        *shown: pb.RetrievedPoint,
        ids: tuple[int, ...] = (1,),
        window: control.FormerWindow = WINDOW,
        is_unbroken: bool = False,
    ) -> tuple[dict[int, Any], list[int], int]:
        request = control.JudgeFormerRequest(
            window=window,
            collection="c",
            ids=[point_id(number).SerializeToString() for number in ids],
            page=pb.GetResponse(result=shown).SerializeToString(),
            is_log_whole=True,
            is_unbroken=is_unbroken,
        )
        response = self.desk.judge(request)
        put = map(pb.PointStruct.FromString, response.put)
        removed = [r.parse(_POINT_ID, body).num for body in response.remove]
        return {point.id.num: point for point in put}, removed, response.foreign


_POINT_ID = type(point_id(1))


def put(*numbers: int, name: str = "c", **values: int) -> pb.UpsertPoints:
    points = [pb.PointStruct(id=point_id(number), vectors=dense(3, 4), payload=payload(values)) for number in numbers]
    return pb.UpsertPoints(collection_name=name, points=points)


def shown(number: int, *vector: float, **values: int) -> pb.RetrievedPoint:
    found = pb.RetrievedPoint(id=point_id(number), payload=payload(values))
    found.vectors.vector.dense.data.extend(vector or (3, 4))
    return found


def ids(*numbers: int) -> pb.PointsSelector:
    return pb.PointsSelector(points=pb.PointsIdsList(ids=map(point_id, numbers)))


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    with local(tmp_path) as made:
        found = Kept(made)
        found.apply(1, CREATE, create())
        yield found


def test_a_lost_upsert_a_lost_change_and_a_lost_delete(kept: Kept) -> None:
    kept.apply(2, r.UPSERT, put(1, a=1))
    kept.apply(
        3, r.SET_PAYLOAD, pb.SetPayloadPoints(collection_name="c", payload=payload({"b": 2}), points_selector=ids(1))
    )
    found, removed, foreign = kept.judged()
    assert dict(found[1].payload) == payload({"a": 1, "b": 2})
    assert list(found[1].vectors.vector.dense.data) == [3, 4]
    assert (removed, foreign) == ([], 0)
    assert kept.judged(shown(1, a=1))[0] == found
    assert kept.judged(shown(1, a=1, b=2)) == ({}, [], 0)
    # Somebody else's.
    assert kept.judged(shown(1, a=9)) == ({}, [], 1)
    assert kept.judged(shown(1, 3, 5, a=1)) == ({}, [], 1)
    kept.apply(4, r.DELETE, pb.DeletePoints(collection_name="c", points=ids(1)))
    assert kept.judged(shown(1, a=1, b=2)) == ({}, [1], 0)
    assert kept.judged() == ({}, [], 0)
    assert kept.judged(shown(1, a=7)) == ({}, [], 1)


def test_a_filter_is_kept_by_the_points_that_it_changed(kept: Kept) -> None:
    kept.apply(2, r.UPSERT, put(1, 2, a=1))
    kept.apply(3, r.UPSERT, put(3, a=2))
    chosen = pb.PointsSelector()
    chosen.filter.must.add().field.key = "a"
    chosen.filter.must[0].field.match.integer = 1
    kept.apply(4, r.DELETE, pb.DeletePoints(collection_name="c", points=chosen))
    window = control.FormerWindow(since_seq=3)
    assert kept.listed(window) == [("c", [1, 2])]
    _, removed, _ = kept.judged(shown(1, a=1), shown(2, a=1), shown(3, a=2), ids=(1, 2, 3), window=window)
    assert removed == [1, 2]


def test_named_and_cosine_vectors_come_back_whole(tmp_path: Path) -> None:
    with local(tmp_path) as made:
        kept = Kept(made)
        kept.apply(1, CREATE, create(distance=collections.Distance.Cosine))
        kept.apply(2, r.UPSERT, put(1, a=1))
        kept.apply(3, r.UPSERT, put(1, a=2))
        # Qdrant has normalised it by itself.
        found, _, _ = kept.judged(shown(1, 0.60000002, 0.8, a=1))
        assert [round(x, 4) for x in found[1].vectors.vector.dense.data] == [0.6, 0.8]
        made.do(CREATE, named_create())
        both = pb.PointStruct(id=point_id(5))
        both.vectors.vectors.vectors["x"].dense.data.extend((1, 2))
        kept.apply(9, r.UPSERT, pb.UpsertPoints(collection_name="n", points=[both]))
        assert ("n", [5]) in kept.listed()


def named_create() -> Any:
    from tests.replica.local_store import create_named

    return create_named("n", x=2)


def test_only_what_qdrant_has_acknowledged_is_listed(kept: Kept) -> None:
    kept.apply(2, r.UPSERT, put(1, a=1))
    kept.apply(3, r.UPSERT, put(2, a=1), synced=False)
    kept.apply(4, r.UPSERT, put(1, a=2), synced=False)
    assert kept.listed() == [("c", [1])]
    assert kept.listed(control.FormerWindow(replayed_seq=3)) == [("c", [1, 2])]
    assert kept.listed(control.FormerWindow(since_seq=2, replayed_seq=4)) == [("c", [2, 1])]
    # Before the pending entries: as the acknowledged one left it.
    found, _, _ = kept.judged()
    assert dict(found[1].payload) == payload({"a": 1})
    assert kept.judged(shown(1, a=1)) == ({}, [], 0)
    found, _, _ = kept.judged(shown(1, a=1), window=control.FormerWindow(replayed_seq=4))
    assert dict(found[1].payload) == payload({"a": 2})


@pytest.mark.parametrize(("numbers", "restored"), [((), set()), ((1,), {2}), ((1, 2), set())])
def test_what_is_given_up_is_never_wanted(kept: Kept, numbers: tuple[int, ...], restored: set[int]) -> None:
    kept.apply(2, r.UPSERT, put(1, 2, a=1))
    kept.apply(3, r.UPSERT, put(1, 2, a=2), synced=False)
    window = control.FormerWindow(replayed_seq=3)
    both = shown(1, a=1), shown(2, a=1)
    assert kept.judged(*both, ids=(1, 2), window=window)[0].keys() == {1, 2}
    given_up = [point_id(number).SerializeToString() for number in numbers]
    kept.writes.apply((), keeps_former=True, given_up=[control.RefusedEntry(seq=3, ids=given_up)])
    assert kept.judged(*both, ids=(1, 2), window=window)[0].keys() == restored
    # What Qdrant had before is looked after as ever.
    found, _, foreign = kept.judged(ids=(1, 2), window=window)
    assert (found.keys(), foreign) == ({1, 2}, 0)
    assert dict(found[1].payload) == payload({"a": 1})


def test_a_store_that_begins_anew_keeps_rows_of_the_grace_only(kept: Kept) -> None:
    entries = [entry(seq, r.UPSERT, put(seq, a=seq), synced=True) for seq in range(2, 8)]
    kept.writes.apply(entries, keeps_former=True, forgets_through_seq=4)
    # As Qdrant acknowledged 5 to 7 a moment ago, and lost them; what others did about 2 to 4 since is theirs.
    assert kept.listed() == [("c", [5, 6, 7])]
    assert kept.judged(ids=(5, 6, 7))[0].keys() == {5, 6, 7}


def test_an_entry_that_was_dropped_is_applied_as_that(kept: Kept) -> None:
    kept.apply(2, r.UPSERT, put(1, a=1))
    entries = [entry(3, r.UPSERT, put(1, a=2), synced=False), entry(4, r.UPSERT, put(2, a=2), synced=False)]
    kept.writes.apply(entries, keeps_former=True, given_up=[control.RefusedEntry(seq=3)])
    window = control.FormerWindow(replayed_seq=4)
    assert kept.judged(shown(1, a=1), ids=(1, 2), window=window)[0].keys() == {2}


@pytest.mark.parametrize(("log_before", "is_guessed"), [(0, True), (2, True), (3, False)])
def test_what_nobody_knows_is_not_guessed_of_entries_from_before_the_store(
    tmp_path: Path, log_before: int, is_guessed: bool
) -> None:
    with local(tmp_path) as made:
        kept = Kept(made)
        made.imports.attach(control.AttachRequest(last_seq=log_before, log_id="log"))
        kept.apply(1, CREATE, create())
        stale = control.SetCompletenessRequest(collection="c", completeness=control.COMPLETENESS_HYDRATING)
        made.imports.set_completeness(stale)
        kept.apply(3, r.UPSERT, put(1, a=1))
        assert kept.judged(shown(1, a=7), is_unbroken=True)[0].keys() == ({1} if is_guessed else set())
        # What the store has seen itself is known.
        kept.apply(4, r.UPSERT, put(1, a=2))
        assert kept.judged(shown(1, a=1), is_unbroken=True)[0].keys() == {1}


def test_pages_pass_nothing_over(kept: Kept) -> None:
    kept.apply(2, CREATE, create("d"))
    for seq in range(3, 13):
        kept.apply(seq, r.UPSERT, put(seq, seq + 100, name="cd"[seq % 2], a=seq))
    for limit in (1, 3, 100):
        listed = kept.listed(limit=limit)
        assert all(len(numbers) <= limit for _, numbers in listed)
        assert [number for _, numbers in listed for number in numbers] == [
            number for seq in range(3, 13) for number in (seq, seq + 100)
        ]
    kept.apply(13, DROP, collections.DeleteCollection(collection_name="d"))
    assert {name for name, _ in kept.listed(limit=3)} == {"c"}


def test_rows_go_when_they_may_and_never_before(kept: Kept) -> None:
    for seq in range(2, 8):
        kept.apply(seq, r.UPSERT, put(seq, a=seq))
    kept.forgets_through_seq = 4
    kept.apply(8, r.UPSERT, put(8, a=8))
    assert kept.listed() == [("c", [5, 6, 7, 8])]
    kept.apply(9, r.UPSERT, put(9, a=9), keeps=False)
    assert kept.listed() == []


def test_the_limit_spares_what_is_needed(tmp_path: Path) -> None:
    with local(tmp_path) as made:
        kept = Kept(made, limit_points=4)
        kept.apply(1, CREATE, create())
        for seq in range(2, 10):
            kept.apply(seq, r.UPSERT, put(seq, a=seq))
        # Qdrant has synced the older ones most likely.
        assert kept.listed() == [("c", [6, 7, 8, 9])]
        for seq in range(10, 14):
            kept.apply(seq, r.UPSERT, put(seq, a=seq), synced=False)
        assert kept.listed(control.FormerWindow(replayed_seq=99)) == [("c", [6, 7, 8, 9])]


def test_rows_outlast_the_process_and_belong_to_their_log(tmp_path: Path) -> None:
    with local(tmp_path) as made:
        made.imports.attach(control.AttachRequest(last_seq=0, log_id="log"))
        kept = Kept(made)
        kept.apply(1, CREATE, create())
        kept.apply(2, r.UPSERT, put(1, a=1))
        kept.apply(3, r.UPSERT, put(2, a=1), synced=False)
    with local(tmp_path) as made:
        kept = Kept(made)
        assert kept.listed() == [("c", [1])]
        # The log has lost its tail in a power cut: that entry was acknowledged, and number 3 will be another one.
        made.imports.attach(control.AttachRequest(last_seq=2, log_id="log"))
        assert kept.listed(control.FormerWindow(replayed_seq=2)) == [("c", [1, 2])]
        made.imports.attach(control.AttachRequest(last_seq=2, log_id="another"))
        assert kept.listed(control.FormerWindow(replayed_seq=9)) == []


def test_a_table_from_before_gets_the_columns(tmp_path: Path) -> None:
    with local(tmp_path) as made:
        kept = Kept(made)
        kept.apply(1, CREATE, create())
        kept.apply(2, r.UPSERT, put(1, a=1))
        with made.store.transaction() as tx:
            for column in ("whole", "retry_of", "given_up", "shard_keys"):
                tx.connection().execute(f"ALTER TABLE former DROP COLUMN {column}")
    with local(tmp_path) as made:
        kept = Kept(made)
        kept.apply(3, r.UPSERT, put(1, a=2))
        assert kept.listed() == [("c", [1])]
        found, _, _ = kept.judged(shown(1, a=1))
        assert dict(found[1].payload) == payload({"a": 2})


def test_a_store_from_before_gets_the_table(tmp_path: Path) -> None:
    with local(tmp_path) as made, made.store.transaction() as tx:
        tx.connection().execute("DROP TABLE former")
    with local(tmp_path) as made:
        kept = Kept(made)
        kept.apply(1, CREATE, create())
        kept.apply(2, r.UPSERT, put(1, a=1))
        assert kept.listed() == [("c", [1])]


def test_an_entry_that_is_undone_leaves_no_rows(kept: Kept) -> None:
    kept.apply(2, r.UPSERT, put(1, a=1))
    unfit = pb.UpdateBatchPoints(collection_name="c")
    unfit.operations.add().upsert.points.append(pb.PointStruct(id=point_id(2), vectors=dense(1, 2)))
    unfit.operations.add().set_payload.key = "[[["
    kept.apply(3, r.UPDATE_BATCH, unfit)
    collection = kept.local.store.collection("c")
    assert collection is not None
    there = id_of(KEY).num in kept.local.points()
    assert there and (2 in kept.local.points()) == (2 in [n for _, ns in kept.listed() for n in ns])
