"""`understudy doctor`: what stands in the way of a start, or what troubles a running server, and what to do about it.

Promises: changes nothing and starts nothing; each finding says what to do. Does not prove that all will be well.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from server.addresses import is_loopback, split_address
from server.cli.findings import Finding, Verdict, of_status
from server.cli.options import AdminAddress, AsJson, ConfigFile, DataDir, keys_of, settings_from
from server.cli.output import as_json, console, size
from server.cli.remote import Port
from server.clock import SystemClock
from server.config import Settings
from server.errors import AdminRefused, AdminUnreachable, UnderstudyError, WalLocked
from server.wal import inspect

FREE_BYTES_LEAST = 1_000_000_000


_MARKS = {Verdict.OK: "[green]ok[/green]  ", Verdict.NOTE: "[yellow]note[/yellow]", Verdict.BAD: "[red]bad[/red] "}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example:\n\n\b\nunderstudy doctor --config understudy.yaml")(doctor)


def doctor(
    config: ConfigFile = None,
    upstream: str | None = typer.Option(None, help="Qdrant, if the settings do not name it."),
    data_dir: DataDir = None,
    admin: AdminAddress = None,
    as_json_: AsJson = False,
) -> None:
    """Check settings, directories, log, ports, Qdrant and a running server, and say what to do."""
    settings = settings_from(config, data_dir=data_dir, admin=admin, vectorstore__url=upstream).settings
    findings = list(examine(settings))
    if as_json_:
        as_json([{**asdict(finding), "verdict": finding.verdict.value} for finding in findings])
    else:
        for finding in findings:
            console.print(f"{_MARKS[finding.verdict]}  {finding.about}: {escape(finding.text)}")
    if any(finding.verdict is Verdict.BAD for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, in the order of a start."""
    fallback = settings.vectorstore.fallback
    document = _status(settings)
    is_running = document is not None
    if document is not None:
        yield Finding("server", Verdict.NOTE, f"one is running, see it at http://{settings.admin}/")
        yield from of_status(document)
    else:
        yield Finding("server", Verdict.OK, "none is running with these settings")
    yield _directory("replica", fallback.local_path)
    yield _directory("log directory", fallback.wal_path)
    yield _room(fallback.wal_path)
    if fallback.wal_path.is_dir() and any(fallback.wal_path.iterdir()):
        yield _log(settings)
    yield _port("client port", settings.listen, is_running)
    if settings.admin is not None:
        yield _port("admin port", settings.admin, is_running)
    yield _exposure(settings)
    yield _qdrant(settings)
    if settings.replica.chroma is not None:
        yield _chroma(settings.replica.chroma)


def _status(settings: Settings) -> dict[str, Any] | None:
    """What a running server says of itself; None when none answers."""
    if settings.admin is None:
        return None
    try:
        return Port(settings.admin).get("/status")
    except (AdminUnreachable, AdminRefused):
        return None


def _directory(about: str, path: Path) -> Finding:
    if not path.exists():
        parent = next(above for above in path.absolute().parents if above.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding(about, Verdict.OK, f"{path} will be made")
        return Finding(about, Verdict.BAD, f"{path} cannot be made in {parent}: choose another with --data-dir")
    facts = path.stat()
    if not stat.S_ISDIR(facts.st_mode) or not os.access(path, os.W_OK | os.X_OK):
        return Finding(about, Verdict.BAD, f"{path} is not a directory we can write to: mend its owner and mode")
    if stat.S_IMODE(facts.st_mode) & 0o077:
        return Finding(about, Verdict.NOTE, f"{path} can be seen by others: chmod 700 it (the next start does)")
    return Finding(about, Verdict.OK, f"{path} can be written")


def _room(path: Path) -> Finding:
    parent = next(above for above in (path.absolute(), *path.absolute().parents) if above.exists())
    free = shutil.disk_usage(parent).free
    if free < FREE_BYTES_LEAST:
        return Finding("disk", Verdict.BAD, f"{size(free)} free at {parent}: writes of an outage may not fit")
    return Finding("disk", Verdict.OK, f"{size(free)} free at {parent}")


def _log(settings: Settings) -> Finding:
    try:
        found = inspect.inspect_status(settings.vectorstore.fallback.wal_path, external=keys_of(settings))
    except WalLocked:
        return Finding("log", Verdict.NOTE, "a server holds it; `understudy wal status` asks it")
    except UnderstudyError as error:
        return Finding("log", Verdict.BAD, str(error))
    if found.problems:
        return Finding("log", Verdict.BAD, f"{len(found.problems)} problems: run `understudy wal verify`")
    if found.quarantined:
        text = f"{len(found.quarantined)} refused writes: run `understudy wal quarantine list`"
        return Finding("log", Verdict.NOTE, text)
    if (conflicts := len(inspect.conflicts(settings.vectorstore.fallback.wal_path))) > 0:
        text = f"others changed {conflicts} points that pending writes were about: run `understudy wal conflicts list`"
        return Finding("log", Verdict.NOTE, text)
    return Finding("log", Verdict.OK, f"{found.pending_count} pending, last entry {found.last_seq}")


def _port(about: str, address: str, is_running: bool) -> Finding:
    try:
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except UnderstudyError as error:
        return Finding(about, Verdict.BAD, str(error))
    except OSError as error:
        if is_running:
            return Finding(about, Verdict.OK, f"{address} is held by the running server")
        return Finding(about, Verdict.BAD, f"{address}: {error.strerror}. Stop what holds it or choose another port")
    return Finding(about, Verdict.OK, f"{address} is free")


def _exposure(settings: Settings) -> Finding:
    about = "exposure"
    if settings.admin is not None and not is_loopback(split_address(settings.admin)[0]):
        return Finding(about, Verdict.NOTE, "the admin port has no password: let only your own network reach it")
    if not is_loopback(split_address(settings.listen)[0]) and settings.edge.tls_cert_path is None:
        return Finding(about, Verdict.NOTE, "clients on other machines talk without TLS: set edge.tls_cert_path")
    return Finding(about, Verdict.OK, "loopback only, or TLS is on")


def _qdrant(settings: Settings) -> Finding:
    about = "Qdrant"
    if settings.vectorstore.url is None:
        return Finding(
            about, Verdict.NOTE, "none is configured: this is a local store. Set one with --upstream HOST:6334"
        )
    try:
        probe = asyncio.run(_probe(settings))
    except UnderstudyError as error:
        return Finding(about, Verdict.BAD, str(error))
    if probe:
        text = f"{settings.vectorstore.url} does not answer: {probe}. Is this its gRPC port (6334, not 6333)?"
        return Finding(about, Verdict.BAD, text)
    return Finding(about, Verdict.OK, f"{settings.vectorstore.url} answers")


def _chroma(url: str) -> Finding:
    from server.replica.chroma_server import ChromaServer

    try:
        ChromaServer.at(url).knock()
    except OSError as error:
        return Finding(
            "Chroma server", Verdict.NOTE, f"nobody answers at {url} ({error}): searches are exact meanwhile"
        )
    return Finding("Chroma server", Verdict.OK, f"{url} answers")


async def _probe(settings: Settings) -> str:
    """ "" when Qdrant answers, else why not."""
    from server.upstream import Upstream, parse_target

    url, roots = settings.vectorstore.url or "", settings.vectorstore.ca_path
    target, secure = parse_target(url)
    upstream = Upstream(target, clock=SystemClock(), secure=secure, tls_roots=roots.read_bytes() if roots else None)
    try:
        result = await upstream.probe(5.0)
    finally:
        await upstream.close()
    return "" if result.ok else result.detail or "no answer"
