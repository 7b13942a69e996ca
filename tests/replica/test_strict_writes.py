"""Which writes a strict mode is asked about: those that clients make offline, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import requests as r
from server.replica.refusal import Halted, Refusal
from server.rpc import Code

from .local_store import CREATE, Local, create, ids, local, payload, point, upsert

INDEX = r.POINTS + "CreateFieldIndex"
LIMITS = collections.StrictModeConfig(
    enabled=True,
    upsert_max_batchsize=2,
    max_points_count=3,
    max_payload_index_count=1,
    unindexed_filtering_update=False,
    max_timeout=1,
)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Local]:
    """Three points, as many as there may be, and one index."""
    with local(tmp_path) as made:
        made.do(CREATE, create())
        made.do(r.UPSERT, upsert(*(point(n, v=n) for n in range(3))))
        made.do(INDEX, index("v"))
        made.do(r.COLLECTIONS + "Update", collections.UpdateCollection(collection_name="c", strict_mode_config=LIMITS))
        yield made


def index(name: str) -> pb.CreateFieldIndexCollection:
    return pb.CreateFieldIndexCollection(
        collection_name="c", field_name=name, field_type=pb.FieldType.FieldTypeInteger, wait=True
    )


def on(key: str) -> pb.PointsSelector:
    match = common.FieldCondition(key=key, match=common.Match(integer=1))
    return pb.PointsSelector(filter=common.Filter(must=[common.Condition(field=match)]))


FORBIDDEN: tuple[tuple[str, Message], ...] = (
    (r.UPSERT, upsert(*(point(n, v=n) for n in range(10, 13)))),
    (r.UPSERT, upsert(point(10, v=10))),
    (r.DELETE, pb.DeletePoints(collection_name="c", points=ids(99), timeout=9)),
    (INDEX, index("w")),
    (r.DELETE, pb.DeletePoints(collection_name="c", points=on("w"), wait=True)),
    (
        r.SET_PAYLOAD,
        pb.SetPayloadPoints(collection_name="c", payload=payload({"x": 1}), points_selector=on("w"), wait=True),
    ),
)


@pytest.mark.parametrize(("method", "request_"), FORBIDDEN)
def test_what_is_asked_offline_is_refused_before_it_is_logged(full: Local, method: str, request_: Message) -> None:
    before = full.points()
    with pytest.raises(Refusal) as caught:
        full.writes.prepare(method, request_.SerializeToString())
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.details.startswith("Bad request: ")
    assert full.points() == before


@pytest.mark.parametrize("synced", [True, False])
def test_what_is_in_the_log_is_applied_whatever_the_limits_say_now(full: Local, synced: bool) -> None:
    """What Qdrant has acknowledged, and at a start what was acknowledged here."""
    seq = full.store.applied_seq
    for method, request in FORBIDDEN:
        seq += 1
        assert full.apply(seq, method, request, synced=synced).code == 0, method
    assert set(full.points()) == {0, 1, 2, 10, 11, 12}
    found = full.store.collection("c")
    assert found is not None and set(found.schema) == {"v", "w"}
    assert found.completeness == control.COMPLETENESS_COMPLETE


def test_a_batch_stops_at_the_part_that_is_refused(full: Local) -> None:
    def part(**fields: Any) -> pb.PointsUpdateOperation:
        return pb.PointsUpdateOperation(**fields)

    structs = pb.PointsUpdateOperation.PointStructList
    batch = pb.UpdateBatchPoints(
        collection_name="c",
        wait=True,
        operations=[
            part(delete_points=pb.PointsUpdateOperation.DeletePoints(points=on("v"))),
            # One was deleted, so there is room for one more, and then for no other.
            part(upsert=structs(points=[point(20, v=20)])),
            part(upsert=structs(points=[point(21, v=21)])),
            part(upsert=structs(points=[point(0, v=0)])),
        ],
    )
    with pytest.raises(Halted) as caught:
        full.writes.prepare(r.UPDATE_BATCH, batch.SerializeToString())
    assert caught.value.details == "Bad request: Max points count limit of 3 reached!"
    assert [each.method for each in caught.value.done] == [r.DELETE, r.UPSERT]
    with pytest.raises(Refusal):
        full.do(r.UPDATE_BATCH, batch)
    assert set(full.points()) == {0, 2, 20}


def test_points_are_not_counted_where_not_all_are_here(full: Local) -> None:
    full.set_completeness(control.COMPLETENESS_STALE)
    assert full.prepare(r.UPSERT, upsert(point(10, v=10))) == []
    with pytest.raises(Refusal, match="upsert limit"):
        full.prepare(r.UPSERT, upsert(*(point(n) for n in range(10, 13))))


def test_a_page_of_a_copy_is_no_write(full: Local) -> None:
    full.set_completeness(control.COMPLETENESS_STALE)
    page = pb.ScrollResponse(
        result=[pb.RetrievedPoint(id=common.PointId(num=n), payload=payload({"v": n})) for n in range(10)]
    )
    full.imports.page(
        control.ImportPageRequest(collection="c", page=page.SerializeToString(), since_seq=full.store.applied_seq)
    )
    assert set(full.points()) == set(range(10))


def test_an_alias_has_the_limits_of_its_collection(full: Local) -> None:
    alias = collections.AliasOperations(create_alias=collections.CreateAlias(alias_name="a", collection_name="c"))
    full.do(r.COLLECTIONS + "UpdateAliases", collections.ChangeAliases(actions=[alias]))
    with pytest.raises(Refusal, match="Max points count limit of 3"):
        full.prepare(r.UPSERT, upsert(point(10), name="a"))
