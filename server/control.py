"""The control socket: what `understudy wal` commands ask of the server that holds the log.

Promises: HTTP over a Unix socket in a directory that only our user may enter (0700), its path published in
`<wal>/control` (0600): whoever could change the files of the log may ask, and nobody else. No TCP port offers any of
this. An error arrives at the command as the error that it was. Rows end with a line that says so, so that what was
cut off is never taken for the whole. Does not promise that an operation stops when the command that asked goes away.

    POST /NAME   a JSON object → a JSON object
                 or, for rows: lines of {"row": …}, then {"end": COUNT} or {"error": …}
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from aiohttp import web

from server.directories import socket_directory
from server.errors import DataDirUnusable, UnderstudyError
from server.wal.files import Disk, publish

CONTROL_NAME: Final = "control"
MAX_BODY_BYTES: Final = 64 * 1024
REFUSED_STATUS: Final = 409
PATH_BYTES_MAX: Final = 4096
_PREFIX: Final = "understudy-control-"
_SOCKET_NAME: Final = "socket"

Document: TypeAlias = dict[str, Any]
Operation: TypeAlias = Callable[[Document], Awaitable[Document]]
Rows: TypeAlias = Callable[[Document], AsyncIterator[Document]]


class Control:
    """The socket. `offer` what can be asked, then `start` and `stop` frame its life."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self._path = directory / CONTROL_NAME
        self._disk = disk
        self._operations: dict[str, Operation] = {}
        self._rows: dict[str, Rows] = {}
        self._runner: web.AppRunner | None = None
        self._folder: Path | None = None

    def offer(self, name: str, operation: Operation) -> None:
        """Answer POST /NAME. An UnderstudyError of the operation is raised anew by the command that asked."""
        self._operations[name] = operation

    def offer_rows(self, name: str, rows: Rows) -> None:
        """Answer POST /NAME with one row after the other, as many as there are."""
        self._rows[name] = rows

    async def start(self) -> Path:
        """Listen, publish where, and tell. The lock of the log is held, so an older socket is nobody's."""
        self._remove_older()
        self._folder = socket_directory(_PREFIX)
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post("/{name}", self._answer)
        runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._runner = runner
        socket = self._folder / _SOCKET_NAME
        try:
            await web.UnixSite(runner, str(socket)).start()
            socket.chmod(0o600)
            publish(self._disk, self._path, [os.fsencode(socket) + b"\n"])
        except OSError as error:
            await self.stop()
            raise DataDirUnusable(f"cannot make the control socket {socket}: {error.strerror or error}") from error
        return socket

    async def stop(self) -> None:
        """Answer no more."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        folder, self._folder = self._folder, None
        if folder is not None:
            if self._disk.facts(self._path) is not None:
                self._disk.remove(self._path)
            shutil.rmtree(folder, ignore_errors=True)

    def _remove_older(self) -> None:
        """Take away what a server left that was killed, if it looks like ours."""
        socket = read_control(self._path.parent, self._disk)
        if socket is None or socket.name != _SOCKET_NAME or not socket.parent.name.startswith(_PREFIX):
            return
        folder = self._disk.facts(socket.parent)
        if folder is not None and folder.is_ours and not folder.is_link and _is_for_sockets(socket.parent):
            shutil.rmtree(socket.parent, ignore_errors=True)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        try:
            asked = json.loads(await request.text() or "{}")
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            return web.json_response({"error": {"message": "the body is not a JSON object"}}, status=400)
        if name in self._rows:
            return await self._stream(request, self._rows[name](asked))
        if name not in self._operations:
            text = f"the running server does not know the command {name}: it is of another version"
            return web.json_response({"error": {"message": text}}, status=REFUSED_STATUS)
        try:
            return web.json_response(await self._operations[name](asked), dumps=_dumps)
        except UnderstudyError as error:
            return web.json_response({"error": error_document(error)}, status=REFUSED_STATUS)
        except (KeyError, TypeError, ValueError) as error:
            text = f"the running server cannot make sense of the command {name}: {error!r}"
            return web.json_response({"error": {"message": text}}, status=400)

    @staticmethod
    async def _stream(request: web.Request, rows: AsyncIterator[Document]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        count = 0
        last: Document
        try:
            async for row in rows:
                await response.write(_line({"row": row}))
                count += 1
            last = {"end": count}
        except UnderstudyError as error:
            last = {"error": error_document(error)}
        await response.write(_line(last))
        await response.write_eof()
        return response


def read_control(directory: Path, disk: Disk) -> Path | None:
    """Where the server that holds the log says that its socket is; None when there is no such file of ours."""
    path = directory / CONTROL_NAME
    facts = disk.facts(path)
    if facts is None or not facts.is_file or facts.size > PATH_BYTES_MAX:
        return None
    text = os.fsdecode(disk.read(path, 0, PATH_BYTES_MAX)).strip()
    return Path(text) if text.startswith("/") else None


def error_document(error: UnderstudyError) -> Document:
    """An error as the command needs it to raise it again."""
    return {"class": type(error).__name__, "message": str(error.args[0]), "hint": error.hint}


def _is_for_sockets(folder: Path) -> bool:
    """Whether a directory is one that `start` makes: private, holding nothing but sockets."""
    if stat.S_IMODE(folder.lstat().st_mode) != 0o700:
        return False
    return all(stat.S_ISSOCK(entry.lstat().st_mode) for entry in folder.iterdir())


def _line(document: Document) -> bytes:
    return _dumps(document).encode() + b"\n"


def _dumps(document: Any) -> str:
    return json.dumps(document, default=str, ensure_ascii=False)
