"""The secret beside the log: made once, whole or absent after whatever ends a start, and read only when it is ours."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from server.directories import SECRET_BYTES, read_or_make_secret
from server.errors import DataDirUnusable
from tests.faults.crash_disk import CrashDisk

STORE = Path("/data/store")
SECRET = STORE / "credentials.key"
SEEDS = (None, *range(20))


def empty_store() -> CrashDisk:
    disk = CrashDisk()
    disk.make_directory(STORE)
    disk.calls.clear()
    return disk


def test_every_state_that_a_power_cut_leaves_has_a_whole_secret_or_none() -> None:
    disk = empty_store()
    photographs: list[CrashDisk] = []
    disk.on_call = lambda _operation, _path: photographs.append(disk.photograph())
    secret = read_or_make_secret(SECRET, disk)
    disk.on_call = None
    assert len(secret) == SECRET_BYTES
    assert len(photographs) > 5
    for photograph in photographs:
        for seed in SEEDS:
            assert len(read_or_make_secret(SECRET, photograph.after_power_cut(seed))) == SECRET_BYTES
    for seed in SEEDS:
        assert read_or_make_secret(SECRET, disk.after_power_cut(seed)) == secret, "it was given out, and is another now"
    assert sorted(disk.everything()) == [SECRET]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_a_failed_start_leaves_does_not_stop_the_next_one(code: int) -> None:
    """Neither in the same process, nor in one with the same number: in a container it is always 1."""
    healthy = empty_store()
    read_or_make_secret(SECRET, healthy)
    for at in range(len(healthy.calls)):
        if healthy.calls[at][0] == "synced":
            continue
        disk = empty_store()
        failures = [OSError(code, os.strerror(code))]

        def fail(
            _operation: str, _path: Path, disk: CrashDisk = disk, at: int = at, left: list[OSError] = failures
        ) -> None:
            if left and len(disk.calls) == at + 1:
                raise left.pop()

        disk.on_call = fail
        with pytest.raises(DataDirUnusable, match=os.strerror(code)):
            read_or_make_secret(SECRET, disk)
        assert len(read_or_make_secret(SECRET, disk)) == SECRET_BYTES, healthy.calls[at]
        assert sorted(disk.everything()) == [SECRET]


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o377], ids=oct)
def test_it_is_0600_and_stays_as_it_is(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        secret = read_or_make_secret(tmp_path / "credentials.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "credentials.key").stat().st_mode) == 0o600
    assert read_or_make_secret(tmp_path / "credentials.key") == secret
    assert len(set(secret)) > 8


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_link, "not a plain file"),
        (lambda path: path.chmod(0o640), "may be read by others"),
        (lambda path: path.write_bytes(b""), "does not hold 32 bytes"),
        (lambda path: path.write_bytes(bytes(SECRET_BYTES + 1)), "does not hold 32 bytes"),
    ],
)
def test_what_is_not_to_be_trusted_is_refused_and_left_alone(
    tmp_path: Path, change: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "credentials.key"
    read_or_make_secret(path)
    change(path)
    before = sorted((each.name, each.read_bytes()) for each in tmp_path.iterdir())
    with pytest.raises(DataDirUnusable, match=why):
        read_or_make_secret(path)
    assert sorted((each.name, each.read_bytes()) for each in tmp_path.iterdir()) == before
