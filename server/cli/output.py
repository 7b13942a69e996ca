"""How commands speak: rich tables for people, JSON for scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from server.errors import DataDirUnusable

console = Console(highlight=False, soft_wrap=True)


def as_json(document: Any) -> None:
    """One JSON document."""
    typer.echo(json.dumps(document, indent=2, default=str, ensure_ascii=False))


def as_lines(lines: Iterable[str], output: Path | None) -> None:
    """Lines to stdout, or to a new file that only its owner may read. Raises DataDirUnusable."""
    if output is None:
        for line in lines:
            typer.echo(line)
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        hint = "Name a file that is not there yet, in a directory that you may write to"
        raise DataDirUnusable(f"cannot write {output}: {error.strerror or error}", hint=hint) from error


def json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line of JSON for each."""
    return (json.dumps(row, ensure_ascii=False) for row in rows)


def table(*columns: str) -> Table:
    """An empty table in the house's shape; a column that ends with `#` is right-aligned."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column.removesuffix("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
    return made


def facts(rows: list[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    made = Table.grid(padding=(0, 3, 0, 0))
    for name, value in rows:
        made.add_row(f"[dim]{name}[/dim]", value)
    console.print(made)


def moment(wall_ns: int | None) -> str:
    """Nanoseconds since the epoch, as UTC to the second."""
    if wall_ns is None:
        return "never"
    return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def duration(seconds: float | None) -> str:
    """A length of time as a person says it."""
    if seconds is None:
        return ""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def size(amount_bytes: float | None) -> str:
    """A number of bytes as a person says it."""
    value = float(amount_bytes or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
