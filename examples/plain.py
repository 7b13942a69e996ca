"""No client library: plain gRPC with the generated code, to see what Understudy adds to an answer.

Start Understudy (`make run`), then `python -m examples.plain [HOST:PORT]`. It prints the trailing metadata of one read:
where the answer came from and, when that was the replica, how fresh it is.
"""

from __future__ import annotations

import sys

import grpc

from generated.qdrant import collections_pb2, collections_service_pb2_grpc, points_pb2, points_service_pb2_grpc
from generated.qdrant.qdrant_common_pb2 import PointId

NAME = "plain-example"


def main(address: str = "127.0.0.1:6334") -> None:
    """Create, write one point, read it back and show the metadata."""
    with grpc.insecure_channel(address) as channel:
        collections = collections_service_pb2_grpc.CollectionsStub(channel)
        points = points_service_pb2_grpc.PointsStub(channel)
        exists = collections.CollectionExists(collections_pb2.CollectionExistsRequest(collection_name=NAME), timeout=5)
        if not exists.result.exists:
            params = collections_pb2.VectorParams(size=3, distance=collections_pb2.Dot)
            config = collections_pb2.VectorsConfig(params=params)
            collections.Create(collections_pb2.CreateCollection(collection_name=NAME, vectors_config=config), timeout=5)
        vector = points_pb2.Vector(dense=points_pb2.DenseVector(data=[1.0, 2.0, 3.0]))
        point = points_pb2.PointStruct(id=PointId(num=1), vectors=points_pb2.Vectors(vector=vector))
        points.Upsert(points_pb2.UpsertPoints(collection_name=NAME, wait=True, points=[point]), timeout=5)
        answer, call = points.Get.with_call(points_pb2.GetPoints(collection_name=NAME, ids=[PointId(num=1)]), timeout=5)
        print(f"{len(answer.result)} point")
        for key, value in call.trailing_metadata():
            if key.startswith("x-understudy"):
                print(f"{key}: {value!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
