"""`understudy config show`: every setting, its value and where it came from."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import typer
from pydantic import SecretStr
from rich.markup import escape

from server.cli.options import AsJson, ConfigFile, DataDir, settings_from
from server.cli.output import as_json, console, table
from server.config import Settings, key_paths

config_app = typer.Typer(help="The configuration: defaults < file < environment < flags.", no_args_is_help=True)
MASK = "********"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(config_app, name="config")


@config_app.command(
    epilog="Examples:\n\n\b\nunderstudy config show\nunderstudy config show --config understudy.yaml --json"
)
def show(config: ConfigFile = None, data_dir: DataDir = None, as_json_: AsJson = False) -> None:
    """Print every key with its value and its source. Secrets are masked."""
    loaded = settings_from(config, data_dir=data_dir)
    rows = [(path, shown(loaded.settings, path), loaded.sources[path]) for path, _ in key_paths()]
    if as_json_:
        as_json({path: {"value": value, "source": source} for path, value, source in rows})
        return
    made = table("key", "value", "source")
    for path, value, source in rows:
        text = "" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
        style = "" if source == "default" else "bold"
        made.add_row(path, escape(text), escape(source), style=style)
    console.print(made)


def shown(settings: Settings, path: str) -> Any:
    """A value as it may be printed."""
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part)
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
