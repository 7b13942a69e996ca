"""Every `understudy wal` command as a process of its own, with the server running on the log and with it stopped."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from server.errors import WalDamaged, WalError, WalLocked
from tests.system.understudy import Understudy
from tests.upstream.process import ROOT, Standin

# Replay waits for `understudy sync`, so that a test can change Qdrant in between.
BY_HAND = {"UNDERSTUDY_VECTORSTORE_FALLBACK_SYNC_ON_CONNECT": "false"}


def wal(understudy: Understudy, *words: str, code: int = 0, answer: str = "") -> tuple[str, str]:
    """One command; gives what it wrote to stdout and to stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "wal", *words, "--data-dir", str(understudy.data)],
        check=False,
        cwd=ROOT,
        env=environment,
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def answer(understudy: Understudy, *words: str) -> Any:
    """What a command says with --json."""
    return json.loads(wal(understudy, *words, "--json")[0])


def seqs(rows: list[dict[str, Any]]) -> list[int]:
    """Their numbers."""
    return [row["seq"] for row in rows]


def make(client: QdrantClient) -> None:
    """The collection."""
    client.create_collection("docs", models.VectorParams(size=2, distance=models.Distance.DOT))


def write(client: QdrantClient, point_id: int, value: int) -> None:
    """One point."""
    client.upsert("docs", [models.PointStruct(id=point_id, vector=[1.0, 2.0], payload={"value": value})])


def values(client: QdrantClient) -> dict[int, int]:
    """Each point's value."""
    found = client.retrieve("docs", [1, 2, 3], with_payload=True)
    return {int(point.id): int((point.payload or {})["value"]) for point in found}


def metrics(understudy: Understudy) -> str:
    """The numbers of the admin port."""
    with urllib.request.urlopen(f"http://{understudy.admin}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


def sync(understudy: Understudy) -> None:
    """Replay what is pending, as an operator asks for it."""
    command = [sys.executable, "-m", "server.cli", "sync", "--admin", understudy.admin]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    understudy.wait_drained()


@pytest.fixture
def refused(standin: Standin, tmp_path: Path) -> Iterator[Understudy]:
    """A server whose Qdrant lost a collection during an outage: 1 and 2 were online, 3 to 5 are refused."""
    with Understudy(tmp_path / "understudy", standin.address, **BY_HAND) as understudy:
        client, direct = understudy.client(), standin.client()
        understudy.wait_state("remote")
        make(client)
        write(client, 1, 1)
        standin.kill()
        understudy.wait_state("local")
        write(client, 1, 2)
        client.set_payload("docs", {"value": 3}, points=[1])
        write(client, 2, 20)
        standin.start()
        direct.delete_collection("docs")
        sync(understudy)
        assert understudy.status()["quarantine"] == 3
        make(direct)
        client.close()
        direct.close()
        yield understudy


def test_with_the_server_running(refused: Understudy, standin: Standin) -> None:
    status = answer(refused, "status")
    assert (status["running"], status["last_seq"], status["replayed_seq"], status["pending_count"]) == (True, 5, 5, 0)
    assert seqs(status["quarantined"]) == [3, 4, 5]
    verified = answer(refused, "verify")
    assert (verified["entries_verified"], verified["problems"]) == (5, [])

    rows = answer(refused, "list")
    assert [(row["seq"], row["state"]) for row in rows] == [
        (1, "synced"),
        (2, "synced"),
        (3, "quarantined"),
        (4, "quarantined"),
        (5, "quarantined"),
    ]
    assert seqs(answer(refused, "list", "--state", "quarantined", "--limit", "2")) == [3, 4]
    assert seqs(answer(refused, "list", "--state", "quarantined", "--limit", "2", "--after", "4")) == [5]
    assert seqs(answer(refused, "list", "--collection", "other")) == []
    assert seqs(answer(refused, "list", "--since", "1h", "--collection", "docs")) == [1, 2, 3, 4, 5]
    assert seqs(answer(refused, "list", "--until", rows[2]["time"])) == [1, 2]
    assert "Upsert" in wal(refused, "list")[0]
    assert answer(refused, "show", "4")["request"]["payload"] == {"value": {"integer_value": "3"}}
    assert "entry 99" in wal(refused, "show", "99", code=WalError.exit_code)[1]
    assert "not moved" in wal(refused, "reset", "--yes", code=WalLocked.exit_code)[1]

    assert seqs(answer(refused, "quarantine", "list")) == [3, 4, 5]
    assert answer(refused, "quarantine", "show", "3")["code"] == "NOT_FOUND"
    lines = [json.loads(line) for line in wal(refused, "quarantine", "export")[0].splitlines()]
    assert [(line["seq"], line["request"]["collection_name"]) for line in lines] == [
        (3, "docs"),
        (4, "docs"),
        (5, "docs"),
    ]

    wal(refused, "quarantine", "retry", "3", code=1, answer="n\n")
    assert refused.status()["quarantine"] == 3
    done = answer(refused, "quarantine", "retry", "3", "--yes")
    assert done["retried"] == [{"seq": 3, "new_seq": 6}, {"seq": 4, "new_seq": 7}, {"seq": 5, "new_seq": 8}]
    refused.wait_drained()
    assert seqs(answer(refused, "quarantine", "list")) == []
    direct = standin.client()
    assert values(direct) == {1: 3, 2: 20}
    direct.close()
    assert answer(refused, "compact", "--older-than-days", "0")["segments_removed"] == 1
    assert answer(refused, "list") == []


def test_what_was_written_later_is_not_overwritten(refused: Understudy, standin: Standin) -> None:
    client = refused.client()
    write(client, 1, 9)
    assert values(client) == {1: 9}
    _, text = wal(refused, "quarantine", "retry", "--all", "--yes", code=WalError.exit_code)
    assert "entries 6" in text
    assert "--force" in text
    assert seqs(answer(refused, "quarantine", "list")) == [3, 4, 5]
    # The other point is free, but in the quarantine it stands behind the lost collection.
    assert "retry or drop 3" in wal(refused, "quarantine", "retry", "5", "--yes", code=WalError.exit_code)[1]
    wal(refused, "quarantine", "drop", "3", code=1, answer="n\n")
    assert answer(refused, "quarantine", "drop", "3", "4", "--yes") == {"dropped": [3, 4]}
    answer(refused, "quarantine", "retry", "5", "--yes")
    refused.wait_drained()
    direct = standin.client()
    assert values(direct) == {1: 9, 2: 20}
    direct.close()
    client.close()


def test_with_the_server_stopped(refused: Understudy, standin: Standin, tmp_path: Path) -> None:
    assert refused.terminate() == 0
    assert not (refused.data / "wal" / "control").exists()
    assert answer(refused, "status")["running"] is False
    assert answer(refused, "verify")["entries_verified"] == 5
    assert seqs(answer(refused, "list", "--state", "quarantined", "--collection", "docs", "--limit", "2")) == [3, 4]
    assert answer(refused, "show", "5")["request"]["points"][0]["id"] == {"num": "2"}
    assert answer(refused, "compact")["segments_removed"] == 0
    assert seqs(answer(refused, "quarantine", "list")) == [3, 4, 5]
    file = tmp_path / "refused.jsonl"
    wal(refused, "quarantine", "export", "--output", str(file))
    assert seqs([json.loads(line) for line in file.read_text().splitlines()]) == [3, 4, 5]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert answer(refused, "quarantine", "drop", "5", "--yes") == {"dropped": [5]}
    done = answer(refused, "quarantine", "retry", "--all", "--yes")
    assert done["retried"] == [{"seq": 3, "new_seq": 6}, {"seq": 4, "new_seq": 7}]
    assert seqs(answer(refused, "list", "--state", "pending")) == [6, 7]

    refused.start()
    sync(refused)
    direct = standin.client()
    assert values(direct) == {1: 3}
    direct.close()
    refused.terminate()
    moved = answer(refused, "reset", "--yes")["moved_to"]
    assert Path(moved).is_dir()
    assert not (refused.data / "wal").exists()


def test_the_socket_is_ours_alone_and_damage_shows_while_running(refused: Understudy) -> None:
    control = refused.data / "wal" / "control"
    socket = Path(control.read_text().strip())
    assert [stat.S_IMODE(path.lstat().st_mode) for path in (control, socket.parent, socket)] == [0o600, 0o700, 0o600]
    segment = next((refused.data / "wal").glob("segment-*.wal"))
    raw = bytearray(segment.read_bytes())
    raw[400] ^= 1
    with segment.open("r+b") as file:
        file.write(raw)
    _, text = wal(refused, "verify", code=WalDamaged.exit_code)
    assert segment.name in text
    refused.kill()
    # The next server takes away what the killed one left.
    assert socket.exists()
    raw[400] ^= 1
    with segment.open("r+b") as file:
        file.write(raw)
    refused.start()
    assert not socket.exists()
    assert answer(refused, "status")["running"] is True


def test_what_is_dropped_beside_a_replica_that_is_behind_is_never_sent(standin: Standin, tmp_path: Path) -> None:
    """A power cut has set its store back: it applies the entry only after it was dropped."""
    with Understudy(tmp_path / "understudy", standin.address, **BY_HAND) as understudy:
        client, direct = understudy.client(), standin.client()
        understudy.wait_state("remote")
        make(client)
        write(client, 1, 1)
        understudy.wait_hydrated("docs")
        standin.kill()
        understudy.wait_state("local")
        store = understudy.data / "store"
        shutil.copytree(store, tmp_path / "before")
        write(client, 1, 2)
        standin.start()
        direct.delete_collection("docs")
        sync(understudy)
        assert seqs(answer(understudy, "status")["quarantined"]) == [3]
        # It comes back from a backup.
        make(direct)
        write(direct, 1, 1)
        client.close()
        understudy.kill()
        shutil.rmtree(store)
        shutil.copytree(tmp_path / "before", store)
        assert answer(understudy, "quarantine", "drop", "3", "--yes") == {"dropped": [3]}
        understudy.start()
        sync(understudy)
        assert understudy.status()["grace"]["looks"] == 1
        assert values(direct) == {1: 1}
        direct.close()
