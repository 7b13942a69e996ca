"""PURE. Whether Qdrant has lost what it acknowledged of a point: it shows the point as it was before.

Promises: a point counts as lost only when Qdrant shows it exactly (but for rounding) as it was before an entry that
Qdrant has acknowledged, and not as it should be; so what somebody else wrote, and what is there already, is left alone.
What it should be is its state after the last acknowledged entry: entries that are still pending come later.

Does not know what a point was when it was first touched in a collection that was not whole here: whatever Qdrant shows
may be that. Where the log may lack writes that were acknowledged, Qdrant may show those: then a point counts as lost
only if Qdrant shows it with the very content that it had before, for content, unlike absence, seldom comes about twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from server.replica.ranges import agree
from server.replica.records import Record


class Finding(Enum):
    """What Qdrant shows of a point."""

    SAME = "as it should be"
    LOST = "as it was before"
    FOREIGN = "neither"


@dataclass(frozen=True, slots=True)
class Former:
    """What a point was before one entry, None = it was not there. `is_known` False: it may have been anything."""

    is_acknowledged: bool
    is_known: bool
    record: Record | None


@dataclass(frozen=True, slots=True)
class Judged:
    """The finding, and what the point should be."""

    finding: Finding
    wanted: Record | None


def judge(
    there: Record | None,
    here: Record | None,
    formers: Sequence[Former],
    rounded: frozenset[str],
    *,
    is_log_whole: bool = True,
    is_unbroken: bool = True,
) -> Judged:
    """Compare Qdrant's point with the replica's and what it was before, `formers` in the order of the log.

    `rounded` names the vectors that may differ by rounding. `is_log_whole` False: Qdrant may have writes of ours that
    the log lacks. `is_unbroken` False: it may have one that was under way at a crash.
    """
    pending = next((former for former in formers if not former.is_acknowledged), None)
    if pending is not None and not pending.is_known:
        return Judged(Finding.FOREIGN, here)
    wanted = here if pending is None else pending.record
    if _same(there, wanted, rounded):
        return Judged(Finding.SAME, wanted)
    for former in formers:
        was_so = _same(there, former.record, rounded) if former.is_known else is_log_whole and is_unbroken
        if former.is_acknowledged and was_so and (is_log_whole or there is not None):
            return Judged(Finding.LOST, wanted)
    return Judged(Finding.FOREIGN, wanted)


def _same(one: Record | None, other: Record | None, rounded: frozenset[str]) -> bool:
    if other is None:
        return one is None
    return agree(one, other, rounded)
