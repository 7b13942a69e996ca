"""The composition root learns the aliases of a replica that has everything that the log has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from generated.qdrant import collections_pb2
from server.app import Understudy
from server.conflicts import Conflicts
from server.rpc import Call, Reply


async def test_a_replica_behind_the_log_is_waited_for() -> None:
    held = {"live": "blue"}

    class Replica:
        async def handle(self, call: Call) -> Reply:
            described = [collections_pb2.AliasDescription(alias_name=a, collection_name=c) for a, c in held.items()]
            return Reply(collections_pb2.ListAliasesResponse(aliases=described).SerializeToString())

    class Mirror:
        async def caught_up(self, seq: int) -> None:
            assert seq == 7
            held["live"] = "green"

    conflicts = Conflicts()
    parts = SimpleNamespace(conflicts=conflicts, mirror=Mirror(), log=SimpleNamespace(last_seq=7))
    proxy = SimpleNamespace(_process=SimpleNamespace(backend=Replica()), _parts=parts)
    proxy._replicas_aliases = lambda: Understudy._replicas_aliases(cast("Understudy", proxy))
    await Understudy._learn_aliases(cast("Understudy", proxy))
    assert conflicts.behind("live") == "green"
