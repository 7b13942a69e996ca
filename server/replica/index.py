"""The index process: the only code that runs Chroma. `python -m server.replica.index DIRECTORY FILE_LIMIT_BYTES`.

Promises: answers frames on stdin with frames on stdout, one by one, and ends when stdin ends. No file of it grows past
the limit (the kernel sees to that: a damaged Chroma store has been seen to write 76 GB). Runs below its parent in
priority. Whatever Chroma does to this process (hold the GIL, leak, crash) stays in it.

Operations (head → answer head):
    open → {}                           count {name} → {count}
    create {name, space, breadth} → {}  drop {name} → {}
    put {name, count, size, replace} body: keys, vectors → {}
    remove {name, count} body: keys → {}
    query {name, wanted} body: vector → {count} body: keys
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
from server.replica.packing import KEY_BYTES

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection

_NICE = 10
# Recall 1.00 on 10,000 random vectors, where Chroma's defaults give 0.57; `ef_search` rises with the collection.
HNSW = {"max_neighbors": 32, "ef_construction": 200}

Answer = tuple[dict[str, Any], bytes]


def _ids(body: bytes, count: int) -> list[str]:
    """Packed keys as Chroma's ids."""
    return [body[at : at + KEY_BYTES].hex() for at in range(0, count * KEY_BYTES, KEY_BYTES)]


class Server:
    """Chroma behind the operations."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._client: ClientAPI | None = None
        self._open: dict[str, Collection] = {}

    def answer(self, head: dict[str, Any], body: bytes) -> Answer:
        """Do one operation."""
        operations: dict[str, Callable[[dict[str, Any], bytes], Answer]] = {
            "open": self._start,
            "create": self._create,
            "drop": self._drop,
            "count": self._count,
            "put": self._put,
            "remove": self._remove,
            "query": self._query,
        }
        return operations[head["do"]](head, body)

    def _start(self, head: dict[str, Any], body: bytes) -> Answer:
        # Takes seconds, so never on the way of a start: the parent asks for it from a background thread.
        import chromadb
        from chromadb.config import Settings

        settings = Settings(anonymized_telemetry=False, allow_reset=False)
        self._client = chromadb.PersistentClient(path=self._directory, settings=settings)
        return {}, b""

    def _collection(self, name: str) -> Collection:
        assert self._client is not None
        if name not in self._open:
            self._open[name] = self._client.get_collection(name, embedding_function=None)
        return self._open[name]

    def _create(self, head: dict[str, Any], body: bytes) -> Answer:
        assert self._client is not None
        configuration: Any = {"hnsw": {**HNSW, "space": head["space"], "ef_search": head["breadth"]}}
        self._open[head["name"]] = self._client.create_collection(
            head["name"], configuration=configuration, embedding_function=None
        )
        return {}, b""

    def _drop(self, head: dict[str, Any], body: bytes) -> Answer:
        assert self._client is not None
        self._open.pop(head["name"], None)
        self._client.delete_collection(head["name"])
        return {}, b""

    def _count(self, head: dict[str, Any], body: bytes) -> Answer:
        return {"count": self._collection(head["name"]).count()}, b""

    def _put(self, head: dict[str, Any], body: bytes) -> Answer:
        ids = _ids(body, head["count"])
        vectors = np.frombuffer(body, dtype="<f4", offset=head["count"] * KEY_BYTES).reshape(
            head["count"], head["size"]
        )
        collection = self._collection(head["name"])
        if head["replace"]:
            # Ten times as fast as an update in place, which mends the graph around the old position.
            collection.delete(ids=ids)
        collection.add(ids=ids, embeddings=vectors)
        return {}, b""

    def _remove(self, head: dict[str, Any], body: bytes) -> Answer:
        self._collection(head["name"]).delete(ids=_ids(body, head["count"]))
        return {}, b""

    def _query(self, head: dict[str, Any], body: bytes) -> Answer:
        vector: Any = np.frombuffer(body, dtype="<f4").reshape(1, -1)
        found = self._collection(head["name"]).query(query_embeddings=vector, n_results=head["wanted"], include=[])
        ids = found["ids"][0]
        return {"count": len(ids)}, bytes.fromhex("".join(ids))


def main(directory: str, file_limit_bytes: int) -> int:
    """Serve until stdin ends."""
    os.umask(0o077)
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="index: %(levelname)s %(message)s")
    incoming = sys.stdin.buffer
    # What libraries print must not get between the frames.
    outgoing = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server = Server(directory)
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
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
