"""Fixtures that several folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.upstream.process import Standin

# A shared machine is slow at times; how long an example takes says nothing about whether it is right.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


class FailuresAtOnce:
    """Shows each failure when it happens: what is killed from outside never comes to its summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.section(f"{report.when} of {report.nodeid} failed", "!", red=True)
            terminal.write_line(report.longreprtext)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI"):
        config.pluginmanager.register(FailuresAtOnce(config))


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
