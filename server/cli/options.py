"""Options that several commands share, and the settings that come of them."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from server.config import Loaded, load

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


def version() -> str:
    """Of the installed distribution."""
    return metadata.version("understudy")
