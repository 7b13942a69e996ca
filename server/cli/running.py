"""The log behind a command: the server that holds it, asked through its control socket, or the directory itself.

Promises: an error of the server is raised as the error that it was there, exit code and hint included; an answer that
was cut off is an error, never a short answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from server import errors
from server.cli.options import keys_of, version
from server.clock import SystemClock
from server.config import Settings
from server.errors import AdminRefused, UnderstudyError, WalError, WalLocked
from server.rpc import WAL_KINDS
from server.wal import inspect
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log

if TYPE_CHECKING:
    from generated.understudy.replica.v1.replica_pb2 import RefusedEntry

CONNECT_SECONDS = 5.0

T = TypeVar("T")


def here_or_there(directory: Path, here: Callable[[], T], there: Callable[[Running], T]) -> T:
    """`here` when nobody holds the log, else `there`, with the server that does."""
    try:
        return here()
    except WalLocked as locked:
        return there(Running.of(directory, locked))


def on_open_log(settings: Settings, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One operation of `LogDesk` on a log that nobody holds: it is opened for it and closed again."""
    # Here, not above, as in `Running.of`: these bring what a server needs, and commands should be quick.
    from server.log_desk import LogDesk
    from server.replay.requeue import Requeue

    fallback, clock = settings.vectorstore.fallback, SystemClock()
    limits = WalLimits.from_settings(settings.wal)

    async def work(log: Log) -> dict[str, Any]:
        desk = LogDesk(
            log,
            RealDisk(),
            clock,
            Requeue(log, limits, WAL_KINDS),
            applied_seq=lambda: applied_seq(fallback.local_path),
            give_up=lambda entries: asyncio.to_thread(give_up, log, entries),
            retention_days=fallback.wal_retention_days,
            version=version(),
        )
        return await desk.operations[name](arguments)

    return inspect.with_open(
        fallback.wal_path, work, clock=clock, kinds=tuple(WAL_KINDS), limits=limits, external=keys_of(settings)
    )


def give_up(log: Log, entries: Sequence[RefusedEntry]) -> None:
    """What these did to the replica, or will do, is not to be taken for what Qdrant lost: it learns it at the start."""
    from server.replay.grace_notes import GraceNotes

    GraceNotes(RealDisk(), log.directory, log.log_id, log.replayed_seq).give_up(entries)


def applied_seq(store: Path) -> int:
    """How far the replica is: what it has not applied must stay in the log."""
    from server.replica.store import Store

    if not store.is_dir():
        raise WalError(f"there is no replica in {store}", hint="Is --data-dir right?")
    opened = Store(store, SystemClock())
    try:
        return opened.applied_seq
    finally:
        opened.close()


class Running:
    """A server that holds a log."""

    def __init__(self, path: Path, locked: WalLocked) -> None:
        self._path = path
        self._locked = locked

    @classmethod
    def of(cls, directory: Path, locked: WalLocked) -> Running:
        """The server that holds `directory`. Raises WalLocked when it says nowhere how to reach it."""
        from server.control import read_control

        path = read_control(directory.absolute(), RealDisk())
        if path is None:
            raise _unreachable(locked, "it has no control socket")
        return cls(path, locked)

    def ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        """One operation of `server.control.Control.offer`."""
        with self._answer(name, arguments) as answer:
            document = json.loads(answer.read())
        if not isinstance(document, dict):
            raise _unreachable(self._locked, "what answers there is not Understudy")
        return document

    def rows(self, name: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The rows of `server.control.Control.offer_rows`, as they come."""
        with self._answer(name, arguments) as answer:
            while line := answer.readline():
                document = json.loads(line)
                if "end" in document:
                    return
                if "error" in document:
                    raise _error(document["error"])
                yield document["row"]
            raise _unreachable(self._locked, "it stopped in the middle of its answer")

    @contextlib.contextmanager
    def _answer(self, name: str, arguments: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self._path)
        try:
            connection.request("POST", f"/{name}", json.dumps(arguments).encode(), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise _error(json.loads(answer.read()).get("error"))
            yield answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unreachable(self._locked, f"its control socket does not answer ({error})") from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket. To connect takes no time; an answer may take as long as reading the whole log."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """See HTTPConnection."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_SECONDS)
        self.sock.connect(str(self._path))
        self.sock.settimeout(None)


def _unreachable(locked: WalLocked, why: str) -> WalLocked:
    return WalLocked(
        f"{locked.args[0]}, and {why}",
        hint="If it is just starting or stopping, try again in a moment; else stop it",
    )


def _error(document: Any) -> UnderstudyError:
    """The error that the server met."""
    found = document if isinstance(document, dict) else {}
    kind = getattr(errors, str(found.get("class", "")), None)
    if not (isinstance(kind, type) and issubclass(kind, UnderstudyError)):
        kind = AdminRefused
    error: UnderstudyError = kind.__new__(kind)
    UnderstudyError.__init__(error, str(found.get("message", "the server refused")), hint=str(found.get("hint", "")))
    return error
