"""The museum's exhibits fit the code as it is: `make museum` then shows that each bug is noticed."""

from __future__ import annotations

import re

import pytest

from tests.museum.__main__ import ROOT, misfit
from tests.museum.exhibits import EXHIBITS, Exhibit


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda each: each.name)
def test_an_exhibit_fits_the_code(exhibit: Exhibit) -> None:
    for change in exhibit.changes:
        assert misfit(ROOT, change) == ""
        assert change.old != change.new
        if change.file.endswith(".py"):
            text = (ROOT / change.file).read_text(encoding="utf-8")
            compile(text.replace(change.old, change.new), change.file, "exec")
    assert exhibit.tests
    for test in exhibit.tests:
        file, _, function = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {function}\b", text, re.MULTILINE), test


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(EXHIBITS) >= 30
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)
    assert sum(change.file.startswith("server/wal/") for exhibit in EXHIBITS for change in exhibit.changes[:1]) >= 20
    assert sum(exhibit.seed for exhibit in EXHIBITS) >= 12
