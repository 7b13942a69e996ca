"""Understudy: a gRPC proxy that stands in for Qdrant.

    async with server.Understudy(settings) as understudy:
        understudy.address

The stations that a call or a record passes, in order:

    cli          the command line
    app          composition root: the only file that wires
    edge         gRPC in: bytes → Call → Backend → bytes
    tenancy      metadata → tenant; confine(call); reveal(reply)
    router       the one screen that shows remote, local, log, replica
    upstream     gRPC out, to Qdrant and to the replica
    wal          the write-ahead log
    replay       log → Qdrant; mirror: log → replica
    replica      the stand-in: its own process, SQLite and an index
    health       is Qdrant up: detector, state, breaker, monitor
    credentials  who was let in by Qdrant; scrub: secrets that never reach a disk
    telemetry    spans, metrics, lines from one object

docs/architecture.md shows how they meet.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`Understudy`, loaded when it is asked for: commands start without what only a server needs."""
    if name == "Understudy":
        from server.app import Understudy

        return Understudy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
