"""What `doctor` says of a running server: every trouble has its finding, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from server.cli.findings import Verdict, of_status
from server.replay.progress import ReplayState
from tests.cli.desk import STATUS


def found(**changes: Any) -> dict[str, tuple[Verdict, str]]:
    return {finding.about: (finding.verdict, finding.text) for finding in of_status({**STATUS, **changes})}


def test_a_healthy_server_gives_no_trouble() -> None:
    assert {verdict for verdict, _ in found().values()} == {Verdict.OK}


@pytest.mark.parametrize(
    ("changes", "about", "verdict", "words"),
    [
        ({"upstream": None}, "state", Verdict.NOTE, "local store"),
        ({"state": "local", "reason": "refused"}, "state", Verdict.NOTE, "(refused): Understudy answers"),
        ({"state": "draining"}, "state", Verdict.NOTE, "takes what is pending"),
        ({"quarantine": 3}, "quarantine", Verdict.NOTE, "Qdrant refused 3 writes"),
        ({"conflicts": {"kept": 2}}, "conflicts", Verdict.NOTE, "understudy wal conflicts list"),
        ({"replica": {"pid": None, "restarts": 1}}, "replica", Verdict.BAD, "does not run"),
        ({"replica": {"pid": 7, "restarts": 2}}, "replica", Verdict.NOTE, "restarted 2 times"),
        ({"wal": {"latched": "EIO"}}, "log", Verdict.BAD, "understudy wal reopen"),
        ({"wal": {"takes_no_writes": "the disk is full"}}, "log", Verdict.BAD, "the disk is full"),
        ({"wal": {"damage": ["bad MAC in 7"]}}, "log", Verdict.BAD, "understudy wal verify"),
    ],
)
def test_a_trouble_is_found(changes: dict[str, Any], about: str, verdict: Verdict, words: str) -> None:
    assert found(**changes)[about][0] is verdict
    assert words in found(**changes)[about][1]


@pytest.mark.parametrize("state", list(ReplayState))
def test_a_replay_that_stands_still_says_what_to_do(state: ReplayState) -> None:
    replay = {"state": state.value, "left_seconds": None, "last_error": "boom"}
    verdict, text = found(pending=5, oldest_pending_age_seconds=120.0, replay=replay)["replay"]
    assert text.startswith("5 writes pending, the oldest for 2 min")
    assert text.endswith("(last error: boom)")
    moves = state in {ReplayState.IDLE, ReplayState.RUNNING}
    assert (verdict is Verdict.OK) == moves
    assert (state.value in text) == (not moves)


def test_a_replay_that_runs_says_how_long() -> None:
    replay = {"state": ReplayState.RUNNING.value, "left_seconds": 240.0, "last_error": ""}
    text = "5 writes pending, the oldest for 1 s, done in about 4 min"
    assert found(pending=5, oldest_pending_age_seconds=1.0, replay=replay)["replay"] == (Verdict.OK, text)


@pytest.mark.parametrize(
    ("completeness", "copy", "verdict", "words"),
    [
        ("stale", {"state": "waiting"}, Verdict.NOTE, "stale, 3 of 9 points are here"),
        ("hydrating", {"state": "failed", "reason": "too large"}, Verdict.BAD, "too large"),
        ("empty", {"state": "left out", "reason": "9 points"}, Verdict.NOTE, "left out of the copy (9 points)"),
    ],
)
def test_a_collection_that_is_not_whole(completeness: str, copy: dict[str, str], verdict: Verdict, words: str) -> None:
    row = {"name": "docs", "completeness": completeness, "points": 3, "expected_points": 9}
    finding = found(collections=[row], hydration=[{"collection": "docs", **copy}])["collection docs"]
    assert finding[0] is verdict
    assert words in finding[1]
