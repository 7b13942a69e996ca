"""The vector index in a Chroma server of its own (`chroma run`): a place like any other, and as little trusted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import config
from tests.replica.chroma_run import ChromaRun
from tests.replica.test_index import EVERYTHING, SIZE, Bench, until

POINTS = 400


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChromaRun]:
    with ChromaRun(tmp_path / "server") as running:
        yield running


def settings(server: ChromaRun) -> config.Replica:
    return config.Replica.model_validate({**EVERYTHING.model_dump(), "chroma": server.url})


def bench_on(server: ChromaRun, directory: Path) -> Bench:
    return Bench(directory / "store", settings=settings(server))


def ours(server: ChromaRun) -> list[Any]:
    return [one for one in server.client().list_collections() if one.name.startswith("understudy-")]


def settled(bench: Bench, server: ChromaRun, but: str = "") -> Any:
    """Wait for an index that holds everything, in a collection of another name than `but`."""
    until(
        lambda: bench.index.state(bench.cid) == "ready" and [one.name for one in ours(server)] not in ([], [but]),
        "the index is in the server",
    )
    [collection] = ours(server)
    assert collection.count() == bench.store.count(bench.cid)
    assert bench.proposes()
    return collection


def test_the_index_lives_in_the_server_beside_those_of_others(server: ChromaRun, tmp_path: Path) -> None:
    others = ["understudy", "understudy-0123456789abcdef-c1-1-1", "theirs"]
    for name in others:
        server.client().create_collection(name, embedding_function=None).add(ids=["a"], embeddings=[[1.0, 2.0]])
    bench = bench_on(server, tmp_path)
    bench.put(*range(POINTS))
    bench.same(2)
    until(lambda: bench.index.state(bench.cid) == "ready", "the index gets ready")
    assert bench.proposes()
    bench.same()
    bench.same(5, field="even")
    for turn in range(4):
        bench.put(*range(10 * turn, 10 * turn + 5))
        bench.remove(100 + turn)
        bench.same(2)
    bench.ready()
    bench.same()
    [mine] = [one for one in server.client().list_collections() if one.name not in others]
    assert mine.count() == bench.store.count(bench.cid) == POINTS - 4
    assert list((tmp_path / "store" / "index" / "chroma").iterdir()) == []
    with bench.store.transaction() as tx:
        tx.drop_collection(bench.cid)
    until(lambda: len(server.client().list_collections()) == len(others), "what was dropped here goes there")
    for name in others:
        assert server.client().get_collection(name, embedding_function=None).count() == 1
    bench.close()


def test_a_server_that_is_away_is_waited_for(tmp_path: Path) -> None:
    server = ChromaRun(tmp_path / "server")
    bench = bench_on(server, tmp_path)
    bench.put(*range(POINTS))
    bench.same()
    assert bench.index.pid is None
    try:
        server.start()
        first = settled(bench, server).name
        server.kill()
        bench.same()
        assert not bench.proposes()
        bench.put(3, 4)
        bench.same(3)
        server.start()
        settled(bench, server, but=first)
        bench.same()
    finally:
        bench.close()
        server.stop()


def empty(collection: Any, server: ChromaRun) -> None:
    server.client().delete_collection(collection.name)


def thin_out(collection: Any, server: ChromaRun) -> None:
    collection.delete(ids=collection.get(limit=POINTS // 2)["ids"])


def stuff(collection: Any, server: ChromaRun) -> None:
    collection.add(ids=["f" * 34], embeddings=np.zeros((1, SIZE)))


@pytest.mark.parametrize("meddle", [empty, thin_out, pytest.param(stuff, marks=pytest.mark.soak)])
def test_what_others_did_to_it_is_seen_at_the_first_answer(server: ChromaRun, tmp_path: Path, meddle: Any) -> None:
    bench = bench_on(server, tmp_path)
    bench.put(*range(POINTS))
    found = settled(bench, server)
    meddle(found, server)
    bench.same()
    again = settled(bench, server, but=found.name)
    assert again.name != found.name
    bench.same(5)
    bench.close()


def test_a_frozen_server_is_not_waited_for(server: ChromaRun, tmp_path: Path) -> None:
    bench = bench_on(server, tmp_path)
    bench.put(*range(POINTS))
    settled(bench, server)
    pid = bench.index.pid
    server.signal(signal.SIGSTOP)
    bench.same(3)
    until(lambda: bench.index.pid != pid, "the process that waits is given up")
    server.signal(signal.SIGCONT)
    until(lambda: bench.index.state(bench.cid) == "ready", "the index is back")
    bench.same()
    bench.close()


@pytest.mark.parametrize(
    "changed", ["nothing", "a vector", pytest.param("the number of points", marks=pytest.mark.soak)]
)
def test_a_clean_end_is_taken_over_unless_it_was_meddled_with(server: ChromaRun, tmp_path: Path, changed: str) -> None:
    bench = bench_on(server, tmp_path)
    bench.put(*range(POINTS))
    before = settled(bench, server)
    bench.close()
    if changed == "a vector":
        before.update(ids=before.get(limit=1)["ids"], embeddings=np.ones((1, SIZE)))
    elif changed == "the number of points":
        thin_out(before, server)
    bench = bench_on(server, tmp_path)
    bench.same(3)
    until(lambda: bench.index.state(bench.cid) == "ready", "the index is ready")
    [after] = ours(server)
    assert (after.name == before.name) == (changed == "nothing")
    assert bench.proposes()
    bench.same()
    bench.close()


def test_a_server_whose_answers_are_wrong_again_and_again_is_left_alone(server: ChromaRun, tmp_path: Path) -> None:
    """Told so, since a real one computes right: one that rounds would be filled for ever."""
    bench = bench_on(server, tmp_path)
    bench.put(*range(POINTS))
    name = ""
    for _ in range(3):
        name = settled(bench, server, but=name).name
        bench.index.doubt("its distances are rounded")
        until(lambda: bench.index.state(bench.cid) != "ready", "the index is given up")
    bench.put(1, 2)
    until(lambda: bench.index.pid is None, "its process is gone")
    assert not bench.index._round()  # reached into: that nothing will come shows nowhere else
    assert bench.index.pid is None
    bench.same()
    assert not bench.proposes()
    bench.close()


def test_a_clean_end_is_taken_over_when_the_server_comes_later(server: ChromaRun, tmp_path: Path) -> None:
    bench = bench_on(server, tmp_path)
    bench.put(*range(POINTS))
    before = settled(bench, server)
    bench.close()
    server.kill()
    bench = bench_on(server, tmp_path)
    bench.same(3)
    assert not bench.proposes()
    server.start()
    assert settled(bench, server).name == before.name
    bench.same(3)
    bench.close()


def test_what_a_killed_run_left_in_the_server_is_removed(server: ChromaRun, tmp_path: Path) -> None:
    bench = bench_on(server, tmp_path)
    bench.put(*range(POINTS))
    left = settled(bench, server)
    bench.close()
    (tmp_path / "store" / "index" / "manifest.json").unlink()
    bench = bench_on(server, tmp_path)
    settled(bench, server, but=left.name)
    assert left.name not in [one.name for one in ours(server)]
    bench.close()
