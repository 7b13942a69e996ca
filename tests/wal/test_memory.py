"""What stays in memory, against plain models."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from server import config
from server.wal import memory
from server.wal.limits import WalLimits
from server.wal.memory import INDEX_STEP_BYTES, OffsetIndex, PendingIndex, TailCache
from server.wal.record import FRAME_OVERHEAD_BYTES, EntryState, Record

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("drop"), st.integers(0, 60), st.just(0)),
    ),
    max_size=60,
)


@given(steps, st.sampled_from((1, 3, 4096)))
def test_the_pending_index_is_a_queue(actions: list[tuple[str, int, int]], compact_at: int) -> None:
    before = memory._COMPACT_AT
    memory._COMPACT_AT = compact_at
    try:
        index, model, seq = PendingIndex(), list[tuple[int, int, int]](), 0
        for action, value, size in actions:
            if action == "add":
                seq += value
                index.add(seq, size, seq * 10)
                model.append((seq, size, seq * 10))
            else:
                index.drop_through(value)
                model = [row for row in model if row[0] > value]
            assert len(index) == len(model)
            assert index.total_bytes == sum(size for _, size, _ in model)
            assert index.oldest_ns == (model[0][2] if model else None)
            assert index.last_seq == (model[-1][0] if model else None)
            for probe in range(0, 70, 7):
                assert index.first_from(probe) == next((row[0] for row in model if row[0] >= probe), None)
    finally:
        memory._COMPACT_AT = before


@given(st.lists(st.integers(1, INDEX_STEP_BYTES), max_size=200))
def test_the_offset_index_never_points_past_the_entry(sizes: list[int]) -> None:
    index = OffsetIndex()
    offsets = []
    offset = 164
    for seq, size in enumerate(sizes, 1):
        index.note(seq, offset)
        index.note(seq, offset)
        offsets.append(offset)
        offset += size
    for seq, at in enumerate(offsets, 1):
        start = index.start_for(seq, 164)
        assert start in offsets
        assert start <= at < start + 2 * INDEX_STEP_BYTES
    assert OffsetIndex().start_for(5, 164) == 164


@given(
    st.lists(st.integers(0, 300), max_size=50), st.integers(0, 2000), st.integers(0, 60), st.integers(1, 9),
    st.integers(0, 900),
)  # fmt: skip
def test_the_cache_answers_as_the_log_would_or_not_at_all(
    sizes: list[int], limit: int, after: int, entries: int, size: int
) -> None:
    cache = TailCache(limit)
    records = [Record(seq, 1, EntryState.PENDING, 0, b"", "", bytes(length), 0) for seq, length in enumerate(sizes, 1)]
    for record in records:
        cache.add(record)
        assert cache._bytes == sum(len(each.body) + FRAME_OVERHEAD_BYTES for each in cache._records) <= limit
    found = cache.read(after, entries, size)
    if found is not None:
        wanted: list[Record] = []
        for record in records[after : after + entries]:
            if wanted and sum(len(each.body) for each in (*wanted, record)) > size:
                break
            wanted.append(record)
        assert found == wanted
    else:
        assert not cache._records or cache._records[0].seq > after + 1


def test_every_limit_can_be_set() -> None:
    """The defaults of the log are those of the configuration, and none of its limits is out of reach."""
    assert WalLimits.from_settings(config.Wal()) == WalLimits()
    no_limits = {"key", "key_path", "patrol_bytes_per_second"}
    assert {each.name for each in fields(WalLimits)} == set(config.Wal.model_fields) - no_limits


def test_a_gap_empties_the_cache() -> None:
    cache = TailCache(10**6)
    for seq in (1, 2, 5):
        cache.add(Record(seq, 1, EntryState.PENDING, 0, b"", "", b"", 0))
    assert cache.read(1, 10, 10) is None
    assert [record.seq for record in cache.read(4, 10, 10) or []] == [5]
