"""Ten thousand pending entries with some that Qdrant refuses among them: the real log, the real channel, the stand-in.

Every class of poison in the facts, each with what mends it: vectors of another size, a collection that is gone, a
payload for a point that was deleted remotely, a collection whose name is taken, an alias that is not there; and vectors
of a name that the collection does not have.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.message import Message
from qdrant_client import QdrantClient, models

from generated.qdrant import collections_pb2
from server import config
from server.clock import SystemClock
from server.health.breaker import Breaker
from server.replay import Replayer
from server.replay.requeue import Requeue
from server.rpc import METHODS, WAL_KINDS, Call, Code, Reply
from server.telemetry import Telemetry
from server.upstream import Upstream
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.record import EntryState, NewRecord
from tests.upstream.process import Standin

from .fakes import COLLECTIONS, create, entry, point, set_payload, upsert

ENTRIES = 10_000
IN_FLIGHT = 256
KINDS = ("size", "gone", "missing", "taken", "alias", "name")
Request = tuple[str, Message]


def rename(old: str, new: str) -> Request:
    """An alias takes another name."""
    action = collections_pb2.AliasOperations(
        rename_alias=collections_pb2.RenameAlias(old_alias_name=old, new_alias_name=new)
    )
    return COLLECTIONS + "UpdateAliases", collections_pb2.ChangeAliases(actions=[action])


def kind_of(number: int) -> str:
    """The class of a poison."""
    return KINDS[number % len(KINDS)]


def numbers(kind: str, count: int) -> range:
    """Which of `count` poisons are of this class."""
    return range(KINDS.index(kind), count, len(KINDS))


def poisons(count: int) -> list[list[Request]]:
    """`count` entries that are refused, of one class after the other; each with what follows it."""
    made: list[list[Request]] = []
    for number in range(count):
        match kind_of(number):
            case "size":
                # Among the others, so that calls for many entries are refused for it. A later write follows it.
                at = 1_000_000 + number
                made.append([upsert(point(at, (1.0, 2.0, 3.0), v=1)), upsert(point(at, v=2))])
            case "gone":
                made.append([upsert(point(number, v=1), collection="gone")])
            case "missing":
                made.append([set_payload(number, collection="p", v=1), upsert(point(number, v=2), collection="p")])
            case "taken":
                name = f"taken{number}"
                made.append([create(name), upsert(point(1, v=1), collection=name)])
            case "alias":
                made.append([rename(f"old{number}", f"new{number}")])
            case _:
                stranger = point(2_000_000 + number, ())
                stranger.vectors.vectors.vectors["stranger"].dense.data[:] = 1.0, 2.0
                made.append([upsert(stranger)])
    return made


def expected_codes(count: int) -> Counter[str]:
    """How many entries are in quarantine for each reason; "follows" for those that only follow."""
    found = Counter[str]()
    for number in range(count):
        match kind_of(number):
            case "size":
                found.update(("INVALID_ARGUMENT", "follows"))
            case "gone":
                # The first one says that the collection is gone, the others follow it.
                found["NOT_FOUND" if number == KINDS.index("gone") else "follows"] += 1
            case "missing":
                found.update(("NOT_FOUND", "follows"))
            case "taken":
                found.update(("ALREADY_EXISTS", "follows"))
            case "alias":
                found["NOT_FOUND"] += 1
            case _:
                found["INVALID_ARGUMENT"] += 1
    return found


def workload(count: int) -> list[Request]:
    """Upserts of different points, with the poison spread evenly among them; what follows it comes somewhat later."""
    bad = poisons(count)
    good = [upsert(point(number, v=number)) for number in range(ENTRIES - sum(map(len, bad)))]
    step = len(good) // (len(bad) + 1)
    made: list[Request] = []
    followers: list[Request] = []
    for number, each in enumerate(good):
        made.append(each)
        if number % step == step // 2:
            made.extend(followers)
            followers = []
        if bad and number % step == step - 1:
            first, *followers = bad.pop(0)
            made.append(first)
    return made


class Counted:
    """A channel that counts its calls."""

    def __init__(self, inner: Upstream) -> None:
        self._inner = inner
        self.calls = 0

    async def handle(self, call: Call) -> Reply:
        """See rpc.Backend."""
        self.calls += 1
        return await self._inner.handle(call)


@asynccontextmanager
async def opened(directory: Path, requests: list[Request]) -> AsyncIterator[Log]:
    """A log with these entries pending."""
    log = Log.open(directory, disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds=frozenset(WAL_KINDS))
    try:
        for first in range(0, len(requests), IN_FLIGHT):
            bodies = [entry(request) for request in requests[first : first + IN_FLIGHT]]
            await asyncio.gather(
                *(
                    log.append(NewRecord(METHODS[body.method].wal_kind, EntryState.PENDING, body.SerializeToString()))
                    for body in bodies
                )
            )
        yield log
    finally:
        await log.close()


async def drain(log: Log, channel: Counted) -> float:
    """Replay everything; how long it took."""
    clock = SystemClock()
    replayer = Replayer(log, channel, Breaker(), config.Replay(), clock, Telemetry.silent(), lambda: (), WAL_KINDS)
    replayer.upstream_up = True
    began = clock.monotonic()
    assert await replayer.drain_now()
    return clock.monotonic() - began


def size_of(client: QdrantClient, name: str, size: int) -> None:
    """A collection, made anew."""
    client.delete_collection(name)
    client.create_collection(name, models.VectorParams(size=size, distance=models.Distance.DOT))


def held(client: QdrantClient, name: str) -> dict[int, int]:
    """The value of each point."""
    records, _ = client.scroll(name, limit=2 * ENTRIES)
    return {int(record.id): int((record.payload or {})["v"]) for record in records}


def mend(client: QdrantClient, count: int) -> None:
    """Take the cause of each refusal away, but for vectors of another size: those fit nowhere."""
    size_of(client, "gone", 2)
    for number in range(count):
        match kind_of(number):
            case "missing":
                client.upsert("p", [models.PointStruct(id=number, vector=[1.0, 2.0], payload={"v": 0})])
            case "taken":
                client.delete_collection(f"taken{number}")
            case "alias":
                alias = models.CreateAlias(collection_name="c", alias_name=f"old{number}")
                client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])


def told(log: Log) -> Counter[str]:
    """What is in quarantine, by reason."""
    kept = log.quarantined()
    assert all(item.details for item in kept)
    return Counter("follows" if item.details.startswith("follows seq") else Code(item.code).name for item in kept)


def check(client: QdrantClient, log: Log, count: int) -> None:
    """All others are applied, what is refused is kept with its reason, what follows it too."""
    assert held(client, "c") == {n: n for n in range(ENTRIES - sum(map(len, poisons(count))))}
    assert held(client, "p") == {}
    assert told(log) == expected_codes(count)


async def check_retry(client: QdrantClient, log: Log, channel: Counted, count: int) -> None:
    """Once the causes are mended a retry applies everything; what fits nowhere comes back with its reason."""
    mend(client, count)
    kept = [item.seq for item in log.quarantined()]
    again = await Requeue(log, WalLimits(), WAL_KINDS).retry(None, force=False)
    assert sorted(again) == kept
    await drain(log, channel)
    unfit = expected_codes(count)["INVALID_ARGUMENT"]
    assert told(log) == +Counter({"INVALID_ARGUMENT": unfit, "follows": len(numbers("size", count))})
    assert held(client, "gone") == dict.fromkeys(numbers("gone", count), 1)
    assert held(client, "p") == dict.fromkeys(numbers("missing", count), 2)
    for number in numbers("taken", count):
        assert held(client, f"taken{number}") == {1: 1}
    aliases = {one.alias_name for one in client.get_aliases().aliases}
    assert {f"new{number}" for number in numbers("alias", count)} <= aliases


@pytest.mark.timeout(240)
async def test_poison_holds_up_nobody_but_its_followers(
    shared_standin: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = shared_standin.client()
    upstream = Upstream(shared_standin.address, clock=SystemClock())
    seconds: dict[int, float] = {}
    calls: dict[int, int] = {}
    for count in (0, 1, 100):
        for name in ("c", "p"):
            size_of(client, name, 2)
        client.delete_collection("gone")
        for number in numbers("taken", count):
            size_of(client, f"taken{number}", 3)
        requests = workload(count)
        assert len(requests) == ENTRIES
        async with opened(tmp_path / str(count), requests) as log:
            channel = Counted(upstream)
            seconds[count] = await drain(log, channel)
            calls[count] = channel.calls
            check(client, log, count)
            await check_retry(client, log, channel, count)
    await upstream.close()
    client.close()
    with capsys.disabled():
        for count in (0, 1, 100):
            later = seconds[count] - seconds[0]
            print(
                f"\n{ENTRIES} entries, {count} refused: {seconds[count]:.2f} s ({later:+.2f} s), {calls[count]} calls"
            )
    # A call for many is refused, then one goes for those before the odd one and one for it; a create or a rename is
    # looked up, and whatever is of another kind ends a call early.
    for count in (1, 100):
        assert calls[count] - calls[0] <= count * 6
