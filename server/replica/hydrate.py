"""Bringing what was in Qdrant before into the replica, in the background.

Promises: runs only while `upstream_up` (calls go to Qdrant and nothing is pending). Looks at Qdrant's catalogue when
Qdrant comes up, on request and every `refresh_seconds`; what is new, changed or incomplete is copied, one collection
after the other, and goes on where it stopped. A collection that fails does not hold up the others. What is COMPLETE is
compared with Qdrant as `drift` says, and repaired.

Does not promise to notice at once what others change in Qdrant while a collection is COMPLETE.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server import config
from server.clock import Clock
from server.errors import ReplicaRefused, ReplicaUnavailable, UpstreamUnreachable
from server.logs import Message
from server.replica.copying import Copy, CopyProgress, CopyState
from server.replica.drift import Drift
from server.replica.pages import ImportControl, Interrupted, LogPosition, Progress, PutInDoubt, Tools
from server.replica.remote import Remote, RemoteRefused
from server.replica.settled import Settled
from server.rpc import Backend, Metadata
from server.telemetry import Telemetry
from server.wal.record import Record


class HydrationLog(LogPosition, Protocol):
    """The log, as hydration sees it."""

    async def read(self, after_seq: int, limit_entries: int, limit_bytes: int) -> list[Record]:
        """Entries after a sequence number."""
        ...


class Hydrator:
    """See the module. `credential` gives the metadata that Qdrant wants, None = none is known."""

    def __init__(  # noqa: PLR0917
        self,
        log: HydrationLog,
        upstream: Backend,
        control: ImportControl,
        settings: config.Hydrate,
        clock: Clock,
        telemetry: Telemetry,
        *,
        credential: Callable[[], Metadata | None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._log = log
        self._control = control
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._sleep = sleep
        self._up = asyncio.Event()
        self._work = asyncio.Event()
        self._doubt = asyncio.Event()
        self._asked_all = False
        self._asked: set[str] = set()
        # Asked for since the copy of it that is under way began: what that one copied may be old.
        self._doubted: set[str] = set()
        self._progress: dict[str, CopyProgress] = {}
        # Here, and not in a Qdrant that holds nothing at all.
        self._kept: set[str] = set()
        # Collections of which Qdrant cannot tell how they are, and what it says instead.
        self._broken: dict[str, str] = {}
        self._settled = Settled(settings.settle_seconds)
        self._drift = Drift(telemetry)
        self._tools = Tools(
            log,
            Remote(upstream, clock, settings.call_timeout_seconds, credential),
            control,
            settings,
            clock,
            sleep,
            self._settled,
            self._up.is_set,
            self._report,
            telemetry.metrics.repaired,
            self._doubted.__contains__,
        )
        # Awaited after each look at Qdrant; True when everything wanted is there.
        self.on_round: Callable[[bool], Awaitable[None]] | None = None

    # --- what the owner sees -----------------------------------------------------------------------------------------

    @property
    def upstream_up(self) -> bool:
        """Whether Qdrant answers and holds everything that was acknowledged. Set by the owner."""
        return self._up.is_set()

    @upstream_up.setter
    def upstream_up(self, up: bool) -> None:
        if up and not self._up.is_set():
            self._up.set()
            self._work.set()
        elif not up:
            self._up.clear()

    def request(self, collections: Sequence[str] | None) -> None:
        """Copy these collections again, whatever their state; None = all."""
        if collections is None:
            self._asked_all = True
        else:
            self._asked.update(collections)
            self._doubted.update(collections)
        self._work.set()

    def doubt(self, collection: str) -> None:
        """Qdrant may hold of a collection what the replica lacks: copy it again, `retry_seconds` from now.

        By then Qdrant may have done what it could not do in time, and clients that fail again and again cause no more
        than one copy in that time.
        """
        self._asked.add(collection)
        self._doubted.add(collection)
        self._doubt.set()

    def request_reconcile(self) -> None:
        """Compare counts with Qdrant at the next opportunity."""
        self._drift.request_counts()
        self._work.set()

    def request_verification(self, collections: Sequence[str] | None) -> None:
        """Compare every point of these collections with Qdrant, and repair what differs; None = all."""
        self._drift.request(collections)
        self._work.set()

    def verification(self) -> list[dict[str, Any]]:
        """The comparisons as JSON."""
        return self._drift.status()

    @property
    def progress(self) -> list[CopyProgress]:
        """Each collection that was looked at, by name."""
        return [self._progress[name] for name in sorted(self._progress)]

    def status(self) -> list[dict[str, Any]]:
        """The progress as JSON."""
        return [
            {
                "collection": each.collection,
                "state": each.state.value,
                "points": each.points,
                "expected_points": each.expected_points,
                "points_per_second": round(each.points_per_second, 1),
                "reason": each.reason,
            }
            for each in self.progress
        ]

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Copy whenever there is something to copy, until cancelled."""
        while True:
            await self._up.wait()
            self._work.clear()
            self._doubt.clear()
            pause = self._settings.retry_seconds
            try:
                is_whole = await self._round()
                if self.on_round is not None:
                    await self.on_round(is_whole)
                if is_whole:
                    pause = 0.0 if self._drift.is_busy else self._settings.refresh_seconds
            except Interrupted:
                pause = 0.0 if not self.upstream_up else pause
            except (UpstreamUnreachable, RemoteRefused, ReplicaUnavailable, ReplicaRefused) as failure:
                self._telemetry.log.warning(Message.HYDRATION_FAILED, error=str(failure))
            except Exception as error:
                self._telemetry.log.exception("hydration stumbled", error=repr(error))
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Until the pause is over or there is work; at once when Qdrant is away, for then `run` waits."""
        if not self.upstream_up or self._work.is_set():
            await asyncio.sleep(0)
            return
        await self._sleep_until(seconds, self._work, self._doubt)
        if self._doubt.is_set() and not self._work.is_set():
            await self._sleep_until(self._settings.retry_seconds, self._work)

    async def _sleep_until(self, seconds: float, *events: asyncio.Event) -> None:
        """Until the time is over or one of these comes about."""
        waits = {asyncio.ensure_future(self._sleep(seconds)), *(asyncio.ensure_future(each.wait()) for each in events)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    async def _round(self) -> bool:
        """Catalogue, comparison, copies. True when everything wanted is there."""
        await self._observe_log()
        wanted, rough_counts = await self._import_catalogue()
        known = await self._known()
        differing = await self._drift.differing(known, rough_counts, self._tools)
        wanted += [name for name in differing if name not in wanted]
        if self._asked_all:
            self._asked, self._asked_all = set(known), False
        self._asked &= known.keys()
        wanted += sorted(self._asked.difference(wanted))
        # In place: a copy asks this very set.
        self._doubted.intersection_update(known)
        self._bring_progress_up_to_date(known, wanted)
        done = not self._broken
        for name in wanted:
            if name in known and name not in self._kept and (name in self._asked or self._is_chosen(name)):
                done = await self._copy(name) and done
        known = await self._known()
        chosen = [name for name in known if self._is_chosen(name)]
        return await self._drift.compare(known, chosen, self._tools, self._work.is_set) and done and not self._doubted

    def _bring_progress_up_to_date(self, known: dict[str, control_pb.CollectionState], wanted: Sequence[str]) -> None:
        for name, reason in self._broken.items():
            progress = self._progress.setdefault(name, CopyProgress(name))
            progress.state, progress.reason = CopyState.FAILED, reason
        for name, progress in list(self._progress.items()):
            if name in self._broken:
                continue
            if name not in known:
                del self._progress[name]
                self._telemetry.metrics.hydration_gone(name)
            elif name not in wanted and known[name].completeness == control_pb.COMPLETENESS_COMPLETE:
                progress.state, progress.reason = CopyState.COMPLETE, ""

    async def _observe_log(self) -> None:
        """After a start the age of the last entry says whether it has settled."""
        last_seq = self._log.last_seq
        age = float("inf")
        if last_seq:
            records = await self._log.read(last_seq - 1, 1, 1)
            age = max(0.0, (self._clock.wall_ns() - records[-1].wall_ns) / 1e9) if records else 0.0
        if self._log.last_seq == last_seq:
            self._settled.observe(self._clock.monotonic(), last_seq, min(age, self._settings.settle_seconds))

    async def _import_catalogue(self) -> tuple[list[str], dict[str, int]]:
        """Collections that must be copied, and how many points Qdrant roughly has of each."""
        self._tools.check()
        since = self._log.last_seq
        found = await self._tools.remote.catalogue()
        self._tools.check()
        found.request.since_seq, found.request.read_seq = since, self._log.last_seq
        for name, reason in found.broken.items():
            if name not in self._broken:
                self._telemetry.log.warning(Message.HYDRATION_FAILED, collection=name, error=reason)
        self._broken = found.broken
        answer = await self._control.import_catalogue(found.request)
        self._tell_of_losses(answer)
        return list(answer.wanted), found.points

    def _tell_of_losses(self, answer: control_pb.ImportCatalogueResponse) -> None:
        """Points that Qdrant no longer has: once for each collection."""
        for name in answer.dropped:
            self._telemetry.log.warning(Message.COLLECTION_GONE, collection=name)
        if kept := [name for name in answer.kept if name not in self._kept]:
            self._telemetry.log.error(Message.CAME_BACK_EMPTY, collections=kept)
        self._kept = set(answer.kept)

    async def _known(self) -> dict[str, control_pb.CollectionState]:
        return {each.name: each for each in (await self._control.status()).collections}

    def _is_chosen(self, name: str) -> bool:
        return self._settings.enabled and (not self._settings.collections or name in self._settings.collections)

    async def _copy(self, name: str) -> bool:
        """One collection; False when it must be tried again."""
        self._doubted.discard(name)
        # Asked for only now: a doubt may have come while the others were copied.
        known = (await self._known()).get(name)
        if known is None:
            return False
        before = self._progress.get(name)
        progress = self._progress[name] = CopyProgress(name)
        if name in self._asked:
            known.resume_at = b""
        if before is None or before.state is not CopyState.LEFT_OUT:
            self._telemetry.log.info(Message.HYDRATION_STARTED, collection=name, resumed=bool(known.resume_at))
        try:
            await Copy(name, known, progress, self._tools).run()
        except Interrupted as interrupted:
            progress.state, progress.reason = CopyState.WAITING, str(interrupted)
            raise
        except UpstreamUnreachable as failure:
            progress.state, progress.reason = CopyState.WAITING, str(failure)
            raise
        except PutInDoubt as doubt:
            # The others first: it may be put in doubt all the time.
            progress.state, progress.reason = CopyState.WAITING, str(doubt)
            return False
        except (RemoteRefused, ReplicaRefused) as refusal:
            progress.state, progress.reason = CopyState.FAILED, str(refusal)
            self._telemetry.log.warning(Message.HYDRATION_FAILED, collection=name, error=str(refusal))
            if isinstance(refusal, RemoteRefused) and refusal.wants_credential:
                raise
            # Gone on either side: the next catalogue says so. Anything else: the others first, then again.
            return False
        if name not in self._doubted:
            self._asked.discard(name)
        self._report(progress)
        if progress.state is CopyState.COMPLETE:
            self._telemetry.log.info(Message.HYDRATION_COMPLETE, collection=name, points=progress.points)
        elif before is None or before.state is not CopyState.LEFT_OUT:
            self._telemetry.log.warning("hydration leaves a collection out", collection=name, reason=progress.reason)
        return True

    def _report(self, progress: Progress) -> None:
        self._telemetry.metrics.hydration(progress.collection, progress.points, progress.expected_points)
