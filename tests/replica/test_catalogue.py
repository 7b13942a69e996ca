"""Collections, aliases and field indexes: what is made of them, what is told, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from qdrant_client.conversions.conversion import GrpcToRest

from generated.qdrant import collections_pb2 as pb
from generated.qdrant import points_pb2 as points
from generated.understudy.replica.v1 import replica_pb2 as control
from server.replica import catalogue, number_ranges
from server.replica import requests as r
from server.replica.refusal import Refusal
from server.rpc import Code
from tests.replica.local_store import (
    ALIASES,
    CREATE,
    DROP,
    Local,
    create,
    create_named,
    dense,
    entry,
    local,
    named,
    payload,
    point,
    upsert,
)

UPDATE = r.COLLECTIONS + "Update"
FIELD_INDEX = r.POINTS + "CreateFieldIndex"
NO_FIELD_INDEX = r.POINTS + "DeleteFieldIndex"
VECTOR = r.POINTS + "CreateVectorName"
NO_VECTOR = r.POINTS + "DeleteVectorName"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Local]:
    """An empty write side that knows the catalogue."""
    with local(tmp_path / "store") as made:
        yield made


def _ask(where: Local, method: str, request: Message) -> bytes:
    return catalogue.answer(where.store, r.COLLECTIONS + method, request.SerializeToString(), lambda: 0.25)


def _info(where: Local, name: str = "c") -> pb.CollectionInfo:
    body = _ask(where, "Get", pb.GetCollectionInfoRequest(collection_name=name))
    return pb.GetCollectionInfoResponse.FromString(body).result


def _refusal(where: Local, method: str, request: Message) -> tuple[Code, str]:
    with pytest.raises(Refusal) as refused:
        where.do(method, request)
    return refused.value.code, refused.value.details


def _names(where: Local) -> list[str]:
    listed = pb.ListCollectionsResponse.FromString(_ask(where, "List", pb.ListCollectionsRequest()))
    return [described.name for described in listed.collections]


def _exists(where: Local, name: str) -> bool:
    body = _ask(where, "CollectionExists", pb.CollectionExistsRequest(collection_name=name))
    return pb.CollectionExistsResponse.FromString(body).result.exists


def _aliases(where: Local) -> dict[str, str]:
    listed = pb.ListAliasesResponse.FromString(_ask(where, "ListAliases", pb.ListAliasesRequest()))
    return {alias.alias_name: alias.collection_name for alias in listed.aliases}


# --- collections -----------------------------------------------------------------------------------------------------


def test_a_collection_from_its_making_to_its_end(here: Local) -> None:
    assert not _exists(here, "c")
    assert here.do(CREATE, create()).result is True
    assert _exists(here, "c")
    assert _names(here) == ["c"]
    here.do(r.UPSERT, upsert(point(1), point(2)))
    assert _info(here).points_count == 2
    assert here.do(DROP, pb.DeleteCollection(collection_name="c")).result is True
    assert not _exists(here, "c")
    assert here.do(DROP, pb.DeleteCollection(collection_name="c")).result is False


def test_what_was_made_is_told(here: Local) -> None:
    request = create()
    request.hnsw_config.m = 0
    request.hnsw_config.payload_m = 16
    request.optimizers_config.indexing_threshold = 7
    request.shard_number = 3
    request.quantization_config.scalar.type = pb.QuantizationType.Int8
    request.metadata["made"].string_value = "here"
    request.on_disk_payload = False
    here.do(CREATE, request)
    config = _info(here).config
    assert (config.hnsw_config.m, config.hnsw_config.payload_m, config.hnsw_config.ef_construct) == (0, 16, 100)
    assert (config.optimizer_config.indexing_threshold, config.optimizer_config.flush_interval_sec) == (7, 5)
    assert config.params.shard_number == 3
    assert config.params.on_disk_payload is False
    assert config.params.vectors_config == request.vectors_config
    assert config.quantization_config.scalar.type == pb.QuantizationType.Int8
    assert config.metadata["made"].string_value == "here"


def test_points_of_an_index_are_told_when_they_are_known(here: Local) -> None:
    here.do(CREATE, create())
    for field in ("a", "b"):
        here.do(FIELD_INDEX, points.CreateFieldIndexCollection(collection_name="c", field_name=field, field_type=0))
    body = pb.GetCollectionInfoRequest(collection_name="c").SerializeToString()
    told = catalogue.answer(here.store, catalogue.GET, body, lambda: 0.25, {"a": 7, "gone": 3})
    schema = pb.GetCollectionInfoResponse.FromString(told).result.payload_schema
    assert {field: info.points for field, info in schema.items()} == {"a": 7, "b": 0}


def test_the_official_client_can_read_what_is_told(here: Local) -> None:
    here.do(CREATE, create())
    told = GrpcToRest.convert_collection_info(_info(here))  # type: ignore[arg-type]
    assert told.points_count == 0
    assert told.status == "green"
    assert told.config.params.vectors.size == 2  # type: ignore[union-attr]
    assert told.config.hnsw_config.m == 16
    here.do(CREATE, create_named("n", a=2, s=0))
    assert GrpcToRest.convert_collection_info(_info(here, "n")).config.params.sparse_vectors  # type: ignore[arg-type]


def test_a_name_that_exists_is_refused_with_the_text_that_apps_look_for(here: Local) -> None:
    here.do(CREATE, create())
    assert _refusal(here, CREATE, create()) == (Code.ALREADY_EXISTS, "Wrong input: Collection `c` already exists!")


def _bad(**fields: Any) -> pb.CreateCollection:
    request = create()
    for field, value in fields.items():
        setattr(request, field, value)
    return request


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (create("a/b"), 'Validation error in body: [collection_name: collection name cannot contain "/" char]'),
        (create(""), 'Validation error in body: [collection_name: value "" invalid, must be from 1 to 255 characters]'),
        (_bad(shard_number=0), "Validation error in body: [shard_number: value 0 invalid, must be 1 or larger]"),
        (create(distance=0), "UnknownDistance is not allowed"),
    ],
)
def test_collections_that_qdrant_would_not_make(here: Local, request_: Message, text: str) -> None:
    assert _refusal(here, CREATE, request_) == (Code.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    "request_", [create(size=0), create(size=65537), create("x" * 256), create_named(a=0, b=70000)]
)
def test_more_collections_that_qdrant_would_not_make(here: Local, request_: Message) -> None:
    assert _refusal(here, CREATE, request_)[0] is Code.INVALID_ARGUMENT


def _spelt(message: type[Message], path: str, value: float) -> Any:
    """A request about `c` in which one number is set; a name behind a colon is a key of the map before it."""
    request: Any = message()
    if "collection_name" in request.DESCRIPTOR.fields_by_name:
        request.collection_name = "c"
    *parents, last = path.split(".")
    at = request
    for step in parents:
        name, _, key = step.partition(":")
        at = getattr(at, name)[key] if key else getattr(at, name)
    setattr(at, last, value)
    return request


MODE = "strict_mode_config"
MANY = f"{MODE}.multivector_config.multivector_config"
SPARSE = f"{MODE}.sparse_config.sparse_config"
DENSE = "vectors_config.params_map.map:a"
# A number, its least and greatest value, how Qdrant names the place where that differs.
OF_BOTH: list[tuple[str, float, float | None, str]] = [
    ("hnsw_config.ef_construct", 4, None, ""),
    ("optimizers_config.deleted_threshold", 0.0, 1.0, ""),
    ("optimizers_config.vacuum_min_vector_number", 100, None, ""),
    ("optimizers_config.max_segment_size", 1, None, ""),
    ("quantization_config.scalar.quantile", 0.5, 1.0, "quantization_config.quantization.quantile"),
    (f"{DENSE}.hnsw_config.ef_construct", 4, None, "vectors_config.config.map.[].hnsw_config.ef_construct"),
    (
        f"{DENSE}.quantization_config.scalar.quantile",
        0.5,
        1.0,
        "vectors_config.config.map.[].quantization_config.quantization.quantile",
    ),
    (f"{MODE}.max_query_limit", 1, None, ""),
    (f"{MODE}.max_timeout", 1, None, ""),
    (f"{MODE}.read_rate_limit", 1, None, ""),
    (f"{MODE}.write_rate_limit", 1, None, ""),
    (f"{MODE}.max_points_count", 1, None, ""),
    (f"{MANY}:a.max_vectors", 1, None, f"{MANY}.[].max_vectors"),
    (f"{SPARSE}:s.max_length", 1, None, f"{SPARSE}.[].max_length"),
]
NUMBERS: list[tuple[str, type[Message], str, float, float | None, str]] = [
    *((CREATE, pb.CreateCollection, *row) for row in OF_BOTH),
    *((UPDATE, pb.UpdateCollection, *row) for row in OF_BOTH),
    (CREATE, pb.CreateCollection, "wal_config.wal_capacity_mb", 1, None, ""),
    (CREATE, pb.CreateCollection, "wal_config.wal_retain_closed", 1, None, ""),
    (UPDATE, pb.UpdateCollection, "params.replication_factor", 1, None, ""),
    (UPDATE, pb.UpdateCollection, "params.write_consistency_factor", 1, None, ""),
    (UPDATE, pb.UpdateCollection, "timeout", 1, None, ""),
    (DROP, pb.DeleteCollection, "timeout", 1, None, ""),
    (ALIASES, pb.ChangeAliases, "timeout", 1, None, ""),
]


@pytest.mark.parametrize("number", NUMBERS, ids=[f"{row[0]} {row[2]}" for row in NUMBERS])
def test_numbers_that_qdrant_refuses(
    here: Local, number: tuple[str, type[Message], str, float, float | None, str]
) -> None:
    method, message, path, least, most, place = number
    step = 0.25 if isinstance(least, float) else 1
    allowed = f"must be {least} or larger" if most is None else f"must be from {least} to {most}"
    for value in (least - step, *(() if most is None else (most + step,))):
        assert _refusal(here, method, _spelt(message, path, value)) == (
            Code.INVALID_ARGUMENT,
            f"Validation error in body: [{place or path}: value {value} invalid, {allowed}]",
        )
    if method != CREATE:
        here.do(CREATE, create_named(a=2, s=0))
    for value in (least, *(() if most is None else (most,))):
        request = _spelt(message, path, value)
        if method == CREATE:
            request.collection_name = f"at {value}"
            if "map:a" in path:
                request.vectors_config.params_map.map["a"].size = 2
                request.vectors_config.params_map.map["a"].distance = pb.Distance.Dot
        assert here.do(method, request).result is True


def test_ranges_are_of_numbers_that_there_are() -> None:
    for name, ranges in number_ranges._RANGES.items():
        known = {field.name: field for field in getattr(pb, name).DESCRIPTOR.fields}
        assert all(known[number].message_type is None and known[number].has_presence for number in ranges), name


def test_a_collection_without_vectors_may_exist(here: Local) -> None:
    here.do(CREATE, pb.CreateCollection(collection_name="bare"))
    assert _exists(here, "bare")


def test_update_changes_what_it_names(here: Local) -> None:
    here.do(CREATE, create_named(a=2, s=0))
    request = pb.UpdateCollection(collection_name="c")
    request.optimizers_config.indexing_threshold = 99
    request.hnsw_config.m = 5
    request.params.replication_factor = 2
    request.vectors_config.params_map.map["a"].hnsw_config.m = 6
    request.vectors_config.params_map.map["a"].on_disk = True
    request.vectors_config.params_map.map["a"].quantization_config.binary.always_ram = True
    request.quantization_config.scalar.type = pb.QuantizationType.Int8
    request.sparse_vectors_config.map["s"].modifier = pb.Modifier.Idf
    request.metadata["k"].integer_value = 1
    assert here.do(UPDATE, request).result is True
    config = _info(here).config
    vector = config.params.vectors_config.params_map.map["a"]
    assert (config.optimizer_config.indexing_threshold, config.hnsw_config.m) == (99, 5)
    assert config.optimizer_config.deleted_threshold == 0.2
    assert config.params.replication_factor == 2
    assert (vector.size, vector.hnsw_config.m, vector.on_disk) == (2, 6, True)
    assert vector.quantization_config.WhichOneof("quantization") == "binary"
    assert config.quantization_config.WhichOneof("quantization") == "scalar"
    assert config.params.sparse_vectors_config.map["s"].modifier == pb.Modifier.Idf
    assert config.metadata["k"].integer_value == 1
    off = pb.UpdateCollection(collection_name="c")
    off.quantization_config.disabled.SetInParent()
    here.do(UPDATE, off)
    assert not _info(here).config.HasField("quantization_config")


def test_update_of_what_is_missing(here: Local) -> None:
    missing = (Code.NOT_FOUND, "Not found: Collection `c` doesn't exist!")
    assert _refusal(here, UPDATE, pb.UpdateCollection(collection_name="c")) == missing
    here.do(CREATE, create())
    request = pb.UpdateCollection(collection_name="c")
    request.vectors_config.params_map.map["zz"].on_disk = True
    assert _refusal(here, UPDATE, request) == (
        Code.INVALID_ARGUMENT,
        "Wrong input: Not existing vector name error: zz",
    )


def test_reads_of_what_is_missing(here: Local) -> None:
    with pytest.raises(Refusal) as refused:
        _ask(here, "Get", pb.GetCollectionInfoRequest(collection_name="c"))
    assert (refused.value.code, refused.value.details) == (Code.NOT_FOUND, "Not found: Collection `c` doesn't exist!")
    body = _ask(here, "ListCollectionAliases", pb.ListCollectionAliasesRequest(collection_name="c"))
    assert not pb.ListAliasesResponse.FromString(body).aliases


@pytest.mark.parametrize("name", ["a/b", "a\0b"])
def test_names_that_nothing_is_read_by(here: Local, name: str) -> None:
    here.do(CREATE, create())
    here.do(ALIASES, _change(_give("a/b")))
    for method, request in (
        ("Get", pb.GetCollectionInfoRequest(collection_name=name)),
        ("CollectionExists", pb.CollectionExistsRequest(collection_name=name)),
        ("ListCollectionAliases", pb.ListCollectionAliasesRequest(collection_name=name)),
    ):
        with pytest.raises(Refusal) as refused:
            _ask(here, method, request)
        assert refused.value.code is Code.INVALID_ARGUMENT
        assert refused.value.details.startswith("Validation error in body: [collection_name: collection name cannot")


def test_the_last_real_info_is_told_with_the_counts_of_here(here: Local) -> None:
    info = pb.CollectionInfo(
        status=pb.CollectionStatus.Yellow, segments_count=8, points_count=1000, indexed_vectors_count=1000
    )
    info.config.CopyFrom(catalogue.new_config(create()))
    info.payload_schema["a"].data_type = pb.PayloadSchemaType.Keyword
    info.warnings.add(message="old news")
    here.imports.catalogue(
        control.ImportCatalogueRequest(
            collections=[control.RemoteCollection(name="c", info=info.SerializeToString())], whole=True
        )
    )
    here.do(r.UPSERT, upsert(point(1)))
    told = _info(here)
    assert (told.status, told.segments_count, told.points_count) == (pb.CollectionStatus.Green, 8, 1)
    assert told.indexed_vectors_count <= 1
    assert dict(told.payload_schema) == {"a": pb.PayloadSchemaInfo(data_type=pb.PayloadSchemaType.Keyword)}
    assert not told.warnings


def test_an_info_that_lacks_blocks_is_filled_for_the_clients_that_need_them(here: Local) -> None:
    info = pb.CollectionInfo(config=pb.CollectionConfig(params=pb.CollectionParams(shard_number=2)))
    info.config.hnsw_config.m = 3
    here.imports.catalogue(
        control.ImportCatalogueRequest(
            collections=[control.RemoteCollection(name="c", info=info.SerializeToString())], whole=True
        )
    )
    config = _info(here).config
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct, config.hnsw_config.full_scan_threshold) == (
        3,
        100,
        10_000,
    )
    assert config.optimizer_config.HasField("deleted_threshold")
    assert config.wal_config.HasField("wal_capacity_mb")
    assert config.params.shard_number == 2
    assert GrpcToRest.convert_collection_info(_info(here))  # type: ignore[arg-type]


# --- what is not known -----------------------------------------------------------------------------------------------


def test_while_the_catalogue_is_unknown_nothing_is_said_not_to_exist(tmp_path: Path) -> None:
    with local(tmp_path / "store", known=False) as made:
        for method, request in (
            ("Get", pb.GetCollectionInfoRequest(collection_name="c")),
            ("CollectionExists", pb.CollectionExistsRequest(collection_name="c")),
            ("List", pb.ListCollectionsRequest()),
            ("ListAliases", pb.ListAliasesRequest()),
        ):
            with pytest.raises(Refusal) as refused:
                _ask(made, method, request)
            assert refused.value.code is Code.UNAVAILABLE
        assert _refusal(made, r.UPSERT, upsert(point(1)))[0] is Code.UNAVAILABLE
        assert _refusal(made, DROP, pb.DeleteCollection(collection_name="c"))[0] is Code.UNAVAILABLE


def test_a_collection_made_while_the_catalogue_is_unknown_is_not_taken_for_whole(tmp_path: Path) -> None:
    with local(tmp_path / "store", known=False) as made:
        made.do(CREATE, create())
        assert _exists(made, "c")
        collection = made.store.collection("c")
        assert collection is not None
        assert collection.completeness == control.COMPLETENESS_EMPTY
        assert _refusal(made, DROP, pb.DeleteCollection(collection_name="c"))[0] is Code.UNAVAILABLE


def test_a_collection_that_is_not_wholly_here_is_not_deleted(here: Local) -> None:
    here.do(CREATE, create())
    collection = here.store.collection("c")
    assert collection is not None
    assert collection.created_here
    here.set_completeness(control.COMPLETENESS_STALE)
    here.do(DROP, pb.DeleteCollection(collection_name="c"))
    here.apply(here.store.applied_seq + 1, CREATE, create())
    here.set_completeness(control.COMPLETENESS_HYDRATING)
    code, text = _refusal(here, DROP, pb.DeleteCollection(collection_name="c"))
    assert code is Code.UNAVAILABLE
    assert "not wholly in the replica" in text
    assert _exists(here, "c")


def test_a_collection_that_qdrant_made_anew_begins_empty(here: Local) -> None:
    here.apply(1, CREATE, create())
    here.apply(2, r.UPSERT, upsert(point(1)))
    here.apply(3, CREATE, create(size=3))
    assert here.points() == {}
    here.apply(4, r.UPSERT, upsert(point(1, dense(1, 2, 3))))
    assert here.points() == {1: ({}, {"": [1, 2, 3]})}


def test_a_pending_create_of_a_name_that_exists_answers_so(here: Local) -> None:
    here.apply(1, CREATE, create())
    applied = here.apply(2, CREATE, create(), synced=False)
    assert (applied.code, applied.details) == (Code.ALREADY_EXISTS, "Wrong input: Collection `c` already exists!")


# --- aliases ---------------------------------------------------------------------------------------------------------


def _change(*actions: pb.AliasOperations) -> pb.ChangeAliases:
    return pb.ChangeAliases(actions=actions)


def _give(alias: str, name: str = "c") -> pb.AliasOperations:
    return pb.AliasOperations(create_alias=pb.CreateAlias(collection_name=name, alias_name=alias))


def _take(alias: str) -> pb.AliasOperations:
    return pb.AliasOperations(delete_alias=pb.DeleteAlias(alias_name=alias))


def _rename(old: str, new: str) -> pb.AliasOperations:
    return pb.AliasOperations(rename_alias=pb.RenameAlias(old_alias_name=old, new_alias_name=new))


def test_aliases(here: Local) -> None:
    here.do(CREATE, create())
    here.do(CREATE, create("d"))
    assert here.do(ALIASES, _change(_give("x"), _give("y"))).result is True
    assert _aliases(here) == {"x": "c", "y": "c"}
    assert _info(here, "x").config == _info(here, "c").config
    assert _exists(here, "x")
    here.do(ALIASES, _change(_give("x", "d"), _take("y"), _take("nope")))
    assert _aliases(here) == {"x": "d"}
    body = _ask(here, "ListCollectionAliases", pb.ListCollectionAliasesRequest(collection_name="c"))
    assert not pb.ListAliasesResponse.FromString(body).aliases
    here.do(DROP, pb.DeleteCollection(collection_name="d"))
    assert _aliases(here) == {}


def test_a_rename_becomes_changes_that_may_be_made_twice(here: Local) -> None:
    here.do(CREATE, create())
    here.do(ALIASES, _change(_give("x")))
    rename = _change(_rename("x", "y"))
    [(method, plain)] = here.prepare(ALIASES, rename)
    assert (method, plain) == (ALIASES, _change(_take("x"), _give("y")))
    here.do(ALIASES, rename)
    assert _aliases(here) == {"y": "c"}
    here.do(ALIASES, plain)
    assert _aliases(here) == {"y": "c"}


def test_a_rename_sees_the_changes_before_it(here: Local) -> None:
    here.do(CREATE, create())
    here.do(ALIASES, _change(_give("x"), _rename("x", "y"), _rename("y", "z")))
    assert _aliases(here) == {"z": "c"}


def test_alias_changes_that_are_refused(here: Local) -> None:
    here.do(CREATE, create())
    assert _refusal(here, ALIASES, _change(_give("x", "nope"))) == (
        Code.NOT_FOUND,
        "Not found: Collection `nope` doesn't exist!",
    )
    assert _refusal(here, ALIASES, _change(_give("c"))) == (
        Code.ALREADY_EXISTS,
        "Wrong input: Collection `c` already exists!",
    )
    assert _refusal(here, ALIASES, _change(_give("x"), _rename("nope", "y"))) == (
        Code.NOT_FOUND,
        "Not found: Alias nope does not exists!",
    )
    assert _aliases(here) == {}
    here.do(ALIASES, _change(_give("x")))
    assert _refusal(here, CREATE, create("x")) == (
        Code.INVALID_ARGUMENT,
        "Wrong input: Can't create collection with name x. Alias with the same name already exists",
    )


# --- field indexes ---------------------------------------------------------------------------------------------------


def _index(field: str, kind: int, **params: Any) -> points.CreateFieldIndexCollection:
    request = points.CreateFieldIndexCollection(collection_name="c", field_name=field, wait=True)
    request.field_type = kind  # type: ignore[assignment]
    if params:
        request.field_index_params.CopyFrom(pb.PayloadIndexParams(**params))
    return request


def test_field_indexes(here: Local) -> None:
    here.do(CREATE, create())
    answer = here.do(FIELD_INDEX, _index("a.b", points.FieldType.FieldTypeKeyword))
    assert answer.result.status == points.UpdateStatus.Completed
    text = pb.TextIndexParams(tokenizer=pb.TokenizerType.Word, lowercase=True)
    here.do(FIELD_INDEX, _index("t", points.FieldType.FieldTypeText, text_index_params=text))
    schema = _info(here).payload_schema
    assert {field: info.data_type for field, info in schema.items()} == {
        "a.b": pb.PayloadSchemaType.Keyword,
        "t": pb.PayloadSchemaType.Text,
    }
    assert schema["t"].params.text_index_params == text
    here.do(FIELD_INDEX, _index("t", points.FieldType.FieldTypeInteger))
    here.do(NO_FIELD_INDEX, points.DeleteFieldIndexCollection(collection_name="c", field_name="a.b"))
    here.do(NO_FIELD_INDEX, points.DeleteFieldIndexCollection(collection_name="c", field_name="nope"))
    assert {field: info.data_type for field, info in _info(here).payload_schema.items()} == {
        "t": pb.PayloadSchemaType.Integer
    }


@pytest.mark.parametrize("kind", points.FieldType.values())
def test_every_field_type_is_the_schema_type_of_the_same_name(here: Local, kind: int) -> None:
    here.do(CREATE, create())
    here.do(FIELD_INDEX, _index("f", kind))
    told = _info(here).payload_schema["f"].data_type
    assert points.FieldType.Name(kind) == f"FieldType{pb.PayloadSchemaType.Name(told)}"  # type: ignore[arg-type]


def test_field_indexes_that_are_refused(here: Local) -> None:
    here.do(CREATE, create())
    untyped = points.CreateFieldIndexCollection(collection_name="c", field_name="a")
    assert _refusal(here, FIELD_INDEX, untyped) == (Code.INVALID_ARGUMENT, "cannot convert field_type")
    crossed = _index("a", points.FieldType.FieldTypeKeyword, integer_index_params=pb.IntegerIndexParams())
    assert _refusal(here, FIELD_INDEX, crossed) == (
        Code.INVALID_ARGUMENT,
        "field_type (Keyword) and field_index_params do not match",
    )
    assert _refusal(here, FIELD_INDEX, _index("a[", points.FieldType.FieldTypeKeyword))[0] is Code.INVALID_ARGUMENT
    elsewhere = _index("a", points.FieldType.FieldTypeKeyword)
    elsewhere.collection_name = "nope"
    assert _refusal(here, FIELD_INDEX, elsewhere)[0] is Code.NOT_FOUND


def test_field_indexes_are_kept_by_the_path_as_qdrant_writes_it(here: Local) -> None:
    here.do(CREATE, create())
    here.do(FIELD_INDEX, _index('"a"."b c"[]', points.FieldType.FieldTypeKeyword))
    assert list(_info(here).payload_schema) == ['a."b c"[]']
    here.do(FIELD_INDEX, _index('a."b c"[]', points.FieldType.FieldTypeInteger))
    assert {field: info.data_type for field, info in _info(here).payload_schema.items()} == {
        'a."b c"[]': pb.PayloadSchemaType.Integer
    }
    here.do(NO_FIELD_INDEX, points.DeleteFieldIndexCollection(collection_name="c", field_name='"a"."b c"[]'))
    assert not _info(here).payload_schema


_KLINGON = pb.StemmingAlgorithm(snowball=pb.SnowballParams(language="klingon"))


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (
            {"integer_index_params": pb.IntegerIndexParams(lookup=False, range=False)},
            "Validation error in body: [field_index_params.index_params.lookup: "
            "Validation error: the 'lookup' and 'range' capabilities can't be both disabled [{}]]",
        ),
        ({"text_index_params": pb.TextIndexParams(lowercase=True)}, "unknown tokenizer type"),
        ({"text_index_params": pb.TextIndexParams(tokenizer=77)}, "unknown tokenizer type"),  # type: ignore[arg-type]
        ({"text_index_params": pb.TextIndexParams(stemmer=_KLINGON)}, 'Language "klingon" not found.'),
        (
            {"text_index_params": pb.TextIndexParams(stopwords=pb.StopwordsSet(languages=["en", "klingon"]))},
            "unknown language: klingon",
        ),
    ],
)
def test_field_indexes_that_hold_nothing_or_are_of_no_kind_are_refused(
    here: Local, params: dict[str, Any], text: str
) -> None:
    here.do(CREATE, create())
    is_text = "text_index_params" in params
    kind = points.FieldType.FieldTypeText if is_text else points.FieldType.FieldTypeInteger
    assert _refusal(here, FIELD_INDEX, _index("a", kind, **params)) == (Code.INVALID_ARGUMENT, text)
    assert not _info(here).payload_schema


@pytest.mark.parametrize(
    "params",
    [
        {"integer_index_params": pb.IntegerIndexParams(lookup=False)},
        {"integer_index_params": pb.IntegerIndexParams(lookup=False, range=True)},
        {
            "text_index_params": pb.TextIndexParams(
                tokenizer=pb.TokenizerType.Word,
                stopwords=pb.StopwordsSet(languages=["hi-en", "english"]),
                stemmer=pb.StemmingAlgorithm(snowball=pb.SnowballParams(language="de")),
            )
        },
    ],
)
def test_field_indexes_with_params_that_are_made(here: Local, params: dict[str, Any]) -> None:
    here.do(CREATE, create())
    is_text = "text_index_params" in params
    kind = points.FieldType.FieldTypeText if is_text else points.FieldType.FieldTypeInteger
    here.do(FIELD_INDEX, _index("a", kind, **params))
    assert list(_info(here).payload_schema) == ["a"]


# --- vectors of a collection -----------------------------------------------------------------------------------------


def test_a_vector_comes_and_goes(here: Local) -> None:
    here.do(CREATE, create_named(a=2))
    here.do(r.UPSERT, upsert(point(1, named(a=[1, 2]))))
    more = points.CreateVectorNameRequest(
        collection_name="c",
        vector_name="b",
        dense_config=points.DenseVectorCreationConfig(size=1, distance=pb.Distance.Dot),
    )
    here.do(VECTOR, more)
    here.do(VECTOR, more)
    sparse = points.CreateVectorNameRequest(
        collection_name="c",
        vector_name="s",
        sparse_config=points.SparseVectorCreationConfig(modifier=pb.Modifier.Idf),
    )
    here.do(VECTOR, sparse)
    assert _info(here).config.params.sparse_vectors_config.map["s"].modifier == pb.Modifier.Idf
    here.do(r.UPSERT, upsert(point(2, named(a=[3, 4], b=[5]))))
    here.do(NO_VECTOR, points.DeleteVectorNameRequest(collection_name="c", vector_name="a"))
    assert here.points() == {1: ({}, {}), 2: ({}, {"b": [5]})}
    assert list(_info(here).config.params.vectors_config.params_map.map) == ["b"]
    here.do(NO_VECTOR, points.DeleteVectorNameRequest(collection_name="c", vector_name="a"))


def test_a_vector_that_exists_is_not_remade(here: Local) -> None:
    here.do(CREATE, create_named(a=2, s=0))
    here.do(r.UPSERT, upsert(point(1, named(a=[1, 2]))))

    def refusal(name: str, **config: Any) -> str:
        return _refusal(here, VECTOR, points.CreateVectorNameRequest(collection_name="c", vector_name=name, **config))[
            1
        ]

    same = points.DenseVectorCreationConfig(size=2, distance=pb.Distance.Dot)
    other = points.DenseVectorCreationConfig(size=3, distance=pb.Distance.Dot)
    idf = points.SparseVectorCreationConfig(modifier=pb.Modifier.Idf)
    assert refusal("a", dense_config=other) == "Wrong input: Vector `a` already exists with a different configuration"
    assert refusal("a", sparse_config=idf) == "Wrong input: Vector `a` already exists as a dense vector"
    assert refusal("s", dense_config=same) == "Wrong input: Vector `s` already exists as a sparse vector"
    assert refusal("s", sparse_config=idf).startswith("Wrong input: Sparse vector `s` already exists with a different")
    before = _info(here).config
    here.do(VECTOR, points.CreateVectorNameRequest(collection_name="c", vector_name="a", dense_config=same))
    assert _info(here).config == before
    assert here.points() == {1: ({}, {"a": [1, 2]})}


def test_a_second_vector_beside_the_unnamed_one(here: Local) -> None:
    here.do(CREATE, create())
    here.do(r.UPSERT, upsert(point(1)))
    more = points.CreateVectorNameRequest(
        collection_name="c",
        vector_name="b",
        dense_config=points.DenseVectorCreationConfig(size=1, distance=pb.Distance.Dot),
    )
    here.do(VECTOR, more)
    both = named(b=[9])
    both.vectors.vectors[""].dense.data.extend([3, 4])
    here.do(r.UPSERT, upsert(point(2, both, k=1)))
    assert here.points() == {1: ({}, {"": [1, 2]}), 2: ({"k": 1}, {"": [3, 4], "b": [9]})}


def test_payloads_of_requests_are_not_shared(here: Local) -> None:
    """Entries of one batch do not see each other's messages."""
    here.do(CREATE, create())
    seq = here.store.applied_seq
    request = upsert(point(1, a=1))
    here.writes.apply(
        [
            entry(seq + 1, r.UPSERT, request),
            entry(
                seq + 2,
                r.SET_PAYLOAD,
                points.SetPayloadPoints(
                    collection_name="c",
                    payload=payload({"b": 2}),
                    points_selector=points.PointsSelector(points=points.PointsIdsList(ids=[request.points[0].id])),
                ),
            ),
        ]
    )
    assert here.payloads() == {1: {"a": 1, "b": 2}}
