"""Shard keys: never answered as if none had been named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from server import config
from server.replica import requests as r
from server.replica.refusal import Refusal
from server.replica.search import METHODS as READS
from server.replica.search import Searcher
from server.rpc import METHODS, Code, Kind
from tests.replica.local_store import CREATE, Local, create, dense, ids, local, point, point_id, upsert, where

NOT_KNOWN = "Not served while Qdrant cannot be reached: the replica does not know which points of `c` lie under which"


@pytest.fixture
def auto(tmp_path: Path) -> Iterator[Local]:
    """Collection `c` as nearly everybody has it."""
    with local(tmp_path / "store") as made:
        made.do(CREATE, create())
        made.do(r.UPSERT, upsert(point(1), point(2)))
        yield made


@pytest.fixture
def custom(tmp_path: Path) -> Iterator[Local]:
    """Collection `c` with custom sharding."""
    with local(tmp_path / "store") as made:
        request = create()
        request.sharding_method = collections.ShardingMethod.Custom
        made.do(CREATE, request)
        yield made


def keys(*names: str | int, fallback: str = "") -> pb.ShardKeySelector:
    made = [collections.ShardKey(**({"number": n} if isinstance(n, int) else {"keyword": n})) for n in names]
    return pb.ShardKeySelector(shard_keys=made, fallback=collections.ShardKey(keyword=fallback) if fallback else None)


def refused(here: Local, method: str, request: Any) -> tuple[Code, str]:
    with pytest.raises(Refusal) as caught:
        if METHODS[method].kind is Kind.READ:
            Searcher(here.store, config.Replica()).answer(method, request.SerializeToString())
        else:
            here.do(method, request)
    return caught.value.code, caught.value.details


def reads(selector: pb.ShardKeySelector) -> Iterator[tuple[str, Any]]:
    """Every read that can name shard keys, wherever it can."""
    lookup = pb.LookupLocation(collection_name="c", shard_key_selector=selector)
    for method in sorted(READS):
        request: Any = METHODS[method].request(collection_name="c")
        if "shard_key_selector" in request.DESCRIPTOR.fields_by_name:
            request.shard_key_selector.CopyFrom(selector)
            yield method, request
        else:
            [field] = [one for one in request.DESCRIPTOR.fields if one.name.endswith("_points")]
            getattr(request, field.name).add().shard_key_selector.CopyFrom(selector)
            yield method, request
        if "lookup_from" in request.DESCRIPTOR.fields_by_name:
            yield method, type(request)(collection_name="c", lookup_from=lookup)
        if "prefetch" in request.DESCRIPTOR.fields_by_name:
            inner = pb.PrefetchQuery(prefetch=[pb.PrefetchQuery(lookup_from=lookup)])
            yield method, type(request)(collection_name="c", prefetch=[inner])


def test_the_walk_finds_every_place() -> None:
    assert len(list(reads(keys("a")))) == 17 + 5 + 2


def test_reads_with_shard_keys(auto: Local) -> None:
    for method, request in reads(keys("a", "b")):
        assert refused(auto, method, request) == (Code.INVALID_ARGUMENT, 'Bad request: Shard key "a" not found'), method
    for method, request in reads(keys(7)):
        assert refused(auto, method, request) == (Code.INVALID_ARGUMENT, "Bad request: Shard key 7 not found"), method
    for method, request in reads(keys("a", fallback="b")):
        text = 'Not found: Neither target shard key "a" nor fallback shard key "b" exist'
        assert refused(auto, method, request) == (Code.NOT_FOUND, text), method
    for method, request in reads(keys()):
        assert refused(auto, method, request)[0] is Code.UNAVAILABLE, method


def test_reads_of_a_collection_with_custom_sharding(custom: Local) -> None:
    for method, request in reads(keys("a")):
        code, text = refused(custom, method, request)
        assert code is Code.UNAVAILABLE and text.startswith(NOT_KNOWN), method


def test_that_there_is_no_such_collection_is_said_first(auto: Local) -> None:
    request = pb.CountPoints(collection_name="x", shard_key_selector=keys("a"))
    assert refused(auto, r.POINTS + "Count", request) == (Code.NOT_FOUND, "Not found: Collection `x` doesn't exist!")


def writes() -> Iterator[tuple[str, Any]]:
    """Every write of points."""
    yield r.UPSERT, upsert(point(1))
    yield r.DELETE, pb.DeletePoints(collection_name="c", points=ids(1))
    yield r.DELETE, pb.DeletePoints(collection_name="c", points=where("a", "x"))
    yield r.UPDATE_VECTORS, pb.UpdatePointVectors(collection_name="c", points=[moved(1)])
    vectors = pb.VectorsSelector(names=[""])
    yield r.DELETE_VECTORS, pb.DeletePointVectors(collection_name="c", points_selector=ids(1), vectors=vectors)
    yield r.SET_PAYLOAD, pb.SetPayloadPoints(collection_name="c", points_selector=ids(1))
    yield r.OVERWRITE_PAYLOAD, pb.SetPayloadPoints(collection_name="c", points_selector=ids(1))
    yield r.DELETE_PAYLOAD, pb.DeletePayloadPoints(collection_name="c", points_selector=ids(1), keys=["a"])
    yield r.CLEAR_PAYLOAD, pb.ClearPayloadPoints(collection_name="c", points=ids(1))


def moved(number: int) -> pb.PointVectors:
    return pb.PointVectors(id=point_id(number), vectors=dense(5, 5))


def test_writes_with_shard_keys(auto: Local) -> None:
    before = auto.points()
    for method, request in writes():
        request.shard_key_selector.CopyFrom(keys("a"))
        assert refused(auto, method, request) == (Code.INVALID_ARGUMENT, 'Wrong input: Shard key "a" not found')
    assert auto.points() == before


def test_writes_to_a_collection_with_custom_sharding(custom: Local) -> None:
    for method, request in writes():
        assert refused(custom, method, request) == (Code.INVALID_ARGUMENT, "Wrong input: Shard key not specified")
        request.shard_key_selector.CopyFrom(keys("a"))
        if method == r.UPSERT:
            custom.do(method, request)
        else:
            code, text = refused(custom, method, request)
            assert code is Code.UNAVAILABLE and text.startswith(NOT_KNOWN), method
    assert list(custom.points()) == [1]
    guarded = upsert(point(1))
    guarded.shard_key_selector.CopyFrom(keys("a"))
    guarded.update_mode = pb.UpdateMode.InsertOnly
    assert refused(custom, r.UPSERT, guarded)[0] is Code.UNAVAILABLE


def test_shard_keys_in_a_batch(auto: Local) -> None:
    part = pb.PointsUpdateOperation(
        delete_points=pb.PointsUpdateOperation.DeletePoints(points=ids(1), shard_key_selector=keys("a"))
    )
    batch = pb.UpdateBatchPoints(collection_name="c", operations=[part], wait=True)
    assert refused(auto, r.UPDATE_BATCH, batch) == (Code.INVALID_ARGUMENT, 'Wrong input: Shard key "a" not found')
    assert list(auto.points()) == [1, 2]


def test_what_qdrant_has_done_is_applied_whatever_its_keys(custom: Local) -> None:
    seq = custom.store.applied_seq
    request = upsert(point(3))
    request.shard_key_selector.CopyFrom(keys("a"))
    gone = pb.DeletePoints(collection_name="c", points=ids(3), shard_key_selector=keys("a"))
    custom.apply(seq + 1, r.UPSERT, request)
    assert list(custom.points()) == [3]
    custom.apply(seq + 2, r.DELETE, gone)
    assert list(custom.points()) == []
