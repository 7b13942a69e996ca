"""The replica behind the unmodified qdrant-client, without a socket: its stubs call the searcher and the writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, grpc

from server import config
from server.replica import requests as r
from server.replica.refusal import Refusal
from server.replica.search import Searcher
from server.rpc import METHODS, Kind
from tests.replica.local_store import Local

_ANSWERS = {
    "Query": grpc.QueryResponse,
    "QueryBatch": grpc.QueryBatchResponse,
    "QueryGroups": grpc.QueryGroupsResponse,
    "Search": grpc.SearchResponse,
    "SearchBatch": grpc.SearchBatchResponse,
    "SearchGroups": grpc.SearchGroupsResponse,
    "Recommend": grpc.RecommendResponse,
    "RecommendGroups": grpc.RecommendGroupsResponse,
    "Discover": grpc.DiscoverResponse,
    "Get": grpc.GetResponse,
    "Scroll": grpc.ScrollResponse,
    "Count": grpc.CountResponse,
    "Facet": grpc.FacetResponse,
    "SearchMatrixPairs": grpc.SearchMatrixPairsResponse,
    "SearchMatrixOffsets": grpc.SearchMatrixOffsetsResponse,
    "UpdateBatch": grpc.UpdateBatchResponse,
}


class _Stub:
    def __init__(self, prefix: str, local: Local, searcher: Searcher) -> None:
        self._prefix = prefix
        self._local = local
        self._searcher = searcher

    def __getattr__(self, name: str) -> Any:
        method = self._prefix + name

        def call(request: Any, timeout: float | None = None) -> Any:
            body = request.SerializeToString()
            if METHODS[method].kind is Kind.READ:
                answer = self._searcher.answer(method, body)
            else:
                answer = self._local.writes.apply_direct(method, body)
            default = grpc.PointsOperationResponse
            if self._prefix == r.COLLECTIONS:
                default = grpc.CollectionOperationResponse
            return _ANSWERS.get(name, default).FromString(answer)

        return call


class Through:
    """A client whose points and collections live in a replica in `directory`."""

    def __init__(self, directory: Path, settings: config.Replica | None = None) -> None:
        self.local = Local(directory)
        self.store = self.local.store
        self.searcher = Searcher(self.store, settings or config.Replica())
        self.client = QdrantClient(url="http://127.0.0.1:1", prefer_grpc=True, check_compatibility=False)
        remote: Any = self.client._client
        remote._grpc_points_client_pool = [_Stub(r.POINTS, self.local, self.searcher)]
        remote._grpc_collections_client_pool = [_Stub(r.COLLECTIONS, self.local, self.searcher)]
        remote._grpc_channel_pool = []
        remote._next_grpc_client = lambda: 0

    def close(self) -> None:
        self.client.close()
        self.store.close()


__all__ = ["Refusal", "Through"]
