"""What the tests of the offline table work on: small collections in which every condition tells points apart.

`main` has a vector of each kind and payloads of each type, with indexes; `plain` one unnamed vector and no index;
`other` is there to be looked up in. Everything is a protobuf request in JSON form, as `understudy explain` takes it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, TypeAlias

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from server.rpc import COLLECTIONS, METHODS, POINTS

Json: TypeAlias = "dict[str, Any]"
MAIN, PLAIN, OTHER, ALIAS = "main", "plain", "other", "also_main"
COUNT = 24
UUIDS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(1, 5)]


def message(method: str, request: Json) -> Any:
    """The request of a method out of its JSON form."""
    made: Message = METHODS[method].request()
    return ParseDict(request, made)


def value(plain: Any) -> Json:
    """A payload value in JSON form."""
    match plain:
        case None:
            return {"null_value": "NULL_VALUE"}
        case bool():
            return {"bool_value": plain}
        case int():
            return {"integer_value": plain}
        case float():
            return {"double_value": plain}
        case str():
            return {"string_value": plain}
        case list():
            return {"list_value": {"values": [value(one) for one in plain]}}
        case _:
            return {"struct_value": {"fields": payload(plain)}}


def payload(plain: Json) -> Json:
    """A payload in JSON form."""
    return {key: value(one) for key, one in plain.items()}


def pid(number: int | str) -> Json:
    """A point id."""
    return {"uuid": number} if isinstance(number, str) else {"num": number}


def dense(*numbers: float) -> Json:
    """A dense vector."""
    return {"dense": {"data": list(numbers)}}


def sparse(**numbers: float) -> Json:
    """A sparse vector: `_3=0.5` is 0.5 at index 3."""
    return {"sparse": {"indices": [int(name[1:]) for name in numbers], "values": list(numbers.values())}}


def multi(*rows: list[float]) -> Json:
    """A multivector."""
    return {"multi_dense": {"vectors": [{"data": row} for row in rows]}}


def identity(number: int) -> int | str:
    """The id of the point with that number: some are UUIDs."""
    return UUIDS[number // 6] if number % 6 == 5 else number


TEXTS = ["the quick brown fox", "Brown bears sleep", "a quick nap", "Foxes and bears", "nothing here"]


def payload_of(number: int) -> Json:
    """The payload of a point of `main`."""
    made: Json = {
        "k": ["x", "y", ["x", "z"], "z"][number % 4],
        "n": [number % 7, number % 3] if number % 5 == 0 else number % 7,
        "f": round(number * 1.25, 3),
        "b": number % 2 == 0,
        "when": f"2024-01-{number % 28 + 1:02d}T12:00:00Z",
        "where": {"lon": 13.0 + number / 10, "lat": 52.0 + (number % 5) / 10},
        "text": TEXTS[number % 5],
        "plain_text": TEXTS[number % 5],
        "u": f"11111111-0000-4000-8000-{number % 4:012d}",
        "group": ["red", "green", "blue"][number % 3],
        "number": number % 4,
        "l": [{"a": number % 3, "b": number % 2}, {"a": number % 4, "b": 1}],
        "tags": [f"t{one}" for one in range(number % 4)],
        "o": {"x": number, "y": "deep"},
    }
    if number % 6 == 1:
        made["empty"] = None
    if number % 6 == 2:
        made["empty"] = []
    if number % 6 == 3:
        made["empty"] = "full"
    return made


def point(number: int, chance: random.Random) -> Json:
    """A point of `main`; some lack a vector."""

    def some(size: int) -> list[float]:
        return [round(chance.gauss(0, 1), 4) for _ in range(size)]

    indices = sorted({0, *chance.sample(range(1, 12), 4)})
    weights = [round(0.1 + chance.random(), 4) for _ in indices]
    vectors = {
        "cos": dense(*some(4)),
        "euc": dense(*some(4)),
        "man": dense(*some(4)),
        "dot": dense(*some(4)),
        "multi": multi(*(some(3) for _ in range(1 + number % 3))),
        "sparse": {"sparse": {"indices": indices, "values": weights}},
        "idf": {"sparse": {"indices": indices, "values": weights}},
        # Numbers that 16 bits hold: local mode behind the stand-in does not round, Qdrant and the replica do.
        "half": dense(*(chance.randrange(-128, 128) / 64 for _ in range(4))),
        "byte": dense(*(float(chance.randrange(256)) for _ in range(4))),
    }
    if number % 8 == 7:
        del vectors["euc"], vectors["multi"]
    return {
        "id": pid(identity(number)),
        "payload": payload(payload_of(number)),
        "vectors": {"vectors": {"vectors": vectors}},
    }


def _params(distance: str, size: int = 4, **more: Any) -> Json:
    return {"size": size, "distance": distance, **more}


VECTORS: Json = {
    "cos": _params("Cosine"),
    "euc": _params("Euclid"),
    "man": _params("Manhattan"),
    "dot": _params("Dot"),
    "multi": _params("Cosine", 3, multivector_config={"comparator": "MaxSim"}),
    "half": _params("Dot", datatype="Float16"),
    "byte": _params("Euclid", datatype="Uint8"),
}
COSINE = frozenset(("cos", "multi", "o"))
SPARSE: Json = {"sparse": {}, "idf": {"modifier": "Idf"}}
INDEXES = {
    "k": ("Keyword", {}),
    "n": ("Integer", {"integer_index_params": {"lookup": True, "range": True}}),
    "f": ("Float", {}),
    "b": ("Bool", {}),
    "when": ("Datetime", {}),
    "where": ("Geo", {}),
    "text": ("Text", {"text_index_params": {"tokenizer": "Word", "lowercase": True, "phrase_matching": True}}),
    "u": ("Uuid", {}),
}


def named_collection(name: str) -> Iterator[tuple[str, Json]]:
    """The writes that make a collection like `main`."""
    chance = random.Random(8)
    yield (
        COLLECTIONS + "Create",
        {
            "collection_name": name,
            "vectors_config": {"params_map": {"map": VECTORS}},
            "sparse_vectors_config": {"map": SPARSE},
        },
    )
    for field, (kind, params) in INDEXES.items():
        index: Json = {"collection_name": name, "field_name": field, "field_type": f"FieldType{kind}", "wait": True}
        yield POINTS + "CreateFieldIndex", {**index, "field_index_params": params} if params else index
    points = [point(number, chance) for number in range(COUNT)]
    yield POINTS + "Upsert", {"collection_name": name, "points": points, "wait": True}


def plain_collection(name: str) -> Iterator[tuple[str, Json]]:
    """The writes that make a collection like `plain`."""
    chance = random.Random(9)
    yield COLLECTIONS + "Create", {"collection_name": name, "vectors_config": {"params": _params("Dot")}}
    points = [
        {
            "id": pid(identity(number)),
            "payload": payload({"a": ["x", "y", "z"][number % 3], "n": number, "o": {"x": [1, {"y": number}]}}),
            "vectors": {"vector": dense(*(round(chance.gauss(0, 1), 4) for _ in range(4)))},
        }
        for number in range(12)
    ]
    yield POINTS + "Upsert", {"collection_name": name, "points": points, "wait": True}


def other_collection(name: str) -> Iterator[tuple[str, Json]]:
    """The writes that make a collection to be looked up in: its ids are numbers of groups and of points."""
    chance = random.Random(10)
    config = {"params_map": {"map": {"o": _params("Cosine"), "more": _params("Dot", 2)}}}
    yield COLLECTIONS + "Create", {"collection_name": name, "vectors_config": config}
    points = [
        {
            "id": pid(number),
            "payload": payload({"name": f"number {number}", "hidden": number}),
            "vectors": {
                "vectors": {
                    "vectors": {
                        "o": dense(*(round(chance.gauss(0, 1), 4) for _ in range(4))),
                        "more": dense(float(number), 1.0),
                    }
                }
            },
        }
        for number in range(4)
    ]
    yield POINTS + "Upsert", {"collection_name": name, "points": points, "wait": True}


def readable() -> Iterator[tuple[str, Json]]:
    """The writes that make what the reads are about."""
    yield from named_collection(MAIN)
    yield from plain_collection(PLAIN)
    yield from other_collection(OTHER)
    alias = {"create_alias": {"collection_name": MAIN, "alias_name": ALIAS}}
    yield COLLECTIONS + "UpdateAliases", {"actions": [alias]}
