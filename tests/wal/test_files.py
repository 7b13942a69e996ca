"""The real disk: modes, links, locks, short writes; and that the simulated one behaves like it."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from server.errors import DataDirUnusable, WalKeyMissing, WalKeyUnsafe, WalLocked
from server.wal.files import Disk, RealDisk, publish, refuse_when_held
from server.wal.limits import WalLimits
from server.wal.quarantine import Refused
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import Entropy, bodies, entry, opened, read_all


@pytest.fixture(params=[0o000, 0o077, 0o377], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


async def test_every_file_is_0600_and_every_directory_0700_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    directory = tmp_path / "data" / "wal"
    log = opened(directory, disk=RealDisk(), limits=WalLimits(segment_bytes=500))
    for _ in range(5):
        await log.append(entry(bytes(100)))
    (record, *_) = await log.read_pending(1, 1000)
    await log.quarantine([Refused(record, 3, "no")])
    await log.close()
    last = max(directory.glob("segment-*"))
    last.write_bytes(last.read_bytes()[:-3])
    await opened(directory, disk=RealDisk()).close()
    assert list(directory.glob("*.corrupted.*"))
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data", *(tmp_path / "data").rglob("*"))}
    assert len(found) > 9
    for path, mode in found.items():
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} under umask {umask:o}"


def test_a_directory_of_ours_that_is_loose_is_tightened(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    RealDisk().make_directory(loose)
    assert stat.S_IMODE(loose.stat().st_mode) == 0o700


def test_the_names_of_directories_are_synced_up_to_what_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of those that were there: an earlier attempt may have ended between making and syncing."""
    synced: list[Path] = []

    def watch(path: Path) -> None:
        if path == tmp_path.parent:
            raise PermissionError(errno.EACCES, "Permission denied")
        synced.append(path)

    disk = RealDisk()
    monkeypatch.setattr(disk, "sync_directory", watch)
    for _ in range(2):
        synced.clear()
        disk.make_directory(tmp_path / "a" / "b" / "c")
        assert synced == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataDirUnusable, match=str(bad)):
            RealDisk().make_directory(bad)


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(DataDirUnusable, match="belongs to user"):
        RealDisk().make_directory(tmp_path)


def write_whole(parts: Sequence[bytes], tmp_path: Path) -> bytes:
    file = RealDisk().create(tmp_path / "file")
    file.append(parts)
    file.sync()
    file.close()
    return (tmp_path / "file").read_bytes()


def test_append_writes_all_parts_however_many(tmp_path: Path) -> None:
    parts = [b"%d," % number for number in range(3000)]
    assert write_whole(parts, tmp_path) == b"".join(parts)


def test_closing_twice_does_not_close_the_file_of_somebody_else(tmp_path: Path) -> None:
    file = RealDisk().create(tmp_path / "file")
    file.close()
    # The lowest free number: the one that was just given back.
    other = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        file.close()
        os.fstat(other)
    finally:
        os.close(other)


def test_a_new_file_whose_mode_cannot_be_set_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_as: list[int] = []

    def refuse(descriptor: int, mode: int) -> None:
        opened_as.append(descriptor)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(PermissionError):
        RealDisk().create(tmp_path / "file")
    (descriptor,) = opened_as
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_append_goes_on_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev, pwrite = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [b"".join(parts)[:5]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:3], at))
    assert write_whole([b"abcd", b"efgh", b"ijkl"], tmp_path) == b"abcdefghijkl"
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    (tmp_path / "file").unlink()
    with pytest.raises(OSError, match="no more bytes"):
        write_whole([b"abcd", b"efgh"], tmp_path)


def test_room_is_behind_the_end_and_appends_go_into_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = RealDisk().create(path)
    file.append([b"one"])
    file.make_room(8)
    file.append([b"two", b"three"])
    file.sync()
    assert path.read_bytes() == b"onetwothree"
    file.make_room(4)
    file.close()
    again = RealDisk().open_append(path)
    again.append([b"behind whatever is there"])
    again.close()
    assert path.read_bytes() == b"onetwothree\0\0\0\0behind whatever is there"


def test_rewrite_and_read_go_on_after_short_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"abcdefgh")
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:3], at))
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 2), at))
    RealDisk().rewrite(tmp_path / "file", 1, b"BCDEFG")
    assert RealDisk().read(tmp_path / "file", 0, 100) == b"aBCDEFGh"
    assert RealDisk().read(tmp_path / "file", 2, 3) == b"CDE"
    assert RealDisk().read(tmp_path / "file", 8, 3) == b""


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    disk, link = RealDisk(), tmp_path / "link"
    calls: list[Callable[[], object]] = [
        lambda: disk.read(link, 0, 1),
        lambda: disk.open_append(link),
        lambda: disk.create(link),
        lambda: disk.truncate(link, 0),
        lambda: disk.rewrite(link, 0, b"y"),
        lambda: disk.lock(link),
    ]
    for call in calls:
        with pytest.raises((OSError, DataDirUnusable)):
            call()
    assert (tmp_path / "secret").read_bytes() == b"x"
    facts = disk.facts(link)
    assert facts is not None
    assert facts.is_link
    assert not facts.is_file
    assert disk.facts(tmp_path / "nothing") is None


async def test_a_segment_that_is_a_link_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "wal"
    await opened(directory, disk=RealDisk()).close()
    (segment,) = directory.glob("segment-*")
    segment.rename(tmp_path / "elsewhere")
    segment.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="not a plain file"):
        opened(directory, disk=RealDisk())


CHILD = """
import sys
from pathlib import Path
from server.clock import SystemClock
from server.errors import UnderstudyError
from server.wal.files import RealDisk
from server.wal.log import Log, WalLimits
try:
    Log.open(Path(sys.argv[1]), disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds=range(1, 18))
except UnderstudyError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def open_in_a_child(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, directory]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


async def test_a_second_process_leaves_at_once_and_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "wal"
    log = opened(directory, disk=RealDisk())
    await log.append(entry(b"x"))
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    child = await asyncio.to_thread(open_in_a_child, directory)
    assert child.returncode == WalLocked.exit_code
    assert f"in use by process {os.getpid()}" in child.stdout
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    await log.close()
    assert (await asyncio.to_thread(open_in_a_child, directory)).returncode == 0


def test_who_only_asks_whether_a_lock_is_held_takes_and_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    refuse_when_held(path)
    assert not path.exists()
    lock = RealDisk().lock(path)
    before = (path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    with pytest.raises(WalLocked, match=f"in use by process {os.getpid()}"):
        refuse_when_held(path)
    assert (path.stat().st_mtime_ns, path.stat().st_ctime_ns) == before
    lock.release()
    refuse_when_held(path)
    RealDisk().lock(path).release()


def test_a_lock_on_a_directory_that_was_moved_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wal").mkdir()

    def moved(_: os.stat_result, __: os.stat_result) -> bool:
        return False

    monkeypatch.setattr(os.path, "samestat", moved)
    with pytest.raises(WalLocked):
        RealDisk().lock(tmp_path / "wal" / "lock")


def test_a_lock_that_fails_for_another_reason_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataDirUnusable, match="No space left"):
        RealDisk().lock(tmp_path / "lock")


# --- keys ------------------------------------------------------------------------------------------------------------


async def with_key(tmp_path: Path) -> tuple[Path, Path]:
    directory = tmp_path / "wal"
    log = opened(directory, disk=RealDisk(), entropy=Entropy(str(tmp_path)))
    await log.append(entry(b"x"))
    await log.close()
    (key,) = (directory / "keys").iterdir()
    return directory, key


async def test_the_key_is_32_bytes_and_named_by_its_id(tmp_path: Path) -> None:
    _, key = await with_key(tmp_path)
    assert len(key.read_bytes()) == 32
    assert len(key.stem) == 16


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o610])
async def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    directory, key = await with_key(tmp_path)
    key.chmod(mode)
    with pytest.raises(WalKeyUnsafe, match=f"chmod 600 {key}"):
        opened(directory, disk=RealDisk())
    key.chmod(0o600)
    await opened(directory, disk=RealDisk()).close()


async def test_a_key_that_is_a_link_foreign_short_or_renamed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, key = await with_key(tmp_path)
    content = key.read_bytes()
    key.rename(tmp_path / "away")
    key.symlink_to(tmp_path / "away")
    with pytest.raises(WalKeyUnsafe, match="not a plain file"):
        opened(directory, disk=RealDisk())
    key.unlink()
    for bad in (b"", content[:31], content + b"\0"):
        key.write_bytes(bad)
        key.chmod(0o600)
        with pytest.raises(WalKeyUnsafe, match="32 bytes"):
            opened(directory, disk=RealDisk())
    key.write_bytes(bytes(32))
    with pytest.raises(WalKeyUnsafe, match="changed or renamed"):
        opened(directory, disk=RealDisk())
    key.write_bytes(content)
    disk = RealDisk()
    monkeypatch.setattr(disk, "facts", lambda path: _foreign(RealDisk().facts(path)))
    with pytest.raises(WalKeyUnsafe, match="another user"):
        opened(directory, disk=disk)


def _foreign(facts: object) -> object:
    from dataclasses import replace

    return replace(facts, is_ours=False)  # type: ignore[type-var]


async def test_a_lost_key_is_never_remade(tmp_path: Path) -> None:
    directory, key = await with_key(tmp_path)
    content = key.read_bytes()
    key.unlink()
    before = sorted(directory.rglob("*"))
    with pytest.raises(WalKeyMissing, match="no key"):
        opened(directory, disk=RealDisk())
    other = await with_key(tmp_path / "other")
    (key.parent / other[1].name).write_bytes(other[1].read_bytes())
    (key.parent / other[1].name).chmod(0o600)
    with pytest.raises(WalKeyMissing, match=key.stem):
        opened(directory, disk=RealDisk())
    (key.parent / other[1].name).unlink()
    assert sorted(directory.rglob("*")) == before
    key.write_bytes(content)
    key.chmod(0o600)
    log = opened(directory, disk=RealDisk())
    assert bodies(await read_all(log)) == [b"x"]
    await log.close()


async def test_a_quarantine_without_its_key_refuses_to_start(tmp_path: Path) -> None:
    directory, key = await with_key(tmp_path)
    (directory / "quarantine" / "00000000000000000001.entry").write_bytes(b"")
    for path in (key, directory / "head", *directory.glob("segment-*")):
        path.unlink()
    with pytest.raises(WalKeyMissing):
        opened(directory, disk=RealDisk())


# --- the simulated disk does what the real one does ------------------------------------------------------------------


def test_the_crash_disk_and_the_real_disk_agree(tmp_path: Path) -> None:
    results = []
    simulated = CrashDisk()
    simulated.make_directory(tmp_path)
    disks: list[Disk] = [RealDisk(), simulated]
    for disk in disks:
        results.append(list(script(disk, tmp_path / "here")))
    assert results[0] == results[1]
    assert len(results[0]) > 15


def script(disk: Disk, directory: Path) -> Iterator[object]:
    def attempt(call: Callable[[], object]) -> object:
        try:
            return call()
        except OSError as error:
            return errno.errorcode[error.errno]

    yield disk.names(directory)
    disk.make_directory(directory / "inner")
    yield disk.names(directory)
    a, b = directory / "a", directory / "b"
    yield attempt(lambda: disk.read(a, 0, 1))
    yield attempt(lambda: disk.open_append(a))
    yield attempt(lambda: disk.remove(a))
    yield attempt(lambda: disk.rename(a, b))
    yield attempt(lambda: disk.truncate(a, 0))
    yield disk.facts(a)
    file = disk.create(a)
    yield attempt(lambda: disk.create(a))
    file.append([b"abc", b"def"])
    file.sync()
    yield disk.read(a, 2, 3)
    yield disk.facts(a)
    disk.rewrite(a, 1, b"bc")
    disk.truncate(a, 4)
    file.append([b"X"])
    file.close()
    again = disk.open_append(a)
    again.append([b"Y"])
    again.close()
    yield disk.read(a, 0, 100)
    publish(disk, b, [b"pub", b"lished"])
    publish(disk, b, [b"again"])
    yield disk.read(b, 0, 100)
    disk.rename(a, b)
    disk.sync_directory(directory)
    yield disk.read(b, 0, 100)
    yield disk.names(directory)
    disk.remove(b)
    yield disk.names(directory)
    held = disk.lock(directory / "lock")
    try:
        disk.lock(directory / "lock")
    except WalLocked as error:
        yield type(error)
    held.release()
    disk.lock(directory / "lock").release()
    yield attempt(lambda: disk.sync_directory(directory / "nowhere"))


def test_what_a_failed_publish_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "head.tmp").write_bytes(b"torn")
    publish(RealDisk(), tmp_path / "head", [b"whole"])
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    assert (tmp_path / "head").read_bytes() == b"whole"


async def test_opening_takes_the_time_of_one_look_when_everything_is_replayed(tmp_path: Path) -> None:
    """Segments that Qdrant has passed are not read again: their number does not show in what open reads."""
    log = opened(tmp_path / "wal", disk=RealDisk(), limits=WalLimits(segment_bytes=10_000, cache_bytes=0))
    for _ in range(200):
        await log.append(entry(bytes(1000)))
    await log.mark_replayed(200)
    await log.close()
    log = opened(tmp_path / "wal", disk=RealDisk(), entropy=Entropy("again"))
    assert log.recovery.segments > 20
    assert log.recovery.entries_verified < 20
    assert (log.last_seq, log.first_seq, log.pending_count) == (200, 1, 0)
    assert len(await read_all(log)) == 200
    await log.close()
