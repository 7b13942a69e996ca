"""A program on LlamaIndex: a dense store, a hybrid one, and both through the package's asynchronous methods."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from . import corpus
from .application import Application
from .transcript import Transcript

DENSE, HYBRID, ASYNC = "llama", "llama-hybrid", "llama-async"
OPERATORS: dict[str, tuple[str, Any, FilterOperator]] = {
    "equal": ("subject", "bees", FilterOperator.EQ),
    "equal: integer": ("year", 2000, FilterOperator.EQ),
    "equal: float": ("rating", 2.5, FilterOperator.EQ),
    "not equal": ("subject", "bees", FilterOperator.NE),
    "less": ("year", 1995, FilterOperator.LT),
    "less or equal": ("year", 1995, FilterOperator.LTE),
    "greater": ("rating", 6.5, FilterOperator.GT),
    "greater or equal": ("rating", 6.5, FilterOperator.GTE),
    "in": ("city", ["Oslo", "Turku"], FilterOperator.IN),
    "in: words with commas": ("city", "Oslo,Porto", FilterOperator.IN),
    "not in": ("subject", ["bees", "ships"], FilterOperator.NIN),
    "text": ("city", "ort", FilterOperator.TEXT_MATCH),
    "text: any case": ("city", "Oslo", FilterOperator.TEXT_MATCH_INSENSITIVE),
    "empty": ("city", None, FilterOperator.IS_EMPTY),
}


class HashedWords(BaseEmbedding):
    """Embeddings of the corpus."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return corpus.dense(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return corpus.dense(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return corpus.dense(query)


def counted_words(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    """Sparse vectors of the corpus, in the package's form."""
    vectors = [corpus.sparse(text) for text in texts]
    return [indices for indices, _ in vectors], [values for _, values in vectors]


def node(node_id: str, words: str, document: str, metadata: dict[str, Any] | None = None) -> TextNode:
    """A part of a document, with its embedding."""
    source = RelatedNodeInfo(node_id=document)
    return TextNode(
        id_=node_id,
        text=words,
        metadata=metadata or {},
        embedding=corpus.dense(words),
        relationships={NodeRelationship.SOURCE: source},
    )


def nodes() -> list[TextNode]:
    """The library: five documents in six parts each."""
    return [
        node(text.id, text.words, f"document {number % 5}", text.metadata)
        for number, text in enumerate(corpus.library())
    ]


def only(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilter:
    """One condition."""
    return MetadataFilter(key=key, value=value, operator=operator)


def ask(words: str, k: int = 5, **options: Any) -> VectorStoreQuery:
    """A query with both forms of its text."""
    return VectorStoreQuery(query_embedding=corpus.dense(words), query_str=words, similarity_top_k=k, **options)


class LlamaIndex(Application):
    """See the module."""

    name = "llama-index"
    collections = (DENSE, HYBRID, ASYNC)

    @cached_property
    def dense(self) -> QdrantVectorStore:
        """One vector; the package names it, and finds out that an older collection does not."""
        indexes = [{"field_name": "year", "field_schema": models.PayloadSchemaType.INTEGER}]
        return QdrantVectorStore(DENSE, client=self.client, batch_size=8, payload_indexes=indexes)

    @cached_property
    def hybrid(self) -> QdrantVectorStore:
        """A dense and a sparse vector."""
        return QdrantVectorStore(HYBRID, client=self.client, aclient=self.async_client, **self._sparse())

    @cached_property
    def asynchronous(self) -> QdrantVectorStore:
        """Has no blocking client at all."""
        return QdrantVectorStore(ASYNC, aclient=self.async_client, **self._sparse())

    @staticmethod
    def _sparse() -> dict[str, Any]:
        return {"enable_hybrid": True, "sparse_doc_fn": counted_words, "sparse_query_fn": counted_words}

    def fill(self, told: Transcript) -> None:
        """`clear` first: it must not mind that there is nothing."""
        for collection in self.collections:
            self.client.delete_collection(collection)
        told.say("dense: ids", self.dense.add(nodes()))
        told.say("hybrid: ids", self.hybrid.add(nodes()))
        told.say("async: ids", self.wait(self.asynchronous.async_add(nodes())))

    def read(self, told: Transcript) -> None:
        """Queries of every mode and filter, nodes by id and filter, an index with retrievers."""
        self._queries(told)
        self._filters(told)
        self._nodes(told)
        self._hybrid(told)
        self.wait(self._asynchronous(told))
        self._refusals(told)

    def _found(self, query: VectorStoreQuery, store: QdrantVectorStore | None = None, **options: Any) -> list[Any]:
        return found((store or self.dense).query(query, **options))

    def _queries(self, told: Transcript) -> None:
        told.say("query", self._found(ask("ships at night")))
        told.say("query: everything", self._found(ask("bread", 1000)))
        told.say("query: documents", self._found(ask("stars", 20, doc_ids=["document 1", "document 3"])))
        ids = [corpus.text_id(f"text {number}") for number in range(8)]
        told.say("query: nodes", self._found(ask("stars", 20, node_ids=ids)))
        told.say("query: parameters", self._found(ask("stars"), search_params={"exact": True}))
        nested = models.NestedCondition(
            nested=models.Nested(
                key="loans",
                filter=models.Filter(
                    must=[
                        models.FieldCondition(key="reader", match=models.MatchValue(value="reader 1")),
                        models.FieldCondition(key="days", range=models.Range(lte=3)),
                    ]
                ),
            )
        )
        told.say("query: own filter", self._found(ask("stars", 9), qdrant_filters=models.Filter(must=[nested])))
        index = VectorStoreIndex.from_vector_store(self.dense, embed_model=HashedWords())
        told.say("index: retriever", index.as_retriever(similarity_top_k=4).retrieve("the signals stop"))
        bees = MetadataFilters(filters=[only("subject", "bees")])
        told.say("index: filters", index.as_retriever(similarity_top_k=4, filters=bees).retrieve("honey"))
        told.say("collection", self.client.get_collection(DENSE).config.params)
        told.say("schema", self.client.get_collection(DENSE).payload_schema)

    def _filters(self, told: Transcript) -> None:
        for name, (key, value, operator) in OPERATORS.items():
            filters = MetadataFilters(filters=[only(key, value, operator)])
            told.say(f"filter: {name}", self._found(ask("old ships at night", 40, filters=filters)))
        either = MetadataFilters(filters=[only("subject", "bees"), only("year", 1995)], condition=FilterCondition.OR)
        told.say("filter: or", self._found(ask("old ships", 40, filters=either)))
        none = MetadataFilters(filters=[only("subject", "ships"), only("city", "Oslo")], condition=FilterCondition.NOT)
        told.say("filter: not", self._found(ask("old ships", 40, filters=none)))
        deep = MetadataFilters(filters=[either, only("rating", 1.0, FilterOperator.GT), MetadataFilters(filters=[])])
        told.say("filter: nested", self._found(ask("old ships", 40, filters=deep)))
        dotted = MetadataFilters(filters=[only("author.name", "author 3")])
        told.say("filter: dotted", self._found(ask("old ships", 40, filters=dotted)))
        listed = MetadataFilters(filters=[only("tags", "oslo")])
        told.say("filter: list", self._found(ask("old ships", 40, filters=listed)))
        never = MetadataFilters(filters=[only("year", 3000, FilterOperator.GT)])
        told.say_nothing("filter: nothing", self._found(ask("old ships", 40, filters=never)))

    def _nodes(self, told: Transcript) -> None:
        ids = [corpus.text_id(f"text {number}") for number in (9, 3, 6, 11)]
        told.say("nodes: ids", self.dense.get_nodes([*ids, corpus.text_id("unknown")]))
        told.say("nodes: everything", self.dense.get_nodes())
        told.say("nodes: limit", self.dense.get_nodes(limit=3))
        ships = MetadataFilters(filters=[only("subject", "ships")])
        told.say("nodes: filter", self.dense.get_nodes(filters=ships))
        bread = MetadataFilters(filters=[only("subject", "bread")])
        told.say("nodes: ids and filter", self.hybrid.get_nodes(node_ids=ids, filters=bread))

    def _hybrid(self, told: Transcript) -> None:
        stars = MetadataFilters(filters=[only("subject", "stars")])
        for name, mode in (("dense", "DEFAULT"), ("sparse", "SPARSE"), ("both", "HYBRID"), ("mmr", "MMR")):
            query = ask("stars and bees at night", 6, mode=VectorStoreQueryMode[mode])
            told.say(f"hybrid: {name}", self._found(query, self.hybrid))
        both = ask("old lighthouse", 5, mode=VectorStoreQueryMode.HYBRID, sparse_top_k=9, alpha=0.3, hybrid_top_k=4)
        told.say("hybrid: options", self._found(both, self.hybrid))
        both.filters = stars
        told.say("hybrid: filter", self._found(both, self.hybrid))
        index = VectorStoreIndex.from_vector_store(self.hybrid, embed_model=HashedWords())
        retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=4, sparse_top_k=6)
        told.say("hybrid: retriever", retriever.retrieve("bread with salt"))

    async def _asynchronous(self, told: Transcript) -> None:
        store = self.asynchronous
        told.say("async: query", found(await store.aquery(ask("ships at night"))))
        both = ask("bees in the lighthouse", 6, mode=VectorStoreQueryMode.HYBRID)
        told.say("async: hybrid", found(await store.aquery(both)))
        sparse = ask("bees in the lighthouse", 6, mode=VectorStoreQueryMode.SPARSE)
        told.say("async: sparse", found(await store.aquery(sparse)))
        ids = [corpus.text_id(f"text {number}") for number in (12, 8)]
        told.say("async: nodes", await store.aget_nodes(ids))
        recent = MetadataFilters(filters=[only("year", 2015, FilterOperator.GTE)])
        told.say("async: nodes by filter", await store.aget_nodes(filters=recent))
        told.say("async: all nodes", await store.aget_nodes())
        index = VectorStoreIndex.from_vector_store(self.hybrid, embed_model=HashedWords())
        told.say("async: retriever", await index.as_retriever(similarity_top_k=3).aretrieve("steam and coal"))

    def _refusals(self, told: Transcript) -> None:
        never = QdrantVectorStore("llama-never", client=self.client, aclient=self.async_client)
        told.refused("no such collection", lambda: never.query(ask("x")))
        told.refused("no such collection: async", lambda: self.wait(never.aquery(ask("x"))))
        short = VectorStoreQuery(query_embedding=[0.5, 0.5], similarity_top_k=3)
        told.refused("a query of another size", lambda: self.dense.query(short))
        wrong = node(corpus.text_id("wrong"), "wrong", "document 9")
        wrong.embedding = [1.0, 2.0]
        told.refused("a node of another size", lambda: self.dense.add([wrong]))
        told.refused("a node of another size: async", lambda: self.wait(self.asynchronous.async_add([wrong])))
        told.refused("an id that is none", lambda: self.dense.add([node("no-uuid", "x", "document 9")]))

    def write(self, told: Transcript) -> None:
        """Overwrite, add, delete by document, ids and filters; clear and fill again."""
        ids = [corpus.text_id(f"text {number}") for number in range(30)]
        told.say("add: overwrites", self.dense.add([node(ids[0], "ships were rebuilt", "document 0", {"year": 2031})]))
        known = {"subject": "bees", "tags": ["oslo"], "city": "Oslo"}
        more = [
            node(corpus.text_id(f"more {n}"), f"more bees, part {n}", "more", known | {"year": n, "rating": n / 4})
            for n in range(20)
        ]
        told.say("add: batches", self.dense.add(more))
        self.dense.delete("document 3")
        self.dense.delete_nodes([ids[2], ids[5], corpus.text_id("unknown")])
        self.dense.delete_nodes(filters=MetadataFilters(filters=[only("year", 3, FilterOperator.LTE)]))
        index = VectorStoreIndex.from_vector_store(self.dense, embed_model=HashedWords())
        index.insert_nodes([node(corpus.text_id("inserted"), "inserted stars at dawn", "document 8")])
        index.delete_ref_doc("document 4")
        self.hybrid.delete_nodes(node_ids=[ids[1]], filters=MetadataFilters(filters=[only("subject", "bread")]))
        self.hybrid.add([node(ids[7], "stars of bees at night", "document 2", {"subject": "stars"})])
        self.wait(self._write_asynchronously(told))
        made = QdrantVectorStore("llama-anew", client=self.client, **self._sparse())
        storage = StorageContext.from_defaults(vector_store=made)
        documents = [
            Document(doc_id=text.id, text=f"{text.words}. " * 3, metadata={"n": number})
            for number, text in enumerate(corpus.library()[:3])
        ]
        splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
        anew = VectorStoreIndex.from_documents(
            documents, storage_context=storage, embed_model=HashedWords(), transformations=[splitter]
        )
        told.say("a collection made anew", anew.as_retriever(similarity_top_k=9).retrieve("ships"))
        anew.update_ref_doc(Document(doc_id=documents[0].doc_id, text="ships, told anew", metadata={"n": 7}))
        told.say("a document updated", anew.as_retriever(similarity_top_k=9).retrieve("ships"))
        told.say("and asked", self._found(ask("ships", mode=VectorStoreQueryMode.HYBRID), made))
        made.clear()
        told.say_nothing("and gone", self.client.collection_exists("llama-anew"))

    async def _write_asynchronously(self, told: Transcript) -> None:
        store = self.asynchronous
        told.say(
            "async: add", await store.async_add([node(corpus.text_id("async"), "asynchronous bees", "document 7")])
        )
        await store.adelete("document 1")
        await store.adelete_nodes([corpus.text_id("text 12")])
        await store.adelete_nodes(filters=MetadataFilters(filters=[only("year", 2016, FilterOperator.GT)]))
        told.say("async: what is left", await store.aget_nodes())


def found(result: VectorStoreQueryResult) -> list[Any]:
    """Ids, scores and nodes side by side."""
    parts: tuple[list[BaseNode], list[float], list[str]]
    parts = (list(result.nodes or []), list(result.similarities or []), list(result.ids or []))
    return list(zip(*parts, strict=True))
