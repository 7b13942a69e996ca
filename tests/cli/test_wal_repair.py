"""`understudy wal repair` and `understudy wal export`, on real directories."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from generated.qdrant import points_pb2
from generated.understudy.wal.v1 import entry_pb2
from server.cli import app
from server.clock import SystemClock
from server.errors import DataDirUnusable, UnderstudyError, WalDamaged, WalKeyMissing, WalLocked
from server.rpc import WAL_KINDS
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.record import SEGMENT_HEADER_BYTES, EntryState, NewRecord

COUNT = 6
FIRST = "segment-0000000000000001.wal"


def run(*words: str, answer: str = "") -> Result:
    """A command that goes well."""
    result = CliRunner().invoke(app, list(words), input=answer, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def refused(error: type[UnderstudyError], *words: str) -> str:
    """A command that does not; gives the text."""
    with pytest.raises(error) as caught:
        CliRunner().invoke(app, list(words), catch_exceptions=False)
    return str(caught.value)


def _entry(number: int) -> bytes:
    name = "odd" if number % 2 else "even"
    request = points_pb2.UpsertPoints(collection_name=name)
    request.points.add().id.num = number
    return entry_pb2.Entry(
        method="/qdrant.Points/Upsert", request=request.SerializeToString(), collection=name, point_count=1
    ).SerializeToString()


async def _written(path: Path) -> None:
    log = Log.open(path, disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds=frozenset(WAL_KINDS))
    upsert = next(kind for kind, method in WAL_KINDS.items() if method == "/qdrant.Points/Upsert")
    for number in range(1, COUNT + 1):
        state = EntryState.SYNCED if number <= 2 else EntryState.PENDING
        await log.append(NewRecord(upsert, state, _entry(number), points=1))
    await log.mark_replayed(3)
    await log.close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    asyncio.run(_written(tmp_path / "data" / "wal"))
    return tmp_path / "data"


def damage(data_dir: Path, seq: int) -> None:
    """Change one byte of the body of an entry."""
    path = data_dir / "wal" / FIRST
    data = bytearray(path.read_bytes())
    at = SEGMENT_HEADER_BYTES
    for _ in range(seq - 1):
        at += 96 + sum(
            int.from_bytes(data[at + n : at + n + size], "little") for n, size in ((12, 2), (14, 2), (16, 4))
        )
    data[at + 70] ^= 0xFF
    path.write_bytes(data)


def files_of(directory: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != "lock"}


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_repair_shows_asks_copies_and_leaves_a_log_that_opens(data_dir: Path) -> None:
    damage(data_dir, 5)
    before = files_of(data_dir / "wal")
    where = ("--data-dir", str(data_dir))
    assert "understudy wal repair" in refused(WalDamaged, "wal", "verify", *where)
    shown = run("wal", "repair", *where, "--dry-run").stdout
    for part in ("entry 5: it may not have reached Qdrant", "5 entries, the last one is 6", FIRST):
        assert part in shown, shown
    result = CliRunner().invoke(app, ["wal", "repair", *where], input="n\n")
    assert result.exit_code == 1
    assert files_of(data_dir / "wal") == before
    done = run("wal", "repair", *where, answer="y\n").stdout
    assert "understudy serve" in done
    (backup,) = data_dir.glob("wal.before-repair-*")
    assert files_of(backup) == before
    for path in (*backup.rglob("*"), *(data_dir / "wal").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    run("wal", "verify", *where)
    listed = json.loads(run("wal", "list", *where, "--json").stdout)
    assert [(row["seq"], row["state"]) for row in listed] == [
        (1, "synced"),
        (2, "synced"),
        (3, "replayed"),
        (4, "pending"),
        (6, "pending"),
    ]
    (copy,) = (data_dir / "wal").glob("*.corrupted.*")
    assert copy.name.startswith(FIRST)
    assert "nothing to repair" in run("wal", "repair", *where).stdout


def test_repair_as_json(data_dir: Path) -> None:
    damage(data_dir, 2)
    where = ("--data-dir", str(data_dir), "--json")
    plan = json.loads(run("wal", "repair", *where, "--dry-run").stdout)
    assert not plan["repaired"]
    done = json.loads(run("wal", "repair", *where, "--yes").stdout)
    assert done["repaired"]
    assert done["lost"] == plan["lost"] == [{"first_seq": 2, "last_seq": 2, "at_qdrant": True}]
    assert done["pending"] == 3
    assert Path(done["backup"]).is_dir()


def test_repair_wants_the_server_stopped_and_the_key_there(data_dir: Path) -> None:
    damage(data_dir, 2)
    lock = RealDisk().lock(data_dir / "wal" / "lock")
    assert "Stop the server first" in refused(WalLocked, "wal", "repair", "--data-dir", str(data_dir), "--yes")
    assert "control socket" in refused(WalLocked, "wal", "export", "--data-dir", str(data_dir))
    lock.release()
    for key in (data_dir / "wal" / "keys").iterdir():
        key.unlink()
    assert "wal reset" in refused(WalKeyMissing, "wal", "repair", "--data-dir", str(data_dir), "--yes")
    assert "no log" in refused(DataDirUnusable, "wal", "repair", "--data-dir", str(data_dir / "nowhere"), "--yes")
    assert not (data_dir / "nowhere").exists()


def test_export_with_every_filter(data_dir: Path, tmp_path: Path) -> None:
    where = ("--data-dir", str(data_dir))

    def seqs(*options: str) -> list[int]:
        return [row["seq"] for row in rows_of(run("wal", "export", *where, *options).stdout)]

    assert seqs() == [1, 2, 3, 4, 5, 6]
    assert seqs("--state", "pending") == [4, 5, 6]
    assert seqs("--collection", "odd") == [1, 3, 5]
    assert seqs("--after", "2", "--through", "4") == [3, 4]
    assert seqs("--since", "1h") == [1, 2, 3, 4, 5, 6]
    assert seqs("--until", "1h") == []
    output = tmp_path / "entries.jsonl"
    run("wal", "export", *where, "--raw", "--output", str(output))
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    rows = rows_of(output.read_text())
    assert [base64.b64decode(row["raw"]["body"]) for row in rows] == [_entry(n) for n in range(1, COUNT + 1)]
    assert rows[0]["request"] == {"collection_name": "odd", "points": [{"id": {"num": "1"}}]}
    assert "not there yet" in refused(DataDirUnusable, "wal", "export", *where, "--output", str(output))


def test_export_of_a_damaged_log_gives_what_is_proven_and_says_what_is_missing(data_dir: Path, tmp_path: Path) -> None:
    damage(data_dir, 4)
    before = files_of(data_dir / "wal")
    output = tmp_path / "entries.jsonl"
    said = refused(WalDamaged, "wal", "export", "--data-dir", str(data_dir), "--output", str(output))
    assert "entry 4: it may not have reached Qdrant" in said
    assert [row["seq"] for row in rows_of(output.read_text())] == [1, 2, 3, 5, 6]
    assert files_of(data_dir / "wal") == before
