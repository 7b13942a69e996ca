"""`understudy wal …`: look into the log, check it, shrink it, set it aside.

Promises: with the server stopped they work on the directory itself; with it running, `status` and `list` ask it and the
others say that it must be stopped. Nothing is removed: `reset` moves the log away, after a question.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from rich.markup import escape

from generated.understudy.wal.v1 import entry_pb2
from server.cli.options import AdminAddress, AsJson, ConfigFile, DataDir, settings_from, version
from server.cli.output import as_json, console, duration, facts, moment, size, table
from server.cli.remote import Port, show_status
from server.clock import SystemClock
from server.config import Settings
from server.errors import AdminUnreachable, WalDamaged, WalError, WalLocked
from server.rpc import METHODS, WAL_KINDS, Code
from server.wal import inspect
from server.wal.inspect import ListedRecord, ListState, WalStatus
from server.wal.limits import WalLimits
from server.wal.quarantine import QuarantineItem

# A moment as part of a file name: 20260131T235959Z.
_PLAIN = str.maketrans({"-": None, ":": None, " ": "T"})

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

wal = typer.Typer(
    help="The write-ahead log: what is pending, whether it is intact, and how to set it aside.", no_args_is_help=True
)
quarantine = typer.Typer(help="Writes that Qdrant refused: kept with its reason.", no_args_is_help=True)
wal.add_typer(quarantine, name="quarantine")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(wal, name="wal")


@wal.command(
    epilog="Examples:\n\n\b\nunderstudy wal status --data-dir /var/lib/understudy\nunderstudy wal status --json"
)
def status(
    data_dir: DataDir = None, as_json_: AsJson = False, admin: AdminAddress = None, config: ConfigFile = None
) -> None:
    """Show counts, cursors and whether it would open as it is."""
    settings = settings_from(config, data_dir=data_dir, admin=admin).settings
    try:
        found = inspect.inspect_status(_directory(settings))
    except WalLocked as locked:
        document = _ask(settings, "/status", locked)
        if as_json_:
            as_json(document)
        else:
            console.print("[dim]a server is running on this log; this is what it says[/dim]")
            show_status(document)
        return
    _show(found, as_json_)


@wal.command(epilog="Example:\n\n\b\nunderstudy wal verify --data-dir /var/lib/understudy")
def verify(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Read every entry and check it against its signature. Exit code 7 when something is wrong."""
    found = inspect.verify(_directory(settings_from(config, data_dir=data_dir).settings), kinds=tuple(WAL_KINDS))
    _show(found, as_json_)
    if found.problems:
        places = "; ".join(str(problem) for problem in found.problems)
        raise WalDamaged(
            f"the log in {found.directory} is damaged: {places}",
            hint="Start `understudy serve`: it keeps a copy of what it cannot trust and says what it could save",
        )


@wal.command(
    name="list",
    epilog="Examples:\n\n\b\nunderstudy wal list --state pending\nunderstudy wal list --after 1000 --limit 50 --json",
)
def list_(
    *,
    data_dir: DataDir = None,
    state: Annotated[ListState | None, typer.Option(help="Only entries in this state.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Only entries after this sequence number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=inspect.LIST_LIMIT, help="At most so many.")] = 100,
    as_json_: AsJson = False,
    admin: AdminAddress = None,
    config: ConfigFile = None,
) -> None:
    """List entries in order, oldest first."""
    settings = settings_from(config, data_dir=data_dir, admin=admin).settings
    try:
        found = inspect.list_records(_directory(settings), state=state, after_seq=after, limit=limit)
        rows = [describe(listed) for listed in found]
    except WalLocked as locked:
        rows = [
            row for row in _running_rows(settings, after, limit, locked) if state in (None, ListState(row["state"]))
        ]
    if as_json_:
        as_json(rows)
        return
    made = table("seq#", "state", "method", "collection", "points#", "bytes#", "time (UTC)")
    for row in rows:
        made.add_row(
            str(row.get("seq", "")),
            str(row.get("state", "")),
            str(row.get("method", "")).removeprefix("/qdrant."),
            escape(str(row.get("collection", ""))),
            str(row.get("points", "")),
            str(row.get("bytes", "")),
            str(row.get("time", ""))[:19].replace("T", " "),
        )
    console.print(made if rows else "no entries")


@wal.command(epilog="Example:\n\n\b\nunderstudy wal show 1042")
def show(
    seq: Annotated[int, typer.Argument(min=1, help="Sequence number.")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Print one entry with its request, as JSON. Secrets were cut out before it was written."""
    listed = inspect.show_record(_directory(settings_from(config, data_dir=data_dir).settings), seq)
    as_json({**describe(listed), **contents(listed.record.body)})


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
    fallback = settings.vectorstore.fallback
    days = fallback.wal_retention_days if older_than_days is None else older_than_days
    done = inspect.compact(
        _directory(settings),
        applied_seq=_applied_seq(fallback.local_path),
        retention_seconds=days * 86400,
        clock=SystemClock(),
        kinds=tuple(WAL_KINDS),
        limits=WalLimits.from_settings(settings.wal),
    )
    if as_json_:
        as_json(dataclasses.asdict(done))
    else:
        console.print(f"{done.segments_removed} segments removed, {size(done.bytes_freed)} freed")


@wal.command(epilog="Example:\n\n\b\nunderstudy wal reset --data-dir /var/lib/understudy")
def reset(data_dir: DataDir = None, yes: Yes = False, config: ConfigFile = None) -> None:
    """Set the log aside, key included, and start with an empty one next time. What is pending is then not replayed."""
    directory = _directory(settings_from(config, data_dir=data_dir).settings)
    if not yes:
        pending = inspect.inspect_status(directory).pending_count
        question = f"{pending} writes are pending and would not reach Qdrant." if pending else "Nothing is pending."
        typer.confirm(f"{question} Move {directory} aside?", abort=True)
    moved = inspect.reset(directory, f"reset-{moment(SystemClock().wall_ns()).translate(_PLAIN)}")
    console.print(f"moved to {escape(str(moved))}; move it back to undo this")


@quarantine.command(name="list", epilog="Example:\n\n\b\nunderstudy wal quarantine list --data-dir /var/lib/understudy")
def list_quarantined(data_dir: DataDir = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """List the writes that Qdrant refused, with its reason."""
    found = inspect.inspect_status(_directory(settings_from(config, data_dir=data_dir).settings))
    rows = [_refused(item) for item in found.quarantined]
    if as_json_:
        as_json(rows)
        return
    made = table("seq#", "method", "Qdrant said", "time")
    for row in rows:
        said = f"{row['code']}: {row['details']}" if not row["flaw"] else f"not to be trusted: {row['flaw']}"
        made.add_row(str(row["seq"]), row["method"].removeprefix("/qdrant."), escape(said), row["time"])
    console.print(made if rows else "the quarantine is empty")


def describe(listed: ListedRecord) -> dict[str, Any]:
    """An entry without its contents, for lists."""
    record = listed.record
    entry = _parsed(record.body)
    return {
        "seq": record.seq,
        "state": listed.state.value,
        "method": WAL_KINDS.get(record.kind, f"kind {record.kind}"),
        "collection": entry.collection if entry else "",
        "tenant": entry.tenant if entry else "",
        "points": record.points,
        "bytes": len(record.body),
        "time": moment(record.wall_ns),
        "trace": record.trace,
    }


def contents(body: bytes) -> dict[str, Any]:
    """What an entry asks Qdrant to do."""
    entry = _parsed(body)
    if entry is None:
        return {"request": "cannot be decoded"}
    return {
        "maybe_applied": entry.maybe_applied,
        "request": _request(entry.method, entry.request),
        "resolved": [{"method": one.method, "request": _request(one.method, one.request)} for one in entry.resolved],
    }


def _request(method: str, body: bytes) -> Any:
    row = METHODS.get(method)
    if row is None:
        return f"{method}: {len(body)} bytes"
    try:
        return MessageToDict(row.request.FromString(body), preserving_proto_field_name=True)
    except DecodeError:
        return "cannot be decoded"


def _parsed(body: bytes) -> entry_pb2.Entry | None:
    try:
        return entry_pb2.Entry.FromString(body)
    except DecodeError:
        return None


def _refused(item: QuarantineItem) -> dict[str, Any]:
    return {
        "seq": item.seq,
        "method": WAL_KINDS.get(item.kind, f"kind {item.kind}"),
        "code": Code(item.code).name if item.code in {code.value for code in Code} else str(item.code),
        "details": item.details,
        "flaw": item.flaw,
        "time": moment(item.wall_ns),
        "file": str(item.path),
    }


def _directory(settings: Settings) -> Path:
    return settings.vectorstore.fallback.wal_path


def _ask(settings: Settings, path: str, locked: WalLocked) -> dict[str, Any]:
    """The running server's answer; the lock's own error when no server of this log answers."""
    if settings.admin is None:
        raise locked
    try:
        port = Port(settings.admin)
        theirs = (port.get("/status").get("wal") or {}).get("path")
        if theirs is not None and Path(theirs).resolve() != _directory(settings).resolve():
            raise WalLocked(
                f"{locked.args[0]}, and the server at {settings.admin} has another log",
                hint="Name the admin port of the server that holds it with --admin HOST:PORT",
            )
        return port.get(path)
    except AdminUnreachable as unreachable:
        raise WalLocked(
            f"{locked.args[0]}, and no server answers at {settings.admin}",
            hint="Name its admin port with --admin HOST:PORT, or stop it",
        ) from unreachable


def _running_rows(settings: Settings, after: int, limit: int, locked: WalLocked) -> list[dict[str, Any]]:
    """Entries as the running server lists them; a pending one behind the cursor has been replayed."""
    replayed_seq = int(_ask(settings, "/status", locked).get("replayed_seq") or 0)
    rows: list[dict[str, Any]] = _ask(settings, f"/wal?after={after}&limit={limit}", locked).get("entries", [])
    for row in rows:
        if row["state"] == ListState.PENDING.value and row["seq"] <= replayed_seq:
            row["state"] = ListState.REPLAYED.value
    return rows


def _applied_seq(store: Path) -> int:
    """How far the replica is: what it has not applied must stay in the log."""
    from server.replica.store import Store

    if not store.is_dir():
        raise WalError(f"there is no replica in {store}", hint="Is --data-dir right?")
    opened = Store(store, SystemClock())
    try:
        return opened.applied_seq
    finally:
        opened.close()


def _show(found: WalStatus, wants_json: bool) -> None:
    if wants_json:
        document = dataclasses.asdict(found)
        document["quarantined"] = [_refused(item) for item in found.quarantined]
        document["problems"] = [str(problem) for problem in found.problems]
        as_json({**document, "version": version()})
        return
    age = None
    if found.oldest_pending_ns is not None:
        age = (SystemClock().wall_ns() - found.oldest_pending_ns) / 1e9
    pending = f"{found.pending_count} ({size(found.pending_bytes)})"
    facts(
        [
            ("directory", escape(str(found.directory))),
            ("pending", f"{pending}, the oldest for {duration(age)}" if age is not None else pending),
            ("entries", f"{found.first_seq} to {found.last_seq}, replayed up to {found.replayed_seq}"),
            ("on disk", f"{size(found.total_bytes)} in {found.segments} segments"),
            ("verified", f"{found.entries_verified} entries"),
            ("last stop", "clean" if found.clean else "not clean: the next start checks it"),
            ("quarantine", str(len(found.quarantined))),
            ("corrupted copies", ", ".join(map(escape, found.corrupted_copies)) or "none"),
            ("problems", "\n".join(escape(str(problem)) for problem in found.problems) or "none"),
        ]
    )
