"""docs/wal-format.md draws what the code writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.wal import quarantine, record, signing
from server.wal.record import Flaw
from server.wal.recovery import TABLE, Place

DOCUMENT = (Path(__file__).parents[2] / "docs" / "wal-format.md").read_text(encoding="utf-8")
SIZES = {
    "segment header": record.SEGMENT_HEADER_BYTES,
    "frame": record.FRAME_OVERHEAD_BYTES,
    "head": record.HEAD_BYTES,
    "quarantined entry": quarantine._ITEM.size + signing.MAC_BYTES + record.CRC_BYTES,
}
STRUCTS = {
    "segment header": record._SEGMENT,
    "frame": record._FRAME,
    "head": record._HEAD,
    "quarantined entry": quarantine._ITEM,
}


@pytest.mark.parametrize("name", list(SIZES))
def test_offsets_and_sizes_add_up_to_what_is_written(name: str) -> None:
    drawn = re.search(rf"```\n{name}, (\d+) bytes.*?\noffset  size\n(.*?)```", DOCUMENT, re.DOTALL)
    assert drawn is not None
    assert int(drawn[1]) == SIZES[name]
    at, fixed, symbols = 0, 0, 0
    for line in drawn[2].splitlines():
        offset, size = line.split()[:2]
        if offset.isdecimal() and not symbols:
            assert int(offset) == at, line
        if size.isdecimal():
            fixed += int(size)
            at += int(size)
        else:
            symbols += 1
    assert fixed == SIZES[name]
    offsets = [int(line.split()[0]) for line in drawn[2].splitlines() if line.split()[0].isdecimal()]
    assert STRUCTS[name].size in offsets


def test_the_table_of_recovery_is_the_one_in_the_code() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|(.+)\|$", DOCUMENT, re.MULTILINE)
    assert len(rows) == len(Place)
    flaws = [Flaw.SHORT, Flaw.GARBLED, Flaw.FORGED, Flaw.UNKNOWN_VERSION, Flaw.ILLEGAL]
    for place, (_, cells) in zip(Place, rows, strict=True):
        assert [cell.strip() for cell in cells.split("|")] == [TABLE[place, flaw].name.lower() for flaw in flaws]
