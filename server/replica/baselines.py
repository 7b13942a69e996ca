"""What the replica held of a point before the first pending write to it, and whether Qdrant still holds that.

Promises: a point is called changed by others only when Qdrant holds neither that nor what the replica holds by now.
Where it is gone on both sides, nothing has to be written, whoever wins.
What was judged is judged again as long as nothing that touches the point was sent; then it stays judged until Qdrant
has every pending write to it: what Qdrant shows afterwards may be our own. After another life of the proxy nobody knows
what was sent, and such a point counts as unknown. Where the replica did not hold the whole collection, or Qdrant may
show the entry's own work (a write of unknown outcome, a retry), nothing is called changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import catalogue, ranges
from server.replica import requests as r
from server.replica.baseline_rows import Baseline, State, fetch, replace_before, set_state, settle
from server.replica.imports import record_of, rounded_vectors
from server.replica.points import Key, key_of
from server.replica.records import Collection, Record
from server.replica.store import Store
from server.replica.vector_forms import fields_of

_FATES = {
    control.FATE_REMOTE: State.REMOTE,
    control.FATE_HELD: State.HELD,
}
_LEFT_OUT = {State.REMOTE: control.FATE_REMOTE, State.MOOT: control.FATE_MOOT}


class Baselines:
    """Judges points. Only one thread may call it at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def compare(self, request: control.CompareBaselinesRequest) -> control.CompareBaselinesResponse:
        """Which points others changed. When it is none, and nothing was decided before, all are noted as judged."""
        response = control.CompareBaselinesResponse()
        touches = {key_of(_id(touch.point_id)): touch for touch in request.touches}
        with self._store.durable_transaction() as tx:
            response.applied_seq = tx.applied_seq
            collection = tx.collection(request.collection)
            if collection is None:
                response.unknown = len(touches)
                return response
            known = fetch(tx, collection.cid, touches)
            current = tx.fetch(collection.cid, touches)
            there = _records(request.page)
            alike = _Likeness.of(collection)
            settled: list[Key] = []
            deleted: list[Key] = []
            for key, touch in touches.items():
                found = known.get(key)
                if found is None or found.first_seq > touch.seq:
                    response.unknown += 1
                elif found.state in _LEFT_OUT:
                    if touch.seq <= found.until_seq:
                        response.changed.add(
                            point_id=touch.point_id, fate=_LEFT_OUT[found.state], until_seq=found.until_seq
                        )
                elif found.first_seq != touch.seq:
                    response.unknown += found.state in (State.OPEN, State.UNKNOWN)
                elif found.state is State.HELD:
                    response.changed.add(point_id=touch.point_id, fate=control.FATE_HELD)
                elif not _is_to_judge(found, request):
                    response.unknown += _is_unknown(found, request)
                elif found.before is not None and key not in there and key not in current:
                    # Others have deleted it, and so do ours in the end: what they do before that finds no point.
                    deleted.append(key)
                    response.changed.add(
                        point_id=touch.point_id, fate=control.FATE_MOOT, until_seq=response.applied_seq
                    )
                elif any(alike.are_same(there.get(key), one) for one in (found.before, current.get(key))):
                    settled.append(key)
                else:
                    response.changed.add(point_id=touch.point_id)
            set_state(tx, collection.cid, deleted, State.MOOT, response.applied_seq)
            if not any(each.fate == control.FATE_UNSPECIFIED for each in response.changed):
                settle(tx, collection.cid, settled, request.looker)
        return response

    def settle(self, request: control.SettleBaselinesRequest) -> control.SettleBaselinesResponse:
        """Note what becomes of changed points, and that the others were judged."""
        touches = {key_of(_id(touch.point_id)): touch.seq for touch in request.touches}
        changed = {key_of(_id(body)) for body in request.changed}
        with self._store.durable_transaction() as tx:
            collection = tx.collection(request.collection)
            if collection is None:
                return control.SettleBaselinesResponse()
            known = fetch(tx, collection.cid, touches)
            opened = {
                key for key, found in known.items() if found.first_seq == touches[key] and _is_to_judge(found, request)
            }
            until_seq = tx.applied_seq
            settle(tx, collection.cid, opened - changed, request.looker)
            taken, there = opened & changed, _records(request.page)
            if request.fate == control.FATE_LOCAL:
                # It is in the conflict log: what comes on top of it before our write is another conflict.
                replace_before(tx, collection.cid, {key: there.get(key) for key in taken})
                settle(tx, collection.cid, taken, request.looker)
            else:
                set_state(tx, collection.cid, taken, _FATES[request.fate], until_seq)
            if request.fate == control.FATE_REMOTE:
                tx.put(collection.cid, [there[key] for key in sorted(taken & there.keys())])
                tx.remove(collection.cid, sorted(taken - there.keys()))
        return control.SettleBaselinesResponse(until_seq=until_seq)


@dataclass(frozen=True, slots=True)
class _Likeness:
    """How points of a collection are compared: the vectors that may differ by rounding, those that cannot be told."""

    rounded: frozenset[str]
    blurred: frozenset[str]

    @classmethod
    def of(cls, collection: Collection) -> _Likeness:
        fields = fields_of(catalogue.config_of(collection).params)
        return cls(
            rounded_vectors(collection),
            frozenset(name for name, field in fields.items() if not field.is_repeatable),
        )

    def are_same(self, one: Record | None, other: Record | None) -> bool:
        """Whether two sides hold the same point, or both none."""
        if one is None or other is None:
            return one is other
        return ranges.agree(self._clear(one), self._clear(other), self.rounded)

    def _clear(self, record: Record) -> Record:
        """Without the vectors that cannot be told; what is left shows whether there is one."""
        if not self.blurred:
            return record
        vectors = pb.NamedVectors.FromString(record.vectors)
        for name in self.blurred & vectors.vectors.keys():
            vectors.vectors[name].Clear()
        return replace(record, vectors=vectors.SerializeToString(deterministic=True))


_Look: TypeAlias = control.CompareBaselinesRequest | control.SettleBaselinesRequest


def _is_to_judge(found: Baseline, look: _Look) -> bool:
    """Whether Qdrant can show nothing of ours: nobody has looked, or it was in this very life; and nothing was sent."""
    is_again = found.state is State.SETTLED and 0 != look.looker == found.until_seq
    return found.first_seq > look.sent_seq and (found.state is State.OPEN or is_again)


def _is_unknown(found: Baseline, look: _Look) -> bool:
    """Whether others may have changed a point that is not judged: its write is not sent, or nobody knows."""
    is_of_another_life = found.state is State.SETTLED and found.until_seq not in (0, look.looker)
    return found.state in (State.OPEN, State.UNKNOWN) or is_of_another_life


def _records(page: bytes) -> dict[Key, Record]:
    records = map(record_of, r.parse(pb.GetResponse, page).result)
    return {record.key: record for record in records}


def _id(body: bytes) -> common.PointId:
    return r.parse(common.PointId, body)
