"""How fast the vector index is built again, beside bare Chroma: `python -m bench.index`.

Promises: the same random points of 384 dimensions (the hardest case for a graph) for everybody in one run. Understudy's
index is built as after a fault, from the replica's store by its own process, which runs below others in priority; so
does Chroma here. Bare Chroma has its defaults, and then the settings that Understudy gives it. Recall is that of the
ten nearest, for queries in random directions. CPU seconds are those of the process that holds the graph, over all
cores: on a machine that is not idle they say more than the clock. Does not promise that the machine was idle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.page import ROOT, machine, publish
from generated.qdrant import collections_pb2 as collections
from generated.qdrant import points_pb2 as points
from generated.qdrant import qdrant_common_pb2 as common
from generated.understudy.replica.v1 import replica_pb2 as control
from server import config
from server.clock import SystemClock
from server.replica import catalogue
from server.replica.index import HNSW
from server.replica.indexing import Index, breadth
from server.replica.points import id_of, key_of
from server.replica.spaces import space_of
from server.replica.store import Collection, Record, Store
from server.replica.vector_forms import Field, stored_values

SIZE = 384
TOP = 10
QUERIES = 100
NICE = 10
PEERS: dict[str, dict[str, Any]] = {"bare Chroma, its defaults": {}, "bare Chroma, Understudy's settings": dict(HNSW)}
READY_SECONDS = 3600.0
LOOK_SECONDS = 0.05
WANTED_PER_SECOND = 1000
WANTED_RECALL = 0.99

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Figure:
    """One building of one index."""

    points: int
    who: str
    seconds: float
    cpu_seconds: float
    recall: float
    query_p50_ms: float

    @property
    def per_second(self) -> float:
        """Points."""
        return self.points / self.seconds


def data(count: int) -> tuple[Floats, Floats]:
    """Points and queries: random directions."""
    made = np.random.default_rng(count).standard_normal((count + QUERIES, SIZE), dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made[:count], made[count:]


def recall(vectors: Floats, queries: Floats, found: list[list[int]]) -> float:
    """The share of the truly nearest that were found."""
    hits = 0
    for query, ids in zip(queries, found, strict=True):
        truth = np.argpartition(-(vectors @ query), TOP)[:TOP]
        hits += len(set(truth.tolist()) & set(ids))
    return hits / (TOP * len(queries))


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- Understudy ------------------------------------------------------------------------------------------------------


def fill(store: Store, vectors: Floats) -> None:
    """A collection as the replica holds it."""
    params = collections.VectorParams(size=SIZE, distance=collections.Cosine)
    shape = collections.CollectionParams(vectors_config=collections.VectorsConfig(params=params))
    with store.transaction() as tx:
        tx.set_meta(catalogue.KNOWN, "1")
        body = collections.CollectionConfig(params=shape).SerializeToString()
        tx.save_collection(Collection("c", body, completeness=control.COMPLETENESS_COMPLETE))
    collection = store.collection("c")
    assert collection is not None
    field = Field("", SIZE, is_cosine=True)
    payload = points.PointStruct()
    payload.payload["text"].string_value = "lorem ipsum dolor sit amet " * 8
    for start in range(0, len(vectors), 1000):
        records = []
        for number, row in enumerate(vectors[start : start + 1000], start):
            dense = points.DenseVector(data=stored_values(row, field))
            named = points.NamedVectors(vectors={"": points.Vector(dense=dense)}).SerializeToString(deterministic=True)
            records.append(Record(key_of(common.PointId(num=number)), payload.SerializeToString(), named))
        with store.transaction() as tx:
            tx.put(collection.cid, records)


def understudy(vectors: Floats, queries: Floats, directory: Path) -> Figure:
    """The index of a filled store, from nothing to ready; the trial of its recall is part of it."""
    store = Store(directory, SystemClock())
    fill(store, vectors)
    collection = store.collection("c")
    assert collection is not None
    index = Index(store, directory / "index", config.Replica())
    began = time.perf_counter()
    index.start()
    used = 0.0
    while index.state(collection.cid) != "ready":
        if time.perf_counter() > began + READY_SECONDS:
            raise SystemExit("the index was not built in time")
        used = cpu_seconds(index.pid) if index.pid else used
        time.sleep(LOOK_SECONDS)
    seconds = time.perf_counter() - began
    found, took = [], []
    for query in queries:
        asked = time.perf_counter()
        proposal = index.propose(collection, space_of(collection.config, ""), query, TOP)
        took.append(time.perf_counter() - asked)
        found.append([id_of(key).num for key in proposal.candidates] if proposal else [])
    index.close()
    store.close()
    share = recall(vectors, queries, found)
    return Figure(len(vectors), "Understudy", seconds, used, share, float(np.median(took)) * 1000)


# --- bare Chroma -----------------------------------------------------------------------------------------------------


def bare(count: int, who: str) -> Figure:
    """In a process of its own, at the same priority."""
    command = [sys.executable, "-m", "bench.index", "--bare", who, "--sizes", str(count)]
    return Figure(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout))


def bare_here(count: int, who: str) -> Figure:
    """Chroma as anybody would fill it: batches of 1,000 into a new collection."""
    os.nice(NICE)
    import chromadb
    from chromadb.config import Settings

    vectors, queries = data(count)
    ids = [f"{number:034x}" for number in range(count)]
    graph: dict[str, Any] = {"space": "ip", **PEERS[who]}
    if PEERS[who]:
        graph["ef_search"] = breadth(count)
    with tempfile.TemporaryDirectory() as directory:
        began, used = time.perf_counter(), time.process_time()
        client = chromadb.PersistentClient(path=directory, settings=Settings(anonymized_telemetry=False))
        shape: Any = {"hnsw": graph}
        collection = client.create_collection("bench", configuration=shape, embedding_function=None)
        for start in range(0, count, 1000):
            collection.add(ids=ids[start : start + 1000], embeddings=vectors[start : start + 1000])
        seconds, spent = time.perf_counter() - began, time.process_time() - used
        found, took = [], []
        for query in queries:
            asked = time.perf_counter()
            answer = collection.query(query_embeddings=query[None], n_results=TOP, include=[])
            took.append(time.perf_counter() - asked)
            found.append([int(one, 16) for one in answer["ids"][0]])
    return Figure(count, who, seconds, spent, recall(vectors, queries, found), float(np.median(took)) * 1000)


# --- what comes out --------------------------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"Machine: {result['machine']}; load average {result['load']:.1f} at the start. Random vectors, {SIZE}-d.",
        "",
        "| points | built by | seconds | points/s | CPU s | points per CPU s | recall@10 | query p50 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["builds"]:
        rates = f"{row['points'] / row['seconds']:,.0f} | {row['cpu_seconds']:.1f}"
        each = f"{row['points'] / row['cpu_seconds']:,.0f} | {row['recall']:.3f} | {row['query_p50_ms']:.1f}"
        lines.append(f"| {row['points']:,} | {row['who']} | {row['seconds']:.1f} | {rates} | {each} |")
    lines += ["", f"Wanted of Understudy: at least {WANTED_PER_SECOND:,} points/s and recall {WANTED_RECALL}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write bench/out/index.json and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 100_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md alone")
    parser.add_argument("--bare", choices=list(PEERS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.bare:
        print(json.dumps(asdict(bare_here(chosen.sizes[0], chosen.bare))))
        return
    builds, load = [], os.getloadavg()[0]
    for count in chosen.sizes:
        for _ in range(chosen.rounds):
            vectors, queries = data(count)
            with tempfile.TemporaryDirectory() as directory:
                builds.append(asdict(understudy(vectors, queries, Path(directory) / "store")))
            del vectors
            builds += [asdict(bare(count, who)) for who in PEERS]
            print(json.dumps(builds[-3:]), file=sys.stderr, flush=True)
    result = {"machine": machine(), "load": load, "builds": builds}
    publish("index", result, report(result), chosen.out, docs=not chosen.no_docs)


if __name__ == "__main__":
    main()
