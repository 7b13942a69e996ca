"""The copy of one collection from Qdrant into the replica: pages in id order, then what was written meanwhile.

Promises: where the copy goes on after a stop is kept in the replica, and never beyond a point that is still owed.
COMPLETE is said only when nobody put the collection in doubt, or made it anew, since `known` was told, else
`PutInDoubt`: the replica compares the number of its last doubt in the transaction that says so. Works only while Qdrant
is up and nothing is pending, else `Interrupted`. How pages travel is in `pages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.errors import ReplicaRefused
from server.replica.pages import Pages, PutInDoubt, Tools
from server.rpc import Code

# Where to go on is written at most this often.
_SAVE_SECONDS = 1.0
_IN_DOUBT = "the collection was put in doubt or made anew while it was copied"


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


class Copy:
    """One collection. `known` is what the replica says of it now: a doubt from here on is noticed."""

    def __init__(self, name: str, known: control_pb.CollectionState, progress: CopyProgress, tools: Tools) -> None:
        self._name = name
        self._known = known
        self._progress = progress
        self._ = tools
        self._was_whole = known.completeness in (control_pb.COMPLETENESS_COMPLETE, control_pb.COMPLETENESS_STALE)
        # A collection that was whole once stays STALE while it is copied again: old is better than partial.
        self._meanwhile = control_pb.COMPLETENESS_STALE if self._was_whole else control_pb.COMPLETENESS_HYDRATING
        self._pages = Pages(name, tools, tools.settings.points_per_second)
        self._saved_at = float("-inf")

    async def run(self) -> None:
        """Copy everything that is not there yet; returns when the collection is COMPLETE, or left out."""
        progress, settings = self._progress, self._.settings
        self._.check()
        expected = (await self._.remote.count(self._name)).points
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
        await self._pages.settle()
        as_of_seq = self._.log.last_seq
        self._.check()
        self._demand_trust()
        await self._set(control_pb.COMPLETENESS_COMPLETE, as_of_seq=as_of_seq, verified_unix_ns=self._.clock.wall_ns())
        if self._.is_doubted(self._name):
            # The doubt came while that was on its way, and the replica may not have heard of it yet.
            await self._set(self._meanwhile, as_of_seq=self._known.as_of_seq)
            raise PutInDoubt(_IN_DOUBT)
        progress.state, progress.owed_points = CopyState.COMPLETE, 0

    def _demand_trust(self) -> None:
        if self._.is_doubted(self._name):
            raise PutInDoubt(_IN_DOUBT)

    async def _copy_pages(self, offset: bytes) -> None:
        pages, progress = self._pages, self._progress
        began, before, changed = self._.clock.monotonic(), progress.points, 0
        while True:
            page = await pages.copy(offset)
            now = self._.clock.monotonic()
            progress.points += page.points
            if self._was_whole:
                self._.repaired(pages.changed - changed)
                changed = pages.changed
            progress.points_per_second = (progress.points - before) / max(now - began, 1e-6)
            self._.report(progress)
            await pages.settle(once=True)
            progress.owed_points = len(pages.owed)
            if not page.next_offset:
                return
            offset = page.next_offset
            if not pages.owed and now - self._saved_at >= _SAVE_SECONDS:
                await self._save(offset)
            await pages.keep_to_the_rate(page.points)

    async def _save(self, offset: bytes) -> None:
        self._.check()
        self._demand_trust()
        await self._set(self._meanwhile, resume_at=offset, as_of_seq=self._known.as_of_seq)
        self._saved_at = self._.clock.monotonic()

    async def _set(
        self,
        completeness: control_pb.Completeness,
        *,
        resume_at: bytes = b"",
        as_of_seq: int = 0,
        verified_unix_ns: int = 0,
    ) -> None:
        request = control_pb.SetCompletenessRequest(
            collection=self._name,
            completeness=completeness,
            resume_at=resume_at,
            as_of_seq=as_of_seq,
            expected_points=self._progress.expected_points,
            verified_unix_ns=verified_unix_ns,
            doubt_number=self._known.doubt_number,
        )
        try:
            await self._.control.set_completeness(request)
        except ReplicaRefused as refusal:
            if refusal.code != Code.FAILED_PRECONDITION:
                raise
            raise PutInDoubt(_IN_DOUBT) from refusal
