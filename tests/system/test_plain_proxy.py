"""With the fallback switched off Understudy forwards, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from qdrant_client import QdrantClient, models

from server import Understudy
from server.config import Settings
from server.errors import ConfigError
from server.repairs import MARKER
from tests.upstream.process import Standin


def settings(directory: Path, url: str | None, *, enabled: bool) -> Settings:
    fallback = {"enabled": enabled, "local_path": directory / "store", "wal_path": directory / "wal"}
    tree: dict[str, Any] = {"listen": "127.0.0.1:0", "admin": None}
    return Settings.model_validate({**tree, "vectorstore": {"url": url, "fallback": fallback}})


@contextmanager
def connected(address: str) -> Iterator[QdrantClient]:
    host, port = address.split(":")
    client = QdrantClient(host=host, grpc_port=int(port), prefer_grpc=True, check_compatibility=False)
    try:
        yield client
    finally:
        client.close()


def point(number: int) -> models.PointStruct:
    return models.PointStruct(id=number, vector=[1.0, float(number)])


def work(address: str, standin: Standin) -> grpc.StatusCode:
    """Write and read while Qdrant is there, write when it is gone; the code of the last."""
    with connected(address) as client:
        client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        client.upsert("c", [point(1), point(2)])
        assert client.count("c").count == 2
        standin.kill()
        with pytest.raises(grpc.RpcError) as raised:
            client.upsert("c", [point(3)])
        return raised.value.code()


async def test_it_forwards_and_steps_in_for_nobody(standin: Standin, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with Understudy(settings(data, standin.address, enabled=False)) as proxy:
        assert await asyncio.to_thread(work, proxy.address, standin) is grpc.StatusCode.UNAVAILABLE
        status = await proxy.status()
        assert status["last_seq"] == 0 and status["collections"] == []
    # What passed was seen by neither log nor replica: with the fallback on again, all is to be copied.
    assert (data / "store" / MARKER).exists()


async def test_it_wants_a_qdrant_and_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no Qdrant"):
        async with Understudy(settings(tmp_path / "alone", None, enabled=False)):
            pass
    data = tmp_path / "pending"

    def write(address: str) -> None:
        with connected(address) as client:
            client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))

    async with Understudy(settings(data, None, enabled=True)) as proxy:
        await asyncio.to_thread(write, proxy.address)
    with pytest.raises(ConfigError, match="1 writes wait in the log"):
        async with Understudy(settings(data, "127.0.0.1:1", enabled=False)):
            pass
