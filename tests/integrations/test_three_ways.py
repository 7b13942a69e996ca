"""Applications on real frameworks are told the same directly, through Understudy, and while Qdrant is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import KINDS
from .transcript import differences
from .ways import WAYS, Told

Ways = Callable[[str], Told]
APPLICATIONS = [kind.name for kind in KINDS]
THROUGH = [way for way in WAYS if way != "direct"]
# What a failing test prints; the first few say what is wrong.
_SHOWN = 25


def same(wanted: dict[str, object], seen: dict[str, object]) -> None:
    """Fails with the first differences."""
    found = differences(wanted, seen)
    assert found == [], f"{len(found)} differences:\n" + "\n".join(one[:400] for one in found[:_SHOWN])


@pytest.mark.parametrize("phase", ["fill", "read", "write", "read again"])
@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("way", THROUGH)
def test_an_application_is_told_the_same(told: Ways, application: str, way: str, phase: str) -> None:
    same(told("direct").of(application, phase), told(way).of(application, phase))


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("way", THROUGH)
def test_qdrant_has_in_the_end_what_understudy_answered(told: Ways, application: str, way: str) -> None:
    same(told(way).of(application, "read again"), told(way).of(application, "past Understudy"))


@pytest.mark.parametrize("application", APPLICATIONS)
def test_the_writes_are_seen(told: Ways, application: str) -> None:
    direct = told("direct")
    before, after = direct.of(application, "read"), direct.of(application, "read again")
    assert before.keys() == after.keys()
    changed = [step for step in before if differences(before[step], after[step])]
    assert len(changed) >= len(before) / 3
