"""An upstream that demands a key: offline Understudy demands it too, also after a restart during the outage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from qdrant_client import QdrantClient, models

from tests.system.understudy import Understudy
from tests.upstream.process import Standin

KEY = "a-key-of-some-length-4711"
READER = "a-key-that-may-only-read-4712"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Standin]:
    """An upstream with keys."""
    with Standin(tmp_path / "upstream", api_key=KEY, read_only_api_key=READER) as upstream:
        yield upstream


@pytest.fixture
def proxy(guarded: Standin, tmp_path: Path) -> Iterator[Understudy]:
    """A proxy that was told no key."""
    with Understudy(tmp_path / "understudy", guarded.address) as understudy:
        yield understudy


def outcome(understudy: Understudy, key: str | None, *, write: bool = False) -> str:
    """What a call with a key, or none, meets: OK or the name of a status."""
    client = understudy.client(api_key=key)
    try:
        if write:
            client.upsert("k", [models.PointStruct(id=2, vector=[1.0, 2.0])])
        else:
            client.retrieve("k", [1])
    except grpc.RpcError as error:
        return str(error.code().name)
    finally:
        client.close()
    return "OK"


def fill(client: QdrantClient) -> None:
    """A collection with a point."""
    client.create_collection("k", models.VectorParams(size=2, distance=models.Distance.DOT))
    client.upsert("k", [models.PointStruct(id=1, vector=[1.0, 2.0])])


def check(understudy: Understudy) -> None:
    """Who is let in, offline."""
    assert outcome(understudy, None) == "UNAUTHENTICATED"
    assert outcome(understudy, "wrong") == "UNAUTHENTICATED"
    assert outcome(understudy, None, write=True) == "UNAUTHENTICATED"
    assert outcome(understudy, KEY) == "OK"
    assert outcome(understudy, KEY, write=True) == "OK"
    assert outcome(understudy, READER) == "OK"
    assert outcome(understudy, READER, write=True) in ("PERMISSION_DENIED", "UNAUTHENTICATED")


def test_keys_offline_and_after_a_restart_of_the_proxy(guarded: Standin, proxy: Understudy) -> None:
    client = proxy.client(api_key=KEY)
    fill(client)
    assert outcome(proxy, None) == "UNAUTHENTICATED"
    assert outcome(proxy, READER) == "OK"
    assert outcome(proxy, READER, write=True) == "PERMISSION_DENIED"
    guarded.kill()
    check(proxy)
    proxy.kill()
    proxy.start()
    check(proxy)
    guarded.start()
    # The key is not on disk, so the replay goes on once a client has shown it again.
    assert outcome(proxy, KEY) == "OK"
    proxy.wait_drained()
    with_upstream = guarded.client()
    assert {record.id for record in with_upstream.scroll("k")[0]} == {1, 2}
    with_upstream.close()
    client.close()


def test_no_key_is_written_down(guarded: Standin, proxy: Understudy) -> None:
    client = proxy.client(api_key=KEY)
    fill(client)
    assert outcome(proxy, READER) == "OK"
    assert outcome(proxy, READER, write=True) == "PERMISSION_DENIED"
    guarded.kill()
    check(proxy)
    client.close()
    proxy.terminate()
    for path in [*proxy.data.rglob("*"), proxy.log_path]:
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert READER.encode() not in content, path


def test_a_key_that_was_never_accepted_opens_nothing(guarded: Standin, proxy: Understudy) -> None:
    """Nobody has shown a good key before the outage: fail closed, for good keys too."""
    fill(direct := guarded.client())
    direct.close()
    guarded.kill()
    proxy.wait_state("local")
    for key in (None, "wrong", KEY):
        assert outcome(proxy, key) == "UNAUTHENTICATED"


def test_a_configured_key_is_used_for_the_replay(guarded: Standin, tmp_path: Path) -> None:
    with Understudy(tmp_path / "configured", guarded.address, UNDERSTUDY_VECTORSTORE_API_KEY=KEY) as understudy:
        client = understudy.client(api_key=KEY)
        fill(client)
        guarded.kill()
        client.upsert("k", [models.PointStruct(id=3, vector=[1.0, 2.0])])
        understudy.kill()
        understudy.start()
        guarded.start()
        understudy.wait_drained()
        with_upstream = guarded.client()
        assert {record.id for record in with_upstream.scroll("k")[0]} == {1, 3}
        with_upstream.close()
        client.close()
