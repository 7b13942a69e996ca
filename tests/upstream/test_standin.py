"""The stand-in says what a measured Qdrant says, keeps its data through SIGKILL, and misbehaves when told to."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from generated.qdrant import collections_pb2 as c
from generated.qdrant import points_pb2 as p
from generated.qdrant import qdrant_common_pb2 as q
from tests.upstream.process import Standin, until

_names = (f"c{number}" for number in itertools.count())


class Wire:
    """Raw calls, so that a request is exactly what a row says."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def __call__(self, method: str, request: Any, reply: Any = None, **options: Any) -> Any:
        path = method if method.startswith("/") else f"/qdrant.Points/{method}"
        body = request if isinstance(request, bytes) else request.SerializeToString()
        answer = self.channel.unary_unary(path)(body, timeout=20, **options)
        return reply.FromString(answer) if reply else answer

    def refused(self, method: str, request: Any, **options: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self(method, request, **options)
        return caught.value.code().name, caught.value.details()


@pytest.fixture(scope="module")
def wire(shared_standin: Standin) -> Iterator[Wire]:
    wire = Wire(shared_standin.address)
    yield wire
    wire.channel.close()


@pytest.fixture(scope="module")
def client(shared_standin: Standin) -> Iterator[QdrantClient]:
    client = shared_standin.client()
    yield client
    client.close()


def make(client: QdrantClient, size: int = 2, distance: models.Distance = models.Distance.DOT) -> str:
    name = next(_names)
    client.create_collection(name, models.VectorParams(size=size, distance=distance))
    return name


def num(value: int) -> q.PointId:
    return q.PointId(num=value)


def named(name: str, *values: float) -> p.Vectors:
    vector = p.Vector(dense=p.DenseVector(data=values))
    return p.Vectors(vectors=p.NamedVectors(vectors={name: vector}))


def dense(*values: float) -> p.Vectors:
    return p.Vectors(vector=p.Vector(dense=p.DenseVector(data=values)))


NULLS = [None, ..., [], [None], [1, None], "x", ["x", "y"], {"b": 1}, [None, None], "", "Night sky"]


@pytest.fixture(scope="module")
def nulls(client: QdrantClient) -> str:
    name = make(client)
    client.upsert(
        name,
        [
            models.PointStruct(id=number, vector=[1.0, 0.0], payload={} if value is ... else {"a": value})
            for number, value in enumerate(NULLS, 1)
        ],
    )
    return name


def field(**test: Any) -> q.Condition:
    return q.Condition(field=q.FieldCondition(key="a", **test))


CONDITIONS = [
    (q.Condition(is_null=q.IsNullCondition(key="a")), {1}),
    (q.Condition(is_empty=q.IsEmptyCondition(key="a")), {1, 2, 3}),
    (field(is_empty=True), {1, 2, 3}),
    (field(is_null=True), {1, 4, 5, 9}),
    (field(is_null=False), {2, 3, 6, 7, 8, 10, 11}),
    (field(is_empty=False), set(range(4, 12))),
    (field(values_count=q.ValuesCount(gte=0)), set(range(1, 12)) - {2}),
    (field(values_count=q.ValuesCount(lt=1)), {1, 3}),
    (field(values_count=q.ValuesCount(lte=1)), {1, 3, 4, 6, 8, 10, 11}),
    (field(values_count=q.ValuesCount(gte=2)), {5, 7, 9}),
    (field(match=q.Match(except_keywords=q.RepeatedStrings(strings=["x"]))), {5, 7, 8, 10, 11}),
    (field(match=q.Match(except_keywords=q.RepeatedStrings(strings=["x", "y"]))), {5, 8, 10, 11}),
    (field(match=q.Match(keywords=q.RepeatedStrings())), set()),
    (field(match=q.Match(text="ig")), {11}),
    (field(match=q.Match(text="night")), set()),
    (q.Condition(), set(range(1, 12))),
]


@pytest.mark.parametrize(("condition", "ids"), CONDITIONS, ids=[str(n) for n in range(len(CONDITIONS))])
def test_a_condition_without_an_index_selects_what_a_server_selects(
    wire: Wire, nulls: str, condition: q.Condition, ids: set[int]
) -> None:
    request = p.ScrollPoints(collection_name=nulls, filter=q.Filter(must=[condition]), limit=100)
    assert {point.id.num for point in wire("Scroll", request, p.ScrollResponse).result} == ids


@pytest.mark.parametrize(
    ("kind", "condition", "ids"),
    [
        (p.FieldTypeKeyword, q.Condition(is_null=q.IsNullCondition(key="a")), {1, 4, 5, 9}),
        (p.FieldTypeKeyword, field(match=q.Match(except_keywords=q.RepeatedStrings(strings=["x"]))), {7, 10, 11}),
        (p.FieldTypeText, field(match=q.Match(text="night")), {11}),
        (p.FieldTypeText, field(match=q.Match(text="ig")), set()),
    ],
)
def test_a_condition_with_an_index_selects_what_a_server_selects(
    wire: Wire, nulls: str, kind: p.FieldType, condition: q.Condition, ids: set[int]
) -> None:
    wire("CreateFieldIndex", p.CreateFieldIndexCollection(collection_name=nulls, field_name="a", field_type=kind))
    request = p.ScrollPoints(collection_name=nulls, filter=q.Filter(must=[condition]), limit=100)
    found = {point.id.num for point in wire("Scroll", request, p.ScrollResponse).result}
    wire("DeleteFieldIndex", p.DeleteFieldIndexCollection(collection_name=nulls, field_name="a"))
    assert found == ids


def refusals(name: str) -> dict[str, tuple[str, Any, str, str]]:
    point = p.PointStruct(id=num(1), vectors=dense(1, 2))
    invalid = "INVALID_ARGUMENT"
    missing = p.PointsSelector(points=p.PointsIdsList(ids=[num(777)]))
    return {
        "no collection": (
            "Count",
            p.CountPoints(collection_name="zz"),
            "NOT_FOUND",
            "Not found: Collection `zz` doesn't exist!",
        ),
        "dimension": (
            "Upsert",
            p.UpsertPoints(collection_name=name, points=[p.PointStruct(id=num(1), vectors=dense(1, 2, 3))]),
            invalid,
            "Wrong input: Vector dimension error: expected dim: 2, got 3",
        ),
        "dimension of a named vector": (
            "Upsert",
            p.UpsertPoints(collection_name=name, points=[p.PointStruct(id=num(1), vectors=named("", 1, 2, 3))]),
            invalid,
            "Wrong input: Vector dimension error: expected dim: 2, got 3 for vector ''",
        ),
        "dimension of an updated vector": (
            "UpdateVectors",
            p.UpdatePointVectors(collection_name=name, points=[p.PointVectors(id=num(1), vectors=named("", 1, 2, 3))]),
            invalid,
            "Wrong input: Vector dimension error: expected dim: 2, got 3",
        ),
        "empty vector": (
            "Upsert",
            p.UpsertPoints(collection_name=name, points=[p.PointStruct(id=num(1), vectors=dense())]),
            invalid,
            "Wrong input: points[0].vector.vector: dense vector must not be empty",
        ),
        "no vectors": (
            "Upsert",
            p.UpsertPoints(collection_name=name, points=[p.PointStruct(id=num(1))]),
            invalid,
            "Expected some vectors",
        ),
        "no id": (
            "Upsert",
            p.UpsertPoints(collection_name=name, points=[p.PointStruct(vectors=dense(1, 2))]),
            invalid,
            "Empty ID is not allowed",
        ),
        "bad uuid": (
            "Upsert",
            p.UpsertPoints(collection_name=name, points=[p.PointStruct(id=q.PointId(uuid="x"), vectors=dense(1, 2))]),
            invalid,
            "Unable to parse UUID: x",
        ),
        "no points": ("Upsert", p.UpsertPoints(collection_name=name), invalid, "Bad request: Empty update request"),
        "unknown vector": (
            "Query",
            p.QueryPoints(
                collection_name=name, using="zz", query=p.Query(nearest=p.VectorInput(dense=p.DenseVector(data=[1, 2])))
            ),
            invalid,
            "Wrong input: Not existing vector name error: zz",
        ),
        "unknown vector deleted": (
            "DeleteVectors",
            p.DeletePointVectors(
                collection_name=name, points_selector=missing, vectors=p.VectorsSelector(names=["zz"])
            ),
            invalid,
            "Wrong input: Not existing vector name error: zz",
        ),
        "query by a missing id": (
            "Query",
            p.QueryPoints(collection_name=name, query=p.Query(nearest=p.VectorInput(id=num(999)))),
            "NOT_FOUND",
            "Not found: No point with id 999 found",
        ),
        "set payload of a missing id": (
            "SetPayload",
            p.SetPayloadPoints(
                collection_name=name, wait=True, points_selector=missing, payload={"a": {"integer_value": 1}}
            ),
            "NOT_FOUND",
            "Not found: No point with id 777 found",
        ),
        "empty field condition": (
            "Scroll",
            p.ScrollPoints(collection_name=name, filter=q.Filter(must=[field()])),
            invalid,
            "Validation error in body: [filter.must[0].condition_one_of.match: Validation error: At least one field "
            "condition must be specified [{}]]",
        ),
        "scroll limit 0": (
            "Scroll",
            p.ScrollPoints(collection_name=name, limit=0),
            invalid,
            "Validation error in body: [limit: value 0 invalid, must be 1 or larger]",
        ),
        "query limit 0": (
            "Query",
            p.QueryPoints(collection_name=name, limit=0),
            invalid,
            "Validation error in body: [limit: value 0 invalid, must be 1 or larger]",
        ),
        "empty batch": (
            "UpdateBatch",
            p.UpdateBatchPoints(collection_name=name),
            invalid,
            "Validation error in body: [operations: value [] invalid, must be at least 1 characters]",
        ),
        "slash": (
            "/qdrant.Collections/Create",
            c.CreateCollection(collection_name="a/b"),
            invalid,
            'Validation error in body: [collection_name: collection name cannot contain "/" char]',
        ),
        "already exists": (
            "/qdrant.Collections/Create",
            c.CreateCollection(collection_name=name),
            "ALREADY_EXISTS",
            f"Wrong input: Collection `{name}` already exists!",
        ),
        "facet without an index": (
            "Facet",
            p.FacetCounts(collection_name=name, key="zz"),
            invalid,
            "Wrong input: No appropriate index for faceting: `zz`. ",
        ),
        "order without an index": (
            "Scroll",
            p.ScrollPoints(collection_name=name, order_by=p.OrderBy(key="q")),
            invalid,
            "Wrong input: No range index for `order_by` key: `q`. ",
        ),
        "unknown method": ("/qdrant.Points/Nothing", p.UpsertPoints(points=[point]), "UNIMPLEMENTED", ""),
        "undecodable": ("Upsert", b"\xff\xff\xff", "INTERNAL", "failed to decode Protobuf message: "),
    }


@pytest.mark.parametrize("row", list(refusals("")))
def test_refuses_with_the_words_of_a_server(wire: Wire, client: QdrantClient, row: str) -> None:
    name = make(client)
    method, request, code, text = refusals(name)[row]
    given, details = wire.refused(method, request)
    assert given == code
    assert details.startswith(text)
    assert client.count(name).count == 0


def test_answers_that_are_no_errors(wire: Wire, client: QdrantClient) -> None:
    name = make(client)
    missing = p.PointsSelector(points=p.PointsIdsList(ids=[num(777)]))
    nan = p.UpsertPoints(
        collection_name=name, wait=True, points=[p.PointStruct(id=num(1), vectors=dense(float("nan"), 1))]
    )
    first = wire("Upsert", nan, p.PointsOperationResponse)
    assert (first.result.status, first.result.operation_id) == (p.Completed, 0)
    assert first.time > 0
    acknowledged = wire(
        "SetPayload", p.SetPayloadPoints(collection_name=name, points_selector=missing), p.PointsOperationResponse
    )
    assert (acknowledged.result.status, acknowledged.result.operation_id) == (p.Acknowledged, 1)
    assert (
        wire(
            "Delete", p.DeletePoints(collection_name=name, points=missing, wait=True), p.PointsOperationResponse
        ).result.status
        == p.Completed
    )
    assert not wire(
        "/qdrant.Collections/Delete", c.DeleteCollection(collection_name="zz"), c.CollectionOperationResponse
    ).result
    assert client.get_collections().collections
    wire(
        "CreateFieldIndex",
        p.CreateFieldIndexCollection(collection_name=name, field_name="k", field_type=p.FieldTypeKeyword),
    )
    assert not wire("Facet", p.FacetCounts(collection_name=name, key="k", limit=0), p.FacetResponse).hits
    assert not wire("Recommend", p.RecommendPoints(collection_name=name, positive=[num(1)]), p.RecommendResponse).result


def test_partly_missing_ids_change_the_others(wire: Wire, client: QdrantClient) -> None:
    name = make(client)
    client.upsert(name, [models.PointStruct(id=1, vector=[1.0, 0.0])])
    both = p.PointsSelector(points=p.PointsIdsList(ids=[num(777), num(1)]))
    request = p.SetPayloadPoints(collection_name=name, wait=True, points_selector=both)
    request.payload["a"].integer_value = 1
    assert wire.refused("SetPayload", request)[0] == "NOT_FOUND"
    assert client.retrieve(name, [1])[0].payload == {"a": 1}


def test_nulls_in_set_payload(client: QdrantClient) -> None:
    name = make(client)
    client.upsert(name, [models.PointStruct(id=1, vector=[1.0, 0.0], payload={"z": 1})])
    client.set_payload(name, {"z": None, "q": {"w": None}}, [1])
    assert client.retrieve(name, [1])[0].payload == {"q": {"w": None}}


def test_defaults_of_reads(wire: Wire, client: QdrantClient) -> None:
    name = make(client)
    client.upsert(name, [models.PointStruct(id=n, vector=[1.0, n], payload={"n": n}) for n in range(1, 13)])
    got = wire("Get", p.GetPoints(collection_name=name, ids=[num(2), num(1), num(2), num(99)]), p.GetResponse).result
    assert [point.id.num for point in got] == [2, 1]
    assert not got[0].payload
    page = wire("Scroll", p.ScrollPoints(collection_name=name), p.ScrollResponse)
    assert [point.id.num for point in page.result] == list(range(1, 11))
    assert page.result[0].payload
    assert page.next_page_offset.num == 11
    found = wire("Query", p.QueryPoints(collection_name=name), p.QueryResponse).result
    assert [(point.id.num, point.score, len(point.payload)) for point in found] == [(n, 1.0, 0) for n in range(1, 11)]
    nearest = p.Query(nearest=p.VectorInput(dense=p.DenseVector(data=[0, 1])))
    found = wire(
        "Query", p.QueryPoints(collection_name=name, query=nearest, limit=2, score_threshold=11), p.QueryResponse
    ).result
    assert [point.id.num for point in found] == [12]
    found = wire("Search", p.SearchPoints(collection_name=name, vector=[0, 1], limit=3), p.SearchResponse).result
    assert [point.id.num for point in found] == [12, 11, 10]


def test_every_spelling_of_the_default_vector(wire: Wire, client: QdrantClient) -> None:
    name = make(client)
    named = p.Vectors(vectors=p.NamedVectors(vectors={"": p.Vector(data=[1, 2])}))
    hyphenless = uuid.uuid4()
    wire(
        "Upsert",
        p.UpsertPoints(collection_name=name, points=[p.PointStruct(id=q.PointId(uuid=hyphenless.hex), vectors=named)]),
    )
    request = p.ScrollPoints(collection_name=name, with_vectors=p.WithVectorsSelector(enable=True))
    (point,) = wire("Scroll", request, p.ScrollResponse).result
    assert point.id.uuid == str(hyphenless)
    assert list(point.vectors.vector.dense.data) == [1, 2]


def test_cosine_vectors_come_back_normalised(client: QdrantClient) -> None:
    name = make(client, distance=models.Distance.COSINE)
    client.upsert(name, [models.PointStruct(id=1, vector=[3.0, 4.0]), models.PointStruct(id=2, vector=[0.0, 0.0])])
    points, _ = client.scroll(name, with_vectors=True)
    assert [point.vector for point in points] == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


def test_collection_info_keeps_what_was_configured(client: QdrantClient) -> None:
    name = next(_names)
    client.create_collection(
        name,
        {"a": models.VectorParams(size=3, distance=models.Distance.EUCLID, on_disk=True)},
        sparse_vectors_config={"s": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        hnsw_config=models.HnswConfigDiff(m=0, payload_m=16),
        shard_number=2,
    )
    client.create_payload_index(name, "k", models.PayloadSchemaType.KEYWORD)
    client.update_collection(name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=7))
    info = client.get_collection(name)
    assert (info.config.hnsw_config.m, info.config.hnsw_config.payload_m, info.config.hnsw_config.ef_construct) == (
        0,
        16,
        100,
    )
    assert info.config.params.shard_number == 2
    assert info.config.params.vectors["a"].on_disk
    assert info.config.params.sparse_vectors["s"].modifier == models.Modifier.IDF
    assert info.config.optimizer_config.indexing_threshold == 7
    assert info.payload_schema["k"].data_type == models.PayloadSchemaType.KEYWORD
    assert info.config.wal_config.wal_capacity_mb == 32


def test_aliases(client: QdrantClient) -> None:
    name, alias = make(client), next(_names)
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))]
    )
    client.upsert(alias, [models.PointStruct(id=1, vector=[1.0, 0.0])])
    assert client.count(name).count == 1
    assert client.get_collection(alias).points_count == 1
    assert client.collection_exists(alias)
    assert [found.alias_name for found in client.get_collection_aliases(name).aliases] == [alias]
    client.delete_collection(name)
    assert not client.collection_exists(alias)


def test_gzip_requests_are_accepted(wire: Wire, client: QdrantClient) -> None:
    name = make(client)
    request = p.UpsertPoints(collection_name=name, wait=True, points=[p.PointStruct(id=num(1), vectors=dense(1, 2))])
    wire("Upsert", request, compression=grpc.Compression.Gzip)
    assert client.count(name).count == 1


def test_health_needs_no_key_and_all_else_does(standin_with_keys: Standin) -> None:
    wire = Wire(standin_with_keys.address)
    listing, create = "/qdrant.Collections/List", "/qdrant.Collections/Create"
    assert b"1.19.0" in wire("/qdrant.Qdrant/HealthCheck", b"")
    assert wire("/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
    assert wire.refused(listing, b"")[0] == "UNAUTHENTICATED"
    assert wire.refused(listing, b"", metadata=[("api-key", "wrong")])[0] == "UNAUTHENTICATED"
    request = c.CreateCollection(collection_name="k")
    for metadata in ([("api-key", "full")], [("authorization", "Bearer full")], [("api-key", "reader")]):
        wire(listing, b"", metadata=metadata)
    assert wire.refused(create, request, metadata=[("api-key", "reader")])[0] == "PERMISSION_DENIED"
    wire(create, request, metadata=[("authorization", "Bearer full")])
    wire.channel.close()


@pytest.fixture
def standin_with_keys(tmp_path: Any) -> Iterator[Standin]:
    with Standin(tmp_path / "upstream", api_key="full", read_only_api_key="reader") as upstream:
        yield upstream


def test_what_was_answered_survives_sigkill_in_the_middle_of_writes(standin: Standin) -> None:
    """Five kills under load: every acknowledged point is there, operation numbers go on, the journal knows each."""
    client = standin.client(timeout=5)
    client.create_collection("k", models.VectorParams(size=2, distance=models.Distance.DOT))
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="k", alias_name="also"))]
    )
    acknowledged: list[int] = []
    numbers: list[int] = []
    for start in range(0, 5000, 1000):
        killer = threading.Thread(
            target=lambda floor=start: (until(lambda: len(acknowledged) > floor // 100, 30, "writes"), standin.kill())
        )
        killer.start()
        for batch in range(start, start + 1000, 10):
            try:
                result = client.upsert(
                    "k", [models.PointStruct(id=n, vector=[n, 1.0]) for n in range(batch, batch + 10)]
                )
            except grpc.RpcError:
                break
            acknowledged.append(batch)
            numbers.append(result.operation_id or 0)
        killer.join()
        standin.restart()
        until(lambda: bool(client.get_collections().collections), 10, "answers again")
    held = {record.id for record in client.scroll("also", limit=100_000)[0]}
    assert {n for batch in acknowledged for n in range(batch, batch + 10)} <= held
    assert numbers == sorted(set(numbers))
    applied = [entry.ids[0] for entry in standin.writes() if entry.method.endswith("Upsert") and entry.was_applied]
    assert [batch for batch in applied if batch in acknowledged] == acknowledged
    client.close()


def test_the_journal_is_in_the_order_of_application(standin: Standin) -> None:
    client = standin.client()
    client.create_collection("j", models.VectorParams(size=2, distance=models.Distance.DOT))
    client.upsert("j", [models.PointStruct(id=n, vector=[1.0, 1.0]) for n in (3, 1)])
    client.set_payload("j", {"a": 1}, [1])
    client.delete("j", [3])
    client.batch_update_points(
        "j",
        [
            models.DeleteOperation(delete=models.PointIdsList(points=[1])),
            models.UpsertOperation(upsert=models.PointsList(points=[models.PointStruct(id=5, vector=[1.0, 0.0])])),
        ],
    )
    writes = standin.writes()
    assert [(entry.method.rsplit("/", 1)[-1], entry.ids) for entry in writes] == [
        ("Create", []),
        ("Upsert", [3, 1]),
        ("SetPayload", [1]),
        ("Delete", [3]),
        ("UpdateBatch", [1, 5]),
    ]
    assert all(entry.was_applied for entry in writes)
    assert p.UpsertPoints.FromString(writes[1].body).points[0].id.num == 3
    client.close()


class TestFaults:
    """What the stand-in does wrong on demand."""

    @pytest.fixture
    def client(self, standin: Standin) -> Iterator[QdrantClient]:
        client = standin.client(timeout=2)
        client.create_collection("f", models.VectorParams(size=2, distance=models.Distance.DOT))
        yield client
        client.close()

    @staticmethod
    def write(client: QdrantClient) -> str:
        try:
            client.upsert("f", [models.PointStruct(id=1, vector=[1.0, 1.0])])
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def test_fail_counts_its_calls_and_applies_nothing(self, standin: Standin, client: QdrantClient) -> None:
        standin.fault("Upsert", "fail", times=2, skip=1, code="RESOURCE_EXHAUSTED", trailers=[["retry-after", "3"]])
        client.upsert("f", [models.PointStruct(id=9, vector=[1.0, 1.0])])
        with pytest.raises(ResourceExhaustedResponse) as caught:
            client.upsert("f", [models.PointStruct(id=1, vector=[1.0, 1.0])])
        assert caught.value.retry_after_s == 3
        standin.control("clear")
        standin.fault("Upsert", "fail", code="UNAVAILABLE", text="busy")
        assert self.write(client) == "UNAVAILABLE"
        assert client.count("f").count == 1
        assert self.write(client) == "OK"

    def test_fail_after_applies(self, standin: Standin, client: QdrantClient) -> None:
        standin.fault("Upsert", "fail_after")
        assert self.write(client) == "UNAVAILABLE"
        assert client.count("f").count == 1

    def test_stall_until_released(self, standin: Standin, client: QdrantClient) -> None:
        standin.fault("Upsert", "stall")
        standin.fault("Upsert", "stall_after")
        assert self.write(client) == "DEADLINE_EXCEEDED"
        assert client.count("f").count == 0
        outcome: list[str] = []
        writer = threading.Thread(target=lambda: outcome.append(self.write(client)))
        writer.start()
        until(lambda: client.count("f").count == 1, 10, "the stalled write is applied")
        standin.control("release")
        writer.join()
        assert outcome == ["OK"]

    @pytest.mark.parametrize(("action", "count"), [("die", 0), ("die_after", 1)])
    def test_die(self, standin: Standin, client: QdrantClient, action: str, count: int) -> None:
        standin.fault("Upsert", action)
        assert self.write(client) == "UNAVAILABLE"
        standin.wait_dead()
        standin.start()
        until(lambda: bool(client.get_collections().collections), 10, "answers again")
        assert client.count("f").count == count

    def test_refuse_and_accept_keep_the_port(self, standin: Standin, client: QdrantClient) -> None:
        standin.control("refuse")
        assert self.write(client) == "UNAVAILABLE"
        standin.control("accept")
        until(lambda: self.write(client) == "OK", 10, "connects again")

    def test_report_counts(self, standin: Standin, client: QdrantClient) -> None:
        client.count("f")
        client.count("f")
        assert standin.report()["counts"]["/qdrant.Points/Count"] == 2
