"""Deletions that were under way when the proxy was killed: what is absent in their collections may be our own work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from generated.qdrant import points_pb2 as pb
from server.deletions import Deletions
from server.entries import may_delete
from server.mode import Mode
from server.repairs import MARKER, Repairs, marker_on
from server.telemetry import Telemetry
from server.wal.files import RealDisk
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk

BOOT = b"one boot"


def opened(folder: Path, problems: list[OSError] | None = None) -> Deletions:
    """As the next start of the proxy finds it."""
    return Deletions(RealDisk(), folder, [].append if problems is None else problems.append)


def repairs_on(folder: Path, deletions: Deletions) -> Repairs:
    """Around them, on a real disk."""
    telemetry = Telemetry.silent()

    async def set_completeness(request: object) -> None: ...

    return Repairs(
        folder,
        Mode(has_upstream=True, sync_on_connect=True, clock=ManualClock(), telemetry=telemetry),
        **marker_on(RealDisk(), lambda: BOOT),
        set_completeness=set_completeness,
        copy_again=lambda collection: None,
        connection_failed=lambda reason: None,
        telemetry=telemetry,
        deletions=deletions,
    )


def test_what_is_under_way_is_left_over_and_what_is_over_is_not(tmp_path: Path) -> None:
    deletions = opened(tmp_path)
    with deletions.under_way("over"):
        assert opened(tmp_path).left_over == {"over"}
    with deletions.under_way("twice"), deletions.under_way('odd "name"\n'), deletions.under_way("twice"):
        assert opened(tmp_path).left_over == {"twice", 'odd "name"\n'}
    assert opened(tmp_path).left_over == frozenset()


def test_what_ends_by_an_exception_stays_noted_until_all_is_copied(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), opened(tmp_path).under_way("c"):
        raise RuntimeError
    after = opened(tmp_path)
    assert after.left_over == {"c"}
    with after.under_way("d"):
        after.settled()
        assert opened(tmp_path).left_over == {"d"}
    assert after.left_over == opened(tmp_path).left_over == frozenset()


def test_the_notes_take_little_room(tmp_path: Path) -> None:
    deletions = opened(tmp_path)
    with deletions.under_way("kept"):
        for number in range(5000):
            with deletions.under_way("c" * 50):
                pass
            if number % 250 == 0:
                assert opened(tmp_path).left_over == {"kept"}
    assert opened(tmp_path).left_over == frozenset()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 70_000


def failed(deletions: Deletions, collection: str) -> None:
    with pytest.raises(RuntimeError), deletions.under_way(collection):
        raise RuntimeError


def test_many_that_failed_take_no_more_room_than_one(tmp_path: Path) -> None:
    deletions = opened(tmp_path)
    for _ in range(5000):
        failed(deletions, "c")
    with deletions.under_way("c"):
        pass
    assert opened(tmp_path).left_over == {"c"}
    assert (tmp_path / "deletions").stat().st_size < 100


def test_the_notes_are_not_written_anew_for_each_deletion_where_many_collections_had_one_that_failed() -> None:
    disk, made = CrashDisk(), list[str]()
    disk.make_directory(Path("/store"))
    disk.on_call = lambda operation, path: made.append(operation) if operation == "create" else None
    deletions = Deletions(disk, Path("/store"), [].append)
    collections = {f"{number:040}" for number in range(2000)}
    for collection in collections:
        failed(deletions, collection)
    for _ in range(500):
        with deletions.under_way("d"):
            pass
    assert len(made) <= 3
    assert Deletions(disk, Path("/store"), [].append).left_over == collections


@pytest.mark.parametrize("again", ["c", "d"])
def test_what_was_left_over_outlasts_deletions_that_end_well_and_notes_written_anew(tmp_path: Path, again: str) -> None:
    failed(opened(tmp_path), "c")
    deletions = opened(tmp_path)
    for _ in range(3):
        with deletions.under_way(again):
            for _ in range(1000):
                with deletions.under_way("e" * 50):
                    pass
            assert opened(tmp_path).left_over == {"c", again}
    assert opened(tmp_path).left_over == {"c"}
    deletions.settled()
    with deletions.under_way(again):
        assert opened(tmp_path).left_over == {again}
    assert opened(tmp_path).left_over == frozenset()


def test_of_two_under_way_the_end_of_one_is_not_that_of_the_other(tmp_path: Path) -> None:
    deletions = opened(tmp_path)
    with deletions.under_way("c"):
        with deletions.under_way("c"):
            pass
        assert opened(tmp_path).left_over == {"c"}
    assert opened(tmp_path).left_over == frozenset()


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_note_that_was_cut_off_takes_no_other_with_it(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path).under_way("c"):
        pass
    with pytest.raises(RuntimeError), opened(tmp_path).under_way("d"):
        raise RuntimeError
    path = tmp_path / "deletions"
    os.truncate(path, path.stat().st_size - cut)
    again = opened(tmp_path)
    # It had not been sent when its note was cut off.
    assert again.left_over <= {"c", "d"}
    with pytest.raises(RuntimeError), again.under_way("e"):
        raise RuntimeError
    assert "e" in opened(tmp_path).left_over


@pytest.mark.parametrize(
    "rest", [b"\x00" * 512, b"\n17\n", b'\n["+", "c"]\n', b"\n+zz;\n", b"\n+ff;\n", b"\xff\xfe" * 99]
)
def test_what_a_power_cut_left_stops_no_start(tmp_path: Path, rest: bytes) -> None:
    with pytest.raises(RuntimeError), opened(tmp_path).under_way("c"):
        raise RuntimeError
    with (tmp_path / "deletions").open("ab") as file:
        file.write(rest)
    assert opened(tmp_path).left_over >= {"c"}


def test_a_disk_that_takes_no_note_stops_nothing() -> None:
    disk, problems = CrashDisk(), list[OSError]()
    disk.make_directory(Path("/store"))

    def full(operation: str, path: Path) -> None:
        if operation in ("create", "append"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.on_call = full
    with Deletions(disk, Path("/store"), problems.append).under_way("c"):
        pass
    # What was not noted needs no note of its end.
    assert [error.errno for error in problems] == [errno.ENOSPC]


def test_after_a_kill_the_log_is_whole_but_for_collections_with_a_deletion_under_way(tmp_path: Path) -> None:
    repairs = repairs_on(tmp_path, opened(tmp_path))
    with repairs.online_write("c"):
        killed = repairs_on(tmp_path, opened(tmp_path))
    assert killed.was_in_doubt
    assert (killed.is_log_whole("c"), killed.is_log_whole("d")) == (False, True)
    killed.settled()
    assert killed.is_log_whole("c")
    assert repairs_on(tmp_path, opened(tmp_path)).is_log_whole("c")


@pytest.mark.parametrize("is_there", [False, True])
def test_that_the_log_lacks_a_write_is_noted_in_place(is_there: bool) -> None:
    """The disk may be full: that is why the log lacks it."""
    disk, path = CrashDisk(), Path("/store") / MARKER
    disk.make_directory(path.parent)
    marker = marker_on(disk, lambda: BOOT)
    if is_there:
        marker["write_durably"](path)
        assert marker["is_of_this_boot"](path)

    def full(operation: str, _path: Path) -> None:
        if is_there and operation in ("create", "append"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.on_call = full
    marker["write_of_no_boot"](path)
    assert marker["is_marked"](path)
    assert not marker["is_of_this_boot"](path)


def test_a_full_disk_takes_the_marker_again_and_again() -> None:
    disk, path = CrashDisk(), Path("/store") / MARKER
    disk.make_directory(path.parent)
    marker = marker_on(disk, lambda: BOOT)
    marker["make_room"](path)
    assert not marker["is_marked"](path)

    def full(operation: str, _path: Path) -> None:
        if operation in ("create", "append"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.on_call = full
    for _ in range(2):
        marker["write_durably"](path)
        assert marker["is_of_this_boot"](path)
        assert all(marker_on(disk.after_power_cut(seed), lambda: BOOT)["is_marked"](path) for seed in range(20))
        marker["remove_durably"](path)
        assert not marker["is_marked"](path)


def test_a_doubt_that_was_of_no_boot_leaves_room_for_one_of_this() -> None:
    disk, path = CrashDisk(), Path("/store") / MARKER
    disk.make_directory(path.parent)
    marker = marker_on(disk, lambda: BOOT)
    for change in (marker["write_durably"], marker["write_of_no_boot"], marker["remove_durably"]):
        change(path)
    marker["write_durably"](path)
    assert marker["is_of_this_boot"](path)


def _batch(*changes: Callable[[pb.PointsUpdateOperation], object]) -> pb.UpdateBatchPoints:
    request = pb.UpdateBatchPoints()
    for change in changes:
        change(request.operations.add())
    return request


def test_which_writes_may_make_points_absent() -> None:
    assert may_delete(pb.DeletePoints())
    assert not may_delete(pb.UpsertPoints())
    assert not may_delete(pb.DeletePointVectors())
    assert not may_delete(_batch(lambda part: part.upsert.SetInParent()))
    assert may_delete(_batch(lambda part: part.upsert.SetInParent(), lambda part: part.delete_points.SetInParent()))
    assert may_delete(_batch(lambda part: part.delete_deprecated.SetInParent()))
