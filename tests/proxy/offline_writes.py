"""Every logged row of the offline table with requests that set all their fields, refusals among them.

The cases of a row are done one after the other to the collections in `made_for`; names begin with `$` (see `Case`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.rpc import COLLECTIONS, POINTS, UPDATE_BATCH, UPSERT, Code
from tests.proxy.offline_data import (
    UUIDS,
    Json,
    dense,
    multi,
    named_collection,
    other_collection,
    payload,
    pid,
    plain_collection,
    sparse,
    value,
)
from tests.proxy.offline_filters import EVEN, field, match, must
from tests.proxy.offline_reads import Case, How

NAMED, PLAIN, UNNAMED = "$named", "$plain", "$unnamed"
WAIT = {"wait": True, "ordering": {"type": "Strong"}, "timeout": 30}
NO_WAIT = {"wait": False, "ordering": {"type": "Medium"}}
KEYS = {"shard_key_selector": {"shard_keys": [{"keyword": "a"}]}}
BY_IDS = {"points": {"ids": [pid(1), pid(2), pid(UUIDS[0])]}}
SOME_MISSING = {"points": {"ids": [pid(3), pid(998), pid(999)]}}
NONE_THERE = {"points": {"ids": [pid(998)]}}
BY_FILTER = {"filter": must(EVEN, field("f", range={"lt": 12.0}))}
PAYLOAD = payload(
    {"new": 1, "k": "set", "deep": {"a": [1, {"b": None}], "c": True}, "none": None, "half": 0.5, "l": []}
)


def made_for(row: str) -> Iterator[tuple[str, Json]]:
    """The writes that make what the cases of a row are done to."""
    if row.startswith(COLLECTIONS):
        yield from other_collection(NAMED)
        yield from other_collection(PLAIN)
        config = {
            "vectors_config": {"params": {"size": 4, "distance": "Dot"}},
            "sparse_vectors_config": {"map": {"words": {}}},
        }
        yield COLLECTIONS + "Create", {"collection_name": UNNAMED, **config}
    else:
        yield from named_collection(NAMED)
        yield from plain_collection(PLAIN)


def _case(row: str, title: str, request: Json) -> Case:
    return Case(row, title, request)


def _refused(row: str, title: str, request: Json, reason: str, code: Code) -> Case:
    return Case(row, title, request, How.REFUSED, reason, code)


def _shards(row: str, request: Json) -> Case:
    return _refused(row, "shard keys", {**request, **KEYS}, 'Shard key "a" not found', Code.INVALID_ARGUMENT)


def _one(number: int | str, vectors: Json, **values: Any) -> Json:
    return {"id": pid(number), "vectors": vectors, "payload": payload(values)}


def upserts() -> Iterator[Case]:
    """Upsert."""
    vectors = {
        "cos": dense(1.0, 2.0, 3.0, 4.0),
        "euc": {"data": [4.0, 3.0, 2.0, 1.0]},
        "multi": {"data": [1.0, 2.0, 3.0, 0.5, 0.25, 0.125], "vectors_count": 2},
        "sparse": sparse(_9=0.5, _2=0.25),
        "idf": {"data": [0.5, 0.25], "indices": {"data": [1, 4]}},
    }
    whole = {"id": pid(500), "payload": PAYLOAD, "vectors": {"vectors": {"vectors": vectors}}}
    rows = {"vectors": {"vectors": {"multi": multi([1.0, 0.0, 0.0], [0.0, 0.5, 0.5])}}}
    other = _one(UUIDS[0].replace("-", "").upper(), {"vectors": {"vectors": {"dot": dense(1, 1, 1, 1)}}}, again="x")
    yield _case(UPSERT, "everything", {"collection_name": NAMED, "points": [whole, other, _one(501, rows)], **WAIT})
    unnamed = {"vector": {"data": [1.0, 2.0, 3.0, 4.0]}}
    yield _case(UPSERT, "unnamed, no wait", {"collection_name": PLAIN, "points": [_one(1, unnamed, a=1)], **NO_WAIT})
    both = [_one(2, unnamed, mode="x"), _one(600, unnamed, mode="y")]
    for mode in ("InsertOnly", "UpdateOnly", "Upsert"):
        request = {"collection_name": PLAIN, "points": both, "update_mode": mode, **WAIT}
        yield _case(UPSERT, f"mode {mode}", request)
    guarded = [_one(number, unnamed, guarded=True) for number in (3, 4, 601)]
    request = {"collection_name": PLAIN, "points": guarded, "update_filter": must(match("a", keyword="x")), **WAIT}
    yield _case(UPSERT, "guarded by a filter", request)
    for title, bad in (
        ("a wrong size", _one(1, {"vector": dense(1, 2)})),
        ("an unknown vector", _one(1, {"vectors": {"vectors": {"zz": dense(1, 2)}}})),
        ("no vectors", {"id": pid(1)}),
        ("a bad UUID", _one("nope", unnamed)),
        ("an empty vector", _one(1, {"vector": dense()})),
    ):
        yield _case(UPSERT, title, {"collection_name": PLAIN, "points": [bad], "wait": True})
    yield _case(UPSERT, "no points", {"collection_name": PLAIN, "wait": True})
    yield _case(UPSERT, "no collection", {"collection_name": "$gone", "points": [_one(1, unnamed)]})
    options = {"options": {"a": value(1)}, "model": "m"}
    for kind, part in (
        ("document", {"text": "t"}),
        ("image", {"image": value("i")}),
        ("object", {"object": value("o")}),
    ):
        request = {"collection_name": PLAIN, "points": [_one(1, {"vector": {kind: {**part, **options}}})]}
        yield _refused(UPSERT, f"inference, {kind}", request, "inference", Code.UNAVAILABLE)
    yield _shards(UPSERT, {"collection_name": PLAIN, "points": [_one(1, unnamed)]})


def _selected(name: str, place: str, extra: Json) -> Iterator[Case]:
    """The ways to choose points for a write."""
    row = POINTS + name
    yield _case(row, "by ids", {"collection_name": NAMED, place: BY_IDS, **extra, **WAIT})
    yield _case(row, "by a filter, no wait", {"collection_name": NAMED, place: BY_FILTER, **extra, **NO_WAIT})
    for title, selector in (("some missing", SOME_MISSING), ("none there", NONE_THERE)):
        yield _case(row, title, {"collection_name": NAMED, place: selector, **extra, "wait": True})
    yield _case(row, "no ids", {"collection_name": NAMED, place: {"points": {}}, **extra, "wait": True})
    yield _case(row, "a filter that nothing passes", {
        "collection_name": NAMED, place: {"filter": must(match("k", keyword="nope"))}, **extra, "wait": True,
    })  # fmt: skip
    yield _shards(row, {"collection_name": NAMED, place: BY_IDS, **extra})


def deletes() -> Iterator[Case]:
    """Delete."""
    yield from _selected("Delete", "points", {})
    yield _case(POINTS + "Delete", "everything", {"collection_name": PLAIN, "points": {"filter": {}}, **WAIT})


def payloads() -> Iterator[Case]:
    """The four writes of payloads."""
    for name in ("SetPayload", "OverwritePayload"):
        yield from _selected(name, "points_selector", {"payload": PAYLOAD})
    extra = {"payload": payload({"y": 2}), "key": "o"}
    yield _case(
        POINTS + "SetPayload", "under a key", {"collection_name": NAMED, "points_selector": BY_IDS, **extra, **WAIT}
    )
    request = {"collection_name": NAMED, "points_selector": BY_IDS, **extra, **WAIT}
    yield _case(POINTS + "OverwritePayload", "under a key", request)
    extra = {"payload": payload({"c": 3}), "key": "l[0]"}
    at = {"points": {"ids": [pid(4)]}}
    yield _case(
        POINTS + "SetPayload", "under a path", {"collection_name": NAMED, "points_selector": at, **extra, **WAIT}
    )
    yield from _selected("DeletePayload", "points_selector", {"keys": ["k", "o.x", "l[].a", "none"]})
    yield from _selected("ClearPayload", "points", {})


def vectors() -> Iterator[Case]:
    """UpdateVectors and DeleteVectors."""
    update = POINTS + "UpdateVectors"
    changed = [
        {"id": pid(1), "vectors": {"vectors": {"vectors": {"cos": dense(0, 0, 3, 4), "sparse": sparse(_1=1.0)}}}},
        {"id": pid(2), "vectors": {"vectors": {"vectors": {"euc": dense(1, 1, 1, 1)}}}},
    ]
    yield _case(update, "everything", {"collection_name": NAMED, "points": changed, **WAIT})
    moved = [{"id": pid(number), "vectors": {"vector": dense(9, 9, 9, number)}} for number in (1, 2, 3)]
    guard = must(match("a", keyword="y"))
    yield _case(
        update, "guarded by a filter", {"collection_name": PLAIN, "points": moved, "update_filter": guard, **WAIT}
    )
    yield _case(update, "unnamed, no wait", {"collection_name": PLAIN, "points": moved[:1], **NO_WAIT})
    missing = [{"id": pid(998), "vectors": {"vector": dense(1, 1, 1, 1)}}]
    yield _case(update, "none there", {"collection_name": PLAIN, "points": missing, "wait": True})
    short = [{"id": pid(1), "vectors": {"vector": dense(1)}}]
    yield _case(update, "a wrong size", {"collection_name": PLAIN, "points": short, "wait": True})
    yield _case(update, "no points", {"collection_name": PLAIN, "wait": True})
    yield _shards(update, {"collection_name": PLAIN, "points": moved})
    yield from _selected("DeleteVectors", "points_selector", {"vectors": {"names": ["cos", "sparse"]}})
    request = {"collection_name": NAMED, "points_selector": BY_IDS, "wait": True}
    yield _case(POINTS + "DeleteVectors", "an unknown vector", {**request, "vectors": {"names": ["zz"]}})
    yield _case(POINTS + "DeleteVectors", "no names", {**request, "vectors": {}})


def update_batches() -> Iterator[Case]:
    """UpdateBatch."""
    unnamed = {"vector": dense(1, 2, 3, 4)}
    by_ids = {"points": {"ids": [pid(1), pid(2)]}}
    by_filter = {"filter": must(match("a", keyword="x"))}
    operations: list[Json] = [
        {"upsert": {"points": [_one(700, unnamed, a="x"), _one(701, unnamed)]}},
        {"upsert": {"points": [_one(700, unnamed, a="no")], "update_mode": "InsertOnly"}},
        {"upsert": {"points": [_one(701, unnamed, a="y")], "update_filter": must(match("a", keyword="q"))}},
        {"set_payload": {"payload": payload({"set": 1}), "points_selector": by_filter, "key": "o"}},
        {"overwrite_payload": {"payload": payload({"over": 1}), "points_selector": by_ids}},
        {"overwrite_payload": {"payload": payload({"over": 2}), "points_selector": by_ids, "key": "under"}},
        {"delete_payload": {"keys": ["n"], "points_selector": by_filter}},
        {"update_vectors": {"points": [{"id": pid(3), "vectors": {"vector": dense(7, 7, 7, 7)}}]}},
        {
            "update_vectors": {
                "points": [{"id": pid(4), "vectors": {"vector": dense(8, 8, 8, 8)}}],
                "update_filter": must(match("a", keyword="q")),
            }
        },
        {"delete_vectors": {"points_selector": {"points": {"ids": [pid(6)]}}, "vectors": {"names": [""]}}},
        {"clear_payload": {"points": {"points": {"ids": [pid(7)]}}}},
        {"delete_points": {"points": {"points": {"ids": [pid(8)]}}}},
        {"delete_deprecated": {"points": {"ids": [pid(9)]}}},
        {"clear_payload_deprecated": {"points": {"ids": [pid(10)]}}},
    ]
    yield _case(UPDATE_BATCH, "every operation", {"collection_name": PLAIN, "operations": operations, **WAIT})
    yield _case(UPDATE_BATCH, "no wait", {"collection_name": PLAIN, "operations": operations[:4], **NO_WAIT})
    missing = {"set_payload": {"payload": payload({"b": 1}), "points_selector": SOME_MISSING}}
    stops = [{"clear_payload": {"points": by_ids}}, missing, {"delete_points": {"points": by_ids}}]
    yield _case(UPDATE_BATCH, "stops at a missing point", {"collection_name": PLAIN, "operations": stops, "wait": True})
    wrong = {"upsert": {"points": [_one(1, {"vector": dense(1)})]}}
    stops = [{"upsert": {"points": [_one(702, unnamed)]}}, wrong, {"delete_points": {"points": by_ids}}]
    yield _case(UPDATE_BATCH, "stops at a wrong size", {"collection_name": PLAIN, "operations": stops, "wait": True})
    yield _case(UPDATE_BATCH, "no operations", {"collection_name": PLAIN, "wait": True})
    for kind in sorted({kind for one in operations for kind in one if not kind.endswith("_deprecated")}):
        [part] = [one[kind] for one in reversed(operations) if kind in one][:1]
        request = {"collection_name": PLAIN, "operations": [{kind: {**part, **KEYS}}], "wait": True}
        reason = 'Shard key "a" not found'
        yield _refused(UPDATE_BATCH, f"shard keys: {kind}", request, reason, Code.INVALID_ARGUMENT)


_DISK = {"on_disk": True, "memory": "Cached", "enable_hnsw": False, "nested": "o"}
_INDEX_PARAMS: dict[str, Json] = {
    "Keyword": {"is_tenant": True, "prefix": {}, **_DISK},
    "Integer": {"lookup": True, "range": False, "is_principal": True, **_DISK},
    "Float": {"is_principal": True, **_DISK},
    "Geo": {**_DISK},
    "Text": {
        "tokenizer": "Prefix",
        "lowercase": False,
        "min_token_len": 2,
        "max_token_len": 9,
        "stopwords": {"languages": ["english"], "custom": ["fox"]},
        "phrase_matching": True,
        "stemmer": {"snowball": {"language": "english"}},
        "ascii_folding": True,
        "scoring": {"type": "Bm25"},
        **_DISK,
    },
    "Bool": {**_DISK},
    "Datetime": {"is_principal": True, **_DISK},
    "Uuid": {"is_tenant": True, **_DISK},
}


def field_indexes() -> Iterator[Case]:
    """CreateFieldIndex and DeleteFieldIndex."""
    create, delete = POINTS + "CreateFieldIndex", POINTS + "DeleteFieldIndex"
    for kind, params in _INDEX_PARAMS.items():
        request = {"collection_name": PLAIN, "field_name": f"i.{kind.lower()}", "field_type": f"FieldType{kind}"}
        yield _case(create, kind, {**request, **NO_WAIT})
        given = {"field_index_params": {f"{kind.lower()}_index_params": params}}
        yield _case(create, f"{kind} with its parameters", {**request, **given, **WAIT})
    plain_text = {"text_index_params": {"tokenizer": "Word", "stemmer": {"disabled": {}}}}
    request = {"collection_name": NAMED, "field_name": "plain_text", "field_type": "FieldTypeText"}
    yield _case(create, "text without a stemmer", {**request, "field_index_params": plain_text, **WAIT})
    stemmed = {"text_index_params": {"tokenizer": "Word", "stemmer": {"snowball": {"language": "english"}}}}
    request = {"collection_name": NAMED, "field_name": "stemmed_text", "field_type": "FieldTypeText"}
    yield _case(create, "text with a stemmer", {**request, "field_index_params": stemmed, **WAIT})
    yield _case(create, "no field name", {"collection_name": PLAIN, "field_type": "FieldTypeText", "wait": True})
    yield _case(delete, "one that is there", {"collection_name": NAMED, "field_name": "text", **WAIT})
    yield _case(delete, "no wait", {"collection_name": NAMED, "field_name": "k", **NO_WAIT})


def vector_names() -> Iterator[Case]:
    """CreateVectorName and DeleteVectorName."""
    create, delete = POINTS + "CreateVectorName", POINTS + "DeleteVectorName"
    dense_config = {
        "size": 3,
        "distance": "Manhattan",
        "multivector_config": {"comparator": "MaxSim"},
        "datatype": "Float32",
    }
    yield _case(create, "dense", {"collection_name": NAMED, "vector_name": "new", "dense_config": dense_config, **WAIT})
    sparse_config = {"modifier": "Idf", "datatype": "Float32"}
    request = {"collection_name": NAMED, "vector_name": "words", "sparse_config": sparse_config, **NO_WAIT}
    yield _case(create, "sparse", request)
    yield _case(delete, "one that is there", {"collection_name": NAMED, "vector_name": "euc", **WAIT})
    yield _case(delete, "no wait", {"collection_name": NAMED, "vector_name": "sparse", **NO_WAIT})


_HNSW: Json = {
    "m": 8,
    "ef_construct": 50,
    "full_scan_threshold": 5000,
    "max_indexing_threads": 2,
    "on_disk": True,
    "payload_m": 4,
    "inline_storage": False,
    "memory": "Cold",
}
_OPTIMIZERS: Json = {
    "deleted_threshold": 0.3,
    "vacuum_min_vector_number": 500,
    "default_segment_number": 3,
    "max_segment_size": 100_000,
    "memmap_threshold": 50_000,
    "indexing_threshold": 20_000,
    "flush_interval_sec": 7,
    "deprecated_max_optimization_threads": 2,
    "max_optimization_threads": {"value": 2},
    "prevent_unoptimized": True,
}
_QUANTIZATION: dict[str, Json] = {
    "scalar": {"scalar": {"type": "Int8", "quantile": 0.99, "always_ram": True, "memory": "Pinned"}},
    "product": {"product": {"compression": "x16", "always_ram": True, "memory": "Pinned"}},
    "binary": {
        "binary": {
            "always_ram": True,
            "encoding": "TwoBits",
            "query_encoding": {"setting": "Scalar8Bits"},
            "memory": "Pinned",
        }
    },
    "turboquant": {"turboquant": {"always_ram": True, "bits": "Bits4", "memory": "Pinned"}},
}
_STRICT: Json = {
    "enabled": False,
    "max_query_limit": 1000,
    "max_timeout": 60,
    "unindexed_filtering_retrieve": True,
    "unindexed_filtering_update": True,
    "search_max_hnsw_ef": 512,
    "search_allow_exact": True,
    "search_max_oversampling": 4.0,
    "upsert_max_batchsize": 1000,
    "search_max_batchsize": 100,
    "max_collection_vector_size_bytes": 10**9,
    "read_rate_limit": 1000,
    "write_rate_limit": 1000,
    "max_collection_payload_size_bytes": 10**9,
    "filter_max_conditions": 100,
    "condition_max_size": 1000,
    "multivector_config": {"multivector_config": {"m": {"max_vectors": 10}}},
    "sparse_config": {"sparse_config": {"s": {"max_length": 100}}},
    "max_points_count": 10**6,
    "max_payload_index_count": 50,
    "max_resident_memory_percent": 90,
}


def _vector(quantization: Json, **more: Any) -> Json:
    shared = {"hnsw_config": _HNSW, "quantization_config": quantization, "on_disk": True, "memory": "Cached"}
    return {"size": 4, "distance": "Cosine", "datatype": "Float32", **shared, **more}


def creates() -> Iterator[Case]:
    """Create."""
    row = COLLECTIONS + "Create"
    shared: Json = {
        "hnsw_config": _HNSW,
        "wal_config": {"wal_capacity_mb": 16, "wal_segments_ahead": 1, "wal_retain_closed": 2},
        "optimizers_config": _OPTIMIZERS,
        "shard_number": 1,
        "on_disk_payload": True,
        "timeout": 30,
        "replication_factor": 1,
        "write_consistency_factor": 1,
        "sharding_method": "Auto",
        "strict_mode_config": _STRICT,
        "metadata": payload({"owner": "me", "n": 3}),
        "payload": {"memory": "Cold"},
        "id_tracker": {"memory": "Pinned"},
    }
    for form, quantization in _QUANTIZATION.items():
        yield _case(
            row,
            f"one vector, {form} quantization",
            {
                **shared,
                "collection_name": f"$new_{form}",
                "vectors_config": {"params": _vector(quantization)},
                "quantization_config": quantization,
            },
        )
    index = {"full_scan_threshold": 100, "on_disk": False, "datatype": "Float16", "memory": "Cached"}
    many = {
        "vectors_config": {
            "params_map": {
                "map": {
                    "a": _vector(_QUANTIZATION["scalar"]),
                    "b": {"size": 3, "distance": "Dot", "multivector_config": {"comparator": "MaxSim"}},
                }
            }
        },
        "sparse_vectors_config": {"map": {"s": {"index": index, "modifier": "Idf"}, "t": {}}},
        "optimizers_config": {"max_optimization_threads": {"setting": "Auto"}},
    }
    yield _case(row, "named and sparse vectors", {"collection_name": "$new_many", **many})
    yield _case(row, "one that is there", {"collection_name": NAMED, **many})
    yield _case(row, "a bad name", {"collection_name": "$a/b", **many})


def updates() -> Iterator[Case]:
    """Update."""
    row = COLLECTIONS + "Update"
    diff = {"hnsw_config": {"m": 12}, "quantization_config": _QUANTIZATION["scalar"], "on_disk": True, "memory": "Cold"}
    yield _case(
        row,
        "everything",
        {
            "collection_name": NAMED,
            "optimizers_config": _OPTIMIZERS,
            "timeout": 30,
            "params": {
                "replication_factor": 2,
                "write_consistency_factor": 2,
                "on_disk_payload": False,
                "read_fan_out_factor": 1,
                "read_fan_out_delay_ms": 10,
                "payload": {"memory": "Cached"},
                "id_tracker": {"memory": "Pinned"},
            },
            "hnsw_config": _HNSW,
            "quantization_config": _QUANTIZATION["scalar"],
            "strict_mode_config": _STRICT,
            "metadata": payload({"owner": "you"}),
        },
    )
    for form in ("product", "binary", "turboquant"):
        request = {"collection_name": NAMED, "quantization_config": _QUANTIZATION[form]}
        yield _case(row, f"{form} quantization", request)
    yield _case(row, "no quantization", {"collection_name": NAMED, "quantization_config": {"disabled": {}}})
    named = {"collection_name": NAMED, "vectors_config": {"params_map": {"map": {"o": diff}}}}
    yield _case(row, "one vector", named)
    unnamed = {"collection_name": UNNAMED, "vectors_config": {"params": diff}}
    yield _case(row, "the unnamed vector", unnamed)
    words = {"map": {"words": {"index": {"on_disk": True}, "modifier": "Idf"}}}
    yield _case(row, "a sparse vector", {"collection_name": UNNAMED, "sparse_vectors_config": words})
    yield _case(row, "no collection", {"collection_name": "$gone", "timeout": 3})


def drops() -> Iterator[Case]:
    """Delete a collection."""
    yield _case(COLLECTIONS + "Delete", "one that is there", {"collection_name": NAMED, "timeout": 30})
    yield _case(COLLECTIONS + "Delete", "one that is gone", {"collection_name": NAMED})


def aliases() -> Iterator[Case]:
    """UpdateAliases."""
    row = COLLECTIONS + "UpdateAliases"

    def actions(*changes: tuple[str, Json]) -> Json:
        return {"actions": [{kind: what} for kind, what in changes], "timeout": 30}

    made = [{"collection_name": NAMED, "alias_name": f"$alias_{name}"} for name in "ab"]
    yield _case(row, "create two", actions(*(("create_alias", one) for one in made)))
    renamed = {"old_alias_name": "$alias_a", "new_alias_name": "$alias_c"}
    switched = {"collection_name": PLAIN, "alias_name": "$alias_b"}
    several = actions(
        ("delete_alias", {"alias_name": "$alias_b"}), ("create_alias", switched), ("rename_alias", renamed)
    )
    yield _case(row, "delete, create, rename in one call", several)
    yield _case(row, "rename what is not there", actions(("rename_alias", renamed)))
    yield _case(row, "to no collection", actions(("create_alias", {"collection_name": "$gone", "alias_name": "$x"})))
    yield _case(row, "a name that a collection has", actions(("create_alias", {**made[0], "alias_name": PLAIN})))
    yield _case(row, "delete what is not there", actions(("delete_alias", {"alias_name": "$alias_z"})))


WRITES = [
    *upserts(),
    *deletes(),
    *payloads(),
    *vectors(),
    *update_batches(),
    *field_indexes(),
    *vector_names(),
    *creates(),
    *updates(),
    *drops(),
    *aliases(),
]
