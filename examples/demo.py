"""`make demo`: a whole outage on real data, in the terminal.

Loads half of scikit-learn's digits through Understudy, kills Qdrant with SIGKILL while clients go on reading and
writing, brings it back, watches the log drain and compares both sides. The last line counts client errors,
lost and different points; all zero is exit code 0.

Qdrant is the test suite's stand-in unless QDRANT_BIN names a real server binary.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, grpc, models
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tests.system import digits
from tests.system.understudy import Understudy
from tests.system.workload import scroll_all
from tests.upstream.process import Standin

COLLECTION = "digits"
HELD_OUT = range(1600, 1797)
HALF = 800
BATCH = 50
READERS = 2
SHADES = " .:-=+*#@"


@dataclass(slots=True)
class Point:
    """What a point must be when all is over."""

    vector: list[float]
    payload: dict[str, Any]


@dataclass(slots=True)
class Tally:
    """What clients met."""

    calls: int = 0
    errors: list[str] = field(default_factory=list)
    slowest_ms: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, work: Callable[[], Any]) -> Any:
        """Make one call for a client and count what came of it; None when it failed."""
        started = time.monotonic()
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - whatever reaches a client is an error of the demo
            with self.lock:
                self.errors.append(repr(error))
            return None
        finally:
            with self.lock:
                self.calls += 1
                self.slowest_ms = max(self.slowest_ms, (time.monotonic() - started) * 1000)


class Stage:
    """The terminal: one line for each thing that happens, with the time since the start."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
        self._started = time.monotonic()

    def say(self, what: str, detail: str = "", style: str = "cyan") -> None:
        """One line of the timeline."""
        line = Text(f"{time.monotonic() - self._started:6.1f} s  ", style="dim")
        line.append("● ", style=style)
        line.append(what, style="bold")
        if detail:
            line.append(f"  {detail}", style="default")
        self.console.print(line)

    def show(self, picture: Any) -> None:
        """Something larger, indented."""
        self.console.print(picture)


@dataclass(slots=True)
class Demo:
    """The parts on stage, and what must be true of the points."""

    stage: Stage
    upstream: Standin
    proxy: Understudy
    data: digits.Digits
    tally: Tally = field(default_factory=Tally)
    expected: dict[int, Point] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        """Everything in turn; returns the exit code."""
        client = self.proxy.client()
        client.create_collection(COLLECTION, models.VectorParams(size=64, distance=models.Distance.EUCLID))
        readers = [threading.Thread(target=self._read_on, args=(seed,)) for seed in range(READERS)]
        self._load(client, range(HALF))
        self.stage.say("loaded", f"{HALF} of {HELD_OUT.start} digits, 64 dimensions each, through Understudy")
        self._show_neighbours(client, 1700)
        online = self._accuracy(client)
        self.stage.say("Qdrant up", f"k-NN accuracy on {len(HELD_OUT)} unseen digits: {online:.4f}", "green")
        for reader in readers:
            reader.start()
        try:
            self._outage(client, online)
            self._return(client)
        finally:
            self.ended.set()
            for reader in readers:
                reader.join()
        return self._verdict(client)

    # --- acts ---

    def _outage(self, client: QdrantClient, online: float) -> None:
        pid = self.upstream.pid
        self.upstream.kill()
        self.stage.say("kill -9", f"Qdrant (process {pid}) is gone; {READERS} readers and a writer go on", "red")
        offline = self._accuracy(client)
        same = "the same" if offline == online else f"NOT the same as {online:.4f}"
        self.stage.say("Qdrant away", f"k-NN accuracy answered by the replica: {offline:.4f}, {same}", "yellow")
        self._show_neighbours(client, 1700)
        self.stage.say("an answer's metadata", self._metadata(client), "yellow")
        self._load(client, range(HALF, HELD_OUT.start))
        reviewed = list(range(0, HELD_OUT.start, 8))
        for row in reviewed:
            self.tally.call(lambda row=row: client.set_payload(COLLECTION, {"reviewed": True}, [row]))
            self.expected[row].payload["reviewed"] = True
        gone = list(range(5, HELD_OUT.start, 16))
        for row in gone:
            self.tally.call(lambda row=row: client.delete(COLLECTION, models.PointIdsList(points=[row])))
            del self.expected[row]
        self.stage.say(
            "written meanwhile",
            f"{HELD_OUT.start - HALF} points upserted, {len(reviewed)} payloads set, {len(gone)} points deleted",
            "yellow",
        )
        counted = self.tally.call(lambda: client.count(COLLECTION).count)
        self.stage.say(
            "read your writes", f"count through Understudy: {counted}, expected {len(self.expected)}", "yellow"
        )

    def _return(self, client: QdrantClient) -> None:
        waiting = self.proxy.pending()
        self.stage.say("in the log", f"{waiting} writes on disk, waiting for Qdrant", "yellow")
        self.upstream.start()
        self.stage.say("Qdrant restarted", f"process {self.upstream.pid}, on the data it had", "green")
        columns = (TextColumn("          replaying in order"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.stage.console) as progress:
            task = progress.add_task("drain", total=waiting)
            deadline = time.monotonic() + 120
            extra = 0
            while time.monotonic() < deadline:
                status = self.proxy.status()
                state, pending = str(status["state"]).lower(), int(status["pending"])
                progress.update(task, completed=min(waiting, max(0, waiting + extra - pending)))
                if state == "remote" and pending == 0:
                    break
                if extra < 20:
                    extra += 1
                    self._set(client, "during_the_drain", extra)
                threading.Event().wait(0.02)
            progress.update(task, completed=waiting)
        self._set(client, "after_the_drain", 1)
        self.stage.say(
            "drained", f"state {self.proxy.state()}; {extra} more writes had joined the tail of the log", "green"
        )

    def _set(self, client: QdrantClient, key: str, value: int) -> None:
        self.tally.call(lambda: client.set_payload(COLLECTION, {key: value}, [1]))
        self.expected[1].payload[key] = value

    def _verdict(self, client: QdrantClient) -> int:
        direct = self.upstream.client()
        held = {record.id: record for record in scroll_all(direct, COLLECTION)}
        seen = {record.id: record for record in scroll_all(client, COLLECTION)}
        lost = len(self.expected.keys() ^ held.keys())
        different = sum(
            not (matches(held[row], point) and row in seen and matches(seen[row], point))
            for row, point in self.expected.items()
            if row in held
        )
        scores = self._accuracy(client), digits.accuracy(direct, COLLECTION, self.data, HELD_OUT)
        table = Table(title="Compared", title_justify="left", box=None, padding=(0, 2))
        for column in ("", "acknowledged", "through Understudy", "in Qdrant"):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row("points", str(len(self.expected)), str(len(seen)), str(len(held)))
        table.add_row("k-NN accuracy", "", f"{scores[0]:.4f}", f"{scores[1]:.4f}")
        self.stage.show(table)
        self.stage.say("clients", f"{self.tally.calls} calls, the slowest took {self.tally.slowest_ms:.0f} ms")
        for error in self.tally.errors[:5]:
            self.stage.say("client error", error[:300], "red")
        if scores[0] != scores[1]:
            self.stage.say("accuracy differs", "between Understudy and Qdrant", "red")
        direct.close()
        client.close()
        print(f"{len(self.tally.errors)} client errors, {lost} lost, {different} different", flush=True)
        return int(bool(self.tally.errors or lost or different or scores[0] != scores[1]))

    # --- clients ---

    def _load(self, client: QdrantClient, rows: range) -> None:
        for start in range(rows.start, rows.stop, BATCH):
            batch = [self.data.point(row) for row in range(start, min(start + BATCH, rows.stop))]
            self.tally.call(lambda batch=batch: client.upsert(COLLECTION, batch))
            for point in batch:
                self.expected[int(point.id)] = Point(list(point.vector), dict(point.payload or {}))  # type: ignore[arg-type]

    def _read_on(self, seed: int) -> None:
        """One reader with a client of its own: searches, gets and scrolls until the end."""
        rng = random.Random(seed)
        client = self.proxy.client()
        even = models.Filter(must=[models.FieldCondition(key="even", match=models.MatchValue(value=True))])
        while not self.ended.is_set():
            vector = self.data.vectors[rng.choice(HELD_OUT)].tolist()
            work = rng.choice(
                [
                    lambda vector=vector: client.query_points(COLLECTION, query=vector, limit=5),
                    lambda vector=vector: client.query_points(COLLECTION, query=vector, query_filter=even),
                    lambda: client.retrieve(COLLECTION, [rng.randrange(HALF)]),
                    lambda: client.scroll(COLLECTION, limit=20),
                ]
            )
            self.tally.call(work)
            self.ended.wait(0.01)
        client.close()

    def _accuracy(self, client: QdrantClient) -> float:
        return digits.accuracy(client, COLLECTION, self.data, HELD_OUT, self.tally.call)

    def _metadata(self, client: QdrantClient) -> str:
        def count() -> Any:
            return client.grpc_points.Count.with_call(grpc.CountPoints(collection_name=COLLECTION), timeout=5)

        answer = self.tally.call(count)
        trailers = answer[1].trailing_metadata() if answer else ()
        return "".join(f"\n             {key}: {value}" for key, value in trailers if key.startswith("x-understudy"))

    def _show_neighbours(self, client: QdrantClient, row: int) -> None:
        vector = self.data.vectors[row].tolist()
        answer = self.tally.call(lambda: client.query_points(COLLECTION, query=vector, limit=3, with_vectors=True))
        if answer is None:
            return
        pictures = [drawn(self.data.vectors[row])] + [drawn(np.asarray(hit.vector)) for hit in answer.points]
        titles = ["asked"] + [f"{hit.payload['label']}  at {hit.score:.1f}" for hit in answer.points if hit.payload]
        table = Table(box=None, padding=(0, 2), show_edge=False)
        table.add_column("", width=8)
        for title in titles:
            table.add_column(title, justify="left", no_wrap=True)
        table.add_row("", *pictures)
        self.stage.show(table)


def drawn(vector: Any) -> str:
    """A digit as eight lines of text."""
    levels = np.clip(np.asarray(vector).reshape(8, 8) / 16 * (len(SHADES) - 1), 0, len(SHADES) - 1).astype(int)
    return "\n".join("".join(SHADES[level] * 2 for level in line) for line in levels)


def matches(record: models.Record, point: Point) -> bool:
    """Payload equal, vector equal to the last bit of a float32."""
    return record.payload == point.payload and np.array_equal(
        np.asarray(record.vector, np.float32), np.asarray(point.vector, np.float32)
    )


def main() -> int:
    """Set the stage, play, clear up."""
    if os.environ.get("QDRANT_URL"):
        print("the demo kills Qdrant, so it needs one of its own: unset QDRANT_URL, set QDRANT_BIN", file=sys.stderr)
        return 2
    stage = Stage()
    real = os.environ.get("QDRANT_BIN")
    with tempfile.TemporaryDirectory(prefix="understudy-demo-") as folder:
        upstream, directory = Standin(Path(folder) / "qdrant"), Path(folder) / "understudy"
        try:
            upstream.start()
            name = f"Qdrant ({real})" if real else "a stand-in for Qdrant (QDRANT_BIN=… runs a real one)"
            stage.say("upstream", f"{name} on {upstream.address}, process {upstream.pid}", "green")
            proxy = Understudy(directory, upstream.address)
            proxy.environment = {}
            with proxy:
                stage.say("understudy", f"on {proxy.address}, process {proxy.pid}; the clients know only this address")
                return Demo(stage, upstream, proxy, digits.load()).run()
        finally:
            upstream.stop()


if __name__ == "__main__":
    raise SystemExit(main())
