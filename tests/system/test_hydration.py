"""What was in Qdrant before Understudy came is copied while clients write, and is right when Qdrant dies."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

from qdrant_client import models

from server.replay.grace_notes import GraceNotes
from server.wal.files import RealDisk
from tests.system import workload
from tests.system.digits import Digits
from tests.system.test_outage import gather
from tests.system.test_wal_commands import answer
from tests.system.understudy import Understudy
from tests.system.workload import Point, differences
from tests.upstream.process import Standin, until

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


def test_a_lost_store_is_copied_again_although_the_log_was_compacted(standin: Standin, tmp_path: Path) -> None:
    """The new replica begins after entries that no log holds any more."""
    understudy = Understudy(tmp_path / "understudy", standin.address).start()
    try:
        client = understudy.client()
        client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT))
        points = [models.PointStruct(id=number, vector=[number, 1.0], payload={"n": number}) for number in range(20)]
        client.upsert("c", points, wait=True)
        client.close()
        understudy.terminate()
        command = [sys.executable, "-m", "server.cli", "wal", "compact", "--data-dir", str(understudy.data)]
        subprocess.run([*command, "--older-than-days", "0"], check=True, capture_output=True)
        shutil.rmtree(understudy.data / "store")
        understudy.restart()
        understudy.wait_hydrated("c")
        standin.kill()
        understudy.wait_state("local")
        client = understudy.client()
        records, _ = client.scroll("c", limit=100, with_vectors=True)
        assert [(record.id, record.vector, record.payload) for record in records] == [
            (point.id, point.vector, point.payload) for point in points
        ]
        client.close()
    finally:
        understudy.stop()


def test_with_a_new_store_nothing_older_than_the_grace_is_taken_for_lost(standin: Standin, tmp_path: Path) -> None:
    """A spoilt one is put aside by itself; the log still holds it all, and somebody else has deleted a point since."""
    with Understudy(tmp_path / "understudy", standin.address, UNDERSTUDY_REPLAY_GRACE_SECONDS="2") as understudy:
        client, direct = understudy.client(), standin.client()
        understudy.wait_state("remote")
        client.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT))
        client.upsert("c", [models.PointStruct(id=number, vector=[number, 1.0]) for number in (1, 2)])
        log = answer(understudy, "status")

        def is_past() -> bool:
            notes = GraceNotes(RealDisk(), understudy.data / "wal", log["log_id"], log["last_seq"])
            return notes.past_seq == log["last_seq"]

        until(is_past, 30.0, "the grace is over")
        direct.delete("c", [2])
        client.close()
        assert understudy.terminate() == 0
        with (understudy.data / "store" / "replica.sqlite").open("r+b") as file:
            file.write(bytes(4096))
        understudy.start()
        understudy.wait_state("remote")
        assert understudy.status()["grace"] == {
            "is_due": False,
            "is_owed": False,
            "looks": 0,
            "restored_points": 0,
        }
        assert [record.id for record in direct.scroll("c")[0]] == [1]
        direct.close()
