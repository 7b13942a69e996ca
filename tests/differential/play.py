"""Run a workload on the replica and on an oracle, and compare every outcome.

Promises: the two hold the same points throughout: a write that the oracle has no way to say is not sent to the replica
either, nor is one whose filter is known to find other points there. Stops at the first outcome that differs and that no
row of `differences` explains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from generated.qdrant import points_pb2 as pb
from generated.qdrant import qdrant_common_pb2 as common
from server.rpc import POINTS

from .calls import Call, Gap, Oracle, Outcome
from .comparison import difference
from .rows import Case, Difference
from .searches import EVERYTHING
from .shapes import COLLECTION, Shape


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The first outcome of a workload that differs."""

    at: int
    call: Call
    where: str

    @property
    def is_of_status(self) -> bool:
        """Whether one answers what the other refuses."""
        return self.where.startswith("status")

    def __str__(self) -> str:
        return f"call {self.at}: {self.call}\n  {self.where}"


@dataclass(slots=True)
class Tally:
    """What was compared, by method; which rows were used; what an oracle could not say."""

    compared: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)
    gaps: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Add the numbers of another run."""
        self.compared += other.compared
        self.refused += other.refused
        self.used += other.used
        self.gaps += other.gaps


class Play:
    """One replica beside one oracle."""

    def __init__(self, replica: Oracle, oracle: Oracle, rows: Sequence[Difference], shape: Shape) -> None:
        self._shape = shape
        self._replica = replica
        self._oracle = oracle
        self._rows = [row for row in rows if row.oracle == oracle.name]
        self._names = frozenset(row.name for row in self._rows)
        self.tally = Tally()

    def run(self, calls: Sequence[Call]) -> Disagreement | None:
        """Play all calls; None = they agree."""
        try:
            for at, call in enumerate(calls):
                found = self._step(at, call)
                if found is not None:
                    return found
            return None
        finally:
            self.tally.used += self._oracle.mends

    def _step(self, at: int, call: Call) -> Disagreement | None:
        if not call.is_read:
            for probe in probes(call):
                found, is_same = self._compare(at, probe)
                if found is not None or not is_same:
                    return found
        return self._compare(at, call)[0]

    def _compare(self, at: int, call: Call) -> tuple[Disagreement | None, bool]:
        """What differs and no row explains; and whether the two said the same."""
        theirs = self._oracle.answer(call)
        if isinstance(theirs, Gap):
            self.tally.gaps[theirs.why] += 1
            return None, False
        ours = self._replica.answer(call)
        self.tally.compared[call.method] += 1
        where = difference(call, ours, theirs, self._oracle.answer)
        if not where:
            if _is_refusal(ours):
                self.tally.refused[call.method] += 1
            return None, True
        for together in (False, True):
            case = Case(call, ours, theirs, self._oracle, self._shape, where, self._names, together)
            for row in self._rows:
                if row.explains(case):
                    self.tally.used[row.name] += 1
                    return None, False
        return Disagreement(at, call, where), False


def _is_refusal(outcome: Outcome) -> bool:
    return not hasattr(outcome, "DESCRIPTOR")


def probes(write: Call) -> list[Call]:
    """Which points each filter of a write finds, as a call that changes nothing."""
    name = getattr(write.request, "collection_name", COLLECTION)
    return [
        Call(POINTS + "Scroll", pb.ScrollPoints(collection_name=name, filter=one, limit=EVERYTHING))
        for one in filters_in(write.request)
    ]


def filters_in(message: Any) -> Iterator[common.Filter]:
    """The outermost filters in a request."""
    for descriptor, value in message.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE or descriptor.message_type.GetOptions().map_entry:
            continue
        for part in value if descriptor.is_repeated else (value,):
            if isinstance(part, common.Filter):
                yield part
            else:
                yield from filters_in(part)
