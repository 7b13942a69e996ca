"""Two stores and what lies between: one plays Qdrant, the other is the replica, with a log in memory and a mirror."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.message import Message

from generated.qdrant import qdrant_pb2
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server import config
from server.errors import ReplicaRefused
from server.replica import catalogue
from server.replica import requests as r
from server.replica.hydrate import Hydrator
from server.replica.refusal import Refusal
from server.replica.search import Searcher
from server.rpc import HEALTH_CHECK, Backend, Call, Metadata, Reply
from server.telemetry import Telemetry
from server.wal.record import EntryState, Record
from tests.faults.backends import FlakyBackend
from tests.faults.clock import ManualClock

from .local_store import CREATE, Local, create, entry, point, upsert

EMPTY, HYDRATING = control_pb.COMPLETENESS_EMPTY, control_pb.COMPLETENESS_HYDRATING
T = TypeVar("T")
# More turns of the loop than a copy of a few points takes.
_STEPS_TO_REST = 200

COMPLETE, STALE = control_pb.COMPLETENESS_COMPLETE, control_pb.COMPLETENESS_STALE
SCROLL = r.POINTS + "Scroll"


class RemoteStore:
    """A store that plays Qdrant."""

    def __init__(self, directory: Path) -> None:
        self.local = Local(directory)
        self.searcher = Searcher(self.local.store, config.Replica())

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        await asyncio.sleep(0)
        if call.method == HEALTH_CHECK:
            return Reply(qdrant_pb2.HealthCheckReply(title="q", version="1.18.3").SerializeToString())
        try:
            if call.method.startswith(r.COLLECTIONS):
                return Reply(catalogue.answer(self.local.store, call.method, call.body, lambda: 0.0))
            return Reply(self.searcher.answer(call.method, call.body))
        except Refusal as refusal:
            return Reply(code=refusal.code, details=refusal.details)


@dataclass
class World:
    """Qdrant, log and replica, with the mirror between them."""

    remote: RemoteStore
    here: Local
    clock: ManualClock
    settings: config.Hydrate

    def __post_init__(self) -> None:
        self.records: list[Record] = []
        self.writes: list[tuple[str, Message]] = []
        self.pending_count = 0
        self.mirrored = 0
        self.key: Metadata | None = None
        self.upstream: Backend = self.remote
        self.lines: list[str] = []
        self.here.imports.attach(control_pb.AttachRequest(log_id="L"))

    # The log.

    @property
    def last_seq(self) -> int:
        return len(self.records)

    async def read(self, after_seq: int, limit_entries: int, limit_bytes: int) -> list[Record]:
        await asyncio.sleep(0)
        return self.records[after_seq : after_seq + limit_entries]

    # A client writes.

    def write(self, method: str, request: Message) -> None:
        """Qdrant first, then the log; the replica hears of it later."""
        self.remote.local.do(method, request)
        self.acknowledged(method, request)

    def acknowledged(self, method: str, request: Message) -> None:
        self.records.append(Record(self.last_seq + 1, 1, EntryState.SYNCED, self.clock.wall_ns(), b"", "", b"", 0))
        self.writes.append((method, request))

    def mirror(self, upto: int | None = None) -> None:
        """The replica applies the log."""
        while self.mirrored < (self.last_seq if upto is None else upto):
            method, request = self.writes[self.mirrored]
            self.mirrored += 1
            self.here.writes.apply([entry(self.mirrored, method, request)])

    # The replica's control.

    async def _in_turn(self, since: int, work: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        self.mirror(max(since, self.mirrored))
        return self._told(work)

    def _told(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Refusal as refusal:
            raise ReplicaRefused(str(refusal), code=refusal.code, details=refusal.details) from refusal

    async def import_catalogue(self, request: control_pb.ImportCatalogueRequest) -> control_pb.ImportCatalogueResponse:
        found: control_pb.ImportCatalogueResponse = await self._in_turn(
            max(request.since_seq, request.read_seq), lambda: self.here.imports.catalogue(request)
        )
        return found

    async def import_page(self, request: control_pb.ImportPageRequest) -> control_pb.ImportPageResponse:
        found: control_pb.ImportPageResponse = await self._in_turn(
            max(request.since_seq, request.read_seq), lambda: self.here.imports.page(request)
        )
        return found

    async def compare_page(self, request: control_pb.ComparePageRequest) -> control_pb.ComparePageResponse:
        found: control_pb.ComparePageResponse = await self._in_turn(
            request.since_seq, lambda: self.here.imports.compare(request)
        )
        return found

    async def note_verified(self, request: control_pb.NoteVerifiedRequest) -> control_pb.NoteVerifiedResponse:
        return self.here.imports.note_verified(request)

    async def set_completeness(self, request: control_pb.SetCompletenessRequest) -> control_pb.SetCompletenessResponse:
        return self._told(lambda: self.here.imports.set_completeness(request))

    async def status(self) -> control_pb.StatusResponse:
        self.mirror()
        return control_pb.StatusResponse(
            applied_seq=self.mirrored,
            collections=[
                control_pb.CollectionState(
                    name=each.name,
                    completeness=each.completeness,  # type: ignore[arg-type]
                    points=self.here.store.count(each.cid),
                    as_of_seq=each.as_of_seq,
                    resume_at=each.resume_at,
                    expected_points=each.expected_points,
                    verified_unix_ns=self.here.store.verified_unix_ns(each.cid),
                    doubt_number=each.doubt_number,
                )
                for each in self.here.store.collections()
            ],
        )

    # Running.

    def hydrator(self) -> Hydrator:
        telemetry = Telemetry.silent()
        telemetry.log = Lines(self.lines)  # type: ignore[assignment]
        return Hydrator(
            self,
            self.upstream,
            self,
            self.settings,
            self.clock,
            telemetry,
            credential=lambda: self.key,
            sleep=self.clock.sleep,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Hydrator]:
        hydrator = self.hydrator()
        hydrator.upstream_up = True
        task = asyncio.create_task(hydrator.run())
        try:
            yield hydrator
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def until(self, condition: Callable[[], bool], *, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(20_000):
            assert "hydration stumbled" not in self.lines
            if condition():
                return
            await asyncio.sleep(0)
            each()
            if not condition() and self.clock.sleeping:
                self.clock.advance(self.clock.sleeping[0])
        raise AssertionError(f"never came about: {self.lines[-5:]}")

    async def pass_until(self, moment: float) -> None:
        """Time goes on to this moment, and all that can be done by then is done."""
        while True:
            for _ in range(_STEPS_TO_REST):
                await asyncio.sleep(0)
            assert "hydration stumbled" not in self.lines
            left = moment - self.clock.monotonic()
            if left <= 0:
                return
            self.clock.advance(min([left, *self.clock.sleeping]))

    def completeness(self, name: str = "c") -> int:
        found = self.here.store.collection(name)
        return found.completeness if found is not None else 0

    def is_complete(self, name: str = "c") -> bool:
        return self.completeness(name) == COMPLETE

    def verified(self, name: str = "c") -> int:
        """When the collection was verified, 0 = never."""
        found = self.here.store.collection(name)
        return self.here.store.verified_unix_ns(found.cid) if found is not None else 0

    def differences(self, name: str = "c") -> list[Any]:
        self.mirror()
        there, here = self.remote.local.points(name), self.here.points(name)
        return [key for key in there.keys() | here.keys() if there.get(key) != here.get(key)]


class Lines:
    """A logger that keeps the events."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self._lines.append(str(event))


Make = Callable[..., World]


def fill(world: World, count: int, name: str = "c") -> None:
    world.remote.local.do(CREATE, create(name))
    if count:
        world.remote.local.do(r.UPSERT, upsert(*(point(n, v=n) for n in range(count)), name=name))


def uuid(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012d}"


def scrolls(flaky: FlakyBackend) -> list[Call]:
    """The pages that were asked for."""
    return [call for call in flaky.calls if call.method == SCROLL]
