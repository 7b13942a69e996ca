"""What the proxy asks when Qdrant is back: what was touched lately, and which of it has Qdrant lost?

Promises: lists every point that a row is about and each judgement is of one state of the store. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import requests as r
from server.replica.former import Finding, Former, Kept, formers_of, judge
from server.replica.former_rows import IN_PART, IN_WHOLE
from server.replica.imports import record_of, rounded_vectors
from server.replica.points import Key, id_of, key_of
from server.replica.reads import batches, marks
from server.replica.records import Record
from server.replica.sharding import names_one_key
from server.replica.store import Store
from server.replica.vector_forms import UNNAMED

_IN_WINDOW = "seq > ? AND (synced OR seq <= ?)"


class FormerDesk:
    """Answers the proxy's questions. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list_points(self, request: control.ListFormerRequest) -> control.ListFormerResponse:
        """Points of one collection that entries of the window touched, in the order of the log."""
        window, after = request.window, request.after
        statement = f"SELECT n, cid, key FROM former WHERE n > ? AND {_IN_WINDOW} ORDER BY n LIMIT ?"  # noqa: S608
        with self._store.snapshot():
            while True:
                values = (after, window.since_seq, window.replayed_seq, max(1, request.limit_points))
                rows = self._store.connection().execute(statement, values).fetchall()
                if not rows:
                    return control.ListFormerResponse()
                # Up to where another collection comes between, so that nothing is passed over.
                cid, run = next((cid, list(run)) for cid, run in groupby(rows, itemgetter(1)))
                after = run[-1][0]
                collection = self._store.collection_of(cid)
                if collection is not None:
                    ids = [id_of(key).SerializeToString() for key in dict.fromkeys(row[2] for row in run)]
                    return control.ListFormerResponse(collection=collection.name, ids=ids, next_after=after)

    def judge(self, request: control.JudgeFormerRequest) -> control.JudgeFormerResponse:
        """Which of the points Qdrant has lost, and what they should be. A collection that is gone has none."""
        there = {point.key: point for point in map(record_of, r.parse(pb.GetResponse, request.page).result)}
        response = control.JudgeFormerResponse()
        with self._store.snapshot():
            collection = self._store.collection(request.collection)
            if collection is None:
                return response
            keys = [key_of(r.parse(common.PointId, body)) for body in request.ids]
            here = self._store.fetch(collection.cid, keys)
            formers = self._formers(collection.cid, keys, request.window, _Refused.of(request.refused))
        rounded = rounded_vectors(collection)
        for key in keys:
            judged = judge(
                there.get(key),
                here.get(key),
                formers.get(key, ()),
                rounded,
                is_log_whole=request.is_log_whole,
                is_unbroken=request.is_unbroken,
            )
            if judged.finding is Finding.FOREIGN:
                response.foreign += 1
            elif judged.finding is Finding.LOST and judged.wanted is None:
                response.remove.append(id_of(key).SerializeToString())
                response.remove_under.append(judged.place)
            elif judged.finding is Finding.LOST and judged.wanted is not None:
                response.put.append(_point_of(judged.wanted).SerializeToString())
                response.put_under.append(judged.place)
        return response

    def _formers(
        self, cid: int, keys: Iterable[Key], window: control.FormerWindow, refused: _Refused
    ) -> dict[Key, list[Former]]:
        found: dict[Key, list[Kept]] = {}
        for batch in batches(keys):
            columns = "key, seq, synced, known, payload, vectors, whole, retry_of, given_up, shard_keys"
            where = f"cid = ? AND key IN ({marks(len(batch))}) AND seq > ?"
            statement = f"SELECT {columns} FROM former WHERE {where} ORDER BY n"  # noqa: S608
            rows = self._store.connection().execute(statement, (cid, *batch, window.since_seq))
            for key, seq, synced, known, payload, vectors, whole, retry_of, given_up, under in rows:
                record = None if payload is None else Record(key, payload, vectors or b"")
                place = under if under and (whole or names_one_key(under)) else b""
                kept = Kept(
                    seq,
                    bool(synced),
                    bool(known),
                    record,
                    bool(whole),
                    retry_of,
                    given_up == IN_WHOLE,
                    place,
                    given_up == IN_PART,
                )
                found.setdefault(key, []).append(kept)
        return {
            key: formers_of(rows, window.replayed_seq, partial(refused.has, key), refused.in_part.__contains__)
            for key, rows in found.items()
        }


@dataclass(frozen=True, slots=True)
class _Refused:
    """What is in quarantine: points by entry, None = all that it touched; entries of which only a part may be."""

    points: dict[int, frozenset[Key] | None]
    in_part: frozenset[int]

    @classmethod
    def of(cls, entries: Sequence[control.RefusedEntry]) -> _Refused:
        points = {
            entry.seq: frozenset(key_of(r.parse(common.PointId, body)) for body in entry.ids) if entry.ids else None
            for entry in entries
        }
        return cls(points, frozenset(entry.seq for entry in entries if entry.in_part))

    def has(self, key: Key, seq: int) -> bool:
        if seq not in self.points:
            return False
        keys = self.points[seq]
        return keys is None or key in keys


def _point_of(record: Record) -> pb.PointStruct:
    """A stored point as a client would send it."""
    point = pb.PointStruct.FromString(record.payload)
    point.id.CopyFrom(id_of(record.key))
    vectors = pb.NamedVectors.FromString(record.vectors)
    if set(vectors.vectors) == {UNNAMED}:
        point.vectors.vector.CopyFrom(vectors.vectors[UNNAMED])
    else:
        point.vectors.vectors.SetInParent()
        point.vectors.vectors.MergeFrom(vectors)
    return point
