"""`make bench`: measure, print the tables, put them into docs/performance.md."""

from __future__ import annotations

from bench.proxy import main

if __name__ == "__main__":
    main()
