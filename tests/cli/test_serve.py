"""`understudy serve` and `understudy replica` as processes: ready line, signals, exit codes, modes of files."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import grpc
import pytest
from qdrant_client import QdrantClient, models

from server import rpc
from server.cli import serve
from server.errors import AddressInUse, ConfigError, DataDirUnusable, WalLocked
from server.telemetry import Telemetry
from tests.upstream.process import ROOT, until

READY = re.compile(r"^understudy: listening on (127\.0\.0\.1:\d+)\n$")
WAIT_SECONDS = 60


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UNDERSTUDY_", "OTEL_"))}
    return {**kept, **more}


def _command(data: Path, *words: str) -> list[str]:
    listen = () if "--listen" in words else ("--listen", "127.0.0.1:0")
    admin = () if "--admin" in words or "replica" in words else ("--admin", "off")
    words = words or ("serve",)
    return [sys.executable, "-m", "server.cli", *words, *listen, *admin, "--data-dir", str(data)]


@contextmanager
def started(data: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is not there any more afterwards."""
    process = subprocess.Popen(
        _command(data, *words),
        cwd=ROOT,
        env=_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _address(process: subprocess.Popen[str], pattern: re.Pattern[str] = READY) -> str:
    assert process.stdout is not None
    match = pattern.match(process.stdout.readline())
    assert match, process.communicate()
    return match.group(1)


def _client(address: str) -> QdrantClient:
    host, _, port = address.partition(":")
    return QdrantClient(host=host, grpc_port=int(port), prefer_grpc=True, check_compatibility=False, timeout=30)


def _fails(data: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Exit code and the one line of a start that cannot be."""
    done = subprocess.run(
        _command(data, *words),
        cwd=ROOT,
        env=_environment(**environment),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("understudy: ")]
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


def test_it_says_when_it_is_ready_serves_and_stops(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        client = _client(_address(process))
        client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        client.upsert("c", [models.PointStruct(id=1, vector=[1.0, 0.0])])
        assert client.count("c").count == 1
        client.close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0
    assert out == "", "one line on stdout, no more"
    assert "understudy has stopped" in err
    for path in tmp_path.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path

    with started(tmp_path) as again:
        client = _client(_address(again))
        assert client.count("c").count == 1
        client.close()
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=WAIT_SECONDS)
    assert again.returncode == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        _address(process)
        # Stopped, both signals wait; then they come one right after the other.
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_a_signal_before_it_is_ready_stops_it_too(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--upstream", "127.0.0.1:1") as process:
        until((tmp_path / "wal" / "lock").exists, WAIT_SECONDS, "the log is being opened")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0


def test_the_client_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, line = _fails(tmp_path, "serve", "--listen", address)
    assert code == AddressInUse.exit_code
    assert address in line


def test_the_admin_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, line = _fails(tmp_path, "serve", "--admin", address)
    assert code == AddressInUse.exit_code
    assert address in line


def test_a_second_process_on_the_same_data(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        _address(process)
        code, line = _fails(tmp_path)
        assert code == WalLocked.exit_code
        assert str(process.pid) in line
        assert process.poll() is None


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, line = _fails(tmp_path / "file")
    assert code == DataDirUnusable.exit_code
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize(
    ("text", "word"), [("lissen: x", "lissen"), ("wal: {entry_bytes: 0}", "wal.entry_bytes"), ("x: [", "YAML")]
)
def test_a_bad_setting(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "u.yaml"
    file.write_text(text)
    code, line = _fails(tmp_path / "data", "serve", "--config", str(file))
    assert code == ConfigError.exit_code
    assert word in line
    assert not (tmp_path / "data").exists()


def test_a_bad_variable_and_a_bad_exporter(tmp_path: Path) -> None:
    code, line = _fails(tmp_path / "a", UNDERSTUDY_WAL_ENTRY_BYTES="none")
    assert (code, "UNDERSTUDY_WAL_ENTRY_BYTES" in line) == (ConfigError.exit_code, True)
    code, line = _fails(tmp_path / "c", UNDERSTUDY_REPLICA_CHROMA="http://user:sesame@127.0.0.1:8000")
    assert (code, "replica.chroma" in line, "sesame" in line) == (ConfigError.exit_code, True, False)
    code, line = _fails(tmp_path / "b", OTEL_TRACES_EXPORTER="zipkin")
    assert (code, "zipkin" in line) == (ConfigError.exit_code, True)


def test_the_replica_alone(tmp_path: Path) -> None:
    with started(tmp_path, "replica") as process:
        address = _address(process, re.compile(r"^understudy replica: listening on (127\.0\.0\.1:\d+)\n$"))
        with grpc.insecure_channel(address) as channel:
            assert channel.unary_unary(rpc.GRPC_HEALTH_CHECK)(b"") == b"\x08\x01"  # status: SERVING
        client = _client(address)
        client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        client.upsert("c", [models.PointStruct(id=1, vector=[1.0, 0.0])])
        assert client.count("c").count == 1
        client.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0


class Started:
    """An Understudy that has started; notes how much was spared from garbage collection when it is stopped."""

    address, admin_address = "127.0.0.1:1", None
    spared = 0

    async def __aenter__(self) -> Started:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spared = gc.get_freeze_count()


async def test_what_start_up_made_is_spared_from_later_garbage_collections() -> None:
    gc.unfreeze()
    stop, understudy = asyncio.Event(), Started()
    stop.set()
    try:
        await serve._until(stop, cast(Any, understudy), Telemetry.silent())
        assert understudy.spared > 10_000
    finally:
        gc.unfreeze()
