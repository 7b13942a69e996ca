"""Vectors in memory: any of a table's rows are found in them, through any changes; the scan on several threads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.understudy.replica.v1 import replica_pb2 as control
from server.clock import SystemClock
from server.config import Replica
from server.replica import columns as columns_module
from server.replica import resident as resident_module
from server.replica import scan
from server.replica.chunks import Block, Sparse
from server.replica.columns import VECTOR_NAMES, Mask, Table
from server.replica.filters import Combined
from server.replica.following import Following
from server.replica.memory import default_resident_bytes
from server.replica.records import Collection, Key, Record
from server.replica.resident import Resident, View
from server.replica.search import Searcher
from server.replica.spaces import spaces_of
from server.replica.store import Store
from server.replica.tables import Tables

SIZE = 3


def config() -> bytes:
    made = collections.CollectionConfig()
    for name in ("often", "seldom"):
        made.params.vectors_config.params_map.map[name].size = SIZE
        made.params.vectors_config.params_map.map[name].distance = collections.Dot
    made.params.sparse_vectors_config.map["sparse"].SetInParent()
    return made.SerializeToString()


def point(chance: random.Random, number: int) -> Record:
    """A point whose vectors hold its number, as many as it has."""
    vectors = points.NamedVectors()
    for name, share in (("often", 0.9), ("seldom", 0.3)):
        if chance.random() < share:
            vectors.vectors[name].dense.data.extend([number] * SIZE)
    if chance.random() < 0.5:
        vectors.vectors["sparse"].sparse.indices.append(7)
        vectors.vectors["sparse"].sparse.values.append(number)
    return Record(b"\0" + number.to_bytes(8, "big"), b"", vectors.SerializeToString(deterministic=True))


def held(blocks: list[tuple[Block, Mask | None]]) -> dict[Key, float]:
    """Each point that counts, with the number in its vector."""
    found: dict[Key, float] = {}
    for block, gone in blocks:
        for row, key in enumerate(block.keys):
            if gone is None or not gone[row]:
                assert key not in found
                vector = block.vector(row)
                found[key] = float(vector.values[0] if isinstance(vector, Sparse) else vector[0])
    return found


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_a_table_are_found_among_the_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The two are compacted at different times, so their rows stand at different places."""
    monkeypatch.setattr("server.replica.tables._LEAST_POINTS", 0)
    monkeypatch.setattr(columns_module, "_MERGE_LEAST", 23)
    monkeypatch.setattr(resident_module, "_MERGE_LEAST", 14)
    chance = random.Random(seed)
    store = Store(tmp_path / "store", SystemClock())
    with store.transaction() as tx:
        collection = tx.save_collection(Collection("c", config()))
        tx.put(collection.cid, [point(chance, number) for number in range(1, 200)])
    following = Following(store, 1 << 30)
    resident, tables = Resident(following), Tables(following)
    moved: set[bool] = set()
    for _ in range(40):
        with store.transaction() as tx:
            numbers = chance.sample(range(1, 240), 6)
            tx.put(collection.cid, [point(chance, number) for number in numbers[:4]])
            tx.remove(collection.cid, [b"\0" + number.to_bytes(8, "big") for number in numbers[4:]])
        with store.snapshot():
            now = store.collection("c")
            assert now is not None
            table = tables.table(now, Combined(), VECTOR_NAMES)
            assert table is not None
            for space in spaces_of(now.config).values():
                view = resident.view(now, space)
                assert view is not None
                moved.add(len(view.base.keys) == len(table.keys))
                for share in (0.05, 0.6):
                    check_among(view, table, chance, share)
    assert False in moved
    store.close()


@pytest.mark.parametrize("rooms", [0, 2, 5])
def test_warming_lets_nothing_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rooms: int) -> None:
    """Of collections that together need more than may be kept some are kept; the others are not loaded in turns."""
    chance, count = random.Random(4), 300
    store = Store(tmp_path / "store", SystemClock())
    for name in "abcd":
        with store.transaction() as tx:
            cid = tx.save_collection(Collection(name, config(), completeness=control.COMPLETENESS_COMPLETE)).cid
            tx.put(cid, [point(chance, number) for number in range(count)])
    searcher = Searcher(store, Replica(resident_bytes=rooms * count * (4 * SIZE + 240)))
    read = [0]
    scan_store = store.scan

    def counted(*arguments: Any, **more: Any) -> list[Record]:
        found = scan_store(*arguments, **more)
        read[0] += len(found)
        return found

    monkeypatch.setattr(store, "scan", counted)
    searcher.warm()
    assert read[0] >= rooms * count * (rooms > 0)
    read[0] = 0
    searcher.warm()
    assert read[0] == 0
    store.close()


def check_among(view: View, table: Table, chance: random.Random, share: float) -> None:
    """`among` with a random mask gives the points of the mask that have the vector, with their vectors."""
    live = np.concatenate((~table.gone, np.ones(len(table.recent), dtype=np.bool_)))
    mask = live & np.fromiter((chance.random() < share for _ in live), dtype=np.bool_, count=len(live))
    wanted = set(table.keys_of(mask))
    everything = held(view.blocks())
    expected = {key: number for key, number in everything.items() if key in wanted}
    assert held(view.among(table, mask)) == expected == held(view.pick(wanted))
    assert all(number == int.from_bytes(key[1:], "big") for key, number in expected.items())


@pytest.mark.parametrize("rows", [0, 1, 7, 50_000])
def test_a_scan_gives_the_same_numbers_on_any_number_of_threads(rows: int) -> None:
    chance = np.random.default_rng(rows)
    vectors = chance.standard_normal((rows, 96), dtype=np.float32)
    query = chance.standard_normal(96, dtype=np.float32)
    np.testing.assert_allclose(scan.products(vectors, query), vectors @ query, rtol=1e-5, atol=1e-5)


def test_parts_of_a_scan_are_everything_once() -> None:
    parts: list[tuple[int, int]] = []
    scan.in_parts(100_000, 1024, lambda part, _: parts.append((part.start, part.stop)))
    assert sorted(parts)[0][0] == 0 and sorted(parts)[-1][1] == 100_000
    assert all(end == begin for (_, end), (begin, _) in zip(sorted(parts), sorted(parts)[1:], strict=False))


@pytest.mark.parametrize("failing", ["first", "last"])
def test_a_part_that_fails_fails_the_scan(failing: str) -> None:
    def compute(part: slice, result: scan.Floats) -> None:
        if (part.start == 0) == (failing == "first"):
            raise MemoryError(failing)

    with pytest.raises(MemoryError):
        scan.in_parts(100_000, 1024, compute)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("4000000\n", 1_000_000), ("max\n", None), (None, None), (f"{1 << 62}\n", None)],
)
def test_a_quarter_of_the_memory_of_machine_or_container(
    tmp_path: Path, said: str | None, expected: int | None
) -> None:
    machine = default_resident_bytes(())
    assert 4 * machine > 256 * 1024 * 1024
    limit = tmp_path / "memory.max"
    if said is not None:
        limit.write_text(said)
    assert default_resident_bytes((limit,)) == (machine if expected is None else expected)
