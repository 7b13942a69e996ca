"""The vector index: answers equal the exact ones whatever happens to it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server import config
from server.clock import SystemClock
from server.replica import catalogue, frames
from server.replica import requests as r
from server.replica.index_files import IndexFiles
from server.replica.index_part import Part, State
from server.replica.indexing import Index
from server.replica.pace import Pace
from server.replica.packing import pack_keys, unpack_keys
from server.replica.points import key_of
from server.replica.search import Searcher
from server.replica.spaces import spaces_of
from server.replica.store import Collection, Record, Store
from server.replica.vector_forms import Field, stored_values
from tests.processes import send

SIZE = 16
# Chroma writes the vectors of a small collection to disk when it has so many more.
FLUSHED = 1000
PATIENCE_SECONDS = 60.0
# No room in memory, so that the index is asked although an exact search would be faster.
EVERYTHING = config.Replica(exact_below_bytes=0, index_batch_points=100, resident_bytes=0)
EXACT = config.Replica(index=False)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fails with `what` when it does not come."""
    clock = SystemClock()
    deadline = clock.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while not condition():
        assert clock.monotonic() < deadline, what
        pause.wait(0.01)


class Bench:
    """A store with one collection, searched through the index and exactly."""

    def __init__(
        self,
        directory: Path,
        distance: int = collections.Distance.Cosine,
        settings: config.Replica = EVERYTHING,
    ) -> None:
        self.directory = directory
        self.numbers = np.random.default_rng(7)
        self.field = Field("", SIZE, is_cosine=distance == collections.Distance.Cosine)
        self.store = Store(directory, SystemClock())
        with self.store.transaction() as tx:
            tx.set_meta(catalogue.KNOWN, "1")
            params = collections.VectorParams(size=SIZE, distance=distance)  # type: ignore[arg-type]
            shape = collections.CollectionParams(vectors_config=collections.VectorsConfig(params=params))
            if self.store.collection("c") is None:
                config_body = collections.CollectionConfig(params=shape).SerializeToString()
                tx.save_collection(Collection("c", config_body, completeness=control.COMPLETENESS_COMPLETE))
        self.cid = self.store.collection("c").cid  # type: ignore[union-attr]
        self.index = Index(self.store, directory / "index", settings)
        self.through = Searcher(self.store, settings, self.index)
        self.exact = Searcher(self.store, EXACT)
        self.index.start()

    def close(self) -> None:
        self.index.close()
        self.store.close()

    def put(self, *ids: int, scale: float = 1.0) -> None:
        records = []
        for number in ids:
            values = stored_values(self.numbers.normal(size=SIZE) * scale, self.field)
            vector = pb.Vector(dense=pb.DenseVector(data=values))
            payload = pb.PointStruct()
            payload.payload["even"].bool_value = number % 2 == 0
            payload.payload["rare"].bool_value = number % 200 == 0
            key = key_of(common.PointId(num=number))
            stored = pb.NamedVectors(vectors={"": vector}).SerializeToString(deterministic=True)
            records.append(Record(key, payload.SerializeToString(), stored))
        with self.store.transaction() as tx:
            tx.put(self.cid, records)

    def remove(self, *ids: int) -> None:
        with self.store.transaction() as tx:
            tx.remove(self.cid, [key_of(common.PointId(num=number)) for number in ids])

    def ready(self) -> None:
        until(lambda: self.index.state(self.cid) == "ready" and self.index.lag(self.cid) == 0, "the index gets ready")

    def is_copied(self, completeness: control.Completeness) -> None:
        """How much of Qdrant's collection is here."""
        with self.store.transaction() as tx:
            tx.set_completeness(self.cid, completeness, as_of_seq=0, expected_points=0)

    def given_up(self) -> None:
        """Wait until the index was begun and found to be of no use; before it begins, it is off too."""
        until(
            lambda: [part.state for part in self.index._parts.values()] == [State.OFF], "it sees that it cannot serve"
        )

    def same(self, count: int = 20, field: str | None = None) -> None:
        """Queries give the same through the index and exactly."""
        for _ in range(count):
            request = pb.QueryPoints(collection_name="c", limit=10)
            request.query.nearest.dense.data.extend(self.numbers.normal(size=SIZE))
            if field is not None:
                match = common.Match(boolean=True)
                request.filter.must.add().field.CopyFrom(common.FieldCondition(key=field, match=match))
            answers = [
                pb.QueryResponse.FromString(searcher.answer(r.POINTS + "Query", request.SerializeToString())).result
                for searcher in (self.through, self.exact)
            ]
            ids = [[point.id.num for point in answer] for answer in answers]
            assert ids[0] == ids[1]
            scores = [[point.score for point in answer] for answer in answers]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)

    def proposes(self) -> bool:
        """Whether the index answers for now."""
        collection = self.store.collection("c")
        assert collection is not None
        from server.replica.spaces import space_of

        vector = self.numbers.normal(size=SIZE).astype(np.float32)
        return self.index.propose(collection, space_of(collection.config, ""), vector, 10) is not None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "store")
    yield made
    made.close()


def test_a_collection_that_is_copied_for_the_first_time_gets_its_index_afterwards(bench: Bench) -> None:
    bench.is_copied(control.COMPLETENESS_HYDRATING)
    bench.put(*range(300))
    threading.Event().wait(2.5)  # two rounds of the index
    assert bench.index.pid is None
    assert bench.index.state(bench.cid) == "off"
    bench.same()
    bench.is_copied(control.COMPLETENESS_COMPLETE)
    bench.ready()
    assert bench.proposes()
    bench.is_copied(control.COMPLETENESS_STALE)
    bench.put(*range(300, 310))
    bench.ready()
    bench.same()


@pytest.mark.parametrize("distance", [collections.Distance.Cosine, collections.Distance.Euclid])
def test_answers_are_the_exact_ones(distance: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", distance)
    bench.put(*range(800))
    bench.same(5)
    bench.ready()
    assert bench.proposes()
    bench.same()
    bench.same(field="even")
    bench.same(5, field="rare")
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "store" / "index").rglob("*")}
    assert modes <= {(True, 0o700), (False, 0o600)}
    bench.close()


def test_changes_count_at_once(bench: Bench) -> None:
    bench.put(*range(400))
    bench.ready()
    chance = random.Random(3)
    for turn in range(12):
        bench.put(*chance.sample(range(450), 5))
        bench.remove(*chance.sample(range(450), 3))
        bench.same(2, field="even" if turn % 2 else None)
    bench.ready()
    bench.same()


def test_writes_while_it_is_built(bench: Bench) -> None:
    bench.put(*range(1000))
    for start in range(0, 1000, 50):
        bench.put(*range(start, start + 10))
        bench.remove(start + 11)
        bench.same(1)
    bench.ready()
    assert bench.proposes()
    bench.same()


def test_products_of_vectors_of_many_lengths_stay_exact(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", collections.Distance.Dot)
    bench.put(*range(300))
    bench.given_up()
    bench.same()
    assert not bench.proposes()
    bench.close()


def test_killed_it_comes_back(bench: Bench) -> None:
    bench.put(*range(600))
    bench.ready()
    first = bench.index.pid
    assert first is not None
    send(first, signal.SIGKILL)
    bench.same()
    until(lambda: bench.index.pid not in (None, first), "another process")
    bench.ready()
    assert bench.proposes()
    bench.same()


def test_killed_while_it_writes(bench: Bench) -> None:
    bench.put(*range(2000))
    until(lambda: bench.index.pid is not None, "a process")
    until(lambda: 0 < bench.index.lag(bench.cid) < 2000, "some are written")
    pid = bench.index.pid
    if pid is not None:
        send(pid, signal.SIGKILL)
    bench.same(3)
    bench.ready()
    bench.same()


def spoil(path: Path, how: str) -> None:
    """Damage one file."""
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[len(content) // 3] ^= 0x10
        path.write_bytes(content)
    elif how == "grown":
        path.write_bytes(content + b"\0" * 4096)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "grown", "gone"])
def test_damage_is_seen(how: str, tmp_path: Path) -> None:
    files = IndexFiles(tmp_path / "index")
    files.wipe()
    (files.data / "sub").mkdir()
    (files.data / "sub" / "data.bin").write_bytes(os.urandom(10_000))
    parts = [{"cid": 1}]
    files.seal(parts)
    assert files.unseal() == parts and files.unseal() is None
    files.seal(parts)
    spoil(files.data / "sub" / "data.bin", how)
    assert files.unseal() is None


@pytest.mark.parametrize("how", ["flipped", pytest.param("truncated", marks=pytest.mark.soak)])
def test_damaged_files_are_wiped(how: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store")
    bench.put(*range(400))
    bench.ready()
    bench.close()
    files = sorted(path for path in (tmp_path / "store" / "index" / "chroma").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    spoil(largest, how)
    bench = Bench(tmp_path / "store")
    bench.same(3)
    bench.ready()
    assert bench.proposes()
    bench.same()
    bench.close()


def test_a_clean_end_is_taken_over_unless_points_changed(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store")
    bench.put(*range(500))
    bench.ready()
    bench.close()
    assert (tmp_path / "store" / "index" / "manifest.json").exists()
    names = {path.name for path in (tmp_path / "store" / "index" / "chroma").iterdir()}
    bench = Bench(tmp_path / "store")
    bench.ready()
    assert names <= {path.name for path in (tmp_path / "store" / "index" / "chroma").iterdir()}
    assert not (tmp_path / "store" / "index" / "manifest.json").exists()
    bench.same()
    bench.close()
    store = Store(tmp_path / "store", SystemClock())
    with store.transaction() as tx:
        tx.remove(1, [key_of(common.PointId(num=number)) for number in range(50)])
    store.close()
    bench = Bench(tmp_path / "store")
    bench.ready()
    bench.same()
    bench.close()


def test_a_hung_process_is_not_waited_for(bench: Bench) -> None:
    bench.put(*range(300))
    bench.ready()
    pid = bench.index.pid
    assert pid is not None
    send(pid, signal.SIGSTOP)
    bench.same(2)
    until(lambda: bench.index.pid not in (None, pid), "another process")
    bench.ready()
    bench.same(3)


def test_stopped_while_it_takes_in_a_few_changes_it_is_soon_replaced(bench: Bench) -> None:
    bench.put(*range(300))
    bench.ready()
    pid = bench.index.pid
    assert pid is not None
    send(pid, signal.SIGSTOP)
    bench.put(1, 2, 3)
    clock = SystemClock()
    began = clock.monotonic()
    until(lambda: bench.index.pid not in (None, pid), "another process")
    assert clock.monotonic() - began < PATIENCE_SECONDS / 2
    bench.ready()
    bench.same(3)


def test_a_removed_directory_is_noticed_and_does_not_hinder_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store")
    bench.put(*range(300))
    bench.ready()
    pid = bench.index.pid
    shutil.rmtree(tmp_path / "store" / "index" / "chroma")
    until(lambda: bench.index.pid not in (None, pid), "another process")
    bench.ready()
    assert bench.proposes()
    bench.same(3)
    shutil.rmtree(tmp_path / "store" / "index")
    bench.close()
    assert not (tmp_path / "store" / "index" / "manifest.json").exists()


def test_changes_are_not_noted_for_an_index_that_is_off(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", collections.Distance.Dot)
    bench.put(*range(300))
    bench.given_up()
    bench.put(*range(100))
    assert bench.index._parts[bench.cid, ""].pending == {}  # reached into: memory does not show otherwise
    bench.close()


def test_a_dropped_collection_leaves_the_index(bench: Bench) -> None:
    bench.put(*range(200))
    bench.ready()
    with bench.store.transaction() as tx:
        tx.drop_collection(bench.cid)
    until(lambda: bench.index.state(bench.cid) == "off", "the index forgets it")


def test_no_file_grows_past_its_limit(tmp_path: Path) -> None:
    from server.replica.index_process import IndexLost, IndexProcess

    files = IndexFiles(tmp_path / "index")
    files.wipe()
    process = IndexProcess(files.data, 64 * 1024, SystemClock().monotonic)
    with pytest.raises(IndexLost):
        process.ask({"do": "open"}, timeout_seconds=PATIENCE_SECONDS)
        process.ask({"do": "create", "name": "abc", "space": "l2"}, timeout_seconds=PATIENCE_SECONDS)
        for at in range(100):
            keys = [key_of(common.PointId(num=at * 100 + number)) for number in range(100)]
            body = pack_keys(keys) + np.zeros((100, SIZE), dtype="<f4").tobytes()
            head = {"do": "put", "name": "abc", "count": 100, "size": SIZE, "replace": False}
            process.ask(head, body, timeout_seconds=PATIENCE_SECONDS)
    assert not process.is_alive
    assert all(path.stat().st_size <= 64 * 1024 for path in files.data.rglob("*") if path.is_file())


@pytest.mark.parametrize("distance", [collections.Distance.Cosine, collections.Distance.Euclid])
def test_an_index_that_holds_something_else_than_the_store_is_not_believed(distance: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", distance)
    bench.put(*range(300))
    bench.ready()
    pid = bench.index.pid
    bench.same()
    assert bench.index.pid == pid
    name = bench.index._parts[bench.cid, ""].name  # reached into: no damage on disk does just this for sure
    keys = [key_of(common.PointId(num=number)) for number in range(300)]
    others = bench.numbers.normal(size=(300, SIZE)).astype("<f4")
    head = {"do": "put", "name": name, "count": 300, "size": SIZE, "replace": True}
    bench.index._exchange(head, pack_keys(keys) + others.tobytes())
    bench.same(3)
    until(lambda: bench.index.pid not in (None, pid), "another process")
    bench.ready()
    assert bench.proposes()
    bench.same()
    bench.close()


@pytest.mark.parametrize(
    "how",
    ["flipped", pytest.param("truncated", marks=pytest.mark.soak), pytest.param("gone", marks=pytest.mark.soak)],
)
def test_damage_done_before_a_clean_end_is_found_after_it(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sums taken at the end are those of the damaged files: only the store knows better."""
    bench = Bench(tmp_path / "store")
    bench.put(*range(FLUSHED + 200))
    bench.ready()
    [vectors] = (tmp_path / "store" / "index" / "chroma").rglob("data_level0.bin")
    # Once it has written them, Chroma does not look at its files again before it is started anew.
    content = bytearray(vectors.read_bytes())
    if how == "flipped":
        # The lowest bit of one number of one vector; behind it lies the label of the point.
        row = len(content) // FLUSHED
        content[41 * row - 12] ^= 0x01
        vectors.write_bytes(content)
    elif how == "truncated":
        vectors.write_bytes(content[: len(content) // 2])
    else:
        shutil.rmtree(vectors.parent)
    bench.close()
    bench = Bench(tmp_path / "store")
    bench.same(3)
    bench.ready()
    bench.same()
    assert bench.proposes()
    bench.close()
    assert "holds other vectors than the store" in caplog.text or "there is no vector index" in caplog.text


def test_keys_keep_their_form_on_the_way() -> None:
    keys = [
        key_of(common.PointId(num=2**64 - 256)),
        key_of(common.PointId(uuid="00000000-0000-0000-0000-000000000000")),
    ]
    assert unpack_keys(pack_keys(keys)) == keys


def test_the_faster_way_is_taken_and_the_other_tried_now_and_then() -> None:
    pace = Pace()
    assert not pace.prefers_index("s")
    pace.exact_took("s", 0.001)
    assert not pace.prefers_index("s")
    for _ in range(50):
        pace.exact_took("s", 0.1)
    assert pace.prefers_index("s")
    pace.index_took("s", 0.05)
    ways = [pace.prefers_index("s") for _ in range(400)]
    assert ways.count(False) == 2
    for _ in range(50):
        pace.index_took("s", 0.5)
    ways = [pace.prefers_index("s") for _ in range(400)]
    assert ways.count(True) == 2


def test_a_recall_is_measured(bench: Bench) -> None:
    assert bench.index.recall(bench.cid, "") == 0
    bench.put(*range(300))
    bench.ready()
    assert bench.index.recall(bench.cid, "") > 0.98


def test_what_the_index_has_yet_to_see_does_not_count_against_it(tmp_path: Path) -> None:
    """A small collection that is written all the time would never be found good enough."""
    bench = Bench(tmp_path / "store")
    bench.put(*range(100))
    bench.ready()
    assert bench.index.recall(bench.cid, "") == 1.0
    # Reached into: its thread would take the changes in.
    bench.index._halt.set()
    bench.index._wake.set()
    bench.index._thread.join()
    bench.put(*range(40))
    bench.remove(*range(40, 50))
    part = bench.index._parts[bench.cid, ""]
    assert len(part.pending) == 50
    assert bench.index._building._tried(part) == 1.0
    bench.close()


def test_frames() -> None:
    whole = frames.encode({"a": 1}, b"xyz")
    assert frames.read(_source(whole)) == ({"a": 1}, b"xyz")
    with pytest.raises(EOFError):
        frames.read(_source(b""))
    for cut in range(1, len(whole)):
        with pytest.raises(frames.BadFrame):
            frames.read(_source(whole[:cut]))
    with pytest.raises(frames.BadFrame):
        frames.read(_source(b"\xff" * 8))
    with pytest.raises(frames.BadFrame):
        frames.read(_source(b"\x02\0\0\0\0\0\0\0[]"))


def _source(content: bytes) -> Callable[[int], bytes]:
    left = bytearray(content)

    def receive(size: int) -> bytes:
        part = bytes(left[:size])
        del left[:size]
        return part

    return receive


def test_what_a_build_has_yet_to_read_needs_no_note() -> None:
    low, high = key_of(common.PointId(num=3)), key_of(common.PointId(num=7))
    part = Part(1, spaces_of(b"").get("", None), "name")  # type: ignore[arg-type]
    part.position = key_of(common.PointId(num=5))
    part.note(1, frozenset((low, high)))
    assert set(part.pending) == {low}
    part.is_reading = True
    part.note(2, frozenset((high,)))
    assert set(part.pending) == {low, high}
    part.state, part.is_reading = State.READY, False
    part.note(3, frozenset((low,)))
    assert part.fresh(2) == {low, high}
    part.applied(dict(part.pending))
    assert (part.pending, part.fresh(2), part.fresh(3), part.fresh(4)) == ({}, {low, high}, {low}, set())
    part.recent_floor = 3
    assert part.fresh(2) is None


def test_a_point_read_before_its_commit_is_read_again() -> None:
    key = key_of(common.PointId(num=3))
    part = Part(1, spaces_of(b"").get("", None), "name", State.READY)  # type: ignore[arg-type]
    part.note(1, frozenset((key,)))
    taken = dict(part.pending)
    part.note(1, frozenset((key,)))
    part.applied(taken)
    assert set(part.pending) == {key}
