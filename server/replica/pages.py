"""Pages of points on their way from Qdrant into the replica, for the copy and for the comparison.

Promises: a page never replaces what an acknowledged later write put there, and no write that it may show is applied
over it; a point that was written while it was on its way is owed, and fetched again until it holds still. Pages hold
at most `page_points` and stay near `page_bytes`; one that is larger than the connection takes is asked for again with
fewer points. Keeps to a rate, with what is fetched again, too. Works only while Qdrant is up and nothing is pending,
else `Interrupted`. Gives way to clients: the rate is halved while the event loop runs late.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server import config
from server.clock import Clock
from server.errors import ReplicaRefused, UnderstudyError
from server.replica.remote import Page, Remote, RemoteRefused
from server.replica.settled import Settled
from server.rpc import Code

_RETRY_PAUSE_SECONDS = 0.05
_FIRST_POINTS = 8
# Woken up later than this, others want the processor.
_LATE_SECONDS = 0.005
_GROWTH = 4
# After so many pages that fitted, larger ones are tried again.
_GOOD_PAGES = 16
# So many pages are copied before points that did not hold still are asked for again.
_PAGES_BETWEEN_PAYMENTS = 4
# So often in a row points that were written meanwhile are fetched again at once.
_VAIN_PAYMENTS = 3


class Interrupted(UnderstudyError):
    """Qdrant went away, or a write is pending: the copy goes on another time."""


class PutInDoubt(UnderstudyError):
    """What was copied so far may lack something, or the collection is another one: it is to be copied again."""


class Progress(Protocol):
    """How far a copy is."""

    collection: str
    points: int
    expected_points: int


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

    async def compare_page(self, request: control_pb.ComparePageRequest) -> control_pb.ComparePageResponse:
        """Compare an id range."""
        ...

    async def note_verified(self, request: control_pb.NoteVerifiedRequest) -> control_pb.NoteVerifiedResponse:
        """Note that a collection was compared as a whole."""
        ...

    async def set_completeness(self, request: control_pb.SetCompletenessRequest) -> control_pb.SetCompletenessResponse:
        """Say how much of a collection the replica holds."""
        ...

    async def status(self) -> control_pb.StatusResponse:
        """How the replica is."""
        ...


class FormerControl(Protocol):
    """The replica's part. Raises ReplicaUnavailable."""

    async def list_former(self, request: control_pb.ListFormerRequest) -> control_pb.ListFormerResponse:
        """Points that entries of the window touched."""
        ...

    async def judge_former(self, request: control_pb.JudgeFormerRequest) -> control_pb.JudgeFormerResponse:
        """Which of them Qdrant has lost."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What a copy works with. `is_up` = Qdrant answers and calls go to it.

    `report` hears of each copied page, `repaired` how many points differed.
    """

    log: LogPosition
    remote: Remote
    control: ImportControl
    settings: config.Hydrate
    clock: Clock
    sleep: Callable[[float], Awaitable[None]]
    settled: Settled
    is_up: Callable[[], bool]
    report: Callable[[Progress], None]
    repaired: Callable[[int], None]
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


class PageSize:
    """PURE. How many points to ask for: few at first, then as many as fit, never more than `limit_points`."""

    def __init__(self, limit_points: int, limit_bytes: int) -> None:
        self._limit_points = self._cap_points = limit_points
        self._limit_bytes = limit_bytes
        self._good_pages = 0
        self.points = min(_FIRST_POINTS, limit_points)

    def saw(self, points: int, size_bytes: int) -> None:
        """A page of `points` took so many bytes; the next ones are likely to be alike."""
        if not points:
            return
        self._good_pages += 1
        if self._good_pages >= _GOOD_PAGES:
            self._good_pages = 0
            self._cap_points = min(self._limit_points, 2 * self._cap_points)
        fitting = self._limit_bytes * points // max(size_bytes, 1)
        self.points = max(1, min(self._cap_points, fitting, _GROWTH * max(self.points, points)))

    def halve(self) -> bool:
        """The last page was too large; False when it was a single point. The next ones stay as small for a while."""
        was, self.points = self.points, max(1, self.points // 2)
        self._cap_points, self._good_pages = self.points, 0
        return was > 1


@dataclass(frozen=True, slots=True)
class _Payment:
    """How many owed points were asked for, and how many of them are owed no more."""

    asked: int
    paid: int


class Pages:
    """Pages of one collection. `owed` are serialized ids to be fetched again, `changed` counts what imports changed."""

    def __init__(self, name: str, tools: Tools, points_per_second: int) -> None:
        self.owed: dict[bytes, None] = {}
        self.changed = 0
        self._name = name
        self._ = tools
        self._rate = points_per_second
        self._size = PageSize(tools.settings.page_points, tools.settings.page_bytes)
        self._next_at = tools.clock.monotonic()
        self._pages_to_wait = 0

    async def read(self, offset: bytes, limit: int = 0) -> Page:
        """Qdrant's points from `offset` on; at most `limit`, 0 = as many as are fitting."""
        while True:
            asked = min(limit or self._size.points, self._size.points)
            try:
                page = await self._.remote.page(self._name, offset, asked)
            except RemoteRefused as refusal:
                if refusal.is_too_large and self._size.halve():
                    continue
                raise
            self._size.saw(page.points, len(page.body))
            return page

    async def copy(self, offset: bytes) -> Page:
        """Bring one page in."""
        while True:
            since = await self._.since()
            page = await self.read(offset)
            request = control_pb.ImportPageRequest(
                collection=self._name, page=page.body, first=offset, after=page.next_offset, since_seq=since
            )
            done = await self._import(request)
            if done is not None:
                self.owed.update(dict.fromkeys(done.skipped))
                return page

    async def settle(self, *, once: bool = False) -> None:
        """Fetch the owed points again: until none is left, or `once`, for now: then no more than a page of them."""
        if not once:
            while self.owed:
                await self._settle_debts(self._.settings.settle_rounds)
        elif self.owed and self._pages_to_wait:
            self._pages_to_wait -= 1
        elif self.owed and not (await self._pay(await self._.since())).paid:
            # Clients write them faster than pages settle, such as by a filter: they are not asked for at each page.
            self._pages_to_wait = _PAGES_BETWEEN_PAYMENTS

    async def _settle_debts(self, rounds: int) -> None:
        """Each owed point once a round. Those that never hold still are dated to the present in the last round.

        Where nothing of a page held still the rest is left to the next round; in the last one it is tried again.
        """
        for turn in range(1, rounds + 1):
            is_last = turn == rounds > 1
            left, vain = len(self.owed), 0
            while left > 0 and vain < (_VAIN_PAYMENTS if is_last else 1):
                since = await self._.since()
                payment = await self._pay(self._.log.last_seq if is_last else since)
                left -= payment.paid if is_last else payment.asked
                vain = 0 if payment.paid else vain + 1
            if not self.owed:
                return
            if rounds > 1:
                await self._.sleep(max(self._.settings.settle_seconds / 2, _RETRY_PAUSE_SECONDS))

    async def _pay(self, since: int) -> _Payment:
        """Fetch the oldest debts, a page of them; what is still owed goes to the end."""
        asked = list(islice(self.owed, self._size.points))
        still = await self._fetch(asked, since)
        for each in asked:
            del self.owed[each]
        self.owed.update(dict.fromkeys(still))
        await self.keep_to_the_rate(len(asked))
        return _Payment(len(asked), len(asked) - len(still))

    async def _fetch(self, ids: list[bytes], since: int) -> list[bytes]:
        """Bring single points in; returns those that are still owed."""
        try:
            body, absent = await self._.remote.points(self._name, ids)
        except RemoteRefused as refusal:
            if refusal.is_too_large and self._size.halve():
                return ids
            raise
        done = await self._import(
            control_pb.ImportPageRequest(
                collection=self._name, page=body, single_ids=True, absent=absent, since_seq=since
            )
        )
        return ids if done is None else list(done.skipped)

    async def _import(self, request: control_pb.ImportPageRequest) -> control_pb.ImportPageResponse | None:
        """Hand a page to the replica; None when it must be read again."""
        self._.check()
        request.read_seq = self._.log.last_seq
        try:
            done = await self._.control.import_page(request)
        except ReplicaRefused as refusal:
            if refusal.code != Code.FAILED_PRECONDITION:
                raise
        else:
            self.changed += done.changed + done.removed
            return done
        await self._.sleep(_RETRY_PAUSE_SECONDS)
        return None

    async def keep_to_the_rate(self, points: int) -> None:
        """Wait as long as that many points may take."""
        if self._rate:
            now = self._.clock.monotonic()
            # The time that the page took counts; what a slow page leaves unused does not.
            self._next_at = max(self._next_at + points / self._rate, now)
            await self._.sleep(self._next_at - now)
            if self._.clock.monotonic() - self._next_at > _LATE_SECONDS:
                # Others keep the event loop busy: the next page comes a page later.
                self._next_at += points / self._rate
                await self._.sleep(points / self._rate)
