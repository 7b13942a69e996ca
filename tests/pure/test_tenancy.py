"""Who the tenant is, what happens to each method, and what a confined request looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from server.config import Tenancy
from server.errors import ConfigError
from server.rpc import EXPLAIN, HEALTH_CHECK, METHODS, Call, Code, Kind, Reply
from server.tenancy import MINIMUM_REMOTE_VERSION, Passage, TenancyLayer, confine, is_new_enough, passage_of, reveal
from server.tenancy.confine import AS_IT_IS, CONFINED, REFUSED
from server.tenancy.filters import is_tenant
from server.tenancy.reads import root_of
from tests.faults.backends import RecordingBackend

SETTINGS = Tenancy(enabled=True)
KEY = SETTINGS.payload_key
POINTS = "/qdrant.Points/"
OWN = is_tenant(KEY, "A")


def call(method: str, request: Any = None, *tenants: str | bytes) -> Call:
    metadata = tuple(("x-tenant-id", one) for one in (tenants or ("A",)))
    return Call(method, request.SerializeToString() if request is not None else b"", metadata)


def confined(method: str, request: Any, kind: Any = None) -> Any:
    result = confine(call(POINTS + method, request), SETTINGS)
    assert isinstance(result, Call), result
    assert result.tenant == "A"
    return (kind or type(request)).FromString(result.body)


def refused(method: str, request: Any) -> Reply:
    result = confine(call(POINTS + method, request), SETTINGS)
    assert isinstance(result, Reply)
    return result


# --- the tenant -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((), Code.UNAUTHENTICATED),
        (("",), Code.UNAUTHENTICATED),
        (("  ",), Code.UNAUTHENTICATED),
        (("A",), Code.OK),
        ((b"A",), Code.OK),
        (("A", "A"), Code.OK),
        (("A", "B"), Code.INVALID_ARGUMENT),
        (("A", ""), Code.INVALID_ARGUMENT),
        (("A,B",), Code.INVALID_ARGUMENT),
        ((" A",), Code.INVALID_ARGUMENT),
        (("A ",), Code.INVALID_ARGUMENT),
        (("A\n",), Code.INVALID_ARGUMENT),
        (("A\x00B",), Code.INVALID_ARGUMENT),
        (("Ä",), Code.INVALID_ARGUMENT),
        (("x" * 128,), Code.OK),
        (("x" * 129,), Code.INVALID_ARGUMENT),
        (("team one/eu-west:7@acme.org",), Code.OK),
    ],
)
def test_one_well_formed_tenant_or_a_refusal(values: tuple[str | bytes, ...], code: Code) -> None:
    given_call = Call(POINTS + "Count", b"", tuple(("x-tenant-id", one) for one in values))
    result = confine(given_call, SETTINGS)
    assert (result.code if isinstance(result, Reply) else Code.OK) is code
    if isinstance(result, Reply):
        assert "x-tenant-id" in result.details


def test_the_header_is_found_in_any_case_and_may_have_another_name() -> None:
    other = Tenancy(enabled=True, metadata_key="X-Org", payload_key="org")
    result = confine(Call(POINTS + "Count", b"", (("x-org", "A"),)), other)
    assert isinstance(result, Call)
    assert points.CountPoints.FromString(result.body).filter.must[0] == is_tenant("org", "A")
    assert isinstance(confine(call(POINTS + "Count"), other), Reply)


@pytest.mark.parametrize(
    "bad",
    [
        {"payload_key": "a.b"}, {"payload_key": "a[0]"}, {"payload_key": '"a"'}, {"payload_key": "a b"},
        {"metadata_key": "x-bin"}, {"metadata_key": "grpc-x"}, {"metadata_key": "a b"}, {"metadata_key": ""},
    ],
)  # fmt: skip
def test_settings_that_cannot_confine_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tenancy"):
        TenancyLayer(RecordingBackend(), Tenancy(enabled=True, **bad))  # type: ignore[arg-type]
    TenancyLayer(RecordingBackend(), Tenancy(enabled=False, **bad))  # type: ignore[arg-type]


# --- the methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", METHODS)
def test_each_method_has_exactly_one_rule(path: str) -> None:
    assert sum([path == HEALTH_CHECK, path in AS_IT_IS, path in CONFINED, path in REFUSED]) == 1
    if passage_of(path) is Passage.CONFINED:
        assert METHODS[path].kind in (Kind.READ, Kind.WRITE)


def test_no_rule_is_about_a_method_that_is_not_there() -> None:
    assert {*AS_IT_IS, *CONFINED, *REFUSED, HEALTH_CHECK} == set(METHODS)


@pytest.mark.parametrize("path", [*METHODS, POINTS + "Future", "/qdrant.StorageRead/Read", "/other.Service/Call"])
def test_without_a_tenant_only_health_passes(path: str) -> None:
    result = confine(Call(path, b""), SETTINGS)
    if path == HEALTH_CHECK:
        assert isinstance(result, Call)
    else:
        assert isinstance(result, Reply) and result.code is Code.UNAUTHENTICATED
    assert isinstance(confine(Call("/grpc.health.v1.Health/Check", b""), SETTINGS), Call)


@pytest.mark.parametrize("path", [*REFUSED, POINTS + "Future", "/qdrant.StorageRead/Read", "/other.Service/Call"])
def test_what_touches_everybody_and_what_is_unknown_is_refused(path: str) -> None:
    result = confine(call(path), SETTINGS)
    assert isinstance(result, Reply) and result.code is Code.PERMISSION_DENIED
    assert path in result.details


@pytest.mark.parametrize("path", AS_IT_IS)
def test_what_is_about_collections_passes_as_it_is(path: str) -> None:
    body = b"\x0a\x01c"
    result = confine(Call(path, body, (("x-tenant-id", "A"),)), SETTINGS)
    assert isinstance(result, Call) and result.body is body and result.tenant == "A"


@pytest.mark.parametrize("path", CONFINED)
def test_a_request_with_unknown_fields_is_refused(path: str) -> None:
    result = confine(Call(path, b"\xa2\x38\x01x", (("x-tenant-id", "A"),)), SETTINGS)
    assert isinstance(result, Reply) and result.code is Code.PERMISSION_DENIED
    assert "not known" in result.details


def test_unknown_fields_deep_inside_are_seen_too() -> None:
    deep = points.Query.FromString(b"\xa2\x38\x01x").SerializeToString()
    body = b"\x12" + bytes([len(deep) + 2]) + b"\x12" + bytes([len(deep)]) + deep
    result = confine(Call(POINTS + "Query", body, (("x-tenant-id", "A"),)), SETTINGS)
    assert isinstance(result, Reply) and "not known" in result.details


@pytest.mark.parametrize("path", CONFINED)
def test_an_undecodable_request_is_refused_as_qdrant_does(path: str) -> None:
    result = confine(Call(path, b"\xff\xff\xff", (("x-tenant-id", "A"),)), SETTINGS)
    assert isinstance(result, Reply) and result.code is Code.INTERNAL
    assert result.details.startswith("failed to decode Protobuf message")


# What can select, name or carry points in a request that is confined. A newer API that adds a row must be judged first.
SELECTING = {
    "ClearPayloadPoints.points", "Condition.filter", "CountPoints.filter", "DeletePayloadPoints.points_selector",
    "DeletePointVectors.points_selector", "DeletePoints.points", "DiscoverPoints.filter", "DiscoverPoints.lookup_from",
    "FacetCounts.filter", "GetPoints.ids", "HasIdCondition.has_id", "IdfParams.corpus", "NestedCondition.filter",
    "PointStruct.id", "PointVectors.id", "PointsIdsList.ids", "PointsSelector.filter", "PointStructList.points",
    "PointStructList.update_filter", "PointsUpdateOperation.clear_payload_deprecated",
    "PointsUpdateOperation.delete_deprecated", "ClearPayload.points", "DeletePayload.points_selector",
    "DeleteVectors.points_selector", "OverwritePayload.points_selector",
    "SetPayload.points_selector", "UpdateVectors.points", "UpdateVectors.update_filter", "PrefetchQuery.filter",
    "PrefetchQuery.lookup_from", "QueryPointGroups.filter", "QueryPointGroups.lookup_from",
    "QueryPointGroups.with_lookup", "QueryPoints.filter", "QueryPoints.lookup_from", "RecommendPointGroups.filter",
    "RecommendPointGroups.lookup_from", "RecommendPointGroups.negative", "RecommendPointGroups.positive",
    "RecommendPointGroups.with_lookup", "RecommendPoints.filter", "RecommendPoints.lookup_from",
    "RecommendPoints.negative", "RecommendPoints.positive", "ScrollPoints.filter", "ScrollPoints.offset",
    "SearchMatrixPoints.filter", "SearchPointGroups.filter", "SearchPointGroups.with_lookup", "SearchPoints.filter",
    "SetPayloadPoints.points_selector", "UpdatePointVectors.points", "UpdatePointVectors.update_filter",
    "UpsertPoints.points", "UpsertPoints.update_filter", "VectorExample.id", "VectorInput.id",
}  # fmt: skip
SELECTORS = {"Filter", "PointId", "PointsSelector", "LookupLocation", "WithLookup", "PointStruct", "PointVectors"}
# The forms of a query, and of an update: each has a rule of its own.
QUERIES = {
    "nearest", "recommend", "discover", "context", "order_by", "fusion", "sample", "formula", "nearest_with_mmr", "rrf",
    "relevance_feedback", "text",
}  # fmt: skip
INPUTS = {
    "RecommendInput.positive", "RecommendInput.negative", "DiscoverInput.target", "ContextInputPair.positive",
    "ContextInputPair.negative", "RelevanceFeedbackInput.target", "FeedbackItem.example", "NearestInputWithMmr.nearest",
    "Query.nearest", "TargetVector.single", "ContextExamplePair.positive", "ContextExamplePair.negative",
}  # fmt: skip


def fields_of(descriptor: Any, seen: set[str]) -> Iterator[tuple[str, str]]:
    if descriptor.full_name in seen:
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        if field.message_type is not None:
            yield f"{descriptor.name}.{field.name}", field.message_type.name
            yield from fields_of(field.message_type, seen)


def test_everything_that_can_select_points_is_accounted_for() -> None:
    seen: set[str] = set()
    found = [pair for path in CONFINED for pair in fields_of(METHODS[path].request.DESCRIPTOR, seen)]
    assert {name for name, kind in found if kind in SELECTORS} == SELECTING
    assert {name for name, kind in found if kind in ("VectorInput", "VectorExample")} == INPUTS
    assert {points.Query.DESCRIPTOR.oneofs_by_name["variant"].fields[n].name for n in range(12)} == QUERIES
    assert {field.name for field in points.Query.DESCRIPTOR.fields} == QUERIES


# --- reads ------------------------------------------------------------------------------------------------------------


def city(name: str) -> common.Condition:
    return common.Condition(field=common.FieldCondition(key="city", match=common.Match(keyword=name)))


FILTERS = [
    common.Filter(should=[city("Rome"), city("Oslo")]),
    common.Filter(must_not=[OWN]),
    common.Filter(min_should=common.MinShould(conditions=[city("Rome")], min_count=1)),
    common.Filter(must=[city("Rome")], should=[is_tenant(KEY, "B")]),
]


@pytest.mark.parametrize("given_filter", FILTERS)
@pytest.mark.parametrize("method", ["Scroll", "Count", "Facet", "Search", "Query", "SearchMatrixPairs", "Recommend"])
def test_the_clients_filter_goes_whole_below_must(method: str, given_filter: common.Filter) -> None:
    request = METHODS[POINTS + method].request()
    request.filter.CopyFrom(given_filter)  # type: ignore[attr-defined]
    found = confined(method, request).filter
    assert found == common.Filter(must=[OWN, common.Condition(filter=given_filter)])


@pytest.mark.parametrize("empty", [False, True])
def test_no_filter_and_an_empty_one_become_the_tenant_alone(empty: bool) -> None:
    request = points.ScrollPoints(collection_name="c")
    if empty:
        request.filter.SetInParent()
    assert confined("Scroll", request).filter == common.Filter(must=[OWN])


def test_every_level_of_a_query_is_confined() -> None:
    request = points.QueryBatchPoints(collection_name="c")
    query = request.query_points.add()
    below = query.prefetch.add().prefetch.add()
    below.params.idf.corpus.must.append(city("Rome"))
    found = confined("QueryBatch", request).query_points[0]
    for level in (found, found.prefetch[0], found.prefetch[0].prefetch[0]):
        assert level.filter == common.Filter(must=[OWN])
    corpus = found.prefetch[0].prefetch[0].params.idf.corpus
    assert corpus.must[0] == OWN and corpus.must[1].filter.must[0] == city("Rome")
    assert not found.HasField("params")


@pytest.mark.parametrize("method", ["QueryBatch", "SearchBatch", "RecommendBatch", "DiscoverBatch"])
def test_a_batch_may_not_name_other_collections(method: str) -> None:
    request = METHODS[POINTS + method].request(collection_name="c")
    parts = getattr(request, {"Q": "query", "S": "search", "R": "recommend", "D": "discover"}[method[0]] + "_points")
    parts.add(collection_name="c")
    parts.add()
    confined(method, request)
    parts.add(collection_name="d")
    assert refused(method, request).code is Code.PERMISSION_DENIED


def test_without_a_backend_to_ask_points_by_id_are_refused() -> None:
    by_id = points.QueryPoints()
    by_id.query.nearest.id.num = 1
    assert refused("Query", by_id).code is Code.PERMISSION_DENIED
    assert refused("Recommend", points.RecommendPoints(positive=[common.PointId(num=1)])).code is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("asked", "sent", "visible"),
    [
        ({}, {"include": [KEY]}, False),
        ({"enable": False}, {"include": [KEY]}, False),
        ({"enable": True}, {"enable": True}, True),
        ({"include": ["a"]}, {"include": ["a", KEY]}, False),
        ({"include": [KEY]}, {"include": [KEY]}, True),
        ({"include": []}, {"include": [KEY]}, False),
        ({"exclude": ["a"]}, {"exclude": ["a"]}, True),
        ({"exclude": ["a", KEY]}, {"exclude": ["a"]}, False),
        ({"exclude": [KEY]}, {"exclude": []}, False),
        ({"exclude": [f'"{KEY}"']}, {"exclude": []}, False),
    ],
)
def test_get_asks_for_the_tenant_and_hides_it_again(asked: Any, sent: Any, visible: bool) -> None:
    request = points.GetPoints(collection_name="c", ids=[common.PointId(num=1)], with_payload=selector(asked))
    if not asked:
        request.ClearField("with_payload")
    assert confined("Get", request).with_payload == selector(sent)
    response = points.GetResponse(time=1.5)
    for number, tenant in enumerate(["A", "B", None, ["A", "x"], ["B"], 7]):
        point = response.result.add()
        point.id.num = number
        point.payload["a"].integer_value = 1
        if isinstance(tenant, str):
            point.payload[KEY].string_value = tenant
        elif isinstance(tenant, list):
            for one in tenant:
                point.payload[KEY].list_value.values.add().string_value = one
        elif tenant is not None:
            point.payload[KEY].integer_value = tenant
    shown = reveal(call(POINTS + "Get", request), Reply(response.SerializeToString()), SETTINGS, "A")
    found = points.GetResponse.FromString(shown.body)
    assert [point.id.num for point in found.result] == [0, 3]
    assert all((KEY in point.payload) == visible for point in found.result)
    assert all("a" in point.payload for point in found.result) and found.time == 1.5


def selector(form: dict[str, Any]) -> points.WithPayloadSelector:
    made = points.WithPayloadSelector()
    for name, value in form.items():
        if name == "enable":
            made.enable = value
        else:
            getattr(made, name).SetInParent()
            getattr(made, name).fields.extend(value)
    return made


@pytest.mark.parametrize("method", ["QueryGroups", "SearchGroups", "RecommendGroups"])
def test_what_groups_look_up_is_dropped_unless_it_is_the_tenants(method: str) -> None:
    request = METHODS[POINTS + method].request(collection_name="c")
    request.with_lookup.collection = "d"  # type: ignore[attr-defined]
    assert confined(method, request).with_lookup.with_payload == selector({"enable": True})
    response = getattr(points, f"{method}Response")()
    for tenant in ("A", "B", ""):
        group = response.result.groups.add()
        group.hits.add(score=1.0)
        group.lookup.payload["a"].integer_value = 1
        if tenant:
            group.lookup.payload[KEY].string_value = tenant
    response.result.groups.add()
    reply = Reply(response.SerializeToString())
    groups = type(response).FromString(reveal(call(POINTS + method, request), reply, SETTINGS, "A").body).result.groups
    assert [group.HasField("lookup") for group in groups] == [True, False, False, False]
    assert [len(group.hits) for group in groups] == [1, 1, 1, 0]
    assert KEY in groups[0].lookup.payload
    request.with_lookup.with_payload.include.fields.append("a")  # type: ignore[attr-defined]
    groups = type(response).FromString(reveal(call(POINTS + method, request), reply, SETTINGS, "A").body).result.groups
    assert KEY not in groups[0].lookup.payload and "a" in groups[0].lookup.payload


def test_refusals_and_other_answers_pass_as_they_are() -> None:
    for method, reply in (("Get", Reply(code=Code.NOT_FOUND)), ("Scroll", Reply(b"x")), ("QueryGroups", Reply(b""))):
        assert reveal(call(POINTS + method, points.GetPoints()), reply, SETTINGS, "A") is reply


# --- writes -----------------------------------------------------------------------------------------------------------


def test_upserted_points_are_stamped_and_guarded() -> None:
    request = points.UpsertPoints(collection_name="c", update_filter=FILTERS[0])
    request.points.add().payload["x"].integer_value = 1
    request.points.add().payload[KEY].string_value = "A"
    found = confined("Upsert", request)
    assert [point.payload[KEY].string_value for point in found.points] == ["A", "A"]
    assert found.points[0].payload["x"].integer_value == 1
    assert found.update_filter == common.Filter(must=[OWN, common.Condition(filter=FILTERS[0])])


@pytest.mark.parametrize(
    "value", [{"string_value": "B"}, {"string_value": ""}, {"integer_value": 1}, {"null_value": 0}]
)
@pytest.mark.parametrize("method", ["Upsert", "SetPayload", "OverwritePayload"])
def test_another_tenant_in_the_payload_is_refused(method: str, value: dict[str, Any]) -> None:
    request = METHODS[POINTS + method].request(collection_name="c")
    payload = request.points.add().payload if method == "Upsert" else request.payload  # type: ignore[attr-defined]
    for name, content in value.items():
        setattr(payload[KEY], name, content)
    assert refused(method, request).code is Code.PERMISSION_DENIED


IDS = points.PointsSelector(points=points.PointsIdsList(ids=[common.PointId(num=1), common.PointId(num=2)]))
NO_IDS = points.PointsSelector(points=points.PointsIdsList())
BY_FILTER = points.PointsSelector(filter=FILTERS[0])
NARROWED = [
    (IDS, [OWN, common.Condition(has_id=common.HasIdCondition(has_id=IDS.points.ids))]),
    (NO_IDS, [OWN, common.Condition(has_id=common.HasIdCondition())]),
    (BY_FILTER, [OWN, common.Condition(filter=FILTERS[0])]),
    (points.PointsSelector(filter=common.Filter()), [OWN]),
]


@pytest.mark.parametrize(("given_selector", "must"), NARROWED)
@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("Delete", "points"), ("DeleteVectors", "points_selector"), ("SetPayload", "points_selector"),
        ("OverwritePayload", "points_selector"), ("DeletePayload", "points_selector"),
    ],
)  # fmt: skip
def test_selectors_become_filters_of_the_tenant(method: str, field: str, given_selector: Any, must: Any) -> None:
    request = METHODS[POINTS + method].request(collection_name="c")
    getattr(request, field).CopyFrom(given_selector)
    assert getattr(confined(method, request), field) == points.PointsSelector(filter=common.Filter(must=must))
    request.ClearField(field)  # type: ignore[arg-type]
    assert refused(method, request).code is Code.INVALID_ARGUMENT


def test_clearing_leaves_the_tenant() -> None:
    request = points.ClearPayloadPoints(collection_name="c", wait=True, points=IDS, timeout=3)
    request.ordering.type = points.Strong
    request.shard_key_selector.shard_keys.add(keyword="k")
    result = confine(call(POINTS + "ClearPayload", request), SETTINGS)
    assert isinstance(result, Call) and result.method == POINTS + "OverwritePayload"
    found = points.SetPayloadPoints.FromString(result.body)
    assert {key: value.string_value for key, value in found.payload.items()} == {KEY: "A"}
    assert (found.collection_name, found.wait, found.timeout, found.ordering.type) == ("c", True, 3, points.Strong)
    assert found.shard_key_selector == request.shard_key_selector
    assert found.points_selector.filter.must[0] == OWN
    # What is copied is all there is to copy.
    assert {field.name for field in points.ClearPayloadPoints.DESCRIPTOR.fields} == {
        "collection_name", "wait", "points", "ordering", "shard_key_selector", "timeout",
    }  # fmt: skip


@pytest.mark.parametrize("path", [KEY, f'"{KEY}"', f"{KEY}.x", f"{KEY}[0]", f"{KEY}[]", f" {KEY}"])
def test_no_path_reaches_the_tenant(path: str) -> None:
    request = points.SetPayloadPoints(points_selector=IDS, key=path)
    assert refused("SetPayload", request).code is Code.PERMISSION_DENIED
    deleting = points.DeletePayloadPoints(points_selector=IDS, keys=["a", path])
    assert refused("DeletePayload", deleting).code is Code.PERMISSION_DENIED


def test_paths_beside_the_tenant_pass_and_an_overwritten_part_does_not() -> None:
    request = points.SetPayloadPoints(points_selector=IDS, key=f"meta.{KEY}")
    request.payload[KEY].string_value = "B"
    assert confined("SetPayload", request).payload[KEY].string_value == "B"
    assert refused("OverwritePayload", request).code is Code.PERMISSION_DENIED
    request.key = ""
    assert refused("SetPayload", request).code is Code.PERMISSION_DENIED


@settings(deadline=None)
@given(st.text(max_size=12))
def test_the_root_of_any_path_is_found(rest: str) -> None:
    assert root_of(f'"{KEY}"{rest}') == KEY
    for separator in ".[":
        assert root_of(f"{KEY}{separator}{rest}") == KEY


def test_each_operation_of_a_batch_is_confined() -> None:
    request = points.UpdateBatchPoints(collection_name="c")
    for field in points.PointsUpdateOperation.DESCRIPTOR.fields:
        part = getattr(request.operations.add(), field.name)
        if field.name in ("upsert", "update_vectors"):
            part.points.add().id.num = 1
        elif field.name in ("delete_deprecated", "clear_payload_deprecated"):
            part.CopyFrom(IDS)
        else:
            getattr(part, "points" if field.name in ("delete_points", "clear_payload") else "points_selector").CopyFrom(
                IDS
            )
    found = confined("UpdateBatch", request)
    for operation in found.operations:
        part = getattr(operation, operation.WhichOneof("operation"))
        text = str(part)
        assert 'keyword: "A"' in text and "filter" in text, operation
    kinds = [operation.WhichOneof("operation") for operation in found.operations]
    assert "clear_payload" not in kinds and "clear_payload_deprecated" not in kinds
    request.operations.add()
    assert refused("UpdateBatch", request).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("field", "kind", "params", "passes"),
    [
        ("city", points.FieldTypeText, None, True),
        (KEY, points.FieldTypeKeyword, None, True),
        (KEY, points.FieldTypeKeyword, "keyword_index_params", True),
        (KEY, None, "keyword_index_params", True),
        (KEY, None, None, False),
        (KEY, points.FieldTypeText, None, False),
        (KEY, points.FieldTypeKeyword, "text_index_params", False),
        (f"{KEY}[]", points.FieldTypeKeyword, None, False),
        (f'"{KEY}"', points.FieldTypeKeyword, None, False),
    ],
)
def test_the_index_on_the_tenant_is_a_keyword_one(field: str, kind: Any, params: str | None, passes: bool) -> None:
    request = points.CreateFieldIndexCollection(collection_name="c", field_name=field)
    if kind is not None:
        request.field_type = kind
    if params:
        getattr(request.field_index_params, params).SetInParent()
    result = confine(call(POINTS + "CreateFieldIndex", request), SETTINGS)
    assert isinstance(result, Call) == passes


# --- the layer --------------------------------------------------------------------------------------------------------


async def test_switched_off_it_is_not_there() -> None:
    inner = RecordingBackend()
    original = Call(POINTS + "Count", b"\xff")
    await TenancyLayer(inner, Tenancy()).handle(original)
    assert inner.calls == [original] and inner.calls[0] is original


async def test_no_plan_of_an_answer_is_given_to_a_tenant() -> None:
    """It would count the points of the others, and `local` would ask the replica while Qdrant is up."""
    inner = RecordingBackend()
    asked = call(POINTS + "Count", points.CountPoints(collection_name="c"))
    asked = replace(asked, metadata=(*asked.metadata, (EXPLAIN, "local"), ("other", "x")))
    await TenancyLayer(inner, SETTINGS).handle(asked)
    [passed] = inner.calls
    assert passed.metadata == (("x-tenant-id", "A"), ("other", "x"))


async def test_points_by_id_are_shown_to_be_own_before_and_after() -> None:
    request = points.QueryPoints(collection_name="c")
    request.query.nearest.id.uuid = "550e8400e29b41d4a716446655440000"
    request.lookup_from.collection_name = "d"
    response = points.ScrollResponse()
    response.result.add().id.uuid = "550e8400-e29b-41d4-a716-446655440000"
    inner = RecordingBackend(reply=Reply(response.SerializeToString()))
    reply = await TenancyLayer(inner, SETTINGS).handle(call(POINTS + "Query", request))
    assert reply.is_ok and inner.methods == ["Scroll", "Query", "Scroll"]
    asked = points.ScrollPoints.FromString(inner.calls[0].body)
    assert asked.collection_name == "d" and asked.filter.must[0] == OWN
    assert inner.calls[0].tenant == "A" and inner.calls[0].metadata == inner.calls[1].metadata
    empty = RecordingBackend()
    reply = await TenancyLayer(empty, SETTINGS).handle(call(POINTS + "Query", request))
    assert (reply.code, reply.details) == (
        Code.NOT_FOUND, "Not found: No point with id 550e8400-e29b-41d4-a716-446655440000 found",
    )  # fmt: skip
    assert empty.methods == ["Scroll"]
    away = RecordingBackend(reply=Reply(code=Code.UNAVAILABLE, details="away"))
    assert (await TenancyLayer(away, SETTINGS).handle(call(POINTS + "Query", request))).details == "away"


async def test_a_point_that_changes_hands_during_the_query_is_not_revealed() -> None:
    request = points.QueryPoints(collection_name="c")
    request.query.nearest.id.num = 1
    own = points.ScrollResponse()
    own.result.add().id.num = 1

    class Changing(RecordingBackend):
        async def handle(self, inner_call: Call) -> Reply:
            await super().handle(inner_call)
            return Reply(own.SerializeToString() if len(self.calls) == 1 else b"")

    reply = await TenancyLayer(Changing(), SETTINGS).handle(call(POINTS + "Query", request))
    assert reply.code is Code.NOT_FOUND and not reply.body


async def test_a_write_to_a_foreign_point_is_refused_not_swallowed() -> None:
    request = points.UpsertPoints(collection_name="c")
    request.points.add().id.num = 7
    foreign = points.ScrollResponse()
    foreign.result.add().id.num = 7
    inner = RecordingBackend(reply=Reply(foreign.SerializeToString()))
    reply = await TenancyLayer(inner, SETTINGS).handle(call(POINTS + "Upsert", request))
    assert reply.code is Code.PERMISSION_DENIED and "7" in reply.details and inner.methods == ["Scroll"]
    free = RecordingBackend()
    assert (await TenancyLayer(free, SETTINGS).handle(call(POINTS + "Upsert", request))).is_ok
    assert free.methods == ["Scroll", "Upsert"]


@pytest.mark.parametrize(
    ("version", "code"),
    [(None, Code.OK), ("1.17.0", Code.OK), ("1.16.9", Code.FAILED_PRECONDITION), ("", Code.UNAVAILABLE)],
)
@pytest.mark.parametrize("method", ["Upsert", "UpdateVectors", "UpdateBatch"])
async def test_a_qdrant_too_old_to_guard_gets_no_writes(method: str, version: str | None, code: Code) -> None:
    inner = RecordingBackend()
    layer = TenancyLayer(inner, SETTINGS, remote_version=lambda: version)
    reply = await layer.handle(call(POINTS + method, METHODS[POINTS + method].request(collection_name="c")))
    assert reply.code is code and bool(inner.calls) == (code is Code.OK)
    assert (await layer.handle(call(POINTS + "Count", points.CountPoints()))).is_ok
    assert layer.minimum_remote_version == MINIMUM_REMOTE_VERSION


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("1.17.0", True),
        ("v1.17", True),
        ("2.0.0", True),
        ("1.9.9", False),
        ("1.16.3-dev", False),
        ("", False),
        ("x", False),
    ],
)
def test_versions(version: str, enough: bool) -> None:
    assert is_new_enough(version) == enough


async def test_creating_a_collection_passes() -> None:
    inner = RecordingBackend()
    request = collections.CreateCollection(collection_name="c")
    assert (await TenancyLayer(inner, SETTINGS).handle(call("/qdrant.Collections/Create", request))).is_ok
    assert inner.methods == ["Create"]


def test_the_documentation_has_the_same_methods() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    for passage, service, table in (("unchanged", "Collections", AS_IT_IS), ("rewritten", "Points", CONFINED)):
        row = re.search(rf"^\| {service}: (.+) \| pass with a tenant, {passage} \|$", page, re.MULTILINE)
        assert row is not None
        assert {f"/qdrant.{service}/{name}" for name in row[1].split(", ")} == set(table)
