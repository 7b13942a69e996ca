"""PURE. A workload: the same list of calls for the same shape, seed and length, whatever they are answered."""

from __future__ import annotations

import random

from .calls import Call
from .changes import INDEXES, Changes
from .faults import fault
from .searches import Searches
from .shapes import COLLECTION, OTHER, Shape
from .values import Values

CHECKED_EVERY = 12
"""Calls after which all that the collection holds is compared."""


def workload(shape: Shape, seed: int, length: int) -> list[Call]:
    """About `length` calls: two collections are filled, then reads, writes, faults and looks at everything."""
    # A string, so that neither the shapes nor the seeds share a sequence.
    values = Values(shape, random.Random(f"{shape.name} {seed}"))
    changes, searches = Changes(values), Searches(values)
    made = [*changes.filled(COLLECTION), *changes.filled(OTHER)]
    for _ in range(values.chance.randint(0, len(INDEXES))):
        made.append(changes.create_index())
    while len(made) < length:
        kind = values.chance.random()
        if kind < 0.06:
            made.append(fault(values))
        elif kind < 0.3:
            made.append(changes.any())
        else:
            made.append(searches.any())
        if len(made) % CHECKED_EVERY == 0:
            made.append(searches.everything())
    return made
