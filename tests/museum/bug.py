"""What an exhibit is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """One replacement in one file."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A bug. `seed` is set when the product that Understudy grew out of had it."""

    name: str
    promise: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]
    seed: bool = False


def bug(
    name: str,
    promise: str,
    file: str,
    old: str,
    new: str,
    *tests: str,
    seed: bool = False,
    more: tuple[Change, ...] = (),
) -> Exhibit:
    """One replacement in a file of `server/`, and what else it takes."""
    return Exhibit(name, promise, (Change(f"server/{file}", old, new), *more), tests, seed)
