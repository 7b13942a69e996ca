"""A real Chroma server: `chroma run`, started, killed, frozen and brought back on its port and data."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.upstream.process import free_port, until

START_SECONDS = 60.0


class ChromaRun:
    """One server. `start` and `stop`, or a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """A client as somebody else would have one; the same each time, for it does not close its connections."""
        import chromadb

        if self._client is None:
            settings = chromadb.Settings(anonymized_telemetry=False)
            self._client = chromadb.HttpClient("127.0.0.1", self.port, settings=settings)
        return self._client

    def start(self) -> ChromaRun:
        """Start it; returns when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [str(Path(sys.executable).parent / "chroma"), "run", "--path", str(self.directory / "data")]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        with (self.directory / "chroma.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log)
        until(self._answers, START_SECONDS, "the Chroma server answers")
        return self

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "the Chroma server ended"
        try:
            self.client().heartbeat()
        except Exception:  # noqa: BLE001 - whatever the client raises means: not yet
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)
        self._process = None

    def stop(self) -> None:
        """End it however it stands; safe to call twice."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self.kill()

    def __enter__(self) -> ChromaRun:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()
