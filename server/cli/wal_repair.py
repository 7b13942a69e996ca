"""`understudy wal repair` and `understudy wal export`: what can be saved of a log, and what it holds.

Promises: `repair` shows what it would keep and what is lost, and asks, before it changes anything; it wants the server
stopped. `export` changes nothing, works while a server runs, and of a damaged log gives every entry that can be proven;
it then says what is missing and exits with 7.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.cli.options import AsJson, ConfigFile, DataDir, Yes, keys_of, moment_of, settings_from
from server.cli.output import as_json, as_lines, console, facts, json_lines, size
from server.cli.running import Running
from server.clock import SystemClock
from server.config import Settings
from server.entry_rows import Filter, exported
from server.errors import WalDamaged, WalLocked
from server.rpc import WAL_KINDS
from server.wal.export import exporting
from server.wal.files import RealDisk
from server.wal.inspect import ListState, must_hold_a_log
from server.wal.limits import WalLimits
from server.wal.repair import Repaired
from server.wal.repair import repair as repair_log
from server.wal.salvage import Loss, Plan, Tools

_LAST = 2**64 - 1
_LOSSES_SHOWN = 20

WithoutMissingKeys = Annotated[
    bool,
    typer.Option("--without-missing-keys", help="A key is gone for good: give up what only that key can prove."),
]


def register(wal: typer.Typer) -> None:
    """Add the commands."""
    wal.command(
        epilog="Examples:\n\n\b\nunderstudy wal repair --data-dir /var/lib/understudy --dry-run\n"
        "understudy wal repair --data-dir /var/lib/understudy"
    )(repair)
    wal.command(
        epilog="Examples:\n\n\b\nunderstudy wal export > entries.jsonl\n"
        "understudy wal export --state pending --output pending.jsonl\n"
        "understudy wal export --collection docs --since 2h --raw"
    )(export)


def repair(
    *,
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")] = False,
    yes: Yes = False,
    without_missing_keys: WithoutMissingKeys = False,
    as_json_: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Repair a damaged log: keep what is proven to be intact, set the rest aside. The whole log is copied first."""
    settings = settings_from(config, data_dir=data_dir).settings
    directory = _directory(settings)

    def agree(plan: Plan) -> bool:
        if not as_json_:
            _show(plan)
        if dry_run:
            return False
        if not yes:
            typer.confirm("Copy the log aside and repair it?", abort=True, err=True)
        return True

    try:
        must_hold_a_log(directory, RealDisk())
        done = repair_log(directory, _tools(settings, without_missing_keys=without_missing_keys), agree)
    except WalLocked as locked:
        raise WalLocked(
            f"{locked.args[0]}, and a log in use is not repaired",
            hint="Stop the server first, then repair, then start it",
        ) from locked
    if as_json_:
        as_json(_document(done))
    elif isinstance(done, Repaired):
        copies = "\n".join(map(escape, done.copies)) or "nothing"
        facts([("backup", escape(str(done.backup))), ("set aside", copies), ("pending", str(done.pending))])
        console.print("repaired; `understudy wal verify` checks it, `understudy serve` goes on with it")
    elif not done.flaws:
        console.print("nothing to repair: the log opens as it is")


def _show(plan: Plan) -> None:
    """What is wrong, and what would follow."""
    losses = [_loss(loss) for loss in plan.losses[:_LOSSES_SHOWN]]
    if len(plan.losses) > _LOSSES_SHOWN:
        losses.append(f"and {len(plan.losses) - _LOSSES_SHOWN} more stretches")
    if plan.tail_bytes:
        losses.append(f"perhaps entries in {size(plan.tail_bytes)} that cannot be proven; how many is not known")
    asides = [f"{each.file} from {each.start} to {each.end}: {each.text or each.finding.value}" for each in plan.asides]
    facts(
        [
            ("directory", escape(str(plan.directory))),
            ("wrong", "\n".join(map(escape, plan.flaws)) or "nothing"),
            ("kept", f"{plan.kept_count} entries, the last one is {plan.last_seq}"),
            ("replayed", f"up to {plan.replayed_seq}"),
            ("set aside", "\n".join(map(escape, asides)) or "nothing"),
            ("lost", "\n".join(losses) or "nothing"),
        ]
    )


def _loss(loss: Loss) -> str:
    """A stretch of lost entries, as an operator needs to know it."""
    several = loss.first_seq != loss.last_seq
    what = f"entries {loss.first_seq} to {loss.last_seq}" if several else f"entry {loss.first_seq}"
    return f"{what}: {'Qdrant has it' if loss.at_qdrant else 'it may not have reached Qdrant'}"


def _document(done: Repaired | Plan) -> dict[str, Any]:
    plan = done.plan if isinstance(done, Repaired) else done
    document: dict[str, Any] = {
        "directory": str(plan.directory),
        "repaired": isinstance(done, Repaired),
        "flaws": list(plan.flaws),
        "kept": plan.kept_count,
        "last_seq": plan.last_seq,
        "replayed_seq": plan.replayed_seq,
        "lost": [
            {"first_seq": loss.first_seq, "last_seq": loss.last_seq, "at_qdrant": loss.at_qdrant}
            for loss in plan.losses
        ],
        "unproven_tail_bytes": plan.tail_bytes,
        "set_aside": [
            {"file": each.file, "start": each.start, "end": each.end, "why": each.text or each.finding.value}
            for each in plan.asides
        ],
    }
    if isinstance(done, Repaired):
        document |= {"backup": str(done.backup), "copies": list(done.copies), "pending": done.pending}
    return document


def export(
    *,
    data_dir: DataDir = None,
    output: Annotated[Path | None, typer.Option(help="A new file (mode 0600) instead of stdout.")] = None,
    state: Annotated[ListState | None, typer.Option(help="Only entries in this state.")] = None,
    collection: Annotated[str | None, typer.Option(help="Only entries of this collection, as it was named.")] = None,
    since: Annotated[str | None, typer.Option(help="Not before: an ISO time (UTC), or 90m, 2h, 7d ago.")] = None,
    until: Annotated[str | None, typer.Option(help="Before: likewise.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Only entries after this sequence number.")] = 0,
    through: Annotated[int, typer.Option(min=1, help="Only entries up to this sequence number.")] = _LAST,
    raw: Annotated[bool, typer.Option("--raw", help="Add the bytes of each entry, to write it anew from.")] = False,
    without_missing_keys: WithoutMissingKeys = False,
    config: ConfigFile = None,
) -> None:
    """Write entries with their requests, a line of JSON each, oldest first. Works on a damaged log as far as it can."""
    settings = settings_from(config, data_dir=data_dir).settings
    now_ns = SystemClock().wall_ns()
    wanted = Filter(
        state, collection, moment_of(since, now_ns) if since else None, moment_of(until, now_ns) if until else None
    )
    directory = _directory(settings)
    try:
        tools = _tools(settings, without_missing_keys=without_missing_keys)
        with exporting(directory, tools) as found, _progress(found.plan.kept_count) as seen:
            rows: Iterator[dict[str, Any]] = (
                exported(listed, raw=raw)
                for listed in seen(found.records)
                if after < listed.record.seq <= through and wanted.wants(listed)
            )
            as_lines(json_lines(rows), output)
        _complain(found.plan)
    except WalLocked as locked:
        server = Running.of(directory, locked)
        status = server.ask("status")
        with _progress(max(0, min(through, status["last_seq"]) - after)) as seen:
            rows = server.rows("export", after=after, through=through, filter=wanted.document(), raw=raw)
            as_lines(json_lines(seen(rows)), output)


def _complain(plan: Plan) -> None:
    """A part must not be taken for the whole."""
    if plan.flaws:
        lost = "; ".join(_loss(loss) for loss in plan.losses[:_LOSSES_SHOWN]) or "no entry is known to be missing"
        raise WalDamaged(
            f"the log in {plan.directory} is damaged ({'; '.join(plan.flaws)}); what is proven was exported. Of the "
            f"rest: {lost}",
            hint="`understudy wal repair` shows what can be kept, asks, makes a backup and keeps it",
        )


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr while it is a terminal; gives a function that counts what passes."""
    columns = (TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("export", total=total)

        def seen(items: Iterator[Any]) -> Iterator[Any]:
            for item in items:
                yield item
                progress.advance(task)

        yield seen


def _tools(settings: Settings, *, without_missing_keys: bool) -> Tools:
    return Tools(
        disk=RealDisk(),
        clock=SystemClock(),
        entropy=os.urandom,
        limits=WalLimits.from_settings(settings.wal),
        kinds=frozenset(WAL_KINDS),
        external=keys_of(settings),
        without_missing_keys=without_missing_keys,
    )


def _directory(settings: Settings) -> Path:
    return settings.vectorstore.fallback.wal_path
