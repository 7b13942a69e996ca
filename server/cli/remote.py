"""Commands that ask a running server, through its admin port: `status`, `hydrate`, `sync`.

Promises: says plainly when nobody answers there. Does not start anything.
"""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from server.addresses import split_address
from server.cli.options import AdminAddress, AsJson, ConfigFile, settings_from
from server.cli.output import as_json, console, duration, facts, size, table
from server.errors import AdminRefused, AdminUnreachable, ConfigError

TIMEOUT_SECONDS = 10.0
GUARD_HEADER = "x-understudy-admin"
POLL_SECONDS = 0.5
SETTLE_POLLS = 2
_UNDER_WAY = ("waiting", "copying", "verifying")
_EQUAL = ("verified", "copied again")

Rows: TypeAlias = dict[str, dict[str, Any]]

_STATES = {
    "remote": "[bold green]REMOTE[/bold green]  Qdrant answers",
    "local": "[bold yellow]LOCAL[/bold yellow]  Understudy answers",
    "draining": "[bold blue]DRAINING[/bold blue]  Qdrant is back, pending writes are being replayed",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Examples:\n\n\b\nunderstudy status\nunderstudy status --admin 127.0.0.1:6335 --json | jq .pending"
    )(status)
    app.command(
        epilog="Examples:\n\n\b\nunderstudy hydrate\nunderstudy hydrate documents memories\nunderstudy hydrate --verify"
    )(hydrate)
    app.command(epilog="Example:\n\n\b\nunderstudy sync")(sync)


def status(admin: AdminAddress = None, as_json_: AsJson = False, config: ConfigFile = None) -> None:
    """Show what the running server does: state, pending writes, cursors, breaker, collections, last sync."""
    document = Port.of(admin, config).get("/status")
    if as_json_:
        as_json(document)
    else:
        show_status(document)


def hydrate(
    collections: Annotated[
        list[str] | None, typer.Argument(metavar="[COLLECTION]...", help="Which ones; none named: all.")
    ] = None,
    admin: AdminAddress = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare with Qdrant instead, and repair only what differs.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Show progress until it is done.")] = True,
    config: ConfigFile = None,
) -> None:
    """Copy collections from Qdrant into the replica again, now."""
    port = Port.of(admin, config)
    names = list(collections or [])
    port.post("/hydrate", {"collections": names, "verify": verify})
    if not wait:
        console.print("asked for; `understudy status` shows how far it is")
        return
    rows = _follow(port.get, names, "verification" if verify else "hydration")
    if rows is None:
        console.print("Qdrant is away or still behind: it is done when everything pending is there")
    elif not (_tell_verified(rows, names) if verify else _tell_copied(rows, names)):
        raise typer.Exit(1)


def sync(admin: AdminAddress = None, config: ConfigFile = None) -> None:
    """Replay what is pending now, or as soon as Qdrant is back. With sync_on_connect it happens by itself."""
    port = Port.of(admin, config)
    asked = port.post("/sync", {})
    pending = int(asked.get("pending") or 0)
    if not pending:
        console.print("nothing is pending")
    elif asked.get("upstream_up"):
        console.print(f"asked for; {pending} pending, see `understudy status`")
    else:
        console.print(f"Qdrant is away: {pending} pending, replayed as soon as it is back")


class Port:
    """The admin port of a running server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._host, self._port = split_address(address)

    @classmethod
    def of(cls, admin: str | None, config: Any) -> Port:
        """The port that flags, environment, file or defaults name. Raises ConfigError when it is switched off."""
        address = settings_from(config, admin=admin).settings.admin
        if address is None:
            raise ConfigError("the admin port is switched off", hint="Set `admin` to HOST:PORT")
        return cls(address)

    def get(self, path: str) -> dict[str, Any]:
        """What GET answers. Raises AdminUnreachable, AdminRefused."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What POST answers. Raises AdminUnreachable, AdminRefused."""
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, path, body, {GUARD_HEADER: "1", "Content-Type": "application/json"})
            answer = connection.getresponse()
            document = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AdminUnreachable(f"no Understudy answers at {self.address} ({error})") from error
        finally:
            connection.close()
        if not isinstance(document, dict):
            raise AdminUnreachable(f"what answers at {self.address} is not Understudy")
        if answer.status != 200:
            raise AdminRefused(str(document.get("error", f"the server answered {answer.status}")))
        return document


def show_status(document: dict[str, Any]) -> None:
    """The status as a person reads it."""
    state = str(document.get("state", "")).lower()
    upstream = document.get("upstream")
    console.print(
        _STATES.get(state, escape(state)) if upstream else "[bold blue]LOCAL STORE[/bold blue]  no Qdrant yet"
    )
    replica, wal = document.get("replica") or {}, document.get("wal") or {}
    pending = f"{document.get('pending', 0)}"
    oldest = document.get("oldest_pending_age_seconds")
    if oldest is not None:
        pending += f", the oldest for {duration(oldest)}"
    breaker = document.get("breaker")
    phase = breaker.get("phase") if isinstance(breaker, dict) else breaker
    facts(
        [
            ("upstream", escape(str(upstream or "none"))),
            ("since", f"{document.get('since', '')}  {escape(str(document.get('reason') or ''))}"),
            ("pending", pending),
            (
                "cursors",
                f"last {document.get('last_seq', 0)}, at Qdrant {document.get('replayed_seq', 0)}, "
                f"in the replica {document.get('applied_seq', 0)}",
            ),
            ("breaker", str(phase or "").replace("_", "-")),
            ("last sync", str(document.get("last_sync") or "never")),
            ("replay", escape(_replay(document.get("replay") or {}))),
            ("quarantine", str(_count(document.get("quarantine")))),
            ("conflicts", str((document.get("conflicts") or {}).get("kept", 0))),
            ("lost by Qdrant", _grace(document.get("grace") or {})),
            ("replica", f"pid {replica.get('pid')}, {replica.get('restarts', 0)} restarts"),
            ("log", size(wal.get("bytes")) + (f", takes no writes: {wal['latched']}" if wal.get("latched") else "")),
            ("version", str(document.get("version", ""))),
        ]
    )
    rows = document.get("collections") or []
    if rows:
        made = table("collection", "local copy", "points#", "expected#", "index", "verified", "repaired#")
        copies = {row.get("collection"): row for row in document.get("hydration") or []}
        compared = {row.get("collection"): row for row in document.get("verification") or []}
        for row in rows:
            made.add_row(
                escape(str(row.get("name"))),
                escape(_copy_state(row, copies.get(row.get("name"), {}))),
                str(row.get("points", 0)),
                str(row.get("expected_points", 0)),
                str(row.get("index_state", "")),
                str(row.get("verified_at") or "never"),
                str(compared.get(row.get("name"), {}).get("points_repaired", 0)),
            )
        console.print()
        console.print(made)


def _copy_state(row: dict[str, Any], copy: dict[str, Any]) -> str:
    """How much is here, and what the copy under way does or why there is none."""
    words = [str(row.get("completeness"))]
    if copy.get("state") == "copying":
        words.append(f"{copy.get('points_per_second') or 0:,.0f} points/s")
    elif copy.get("state") not in (None, "complete"):
        words.append(str(copy["state"]))
    return ", ".join(words)


def _grace(grace: dict[str, Any]) -> str:
    """How often Qdrant was looked at for what it may have lost, and what came of it."""
    text = f"{grace.get('restored_points', 0)} points sent again, {grace.get('looks', 0)} looks"
    if grace.get("is_due"):
        return f"{text}, one is due"
    return f"{text}, one waits for the replica" if grace.get("is_owed") else text


def _replay(replay: dict[str, Any]) -> str:
    words = [str(replay[key]) for key in ("state",) if replay.get(key)]
    words += [f"{key} {replay[key]}" for key in ("attempt", "remaining") if replay.get(key)]
    if replay.get("left_seconds") is not None:
        words += [f"{replay['entries_per_second']:,.0f} entries/s", f"about {duration(replay['left_seconds'])} left"]
    words += [f"last error: {replay['last_error']}"] if replay.get("last_error") else []
    return ", ".join(words) or "idle"


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value or 0)


def _follow(get: Callable[[str], dict[str, Any]], names: list[str], part: str) -> Rows | None:
    """Show progress until all that was asked for has ended; the rows by collection, None when Qdrant is away."""
    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for poll in itertools.count():
            document = get("/status")
            if document.get("state") != "remote":
                return None
            rows: Rows = {row["collection"]: row for row in document.get(part) or [] if row.get("collection")}
            wanted = names or sorted(rows)
            for name in wanted:
                _show_progress(progress, bars, name, rows.get(name, {}))
            # The server takes the request up between two polls; before that, states are of the last copy.
            if poll >= SETTLE_POLLS and all(rows.get(name, {}).get("state") not in _UNDER_WAY for name in wanted):
                return rows
            time.sleep(POLL_SECONDS)
    raise AssertionError("polling does not end by itself")


def _tell_copied(rows: Rows, names: list[str]) -> bool:
    """Say what did not end well; whether everything did."""
    return _tell_bad(rows, [name for name in names or sorted(rows) if rows.get(name, {}).get("state") != "complete"])


def _tell_verified(rows: Rows, names: list[str]) -> bool:
    """Say what was compared and repaired; whether everything is equal now."""
    good = [name for name in names or sorted(rows) if rows.get(name, {}).get("state") in _EQUAL]
    for name in good:
        row = rows[name]
        said = f"{row.get('points')} points in {row.get('ranges')} ranges compared"
        repaired = row.get("points_repaired")
        said += f", {repaired} points in {row.get('ranges_repaired')} ranges repaired" if repaired else ", all equal"
        if row.get("state") == "copied again":
            said += f"; {row['reason']}: it is copied again"
        console.print(escape(f"{name}: {said}"))
    return _tell_bad(rows, [name for name in names or sorted(rows) if name not in good])


def _tell_bad(rows: Rows, bad: list[str]) -> bool:
    for name in bad:
        row = rows.get(name)
        why = f"{row.get('state')}, {row.get('reason') or 'see the log'}" if row else "Qdrant does not have it"
        console.print(escape(f"{name}: {why}"))
    return not bad


def _show_progress(progress: Progress, bars: dict[str, TaskID], name: str, row: dict[str, Any]) -> None:
    points = int(row.get("points") or 0)
    total = max(int(row.get("expected_points") or 0), points)
    if name not in bars:
        bars[name] = progress.add_task("", total=total)
    reason = f" ({row['reason']})" if row.get("reason") else ""
    progress.update(bars[name], description=escape(name + reason), completed=points, total=total)
