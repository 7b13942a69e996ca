"""`understudy wal key …` with the server stopped, and what other commands make of a key from elsewhere."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.clock import SystemClock
from server.errors import UnderstudyError, WalKeyExternal, WalKeyMissing
from server.replica.store import Store
from server.rpc import WAL_KINDS
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import EntryState, Log, NewRecord

FIRST, SECOND = bytes(range(32)).hex(), bytes(range(32, 64)).hex()


def run(*words: str) -> str:
    """A command that does what it should."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(error: type[UnderstudyError], *words: str) -> str:
    """A command that does not; gives the text."""
    with pytest.raises(error) as caught:
        CliRunner().invoke(app, list(words), catch_exceptions=False)
    return str(caught.value)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A stopped server's directory with one pending entry."""

    async def write() -> None:
        log = Log.open(
            tmp_path / "wal", disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds=frozenset(WAL_KINDS)
        )
        await log.append(NewRecord(1, EntryState.PENDING, b"", b"", "", 1))
        await log.close()

    asyncio.run(write())
    Store(tmp_path / "store", SystemClock()).close()
    return tmp_path


def keys(data_dir: Path) -> list[dict[str, Any]]:
    """What `wal key list --json` says."""
    rows: list[dict[str, Any]] = json.loads(run("wal", "key", "list", "--data-dir", str(data_dir), "--json"))
    return rows


def test_a_key_is_rotated_and_listed(data_dir: Path) -> None:
    (old,) = keys(data_dir)
    assert old["signs"]
    assert old["needed_by"] == ["head", "segment-0000000000000001.wal"]
    done = json.loads(run("wal", "key", "rotate", "--data-dir", str(data_dir), "--json"))
    new, kept = keys(data_dir)
    assert (new["key_id"], new["signs"]) == (done["key_id"], True)
    assert (kept["key_id"], kept["signs"], kept["needed_by"]) == (
        old["key_id"],
        False,
        ["segment-0000000000000001.wal"],
    )
    assert new["origin"] == str(data_dir / "wal" / "keys" / f"{new['key_id']}.key")
    text = run("wal", "key", "list", "--data-dir", str(data_dir))
    assert "signs" in text
    assert "needed" in text
    secret = Path(new["origin"]).read_bytes().hex()
    assert secret not in text
    assert json.loads(run("wal", "status", "--data-dir", str(data_dir), "--json"))["pending_count"] == 1
    assert "signs from here on" in run("wal", "key", "rotate", "--data-dir", str(data_dir))
    assert [row["signs"] for row in keys(data_dir)] == [True, False, False], "an empty segment needs its key as well"


def test_every_command_reads_a_log_whose_key_is_elsewhere(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--data-dir", str(data_dir))
    own = keys(data_dir)[0]["key_id"]
    monkeypatch.setenv("UNDERSTUDY_WAL_KEY", FIRST)
    run("wal", "compact", *where)
    new, old = keys(data_dir)
    assert (new["origin"], new["signs"], old["key_id"]) == ("wal.key", True, own)
    for command in ("status", "verify", "list"):
        run("wal", command, *where)
    run("wal", "quarantine", "list", *where)
    assert json.loads(run("wal", "show", "1", *where))["seq"] == 1
    text = refused(WalKeyExternal, "wal", "key", "rotate", *where)
    assert "wal.key" in text
    assert "openssl rand -hex 32" in text
    monkeypatch.setenv("UNDERSTUDY_WAL_KEY", f"{SECOND} {FIRST}")
    run("wal", "compact", *where)
    assert sorted(row["origin"] for row in keys(data_dir)) == sorted(["wal.key", "wal.key", old["origin"]])
    monkeypatch.setenv("UNDERSTUDY_WAL_KEY", SECOND)
    assert new["key_id"] in refused(WalKeyMissing, "wal", "status", *where)
    missing = [row["key_id"] for row in keys(data_dir) if not row["origin"]]
    assert missing == [new["key_id"]]
    assert "missing" in run("wal", "key", "list", *where)


def test_a_key_is_masked_in_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_WAL_KEY", FIRST)
    for words in (("config", "show"), ("config", "show", "--json")):
        text = run(*words)
        assert FIRST not in text
        assert "wal.key" in text
    assert json.loads(run("config", "show", "--json"))["wal.key"]["value"] == "********"
