"""Batches that choose their points by what is there: sent once or twice, their effect is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from server.config import ConflictPolicy
from server.entries import pending_entries
from server.errors import UpstreamTimeout
from server.replica import requests as r
from server.rpc import METHODS, Call, Reply
from tests.replica.local_store import point, upsert, where

from .divided import Divided


def rotation() -> pb.UpdateBatchPoints:
    """What is old goes, what is new becomes old: twice, and all is gone."""
    batch = pb.UpdateBatchPoints(collection_name="c", wait=True)
    batch.operations.add().delete_points.points.CopyFrom(where("status", "old"))
    becomes_old = batch.operations.add().set_payload
    becomes_old.points_selector.CopyFrom(where("status", "new"))
    becomes_old.payload["status"].string_value = "old"
    return batch


class Lossy:
    """Does every write; the answers to the first `losses` of each method are lost."""

    def __init__(self, divided: Divided, losses: int) -> None:
        self._qdrant = divided.qdrant
        self._losses = losses
        self._lost: dict[str, int] = {}

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        reply = await self._qdrant.handle(call)
        lost = self._lost.get(call.method, 0)
        if METHODS[call.method].wal_kind and lost < self._losses:
            self._lost[call.method] = lost + 1
            raise UpstreamTimeout("no answer in time", maybe_applied=True)
        return reply


@pytest.mark.parametrize("losses", [0, 1, 2])
@pytest.mark.parametrize(
    ("completeness", "resolved_points"),
    [(control.COMPLETENESS_COMPLETE, 100), (control.COMPLETENESS_COMPLETE, 0), (control.COMPLETENESS_STALE, 100)],
)
@pytest.mark.parametrize("is_new_life", [False, True])
async def test_a_batch_has_one_effect_however_often_its_answers_are_lost(
    tmp_path: Path, completeness: control.Completeness, resolved_points: int, losses: int, is_new_life: bool
) -> None:
    divided = Divided(tmp_path)
    divided.online((r.UPSERT, upsert(point(1, status="new"), point(2, status="old"), point(3))))
    divided.here.set_completeness(completeness)
    divided.here.writes._resolved_points = resolved_points
    batch = rotation()
    body = batch.SerializeToString()
    resolved = divided.here.writes.prepare(r.UPDATE_BATCH, body)
    row = METHODS[r.UPDATE_BATCH]
    for entry in pending_entries(row, batch, body, resolved=resolved, maybe_applied=False, tenant=""):
        seq = divided.log.append(entry)
        divided.here.writes.apply([control.LogEntry(seq=seq, entry=entry)], divided.log.replayed_seq)
    lossy = Lossy(divided, losses)
    replayer = divided.replayer(ConflictPolicy.LOCAL_WINS, lossy)
    while not await replayer.drain_now():
        replayer = divided.replayer(ConflictPolicy.LOCAL_WINS, lossy) if is_new_life else replayer
    wanted = {1: {"status": "old"}, 3: {}}
    assert (divided.at_qdrant(), divided.at_replica(), divided.log.kept) == (wanted, wanted, {})
    divided.close()
