"""When a collection that counts as COMPLETE is compared with Qdrant, and what follows.

    what                                   when                                             a difference means
    exact counts                           after a drain and a start; when Qdrant's own     STALE, copied again
                                           rough count, read with the catalogue, is another
    estimated counts, where the strict     the same                                         the whole is compared,
    mode allows no exact ones                                                               once for each difference
    a few points, others each time         at every look at Qdrant's catalogue              the whole is compared, now
    every range (`verifying`)              every `verify_seconds`, or asked for             the range is repaired

Promises: comparisons come after copies, in slices, so that new collections and requests do not wait for a long one. A
collection that fails does not hold up the others. Belongs to one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.errors import ReplicaRefused
from server.logs import Message
from server.replica.looks import Verdict
from server.replica.pages import Interrupted, Tools
from server.replica.remote import RemoteRefused
from server.replica.verifying import Verification, VerifyProgress, VerifyState, spot
from server.rpc import Code
from server.telemetry import Telemetry

_COMPARE_TRIES = 3

States = Mapping[str, control_pb.CollectionState]


class Drift:
    """The book of comparisons."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._must_count = True
        # Qdrant could not count these when they were to be counted.
        self._uncounted: set[str] = set()
        self._asked_all = False
        self._asked: set[str] = set()
        self._spots: dict[str, bytes] = {}
        # Estimated counts that differed: (there, here) when the collection was last compared for it.
        self._estimates: dict[str, tuple[int, int]] = {}
        self._under_way: dict[str, Verification] = {}
        self._progress: dict[str, VerifyProgress] = {}

    # --- what the owner sees -----------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a comparison is to go on."""
        return bool(self._under_way)

    def request_counts(self) -> None:
        """Compare exact counts at the next opportunity."""
        self._must_count = True

    def request(self, collections: Iterable[str] | None) -> None:
        """Compare these collections as a whole; None = all."""
        if collections is None:
            self._asked_all = True
            names: Iterable[str] = list(self._progress)
        else:
            names = list(collections)
            self._asked.update(names)
        for name in names:
            self._progress[name] = VerifyProgress(name)

    def status(self) -> list[dict[str, Any]]:
        """The progress as JSON."""
        return [
            {
                "collection": each.collection,
                "state": each.state.value,
                "points": each.points,
                "expected_points": each.expected_points,
                "ranges": each.ranges,
                "ranges_repaired": each.ranges_repaired,
                "points_repaired": each.points_repaired,
                "reason": each.reason,
            }
            for _, each in sorted(self._progress.items())
        ]

    # --- counts ------------------------------------------------------------------------------------------------------

    async def differing(self, known: States, rough: Mapping[str, int], tools: Tools) -> list[str]:
        """Complete collections whose exact count differs from Qdrant's. They are STALE from here on."""
        must_count, self._must_count = self._must_count, False
        differing = []
        try:
            for name, state in known.items():
                if state.completeness != control_pb.COMPLETENESS_COMPLETE:
                    continue
                if must_count or name in self._uncounted:
                    agrees = await self._count_if_possible(name, tools, _COMPARE_TRIES)
                else:
                    # Writes of clients make the rough count another one all the time: then nothing is waited for.
                    agrees = rough.get(name, state.points) == state.points or await self._count_if_possible(
                        name, tools, 1
                    )
                if not agrees:
                    await self._distrust(state, tools, "it holds another number of points")
                    differing.append(name)
        except BaseException:
            self._must_count = must_count
            raise
        return differing

    async def _count_if_possible(self, name: str, tools: Tools, tries: int) -> bool:
        """As `_counts_agree`; True where Qdrant cannot count this collection, which is counted another time."""
        self._uncounted.discard(name)
        try:
            return await self._counts_agree(name, tools, tries)
        except RemoteRefused as refusal:
            if not refusal.is_of_the_collection:
                raise
            self._uncounted.add(name)
            self._telemetry.log.warning(Message.HYDRATION_FAILED, collection=name, error=str(refusal))
            return True

    async def _counts_agree(self, name: str, tools: Tools, tries: int) -> bool:
        """Whether both hold as many points, at one moment without writes; True when there is no such moment."""
        for turn in range(tries):
            if turn:
                await tools.sleep(tools.settings.settle_seconds)
            since = await tools.since()
            if since != tools.log.last_seq:
                continue
            try:
                there = await tools.remote.count(name)
            except RemoteRefused as refusal:
                if refusal.code is Code.NOT_FOUND:
                    return True
                raise
            status = await tools.control.status()
            tools.check()
            if status.applied_seq < since or tools.log.last_seq != since:
                continue
            here = next((each.points for each in status.collections if each.name == name), there.points)
            if not there.is_exact:
                self._compare_for_estimate(name, there.points, here)
                return True
            return here == there.points
        return True

    def _compare_for_estimate(self, name: str, there: int, here: int) -> None:
        """An estimate proves nothing: what differs is in the content, or nowhere."""
        if there == here:
            self._estimates.pop(name, None)
        elif self._estimates.get(name) != (there, here):
            self._estimates[name] = (there, here)
            self._asked.add(name)

    async def _distrust(self, state: control_pb.CollectionState, tools: Tools, why: str) -> None:
        self._telemetry.log.warning("the replica differs from Qdrant, copying again", collection=state.name, reason=why)
        await tools.control.set_completeness(
            control_pb.SetCompletenessRequest(
                collection=state.name, completeness=control_pb.COMPLETENESS_STALE, as_of_seq=state.as_of_seq
            )
        )
        state.completeness = control_pb.COMPLETENESS_STALE
        state.resume_at = b""
        self._under_way.pop(state.name, None)

    # --- content -----------------------------------------------------------------------------------------------------

    async def compare(
        self, known: States, chosen: Iterable[str], tools: Tools, is_wanted_elsewhere: Callable[[], bool]
    ) -> bool:
        """Spots, and one slice of whole comparisons. True when no collection failed or is to be copied again."""
        self._forget_others(known)
        if self._asked_all:
            self._asked.update(known)
            self._asked_all = False
        self._answer_for_others(known)
        allowed = set(chosen)
        whole = [
            state
            for name, state in known.items()
            if state.completeness == control_pb.COMPLETENESS_COMPLETE and (name in allowed or name in self._asked)
        ]
        until = tools.clock.monotonic() + tools.settings.refresh_seconds

        def is_over() -> bool:
            return is_wanted_elsewhere() or tools.clock.monotonic() >= until

        is_well = True
        for state in whole:
            is_well = await self._compare_one(state, is_over, tools) and is_well
        return is_well

    def _forget_others(self, known: States) -> None:
        for book in (self._progress, self._spots, self._estimates, self._under_way):
            for name in [name for name in book if name not in known]:
                del book[name]
        self._asked &= known.keys()
        self._uncounted &= known.keys()
        for name in list(self._under_way):
            if known[name].completeness != control_pb.COMPLETENESS_COMPLETE:
                del self._under_way[name]

    def _answer_for_others(self, known: States) -> None:
        """What was asked for and is not whole here, although copies are done: there is nothing to compare."""
        for name in list(self._asked):
            if known[name].completeness != control_pb.COMPLETENESS_COMPLETE:
                self._asked.discard(name)
                self._progress[name] = VerifyProgress(
                    name, VerifyState.FAILED, reason="it is not whole here, see its copy: nothing was compared"
                )

    async def _compare_one(self, state: control_pb.CollectionState, is_over: Callable[[], bool], tools: Tools) -> bool:
        name = state.name
        self._progress.setdefault(name, VerifyProgress(name, VerifyState.VERIFIED))
        try:
            if not self._is_due(state, tools):
                self._spots[name], has_drifted = await spot(name, self._spots.get(name, b""), tools)
                if not has_drifted:
                    return True
                self._telemetry.log.warning("some points differ from Qdrant, comparing all", collection=name)
            return await self._go_on(state, is_over, tools)
        except (RemoteRefused, ReplicaRefused) as refusal:
            self._under_way.pop(name, None)
            progress = self._progress[name]
            progress.state, progress.reason = VerifyState.FAILED, str(refusal)
            self._telemetry.log.warning(Message.HYDRATION_FAILED, collection=name, error=str(refusal))
            if isinstance(refusal, RemoteRefused) and refusal.wants_credential:
                raise
            return False
        except Interrupted as interrupted:
            if name in self._under_way:
                self._progress[name].reason = str(interrupted)
            raise

    def _is_due(self, state: control_pb.CollectionState, tools: Tools) -> bool:
        period = tools.settings.verify_seconds
        age_seconds = (tools.clock.wall_ns() - state.verified_unix_ns) / 1e9
        return state.name in self._asked or state.name in self._under_way or (0 < period <= age_seconds)

    async def _go_on(self, state: control_pb.CollectionState, is_over: Callable[[], bool], tools: Tools) -> bool:
        name = state.name
        running = self._under_way.get(name)
        if running is None:
            self._progress[name] = VerifyProgress(name, expected_points=state.points)
            running = self._under_way[name] = Verification(name, self._progress[name], tools)
        progress = self._progress[name]
        progress.reason = ""
        verdict = await running.run(is_over)
        if verdict is Verdict.MOVING:
            return True
        del self._under_way[name]
        self._asked.discard(name)
        if verdict is Verdict.DRIFTED:
            progress.state, progress.reason = VerifyState.COPIED_AGAIN, "one range after the other differed"
            await self._distrust(state, tools, progress.reason)
            return False
        if progress.points_repaired:
            self._telemetry.log.warning(
                "points that differed from Qdrant were repaired", collection=name, points=progress.points_repaired
            )
        return True
