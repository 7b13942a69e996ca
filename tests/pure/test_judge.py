"""The replay's table over its whole domain, and the comparisons that settle `already there`."""

from __future__ import annotations

import itertools

import pytest

from generated.qdrant import collections_pb2, points_pb2
from server.replay.judge import (
    ROWS,
    Outcome,
    are_aliases_settled,
    has_vector,
    is_about_collection,
    is_same_collection,
    judge,
    judge_reply,
    retry_after_seconds,
)
from server.rpc import WAL_KINDS, Code, Reply

POINTS = "/qdrant.Points/"
COLLECTIONS = "/qdrant.Collections/"
METHODS = sorted(WAL_KINDS.values())
TEXTS = ["", "told to fail", *(row.text.replace("\\b", "") for row in ROWS if row.text)]

PLAIN = {
    Code.OK: Outcome.DONE,
    Code.CANCELLED: Outcome.TRANSIENT,
    Code.UNKNOWN: Outcome.DOUBTFUL,
    Code.INVALID_ARGUMENT: Outcome.PERMANENT,
    Code.DEADLINE_EXCEEDED: Outcome.TRANSIENT,
    Code.NOT_FOUND: Outcome.PERMANENT,
    Code.ALREADY_EXISTS: Outcome.PERMANENT,
    Code.PERMISSION_DENIED: Outcome.AUTH,
    Code.RESOURCE_EXHAUSTED: Outcome.TRANSIENT,
    Code.FAILED_PRECONDITION: Outcome.TRANSIENT,
    Code.ABORTED: Outcome.TRANSIENT,
    Code.OUT_OF_RANGE: Outcome.PERMANENT,
    Code.UNIMPLEMENTED: Outcome.PERMANENT,
    Code.INTERNAL: Outcome.DOUBTFUL,
    Code.UNAVAILABLE: Outcome.TRANSIENT,
    Code.DATA_LOSS: Outcome.DOUBTFUL,
    Code.UNAUTHENTICATED: Outcome.AUTH,
}


@pytest.mark.parametrize(("method", "code"), list(itertools.product(METHODS, Code)))
def test_every_method_and_code_has_an_outcome(method: str, code: Code) -> None:
    for text in TEXTS:
        found = judge(method, code, text)
        assert isinstance(found, Outcome)
        if code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.CANCELLED, Code.FAILED_PRECONDITION):
            assert found is Outcome.TRANSIENT
        if code is Code.UNAUTHENTICATED:
            assert found is Outcome.AUTH
        if code is Code.OK:
            assert found is Outcome.DONE


@pytest.mark.parametrize(("code", "outcome"), PLAIN.items())
def test_points_by_code_alone(code: Code, outcome: Outcome) -> None:
    for name in ("Upsert", "Delete", "SetPayload", "UpdateBatch", "ClearPayload"):
        assert judge(POINTS + name, code, "") is outcome


def test_every_row_is_reached() -> None:
    reached = set()
    for method, code, text in itertools.product(METHODS, Code, TEXTS):
        reached.add(next(index for index, row in enumerate(ROWS) if row.matches(method, code, text)))
    assert reached == set(range(len(ROWS)))


@pytest.mark.parametrize(
    ("method", "code", "text", "outcome"),
    [
        (COLLECTIONS + "Create", Code.ALREADY_EXISTS, "Wrong input: Collection `x` already exists!", Outcome.COMPARE),
        (COLLECTIONS + "Create", Code.INVALID_ARGUMENT, "Wrong input: Collection `x` already exists!", Outcome.COMPARE),
        (COLLECTIONS + "Create", Code.INVALID_ARGUMENT, "Wrong input: vectors", Outcome.PERMANENT),
        (COLLECTIONS + "Delete", Code.NOT_FOUND, "", Outcome.DONE),
        (COLLECTIONS + "UpdateAliases", Code.NOT_FOUND, "Not found: Alias a does not exists!", Outcome.COMPARE),
        (
            POINTS + "DeleteVectorName",
            Code.INVALID_ARGUMENT,
            "Wrong input: Not existing vector name error: a",
            Outcome.DONE,
        ),
        (
            POINTS + "UpdateVectors",
            Code.INVALID_ARGUMENT,
            "Wrong input: Not existing vector name error: a",
            Outcome.PERMANENT,
        ),
        (POINTS + "Upsert", Code.INTERNAL, "failed to decode Protobuf message: x", Outcome.PERMANENT),
        (POINTS + "Upsert", Code.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max", Outcome.PERMANENT),
        (POINTS + "Upsert", Code.RESOURCE_EXHAUSTED, "Rate limiting exceeded: Write rate limit", Outcome.TRANSIENT),
        (POINTS + "Upsert", Code.RESOURCE_EXHAUSTED, "larger than rate limiter capacity, please", Outcome.PERMANENT),
        (POINTS + "Upsert", Code.PERMISSION_DENIED, "Forbidden: Limit exceeded. Help: Reduce it", Outcome.PERMANENT),
        (POINTS + "Upsert", Code.PERMISSION_DENIED, "Forbidden: Access to collection x is required", Outcome.AUTH),
    ],
)
def test_texts_that_matter(method: str, code: Code, text: str, outcome: Outcome) -> None:
    assert judge(method, code, text) is outcome


STATUS = points_pb2.UpdateStatus


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (STATUS.Acknowledged, Outcome.DONE),
        (STATUS.Completed, Outcome.DONE),
        (STATUS.ClockRejected, Outcome.TRANSIENT),
        (STATUS.WaitTimeout, Outcome.TRANSIENT),
    ],
)
def test_ok_is_not_always_done(status: points_pb2.UpdateStatus, outcome: Outcome) -> None:
    result = points_pb2.UpdateResult(status=status)
    done = points_pb2.UpdateResult(status=STATUS.Completed)
    one = points_pb2.PointsOperationResponse(result=result).SerializeToString()
    assert judge_reply(POINTS + "Upsert", Reply(one)) is outcome
    many = points_pb2.UpdateBatchResponse(result=[done, result]).SerializeToString()
    assert judge_reply(POINTS + "UpdateBatch", Reply(many)) is outcome


def test_collection_answers() -> None:
    for result in (True, False):
        body = collections_pb2.CollectionOperationResponse(result=result).SerializeToString()
        assert judge_reply(COLLECTIONS + "Delete", Reply(body)) is Outcome.DONE
        expected = Outcome.DONE if result else Outcome.DOUBTFUL
        assert judge_reply(COLLECTIONS + "Create", Reply(body)) is expected
    assert judge_reply(POINTS + "Upsert", Reply(b"\xff")) is Outcome.DOUBTFUL
    assert judge_reply(POINTS + "Upsert", Reply(code=Code.UNAVAILABLE)) is Outcome.TRANSIENT


@pytest.mark.parametrize(
    ("method", "code", "text", "about"),
    [
        (POINTS + "Upsert", Code.NOT_FOUND, "Not found: Collection `x` doesn't exist!", True),
        (POINTS + "SetPayload", Code.NOT_FOUND, "Not found: No point with id 3 found", False),
        (POINTS + "Upsert", Code.INVALID_ARGUMENT, "Wrong input: Vector dimension error", False),
        (COLLECTIONS + "Create", Code.INVALID_ARGUMENT, "", True),
        (COLLECTIONS + "Update", Code.INVALID_ARGUMENT, "", False),
        (COLLECTIONS + "UpdateAliases", Code.NOT_FOUND, "", True),
        (POINTS + "CreateFieldIndex", Code.INVALID_ARGUMENT, "", False),
    ],
)
def test_what_concerns_a_whole_collection(method: str, code: Code, text: str, about: bool) -> None:
    assert is_about_collection(method, code, text) is about


@pytest.mark.parametrize(
    ("trailers", "seconds"),
    [
        ((), None),
        ((("retry-after", "7"),), 7.0),
        ((("Retry-After", b"1.5"),), 1.5),
        ((("retry-after", "soon"),), None),
        ((("retry-after", "-1"),), None),
        ((("retry-after", "nan"),), None),
        ((("retry-after", "inf"),), None),
    ],
)
def test_retry_after(trailers: tuple[tuple[str, str | bytes], ...], seconds: float | None) -> None:
    assert retry_after_seconds(trailers) == seconds


# --- already there ---------------------------------------------------------------------------------------------------

Params = collections_pb2.VectorParams
COSINE, DOT = collections_pb2.Distance.Cosine, collections_pb2.Distance.Dot


def config(
    one: collections_pb2.VectorParams | None = None,
    sparse: dict[str, collections_pb2.SparseVectorParams] | None = None,
    **named: collections_pb2.VectorParams,
) -> tuple[collections_pb2.VectorsConfig | None, collections_pb2.SparseVectorConfig | None]:
    vectors = None
    if one is not None:
        vectors = collections_pb2.VectorsConfig(params=one)
    elif named:
        vectors = collections_pb2.VectorsConfig(params_map=collections_pb2.VectorParamsMap(map=named))
    return vectors, collections_pb2.SparseVectorConfig(map=sparse) if sparse is not None else None


def wanted(*given: collections_pb2.VectorsConfig | collections_pb2.SparseVectorConfig | None) -> object:
    return collections_pb2.CreateCollection(
        collection_name="c", vectors_config=given[0], sparse_vectors_config=given[1]
    )


def found(vectors: object, sparse: object) -> collections_pb2.CollectionInfo:
    params = collections_pb2.CollectionParams(vectors_config=vectors, sparse_vectors_config=sparse)
    return collections_pb2.CollectionInfo(config=collections_pb2.CollectionConfig(params=params))


IDF = collections_pb2.SparseVectorParams(modifier=collections_pb2.Modifier.Idf)
ASKED_MORE = Params(size=4, distance=DOT, on_disk=True, hnsw_config=collections_pb2.HnswConfigDiff(m=16))
MULTI = Params(size=4, distance=DOT, multivector_config=collections_pb2.MultiVectorConfig())
FLOAT32 = Params(size=4, distance=DOT, datatype=collections_pb2.Datatype.Float32)
FLOAT16 = Params(size=4, distance=DOT, datatype=collections_pb2.Datatype.Float16)
D4 = Params(size=4, distance=DOT)


@pytest.mark.parametrize(
    ("asked", "there", "same"),
    [
        (config(D4), config(D4), True),
        (config(ASKED_MORE), config(D4), True),
        (config(D4), config(FLOAT32), True),
        (config(D4), config(FLOAT16), False),
        (config(D4), config(MULTI), False),
        (config(D4), config(Params(size=5, distance=DOT)), False),
        (config(D4), config(Params(size=4, distance=COSINE)), False),
        (config(D4), config(a=D4), False),
        (config(a=D4), config(a=D4), True),
        (config(a=D4), config(a=D4, b=D4), False),
        (config(sparse={"s": IDF}), config(sparse={"s": IDF}), True),
        (config(sparse={"s": IDF}), config(sparse={"s": collections_pb2.SparseVectorParams()}), False),
        (config(), config(sparse={}), True),
    ],
)
def test_same_collection(asked: tuple, there: tuple, same: bool) -> None:  # type: ignore[type-arg]
    assert is_same_collection(wanted(*asked), found(*there)) is same  # type: ignore[arg-type]


def test_the_unnamed_vector_and_the_one_named_nothing_are_one() -> None:
    named_nothing = collections_pb2.VectorsConfig(params_map=collections_pb2.VectorParamsMap(map={"": D4}))
    assert is_same_collection(wanted(named_nothing, None), found(*config(D4)))  # type: ignore[arg-type]


def test_has_vector() -> None:
    dense = points_pb2.CreateVectorNameRequest(
        vector_name="a", dense_config=points_pb2.DenseVectorCreationConfig(size=4, distance=DOT)
    )
    assert has_vector(dense, found(*config(a=D4)))
    assert not has_vector(dense, found(*config(b=D4)))
    assert not has_vector(dense, found(*config(a=MULTI)))
    sparse = points_pb2.CreateVectorNameRequest(
        vector_name="s", sparse_config=points_pb2.SparseVectorCreationConfig(modifier=collections_pb2.Modifier.Idf)
    )
    assert has_vector(sparse, found(*config(sparse={"s": IDF})))
    assert not has_vector(sparse, found(*config(sparse={})))


def change(*actions: tuple[str, str, str]) -> collections_pb2.ChangeAliases:
    built = []
    for kind, first, second in actions:
        if kind == "create":
            made = collections_pb2.CreateAlias(alias_name=first, collection_name=second)
            built.append(collections_pb2.AliasOperations(create_alias=made))
        elif kind == "delete":
            gone = collections_pb2.DeleteAlias(alias_name=first)
            built.append(collections_pb2.AliasOperations(delete_alias=gone))
        else:
            moved = collections_pb2.RenameAlias(old_alias_name=first, new_alias_name=second)
            built.append(collections_pb2.AliasOperations(rename_alias=moved))
    return collections_pb2.ChangeAliases(actions=built)


@pytest.mark.parametrize(
    ("actions", "aliases", "settled"),
    [
        ([("rename", "a", "b")], {"b": "c"}, True),
        ([("rename", "a", "b")], {"a": "c", "b": "c"}, False),
        ([("rename", "a", "b")], {}, False),
        ([("create", "a", "c")], {"a": "c"}, True),
        ([("create", "a", "c")], {"a": "d"}, False),
        ([("delete", "a", "")], {}, True),
        ([("delete", "a", "")], {"a": "c"}, False),
        ([("create", "a", "c"), ("rename", "a", "b")], {"b": "c"}, True),
        ([("create", "a", "c"), ("rename", "a", "b")], {"b": "d"}, False),
        ([("delete", "a", ""), ("create", "a", "d")], {"a": "d"}, True),
        ([("rename", "a", "b"), ("rename", "b", "a")], {"a": "c"}, True),
    ],
)
def test_aliases_settled(actions: list[tuple[str, str, str]], aliases: dict[str, str], settled: bool) -> None:
    assert are_aliases_settled(change(*actions), aliases) is settled
