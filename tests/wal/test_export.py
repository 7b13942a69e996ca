"""Export: every entry that can be proven, once, in order; a reader that leaves or a disk that fails is told as such."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from server.errors import WalError
from server.wal.export import exporting
from server.wal.inspect import ListState
from server.wal.limits import WalLimits
from server.wal.quarantine import Refused
from server.wal.record import SEGMENT_HEADER_BYTES
from server.wal.salvage import Tools
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import DIRECTORY, KINDS, Entropy, entry, opened
from tests.wal.test_damage import BODIES, FIRST, disk_of, frames_of, written


def tools(disk: CrashDisk) -> Tools:
    return Tools(disk, ManualClock(), Entropy("export"), WalLimits(), KINDS)


async def test_an_entry_that_only_the_quarantine_holds_is_exported_in_its_place() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    for body in BODIES:
        await log.append(entry(body))
    (record, *_) = await log.read(1, 1, 10**6)
    await log.quarantine([Refused(record, 3, "wrong")])
    await log.mark_replayed(3)
    await log.close()
    data = disk.content(FIRST)
    frames = frames_of(data)
    second = SEGMENT_HEADER_BYTES + len(frames[0])
    # The body, and so the checksums and the signature too: of the segment nothing proves this entry.
    disk.put(FIRST, data[: second + 70] + b"?" + data[second + 71 :])
    with exporting(DIRECTORY, tools(disk)) as found:
        records = list(found.records)
    assert [(each.record.seq, each.record.body, each.state) for each in records] == [
        (1, BODIES[0], ListState.REPLAYED),
        (2, BODIES[1], ListState.QUARANTINED),
        (3, BODIES[2], ListState.REPLAYED),
    ]
    assert found.plan.losses == ()
    assert not disk.locks


async def test_a_reader_that_leaves_is_no_failure_of_the_log() -> None:
    disk = disk_of(await written(clean=True))
    with pytest.raises(BrokenPipeError), exporting(DIRECTORY, tools(disk)):
        raise BrokenPipeError(32, "Broken pipe")
    assert not disk.locks


async def test_a_segment_that_changes_or_cannot_be_read_meanwhile_is_an_error_and_ends_the_hold() -> None:
    files = await written(clean=True)
    at = SEGMENT_HEADER_BYTES + 70
    changed = files[FIRST][:at] + b"?" + files[FIRST][at + 1 :]
    disk = disk_of(files)
    with pytest.raises(WalError, match="changed while it was read"), exporting(DIRECTORY, tools(disk)) as found:
        disk.put(FIRST, changed)
        list(found.records)
    assert not disk.locks

    def fail(operation: str, path: Path) -> None:
        if operation == "read" and path == FIRST:
            raise OSError(5, "Input/output error")

    disk = disk_of(files)
    disk.on_call = fail
    error = pytest.raises(WalError, match="cannot read the log in /data/wal: Input/output error")
    with error, exporting(DIRECTORY, tools(disk)):
        pytest.fail("nothing can be exported")
    assert not disk.locks


async def test_what_was_taken_out_of_an_iterator_before_a_change_stays_right() -> None:
    files = await written(clean=True)
    disk = disk_of(files)
    with exporting(DIRECTORY, tools(disk)) as found:
        assert [each.record.body for each in itertools.islice(found.records, 2)] == BODIES[:2]
        assert disk.locks
    assert not disk.locks
