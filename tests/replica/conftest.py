"""What several test files of the replica start with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import config
from tests.faults.clock import ManualClock

from .hydration_world import Make, RemoteStore, World
from .local_store import Local


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[World] = []

    def world(**chosen: Any) -> World:
        values = {"page_points": 10, "points_per_second": 0, **chosen}
        at = tmp_path / str(len(made))
        built = World(
            RemoteStore(at / "remote"), Local(at / "here", known=False), ManualClock(), config.Hydrate(**values)
        )
        made.append(built)
        return built

    yield world
    for each in made:
        each.remote.local.close()
        each.here.close()
