"""The parts of the replica's process, put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server import config
from server.clock import Clock
from server.replica.baselines import Baselines
from server.replica.former_desk import FormerDesk
from server.replica.imports import Imports
from server.replica.indexing import Index
from server.replica.search import Searcher
from server.replica.service import Service
from server.replica.session import matching_keys
from server.replica.store import Store
from server.replica.touched import Touched
from server.replica.writes import Writes


@dataclass(frozen=True)
class Parts:
    """What runs in the process."""

    store: Store
    service: Service
    index: Index
    searcher: Searcher

    def close(self) -> None:
        """End the threads, then let go of index and store."""
        self.service.close()
        self.searcher.close()
        self.index.close()
        self.store.close()


def open_parts(directory: Path, settings: config.Replica, clock: Clock, *, alone: bool) -> Parts:
    """Open the store and build the service on it. Raises DataDirUnusable."""
    store = Store(directory, clock)
    index = Index(store, directory / "index", settings)
    searcher = Searcher(store, settings, index)
    touched = Touched(store.applied_seq, limit_keys=settings.touched_keys)
    service = Service(
        store,
        reader=searcher,
        writes=Writes(
            store,
            matching_keys,
            touched,
            clock,
            resolved_points=settings.resolved_points,
            former_points=settings.former_points,
        ),
        imports=Imports(store, touched),
        baselines=Baselines(store),
        former=FormerDesk(store),
        index=index,
        clock=clock,
        alone=alone,
        read_threads=settings.read_threads,
    )
    index.start()
    searcher.start()
    return Parts(store, service, index, searcher)
