"""What a plan tells of a read: the way that was taken, with counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server import config
from server.replica import requests as r
from server.replica import tables
from server.replica.chunks import block_of
from server.replica.index_part import Proposal
from server.replica.indexing import Index
from server.replica.plan import NO_PLAN, Plan
from server.replica.records import Collection
from server.replica.search import Searcher
from server.replica.spaces import Space
from server.replica.store import Store
from tests.faults.clock import ManualClock
from tests.replica.local_store import CREATE, Local, create, dense, local, matching_keyword, point, point_id, upsert

COUNT = 20


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Local]:
    """Collection `c` with a payload index."""
    with local(tmp_path / "store") as made:
        made.do(CREATE, create())
        index = pb.CreateFieldIndexCollection(collection_name="c", field_name="k", field_type=0, wait=True)
        made.do(r.POINTS + "CreateFieldIndex", index)
        points = [point(number, dense(number, 1), k=["x", "y"][number % 2], n=number) for number in range(COUNT)]
        made.do(r.UPSERT, upsert(*points))
        yield made


def steps(here: Local, method: str, request: Any, **settings: Any) -> list[dict[str, Any]]:
    """The steps of one read, without their times."""
    plan = Plan(ManualClock().monotonic)
    Searcher(here.store, config.Replica(**settings)).answer(r.POINTS + method, request.SerializeToString(), plan)
    document = json.loads(plan.as_json())
    assert document["left_out"] == 0
    return [{key: one for key, one in step.items() if key != "at_ms"} for step in document["steps"]]


def near(**more: Any) -> pb.QueryPoints:
    request = pb.QueryPoints(collection_name="c", limit=3, **more)
    request.query.nearest.dense.data.extend((1.0, 2.0))
    return request


def test_an_exact_filter_by_columns_and_a_scan_in_memory(here: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_LEAST_POINTS", 0)
    made = steps(here, "Query", near(filter=matching_keyword("k", "x")))
    assert {"step": "filter", "by": "columns", "exact": True, "surely": 10, "maybe": 10} in made
    assert {"step": "vectors", "of": "", "out_of": "memory"} in made
    assert made[-2] == {
        "step": "query", "form": "nearest", "using": "", "limit": 3, "results": 3, "merges": 0,
    }  # fmt: skip
    assert made[-1]["step"] == "answer" and made[-1]["bytes"] > 0


def test_without_room_in_memory_points_are_read_and_tested(here: Local) -> None:
    made = steps(here, "Query", near(filter=matching_keyword("k", "x")), resident_bytes=0)
    assert {"step": "filter", "by": "every point", "candidates": COUNT} in made
    assert {"step": "vectors", "of": "", "out_of": "store"} in made


def test_ids_are_looked_up(here: Local) -> None:
    request = pb.ScrollPoints(collection_name="c")
    request.filter.must.add().has_id.has_id.extend((point_id(1), point_id(99)))
    assert steps(here, "Scroll", request)[0] == {"step": "filter", "by": "ids", "candidates": 2}


def test_each_prefetch_is_a_step(here: Local) -> None:
    request = near(prefetch=[pb.PrefetchQuery(query=near().query, limit=5)] * 2)
    made = {step["step"]: step for step in steps(here, "Query", request)}
    assert made["prefetch[0]"]["results"] == made["prefetch[1]"]["results"] == 5
    assert made["query"]["merges"] == 2


class TwoAsks:
    """An index that knows every vector and proposes the points in the order of their numbers."""

    def __init__(self, store: Store, keys: list[bytes]) -> None:
        self.store = store
        self.keys = keys

    def recall(self, cid: int, space: str) -> float:
        return 1.0

    def propose(self, collection: Collection, space: Space, vector: Any, count: int) -> Proposal:
        keys = self.keys[:count]
        records = self.store.fetch(collection.cid, keys, payload=False)
        block = block_of(space, [records[key] for key in keys])
        return Proposal(keys, 1 - block.similarity(vector), {keys[0]})


def test_an_index_is_asked_for_more_until_enough_pass(here: Local) -> None:
    here.do(r.UPSERT, upsert(*(point(number, dense(number, 1), n=number) for number in range(COUNT, 300))))
    collection = here.store.collection("c")
    assert collection is not None
    keys = list(here.store.keys(collection.cid))
    query = near()
    query.filter.must.add().field.CopyFrom(common.FieldCondition(key="n", range=common.Range(gte=100)))
    plan = Plan(ManualClock().monotonic)
    searcher = Searcher(here.store, config.Replica(resident_bytes=0), cast(Index, TwoAsks(here.store, keys)))
    searcher.answer(r.POINTS + "Query", query.SerializeToString(), plan)
    asked = [step for step in json.loads(plan.as_json())["steps"] if step["step"] == "index"]
    assert [(step["asked"], step["proposed"], step["passing"]) for step in asked] == [(64, 64, 0), (256, 256, 156)]
    assert all((step["fresh"], step["wanted"]) == (1, 3) for step in asked)
    query.filter.must[0].field.range.gte = 1000
    plan = Plan(ManualClock().monotonic)
    searcher.answer(r.POINTS + "Query", query.SerializeToString(), plan)
    made = [step["step"] for step in json.loads(plan.as_json())["steps"]]
    assert made == ["index", "index", "index", "index", "vectors", "filter", "query", "answer"]


def test_a_plan_has_a_limit() -> None:
    plan = Plan(ManualClock().monotonic)
    for number in range(500):
        plan.step("long", text="x" * (100 + number))
    text = plan.as_json()
    document = json.loads(text)
    assert len(text) <= 5000 and text.isascii()
    assert document["steps"] and len(document["steps"]) + document["left_out"] == 500


def test_nothing_is_recorded_unasked(here: Local) -> None:
    Searcher(here.store, config.Replica()).answer(r.POINTS + "Query", near().SerializeToString())
    assert not NO_PLAN.is_wanted and json.loads(NO_PLAN.as_json())["steps"] == []
