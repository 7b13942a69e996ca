"""Unmodified Qdrant clients that call at a steady rate, in a process of their own, and time every call.

`python -m bench.clients --target HOST:PORT --kind sync|async --rate R` prints `calling`, calls until its standard input
ends, and prints one JSON object: `calls`, rows of [due, ended, is_write] in seconds of the monotonic clock (which all
processes of a machine share), and `errors`, texts. A call is timed from the moment at which it was due, whatever became
of those before it. The client has its own defaults: a deadline of 5 s, nothing is tried again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qdrant_client import AsyncQdrantClient, QdrantClient, models

COLLECTION = "mixed"
SIZE = 32
# Ids of one process; each is written again after so many writes, so that writes to one point seldom meet.
OWN_IDS = 4000
# An upstream that hangs holds calls for seconds, and each needs a thread.
THREADS = 800


@dataclass
class Calls:
    """What to call, in turn, and what became of it."""

    first_id: int
    write_share: float
    made: list[tuple[float, float, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def next(self, number: int) -> tuple[bool, str, dict[str, Any]]:
        """The call of this number: whether it writes, its name and arguments."""
        vector = np.random.default_rng(number).standard_normal(SIZE).tolist()
        own = self.first_id + number % OWN_IDS
        # Spread evenly, whatever the share.
        if int((number + 1) * self.write_share) > int(number * self.write_share):
            point = models.PointStruct(id=own, vector=vector, payload={"number": number})
            return True, "upsert", {"points": [point], "wait": True}
        if number % 4 < 2:
            return False, "retrieve", {"ids": [own, own + 1], "with_payload": True}
        return False, "query_points", {"query": vector, "limit": 5}

    def ended(self, due: float, writes: bool, error: BaseException | None) -> None:
        """Take down a call."""
        self.made.append((round(due, 5), round(time.monotonic(), 5), int(writes)))
        if error is not None:
            self.errors.append(repr(error)[:500])


def options(target: str) -> dict[str, Any]:
    """How the client is told where to call."""
    host, port = target.rsplit(":", 1)
    return {"host": host, "grpc_port": int(port), "port": 1, "prefer_grpc": True, "check_compatibility": False}


def call_in_threads(target: str, rate: float, calls: Calls, stopped: threading.Event) -> None:
    """The blocking client."""
    client = QdrantClient(**options(target))

    def call(number: int, due: float) -> None:
        writes, name, arguments = calls.next(number)
        error = None
        try:
            getattr(client, name)(COLLECTION, **arguments)
        except Exception as failure:  # noqa: BLE001 - whatever reaches the client is what this counts
            error = failure
        calls.ended(due, writes, error)

    with ThreadPoolExecutor(THREADS) as threads:
        started, number = time.monotonic(), 0
        while not stopped.is_set():
            due = started + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            threads.submit(call, number, due)
            number += 1
    client.close()


async def call_in_tasks(target: str, rate: float, calls: Calls, stopped: threading.Event) -> None:
    """The client for asyncio."""
    client = AsyncQdrantClient(**options(target))

    async def call(number: int, due: float) -> None:
        writes, name, arguments = calls.next(number)
        error = None
        try:
            await getattr(client, name)(COLLECTION, **arguments)
        except Exception as failure:  # noqa: BLE001 - whatever reaches the client is what this counts
            error = failure
        calls.ended(due, writes, error)

    async with asyncio.TaskGroup() as tasks:
        started, number = time.monotonic(), 0
        while not stopped.is_set():
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(call(number, due))
            number += 1
    await client.close()


def main() -> None:
    """Call until the end of standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--kind", choices=("sync", "async"), required=True)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--write-share", type=float, default=0.5)
    parser.add_argument("--first-id", type=int, default=0)
    chosen = parser.parse_args()
    calls, stopped = Calls(chosen.first_id, chosen.write_share), threading.Event()

    def wait() -> None:
        with suppress(OSError):
            sys.stdin.read()
        stopped.set()

    threading.Thread(target=wait, daemon=True).start()
    print("calling", flush=True)
    if chosen.kind == "sync":
        call_in_threads(chosen.target, chosen.rate, calls, stopped)
    else:
        asyncio.run(call_in_tasks(chosen.target, chosen.rate, calls, stopped))
    print(json.dumps({"calls": calls.made, "errors": calls.errors}), flush=True)


if __name__ == "__main__":
    main()
