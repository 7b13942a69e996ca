"""What `understudy status` and the status page show, gathered from the parts.

Promises: keys stay; times are ISO 8601 in UTC; nothing in it is secret. Does not wait for a replica that is away: its
part is then empty.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.clock import Clock
from server.errors import ReplicaUnavailable
from server.health.breaker import Breaker
from server.mirror import Mirror
from server.mode import Mode
from server.replay import Replayer
from server.replay.looking_back import LookBack
from server.replica.hydrate import Hydrator
from server.replica.process import ReplicaProcess
from server.rpc import WAL_KINDS
from server.upkeep import oldest_pending_seconds
from server.wal.conflict_log import ConflictLog
from server.wal.log import Log
from server.wal.patrol import Patrol
from server.wal.record import Record

_REPLICA_ANSWER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the status comes from; the last three only with an upstream."""

    version: str
    upstream: str | None
    wal_path: str
    clock: Clock
    mode: Mode
    log: Log
    patrol: Patrol
    conflicts: ConflictLog
    mirror: Mirror
    replica: ReplicaProcess
    breaker: Breaker | None
    replayer: Replayer | None
    hydrator: Hydrator | None
    look_back: LookBack | None = None


async def status_document(sources: Sources) -> dict[str, Any]:
    """The status as JSON."""
    log, mode, replayer = sources.log, sources.mode, sources.replayer
    progress = replayer.progress if replayer else None
    replica = await _replica_status(sources.replica)
    return {
        "version": sources.version,
        "state": mode.state.name.lower(),
        "since": moment(mode.since_ns),
        "reason": mode.reason,
        "upstream": sources.upstream,
        "pending": log.pending_count,
        "oldest_pending_age_seconds": round(oldest_pending_seconds(log, sources.clock), 3)
        if log.pending_count
        else None,
        "last_seq": log.last_seq,
        "replayed_seq": log.replayed_seq,
        "applied_seq": sources.mirror.applied_seq,
        "breaker": sources.breaker.phase.name.lower() if sources.breaker else "closed",
        "last_sync": moment(progress.last_sync) if progress and progress.last_sync else None,
        "replay": {
            "state": progress.state.name.lower(),
            "attempt": progress.attempt,
            "remaining": progress.remaining,
            "entries_per_second": round(progress.entries_per_second, 1),
            "left_seconds": None if progress.left_seconds is None else round(progress.left_seconds, 1),
            "last_error": progress.last_error,
        }
        if progress
        else None,
        "grace": {
            "is_due": sources.look_back.is_due,
            "is_owed": sources.look_back.is_owed,
            "looks": sources.look_back.looks,
            "restored_points": sources.look_back.restored,
        }
        if sources.look_back
        else None,
        "quarantine": log.quarantined_count,
        "conflicts": {
            "kept": sources.conflicts.count,
            "bytes": sources.conflicts.size_bytes,
            "dropped": sources.conflicts.dropped,
        },
        "collections": [_collection(one) for one in replica.collections],
        "hydration": sources.hydrator.status() if sources.hydrator else [],
        "verification": sources.hydrator.verification() if sources.hydrator else [],
        "replica": {"pid": sources.replica.pid, "restarts": sources.replica.restarts},
        "wal": {
            "path": sources.wal_path,
            "bytes": log.total_bytes,
            "segments": log.segment_count,
            "latched": log.latched,
            "damage": [str(problem) for problem in sources.patrol.problems],
            "takes_no_writes": log.why_no_writes,
            "free_bytes": log.space.free_bytes,
            "room": log.space.room.name.lower(),
            "ballast": log.space.ballast.name.lower(),
        },
    }


async def _replica_status(replica: ReplicaProcess) -> control_pb.StatusResponse:
    try:
        async with asyncio.timeout(_REPLICA_ANSWER_SECONDS):
            return await replica.control.status()
    except (ReplicaUnavailable, TimeoutError):
        return control_pb.StatusResponse()


def _collection(state: control_pb.CollectionState) -> dict[str, Any]:
    name = control_pb.Completeness.Name(state.completeness)
    return {
        "name": state.name,
        "completeness": name.removeprefix("COMPLETENESS_").lower(),
        "points": state.points,
        "expected_points": state.expected_points,
        "as_of_seq": state.as_of_seq,
        "verified_at": moment(state.verified_unix_ns) if state.verified_unix_ns else None,
        "index_state": state.index_state,
        "index_lag": state.index_lag,
    }


def entry_document(record: Record) -> dict[str, Any]:
    """One entry of the log, without its body."""
    return {
        "seq": record.seq,
        "state": record.state.name.lower(),
        "method": WAL_KINDS.get(record.kind, str(record.kind)),
        "time": moment(record.wall_ns),
        "bytes": len(record.body),
        "points": record.points,
    }


def moment(wall_ns: int) -> str:
    """Nanoseconds since the epoch as ISO 8601."""
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).isoformat(timespec="milliseconds")
