"""PURE. Whether Qdrant has lost what it acknowledged of a point: it shows the point as it was before.

Promises: a point counts as lost only when Qdrant shows it exactly (but for rounding) as it was before an entry that
Qdrant has acknowledged, and not as it should be; so what somebody else wrote, and what is there already, is left alone.
What it should be is its state after the last acknowledged entry: entries that are still pending come later, and what is
in quarantine was never done, also where a later entry was acknowledged.

Does not know what a point should be when an entry changed a part of it behind one that was not done: such a point
counts as changed by somebody else. Does not know what a point was when it was first touched in a collection that was
not whole here: whatever Qdrant shows may be that. Where the log may lack writes that were acknowledged, Qdrant may show
those: then a point counts as lost only if Qdrant shows it with the very content that it had before, for content, unlike
absence, seldom comes about twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """What a point was before one entry, None = it was not there. `is_known` False: it may have been anything.

    `is_whole`: after the entry it does not matter what the point was before. `place`: the shard keys that it lies under
    then, empty when that is not known. `is_doubtful`: nobody can tell whether Qdrant did the entry for this point.
    """

    is_acknowledged: bool
    is_known: bool
    record: Record | None
    is_whole: bool = False
    place: bytes = b""
    is_doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a point from before one entry, see Former. `retry_of`: the entry of which it repeats a part.

    `is_given_up`: an operator dropped the entry, `is_doubtful`: of which Qdrant may have done a part.
    """

    seq: int
    synced: bool
    is_known: bool
    record: Record | None
    is_whole: bool
    retry_of: int
    is_given_up: bool = False
    place: bytes = b""
    is_doubtful: bool = False


def formers_of(
    rows: Sequence[Kept],
    replayed_seq: int,
    is_refused: Callable[[int], bool],
    is_doubtful: Callable[[int], bool] = lambda seq: False,
) -> list[Former]:
    """What is kept of one point, in order, with what Qdrant has done. `is_refused`: an entry is in quarantine for it,
    `is_doubtful`: and perhaps not for this very point.

    What was repeated was not done before, and a repetition of what is still in quarantine was never sent.
    """
    repeated = {row.retry_of for row in rows}

    def is_done(row: Kept) -> bool:
        if row.synced:
            return True
        if row.seq > replayed_seq or row.seq in repeated or row.is_given_up:
            return False
        return not (is_refused(row.seq) or is_refused(row.retry_of))

    return [
        Former(
            is_done(row),
            row.is_known,
            row.record,
            row.is_whole,
            row.place,
            not row.synced and (row.is_doubtful or is_doubtful(row.seq)),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Judged:
    """The finding, what the point should be, and under which shard keys (empty: none were named)."""

    finding: Finding
    wanted: Record | None
    place: bytes = b""


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
    states = _at_qdrant(formers, here)
    if states.now is None or not states.now.is_known:
        return Judged(Finding.FOREIGN, here)
    wanted = states.now.record
    if _same(there, wanted, rounded):
        return Judged(Finding.SAME, wanted)
    # What the replica has held since then, with none of ours done, it took over from Qdrant: no loss to guess at.
    is_held_since = there is not None and any(
        each.is_known and not each.is_acknowledged and _same(there, each.record, rounded) for each in formers
    )
    may_guess = is_log_whole and is_unbroken and not is_held_since
    for former in states.before:
        was_so = _same(there, former.record, rounded) if former.is_known else may_guess
        if was_so and (is_log_whole or there is not None):
            places = (former.place for former in reversed(formers) if former.is_acknowledged and former.place)
            return Judged(Finding.LOST, wanted, next(places, b""))
    return Judged(Finding.FOREIGN, wanted)


@dataclass(frozen=True, slots=True)
class _States:
    """What a point was at Qdrant before each acknowledged entry, and what it should be now (None: nobody can tell)."""

    before: list[Former]
    now: Former | None


def _at_qdrant(formers: Sequence[Former], here: Record | None) -> _States:
    before: list[Former] = []
    # While Qdrant lacks an entry it stays at what was before that one; `is_lost_track` when it went on from there.
    lacks: Former | None = None
    is_lost_track = False
    for former in formers:
        if former.is_doubtful:
            is_lost_track = True
            continue
        if not former.is_acknowledged:
            lacks = lacks or former
            continue
        if not is_lost_track:
            before.append(lacks or former)
        if former.is_whole:
            lacks, is_lost_track = None, False
        elif lacks is not None:
            is_lost_track = True
    if is_lost_track:
        return _States(before, None)
    return _States(before, lacks or Former(True, True, here))


def _same(one: Record | None, other: Record | None, rounded: frozenset[str]) -> bool:
    if other is None:
        return one is None
    return agree(one, other, rounded)
