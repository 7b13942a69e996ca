"""Calls that applications make which use none of the three packages: the same requests, in the shape of each.

Raw messages where the framework is not written in Python (Spring AI, LangChain4j), the plain client otherwise (mem0,
agno, and what users do themselves).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from qdrant_client import models

from generated.qdrant import collections_pb2, json_with_int_pb2, points_pb2, qdrant_common_pb2
from server.rpc import METHODS

from . import corpus
from .application import Application
from .transcript import Transcript

JAVA, MEMORY, AGENT = "spring-ai", "mem0", "agno"
# What some list everything with.
MOST = 999_999_999
# Differs from run to run.
_TIMES = ("time", "usage")


class Others(Application):
    """See the module."""

    name = "others"
    collections = (JAVA, MEMORY, AGENT)

    def fill(self, told: Transcript) -> None:
        """Each creates its collection as its framework does."""
        for collection in self.collections:
            self.client.delete_collection(collection)
        self._fill_java(told)
        self._fill_memory(told)
        self.wait(self._fill_agent(told))

    def read(self, told: Transcript) -> None:
        """Searches, lists, counts."""
        self._read_java(told)
        self._read_memory(told)
        self.wait(self._read_agent(told))
        self._refusals(told)

    def write(self, told: Transcript) -> None:
        """Overwrite, delete in every form, change payloads and vectors."""
        self._write_java(told)
        self._write_memory(told)
        self.wait(self._write_agent(told))

    # --- Spring AI and LangChain4j: messages as their clients send them ---

    @cached_property
    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address)

    def _call(self, method: str, request: Message) -> dict[str, Any]:
        row = next(row for path, row in METHODS.items() if path.endswith(f".{method}"))
        answer = self._channel.unary_unary(row.path)(request.SerializeToString(), timeout=20)
        told: dict[str, Any] = MessageToDict(_RESPONSES[method].FromString(answer))
        if isinstance(told.get("result"), dict) and "operationId" in told["result"]:
            # A number from Qdrant, or from the log while Qdrant is gone: clients only want to see one.
            told["result"]["operationId"] = "a number"
        return {key: value for key, value in told.items() if key not in _TIMES}

    def _fill_java(self, told: Transcript) -> None:
        told.say_nothing("java: no collection", self._exists(JAVA))
        size = collections_pb2.VectorParams(size=corpus.DIMENSION, distance=collections_pb2.Cosine)
        vectors = collections_pb2.VectorsConfig(params=size)
        create = collections_pb2.CreateCollection(collection_name=JAVA, vectors_config=vectors)
        told.say("java: created", self._call("Collections/Create", create))
        told.say("java: collections", self._exists(JAVA))
        told.say("java: added", self._upsert([_java(text) for text in corpus.library()]))

    def _exists(self, name: str) -> bool:
        listed = self._call("Collections/List", collections_pb2.ListCollectionsRequest())
        return name in [one["name"] for one in listed.get("collections", [])]

    def _upsert(self, points: list[points_pb2.PointStruct]) -> dict[str, Any]:
        return self._call("Points/Upsert", points_pb2.UpsertPoints(collection_name=JAVA, points=points, wait=True))

    def _search(self, words: str, threshold: float = 0.0, limit: int = 4, **fields: Any) -> dict[str, Any]:
        request = points_pb2.SearchPoints(
            collection_name=JAVA,
            vector=corpus.dense(words),
            limit=limit,
            score_threshold=threshold,
            with_payload=points_pb2.WithPayloadSelector(enable=True),
            **fields,
        )
        return self._call("Points/Search", request)

    def _read_java(self, told: Transcript) -> None:
        told.say("java: search", self._search("ships at night"))
        told.say("java: search, everything above zero", self._search("ships at night", limit=1000))
        told.say("java: search, threshold", self._search("rye bread", threshold=0.3, limit=40))
        told.say("java: search, filter", self._search("old ships", filter=_wire_filter("subject", "ships")))
        excluded = qdrant_common_pb2.Filter(must_not=_wire_filter("subject", "ships").must)
        told.say("java: search, not", self._search("old ships", filter=excluded))
        batch = points_pb2.SearchBatchPoints(collection_name=JAVA)
        for words in ("honey", "coal"):
            one = batch.search_points.add(vector=corpus.dense(words), limit=3, collection_name=JAVA)
            one.with_vectors.enable = True
        told.say("java: batch", self._call("Points/SearchBatch", batch))
        query = points_pb2.QueryPoints(collection_name=JAVA, limit=5)
        query.query.nearest.dense.data.extend(corpus.dense("stars fade"))
        query.with_payload.include.fields.extend(["data", "author.name"])
        told.say("java: query", self._call("Points/Query", query))

    def _write_java(self, told: Transcript) -> None:
        one, other, *_ = corpus.library()
        newer = _java(one)
        newer.payload["data"].string_value = "ships were rebuilt"
        told.say("java: overwritten", self._upsert([newer]))
        by_ids = points_pb2.DeletePoints(collection_name=JAVA, wait=True)
        by_ids.points.points.ids.add(uuid=other.id)
        told.say("java: deleted by ids", self._call("Points/Delete", by_ids))
        by_filter = points_pb2.DeletePoints(collection_name=JAVA, wait=True)
        by_filter.points.filter.CopyFrom(_wire_filter("subject", "stars"))
        told.say("java: deleted by filter", self._call("Points/Delete", by_filter))
        # LangChain4j's removeAll: a filter with nothing in it.
        everything = points_pb2.DeletePoints(collection_name=JAVA, wait=True)
        everything.points.filter.SetInParent()
        told.say("java: everything deleted", self._call("Points/Delete", everything))
        told.say_nothing("java: nothing left", self.client.count(JAVA).count)
        told.say("java: and again", self._upsert([_java(text, year=3) for text in corpus.library()[3:27]]))

    # --- mem0: a memory for each user ---

    def _fill_memory(self, told: Transcript) -> None:
        client = self.client
        assert MEMORY not in [one.name for one in client.get_collections().collections]
        vectors = models.VectorParams(size=corpus.DIMENSION, distance=models.Distance.COSINE, on_disk=True)
        told.say("mem0: created", client.create_collection(MEMORY, vectors_config=vectors))
        for field in ("user_id", "agent_id"):
            made = client.create_payload_index(MEMORY, field, models.PayloadSchemaType.KEYWORD)
            told.say(f"mem0: index on {field}", made.status)
        points = [_point(text, user_id=f"user {number % 3}") for number, text in enumerate(corpus.library())]
        told.say("mem0: added", client.upsert(MEMORY, points).status)

    def _read_memory(self, told: Transcript) -> None:
        client, one = self.client, corpus.library()[9]
        mine = _matches("user_id", "user 1")
        found = client.query_points(MEMORY, query=corpus.dense("ships at night"), query_filter=mine, limit=5)
        told.say("mem0: search", found.points)
        told.say("mem0: list", client.scroll(MEMORY, scroll_filter=mine, limit=100, with_vectors=False))
        told.say("mem0: list, no filter", client.scroll(MEMORY, scroll_filter=models.Filter(), limit=100))
        told.say("mem0: get", client.retrieve(MEMORY, ids=[one.id], with_payload=True))
        told.say_nothing("mem0: get, unknown", client.retrieve(MEMORY, ids=[corpus.text_id("unknown")]))
        nobody = _matches("user_id", "nobody")
        told.say_nothing("mem0: of nobody", client.scroll(MEMORY, scroll_filter=nobody, limit=100)[0])
        # A tenant's own and what belongs to nobody: a wrong answer shows other tenants' data.
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key="note"))
        shared = models.Filter(should=[*(mine.must or []), empty])  # type: ignore[misc]
        told.say("mem0: own or shared", client.scroll(MEMORY, scroll_filter=shared, limit=MOST))
        told.say("mem0: description", client.get_collection(MEMORY).payload_schema)

    def _write_memory(self, told: Transcript) -> None:
        client, texts = self.client, corpus.library()
        told.say("mem0: updated", client.upsert(MEMORY, [_point(texts[9], user_id="user 1", data="newer")]).status)
        told.say("mem0: deleted", client.delete(MEMORY, models.PointIdsList(points=[texts[4].id])).status)
        told.say("mem0: deleted by user", client.delete(MEMORY, _selector(_matches("user_id", "user 2"))).status)
        told.say("mem0: payload", client.set_payload(MEMORY, {"agent_id": "a"}, points=[texts[6].id]).status)
        nested = client.set_payload(MEMORY, {"name": "n"}, points=_matches("subject", "bees"), key="author")
        told.say("mem0: payload, nested by filter", nested.status)
        told.say("mem0: keys", client.delete_payload(MEMORY, ["loans"], points=[texts[0].id]).status)
        told.say("mem0: overwritten", client.overwrite_payload(MEMORY, {"user_id": "user 1"}, [texts[3].id]).status)
        told.say("mem0: cleared", client.clear_payload(MEMORY, [texts[12].id]).status)
        # Its reset: the collection goes and is made anew.
        self._reset(told)

    def _reset(self, told: Transcript) -> None:
        vectors = models.VectorParams(size=2, distance=models.Distance.DOT)
        for number in (1, 2):
            self.client.delete_collection("mem0-reset")
            told.say(f"mem0: reset {number}", self.client.create_collection("mem0-reset", vectors_config=vectors))
            told.say_nothing(f"mem0: reset {number}, empty", self.client.count("mem0-reset").count)
            self.client.upsert("mem0-reset", [models.PointStruct(id=number, vector=[1, number], payload={})])
        told.say("mem0: after the reset", self.client.scroll("mem0-reset", with_vectors=True))
        self.client.delete_collection("mem0-reset")

    # --- agno and others: asyncio, hybrid in one call, everything listed at once ---

    async def _fill_agent(self, told: Transcript) -> None:
        client = self.async_client
        created = await client.create_collection(
            AGENT,
            vectors_config={"dense": models.VectorParams(size=corpus.DIMENSION, distance=models.Distance.EUCLID)},
            sparse_vectors_config={"sparse": models.SparseVectorParams(modifier=models.Modifier.IDF)},
            hnsw_config=models.HnswConfigDiff(m=0, payload_m=16),
            quantization_config=models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
            ),
        )
        told.say("agno: created", created)
        await client.create_payload_index(AGENT, "year", models.PayloadSchemaType.INTEGER)
        await client.create_payload_index(AGENT, "subject", models.PayloadSchemaType.KEYWORD)
        points = [_both(text) for text in corpus.library()]
        told.say("agno: added, not waited for", (await client.upsert(AGENT, points[:15], wait=False)).status)
        told.say("agno: added", (await client.upsert(AGENT, points[15:])).status)

    async def _read_agent(self, told: Transcript) -> None:
        client = self.async_client
        dense, sparse = corpus.dense("old ships and stars"), _sparse("old ships and stars")
        prefetch = [
            models.Prefetch(query=sparse, using="sparse", limit=20),
            models.Prefetch(query=dense, using="dense", limit=20),
        ]
        fused = models.FusionQuery(fusion=models.Fusion.RRF)
        hybrid = (await client.query_points(AGENT, prefetch=prefetch, query=fused, limit=20)).points
        told.say_fused("agno: hybrid", [(one, one.score) for one in hybrid])
        nearest = await client.query_points(AGENT, query=dense, using="dense", limit=6, score_threshold=40.0)
        told.say("agno: nearest", nearest.points)
        again = await client.query_points(AGENT, prefetch=prefetch, query=dense, using="dense", limit=6)
        told.say("agno: scored anew", again.points)
        told.say("agno: everything", await client.scroll(AGENT, limit=MOST, with_vectors=True))
        told.say("agno: by year", await client.scroll(AGENT, limit=9, order_by=models.OrderBy(key="year")))
        told.say("agno: is it there", (await client.scroll(AGENT, _matches("subject", "bees"), limit=1))[0])
        told.say("agno: count", (await client.count(AGENT, count_filter=_matches("subject", "bees"))).count)
        groups = await client.query_points_groups(AGENT, "subject", query=dense, using="dense", limit=3, group_size=2)
        told.say("agno: groups", groups.groups)
        told.say("agno: facet", (await client.facet(AGENT, "subject")).hits)
        like = models.RecommendQuery(
            recommend=models.RecommendInput(positive=[corpus.text_id("text 6")], negative=[dense])
        )
        told.say("agno: more like it", (await client.query_points(AGENT, query=like, using="dense", limit=5)).points)
        requests = [models.QueryRequest(query=one, using="dense", limit=2) for one in (dense, corpus.text_id("text 8"))]
        told.say("agno: batch", await client.query_batch_points(AGENT, requests))
        told.say(
            "agno: page", (await client.query_points(AGENT, query=sparse, using="sparse", limit=4, offset=3)).points
        )

    async def _write_agent(self, told: Transcript) -> None:
        client, texts = self.async_client, corpus.library()
        newer = corpus.Text(texts[8].id, "newer stars", {"subject": "stars", "year": 2040})
        told.say("agno: overwritten", (await client.upsert(AGENT, [_both(newer)])).status)
        vectors = [models.PointVectors(id=texts[2].id, vector={"dense": corpus.dense("another vector")})]
        told.say("agno: vector", (await client.update_vectors(AGENT, vectors)).status)
        told.say("agno: vector deleted", (await client.delete_vectors(AGENT, ["sparse"], [texts[13].id])).status)
        told.say("agno: deleted", (await client.delete(AGENT, _selector(_matches("subject", "ships")))).status)
        operations = [
            models.UpsertOperation(upsert=models.PointsList(points=[_both(texts[0])])),
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"x": [1, None]}, points=[texts[0].id])),
            models.DeleteOperation(delete=models.PointIdsList(points=[texts[7].id])),
        ]
        told.say("agno: batch", [one.status for one in await client.batch_update_points(AGENT, operations)])
        if_there = models.Filter(must=[models.FieldCondition(key="year", range=models.Range(lt=2000))])
        changed = [
            _both(corpus.Text(text.id, f"changed if old, like {text.words}", {"year": number}))
            for number, text in enumerate(texts[8:12])
        ]
        told.say("agno: conditional", (await client.upsert(AGENT, changed, update_filter=if_there)).status)
        alias = models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=AGENT, alias_name="agno-now")
        )
        told.say("agno: alias", await client.update_collection_aliases([alias]))
        told.say("agno: through the alias", await client.scroll("agno-now", limit=MOST, with_vectors=True))

    def _refusals(self, told: Transcript) -> None:
        client = self.client
        vectors = models.VectorParams(size=2, distance=models.Distance.DOT)
        told.refused("created twice", lambda: client.create_collection(MEMORY, vectors_config=vectors))
        told.refused("no collection", lambda: client.count("never"))
        told.refused("no vector of that name", lambda: client.query_points(AGENT, query=[1.0, 2.0], using="x"))
        told.refused("another size", lambda: client.query_points(MEMORY, query=[1.0, 2.0]))
        told.refused("no index to order by", lambda: client.scroll(MEMORY, order_by="year"))
        told.refused("no index to count by", lambda: client.facet(MEMORY, "year"))
        told.refused("no point", lambda: client.set_payload(MEMORY, {"x": 1}, points=[corpus.text_id("unknown")]))
        told.refused("no limit", lambda: client.scroll(MEMORY, limit=0))
        told.refused("by an unknown point", lambda: client.query_points(MEMORY, query=corpus.text_id("unknown")))
        # A deletion that finds nothing is none of these.
        told.say_nothing("no collection to delete", client.delete_collection("never"))

    def close(self) -> None:
        """The raw channel too."""
        self._channel.close()
        super().close()


_RESPONSES: dict[str, type[Message]] = {
    "Collections/Create": collections_pb2.CollectionOperationResponse,
    "Collections/List": collections_pb2.ListCollectionsResponse,
    "Points/Upsert": points_pb2.PointsOperationResponse,
    "Points/Delete": points_pb2.PointsOperationResponse,
    "Points/Search": points_pb2.SearchResponse,
    "Points/SearchBatch": points_pb2.SearchBatchResponse,
    "Points/Query": points_pb2.QueryResponse,
}


def _java(text: corpus.Text, **metadata: int) -> points_pb2.PointStruct:
    """A document as Spring AI stores it: the content beside flat metadata."""
    made = points_pb2.PointStruct(id=qdrant_common_pb2.PointId(uuid=text.id))
    made.vectors.vector.data.extend(corpus.dense(text.words))
    made.payload["data"].string_value = text.words
    made.payload["subject"].string_value = text.metadata["subject"]
    made.payload["year"].integer_value = metadata.get("year", text.metadata["year"])
    author = json_with_int_pb2.Struct()
    author.fields["name"].string_value = text.metadata["author"]["name"]
    made.payload["author"].struct_value.CopyFrom(author)
    return made


def _wire_filter(key: str, value: str) -> qdrant_common_pb2.Filter:
    made = qdrant_common_pb2.Filter()
    made.must.add().field.MergeFrom(
        qdrant_common_pb2.FieldCondition(key=key, match=qdrant_common_pb2.Match(keyword=value))
    )
    return made


def _matches(key: str, value: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=value))])


def _selector(which: models.Filter) -> models.FilterSelector:
    return models.FilterSelector(filter=which)


def _point(text: corpus.Text, **payload: Any) -> models.PointStruct:
    """A text as most store it: flat metadata beside the content."""
    vector = corpus.dense(text.words)
    return models.PointStruct(id=text.id, vector=vector, payload={"data": text.words, **text.metadata, **payload})


def _sparse(words: str) -> models.SparseVector:
    indices, values = corpus.sparse(words)
    return models.SparseVector(indices=indices, values=values)


def _both(text: corpus.Text) -> models.PointStruct:
    vectors = {"dense": corpus.dense(text.words), "sparse": _sparse(text.words)}
    return models.PointStruct(id=text.id, vector=vectors, payload={"data": text.words, **text.metadata})
