"""What the store of the replica is made of: tables, and what came to them later.

Promises: a store of an earlier version gets what came later when it is opened, and stays one that the earlier version
can open: what does not know the additions does well without them.
"""

from __future__ import annotations

import sqlite3

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE collections (
    cid INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    config BLOB NOT NULL,
    info BLOB NOT NULL,
    completeness INTEGER NOT NULL,
    as_of_seq INTEGER NOT NULL,
    resume_at BLOB NOT NULL,
    expected_points INTEGER NOT NULL,
    created_here INTEGER NOT NULL,
    revision INTEGER NOT NULL DEFAULT 0,
    points INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE aliases (alias TEXT PRIMARY KEY, collection TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE schemas (cid INTEGER, field TEXT, info BLOB NOT NULL, PRIMARY KEY (cid, field)) WITHOUT ROWID;
CREATE TABLE dropped (cid INTEGER PRIMARY KEY);
-- Vectors apart from payloads, so that a filter that walks payloads does not read them from the disk.
CREATE TABLE points (
    pid INTEGER PRIMARY KEY, cid INTEGER NOT NULL, key BLOB NOT NULL, payload BLOB NOT NULL, UNIQUE (cid, key)
);
CREATE TABLE vectors (pid INTEGER PRIMARY KEY, vectors BLOB NOT NULL);
"""
# Came later, and what does not know it does well without: no new format.
LATER_TABLES = """
-- What points were before late entries, see `former_rows`.
CREATE TABLE IF NOT EXISTS former (
    n INTEGER PRIMARY KEY, seq INTEGER NOT NULL, synced INTEGER NOT NULL, cid INTEGER NOT NULL, key BLOB NOT NULL,
    known INTEGER NOT NULL, payload BLOB, vectors BLOB
);
CREATE INDEX IF NOT EXISTS former_points ON former (cid, key);
-- Points as they were before the first pending write to them; `state` is of `baseline_rows`.
CREATE TABLE IF NOT EXISTS baselines (
    bid INTEGER PRIMARY KEY,
    cid INTEGER NOT NULL,
    key BLOB NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    state INTEGER NOT NULL,
    until_seq INTEGER NOT NULL DEFAULT 0,
    is_there INTEGER NOT NULL DEFAULT 0,
    payload BLOB NOT NULL DEFAULT x'',
    vectors BLOB NOT NULL DEFAULT x'',
    UNIQUE (cid, key)
);
CREATE INDEX IF NOT EXISTS baselines_by_last ON baselines (last_seq);
"""
# Table, column and what it is declared as: they came after the table.
_LATER_COLUMNS = (
    ("collections", "doubt_number", "INTEGER NOT NULL DEFAULT 0"),
    ("former", "whole", "INTEGER NOT NULL DEFAULT 0"),
    ("former", "retry_of", "INTEGER NOT NULL DEFAULT 0"),
    ("former", "given_up", "INTEGER NOT NULL DEFAULT 0"),
    ("former", "shard_keys", "BLOB NOT NULL DEFAULT x''"),
)


def add_later_columns(connection: sqlite3.Connection) -> None:
    """Columns that an older store lacks."""
    for table, column, declared in _LATER_COLUMNS:
        present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if column not in present:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declared}")
