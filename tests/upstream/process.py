"""The upstream as a test sees it: start it, kill it, freeze it, bring it back on the same port and data.

With `QDRANT_BIN` (a server binary) in the environment that binary is run instead of the stand-in; with `QDRANT_URL`
(HOST:PORT of its gRPC) an external server is used and nothing can be killed. What a real server cannot do
skips the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc
from qdrant_client import QdrantClient

from . import journal

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
_STEADY_PORTS = range(20_000, 32_000)


class Standin:
    """One upstream. Use as a context manager, or `start` and `stop`."""

    def __init__(self, directory: Path, *, api_key: str | None = None, read_only_api_key: str | None = None) -> None:
        self.directory = directory
        self.api_key = api_key
        self.read_only_api_key = read_only_api_key
        self.address = ""
        self._control_address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    # --- life ---

    @property
    def pid(self) -> int:
        """The process; 0 when there is none of ours."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_real(self) -> bool:
        """Whether this is a Qdrant server, not the stand-in."""
        return bool(os.environ.get("QDRANT_BIN") or os.environ.get("QDRANT_URL"))

    def start(self) -> Standin:
        """Start it, on the port it had before if it had one; returns when it answers."""
        if self._process is not None:
            raise RuntimeError("already running")
        self.directory.mkdir(parents=True, exist_ok=True)
        if url := os.environ.get("QDRANT_URL"):
            self.address = url.removeprefix("http://")
        elif binary := os.environ.get("QDRANT_BIN"):
            self._start_real(binary)
        else:
            self._start_standin()
        return self

    def kill(self) -> None:
        """SIGKILL."""
        self._own().kill()
        self._reap()

    def note_sync(self) -> None:
        """What it holds now is on disk: the state that a power cut goes back to."""
        self._only_standin("a power cut")
        self.stop_signal()
        try:
            _copy_storage(self.directory, self._synced)
        finally:
            self.continue_signal()

    def lose_power(self) -> None:
        """It ends, and what it took since `note_sync` is gone, however it had answered. Its journal stays."""
        self.kill()
        _copy_storage(self._synced, self.directory)

    @property
    def _synced(self) -> Path:
        return self.directory.with_name(self.directory.name + ".synced")

    def terminate(self) -> None:
        """SIGTERM, and wait."""
        self._own().terminate()
        self._reap()

    def stop(self) -> None:
        """End it however it stands; safe to call twice."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._reap()

    def restart(self) -> Standin:
        """Start again on the same port and data, killing it first if it still runs."""
        self.stop()
        return self.start()

    def stop_signal(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        self._own().send_signal(signal.SIGSTOP)

    def continue_signal(self) -> None:
        """SIGCONT."""
        self._own().send_signal(signal.SIGCONT)

    def wait_dead(self, seconds: float = 30.0) -> None:
        """Wait until the process has ended by itself (a `die` fault)."""
        self._own().wait(seconds)
        self._reap()

    def __enter__(self) -> Standin:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    # --- what it holds and heard ---

    def client(self, **options: Any) -> QdrantClient:
        """A client of its own, past any proxy."""
        host, port = self.address.rsplit(":", 1)
        options = {"timeout": 30, "check_compatibility": False, "api_key": self.api_key, **options}
        with warnings.catch_warnings():
            # The client warns of a key over plain text; here both ends are on this machine.
            warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
            return QdrantClient(host=host, grpc_port=int(port), port=1, prefer_grpc=True, https=False, **options)

    def journal(self) -> list[journal.Entry]:
        """Every call it took, in the order of application."""
        self._only_standin("its journal")
        return journal.read(self.directory)

    def writes(self) -> list[journal.Entry]:
        """The journal without reads."""
        return [entry for entry in self.journal() if entry.method.rsplit("/", 1)[-1] in WRITES]

    def control(self, do: str, **fields: Any) -> dict[str, Any]:
        """Ask for something, see `standin.Control`; returns the report."""
        self._only_standin("faults")
        if self._channel is None:
            self._channel = grpc.insecure_channel(self._control_address)
        call = self._channel.unary_unary("/standin.Control/Do")
        return dict(json.loads(call(json.dumps({"do": do, **fields}).encode(), timeout=30)))

    def fault(self, method: str, action: str, **fields: Any) -> None:
        """Put a fault in force: `fault("Upsert", "fail", times=3, code="UNAVAILABLE")`."""
        self.control("fault", method=method, action=action, **fields)

    def report(self) -> dict[str, Any]:
        """Counts, health checks, stalled calls, rules."""
        return self.control("report")

    # --- inside ---

    def _start_standin(self) -> None:
        command = [sys.executable, "-m", "tests.upstream.standin", "--data", str(self.directory), "--exit-with-stdin"]
        command += ["--listen", self.address or f"127.0.0.1:{steady_port()}"]
        if self.api_key:
            command += ["--api-key", self.api_key]
        if self.read_only_api_key:
            command += ["--read-only-api-key", self.read_only_api_key]
        with (self.directory / "standin.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        lines = self._read_until("standin: listening on ")
        self._control_address = next(line for line in lines if "control on" in line).rsplit(" ", 1)[-1]
        self.address = lines[-1].rsplit(" ", 1)[-1]

    def _start_real(self, binary: str) -> None:
        port = int(self.address.rsplit(":", 1)[-1]) if self.address else steady_port()
        self.address = f"127.0.0.1:{port}"
        environment = {
            **os.environ,
            "QDRANT__STORAGE__STORAGE_PATH": str(self.directory / "storage"),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self.directory / "snapshots"),
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__GRPC_PORT": str(port),
            "QDRANT__SERVICE__HTTP_PORT": str(free_port()),
            "QDRANT__TELEMETRY_DISABLED": "true",
        }
        if self.api_key:
            environment["QDRANT__SERVICE__API_KEY"] = self.api_key
        if self.read_only_api_key:
            environment["QDRANT__SERVICE__READ_ONLY_API_KEY"] = self.read_only_api_key
        with (self.directory / "qdrant.log").open("ab") as log:
            self._process = subprocess.Popen([binary], cwd=self.directory, env=environment, stdout=log, stderr=log)
        client = self.client()
        until(lambda: _answers(client), START_SECONDS, "the Qdrant server answers")
        client.close()

    def _read_until(self, ready: str) -> list[str]:
        """Lines of standard output up to the ready line; the rest is drained by a thread."""
        process = self._own()
        assert process.stdout is not None
        lines: list[str] = []
        watchdog = threading.Timer(START_SECONDS, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                lines.append(line.decode().rstrip("\n"))
                if lines[-1].startswith(ready):
                    return lines
        finally:
            watchdog.cancel()
        self._reap()
        log = (self.directory / "standin.log").read_text()[-2000:]
        raise RuntimeError(f"the stand-in did not start: {log}")

    def _own(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            if os.environ.get("QDRANT_URL"):
                skip("QDRANT_URL names a server that is not ours to kill")
            raise RuntimeError("not running")
        return self._process

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait(30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _only_standin(self, what: str) -> None:
        if self.is_real:
            skip(f"{what}: only the stand-in has that, and a real Qdrant is in use")


WRITES = frozenset(
    {
        "Upsert",
        "Delete",
        "UpdateVectors",
        "DeleteVectors",
        "SetPayload",
        "OverwritePayload",
        "DeletePayload",
        "ClearPayload",
        "UpdateBatch",
        "CreateFieldIndex",
        "DeleteFieldIndex",
        "CreateVectorName",
        "DeleteVectorName",
        "Create",
        "Update",
        "UpdateAliases",
    }
)


def _copy_storage(source: Path, target: Path) -> None:
    """Make the storage in `target` that in `source`. Journal and log are the test's, not the server's."""
    for old in target.iterdir() if target.exists() else ():
        if old.name not in _NOT_STORAGE:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NOT_STORAGE), dirs_exist_ok=True)


_NOT_STORAGE = (journal.NAME, "standin.log")


def skip(reason: str) -> NoReturn:
    """Skip the running test."""
    import pytest

    pytest.skip(reason)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def steady_port() -> int:
    """A port that is free now and stays so while its server is down for a while.

    From below the range of which the system gives ports to whoever connects: there a connection, even one that tries to
    reach the dead server, may take the port in the meantime.
    """
    for port in random.sample(_STEADY_PORTS, len(_STEADY_PORTS)):
        with socket.socket() as probe:
            # As a server does it: what a killed one left in TIME_WAIT is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no port is free")


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition; raises TimeoutError that names it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds} s still not true: {what}")
        threading.Event().wait(0.02)


def _answers(client: QdrantClient) -> bool:
    try:
        client.get_collections()
    except Exception:  # noqa: BLE001 - whatever the client raises means: not yet
        return False
    return True
