"""The index process: the only code that runs Chroma.

    python -m server.replica.index DIRECTORY FILE_LIMIT_BYTES [URL]

Promises: answers frames on stdin with frames on stdout, one by one, and ends when stdin ends. With a URL the index
lives in the Chroma server there, without one in the directory. No file of it grows past the limit (the kernel sees to
that: a damaged Chroma store has been seen to write 76 GB). Runs below its parent in priority. Whatever Chroma does to
this process (hold the GIL, leak, crash) stays in it.

A server is not ours alone: only collections with our prefix are made, changed or dropped, and after every write and
every query their number of points must be what we put there, else the operation has failed.

Operations (head → answer head):
    open {own, keep} → {}, drops the collections whose name begins with `own`, but for those to keep
    create {name, space, breadth, flush} → {}          drop {name} → {}
    put {name, count, size, replace} body: keys, vectors → {}
    verify {name, count, size} body: keys, vectors → {same}
    remove {name, count} body: keys → {}                count {name} → {count}
    query {name, wanted} body: vector → {count} body: keys, distances
Every answer has "error" when the operation failed.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from server.replica import frames
from server.replica.chroma_server import ChromaServer
from server.replica.packing import KEY_BYTES

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

_NICE = 19
# With `ef_search` a sixteenth of the collection: recall 0.99 on random vectors, where Chroma's defaults give 0.57 on
# 10,000. A wider `ef_construction` finds hardly more at the same `ef_search`, and building takes several times as long.
HNSW = {"max_neighbors": 32, "ef_construction": 48}

_LISTED_AT_ONCE = 200
# A server sends floats as text.
_SAME_WITHIN = 1e-6

Answer = tuple[dict[str, Any], bytes]


class Disagreement(Exception):
    """Chroma does not hold what was put there."""


def _ids(body: bytes, count: int) -> list[str]:
    """Packed keys as Chroma's ids."""
    return [body[at : at + KEY_BYTES].hex() for at in range(0, count * KEY_BYTES, KEY_BYTES)]


def _vectors(head: dict[str, Any], body: bytes) -> Any:
    """The rows behind the packed keys."""
    count, size = head["count"], head["size"]
    return np.frombuffer(body, dtype="<f4", offset=count * KEY_BYTES).reshape(count, size)


class Server:
    """Chroma behind the operations."""

    def __init__(self, directory: str, url: str | None = None) -> None:
        self._directory = directory
        self._url = url
        self._client: ClientAPI | None = None
        self._open: dict[str, Collection] = {}
        # How many points each collection must have.
        self._held: dict[str, int] = {}
        self._batch_most = 0

    def answer(self, head: dict[str, Any], body: bytes) -> Answer:
        """Do one operation."""
        operations: dict[str, Callable[[dict[str, Any], bytes], Answer]] = {
            "open": self._start,
            "create": self._create,
            "drop": self._drop,
            "count": self._count,
            "put": self._put,
            "verify": self._verify,
            "remove": self._remove,
            "query": self._query,
        }
        return operations[head["do"]](head, body)

    def _start(self, head: dict[str, Any], body: bytes) -> Answer:
        # Takes seconds, so never on the way of a start: the parent asks for it from a background thread.
        import chromadb
        from chromadb.config import Settings

        settings = Settings(anonymized_telemetry=False, allow_reset=False)
        if self._url is None:
            self._client = chromadb.PersistentClient(path=self._directory, settings=settings)
        else:
            server = ChromaServer.at(self._url)
            self._client = chromadb.HttpClient(server.host, server.port, server.tls, settings=settings)
        self._batch_most = self._client.get_max_batch_size()
        for name in self._names():
            if name.startswith(head["own"]) and name not in head["keep"]:
                self._client.delete_collection(name)
        return {}, b""

    def _names(self) -> list[str]:
        assert self._client is not None
        names: list[str] = []
        while page := self._client.list_collections(limit=_LISTED_AT_ONCE, offset=len(names)):
            names += [collection.name for collection in page]
        return names

    def _collection(self, name: str) -> Collection:
        assert self._client is not None
        if name not in self._open:
            self._open[name] = self._client.get_collection(name, embedding_function=None)
            self._held[name] = self._open[name].count()
        return self._open[name]

    def _create(self, head: dict[str, Any], body: bytes) -> Answer:
        assert self._client is not None
        graph = {**HNSW, "space": head["space"], "ef_search": head["breadth"], "sync_threshold": head["flush"]}
        configuration: Any = {"hnsw": graph}
        self._open[head["name"]] = self._client.create_collection(
            head["name"], configuration=configuration, embedding_function=None
        )
        self._held[head["name"]] = 0
        return {}, b""

    def _drop(self, head: dict[str, Any], body: bytes) -> Answer:
        assert self._client is not None
        self._open.pop(head["name"], None)
        self._held.pop(head["name"], None)
        self._client.delete_collection(head["name"])
        return {}, b""

    def _count(self, head: dict[str, Any], body: bytes) -> Answer:
        return {"count": self._collection(head["name"]).count()}, b""

    def _put(self, head: dict[str, Any], body: bytes) -> Answer:
        name, count = head["name"], head["count"]
        ids, vectors = _ids(body, count), _vectors(head, body)
        collection = self._collection(name)
        if head["replace"]:
            # Ten times as fast as an update in place, which mends the graph around the old position.
            self._delete(name, ids)
        for start in range(0, count, self._batch_most):
            part = slice(start, start + self._batch_most)
            collection.add(ids=ids[part], embeddings=vectors[part])
        self._held[name] += count
        self._see(name)
        return {}, b""

    def _verify(self, head: dict[str, Any], body: bytes) -> Answer:
        ids, vectors = _ids(body, head["count"]), _vectors(head, body)
        found = self._collection(head["name"]).get(ids=ids, include=["embeddings"])
        held: Any = found["embeddings"]
        if held is None or len(found["ids"]) != len(ids):
            return {"same": False}, b""
        places = {name: row for row, name in enumerate(found["ids"])}
        rows = np.asarray(held, dtype="<f4")[[places[name] for name in ids]]
        if self._url is None:
            return {"same": np.array_equal(rows, vectors, equal_nan=True)}, b""
        return {"same": bool(np.allclose(rows, vectors, rtol=_SAME_WITHIN, atol=_SAME_WITHIN, equal_nan=True))}, b""

    def _remove(self, head: dict[str, Any], body: bytes) -> Answer:
        self._delete(head["name"], _ids(body, head["count"]))
        return {}, b""

    def _delete(self, name: str, ids: list[str]) -> None:
        """Some of the ids may not be there, so the number that is left is asked for; it is within bounds."""
        collection = self._collection(name)
        collection.delete(ids=ids)
        left = collection.count()
        if not self._held[name] - len(ids) <= left <= self._held[name]:
            raise Disagreement(f"{left} points after {len(ids)} of {self._held[name]} were removed")
        self._held[name] = left

    def _query(self, head: dict[str, Any], body: bytes) -> Answer:
        vector: Any = np.frombuffer(body, dtype="<f4").reshape(1, -1)
        name = head["name"]
        found = self._collection(name).query(query_embeddings=vector, n_results=head["wanted"], include=["distances"])
        self._see(name)
        ids, distances = found["ids"][0], (found["distances"] or [[]])[0]
        return {"count": len(ids)}, bytes.fromhex("".join(ids)) + np.asarray(distances, dtype="<f4").tobytes()

    def _see(self, name: str) -> None:
        """A directory is ours alone; in a server somebody else may have had a hand."""
        if self._url is not None and (count := self._open[name].count()) != self._held[name]:
            raise Disagreement(f"the server holds {count} points instead of {self._held[name]}")


def _give_way() -> None:
    """Take the processor only when nobody else wants it: a search that gets none in time is answered exactly."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(_NICE)


def main(directory: str, file_limit_bytes: int, url: str | None = None) -> int:
    """Serve until stdin ends."""
    os.umask(0o077)
    _give_way()
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="index: %(levelname)s %(message)s")
    incoming = sys.stdin.buffer
    # What libraries print must not get between the frames.
    outgoing = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server = Server(directory, url)
    while True:
        try:
            head, body = frames.read(incoming.read)
        except EOFError:
            return 0
        try:
            answer, content = server.answer(head, body)
        except Exception as error:  # noqa: BLE001  Chroma raises anything; the parent decides what it means.
            logging.getLogger("server.replica.index").error("%s failed: %r", head.get("do"), error)
            answer, content = {"error": repr(error)}, b""
        outgoing.write(frames.encode(answer, content))
        outgoing.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
