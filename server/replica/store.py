"""SQLite truth of the replica: points, collections, aliases, field schemas, cursors.

Promises: one transaction holds a change and the log cursor that it belongs to; a reader sees whole transactions only,
and everything that was committed before it began (`Store.snapshot`). Files are 0600, the directory 0700, one process
holds it. Uses SQLite's WAL with `synchronous=NORMAL`: after a power loss the last transactions may be gone, never
torn, and `applied_seq` steps back with them, so the log applies them again. A file that SQLite calls damaged is kept
beside as `*.corrupted.*` and an empty store takes its place (`Store.recovered` says so): when it is opened, or, where
a transaction or a comparison comes upon it later, at the next start, which `on_damage` is called for. Damage that only
clients' reads come upon fails those reads: during an outage the rest of the file is worth more than an empty one.

Does not promise to understand points: payloads and vectors are bytes here.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from server.clock import Clock
from server.errors import DataDirUnusable
from server.replica import damage, schema
from server.replica.checkpoint import Checkpoint
from server.replica.reads import Reads, batches, marks, verified_name
from server.replica.records import Changes, Collection, Key, Record

__all__ = ["Changes", "Collection", "Key", "Reads", "Record", "Store", "Transaction"]

_FILE = "replica.sqlite"
_FORMAT = 1
_PURGED_PER_COMMIT = 500
_CHECKPOINT_PAGES = 4000
_BUSY_SECONDS = 30.0
# The name, in `meta`, of the last number that was given to a collection, see `Transaction.doubt`.
_DOUBT_NUMBER = "doubt_number"


class Transaction(Reads):
    """Writes; all or none. Reads through it see its own writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._touched: dict[int, set[Key]] = {}
        self._dropped: set[int] = set()
        self._reshaped: set[int] = set()

    def connection(self) -> sqlite3.Connection:
        """See Reads."""
        return self._connection

    def put(self, cid: int, records: Iterable[Record]) -> None:
        """Store points, each replacing the one with its key as a whole."""
        touched = self._touched.setdefault(cid, set())
        connection = self._connection
        added = 0
        for record in records:
            touched.add(record.key)
            row = connection.execute("SELECT pid FROM points WHERE cid = ? AND key = ?", (cid, record.key)).fetchone()
            if row is None:
                added += 1
                pid = connection.execute(
                    "INSERT INTO points (cid, key, payload) VALUES (?, ?, ?)", (cid, record.key, record.payload)
                ).lastrowid
                connection.execute("INSERT INTO vectors (pid, vectors) VALUES (?, ?)", (pid, record.vectors))
            else:
                connection.execute("UPDATE points SET payload = ? WHERE pid = ?", (record.payload, row[0]))
                connection.execute("UPDATE vectors SET vectors = ? WHERE pid = ?", (record.vectors, row[0]))
        self._add_points(cid, added)

    def put_payloads(self, cid: int, records: Sequence[Record]) -> None:
        """Replace the payloads of points that exist; their vectors are not written."""
        self._touched.setdefault(cid, set()).update(record.key for record in records)
        rows = ((record.payload, cid, record.key) for record in records)
        self._connection.executemany("UPDATE points SET payload = ? WHERE cid = ? AND key = ?", rows)

    def remove(self, cid: int, keys: Iterable[Key]) -> int:
        """Delete points; returns how many there were."""
        touched = self._touched.setdefault(cid, set())
        removed = 0
        for batch in batches(keys):
            touched.update(batch)
            where = f"FROM points WHERE cid = ? AND key IN ({marks(len(batch))})"
            self._connection.execute(f"DELETE FROM vectors WHERE pid IN (SELECT pid {where})", (cid, *batch))  # noqa: S608
            removed += self._connection.execute(f"DELETE {where}", (cid, *batch)).rowcount
        self._add_points(cid, -removed)
        return removed

    def _add_points(self, cid: int, difference: int) -> None:
        if difference:
            self._connection.execute("UPDATE collections SET points = points + ? WHERE cid = ?", (difference, cid))

    def save_collection(self, collection: Collection) -> Collection:
        """Create (cid 0) or update; returns it as stored. Not written: `schema`, `revision`, `points`, `doubt_number`.

        Raises sqlite3.IntegrityError when another collection has the name.
        """
        values = (
            collection.name,
            collection.config,
            collection.info,
            collection.completeness,
            collection.as_of_seq,
            collection.resume_at,
            collection.expected_points,
            int(collection.created_here),
        )
        if collection.cid:
            self._reshaped.add(collection.cid)
            self._connection.execute(
                "UPDATE collections SET name = ?, config = ?, info = ?, completeness = ?, as_of_seq = ?,"
                " resume_at = ?, expected_points = ?, created_here = ? WHERE cid = ?",
                (*values, collection.cid),
            )
            stored = self.collection_of(collection.cid)
            return stored if stored is not None else collection
        doubt_number = self._next_doubt_number()
        cid = self._connection.execute(
            "INSERT INTO collections (name, config, info, completeness, as_of_seq, resume_at, expected_points,"
            " created_here, doubt_number) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, doubt_number),
        ).lastrowid
        assert cid is not None
        self._reshaped.add(cid)
        return replace(collection, cid=cid, schema={}, revision=0, points=0, doubt_number=doubt_number)

    def drop_collection(self, cid: int) -> None:
        """Forget a collection, its schema and its aliases; its points go bit by bit (`Store.purge`)."""
        execute = self._connection.execute
        execute("DELETE FROM aliases WHERE collection = (SELECT name FROM collections WHERE cid = ?)", (cid,))
        execute("DELETE FROM schemas WHERE cid = ?", (cid,))
        execute("DELETE FROM meta WHERE name = ?", (verified_name(cid),))
        execute("DELETE FROM collections WHERE cid = ?", (cid,))
        execute("INSERT OR IGNORE INTO dropped (cid) VALUES (?)", (cid,))
        self._touched.pop(cid, None)
        self._reshaped.discard(cid)
        self._dropped.add(cid)

    def set_alias(self, alias: str, collection: str) -> None:
        """Create or repoint an alias."""
        self._connection.execute(
            "INSERT OR REPLACE INTO aliases (alias, collection) VALUES (?, ?)", (alias, collection)
        )

    def delete_alias(self, alias: str) -> bool:
        """Remove an alias; False when there was none."""
        return self._connection.execute("DELETE FROM aliases WHERE alias = ?", (alias,)).rowcount > 0

    def save_schema(self, cid: int, name: str, info: bytes | None) -> bool:
        """Set the PayloadSchemaInfo of a field, None removes it; returns whether the field had one before."""
        execute = self._connection.execute
        had = execute("DELETE FROM schemas WHERE cid = ? AND field = ?", (cid, name)).rowcount > 0
        if info is not None:
            execute("INSERT INTO schemas (cid, field, info) VALUES (?, ?, ?)", (cid, name, info))
        self._reshaped.add(cid)
        return had

    def set_completeness(
        self, cid: int, completeness: int, *, as_of_seq: int = 0, resume_at: bytes = b"", expected_points: int = 0
    ) -> None:
        """Set how much of the remote's collection is here."""
        self._connection.execute(
            "UPDATE collections SET completeness = ?, as_of_seq = ?, resume_at = ?, expected_points = ? WHERE cid = ?",
            (completeness, as_of_seq, resume_at, expected_points, cid),
        )

    def doubt(self, cid: int) -> None:
        """The collection may lack what the remote holds: whoever copies it can tell by its `doubt_number`."""
        self._connection.execute(
            "UPDATE collections SET doubt_number = ? WHERE cid = ?", (self._next_doubt_number(), cid)
        )

    def _next_doubt_number(self) -> int:
        """One that no collection of this store has had."""
        number = int(self.meta(_DOUBT_NUMBER) or 0) + 1
        self.set_meta(_DOUBT_NUMBER, str(number))
        return number

    def set_verified(self, cid: int, unix_ns: int) -> None:
        """The whole collection was equal to the remote's at that time."""
        self.set_meta(verified_name(cid), str(unix_ns))

    def set_meta(self, name: str, value: str) -> None:
        """Set a named value."""
        self._connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, value))

    def set_applied_seq(self, seq: int) -> None:
        """Log entries up to `seq` are in."""
        self.set_meta("applied_seq", str(seq))

    def seal(self) -> Changes:
        """Count revisions up and tell what changed; the store calls it just before the commit."""
        revisions: dict[int, int] = {}
        for cid in {*self._touched, *self._reshaped}:
            row = self._connection.execute(
                "UPDATE collections SET revision = revision + 1 WHERE cid = ? RETURNING revision", (cid,)
            ).fetchone()
            if row is not None:
                revisions[cid] = row[0]
        touched = {cid: frozenset(keys) for cid, keys in self._touched.items() if keys}
        return Changes(touched, revisions, frozenset(self._dropped), frozenset(self._reshaped))


class Store(Reads):
    """The store in `directory`. One writer at a time (`transaction`), readers in any thread."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        """Open or create. Raises DataDirUnusable when the directory cannot be used or another process holds it."""
        self._directory = directory
        self.clock = clock
        self.recovered = ""
        # Called in the thread that came upon damage, when the next start is sure to set the file aside.
        self.on_damage: Callable[[Exception], None] = lambda error: None
        self._write_lock = threading.RLock()
        self._local = threading.local()
        self._readers_lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._hooks: list[Callable[[Changes], None]] = []
        self._announcements: list[Callable[[Changes], None]] = []
        self._closed = False
        self._checkpoint = Checkpoint(directory / f"{_FILE}-wal", busy_seconds=_BUSY_SECONDS)
        self._lock_fd = self._hold()
        try:
            self._writer = self._open_or_replace()
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _hold(self) -> int:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirUnusable(f"cannot use {self._directory} for the replica: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise DataDirUnusable(
                f"another process holds the replica in {self._directory}",
                hint="Stop it, or choose another directory with --data-dir",
            ) from error
        return lock

    def _open_or_replace(self) -> sqlite3.Connection:
        path = self._directory / _FILE
        self.recovered = damage.heed(path, self.clock.wall_ns())
        try:
            return self._open(path)
        except sqlite3.OperationalError as error:
            raise DataDirUnusable(f"cannot open {path}: {error}") from error
        except sqlite3.DatabaseError as error:
            self.recovered = damage.set_aside(path, str(error), self.clock.wall_ns())
            return self._open(path)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around work that must not fail for ever: a file that is damaged there is set aside at the next start."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if not damage.is_damage(error):
                raise
            path = self._directory / _FILE
            damage.mark(path, str(error))
            self.on_damage(error)
            raise damage.StoreDamaged(f"{path} is damaged: {error}") from error

    def _open(self, path: Path) -> sqlite3.Connection:
        # SQLite gives -wal and -shm the mode of the main file, so this decides for all three.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
        connection = self._connect(path)
        try:
            connection.execute("PRAGMA page_size = 8192")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                # A store that takes the place of a damaged one must not count through its numbers again.
                begin = f"INSERT INTO meta VALUES ('{_DOUBT_NUMBER}', '{self.clock.wall_ns()}');"  # noqa: S608
                connection.executescript(f"BEGIN; {schema.TABLES} {begin} PRAGMA user_version = {_FORMAT}; COMMIT;")
            elif version != _FORMAT:
                raise DataDirUnusable(
                    f"{path} has format {version}, this version of Understudy reads {_FORMAT}",
                    hint="Use the version that wrote it, or an empty directory",
                )
            connection.executescript(f"BEGIN; {schema.LATER_TABLES} COMMIT;")
            schema.add_later_columns(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA mmap_size = 1073741824")
        connection.execute("PRAGMA cache_size = -32768")
        return connection

    def connection(self) -> sqlite3.Connection:
        """The reading connection of the calling thread."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._connect(self._directory / _FILE)
            found.execute("PRAGMA query_only = ON")
            with self._readers_lock:
                if self._closed:
                    found.close()
                    raise sqlite3.ProgrammingError("the store is closed")
                self._readers.append(found)
            self._local.connection = found
        return found

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads of this thread inside the block see one state: that of the first read. Nests."""
        connection = self.connection()
        if connection.in_transaction:
            yield
            return
        self._checkpoint.let_in()
        connection.execute("BEGIN")
        try:
            # BEGIN alone takes no snapshot: the first read does.
            connection.execute("SELECT 1 FROM meta LIMIT 1").fetchone()
            yield
        finally:
            connection.execute("COMMIT")

    def before_commit(self, hook: Callable[[Changes], None]) -> None:
        """Call `hook` just before each commit, in the writer's thread: no reader can see what it was not told of.

        The commit may still fail; then the next transaction has the same revisions. It must not raise.
        """
        self._announcements.append(hook)

    def on_commit(self, hook: Callable[[Changes], None]) -> None:
        """Call `hook` after each commit, in the writer's thread, before the next transaction. It must not raise."""
        self._hooks.append(hook)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """The one writer. Commits at the end of the block; an exception rolls back. Not to be nested.

        Raises StoreDamaged where it comes upon damage.
        """
        with self._write_lock, self.watched():
            writer = self._writer
            writer.execute("BEGIN IMMEDIATE")
            open_transaction = Transaction(writer)
            try:
                yield open_transaction
                changes = open_transaction.seal()
                self._purge(_PURGED_PER_COMMIT)
                for announce in self._announcements:
                    announce(changes)
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise
            for hook in self._hooks:
                hook(changes)
            self._checkpoint.shorten(writer)

    @contextmanager
    def durable_transaction(self) -> Iterator[Transaction]:
        """As `transaction`, and on the medium when the block has ended, with everything that was committed before."""
        with self._write_lock:
            self._writer.execute("PRAGMA synchronous = FULL")
            try:
                with self.transaction() as tx:
                    yield tx
            finally:
                self._writer.execute("PRAGMA synchronous = NORMAL")

    def _purge(self, limit: int) -> int:
        row = self._writer.execute("SELECT cid FROM dropped LIMIT 1").fetchone()
        if row is None:
            return 0
        doomed = "SELECT pid FROM points WHERE cid = ? LIMIT ?"
        self._writer.execute(f"DELETE FROM vectors WHERE pid IN ({doomed})", (row[0], limit))  # noqa: S608
        removed = self._writer.execute(f"DELETE FROM points WHERE pid IN ({doomed})", (row[0], limit)).rowcount  # noqa: S608
        if removed < limit:
            self._writer.execute("DELETE FROM dropped WHERE cid = ?", row)
        return removed

    def purge(self, limit: int = 5000) -> int:
        """Delete points of dropped collections for good; returns how many went, 0 = none are left."""
        with self._write_lock, self.watched():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                removed = self._purge(limit)
                self._writer.execute("COMMIT")
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            return removed

    def close(self) -> None:
        """Close all connections and let go of the directory. Reads still running in other threads fail."""
        with self._write_lock, self._readers_lock:
            if self._closed:
                return
            self._closed = True
            for reader in self._readers:
                reader.close()
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._writer.close()
            os.close(self._lock_fd)
