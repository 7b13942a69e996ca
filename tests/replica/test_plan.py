"""What a plan tells of a read: the way that was taken, with counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import points_pb2 as pb
from server import config
from server.replica import requests as r
from server.replica import tables
from server.replica.plan import NO_PLAN, Plan
from server.replica.search import Searcher
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


def test_a_plan_has_a_limit() -> None:
    plan = Plan(ManualClock().monotonic)
    for number in range(500):
        plan.step("long", text="x" * number)
    text = plan.as_json()
    document = json.loads(text)
    assert len(text) <= 5000 and text.isascii()
    assert document["steps"] and len(document["steps"]) + document["left_out"] == 500


def test_nothing_is_recorded_unasked(here: Local) -> None:
    Searcher(here.store, config.Replica()).answer(r.POINTS + "Query", near().SerializeToString())
    assert not NO_PLAN.is_wanted and json.loads(NO_PLAN.as_json())["steps"] == []
