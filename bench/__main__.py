"""`make bench`: measure every part, print the tables, put them into docs/performance.md."""

from __future__ import annotations

import subprocess
import sys

PARTS = ("bench.wal", "bench.proxy", "bench.replica", "bench.index", "bench.hydration", "bench.failover")

if __name__ == "__main__":
    for part in PARTS:
        subprocess.run([sys.executable, "-m", part, *sys.argv[1:]], check=True)
