"""The operators' port: numbers, health, status and two acts, over HTTP.

Promises: GET changes nothing; POST wants the header `x-understudy-admin: 1`, which no web page of another origin can
send, and on a loopback address any request must name a loopback host, so that no page can reach it under another name.
Answers are JSON but for `/metrics` (Prometheus text) and the status page, which loads nothing from elsewhere.
Does not promise authentication: it listens on the loopback unless told otherwise, and then a network must guard it.

    GET  /           the status page            POST /hydrate   {"collections": [...], "verify": false}
    GET  /status     what it shows, as JSON     POST /sync
    GET  /metrics    Prometheus text            GET  /livez     200 while the event loop turns
    GET  /wal        entries of the log         GET  /readyz    200 when clients are answered
"""

from __future__ import annotations

import errno
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from aiohttp import web

from server.addresses import is_loopback, join_address, split_address
from server.errors import AddressInUse, ConfigError, UnderstudyError
from server.metrics import CONTENT_TYPE

GUARD_HEADER: Final = "x-understudy-admin"
MAX_BODY_BYTES: Final = 64 * 1024
MAX_LISTED: Final = 1000

Document: TypeAlias = dict[str, Any]

_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
_ASSETS: Final = {"/status.css": "text/css", "/status.js": "text/javascript"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What the port can ask and do. An UnderstudyError of an act becomes 409 with its text.

    `ready` gives "" or why clients are not answered; `wal_entries` lists entries after a sequence number, at most so
    many; `hydrate` copies collections again, with True it only compares them and repairs.
    """

    status: Callable[[], Awaitable[Document]]
    metrics: Callable[[], bytes]
    ready: Callable[[], str]
    hydrate: Callable[[list[str], bool], Awaitable[Document]]
    sync: Callable[[], Awaitable[Document]]
    wal_entries: Callable[[int, int], Awaitable[list[Document]]]


class Admin:
    """The port. `start` and `stop` frame its life."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._runner: web.AppRunner | None = None
        self._is_loopback = True

    async def start(self, address: str) -> str:
        """Listen on HOST:PORT (0 picks a port) and tell where. Raises AddressInUse, ConfigError."""
        host, port = split_address(address)
        self._is_loopback = is_loopback(host)
        runner = web.AppRunner(self._application(), access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, reuse_address=True).start()
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(f"the admin address {address} is in use") from error
            raise ConfigError(f"cannot listen on the admin address {address}: {error.strerror}") from error
        self._runner = runner
        bound_host, bound_port = runner.addresses[0][:2]
        return join_address(bound_host, bound_port)

    async def stop(self) -> None:
        """Answer no more."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        application.router.add_get("/", self._page)
        for path, content_type in _ASSETS.items():
            application.router.add_get(path, _asset(path, content_type))
        application.router.add_get("/status", self._status)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/wal", self._wal)
        application.router.add_post("/hydrate", self._hydrate)
        application.router.add_post("/sync", self._sync)
        return application

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._is_loopback and not is_loopback(_host_of(request.host)):
            return _refuse(403, "this port answers to a loopback name only")
        if request.method == "POST" and request.headers.get(GUARD_HEADER) != "1":
            return _refuse(403, f"send the header {GUARD_HEADER}: 1")
        try:
            return await handler(request)
        except UnderstudyError as error:
            return _refuse(409, str(error))

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(text=_static("status.html"), content_type="text/html", headers=_PAGE_HEADERS)

    async def _status(self, _request: web.Request) -> web.Response:
        return _json(await self._desk.status())

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._desk.metrics(), headers={"Content-Type": CONTENT_TYPE})

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reason = self._desk.ready()
        return web.Response(text=f"{reason}\n", status=503) if reason else web.Response(text="ok\n")

    async def _wal(self, request: web.Request) -> web.Response:
        try:
            after = int(request.query.get("after", "0"))
            limit = int(request.query.get("limit", "100"))
        except ValueError:
            return _refuse(400, "`after` and `limit` are whole numbers")
        if after < 0 or not 1 <= limit <= MAX_LISTED:
            return _refuse(400, f"`after` is 0 or more, `limit` 1 to {MAX_LISTED}")
        return _json({"entries": await self._desk.wal_entries(after, limit)})

    async def _hydrate(self, request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.text() or "{}")
        except ValueError:
            return _refuse(400, "the body is not JSON")
        names = body.get("collections", []) if isinstance(body, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return _refuse(400, 'the body is {"collections": ["name", ...]}, empty for all')
        verify = body.get("verify", False)
        if not isinstance(verify, bool):
            return _refuse(400, "`verify` is true or false")
        return _json(await self._desk.hydrate(names, verify))

    async def _sync(self, _request: web.Request) -> web.Response:
        return _json(await self._desk.sync())


def _host_of(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _json(document: Document) -> web.Response:
    return web.json_response(document, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})


def _refuse(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)


def _static(name: str) -> str:
    return (Path(__file__).with_name("static") / name).read_text(encoding="utf-8")


def _asset(path: str, content_type: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(text=_static(path.removeprefix("/")), content_type=content_type, headers=_PAGE_HEADERS)

    return answer
