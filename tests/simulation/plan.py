"""What happens in one run, as explicit lists made from the seed, so that any part of them can be run again."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

IDS = (1, 2, 3, 4, 5, 6)
# Only these are ever poisoned: what Qdrant refuses of them ends in the quarantine, with all that follows.
POISON_IDS = (90, 91)

# Faults, with the least and the most seconds that each lasts, and its weight.
FAULTS: dict[str, tuple[float, float, int]] = {
    "qdrant is killed": (0.2, 25.0, 6),
    "qdrant hangs": (0.2, 25.0, 4),
    "qdrant is cut off": (0.2, 25.0, 4),
    "qdrant is slow": (0.5, 10.0, 3),
    "qdrant says not now": (0.5, 15.0, 3),
    "qdrant flaps": (2.0, 12.0, 1),
    "connections are reset": (0.0, 0.0, 3),
    "answers are lost": (1.0, 15.0, 3),
    "answers come twice": (1.0, 15.0, 1),
    "the network is slow": (1.0, 10.0, 2),
    "the proxy is killed": (0.1, 5.0, 4),
    "the proxy loses power": (0.1, 5.0, 4),
    "the proxy is stopped": (0.1, 5.0, 2),
    "the proxy is killed at a call of the disk": (0.1, 3.0, 4),
    "the proxy loses power at a call of the disk": (0.1, 3.0, 4),
    "the replica is killed": (0.05, 6.0, 4),
    "the replica hangs": (0.1, 3.0, 2),
    "the replica is slow": (1.0, 15.0, 4),
    "the disk is full": (0.5, 10.0, 2),
    "a sync fails": (0.0, 3.0, 2),
    "a write to the disk fails": (0.0, 3.0, 1),
    "the disk is slow": (0.5, 5.0, 2),
    "the wall clock jumps": (0.0, 0.0, 1),
}
FORGETS = "qdrant loses power"
# One wave of them: only where `foreign.foreign_of` puts it.
OTHERS_WRITE = "others write"
# What Qdrant forgets at most, and how long after it is back the proxy may need to have looked at it.
_FORGOTTEN_SECONDS = 6.0
_LOOKED_SECONDS = 20.0
# A fault at a call of the disk waits this long for the call.
_AT_A_CALL_SECONDS = 30.0
_REOPEN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one client. `hangs_up` = seconds after which the client goes away, 0 = never."""

    number: int
    client: int
    at: float
    kind: str
    ids: tuple[int, ...]
    poisoned: tuple[int, ...] = ()
    deadline: float = 5.0
    hangs_up: float = 0.0

    def __str__(self) -> str:
        more = f" poison {list(self.poisoned)}" if self.poisoned else ""
        more += f" hangs up after {self.hangs_up:.3f} s" if self.hangs_up else ""
        return f"#{self.number} {self.at:8.3f} s  client {self.client} {self.kind} {list(self.ids)}{more}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One misfortune. `chance` decides whatever else there is to decide about it."""

    number: int
    at: float
    kind: str
    seconds: float
    chance: int

    def __str__(self) -> str:
        return f"#{self.number} {self.at:8.3f} s  {self.kind} ({self.seconds:.3f} s)"


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run. `settings` are those of the proxy that vary."""

    seed: int
    seconds: float
    initial: int
    settings: dict[str, Any]
    operations: tuple[Operation, ...]
    faults: tuple[Fault, ...]
    is_forgetful: bool = False
    trace: bool = field(default=False, compare=False)
    # Made by `histories.history_of`, not by `plan_of`.
    is_history: bool = False
    # Made by `foreign.foreign_of`: others write, too.
    is_foreign: bool = False

    def only(self, operations: Collection[int] | None, faults: Collection[int] | None) -> Plan:
        """The same run with these operations and faults alone; None = all."""
        return replace(
            self,
            operations=tuple(one for one in self.operations if operations is None or one.number in operations),
            faults=tuple(one for one in self.faults if faults is None or one.number in faults),
        )


def plan_of(seed: int, *, forgetful: bool = False) -> Plan:
    """The run that a seed stands for. `forgetful`: power cuts of Qdrant, which take what it acknowledged lately."""
    chance = random.Random(f"plan {seed}")
    seconds = chance.choice((20.0, 60.0, 120.0))
    settings = settings_of_chance(chance)
    faults = _faults(chance, seconds, forgetful=forgetful)
    operations = operations_of_chance(
        chance, seconds, [at for fault in faults for at in (fault.at, fault.at + fault.seconds)]
    )
    return Plan(seed, seconds, chance.choice((0, 3, 6)), settings, operations, faults, forgetful)


def settings_of_chance(chance: random.Random) -> dict[str, Any]:
    """Limits of the proxy, mostly so small that they are reached."""
    return {
        "segment_bytes": chance.choice((3_000, 10_000, 1 << 20)),
        "cache_bytes": chance.choice((0, 2_000, 1 << 20)),
        "head_bytes": chance.choice((1_500, 8 << 20)),
        "page_entries": chance.choice((1, 3, 256)),
        "merge_points": chance.choice((1, 4, 500)),
        "page_points": chance.choice((1, 3, 256)),
        "apply_batch_entries": chance.choice((1, 4, 256)),
        "mirror_queue_entries": chance.choice((2, 10_000)),
        "queue_entries": chance.choice((2, 4096)),
    }


def _faults(chance: random.Random, seconds: float, *, forgetful: bool) -> tuple[Fault, ...]:
    # Each run has its own few kinds: a run with everything in it hides what two faults do together.
    kinds = [kind for kind in FAULTS for _ in range(FAULTS[kind][2])]
    chosen = [chance.choice(kinds) for _ in range(chance.randrange(1, 5))]
    if chance.random() < 0.6:
        chosen.append("qdrant is killed")
    if chance.random() < 0.1:
        chosen.append("qdrant says not now")
    if forgetful:
        chosen += [FORGETS] * 2
    first = chance.choice((0.0, 5.0))
    found = []
    for number in range(chance.randrange(1, 9)):
        kind = chance.choice(chosen)
        least, most, _ = FAULTS.get(kind, (0.2, 10.0, 0))
        lasts = least + (most - least) * chance.random() ** 2
        at = chance.uniform(first, seconds)
        if found and chance.random() < 0.5:
            # Misfortunes seldom come singly: with the one before, or when that one is just over.
            before = found[-1].at + chance.choice((0.0, found[-1].seconds))
            at = min(max(0.0, before + chance.uniform(-1.0, 3.0)), seconds)
        found.append(Fault(number, at, kind, lasts, chance.randrange(1 << 30)))
    return tuple(sorted(map(_apart_from(found), found), key=lambda fault: fault.at))


# What keeps a write out of the log that Qdrant has, the seconds for which it may, and what it is replaced with.
_MILDER = {
    "the proxy loses power": (0.0, "the proxy is killed"),
    "the proxy loses power at a call of the disk": (_AT_A_CALL_SECONDS, "the proxy is killed at a call of the disk"),
    "the disk is full": (_REOPEN_SECONDS, "the disk is slow"),
    "a sync fails": (_REOPEN_SECONDS, "the disk is slow"),
    "a write to the disk fails": (_REOPEN_SECONDS, "the disk is slow"),
}


def _apart_from(faults: list[Fault]) -> Callable[[Fault], Fault]:
    """What makes the log lose writes does not meet a power cut of Qdrant.

    An online write that both of them lose is on no disk any more: Qdrant has acknowledged it before its sync, and the
    log syncs what Qdrant has a moment later, and goes on without it when its disk does not take it.
    """
    cuts = [
        (fault.at - _FORGOTTEN_SECONDS, fault.at + fault.seconds + _LOOKED_SECONDS)
        for fault in faults
        if fault.kind == FORGETS
    ]

    def apart(fault: Fault) -> Fault:
        if fault.kind not in _MILDER:
            return fault
        seconds, milder = _MILDER[fault.kind]
        last = fault.at + fault.seconds + seconds
        meets = any(fault.at <= until and since <= last for since, until in cuts)
        return replace(fault, kind=milder) if meets else fault

    return apart


_KINDS = ("upsert",) * 5 + ("set",) * 3 + ("delete",) * 2 + ("get",) * 6 + ("scroll",) * 2


def operations_of_chance(chance: random.Random, seconds: float, moments: list[float]) -> tuple[Operation, ...]:
    """The calls of the clients; half of them come around these moments."""
    count = chance.choice((10, 25, 50))
    kinds = _KINDS + (("wipe",) if chance.random() < 0.3 else ())
    ids = IDS[: chance.choice((1, 3, 6))]
    has_poison = chance.random() < 0.25
    hangs_up = chance.random() < 0.2
    found = []
    for number in range(count):
        # Half of the calls come around a fault, where things happen.
        near = moments and chance.random() < 0.5
        at = chance.uniform(0.0, seconds)
        if chance.random() < 0.1:
            # While what was there before is copied.
            at = chance.uniform(0.5, 1.2)
        elif near:
            at = max(
                0.0, chance.choice(moments) + chance.choice((chance.uniform(-0.1, 0.3), chance.uniform(-0.5, 3.0)))
            )
        kind = chance.choice(kinds)
        chosen: tuple[int, ...] = (chance.choice(ids),)
        if kind in ("upsert", "delete", "get") and chance.random() < 0.4:
            chosen = tuple(sorted(chance.sample(ids, chance.randrange(1, len(ids) + 1))))
        poisoned: tuple[int, ...] = ()
        if has_poison and kind == "upsert" and chance.random() < 0.4:
            poisoned = (chance.choice(POISON_IDS),)
            chosen += poisoned
            poisoned = poisoned if chance.random() < 0.7 else ()
        elif has_poison and kind == "set" and chance.random() < 0.3:
            chosen = (chance.choice(POISON_IDS),)
        if kind in ("scroll", "wipe"):
            chosen = ()
        found.append(
            Operation(
                number,
                chance.randrange(4),
                at,
                kind,
                chosen,
                poisoned,
                chance.choice((5.0, 5.0, 5.0, 30.0)),
                chance.uniform(0.001, chance.choice((0.02, 0.3))) if hangs_up and chance.random() < 0.3 else 0.0,
            )
        )
    return tuple(sorted(found, key=lambda one: one.at))
