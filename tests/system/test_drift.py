"""Somebody else writes to Qdrant, past Understudy: found, told, repaired, and right when Qdrant dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from generated.qdrant import points_pb2 as pb
from tests.processes import send
from tests.system.understudy import Understudy
from tests.upstream.process import ROOT, Standin, until

CALM = {"UNDERSTUDY_HYDRATE_SETTLE_SECONDS": "0.2", "UNDERSTUDY_HYDRATE_REFRESH_SECONDS": "600"}
RANDOM = np.random.default_rng(5)


def point(number: int, **payload: Any) -> models.PointStruct:
    """Three kinds of vectors, none of them normalised."""
    vectors: dict[str, Any] = {
        "text": (RANDOM.standard_normal(24) * 3).tolist(),
        "image": RANDOM.standard_normal(4).tolist(),
        "words": models.SparseVector(indices=[1, 5 + number % 7], values=[0.5, float(number + 1)]),
    }
    return models.PointStruct(id=number, vector=vectors, payload={"n": number, **payload})


def create(client: QdrantClient, name: str) -> None:
    client.create_collection(
        name,
        vectors_config={
            "text": models.VectorParams(size=24, distance=models.Distance.COSINE),
            "image": models.VectorParams(size=4, distance=models.Distance.EUCLID),
        },
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )


def everything(client: QdrantClient, name: str) -> dict[Any, Any]:
    """All points: payload, and vectors as numbers."""
    records, _ = client.scroll(name, limit=100_000, with_payload=True, with_vectors=True)
    return {record.id: (record.payload, dict(sorted((record.vector or {}).items()))) for record in records}


def differences(client: QdrantClient, name: str, held: dict[Any, Any]) -> list[Any]:
    """Ids at which the answers differ from what Qdrant held; both normalise vectors, so the last bits may differ."""
    seen = everything(client, name)
    return [number for number in seen.keys() | held.keys() if not same(seen.get(number), held.get(number))]


def same(one: Any, other: Any) -> bool:
    if one is None or other is None or one[0] != other[0] or one[1].keys() != other[1].keys():
        return False
    return all(np.allclose(numbers(value), numbers(other[1][name]), atol=1e-5) for name, value in one[1].items())


def numbers(vector: Any) -> list[float]:
    return [*vector.indices, *vector.values] if isinstance(vector, models.SparseVector) else vector


def verify(understudy: Understudy, *names: str) -> str:
    """`understudy hydrate --verify`, followed to its end."""
    command = [sys.executable, "-m", "server.cli", "hydrate", "--verify", "--admin", understudy.admin, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def comparison(understudy: Understudy, name: str) -> dict[str, Any]:
    return next((dict(one) for one in understudy.status()["verification"] if one["collection"] == name), {})


def metric(understudy: Understudy, name: str) -> float:
    with urllib.request.urlopen(f"http://{understudy.admin}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(name)))


@contextmanager
def outside(standin: Standin) -> Iterator[QdrantClient]:
    """A client that Understudy does not see."""
    client = standin.client()
    try:
        yield client
    finally:
        client.close()


def test_what_an_outside_writer_did_is_repaired(standin: Standin, tmp_path: Path) -> None:
    with outside(standin) as direct:
        create(direct, "c")
        direct.upsert("c", [point(number) for number in range(500)])
        with Understudy(tmp_path / "understudy", standin.address, **CALM) as understudy:
            understudy.wait_hydrated("c")
            client = understudy.client()
            client.upsert("c", [point(number, mirrored=True) for number in range(450, 600)])
            client.set_payload("c", {"tag": "new", "gone": None}, points=[1, 2, 599])
            client.delete("c", [10, 11])
            # What came through the proxy is no drift, although both sides normalised its vectors by themselves.
            assert "598 points in" in (said := verify(understudy, "c")), said
            assert "all equal" in said

            direct.set_payload("c", {"n": -1}, points=[0, 300, 598])
            direct.update_vectors("c", [models.PointVectors(id=3, vector={"text": [1.0] * 24})])
            direct.update_vectors("c", [models.PointVectors(id=4, vector={"image": [1.0] * 4})])
            sparse = models.SparseVector(indices=[2], values=[9.0])
            direct.update_vectors("c", [models.PointVectors(id=5, vector={"words": sparse})])
            direct.delete("c", [20, 21, 400, 597])
            direct.upsert("c", [point(number) for number in (1000, 1001, 1002, 1003)])
            said = verify(understudy, "c")
            assert "14 points in" in said.partition("compared")[2]
            assert metric(understudy, "understudy_repaired_points_total") == 14
            row = comparison(understudy, "c")
            assert (row["state"], row["points_repaired"], row["points"]) == ("verified", 14, 598)
            state = next(one for one in understudy.status()["collections"] if one["name"] == "c")
            assert (state["completeness"], state["points"]) == ("complete", 598)
            assert state["verified_at"] is not None
            assert "all equal" in verify(understudy, "c")

            held = everything(direct, "c")
            standin.kill()
            understudy.wait_state("local")
            assert differences(client, "c", held) == []
            client.close()


def test_it_compares_while_clients_write(standin: Standin, tmp_path: Path) -> None:
    """Local writes win, an outside writer's are taken over, and both sides are equal when all is quiet."""
    settings = {**CALM, "UNDERSTUDY_HYDRATE_PAGE_POINTS": "50", "UNDERSTUDY_HYDRATE_VERIFY_POINTS_PER_SECOND": "400"}
    with outside(standin) as direct:
        create(direct, "c")
        direct.upsert("c", [point(number) for number in range(600)])
        with Understudy(tmp_path / "understudy", standin.address, **settings) as understudy:
            understudy.wait_hydrated("c")
            verify(understudy, "c")
            client = understudy.client()
            done = threading.Event()
            written: list[int] = []

            def write() -> None:
                number = 0
                while not done.is_set() or number <= 20:
                    client.upsert("c", [point(number % 200, turn=number), point(200 + number % 300, turn=number)])
                    written.append(number)
                    number += 1

            writer = threading.Thread(target=write)
            writer.start()
            try:
                direct.set_payload("c", {"n": -1}, points=list(range(550, 580)))
                verify(understudy, "c")
            finally:
                done.set()
                writer.join()
            assert len(written) > 20
            assert comparison(understudy, "c")["points_repaired"] >= 30
            held = everything(direct, "c")
            standin.kill()
            understudy.wait_state("local")
            assert differences(client, "c", held) == []
            client.close()


def test_a_collection_made_again_alike_by_others_is_noticed(standin: Standin, tmp_path: Path) -> None:
    """Same name, same configuration, same number of points: nobody asks, it is noticed."""
    settings = {**CALM, "UNDERSTUDY_HYDRATE_REFRESH_SECONDS": "0.5"}
    with outside(standin) as direct:
        create(direct, "c")
        direct.upsert("c", [point(number, life=1) for number in range(400)])
        with Understudy(tmp_path / "understudy", standin.address, **settings) as understudy:
            understudy.wait_hydrated("c")
            # It must not look in between: then it sees another number of points, and that is another way to notice.
            send(understudy.pid, signal.SIGSTOP)
            direct.delete_collection("c")
            create(direct, "c")
            direct.upsert("c", [point(number, life=2) for number in range(400)])
            send(understudy.pid, signal.SIGCONT)
            until(lambda: comparison(understudy, "c").get("points_repaired") == 400, 60, "the new points are here")
            understudy.wait_hydrated("c")
            held = everything(direct, "c")
            standin.kill()
            understudy.wait_state("local")
            client = understudy.client()
            assert differences(client, "c", held) == []
            client.close()


def test_which_collections_are_copied(standin: Standin, tmp_path: Path) -> None:
    """A list, a size limit; what is left out says so, is refused or marked, and is copied when asked for."""
    settings = {
        **CALM,
        "UNDERSTUDY_HYDRATE_COLLECTIONS": "small,large",
        "UNDERSTUDY_HYDRATE_MAX_POINTS": "50",
        "UNDERSTUDY_REPLICA_LOCAL_READS": "complete_only",
    }
    with outside(standin) as direct:
        for name, count in (("small", 20), ("large", 60), ("other", 20), ("never", 20)):
            create(direct, name)
            direct.upsert(name, [point(number) for number in range(count)])
        with Understudy(tmp_path / "understudy", standin.address, **settings) as understudy:
            understudy.wait_hydrated("small")

            def states() -> dict[str, str]:
                return {row["collection"]: row["state"] for row in understudy.status()["hydration"]}

            until(lambda: states() == {"small": "complete", "large": "left out"}, 30, "the list is done")
            status = understudy.status()
            reason = next(row["reason"] for row in status["hydration"] if row["collection"] == "large")
            assert "60 points, more than hydrate.max_points = 50" in reason
            assert {one["name"]: one["completeness"] for one in status["collections"]} == {
                "small": "complete",
                "large": "empty",
                "other": "empty",
                "never": "empty",
            }
            command = [sys.executable, "-m", "server.cli", "hydrate", "other", "--admin", understudy.admin]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            understudy.wait_hydrated("other")
            held = everything(direct, "other")
            standin.kill()
            understudy.wait_state("local")
            client = understudy.client()
            assert differences(client, "other", held) == []
            assert client.count("small").count == 20
            for name in ("large", "never"):
                with pytest.raises(Exception, match="UNAVAILABLE") as raised:
                    client.count(name)
                assert "empty" in str(raised.value)
            client.close()


def test_a_copy_goes_on_after_a_restart_where_it_stopped(standin: Standin, tmp_path: Path) -> None:
    settings = {**CALM, "UNDERSTUDY_HYDRATE_PAGE_POINTS": "40", "UNDERSTUDY_HYDRATE_POINTS_PER_SECOND": "300"}
    with outside(standin) as direct:
        create(direct, "c")
        direct.upsert("c", [point(number) for number in range(1200)])

        def scrolls() -> list[int]:
            bodies = [entry.body for entry in standin.journal() if entry.method.endswith("/Scroll")]
            return [pb.ScrollPoints.FromString(body).offset.num for body in bodies]

        with Understudy(tmp_path / "understudy", standin.address, **settings) as understudy:
            until(lambda: max(scrolls(), default=0) >= 600, 30, "half is copied")
            understudy.kill()
            before = len(scrolls())
            understudy.start()
            understudy.wait_hydrated("c")
            assert min(scrolls()[before:-1]) >= 240
            held = everything(direct, "c")
            standin.kill()
            understudy.wait_state("local")
            client = understudy.client()
            assert differences(client, "c", held) == []
            client.close()
