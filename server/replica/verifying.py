"""One comparison of a whole collection with Qdrant, range by range, and the repair of what differs.

Promises: every id of either side lies in a range that was looked at; a range that differs is looked at again after a
pause, and brought in anew when it held still and still differs (`looks.judge`), so what clients are writing is not
called drift, and concurrent writes win as they do in a copy. Takes nothing for granted about others: points that they
changed, removed or added at equal counts are found. Keeps to `verify_points_per_second` and goes on where it was
stopped. A collection that differs in many ranges in a row is another one by now: `Verdict.DRIFTED` for the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.replica.looks import Digest, Look, Verdict, judge
from server.replica.pages import Pages, Tools
from server.replica.remote import Page

# So many ranges in a row that differ: it is quicker, and more honest, to copy the collection again.
_HOPELESS_RANGES = 8
_SPOT_POINTS = 8


class VerifyState(Enum):
    """How the comparison of one collection stands."""

    WAITING = "waiting"
    VERIFYING = "verifying"
    VERIFIED = "verified"
    COPIED_AGAIN = "copied again"
    FAILED = "failed"


@dataclass(slots=True)
class VerifyProgress:
    """For status: `points` compared so far of `expected_points`, in `ranges`; what was repaired in them."""

    collection: str
    state: VerifyState = VerifyState.WAITING
    points: int = 0
    expected_points: int = 0
    ranges: int = 0
    ranges_repaired: int = 0
    points_repaired: int = 0
    reason: str = ""


class Verification:
    """One collection. `run` may be called again until it says that all is done."""

    def __init__(self, name: str, progress: VerifyProgress, tools: Tools) -> None:
        self._name = name
        self._progress = progress
        self._ = tools
        self._pages = Pages(name, tools, tools.settings.verify_points_per_second)
        self._offset = b""
        self._at_end = False
        self._hopeless = 0

    async def run(self, is_over: Callable[[], bool]) -> Verdict:
        """Go on until the end, or until `is_over` after a range.

        EQUAL: all is compared and repaired. MOVING: call it again. DRIFTED: it is to be copied anew.
        """
        self._progress.state = VerifyState.VERIFYING
        while not self._at_end:
            page = await self._range(self._offset)
            self._progress.points += page.points
            self._progress.ranges += 1
            self._offset, self._at_end = page.next_offset, not page.next_offset
            if self._hopeless >= _HOPELESS_RANGES:
                return Verdict.DRIFTED
            await self._pages.keep_to_the_rate(page.points)
            if not self._at_end and is_over():
                return Verdict.MOVING
        await self._settle()
        await self._.control.note_verified(
            control_pb.NoteVerifiedRequest(collection=self._name, verified_unix_ns=self._.clock.wall_ns())
        )
        self._progress.state = VerifyState.VERIFIED
        return Verdict.EQUAL

    async def _range(self, offset: bytes) -> Page:
        """Look at one range, repair it if need be."""
        before: Look | None = None
        limit = 0
        for turn in range(self._.settings.settle_rounds):
            if turn:
                await self._.sleep(self._.settings.settle_seconds)
            page, now = await look_at(self._name, offset, self._pages, self._, limit)
            verdict = judge(before, now)
            if verdict is Verdict.EQUAL:
                self._hopeless = 0
                return page
            if verdict is Verdict.DRIFTED:
                break
            before, limit = now, page.points
        changed = self._pages.changed
        page = await self._pages.copy(offset)
        await self._pages.settle(once=True)
        self._repaired(self._pages.changed - changed)
        return page

    async def _settle(self) -> None:
        changed = self._pages.changed
        await self._pages.settle()
        self._progress.points_repaired += self._pages.changed - changed
        self._.repaired(self._pages.changed - changed)

    def _repaired(self, points: int) -> None:
        if points:
            self._hopeless += 1
            self._progress.ranges_repaired += 1
            self._progress.points_repaired += points
            self._.repaired(points)


async def look_at(name: str, offset: bytes, pages: Pages, tools: Tools, limit: int = 0) -> tuple[Page, Look]:
    """A range as Qdrant has it, and how the replica compares when it has taken in the log. Changes nothing."""
    tools.check()
    page = await pages.read(offset, limit)
    tools.check()
    answer = await tools.control.compare_page(
        control_pb.ComparePageRequest(
            collection=name, page=page.body, first=offset, after=page.next_offset, since_seq=tools.log.last_seq
        )
    )
    return page, Look(_digest(answer.remote), _digest(answer.local), answer.differing)


async def spot(name: str, offset: bytes, tools: Tools) -> tuple[bytes, bool]:
    """Look at a few points from `offset` on: where the next ones begin, and whether these have drifted."""
    pages = Pages(name, tools, 0)
    page, first = await look_at(name, offset, pages, tools, _SPOT_POINTS)
    if judge(None, first) is Verdict.EQUAL:
        return page.next_offset, False
    await tools.sleep(tools.settings.settle_seconds)
    page, second = await look_at(name, offset, pages, tools, _SPOT_POINTS)
    return page.next_offset, judge(first, second) is Verdict.DRIFTED


def _digest(body: control_pb.RangeDigest) -> Digest:
    return Digest(body.points, body.content)
