"""`understudy serve` and `understudy replica`.

Promises: `serve` prints one line on stdout when clients can call, and stops within ten seconds of SIGTERM or SIGINT; a
second signal ends it at once. What was acknowledged is on disk either way. On a data directory that another process
holds it ends before it has changed anything there.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.options import ConfigFile, DataDir, settings_from, version
from server.clock import SystemClock
from server.config import Settings
from server.errors import WalDamaged
from server.wal.files import refuse_when_held
from server.wal.scan import LOCK_NAME

if TYPE_CHECKING:
    from server.app import Understudy
    from server.telemetry import Telemetry

STOP_WITHIN_SECONDS = 9.5


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Examples:\n\n\b\n"
        "understudy serve                             a local store, no Qdrant\n"
        "understudy serve --upstream 10.0.0.5:6334    in front of Qdrant\n"
        "understudy serve --upstream https://HOST:6334 --config understudy.yaml\n"
        "understudy serve --listen 127.0.0.1:0        any free port"
    )(serve)
    app.command(epilog="Example:\n\n\b\nunderstudy replica --listen 127.0.0.1:6334 --data-dir /var/lib/understudy")(
        replica
    )


def serve(
    config: ConfigFile = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT for Qdrant clients; port 0 picks a free one.")] = None,
    upstream: Annotated[
        str | None,
        typer.Option(help="Qdrant: HOST:PORT, https://HOST:PORT or any gRPC target. Left out: a local store."),
    ] = None,
    data_dir: DataDir = None,
    admin: Annotated[str | None, typer.Option(help="HOST:PORT of status page and metrics; 'off' for none.")] = None,
) -> None:
    """Run the proxy until told to stop."""
    loaded = settings_from(config, data_dir=data_dir, admin=admin, listen=listen, vectorstore__url=upstream)
    os.umask(0o077)
    # Before gRPC is loaded and anything is made: whoever is second is told so at once.
    refuse_when_held(loaded.settings.vectorstore.fallback.wal_path.absolute() / LOCK_NAME)
    asyncio.run(_serve(loaded.settings))


def replica(
    listen: Annotated[str | None, typer.Option(help="HOST:PORT for Qdrant clients; port 0 picks a free one.")] = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Run the local stand-in alone: a Qdrant-compatible store without log or upstream."""
    from server.replica import BLAS_ENVIRONMENT

    os.environ.update(BLAS_ENVIRONMENT)
    from server.replica import __main__ as process

    settings = settings_from(config, data_dir=data_dir, listen=listen).settings
    code = process.main(
        [
            "--store",
            str(settings.vectorstore.fallback.local_path),
            "--listen",
            settings.listen,
            "--settings",
            settings.replica.model_dump_json(),
        ]
    )
    if code:
        raise typer.Exit(code)


async def _serve(settings: Settings) -> None:
    # Here, not above: these bring gRPC, and `--help` should be quick.
    from server.app import Understudy
    from server.scrub import Scrubber
    from server.telemetry import Message, Telemetry

    clock = SystemClock()
    redact = Scrubber.load(settings.scrub.rules_path).scrub_text if settings.scrub.enabled else str
    telemetry = Telemetry.start(settings, clock=clock, redact=redact, version=version())
    try:
        understudy = Understudy(settings, telemetry=telemetry, clock=clock, version=version())
        stop = asyncio.Event()
        serving = asyncio.create_task(_until(stop, understudy, telemetry), name="serve")

        def told(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            stop.set()
            telemetry.log.info(Message.STOPPING, signal=signal.Signals(number).name)
            _end_in(STOP_WITHIN_SECONDS)
            if not understudy.address:
                serving.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told, number)
        try:
            await serving
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
        telemetry.log.info(Message.STOPPED)
    except WalDamaged as error:
        telemetry.log.error(Message.WAL_DAMAGED, error=str(error))
        raise
    finally:
        telemetry.close()


async def _until(stop: asyncio.Event, understudy: Understudy, telemetry: Telemetry) -> None:
    from server.telemetry import Message

    async with understudy:
        _spare_what_stays()
        typer.echo(f"understudy: listening on {understudy.address}")
        sys.stdout.flush()
        telemetry.log.info(Message.STARTED, address=understudy.address, admin=understudy.admin_address)
        await stop.wait()


def _spare_what_stays() -> None:
    """Leave what start-up made out of every later garbage collection: it stays until the end.

    Going through all of it took tens of milliseconds every few seconds under load, in which nobody was answered.
    """
    gc.collect()
    gc.freeze()


def _end_in(seconds: float) -> None:
    """Leave after so long whatever hangs: a write that was acknowledged is on disk, the rest is made good on start."""

    def end() -> None:
        sys.stderr.write("understudy: did not stop in time, leaving\n")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
