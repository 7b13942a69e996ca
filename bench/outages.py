"""What the benchmark of failover measures with: Understudy and its log lines, a way to its upstream, clients.

Promises: Understudy runs with its default settings; when its state changed is what its own log lines say, on the clock
on which the clients time their calls; a drain, a return or a fault is waited for, and one that does not come ends the
run. Does not judge figures.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.page import ROOT
from bench.proxy import process
from server.logs import Message
from tests.faults.tcp_toxics import TcpToxics
from tests.upstream.process import Standin, free_port

LIMIT_SECONDS = 120.0
_STATES = {
    Message.FALLBACK_ON.value: "local",
    Message.DRAINING.value: "draining",
    Message.FALLBACK_OFF.value: "remote",
}


@dataclass(frozen=True)
class Change:
    """Understudy's state from then on; `at` in seconds of the monotonic clock."""

    at: float
    state: str


@dataclass(frozen=True)
class Proxy:
    """A running Understudy."""

    address: str
    admin: str
    pid: int
    log: Path

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        with urllib.request.urlopen(f"http://{self.admin}/status", timeout=30) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    def changes(self) -> list[Change]:
        """Every change of its state so far, in order."""
        ahead = time.time() - time.monotonic()
        found = []
        for line in self.log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") in _STATES:
                at = datetime.fromisoformat(event["timestamp"]).timestamp() - ahead
                found.append(Change(at, _STATES[event["event"]]))
        return found

    def until(self, state: str) -> Change:
        """Wait until it is in a state; returns when it came to it."""
        wait_for(lambda: self.changes()[-1:] != [] and self.changes()[-1].state == state, f"state {state}")
        return self.changes()[-1]

    def until_drained(self) -> None:
        """Wait until calls are forwarded."""
        self.until("remote")

    def until_whole(self) -> None:
        """Wait until the replica holds every collection."""
        wait_for(
            lambda: all(
                each["completeness"] == "complete" for each in self.status()["collections"] or [{"completeness": ""}]
            ),
            "a whole copy",
        )


@contextmanager
def proxy(upstream: str, data: Path) -> Iterator[Proxy]:
    """A fresh Understudy in front of `upstream`, forwarding."""
    admin = f"127.0.0.1:{free_port()}"
    arguments = ["-m", "server.cli", "serve", "--listen", "127.0.0.1:0", "--admin", admin]
    arguments += ["--upstream", upstream, "--data-dir", str(data)]
    data.mkdir(parents=True)
    log = data / "lines.jsonl"
    environment = {"UNDERSTUDY_LOGS_FORMAT": "json", "UNDERSTUDY_TRACING_ENABLED": "false"}
    with process(arguments, "understudy: listening on", lines=log, **environment) as (child, address):
        running = Proxy(address, admin, child.pid, log)
        running.until_drained()
        running.until_whole()
        yield running


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; ends the run when it does not come."""
    give_up_at = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > give_up_at:
            raise SystemExit(f"after {LIMIT_SECONDS:g} s still not: {what}")
        time.sleep(0.02)


def create(upstream: Standin, name: str, size: int) -> None:
    """An empty collection, straight at the upstream."""
    from qdrant_client import models

    client = upstream.client()
    client.create_collection(name, models.VectorParams(size=size, distance=models.Distance.DOT))
    client.close()


@contextmanager
def black_hole(address: str) -> Iterator[tuple[str, Callable[[bool], None]]]:
    """A way to `address` that can be told to swallow everything; yields its own address and how to tell it."""
    host, port = address.rsplit(":", 1)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def opened() -> TcpToxics:
        return await TcpToxics(host, int(port)).__aenter__()

    toxics = asyncio.run_coroutine_threadsafe(opened(), loop).result(30)
    try:
        yield toxics.address, lambda on: toxics_told(loop, toxics, on)
    finally:
        asyncio.run_coroutine_threadsafe(toxics.close(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def toxics_told(loop: asyncio.AbstractEventLoop, toxics: TcpToxics, on: bool) -> None:
    """Switch the black hole."""

    async def tell() -> None:
        toxics.black_hole(on=on)

    asyncio.run_coroutine_threadsafe(tell(), loop).result(30)


# --- clients ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """One call of a client."""

    due: float
    ended: float
    is_write: bool

    @property
    def seconds(self) -> float:
        """How long it took, from when it was due."""
        return self.ended - self.due

    def overlaps(self, start: float, end: float) -> bool:
        """Whether it was under way within that time."""
        return self.due <= end and self.ended >= start


class Clients:
    """Processes of `bench.clients`; `end` brings what they saw."""

    def __init__(self, address: str, rates: dict[str, float], write_share: float = 0.5) -> None:
        self._children = []
        for number, (kind, rate) in enumerate(rates.items()):
            arguments = ["--target", address, "--kind", kind, "--rate", str(rate), "--write-share", str(write_share)]
            arguments += ["--first-id", str(number * 1_000_000)]
            child = subprocess.Popen(
                [sys.executable, "-m", "bench.clients", *arguments],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            if child.stdout.readline() != "calling\n":
                raise SystemExit("a client did not start")
            self._children.append(child)

    def end(self) -> tuple[list[Timed], list[str]]:
        """Stop calling; every call and every error."""
        made: list[Timed] = []
        errors: list[str] = []
        for child in self._children:
            result = json.loads(child.communicate("", timeout=LIMIT_SECONDS)[0])
            made += [Timed(due, ended, bool(writes)) for due, ended, writes in result["calls"]]
            errors += result["errors"]
        return sorted(made, key=lambda call: call.due), errors

    def kill(self) -> None:
        """End them however they stand."""
        for child in self._children:
            child.kill()
            child.wait()


@contextmanager
def calling(address: str, rates: dict[str, float], write_share: float = 0.5) -> Iterator[Clients]:
    """Clients of each kind at its rate, until `end` or the end of the block."""
    clients = Clients(address, rates, write_share)
    try:
        yield clients
    finally:
        clients.kill()


# --- arithmetic ------------------------------------------------------------------------------------------------------


class Usual:
    """What calls take while nothing is wrong: the medians of reads and writes in some stretches of time."""

    def __init__(self, made: list[Timed], stretches: list[tuple[float, float]]) -> None:
        self.seconds = {
            writes: statistics.median(
                call.seconds
                for call in made
                if call.is_write is writes and any(start <= call.due and call.ended <= end for start, end in stretches)
            )
            for writes in {call.is_write for call in made}
        }

    def added_ms(self, call: Timed) -> float:
        """How much longer than usual a call took."""
        return (call.seconds - self.seconds[call.is_write]) * 1000


def after(changes: list[Change], state: str, moment: float) -> float:
    """When the state was first taken after a moment."""
    return next(change.at for change in changes if change.state == state and change.at >= moment)
