"""The blocking client, unmodified: only the address is Understudy's.

Start Understudy (`make run`), then `python -m examples.sync_client [HOST:PORT]`. Works the same with Qdrant behind it,
with Qdrant gone, and with no Qdrant at all.
"""

from __future__ import annotations

import sys

from qdrant_client import QdrantClient, models

BOOKS = [
    (1, [0.9, 0.1, 0.0], {"title": "The Time Machine", "year": 1895}),
    (2, [0.8, 0.2, 0.1], {"title": "The War of the Worlds", "year": 1898}),
    (3, [0.1, 0.9, 0.2], {"title": "Emma", "year": 1815}),
]


def main(address: str = "127.0.0.1:6334") -> None:
    """Create, write, search with a filter, scroll."""
    host, port = address.rsplit(":", 1)
    client = QdrantClient(host=host, grpc_port=int(port), prefer_grpc=True, check_compatibility=False)
    if not client.collection_exists("books"):
        client.create_collection("books", models.VectorParams(size=3, distance=models.Distance.COSINE))
    client.upsert("books", [models.PointStruct(id=i, vector=v, payload=p) for i, v, p in BOOKS])
    old = models.Filter(must=[models.FieldCondition(key="year", range=models.Range(lt=1897))])
    for hit in client.query_points("books", query=[1.0, 0.0, 0.0], query_filter=old, limit=2).points:
        print(f"{hit.score:.3f}  {hit.payload}")
    records, _ = client.scroll("books", limit=10)
    print(f"{len(records)} books")
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
