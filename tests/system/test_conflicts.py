"""Others write to Qdrant while the path to it is cut for Understudy: each policy, with real processes."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from tests.faults.tcp_toxics import TcpToxics
from tests.system.understudy import Understudy
from tests.upstream.process import ROOT, Standin, until

# The path leads through this very process; a cut shows at once, whatever a probe may take.
PATIENT = {"UNDERSTUDY_HEALTH_PROBE_TIMEOUT_SECONDS": "5", "UNDERSTUDY_HEALTH_LAG_TOLERANCE_SECONDS": "0.2"}


def point(number: int, value: int) -> models.PointStruct:
    """Cosine vectors that are not normalised, so that both sides round by themselves."""
    vector = [float(number + 1), 0.3 * value + 0.1, 0.7]
    return models.PointStruct(id=number, vector=vector, payload={"v": value})


def values(client: QdrantClient) -> dict[Any, int]:
    records, _ = client.scroll("c", limit=1000, with_payload=True)
    return {record.id: int((record.payload or {})["v"]) for record in records}


def command(understudy: Understudy, *words: str) -> Any:
    """`understudy wal conflicts …`, as JSON."""
    line = [sys.executable, "-m", "server.cli", "wal", "conflicts", *words, "--data-dir", str(understudy.data)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


# policy → values at Qdrant in the end of points 1 (both changed it), 2 (they deleted it), 3 (we deleted it), 20 (both
# made it); what the conflict log calls it; the number of entries in quarantine.
EXPECTED: dict[str, tuple[dict[int, int], str, int]] = {
    "local_wins": ({1: 3, 2: 2, 20: 2}, "overwritten", 0),
    "remote_wins": ({1: 7, 3: 7, 20: 7}, "not_written", 0),
    "quarantine": ({1: 7, 3: 7, 20: 7}, "quarantined", 6),
}


@pytest.mark.parametrize("policy", EXPECTED)
async def test_others_write_while_the_path_is_cut(standin: Standin, tmp_path: Path, policy: str) -> None:
    host, port = standin.address.rsplit(":", 1)
    async with TcpToxics(host, int(port)) as path:
        # Points made within the grace time that others delete look like points that Qdrant lost: see
        # docs/decisions/what-points-were-before.md. Those here are to be older.
        settings = {**PATIENT, "UNDERSTUDY_REPLAY_CONFLICTS": policy, "UNDERSTUDY_REPLAY_GRACE_SECONDS": "0"}
        understudy = Understudy(tmp_path / "understudy", path.address, **settings)
        await asyncio.to_thread(understudy.start)
        try:
            # Not here in the loop, which carries the path: a client takes its time to be made.
            direct = await asyncio.to_thread(standin.client)
            client = await asyncio.to_thread(understudy.client)
            await asyncio.to_thread(_before, client, understudy)
            await path.refuse()
            await path.reset()
            await asyncio.to_thread(understudy.wait_state, "local")
            await asyncio.to_thread(_meanwhile, client, direct)
            await path.accept()
            await asyncio.to_thread(understudy.wait_drained)
            await asyncio.to_thread(_afterwards, understudy, client, direct, policy)
            client.close()
            direct.close()
        finally:
            await asyncio.to_thread(understudy.stop)


def _compared(understudy: Understudy) -> dict[str, Any]:
    rows = understudy.status()["verification"]
    return next((dict(row) for row in rows if row["collection"] == "c"), {})


def _before(client: QdrantClient, understudy: Understudy) -> None:
    understudy.wait_state("remote")
    client.create_collection("c", models.VectorParams(size=3, distance=models.Distance.COSINE))
    client.upsert("c", [point(number, 1) for number in range(10)])
    understudy.wait_drained()
    understudy.wait_hydrated("c")


def _meanwhile(client: QdrantClient, direct: QdrantClient) -> None:
    # Ours: the same point twice, one of ours alone, one made anew.
    client.upsert("c", [point(1, 2), point(5, 2)])
    client.set_payload("c", {"v": 3}, points=[1])
    client.upsert("c", [point(2, 2)])
    client.delete("c", [3, 6])
    client.upsert("c", [point(20, 2), point(21, 2)])
    client.set_payload("c", {"w": 5}, points=[9])
    # Theirs.
    direct.upsert("c", [point(1, 7), point(3, 7), point(8, 7), point(9, 7), point(20, 7)])
    direct.delete("c", [2])


def _afterwards(understudy: Understudy, client: QdrantClient, direct: QdrantClient, policy: str) -> None:
    contested, outcome, in_quarantine = EXPECTED[policy]
    everywhere = {0: 1, 4: 1, 5: 2, 7: 1, 8: 7, 9: 7, 21: 2}
    # With what follows the first write to point 1.
    assert understudy.status()["quarantine"] == in_quarantine
    assert values(direct) == {**everywhere, **contested}
    assert values(client) == values(direct)

    rows = command(understudy, "list", "--json")
    assert {row["outcome"] for row in rows} == {outcome}
    assert sorted({row["point"] for row in rows}) == [1, 2, 3, 9, 20]
    kept = understudy.status()["conflicts"]
    assert (kept["kept"], kept["dropped"]) == (len(rows), 0)
    first = next(row for row in rows if row["point"] == 1)
    whole = command(understudy, "show", str(first["number"]))
    if policy == "remote_wins":
        # Both writes to point 1 were left out; the points of the others are as they were meant.
        assert len([row for row in rows if row["point"] == 1]) == 2
        assert whole["left_out"][0]["request"]["points"][0]["payload"] == {"v": {"integer_value": "2"}}
    else:
        assert whole["remote"]["payload"] == {"v": {"integer_value": "7"}}
        gone = next(row for row in rows if row["point"] == 2)
        assert command(understudy, "show", str(gone["number"]))["was_gone"] is True

    folder = understudy.data / "wal" / "conflicts"
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    if policy != "local_wins":
        return
    # Point 9 holds some of both at Qdrant: the replica takes it over, and what else they changed.
    (merged,) = direct.retrieve("c", [9])
    assert merged.payload == {"v": 7, "w": 5}
    until(lambda: _compared(understudy).get("points_repaired", 0) >= 2, 60, "the replica is compared and repaired")
    # The same with no server: the rows are on disk, and can be dropped.
    understudy.terminate()
    assert command(understudy, "list", "--json") == rows
    assert len(command(understudy, "drop", "--all", "--yes", "--json")["dropped"]) == len(rows)
    assert command(understudy, "list", "--json") == []
