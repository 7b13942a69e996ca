"""Bad input meets the status and the text that Qdrant gives, through Understudy online and offline alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from tests.system.understudy import Understudy
from tests.upstream.process import Standin
from tests.upstream.test_standin import Wire, make, refusals

# Not known to the API at all: online Qdrant says so, offline nobody can tell what a newer server would have done.
_ONLINE_ONLY = {"unknown method"}


@pytest.fixture(scope="module", params=["online", "offline"])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Understudy]]:
    """A proxy whose Qdrant is there, and one whose Qdrant has gone."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    with Standin(folder / "upstream") as standin, Understudy(folder / "understudy", standin.address) as understudy:
        # A call that Qdrant answers without a key: offline too nobody needs one then.
        first = understudy.client()
        first.get_collections()
        first.close()
        if request.param == "offline":
            standin.kill()
            understudy.wait_state("local")
        yield request.param, understudy
        if request.param == "offline":
            standin.start()


@pytest.fixture(scope="module")
def client(proxy: tuple[str, Understudy]) -> Iterator[QdrantClient]:
    """A client of the proxy."""
    client = proxy[1].client()
    yield client
    client.close()


@pytest.mark.parametrize("row", list(refusals("")))
def test_refuses_with_the_words_of_qdrant(proxy: tuple[str, Understudy], client: QdrantClient, row: str) -> None:
    where, understudy = proxy
    if where == "offline" and row in _ONLINE_ONLY:
        pytest.skip("offline nobody can know a method that Understudy does not know")
    name = make(client)
    method, request, code, text = refusals(name)[row]
    wire = Wire(understudy.address)
    pending = understudy.pending()
    given, details = wire.refused(method, request)
    assert (given, details[: len(text)]) == (code, text)
    assert understudy.pending() == pending
    assert client.count(name).count == 0
    wire.channel.close()
