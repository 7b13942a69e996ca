"""Long histories: many calls by many clients on very few points, through one failover after the other.

Promises: what a seed stands for has `CALLS` calls, and a Qdrant that goes away at least `FAILOVERS_LEAST` times. Most
calls come in bursts, at the same moment from several clients, and most bursts come when Qdrant goes or returns: that is
where an order can be wrong. Nothing is poisoned, so that every point can be judged.
"""

from __future__ import annotations

import random

from tests.simulation.plan import IDS, Fault, Operation, Plan, settings_of_chance

CALLS = 1000
CLIENTS = 8
FAILOVERS_LEAST = 6
SECONDS = 200.0

# What makes Qdrant go away, and what else goes wrong meanwhile: least and most seconds, weight.
_GOES = {
    "qdrant is killed": (0.3, 8.0, 6),
    "qdrant hangs": (2.0, 9.0, 3),
    "qdrant is cut off": (2.0, 9.0, 3),
    "qdrant flaps": (2.0, 6.0, 1),
}
_BESIDES = {
    "qdrant is slow": (0.5, 5.0, 2),
    "connections are reset": (0.0, 0.0, 3),
    "answers are lost": (1.0, 6.0, 4),
    "answers come twice": (1.0, 6.0, 1),
    "the network is slow": (1.0, 5.0, 2),
    "the proxy is killed": (0.1, 2.0, 2),
    "the proxy loses power": (0.1, 2.0, 1),
    "the proxy is stopped": (0.1, 1.0, 1),
    "the proxy is killed at a call of the disk": (0.1, 1.0, 1),
    "the replica is killed": (0.05, 3.0, 3),
    "the replica hangs": (0.1, 2.0, 1),
    "the disk is full": (0.5, 4.0, 1),
    "a sync fails": (0.0, 2.0, 1),
    "the disk is slow": (0.5, 3.0, 1),
}
KINDS = {
    "get": 30,
    "count": 6,
    "scroll": 6,
    "upsert": 18,
    "set": 12,
    "swap": 10,
    "insert": 6,
    "delete": 6,
    "drop": 4,
    "wipe": 0.5,
}


def history_of(seed: int) -> Plan:
    """The history that a seed stands for."""
    chance = random.Random(f"history {seed}")
    faults = _faults(chance)
    moments = [moment for fault in faults for moment in (fault.at, fault.at + fault.seconds)]
    return Plan(
        seed,
        SECONDS,
        chance.choice((0, 3, 6)),
        settings_of_chance(chance),
        _operations(chance, moments),
        faults,
        is_history=True,
    )


def _faults(chance: random.Random) -> tuple[Fault, ...]:
    outages = chance.randrange(FAILOVERS_LEAST, FAILOVERS_LEAST + 5)
    found = []
    for number in range(outages):
        # Each has a time of its own, so that Qdrant is there again between two of them, mostly.
        length = (SECONDS - 15.0) / outages
        at = 5.0 + length * (number + chance.uniform(0.0, 0.4))
        found.append((at, *_one(chance, _GOES)))
        if chance.random() < 0.6:
            beside = at + chance.uniform(-2.0, 6.0)
            found.append((beside, *_one(chance, _BESIDES)))
        if chance.random() < 0.4:
            # It has yet to take in what Qdrant has just acknowledged.
            found.append((at - chance.uniform(0.2, 2.0), "the replica is slow", chance.uniform(3.0, 6.0)))
    found.sort()
    return tuple(
        Fault(number, at, kind, lasts, chance.randrange(1 << 30)) for number, (at, kind, lasts) in enumerate(found)
    )


def _one(chance: random.Random, kinds: dict[str, tuple[float, float, int]]) -> tuple[str, float]:
    kind = chance.choices(list(kinds), [weight for _, _, weight in kinds.values()])[0]
    least, most, _ = kinds[kind]
    return kind, least + (most - least) * chance.random() ** 2


def _operations(chance: random.Random, moments: list[float]) -> tuple[Operation, ...]:
    ids = IDS[: chance.choice((2, 3, 4))]
    hangs_up = chance.random() < 0.3
    found: list[Operation] = []
    while len(found) < CALLS:
        start = chance.uniform(1.0, SECONDS)
        if chance.random() < 0.7:
            start = max(
                1.0, chance.choice(moments) + chance.choice((chance.uniform(-0.1, 0.2), chance.uniform(-0.5, 3.0)))
            )
        spread = chance.choice((0.0, 0.02, 0.3))
        # Bursts are about one point mostly: on it they meet.
        point = chance.choice(ids)
        for _ in range(min(chance.randrange(4, 25), CALLS - len(found))):
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            found.append(
                Operation(
                    len(found),
                    chance.randrange(CLIENTS),
                    start + chance.uniform(0.0, spread),
                    kind,
                    points_of(chance, kind, point, ids),
                    deadline=chance.choice((5.0, 5.0, 30.0)),
                    hangs_up=chance.uniform(0.001, 0.1) if hangs_up and chance.random() < 0.02 else 0.0,
                )
            )
    return tuple(sorted(found, key=lambda one: one.at))


def points_of(chance: random.Random, kind: str, point: int, ids: tuple[int, ...]) -> tuple[int, ...]:
    """The points that a call names: mostly `point`, at times others or several."""
    if kind in ("scroll", "wipe"):
        return ()
    if kind in ("upsert", "delete", "get") and chance.random() < 0.2:
        return tuple(sorted(chance.sample(ids, chance.randrange(1, len(ids) + 1))))
    return (point if chance.random() < 0.8 else chance.choice(ids),)
