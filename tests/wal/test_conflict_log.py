"""Rows of the conflict log: bounded, durable, dropped one by one; what is damaged or not ours stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from server.errors import WalError
from server.wal import inspect
from server.wal.conflict_log import ConflictLog
from server.wal.files import RealDisk
from tests.wal.support import opened


def test_the_oldest_rows_go_when_there_is_no_room(tmp_path: Path) -> None:
    log = ConflictLog(RealDisk(), tmp_path, 1_000_000)
    gone = sum(log.append([number.to_bytes(4, "big") * 25_000]) for number in range(20))
    left = [row.number for row in log.rows()]
    assert gone == log.dropped == 20 - len(left)
    assert left == list(range(21 - len(left), 21))
    assert 8 <= len(left) <= 10
    assert log.size_bytes <= 1_000_000
    again = ConflictLog(RealDisk(), tmp_path, 1_000_000)
    assert (again.count, again.size_bytes) == (log.count, log.size_bytes)
    assert again.append([b"x"]) in (0, 1)
    assert [row.number for row in again.rows()][-1] == 21


def test_rows_are_dropped_one_by_one_and_a_damaged_file_is_told(tmp_path: Path) -> None:
    log = ConflictLog(RealDisk(), tmp_path, 1_000_000)
    log.append([b"a", b"b", b"c"])
    log.append([b"d"])
    assert log.drop({2}) == [2]
    assert [(row.number, row.body) for row in log.rows()] == [(1, b"a"), (3, b"c"), (4, b"d")]
    file = sorted((tmp_path / "conflicts").iterdir())[0]
    data = bytearray(file.read_bytes())
    data[30] ^= 1
    file.write_bytes(bytes(data))
    log = ConflictLog(RealDisk(), tmp_path, 1_000_000)
    assert [(row.number, row.flaw) for row in log.rows()] == [(1, "its checksum does not match"), (4, "")]
    assert log.drop(None) == [4]
    assert log.drop({1}) == [1]
    assert list((tmp_path / "conflicts").iterdir()) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "conflicts"
    log = ConflictLog(RealDisk(), tmp_path, 1_000_000)
    log.append([b"a"])
    newer = bytearray((folder / f"{1:020d}.rows").read_bytes()[:-4])
    newer[8] = 2
    (folder / f"{7:020d}.rows").write_bytes(bytes(newer) + google_crc32c.value(bytes(newer)).to_bytes(4, "little"))
    (folder / f"{9:020d}.rows").mkdir()
    (folder / "notes.rows").write_text("mine")
    (folder / f"{5:020d}.rows.tmp").write_text("torn")
    log = ConflictLog(RealDisk(), tmp_path, 1_000_000)
    flaws = [(row.number, row.flaw) for row in log.rows()]
    unknown = "it has a format version that this Understudy does not know"
    assert flaws == [(1, ""), (7, unknown), (9, "it is not a plain file")]
    log.append([b"b"])
    assert [row.number for row in log.rows()][-1] == 10
    assert sorted(path.name for path in folder.iterdir() if not path.name[:20].isdecimal()) == ["notes.rows"]
    assert not list(folder.glob("*.tmp"))


class Failing:
    """A disk of which one call fails."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        return fail if name == self.name else getattr(RealDisk(), name)


@pytest.mark.parametrize(
    ("call", "told"),
    [("names", "cannot be read"), ("create", "cannot be written"), ("remove", "cannot be changed")],
)
def test_a_disk_that_fails_is_told(tmp_path: Path, call: str, told: str) -> None:
    ConflictLog(RealDisk(), tmp_path, 1_000_000).append([b"a"])
    disk: Any = Failing(call)
    with pytest.raises(WalError, match=told):
        log = ConflictLog(disk, tmp_path, 1_000_000)
        if call == "create":
            log.append([b"b"])
        log.drop(None)
    assert [row.body for row in ConflictLog(RealDisk(), tmp_path, 1_000_000).rows()] == [b"a"]


def test_a_file_that_cannot_be_read_is_told_and_left_alone(tmp_path: Path) -> None:
    ConflictLog(RealDisk(), tmp_path, 1_000_000).append([b"a"])
    disk: Any = Failing("read")
    log = ConflictLog(disk, tmp_path, 1_000_000)
    assert [(row.number, row.flaw) for row in log.rows()] == [(1, "it cannot be read: Input/output error")]
    assert log.drop(None) == []
    assert log.count == 0


async def test_rows_of_a_log_at_rest(tmp_path: Path) -> None:
    log = opened(tmp_path, disk=RealDisk())
    await log.close()
    ConflictLog(RealDisk(), tmp_path, 1_000_000).append([b"a", b"b"])
    assert [(row.number, row.body) for row in inspect.conflicts(tmp_path)] == [(1, b"a"), (2, b"b")]
    assert inspect.drop_conflicts(tmp_path, {1}) == [1]
    assert inspect.drop_conflicts(tmp_path, {1}) == []
    assert inspect.drop_conflicts(tmp_path, None) == [2]


def test_many_rows_at_once_make_several_files_so_that_old_ones_can_go(tmp_path: Path) -> None:
    log = ConflictLog(RealDisk(), tmp_path, 10_000_000)
    assert log.append([]) == 0
    assert list((tmp_path / "conflicts").iterdir()) == []
    log.append([bytes([number]) * 100_000 for number in range(5)])
    assert len(list((tmp_path / "conflicts").iterdir())) == 3
    assert [(row.number, row.body[0]) for row in log.rows()] == [(number + 1, number) for number in range(5)]
