"""A life of a log that makes every call on files that a running log makes, and what must be true after it.

Promises: the calls are found in the source, not listed here: `sites` gives every call on a Disk in the modules of a
running log, and `system_calls` every call on files in `server/wal/files.py`.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import server.wal
from server.errors import UnderstudyError, WalError
from server.wal.ballast import BALLAST_NAME
from server.wal.conflict_log import DIRECTORY as CONFLICTS
from server.wal.conflict_log import ConflictLog
from server.wal.files import Disk, OpenFile
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from tests.faults.clock import ManualClock
from tests.wal.support import PENDING, SYNCED, Entropy, entry, opened, read_all

HOME = Path(server.wal.__file__).parent
LIMITS = WalLimits(
    segment_bytes=2_000, head_bytes=1_500, cache_bytes=0, free_bytes_min=0, ballast_bytes=8_192, reopen_seconds=0
)
# They run for a command, on a log that nobody writes: their errors end the command.
AT_REST = {"export.py", "harvest.py", "inspect.py", "keysource.py", "patrol.py", "repair.py", "salvage.py"}
AT_REST_FUNCTIONS = {("keyuse.py", "signing_now")}
DISK_CALLS = {
    *("make_directory", "names", "facts", "read", "create", "open_append", "rewrite", "truncate", "rename", "remove"),
    *("sync_directory", "allocate", "free_bytes", "lock", "append", "make_room", "sync"),
}
RECEIVERS = {"disk", "_disk", "file", "_file"}
# Calls on files in server/wal/files.py: functions of `os` and `fcntl`, methods of Path and DirEntry.
PATH_CALLS = {"mkdir", "chmod", "stat", "lstat", "exists", "rename", "unlink"}
NOT_FILES = {"os.geteuid", "os.getpid", "os.path.samestat"}

Site = tuple[str, int]


@dataclass(frozen=True)
class Call:
    """A call in the source."""

    module: str
    first_line: int
    last_line: int
    text: str

    def is_at(self, site: Site) -> bool:
        """Whether a frame that stands at `site` is in this call."""
        return site[0] == self.module and self.first_line <= site[1] <= self.last_line


def _calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the function around it."""

    def walk(node: ast.AST, around: str) -> Iterator[tuple[ast.Call, str]]:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else around
            if isinstance(child, ast.Call):
                yield child, around
            yield from walk(child, inner)

    return walk(ast.parse(path.read_text(encoding="utf-8")), "")


def sites() -> list[Call]:
    """Every call on a Disk or an OpenFile in the modules of a running log."""
    found = []
    for path in sorted(HOME.glob("*.py")):
        for node, around in _calls(path):
            function = node.func
            if path.name in AT_REST or (path.name, around) in AT_REST_FUNCTIONS:
                continue
            if isinstance(function, ast.Attribute) and function.attr in DISK_CALLS:
                receiver = ast.unparse(function.value)
                if receiver.rpartition(".")[2] in RECEIVERS:
                    found.append(Call(path.name, node.lineno, node.end_lineno or 0, f"{receiver}.{function.attr}"))
    return found


def system_calls() -> list[Call]:
    """Every call on files in `server/wal/files.py`."""
    found = []
    for node, _ in _calls(HOME / "files.py"):
        text = ast.unparse(node.func)
        is_os = text.startswith(("os.", "fcntl.")) and "(" not in text and text not in NOT_FILES
        is_path = isinstance(node.func, ast.Attribute) and node.func.attr in PATH_CALLS and not text.startswith("disk.")
        if is_os or is_path:
            found.append(Call("files.py", node.lineno, node.end_lineno or 0, text))
    return found


def site_of(frame: FrameType | None) -> Site | None:
    """Where in the log a call on the disk was made."""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{HOME}{os.sep}") and not frame.f_code.co_qualname.startswith(("RealDisk.", "_Real")):
            return Path(path).name, frame.f_lineno
        frame = frame.f_back
    return None


@dataclass
class Arms:
    """Failures that the life itself brings about, to get into every corner: each once, when it is armed."""

    armed: list[tuple[str, str, str, int]] = field(default_factory=list)

    def arm(self, operation: str, start: str, end: str, code: int) -> None:
        """The next `operation` on a name that begins with `start` and ends with `end` fails."""
        self.armed.append((operation, start, end, code))

    def check(self, operation: str, path: Path) -> None:
        """Raise what is armed for this call."""
        for armed in self.armed:
            called, start, end, code = armed
            if called == operation and path.name.startswith(start) and path.name.endswith(end):
                self.armed.remove(armed)
                raise OSError(code, os.strerror(code), str(path))


class ArmedDisk:
    """A disk whose calls go through `check` first."""

    def __init__(self, disk: Disk, check: Callable[[str, Path], None]) -> None:
        self._disk = disk
        self._check = check

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._disk, name)

        def call(path: Path, *rest: object) -> object:
            self._check(name, rest[0] if name == "rename" and isinstance(rest[0], Path) else path)
            result = method(path, *rest)
            return _ArmedFile(result, path, self._check) if name in ("create", "open_append") else result

        return call


class _ArmedFile:
    def __init__(self, file: OpenFile, path: Path, check: Callable[[str, Path], None]) -> None:
        self._file = file
        self._path = path
        self._check = check

    def append(self, parts: list[bytes]) -> None:
        self._check("append", self._path)
        self._file.append(parts)

    def make_room(self, length: int) -> None:
        self._check("make_room", self._path)
        self._file.make_room(length)

    def sync(self) -> None:
        self._check("sync", self._path)
        self._file.sync()

    def close(self) -> None:
        self._file.close()


@dataclass
class Life:
    """See the module. `listing`, `put` and `content` are somebody else's eyes and hands."""

    disk: Disk
    directory: Path
    arms: Arms
    listing: Callable[[], list[str]]
    put: Callable[[Path, bytes], None]
    content: Callable[[Path], bytes]
    # Called while a log is open, with its lock file.
    look: Callable[[Path], None] = lambda _: None
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    tried: set[bytes] = field(default_factory=set)
    errors: list[UnderstudyError] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    # Rows of the conflict log that are to be there in the end.
    noted: set[bytes] = field(default_factory=set)
    retired: int = 0
    cursor: int = 0
    opens: int = 0

    async def live(self) -> None:
        """Three processes one after the other; the second finds a torn tail, leftovers and a ballast."""
        for number, run in enumerate((self._first, self._second, self._third)):
            log = self._open()
            if log is None:
                continue
            await self._attempt(log.tend())
            self.look(self.directory / "lock")
            await run(log)
            self._note_conflicts(number)
            if log.latched:
                await self._attempt(log.reopen())
            await self._append(log, b"last %d" % number)
            await self._attempt(log.close())
            self._leave_traces()
            if number:
                self.put(self.directory / BALLAST_NAME, b"of another size")

    def _note_conflicts(self, number: int) -> None:
        """Rows come, some are taken back, and there is no room for all; what a crash left lies about."""
        self.put(self.directory / CONFLICTS / "1.rows.tmp", b"torn")
        try:
            conflicts = ConflictLog(self.disk, self.directory, 1_000)
            rows = [b"row %d/%d" % (number, item) for item in range(3)]
            conflicts.append(rows)
            self.noted |= set(rows)
            last = [row.number for row in conflicts.rows() if row.body == rows[1]]
            self.noted.discard(rows[1])
            conflicts.drop(last)
            conflicts.append([b"large" * 300])
            # It is larger than all the room there is, and the newest: whatever came before goes.
            self.noted.clear()
            conflicts.append([b"after it %d" % number])
            self.noted.add(b"after it %d" % number)
        except UnderstudyError as error:
            self.errors.append(error)

    def _open(self) -> Log | None:
        # A disk that failed once lets the second attempt pass.
        for _ in range(2):
            self.opens += 1
            try:
                return opened(
                    self.directory,
                    disk=self.disk,
                    limits=LIMITS,
                    clock=ManualClock(),
                    entropy=Entropy(f"{self.directory.name}/{self.opens}"),
                )
            except UnderstudyError as error:
                self.errors.append(error)
        return None

    def _leave_traces(self) -> None:
        """What a crash leaves: a torn tail, files of an interrupted publish."""
        segments = [name for name in self.listing() if name.startswith("segment-") and name.endswith(".wal")]
        if segments:
            path = self.directory / segments[-1]
            self.put(path, self.content(path) + b"torn")
        for name in ("head.tmp", "quarantine/1.entry.tmp"):
            self.put(self.directory / name, b"torn")

    async def _first(self, log: Log) -> None:
        await self._fill(log, 5)
        await self._keep_one(log)
        await self._attempt(log.rotate_key())
        await self._fill(log, 4)
        # A failed sync; then attempts to reopen that fail in the copy and leave it behind.
        self.arms.arm("sync", "segment", ".wal", errno.EIO)
        await self._append(log, b"not acknowledged")
        self.arms.arm("append", "segment", ".tmp", errno.EIO)
        await self._attempt(log.reopen())
        self.put(self.directory / "probe.tmp", b"torn")
        await self._attempt(log.reopen())
        await self._fill(log, 3)
        # Replayed and still there: the next open looks at their links only.
        target = log.last_seq
        if await self._attempt(log.mark_replayed(target)):
            self.cursor = max(self.cursor, target)

    async def _second(self, log: Log) -> None:
        await self._append(log, b"acknowledged without a sync", SYNCED)
        self.arms.arm("sync", "segment", ".wal", errno.EIO)
        await self._append(log, b"neither")
        names = self.listing()
        last = max((name for name in names if name.startswith("segment-") and name.endswith(".wal")), default="")
        if last:
            self.put(self.directory / (last + ".tmp"), b"torn")
            self.put(self.directory / f"segment-{int(last[8:24], 16) + 1:016x}.wal", b"stray")
        await self._attempt(log.reopen())
        await self._keep_one(log)
        # The disk is full: while a segment is begun, for room, for an entry, for the head, for the ballast.
        for operation, start in (
            ("sync_directory", self.directory.name),
            ("make_room", "segment"),
            ("append", "segment"),
            ("create", "head"),
            # Leaves head.tmp, which is in the way of the next one.
            ("append", "head"),
        ):
            self.arms.arm(operation, start, "", errno.ENOSPC)
            await self._fill(log, 4)
            self.arms.armed.clear()
            await self._attempt(log.tend())
        await self._fill(log, 6)
        self.arms.arm("append", "segment", ".wal", errno.ENOSPC)
        await self._fill(log, 1)
        self.arms.arm("sync_directory", self.directory.name, "", errno.ENOSPC)
        await self._attempt(log.tend())
        self.arms.armed.clear()
        await self._attempt(log.tend())
        await self._pass_on(log)

    async def _third(self, log: Log) -> None:
        await self._fill(log, 3)
        await self._keep_one(log)
        await self._attempt(log.release_quarantined(min(self.kept, default=0)))
        self.kept -= {min(self.kept, default=0)}
        try:
            await read_all(log)
        except WalError as error:
            self.errors.append(error)

    async def _fill(self, log: Log, batches: int) -> None:
        for _ in range(batches):
            state = SYNCED if len(self.tried) % 3 == 2 else PENDING
            names = [b"%d/" % (len(self.tried) + item) for item in range(2)]
            await asyncio.gather(*(self._append(log, name * 60, state) for name in names))

    async def _append(self, log: Log, body: bytes, state: object = PENDING) -> None:
        self.tried.add(body)
        try:
            seq = await log.append(entry(body, PENDING if state is PENDING else SYNCED))
        except WalError as error:
            self.errors.append(error)
            if log.latched and not self.arms.armed and "not ack" not in body.decode() and body != b"neither":
                await self._attempt(log.reopen())
        else:
            self.acknowledged[seq] = body

    async def _keep_one(self, log: Log) -> None:
        try:
            records = await log.read_pending(1, 1 << 20)
            for record in records:
                await log.quarantine([Refused(record, 3, "no")])
                self.kept.add(record.seq)
                await log.read_quarantined(record.seq)
        except WalError as error:
            self.errors.append(error)

    async def _pass_on(self, log: Log) -> None:
        """Everything is at Qdrant and goes: segments, then the keys that signed them."""
        target = log.last_seq
        if await self._attempt(log.mark_replayed(target)):
            self.cursor = max(self.cursor, target)
        for seq in sorted(self.kept):
            if await self._attempt(log.release_quarantined(seq)):
                self.kept.discard(seq)
        self.retired = log.replayed_seq
        await self._attempt(log.retire(log.last_seq, 1 << 62, 0.0))
        if log.latched:
            await self._attempt(log.reopen())
        await self._attempt(log.retire(log.last_seq, 1 << 62, 0.0))

    async def _attempt(self, call: Awaitable[object]) -> bool:
        try:
            await call
        except UnderstudyError as error:
            self.errors.append(error)
            return False
        return True


def here() -> Site | None:
    """The site that is on the stack now."""
    return site_of(sys._getframe(1))
