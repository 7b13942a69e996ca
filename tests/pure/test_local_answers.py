"""The warning reaches every point of an answer, and nothing else changes."""

from __future__ import annotations

import pytest

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server import local_answers
from server.rpc import METHODS, Kind, Offline

SCORED = [points_pb2.ScoredPoint(id=common.PointId(num=n), score=n / 2) for n in (1, 2)]
RETRIEVED = [points_pb2.RetrievedPoint(id=common.PointId(num=n)) for n in (1, 2)]
GROUPS = points_pb2.GroupsResult(groups=[points_pb2.PointGroup(hits=SCORED, lookup=RETRIEVED[0])])

ANSWERS = {
    "Query": points_pb2.QueryResponse(result=SCORED, time=0.5),
    "QueryBatch": points_pb2.QueryBatchResponse(result=[points_pb2.BatchResult(result=SCORED)] * 2),
    "QueryGroups": points_pb2.QueryGroupsResponse(result=GROUPS),
    "Search": points_pb2.SearchResponse(result=SCORED),
    "SearchBatch": points_pb2.SearchBatchResponse(result=[points_pb2.BatchResult(result=SCORED)]),
    "SearchGroups": points_pb2.SearchGroupsResponse(result=GROUPS),
    "Recommend": points_pb2.RecommendResponse(result=SCORED),
    "RecommendBatch": points_pb2.RecommendBatchResponse(result=[points_pb2.BatchResult(result=SCORED)]),
    "RecommendGroups": points_pb2.RecommendGroupsResponse(result=GROUPS),
    "Discover": points_pb2.DiscoverResponse(result=SCORED),
    "DiscoverBatch": points_pb2.DiscoverBatchResponse(result=[points_pb2.BatchResult(result=SCORED)]),
    "Scroll": points_pb2.ScrollResponse(result=RETRIEVED, next_page_offset=common.PointId(num=9)),
    "Get": points_pb2.GetResponse(result=RETRIEVED),
}


@pytest.mark.parametrize("method", ANSWERS)
def test_every_point_carries_the_warning(method: str) -> None:
    answer = ANSWERS[method]
    marked = type(answer).FromString(local_answers.mark(f"/qdrant.Points/{method}", answer.SerializeToString()))
    text = str(answer)
    points_before = text.count("id {")
    assert points_before > 0
    assert str(marked).count(local_answers.PAYLOAD_KEY) == points_before
    assert str(marked).count(local_answers.WARNING) == points_before


def test_nothing_else_changes() -> None:
    answer = ANSWERS["Scroll"]
    marked = points_pb2.ScrollResponse.FromString(
        local_answers.mark("/qdrant.Points/Scroll", answer.SerializeToString())
    )
    for point in marked.result:
        point.ClearField("payload")
    assert marked == answer


def test_answers_without_points_pass() -> None:
    body = points_pb2.CountResponse(result=points_pb2.CountResult(count=3)).SerializeToString()
    assert local_answers.mark("/qdrant.Points/Count", body) == body


def test_every_read_that_returns_points_is_covered() -> None:
    without_points = {"Count", "Facet", "SearchMatrixPairs", "SearchMatrixOffsets"}
    reads = {
        path.rsplit("/", 1)[1]
        for path, row in METHODS.items()
        if path.startswith("/qdrant.Points/") and row.kind is Kind.READ and row.offline is Offline.SERVED
    }
    assert reads - without_points == set(ANSWERS)


def test_plain_success_has_the_shape_of_the_method() -> None:
    upsert = METHODS["/qdrant.Points/Upsert"]
    completed = points_pb2.PointsOperationResponse.FromString(
        local_answers.plain_success(upsert, points_pb2.UpsertPoints(wait=True), 7)
    )
    assert (completed.result.operation_id, completed.result.status) == (7, points_pb2.Completed)
    acknowledged = points_pb2.PointsOperationResponse.FromString(
        local_answers.plain_success(upsert, points_pb2.UpsertPoints(), 8)
    )
    assert acknowledged.result.status == points_pb2.Acknowledged
    batch = points_pb2.UpdateBatchPoints(operations=[points_pb2.PointsUpdateOperation()] * 3, wait=True)
    answers = points_pb2.UpdateBatchResponse.FromString(
        local_answers.plain_success(METHODS["/qdrant.Points/UpdateBatch"], batch, 9)
    )
    assert [result.status for result in answers.result] == [points_pb2.Completed] * 3
    create = METHODS["/qdrant.Collections/Create"]
    created = collections_pb2.CollectionOperationResponse.FromString(
        local_answers.plain_success(create, collections_pb2.CreateCollection(), 1)
    )
    assert created.result
