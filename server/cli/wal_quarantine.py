"""`understudy wal quarantine …`: what Qdrant refused, and what becomes of it.

Promises: works through the server while one holds the log, else on the directory; asks before it changes anything;
nothing leaves the quarantine but by `retry` (then it is in the log, durably) and `drop`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from server.cli.options import AsJson, ConfigFile, DataDir, Yes, keys_of, settings_from
from server.cli.output import as_json, as_lines, console, json_lines, table
from server.cli.running import Running, here_or_there, on_open_log
from server.config import Settings
from server.entry_rows import refused, refused_whole
from server.errors import WalError, WalLocked
from server.log_desk import not_quarantined
from server.wal import inspect

Seq = Annotated[int, typer.Argument(min=1, help="Sequence number.")]
Seqs = Annotated[list[int] | None, typer.Argument(min=1, metavar="[SEQ]...", help="Sequence numbers.")]

quarantine = typer.Typer(
    help="Writes that Qdrant refused: kept with its reason until you retry or drop them.", no_args_is_help=True
)


def register(wal: typer.Typer) -> None:
    """Add the commands."""
    wal.add_typer(quarantine, name="quarantine")


@quarantine.command(
    name="list", epilog="Examples:\n\n\b\nunderstudy wal quarantine list\nunderstudy wal quarantine list --json"
)
def list_(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """List the writes that Qdrant refused, with its reason."""
    settings = settings_from(config, data_dir=data_dir).settings
    directory = _wal(settings)
    rows = here_or_there(
        directory,
        lambda: [refused(item) for item in inspect.inspect_status(directory, external=keys_of(settings)).quarantined],
        lambda server: list(server.rows("quarantine-list")),
    )
    if as_json_:
        as_json(rows)
        return
    made = table("seq#", "method", "Qdrant said", "time (UTC)")
    for row in rows:
        made.add_row(str(row["seq"]), _short(row["method"]), escape(_said(row)), _time(row))
    console.print(made if rows else "the quarantine is empty")


@quarantine.command(epilog="Example:\n\n\b\nunderstudy wal quarantine show 1042")
def show(seq: Seq, data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Print one refused write with its request and Qdrant's reason, as JSON."""
    del as_json_
    as_json(next(_whole(settings_from(config, data_dir=data_dir).settings, seq)))


@quarantine.command(
    epilog="Examples:\n\n\b\nunderstudy wal quarantine export > refused.jsonl\n"
    "understudy wal quarantine export --output refused.jsonl"
)
def export(
    data_dir: DataDir = None,
    output: Annotated[Path | None, typer.Option(help="A new file (mode 0600) instead of stdout.")] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="One JSON array instead of a line for each.")] = False,
    config: ConfigFile = None,
) -> None:
    """Write every refused write with its request and reason: a line of JSON each. It stays in quarantine."""
    rows = _whole(settings_from(config, data_dir=data_dir).settings, None)
    as_lines([json.dumps(list(rows), indent=2, ensure_ascii=False)] if as_json_ else json_lines(rows), output)


@quarantine.command(
    epilog="Examples:\n\n\b\nunderstudy wal quarantine retry 1042\nunderstudy wal quarantine retry --all --yes"
)
def retry(
    *,
    seqs: Seqs = None,
    every: Annotated[bool, typer.Option("--all", help="Everything that is in quarantine.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also when later writes would be overwritten.")] = False,
    yes: Yes = False,
    data_dir: DataDir = None,
    as_json_: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Put refused writes back into the log, to be sent to Qdrant again. Mend what made it refuse them first.

    What is in quarantine behind a write for the same points goes along, in the old order. When the log holds later
    writes to the same points, nothing is done and they are named: the old values would overwrite them.
    """
    wanted = _wanted(seqs, every)
    settings = settings_from(config, data_dir=data_dir).settings
    forecast = _ask(settings, "quarantine-forecast", seqs=wanted)
    going = forecast["seqs"]
    if not force and forecast["objections"]:
        raise WalError(
            "; ".join(forecast["objections"]),
            hint="Drop what is out of date, or write it anew through a client; or retry with --force",
        )
    if going and not yes:
        for objection in forecast["objections"]:
            typer.echo(objection, err=True)
        typer.confirm(f"Send {_entries(going)} to Qdrant again, after what is pending?", abort=True, err=True)
    done = _ask(settings, "quarantine-retry", seqs=wanted, force=force, expected=going) if going else {"retried": []}
    if as_json_:
        as_json(done)
        return
    for row in done["retried"]:
        console.print(f"{row['seq']} is pending again, as entry {row['new_seq']}")
    if not done["retried"]:
        console.print("the quarantine is empty")


@quarantine.command(epilog="Example:\n\n\b\nunderstudy wal quarantine drop 1042")
def drop(
    seqs: Annotated[list[int], typer.Argument(min=1, metavar="SEQ...", help="Sequence numbers.")],
    yes: Yes = False,
    data_dir: DataDir = None,
    as_json_: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Give refused writes up: they never reach Qdrant. `export` keeps a copy."""
    settings = settings_from(config, data_dir=data_dir).settings
    if not yes:
        rows = [next(_whole(settings, seq)) for seq in seqs]
        for row in rows:
            typer.echo(f"{row['seq']}  {_short(row['method'])}  {row.get('collection', '')}  {_said(row)}", err=True)
        typer.confirm(f"Drop {_entries(seqs)} for good?", abort=True, err=True)
    done = _ask(settings, "quarantine-drop", seqs=sorted(set(seqs)))
    if as_json_:
        as_json(done)
    else:
        console.print(f"dropped {_entries(done['dropped'])}")


def _wanted(seqs: list[int] | None, every: bool) -> list[int] | None:
    if bool(seqs) == every:
        raise typer.BadParameter("name sequence numbers, or --all")
    return None if every else sorted(set(seqs or ()))


def _ask(settings: Settings, name: str, **arguments: Any) -> dict[str, Any]:
    """One operation, by the server that holds the log, or on the log opened for it."""
    return here_or_there(
        _wal(settings),
        lambda: on_open_log(settings, name, arguments),
        lambda server: server.ask(name, **arguments),
    )


def _whole(settings: Settings, seq: int | None) -> Iterator[dict[str, Any]]:
    """Refused writes with their contents, all of them or one."""
    directory = _wal(settings)
    try:
        found = False
        for item, record in inspect.quarantined(directory, external=keys_of(settings)):
            if seq in (None, item.seq):
                found = True
                yield refused_whole(item, record)
        if seq is not None and not found:
            raise not_quarantined(seq)
    except WalLocked as locked:
        server = Running.of(directory, locked)
        yield from server.rows("quarantine-export", seq=seq)


def _wal(settings: Settings) -> Path:
    return settings.vectorstore.fallback.wal_path


def _said(row: dict[str, Any]) -> str:
    return f"not to be trusted: {row['flaw']}" if row["flaw"] else f"{row['code']}: {row['details']}"


def _short(method: str) -> str:
    return method.removeprefix("/qdrant.")


def _time(row: dict[str, Any]) -> str:
    return str(row["time"])[:19].replace("T", " ")


def _entries(seqs: list[int]) -> str:
    return f"entry {seqs[0]}" if len(seqs) == 1 else f"{len(seqs)} entries ({', '.join(map(str, seqs))})"
