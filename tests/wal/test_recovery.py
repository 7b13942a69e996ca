"""The table: every pair of place and flaw has one row, and only torn tails are cut."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.wal.record import EntryState, Flaw, Record, SegmentCodec
from server.wal.recovery import TABLE, Place, Verdict, place_of, proof_after
from tests.wal.test_record import HEADER, KEY


def test_the_table_has_one_row_for_every_pair() -> None:
    assert set(TABLE) == set(itertools.product(Place, Flaw))


@pytest.mark.parametrize(("place", "flaw"), list(itertools.product(Place, Flaw)))
def test_only_unreadable_bytes_that_nobody_can_show_to_have_been_durable_are_cut(place: Place, flaw: Flaw) -> None:
    is_torn = place is Place.UNPROVEN and flaw in (Flaw.SHORT, Flaw.GARBLED)
    assert TABLE[place, flaw] is (Verdict.CUT if is_torn else Verdict.REFUSE)


@given(st.booleans(), st.integers(0, 1000), st.integers(0, 1000))
def test_places(is_last: bool, offset: int, proven: int) -> None:
    place = place_of(is_last=is_last, offset=offset, proven_offset=proven)
    if not is_last:
        assert place is Place.COLD
    else:
        assert place is (Place.PROVEN if offset < proven else Place.UNPROVEN)


def test_a_later_frame_proves_what_was_durable_before_it() -> None:
    codec = SegmentCodec.of(HEADER, KEY)
    record = Record(1, 1, EntryState.PENDING, 0, b"", "", b"x" * 50, 0)
    first, mac = codec.entry(record, codec.head_mac, 164, 1)
    second, mac = codec.entry(record, mac, 164 + len(first), 1)
    third, _ = codec.entry(record, mac, 164, 1)
    data = bytes(len(first)) + second + third
    assert proof_after(codec, data, 0, 164) == 164 + len(first)
    assert proof_after(codec, bytes(len(first)) + second[:-1], 0, 164) == 0
    assert proof_after(codec, bytes(len(first)) + bytes(len(second)) + third, 0, 164) == 164
    assert proof_after(codec, bytes(len(first)) + second[:80] + b"?" + second[81:], 0, 164) == 0
    assert proof_after(codec, data, len(first), 164) == 164, "the frame at the flaw itself proves nothing"


def test_a_frame_inside_a_body_that_a_client_made_up_proves_nothing() -> None:
    codec = SegmentCodec.of(HEADER, KEY)
    other = SegmentCodec.of(replace(HEADER, salt=b"?" * 16), KEY)
    forged, _ = other.entry(Record(9, 1, EntryState.PENDING, 0, b"", "", b"", 0), bytes(32), 170, 1)
    assert proof_after(codec, bytes(10) + forged, 0, 164) == 0
    assert proof_after(other, bytes(10) + forged, 0, 164) == 170
