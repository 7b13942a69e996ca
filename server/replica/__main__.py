"""The replica's process: `python -m server.replica --store DIR (--socket PATH | --listen HOST:PORT)`.

Promises: one line on stdout when it serves; with `--socket` it ends when its stdin ends, so it never outlives the
proxy that started it; files are private whatever the umask. With `--listen` it runs alone, a local store that speaks
the Qdrant API: writes are applied as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from server import config
from server.clock import SystemClock
from server.errors import AddressInUse, UnderstudyError
from server.replica import catalogue
from server.replica.answering import Answering
from server.replica.composition import Parts, open_parts
from server.replica.damage import StoreDamaged

_End: TypeAlias = Callable[[float], Awaitable[Any]]

logger = logging.getLogger("server.replica")

_GRACE_SECONDS = 2.0
# Past this, a thread that does not end (an index that hangs) is left behind.
_PATIENCE_SECONDS = 8.0

READY = "ready"


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop; returns the exit code."""
    options = _options(arguments)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="replica: %(levelname)s %(message)s")
    settings = config.Replica.model_validate_json(options.settings)
    try:
        asyncio.run(_serve(options, settings))
    except UnderstudyError as error:
        logger.error("%s", error)
        return error.exit_code
    # Threads of the index may be anywhere; everything that must be on disk is.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server.replica", description="The local stand-in for Qdrant")
    parser.add_argument("--store", type=Path, required=True, help="directory of the replica")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="Unix socket to serve a proxy on; ends when stdin ends")
    where.add_argument("--listen", help="HOST:PORT to run alone on; port 0 picks one")
    parser.add_argument("--settings", default="{}", help="settings of `replica`, as JSON")
    return parser.parse_args(arguments)


async def _serve(options: argparse.Namespace, settings: config.Replica) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    parts = open_parts(options.store, settings, SystemClock(), alone=options.listen is not None)
    if parts.store.recovered:
        logger.error("%s", parts.store.recovered)
    if options.listen is not None:
        _own_the_catalogue(parts)
    else:
        # The proxy starts another process. Alone there is nobody to do so, and nobody to fill an empty store.
        parts.store.on_damage = _end_for_damage
    end: _End | None = None
    try:
        if options.socket is not None:
            announcement, end = await _for_a_proxy(parts, options.socket)
            threading.Thread(target=_follow_stdin, args=(loop, stop, options.socket), daemon=True).start()
        else:
            announcement, end = await _for_anybody(parts, options.listen)
        sys.stdout.write(announcement + "\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        watchdog = threading.Timer(_PATIENCE_SECONDS, os._exit, args=(0,))
        watchdog.daemon = True
        watchdog.start()
        if end is not None:
            await end(_GRACE_SECONDS)
        await asyncio.to_thread(parts.close)


async def _for_a_proxy(parts: Parts, socket: Path) -> tuple[str, _End]:
    answering = Answering(parts.service)
    try:
        await answering.start(socket)
    except OSError as error:
        raise AddressInUse(f"cannot listen on {socket}: {error.strerror or error}") from error
    return READY, answering.stop


async def _for_anybody(parts: Parts, address: str) -> tuple[str, _End]:
    # Below a proxy nobody needs gRPC.
    from server.replica.grpc_face import grpc_server

    server = grpc_server(parts.service)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressInUse(f"cannot listen on {address}") from error
    await server.start()
    return f"understudy replica: listening on {address.rpartition(':')[0]}:{port}", server.stop


def _own_the_catalogue(parts: Parts) -> None:
    """Alone there is no remote: what is here is all there is."""
    with parts.store.transaction() as tx:
        tx.set_meta(catalogue.NO_REMOTE, "1")


def _end_for_damage(error: Exception) -> NoReturn:
    """At once, in the midst of a transaction: nothing of it may be committed, and others wait for the next process."""
    logger.error("the store is damaged, the next process starts with an empty one: %s", error)
    sys.stderr.flush()
    os._exit(StoreDamaged.exit_code)


def _follow_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, socket: Path) -> None:
    """End when the proxy ends or lets go; one that was killed cannot tidy up behind itself."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    with contextlib.suppress(OSError):
        socket.unlink()
    with contextlib.suppress(OSError):
        socket.parent.rmdir()
    loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    sys.exit(main())
