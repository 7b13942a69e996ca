"""A running server as the commands see it: the real admin port over a desk that remembers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from server.admin import Admin, Desk
from server.errors import ConfigError
from server.metrics import Metrics


class FakeDesk:
    """What it was asked, and what it answers. `later` are the statuses of the following polls."""

    def __init__(self, **status: Any) -> None:
        self.status: dict[str, Any] = {**STATUS, **status}
        self.later: list[dict[str, Any]] = []
        self.hydrated: list[list[str]] = []
        self.verified: list[list[str]] = []
        self.synced = 0
        self.listed: list[tuple[int, int]] = []
        self.entries: list[dict[str, Any]] = []
        self.not_ready = ""
        self.has_upstream = True
        self.metrics = Metrics()

    @property
    def desk(self) -> Desk:
        """For the admin port."""
        return Desk(
            status=self._status,
            metrics=self.metrics.prometheus,
            ready=lambda: self.not_ready,
            hydrate=self._hydrate,
            sync=self._sync,
            wal_entries=self._wal_entries,
        )

    async def _status(self) -> dict[str, Any]:
        if self.later:
            self.status = {**self.status, **self.later.pop(0)}
        return self.status

    async def _hydrate(self, names: list[str], verify: bool) -> dict[str, Any]:
        if not self.has_upstream:
            raise ConfigError("there is no Qdrant to copy from", hint="Set one")
        (self.verified if verify else self.hydrated).append(names)
        return {"requested": names or "all"}

    async def _sync(self) -> dict[str, Any]:
        self.synced += 1
        return {"pending": self.status["pending"], "upstream_up": self.status["state"] != "local"}

    async def _wal_entries(self, after: int, limit: int) -> list[dict[str, Any]]:
        self.listed.append((after, limit))
        return self.entries


STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "state": "remote",
    "since": "2026-01-31T10:00:00+00:00",
    "reason": "probe answered",
    "upstream": "http://qdrant:6334",
    "pending": 0,
    "oldest_pending_age_seconds": None,
    "last_seq": 12,
    "replayed_seq": 10,
    "applied_seq": 12,
    "breaker": "closed",
    "last_sync": None,
    "replay": {"state": "idle", "attempt": 0, "remaining": 0, "last_error": ""},
    "quarantine": 0,
    "grace": {"is_due": True, "is_owed": False, "looks": 3, "restored_points": 17},
    "collections": [
        {"name": "[docs]", "completeness": "complete", "points": 7, "expected_points": 7, "index_state": "ready"}
    ],
    "hydration": [],
    "verification": [],
    "replica": {"pid": 7, "restarts": 0},
    "wal": {"bytes": 2048, "latched": None},
}


@contextmanager
def serving(fake: FakeDesk) -> Iterator[str]:
    """The admin port in a thread of its own, for commands that block; gives HOST:PORT."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    admin = Admin(fake.desk)
    try:
        yield asyncio.run_coroutine_threadsafe(admin.start("127.0.0.1:0"), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(admin.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        fake.metrics.close()
