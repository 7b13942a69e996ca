"""The replica as a twin of the oracles: bytes of requests in, bytes of answers out, no socket and no process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from server import config
from server.replica import catalogue
from server.replica.refusal import Refusal
from server.replica.search import Searcher, matching_keys
from server.replica.store import Store
from server.replica.touched import Touched
from server.replica.writes import Writes
from server.rpc import COLLECTIONS
from tests.faults.clock import ManualClock

from .answers import ANSWERS
from .calls import Call, Outcome, Refused

RESOLVED_POINTS = 1000


class Replica:
    """A replica of a server of some version, in a directory."""

    name = "replica"

    def __init__(self, directory: Path, version: str) -> None:
        self.mends = Counter[str]()
        self.version = version
        self.store = Store(directory, ManualClock())
        with self.store.transaction() as tx:
            tx.set_meta(catalogue.KNOWN, "1")
            tx.set_meta(catalogue.REMOTE_VERSION, version)
        touched = Touched(self.store.applied_seq)
        self._writes = Writes(self.store, matching_keys, touched, self.store.clock, resolved_points=RESOLVED_POINTS)
        self._searcher = Searcher(self.store, config.Replica())

    def answer(self, call: Call) -> Outcome:
        """Answer one call as the service does."""
        body = call.request.SerializeToString()
        try:
            return ANSWERS[call.method].FromString(self._bytes(call, body))
        except Refusal as refusal:
            return Refused(refusal.code.name, refusal.details)

    def _bytes(self, call: Call, body: bytes) -> bytes:
        if not call.is_read:
            return self._writes.apply_direct(call.method, body)
        if not call.method.startswith(COLLECTIONS):
            return self._searcher.answer(call.method, body)
        with self.store.snapshot():
            return catalogue.answer(self.store, call.method, body, lambda: 0.0)

    def close(self) -> None:
        """Let go of the directory."""
        self.store.close()
