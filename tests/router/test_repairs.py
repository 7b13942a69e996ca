"""Doubts are neither lost nor called settled too early."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.app import Understudy
from server.clock import SystemClock
from server.config import Settings
from server.conflicts import Conflicts
from server.deletions import Deletions
from server.errors import ReplicaRefused, ReplicaUnavailable
from server.health.detector import Verdict
from server.mode import Mode
from server.repairs import Repairs
from server.rpc import Call, Code, Reply
from server.telemetry import Telemetry
from server.wal.files import RealDisk
from tests.replica.hydration_world import Lines


class Replica:
    """Answers with what it is told, then with success."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.stale: list[str] = []
        self.tries = 0

    async def set_completeness(self, request: control_pb.SetCompletenessRequest) -> None:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        self.stale.append(request.collection)


def build(
    directory: Path,
    replica: Replica,
    copied: list[str],
    *,
    write_durably: Callable[[Path], None] = Path.touch,
    remove_durably: Callable[[Path], None] = Path.unlink,
) -> tuple[Repairs, Mode]:
    telemetry = Telemetry.silent()
    mode = Mode(has_upstream=True, sync_on_connect=True, clock=SystemClock(), telemetry=telemetry)
    mode.upstream_changed(Verdict(up=True, since=0.0, reason="test"), pending=0)
    repairs = Repairs(
        directory,
        mode,
        deletions=Deletions(RealDisk(), directory, [].append),
        is_marked=Path.exists,
        write_durably=write_durably,
        remove_durably=remove_durably,
        set_completeness=replica.set_completeness,
        copy_again=copied.append,
        connection_failed=lambda reason: None,
        telemetry=telemetry,
    )
    return repairs, mode


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_doubt_outlasts_a_replica_that_is_away(tmp_path: Path) -> None:
    copied: list[str] = []
    replica = Replica(ReplicaUnavailable("away"), ReplicaUnavailable("still away"))
    repairs, _ = build(tmp_path, replica, copied)
    with repairs.online_write():
        repairs.in_doubt("c", "test")
    # At once: a copy that is under way must not end as if nothing had been.
    assert copied == ["c"]
    await until(lambda: replica.tries == 1)
    # A round of hydration that ends now knows nothing of the doubt.
    repairs.settled()
    repairs.close()
    assert (tmp_path / "in-doubt").exists()
    await until(lambda: copied == ["c", "c"])
    assert replica.stale == ["c"]
    await asyncio.sleep(0)
    repairs.settled()
    repairs.close()
    assert not (tmp_path / "in-doubt").exists()


async def test_a_doubt_that_comes_and_is_told_while_aliases_are_asked_for_is_not_settled(tmp_path: Path) -> None:
    copied: list[str] = []
    repairs, _ = build(tmp_path, Replica(), copied)
    asked: list[Call] = []

    class Aliases:
        async def handle(self, call: Call) -> Reply:
            asked.append(call)
            repairs.in_doubt("c", "test")
            await repairs.doubts_told()
            await asyncio.sleep(0)
            assert not repairs.has_untold_doubts
            return Reply()

    understudy = Understudy(Settings(), telemetry=Telemetry.silent())
    mirror, log = SimpleNamespace(caught_up=_at_once), SimpleNamespace(last_seq=0)
    parts = SimpleNamespace(repairs=repairs, conflicts=Conflicts(), mirror=mirror, log=log)
    understudy._parts = parts  # type: ignore[assignment]
    understudy._process = SimpleNamespace(backend=Aliases())  # type: ignore[assignment]
    await understudy._looked_at_qdrant(True)
    assert len(asked) == 1
    assert not repairs.is_unbroken()
    assert not repairs.is_log_whole("c")


async def _at_once(seq: int) -> None:
    """The replica is never behind."""


async def test_a_collection_that_the_replica_does_not_hold_is_asked_for(tmp_path: Path) -> None:
    copied: list[str] = []
    repairs, _ = build(tmp_path, Replica(ReplicaRefused("no such collection", code=Code.NOT_FOUND, details="")), copied)
    repairs.in_doubt("c", "test")
    await until(lambda: copied == ["c", "c"])


async def test_a_thousand_doubts_about_one_collection_are_told_as_one(tmp_path: Path) -> None:
    """A client that meets a Qdrant which fails inside tries again and again."""
    copied: list[str] = []
    replica = Replica()
    repairs, _ = build(tmp_path, replica, copied)
    lines: list[str] = []
    repairs._telemetry.log = Lines(lines)  # type: ignore[assignment]
    for _ in range(1000):
        repairs.in_doubt("c", "test")
    await until(lambda: not repairs.has_untold_doubts)
    assert replica.stale == ["c"]
    assert lines == ["replica in doubt"]
    # When all was whole in between, it is a new one.
    repairs.settled()
    repairs.in_doubt("c", "test")
    await until(lambda: not repairs.has_untold_doubts)
    assert (replica.stale, len(lines)) == (["c", "c"], 2)


async def test_a_doubt_that_comes_while_the_one_before_is_told_is_told_too(tmp_path: Path) -> None:
    """The word that all is copied may have come in between."""
    replica = Replica(ReplicaUnavailable("away"))
    repairs, _ = build(tmp_path, replica, [])
    repairs.in_doubt("c", "test")
    await until(lambda: replica.tries == 1)
    repairs.in_doubt("c", "test")
    await repairs.doubts_told()
    assert (replica.stale, repairs.has_untold_doubts) == (["c", "c"], False)


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_disk_that_does_not_take_the_marker_stops_no_write(tmp_path: Path) -> None:
    repairs, mode = build(tmp_path, Replica(), [], write_durably=full)
    with repairs.online_write():
        assert not (tmp_path / "in-doubt").exists()
    mode.upstream_changed(Verdict(up=False, since=1.0, reason="gone"), pending=0)
    repairs.log_is_durable()
    # There is space again: the next write leaves the marker.
    repairs, mode = build(tmp_path, Replica(), [], remove_durably=full)
    with repairs.online_write():
        assert (tmp_path / "in-doubt").exists()
    mode.upstream_changed(Verdict(up=False, since=1.0, reason="gone"), pending=0)
    repairs.log_is_durable()
    assert (tmp_path / "in-doubt").exists()


@pytest.mark.parametrize("under_way", [False, True])
async def test_the_marker_goes_when_the_log_is_durable_and_no_online_write_is_under_way(
    tmp_path: Path, under_way: bool
) -> None:
    repairs, mode = build(tmp_path, Replica(), [])
    marker = tmp_path / "in-doubt"
    with repairs.online_write():
        assert marker.exists()
        if under_way:
            mode.upstream_changed(Verdict(up=False, since=1.0, reason="gone"), pending=0)
            repairs.log_is_durable()
            assert marker.exists()
    repairs.log_is_durable()
    assert marker.exists() != under_way
