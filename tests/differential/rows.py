"""What a row of `differences` is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .calls import Call, Oracle, Outcome
from .comparison import difference
from .shapes import Shape


@dataclass(frozen=True, slots=True)
class Case:
    """One call with two outcomes that differ."""

    call: Call
    ours: Outcome
    theirs: Outcome
    oracle: Oracle
    shape: Shape
    where: str
    rows: frozenset[str]
    """The names of the rows that hold in this run."""
    together: bool
    """Whether rows may lean on each other: asked only when none explains the difference alone."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One row."""

    name: str
    oracle: str
    follows: str
    """The server version whose behaviour the replica has, and where that is written."""
    why: str
    explains: Callable[[Case], bool]


def mended(case: Case) -> bool:
    """The oracle does something else instead (`Oracle.mends`), so no outcome has to be explained."""
    return False


def is_same(case: Case, call: Call, theirs: Outcome) -> bool:
    """Whether our answer is the oracle's once that is corrected."""
    return not difference(call, case.ours, theirs, case.oracle.answer)
