"""What the tests of the log share."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from server.wal.ballast import Space
from server.wal.files import Disk
from server.wal.keysource import ExternalKeys
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.opening import Opened, new_segment, open_directory
from server.wal.quarantine import Quarantine
from server.wal.reader import Stretch, read_entries
from server.wal.record import SEGMENT_HEADER_BYTES, EntryState, FrameRules, NewRecord, Record
from server.wal.scan import segment_name
from server.wal.signing import key_id_of
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk

KINDS = frozenset(range(1, 18))
DIRECTORY = Path("/data/wal")
PENDING, SYNCED = EntryState.PENDING, EntryState.SYNCED
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RULES = FrameRules(KINDS, 10_000_000, 10_000)


class Entropy:
    """Bytes that look random and are the same in every run."""

    def __init__(self, seed: str = "") -> None:
        self._seed = seed
        self._count = 0

    def __call__(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(f"{self._seed}/{self._count}".encode()).digest(length)


def entry(body: bytes, state: EntryState = PENDING, *, kind: int = 1, points: int = 1) -> NewRecord:
    """An entry with everything in it."""
    return NewRecord(kind, state, body, hashlib.sha256(body).digest(), TRACE, points)


def opened(
    directory: Path = DIRECTORY,
    *,
    disk: Disk,
    limits: WalLimits | None = None,
    clock: ManualClock | None = None,
    kinds: frozenset[int] = KINDS,
    entropy: Entropy | None = None,
    external: ExternalKeys | None = None,
) -> Log:
    """An open log on a manual clock."""
    return Log.open(
        directory,
        disk=disk,
        clock=clock or ManualClock(),
        limits=limits or WalLimits(),
        kinds=kinds,
        entropy=entropy or Entropy(),
        external=external,
    )


async def read_all(log: Log, after_seq: int = 0, *, page: int = 1000) -> list[Record]:
    """Every entry after `after_seq`."""
    found: list[Record] = []
    while records := await log.read(found[-1].seq if found else after_seq, page, 1 << 20):
        found += records
    return found


def bodies(records: Sequence[Record]) -> list[bytes]:
    """Their bodies."""
    return [record.body for record in records]


def recovered(disk: CrashDisk, external: ExternalKeys | None = None) -> tuple[Opened, list[Record]]:
    """Open a directory as the log does, without its thread, and read every entry."""
    space = Space(disk, DIRECTORY, WalLimits())
    result = open_directory(disk, DIRECTORY, RULES, ManualClock(), Entropy("recovered"), space=space, external=external)
    result.file.close()
    result.lock.release()
    stretches = [Stretch(each.path, each.codec, SEGMENT_HEADER_BYTES, each.size) for each in result.survey.segments]
    return result, read_entries(disk, stretches, RULES, after_seq=0, limit_entries=10**9, limit_bytes=10**9)


def quarantined(disk: CrashDisk, result: Opened) -> set[int]:
    """Sequence numbers of what is in quarantine and can be trusted."""
    items = Quarantine(disk, DIRECTORY, result.survey.keyring, b"", b"").items()
    return {item.seq for item in items if not item.flaw}


def failing(
    *operations: str, name: str = "", times: int | None = None, code: int = errno.EIO
) -> Callable[[str, Path], None]:
    """For `CrashDisk.on_call`: the next calls of these operations, on files whose name begins with `name`, fail; all
    of them, or as many as `times`."""
    left = times

    def fail(called: str, path: Path) -> None:
        nonlocal left
        if called not in operations or not path.name.startswith(name) or left == 0:
            return
        left = None if left is None else left - 1
        raise OSError(code, os.strerror(code))

    return fail


def forge_segment(disk: CrashDisk, key: bytes) -> None:
    """A third segment that follows the log, by somebody who has only a key that was replaced."""
    result, _ = recovered(disk.after_kill())
    forged = new_segment(
        replace(result.head, key_id=key_id_of(key)),
        key,
        ManualClock(),
        Entropy("forger"),
        number=3,
        seq=2,
        replayed_seq=0,
        previous_bytes=result.survey.segments[1].size,
        previous_mac=result.tip.mac,
    )
    disk.put(DIRECTORY / segment_name(3), forged.encoded)
