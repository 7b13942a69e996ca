"""`understudy wal …`: look into the log, check it, shrink it, set it aside.

Promises: while a server holds the log the commands go through it, else they work on the directory itself, and the
answers look alike; `reset` wants the server stopped. Nothing is removed unasked: `reset` moves the log away, after a
question. The commands of the quarantine, of conflicts, of keys and of repair have files of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from server.cli import wal_conflicts, wal_keys, wal_quarantine, wal_repair
from server.cli.options import AsJson, ConfigFile, DataDir, Yes, keys_of, moment_of, settings_from, version
from server.cli.output import as_json, console, duration, facts, moment, size, table
from server.cli.running import Running, here_or_there, on_open_log
from server.clock import SystemClock
from server.config import Settings
from server.entry_rows import Filter, contents, described
from server.errors import WalDamaged, WalError, WalLocked
from server.log_desk import status_document
from server.rpc import WAL_KINDS
from server.wal import inspect
from server.wal.inspect import ListState

# A moment as part of a file name: 20260131T235959Z.
_PLAIN = str.maketrans({"-": None, ":": None, " ": "T"})

wal = typer.Typer(
    help="The write-ahead log: what is pending, whether it is intact, and how to set it aside.\n\nWhile a server runs "
    "on the log the commands go through it.",
    no_args_is_help=True,
)
wal_quarantine.register(wal)
wal_conflicts.register(wal)
wal_repair.register(wal)
wal_keys.register(wal)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(wal, name="wal")


@wal.command(
    epilog="Examples:\n\n\b\nunderstudy wal status --data-dir /var/lib/understudy\nunderstudy wal status --json"
)
def status(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Show counts, cursors and whether it would open as it is."""
    settings = settings_from(config, data_dir=data_dir).settings
    directory = _directory(settings)
    found = here_or_there(
        directory,
        lambda: status_document(inspect.inspect_status(directory, external=keys_of(settings)), version()),
        lambda server: server.ask("status"),
    )
    _show(found, as_json_)


@wal.command(epilog="Example:\n\n\b\nunderstudy wal verify --data-dir /var/lib/understudy")
def verify(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Read every entry again and check it against its signature. Exit code 7 when something is wrong."""
    settings = settings_from(config, data_dir=data_dir).settings
    directory = _directory(settings)
    found = here_or_there(
        directory,
        lambda: status_document(
            inspect.verify(directory, kinds=tuple(WAL_KINDS), external=keys_of(settings)), version()
        ),
        lambda server: server.ask("verify"),
    )
    _show(found, as_json_)
    if found["problems"]:
        if found["running"]:
            hint = (
                "Copy the directory away now, while the server still has what is pending; then see docs/operations.md"
            )
        else:
            hint = "`understudy wal repair` shows what can be kept, asks, makes a backup and keeps it"
        raise WalDamaged(f"the log in {found['directory']} is damaged: {'; '.join(found['problems'])}", hint=hint)


@wal.command(
    name="list",
    epilog="Examples:\n\n\b\nunderstudy wal list --state pending --collection docs\n"
    "understudy wal list --since 2h\nunderstudy wal list --since 2026-01-31T10:00Z --until 2026-02-01\n"
    "understudy wal list --after 1000 --limit 50 --json",
)
def list_(
    *,
    data_dir: DataDir = None,
    state: Annotated[ListState | None, typer.Option(help="Only entries in this state.")] = None,
    collection: Annotated[str | None, typer.Option(help="Only entries of this collection, as it was named.")] = None,
    since: Annotated[str | None, typer.Option(help="Not before: an ISO time (UTC), or 90m, 2h, 7d ago.")] = None,
    until: Annotated[str | None, typer.Option(help="Before: likewise.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Only entries after this sequence number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=inspect.LIST_LIMIT, help="At most so many that match.")] = 100,
    as_json_: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """List entries in order, oldest first. For the next page give the last number with --after."""
    settings = settings_from(config, data_dir=data_dir).settings
    directory = _directory(settings)
    now_ns = SystemClock().wall_ns()
    wanted = Filter(
        state, collection, moment_of(since, now_ns) if since else None, moment_of(until, now_ns) if until else None
    )
    rows = here_or_there(
        directory,
        lambda: [
            described(listed)
            for listed in inspect.list_records(
                directory, wanted=wanted.wants, after_seq=after, limit=limit, external=keys_of(settings)
            )
        ],
        lambda server: _rows_of(server, wanted, after, limit),
    )
    if as_json_:
        as_json(rows)
        return
    made = table("seq#", "state", "method", "collection", "points#", "bytes#", "time (UTC)")
    for row in rows:
        made.add_row(
            str(row["seq"]),
            row["state"],
            row["method"].removeprefix("/qdrant."),
            escape(row["collection"]),
            str(row["points"]),
            str(row["bytes"]),
            row["time"][:19].replace("T", " "),
        )
    console.print(made if rows else "no entries")


def _rows_of(server: Running, wanted: Filter, after: int, limit: int) -> list[dict[str, Any]]:
    """Entries as the running server lists them; it answers in pieces, so that none takes long."""
    rows: list[dict[str, Any]] = []
    at: int | None = after
    while at is not None and len(rows) < limit:
        answer = server.ask("list", after=at, limit=limit - len(rows), filter=wanted.document())
        rows += answer["rows"]
        at = answer["next_after"]
    return rows


@wal.command(epilog="Example:\n\n\b\nunderstudy wal show 1042")
def show(
    seq: Annotated[int, typer.Argument(min=1, help="Sequence number.")],
    data_dir: DataDir = None,
    as_json_: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Print one entry with its request, as JSON. Secrets were cut out before it was written."""
    del as_json_
    settings = settings_from(config, data_dir=data_dir).settings
    directory = _directory(settings)

    def here() -> dict[str, Any]:
        listed = inspect.show_record(directory, seq, external=keys_of(settings))
        return {**described(listed), **contents(listed.record.body)}

    as_json(here_or_there(directory, here, lambda server: server.ask("show", seq=seq)))


@wal.command(epilog="Example:\n\n\b\nunderstudy wal compact --data-dir /var/lib/understudy --older-than-days 0")
def compact(
    data_dir: DataDir = None,
    older_than_days: Annotated[
        float | None, typer.Option(min=0, help="Instead of wal_retention_days. 0: whatever is not needed.")
    ] = None,
    as_json_: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Remove segments that Qdrant and the replica both have and whose retention is over. Pending entries stay."""
    settings = settings_from(config, data_dir=data_dir).settings
    done = here_or_there(
        _directory(settings),
        lambda: on_open_log(settings, "compact", {"older_than_days": older_than_days}),
        lambda server: server.ask("compact", older_than_days=older_than_days),
    )
    if as_json_:
        as_json(done)
    else:
        console.print(f"{done['segments_removed']} segments removed, {size(done['bytes_freed'])} freed")


@wal.command(epilog="Example:\n\n\b\nunderstudy wal reopen --data-dir /var/lib/understudy")
def reopen(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Take writes again after a failed write or fsync, without a restart. It also happens by itself, with pauses."""
    settings = settings_from(config, data_dir=data_dir).settings
    done = here_or_there(
        _directory(settings),
        lambda: on_open_log(settings, "reopen", {}),
        lambda server: server.ask("reopen"),
    )
    if as_json_:
        as_json(done)
    elif done["was_latched"]:
        console.print(f"the log takes writes again after entry {done['last_seq']}; {done['pending']} entries pending")
    else:
        console.print(f"the log takes writes; nothing had failed. {done['pending']} entries pending")


@wal.command(epilog="Example:\n\n\b\nunderstudy wal reset --data-dir /var/lib/understudy")
def reset(data_dir: DataDir = None, yes: Yes = False, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Set the log aside, key included, and start with an empty one next time. What is pending is then not replayed."""
    settings = settings_from(config, data_dir=data_dir).settings
    directory = _directory(settings)
    suffix = f"reset-{moment(SystemClock().wall_ns()).translate(_PLAIN)}"
    try:
        if not yes:
            typer.confirm(f"{_pending(settings)} Move {directory} aside?", abort=True, err=True)
        moved = inspect.reset(directory, suffix)
    except WalLocked as locked:
        raise WalLocked(
            f"{locked.args[0]}, and a log in use is not moved", hint="Stop the server first, then reset, then start it"
        ) from locked
    if as_json_:
        as_json({"moved_to": str(moved)})
    else:
        console.print(f"moved to {escape(str(moved))}; move it back to undo this")


def _pending(settings: Settings) -> str:
    """What a reset costs. A log that cannot be read, as without its key, is set aside all the same."""
    try:
        pending = inspect.inspect_status(_directory(settings), external=keys_of(settings)).pending_count
    except WalLocked:
        raise
    except WalError as error:
        return f"How many writes are pending, and would not reach Qdrant, cannot be told: {error.args[0]}."
    return f"{pending} writes are pending and would not reach Qdrant." if pending else "Nothing is pending."


def _directory(settings: Settings) -> Path:
    return settings.vectorstore.fallback.wal_path


def _show(found: dict[str, Any], wants_json: bool) -> None:
    if wants_json:
        as_json(found)
        return
    age = None
    if found["oldest_pending_ns"] is not None:
        age = (SystemClock().wall_ns() - found["oldest_pending_ns"]) / 1e9
    pending = f"{found['pending_count']} ({size(found['pending_bytes'])})"
    stop = "a server is running on this log" if found["running"] else "clean"
    if not found["running"] and not found["clean"]:
        stop = "not clean: the next start checks it"
    facts(
        [
            ("directory", escape(found["directory"])),
            ("pending", f"{pending}, the oldest for {duration(age)}" if age is not None else pending),
            ("entries", f"{found['first_seq']} to {found['last_seq']}, replayed up to {found['replayed_seq']}"),
            ("on disk", f"{size(found['total_bytes'])} in {found['segments']} segments"),
            ("verified", f"{found['entries_verified']} entries"),
            ("last stop", stop),
            ("writes", f"none are taken: {escape(found['latched'])}" if found["latched"] else "are taken"),
            ("quarantine", str(len(found["quarantined"]))),
            ("corrupted copies", ", ".join(map(escape, found["corrupted_copies"])) or "none"),
            ("problems", "\n".join(map(escape, found["problems"])) or "none"),
        ]
    )
