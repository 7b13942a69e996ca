"""Refused entries: kept whole, signed, released only on request."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import google_crc32c
import pytest

from server.errors import WalDamaged, WalError
from server.wal.files import RealDisk
from server.wal.log import Log
from server.wal.quarantine import DETAILS_BYTES_MAX, Refused
from server.wal.record import Record
from server.wal.signing import Signer, subkey
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.io_life import ArmedDisk
from tests.wal.support import DIRECTORY, Entropy, entry, failing, opened
from tests.wal.test_upkeep import upkeep

FOLDER = DIRECTORY / "quarantine"


async def test_a_refused_entry_is_kept_with_its_reason_and_comes_back() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    assert log.quarantined() == []
    for body in (b"one", b"", b"three" * 1000):
        await log.append(entry(body, points=4))
    records = await log.read(0, 10, 10**6)
    for record in reversed(records):
        await log.quarantine([Refused(record, 3, f"Wrong input: {record.seq} ä")])
    for _ in range(2):
        items = log.quarantined()
        assert [(item.seq, item.kind, item.code, item.flaw) for item in items] == [(n, 1, 3, "") for n in (1, 2, 3)]
        assert items[1].details == "Wrong input: 2 ä"
        assert items[0].path == FOLDER / "00000000000000000001.entry"
        assert items[0].wall_ns == 1_700_000_000_000_000_000
        assert [await log.read_quarantined(item.seq) for item in items] == records
        await log.close()
        log = opened(disk=disk, entropy=Entropy("again"))
    await log.quarantine([Refused(records[1], 5, "again")])
    assert [(item.code, item.details) for item in log.quarantined()][1] == (5, "again")
    await log.release_quarantined(2)
    await log.release_quarantined(2)
    assert [item.seq for item in log.quarantined()] == [1, 3]
    with pytest.raises(WalError, match="entry 2 is not in quarantine"):
        await log.read_quarantined(2)
    await log.close()


async def test_long_reasons_are_cut_between_characters() -> None:
    log = opened(disk=CrashDisk())
    await log.append(entry(b"x"))
    (record,) = await log.read(0, 1, 10)
    await log.quarantine([Refused(record, 3, "a" + "ä" * DETAILS_BYTES_MAX + "\ud800")])
    (item,) = log.quarantined()
    assert item.details == "a" + "ä" * ((DETAILS_BYTES_MAX - 1) // 2)
    assert await log.read_quarantined(1) == record
    await log.close()


async def quarantined_file() -> tuple[CrashDisk, Path, bytes]:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"body"))
    (record,) = await log.read(0, 1, 10)
    await log.quarantine([Refused(record, 3, "no")])
    await log.close()
    path = FOLDER / "00000000000000000001.entry"
    return disk, path, disk.content(path)


async def test_every_flipped_bit_and_every_truncation_shows() -> None:
    disk, path, data = await quarantined_file()
    changed = [data[:length] for length in range(len(data))] + [data + b"\0"]
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        changed.append(bytes(flipped))
    log = opened(disk=disk, entropy=Entropy("again"))
    for bad in changed:
        disk.put(path, bad)
        log._quarantine._items = None
        (item,) = log.quarantined()
        assert item.flaw
        assert item.seq == 1
        with pytest.raises(WalDamaged, match=path.name):
            log._quarantine.record(1)
    await log.close()


async def test_what_is_signed_under_another_layout_or_version_is_not_guessed_at() -> None:
    disk, path, data = await quarantined_file()
    for at, value, why in ((8, b"\x02", "format version"), (60, b"\x1f", "lengths"), (88, b"x", "signature")):
        changed = data[:at] + value + data[at + len(value) :]
        if why == "lengths":
            (key,) = (content for each, content in disk.everything().items() if each.suffix == ".key")
            changed = changed[:-36] + Signer(subkey(key, "quarantine", changed[24:40])).mac(changed[:-36]) + b"...."
        disk.put(path, changed[:-4] + google_crc32c.value(changed[:-4]).to_bytes(4, "little"))
        log = opened(disk=disk, entropy=Entropy(why))
        (item,) = log.quarantined()
        assert why in item.flaw
        assert list(log.quarantined_entries()) == []
        await log.close()
    disk.put(path, data)
    log = opened(disk=disk, entropy=Entropy("again"))
    assert [(item.seq, record.body) for item, record in log.quarantined_entries()] == [(1, b"body")]
    await log.close()


async def test_a_link_in_quarantine_is_not_followed(tmp_path: Path) -> None:
    log = opened(tmp_path / "wal", disk=RealDisk())
    (tmp_path / "wal" / "quarantine" / "00000000000000000001.entry").symlink_to(tmp_path / "secret")
    (item,) = log.quarantined()
    assert "plain file" in item.flaw
    await log.close()


async def test_files_that_are_none_of_ours_are_listed_with_a_flaw() -> None:
    disk, path, data = await quarantined_file()
    other = CrashDisk()
    await opened(disk=other, entropy=Entropy("another log")).close()
    disk.put(FOLDER / "notes.txt", b"hello")
    disk.put(FOLDER / "00000000000000000009.entry", data)
    log = opened(disk=disk, entropy=Entropy("again"))
    flaws = {item.path.name: item.flaw for item in log.quarantined()}
    assert flaws[path.name] == ""
    assert "short" in flaws["notes.txt"]
    assert "another name" in flaws["00000000000000000009.entry"]
    await log.close()
    for key in (each for each in disk.everything() if each.suffix == ".key"):
        disk.drop(key)
    for key, content in other.everything().items():
        if key.suffix == ".key":
            disk.put(key, content)
    disk.drop(DIRECTORY / "head")
    disk.drop(DIRECTORY / "segment-0000000000000001.wal")
    disk.put(DIRECTORY / "head", other.content(DIRECTORY / "head"))
    disk.put(DIRECTORY / "segment-0000000000000001.wal", other.content(DIRECTORY / "segment-0000000000000001.wal"))
    log = opened(disk=disk, entropy=Entropy("again"))
    assert "missing" in {item.path.name: item.flaw for item in log.quarantined()}[path.name]
    await log.close()


# --- what the disk does not give back --------------------------------------------------------------------------------


async def with_three_refused(disk: CrashDisk) -> tuple[Log, list[Record]]:
    """Another process than the one that put entries 1 to 3 of six into quarantine."""
    log = opened(disk=disk)
    for number in range(6):
        await log.append(entry(b"%d" % number))
    records = await log.read(0, 10, 10**6)
    await log.quarantine([Refused(record, 3, "no") for record in records[:3]])
    await log.close()
    return opened(disk=disk, entropy=Entropy("again")), records


def trusted(log: Log) -> list[int]:
    return [item.seq for item, _ in log.quarantined_entries()]


def flaws(log: Log) -> dict[int, str]:
    return {item.seq: item.flaw for item in log.quarantined() if item.flaw}


@pytest.mark.parametrize("operation", ["facts", "read"])
async def test_a_file_that_cannot_be_read_stands_in_the_way_of_nothing(
    operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    disk = CrashDisk()
    log, records = await with_three_refused(disk)
    disk.on_call = failing(operation, name="00000000000000000002")
    assert flaws(log) == {2: "it cannot be read: Input/output error"}
    assert trusted(log) == [1, 3]
    assert "1 entries in quarantine are not to be trusted" in caplog.text
    with pytest.raises(WalError, match="Input/output error"):
        await log.read_quarantined(2)
    await log.quarantine([Refused(records[3], 3, "no")])
    assert trusted(log) == [1, 3, 4]
    # The disk gives it back after all.
    disk.on_call = None
    assert trusted(log) == [1, 2, 3, 4]
    assert flaws(log) == {}
    # It was seen whole, and cannot be read again.
    disk.on_call = failing("read", name="00000000000000000002")
    assert trusted(log) == [1, 3, 4]
    assert list(flaws(log)) == [2]
    await log.release_quarantined(2)
    assert [item.seq for item in log.quarantined()] == [1, 3, 4]
    await log.close()


async def test_a_lack_of_descriptors_is_no_flaw_of_a_file() -> None:
    disk = CrashDisk()
    log, _ = await with_three_refused(disk)
    disk.on_call = failing("read", name="0", code=errno.EMFILE)
    with pytest.raises(WalError, match="Too many open files"):
        log.quarantined()
    disk.on_call = None
    assert flaws(log) == {}
    disk.on_call = failing("read", name="0", code=errno.EMFILE)
    with pytest.raises(WalError, match="Too many open files"):
        trusted(log)
    disk.on_call = None
    assert trusted(log) == [1, 2, 3]
    await log.close()


async def test_what_is_released_while_it_is_read_is_no_flaw(caplog: pytest.LogCaptureFixture) -> None:
    disk = CrashDisk()
    log, _ = await with_three_refused(disk)
    walk = log.quarantined_entries()
    assert next(walk)[0].seq == 1
    await log.release_quarantined(2)
    assert [item.seq for item, _ in walk] == [3]
    assert caplog.text == ""
    await log.close()


async def test_asking_what_is_there_does_not_wait_for_a_sync(tmp_path: Path) -> None:
    """Nor does the next key: the event loop goes on while the disk takes its time over a refused entry."""
    begun, may_end = threading.Event(), threading.Event()
    overdue: list[Path] = []

    def check(operation: str, path: Path) -> None:
        if operation == "sync" and path.name.startswith("00000000000000000002.entry"):
            begun.set()
            if not may_end.wait(timeout=15):
                overdue.append(path)

    log = opened(tmp_path / "wal", disk=ArmedDisk(RealDisk(), check))
    for number in range(2):
        await log.append(entry(b"%d" % number))
    first, second = await log.read(0, 10, 10**6)
    await log.quarantine([Refused(first, 3, "no")])
    keeping = asyncio.create_task(log.quarantine([Refused(second, 3, "no")]))
    assert await asyncio.to_thread(begun.wait, 10)
    old = (await log.keys.uses())[0].key_id
    upkeep(log, ManualClock()).refresh()
    assert (log.quarantined_count, [item.seq for item in log.quarantined()]) == (1, [1])
    assert trusted(log) == [1]
    assert await log.rotate_key() != old
    assert not keeping.done()
    may_end.set()
    await keeping
    assert overdue == [], "the event loop waited for the sync"
    assert (log.quarantined_count, trusted(log)) == (2, [1, 2])
    held = {use.key_id: use.needed_by for use in await log.keys.uses()}
    assert "quarantine/00000000000000000002.entry" in held[old]
    await log.close()


async def test_the_number_of_entries_is_known_without_reading_them() -> None:
    disk = CrashDisk()
    log, records = await with_three_refused(disk)
    disk.put(FOLDER / "00000000000000000009.entry.tmp", b"torn")
    disk.calls.clear()
    assert [log.quarantined_count for _ in range(3)] == [3, 3, 3]
    assert disk.calls == [("names", "quarantine")]
    await log.quarantine([Refused(record, 3, "no") for record in records[2:5]])
    assert log.quarantined_count == 5
    await log.release_quarantined(1)
    assert log.quarantined_count == 4
    await log.close()


async def test_entries_are_read_when_their_turn_comes_and_only_those_that_are_wanted() -> None:
    disk = CrashDisk()
    log, _ = await with_three_refused(disk)
    assert log.quarantined_count == len(log.quarantined())
    disk.calls.clear()
    walk = log.quarantined_entries()
    next(walk)
    assert [name for operation, name in disk.calls if operation == "read"] == ["00000000000000000001.entry"]
    disk.calls.clear()
    assert [item.seq for item, _ in log.quarantined_entries({3, 2, 7})] == [2, 3]
    names = [name for operation, name in disk.calls if operation == "read"]
    assert names == ["00000000000000000002.entry", "00000000000000000003.entry"]
    await log.close()
