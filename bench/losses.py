"""Part 1 of `bench.failover`: the upstream is killed, stopped or cut off while unmodified clients call.

Promises: clients of both kinds share the rate, half of the calls are writes; which calls a crash affects follows from
when the process was killed and from when Understudy says that it changed its state. A call's added latency is what it
took beyond the median of its kind while nothing was wrong, in the same run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clients import COLLECTION, SIZE
from bench.outages import (
    Change,
    Clients,
    Proxy,
    Timed,
    Usual,
    after,
    black_hole,
    calling,
    create,
    proxy,
)
from tests.upstream.process import Standin

WARM_SECONDS = 3.0
# After the return, so that a drain and a copy of what was missed do not count as usual.
SETTLE_SECONDS = 1.0
AWAY_SECONDS = 1.5


@dataclass(frozen=True)
class Loss:
    """One time without an upstream: lost, known to be lost, there again, and known to be (monotonic seconds)."""

    lost: float
    known: float
    back: float
    forwarding: float


Act = Callable[[], object]


def lose(understudy: Proxy, upstream_goes: Act, upstream_comes: Act, chance: random.Random) -> tuple[float, float]:
    """Once; returns when it went and when it was brought back."""
    time.sleep(SETTLE_SECONDS + chance.uniform(0.5, 1.0))
    lost = time.monotonic()
    upstream_goes()
    understudy.until("local")
    time.sleep(AWAY_SECONDS)
    back = time.monotonic()
    upstream_comes()
    understudy.until_drained()
    return lost, back


def run(understudy: Proxy, clients: Clients, times: int, upstream_goes: Act, upstream_comes: Act) -> dict[str, Any]:
    """So many losses under load; the figures."""
    chance = random.Random(times)
    time.sleep(WARM_SECONDS)
    begun = time.monotonic() - WARM_SECONDS / 2
    moments = [lose(understudy, upstream_goes, upstream_comes, chance) for _ in range(times)]
    time.sleep(SETTLE_SECONDS)
    made, errors = clients.end()
    changes = understudy.changes()
    losses = [Loss(lost, after(changes, "local", lost), back, after(changes, "remote", back)) for lost, back in moments]
    starts = [begun, *(loss.forwarding + SETTLE_SECONDS for loss in losses)]
    usual = Usual(made, list(zip(starts, [loss.lost for loss in losses], strict=False)))
    return figures(made, errors, losses, usual, changes)


def figures(
    made: list[Timed], errors: list[str], losses: list[Loss], usual: Usual, changes: list[Change]
) -> dict[str, Any]:
    """What the losses did to the calls."""
    affected = [usual.added_ms(call) for loss in losses for call in made if call.overlaps(loss.lost, loss.known)]
    first_second = [usual.added_ms(call) for loss in losses for call in made if call.overlaps(loss.lost, loss.lost + 1)]
    # Known to be away: what is still under way, and what begins, must not wait for it.
    waits = [
        call.ended - max(call.due, loss.known)
        for loss in losses
        for call in made
        if call.overlaps(loss.known, loss.forwarding) and call.due < loss.back
    ]
    return {
        "calls": len(made),
        "calls_per_second": round(len(made) / (made[-1].due - made[0].due), 1),
        "errors": len(errors),
        "error_texts": sorted(set(errors))[:5],
        "usual_ms": {"write" if writes else "read": round(s * 1000, 2) for writes, s in usual.seconds.items()},
        "known_after_ms": [round((loss.known - loss.lost) * 1000, 1) for loss in losses],
        "affected_added_ms": [round(added, 2) for added in affected],
        "first_second_added_ms": [round(added, 2) for added in first_second],
        "longest_wait_known_seconds": round(max(waits), 3),
        "changes": len(changes),
    }


def measure(work: Path, *, crashes: int, hangs: int, rate: float) -> dict[str, Any]:
    """Crashes, hangs (SIGSTOP) and black holes, each kind with a fresh upstream and a fresh Understudy."""
    rates = {"sync": rate / 2, "async": rate / 2}
    result: dict[str, Any] = {}
    for name, times in (("crash", crashes), ("hang", hangs), ("black hole", hangs)):
        place = work / name.replace(" ", "-")
        with Standin(place / "qdrant") as standin, black_hole(standin.address) as (hole, swallow):
            create(standin, COLLECTION, SIZE)
            acts: dict[str, tuple[str, Act, Act]] = {
                "crash": (standin.address, standin.kill, standin.start),
                "hang": (standin.address, standin.stop_signal, standin.continue_signal),
                "black hole": (hole, lambda swallow=swallow: swallow(True), lambda swallow=swallow: swallow(False)),
            }
            address, goes, comes = acts[name]
            with proxy(address, place / "proxy") as understudy, calling(understudy.address, rates) as clients:
                result[name] = run(understudy, clients, times, goes, comes)
    return result
