"""The look at what Qdrant may have lost: the points that its last acknowledged entries touched, page by page.

Promises: before a newer entry is sent, each point that Qdrant shows as it was before such an entry is sent again as it
should be: with the effect of every entry that Qdrant acknowledged, and of none that is pending or in quarantine. Points
that somebody else has changed are left alone. A look that is cut short begins anew, in another
process too: what has been sent again is then found as it should be.

While the replica is away the look waits; with nothing pending at most `grace_patience_seconds`, then it is put off
until the replica has the log again, and Qdrant serves meanwhile.

While Qdrant wants a credential and none is known, the look waits; a credential that it refuses ends it.

Points of collections with custom sharding go back under the shard keys of the write that the replica saw last.

Does not bring back collections or aliases, nor points that the replica knows nothing of, nor those under shard
keys that no write is known to have named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Protocol, TypeVar

from generated.qdrant import points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server import config
from server.errors import ReplicaUnavailable
from server.logs import Message
from server.replay.bisect import Operation, keys_of
from server.replay.delivery import Answer, Delivery
from server.replay.grace import GraceWindow
from server.replay.judge import Outcome
from server.replay.withheld import Withheld
from server.replica.pages import FormerControl
from server.rpc import POINTS, UPSERT
from server.telemetry import Telemetry

T = TypeVar("T")

_DELETE = POINTS + "Delete"


class LogPosition(Protocol):
    """How far the log is."""

    @property
    def last_seq(self) -> int:
        """The last entry."""
        ...

    @property
    def replayed_seq(self) -> int:
        """Qdrant has every entry up to here."""
        ...


@dataclass(slots=True)
class _Look:
    """One look, up to now."""

    losses: int
    window: control_pb.FormerWindow
    after: int = 0
    seen: int = 0
    restored: int = 0
    foreign: int = 0
    unseen: int = 0
    refused: int = 0
    has_sent: bool = False
    tries: int = 0


class LookBack:
    """Made of steps, so that the replay can stop between any two. `caught_up` waits until the replica has an entry.

    `is_log_whole` tells whether Qdrant can have no write of ours to a collection that the log lacks, `is_unbroken`
    whether no crash can have cut one off.
    """

    def __init__(
        self,
        window: GraceWindow,
        control: FormerControl,
        log: LogPosition,
        *,
        caught_up: Callable[[int], Awaitable[None]],
        is_log_whole: Callable[[str], bool],
        is_unbroken: Callable[[], bool] = lambda: True,
        settings: config.Replay,
        telemetry: Telemetry,
    ) -> None:
        self.looks = 0
        self.restored = 0
        self._window = window
        self._control = control
        self._log = log
        self._caught_up = caught_up
        self._is_log_whole = is_log_whole
        self._is_unbroken = is_unbroken
        self._settings = settings
        self._telemetry = telemetry
        self._look: _Look | None = None
        # The replica has not answered since then.
        self._away_since: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether Qdrant must be looked at before anything else is sent to it."""
        return self._window.is_due

    @property
    def is_owed(self) -> bool:
        """Whether a look was put off and not made since."""
        return self._window.is_owed

    async def begin(self) -> None:
        """At a start: when nothing is kept there is nothing to look at, and calls may go to Qdrant at once."""
        window = control_pb.FormerWindow(since_seq=self._window.since_seq, replayed_seq=self._log.replayed_seq)
        try:
            listed = await self._control.list_former(control_pb.ListFormerRequest(window=window, limit_points=1))
        except ReplicaUnavailable as error:
            self._telemetry.log.info("the look at Qdrant waits for the replica", error=str(error))
            return
        if not listed.ids:
            self._window.looked(self._window.losses, has_sent=False)

    @property
    def is_under_way(self) -> bool:
        """Whether a look has begun that still counts."""
        return self._look is not None and self._look.losses == self._window.losses

    async def step(self, delivery: Delivery, withheld: Withheld) -> Answer:
        """The next page; DONE when it is dealt with. `withheld` is in quarantine. Raises ReplicaUnavailable."""
        look = self._look
        if look is None or look.losses != self._window.losses:
            # What a look that was cut short has sent counts as sent all the same.
            look = self._look = await self._begin(has_sent=look is not None and look.has_sent)
        asked = control_pb.ListFormerRequest(
            window=look.window, after=look.after, limit_points=self._settings.grace_points
        )
        listed = await self._from_replica(self._control.list_former(asked), "does not answer")
        self._away_since = None
        if not listed.ids:
            self._end(look)
            return Answer(Outcome.DONE)
        answer = await self._look_at(look, listed, delivery, withheld)
        if answer.outcome is Outcome.DONE:
            look.after, look.tries = listed.next_after, 0
        return answer

    async def _begin(self, *, has_sent: bool) -> _Look:
        losses = self._window.losses
        await self._from_replica(self._caught_up(self._log.last_seq), "is behind the log")
        window = control_pb.FormerWindow(since_seq=self._window.since_seq, replayed_seq=self._log.replayed_seq)
        return _Look(losses, window, has_sent=has_sent)

    async def _from_replica(self, work: Awaitable[T], otherwise: str) -> T:
        limit_seconds = min(self._settings.call_timeout_seconds, self._settings.grace_patience_seconds)
        try:
            async with asyncio.timeout(limit_seconds):
                return await work
        except TimeoutError as error:
            raise ReplicaUnavailable(f"the replica {otherwise}") from error

    def put_off(self, began: float, now: float) -> bool:
        """After a step from `began` to `now` that the replica failed: True when it was given time enough.

        Qdrant then serves although it may lack something, until `take_up` makes the look due again.
        """
        if self._away_since is None:
            self._away_since = began
        if now - self._away_since < self._settings.grace_patience_seconds:
            return False
        self._away_since = self._look = None
        self._window.put_off()
        self._telemetry.log.warning(
            "the look at what Qdrant may have lost is put off",
            reason="the replica is away",
            since=self._window.since_seq,
        )
        return True

    async def take_up(self, on_due: Callable[[], None]) -> None:
        """Until cancelled: when the replica has the log again, a look that was put off is due, and `on_due` told."""
        while True:
            await self._window.owed()
            await self._caught_up(self._log.last_seq)
            if self._window.take_up():
                on_due()

    async def _look_at(
        self, look: _Look, listed: control_pb.ListFormerResponse, delivery: Delivery, withheld: Withheld
    ) -> Answer:
        reply = await delivery.points(listed.collection, map(common.PointId.FromString, listed.ids))
        if isinstance(reply, Answer):
            if reply.outcome is Outcome.AUTH and not delivery.has_credential:
                # After a start: the first client that comes with a key brings it.
                return reply
            return self._not_seen(look, len(listed.ids), reply)
        judged = await self._control.judge_former(
            control_pb.JudgeFormerRequest(
                window=look.window,
                collection=listed.collection,
                ids=listed.ids,
                page=reply.body,
                is_log_whole=self._is_log_whole(listed.collection),
                is_unbroken=self._is_unbroken(),
                refused=withheld.among(listed.ids, look.window.since_seq),
            )
        )
        answer = await self._send(look, listed.collection, judged, delivery)
        if answer.outcome is Outcome.DONE:
            look.seen += len(listed.ids)
            look.foreign += judged.foreign
        return answer

    def _not_seen(self, look: _Look, points: int, answer: Answer) -> Answer:
        """Qdrant does not show the points: wait for it, unless it says no for good."""
        look.tries += 1
        is_hopeless = answer.outcome in (Outcome.PERMANENT, Outcome.AUTH) or (
            answer.doubtful and look.tries >= self._settings.doubtful_tries
        )
        if not is_hopeless:
            return replace(answer, outcome=Outcome.TRANSIENT)
        look.unseen += points
        self._telemetry.log.warning(
            "cannot look for what Qdrant may have lost", points=points, code=answer.code.name, details=answer.details
        )
        return Answer(Outcome.DONE)

    async def _send(
        self,
        look: _Look,
        collection: str,
        judged: control_pb.JudgeFormerResponse,
        delivery: Delivery,
    ) -> Answer:
        for operation, points in _operations(collection, judged):
            look.has_sent = True
            delivered = await delivery.deliver([operation], None, 0, doubtful=Outcome.TRANSIENT)
            if delivered.answer.outcome is not Outcome.DONE:
                return delivered.answer
            refused = sum(len(keys_of(each)) for each in delivered.left_over)
            if delivered.blames:
                self._telemetry.log.warning(
                    "Qdrant refuses what it had acknowledged",
                    collection=collection,
                    points=refused,
                    code=delivered.blames[0].answer.code.name,
                    details=delivered.blames[0].answer.details,
                )
            look.refused += refused
            look.restored += points - refused
        return Answer(Outcome.DONE)

    def _end(self, look: _Look) -> None:
        self._window.looked(look.losses, has_sent=look.has_sent)
        self._look = None
        self.looks += 1
        self.restored += look.restored
        self._telemetry.metrics.restored(look.restored)
        counts = {"points": look.seen, "restored": look.restored, "changed_by_others": look.foreign}
        if look.restored:
            self._telemetry.log.warning(Message.RESTORED, unseen=look.unseen, refused=look.refused, **counts)
        elif look.seen and not look.unseen and not look.refused:
            self._telemetry.log.info("Qdrant has what it acknowledged", **counts)


def _operations(collection: str, judged: control_pb.JudgeFormerResponse) -> list[tuple[Operation, int]]:
    """What puts things right, and how many points each is about: one write for each selector of shard keys."""
    found: list[tuple[Operation, int]] = []
    for under, bodies in _by_selector(judged.put, judged.put_under).items():
        points = list(map(points_pb2.PointStruct.FromString, bodies))
        request = points_pb2.UpsertPoints(
            collection_name=collection, wait=True, points=points, shard_key_selector=_selector(under)
        )
        found.append((Operation(UPSERT, request), len(points)))
    for under, bodies in _by_selector(judged.remove, judged.remove_under).items():
        ids = points_pb2.PointsIdsList(ids=map(common.PointId.FromString, bodies))
        selector = points_pb2.PointsSelector(points=ids)
        gone = points_pb2.DeletePoints(
            collection_name=collection, wait=True, points=selector, shard_key_selector=_selector(under)
        )
        found.append((Operation(_DELETE, gone), len(bodies)))
    return found


def _by_selector(bodies: Iterable[bytes], selectors: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for body, under in zip_longest(bodies, selectors, fillvalue=b""):
        found.setdefault(under, []).append(body)
    return found


def _selector(body: bytes) -> points_pb2.ShardKeySelector | None:
    return points_pb2.ShardKeySelector.FromString(body) if body else None
