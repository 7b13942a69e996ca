"""How an outage may end other than well: each end is a state that `docs/operations.md` tells of, and nothing is lost.

Nothing lost means: what was acknowledged during the outage is at Qdrant, or pending, or in quarantine with the reason
and at Qdrant once the cause is mended and it is retried; and what Qdrant itself lost is still in the log.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from qdrant_client import QdrantClient, models

from server.errors import WalError
from tests.system.test_wal_commands import answer, seqs, wal
from tests.system.understudy import Understudy
from tests.upstream.process import ROOT, Standin, until

CALM = {"UNDERSTUDY_HYDRATE_SETTLE_SECONDS": "0.2", "UNDERSTUDY_HYDRATE_REFRESH_SECONDS": "0.5"}
KEY = "a-key-of-some-length-4711"
NEW_KEY = "another-key-of-some-length-4712"

Points = dict[int, dict[str, Any]]


def make(client: QdrantClient, name: str, size: int = 2) -> None:
    """A collection."""
    client.create_collection(name, models.VectorParams(size=size, distance=models.Distance.DOT))


def write(client: QdrantClient, name: str, size: int = 2, **values: int) -> None:
    """Points by number (`p1=10`: point 1 with the value 10), one call each."""
    for number, value in values.items():
        vector = [float(number[1:])] * size
        client.upsert(name, [models.PointStruct(id=int(number[1:]), vector=vector, payload={"value": value})])


def held(client: QdrantClient, name: str) -> Points:
    """Payloads of all points."""
    records, _ = client.scroll(name, limit=1000)
    return {int(record.id): dict(record.payload or {}) for record in records}


def values(**given: int) -> Points:
    """What `held` gives after `write` with the same."""
    return {int(number[1:]): {"value": value} for number, value in given.items()}


def refused(understudy: Understudy) -> list[tuple[int, str, str]]:
    """What is in quarantine: number, code, reason."""
    rows = answer(understudy, "quarantine", "list")
    return [(row["seq"], row["code"], row["details"]) for row in rows]


def retry(understudy: Understudy) -> None:
    """Everything in quarantine goes back to the log, and to Qdrant."""
    wal(understudy, "quarantine", "retry", "--all", "--yes")
    understudy.wait_drained()
    assert refused(understudy) == []


def collection(understudy: Understudy, name: str) -> dict[str, Any]:
    """What the status says of a collection, nothing when the replica has none."""
    return next((dict(one) for one in understudy.status()["collections"] if one["name"] == name), {})


def lines(understudy: Understudy, text: str) -> list[str]:
    """Log lines with a text."""
    return [line for line in understudy.log_path.read_text().splitlines() if text in line]


def check_the_replica(understudy: Understudy, standin: Standin, *names: str, key: str | None = None) -> None:
    """Qdrant dies now, and the replica answers what Qdrant held."""
    with outside(standin) as direct:
        expected = {name: held(direct, name) for name in names}
    for name in names:
        understudy.wait_hydrated(name)
    standin.kill()
    understudy.wait_state("local")
    client = understudy.client(api_key=key)
    assert {name: held(client, name) for name in names} == expected
    client.close()


def code_of(understudy: Understudy, name: str, key: str | None) -> str:
    """What a read of a collection meets with a key, or none."""
    client = understudy.client(api_key=key)
    try:
        client.retrieve(name, [1])
    except grpc.RpcError as error:
        return str(error.code().name)
    finally:
        client.close()
    return "OK"


@contextmanager
def outside(standin: Standin, **options: Any) -> Iterator[QdrantClient]:
    """A client that Understudy does not see."""
    client = standin.client(**options)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def replica_alone(data: Path) -> Iterator[QdrantClient]:
    """A client of `understudy replica` on a data directory."""
    command = [sys.executable, "-m", "server.cli", "replica", "--listen", "127.0.0.1:0", "--data-dir", str(data)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[-1])
        client = QdrantClient(host="127.0.0.1", grpc_port=port, port=1, prefer_grpc=True, check_compatibility=False)
        yield client
        client.close()
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture
def proxy(standin: Standin, tmp_path: Path) -> Iterator[Understudy]:
    """A proxy that looks at Qdrant's catalogue often, with a collection `docs` of five points that it has whole."""
    with Understudy(tmp_path / "understudy", standin.address, **CALM) as understudy:
        understudy.wait_state("remote")
        client = understudy.client()
        make(client, "docs")
        write(client, "docs", p1=1, p2=2, p3=3, p4=4, p5=5)
        understudy.wait_hydrated("docs")
        client.close()
        yield understudy


def test_qdrant_is_down_at_the_start(tmp_path: Path) -> None:
    """Nothing is known of it: what it may hold is not answered for; what is new is taken, and reaches it later."""
    standin = Standin(tmp_path / "upstream").start()
    with outside(standin) as direct:
        make(direct, "old")
        write(direct, "old", p1=1)
        make(direct, "taken", size=3)
        write(direct, "taken", size=3, p1=100)
    standin.kill()
    try:
        with Understudy(tmp_path / "understudy", standin.address, **CALM, UNDERSTUDY_KEYS_API_KEY=KEY) as understudy:
            assert understudy.state() == "local"
            # Nobody was seen to be let in by Qdrant, so only a configured key opens.
            assert code_of(understudy, "old", None) == "UNAUTHENTICATED"
            assert code_of(understudy, "old", KEY) == "UNAVAILABLE"
            client = understudy.client(api_key=KEY)
            for name in ("new", "taken"):
                make(client, name)
                write(client, name, p1=1, p2=2)
            assert held(client, "taken") == values(p1=1, p2=2)
            standin.start()
            understudy.wait_drained()
            with outside(standin) as direct:
                assert held(direct, "new") == values(p1=1, p2=2)
                # The name was taken by a collection of another size: it stays as it is, ours is kept with its reason.
                assert held(direct, "taken") == values(p1=100)
                assert [code for _, code, _ in refused(understudy)] == ["ALREADY_EXISTS", *["FAILED_PRECONDITION"] * 2]
                direct.delete_collection("taken")
                retry(understudy)
                assert held(direct, "taken") == values(p1=1, p2=2)
            check_the_replica(understudy, standin, "old", "new", "taken", key=KEY)
            client.close()
    finally:
        standin.stop()


def test_qdrant_comes_back_empty(standin: Standin, proxy: Understudy, tmp_path: Path) -> None:
    """Its disk is gone: what is pending is kept with the reason, and the local copy, now the only one, stays."""
    client = proxy.client()
    standin.kill()
    proxy.wait_state("local")
    write(client, "docs", p5=50, p6=6)
    client.set_payload("docs", {"value": 10}, points=[1])
    full, standin.directory = standin.directory, tmp_path / "empty"
    standin.start()
    proxy.wait_drained()
    found = refused(proxy)
    assert len(found) == 3
    assert found[0][1:] == ("NOT_FOUND", "Not found: Collection `docs` doesn't exist!")
    assert {code for _, code, _ in found[1:]} == {"FAILED_PRECONDITION"}
    until(lambda: bool(lines(proxy, "Qdrant came back without any collection")), 30, "it is told")
    now = values(p1=10, p2=2, p3=3, p4=4, p5=50, p6=6)
    assert (collection(proxy, "docs")["completeness"], collection(proxy, "docs")["points"]) == ("stale", 6)
    standin.kill()
    proxy.wait_state("local")
    assert held(client, "docs") == now
    # Without a backup the points can be read from a copy of the data directory.
    proxy.terminate()
    shutil.copytree(proxy.data, tmp_path / "copy")
    with replica_alone(tmp_path / "copy") as alone:
        assert held(alone, "docs") == now
    proxy.start()
    # The operator puts the backup back.
    standin.directory = full
    standin.start()
    proxy.wait_drained()
    retry(proxy)
    with outside(standin) as direct:
        assert held(direct, "docs") == now
    check_the_replica(proxy, standin, "docs")
    client.close()


def test_qdrant_is_restored_from_an_old_snapshot(standin: Standin, proxy: Understudy, tmp_path: Path) -> None:
    """What came after the snapshot is gone at Qdrant, but not from the log; what was written offline is there."""
    client = proxy.client()
    standin.terminate()
    snapshot = tmp_path / "snapshot"
    shutil.copytree(standin.directory, snapshot)
    standin.start()
    proxy.wait_drained()
    write(client, "docs", p2=20, p7=70)
    client.delete("docs", [4])
    proxy.wait_state("remote")
    standin.kill()
    proxy.wait_state("local")
    write(client, "docs", p3=30, p8=80)
    client.set_payload("docs", {"value": 71}, points=[7])
    standin.directory = snapshot
    standin.start()
    proxy.wait_drained()
    with outside(standin) as direct:
        there = held(direct, "docs")
    assert {3: {"value": 30}, 8: {"value": 80}}.items() <= there.items()
    # Point 7 came after the snapshot: where Qdrant lacked it, what was to be set on it is kept.
    kept = {row[0] for row in refused(proxy)}
    assert kept or there.get(7) == {"value": 71}
    exported = [json.loads(line) for line in wal(proxy, "export")[0].splitlines()]
    methods = [line["method"].rsplit("/", 1)[-1] for line in exported]
    assert methods == ["Create", *["Upsert"] * 7, "Delete", "Upsert", "Upsert", "SetPayload"]
    with outside(standin) as direct:
        until(
            lambda: collection(proxy, "docs")["points"] == len(held(direct, "docs")), 30, "the replica is as Qdrant is"
        )
        # What the log holds of the time after the snapshot is written again through the proxy.
        write(client, "docs", p2=20, p7=70)
        client.delete("docs", [4])
        if kept:
            wal(proxy, "quarantine", "retry", "--all", "--yes", "--force")
            proxy.wait_drained()
        expected = values(p1=1, p2=20, p3=30, p5=5, p7=71 if kept else 70, p8=80)
        assert held(direct, "docs") == expected
    check_the_replica(proxy, standin, "docs")
    client.close()


def test_a_collection_was_deleted_at_qdrant(standin: Standin, proxy: Understudy) -> None:
    """What is pending for it is kept with the reason, the others are not held up, the replica follows Qdrant."""
    client = proxy.client()
    make(client, "other")
    standin.kill()
    proxy.wait_state("local")
    write(client, "docs", p1=10)
    write(client, "other", p1=1)
    write(client, "docs", p6=6)
    away = proxy.address
    proxy.terminate()
    standin.start()
    with outside(standin) as direct:
        direct.delete_collection("docs")
        proxy.start()
        assert proxy.address == away
        proxy.wait_drained()
        assert held(direct, "other") == values(p1=1)
        assert [code for _, code, _ in refused(proxy)] == ["NOT_FOUND", "FAILED_PRECONDITION"]
        until(lambda: not collection(proxy, "docs"), 30, "the replica has it no longer")
        [told] = lines(proxy, "Qdrant no longer has the collection")
        assert "docs" in told
        make(direct, "docs")
        retry(proxy)
        assert held(direct, "docs") == values(p1=10, p6=6)
    check_the_replica(proxy, standin, "docs", "other")
    client.close()


def test_a_collection_was_made_anew_with_other_dimensions(standin: Standin, proxy: Understudy) -> None:
    """Vectors that no longer fit are kept with the reason; what has none is applied where its point is."""
    client = proxy.client()
    standin.kill()
    proxy.wait_state("local")
    write(client, "docs", p1=10, p6=6)
    client.set_payload("docs", {"value": 20}, points=[2])
    proxy.terminate()
    standin.start()
    with outside(standin) as direct:
        direct.delete_collection("docs")
        make(direct, "docs", size=3)
        write(direct, "docs", size=3, p2=2, p9=9)
        proxy.start()
        proxy.wait_drained()
        found = refused(proxy)
        assert [code for _, code, _ in found] == ["INVALID_ARGUMENT"] * 2
        assert all("expected dim: 3, got 2" in reason for _, _, reason in found)
        assert held(direct, "docs") == values(p2=20, p9=9)
        exported = [json.loads(line) for line in wal(proxy, "quarantine", "export")[0].splitlines()]
        kept = [line["request"]["points"][0] for line in exported]
        assert [(point["id"]["num"], point["payload"]["value"]["integer_value"]) for point in kept] == [
            ("1", "10"),
            ("6", "6"),
        ]
        until(lambda: collection(proxy, "docs").get("points") == 2, 30, "the replica has the new collection")
        understood = proxy.client()
        write(understood, "docs", size=3, p1=11)
        assert held(understood, "docs") == values(p1=11, p2=20, p9=9)
        understood.close()
        # The old vectors fit nowhere: a retry would bring the same, and point 1 has been written since.
        _, text = wal(proxy, "quarantine", "retry", "--all", "--yes", code=WalError.exit_code)
        assert "would be overwritten" in text
        wal(proxy, "quarantine", "drop", *map(str, seqs(answer(proxy, "quarantine", "list"))), "--yes")
    check_the_replica(proxy, standin, "docs")
    client.close()


def test_the_key_was_revoked(tmp_path: Path) -> None:
    """What is pending waits for a key that Qdrant takes; the old one opens nothing any more once Qdrant refused it."""
    with (
        Standin(tmp_path / "upstream", api_key=KEY) as standin,
        Understudy(tmp_path / "understudy", standin.address, **CALM) as understudy,
    ):
        understudy.wait_state("remote")
        client = understudy.client(api_key=KEY)
        make(client, "docs")
        write(client, "docs", p1=1)
        standin.kill()
        understudy.wait_state("local")
        write(client, "docs", p2=2)
        client.close()
        standin.api_key = NEW_KEY
        standin.start()
        until(lambda: understudy.status()["replay"]["state"] == "waiting_credential", 30, "replay waits for a key")
        status = understudy.status()
        assert (status["state"], status["pending"], status["quarantine"]) == ("draining", 1, 0)
        assert code_of(understudy, "docs", KEY) == "UNAUTHENTICATED"
        # Who comes with the new key is let in, for Qdrant was asked; and the replay goes on with it.
        assert code_of(understudy, "docs", NEW_KEY) == "OK"
        understudy.wait_drained()
        assert code_of(understudy, "docs", NEW_KEY) == "OK"
        assert code_of(understudy, "docs", KEY) == "UNAUTHENTICATED"
        with outside(standin) as direct:
            assert held(direct, "docs") == values(p1=1, p2=2)
