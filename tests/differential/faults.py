"""PURE. Requests that a server refuses, or that look wrong and are not."""

from __future__ import annotations

from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import COLLECTIONS, POINTS

from .calls import Call
from .shapes import COLLECTION
from .values import Values, selector, spelt


def fault(values: Values) -> Call:
    """One of them. What FACTS 3.1 measured is here, as far as more than one oracle can say it."""
    chance = values.chance
    name = next((one for one, vector in values.shape.vectors.items() if not vector.is_sparse), "")
    size = values.shape.vectors[name].size
    wait = chance.random() < 0.7

    def point(vectors: pb.Vectors) -> pb.PointStruct:
        return pb.PointStruct(id=spelt(1), vectors=vectors)

    def named(vector_name: str, width: int) -> pb.Vectors:
        vector = pb.Vector(dense=pb.DenseVector(data=[1.0] * width))
        return pb.Vectors(vectors=pb.NamedVectors(vectors={vector_name: vector}))

    def upsert(*points: pb.PointStruct, collection: str = COLLECTION) -> Call:
        return Call(POINTS + "Upsert", pb.UpsertPoints(collection_name=collection, points=points, wait=wait))

    def nearest(vector_name: str, width: int) -> pb.QueryPoints:
        vector = pb.VectorInput(dense=pb.DenseVector(data=[1.0] * width))
        return pb.QueryPoints(collection_name=COLLECTION, query=pb.Query(nearest=vector), using=vector_name)

    def scroll(**fields: object) -> Call:
        return Call(POINTS + "Scroll", pb.ScrollPoints(collection_name=COLLECTION, **fields))  # type: ignore[arg-type]

    empty = common.Condition(field=common.FieldCondition(key="a"))
    payload = pb.SetPayloadPoints(collection_name=COLLECTION, wait=wait)
    return chance.choice(
        (
            lambda: upsert(point(named(name, size + 1))),
            lambda: upsert(point(named("zz", 3))),
            lambda: upsert(point(named(name, 0))),
            lambda: upsert(pb.PointStruct(id=spelt(1))),
            lambda: upsert(pb.PointStruct(vectors=named(name, size))),
            lambda: upsert(pb.PointStruct(id=common.PointId(uuid="zz"), vectors=named(name, size))),
            upsert,
            lambda: upsert(point(named(name, size)), collection="missing"),
            lambda: Call(POINTS + "Query", nearest(name, size + 1)),
            lambda: Call(POINTS + "Query", nearest("zz", 3)),
            lambda: Call(POINTS + "Query", pb.QueryPoints(collection_name="missing")),
            lambda: Call(POINTS + "Query", pb.QueryPoints(collection_name=COLLECTION, limit=0)),
            lambda: Call(
                POINTS + "Query",
                pb.QueryPoints(
                    collection_name=COLLECTION, query=pb.Query(nearest=pb.VectorInput(id=spelt(999))), using=name
                ),
            ),
            lambda: Call(
                POINTS + "Query", pb.QueryPoints(collection_name=COLLECTION, query=pb.Query(fusion=pb.Fusion.RRF))
            ),
            lambda: scroll(limit=0),
            lambda: scroll(filter=common.Filter(must=[empty])),
            lambda: scroll(filter=common.Filter(must=[common.Condition()])),
            lambda: scroll(order_by=pb.OrderBy(key="zz")),
            lambda: Call(POINTS + "Facet", pb.FacetCounts(collection_name=COLLECTION, key="zz")),
            lambda: Call(POINTS + "Count", pb.CountPoints(collection_name="missing")),
            lambda: Call(POINTS + "UpdateBatch", pb.UpdateBatchPoints(collection_name=COLLECTION, wait=wait)),
            lambda: Call(
                POINTS + "DeleteVectors",
                pb.DeletePointVectors(
                    collection_name=COLLECTION,
                    points_selector=selector([spelt(1)]),
                    vectors=pb.VectorsSelector(names=["zz"]),
                    wait=wait,
                ),
            ),
            lambda: Call(POINTS + "SetPayload", payload),
            lambda: Call(POINTS + "SetPayload", _choosing(payload, selector([]))),
            lambda: Call(POINTS + "SetPayload", _choosing(payload, selector([spelt(999)]))),
            lambda: Call(POINTS + "ClearPayload", pb.ClearPayloadPoints(collection_name=COLLECTION, wait=wait)),
            lambda: Call(
                POINTS + "Recommend",
                pb.RecommendPoints(collection_name=COLLECTION, positive=[spelt(1)], limit=0, using=name),
            ),
            lambda: Call(COLLECTIONS + "Create", values.shape.create(COLLECTION)),
            lambda: Call(COLLECTIONS + "Create", values.shape.create("with/slash")),
            lambda: Call(COLLECTIONS + "Delete", collections.DeleteCollection(collection_name="missing")),
            lambda: Call(COLLECTIONS + "Get", collections.GetCollectionInfoRequest(collection_name="missing")),
        )
    )()


def _choosing(request: pb.SetPayloadPoints, points: pb.PointsSelector) -> pb.SetPayloadPoints:
    request.points_selector.CopyFrom(points)
    return request
