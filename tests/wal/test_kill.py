"""SIGKILL at any moment, with real processes on a real disk."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.wal.files import RealDisk
from server.wal.log import Log
from server.wal.record import EntryState
from tests.processes import send
from tests.wal.support import Entropy, opened, read_all
from tests.wal.victim import LIMITS

KILLS = 60


@dataclass
class Promised:
    """What the victims were promised, over all their lives."""

    entries: dict[int, tuple[str, int]] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    quarantined: set[int] = field(default_factory=set)
    cursor: int = 0
    cursor_asked: int = 0
    retired_asked: int = 0

    def hear(self, line: str) -> None:
        match line.split():
            case ["entry", seq, state, name, length]:
                assert int(seq) not in self.entries, "a sequence number was given twice"
                self.entries[int(seq)] = (name, int(length))
                if state == EntryState.PENDING.name:
                    self.pending.add(int(seq))
            case ["quarantined", seq]:
                self.quarantined.add(int(seq))
            case ["cursor-asked", seq]:
                self.cursor_asked = max(self.cursor_asked, int(seq))
            case ["cursor", seq]:
                self.cursor = max(self.cursor, int(seq))
            case ["retired-asked", seq]:
                self.retired_asked = max(self.retired_asked, int(seq))
            case _:
                pass


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that forks victims."""
    command = [sys.executable, "-m", "tests.wal.victim", str(tmp_path / "wal")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


def live_and_die(nursery: subprocess.Popen[str], seed: int, lines: int, promised: Promised) -> None:
    """One life: killed after it has said `lines` lines."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{seed}\n")
    pid, said = 0, 0
    for line in nursery.stdout:
        if line.startswith("gone"):
            return
        if line.startswith("pid"):
            pid = int(line.split()[1])
        else:
            promised.hear(line)
            said += 1
        if pid and said == lines:
            send(pid, signal.SIGKILL)
    raise AssertionError("the nursery ended")


async def compare(log: Log, promised: Promised) -> None:
    """Everything promised is there, in order."""
    records = {record.seq: record for record in await read_all(log)}
    first = log.first_seq
    assert list(records) == list(range(first, log.last_seq + 1))
    assert first <= promised.retired_asked + 1
    for seq, (name, length) in promised.entries.items():
        if seq >= first:
            assert (records[seq].body.rstrip(b"\0").decode(), len(records[seq].body)) == (name, length)
    assert promised.cursor <= log.replayed_seq
    pending = {seq for seq, record in records.items() if record.state is EntryState.PENDING and seq > log.replayed_seq}
    assert len(pending) == log.pending_count
    # SYNCED entries beyond the cursor may be retired; a PENDING one may be neither retired nor passed.
    assert not {seq for seq in promised.pending if seq > promised.cursor_asked} - pending
    assert promised.quarantined <= {item.seq for item in log.quarantined() if not item.flaw}
    last_of: dict[str, int] = {}
    for record in records.values():
        writer, number = record.body.split(b"/")[:2]
        assert last_of.get(writer.decode(), 0) < int(number), "order of one writer"
        last_of[writer.decode()] = int(number)


async def test_nothing_promised_is_lost_when_the_process_is_killed(
    nursery: subprocess.Popen[str], tmp_path: Path
) -> None:
    rng = random.Random(11)
    promised = Promised()
    for kill in range(KILLS):
        await asyncio.to_thread(live_and_die, nursery, kill, rng.choice((1, 2, 3, 20, 60, 150)), promised)
        log = opened(tmp_path / "wal", disk=RealDisk(), limits=LIMITS, entropy=Entropy(f"reader {kill}"))
        await compare(log, promised)
        # What was promised and lies below the cursor may go; what is read once need not be read again.
        promised.cursor = max(promised.cursor, log.replayed_seq)
        await log.close()
    assert len(promised.entries) > 20 * KILLS
    assert promised.quarantined
    assert promised.retired_asked
