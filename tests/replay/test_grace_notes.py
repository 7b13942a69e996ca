"""What is known of the look-back beside the log, so that a replica that begins anew is judged as the one before it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from generated.understudy.replica.v1 import replica_pb2 as control
from server import config
from server.errors import WalError
from server.mirror import Mirror
from server.replay.grace_keeping import GraceKeeping
from server.replay.grace_notes import GIVEN_UP, GRACE, GraceNotes
from server.telemetry import Telemetry
from server.wal.files import RealDisk
from server.wal.log import EntryState, Log
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk

from .fakes import create, delete, pid, point, upsert
from .test_replayer import Lines
from .test_with_the_log import append, opened

LOG_ID, OTHER = "ab" * 16, "cd" * 16
DROPPED = control.RefusedEntry(seq=7, ids=[pid(1).SerializeToString()], in_part=True)


def notes(directory: Path, log_id: str = LOG_ID, replayed_seq: int = 100) -> GraceNotes:
    return GraceNotes(RealDisk(), directory, log_id, replayed_seq)


def test_they_are_there_for_the_next_process(tmp_path: Path) -> None:
    first = notes(tmp_path)
    assert (first.past_seq, list(first.given_up)) == (None, [])
    first.give_up([DROPPED])
    assert (notes(tmp_path).past_seq, list(notes(tmp_path).given_up)) == (None, [DROPPED])
    first.let_go(6)
    assert (notes(tmp_path).past_seq, list(notes(tmp_path).given_up)) == (6, [DROPPED])
    first.let_go(7)
    assert (notes(tmp_path).past_seq, list(notes(tmp_path).given_up)) == (7, [])
    # A log that lost its end gives numbers again; another one has other entries under them.
    assert notes(tmp_path, replayed_seq=5).past_seq == 5
    assert notes(tmp_path, OTHER).past_seq is None
    first.forget()
    assert notes(tmp_path).past_seq is None


@pytest.mark.parametrize("name", [GRACE, GIVEN_UP])
def test_damage_lets_everything_go_also_for_the_process_after(tmp_path: Path, name: str) -> None:
    first = notes(tmp_path)
    first.let_go(3)
    first.give_up([DROPPED])
    raw = bytearray((tmp_path / name).read_bytes())
    raw[-6] ^= 1
    (tmp_path / name).write_bytes(raw)
    second = notes(tmp_path)
    assert "checksum" in second.flaw
    assert second.past_seq == 100
    second.let_go(100)
    third = notes(tmp_path)
    assert (third.flaw, third.past_seq, list(third.given_up)) == ("", 100, [])


def test_a_power_cut_leaves_the_old_or_the_new_and_what_was_given_up(tmp_path: Path) -> None:
    disk, folder = CrashDisk(), Path("/wal")
    disk.make_directory(folder)
    before = GraceNotes(disk, folder, LOG_ID, 100)
    before.let_go(3)
    before.give_up([DROPPED])
    photographs: list[CrashDisk] = []
    disk.on_call = lambda operation, path: photographs.append(disk.photograph())
    before.let_go(5)
    assert len(photographs) >= 4
    for cut in photographs:
        for seed in range(5):
            after = GraceNotes(cut.after_power_cut(seed), folder, LOG_ID, 100)
            assert (after.flaw, after.past_seq in (3, 5), list(after.given_up)) == ("", True, [DROPPED])


def test_a_disk_that_takes_none_is_told(tmp_path: Path) -> None:
    first = notes(tmp_path / "gone")
    with pytest.raises(WalError, match="cannot be written"):
        first.give_up([DROPPED])
    assert list(first.given_up) == []


# --- the window that begins with them --------------------------------------------------------------------------------


class Replica:
    """Takes entries, and notes what it was told of those that were dropped."""

    def __init__(self, applied_seq: int = 0) -> None:
        self.applied_seq = applied_seq
        self.asked: list[control.ApplyRequest] = []

    async def attach(self, request: control.AttachRequest) -> control.AttachResponse:
        return control.AttachResponse(applied_seq=max(self.applied_seq, request.first_seq - 1))

    async def apply(self, request: control.ApplyRequest) -> control.ApplyResponse:
        self.asked.append(request)
        self.applied_seq = max([self.applied_seq, *(entry.seq for entry in request.entries)])
        return control.ApplyResponse(applied_seq=self.applied_seq)


async def kept(log: Log, grace_seconds: float = 60.0) -> GraceKeeping:
    return await GraceKeeping.open(log, RealDisk(), grace_seconds, ManualClock(), Telemetry.silent())


async def mirrored(log: Log, keeping: GraceKeeping, replica: Replica) -> None:
    """The replica has everything."""
    mirror = Mirror(
        log,
        replica,
        config.Replica(apply_batch_entries=2),
        Telemetry.silent(),
        forgets_through_seq=keeping.window.forgettable,
        given_up=keeping.given_up,
        on_new_replica=keeping.replica_is_new,
    )
    task = asyncio.create_task(mirror.run())
    await asyncio.wait_for(mirror.caught_up(log.last_seq), 10.0)
    task.cancel()


async def filled(log: Log, states: Sequence[EntryState]) -> None:
    for number, state in enumerate(states):
        await append(log, upsert(point(number)) if number else create(), state=state)


SYNCED, PENDING = EntryState.SYNCED, EntryState.PENDING


@pytest.mark.parametrize(
    ("noted", "applied", "since"),
    [
        # Nobody noted how far back a look may go: a replica that kept what it had knows it itself.
        (None, 2, 0),
        (None, 0, 4),
        (2, 0, 2),
        (2, 4, 2),
        # It is at Qdrant no further than that.
        (9, 0, 4),
    ],
)
async def test_a_replica_that_begins_anew_is_not_looked_at_further_back(
    tmp_path: Path, noted: int | None, applied: int, since: int
) -> None:
    async with opened(tmp_path / "wal") as log:
        await filled(log, [SYNCED] * 4 + [PENDING] * 2)
        if noted is not None:
            notes(log.directory, log.log_id).let_go(noted)
        keeping, replica = await kept(log), Replica(applied)
        await mirrored(log, keeping, replica)
        assert keeping.window.since_seq == since
        assert {request.forgets_through_seq for request in replica.asked} == {since}


async def test_an_entry_that_was_dropped_never_comes_without_its_mark(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await filled(log, [SYNCED] * 6)
        await append(log, delete(1))
        keeping, replica = await kept(log), Replica(3)
        dropped = [control.RefusedEntry(seq=seq) for seq in (2, 5)]
        # At rest, that is before this process: the store that had it may be gone.
        notes(log.directory, log.log_id).give_up(dropped)
        keeping = await kept(log)
        await mirrored(log, keeping, replica)
        told = [([each.seq for each in one.entries], [each.seq for each in one.given_up]) for one in replica.asked]
        assert told == [([], [2, 5]), ([4, 5], [5]), ([6, 7], [])]


async def test_what_is_let_go_is_noted_before_it_is_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await filled(log, [SYNCED] * 3)
        keeping = await kept(log)
        forgotten: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        class Follower:
            async def forget(self) -> None:
                forgotten.set_result(notes(log.directory, log.log_id).past_seq)

            async def give_up(self, entries: Sequence[control.RefusedEntry], timeout_seconds: float) -> None:
                raise AssertionError

        task = asyncio.create_task(keeping.keep(Follower()))
        assert await asyncio.wait_for(forgotten, 10.0) == 0
        task.cancel()


async def test_while_nobody_looks_back_no_note_grows_old(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await filled(log, [SYNCED] * 3)
        notes(log.directory, log.log_id).let_go(2)
        assert not (await kept(log, 0.0)).window.is_on
        assert notes(log.directory, log.log_id).past_seq is None


async def test_a_disk_that_takes_no_note_is_told_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "wal") as log:
        await filled(log, [SYNCED])
        telemetry = Telemetry.silent()
        lines = telemetry.log = Lines()  # type: ignore[assignment]
        keeping = await GraceKeeping.open(log, RealDisk(), 60.0, ManualClock(), telemetry)
        # What lies in the way of the temporary file cannot be removed.
        (log.directory / f"{GRACE}.tmp" / "x").mkdir(parents=True)
        for _ in range(3):
            await keeping._let_go(1)
        assert [text for text in lines.texts() if "further back" in text] == [
            "after the loss of its store a look would go further back"
        ]
