"""What Understudy finds around it: disk, network, the replica's process, chance.

Promises: `Machine()` is the machine that this process runs on; whoever puts another one in its place (a simulation)
gets the same proxy. The clock is an argument of its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.directories import prepare_directory, read_or_make_secret
from server.replica.process import ReplicaProcess
from server.upstream import Upstream
from server.wal.files import Disk, RealDisk
from server.wal.keyring import Entropy
from server.wal.runner import Runner, ThreadRunner
from server.wal.writer import Command, Outcome

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot_of() -> bytes:
    """Linux names each boot; elsewhere it is not known."""
    try:
        return _BOOT.read_bytes().strip()
    except OSError:
        return b""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the composition root gets what it does not make itself.

    `jitter` gives numbers in [0, 1) that keep retries of many proxies apart; `entropy` bytes that nobody can guess.
    `writer` makes what drives the log's writer. `boot` names this run of the machine, b"" = that is not known: while it
    is the same no power cut has taken what was written and not synced.
    """

    disk: Disk = field(default_factory=RealDisk)
    directory: Callable[[Path], Path] = prepare_directory
    secret: Callable[[Path], bytes] = read_or_make_secret
    upstream: Callable[..., Upstream] = Upstream
    replica: Callable[..., ReplicaProcess] = ReplicaProcess
    writer: Callable[[], Runner[Command, Sequence[Outcome]]] = ThreadRunner
    entropy: Entropy = os.urandom
    jitter: Callable[[], float] = random.random
    boot: Callable[[], bytes] = boot_of
