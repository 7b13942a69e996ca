"""A program on LangChain: dense (unnamed vector), hybrid and sparse stores.

The package's asynchronous methods are its blocking ones in a thread. Its older class `Qdrant` calls methods that
qdrant-client 1.20 no longer has, so nobody can use it with this client.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector
from qdrant_client import models

from . import corpus
from .application import Application
from .transcript import Transcript

DENSE, HYBRID, SPARSE = "langchain", "langchain-hybrid", "langchain-sparse"


class HashedWords(Embeddings):
    """Dense embeddings of the corpus."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text."""
        return [corpus.dense(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """The same as for a document."""
        return corpus.dense(text)


class ShortWords(HashedWords):
    """An embedding of another size, as after a change of the model."""

    def embed_query(self, text: str) -> list[float]:
        """Three numbers."""
        return corpus.dense(text)[:3]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Three numbers for each."""
        return [self.embed_query(text) for text in texts]


class CountedWords(SparseEmbeddings):
    """Sparse embeddings of the corpus."""

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """One vector for each text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> SparseVector:
        """The same as for a document."""
        indices, values = corpus.sparse(text)
        return SparseVector(indices=indices, values=values)


def where(**conditions: Any) -> models.Filter:
    """A filter on metadata: `where(city=models.MatchValue(value="Oslo"))`."""
    return models.Filter(
        must=[
            models.FieldCondition(key=f"metadata.{key}", **{_kind(condition): condition})
            for key, condition in conditions.items()
        ]
    )


def _kind(condition: Any) -> str:
    return "range" if isinstance(condition, models.Range | models.DatetimeRange) else "match"


class LangChain(Application):
    """See the module."""

    name = "langchain"
    collections = (DENSE, HYBRID, SPARSE)

    def _existing(self, name: str, **options: Any) -> QdrantVectorStore:
        store = QdrantVectorStore.from_existing_collection(collection_name=name, **{**self.options(), **options})
        self._opened.append(store)
        return store

    @cached_property
    def _opened(self) -> list[QdrantVectorStore]:
        return []

    @cached_property
    def dense(self) -> QdrantVectorStore:
        """The store on the unnamed vector."""
        return self._existing(DENSE, embedding=HashedWords())

    @cached_property
    def hybrid(self) -> QdrantVectorStore:
        """Two named vectors, one of them sparse."""
        return self._existing(HYBRID, **self._hybrid_options())

    @cached_property
    def sparse(self) -> QdrantVectorStore:
        """No dense vector at all."""
        return self._existing(SPARSE, retrieval_mode=RetrievalMode.SPARSE, sparse_embedding=CountedWords())

    @staticmethod
    def _hybrid_options() -> dict[str, Any]:
        return {
            "embedding": HashedWords(),
            "sparse_embedding": CountedWords(),
            "retrieval_mode": RetrievalMode.HYBRID,
            "vector_name": "dense",
            "sparse_vector_name": "sparse",
        }

    def fill(self, told: Transcript) -> None:
        """Each of the package's ways to begin."""
        texts = corpus.library()
        documents = [Document(page_content=text.words, metadata=text.metadata) for text in texts]
        ids = [text.id for text in texts]
        options = self.options()
        self.dense = QdrantVectorStore.from_documents(
            documents,
            HashedWords(),
            ids=ids,
            collection_name=DENSE,
            batch_size=8,
            force_recreate=True,
            collection_create_options={"on_disk_payload": True, "hnsw_config": {"m": 16, "payload_m": 16}},
            **options,
        )
        self.hybrid = QdrantVectorStore.from_texts(
            [text.words for text in texts],
            metadatas=[text.metadata for text in texts],
            ids=ids,
            collection_name=HYBRID,
            force_recreate=True,
            sparse_vector_params={"modifier": models.Modifier.IDF},
            **self._hybrid_options(),
            **options,
        )
        self.sparse = QdrantVectorStore.from_texts(
            [text.words for text in texts[:10]],
            ids=list(range(10)),
            collection_name=SPARSE,
            force_recreate=True,
            retrieval_mode=RetrievalMode.SPARSE,
            sparse_embedding=CountedWords(),
            **options,
        )
        self._opened.extend([self.dense, self.hybrid, self.sparse])
        told.say("ids that the package makes", self.dense.add_texts(["no id was given", "here neither"]))
        self.client.create_payload_index(DENSE, "metadata.subject", models.PayloadSchemaType.KEYWORD)
        again = QdrantVectorStore.from_texts(["ships again"], HashedWords(), ids=[7], collection_name=DENSE, **options)
        self._opened.append(again)

    def read(self, told: Transcript) -> None:
        """Searches of every kind, retrievers, documents by id, checks of the collection."""
        self._dense(told)
        self._filters(told)
        self._retrievers(told)
        self._fused(told)
        self.wait(self._asynchronous(told))
        self._refusals(told)

    def _dense(self, told: Transcript) -> None:
        store = self.dense
        told.say("search", store.similarity_search("ships at night", k=5))
        told.say("search: scores", store.similarity_search_with_score("honey in spring", k=5))
        told.say("search: second page", store.similarity_search_with_score("old ships", k=5, offset=5))
        told.say("search: everything", store.similarity_search_with_score("bread", k=1000))
        told.say("search: threshold", store.similarity_search_with_score("rye bread", k=40, score_threshold=0.3))
        told.say_nothing("search: threshold that nothing meets", store.similarity_search("rye", score_threshold=0.999))
        told.say("search: relevance", store.similarity_search_with_relevance_scores("stars fade", k=4))
        told.say("search: by vector", store.similarity_search_by_vector(corpus.dense("coal and water"), k=3))
        exact = models.SearchParams(exact=True, hnsw_ef=64)
        told.say("search: parameters", store.similarity_search("a hive", search_params=exact))
        most = models.ReadConsistencyType.MAJORITY
        told.say("search: consistency", store.similarity_search("a hive", consistency=most))
        told.say("mmr", store.max_marginal_relevance_search("ships at night", k=6, fetch_k=20))
        told.say("mmr: much diversity", store.max_marginal_relevance_search("bread", k=6, fetch_k=30, lambda_mult=0.9))
        vector = corpus.dense("night trains")
        scored = store.max_marginal_relevance_search_with_score_by_vector(vector, k=5, fetch_k=9, lambda_mult=0.1)
        told.say("mmr: scores", scored)
        ids = [corpus.text_id(f"text {number}") for number in (4, 2, 9)]
        told.say("by ids", store.get_by_ids([*ids, ids[0].replace("-", ""), corpus.text_id("unknown"), 7]))
        told.say("exists", store.client.collection_exists(DENSE))
        told.say_nothing("exists: not", store.client.collection_exists("langchain-never"))
        told.say("collection", store.client.get_collection(DENSE).config.params)
        told.say("count", store.client.count(DENSE).count)

    def _filters(self, told: Transcript) -> None:
        def ask(step: str, condition: models.Filter, k: int = 6) -> None:
            told.say(f"filter: {step}", self.dense.similarity_search_with_score("ships and stars", k, filter=condition))

        ask("keyword", where(subject=models.MatchValue(value="stars")))
        ask("keyword without an index", where(city=models.MatchValue(value="Oslo")))
        ask("integer", where(year=models.MatchValue(value=1997)))
        ask("bool", where(open=models.MatchValue(value=True)))
        ask("any", where(city=models.MatchAny(any=["Oslo", "Porto"])))
        ask("any, of a list", where(tags=models.MatchAny(any=["bees", "turku"])))
        ask("except", where(city=models.MatchExcept(**{"except": ["Oslo"]})))
        ask("range", where(rating=models.Range(gt=1.25, lte=4.5)))
        ask("float equality", where(rating=models.Range(gte=2.5, lte=2.5)))
        ask("dates", where(printed=models.DatetimeRange(gte="2024-03-01T00:00:00Z", lt="2024-07-01T00:00:00Z")))
        ask("dotted twice", where(**{"author.born": models.MatchAny(any=[1902, 1903])}))
        ask(
            "text",
            models.Filter(must=[models.FieldCondition(key="page_content", match=models.MatchText(text="night"))]),
        )
        ask("two", where(subject=models.MatchValue(value="bees"), open=models.MatchValue(value=False)))
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key="metadata.city"))
        ask("tenant or none", models.Filter(should=[*where(city=models.MatchValue(value="Turku")).must, empty]))
        ask("null", models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="metadata.note"))]))
        ask("not", models.Filter(must_not=[where(subject=models.MatchAny(any=["ships", "bread"]))]), 40)
        ids = [corpus.text_id(f"text {number}") for number in range(4)]
        ask("ids", models.Filter(must=[models.HasIdCondition(has_id=ids)]))
        least = models.MinShould(
            conditions=[where(open=models.MatchValue(value=True)), where(year=models.Range(lt=2005)), empty],
            min_count=2,
        )
        ask("at least two", models.Filter(min_should=least), 40)
        ask("no condition", models.Filter(), 40)
        told.say_nothing("filter: none", self.dense.similarity_search("x", filter=where(year=models.Range(gt=3000))))

    def _retrievers(self, told: Transcript) -> None:
        store = self.dense
        told.say("retriever", store.as_retriever(search_kwargs={"k": 3}).invoke("sour dough"))
        kept = {"k": 3, "filter": where(open=models.MatchValue(value=True))}
        told.say("retriever: filter", store.as_retriever(search_kwargs=kept).invoke("sour dough"))
        diverse = store.as_retriever(search_type="mmr", search_kwargs={"k": 4, "fetch_k": 12, "lambda_mult": 0.7})
        told.say("retriever: mmr", diverse.invoke("the light of a lighthouse"))
        near = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.62})
        told.say("retriever: threshold", near.invoke("the signals stop two trains"))
        told.say("retriever: batch", store.as_retriever().batch(["honey", "coal"]))

    def _fused(self, told: Transcript) -> None:
        search = self.hybrid.similarity_search_with_score
        told.say_fused("hybrid", search("old ships and stars at night", k=12))
        bees = where(subject=models.MatchAny(any=["bees", "stars"]))
        told.say_fused("hybrid: filter", search("old lighthouse", k=8, filter=bees))
        by_distribution = models.FusionQuery(fusion=models.Fusion.DBSF)
        told.say("hybrid: dbsf", search("steam trains at night", k=6, hybrid_fusion=by_distribution))
        weighted = models.RrfQuery(rrf=models.Rrf(k=10, weights=[3.0, 1.0]))
        told.say_fused("hybrid: weights", search("a telescope at night", k=12, hybrid_fusion=weighted))
        kept = {"k": 5, "hybrid_fusion": by_distribution}
        told.say("hybrid: retriever", self.hybrid.as_retriever(search_kwargs=kept).invoke("bread with salt"))
        told.say("sparse", self.sparse.similarity_search_with_score("the old lighthouse at night", k=6))
        told.say("sparse: integer ids", self.sparse.get_by_ids([3, 1, 99]))
        told.say_nothing("sparse: no word in common", self.sparse.similarity_search("zzz"))

    async def _asynchronous(self, told: Transcript) -> None:
        store = self.dense
        told.say("async: search", await store.asimilarity_search("ships at night", k=5))
        told.say("async: scores", await store.asimilarity_search_with_score("honey", k=5, score_threshold=0.05))
        told.say("async: mmr", await store.amax_marginal_relevance_search("bread", k=5, fetch_k=15))
        told.say("async: retriever", await store.as_retriever().ainvoke("steam"))
        told.say("async: by ids", await store.aget_by_ids([corpus.text_id("text 3")]))
        told.say_fused("async: hybrid", await self.hybrid.asimilarity_search_with_score("stars fade", k=9))

    def _refusals(self, told: Transcript) -> None:
        words = HashedWords()
        told.refused(
            "a vector name that is not there", lambda: self._existing(HYBRID, embedding=words, vector_name="x")
        )
        told.refused("a name for the unnamed", lambda: self._existing(DENSE, embedding=words, vector_name="dense"))
        told.refused("another size", lambda: self._existing(DENSE, embedding=ShortWords()))
        euclid = models.Distance.EUCLID
        told.refused("another distance", lambda: self._existing(DENSE, embedding=words, distance=euclid))
        told.refused("no such collection", lambda: self._existing("langchain-never", embedding=words))
        store = QdrantVectorStore(self.client, DENSE, ShortWords(), validate_collection_config=False)
        told.refused("a query of another size", lambda: store.similarity_search("x"))
        told.refused("texts of another size", lambda: store.add_texts(["x"], ids=[1]))
        told.refused("an id that is none", lambda: self.dense.add_texts(["x"], ids=["no-uuid"]))
        sparse = {"retrieval_mode": RetrievalMode.SPARSE, "sparse_embedding": CountedWords()}
        told.refused("no sparse vector", lambda: self._existing(DENSE, **sparse))

    def write(self, told: Transcript) -> None:
        """Overwrite, add, delete by ids and by filter; a collection is made anew."""
        store = self.dense
        ids = [corpus.text_id(f"text {number}") for number in range(30)]
        newer = [Document(page_content="ships were rebuilt", metadata={"subject": "ships", "year": 2031}, id=ids[0])]
        told.say("add: overwrites", store.add_documents(newer, ids=[ids[0]]))
        told.say("add: new", store.add_texts(["a new star", "new bread"], [{"year": 2040}, {"open": True}], [100, 101]))
        told.say("add: many", store.add_texts([f"page {n} of ships" for n in range(70)], ids=list(range(200, 270))))
        told.say("add: made ids", store.add_texts(["an id is made"]))
        told.say("delete: ids", store.delete([ids[1], ids[2], 101]))
        told.say("delete: unknown id", store.delete([corpus.text_id("unknown")]))
        by_filter = models.FilterSelector(filter=where(subject=models.MatchValue(value="trains")))
        told.say("delete: filter", store.client.delete(DENSE, by_filter).status)
        told.say("add: async", self.wait(store.aadd_texts(["asynchronous ships"], ids=[300])))
        told.say("delete: async", self.wait(store.adelete([ids[5]])))
        told.say("add: async, documents", self.wait(self._begin_asynchronously()))
        told.say("hybrid: overwrites", self.hybrid.add_texts(["bees in a lighthouse of stars"], ids=[ids[0]]))
        told.say("hybrid: delete", self.hybrid.delete([ids[3], ids[4]]))
        told.say("sparse: add", self.sparse.add_texts(["an old lighthouse at night"], ids=[50]))
        again = QdrantVectorStore.from_texts(
            ["made anew", "made anew twice"],
            HashedWords(),
            ids=[1, 2],
            collection_name="langchain-anew",
            force_recreate=True,
            distance=models.Distance.EUCLID,
            **self.options(),
        )
        self._opened.append(again)
        told.say("a collection made anew", again.similarity_search_with_score("anew twice"))
        told.say("and deleted", again.client.delete_collection("langchain-anew"))
        told.say_nothing("and gone", again.client.collection_exists("langchain-anew"))

    async def _begin_asynchronously(self) -> list[Any]:
        """A collection made by the asynchronous methods, and asked before it is deleted."""
        store = await QdrantVectorStore.afrom_texts(
            ["first asynchronous", "second asynchronous"],
            HashedWords(),
            [{"n": 1}, {"n": 2}],
            ids=[1, 2],
            collection_name="langchain-async",
            **self.options(),
        )
        self._opened.append(store)
        added = await store.aadd_documents([Document(page_content="third asynchronous", metadata={"n": 3})])
        found = await store.asimilarity_search_with_score("second", filter=where(n=models.Range(gte=2)))
        store.client.delete_collection("langchain-async")
        return [added, found]

    def close(self) -> None:
        """The package makes a client for each store."""
        for store in self._opened:
            store.client.close()
        super().close()
