"""Reading the replica's SQLite store, committed or inside a transaction.

Promises: keys come in Qdrant's id order; a part of a record that was not asked for is not read from the disk. Every
statement binds its values; the only text put together is columns and question marks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from server.replica.records import Collection, Key, Record

# SQLite binds at most 32766 values; more keys than this in one statement gain nothing.
_KEYS_PER_STATEMENT = 500

_COLLECTION_COLUMNS = (
    "name, config, cid, info, completeness, as_of_seq, resume_at, expected_points, created_here, revision, points,"
    " doubt_number"
)


def batches(keys: Iterable[Key], size: int = _KEYS_PER_STATEMENT) -> Iterator[list[Key]]:
    """`keys` in lists of `size`, short enough for one statement unless given."""
    iterator = iter(keys)
    while batch := list(islice(iterator, size)):
        yield batch


def verified_name(cid: int) -> str:
    """Under which name `meta` keeps when a collection was verified."""
    return f"verified_unix_ns {cid}"


def marks(count: int) -> str:
    """The question marks of an IN list."""
    return ",".join("?" * count)


def _select(payload: bool, vectors: bool) -> str:
    columns = ", ".join(("p.key", "p.payload" if payload else "x''", "v.vectors" if vectors else "x''"))
    return f"SELECT {columns} FROM points p" + (" JOIN vectors v ON v.pid = p.pid" if vectors else "")  # noqa: S608


class Reads:
    """What can be read, of the committed state (`Store`) or of an open transaction (`Transaction`)."""

    def connection(self) -> sqlite3.Connection:
        """The connection of the calling thread."""
        raise NotImplementedError

    def meta(self, name: str) -> str:
        """A named value, "" when it was never set."""
        row = self.connection().execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    @property
    def applied_seq(self) -> int:
        """Log entries up to here are in the store."""
        return int(self.meta("applied_seq") or 0)

    def collections(self) -> list[Collection]:
        """All collections, by name."""
        return self._collections("ORDER BY name", ())

    def collection(self, name: str) -> Collection | None:
        """The collection of that name, or the one that an alias of that name stands for."""
        found = self._collections("WHERE name = ?", (name,))
        if not found:
            found = self._collections("WHERE name = (SELECT collection FROM aliases WHERE alias = ?)", (name,))
        return found[0] if found else None

    def collection_of(self, cid: int) -> Collection | None:
        """The collection with that number."""
        found = self._collections("WHERE cid = ?", (cid,))
        return found[0] if found else None

    def _collections(self, where: str, values: Sequence[Any]) -> list[Collection]:
        connection = self.connection()
        rows = connection.execute(f"SELECT {_COLLECTION_COLUMNS} FROM collections {where}", values).fetchall()  # noqa: S608
        found = []
        for name, config, cid, info, completeness, as_of, resume_at, expected, here, revision, points, doubt in rows:
            fields = connection.execute("SELECT field, info FROM schemas WHERE cid = ?", (cid,))
            found.append(
                Collection(
                    name=name,
                    config=config,
                    cid=cid,
                    info=info,
                    schema=dict(fields.fetchall()),
                    completeness=completeness,
                    as_of_seq=as_of,
                    resume_at=resume_at,
                    expected_points=expected,
                    created_here=bool(here),
                    revision=revision,
                    points=points,
                    doubt_number=doubt,
                )
            )
        return found

    def aliases(self) -> dict[str, str]:
        """Alias → name of its collection."""
        return dict(self.connection().execute("SELECT alias, collection FROM aliases ORDER BY alias").fetchall())

    def count(self, cid: int) -> int:
        """Number of points, from a counter."""
        row = self.connection().execute("SELECT points FROM collections WHERE cid = ?", (cid,)).fetchone()
        return int(row[0]) if row else 0

    def fetch(self, cid: int, keys: Iterable[Key], *, payload: bool = True, vectors: bool = True) -> dict[Key, Record]:
        """The points that exist among `keys`; parts not asked for come back empty."""
        found: dict[Key, Record] = {}
        for batch in batches(keys):
            statement = _select(payload, vectors) + f" WHERE p.cid = ? AND p.key IN ({marks(len(batch))})"
            for row in self.connection().execute(statement, (cid, *batch)):
                found[row[0]] = Record(*row)
        return found

    def scan(
        self,
        cid: int,
        after: Key | None = None,
        limit: int = 1000,
        *,
        start: Key | None = None,
        payload: bool = True,
        vectors: bool = True,
    ) -> list[Record]:
        """At most `limit` points in key order, beyond `after` or from `start` on (both may be None)."""
        lower, bound = (">", after) if after is not None else (">=", start or b"")
        statement = _select(payload, vectors) + f" WHERE p.cid = ? AND p.key {lower} ? ORDER BY p.key LIMIT ?"
        return [Record(*row) for row in self.connection().execute(statement, (cid, bound, limit))]

    def keys(self, cid: int, *, start: Key = b"", page: int = 10_000) -> Iterator[Key]:
        """All keys from `start` on, in order, read page by page."""
        statement = "SELECT key FROM points WHERE cid = ? AND key {} ? ORDER BY key LIMIT ?"
        found = self.connection().execute(statement.format(">="), (cid, start, page)).fetchall()
        while found:
            yield from (row[0] for row in found)
            if len(found) < page:
                return
            found = self.connection().execute(statement.format(">"), (cid, found[-1][0], page)).fetchall()

    def has(self, cid: int, keys: Iterable[Key]) -> set[Key]:
        """Those of `keys` that exist."""
        found: set[Key] = set()
        for batch in batches(keys):
            statement = f"SELECT key FROM points WHERE cid = ? AND key IN ({marks(len(batch))})"  # noqa: S608
            found.update(row[0] for row in self.connection().execute(statement, (cid, *batch)))
        return found

    def range_records(self, cid: int, first: Key | None, after: Key | None, *, page: int = 256) -> Iterator[Record]:
        """Points in [first, after), in order, read page by page; None = open end."""
        found = self.scan(cid, start=first, limit=page)
        while found:
            for record in found:
                if after is not None and record.key >= after:
                    return
                yield record
            if len(found) < page:
                return
            found = self.scan(cid, found[-1].key, page)

    def verified_unix_ns(self, cid: int) -> int:
        """When the whole collection was last copied from the remote or compared with it; 0 = never."""
        return int(self.meta(verified_name(cid)) or 0)

    def range_keys(self, cid: int, first: Key | None, after: Key | None) -> list[Key]:
        """Keys in [first, after), in order; None = open end."""
        statement = "SELECT key FROM points WHERE cid = ? AND key >= ?"
        values: list[Any] = [cid, first or b""]
        if after is not None:
            statement += " AND key < ?"
            values.append(after)
        return [row[0] for row in self.connection().execute(statement + " ORDER BY key", values)]
