"""Tables of collections, kept in step with the store.

Promises: `table` gives the table of a collection with the columns that a filter needs, as of the caller's snapshot, or
None where a walk over the points is cheaper or the table would not fit. A column whose contents are too large (long
texts, each different) is not kept; the filter then leaves some points to be looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from server.replica.columns import Dictionary, Encoder, Source, Table, sources_of
from server.replica.filters import Node
from server.replica.following import Following
from server.replica.records import Collection, Key, Record

# Below this a walk takes a few milliseconds.
_LEAST_POINTS = 500
_PAGE = 4096
_KEY_BYTES = 70
_SAMPLE_POINTS = 200
_CONTENT_BYTES_MOST = 400
# Of all that may be kept, what the distinct contents of one column may take when it is made.
_COLUMN_SHARE = 0.25
# With points that change a dictionary only grows: past this share the column is made anew when it is next wanted.
_GROWN_SHARE = 0.5
_WHAT = "table"


class Tables:
    """The tables of a store."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._store = following.store
        # Columns found too large: (collection, source).
        self._wide: set[tuple[int, Source]] = set()

    def table(self, collection: Collection, node: Node, *more: Source) -> Table | None:
        """The table with the columns for a filter, and with `more` if they fit. Raises SnapshotPassed."""
        sources = dict.fromkeys((*sources_of(node), *more))
        wanted = [source for source in sources if (collection.cid, source) not in self._wide]
        too_large = collection.points * _KEY_BYTES > self._following.limit_bytes // 2
        if collection.points < _LEAST_POINTS or too_large or not wanted:
            return None
        slot = self._following.slot(collection.cid, _WHAT)
        table: Table = slot.current(
            collection,
            lambda: self._bare(collection.cid),
            lambda last, keys: self._advanced(last, collection.cid, keys),
            is_bulk=True,
        )
        missing = [source for source in wanted if source not in table.columns]
        if missing:
            missing = self._narrow(collection.cid, missing)
        if missing:
            better = slot.improve(collection, lambda last: self._widened(last, collection.cid, missing))
            if better is None:
                return None
            table = better
            self._wide.update((collection.cid, source) for source in missing if source not in table.columns)
        self._following.trim(collection.cid, _WHAT)
        return table if any(source in table.columns for source in wanted) else None

    def has_room(self, collection: Collection) -> bool:
        """Whether the table of a collection is kept, or can be without others having to go."""
        return self._following.has_room(collection.cid, _WHAT, collection.points * _KEY_BYTES)

    def kept(self, cid: int, source: Source) -> Dictionary | None:
        """The dictionary of a column that is in memory, as of whatever snapshot; does not wait."""
        table: Table | None = self._following.last(cid, _WHAT)
        return table.columns[source].dictionary if table is not None and source in table.columns else None

    def _bare(self, cid: int) -> Table:
        keys = list(self._store.keys(cid))
        return Table(keys, np.zeros(len(keys), dtype=np.bool_))

    def _advanced(self, table: Table, cid: int, keys: set[Key]) -> Table:
        encoder = Encoder(table.columns)
        found = self._store.fetch(cid, keys, payload=encoder.needs_payload, vectors=encoder.needs_vectors)
        changed = table.changed(keys, found.values())
        most = _GROWN_SHARE * self._following.limit_bytes
        grown = [source for source, column in changed.columns.items() if column.dictionary.content_bytes > most]
        return changed.without(grown) if grown else changed

    def _widened(self, table: Table, cid: int, sources: Sequence[Source]) -> Table:
        missing = [source for source in sources if source not in table.columns]
        if not missing:
            return table
        most = _COLUMN_SHARE * self._following.limit_bytes
        return table.with_columns(self._records(cid, Encoder(missing)), missing, most)

    def _records(self, cid: int, encoder: Encoder) -> Iterator[Record]:
        after: Key | None = None
        while page := self._store.scan(cid, after, _PAGE, payload=encoder.needs_payload, vectors=encoder.needs_vectors):
            yield from page
            after = page[-1].key

    def _narrow(self, cid: int, sources: Sequence[Source]) -> list[Source]:
        """Those of the sources whose contents are short enough, judged by the first points."""
        encoder = Encoder(sources)
        sample = self._store.scan(
            cid, limit=_SAMPLE_POINTS, payload=encoder.needs_payload, vectors=encoder.needs_vectors
        )
        sizes = dict.fromkeys(sources, 0)
        for record in sample:
            for source, content in encoder.contents(record).items():
                sizes[source] += len(content)
        wide = {source for source in sources if sizes[source] > _CONTENT_BYTES_MOST * len(sample)}
        self._wide.update((cid, source) for source in wide)
        return [source for source in sources if source not in wide]
