"""Qdrant and the replica as two stores, with a log between them: what others do to the one, the other misses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from generated.qdrant import points_pb2 as pb
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import conflict_pb2
from server import config
from server.config import ConflictPolicy
from server.conflicts import Conflicts
from server.health.breaker import Breaker
from server.replay import Examiner, Replayer
from server.replica.baselines import Baselines
from server.replica.refusal import Refusal
from server.replica.search import Searcher
from server.rpc import METHODS, WAL_KINDS, Backend, Call, Kind, Reply
from server.scrub import Scrubber
from server.telemetry import Telemetry
from server.wal.conflict_log import ConflictLog
from server.wal.files import Disk, RealDisk
from tests.faults.backends import FlakyBackend
from tests.faults.clock import ManualClock
from tests.replica.local_store import Local

from .fakes import MemoryLog, create, entry

Request = tuple[str, Message]


class StoreQdrant:
    """A store that plays Qdrant, reads and writes."""

    def __init__(self, directory: Path) -> None:
        self.local = Local(directory)
        self.searcher = Searcher(self.local.store, config.Replica())

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        await asyncio.sleep(0)
        row = METHODS[call.method]
        try:
            if row.kind is Kind.READ:
                return Reply(self.searcher.answer(call.method, call.body))
            return Reply(self.local.do(call.method, row.request.FromString(call.body)).SerializeToString())
        except Refusal as refusal:
            return Reply(code=refusal.code, details=refusal.details)

    def close(self) -> None:
        """Let go of the directory."""
        self.searcher.close()
        self.local.close()


class StoreControl:
    """The replica's part, asked without a process between."""

    def __init__(self, local: Local) -> None:
        self.baselines = Baselines(local.store)
        self.settled: list[control.SettleBaselinesRequest] = []
        self.failure: Exception | None = None

    async def compare_baselines(self, request: control.CompareBaselinesRequest) -> control.CompareBaselinesResponse:
        """See BaselineControl."""
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return self.baselines.compare(request)

    async def settle_baselines(self, request: control.SettleBaselinesRequest) -> control.SettleBaselinesResponse:
        """See BaselineControl."""
        await asyncio.sleep(0)
        self.settled.append(request)
        return self.baselines.settle(request)


class Divided:
    """`online` writes reach both, `offline` ones the replica and the log, `others` write to Qdrant alone."""

    def __init__(self, directory: Path, *, disk: Disk | None = None, limit_bytes: int = 1 << 20) -> None:
        self.directory = directory
        self.qdrant = StoreQdrant(directory / "qdrant")
        self.here = Local(directory / "here")
        self.control = StoreControl(self.here)
        self.log = MemoryLog()
        self.calls = FlakyBackend(self.qdrant, only=lambda call: call.method.endswith("/Upsert"))
        self.disk = disk or RealDisk()
        self.limit_bytes = limit_bytes
        self.telemetry = Telemetry.silent()
        self.kept = ConflictLog(self.disk, directory, limit_bytes)
        self.mixed: list[str] = []
        self.names = Conflicts()
        self.online(create())

    def close(self) -> None:
        """Let go of the directories."""
        self.qdrant.close()
        self.here.close()

    # --- writes ---

    def online(self, request: Request) -> None:
        """Qdrant has it, the replica hears of it."""
        self.qdrant.local.do(*request)
        self._log(request, synced=True)
        self.log.replayed_seq = len(self.log.records)

    def offline(self, request: Request, *resolved: Request, maybe_applied: bool = False, retry_of: int = 0) -> int:
        """Qdrant does not have it."""
        return self._log(request, *resolved, synced=False, maybe_applied=maybe_applied, retry_of=retry_of)

    def others(self, request: Request) -> None:
        """Somebody else writes to Qdrant."""
        self.qdrant.local.do(*request)

    def _log(
        self, request: Request, *resolved: Request, synced: bool, maybe_applied: bool = False, retry_of: int = 0
    ) -> int:
        body = entry(request, *resolved, maybe_applied=maybe_applied)
        body.retry_of = retry_of
        body.real_collection = self.names.behind(body.collection)
        self.names.note(METHODS[request[0]], request[1])
        seq = self.log.append(body)
        self.here.writes.apply([control.LogEntry(seq=seq, synced=synced, entry=body)], self.log.replayed_seq)
        return seq

    # --- the drain ---

    def replayer(self, policy: ConflictPolicy, upstream: Backend | None = None, **chosen: Any) -> Replayer:
        """Another life of the proxy: nothing is remembered but what is on disk."""
        settings = config.Replay(conflicts=policy, **chosen)
        clock, self.kept = ManualClock(), ConflictLog(self.disk, self.directory, self.limit_bytes)
        upstream = upstream or self.calls
        examiner = Examiner(
            self.control, upstream, self.kept, Scrubber.load(), settings, clock, self.telemetry, lambda: None
        )
        examiner.on_mixed = self.mixed.append
        made = Replayer(
            self.log, upstream, Breaker(), settings, clock, self.telemetry, lambda: None, WAL_KINDS, examiner=examiner
        )
        made.upstream_up = True
        return made

    async def drain(self, policy: ConflictPolicy = ConflictPolicy.LOCAL_WINS, **chosen: Any) -> None:
        """All that is pending."""
        assert await self.replayer(policy, **chosen).drain_now()

    # --- what came of it ---

    @property
    def rows(self) -> list[conflict_pb2.Conflict]:
        """The conflict log."""
        return [conflict_pb2.Conflict.FromString(row.body) for row in self.kept.rows()]

    def outcomes(self) -> list[tuple[str, int, int]]:
        """The conflict log in short: outcome, point, entry."""
        name = conflict_pb2.ConflictOutcome.Name
        return [
            (name(row.outcome).removeprefix("CONFLICT_OUTCOME_").lower(), _number(row), row.seq) for row in self.rows
        ]

    def unknown(self) -> int:
        """Points of which nobody can tell."""
        lines = self.telemetry.metrics.prometheus().decode().splitlines()
        found = next(line for line in lines if line.startswith('understudy_conflicts_total{outcome="unknown"'))
        return int(float(found.split()[-1]))

    def at_qdrant(self) -> dict[Any, dict[str, Any]]:
        """Payloads by id."""
        return self.qdrant.local.payloads()

    def at_replica(self) -> dict[Any, dict[str, Any]]:
        """Payloads by id."""
        return self.here.payloads()


def kept_payload(row: conflict_pb2.Conflict) -> dict[str, int]:
    """What a row says that Qdrant held."""
    point = pb.RetrievedPoint.FromString(row.remote)
    return {key: value.integer_value for key, value in point.payload.items()}


def _number(row: conflict_pb2.Conflict) -> int:
    from generated.qdrant import qdrant_common_pb2 as common

    return common.PointId.FromString(row.point_id).num
