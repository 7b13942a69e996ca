"""Aliases are learned from a replica that has everything that the log has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from generated.qdrant import collections_pb2
from server.aliases import learn_aliases
from server.conflicts import Conflicts
from server.mirror import Mirror
from server.rpc import METHODS, Call, Code, Reply
from server.wal.log import Log

CHANGE = METHODS["/qdrant.Collections/UpdateAliases"]
LOG = cast("Log", SimpleNamespace(last_seq=7))


class Replica:
    """Behind the log until it is waited for. `moves` are acknowledged between question and answer."""

    def __init__(self) -> None:
        self.conflicts = Conflicts()
        self.conflicts.know_aliases({"live": "red"})
        self.held, self.code = {"live": "blue"}, Code.OK
        self.moves: list[str] = []

    async def handle(self, call: Call) -> Reply:
        described = [collections_pb2.AliasDescription(alias_name=a, collection_name=c) for a, c in self.held.items()]
        body = collections_pb2.ListAliasesResponse(aliases=described).SerializeToString()
        if self.moves:
            moved = collections_pb2.CreateAlias(alias_name="live", collection_name=self.moves.pop())
            actions = [collections_pb2.AliasOperations(create_alias=moved)]
            self.conflicts.note(CHANGE, collections_pb2.ChangeAliases(actions=actions))
            self.held = {"live": moved.collection_name}
        return Reply(body, self.code)

    async def caught_up(self, seq: int) -> None:
        assert seq == LOG.last_seq
        if self.held == {"live": "blue"}:
            self.held = {"live": "green"}

    async def learned(self) -> str:
        await learn_aliases(self.conflicts, self, cast("Mirror", self), LOG)
        return self.conflicts.behind("live")


async def test_a_replica_behind_the_log_is_waited_for() -> None:
    assert await Replica().learned() == "green"


async def test_an_answer_from_before_a_move_is_asked_for_again() -> None:
    replica = Replica()
    replica.moves = ["violet", "yellow"]
    assert await replica.learned() == "violet"


async def test_a_replica_that_does_not_answer_teaches_nothing() -> None:
    replica = Replica()
    replica.code = Code.UNAVAILABLE
    assert await replica.learned() == "red"
