"""Options that several commands share, and the settings that come of them."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from server.config import Loaded, Settings, load
from server.wal.files import RealDisk
from server.wal.keysource import ExternalKeys, external_keys

ConfigFile: TypeAlias = Annotated[
    Path | None, typer.Option("--config", help="YAML file with settings.", envvar="UNDERSTUDY_CONFIG")
]
DataDir: TypeAlias = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory of replica and log: DIR/store and DIR/wal.")
]
AdminAddress: TypeAlias = Annotated[
    str | None, typer.Option("--admin", help="HOST:PORT of the admin port of the running server.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def settings_from(
    config: Path | None, *, data_dir: Path | None = None, admin: str | None = None, **flags: Any
) -> Loaded:
    """Defaults < file < environment < flags. Raises ConfigError."""
    places: dict[str, Any] = {}
    if data_dir is not None:
        places["vectorstore.fallback.local_path"] = data_dir / "store"
        places["vectorstore.fallback.wal_path"] = data_dir / "wal"
    given = {key.replace("__", "."): value for key, value in flags.items()}
    return load(config, os.environ, {**places, "admin": admin, **given})


def keys_of(settings: Settings) -> ExternalKeys | None:
    """The keys of the log that come from outside; None when it has its own."""
    return external_keys(settings.wal, os.environ, RealDisk())


def moment_of(text: str, now_ns: int) -> int:
    """Nanoseconds since the epoch: an ISO date or time (UTC unless it says otherwise), or `90m`, `2h`, `7d` ago."""
    relative = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    if relative:
        return now_ns - int(relative[1]) * _UNIT_SECONDS[relative[2]] * 1_000_000_000
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no time: give 2026-01-31, 2026-01-31T10:00:00Z, or 90m, 2h, 7d for so long ago"
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000) * 1_000_000


def version() -> str:
    """Of the installed distribution."""
    return metadata.version("understudy")
