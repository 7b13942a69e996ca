"""What comes from Qdrant: the log's end, the catalogue, pages of points; later writes win over all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import catalogue
from server.replica import requests as r
from server.replica.baselines import Baselines
from server.replica.refusal import Refusal
from server.replica.touched import Touched
from server.rpc import Code
from tests.replica.local_store import (
    ALIASES,
    CREATE,
    DROP,
    Local,
    create,
    dense,
    ids,
    local,
    payload,
    point,
    point_id,
    upsert,
    where,
)

INCOMPLETE = control.COMPLETENESS_HYDRATING


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Local]:
    """An empty write side, attached to log L at entry 0."""
    with local(tmp_path / "store", known=False) as made:
        made.imports.attach(control.AttachRequest(log_id="L"))
        yield made


def _remote(name: str = "c", size: int = 2, **schema: int) -> control.RemoteCollection:
    info = collections.CollectionInfo(status=collections.CollectionStatus.Green)
    info.config.CopyFrom(catalogue.new_config(create(name, size)))
    for field, kind in schema.items():
        info.payload_schema[field].data_type = kind  # type: ignore[assignment]
    return control.RemoteCollection(name=name, info=info.SerializeToString())


def _import(
    where_: Local, *remote: control.RemoteCollection, since: int = 0, whole: bool = True, **aliases: str
) -> list[str]:
    request = control.ImportCatalogueRequest(
        collections=remote,
        aliases=[control.RemoteAlias(alias=alias, collection=name) for alias, name in aliases.items()],
        remote_version="1.18.3",
        since_seq=since,
        whole=whole,
    )
    return list(where_.imports.catalogue(request).wanted)


def _page(
    *points: pb.RetrievedPoint, since: int, first: int | None = None, after: int | None = None
) -> control.ImportPageRequest:
    return control.ImportPageRequest(
        collection="c",
        page=pb.ScrollResponse(result=points).SerializeToString(),
        first=b"" if first is None else point_id(first).SerializeToString(),
        after=b"" if after is None else point_id(after).SerializeToString(),
        since_seq=since,
    )


def _retrieved(number: int, **values: object) -> pb.RetrievedPoint:
    vectors = pb.VectorsOutput(vector=pb.VectorOutput(dense=pb.DenseVector(data=[number, number])))
    return pb.RetrievedPoint(id=point_id(number), payload=payload(values), vectors=vectors)


def _ids_in(bodies: Sequence[bytes]) -> list[int]:
    from generated.qdrant import qdrant_common_pb2 as common

    return [common.PointId.FromString(body).num for body in bodies]


def _completeness(where_: Local, name: str = "c") -> int:
    collection = where_.store.collection(name)
    assert collection is not None
    return collection.completeness


# --- the log ---------------------------------------------------------------------------------------------------------


def _attach(where_: Local, last_seq: int, log_id: str = "L") -> tuple[int, bool]:
    answer = where_.imports.attach(control.AttachRequest(last_seq=last_seq, log_id=log_id))
    return answer.applied_seq, answer.rewound


def test_attaching_to_the_same_log_goes_on(here: Local) -> None:
    here.apply(1, CREATE, create())
    assert _attach(here, 5) == (1, False)
    assert _completeness(here) == control.COMPLETENESS_COMPLETE


def test_a_log_that_lost_its_tail_sets_the_cursor_back(here: Local) -> None:
    here.apply(1, CREATE, create())
    here.apply(2, r.UPSERT, upsert(point(1)))
    assert _attach(here, 1) == (1, True)
    assert here.store.applied_seq == 1
    assert _completeness(here) == control.COMPLETENESS_STALE
    here.apply(2, r.UPSERT, upsert(point(2)))
    assert list(here.points()) == [1, 2]


def test_where_writes_may_be_missing_nothing_is_whole_before_the_log_is_applied(here: Local) -> None:
    here.apply(1, CREATE, create())
    here.apply(2, r.UPSERT, upsert(point(1)))
    answer = here.imports.attach(control.AttachRequest(last_seq=5, log_id="L", in_doubt=True))
    assert (answer.applied_seq, answer.rewound) == (2, False)
    assert _completeness(here) == control.COMPLETENESS_STALE
    # Nobody can tell what Qdrant has of the point.
    here.apply(3, r.UPSERT, upsert(point(1, v=3)))
    touch = control.Touch(point_id=point(1).id.SerializeToString(), seq=3)
    judged = Baselines(here.store).compare(control.CompareBaselinesRequest(collection="c", touches=[touch]))
    assert (judged.unknown, list(judged.changed)) == (1, [])


def test_what_is_called_complete_is_on_the_medium(here: Local) -> None:
    here.apply(1, CREATE, create())
    done: list[str] = []
    here.store._writer.set_trace_callback(done.append)
    for completeness, is_synced in ((control.COMPLETENESS_STALE, False), (control.COMPLETENESS_COMPLETE, True)):
        done.clear()
        here.imports.set_completeness(control.SetCompletenessRequest(collection="c", completeness=completeness))
        assert ("PRAGMA synchronous = FULL" in done) is is_synced
        assert "COMMIT" in done


def test_another_log_is_applied_from_its_start(here: Local) -> None:
    here.apply(1, CREATE, create())
    assert _attach(here, 7, "M") == (0, True)
    assert _completeness(here) == control.COMPLETENESS_STALE
    assert _attach(here, 7, "M") == (0, False)


@pytest.mark.parametrize(("first_seq", "applied_seq"), [(0, 1), (1, 1), (2, 1), (3, 2), (8, 7)])
def test_what_was_retired_before_the_replica_saw_it_is_at_qdrant_only(
    here: Local, first_seq: int, applied_seq: int
) -> None:
    here.apply(1, CREATE, create())
    answer = here.imports.attach(control.AttachRequest(last_seq=7, log_id="L", first_seq=first_seq))
    assert (answer.applied_seq, answer.rewound) == (applied_seq, applied_seq > 1)
    assert here.store.applied_seq == applied_seq
    stale, complete = control.COMPLETENESS_STALE, control.COMPLETENESS_COMPLETE
    assert _completeness(here) == (stale if applied_seq > 1 else complete)


def test_numbers_of_another_log_mean_nothing(here: Local) -> None:
    _import(here, _remote("c"))
    for seq in range(1, 9):
        here.apply(seq, r.UPSERT, upsert(point(seq)))
    _attach(here, 2, "M")
    answer = here.imports.page(_page(_retrieved(1), since=2))
    assert (answer.imported, answer.removed, list(answer.skipped)) == (1, 7, [])


def test_a_restart_with_another_log_asks_for_nothing_again(tmp_path: Path) -> None:
    with local(tmp_path / "store") as first:
        first.imports.attach(control.AttachRequest(log_id="L"))
        first.apply(1, CREATE, create())
        first.apply(2, r.UPSERT, upsert(point(1)))
    with local(tmp_path / "store") as second:
        _attach(second, 0, "M")
        assert second.imports.page(_page(_retrieved(1), since=0)).imported == 1


def test_a_store_that_ran_alone_meets_a_log(tmp_path: Path) -> None:
    with local(tmp_path / "alone") as made:
        made.do(CREATE, create())
        assert _attach(made, 0) == (0, True)
    with local(tmp_path / "empty") as made:
        assert _attach(made, 3) == (0, False)


def test_without_a_remote_the_catalogue_here_is_all_there_is(here: Local) -> None:
    assert not catalogue.is_known(here.store)
    here.imports.attach(control.AttachRequest(log_id="L", no_remote=True))
    assert catalogue.is_known(here.store)
    here.imports.attach(control.AttachRequest(log_id="L"))
    assert not catalogue.is_known(here.store)


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_catalogue_comes_in(here: Local) -> None:
    assert not catalogue.is_known(here.store)
    assert _import(here, _remote("c", a=collections.PayloadSchemaType.Keyword), _remote("d"), also="d") == ["c", "d"]
    assert catalogue.is_known(here.store)
    assert here.store.meta(catalogue.REMOTE_VERSION) == "1.18.3"
    assert [collection.name for collection in here.store.collections()] == ["c", "d"]
    collection = here.store.collection("c")
    assert collection is not None
    assert list(collection.schema) == ["a"]
    assert collection.completeness == control.COMPLETENESS_EMPTY
    assert here.store.aliases() == {"also": "d"}
    here.set_completeness(control.COMPLETENESS_COMPLETE)
    assert _import(here, _remote("c"), _remote("d")) == ["d"]
    collection = here.store.collection("c")
    assert collection is not None
    assert not collection.schema
    assert here.store.aliases() == {}


def test_imported_fields_are_those_of_the_same_path(here: Local) -> None:
    _import(here, _remote(a=collections.PayloadSchemaType.Keyword, **{'"b"."c d"': collections.PayloadSchemaType.Text}))
    collection = here.store.collection("c")
    assert collection is not None
    assert sorted(collection.schema) == ["a", 'b."c d"']
    _import(here, _remote(**{'b."c d"': collections.PayloadSchemaType.Text}))
    collection = here.store.collection("c")
    assert collection is not None
    assert list(collection.schema) == ['b."c d"']


def test_part_of_a_catalogue_removes_nothing(here: Local) -> None:
    _import(here, _remote("c"), _remote("d"), also="d")
    _import(here, _remote("c"), whole=False)
    assert [collection.name for collection in here.store.collections()] == ["c", "d"]
    assert here.store.aliases() == {"also": "d"}


def test_what_is_gone_remotely_goes(here: Local) -> None:
    _import(here, _remote("c"), _remote("d"))
    _import(here, _remote("d"))
    assert [collection.name for collection in here.store.collections()] == ["d"]


def test_a_remote_without_any_collection_takes_no_points_away(here: Local) -> None:
    """It may have lost its disk: what is here may be all that is left."""
    _import(here, _remote("c"), _remote("empty"), also="c")
    here.imports.page(_page(_retrieved(1), since=0))
    here.set_completeness(control.COMPLETENESS_COMPLETE)
    nothing = control.ImportCatalogueRequest(whole=True)
    answer = here.imports.catalogue(nothing)
    assert (list(answer.kept), list(answer.dropped), list(answer.wanted)) == (["c"], [], [])
    assert (list(here.points()), here.store.aliases()) == ([1], {"also": "c"})
    assert _completeness(here) == control.COMPLETENESS_STALE
    assert [collection.name for collection in here.store.collections()] == ["c"]
    assert list(here.imports.catalogue(nothing).kept) == ["c"]
    # Back again, it is copied; and once the remote holds anything, what it lacks goes.
    assert _import(here, _remote("c"), also="c") == ["c"]
    other = control.ImportCatalogueRequest(collections=[_remote("other")], whole=True)
    answer = here.imports.catalogue(other)
    assert (list(answer.kept), list(answer.dropped)) == ([], ["c"])
    assert here.store.aliases() == {}


def test_a_collection_that_later_entries_deleted_is_not_kept(here: Local) -> None:
    _import(here, _remote("c"))
    here.imports.page(_page(_retrieved(1), since=0))
    here.apply(1, DROP, collections.DeleteCollection(collection_name="c"))
    assert list(here.imports.catalogue(control.ImportCatalogueRequest(whole=True, since_seq=1)).kept) == []
    assert here.store.collections() == []


def test_a_collection_with_other_vectors_begins_anew(here: Local) -> None:
    _import(here, _remote("c"))
    here.imports.page(_page(_retrieved(1), since=0))
    here.set_completeness(control.COMPLETENESS_COMPLETE)
    assert _import(here, _remote("c", size=3)) == ["c"]
    assert here.points() == {}
    assert _completeness(here) == control.COMPLETENESS_EMPTY


def test_what_later_entries_changed_is_left_alone(here: Local) -> None:
    _import(here, _remote("gone_here"), _remote("kept"), old="kept")
    here.apply(1, DROP, collections.DeleteCollection(collection_name="gone_here"))
    here.apply(2, CREATE, create("made_here"))
    give = collections.AliasOperations(create_alias=collections.CreateAlias(collection_name="kept", alias_name="new"))
    take = collections.AliasOperations(delete_alias=collections.DeleteAlias(alias_name="old"))
    here.apply(3, ALIASES, collections.ChangeAliases(actions=[give, take]))
    _import(here, _remote("gone_here"), _remote("kept"), since=0, old="kept")
    assert [collection.name for collection in here.store.collections()] == ["kept", "made_here"]
    assert here.store.aliases() == {"new": "kept"}
    _import(here, _remote("kept"), since=3)
    assert [collection.name for collection in here.store.collections()] == ["kept"]
    assert here.store.aliases() == {}


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def part(here: Local) -> Local:
    """Collection `c`, known and empty so far."""
    _import(here, _remote("c"))
    here.set_completeness(INCOMPLETE)
    return here


def test_a_page_replaces_its_range(part: Local) -> None:
    part.imports.page(_page(*[_retrieved(number) for number in range(1, 8)], since=0))
    answer = part.imports.page(_page(_retrieved(3, a=1), _retrieved(5), since=0, first=3, after=6))
    assert (answer.imported, answer.removed, list(answer.skipped)) == (2, 1, [])
    assert part.payloads() == {1: {}, 2: {}, 3: {"a": 1}, 5: {}, 6: {}, 7: {}}
    assert part.points()[5] == ({}, {"": [5, 5]})
    answer = part.imports.page(_page(_retrieved(6), since=0, first=6))
    assert (answer.removed, list(part.points())) == (1, [1, 2, 3, 5, 6])


def test_an_empty_page_clears_its_range(part: Local) -> None:
    part.imports.page(_page(_retrieved(1), _retrieved(2), since=0))
    assert part.imports.page(_page(since=0)).removed == 2


def test_points_that_later_entries_touched_are_left_alone_and_given_back(part: Local) -> None:
    part.imports.page(_page(_retrieved(1), _retrieved(2), _retrieved(3), _retrieved(4), since=0))
    part.apply(1, r.UPSERT, upsert(point(1, dense(0, 9), new=True), point(5, dense(0, 9))))
    part.apply(2, r.DELETE, pb.DeletePoints(collection_name="c", points=ids(2, 6)))
    part.apply(
        3,
        r.SET_PAYLOAD,
        pb.SetPayloadPoints(collection_name="c", points_selector=ids(3, 7), payload=payload({"new": True})),
    )
    page = [_retrieved(number, old=True) for number in (1, 2, 3, 4, 6, 7)]
    answer = part.imports.page(_page(*page, since=0))
    assert _ids_in(answer.skipped) == [1, 2, 3, 5, 6, 7]
    assert part.payloads() == {1: {"new": True}, 3: {"new": True}, 4: {"old": True}, 5: {}}
    answer = part.imports.page(_page(*page, since=3))
    assert not answer.skipped
    assert list(part.points()) == [1, 2, 3, 4, 6, 7]


def test_single_ids_that_were_skipped_come_in(part: Local) -> None:
    part.imports.page(_page(_retrieved(1), _retrieved(2), _retrieved(3), since=0))
    part.apply(1, r.UPSERT, upsert(point(1), point(2)))
    request = control.ImportPageRequest(
        collection="c",
        page=pb.GetResponse(result=[_retrieved(1, fresh=True)]).SerializeToString(),
        single_ids=True,
        absent=[point_id(number).SerializeToString() for number in (2, 9)],
        since_seq=1,
    )
    answer = part.imports.page(request)
    assert (answer.imported, answer.removed) == (1, 1)
    assert part.payloads() == {1: {"fresh": True}, 3: {}}


def test_a_write_by_filter_may_have_touched_any_point(part: Local) -> None:
    part.imports.page(_page(_retrieved(1, a="x"), _retrieved(2), since=0))
    part.apply(1, r.DELETE, pb.DeletePoints(collection_name="c", points=where("a", "x")))
    answer = part.imports.page(_page(_retrieved(1, a="x"), _retrieved(3), since=0))
    assert _ids_in(answer.skipped) == [1, 2, 3]
    assert list(part.points()) == [2]


def test_a_conditional_write_touches_what_it_may_have_changed(part: Local) -> None:
    part.imports.page(_page(_retrieved(1), since=0))
    only_new = upsert(point(1), point(2))
    only_new.update_mode = pb.UpdateMode.InsertOnly
    part.apply(1, r.UPSERT, only_new)
    answer = part.imports.page(_page(_retrieved(1), _retrieved(2), _retrieved(3), since=0))
    assert _ids_in(answer.skipped) == [1, 2]


def test_a_page_from_before_the_restart_is_asked_for_again(tmp_path: Path) -> None:
    with local(tmp_path / "store") as first:
        first.apply(1, CREATE, create())
        first.apply(2, r.UPSERT, upsert(point(1)))
    with local(tmp_path / "store") as second:
        with pytest.raises(Refusal) as refused:
            second.imports.page(_page(_retrieved(1), since=1))
        assert refused.value.code is Code.FAILED_PRECONDITION
        assert second.imports.page(_page(_retrieved(1), since=2)).imported == 1


def test_a_page_for_a_collection_that_is_gone(part: Local) -> None:
    part.apply(1, DROP, collections.DeleteCollection(collection_name="c"))
    with pytest.raises(Refusal) as refused:
        part.imports.page(_page(_retrieved(1), since=1))
    assert refused.value.code is Code.NOT_FOUND


def test_completeness_of_one_and_of_all(here: Local) -> None:
    _import(here, _remote("c"), _remote("d"))
    here.imports.set_completeness(
        control.SetCompletenessRequest(
            collection="c", completeness=INCOMPLETE, as_of_seq=3, resume_at=b"\x08\x05", expected_points=10
        )
    )
    collection = here.store.collection("c")
    assert collection is not None
    assert (collection.completeness, collection.as_of_seq) == (INCOMPLETE, 3)
    assert (collection.resume_at, collection.expected_points) == (b"\x08\x05", 10)
    here.set_completeness(control.COMPLETENESS_COMPLETE, "d")
    here.set_completeness(control.COMPLETENESS_STALE, "")
    assert _completeness(here, "d") == control.COMPLETENESS_STALE
    # One that never was whole is no better than before, and is copied from its start.
    collection = here.store.collection("c")
    assert collection is not None
    assert (collection.completeness, collection.resume_at) == (INCOMPLETE, b"")
    here.set_completeness(control.COMPLETENESS_COMPLETE, "nope")


# --- memory ----------------------------------------------------------------------------------------------------------


def test_forgetting_raises_the_floor_and_never_hides_a_touch() -> None:
    touched = Touched(0, limit_keys=10)
    for seq in range(1, 100):
        touched.points(1, [b"%d" % seq], seq)
        assert len(touched._points) <= 10
        for earlier in range(1, seq + 1):
            since = earlier - 1
            if touched.knows(since):
                assert touched.is_point_later(1, b"%d" % earlier, since)
    assert not touched.knows(0)
    assert touched.knows(99)


def test_what_is_here_already_is_not_written_again(here: Local) -> None:
    _import(here, _remote())
    points = [_retrieved(number, v=number) for number in range(5)]
    first = here.imports.page(_page(*points, since=0))
    assert (first.imported, first.changed) == (5, 5)
    touched: list[frozenset[bytes]] = []
    here.store.on_commit(lambda changes: touched.extend(changes.touched.values()))
    again = here.imports.page(_page(*points, since=0))
    assert (again.imported, again.changed, again.removed) == (5, 0, 0)
    assert touched == []
    points[3] = _retrieved(3, v="other")
    other = here.imports.page(_page(*points[:4], since=0))
    assert (other.imported, other.changed, other.removed) == (4, 1, 1)
    assert [sorted(each) for each in touched] == [[b"\x00" + n.to_bytes(8, "big") for n in (3, 4)]]
    assert here.payloads() == {0: {"v": 0}, 1: {"v": 1}, 2: {"v": 2}, 3: {"v": "other"}}


def test_a_range_without_an_end_and_one_far_larger_than_the_page(here: Local) -> None:
    """Qdrant lost nearly everything: the replica's side of the range is read page by page."""
    _import(here, _remote())
    here.imports.page(_page(*(_retrieved(number) for number in range(1000)), since=0))

    def compare(*points: pb.RetrievedPoint, after: int | None) -> control.ComparePageResponse:
        page = _page(*points, since=0, first=0, after=after)
        return here.imports.compare(
            control.ComparePageRequest(collection="c", page=page.page, first=page.first, after=page.after)
        )

    seen = compare(_retrieved(0), _retrieved(999), after=None)
    assert (seen.remote.points, seen.local.points, seen.differing) == (2, 1000, 998)
    seen = compare(_retrieved(0), _retrieved(1), after=2)
    assert (seen.remote, seen.differing) == (seen.local, 0)
    with pytest.raises(Refusal) as refused:
        here.imports.compare(control.ComparePageRequest(collection="nobody"))
    assert refused.value.code is Code.NOT_FOUND
