"""Before entries are sent: which of their points did others change while Qdrant was away, and what follows.

Promises: a point is looked at before the first entry that touches it is sent, and again for entries that came since,
many points with one call; what Qdrant holds is compared with what the replica held before that entry. By
`replay.conflicts` the write is sent, left out (the replica takes Qdrant's point), or goes to the quarantine; a row of
the conflict log is on the medium before anything is overwritten or given up. Where nobody can tell what Qdrant held,
the write is sent and counted as unknown. Does not see what others do between the look and the write, nor points that a
filter of ours matches.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from generated.qdrant import points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import conflict_pb2, entry_pb2
from server import config
from server.clock import Clock
from server.config import ConflictPolicy
from server.errors import ReplicaRefused, ReplicaUnavailable
from server.logs import Message
from server.replay.bisect import Key, key_of
from server.replay.causality import Causality
from server.replay.contested import (
    UNCONTESTED,
    Contest,
    Fate,
    contest,
    id_of,
    is_by_points,
    narrowed,
    stretch_of,
    touches_of,
)
from server.replay.delivery import Answer, Delivery, waiting
from server.replay.parcel import Parcel
from server.rpc import Backend, Code, Metadata, is_too_large
from server.scrub import Scrubber
from server.telemetry import Telemetry
from server.wal.conflict_log import ConflictLog

# What is kept in mind of points that were looked at; past it the replica is asked again, which knows.
_KNOWN_POINTS = 100_000
# The server failed inside: perhaps it can still write what it cannot read.
_FAILED_INSIDE = frozenset((Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS))
# With these the write itself will be refused, or cannot be looked into.
_NOTHING_TO_SEE = frozenset((Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.OUT_OF_RANGE))

_FATES = {
    ConflictPolicy.LOCAL_WINS: control.FATE_LOCAL,
    ConflictPolicy.REMOTE_WINS: control.FATE_REMOTE,
    ConflictPolicy.QUARANTINE: control.FATE_HELD,
}
_OUTCOMES = {
    ConflictPolicy.LOCAL_WINS: conflict_pb2.CONFLICT_OUTCOME_OVERWRITTEN,
    ConflictPolicy.QUARANTINE: conflict_pb2.CONFLICT_OUTCOME_QUARANTINED,
}


class BaselineControl(Protocol):
    """The replica's part. Raises ReplicaUnavailable and ReplicaRefused."""

    async def compare_baselines(self, request: control.CompareBaselinesRequest) -> control.CompareBaselinesResponse:
        """Which points others changed."""
        ...

    async def settle_baselines(self, request: control.SettleBaselinesRequest) -> control.SettleBaselinesResponse:
        """Note what becomes of them."""
        ...


@dataclass(frozen=True, slots=True)
class _Look:
    """Points of one collection, with the first entry that touches each, and what Qdrant holds of them."""

    collection: str
    seqs: dict[Key, int]
    page: bytes

    @property
    def touches(self) -> list[control.Touch]:
        return [control.Touch(point_id=_id(key), seq=seq) for key, seq in self.seqs.items()]


class Examiner:
    """Looks at entries. Belongs to one event loop; one look at a time.

    `on_mixed` hears of collections in which a write changes a part of a point that others changed: Qdrant then holds
    some of both, and the replica does not.
    """

    def __init__(  # noqa: PLR0917
        self,
        replica: BaselineControl,
        upstream: Backend,
        log: ConflictLog,
        scrubber: Scrubber,
        settings: config.Replay,
        clock: Clock,
        telemetry: Telemetry,
        credential: Callable[[], Metadata | None],
    ) -> None:
        self._replica = replica
        self._delivery = Delivery(upstream, settings, clock, credential)
        self._log = log
        self._scrubber = scrubber
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self.on_mixed: Callable[[str], None] = lambda collection: None
        self._fates: dict[tuple[str, Key], Fate] = {}
        # By point: what is known of it counts for entries up to there.
        self._looked_until: dict[tuple[str, Key], int] = {}
        self._is_outdated = False
        # Looks in a row at which Qdrant failed inside.
        self._doubts = 0

    def forget(self) -> None:
        """A new drain: what others did before it is to be seen. A look that is under way still ends with all it saw."""
        self._is_outdated = True

    async def examine(self, page: Iterable[Parcel], causality: Causality | None) -> list[Parcel] | Answer:
        """The first entries as they may be sent, one at least; an Answer when Qdrant cannot be asked now.

        Raises WalError when the conflict log cannot be written.
        """
        stretch = stretch_of(page, self._settings.conflict_points)
        if self._is_outdated or len(self._looked_until) > _KNOWN_POINTS:
            self._is_outdated = False
            self._fates.clear()
            self._looked_until.clear()
        by_filter = sum(1 for parcel in stretch if not parcel.problem and not is_by_points(parcel))
        self._telemetry.metrics.conflict("unknown", by_filter)
        for collection, seqs in touches_of(stretch, causality).items():
            # A write that came since may be the first one that is pending again: what was there before it is to be
            # noted as judged, too, or our own work would be taken for others' after a crash.
            new = {key: seq for key, seq in seqs.items() if self._looked_until.get((collection, key), 0) < seq}
            for chunk in _chunks(new, self._settings.conflict_points):
                failure = await self._look(collection, chunk, stretch)
                if failure is not None:
                    return failure
        found = [contest(parcel, self._fates) for parcel in stretch]
        await self._note_left_out(found)
        return [narrowed(each, self._reason(each)) for each in found]

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _look(self, collection: str, seqs: dict[Key, int], stretch: Sequence[Parcel]) -> Answer | None:
        """Learn the fate of these points; an Answer when Qdrant cannot be asked now."""
        page = await self._page(collection, list(seqs))
        if isinstance(page, Answer):
            if is_too_large(page.code, page.details) and len(seqs) > 1:
                halves = _chunks(seqs, (len(seqs) + 1) // 2)
                return next(filter(None, [await self._look(collection, half, stretch) for half in halves]), None)
            if not self._is_final(page):
                return page
            self._unknown(collection, len(seqs), f"{page.code.name} {page.details}")
            return None
        self._doubts = 0
        look = _Look(collection, seqs, page)
        try:
            await self._judge(look, stretch)
        except (ReplicaUnavailable, ReplicaRefused) as error:
            # It had its time to come back. Not to send what was acknowledged would be worse than not to know.
            self._unknown(collection, len(seqs), str(error))
        return None

    def _is_final(self, answer: Answer) -> bool:
        """Whether asking again would not help."""
        if answer.answered and answer.code in _FAILED_INSIDE:
            self._doubts += 1
            return self._doubts >= self._settings.doubtful_tries
        return answer.code in _NOTHING_TO_SEE or is_too_large(answer.code, answer.details)

    def _unknown(self, collection: str, points: int, reason: str) -> None:
        self._telemetry.log.warning("conflicts are not looked for", collection=collection, reason=reason)
        self._telemetry.metrics.conflict("unknown", points)

    async def _page(self, collection: str, keys: list[Key]) -> bytes | Answer:
        """What Qdrant holds of these points, without secrets, as a serialized GetResponse."""
        reply = await self._delivery.points(collection, map(id_of, keys))
        if isinstance(reply, Answer):
            return waiting(reply)
        body, _ = await asyncio.to_thread(self._scrubber.scrub_message, points_pb2.GetResponse, reply.body)
        return body

    async def _judge(self, look: _Look, stretch: Sequence[Parcel]) -> None:
        """Ask the replica, and decide by the policy what it does not know yet."""
        answer = await self._replica.compare_baselines(
            control.CompareBaselinesRequest(
                collection=look.collection, touches=look.touches, page=look.page, since_seq=stretch[-1].seq
            )
        )
        self._telemetry.metrics.conflict("unknown", answer.unknown)
        fates = dict.fromkeys(look.seqs, UNCONTESTED)
        new = []
        for judged in answer.changed:
            key = _key(judged.point_id)
            if judged.fate == control.FATE_UNSPECIFIED:
                new.append(key)
            else:
                fates[key] = Fate(judged.fate, look.seqs[key], judged.until_seq)
        if new:
            fates |= await self._decide(look, new, stretch)
        self._fates |= {(look.collection, key): fate for key, fate in fates.items()}
        self._looked_until |= dict.fromkeys(((look.collection, key) for key in fates), answer.applied_seq)

    async def _decide(self, look: _Look, changed: list[Key], stretch: Sequence[Parcel]) -> dict[Key, Fate]:
        policy = self._settings.conflicts
        self._telemetry.log.warning(
            Message.CONFLICT, collection=look.collection, points=len(changed), policy=policy.value
        )
        if policy in _OUTCOMES:
            await self._keep(self._rows(look, changed, stretch))
        settled = await self._replica.settle_baselines(
            control.SettleBaselinesRequest(
                collection=look.collection,
                touches=look.touches,
                page=look.page,
                changed=[_id(key) for key in changed],
                fate=_FATES[policy],
            )
        )
        partial = {parcel.seq for parcel in stretch if not parcel.is_blind}
        if policy is ConflictPolicy.LOCAL_WINS and any(look.seqs[key] in partial for key in changed):
            self.on_mixed(look.collection)
        return {key: Fate(_FATES[policy], look.seqs[key], settled.until_seq) for key in changed}

    # --- the conflict log --------------------------------------------------------------------------------------------

    def _rows(self, look: _Look, changed: Iterable[Key], stretch: Sequence[Parcel]) -> list[conflict_pb2.Conflict]:
        """What Qdrant holds and will lose, or what the write waits for in quarantine."""
        entries = {parcel.seq: parcel for parcel in stretch}
        there = {key_of(point.id): point for point in points_pb2.GetResponse.FromString(look.page).result}
        rows = []
        for key in changed:
            row = self._row(entries[look.seqs[key]], _OUTCOMES[self._settings.conflicts], look.collection, key)
            if key in there:
                row.remote = there[key].SerializeToString()
            else:
                row.is_gone = True
            rows.append(row)
        return rows

    async def _note_left_out(self, found: Iterable[Contest]) -> None:
        rows = []
        for each in found:
            for key, operations in each.lost.items():
                outcome = conflict_pb2.CONFLICT_OUTCOME_NOT_WRITTEN
                row = self._row(each.parcel, outcome, each.parcel.entry.collection, key)
                row.left_out.extend(entry_pb2.Operation(method=one.method, request=one.body) for one in operations)
                rows.append(row)
        if rows:
            await self._keep(rows)

    def _row(
        self, parcel: Parcel, outcome: conflict_pb2.ConflictOutcome, collection: str, key: Key
    ) -> conflict_pb2.Conflict:
        return conflict_pb2.Conflict(
            seq=parcel.seq,
            outcome=outcome,
            collection=collection,
            tenant=parcel.entry.tenant,
            point_id=_id(key),
            wall_unix_ns=self._clock.wall_ns(),
            method=parcel.method,
        )

    async def _keep(self, rows: list[conflict_pb2.Conflict]) -> None:
        gone = await asyncio.to_thread(self._log.append, [row.SerializeToString() for row in rows])
        for outcome, count in Counter(row.outcome for row in rows).items():
            self._telemetry.metrics.conflict(outcome_name(outcome), count)
        if gone:
            self._telemetry.metrics.conflict_rows_dropped(gone)
            self._telemetry.log.warning(Message.CONFLICT_ROWS_DROPPED, rows=gone)

    @staticmethod
    def _reason(found: Contest) -> str:
        """Why some of an entry goes to the quarantine."""
        if not found.held:
            return ""
        first = min(found.held, key=str)
        more = f" and {len(found.held) - 1} more" if len(found.held) > 1 else ""
        return f"conflict: others changed point {first}{more} while Qdrant was away; `understudy wal conflicts list`"


def outcome_name(outcome: int) -> str:
    """`overwritten`, `not_written` or `quarantined`."""
    name = conflict_pb2.ConflictOutcome.Name(outcome)
    return name.removeprefix("CONFLICT_OUTCOME_").lower()


def _chunks(seqs: dict[Key, int], size: int) -> Iterator[dict[Key, int]]:
    items = iter(seqs.items())
    while chunk := dict(islice(items, size)):
        yield chunk


def _id(key: Key) -> bytes:
    return id_of(key).SerializeToString()


def _key(body: bytes) -> Key:
    return key_of(common.PointId.FromString(body))
