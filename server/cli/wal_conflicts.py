"""`understudy wal conflicts …`: points that others changed at Qdrant while pending writes were about them.

Promises: works through the server while one holds the log, else on the directory; asks before it drops anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from server.cli.options import AsJson, ConfigFile, DataDir, Yes, settings_from
from server.cli.output import as_json, as_lines, console, json_lines, table
from server.cli.running import here_or_there
from server.wal import inspect

Number = Annotated[int, typer.Argument(min=1, help="Number of the conflict.")]

conflicts = typer.Typer(
    help="Points that others changed during an outage, and what became of the pending writes to them.",
    no_args_is_help=True,
)


def register(wal: typer.Typer) -> None:
    """Add the commands."""
    wal.add_typer(conflicts, name="conflicts")


@conflicts.command(name="list", epilog="Examples:\n\n\b\nunderstudy wal conflicts list --json")
def list_(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """List the points that others changed, and what became of the writes to them."""
    rows = list(_rows(_wal(config, data_dir), "conflicts-list", None))
    if as_json_:
        as_json(rows)
        return
    made = table("number", "outcome", "collection", "point", "seq#", "method", "time (UTC)")
    for row in rows:
        told = row["outcome"] if not row["flaw"] else f"not to be trusted: {row['flaw']}"
        time = str(row["time"] or "")[:19].replace("T", " ")
        method = row["method"].removeprefix("/qdrant.")
        made.add_row(
            str(row["number"]),
            escape(told),
            escape(row["collection"]),
            str(row["point"]),
            str(row["seq"]),
            method,
            time,
        )
    console.print(made if rows else "there are no conflicts")


@conflicts.command(epilog="Example:\n\n\b\nunderstudy wal conflicts show 17")
def show(number: Number, data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Print one conflict with Qdrant's point and what was left out, as JSON."""
    del as_json_
    as_json(next(_rows(_wal(config, data_dir), "conflicts-export", number)))


@conflicts.command(epilog="Example:\n\n\b\nunderstudy wal conflicts export --output conflicts.jsonl")
def export(
    data_dir: DataDir = None,
    output: Annotated[Path | None, typer.Option(help="A new file (mode 0600) instead of stdout.")] = None,
    config: ConfigFile = None,
) -> None:
    """Write every conflict with its contents: a line of JSON each. They stay where they are."""
    as_lines(json_lines(_rows(_wal(config, data_dir), "conflicts-export", None)), output)


@conflicts.command(
    epilog="Examples:\n\n\b\nunderstudy wal conflicts drop 17\nunderstudy wal conflicts drop --all --yes"
)
def drop(
    *,
    numbers: Annotated[list[int] | None, typer.Argument(min=1, metavar="[NUMBER]...", help="Numbers.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every conflict.")] = False,
    yes: Yes = False,
    data_dir: DataDir = None,
    as_json_: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Forget conflicts that were looked at. `export` keeps a copy."""
    if bool(numbers) == every:
        raise typer.BadParameter("name numbers, or --all")
    wanted = None if every else sorted(set(numbers or ()))
    directory = _wal(config, data_dir)
    if not yes:
        typer.confirm(f"Forget {'all' if wanted is None else len(wanted)} conflicts for good?", abort=True, err=True)
    done: dict[str, Any] = here_or_there(
        directory,
        lambda: {"dropped": inspect.drop_conflicts(directory, wanted)},
        lambda server: server.ask("conflicts-drop", numbers=wanted),
    )
    if as_json_:
        as_json(done)
    else:
        console.print(f"dropped {len(done['dropped'])} conflicts")


def _rows(directory: Path, name: str, number: int | None) -> Iterator[dict[str, Any]]:
    """Conflicts from whoever holds the log; one only when a number is given."""
    # Here, not above: commands that need it not should be quick.
    from server.conflict_desk import described, no_such_conflict, whole

    as_row = described if name == "conflicts-list" else whole
    rows = here_or_there(
        directory,
        lambda: [as_row(each) for each in inspect.conflicts(directory) if number in (None, each.number)],
        lambda server: list(server.rows(name, number=number)),
    )
    if number is not None and not rows:
        raise no_such_conflict(number)
    yield from rows


def _wal(config: Path | None, data_dir: Path | None) -> Path:
    return settings_from(config, data_dir=data_dir).settings.vectorstore.fallback.wal_path
