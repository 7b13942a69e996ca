"""The replica and the real engine of qdrant-edge-py with the same points, to be asked the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdrant_client import models as m

from tests.replica.edge_engine import Edge
from tests.replica.through_client import Through


@contextmanager
def twins_with(
    points: list[m.PointStruct],
    directory: Path,
    dense: dict[str, m.VectorParams],
    sparse: dict[str, m.SparseVectorParams],
) -> Iterator[tuple[Through, Edge]]:
    """Both, with these points in a collection `c` of these vectors."""
    ours, theirs = Through(directory / "ours"), Edge(directory / "theirs", dense, sparse)
    ours.client.create_collection("c", vectors_config=dense, sparse_vectors_config=sparse)
    ours.client.upsert("c", points, wait=True)
    theirs.upsert(points)
    yield ours, theirs
    ours.close()
    theirs.close()
