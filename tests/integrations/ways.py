"""The ways from an application to Qdrant, and what every application was told on each.

- direct: no Understudy. What the others are compared with.
- online: through Understudy.
- outage: filled through Understudy, then Qdrant is killed under the running applications; the rest is done offline.
- outage, from before: the data was in Qdrant before Understudy came; Qdrant is killed before an application starts.
- outage, from the start: Qdrant is killed first; collections are created, filled, read and changed offline.

After an outage Qdrant returns, and once the log is drained applications of the same kind, past Understudy, read what
Qdrant itself has then.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest import mock

from tests.system.understudy import Understudy
from tests.upstream.process import Standin

from .application import Application
from .transcript import Transcript

Kinds = tuple[type[Application], ...]
Phase = Callable[[Application, Transcript], None]


@dataclass(slots=True)
class Told:
    """For each application, what it was told in each phase, or the error that ended it."""

    phases: dict[tuple[str, str], Transcript] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)

    def of(self, application: str, phase: str) -> dict[str, object]:
        """The steps of a phase; raises what the application raised."""
        if application in self.failures:
            raise self.failures[application]
        return self.phases[application, phase].steps


class Cast:
    """All applications, on one address."""

    def __init__(self, kinds: Kinds, address: str, told: Told) -> None:
        """Start them; they call nothing yet."""
        self._told = told
        self._applications = [kind(address) for kind in kinds]

    def fill(self) -> None:
        """Create and add."""
        self._each("fill", lambda one, told: one.fill(told))

    def read(self, phase: str) -> None:
        """Ask everything."""
        self._each(phase, lambda one, told: one.read(told))

    def write(self) -> None:
        """Change."""
        self._each("write", lambda one, told: one.write(told))

    def close(self) -> None:
        """Close their clients."""
        for one in self._applications:
            one.close()

    def _each(self, phase: str, do: Phase) -> None:
        for one in self._applications:
            if one.name in self._told.failures:
                continue
            told = self._told.phases[one.name, phase] = Transcript()
            try:
                with repeatable_ids(f"{one.name} {phase}"):
                    do(one, told)
            except Exception as error:  # noqa: BLE001 - the test of this application raises it; the others go on
                error.add_note(f"{one.name}, {phase}, after: {list(told.steps)[-1:]}")
                self._told.failures[one.name] = error


@contextmanager
def repeatable_ids(seed: str) -> Iterator[None]:
    """Ids that a package draws are the same on every way."""
    drawn = Random(seed)
    with mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=drawn.getrandbits(128), version=4)):
        yield


def direct(kinds: Kinds, folder: Path) -> Told:
    """See the module."""
    told = Told()
    with Standin(folder / "upstream") as standin, acting(kinds, standin.address, told) as cast:
        cast.fill()
        cast.read("read")
        cast.write()
        cast.read("read again")
    return told


def online(kinds: Kinds, folder: Path) -> Told:
    """See the module."""
    told = Told()
    with ExitStack() as stack:
        standin = stack.enter_context(Standin(folder / "upstream"))
        understudy = stack.enter_context(Understudy(folder / "understudy", standin.address))
        cast = stack.enter_context(acting(kinds, understudy.address, told))
        cast.fill()
        cast.read("read")
        cast.write()
        cast.read("read again")
        assert understudy.state() == "remote"
        past_understudy(kinds, standin, told)
    return told


def outage(kinds: Kinds, folder: Path) -> Told:
    """See the module."""
    told = Told()
    with ExitStack() as stack:
        standin = stack.enter_context(Standin(folder / "upstream"))
        understudy = stack.enter_context(Understudy(folder / "understudy", standin.address))
        cast = stack.enter_context(acting(kinds, understudy.address, told))
        cast.fill()
        standin.kill()
        offline(cast, understudy)
        come_back(kinds, standin, understudy, told)
    return told


def outage_from_before(kinds: Kinds, folder: Path) -> Told:
    """See the module."""
    told = Told()
    with ExitStack() as stack:
        standin = stack.enter_context(Standin(folder / "upstream"))
        with acting(kinds, standin.address, told) as before:
            before.fill()
        understudy = stack.enter_context(Understudy(folder / "understudy", standin.address))
        for kind in kinds:
            for collection in kind.collections if kind.name not in told.failures else ():
                understudy.wait_hydrated(collection)
        prove(understudy)
        standin.kill()
        offline(stack.enter_context(acting(kinds, understudy.address, told)), understudy)
        come_back(kinds, standin, understudy, told)
    return told


def outage_from_the_start(kinds: Kinds, folder: Path) -> Told:
    """See the module."""
    told = Told()
    with ExitStack() as stack:
        standin = stack.enter_context(Standin(folder / "upstream"))
        understudy = stack.enter_context(Understudy(folder / "understudy", standin.address))
        prove(understudy)
        standin.kill()
        cast = stack.enter_context(acting(kinds, understudy.address, told))
        cast.fill()
        offline(cast, understudy)
        come_back(kinds, standin, understudy, told)
    return told


def offline(cast: Cast, understudy: Understudy) -> None:
    """Read, write and read again while Qdrant is gone."""
    cast.read("read")
    cast.write()
    cast.read("read again")
    assert understudy.state() == "local"
    assert understudy.pending() > 0


def come_back(kinds: Kinds, standin: Standin, understudy: Understudy, told: Told) -> None:
    """Qdrant returns and is told everything."""
    standin.restart()
    understudy.wait_drained()
    assert understudy.status()["quarantine"] == 0
    past_understudy(kinds, standin, told)


def past_understudy(kinds: Kinds, standin: Standin, told: Told) -> None:
    """What Qdrant has, seen by new applications that go straight to it."""
    with acting(kinds, standin.address, told) as cast:
        cast.read("past Understudy")


def prove(understudy: Understudy) -> None:
    """A call that Qdrant answers without a key: offline too nobody needs one then."""
    client = understudy.client()
    client.get_collections()
    client.close()


@contextmanager
def acting(kinds: Kinds, address: str, told: Told) -> Iterator[Cast]:
    """Applications that are closed at the end."""
    cast = Cast(kinds, address, told)
    try:
        yield cast
    finally:
        cast.close()


WAYS: dict[str, Callable[[Kinds, Path], Told]] = {
    "direct": direct,
    "online": online,
    "outage": outage,
    "outage-from-before": outage_from_before,
    "outage-from-the-start": outage_from_the_start,
}
