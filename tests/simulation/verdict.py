"""After a run: is everything that was promised true?"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generated.understudy.wal.v1 import entry_pb2
from server.rpc import METHODS, Code
from tests.simulation import points as p
from tests.simulation.history import Outcome, Seen, steps_of
from tests.simulation.linear import Undecided, explain
from tests.simulation.plan import IDS, POISON_IDS

if TYPE_CHECKING:
    from tests.simulation.world import World


def judge(world: World) -> None:
    """Note every violation."""
    quarantined = _quarantined(world)
    for kept in quarantined:
        world.trace("in quarantine:", kept.seq, kept.code, p.named(kept.request))
        world.count("quarantined")
    spoilt = set(POISON_IDS) | _spoilt_by(world, quarantined)
    _nothing_dropped(world, quarantined)
    _followers_held(world, quarantined)
    _in_order(world)
    if world.plan.is_foreign:
        world.others.judge()
        # Everything was compared in the end, whatever is in quarantine.
        _same_on_both_sides(world, set())
        # Of these points Qdrant has another history than our clients were told.
        spoilt |= world.others.touched
    else:
        _nobody_else(world)
        _same_on_both_sides(world, spoilt)
    _explained(world, spoilt)
    _logged_writes_seen(world, spoilt)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A request in quarantine: the number of its entry and the status that it is there for."""

    seq: int
    code: int
    request: Any


def _quarantined(world: World) -> list[_Kept]:
    """What Qdrant did not take, in the order of the log."""
    assert world.serving is not None
    found = []
    for item, record in world.serving.proxy._parts.log.quarantined_entries():
        entry = entry_pb2.Entry.FromString(record.body)
        parts = [(part.method, part.request) for part in entry.resolved] or [(entry.method, entry.request)]
        found += [_Kept(item.seq, item.code, METHODS[method].request.FromString(raw)) for method, raw in parts]
    return found


def _spoilt_by(world: World, quarantined: list[_Kept]) -> set[int]:
    """Points of entries in quarantine that belong there: whoever sees them sees what Qdrant made of them."""
    spoilt: set[int] = set()
    for kept in quarantined:
        request = kept.request
        names = set(p.named(request) or ())
        is_expected = (
            p.is_poisoned(request)
            # Blamed for a Qdrant that failed inside whenever it was sent (`replay.doubtful_tries`).
            or kept.code == Code.INTERNAL
            or names & (spoilt | set(POISON_IDS))
            or p.values(request) & world.clients.unresolved
            # Held because others changed them, or refused because others deleted them.
            or names & world.others.touched
        )
        if is_expected:
            # What a filter was about nobody can tell.
            spoilt |= names or set(IDS)
        else:
            world.violated("only what Qdrant refuses is in quarantine", f"{sorted(names)} {sorted(p.values(request))}")
    return spoilt


def _nobody_else(world: World) -> None:
    """Nobody else writes: what looks changed was forgotten by Qdrant, or our own hand is taken for another's."""
    if world.replica.judged:
        world.count("runs with points that were judged")
    if world.replica.conflicts and not world.qdrant.forgot:
        world.violated("nobody else is blamed for our own writes", f"{world.replica.conflicts} points")


def _nothing_dropped(world: World, quarantined: list[_Kept]) -> None:
    kept = {value for each in quarantined for value in p.values(each.request)}
    done = world.qdrant.ever_done | (world.others.left_out() if world.plan.is_foreign else set())
    for call in world.clients.calls:
        if call.outcome is Outcome.OK and call.kind in ("upsert", "set") and call.value not in kept | done:
            world.violated("nothing acknowledged is lost", f"{call.label} is neither at Qdrant nor in quarantine")


def _followers_held(world: World, quarantined: list[_Kept]) -> None:
    """What touches a point in quarantine later follows it there; a batch is divided, so single points tell."""
    first: dict[int, int] = {}
    for kept in quarantined:
        for number in p.named(kept.request) or ():
            first.setdefault(number, kept.seq)
    for call in world.clients.calls:
        seq = world.clients.seq_of.get(call.value, 0)
        is_later = not call.is_by_filter and len(call.ids) == 1 and seq > first.get(call.ids[0], seq)
        if is_later and call.value in world.qdrant.last_replayed:
            world.violated("later entries follow a refused one", f"{call.label}, entry {seq}, was sent")


def _in_order(world: World) -> None:
    """Pending entries reach Qdrant in the order of the log."""
    last = sorted(
        (world.qdrant.last_replayed[value], seq)
        for value, seq in world.clients.seq_of.items()
        if value in world.qdrant.last_replayed
    )
    for (_, before), (_, after) in itertools.pairwise(last):
        if before > after:
            world.violated("pending writes arrive in the order of the log", f"entry {before} before entry {after}")


def _same_on_both_sides(world: World, spoilt: set[int]) -> None:
    there, here = world.qdrant.points, world.database.now.points
    for number in sorted({*there, *here} - spoilt):
        if there.get(number) != here.get(number):
            text = f"point {number}: Qdrant {there.get(number)}, replica {here.get(number)}"
            world.violated("both sides end the same", text)


def _logged_writes_seen(world: World, spoilt: set[int]) -> None:
    """A local answer that is not whole still shows what was acknowledged locally, where nobody wrote after that."""
    for read in world.clients.calls:
        if read.kind != "read" or not read.source.startswith("local, "):
            continue
        for number in set(read.ids or IDS) - spoilt:
            last = _last_write(world, read, number)
            if last is None or last.source != "local" or last.kind not in ("upsert", "delete"):
                continue
            world.count("answers of a copy that is not whole, judged")
            wanted = (("v", last.value),) if last.kind == "upsert" else None
            if read.found.get(number) != wanted:
                text = f"{read.label} shows {read.found.get(number)} for point {number} after {last.label}"
                world.violated("read your writes, also from a copy that is not whole", text)


def _last_write(world: World, read: Seen, number: int) -> Seen | None:
    """The write that a read must show; None when that is not certain."""
    writes = [
        call
        for call in world.clients.calls
        if not call.is_look
        and call.outcome is not Outcome.REFUSED
        and call.began < read.answered
        and (not call.ids or number in call.ids)
    ]
    if not writes or any(write.ended >= read.began for write in writes):
        return None
    last = max(writes, key=lambda write: write.ended)
    return None if any(write.ended > last.began for write in writes if write is not last) else last


def _explained(world: World, spoilt: set[int]) -> None:
    world.events += 1
    world.count("calls made", len(world.clients.calls))
    final = Seen("read", (), 0, world.events, world.events + 1, Outcome.OK, dict(world.qdrant.points), label="the end")
    calls = [*world.clients.calls, final]
    for number in IDS:
        if number in spoilt:
            world.count("points not judged")
            continue
        steps = steps_of(number, calls)
        world.count("points judged")
        world.count("calls judged", len(steps))
        try:
            problem = explain(world.initial.get(number), steps)
        except Undecided as undecided:
            world.violated("a history is decided", f"point {number}: {undecided}")
            continue
        if problem:
            world.violated("read your writes, in one order", f"point {number}: {problem}")
