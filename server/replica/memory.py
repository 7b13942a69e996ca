"""How much memory may be taken for what is only kept to be fast.

Promises: of the machine or of the container, whichever has less; never fails for a file that is not there.
"""

from __future__ import annotations

import os
from pathlib import Path

# Version 2 and version 1 of control groups, as they look from inside a container.
LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SHARE = 4


def default_resident_bytes(limit_files: tuple[Path, ...] = LIMIT_FILES) -> int:
    """A quarter of the memory that this process may use at most."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *filter(None, map(_limit, limit_files))]) // _SHARE


def _limit(path: Path) -> int:
    """What a file of a control group says, 0 = no limit."""
    try:
        said = path.read_text().strip()
    except OSError:
        # Not in a control group of that kind.
        return 0
    return int(said) if said.isdigit() else 0
