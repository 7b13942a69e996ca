"""`make museum`: puts each bug into a copy of the tree and runs the tests that must notice it.

Exit code 1 when a bug survives, when a test is red without any bug, or when an exhibit does not fit the code.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.museum.bug import Change, Exhibit
from tests.museum.exhibits import EXHIBITS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("server", "generated", "protos", "tests", "tools", "docs", "pyproject.toml")
WORKERS = 2
TIMEOUT_SECONDS = 300
_TESTS_FAILED = 1


class Verdict(Enum):
    """What became of a bug."""

    CAUGHT = "caught"
    SURVIVED = "SURVIVED"
    UNFIT = "DOES NOT FIT"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table."""

    exhibit: Exhibit
    verdict: Verdict
    text: str


def copy_of_the_tree(target: Path) -> Path:
    """What the tests need, without caches."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / part)
    return target


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit code of pytest (-1 = it took too long) and the line that says why."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
    # Nothing compiled is kept: a source that changes twice in a second would not be noticed.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    try:
        done = subprocess.run(
            [*command, "-m", "not soak", "--timeout=120", *tests],
            cwd=tree,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end after {TIMEOUT_SECONDS} s"
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""]
    why = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-1:]
    return done.returncode, why[0].partition(" - ")[2] or why[0]


def misfit(tree: Path, change: Change) -> str:
    """Why a change cannot be made; empty when it can."""
    count = (tree / change.file).read_text(encoding="utf-8").count(change.old)
    return "" if count == 1 else f"{change.file}: the text to replace occurs {count} times"


def examine(tree: Path, exhibit: Exhibit) -> Finding:
    """Put the bug in, run its tests, take it out."""
    for change in exhibit.changes:
        if text := misfit(tree, change):
            return Finding(exhibit, Verdict.UNFIT, text)
    before = {change.file: (tree / change.file).read_text(encoding="utf-8") for change in exhibit.changes}
    try:
        for change in exhibit.changes:
            path = tree / change.file
            path.write_text(path.read_text(encoding="utf-8").replace(change.old, change.new), encoding="utf-8")
        code, why = run_tests(tree, exhibit.tests)
    finally:
        for file, text in before.items():
            (tree / file).write_text(text, encoding="utf-8")
    if code in (_TESTS_FAILED, -1):
        return Finding(exhibit, Verdict.CAUGHT, why)
    return Finding(exhibit, Verdict.SURVIVED if code == 0 else Verdict.UNFIT, why)


def show(console: Console, findings: list[Finding]) -> None:
    """The table, in the order of the exhibits."""
    table = Table("bug", "promise", "", "what the test says", title="The museum", highlight=False)
    for finding in sorted(findings, key=lambda each: EXHIBITS.index(each.exhibit)):
        style = "green" if finding.verdict is Verdict.CAUGHT else "bold red"
        name = finding.exhibit.name + (" (seed)" if finding.exhibit.seed else "")
        table.add_row(name, finding.exhibit.promise, f"[{style}]{finding.verdict.value}[/]", finding.text[:90])
    console.print(table)


def visit(console: Console, chosen: tuple[Exhibit, ...]) -> int:
    """Every chosen exhibit; returns the exit code."""
    findings: list[Finding] = []
    with (
        tempfile.TemporaryDirectory(prefix="museum-") as folder,
        ThreadPoolExecutor(WORKERS) as pool,
        Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as progress,
    ):
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(WORKERS + 1):
            trees.put(copy_of_the_tree(Path(folder) / str(number)))
        bar = progress.add_task("without a bug", total=len(chosen) + 1)

        def in_a_tree(exhibit: Exhibit) -> Finding:
            tree = trees.get()
            try:
                return examine(tree, exhibit)
            finally:
                trees.put(tree)

        untouched = trees.get()
        tests = tuple(dict.fromkeys(test for exhibit in chosen for test in exhibit.tests))
        healthy = pool.submit(run_tests, untouched, tests)
        futures = [pool.submit(in_a_tree, exhibit) for exhibit in chosen]
        for future in as_completed([healthy, *futures]):
            progress.advance(bar)
            if future is not healthy:
                finding = future.result()
                assert isinstance(finding, Finding)
                findings.append(finding)
                progress.update(bar, description=finding.exhibit.name)
    show(console, findings)
    code, why = healthy.result()
    if code:
        console.print(f"[bold red]red without any bug:[/] {why}")
    bad = [finding for finding in findings if finding.verdict is not Verdict.CAUGHT]
    console.print(f"{len(findings) - len(bad)} of {len(findings)} bugs are caught")
    return 1 if bad or code else 0


def main() -> int:
    """All exhibits, or those whose name holds one of the arguments."""
    words = sys.argv[1:]
    chosen = tuple(each for each in EXHIBITS if not words or any(word in each.name for word in words))
    if not chosen:
        Console(stderr=True).print(f"no exhibit is named like {words}")
        return 2
    return visit(Console(), chosen)


if __name__ == "__main__":
    sys.exit(main())
