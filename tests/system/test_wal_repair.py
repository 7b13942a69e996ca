"""A log that rots during an outage: seen while the server runs, repaired, and what was kept reaches Qdrant in order."""

from __future__ import annotations

import json
from pathlib import Path

from qdrant_client import models

from server.errors import WalDamaged, WalLocked
from tests.system.test_wal_commands import BY_HAND, answer, make, metrics, sync, wal
from tests.system.understudy import Understudy
from tests.upstream.process import Standin, until

# One entry a segment.
SMALL = {"UNDERSTUDY_WAL_SEGMENT_BYTES": "300"}


def test_damage_is_seen_repaired_and_what_was_kept_is_replayed(standin: Standin, tmp_path: Path) -> None:
    with Understudy(tmp_path / "understudy", standin.address, **BY_HAND, **SMALL) as understudy:
        client = understudy.client()
        understudy.wait_state("remote")
        make(client)
        standin.kill()
        understudy.wait_state("local")
        for number in range(1, 9):
            client.upsert("docs", [models.PointStruct(id=number, vector=[1.0, 2.0], payload={"value": number})])
        client.close()
        exported = [json.loads(line) for line in wal(understudy, "export", "--state", "pending")[0].splitlines()]
        assert [row["request"]["points"][0]["id"]["num"] for row in exported] == [str(n) for n in range(1, 9)]
        assert "Stop the server first" in wal(understudy, "repair", "--yes", code=WalLocked.exit_code)[1]

        spoiled = exported[3]["seq"]
        segment = next(path for path in (understudy.data / "wal").glob("segment-*.wal") if first_seq(path) == spoiled)
        at = segment.read_bytes().find(b"/qdrant.Points/Upsert")
        with segment.open("r+b") as file:
            file.seek(at)
            file.write(b"?")
        until(
            lambda: "understudy_wal_damaged_segments 1.0" in metrics(understudy).splitlines(), 30, "the patrol finds it"
        )
        assert segment.name in understudy.status()["wal"]["damage"][0]
        understudy.kill()

        assert "understudy wal repair" in wal(understudy, "verify", code=WalDamaged.exit_code)[1]
        done = answer(understudy, "repair", "--yes")
        assert done["lost"] == [{"first_seq": spoiled, "last_seq": spoiled, "at_qdrant": False}]
        assert done["pending"] == 7
        understudy.start()
        standin.start()
        sync(understudy)
        direct = standin.client()
        found = sorted(int(point.id) for point in direct.scroll("docs", limit=100)[0])
        assert found == [1, 2, 3, 5, 6, 7, 8]
        client = understudy.client()
        client.upsert("docs", [models.PointStruct(id=99, vector=[1.0, 2.0])])
        assert direct.retrieve("docs", [99])
        direct.close()
        client.close()


def first_seq(path: Path) -> int:
    """The number of the first entry of a segment."""
    return int.from_bytes(path.read_bytes()[48:56], "little")
