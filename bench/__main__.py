"""`make bench`: measure log, proxy and vector index, print the tables, put them into docs/performance.md."""

from __future__ import annotations

import subprocess
import sys

if __name__ == "__main__":
    for part in ("bench.wal", "bench.proxy", "bench.index"):
        subprocess.run([sys.executable, "-m", part, *sys.argv[1:]], check=True)
