"""The programs in `examples/` run as their docstrings say, with Qdrant, without it, and through an outage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.understudy import Understudy
from tests.upstream.process import ROOT, Standin


def run(module: str, *arguments: str) -> str:
    """Run an example in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Understudy]:
    """A proxy with no Qdrant anywhere."""
    with Understudy(tmp_path_factory.mktemp("alone"), None) as understudy:
        yield understudy


def check(understudy: Understudy, source: str) -> None:
    """Each example against one proxy."""
    assert run("examples.sync_client", understudy.address).splitlines()[-1] == "3 books"
    assert run("examples.async_client", understudy.address).splitlines()[0] == "1000 points"
    assert f"x-understudy-source: '{source}'" in run("examples.plain", understudy.address)


def test_examples_with_no_qdrant(alone: Understudy) -> None:
    check(alone, "local")


def test_examples_with_qdrant_and_after_its_death(standin: Standin, tmp_path: Path) -> None:
    with Understudy(tmp_path / "understudy", standin.address) as understudy:
        check(understudy, "remote")
        standin.kill()
        understudy.wait_state("local")
        check(understudy, "local")


def test_the_demo_ends_with_nothing_lost() -> None:
    assert run("examples.demo").splitlines()[-1] == "0 client errors, 0 lost, 0 different"
