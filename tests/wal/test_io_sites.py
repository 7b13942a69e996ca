"""Every call on files fails once, in every way: found in the source, all of them hit.

Once through the Disk (a simulated one, with power cuts) and once through the system calls (the real one).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from server.errors import UnderstudyError
from server.wal import files
from server.wal.ballast import Space
from server.wal.conflict_log import ConflictLog
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.opening import open_directory
from server.wal.reader import Stretch, read_entries
from server.wal.record import SEGMENT_HEADER_BYTES
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.io_life import ArmedDisk, Arms, Call, Life, Site, here, sites, system_calls
from tests.wal.support import DIRECTORY, RULES, Entropy, quarantined, recovered

CODES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EINTR": errno.EINTR}


def missing(expected: list[Call], hit: Counter[Site]) -> list[str]:
    return [f"{call.module}:{call.first_line} {call.text}" for call in expected if not any(map(call.is_at, hit))]


# --- through the Disk ------------------------------------------------------------------------------------------------


async def simulated(fault: tuple[Site, int] | None, code: int) -> tuple[Life, CrashDisk, Counter[Site]]:
    """One life; the call number `fault[1]` at the site `fault[0]` fails."""
    disk = CrashDisk()
    arms = Arms()
    hit: Counter[Site] = Counter()

    def on_call(operation: str, path: Path) -> None:
        site = here()
        if operation == "synced" or site is None:
            return
        hit[site] += 1
        if fault == (site, hit[site]):
            raise OSError(code, os.strerror(code), str(path))
        arms.check(operation, path)

    def put(path: Path, data: bytes) -> None:
        if str(path.parent) in disk.directories:
            disk.put(path, data)

    disk.on_call = on_call
    life = Life(disk, DIRECTORY, arms, lambda: sorted(path.name for path in disk.everything()), put, disk.content)
    await life.live()
    disk.on_call = None
    return life, disk, hit


def lost(life: Life, found: dict[int, bytes]) -> set[int]:
    return {seq for seq, body in life.acknowledged.items() if seq > life.retired and found.get(seq) != body}


async def test_the_life_makes_every_call_on_the_disk_that_the_source_has() -> None:
    expected = sites()
    assert len(expected) > 60
    life, _, hit = await simulated(None, 0)
    assert missing(expected, hit) == [], "a call that no test makes fail: let tests/wal/io_life.py make it"
    assert len(life.acknowledged) > 40


@pytest.mark.parametrize("code", CODES)
async def test_every_call_on_the_disk_fails_once(code: str) -> None:
    _, _, healthy = await simulated(None, 0)
    failed: Counter[Site] = Counter()
    for site, count in healthy.items():
        for number in sorted({1, count} if code != "EINTR" else {1}):
            life, disk, hit = await simulated((site, number), CODES[code])
            name = f"{site[0]}:{site[1]}, call {number} of {count}, {code}"
            failed[site] += hit[site] >= number
            told = "; ".join(map(str, life.errors))
            assert "internal error" not in told, f"{name}: {told}"
            for state in (disk.after_kill(), disk.after_power_cut(None)):
                result, records = recovered(state)
                found = {record.seq: record.body for record in records}
                assert set(found.values()) <= life.tried, name
                assert not lost(life, found), f"{name}: lost {lost(life, found)}"
                assert [record.seq for record in records] == list(range(records[0].seq, records[-1].seq + 1)), name
                assert life.cursor <= result.survey.replayed_seq or not len(result.survey.pending), name
                assert life.kept <= quarantined(state, result), name
                assert life.noted <= {row.body for row in ConflictLog(state, DIRECTORY, 1_000).rows()}, name
    assert missing(sites(), failed) == []


# --- through the system calls ----------------------------------------------------------------------------------------

# By function and call: how many times it is called until it fails by itself, in every life.
CORNERS = {
    ("create", "os.fchmod"): 9,
    ("_take_lock", "os.fchmod"): 3,
    ("_write_all", "os.pwritev"): 7,
    ("open_append", "os.fstat"): 3,
}


@dataclass
class Watcher:
    """Stands between server/wal/files.py and the system: counts, lets one call fail, remembers what a sync did."""

    fault: tuple[Site, int] | None
    kind: str
    hit: Counter[Site] = field(default_factory=Counter)
    broken: set[int] = field(default_factory=set)
    again: list[str] = field(default_factory=list)
    opened: set[int] = field(default_factory=set)
    SYNCS: ClassVar = ("os.fsync", "os.fdatasync")
    SHORT: ClassVar = ("os.pwritev", "os.pwrite", "os.pread")

    def call(self, text: str, function: Callable[..., Any], frame: Any, *arguments: Any, **more: Any) -> Any:
        site, line = ("files.py", frame.f_lineno), frame.f_lineno
        self.hit[site] += 1
        corner = (frame.f_code.co_name, text)
        if self.fault != (site, self.hit[site]) and self.hit[site] == CORNERS.get(corner):
            # So that what follows a failure is reached, and can be made to fail in its turn.
            if text in self.SHORT:
                return self._short(text, function, arguments)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        descriptor = arguments[0] if arguments and isinstance(arguments[0], int) else None
        if descriptor in self.broken and text not in ("os.close", "os.pread"):
            self.again.append(f"{text} at line {line} after a failed sync")
        if self.fault == (site, self.hit[site]):
            if self.kind in CODES:
                if text in self.SYNCS and descriptor is not None:
                    self.broken.add(descriptor)
                if text == "os.close" and descriptor is not None:
                    # Linux closes, whatever it says.
                    self.opened.discard(descriptor)
                    self.broken.discard(descriptor)
                    os.close(descriptor)
                raise OSError(CODES[self.kind], os.strerror(CODES[self.kind]))
            if text in self.SHORT:
                return self._short(text, function, arguments)
        result = function(*arguments, **more)
        if text == "os.open":
            self.opened.add(result)
        elif text == "os.close":
            self.opened.discard(arguments[0])
            self.broken.discard(arguments[0])
        return result

    def _short(self, text: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if text == "os.pread":
            return function(arguments[0], max(1, arguments[1] // 2), arguments[2])
        data = b"".join(arguments[1]) if text == "os.pwritev" else bytes(arguments[1])
        half = data[: max(1, len(data) // 2)]
        return function(arguments[0], [half] if text == "os.pwritev" else half, *arguments[2:])

    def module(self, real: types.ModuleType, name: str) -> Any:
        """What stands for `os` or `fcntl` in server/wal/files.py."""
        watcher = self

        class Standing:
            path = os.path

            def __getattr__(self, attribute: str) -> Any:
                value = getattr(real, attribute)
                if (
                    not callable(value)
                    or isinstance(value, type)
                    or f"{name}.{attribute}" in ("os.geteuid", "os.getpid")
                ):
                    return value

                def standing(*arguments: Any, **more: Any) -> Any:
                    return watcher.call(f"{name}.{attribute}", value, sys._getframe(1), *arguments, **more)

                return standing

        return Standing()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: this is about errors, not about the medium."""
    if os.access("/dev/shm", os.W_OK):
        place = Path("/dev/shm") / f"understudy-{os.getpid()}" / tmp_path.name
        place.mkdir(parents=True, mode=0o700)
        yield place
        shutil.rmtree(place.parent)
    else:
        yield tmp_path


async def real(directory: Path, fault: tuple[Site, int] | None, kind: str) -> tuple[Life, Watcher]:
    shutil.rmtree(directory / "wal", ignore_errors=True)
    watcher, arms = Watcher(fault, kind), Arms()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "os", watcher.module(os, "os"))
        patched.setattr(files, "fcntl", watcher.module(fcntl, "fcntl"))
        for name in ("mkdir", "chmod", "stat", "lstat", "exists", "rename", "unlink"):
            _watch_path(patched, watcher, name)

        def put(path: Path, data: bytes) -> None:
            if path.parent.is_dir():
                path.write_bytes(data)
                path.chmod(0o600)
                path.parent.chmod(0o750 if path.parent.name == "wal" else 0o700)

        def look(path: Path) -> None:
            for attempt in (files.refuse_when_held, RealDisk().lock):
                try:
                    attempt(path)
                except (OSError, UnderstudyError) as error:
                    refused.append(error)

        disk: Any = ArmedDisk(RealDisk(), arms.check)
        refused: list[Exception] = []

        def listing() -> list[str]:
            return sorted(path.name for path in (directory / "wal").glob("*"))

        life = Life(disk, directory / "wal", arms, listing, put, Path.read_bytes, look)
        await life.live()
    assert len(refused) >= 2, "a lock that is held is refused, whatever fails"
    return life, watcher


def _watch_path(patched: pytest.MonkeyPatch, watcher: Watcher, name: str) -> None:
    original = getattr(Path, name)

    def method(path: Path, *arguments: Any, **more: Any) -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_filename != files.__file__:
            return original(path, *arguments, **more)
        return watcher.call(f"Path.{name}", original, frame, path, *arguments, **more)

    patched.setattr(Path, name, method)


async def test_the_life_makes_every_system_call_that_the_source_has(directory: Path) -> None:
    expected = system_calls()
    assert len(expected) > 40
    _, watcher = await real(directory, None, "")
    left = "\n".join(missing(expected, watcher.hit))
    assert not left, f"system calls that no test makes fail:\n{left}"
    assert not watcher.again
    assert not watcher.opened


@pytest.mark.parametrize("kind", [*CODES, "short"])
async def test_every_system_call_fails_once(directory: Path, kind: str) -> None:
    _, healthy = await real(directory, None, "")
    shortened = [call for call in system_calls() if call.text in Watcher.SHORT]
    failed: Counter[Site] = Counter()
    for site, count in healthy.hit.items():
        if kind == "short" and not any(call.is_at(site) for call in shortened):
            continue
        for number in sorted({1, count} if kind != "EINTR" else {1}):
            life, watcher = await real(directory, (site, number), kind)
            name = f"line {site[1]}, call {number} of {count}, {kind}"
            failed[site] += watcher.hit[site] >= number
            told = "; ".join(map(str, life.errors))
            assert "internal error" not in told, f"{name}: {told}"
            assert not watcher.again, f"{name}: {watcher.again}"
            assert not watcher.opened, f"{name}: descriptors left open"
            space = Space(RealDisk(), directory / "wal", WalLimits())
            result = open_directory(
                RealDisk(), directory / "wal", RULES, ManualClock(), Entropy("recovered"), space=space
            )
            result.file.close()
            result.lock.release()
            stretches = [Stretch(one.path, one.codec, SEGMENT_HEADER_BYTES, one.size) for one in result.survey.segments]
            records = read_entries(RealDisk(), stretches, RULES, after_seq=0, limit_entries=10**9, limit_bytes=10**9)
            found = {record.seq: record.body for record in records}
            assert set(found.values()) <= life.tried, name
            assert not lost(life, found), f"{name}: lost {lost(life, found)}"
    assert missing(shortened if kind == "short" else system_calls(), failed) == []
