"""Qdrant loses power and what it had acknowledged: it gets that again, and nothing when nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models

from generated.qdrant import points_pb2
from tests.processes import send
from tests.system.test_drift import create, differences, everything, point
from tests.system.understudy import Understudy
from tests.upstream.process import Standin, until

# No copying in between: what differs must be found by the look alone.
SETTINGS = {"UNDERSTUDY_HYDRATE_REFRESH_SECONDS": "600", "UNDERSTUDY_HYDRATE_VERIFY_SECONDS": "0"}


@pytest.fixture
def understudy(standin: Standin, tmp_path: Path) -> Iterator[Understudy]:
    with Understudy(tmp_path / "understudy", standin.address, **SETTINGS) as proxy:
        yield proxy


def grace(understudy: Understudy) -> dict[str, Any]:
    return dict(understudy.status()["grace"])


def looked(understudy: Understudy, times: int) -> None:
    """Wait until calls are forwarded again, after so many looks."""
    until(lambda: grace(understudy)["looks"] >= times, 60, f"{times} looks at Qdrant")
    understudy.wait_drained()


def test_what_qdrant_lost_it_gets_again(standin: Standin, understudy: Understudy) -> None:
    client, direct = understudy.client(), standin.client()
    create(client, "c")
    client.upsert("c", [point(number) for number in range(50)])
    understudy.wait_drained()
    # A first start has nothing to look at.
    assert grace(understudy) == {"is_due": False, "is_owed": False, "looks": 0, "restored_points": 0}
    standin.note_sync()

    # Acknowledged by Qdrant, and lost.
    client.upsert("c", [point(number) for number in (1, *range(100, 105))])
    client.set_payload("c", {"tag": "new"}, points=[3, 4])
    client.update_vectors("c", [models.PointVectors(id=5, vector={"text": [1.0] * 24})])
    client.delete("c", [6])
    client.delete("c", models.Filter(must=[models.FieldCondition(key="n", range=models.Range(gte=40, lt=50))]))
    client.delete_payload("c", ["n"], points=[7])
    wanted = everything(client, "c")
    assert wanted.keys() == {*range(40), *range(100, 105)} - {6}
    standin.lose_power()
    understudy.wait_state("local")
    # Written while it is away, to points that it has lost.
    client.set_payload("c", {"tag": "offline"}, points=[100, 3])
    client.delete("c", [101])
    client.upsert("c", [point(200)])
    wanted = everything(client, "c")
    # Somebody else is faster than Understudy, at a point that it had written to.
    send(understudy.pid, signal.SIGSTOP)
    try:
        standin.start()
        lost = everything(direct, "c")
        assert lost.keys() == set(range(50))
        direct.set_payload("c", {"tag": "foreign"}, points=[4])
        foreign = everything(direct, "c")[4]
    finally:
        send(understudy.pid, signal.SIGCONT)
    understudy.wait_drained()
    wanted[4] = foreign
    assert differences(direct, "c", wanted) == []
    status = understudy.status()
    assert status["quarantine"] == 0
    # 1, 100 to 104, 3, 5, 6, 40 to 49, 7.
    assert status["grace"] == {"is_due": False, "is_owed": False, "looks": 1, "restored_points": 20}
    (line,) = [line for line in understudy.log_path.read_text().splitlines() if "Qdrant had lost" in line]
    assert "restored=20" in line and "changed_by_others=1" in line
    arrived = [
        each.payload["tag"].string_value
        for entry in standin.writes()
        if entry.method.endswith(("SetPayload", "Upsert")) and 100 in entry.ids
        for each in _points(entry.method, entry.body)
    ]
    # As it was online, lost, and again so before what came later.
    assert arrived == ["", "", "offline"]

    # It is restarted and has lost nothing. What somebody else writes is theirs, also at a point just restored.
    direct.set_payload("c", {"tag": "foreign"}, points=[100])
    before = len(standin.writes())
    standin.restart()
    looked(understudy, 2)
    assert len(standin.writes()) == before
    assert grace(understudy)["restored_points"] == 20
    client.close()
    direct.close()


def _points(method: str, body: bytes) -> list[Any]:
    if method.endswith("SetPayload"):
        return [points_pb2.SetPayloadPoints.FromString(body)]
    return [each for each in points_pb2.UpsertPoints.FromString(body).points if each.id.num == 100]


def test_both_are_killed(standin: Standin, understudy: Understudy) -> None:
    """Understudy cannot have noticed that Qdrant was away: it looks at every start."""
    client, direct = understudy.client(), standin.client()
    create(client, "c")
    client.upsert("c", [point(number) for number in range(20)])
    understudy.wait_drained()
    standin.note_sync()
    client.upsert("c", [point(30)])
    client.delete("c", [1])
    wanted = everything(client, "c")
    understudy.kill()
    standin.lose_power()
    standin.start()
    assert differences(direct, "c", wanted) != []
    understudy.start()
    looked(understudy, 1)
    assert differences(direct, "c", wanted) == []
    assert grace(understudy)["restored_points"] == 2
    client.close()
    direct.close()
