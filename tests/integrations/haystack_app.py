"""A program on Haystack: a dense store, one with sparse vectors too, retrievers, and its asynchronous methods."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from haystack import Pipeline
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import Document, SparseEmbedding
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.qdrant import (
    QdrantEmbeddingRetriever,
    QdrantHybridRetriever,
    QdrantSparseEmbeddingRetriever,
)
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from qdrant_client import models

from . import corpus
from .application import Application
from .transcript import Transcript

DENSE, HYBRID, ASYNC = "haystack", "haystack-hybrid", "haystack-async"


def document(text: corpus.Text, *, is_sparse: bool = False) -> Document:
    """A text with its embeddings. The id is any string: the package makes a UUID of it."""
    embedding = sparse(text.words) if is_sparse else None
    return Document(
        id=f"id of {text.id}",
        content=text.words,
        meta=dict(text.metadata),
        embedding=corpus.dense(text.words),
        sparse_embedding=embedding,
    )


def sparse(words: str) -> SparseEmbedding:
    """Sparse vectors of the corpus, in the package's form."""
    indices, values = corpus.sparse(words)
    return SparseEmbedding(indices, values)


def documents(*, is_sparse: bool = False) -> list[Document]:
    """The library."""
    return [document(text, is_sparse=is_sparse) for text in corpus.library()]


def titled(title: str, words: str, *, is_sparse: bool = False, **meta: Any) -> Document:
    """One more document."""
    text = corpus.Text("", words, meta)
    return replace(document(text, is_sparse=is_sparse), id=title)


def compare(field: str, operator: str, value: Any) -> dict[str, Any]:
    """One condition in the package's language."""
    return {"field": f"meta.{field}", "operator": operator, "value": value}


def join(operator: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    """Several of them."""
    return {"operator": operator, "conditions": list(conditions)}


FILTERS: dict[str, dict[str, Any]] = {
    "equal": compare("subject", "==", "bees"),
    "not equal": compare("subject", "!=", "bees"),
    "in": compare("city", "in", ["Oslo", "Turku"]),
    "not in": compare("city", "not in", ["Oslo", "Turku"]),
    "greater": compare("year", ">", 2010),
    "between": join("AND", compare("rating", ">=", 2.5), compare("rating", "<", 4)),
    "dates": compare("printed", "<=", "2024-04-01T00:00:00+00:00"),
    "or": join("OR", compare("subject", "==", "ships"), compare("open", "==", True)),
    "not": join("NOT", compare("subject", "==", "ships"), compare("year", "<", 2000)),
    "nested": join(
        "AND", join("OR", compare("city", "==", "Porto"), compare("year", "==", 1995)), compare("year", ">", 0)
    ),
    "dotted": compare("author.born", "==", 1904),
}


class Haystack(Application):
    """See the module."""

    name = "haystack"
    collections = (DENSE, HYBRID, ASYNC)

    def _store(self, index: str, **options: Any) -> QdrantDocumentStore:
        given = self.options()
        compatibility = given.pop("check_compatibility")
        settings = {
            "index": index,
            "embedding_dim": corpus.DIMENSION,
            "progress_bar": False,
            "scroll_size": 7,
            "write_batch_size": 8,
            "client_kwargs": {"check_compatibility": compatibility},
        }
        store = QdrantDocumentStore(**given, **{**settings, **options})
        self._opened.append(store)
        return store

    @cached_property
    def _opened(self) -> list[QdrantDocumentStore]:
        return []

    @cached_property
    def dense(self) -> QdrantDocumentStore:
        """One unnamed vector."""
        indexes = [{"field_name": "meta.subject", "field_schema": "keyword"}]
        return self._store(DENSE, payload_fields_to_index=indexes, return_embedding=True)

    @cached_property
    def hybrid(self) -> QdrantDocumentStore:
        """A dense and a sparse vector, the sparse one with IDF."""
        return self._store(HYBRID, use_sparse_embeddings=True, sparse_idf=True)

    @cached_property
    def asynchronous(self) -> QdrantDocumentStore:
        """Used by the asynchronous methods only."""
        return self._store(ASYNC, use_sparse_embeddings=True, similarity="dot_product")

    def fill(self, told: Transcript) -> None:
        """The writer of a pipeline, and the stores themselves."""
        for collection in self.collections:
            self.client.delete_collection(collection)
        pipeline = Pipeline()
        pipeline.add_component("writer", DocumentWriter(self.dense, policy=DuplicatePolicy.OVERWRITE))
        told.say("dense: written", pipeline.run({"writer": {"documents": documents()}}))
        told.say("hybrid: written", self.hybrid.write_documents(documents(is_sparse=True)))
        told.say("async: written", self.wait(self.asynchronous.write_documents_async(documents(is_sparse=True))))

    def read(self, told: Transcript) -> None:
        """Retrievers, filters, groups, and what the store knows about its metadata."""
        self._dense(told)
        self._hybrid(told)
        self._metadata(told)
        self.wait(self._asynchronous(told))
        self._refusals(told)

    def _dense(self, told: Transcript) -> None:
        store = self.dense
        told.say("count", store.count_documents())
        told.say("documents", store.filter_documents())
        retriever = QdrantEmbeddingRetriever(store, top_k=6)
        told.say("retriever", retriever.run(corpus.dense("ships at night")))
        told.say("retriever: threshold", retriever.run(corpus.dense("rye bread"), top_k=30, score_threshold=0.2))
        told.say("retriever: scaled", retriever.run(corpus.dense("rye bread"), scale_score=True))
        told.say("retriever: embeddings", retriever.run(corpus.dense("rye bread"), return_embedding=True))
        for name, filters in FILTERS.items():
            told.say(f"filter: {name}", retriever.run(corpus.dense("old ships"), filters=filters, top_k=40))
            told.say(f"documents: {name}", store.filter_documents(filters))
            told.say(f"count: {name}", store.count_documents_by_filter(filters))
        own = models.Filter(must=[models.FieldCondition(key="meta.tags", match=models.MatchAny(any=["oslo", "bees"]))])
        told.say("filter: own", retriever.run(corpus.dense("old ships"), filters=own))
        grouped = {"group_by": "meta.subject", "group_size": 2, "top_k": 3}
        told.say("groups", retriever.run(corpus.dense("stars at night"), **grouped))
        told.say("groups: list", retriever.run(corpus.dense("stars at night"), group_by="meta.tags", group_size=1))
        told.say("ids", store.get_documents_by_id([documents()[4].id, documents()[2].id, "unknown"]))

    def _hybrid(self, told: Transcript) -> None:
        both = QdrantHybridRetriever(self.hybrid, top_k=12)

        def fused(step: str, words: str, **options: Any) -> None:
            answer = both.run(corpus.dense(words), sparse(words), **options)
            told.say_fused(step, [(one, one.score) for one in answer["documents"]])

        fused("hybrid", "old ships and stars")
        fused("hybrid: filter", "old lighthouse", filters=FILTERS["or"])
        fused("hybrid: threshold", "old lighthouse", score_threshold=0.2)
        fused("hybrid: k and weights", "trains at night", rrf_k=7, rrf_weights=[2.0, 1.0])
        fused("hybrid: groups", "bread and salt", group_by="meta.subject", group_size=1, top_k=5)
        counted = QdrantSparseEmbeddingRetriever(self.hybrid, top_k=8)
        told.say("sparse", counted.run(sparse("stars fade at dawn")))
        told.say("sparse: filter", counted.run(sparse("stars fade at dawn"), filters=FILTERS["greater"]))
        told.say("sparse: embeddings", counted.run(sparse("coal"), return_embedding=True))
        grouped = {"group_by": "meta.city", "group_size": 2, "top_k": 3}
        told.say("sparse: groups", counted.run(sparse("bees in the night"), **grouped))
        told.say("dense of two", QdrantEmbeddingRetriever(self.hybrid).run(corpus.dense("honey")))
        pipeline = Pipeline()
        pipeline.add_component("retriever", QdrantSparseEmbeddingRetriever(self.hybrid))
        told.say("sparse: pipeline", pipeline.run({"retriever": {"query_sparse_embedding": sparse("steam trains")}}))

    def _metadata(self, told: Transcript) -> None:
        store = self.dense
        told.say("metadata: fields", store.get_metadata_fields_info())
        told.say("metadata: fields without indexes", self.hybrid.get_metadata_fields_info())
        told.say("metadata: least and most", store.get_metadata_field_min_max("year"))
        filters = FILTERS["greater"]
        told.say("metadata: unique", store.count_unique_metadata_by_filter(filters, ["subject", "city", "open"]))
        told.say("metadata: values", store.get_metadata_field_unique_values("subject", search_term="b"))
        told.say("collection", self.client.get_collection(HYBRID).config.params)

    async def _asynchronous(self, told: Transcript) -> None:
        store = self.asynchronous
        told.say("async: count", await store.count_documents_async())
        told.say("async: documents", await store.filter_documents_async(FILTERS["in"]))
        told.say("async: retriever", await QdrantEmbeddingRetriever(store).run_async(corpus.dense("honey in spring")))
        counted = QdrantSparseEmbeddingRetriever(store)
        told.say("async: sparse", await counted.run_async(sparse("bread at night"), top_k=4))
        both = await QdrantHybridRetriever(store, top_k=12).run_async(corpus.dense("old hulls"), sparse("old hulls"))
        told.say_fused("async: hybrid", [(one, one.score) for one in both["documents"]])
        grouped = {"group_by": "meta.subject", "group_size": 2}
        told.say("async: groups", await QdrantEmbeddingRetriever(store).run_async(corpus.dense("stars"), **grouped))
        told.say("async: ids", await store.get_documents_by_id_async([documents()[7].id]))
        told.say("async: values", await store.get_metadata_field_unique_values_async("city"))

    def _refusals(self, told: Transcript) -> None:
        def open_as(**options: Any) -> Any:
            return self._store(DENSE, **options).count_documents()

        told.refused("another size", lambda: open_as(embedding_dim=7))
        told.refused("another distance", lambda: open_as(similarity="dot_product"))
        told.refused("no sparse vectors", lambda: open_as(use_sparse_embeddings=True))
        told.refused("named vectors", lambda: self._store(HYBRID).count_documents())
        told.refused("written twice", lambda: self.dense.write_documents(documents()[6:8], DuplicatePolicy.FAIL))
        told.refused("a query of another size", lambda: QdrantEmbeddingRetriever(self.dense).run([1.0, 2.0]))
        wrong = Document(id="wrong", content="x", embedding=[1.0])
        told.refused("a document of another size", lambda: self.dense.write_documents([wrong]))
        short = {"query_embedding": [1.0], "query_sparse_embedding": sparse("x")}
        told.refused("a hybrid query of another size", lambda: QdrantHybridRetriever(self.hybrid).run(**short))
        filters = {"field": "meta.year", "operator": "~", "value": 1}
        told.refused("an operator that is none", lambda: self.dense.filter_documents(filters))

    def write(self, told: Transcript) -> None:
        """Overwrite, skip, update by filter, delete by ids and filter; delete everything and make anew."""
        store, known = self.dense, documents()
        newer = [titled(known[0].id, "ships were rebuilt", subject="ships", year=2031), titled("new", "a new star")]
        told.say("write: overwrites", store.write_documents(newer, DuplicatePolicy.OVERWRITE))
        told.say("write: skips", store.write_documents([known[1], titled("n2", "n2")], DuplicatePolicy.SKIP))
        old_bees = join("AND", FILTERS["equal"], compare("year", "<", 2005))
        told.say("update by filter", store.update_by_filter(old_bees, {"subject": "wasps", "seen": True}))
        store.delete_documents([known[2].id, known[3].id, "unknown"])
        told.say("delete by filter", store.delete_by_filter(join("NOT", compare("year", "!=", 2001))))
        self.hybrid.write_documents(
            [titled(known[9].id, "bees at night", is_sparse=True, subject="bees")], DuplicatePolicy.OVERWRITE
        )
        told.say("hybrid: update by filter", self.hybrid.update_by_filter(FILTERS["or"], {"open": False, "year": 2050}))
        told.say("hybrid: delete by filter", self.hybrid.delete_by_filter(FILTERS["dotted"]))
        self.wait(self._write_asynchronously(told))
        made = self._store("haystack-anew", recreate_index=True, similarity="l2")
        told.say("a collection made anew", made.write_documents(known[:12]))
        told.say("and asked", QdrantEmbeddingRetriever(made).run(corpus.dense("ships")))
        made.delete_all_documents()
        told.say_nothing("and emptied", made.count_documents())
        self.client.delete_collection("haystack-anew")

    async def _write_asynchronously(self, told: Transcript) -> None:
        store, known = self.asynchronous, documents()
        told.say(
            "async: write", await store.write_documents_async([titled("async", "asynchronous ships", is_sparse=True)])
        )
        told.say("async: update", await store.update_by_filter_async(FILTERS["greater"], {"subject": "new"}))
        await store.delete_documents_async([known[1].id])
        told.say("async: delete", await store.delete_by_filter_async(FILTERS["equal"]))

    def close(self) -> None:
        """The package makes clients for each store."""
        for store in self._opened:
            store.close()
            self.wait(store.close_async())
        super().close()
