"""Entries of a log that nobody holds, whole or damaged, in their order.

Promises: every entry that can be proven is there once, and no other; `Exported.losses` says what is missing. Changes
nothing but the lock file. One segment is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from server.errors import WalError
from server.wal.files import Disk
from server.wal.harvest import records_of
from server.wal.inspect import ListedRecord, became, must_hold_a_log
from server.wal.keyring import KEYS_DIRECTORY, load_keys
from server.wal.quarantine import Quarantine
from server.wal.salvage import Plan, Tools, plan_repair
from server.wal.scan import LOCK_NAME

_ANY_BYTES = 2**32


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds: `plan` says what is missing, `records` are the entries."""

    plan: Plan
    records: Iterator[ListedRecord]


@contextmanager
def exporting(directory: Path, tools: Tools) -> Iterator[Exported]:
    """The entries of a directory, held meanwhile. Raises WalLocked, WalKeyMissing, WalKeyUnsafe, WalError."""
    directory = directory.absolute()
    must_hold_a_log(directory, tools.disk)
    # Limits are for what is written: what is here is shown whatever its size.
    limits = replace(tools.limits, entry_bytes=_ANY_BYTES, entry_points=_ANY_BYTES)
    lock = tools.disk.lock(directory / LOCK_NAME)
    try:
        plan = plan_repair(directory, replace(tools, limits=limits, kinds=None))
        yield Exported(plan, _records(plan, tools))
    except BrokenPipeError:
        # Whoever reads the entries has had enough.
        raise
    except OSError as error:
        raise WalError(f"cannot read the log in {directory}: {error.strerror or error}") from error
    finally:
        lock.release()


def _records(plan: Plan, tools: Tools) -> Iterator[ListedRecord]:
    refused = _refused_seqs(tools.disk, plan.directory, tools)
    for kept in plan.kept:
        if kept.run is not None:
            for record in records_of(tools.disk, kept.run, kept.first_seq - 1):
                yield ListedRecord(record, became(record, plan.replayed_seq, refused))
        if kept.record is not None:
            yield ListedRecord(kept.record, became(kept.record, plan.replayed_seq, refused))


def _refused_seqs(disk: Disk, directory: Path, tools: Tools) -> set[int]:
    """Numbers of what is in quarantine and can be trusted."""
    keyring = load_keys(disk, directory, disk.names(directory / KEYS_DIRECTORY), tools.external)
    return {item.seq for item in Quarantine(disk, directory, keyring, b"", b"").items() if not item.flaw}
