"""`understudy wal key …`: which keys sign the log, and a new one for it.

Promises: while a server holds the log the commands go through it; no key is ever printed, only ids. A rotation removes
nothing: old keys go by themselves once no file needs them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer
from rich.markup import escape

from server.cli.options import AsJson, ConfigFile, DataDir, keys_of, settings_from
from server.cli.output import as_json, console, table
from server.cli.running import here_or_there, on_open_log
from server.wal import inspect

key = typer.Typer(help="The keys that sign the log.", no_args_is_help=True)


def register(wal: typer.Typer) -> None:
    """Add the commands."""
    wal.add_typer(key, name="key")


@key.command(
    epilog="Examples:\n\n\b\nunderstudy wal key rotate --data-dir /var/lib/understudy\nunderstudy wal key rotate"
)
def rotate(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Make a new key and sign everything from here on with it. The old one stays until nothing needs it."""
    settings = settings_from(config, data_dir=data_dir).settings
    done = here_or_there(
        settings.vectorstore.fallback.wal_path,
        lambda: on_open_log(settings, "key-rotate", {}),
        lambda server: server.ask("key-rotate"),
    )
    if as_json_:
        as_json(done)
    else:
        console.print(f"key {done['key_id']} signs from here on; back it up with the log")


@key.command(name="list", epilog="Examples:\n\n\b\nunderstudy wal key list\nunderstudy wal key list --json")
def list_(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """List the keys by id, where each is, and which files need it."""
    settings = settings_from(config, data_dir=data_dir).settings
    directory = settings.vectorstore.fallback.wal_path
    rows: list[dict[str, Any]] = here_or_there(
        directory,
        lambda: [asdict(use) for use in inspect.list_keys(directory, external=keys_of(settings))],
        lambda server: server.ask("key-list")["keys"],
    )
    if as_json_:
        as_json(rows)
        return
    made = table("key", "state", "where", "needed by#")
    for row in rows:
        made.add_row(row["key_id"], _state(row), escape(row["origin"]), f"{len(row['needed_by'])} files")
    console.print(made if rows else "no keys")


def _state(row: dict[str, Any]) -> str:
    if not row["origin"]:
        return "missing"
    if row["signs"]:
        return "signs"
    return "needed" if row["needed_by"] else "not needed"
