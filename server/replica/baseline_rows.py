"""Points as they were before their first pending write: the rows that keep them.

Promises: the first pending write to a point keeps what was there, in the transaction that applies it; at most one copy
of each point; what Qdrant has by now makes room, bit by bit. Does not judge: that is `baselines`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from server.replica import catalogue
from server.replica.points import Key
from server.replica.reads import batches, marks
from server.replica.records import Collection, Record
from server.replica.store import Transaction

_PURGED_PER_APPLY = 2000


class State(IntEnum):
    """How a point stands. OPEN: to be judged; SETTLED: its writes go to Qdrant; UNKNOWN: nobody can tell.

    Of a SETTLED one `until_seq` says who looked (0: nobody had to), and what it was is kept: until its first write is
    sent it may be judged again.
    """

    OPEN = 0
    SETTLED = 1
    UNKNOWN = 2
    REMOTE = 3
    HELD = 4
    MOOT = 5


@dataclass(frozen=True, slots=True)
class Baseline:
    """A point before its first pending write (`before` None: there was none), and the writes that touch it."""

    first_seq: int
    state: State
    until_seq: int
    before: Record | None


@dataclass(frozen=True, slots=True)
class Keeper:
    """Keeps what a pending entry is about to change. `is_ours`: Qdrant may show the entry's own work already."""

    tx: Transaction
    seq: int
    replayed_seq: int
    is_ours: bool

    def keep(self, collection: Collection, keys: Iterable[Key]) -> None:
        """Before the change. What was kept for writes that Qdrant has by now makes room."""
        state = State.SETTLED if self.is_ours else State.OPEN
        if not catalogue.is_whole(collection):
            state = State.UNKNOWN
        execute, cid = self.tx.connection().execute, collection.cid
        numbers = (self.seq, self.seq, int(state))
        for batch in batches(keys):
            among = f"key IN ({marks(len(batch))})"
            execute(
                f"DELETE FROM baselines WHERE cid = ? AND {among} AND last_seq <= ?",  # noqa: S608
                (cid, *batch, self.replayed_seq),
            )
            if state is State.OPEN:
                execute(
                    "INSERT OR IGNORE INTO baselines (cid, key, first_seq, last_seq, state, is_there, payload, vectors)"  # noqa: S608
                    " SELECT p.cid, p.key, ?, ?, ?, 1, p.payload, v.vectors FROM points p"
                    f" JOIN vectors v ON v.pid = p.pid WHERE p.cid = ? AND p.{among}",
                    (*numbers, cid, *batch),
                )
            self.tx.connection().executemany(
                "INSERT INTO baselines (cid, key, first_seq, last_seq, state) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (cid, key) DO UPDATE SET last_seq = excluded.last_seq",
                [(cid, key, *numbers) for key in batch],
            )


def purge(tx: Transaction, replayed_seq: int) -> None:
    """Forget some of what is at Qdrant by now."""
    tx.connection().execute(
        "DELETE FROM baselines WHERE bid IN (SELECT bid FROM baselines WHERE last_seq <= ? LIMIT ?)",
        (replayed_seq, _PURGED_PER_APPLY),
    )


def forget(tx: Transaction) -> None:
    """The log is another one, or has lost entries: what was kept means nothing any more."""
    tx.connection().execute("DELETE FROM baselines")


def fetch(tx: Transaction, cid: int, keys: Iterable[Key]) -> Mapping[Key, Baseline]:
    """What is kept of points."""
    found: dict[Key, Baseline] = {}
    for batch in batches(keys):
        rows = tx.connection().execute(
            "SELECT key, first_seq, state, until_seq, is_there, payload, vectors FROM baselines"  # noqa: S608
            f" WHERE cid = ? AND key IN ({marks(len(batch))})",
            (cid, *batch),
        )
        for key, first_seq, state, until_seq, is_there, payload, vectors in rows:
            before = Record(key, payload, vectors) if is_there else None
            found[key] = Baseline(first_seq, State(state), until_seq, before)
    return found


def settle(tx: Transaction, cid: int, keys: Iterable[Key], looker: int) -> None:
    """Note that the writes to points go to Qdrant, and who looked."""
    for batch in batches(keys):
        tx.connection().execute(
            f"UPDATE baselines SET state = ?, until_seq = ? WHERE cid = ? AND key IN ({marks(len(batch))})",  # noqa: S608
            (int(State.SETTLED), looker, cid, *batch),
        )


def replace_before(tx: Transaction, cid: int, found: Mapping[Key, Record | None]) -> None:
    """What points were is now what Qdrant holds, for somebody has written that down."""
    tx.connection().executemany(
        "UPDATE baselines SET is_there = ?, payload = ?, vectors = ? WHERE cid = ? AND key = ?",
        [
            (int(each is not None), each.payload if each else b"", each.vectors if each else b"", cid, key)
            for key, each in found.items()
        ],
    )


def set_state(tx: Transaction, cid: int, keys: Iterable[Key], state: State, until_seq: int = 0) -> None:
    """Note how points stand; what they were is of no use any more."""
    for batch in batches(keys):
        tx.connection().execute(
            "UPDATE baselines SET state = ?, until_seq = ?, payload = x'', vectors = x''"  # noqa: S608
            f" WHERE cid = ? AND key IN ({marks(len(batch))})",
            (int(state), until_seq, cid, *batch),
        )
