"""Chroma's process and its files suffer random faults under load: no client notices, no answer is wrong, it comes back.

The seed is printed, and `UNDERSTUDY_TEST_SEED` sets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from tests.processes import children_of, send
from tests.system.understudy import Understudy

SIZE = 32
STILL_POINTS = 1300
MOVING_POINTS = 150
LIMIT = 10
TIE = 1e-6
# Two of the faults end the replica as well, by SIGTERM; it may take eight seconds to let go of an index that hangs.
DEADLINE_SECONDS = 30
SEARCHERS = 2
PAUSE_SECONDS = 0.1
LOOK_SECONDS = 0.1
# What Chroma has been seen to make of it.
GROWN_BYTES = 76 * 10**9
# The index serves whenever it can, for every collection.
ALWAYS = {"UNDERSTUDY_REPLICA_EXACT_BELOW_BYTES": "0", "UNDERSTUDY_REPLICA_RESIDENT_BYTES": "0"}
SEED = int(os.environ.get("UNDERSTUDY_TEST_SEED", random.randrange(2**32)))


@dataclass(slots=True)
class Answers:
    """What the clients got, all of it checked."""

    checked: int = 0
    writes: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0


class Model:
    """The points of one collection, searched exactly in float64."""

    def __init__(self) -> None:
        self.vectors: dict[int, np.ndarray[Any, Any]] = {}

    def differences(self, query: np.ndarray[Any, Any], only_even: bool, hits: list[models.ScoredPoint]) -> str:
        """What is wrong with an answer; "" when nothing is."""
        ids = np.asarray(sorted(one for one in self.vectors if not only_even or one % 2 == 0))
        rows = np.asarray([self.vectors[one] for one in ids], dtype=np.float64)
        distances = np.linalg.norm(rows - query, axis=1)
        best = np.sort(distances)[:LIMIT]
        found = [hit.id for hit in hits]
        if len(set(found)) != len(best) or not set(found) <= set(ids.tolist()):
            return f"{found} of {len(ids)} points"
        # Float32 cannot tell points that are equally far to seven digits, so either may come first.
        theirs = np.asarray([distances[np.searchsorted(ids, one)] for one in found])
        if not np.allclose(theirs, best, rtol=TIE):
            return f"{found} instead of {ids[np.argsort(distances)[:LIMIT]].tolist()}"
        if not np.allclose([hit.score for hit in hits], best, rtol=TIE):
            return f"scores {[hit.score for hit in hits]} instead of {best.tolist()}"
        return ""


@dataclass(slots=True)
class Client:
    """One client that goes on until it is told to stop. A writer reads its own writes."""

    client: AsyncQdrantClient
    collection: str
    model: Model
    answers: Answers
    seed: int
    writes: bool = False
    stopped: bool = False

    async def run(self) -> None:
        """Write and search."""
        rng = random.Random(self.seed)
        numbers = np.random.default_rng(self.seed)
        while not self.stopped:
            try:
                if self.writes:
                    await self._write(rng, numbers)
                await self._search(rng, numbers)
            except Exception as error:  # noqa: BLE001 - whatever reaches the client is what this counts
                self.answers.errors.append(repr(error))
            await asyncio.sleep(rng.random() * PAUSE_SECONDS)

    async def _write(self, rng: random.Random, numbers: np.random.Generator) -> None:
        if len(self.model.vectors) > MOVING_POINTS // 2 and rng.random() < 0.3:
            gone = rng.sample(sorted(self.model.vectors), 2)
            await self.client.delete(self.collection, gone, wait=True)
            for one in gone:
                del self.model.vectors[one]
        else:
            new = {one: vector(numbers) for one in rng.sample(range(MOVING_POINTS), 2)}
            await self.client.upsert(self.collection, [point(one, each) for one, each in new.items()], wait=True)
            self.model.vectors.update(new)
        self.answers.writes += 1

    async def _search(self, rng: random.Random, numbers: np.random.Generator) -> None:
        query, only_even = vector(numbers), rng.random() < 0.3
        even = models.Filter(must=[models.FieldCondition(key="even", match=models.MatchValue(value=True))])
        began = time.monotonic()
        answer = await self.client.query_points(
            self.collection, query.tolist(), limit=LIMIT, query_filter=even if only_even else None
        )
        self.answers.slowest_seconds = max(self.answers.slowest_seconds, time.monotonic() - began)
        self.answers.checked += 1
        if wrong := self.model.differences(query, only_even, answer.points):
            self.answers.wrong.append(wrong)


def vector(numbers: np.random.Generator) -> np.ndarray[Any, Any]:
    return numbers.normal(size=SIZE).astype(np.float32)


def point(number: int, values: np.ndarray[Any, Any]) -> models.PointStruct:
    return models.PointStruct(id=number, vector=values.tolist(), payload={"even": number % 2 == 0})


class Victim:
    """The index process of a proxy, and its directory."""

    def __init__(self, proxy: Understudy) -> None:
        self.proxy = proxy
        self.directory = proxy.data / "store" / "index"

    async def present(self) -> int:
        """The process; waits for one."""
        await becomes(lambda: self.pid() != 0, 90, "an index process")
        return self.pid()

    def pid(self) -> int:
        """The process; 0 while there is none."""
        return _child(self.replica_pid(), b"server.replica.index\0")

    def replica_pid(self) -> int:
        """The process above it; 0 while there is none."""
        return _child(self.proxy.pid, b"server.replica\0")

    def is_ready(self) -> bool:
        """Whether all is indexed."""
        found = self.proxy.status()["collections"]
        return len(found) == 2 and all(one["index_state"] == "ready" for one in found)

    def files(self) -> list[Path]:
        """What Chroma wrote."""
        return sorted(path for path in (self.directory / "chroma").rglob("*") if path.is_file())

    async def end_replica(self) -> None:
        """SIGTERM: it closes its index and seals it, whatever happened to the files."""
        await becomes(lambda: self.replica_pid() != 0, 90, "a replica process")
        strike(self.replica_pid(), signal.SIGTERM)


def _child(parent: int, module: bytes) -> int:
    """The child that runs a module; 0 when there is none."""
    for child in children_of(parent) if parent else ():
        with contextlib.suppress(OSError):
            if module in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return 0


async def becomes(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition, without keeping anybody busy."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"after {seconds} s still not true: {what}"
        await asyncio.sleep(LOOK_SECONDS)


Fault = Callable[[Victim, int, random.Random], Awaitable[None]]


def strike(pid: int, number: signal.Signals) -> None:
    """Send the signal, unless the process has ended just now, by itself."""
    with contextlib.suppress(ProcessLookupError):
        send(pid, number)


async def another(victim: Victim, pid: int) -> None:
    """Wait for a new process."""
    await becomes(lambda: victim.pid() not in (0, pid), 90, "another index process")


async def killed(victim: Victim, pid: int, rng: random.Random) -> None:
    strike(pid, signal.SIGKILL)


async def killed_while_it_builds(victim: Victim, pid: int, rng: random.Random) -> None:
    """Anywhere between its start and the end of its last flush."""
    strike(pid, signal.SIGKILL)
    await another(victim, pid)
    await asyncio.sleep(rng.random() * 3)
    strike(victim.pid() or pid, signal.SIGKILL)


async def killed_at_a_flush(victim: Victim, pid: int, rng: random.Random) -> None:
    """Just when the files of a graph appear."""
    strike(pid, signal.SIGKILL)
    await another(victim, pid)
    new = await victim.present()
    await becomes(lambda: any(path.suffix == ".bin" for path in victim.files()) or victim.is_ready(), 90, "a flush")
    strike(new, signal.SIGKILL)


async def stopped(victim: Victim, pid: int, rng: random.Random) -> None:
    strike(pid, signal.SIGSTOP)


async def removed(victim: Victim, pid: int, rng: random.Random) -> None:
    """The process may make files meanwhile, which keeps a directory from going at the first attempt."""
    gone = victim.directory.with_name(f"removed-{rng.getrandbits(64)}")
    victim.directory.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


async def grown(victim: Victim, pid: int, rng: random.Random) -> None:
    lists = [path for path in victim.files() if path.name == "link_lists.bin"]
    path = rng.choice(lists) if lists else victim.directory / "chroma" / "link_lists.bin"
    with path.open("ab") as file:
        file.truncate(GROWN_BYTES)


async def flipped(victim: Victim, pid: int, rng: random.Random) -> None:
    """The replica is told to end afterwards: what it seals is damaged already."""
    path = rng.choice([path for path in victim.files() if path.stat().st_size])
    with path.open("r+b") as file:
        for _ in range(rng.choice((1, 8, 64))):
            at = rng.randrange(path.stat().st_size)
            file.seek(at)
            [old] = file.read(1)
            file.seek(at)
            file.write(bytes([old ^ (1 << rng.randrange(8))]))
    await victim.end_replica()


async def truncated(victim: Victim, pid: int, rng: random.Random) -> None:
    path = rng.choice([path for path in victim.files() if path.stat().st_size])
    os.truncate(path, rng.randrange(path.stat().st_size))
    await victim.end_replica()


FAULTS: tuple[Fault, ...] = (
    killed,
    killed_while_it_builds,
    killed_at_a_flush,
    stopped,
    removed,
    grown,
    flipped,
    truncated,
)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.timeout(3600)
async def test_faults_of_the_index_are_not_noticed(tmp_path: Path, count: int) -> None:
    print(f"UNDERSTUDY_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    # Every kind comes up, in any order.
    chosen = [FAULTS[number % len(FAULTS)] for number in range(count)]
    rng.shuffle(chosen)
    with Understudy(tmp_path / "understudy", None, **ALWAYS) as proxy:
        client = proxy.client(timeout=60)
        still, moving = Model(), Model()
        await asyncio.to_thread(load, client, still, moving)
        victim = Victim(proxy)
        await becomes(victim.is_ready, 90, "the index gets ready")
        answers, crowd = Answers(), []
        for number in range(SEARCHERS):
            crowd.append(Client(proxy.async_client(timeout=DEADLINE_SECONDS), "still", still, answers, SEED + number))
        crowd.append(
            Client(proxy.async_client(timeout=DEADLINE_SECONDS), "moving", moving, answers, SEED - 1, writes=True)
        )
        tasks = [asyncio.create_task(one.run()) for one in crowd]
        own = proxy.pid
        for number, fault in enumerate(chosen):
            # What is served from may have turned out to be damaged since the last look.
            await becomes(victim.is_ready, 90, "the index is ready")
            pid, before = await victim.present(), answers.checked
            print(f"{number}: {fault.__name__}, {answers.checked} answers checked", flush=True)
            await fault(victim, pid, rng)
            await another(victim, pid)
            await becomes(victim.is_ready, 90, f"the index is back after {fault.__name__}")
            await becomes(lambda before=before: answers.checked > before + 5, 30, "answers")
            assert (answers.wrong, answers.errors) == ([], []), f"{fault.__name__} of UNDERSTUDY_TEST_SEED={SEED}"
        for one in crowd:
            one.stopped = True
        await asyncio.gather(*tasks)
        assert (answers.wrong, answers.errors) == ([], [])
        assert proxy.pid == own
        assert sum(path.stat().st_size for path in victim.files()) < GROWN_BYTES
        print(f"{answers.checked} answers checked, the slowest took {answers.slowest_seconds:.1f} s")
        print(f"{answers.writes} writes, {count} faults")
        for one in crowd:
            await one.client.close()
        client.close()


def load(client: QdrantClient, still: Model, moving: Model) -> None:
    """Two collections; the larger one is large enough for Chroma to flush it while it is built."""
    numbers = np.random.default_rng(SEED)
    for name, model, count in (("still", still, STILL_POINTS), ("moving", moving, MOVING_POINTS)):
        client.create_collection(name, models.VectorParams(size=SIZE, distance=models.Distance.EUCLID))
        model.vectors.update({number: vector(numbers) for number in range(count)})
        points = [point(number, values) for number, values in model.vectors.items()]
        for start in range(0, count, 250):
            client.upsert(name, points[start : start + 250], wait=True)
