"""What was in Qdrant before Understudy came is copied while clients write, and is right when Qdrant dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

from qdrant_client import models

from tests.system import workload
from tests.system.digits import Digits
from tests.system.test_outage import gather
from tests.system.understudy import Understudy
from tests.system.workload import Point, differences
from tests.upstream.process import Standin

BEFORE = 1500


async def test_data_from_before_is_there_when_qdrant_is_not(
    standin: Standin, tmp_path: Path, digit_data: Digits
) -> None:
    direct = standin.client()
    for name in ("digits", "mixed"):
        direct.create_collection(name, models.VectorParams(size=64, distance=models.Distance.EUCLID))
    rows = [digit_data.point(row) for row in range(BEFORE)]
    for start in range(0, BEFORE, 250):
        direct.upsert("digits", rows[start : start + 250])
    # Points that the writers will change while they are being copied.
    old = {row: Point(digit_data.vectors[row % BEFORE].tolist(), {"op": 0}) for row in range(1000, 1060)}
    direct.upsert("mixed", [models.PointStruct(id=i, vector=p.vector, payload=p.payload) for i, p in old.items()])
    with Understudy(tmp_path / "understudy", standin.address) as understudy:
        clients = [understudy.async_client() for _ in range(5)]
        crowd = gather([workload.direct(one) for one in clients], digit_data)
        await crowd.after(100)
        for name in ("digits", "mixed"):
            await asyncio.to_thread(understudy.wait_hydrated, name)
        await crowd.end()
        assert crowd.record.errors == []
        assert crowd.record.stale == []
        held = {record.id: record for record in workload.scroll_all(direct, "mixed")}
        await asyncio.to_thread(standin.kill)
        await asyncio.to_thread(understudy.wait_state, "local")
        client = understudy.client()
        everything = {row: Point(digit_data.vectors[row].tolist(), rows[row].payload or {}) for row in range(BEFORE)}
        assert differences(client, "digits", everything) == []
        seen = {record.id: record for record in workload.scroll_all(client, "mixed")}
        assert seen.keys() == held.keys()
        assert all(workload.same((seen[i].payload, seen[i].vector), (held[i].payload, held[i].vector)) for i in seen)
        info = client.get_collection("digits")
        assert (info.points_count, info.config.hnsw_config.m) == (BEFORE, 16)
        client.close()
        for one in clients:
            await one.close()
    direct.close()
