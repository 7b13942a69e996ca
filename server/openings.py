"""What a start opens first: the log, the way to Qdrant, and who may come in.

Promises: settings that cannot be followed are refused with a ConfigError before anything is served; what was cut off a
torn log is said. Closes nothing: that is the caller's.
"""

from __future__ import annotations

import asyncio
import os

from server.clock import Clock
from server.config import Settings
from server.credentials import Credentials
from server.errors import ConfigError
from server.logs import Message
from server.machine import Machine
from server.rpc import WAL_KINDS
from server.telemetry import Telemetry
from server.upstream import Upstream, parse_target
from server.wal.keysource import external_keys
from server.wal.limits import WalLimits
from server.wal.log import Log


def open_log(settings: Settings, machine: Machine, clock: Clock, telemetry: Telemetry) -> Log:
    """The log of the data directory; blocking. Raises WalError, DataDirUnusable."""
    log = Log.open(
        machine.directory(settings.vectorstore.fallback.wal_path),
        disk=machine.disk,
        clock=clock,
        limits=WalLimits.from_settings(settings.wal),
        kinds=frozenset(WAL_KINDS),
        entropy=machine.entropy,
        external=external_keys(settings.wal, os.environ, machine.disk),
        runner=machine.writer(),
    )
    for cut in log.recovery.cuts:
        telemetry.log.warning(Message.WAL_RECOVERED, file=cut.file, offset=cut.offset, bytes=cut.length, copy=cut.copy)
    return log


async def connect(settings: Settings, machine: Machine, clock: Clock, max_message_bytes: int) -> Upstream | None:
    """A channel to Qdrant that takes answers of so many bytes, None without a Qdrant. Raises ConfigError."""
    store = settings.vectorstore
    if store.url is None:
        return None
    target, secure = parse_target(store.url)
    try:
        roots = await asyncio.to_thread(store.ca_path.read_bytes) if store.ca_path else None
    except OSError as error:
        raise ConfigError(f"cannot read vectorstore.ca_path {store.ca_path}: {error.strerror}") from error
    return machine.upstream(
        target,
        clock=clock,
        api_key=upstream_key(settings),
        tls_roots=roots,
        secure=secure,
        max_message_bytes=max_message_bytes,
        max_backoff_seconds=settings.health.backoff_max_seconds,
        name="Qdrant",
    )


def open_credentials(settings: Settings, machine: Machine, clock: Clock, telemetry: Telemetry) -> Credentials:
    """Whom Qdrant let in, beside the replica. Raises DataDirUnusable."""
    store = machine.directory(settings.vectorstore.fallback.local_path)
    return Credentials(
        store / "credentials",
        secret=machine.secret(store / "credentials.key"),
        configured=settings.keys,
        upstream_key=upstream_key(settings),
        has_upstream=settings.vectorstore.url is not None,
        clock=clock,
        disk=machine.disk,
        on_problem=lambda problem: telemetry.log.error("credentials cannot be kept", reason=problem),
    )


def upstream_key(settings: Settings) -> str | None:
    """The key for our own calls to Qdrant, None = none is configured."""
    key = settings.vectorstore.api_key
    return key.get_secret_value() if key else None


def demand_plain_proxy(settings: Settings, pending: int) -> None:
    """Without the fallback every call goes to Qdrant at once: one must be there, and nothing may be overtaken.

    Raises ConfigError.
    """
    if settings.vectorstore.url is None:
        raise ConfigError(
            "vectorstore.fallback.enabled is off and there is no Qdrant: nobody would answer",
            hint="Set vectorstore.url or --upstream, or switch the fallback on",
        )
    if pending:
        raise ConfigError(
            f"vectorstore.fallback.enabled is off and {pending} writes wait in the log: new ones would overtake them",
            hint="Run with the fallback on until `understudy status` shows nothing pending",
        )
