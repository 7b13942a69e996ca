"""What points were before the entries that touched them lately: rows in the store.

Promises: a row is in the same transaction as the change that it is about. At most `limit_points` rows are kept: what
Qdrant has acknowledged takes the place of the oldest, what is pending is not kept any more when there is no room, for
the oldest rows are needed until Qdrant is back. What is not kept is not judged, never judged wrongly.
Does not decide when rows may go: that is the proxy's, which knows when Qdrant acknowledged what.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import FORGOTTEN_AT_ONCE, catalogue
from server.replica.points import key_of
from server.replica.reads import batches, marks
from server.replica.records import Collection, Key
from server.replica.requests import parse
from server.replica.store import Transaction

# How an entry is given up.
IN_WHOLE, IN_PART = 1, 2

# Where the log ended when this store began to follow it, see `FormerRows`.
BEGAN_AT = "former_began_at"

_NOTE = """
INSERT INTO former (seq, synced, cid, key, known, payload, vectors, whole, shard_keys, retry_of)
SELECT ?1, ?2, ?3, ?4, CASE WHEN p.pid IS NULL THEN ?5 ELSE 1 END, p.payload, v.vectors, ?6, ?7, ?8
FROM (SELECT 1) LEFT JOIN points p ON p.cid = ?3 AND p.key = ?4 LEFT JOIN vectors v ON v.pid = p.pid
WHERE p.pid IS NOT NULL OR ?5 OR ?9
"""


@dataclass(frozen=True, slots=True)
class Cause:
    """The entry that changes points. `retry_of`: the entry of the quarantine that it repeats, 0 = none."""

    seq: int
    synced: bool
    retry_of: int = 0


class FormerRows:
    """Takes down what is about to be changed by entries after `through_seq`; none before will be looked at.

    `began_at_seq`: where the log ended when this store began to follow it. What nobody knows the state before of is not
    kept of entries up to there: others may have changed it for as long as the store before this one is gone.
    """

    def __init__(self, limit_points: int, through_seq: int = 0, began_at_seq: int = 0) -> None:
        self._limit_points = limit_points
        self._through_seq = through_seq
        self._began_at_seq = began_at_seq

    def note(
        self,
        tx: Transaction,
        collection: Collection,
        keys: Sequence[Key],
        cause: Cause,
        *,
        is_whole: bool,
        shard_keys: bytes,
    ) -> None:
        """Keep what these points are now, before an entry changes them; `is_whole`: whatever they are.

        `shard_keys` is the selector of the write.
        """
        if cause.seq <= self._through_seq:
            return
        connection = tx.connection()
        first, last = _bounds(connection)
        excess = (last - first + 1 if last else 0) + len(keys) - self._limit_points
        if excess > 0:
            if not cause.synced or len(keys) > self._limit_points:
                return
            connection.execute("DELETE FROM former WHERE n < ?", (first + excess,))
        is_known = int(catalogue.is_whole(collection))
        begin = (cause.seq, int(cause.synced), collection.cid)
        end = (is_known, int(is_whole), shard_keys, cause.retry_of, int(cause.seq > self._began_at_seq))
        connection.executemany(_NOTE, ((*begin, key, *end) for key in keys))


def _bounds(connection: sqlite3.Connection) -> tuple[int, int]:
    """The first and the last row, 0 when there is none: rows are numbered without gaps."""
    # Two subqueries: with both in one, SQLite would walk the table.
    row = connection.execute("SELECT (SELECT MIN(n) FROM former), (SELECT MAX(n) FROM former)").fetchone()
    return row[0] or 0, row[1] or 0


def forget(tx: Transaction, through_seq: int) -> None:
    """Let go of rows of entries up to `through_seq`, some at a time."""
    tx.connection().execute(
        "DELETE FROM former WHERE n IN (SELECT n FROM former ORDER BY n LIMIT ?) AND seq <= ?",
        (FORGOTTEN_AT_ONCE, through_seq),
    )


def give_up(tx: Transaction, entries: Iterable[control.RefusedEntry]) -> None:
    """Qdrant will never have these, for the points that they name, or for all where they name none."""
    connection = tx.connection()
    for entry in entries:
        how = IN_PART if entry.in_part else IN_WHOLE
        if not entry.ids:
            connection.execute("UPDATE former SET given_up = ? WHERE seq = ?", (how, entry.seq))
        for batch in batches(key_of(parse(common.PointId, body)) for body in entry.ids):
            connection.execute(
                f"UPDATE former SET given_up = ? WHERE seq = ? AND key IN ({marks(len(batch))})",  # noqa: S608
                (how, entry.seq, *batch),
            )


def forget_all(tx: Transaction) -> None:
    """Let go of everything: nobody will ask, or the numbers mean other entries from now on."""
    tx.connection().execute("DELETE FROM former")


def rewind(tx: Transaction, last_seq: int) -> None:
    """The log ends at `last_seq`: what came later was acknowledged, and its numbers will be given again."""
    tx.connection().execute("UPDATE former SET synced = 1, seq = ? WHERE seq > ?", (last_seq, last_seq))
