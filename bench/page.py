"""Where the figures of a benchmark go: bench/out/NAME.json, the terminal, and its part of docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"


def machine() -> str:
    """One line about this machine."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
    )


def publish(name: str, result: dict[str, Any], text: str, out: Path, *, docs: bool) -> None:
    """Write the raw figures, print the tables and, when `docs`, put them between the page's marks of that name."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1))
    print(text)
    if docs:
        before, opening, rest = PAGE.read_text().partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->\n")
        if not closing:
            raise ValueError(f"{PAGE} has no marks for {name}")
        PAGE.write_text(f"{before}{opening}\n{text}\n{closing}{after}")
