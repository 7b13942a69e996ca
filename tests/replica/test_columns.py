"""Columns: filters by codes give what a walk over the points gives, through any changes."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import models as m

from generated.qdrant import json_with_int_pb2 as json_pb2
from server.clock import SystemClock
from server.replica import columns as columns_module
from server.replica import tables as tables_module
from server.replica.columns import Dictionary, pack, unpack
from server.replica.filters import Matcher, compile_filter
from server.replica.following import Following, SnapshotPassed
from server.replica.records import Collection, Key, Record
from server.replica.store import Store
from server.replica.tables import Tables
from tests.replica import workload
from tests.replica.filtering import fields_of, filter_of, record_of

ROOM = 1 << 30


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(tables_module, "_LEAST_POINTS", 0)
    monkeypatch.setattr(columns_module, "_MERGE_LEAST", 12)
    made = Store(tmp_path / "store", SystemClock())
    with made.transaction() as tx:
        tx.save_collection(Collection("c", b""))
    yield made
    made.close()


def here(store: Store) -> Collection:
    found = store.collection("c")
    assert found is not None
    return found


def point(chance: random.Random, number: int) -> Record:
    names = {name: [1.0] for name in ("x", "y") if chance.random() < 0.7}
    identity = number if number % 5 else f"00000000-0000-4000-8000-{number:012d}"
    return record_of(m.PointStruct(id=identity, vector=names, payload=workload.payload(chance)))


def walked(store: Store, matcher: Matcher) -> list[Key]:
    collection = here(store)
    return [record.key for record in matcher.select(store.scan(collection.cid, limit=10_000))]


def random_matcher(chance: random.Random) -> Matcher:
    query = workload.filter_(chance)
    if chance.random() < 0.3:
        query.must = [*(query.must or []), m.HasVectorCondition(has_vector=chance.choice("xyz"))]
    return compile_filter(filter_of(query), fields_of("1.18.3", a="keyword", n="integer"))


@pytest.mark.parametrize("seed", range(4))
def test_columns_say_what_a_walk_says(seed: int, store: Store) -> None:
    chance = random.Random(seed)
    tables = Tables(Following(store, ROOM))
    cid = here(store).cid
    with store.transaction() as tx:
        tx.put(cid, [point(chance, number) for number in range(100)])
    exact = 0
    for _ in range(60):
        if chance.random() < 0.5:
            with store.transaction() as tx:
                tx.put(cid, [point(chance, number) for number in chance.sample(range(130), 3)])
                tx.remove(cid, chance.sample(list(tx.keys(cid)), 2))
        matcher = random_matcher(chance)
        expected = walked(store, matcher)
        table = tables.table(here(store), matcher.node)
        if table is None:
            continue
        surely, maybe = table.bounds(matcher.node)
        passing = list(table.keys_of(maybe))
        assert set(table.keys_of(surely)) <= set(expected) <= set(passing)
        if not (surely ^ maybe).any():
            exact += 1
            assert passing == expected
            start = chance.choice(expected or [b"\x00"])
            assert list(table.keys_of(maybe, start)) == [key for key in expected if key >= start]
    assert exact > 20


def test_a_missing_column_leaves_points_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    cid = here(store).cid
    with store.transaction() as tx:
        tx.put(
            cid,
            [
                record_of(m.PointStruct(id=n, vector={"x": [1.0]}, payload={"k": n % 3, "t": f"{n} " * 300}))
                for n in range(60)
            ],
        )
    tables = Tables(Following(store, ROOM))
    words = m.FieldCondition(key="t", match=m.MatchText(text="5 5"))
    kind = m.FieldCondition(key="k", match=m.MatchValue(value=chance.randint(0, 2)))
    for query in (
        m.Filter(must=[kind, words]),
        m.Filter(must=[kind], must_not=[words]),
        m.Filter(should=[kind, words]),
    ):
        matcher = compile_filter(filter_of(query), fields_of())
        table = tables.table(here(store), matcher.node)
        assert table is not None
        surely, maybe = table.bounds(matcher.node)
        expected = set(walked(store, matcher))
        assert set(table.keys_of(surely)) <= expected <= set(table.keys_of(maybe))
    assert tables.table(here(store), compile_filter(filter_of(m.Filter(must=[words])), fields_of()).node) is None


def test_a_table_is_that_of_the_snapshot(store: Store) -> None:
    chance = random.Random(2)
    cid = here(store).cid
    matcher = compile_filter(
        filter_of(m.Filter(must=[m.IsEmptyCondition(is_empty=m.PayloadField(key="a"))])), fields_of()
    )
    following = Following(store, ROOM)
    tables = Tables(following)
    with store.transaction() as tx:
        tx.put(cid, [point(chance, number) for number in range(50)])
    before = here(store)
    table = tables.table(before, matcher.node)
    assert table is not None
    kept = list(table.keys_of(table.bounds(matcher.node)[1]))
    with store.transaction() as tx:
        tx.remove(cid, [record.key for record in store.scan(cid)])
    assert list(table.keys_of(table.bounds(matcher.node)[1])) == kept
    after = tables.table(here(store), matcher.node)
    assert after is not None and not list(after.keys_of(after.bounds(matcher.node)[1]))
    with pytest.raises(SnapshotPassed):
        tables.table(before, matcher.node)
    assert following.byte_size > 0
    with store.transaction() as tx:
        tx.drop_collection(cid)
    assert following.byte_size == 0


def test_what_is_used_least_goes_first(store: Store) -> None:
    chance = random.Random(3)
    node = compile_filter(
        filter_of(m.Filter(must=[m.IsEmptyCondition(is_empty=m.PayloadField(key="a"))])), fields_of()
    ).node
    with store.transaction() as tx:
        other = tx.save_collection(Collection("d", b"")).cid
        for cid in (here(store).cid, other):
            tx.put(cid, [point(chance, number) for number in range(200)])
    following = Following(store, 40_000)
    tables = Tables(following)
    assert tables.table(here(store), node) is not None
    alone = following.byte_size
    found = store.collection("d")
    assert found is not None and tables.table(found, node) is not None
    assert following.byte_size < 1.5 * alone
    assert Tables(Following(store, 1000)).table(here(store), node) is None


def texts(numbers: range, *, size: int) -> list[Record]:
    """Points with a text of that many bytes, each another one, and a short field."""
    return [
        record_of(m.PointStruct(id=number, vector={}, payload={"a": f"{number:0{size}}", "n": 1})) for number in numbers
    ]


def has(*names: str) -> Matcher:
    """That none of these fields is empty."""
    empty = [m.IsEmptyCondition(is_empty=m.PayloadField(key=name)) for name in names]
    return compile_filter(filter_of(m.Filter(must_not=empty)), fields_of())


def test_a_column_that_turns_out_too_large_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cid, room = here(store).cid, 400_000
    with store.transaction() as tx:
        tx.put(cid, [record_of(m.PointStruct(id=number, vector={}, payload={"n": 1})) for number in range(300)])
        tx.put(cid, texts(range(300, 800), size=1000))
    following = Following(store, room)
    tables = Tables(following)
    matcher = has("a", "n")
    table = tables.table(here(store), matcher.node)
    assert table is not None and [str(source) for source in table.columns] == [str(one) for one in has_path("n")]
    assert following.byte_size < room
    surely, maybe = table.bounds(matcher.node)
    # What the column that is there leaves open is looked at point by point.
    assert not surely.any() and maybe.all()
    read: list[int] = []
    scan = store.scan
    monkeypatch.setattr(store, "scan", lambda *given, **more: (read.append(1), scan(*given, **more))[1])
    assert tables.table(here(store), matcher.node) is table and not read
    assert tables.table(here(store), has("a").node) is None and not read


def has_path(name: str) -> list[columns_module.Source]:
    """The column of one field."""
    return columns_module.sources_of(has(name).node)


def test_a_dictionary_that_has_grown_is_made_anew(store: Store) -> None:
    """What points held once is forgotten, and what they hold now is found."""
    cid, room = here(store).cid, 400_000
    following = Following(store, room)
    tables = Tables(following)
    matcher = has("a")
    with store.transaction() as tx:
        tx.put(cid, texts(range(200), size=250))
    largest = 0
    for turn in range(1, 21):
        with store.transaction() as tx:
            tx.put(cid, texts(range(200 + turn), size=250 + turn))
        table = tables.table(here(store), matcher.node)
        assert table is not None
        assert list(table.keys_of(table.bounds(matcher.node)[0])) == walked(store, matcher)
        [column] = table.columns.values()
        largest = max(largest, column.dictionary.content_bytes)
    assert room * tables_module._COLUMN_SHARE < largest <= room * tables_module._GROWN_SHARE


def test_contents_are_numbered_once() -> None:
    values = [json_pb2.Value(string_value="x"), json_pb2.Value(list_value=json_pb2.ListValue())]
    assert unpack(pack(values)) == values and unpack(pack([])) == []
    dictionary = Dictionary()
    listed = json_pb2.Value(list_value=json_pb2.ListValue(values=[values[0], values[0]]))
    codes = [dictionary.code(pack(one)) for one in ([values[0]], [listed], [], [values[0]])]
    assert codes == [0, 1, 2, 0]
    assert dictionary.holding([values[0].SerializeToString()]) == [0, 1]
    assert dictionary.code(pack([values[0], values[0]])) == 3
    assert dictionary.holding([values[0].SerializeToString()]) == [0, 1, 3]


def test_a_first_load_of_an_old_snapshot_is_not_taken_for_new(store: Store) -> None:
    chance = random.Random(4)
    cid = here(store).cid
    matcher = compile_filter(
        filter_of(m.Filter(must=[m.IsEmptyCondition(is_empty=m.PayloadField(key="a"))])), fields_of()
    )
    tables = Tables(Following(store, ROOM))
    with store.transaction() as tx:
        tx.put(cid, [point(chance, number) for number in range(50)])

    def write() -> None:
        with store.transaction() as tx:
            tx.remove(cid, list(tx.keys(cid))[:40])

    with store.snapshot():
        before = here(store)
        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
        old = tables.table(before, matcher.node)
        assert old is not None and list(old.keys_of(old.bounds(matcher.node)[1])) == walked(store, matcher)
    new = tables.table(here(store), matcher.node)
    assert new is not None and list(new.keys_of(new.bounds(matcher.node)[1])) == walked(store, matcher)
