"""First in, first out: over restarts and kills, with many writers at once.

Three orders are compared: in which entries were acknowledged, in which they lie in the log, and in which each writer
wrote its own. An inversion is a neighbouring pair that is the wrong way round in any of them.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.wal.files import RealDisk
from server.wal.log import Log
from tests.processes import send
from tests.wal.fifo_victim import LEFT_PENDING, LIMITS
from tests.wal.nursery import Nursery
from tests.wal.support import Entropy, opened

WRITERS = 16


@dataclass
class Heard:
    """What the processes were told, in the order in which they were told it, and the inversions in that."""

    of_seq: dict[int, tuple[int, int]] = field(default_factory=dict)
    last_seq: int = 0
    last_of: dict[int, int] = field(default_factory=dict)
    inversions: int = 0
    kills: int = 0

    def acknowledged(self, seq: int, writer: int, number: int) -> None:
        self.inversions += seq <= self.last_seq
        self.inversions += number <= self.last_of.get(writer, -1)
        self.last_seq = max(self.last_seq, seq)
        self.last_of[writer] = number
        assert seq not in self.of_seq, "a sequence number was given twice"
        self.of_seq[seq] = (writer, number)


def live(nursery: Nursery, life: int, entries: int, kill_after: int | None, heard: Heard) -> None:
    """One process, killed after so many acknowledgements if it is to be killed."""
    nursery.bear(life, WRITERS, entries)
    pid, count = 0, 0
    for words in nursery.lines():
        match words:
            case ["pid", number]:
                pid = int(number)
            case ["opened", last_seq]:
                assert int(last_seq) >= heard.last_seq, "acknowledged entries are gone"
            case ["ok", seq, writer, number]:
                heard.acknowledged(int(seq), int(writer), int(number))
                count += 1
                if count == kill_after:
                    send(pid, signal.SIGKILL)
                    heard.kills += 1
            case ["gone", _, status]:
                assert int(status) == (0 if kill_after is None else -signal.SIGKILL)
            case _:
                pass


async def compare(log: Log, heard: Heard) -> int:
    """The whole log against what was heard; returns the number of inversions in the log."""
    inversions, seq = 0, log.first_seq - 1
    last_of: dict[int, int] = {}
    found = 0
    while records := await log.read(seq, 5000, 1 << 20):
        for record in records:
            inversions += record.seq != seq + 1
            seq = record.seq
            writer, number = map(int, record.body.split(b"/")[:2])
            inversions += number <= last_of.get(writer, -1)
            last_of[writer] = number
            if (told := heard.of_seq.get(seq)) is not None:
                found += 1
                assert told == (writer, number), f"entry {seq} was acknowledged to another writer"
    assert seq == log.last_seq
    assert found == len(heard.of_seq), "acknowledged entries are gone"
    return inversions


async def first_in_first_out(directory: Path, entries: int, lives: int, say: Callable[[str], None]) -> None:
    """Write `entries` in so many lives, every third of which is killed but not the last; then read it all."""
    rng = random.Random(entries)
    share = -(-entries // lives)
    heard = Heard()
    with Nursery("tests.wal.fifo_victim", str(directory)) as nursery:
        life = 0
        while len(heard.of_seq) < entries or life < lives:
            dies = life % 3 == 1 and entries - len(heard.of_seq) > share
            kill_after = rng.randrange(share // 2, share) if dies else None
            await asyncio.to_thread(live, nursery, life, share, kill_after, heard)
            life += 1
    log = opened(directory, disk=RealDisk(), limits=LIMITS, entropy=Entropy("last"))
    in_log = await compare(log, heard)
    say(
        f"{len(heard.of_seq)} acknowledged entries of {log.last_seq} in the log, {life} lives, {heard.kills} killed, "
        f"{heard.inversions} inversions of acknowledgements, {in_log} in the log"
    )
    assert (heard.inversions, in_log) == (0, 0)
    assert log.segment_count > 4
    assert 0 < log.pending_count <= LEFT_PENDING
    pending = await log.read_pending(LEFT_PENDING, 1 << 22)
    assert [record.seq for record in pending] == sorted(record.seq for record in pending)
    assert len(pending) == log.pending_count
    await log.close()


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Figures for whoever runs the tests with `-s`, and for reports."""

    def told(text: str) -> None:
        print(text)
        record_property("fifo", text)

    return told


async def test_fifty_thousand_entries_over_ten_restarts_keep_their_order(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    await first_in_first_out(tmp_path / "wal", 50_000, 10, say)


@pytest.mark.soak
async def test_a_million_entries_over_twenty_restarts_keep_their_order(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    await first_in_first_out(tmp_path / "wal", 1_000_000, 20, say)
