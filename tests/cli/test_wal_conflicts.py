"""`understudy wal conflicts …` on a log at rest; with a server: tests/system/test_conflicts.py."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.wal.v1 import conflict_pb2, entry_pb2
from server.cli import app
from server.clock import SystemClock
from server.errors import DataDirUnusable, UnderstudyError, WalError
from server.rpc import UPSERT, WAL_KINDS
from server.wal.conflict_log import ConflictLog
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from tests.replay.fakes import point, upsert

OVERWRITTEN = conflict_pb2.Conflict(
    seq=5,
    outcome=conflict_pb2.CONFLICT_OUTCOME_OVERWRITTEN,
    collection="c",
    point_id=common.PointId(num=7).SerializeToString(),
    wall_unix_ns=1_700_000_000_000_000_000,
    method=UPSERT,
    remote=pb.RetrievedPoint(id=common.PointId(num=7), payload=point(7, v=3).payload).SerializeToString(),
)
NOT_WRITTEN = conflict_pb2.Conflict(
    seq=6,
    outcome=conflict_pb2.CONFLICT_OUTCOME_NOT_WRITTEN,
    collection="c",
    point_id=common.PointId(uuid="11111111-1111-1111-1111-111111111111").SerializeToString(),
    wall_unix_ns=1_700_000_000_000_000_000,
    method=UPSERT,
    left_out=[entry_pb2.Operation(method=UPSERT, request=upsert(point(8, v=4))[1].SerializeToString())],
)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log at rest, and two conflicts."""
    monkeypatch.setattr("server.cli.output.console.width", 200)
    monkeypatch.delenv("UNDERSTUDY_CONFIG", raising=False)
    directory = tmp_path / "data"

    async def make() -> None:
        log = Log.open(
            directory / "wal", disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds=frozenset(WAL_KINDS)
        )
        await log.close()

    asyncio.run(make())
    rows = [row.SerializeToString() for row in (OVERWRITTEN, NOT_WRITTEN)]
    ConflictLog(RealDisk(), directory / "wal", 1 << 20).append(rows)
    return directory


def run(data_dir: Path, *words: str, answer: str = "") -> Result:
    line = ["wal", "conflicts", *words, "--data-dir", str(data_dir)]
    return CliRunner().invoke(app, line, input=answer)


def output(data_dir: Path, *words: str, answer: str = "") -> str:
    result = run(data_dir, *words, answer=answer)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(kind: type[UnderstudyError], data_dir: Path, *words: str) -> str:
    error = run(data_dir, *words).exception
    assert isinstance(error, kind)
    return str(error)


def test_list_and_show(data_dir: Path) -> None:
    listed = output(data_dir, "list")
    for text in ("overwritten", "not_written", "Points/Upsert", "2023-11-14 22:13:20", "11111111-1111"):
        assert text in listed
    rows: list[dict[str, Any]] = json.loads(output(data_dir, "list", "--json"))
    assert [(row["number"], row["outcome"], row["point"], row["seq"]) for row in rows] == [
        (1, "overwritten", 7, 5),
        (2, "not_written", "11111111-1111-1111-1111-111111111111", 6),
    ]
    first = json.loads(output(data_dir, "show", "1"))
    assert first["remote"]["payload"] == {"v": {"integer_value": "3"}}
    assert (first["was_gone"], first["left_out"]) == (False, [])
    second = json.loads(output(data_dir, "show", "2"))
    assert second["remote"] is None
    assert second["left_out"][0]["request"]["points"][0]["payload"] == {"v": {"integer_value": "4"}}
    assert "no conflict 3" in refused(WalError, data_dir, "show", "3")


def test_export(data_dir: Path, tmp_path: Path) -> None:
    lines = output(data_dir, "export").splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2]
    file = tmp_path / "rows.jsonl"
    output(data_dir, "export", "--output", str(file))
    assert file.read_text().splitlines() == lines
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(file) in refused(DataDirUnusable, data_dir, "export", "--output", str(file))


def test_drop_asks_first(data_dir: Path) -> None:
    assert run(data_dir, "drop").exit_code == 2
    assert run(data_dir, "drop", "1", "--all").exit_code == 2
    assert run(data_dir, "drop", "1", answer="n\n").exit_code == 1
    assert len(json.loads(output(data_dir, "list", "--json"))) == 2
    assert "dropped 1 conflicts" in output(data_dir, "drop", "1", answer="y\n")
    assert json.loads(output(data_dir, "drop", "--all", "--yes", "--json")) == {"dropped": [2]}
    assert "there are no conflicts" in output(data_dir, "list")


def test_a_damaged_file_is_told(data_dir: Path) -> None:
    (file,) = (data_dir / "wal" / "conflicts").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert "not to be trusted" in output(data_dir, "list")
    (row,) = json.loads(output(data_dir, "list", "--json"))
    assert (row["number"], row["flaw"]) == (1, "its checksum does not match")


def test_the_doctor_tells(data_dir: Path) -> None:
    line = ["doctor", "--data-dir", str(data_dir), "--admin", "127.0.0.1:1", "--json"]
    found = json.loads(CliRunner().invoke(app, line).stdout)
    (log,) = [each for each in found if each["about"] == "log"]
    assert log["verdict"] == "note"
    assert "others changed 2 points" in log["text"]
    assert "understudy wal conflicts list" in log["text"]
