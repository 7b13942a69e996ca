"""Make the state diagram and the table of transitions in `docs/architecture.md` from `server/health/state.py`.

One command, `make docs`; with `--check` it writes nothing and fails when the page is stale. What stands around the
two markers in the page is left alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from server.health.state import TRANSITIONS, Event, State, diagram

PAGE = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
BEGIN = "<!-- states: made from server/health/state.py by `make docs` -->"
END = "<!-- states: end -->"


def section() -> str:
    """The diagram, then every pair of state and event."""
    names = [state.name for state in State]
    rows = [f"| {event.value} | {' | '.join(_cell(state, event) for state in State)} |" for event in Event]
    return "\n".join(
        (
            "```mermaid",
            diagram() + "```",
            "",
            f"| event | {' | '.join(f'in {name}' for name in names)} |",
            f"|---|{'---|' * len(names)}",
            *rows,
            "",
            "*Stays*: nothing changes. *Never*: the pair cannot happen, and is a fault where it does.",
        )
    )


def _cell(state: State, event: Event) -> str:
    after = TRANSITIONS.get((state, event))
    if after is None:
        return "never"
    return "stays" if after is state else after.name


def page(text: str) -> str:
    """The page with the section anew. Raises SystemExit where the markers are missing."""
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{PAGE.name} lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"


def main() -> None:
    """Write the page, or check it with `--check`."""
    text = PAGE.read_text(encoding="utf-8")
    made = page(text)
    if sys.argv[1:] == ["--check"]:
        if made != text:
            raise SystemExit("the states in docs/architecture.md are stale, run `make docs`")
        print("the states in docs/architecture.md are fresh")
    else:
        PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
