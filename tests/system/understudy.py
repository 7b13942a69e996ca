"""The proxy's process as a test sees it: `understudy serve`, killed and brought back on the same port and data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdrant_client import AsyncQdrantClient, QdrantClient

from tests.processes import children_of, send
from tests.upstream.process import ROOT, steady_port, until

READY = "understudy: listening on "
START_SECONDS = 60.0
# A test should not wait for what is tuned for production; every value here is a setting with a documented default.
QUICK = {
    "UNDERSTUDY_HEALTH_PROBE_INTERVAL_SECONDS": "0.2",
    "UNDERSTUDY_HEALTH_PROBE_TIMEOUT_SECONDS": "0.8",
    "UNDERSTUDY_HEALTH_DWELL_SECONDS": "0.2",
    "UNDERSTUDY_HEALTH_BACKOFF_MAX_SECONDS": "0.5",
}


class Understudy:
    """One proxy. Use as a context manager, or `start` and `stop`."""

    def __init__(self, directory: Path, upstream: str | None, **environment: str) -> None:
        self.directory = directory
        self.upstream = upstream
        self.environment = {**QUICK, **environment}
        self.address = ""
        self.admin = f"127.0.0.1:{steady_port()}"
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._output: deque[str] = deque(maxlen=200)

    # --- life ---

    @property
    def pid(self) -> int:
        """The proxy's process."""
        return self._own().pid

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    def start(self) -> Understudy:
        """Start it, on the port it had before if it had one; returns when it says that it listens."""
        if self._process is not None:
            raise RuntimeError("already running")
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "server.cli", "serve", "--data-dir", str(self.data)]
        command += ["--listen", self.address or f"127.0.0.1:{steady_port()}", "--admin", self.admin]
        if self.upstream:
            command += ["--upstream", self.upstream]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**environment, **self.environment}, stdout=subprocess.PIPE, stderr=log
            )
        self.starts += 1
        self._wait_ready()
        return self

    def kill(self) -> None:
        """SIGKILL to the proxy, not to its replica: that one must notice by itself."""
        self._own().kill()
        self._reap()

    def terminate(self, seconds: float = 30.0) -> int:
        """SIGTERM; returns the exit code."""
        self._own().terminate()
        return self.wait_ended(seconds)

    def has_ended(self, within_seconds: float) -> bool:
        """Whether the process ends by itself so soon."""
        try:
            self._own().wait(within_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_ended(self, seconds: float = 30.0) -> int:
        """Wait until the process has ended by itself; its exit code."""
        code = self._own().wait(seconds)
        self._reap()
        return code

    def stop(self) -> None:
        """End it however it stands, its replica too; safe to call twice."""
        if self._process is not None:
            children = children_of(self._process.pid)
            self._process.kill()
            self._reap()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    send(child, signal.SIGKILL)

    def restart(self) -> Understudy:
        """Start again on the same ports and data, killing it first if it still runs."""
        self.stop()
        return self.start()

    def __enter__(self) -> Understudy:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    # --- what it says ---

    @property
    def log_path(self) -> Path:
        """Where its standard error goes."""
        return self.directory / "understudy.log"

    def status(self) -> dict[str, Any]:
        """The document of the admin port."""
        with urllib.request.urlopen(f"http://{self.admin}/status", timeout=10) as answer:
            return dict(json.load(answer))

    def state(self) -> str:
        """`remote`, `local` or `draining`."""
        return str(self.status()["state"]).lower()

    def pending(self) -> int:
        """Entries that Qdrant has not seen yet."""
        return int(self.status()["pending"])

    def wait_state(self, state: str, seconds: float = 30.0) -> None:
        """Wait for a state."""
        self._wait(lambda: self.state() == state, seconds, f"state {state}")

    def wait_drained(self, seconds: float = 120.0) -> None:
        """Wait until nothing is pending and calls are forwarded again."""

        def drained() -> bool:
            status = self.status()
            return str(status["state"]).lower() == "remote" and status["pending"] == 0

        self._wait(drained, seconds, "drained and remote")

    def wait_hydrated(self, collection: str, seconds: float = 60.0) -> None:
        """Wait until the replica holds the whole collection."""

        def complete() -> bool:
            found = [one for one in self.status()["collections"] if one["name"] == collection]
            return bool(found) and found[0]["completeness"] == "complete"

        self._wait(complete, seconds, f"collection {collection} is complete in the replica")

    def replica_pid(self) -> int:
        """The replica's process, 0 while there is none."""
        return int(self.status()["replica"].get("pid") or 0)

    # --- clients ---

    def client(self, **options: Any) -> QdrantClient:
        """An unmodified client with its own defaults: a deadline of 5 s, no retries."""
        return _client(QdrantClient, self.address, options)

    def async_client(self, **options: Any) -> AsyncQdrantClient:
        """The same for asyncio."""
        return _client(AsyncQdrantClient, self.address, options)

    # --- inside ---

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        last: dict[str, Any] = {}

        def checked() -> bool:
            try:
                return condition()
            except OSError:
                return False

        try:
            until(checked, seconds, what)
        except TimeoutError as error:
            with contextlib.suppress(OSError):
                last = self.status()
            raise TimeoutError(f"{error}; status: {json.dumps(last)}; log: {self._log_tail()}") from None

    def _wait_ready(self) -> None:
        process = self._own()
        assert process.stdout is not None
        watchdog = threading.Timer(START_SECONDS, process.kill)
        watchdog.start()
        try:
            for raw in process.stdout:
                line = raw.decode().rstrip("\n")
                self._output.append(line)
                if line.startswith(READY):
                    self.address = line.removeprefix(READY)
                    return
        finally:
            watchdog.cancel()
        code = process.wait()
        self._reap()
        raise RuntimeError(f"understudy did not start (exit {code}): {list(self._output)} {self._log_tail()}")

    def _log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-3000:]

    def _own(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("not running")
        return self._process

    def _reap(self) -> None:
        process = self._own()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
        self._process = None


def _client(kind: Any, address: str, options: dict[str, Any]) -> Any:
    host, port = address.rsplit(":", 1)
    with warnings.catch_warnings():
        # The client warns of a key over plain text; here both ends are on this machine.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return kind(
            host=host, grpc_port=int(port), port=1, prefer_grpc=True, https=False, check_compatibility=False, **options
        )
