"""Changes to payloads against Qdrant's rules, and against a second implementation of them."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client.conversions.conversion import grpc_to_payload, json_to_value

from generated.qdrant import json_with_int_pb2 as json_pb
from generated.qdrant import points_pb2 as pb
from server.replica import payload_edits
from server.replica.paths import parse_or_refuse
from server.replica.refusal import Refusal


def _map(values: dict[str, Any]) -> dict[str, json_pb.Value]:
    return {key: json_pb.Value.FromString(json_to_value(value).SerializeToString()) for key, value in values.items()}


def _point(values: dict[str, Any]) -> pb.PointStruct:
    return pb.PointStruct(payload=_map(values))


def _read(point: pb.PointStruct) -> dict[str, Any]:
    read: dict[str, Any] = grpc_to_payload(point.payload)  # type: ignore[arg-type]
    return read


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"c": 2}}),
        ({"q": 1}, {"z": None, "q": {"w": None}}, {"q": {"w": None}}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"a": True, "b": [1, None, {}]}, {"a": True, "b": [1, None, {}]}),
    ],
)
def test_set_merges_the_top_level(before: dict[str, Any], change: dict[str, Any], after: dict[str, Any]) -> None:
    point = _point(before)
    payload_edits.merge(point.payload, _map(change))
    assert _read(point) == after


@pytest.mark.parametrize(
    ("before", "path", "change", "after"),
    [
        ({}, "a", {"b": 1}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, "a", {"c": 2}, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b": 1}}, "a", {"b": None}, {"a": {}}),
        ({"a": 10}, "a.b.c", {"x": 1}, {"a": {"b": {"c": {"x": 1}}}}),
        ({}, "key1.key2", {"c": 1}, {"key1": {"key2": {"c": 1}}}),
        ({"a": [{"c": 1}, {"c": 2}]}, "a[1]", {"c": 5}, {"a": [{"c": 1}, {"c": 5}]}),
        ({"a": [{"c": 1}, {"c": 2}]}, "a[]", {"c": 5}, {"a": [{"c": 5}, {"c": 5}]}),
        ({"a": [1, {"c": 2}]}, "a[]", {"c": 5}, {"a": [{"c": 5}, {"c": 5}]}),
        ({"a": [{"c": 1}]}, "a[3]", {"c": 5}, {"a": [{"c": 1}]}),
        ({}, "a.b[3]", {"c": 1}, {"a": {"b": []}}),
        ({}, "a.b[].c", {"c": 1}, {"a": {"b": []}}),
        ({"a": "x"}, "a[]", {"c": 1}, {"a": []}),
        ({}, '"a.b"."c d"', {"e": 1}, {"a.b": {"c d": {"e": 1}}}),
        ({"a": {"b": 1}}, "a.b", {}, {"a": {"b": {}}}),
    ],
)
def test_set_at_a_path(before: dict[str, Any], path: str, change: dict[str, Any], after: dict[str, Any]) -> None:
    point = _point(before)
    payload_edits.set_at(point.payload, parse_or_refuse(path), _map(change))
    assert _read(point) == after


@pytest.mark.parametrize(
    ("before", "path", "after"),
    [
        ({"a": 1, "b": 2}, "a", {"b": 2}),
        ({"a": 1}, "b", {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, "a.b", {"a": {"c": 2}}),
        ({"a": 1}, "a.b", {"a": 1}),
        ({"a": [1, 2, 3]}, "a[1]", {"a": [1, 2, 3]}),
        ({"a": [[1], [2]]}, "a[1][]", {"a": [[1], []]}),
        ({"a": [1]}, "a[5]", {"a": [1]}),
        ({"a": [1, 2]}, "a[]", {"a": []}),
        ({"a": {"b": 1}}, "a[]", {"a": {"b": 1}}),
        ({"a": [{"j": 1, "k": 2}, {"j": 3}, 4]}, "a[].j", {"a": [{"k": 2}, {}, 4]}),
        ({"a": [{"j": 1}, {"j": 3}]}, "a[0].j", {"a": [{}, {"j": 3}]}),
    ],
)
def test_delete_at_a_path(before: dict[str, Any], path: str, after: dict[str, Any]) -> None:
    point = _point(before)
    payload_edits.delete_at(point.payload, parse_or_refuse(path))
    assert _read(point) == after


def test_overwrite_keeps_nulls_and_drops_the_rest() -> None:
    point = _point({"a": 1, "b": 2})
    payload_edits.overwrite(point.payload, _map({"b": None, "c": 3}))
    assert _read(point) == {"b": None, "c": 3}


def test_a_value_with_nothing_in_it_is_null() -> None:
    point = _point({"a": 1})
    payload_edits.overwrite(point.payload, {"a": json_pb.Value()})
    assert point.payload["a"].WhichOneof("kind") == "null_value"
    payload_edits.merge(point.payload, {"a": json_pb.Value()})
    assert "a" not in point.payload


@pytest.mark.parametrize("path", ["", ".", "a.", "a..b", "a[", "a[x]", "a[-1]", "[0]", "a b", '"a', "a]"])
def test_a_text_that_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(Refusal):
        parse_or_refuse(path)
