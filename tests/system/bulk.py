"""An upstream that makes up any number of points, and what processes weigh."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.upstream.process import ROOT

COLLECTION = "bulk"
_READY = "listening on "


@contextmanager
def bulk_upstream(points: int, **options: int | str) -> Iterator[str]:
    """`bench.scroll_upstream` with its options (`payload_bytes=…`); yields its address."""
    command = [sys.executable, "-m", "bench.scroll_upstream", "--points", str(points)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        if not line.startswith(_READY):
            raise RuntimeError(f"{command} did not start")
        yield line.removeprefix(_READY).strip()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def anonymous_bytes(pid: int) -> int:
    """Memory that a process holds itself: files mapped by SQLite can be dropped by the kernel and do not count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} says nothing of its memory")


class Scales:
    """Weighs processes in a thread of its own, twenty times a second; `peaks` are the largest weights."""

    def __init__(self, **pids: int) -> None:
        self.first = {name: anonymous_bytes(pid) for name, pid in pids.items()}
        self.peaks = dict(self.first)
        self._pids = pids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._weigh)

    def __enter__(self) -> Scales:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._done.set()
        self._thread.join()

    def grown(self, name: str) -> int:
        """Bytes between the first weight and the largest."""
        return self.peaks[name] - self.first[name]

    def _weigh(self) -> None:
        while not self._done.wait(0.05):
            for name, pid in self._pids.items():
                self.peaks[name] = max(self.peaks[name], anonymous_bytes(pid))
