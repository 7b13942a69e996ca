"""The copy of one collection from Qdrant into the replica: pages in id order, then what was written meanwhile.

Promises: a page never replaces what an acknowledged later write put there; a point that was written while it was on
its way is fetched again until it holds still. Where the copy goes on after a stop is kept in the replica, and never
beyond a point that is still owed. Sends at most `points_per_second`. Works only while Qdrant is up and nothing is
pending, else `Interrupted`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Protocol

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server import config
from server.clock import Clock
from server.errors import ReplicaRefused, UnderstudyError
from server.replica.remote import Remote
from server.replica.settled import Settled
from server.rpc import Code

_RETRY_PAUSE_SECONDS = 0.05
# Where to go on is written at most this often.
_SAVE_SECONDS = 1.0


class Interrupted(UnderstudyError):
    """Qdrant went away, or a write is pending: the copy goes on another time."""


class CopyState(Enum):
    """How the copy of one collection stands."""

    WAITING = "waiting"
    COPYING = "copying"
    COMPLETE = "complete"
    LEFT_OUT = "left out"
    FAILED = "failed"


@dataclass(slots=True)
class CopyProgress:
    """For status: `points` copied so far of `expected_points`."""

    collection: str
    state: CopyState = CopyState.WAITING
    points: int = 0
    expected_points: int = 0
    points_per_second: float = 0.0
    owed_points: int = 0
    reason: str = ""


class LogPosition(Protocol):
    """How far the log is."""

    @property
    def last_seq(self) -> int:
        """The last entry."""
        ...

    @property
    def pending_count(self) -> int:
        """Entries that Qdrant does not have."""
        ...


class ImportControl(Protocol):
    """The replica's part. Raises ReplicaUnavailable and ReplicaRefused."""

    async def import_catalogue(self, request: control_pb.ImportCatalogueRequest) -> control_pb.ImportCatalogueResponse:
        """Bring in collections and aliases."""
        ...

    async def import_page(self, request: control_pb.ImportPageRequest) -> control_pb.ImportPageResponse:
        """Bring in points."""
        ...

    async def set_completeness(self, request: control_pb.SetCompletenessRequest) -> control_pb.SetCompletenessResponse:
        """Say how much of a collection the replica holds."""
        ...

    async def status(self) -> control_pb.StatusResponse:
        """How the replica is."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What a copy works with. `is_up` = Qdrant answers and calls go to it; `report` hears of each page."""

    log: LogPosition
    remote: Remote
    control: ImportControl
    settings: config.Hydrate
    clock: Clock
    sleep: Callable[[float], Awaitable[None]]
    settled: Settled
    is_up: Callable[[], bool]
    report: Callable[[CopyProgress], None]
    # Whether somebody put the collection in doubt since its copy began.
    is_doubted: Callable[[str], bool]

    def check(self) -> None:
        """Raise Interrupted unless Qdrant holds everything that was acknowledged."""
        if not self.is_up() or self.log.pending_count:
            raise Interrupted("Qdrant is away or behind")

    async def since(self) -> int:
        """The last entry that Qdrant is sure to show. Raises Interrupted."""
        while True:
            self.check()
            now = self.clock.monotonic()
            self.settled.observe(now, self.log.last_seq)
            since = self.settled.since(now)
            if since is not None:
                return since
            await self.sleep(self.settled.wait_seconds(now))


class Copy:
    """One collection. `known` is what the replica says of it."""

    def __init__(self, name: str, known: control_pb.CollectionState, progress: CopyProgress, tools: Tools) -> None:
        self._name = name
        self._known = known
        self._progress = progress
        self._ = tools
        # A collection that was whole once stays STALE while it is copied again: old is better than partial.
        whole_once = (control_pb.COMPLETENESS_COMPLETE, control_pb.COMPLETENESS_STALE)
        self._meanwhile = (
            control_pb.COMPLETENESS_STALE if known.completeness in whole_once else control_pb.COMPLETENESS_HYDRATING
        )
        self._owed: dict[bytes, None] = {}
        self._saved = b""
        self._saved_at = float("-inf")
        self._next_at = 0.0

    async def run(self) -> None:
        """Copy everything that is not there yet; returns when the collection is COMPLETE, or left out."""
        progress, settings = self._progress, self._.settings
        self._.check()
        expected = await self._.remote.count(self._name)
        progress.expected_points = expected
        if settings.max_points and expected > settings.max_points:
            progress.state = CopyState.LEFT_OUT
            progress.reason = f"{expected} points, more than hydrate.max_points = {settings.max_points}"
            return
        offset = self._known.resume_at if self._known.completeness != control_pb.COMPLETENESS_COMPLETE else b""
        progress.state, progress.reason = CopyState.COPYING, ""
        progress.points = self._known.points if offset else 0
        await self._set(self._meanwhile, resume_at=offset, as_of_seq=self._known.as_of_seq)
        await self._copy_pages(offset)
        while self._owed:
            await self._settle_debts(rounds=settings.settle_rounds)
        as_of_seq = self._.log.last_seq
        await self._demand_trust()
        await self._set(control_pb.COMPLETENESS_COMPLETE, as_of_seq=as_of_seq)
        progress.state, progress.owed_points = CopyState.COMPLETE, 0

    async def _demand_trust(self) -> None:
        """Raise Interrupted when somebody put the collection in doubt, or made it anew, while it was copied."""
        self._.check()
        states = (await self._.control.status()).collections
        if self._.is_doubted(self._name):
            raise Interrupted("the collection was put in doubt while it was copied")
        for state in states:
            if state.name == self._name and (state.completeness, state.resume_at) == (self._meanwhile, self._saved):
                return
        raise Interrupted("the collection was put in doubt or made anew while it was copied")

    async def _copy_pages(self, offset: bytes) -> None:
        began, before = self._.clock.monotonic(), self._progress.points
        self._next_at = began
        while True:
            following, points = await self._copy_page(offset)
            now = self._.clock.monotonic()
            self._progress.points += points
            self._progress.points_per_second = (self._progress.points - before) / max(now - began, 1e-6)
            self._.report(self._progress)
            if self._owed:
                await self._settle_debts(rounds=1)
            if not following:
                return
            offset = following
            if not self._owed and now - self._saved_at >= _SAVE_SECONDS:
                await self._save(offset)
            await self._keep_to_the_rate(points)

    async def _copy_page(self, offset: bytes) -> tuple[bytes, int]:
        """One page; where the next one begins, and its points."""
        while True:
            since = await self._.since()
            page = await self._.remote.page(self._name, offset, self._.settings.page_points)
            request = control_pb.ImportPageRequest(
                collection=self._name, page=page.body, first=offset, after=page.next_offset, since_seq=since
            )
            done = await self._import(request)
            if done is not None:
                self._owed.update(dict.fromkeys(done.skipped))
                return page.next_offset, page.points

    async def _settle_debts(self, *, rounds: int) -> None:
        """Fetch the owed points again. Those that never hold still are dated to the present in the last round."""
        for turn in range(1, rounds + 1):
            still: dict[bytes, None] = {}
            ids = iter(self._owed)
            while chunk := list(islice(ids, self._.settings.page_points)):
                since = await self._.since()
                if turn == rounds > 1:
                    since = self._.log.last_seq
                body, absent = await self._.remote.points(self._name, chunk)
                done = await self._import(
                    control_pb.ImportPageRequest(
                        collection=self._name, page=body, single_ids=True, absent=absent, since_seq=since
                    )
                )
                still.update(dict.fromkeys(chunk if done is None else done.skipped))
            self._owed = still
            self._progress.owed_points = len(still)
            if not still:
                return
            if rounds > 1:
                await self._.sleep(max(self._.settings.settle_seconds / 2, _RETRY_PAUSE_SECONDS))

    async def _import(self, request: control_pb.ImportPageRequest) -> control_pb.ImportPageResponse | None:
        """Hand a page to the replica; None when it must be read again."""
        self._.check()
        try:
            return await self._.control.import_page(request)
        except ReplicaRefused as refusal:
            if refusal.code != Code.FAILED_PRECONDITION:
                raise
        await self._.sleep(_RETRY_PAUSE_SECONDS)
        return None

    async def _save(self, offset: bytes) -> None:
        await self._demand_trust()
        await self._set(self._meanwhile, resume_at=offset, as_of_seq=self._known.as_of_seq)
        self._saved_at = self._.clock.monotonic()

    async def _set(self, completeness: control_pb.Completeness, *, resume_at: bytes = b"", as_of_seq: int = 0) -> None:
        await self._.control.set_completeness(
            control_pb.SetCompletenessRequest(
                collection=self._name,
                completeness=completeness,
                resume_at=resume_at,
                as_of_seq=as_of_seq,
                expected_points=self._progress.expected_points,
            )
        )
        self._saved = resume_at

    async def _keep_to_the_rate(self, points: int) -> None:
        rate = self._.settings.points_per_second
        if rate:
            now = self._.clock.monotonic()
            self._next_at = max(self._next_at, now) + points / rate
            await self._.sleep(self._next_at - now)
