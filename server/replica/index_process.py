"""The index process as its parent sees it: started, asked, timed, killed.

Promises: `ask` returns the answer or raises IndexLost, after which the process is gone; it never waits longer than it
is told to. One question at a time. The process ends with its parent, whose end of the pipe closes.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.replica import BLAS_ENVIRONMENT, frames

_GRACE_SECONDS = 5.0


class IndexLost(Exception):
    """The index process crashed, hung, failed or was killed."""


class IndexBusy(Exception):
    """Another question is being answered and took too long."""


class IndexProcess:
    """A running index process on a directory, or on the Chroma server at `url`."""

    def __init__(
        self, directory: Path, file_limit_bytes: int, monotonic: Callable[[], float], url: str | None = None
    ) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._process = subprocess.Popen(  # noqa: S603
            [
                sys.executable,
                "-m",
                "server.replica.index",
                str(directory),
                str(file_limit_bytes),
                *([url] if url else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **BLAS_ENVIRONMENT, "PYTHONHASHSEED": "0"},
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(
        self, head: dict[str, Any], body: bytes = b"", *, timeout_seconds: float, patience_seconds: float | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """One operation. `patience_seconds`: how long to wait for the turn, None = as long as `timeout_seconds`.

        Raises IndexBusy when the turn did not come, IndexLost when the process is of no more use.
        """
        patience = timeout_seconds if patience_seconds is None else patience_seconds
        if not self._lock.acquire(timeout=patience):
            raise IndexBusy
        try:
            answer, content = self._exchange(head, body, self._monotonic() + timeout_seconds)
        except (OSError, EOFError, frames.BadFrame, TimeoutError) as error:
            self.kill()
            raise IndexLost(f"{head.get('do')}: {error!r}") from error
        finally:
            self._lock.release()
        if "error" in answer:
            self.kill()
            raise IndexLost(f"{head.get('do')}: {answer['error']}")
        return answer, content

    def _exchange(self, head: dict[str, Any], body: bytes, deadline: float) -> tuple[dict[str, Any], bytes]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None or stdin.closed:
            raise EOFError
        self._write(stdin.fileno(), frames.encode(head, body), deadline)
        return frames.read(lambda size: self._receive(stdout.fileno(), size, deadline))

    def _write(self, descriptor: int, content: bytes, deadline: float) -> None:
        os.set_blocking(descriptor, False)
        rest = memoryview(content)
        while rest:
            self._wait(descriptor, select.POLLOUT, deadline)
            rest = rest[os.write(descriptor, rest[: 1 << 16]) :]

    def _receive(self, descriptor: int, size: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while size:
            self._wait(descriptor, select.POLLIN, deadline)
            part = os.read(descriptor, min(size, 1 << 20))
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(descriptor, event)
        left = deadline - self._monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise TimeoutError("no answer in time")

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once. It may be killed twice."""
        self._process.kill()
        self._process.wait()
        self._close_pipes()

    def close(self) -> bool:
        """Let it end by itself, so that its files are whole; False when it had to be killed."""
        with self._lock:
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                code = self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                return False
            self._close_pipes()
            return code == 0

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
