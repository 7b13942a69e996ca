"""The SQLite store: transactions, snapshots, ids in order, counters, files."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.clock import SystemClock
from server.errors import DataDirUnusable
from server.replica import checkpoint, damage
from server.replica.damage import StoreDamaged
from server.replica.store import Changes, Collection, Record, Store


def number(value: int) -> bytes:
    return b"\x00" + value.to_bytes(8, "big")


def uuid(byte: int) -> bytes:
    return b"\x01" + bytes([byte]) * 16


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", SystemClock())
    yield opened
    opened.close()


def make(store: Store, name: str = "c") -> int:
    with store.transaction() as tx:
        return tx.save_collection(Collection(name, b"config")).cid


def records(*values: int) -> list[Record]:
    return [Record(number(value), b"p%d" % value, b"v%d" % value) for value in values]


def test_points_round_trip_in_id_order(store: Store) -> None:
    cid = make(store)
    mixed = [Record(uuid(1), b"u"), *records(300, 2, 1 << 63)]
    with store.transaction() as tx:
        tx.put(cid, mixed)
        assert tx.count(cid) == 4
    assert [record.key for record in store.scan(cid)] == [number(2), number(300), number(1 << 63), uuid(1)]
    assert [record.key for record in store.scan(cid, number(2), 2)] == [number(300), number(1 << 63)]
    assert [record.key for record in store.scan(cid, start=number(300), limit=1)] == [number(300)]
    assert store.fetch(cid, [number(2), number(7)]) == {number(2): Record(number(2), b"p2", b"v2")}
    assert store.fetch(cid, [number(2)], vectors=False)[number(2)] == Record(number(2), b"p2", b"")
    assert store.fetch(cid, [number(2)], payload=False)[number(2)] == Record(number(2), b"", b"v2")
    assert store.range_keys(cid, number(3), uuid(0)) == [number(300), number(1 << 63)]
    assert store.range_keys(cid, None, number(300)) == [number(2)]
    assert list(store.keys(cid, page=2)) == [number(2), number(300), number(1 << 63), uuid(1)]
    assert store.has(cid, [number(2), number(3)]) == {number(2)}


def test_counts_follow_replacing_and_removing(store: Store) -> None:
    cid = make(store)
    with store.transaction() as tx:
        tx.put(cid, records(1, 2, 3))
        tx.put(cid, records(3, 4))
    assert store.count(cid) == 4
    with store.transaction() as tx:
        assert tx.remove(cid, [number(4), number(9)]) == 1
    assert store.count(cid) == 3
    assert store.collection("c") is not None and store.collection("c").points == 3  # type: ignore[union-attr]


def test_many_keys_in_one_call(store: Store) -> None:
    cid = make(store)
    with store.transaction() as tx:
        tx.put(cid, records(*range(2000)))
    assert len(store.fetch(cid, [number(value) for value in range(2000)])) == 2000
    with store.transaction() as tx:
        assert tx.remove(cid, [number(value) for value in range(1500)]) == 1500
    assert store.count(cid) == 500


def test_rollback_leaves_nothing(store: Store) -> None:
    cid = make(store)
    seen: list[Changes] = []
    store.on_commit(seen.append)
    with pytest.raises(ValueError, match="boom"), store.transaction() as tx:
        tx.put(cid, records(1))
        tx.set_applied_seq(7)
        raise ValueError("boom")
    assert (store.count(cid), store.applied_seq, seen) == (0, 0, [])


def test_hooks_get_what_changed(store: Store) -> None:
    cid, other = make(store), make(store, "other")
    seen: list[Changes] = []
    store.on_commit(seen.append)
    with store.transaction() as tx:
        tx.put(cid, records(1))
        tx.remove(cid, [number(2)])
        tx.save_schema(other, "f", b"s")
    with store.transaction() as tx:
        tx.put(cid, records(5))
        tx.drop_collection(cid)
    assert seen[0].touched == {cid: frozenset([number(1), number(2)])}
    assert seen[0].reshaped == frozenset([other])
    assert seen[0].revisions == {cid: 2, other: 2}
    assert seen[1].dropped == frozenset([cid]) and not seen[1].touched


def test_a_snapshot_does_not_move(store: Store) -> None:
    cid = make(store)

    def write() -> None:
        with store.transaction() as tx:
            tx.put(cid, records(1))

    with store.snapshot():
        writer = threading.Thread(target=write)
        writer.start()
        writer.join()
        with store.snapshot():
            assert store.count(cid) == 0
    assert store.count(cid) == 1


def test_collections_aliases_and_schema(store: Store) -> None:
    cid = make(store)
    with store.transaction() as tx:
        tx.set_alias("a", "c")
        tx.set_alias("b", "c")
        assert not tx.save_schema(cid, "x.y", b"one")
        assert tx.save_schema(cid, "x.y", b"two")
        tx.set_completeness(cid, 3, as_of_seq=9, resume_at=b"r", expected_points=4)
        tx.set_meta("log_id", "L")
    found = store.collection("a")
    assert found is not None and found == store.collection("c")
    assert (found.schema, found.completeness, found.as_of_seq, found.resume_at) == ({"x.y": b"two"}, 3, 9, b"r")
    assert store.aliases() == {"a": "c", "b": "c"}
    assert store.meta("log_id") == "L" and store.meta("never") == ""
    with store.transaction() as tx:
        assert tx.delete_alias("b") and not tx.delete_alias("b")
        tx.save_schema(cid, "x.y", None)
    assert store.collection("b") is None
    assert store.collection("c").schema == {}  # type: ignore[union-attr]
    with pytest.raises(sqlite3.IntegrityError), store.transaction() as tx:
        tx.save_collection(Collection("c", b""))


def test_a_dropped_collection_comes_back_empty_and_its_points_go(store: Store) -> None:
    cid = make(store)
    with store.transaction() as tx:
        tx.put(cid, records(*range(1200)))
        tx.set_alias("a", "c")
    with store.transaction() as tx:
        tx.drop_collection(cid)
    assert store.collection("c") is None and store.collection("a") is None and store.aliases() == {}
    again = make(store)
    assert again != cid and store.count(again) == 0 and store.scan(again) == []
    while store.purge(100):
        pass
    assert store.connection().execute(
        "SELECT (SELECT count(*) FROM points), (SELECT count(*) FROM vectors)"
    ).fetchone() == (
        0,
        0,
    )


def test_survives_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path, SystemClock())
    cid = make(store)
    with store.transaction() as tx:
        tx.put(cid, records(1))
        tx.set_applied_seq(12)
    store.close()
    store.close()
    store = Store(tmp_path, SystemClock())
    assert (store.applied_seq, store.count(cid), store.recovered) == (12, 1, "")
    store.close()


def test_files_are_private(store: Store, tmp_path: Path) -> None:
    cid = make(store)
    with store.transaction() as tx:
        tx.put(cid, records(1))
    directory = tmp_path / "store"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert set(modes) >= {"lock", "replica.sqlite", "replica.sqlite-wal"}
    assert set(modes.values()) == {0o600}


def test_one_process_holds_the_directory(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataDirUnusable, match="another process"):
        Store(tmp_path / "store", SystemClock())


def test_a_damaged_file_is_kept_and_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path, SystemClock())
    make(store)
    store.close()
    (tmp_path / "replica.sqlite").write_bytes(b"not a database, " * 1000)
    store = Store(tmp_path, SystemClock())
    assert "damaged" in store.recovered and store.collections() == []
    kept = [path for path in tmp_path.iterdir() if ".corrupted." in path.name]
    assert len(kept) == 1 and kept[0].read_bytes().startswith(b"not a database")
    store.close()


def test_unusable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirUnusable):
        Store(tmp_path / "file" / "below", SystemClock())


def test_a_durable_transaction_is_synced_and_the_next_one_is_not(store: Store) -> None:
    """SQLite syncs its own log at the commit only with FULL (2); NORMAL is 1."""
    cid = make(store)
    with store.durable_transaction() as tx:
        tx.put(cid, records(1))
        assert tx.connection().execute("PRAGMA synchronous").fetchone() == (2,)
    with store.transaction() as tx:
        assert tx.connection().execute("PRAGMA synchronous").fetchone() == (1,)
    with pytest.raises(RuntimeError), store.durable_transaction() as tx:
        tx.put(cid, records(2))
        raise RuntimeError
    with store.transaction() as tx:
        assert tx.connection().execute("PRAGMA synchronous").fetchone() == (1,)
    assert [record.key for record in store.scan(cid)] == [number(1)]


def test_a_store_from_before_baselines_opens(tmp_path: Path) -> None:
    before = Store(tmp_path / "store", SystemClock())
    with before.transaction() as tx:
        tx.connection().execute("DROP TABLE baselines")
    before.close()
    after = Store(tmp_path / "store", SystemClock())
    assert after.connection().execute("SELECT count(*) FROM baselines").fetchone() == (0,)
    after.close()


def test_the_write_ahead_file_stays_short_though_reads_overlap(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LIMIT_BYTES", 1 << 20)
    cid = make(store)
    with store.transaction() as tx:
        tx.put(cid, records(*range(200)))
    has_ended = threading.Event()
    reads = [0]

    def read() -> None:
        while not has_ended.is_set():
            with store.snapshot():
                assert len(store.scan(cid)) == 200
                has_ended.wait(0.01)
                assert len(store.scan(cid)) == 200
                reads[0] += 1

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    longest = 0
    for _ in range(60):
        with store.transaction() as tx:
            tx.put(cid, [Record(number(value), b"p", os.urandom(10_000)) for value in range(20)])
        longest = max(longest, (tmp_path / "store" / "replica.sqlite-wal").stat().st_size)
    has_ended.set()
    for thread in threads:
        thread.join()
    assert reads[0] > 4
    # What one write adds beyond the limit, and what came while a snapshot was open for long.
    assert longest < 4 << 20


def test_a_long_snapshot_is_left_alone_and_stops_no_write(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LIMIT_BYTES", 1 << 20)
    cid = make(store)
    wal = tmp_path / "store" / "replica.sqlite-wal"
    with store.snapshot():
        assert store.scan(cid) == []
        for _ in range(10):
            with store.transaction() as tx:
                tx.put(cid, [Record(number(value), b"p", os.urandom(10_000)) for value in range(20)])
        assert store.scan(cid) == []
        assert wal.stat().st_size > 2 << 20
    for _ in range(10):
        with store.transaction() as tx:
            tx.put(cid, [Record(number(value), b"p", os.urandom(10_000)) for value in range(20)])
    assert wal.stat().st_size < 2 << 20
    assert len(store.scan(cid)) == 20


def _damage_the_middle(directory: Path) -> None:
    file = directory / "replica.sqlite"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2 // 8192 * 8192)
        opened.write(b"\xa5" * 8192 * 40)


def _large(directory: Path) -> int:
    """A store whose file holds everything; the collection in it."""
    store = Store(directory, SystemClock())
    cid = make(store)
    with store.transaction() as tx:
        tx.put(cid, [Record(number(n), b"p" * 500, b"v" * 500) for n in range(3000)])
    store.close()
    return cid


def test_damage_that_a_transaction_comes_upon_later_sets_the_file_aside_at_the_next_start(tmp_path: Path) -> None:
    cid = _large(tmp_path)
    store = Store(tmp_path, SystemClock())
    told: list[Exception] = []
    store.on_damage = told.append
    _damage_the_middle(tmp_path)
    assert store.recovered == ""
    with pytest.raises(StoreDamaged), store.transaction() as tx:
        tx.put(cid, [Record(number(n), b"new", b"new") for n in range(3000)])
    assert len(told) == 1
    # The process ends here: nothing is tidied up.
    os.close(store._lock_fd)
    again = Store(tmp_path, SystemClock())
    assert "malformed" in again.recovered
    assert again.collections() == []
    kept = {path.name.rpartition(".")[2].partition("-")[2] for path in tmp_path.iterdir() if ".corrupted." in path.name}
    assert {"", "wal"} <= kept
    again.close()
    once_more = Store(tmp_path, SystemClock())
    assert once_more.recovered == ""
    once_more.close()


def test_what_is_no_damage_leaves_the_file_alone(tmp_path: Path) -> None:
    """A full disk, a table that is missing, and reads of clients: an outage is no time to throw away the rest."""
    cid = _large(tmp_path)
    store = Store(tmp_path, SystemClock())
    store.on_damage = lambda error: pytest.fail(f"taken for damage: {error}")
    with pytest.raises(sqlite3.OperationalError), store.transaction() as tx:
        tx.connection().execute("SELECT * FROM nowhere")
    store._writer.execute(f"PRAGMA max_page_count = {store._writer.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(sqlite3.OperationalError, match="full"), store.transaction() as tx:
        tx.put(cid, [Record(number(n), b"p" * 500) for n in range(5000, 9000)])
    _damage_the_middle(tmp_path)
    with pytest.raises(sqlite3.DatabaseError):
        store.scan(cid, limit=3000)
    store.close()
    again = Store(tmp_path, SystemClock())
    assert again.recovered == ""
    again.close()


def test_a_mark_without_a_file_is_taken_away(tmp_path: Path) -> None:
    """A start that was cut short after it had set the file aside."""
    damage.mark(tmp_path / "replica.sqlite", "malformed")
    store = Store(tmp_path, SystemClock())
    assert store.recovered == ""
    make(store)
    store.close()
    again = Store(tmp_path, SystemClock())
    assert again.recovered == "" and again.collection("c") is not None
    again.close()
