"""Random requests of one tenant, carried out by an engine that nobody here wrote, beside the data of another.

Reads: the answer is the same whatever the other tenant has. Writes: the other tenant's points are the same afterwards.
A failing case is its seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.config import Tenancy
from server.rpc import METHODS, Call, Code, Kind, Reply, Scope
from server.tenancy import TenancyLayer
from tests.pure.tenancy_requests import KEY, UUIDS, Maker
from tests.upstream import differences
from tests.upstream.engine import Engine
from tests.upstream.refusal import Refused

SETTINGS = Tenancy(enabled=True)
POINTS = "/qdrant.Points/"
READS = [
    path.removeprefix(POINTS) for path, row in METHODS.items() if path.startswith(POINTS) and row.kind is Kind.READ
]
WRITES = [
    path.removeprefix(POINTS)
    for path, row in METHODS.items()
    if path.startswith(POINTS) and row.kind is Kind.WRITE and row.scope is Scope.POINTS
]
SEEDS = 40
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")


@pytest.fixture(autouse=True, scope="module")
def local_mode_as_it_was() -> Iterator[None]:
    """The engine changes rules of local mode in this process; other tests compare with local mode as it is."""
    yield
    differences.uninstall()


class EngineBackend:
    """The engine as a `rpc.Backend`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.engine = Engine(directory)

    async def handle(self, call: Call) -> Reply:
        return self.answer(call.method, call.body)

    def answer(self, method: str, body: bytes) -> Reply:
        try:
            response = self.engine.answer(method, METHODS[method].request.FromString(body))
        except Refused as refused:
            return Reply(code=Code(refused.code.value[0]), details=refused.text)
        response.time = 0.0  # type: ignore[attr-defined]
        response.ClearField("usage") if "usage" in response.DESCRIPTOR.fields_by_name else None
        return Reply(response.SerializeToString(deterministic=True))

    def must(self, method: str, request: Any) -> Reply:
        reply = self.answer(method, request.SerializeToString())
        assert reply.is_ok, reply
        return reply

    def everything(self, collection: str) -> dict[str, bytes]:
        request = points.ScrollPoints(collection_name=collection, limit=10_000)
        request.with_vectors.enable = True
        response = points.ScrollResponse.FromString(self.must(POINTS + "Scroll", request).body)
        return {str(point.id): point.SerializeToString(deterministic=True) for point in response.result}


def create(backend: EngineBackend, *, foreign: int) -> None:
    """Collections with the points of A, and those of others as `foreign` says: 0 = none."""
    for name in ("main", "other"):
        request = collections.CreateCollection(collection_name=name)
        request.vectors_config.params.size = 3
        request.vectors_config.params.distance = collections.Dot
        backend.must("/qdrant.Collections/Create", request)
        index = points.CreateFieldIndexCollection(
            collection_name=name, field_type=points.FieldTypeInteger, field_name="n"
        )
        backend.must(POINTS + "CreateFieldIndex", index)
        for field in ("city", KEY):
            index = points.CreateFieldIndexCollection(collection_name=name, field_type=points.FieldTypeKeyword)
            index.field_name = field
            backend.must(POINTS + "CreateFieldIndex", index)
        fill(backend, name, foreign)


def fill(backend: EngineBackend, name: str, foreign: int) -> None:
    own = Maker(1)
    upsert = points.UpsertPoints(collection_name=name, wait=True)
    last = 7 if name == "main" else 4
    for number in range(1, last + 1):
        _point(upsert, own, "A", common.PointId(num=number))
    _point(upsert, own, "A", common.PointId(uuid=UUIDS[0]))
    if foreign:
        others = Maker(100 + foreign)
        for number in range(last + 1, 16):
            if foreign == 1 or number % 3:
                _point(upsert, others, "B" if number < 14 else None, common.PointId(num=number))
        _point(upsert, others, "B", common.PointId(uuid=UUIDS[1]))
    backend.must(POINTS + "Upsert", upsert)


def _point(upsert: points.UpsertPoints, maker: Maker, tenant: str | None, point_id: common.PointId) -> None:
    point = upsert.points.add(id=point_id)
    point.vectors.vector.dense.data.extend(maker.vector())
    point.payload["city"].string_value = maker.one_of("Rome", "Oslo", "Bern")
    point.payload["n"].integer_value = maker.chooser.randint(0, 12)
    if tenant:
        point.payload[KEY].string_value = tenant


def call_of(name: str, request: Any, tenant: str = "A") -> Call:
    return Call(POINTS + name, request.SerializeToString(), (("x-tenant-id", tenant),))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EngineBackend]]:
    """The same data of A, beside three different others."""
    made = []
    for foreign in (1, 2, 0):
        backend = EngineBackend(tmp_path_factory.mktemp(f"world{foreign}"))
        create(backend, foreign=foreign)
        made.append(backend)
    yield made
    for backend in made:
        backend.engine.close()


def test_the_requests_do_reach_across_when_nothing_confines_them(worlds: list[EngineBackend]) -> None:
    """The generator is worth something: unconfined, each method answers differently in different worlds."""
    for name in READS:
        different = 0
        for seed in range(40):
            request = Maker(seed).read(name)
            if getattr(request, "with_lookup", None):
                request.ClearField("with_lookup")
            body = request.SerializeToString()
            different += len({world.answer(POINTS + name, body).body for world in worlds}) > 1
        assert different > 5, name


@pytest.mark.parametrize("name", READS)
async def test_no_read_depends_on_what_others_have(worlds: list[EngineBackend], name: str) -> None:
    codes: Counter[Code] = Counter()
    for seed in range(SEEDS):
        request = Maker(seed).read(name)
        replies = [await TenancyLayer(world, SETTINGS).handle(call_of(name, request)) for world in worlds]
        first = replies[0]
        for other in replies[1:]:
            assert (other.code, other.details) == (first.code, first.details), f"seed {seed}: {request}"
            assert tidy(name, other) == tidy(name, first), f"seed {seed}: {request}"
        codes[first.code] += 1
    # Enough of the requests were carried out for this to mean something.
    assert codes[Code.OK] >= SEEDS // 5, codes


def tidy(name: str, reply: Reply) -> Any:
    """An answer with points of one score in the order of their ids, for the engine orders them as it likes."""
    if not reply.is_ok or name not in ("Query", "QueryBatch", "QueryGroups", "Discover", "DiscoverBatch"):
        return reply.body
    kind: Any = getattr(points, f"{name}Response")
    response = kind.FromString(reply.body)
    if name == "QueryGroups":
        return sorted((str(group.id), str(group.lookup), _sorted(group.hits)) for group in response.result.groups)
    if name.endswith("Batch"):
        return [_sorted(result.result) for result in response.result]
    return _sorted(response.result)


def _sorted(hits: Any) -> list[tuple[float, str]]:
    return sorted((-hit.score, hit.SerializeToString(deterministic=True).hex()) for hit in hits)


@pytest.mark.parametrize("name", WRITES)
async def test_no_write_changes_what_others_have(tmp_path: Path, name: str) -> None:
    world = EngineBackend(tmp_path)
    create(world, foreign=1)
    layer = TenancyLayer(world, SETTINGS)
    codes: Counter[Code] = Counter()
    changed = 0
    try:
        others = foreign_points(world)
        for seed in range(SEEDS):
            if seed % 8 == 0:
                fill_own(world)
            before = world.everything("main")
            request = Maker(seed).write(name)
            reply = await layer.handle(call_of(name, request))
            codes[reply.code] += 1
            after = world.everything("main")
            changed += before != after
            assert foreign_points(world) == others, f"seed {seed}: {request} → {reply}"
            if not reply.is_ok and reply.code is Code.PERMISSION_DENIED:
                assert before == after
    finally:
        world.engine.close()
    assert codes[Code.OK] >= SEEDS // 5, codes
    assert changed >= SEEDS // 10, (changed, codes)


def fill_own(world: EngineBackend) -> None:
    own = Maker(1)
    upsert = points.UpsertPoints(collection_name="main", wait=True)
    for number in range(1, 8):
        _point(upsert, own, "A", common.PointId(num=number))
    world.must(POINTS + "Upsert", upsert)


def foreign_points(world: EngineBackend) -> dict[str, bytes]:
    """Everything that is not A's: if a write changed a tenant, or left a point without one, this changes."""
    found = {}
    for name in ("main", "other"):
        for point_id, raw in world.everything(name).items():
            point = points.RetrievedPoint.FromString(raw)
            if point.payload[KEY].string_value != "A":
                found[f"{name} {point_id}"] = raw
    return found


async def test_a_sequence_of_everything_by_two_tenants_keeps_them_apart(tmp_path: Path) -> None:
    """Both tenants write; what each sees is what it would see alone in its own engine."""
    shared = EngineBackend(tmp_path / "shared")
    alone = {tenant: EngineBackend(tmp_path / tenant) for tenant in "AB"}
    try:
        create(shared, foreign=0)
        for backend in alone.values():
            create(backend, foreign=0)
        for backend in (shared, alone["B"]):
            backend.must(POINTS + "Delete", _all_of_main())
        alone["A"].must(POINTS + "Delete", _all_of_main())
        layers = {tenant: TenancyLayer(alone[tenant], SETTINGS) for tenant in "AB"}
        layer = TenancyLayer(shared, SETTINGS)
        for seed in range(80):
            maker = Maker(seed)
            tenant, name = maker.one_of("A", "B"), maker.one_of(*WRITES)
            call = call_of(name, maker.write(name), tenant)
            reply = await layer.handle(call)
            if "is not this tenant's" not in reply.details:
                assert (await layers[tenant].handle(call)).code is reply.code, f"seed {seed}"
            for who in "AB":
                assert await seen(layer, who) == await seen(layers[who], who), f"seed {seed}"
    finally:
        for backend in (shared, *alone.values()):
            backend.engine.close()


def _all_of_main() -> points.DeletePoints:
    request = points.DeletePoints(collection_name="main", wait=True)
    request.points.filter.SetInParent()
    return request


async def seen(layer: TenancyLayer, tenant: str) -> bytes:
    request = points.ScrollPoints(collection_name="main", limit=10_000)
    request.with_vectors.enable = True
    reply = await layer.handle(call_of("Scroll", request, tenant))
    assert reply.is_ok, reply
    return reply.body
