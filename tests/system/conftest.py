"""Fixtures of the system tests: the real proxy in front of a real process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import digits
from tests.system.understudy import Understudy
from tests.upstream.process import Standin


@pytest.fixture
def understudy(standin: Standin, tmp_path: Path) -> Iterator[Understudy]:
    """A proxy in front of the stand-in."""
    with Understudy(tmp_path / "understudy", standin.address) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def digit_data() -> digits.Digits:
    """The digits."""
    return digits.load()
