"""A collection with a strict mode: it is copied, guarded while Qdrant is away, and gets all that was acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from qdrant_client import QdrantClient, models

from tests.system.understudy import Understudy
from tests.upstream.process import Standin

PAGE, BATCH, POINTS = 30, 20, 130
LIMITS = models.StrictModeConfig(
    enabled=True,
    max_query_limit=PAGE,
    upsert_max_batchsize=BATCH,
    search_allow_exact=False,
    unindexed_filtering_retrieve=False,
    unindexed_filtering_update=False,
)


def made(number: int, value: int = 0) -> models.PointStruct:
    return models.PointStruct(id=number, vector=[float(number), 1.0], payload={"n": number, "v": value, "w": value})


def on(key: str, value: int) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=value))])


def everything(client: QdrantClient) -> dict[int | str, int]:
    """`v` of each point, page by page."""
    found: dict[int | str, int] = {}
    offset = None
    while True:
        records, offset = client.scroll("c", limit=PAGE, offset=offset)
        found |= {record.id: (record.payload or {})["v"] for record in records}
        if offset is None:
            return found


def refused(call: Callable[[], object]) -> str:
    """What is said no with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(error.details())


def test_a_collection_with_a_strict_mode_through_an_outage(standin: Standin, tmp_path: Path) -> None:
    direct = standin.client()
    direct.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT), strict_mode_config=LIMITS)
    direct.create_payload_index("c", "n", models.PayloadSchemaType.INTEGER, wait=True)
    for start in range(0, POINTS, BATCH):
        direct.upsert("c", [made(n) for n in range(start, min(start + BATCH, POINTS))], wait=True)
    with Understudy(tmp_path / "understudy", standin.address) as understudy:
        understudy.wait_hydrated("c")
        standin.kill()
        understudy.wait_state("local")
        client = understudy.client()
        assert everything(client) == dict.fromkeys(range(POINTS), 0)
        assert f"Limit exceeded {PAGE + 1} > {PAGE}" in refused(lambda: client.scroll("c", limit=PAGE + 1))
        assert "Exact search disabled!" in refused(lambda: client.count("c"))
        assert client.count("c", exact=False).count == POINTS
        lacking = 'Index required but not found for "w" of one of the following types: [integer]'
        assert lacking in refused(lambda: client.scroll("c", on("w", 0), limit=1))
        assert lacking in refused(lambda: client.delete("c", on("w", 0)))
        too_many = [made(n, 9) for n in range(BATCH + 1)]
        assert f"Limit exceeded {BATCH + 1} > {BATCH}" in refused(lambda: client.upsert("c", too_many))
        # Many small writes, which replay would send as one, and one of the largest that are allowed.
        for number in range(60):
            client.upsert("c", [made(number, 1)], wait=True)
        client.upsert("c", [made(n, 2) for n in range(200, 200 + BATCH)], wait=True)
        client.delete("c", on("n", 5), wait=True)
        expected = everything(client)
        assert len(expected) == POINTS + BATCH - 1
        standin.restart()
        understudy.wait_drained()
        assert understudy.status()["quarantine"] in (0, [], None)
        client.close()
        assert everything(direct) == expected
    direct.close()
