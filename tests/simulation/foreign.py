"""Another writer: changes points at Qdrant while our proxy is cut off from it, or is down.

Promises: what a seed stands for has at least one outage with a wave of such writes in it, and a conflict policy. No
write of ours that is replayed, or sent again as lost, changes a point that others changed, unless the policy says so
and the conflict log keeps what they wrote, or the decision page on conflicts names the reason. Each of those reasons is
counted by itself. Others write nothing while our proxy can reach Qdrant.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generated.qdrant import points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from generated.understudy.wal.v1 import conflict_pb2
from server.rpc import METHODS, Call, Kind
from tests.simulation import points as p
from tests.simulation.plan import IDS, OTHERS_WRITE, Fault, Plan, operations_of_chance, settings_of_chance

if TYPE_CHECKING:
    from tests.simulation.replica import Before
    from tests.simulation.world import World

POLICIES = ("local_wins", "remote_wins", "quarantine")
# Points that our clients never write.
OTHER_IDS = (201, 202, 203)
# Values of others are apart from those of our clients, and from what was in Qdrant before.
_FIRST_VALUE = 1_000_000
_OVERWRITTEN = conflict_pb2.CONFLICT_OUTCOME_OVERWRITTEN

# What keeps the proxy from Qdrant while others reach it: least and most seconds, weight.
_OUTAGES = {
    "qdrant is cut off": (3.0, 25.0, 6),
    "the proxy is killed": (0.5, 5.0, 1),
    "the proxy is stopped": (0.5, 5.0, 1),
    "the proxy loses power": (0.5, 5.0, 1),
}
_BESIDES = {
    "qdrant is killed": (0.2, 10.0, 2),
    "qdrant is slow": (0.5, 8.0, 2),
    "qdrant says not now": (0.5, 8.0, 1),
    "connections are reset": (0.0, 0.0, 3),
    "answers are lost": (1.0, 10.0, 3),
    "the network is slow": (1.0, 8.0, 1),
    "the proxy is killed": (0.1, 3.0, 3),
    "the proxy is stopped": (0.1, 3.0, 1),
    "the proxy is killed at a call of the disk": (0.1, 3.0, 3),
    "the proxy loses power at a call of the disk": (0.1, 3.0, 2),
    "the replica is killed": (0.05, 6.0, 2),
    "the replica is slow": (1.0, 8.0, 1),
    "the disk is slow": (0.5, 5.0, 1),
}


def foreign_of(seed: int) -> Plan:
    """The run that a seed stands for."""
    chance = random.Random(f"foreign {seed}")
    settings = settings_of_chance(chance)
    settings["conflicts"] = chance.choice(POLICIES)
    settings["conflict_points"] = chance.choice((1, 3, 500))
    seconds, faults = _faults(chance)
    moments = [each.at for each in faults if each.kind == OTHERS_WRITE]
    operations = operations_of_chance(chance, seconds, moments)
    return Plan(seed, seconds, chance.choice((0, 3, 6)), settings, operations, faults, is_foreign=True)


def _faults(chance: random.Random) -> tuple[float, tuple[Fault, ...]]:
    found: list[tuple[float, str, float]] = []
    at = 0.0
    for _ in range(chance.randrange(1, 4)):
        at += chance.uniform(6.0, 12.0)
        kind, lasts = _one(chance, _OUTAGES)
        found.append((at, kind, lasts))
        found.append((at + lasts * chance.uniform(0.1, 0.98), OTHERS_WRITE, 0.0))
        if chance.random() < 0.5:
            # Around the end of the outage: into the drain, mostly.
            found.append((at + lasts + chance.uniform(-1.0, 2.0), *_one(chance, _BESIDES)))
        at += lasts
    found.sort()
    faults = (Fault(number, *each, chance.randrange(1 << 30)) for number, each in enumerate(found))
    return at + 8.0, tuple(faults)


def _one(chance: random.Random, kinds: dict[str, tuple[float, float, int]]) -> tuple[str, float]:
    kind = chance.choices(list(kinds), [weight for _, _, weight in kinds.values()])[0]
    least, most, _ = kinds[kind]
    return kind, least + (most - least) * chance.random() ** 2


@dataclass(frozen=True, slots=True)
class Change:
    """What others made of a point, and what it was before."""

    at: float
    before: p.Payload | None
    after: p.Payload | None


class Others:
    """The writer, and what became of what it wrote. `touched`: every point that it ever wrote to."""

    def __init__(self, world: World) -> None:
        self.touched: set[int] = set()
        self._world = world
        self._value = _FIRST_VALUE
        # Points that nobody wrote to after others did.
        self._standing: dict[int, Change] = {}
        # What the conflict log must hold in the end.
        self._lost: list[tuple[int, p.Payload | None]] = []
        self._nobody_looked_at = 0.0
        # Points that the replay wrote over, as long as nothing else has touched them.
        self._mixed: set[int] = set()
        # When the replay sent writes to each point, whether they arrived or not.
        self._sent_at: dict[int, list[float]] = {}
        world.qdrant.on_sent = self._sent
        world.qdrant.on_write = self._written

    def nobody_looks(self) -> None:
        """The proxy says that it could not ask."""
        self._nobody_looked_at = self._world.loop.now

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, chance: random.Random) -> None:
        """One wave, if the proxy cannot reach Qdrant and Qdrant serves."""
        qdrant = self._world.qdrant
        is_alone = qdrant.is_cut_off or self._world.serving is None
        if not is_alone or not qdrant.is_up or qdrant.is_hung:
            self._world.count("others come at another time")
            return
        for _ in range(chance.choice((1, 2, 6))):
            self._write_one(chance)

    def _write_one(self, chance: random.Random) -> None:
        self._value += 1
        kind = chance.choice(("upsert", "upsert", "set", "delete"))
        ids = tuple(sorted(chance.sample(IDS, 1 if kind == "set" else chance.randrange(1, 4))))
        if chance.random() < 0.2:
            ids = (chance.choice(OTHER_IDS),)
        request = p.request_of(kind, ids, self._value)
        points, now = self._world.qdrant.points, self._world.loop.now
        before = dict(points)
        self._world.qdrant.write(request)
        self._world.trace("others", kind, list(ids), self._value)
        self._world.count(f"others {kind}")
        self.touched.update(ids)
        self._mixed.difference_update(ids)
        for number in _changed(before, points):
            # In a wave the last one counts; a point that is as it was has not changed.
            first = self._standing.pop(number, None)
            change = Change(now, first.before if first else before.get(number), points.get(number))
            if change.before != change.after:
                self._standing[number] = change

    # --- what our own writes do to that ------------------------------------------------------------------------------

    def _sent(self, call: Call) -> None:
        row = METHODS.get(call.method)
        is_ours = dict(call.metadata).get("api-key") == self._world.qdrant.own_key
        if row is None or row.kind is not Kind.WRITE or not is_ours:
            return
        for number in p.named(row.request.FromString(call.body)) or ():
            self._sent_at.setdefault(number, []).append(self._world.loop.now)

    def _written(self, by: str, request: Any, before: p.Points) -> None:
        for number in _changed(before, self._world.qdrant.points):
            change = self._standing.pop(number, None)
            if not by:
                self._mixed.discard(number)
            if change is None or not by:
                # Nobody else's, or a client of ours that reached Qdrant: the last one wins.
                continue
            if by == "restored":
                self._restored(number, change)
            else:
                self._replayed(number, change, request)

    def _restored(self, number: int, change: Change) -> None:
        """A point that Qdrant seemed to have lost."""
        if number in self._world.replica.guessed:
            self._world.count(f"not seen: taken for lost, {'deleted' if change.after is None else 'not known before'}")
        else:
            self._world.violated("what others changed is not taken for lost", f"point {number}: {change.after}")

    def _replayed(self, number: int, change: Change, request: Any) -> None:
        known = self._world.database.now.befores.get(number)
        reason = self._why_unseen(number, known, change, request)
        if reason:
            self._world.count(f"not seen: {reason}")
            return
        if known is None or known.is_open or (known.fate == control.FATE_LOCAL and known.seen != change.after):
            text = f"point {number}: {change.after} is overwritten, and was not looked at: {known}"
            self._world.violated("points are looked at before anything is sent", text)
        elif known.fate == control.FATE_LOCAL:
            self._world.count("overwritten")
            if self._world.plan.settings["conflicts"] != "local_wins":
                text = f"point {number}: {change.after} is overwritten"
                self._world.violated("the policy decides what becomes of others' changes", text)
            self._lost.append((number, change.after))
            self._mixed.add(number)
        elif known.fate != control.FATE_HELD and self._is_later(number, known, request):
            # Made on top of what the replica took over.
            self._world.count("written after it was taken over")
        else:
            text = f"point {number}: {change.after} is overwritten in spite of fate {known.fate}"
            self._world.violated("the policy decides what becomes of others' changes", text)

    def _why_unseen(self, number: int, known: Before | None, change: Change, request: Any) -> str:
        """The reason of the decision page for which nobody could see this change, "" = none."""
        if self._nobody_looked_at >= change.at:
            return "nobody could be asked"
        if p.named(request) is None or (known is not None and known.is_by_filter):
            return "by a filter"
        if known is None:
            return ""
        if known.origin == change.after:
            return "the write was made knowing it"
        if known.is_open:
            return ""
        if not known.judged_at:
            return "the copy was not whole, or it might be ours"
        if known.judged_at < change.at or known.seen != change.after:
            return self._why_not_again(number, known, change)
        return ""

    def _why_not_again(self, number: int, known: Before, change: Change) -> str:
        """The reason for which a point that was looked at before the change was not looked at again, "" = none."""
        if any(known.judged_at <= at <= change.at for at in self._sent_at.get(number, ())):
            return "changed after the first write was sent"
        if self._world.serving is not None and self._world.serving.since > known.judged_at:
            return "changed after the look, before Understudy ended"
        return ""

    def _is_later(self, number: int, known: Before, request: Any) -> bool:
        """Whether a write is behind those that are left out."""
        values = p.values(request)
        # A deletion carries no value: any one of that point may be it.
        changes = self._world.replica.changes[number]
        return any(each.seq > known.until_seq for each in changes if each.values & values or each.values == values)

    # --- in the end --------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """What the conflict log holds is what was lost, and about what others touched."""
        world = self._world
        for wrongly in sorted(world.replica.blamed - self.touched):
            world.violated("nobody else is blamed for our own writes", f"point {wrongly}")
        kept = [(row.outcome, number, seen) for row, number, seen in self._rows()]
        for outcome, number, _ in kept:
            world.count(f"rows {conflict_pb2.ConflictOutcome.Name(outcome)}")
            if number not in self.touched:
                world.violated("nobody else is blamed for our own writes", f"a row about point {number}")
        for number, payload in self._lost:
            if (_OVERWRITTEN, number, payload) not in kept:
                text = f"point {number}: {payload} is in no row of the conflict log"
                world.violated("the conflict log keeps what is overwritten", text)

    def judge_drained(self) -> None:
        """What was overwritten in part is compared without anybody asking: Qdrant has some of both."""
        there, here = self._world.qdrant.points, self._world.database.now.points
        for number in sorted(self._mixed):
            self._world.count("overwritten points compared")
            if there.get(number) != here.get(number):
                text = f"point {number}: Qdrant {there.get(number)}, replica {here.get(number)}"
                self._world.violated("the replica takes over what is mixed", text)

    def left_out(self) -> set[int]:
        """Values of ours that the conflict log names as left out, and those of points that are gone on both sides."""
        found = set(self._world.replica.moot)
        for row, _, _ in self._rows():
            for one in row.left_out:
                found |= p.values(METHODS[one.method].request.FromString(one.request))
        return found

    def _rows(self) -> Iterator[tuple[conflict_pb2.Conflict, int, p.Payload | None]]:
        assert self._world.serving is not None
        for kept in self._world.serving.proxy._kept.rows():
            if kept.flaw:
                self._world.violated("the conflict log can be read", kept.flaw)
                continue
            row = conflict_pb2.Conflict.FromString(kept.body)
            there = None if row.is_gone else p.payload_of(points_pb2.RetrievedPoint.FromString(row.remote))
            yield row, common.PointId.FromString(row.point_id).num, there


def _changed(before: p.Points, after: p.Points) -> list[int]:
    return [number for number in sorted({*before, *after}) if before.get(number) != after.get(number)]
