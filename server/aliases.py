"""Learns from the replica what aliases stand for.

Promises: the answer has every change that the log has, and none that was noted meanwhile is undone by it. Does not ask
Qdrant: what others changed there is known once the replica has taken it over.
"""

from __future__ import annotations

from generated.qdrant import collections_pb2
from server.conflicts import Conflicts
from server.mirror import Mirror
from server.rpc import LIST_ALIASES, Backend, Call
from server.wal.log import Log


async def learn_aliases(conflicts: Conflicts, replica: Backend, mirror: Mirror, log: Log) -> None:
    """Tell `conflicts` of the replica's aliases; waits until the replica has what is in the log."""

    async def ask() -> dict[str, str] | None:
        await mirror.caught_up(log.last_seq)
        reply = await replica.handle(Call(LIST_ALIASES, b""))
        if not reply.is_ok:
            return None
        aliases = collections_pb2.ListAliasesResponse.FromString(reply.body).aliases
        return {alias.alias_name: alias.collection_name for alias in aliases}

    await conflicts.learn_aliases(ask)
