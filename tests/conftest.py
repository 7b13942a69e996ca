"""Fixtures that several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.upstream.process import Standin

# A shared machine is slow at times; how long an example takes says nothing about whether it is right.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    """A running upstream on a directory of its own; a real Qdrant when `QDRANT_BIN` or `QDRANT_URL` is set."""
    with Standin(tmp_path / "upstream") as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared_standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    """One upstream for a whole module: for tests that neither kill it nor mind each other's collections."""
    with Standin(tmp_path_factory.mktemp("upstream")) as upstream:
        yield upstream
