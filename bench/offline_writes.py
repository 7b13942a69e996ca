"""Part 3 of `bench.failover`: what offline writes cost, and how fast they are brought to the upstream afterwards.

Promises: the same bytes are written through Understudy online, offline, and straight to the same upstream, by the same
load generator in the same round. Every round has a fresh upstream and a fresh Understudy.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import proxy as bench_proxy
from bench.outages import Proxy, after, create, proxy
from bench.proxy import UPSERT, Target, write_bodies
from generated.qdrant import points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from tests.upstream.process import Standin

SET_PAYLOAD = "/qdrant.Points/SetPayload"
CALLERS = 32
SINGLES, SINGLE_SIZE = 4000, 64
# Of points that every run has written by then.
PAYLOADS = 300
BATCHES, BATCH_POINTS, BATCH_SIZE = 40, 100, 384


def upserts(collection: str, count: int, points: int, size: int) -> list[bytes]:
    """Requests with `wait`, no point twice."""
    chance = np.random.default_rng(size)
    bodies = []
    for number in range(count):
        request = points_pb2.UpsertPoints(collection_name=collection, wait=True)
        for at in range(points):
            point = request.points.add(id=common.PointId(num=number * points + at))
            point.vectors.vector.dense.data.extend(chance.standard_normal(size, dtype=np.float32).tolist())
            point.payload["title"].string_value = f"a document with the number {number * points + at}"
            point.payload["year"].integer_value = 2000 + at
        bodies.append(request.SerializeToString())
    return bodies


def payloads(collection: str, count: int) -> list[bytes]:
    """Requests with `wait` that set a key of one point each: entries that cannot be sent as one."""
    bodies = []
    for number in range(count):
        request = points_pb2.SetPayloadPoints(collection_name=collection, wait=True)
        request.points_selector.points.ids.add(num=number)
        request.payload["seen"].integer_value = number
        bodies.append(request.SerializeToString())
    return bodies


def load(
    target: str,
    pid: int | None,
    bodies: Path,
    seconds: float,
    *,
    method: str = UPSERT,
    callers: int = CALLERS,
    rate: float = 0.0,
) -> dict[str, float]:
    """One run of the load generator."""
    return bench_proxy.measure(Target(method, target, pid), method, bodies, callers, seconds, rate=rate)


def drain(standin: Standin, understudy: Proxy) -> dict[str, float]:
    """Bring the upstream back and wait until it has everything."""
    status = understudy.status()
    pending, since = status["pending"], understudy.changes()[-1].at
    standin.start()
    understudy.until_drained()
    changes = understudy.changes()
    begun = after(changes, "draining", since)
    seconds = after(changes, "remote", begun) - begun
    return {"entries": pending, "seconds": round(seconds, 3), "entries_per_second": round(pending / seconds, 1)}


def run_round(work: Path, bodies: dict[str, Path], seconds: float) -> dict[str, Any]:
    """Online, offline, at half the rate, the drain, straight; entries that go one by one; batches."""
    result: dict[str, Any] = {}
    with Standin(work / "qdrant") as standin:
        create(standin, "single", SINGLE_SIZE)
        create(standin, "batch", BATCH_SIZE)
        with proxy(standin.address, work / "proxy") as understudy:
            address, pid = understudy.address, understudy.pid
            result["online"] = load(address, pid, bodies["single"], seconds)
            standin.kill()
            understudy.until("local")
            result["offline"] = load(address, pid, bodies["single"], seconds)
            half = result["offline"]["calls_per_second"] / 2
            result["offline, half the rate"] = load(address, pid, bodies["single"], seconds, rate=half)
            result["drain"] = drain(standin, understudy)
            for callers in (1, CALLERS):
                result[f"direct, {callers}"] = load(standin.address, None, bodies["single"], seconds, callers=callers)
            standin.kill()
            understudy.until("local")
            load(address, pid, bodies["payload"], seconds / 2, method=SET_PAYLOAD)
            result["drain one by one"] = drain(standin, understudy)
            result["direct, one by one"] = load(
                standin.address, None, bodies["payload"], seconds / 2, method=SET_PAYLOAD, callers=1
            )
            standin.kill()
            understudy.until("local")
            result["batches"] = load(address, pid, bodies["batch"], seconds)
            result["batches"]["points_per_second"] = result["batches"]["calls_per_second"] * BATCH_POINTS
    return result


def measure(work: Path, *, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """All rounds."""
    work.mkdir(parents=True)
    plain: dict[str, Sequence[bytes]] = {
        "single": upserts("single", SINGLES, 1, SINGLE_SIZE),
        "batch": upserts("batch", BATCHES, BATCH_POINTS, BATCH_SIZE),
        "payload": payloads("single", PAYLOADS),
    }
    bodies = {name: write_bodies(work / f"{name}.hex", list(each)) for name, each in plain.items()}
    found = []
    for number in range(rounds):
        place = work / f"round-{number}"
        found.append(run_round(place, bodies, seconds))
        shutil.rmtree(place)
    return found
