"""Part 2 of `bench.failover`: how soon a return is noticed, what flapping does, how long writes pause at the switch.

Promises: returns are those after outages long enough for every pause between attempts to have grown to its limit;
several proxies watch the same upstream, each with its own luck. Flapping = the port is shut and opened again once a
second, half of the time each, while a client calls. A cutover comes about as after any outage, but without one: an
answer that was lost puts one write into the log, and the switch back to Qdrant follows at once.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.clients import COLLECTION, SIZE
from bench.outages import Proxy, Usual, calling, create, proxy
from tests.upstream.process import Standin

# Pauses double from 0.5 s up to 5 s, gRPC's own grow from 0.2 s by 1.6.
OUTAGE_SECONDS = 10.0
FLAPPING_CALLS_PER_SECOND = 20.0
BARRIER_SECONDS = 0.1
WRITES_PER_SECOND = 100.0
LOST_SECONDS = 2.0


def returns(standin: Standin, proxies: list[Proxy], times: int) -> list[float]:
    """Seconds from the return to the first sign that it was noticed, for each proxy and outage."""
    chance = random.Random(times)
    found = []
    for _ in range(times):
        standin.kill()
        for each in proxies:
            each.until("local")
        time.sleep(OUTAGE_SECONDS + chance.uniform(0, 5))
        standin.start()
        back = time.monotonic()
        for each in proxies:
            each.until_drained()
            found.append(round(min(change.at for change in each.changes() if change.at > back) - back, 3))
    return found


def flapping(standin: Standin, proxies: list[Proxy], seconds: float) -> dict[str, Any]:
    """Changes of state while the upstream comes and goes once a second."""
    with calling(proxies[0].address, {"async": FLAPPING_CALLS_PER_SECOND}) as clients:
        time.sleep(2)
        begun = time.monotonic()
        for half in range(2 * round(seconds)):
            time.sleep(max(0.0, begun + half / 2 - time.monotonic()))
            standin.control("accept" if half % 2 else "refuse")
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        ended = time.monotonic()
        switches = [sum(begun <= change.at <= ended for change in each.changes()) for each in proxies]
        # From here on it stays.
        for each in proxies:
            each.until_drained()
        made, errors = clients.end()
    return {"seconds": round(ended - begun, 1), "switches": switches, "calls": len(made), "errors": len(errors)}


def cut_over(standin: Standin, understudy: Proxy) -> None:
    """One answer is lost. Now and then the call that loses it is one of a replay, and no switch follows."""
    lost = time.monotonic()
    standin.fault("Upsert", "fail", code="UNAVAILABLE")
    while time.monotonic() < lost + LOST_SECONDS:
        if any(change.state == "draining" and change.at >= lost for change in understudy.changes()):
            break
        time.sleep(0.02)
    understudy.until_drained()


def cutovers(work: Path, times: int) -> dict[str, Any]:
    """How much longer than usual the slowest write around each switch took."""
    chance = random.Random(times)
    rates = {"sync": WRITES_PER_SECOND / 2, "async": WRITES_PER_SECOND / 2}
    with Standin(work / "qdrant") as standin:
        create(standin, COLLECTION, SIZE)
        with (
            proxy(standin.address, work / "proxy") as understudy,
            calling(understudy.address, rates, write_share=1.0) as clients,
        ):
            time.sleep(4)
            begun = time.monotonic()
            for _ in range(times):
                time.sleep(chance.uniform(0.05, 0.15))
                cut_over(standin, understudy)
            made, errors = clients.end()
            changes = understudy.changes()
    usual = Usual(made, [(begun - 3, begun)])
    pauses = []
    for switched in (change.at for change in changes if change.state == "remote" and change.at > begun):
        around = [call for call in made if call.overlaps(switched - BARRIER_SECONDS, switched)]
        pauses.append(round(max([0.0, *(usual.added_ms(call) for call in around)]), 2))
    return {"pauses_ms": pauses, "writes": len(made), "errors": len(errors), "error_texts": sorted(set(errors))[:5]}


def measure(work: Path, *, proxies: int, outages: int, flap_seconds: float, switches: int) -> dict[str, Any]:
    """All three."""
    result: dict[str, Any] = {"cutover": cutovers(work / "cutover", switches)}
    with ExitStack() as stack:
        standin = stack.enter_context(Standin(work / "qdrant"))
        create(standin, COLLECTION, SIZE)
        watching = [stack.enter_context(proxy(standin.address, work / f"proxy-{n}")) for n in range(proxies)]
        result["noticed_seconds"] = returns(standin, watching, outages)
        result["flapping"] = flapping(standin, watching, flap_seconds)
    return result
