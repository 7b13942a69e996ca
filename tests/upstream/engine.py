"""Requests in, responses out: qdrant-client's local mode behind the words and defaults of a Qdrant server.

Promises: what was answered is on disk in the sense of SIGKILL (SQLite commits each point; the page cache survives the
process). One thread at a time: local mode is not thread-safe, the caller serialises. Does not promise to survive a
power cut, nor HNSW's approximations: local mode searches exactly.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from qdrant_client.local.persistence import CollectionPersistence
from qdrant_client.local.qdrant_local import QdrantLocal

from . import checks, differences, strict
from .catalogue import Catalogue
from .collections import CollectionCalls
from .reads import ReadCalls
from .refusal import Refused, from_engine, no_collection
from .writes import WriteCalls

VERSION = "1.19.0"
Answer = Callable[[Any], Message]


class Engine:
    """All methods of a server by their path."""

    def __init__(self, directory: Path) -> None:
        warnings.filterwarnings("ignore", module="qdrant_client")
        _commit_without_fsync()
        differences.install()
        self.catalogue = Catalogue(directory / "catalogue.sqlite")
        self.local = QdrantLocal(str(directory), force_disable_check_same_thread=True)
        self._reconcile()
        self.collections = CollectionCalls(self)
        self._answers: Mapping[str, Answer] = {
            **_under("/qdrant.Collections/", self.collections.answers()),
            **_under("/qdrant.Points/", ReadCalls(self).answers()),
            **_under("/qdrant.Points/", WriteCalls(self).answers()),
        }

    def close(self) -> None:
        """Let go of the directory."""
        self.local.close()
        self.catalogue.close()

    def knows(self, method: str) -> bool:
        """Whether there is such a method here."""
        return method in self._answers

    def answer(self, method: str, request: Message) -> Message:
        """Answer one request; raises Refused with the status a server would give."""
        started = time.perf_counter()
        try:
            checks.ids_in(request)
            checks.filters_in(request)
            self._check_strict_mode(method, request)
            response = self._answers[method](request)
        except (Refused, ValueError, KeyError, AssertionError, TypeError, IndexError, NotImplementedError) as error:
            raise from_engine(error) from error
        response.time = time.perf_counter() - started  # type: ignore[attr-defined]
        return response

    def _check_strict_mode(self, method: str, request: Any) -> None:
        name = getattr(request, "collection_name", "")
        found = self.local.aliases.get(name, name)
        if method.startswith("/qdrant.Points/") and found in self.local.collections:
            config = self.catalogue.config(found)
            strict.check(method.rsplit("/", 1)[-1], request, config.strict_mode_config)

    # --- what the calls share ---

    def resolve(self, name: str) -> str:
        """The collection behind a name or alias; raises Refused when there is none."""
        name = self.local.aliases.get(name, name)
        if name not in self.local.collections:
            raise no_collection(name)
        differences.use(self.catalogue.indexes(name))
        return name

    def sizes(self, name: str) -> dict[str, int | None]:
        """Vector names of a collection with their dimensions, None for sparse ones."""
        return checks.sizes_of(self.catalogue.config(name).params)

    def _reconcile(self) -> None:
        # A kill between the engine's file and ours leaves one of them a step behind; the engine's is the truth.
        for name, collection in self.local.collections.items():
            try:
                self.catalogue.config(name)
            except KeyError:
                self.catalogue.created(name, self.collections_request(name, collection))
        for name in self.catalogue.names() - set(self.local.collections):
            self.catalogue.dropped(name)

    @staticmethod
    def collections_request(name: str, collection: Any) -> Any:
        """The create request that leads to a collection that only the engine knows."""
        from qdrant_client.conversions.conversion import RestToGrpc

        from generated.qdrant import collections_pb2

        request = collections_pb2.CreateCollection(collection_name=name)
        if collection.config.vectors:
            request.vectors_config.CopyFrom(RestToGrpc.convert_vectors_config(collection.config.vectors))
        if collection.config.sparse_vectors:
            request.sparse_vectors_config.CopyFrom(
                RestToGrpc.convert_sparse_vector_config(collection.config.sparse_vectors)
            )
        return request


def _under(prefix: str, answers: Mapping[str, Answer]) -> dict[str, Answer]:
    return {prefix + name: answer for name, answer in answers.items()}


def _commit_without_fsync() -> None:
    """Make each collection's SQLite file commit into the page cache: SIGKILL-safe and a hundred times as fast."""
    original = CollectionPersistence._ensure_table

    def ensure_table(self: CollectionPersistence) -> None:
        self.storage.execute("PRAGMA journal_mode=WAL")
        self.storage.execute("PRAGMA synchronous=OFF")
        original(self)

    if not getattr(CollectionPersistence, "_commits_into_page_cache", False):
        CollectionPersistence._ensure_table = ensure_table
        CollectionPersistence._commits_into_page_cache = True
