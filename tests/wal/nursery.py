"""Processes that are born to be killed: one import serves many of them.

A nursery is a process that forks a child for every line it is told. The child prints what it was promised on the
nursery's stdout, a line at a time; the nursery adds `pid N`, `stopped N` and `gone N STATUS`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import TracebackType


def say(*words: object) -> None:
    """One line, at once and whole: shorter than what a pipe takes in one piece."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def nurse(live: Callable[[list[str]], None]) -> None:
    """The nursery's side: `live` gets the words of a line, in a child of its own."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                live(line.split())
                sys.stderr.flush()
                os._exit(0)
            except BaseException:  # noqa: BLE001 - outermost frame of the process
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        say("pid", pid)
        while True:
            _, status = os.waitpid(pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            say("stopped", pid)
        say("gone", pid, os.waitstatus_to_exitcode(status))


class Nursery:
    """The test's side. Use as a context manager."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, *arguments]

    def __enter__(self) -> Nursery:
        """Start it."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it; it ends by itself when nobody tells it anything any more."""
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def bear(self, *words: object) -> None:
        """Ask for one child; it prints on `lines`."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")

    def lines(self) -> Iterator[list[str]]:
        """The words of every line until the child is gone; the last one is `gone PID STATUS`."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = line.split()
            yield words
            if words[0] == "gone":
                return
        raise AssertionError(f"the nursery ended: exit code {self._process.wait()}")
