"""The command `understudy`.

Promises: what goes wrong is one line on stderr that says what to do, and a non-zero exit code; answers go to stdout,
with `--json` as JSON for scripts; nothing is destroyed without being asked for. Subcommands import what they need when
they run, so `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from server.cli import configuration, doctor, explain, remote, serve, wal
from server.cli.options import version
from server.errors import UnderstudyError


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"understudy {version()}")
        raise typer.Exit


app = typer.Typer(
    name="understudy",
    help="Keeps applications working when Qdrant is gone.\n\nPoint Qdrant clients at Understudy, and Understudy at "
    "Qdrant. Start with: understudy serve --upstream HOST:6334",
    epilog="Every setting: understudy config show. What to do when: docs/operations.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=False)
def options(
    shows_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of the command itself; its help is above."""
    del shows_version


serve.register(app)
remote.register(app)
wal.register(app)
configuration.register(app)
doctor.register(app)
explain.register(app)


def main() -> None:
    """Run the command line; the entry point of the distribution."""
    try:
        app()
    except UnderstudyError as error:
        # One line, whatever the text of a foreign error in it was.
        sys.stderr.write("understudy: " + " ".join(str(error).split()) + "\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does. Nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
