"""Other processes: whose child is which, who lives, and signals that reach nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def send(pid: int | None, number: signal.Signals) -> None:
    """Send a signal to one process. Raises ProcessLookupError when there is none.

    Raises ValueError for no pid: 0 would be the whole process group, with pytest, make and CI's shell in it.
    """
    if pid is None or pid <= 0:
        raise ValueError(f"no process to send {number.name} to: {pid}")
    os.kill(pid, number)


def children_of(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[1]) == pid:
                    found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
