"""Copies of much: memory does not follow the size of payloads or of the collection."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from tests.system.bulk import COLLECTION, Scales, bulk_upstream
from tests.system.understudy import Understudy
from tests.upstream.process import until

MIB = 1024 * 1024
# Asked for by settings: `replica.resident_bytes`, here small enough to be told from a leak.
RESIDENT_BYTES = 8 * MIB
QUICK_COPY = {
    "UNDERSTUDY_HYDRATE_POINTS_PER_SECOND": "0",
    "UNDERSTUDY_HYDRATE_SETTLE_SECONDS": "0.2",
    "UNDERSTUDY_HYDRATE_REFRESH_SECONDS": "600",
    "UNDERSTUDY_REPLICA_RESIDENT_BYTES": str(RESIDENT_BYTES),
}


def ask(address: str, method: str, request: Any, kind: Any) -> Any:
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(f"/qdrant.Points/{method}")
        return kind.FromString(call(request.SerializeToString(), timeout=60))


def page(address: str, first: int, limit: int) -> Any:
    request = pb.ScrollPoints(collection_name=COLLECTION, limit=limit, offset=common.PointId(num=first))
    request.with_payload.enable = request.with_vectors.enable = True
    return ask(address, "Scroll", request, pb.ScrollResponse).result


def copied(understudy: Understudy) -> dict[str, Any]:
    rows = [row for row in understudy.status()["hydration"] if row["collection"] == COLLECTION]
    return dict(rows[0]) if rows else {}


def test_memory_is_bounded_whatever_the_payloads_weigh(tmp_path: Path) -> None:
    """200 MB of payload in points of 400 kB: 256 of them at once would be a page of 100 MB."""
    points, payload_bytes = 500, 400_000
    with (
        bulk_upstream(points, size=8, payload_bytes=payload_bytes) as upstream,
        Understudy(tmp_path / "understudy", upstream, **QUICK_COPY) as understudy,
    ):
        pids = {"proxy": understudy.pid, "replica": understudy.replica_pid()}
        with Scales(**pids) as scales:
            understudy.wait_hydrated(COLLECTION, 120)
        held = ask(upstream, "Count", pb.CountPoints(collection_name=COLLECTION), pb.CountResponse).result.count
        assert copied(understudy)["points"] == held == points
    # A few points at a time, held several times over on their way; SQLite's own cache is 32 MiB of it.
    assert scales.grown("proxy") < 64 * MIB, scales.peaks
    assert scales.grown("replica") < 128 * MIB, scales.peaks


@pytest.mark.parametrize(("limit_bytes", "state"), [(2_000_000, "complete"), (300_000, "failed")])
def test_no_page_past_the_limit_is_taken_in(tmp_path: Path, limit_bytes: int, state: str) -> None:
    """The first page would have 3 MB: fewer points are asked for. One point alone past the limit fails, and says so."""
    settings = {**QUICK_COPY, "UNDERSTUDY_HYDRATE_PAGE_BYTES_MAX": str(limit_bytes)}
    with (
        bulk_upstream(60, size=8, payload_bytes=400_000) as upstream,
        Understudy(tmp_path / "understudy", upstream, **settings) as understudy,
    ):
        until(lambda: copied(understudy).get("state") == state, 60, f"the copy is {state}")
        assert (copied(understudy)["points"] == 60) == (state == "complete")
        assert ("message larger than max" in copied(understudy)["reason"]) == (state == "failed")


@pytest.mark.parametrize(("version", "field"), [("1.16.3", "data"), ("1.17.0", "dense")])
def test_answers_have_the_form_of_the_version_that_was_last_seen(tmp_path: Path, version: str, field: str) -> None:
    with Understudy(tmp_path / "understudy", None, **QUICK_COPY) as understudy:
        understudy.stop()
        with bulk_upstream(40, size=8, payload_bytes=50, version=version) as upstream:
            understudy.upstream = upstream
            understudy.start()
            understudy.wait_hydrated(COLLECTION)
            online = page(understudy.address, 0, 100)
        understudy.wait_state("local")
        offline = page(understudy.address, 0, 100)
        assert list(offline) == list(online)
        assert [name.name for name, _ in offline[0].vectors.vector.ListFields()] == [field]
        # Also when it starts again with nobody there.
        understudy.restart()
        assert list(page(understudy.address, 0, 100)) == list(online)


def vector_of(point: Any) -> np.ndarray[Any, Any]:
    return np.array(point.vectors.vector.dense.data, dtype=np.float32)


def nearest(address: str, vector: np.ndarray[Any, Any]) -> list[int]:
    request = pb.QueryPoints(collection_name=COLLECTION, limit=10)
    request.query.nearest.dense.data.extend(vector)
    return [point.id.num for point in ask(address, "Query", request, pb.QueryResponse).result]


@pytest.mark.soak
def test_a_million_points_are_copied_and_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`UNDERSTUDY_SOAK_POINTS` sets the size. Prints points/s, memory, and the time of a first and a later query."""
    points = int(os.environ.get("UNDERSTUDY_SOAK_POINTS", "1000000"))
    vector_bytes = points * 384 * 4
    # Vectors, and 240 bytes for what goes with each.
    resident = vector_bytes + points * 240 + 64 * MIB
    settings = {**QUICK_COPY, "UNDERSTUDY_REPLICA_RESIDENT_BYTES": str(resident)}
    with Understudy(tmp_path / "understudy", None, **settings) as understudy:
        understudy.stop()
        with ExitStack() as stack:
            upstream_stack = stack.enter_context(ExitStack())
            upstream = upstream_stack.enter_context(bulk_upstream(points))
            understudy.upstream = upstream
            understudy.start()
            scales = stack.enter_context(Scales(proxy=understudy.pid, replica=understudy.replica_pid()))
            until(lambda: copied(understudy).get("points", 0) > 0, 60, "the copy begins")
            first, began = copied(understudy)["points"], time.perf_counter()
            understudy.wait_hydrated(COLLECTION, 120 + points / 1000)
            rate = (points - first) / (time.perf_counter() - began)
            places = [0, points // 2, points - 50]
            there = {place: list(page(upstream, place, 50)) for place in places}
            # The first number of a vector is its id, so the nearest of a point lie within some dozens of it.
            middle = points // 2
            around = {point.id.num: vector_of(point) for point in page(upstream, middle - 500, 1000)}
            upstream_stack.close()
            understudy.wait_state("local")
            assert {place: list(page(understudy.address, place, 50)) for place in places} == there
            count = ask(understudy.address, "Count", pb.CountPoints(collection_name=COLLECTION), pb.CountResponse)
            assert count.result.count == points
            wanted = sorted(around, key=lambda number: float(np.linalg.norm(around[number] - around[middle])))[:10]
            seconds = []
            for _ in range(5):
                began = time.perf_counter()
                assert nearest(understudy.address, around[middle]) == wanted
                seconds.append(time.perf_counter() - began)
    with capsys.disabled():
        peaks = {name: f"{peak / MIB:.0f} MiB" for name, peak in scales.peaks.items()}
        print(f"\n{points:,} points: {rate:,.0f} points/s; peaks {peaks}")
        print(f"  query: first {seconds[0] * 1000:.0f} ms, then {min(seconds[1:]) * 1000:.0f} ms")
    assert rate >= 2000
    assert scales.grown("proxy") < 128 * MIB, scales.peaks
    # What is kept for exact search, the index with its vectors and links, and the working set of a page.
    assert scales.grown("replica") < resident + 2 * vector_bytes + 512 * MIB, scales.peaks
