"""The asyncio client, unmodified: many writes at once, then a search.

Start Understudy (`make run`), then `python -m examples.async_client [HOST:PORT]`. Kill Qdrant while it runs: it does
not notice.
"""

from __future__ import annotations

import asyncio
import random
import sys

from qdrant_client import AsyncQdrantClient, models

NAME = "async-example"
BATCHES = 20
BATCH = 50


async def main(address: str = "127.0.0.1:6334") -> None:
    """A thousand points in twenty concurrent batches."""
    host, port = address.rsplit(":", 1)
    client = AsyncQdrantClient(host=host, grpc_port=int(port), prefer_grpc=True, check_compatibility=False)
    if not await client.collection_exists(NAME):
        await client.create_collection(NAME, models.VectorParams(size=8, distance=models.Distance.DOT))
    rng = random.Random(1)

    def batch(number: int) -> list[models.PointStruct]:
        ids = range(number * BATCH, (number + 1) * BATCH)
        return [models.PointStruct(id=i, vector=[rng.random() for _ in range(8)], payload={"n": i}) for i in ids]

    await asyncio.gather(*(client.upsert(NAME, batch(number)) for number in range(BATCHES)))
    print(f"{(await client.count(NAME)).count} points")
    found = await client.query_points(NAME, query=[1.0] * 8, limit=3, with_payload=True)
    for hit in found.points:
        print(f"{hit.score:.3f}  {hit.payload}")
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
