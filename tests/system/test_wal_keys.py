"""The key of the log changes under a running server, and comes from the environment or a file after that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from server.errors import WalKeyExternal, WalKeyMissing
from tests.system.understudy import Understudy
from tests.upstream.process import ROOT

FIRST, SECOND = bytes(range(32)).hex(), bytes(range(32, 64)).hex()


def command(understudy: Understudy, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """`understudy WORDS --data-dir …` as a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", *words, "--data-dir", str(understudy.data)],
        check=False,
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def keys(understudy: Understudy) -> list[dict[str, Any]]:
    """What `wal key list` says."""
    rows: list[dict[str, Any]] = json.loads(command(understudy, "wal", "key", "list", "--json").stdout)
    return rows


def write(client: QdrantClient, point_id: int) -> None:
    """One point."""
    client.upsert("docs", [models.PointStruct(id=point_id, vector=[1.0, 2.0])])


def test_keys_change_and_move_and_nothing_is_lost(tmp_path: Path) -> None:
    with Understudy(tmp_path / "understudy", None) as understudy:
        client = understudy.client()
        client.create_collection("docs", models.VectorParams(size=2, distance=models.Distance.DOT))
        write(client, 1)
        (first,) = keys(understudy)
        rotated = json.loads(command(understudy, "wal", "key", "rotate", "--json").stdout)["key_id"]
        write(client, 2)
        assert [(row["key_id"], row["signs"]) for row in keys(understudy)] == [
            (rotated, True),
            (first["key_id"], False),
        ]
        client.close()
        understudy.kill()

        # The server adopts a key from outside when it starts.
        understudy.environment["UNDERSTUDY_WAL_KEY"] = FIRST
        understudy.start()
        client = understudy.client()
        write(client, 3)
        assert keys(understudy)[0]["origin"] == "wal.key"
        refused = command(understudy, "wal", "key", "rotate", code=WalKeyExternal.exit_code).stderr
        assert "restart Understudy" in refused
        client.close()
        understudy.stop()

        # From the environment to a file, with another key.
        del understudy.environment["UNDERSTUDY_WAL_KEY"]
        wrong = command(understudy, "serve", "--listen", "127.0.0.1:0", "--admin", "off", code=WalKeyMissing.exit_code)
        assert "wal.key_path or wal.key" in wrong.stderr
        assert wrong.stderr.count("\n") >= 1
        file = tmp_path / "wal.key"
        file.write_text(f"{SECOND}\n{FIRST}\n")
        file.chmod(0o600)
        understudy.environment["UNDERSTUDY_WAL_KEY_PATH"] = str(file)
        understudy.start()
        client = understudy.client()
        write(client, 4)
        assert [point.id for point in client.scroll("docs", limit=10)[0]] == [1, 2, 3, 4]
        status = json.loads(command(understudy, "wal", "verify", "--json").stdout)
        assert (status["pending_count"], status["last_seq"], status["problems"]) == (5, 5, [])
        client.close()
        assert understudy.terminate() == 0
        everything = b"".join(path.read_bytes() for path in understudy.directory.rglob("*") if path.is_file())
        assert FIRST.encode() not in everything
        assert bytes.fromhex(SECOND) not in everything
