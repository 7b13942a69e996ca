"""qdrant-client's local mode as an oracle: the engine of the stand-in, with the facts measured on a server."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from generated.qdrant import points_pb2 as pb
from server.rpc import POINTS
from tests.upstream import differences
from tests.upstream.engine import VERSION, Engine
from tests.upstream.refusal import Refused as EngineRefused

from .calls import Call, Gap, Outcome, Refused
from .server import Server

NAME = "local mode"
DOUBLES = "an id twice under a condition"
UNNAMED = "the unnamed vector beside named ones"
MENDS = {
    UNNAMED: (
        "the engine: a vector without a name is the one whose name is empty",
        "local mode takes no vector without a name where a collection has more than one",
    ),
    DOUBLES: (
        "the engine: of the points with one id in a request the last counts",
        "local mode does one after the other, so the first makes the condition count for the second",
    ),
}
"""What is done instead of what local mode would do: the server that this follows, and why."""


class LocalMode:
    """The stand-in without its process."""

    name = NAME
    version = VERSION

    def __init__(self, directory: Path, mended: Collection[str] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._mended = mended
        self.mends = Counter[str]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine = Engine(directory)

    def answer(self, call: Call) -> Outcome:
        """Answer one call as the stand-in does."""
        tidied = _tidied(call, self._mended, self.mends)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._engine.answer(call.method, tidied.request)
        except EngineRefused as refused:
            return _judged(call, Refused(refused.code.name, refused.text))

    def close(self) -> None:
        """Let go of the directory, and give local mode its own rules back."""
        self._engine.close()
        differences.uninstall()


class LocalModeServer(Server):
    """The process of the stand-in: local mode over gRPC."""

    def __init__(self, address: str, mended: Collection[str] = ()) -> None:
        super().__init__(address, NAME)
        self._mended = mended

    def answer(self, call: Call) -> Outcome:
        """Send one call."""
        return _judged(call, super().answer(_tidied(call, self._mended, self.mends)))


def _tidied(call: Call, mended: Collection[str], mends: Counter[str]) -> Call:
    """A copy of the call, with what is mended."""
    copy = type(call.request)()
    copy.CopyFrom(call.request)
    if DOUBLES in mended:
        for write in _conditional(copy):
            if dropped := _drop_doubles(write.points):
                mends[DOUBLES] += dropped
    if UNNAMED in mended and call.method.startswith(POINTS) and not call.is_read:
        mends[UNNAMED] += _name_vectors(copy)
    return Call(call.method, copy)


def _judged(call: Call, outcome: Outcome) -> Outcome:
    """A refusal that only says that local mode broke down is a gap."""
    if not isinstance(outcome, Refused):
        return outcome
    text = outcome.text
    if "relevance_feedback" in str(call.request) and ("ufunc" in text or "is not found in the collection" in text):
        return Gap("local mode gives relevance feedback over dense vectors of one row only")
    if "Cannot cast ufunc" in text:
        return Gap("local mode's formulas cannot mix whole numbers and fractions everywhere")
    return outcome


def _name_vectors(request: Any) -> int:
    """Give unnamed vectors the empty name; returns how many."""
    named = 0
    for part in _parts(request):
        for point in part.points if part.DESCRIPTOR.fields_by_name["points"].is_repeated else ():
            if point.vectors.WhichOneof("vectors_options") == "vector":
                vector = pb.Vector()
                vector.CopyFrom(point.vectors.vector)
                point.vectors.vectors.vectors[""].CopyFrom(vector)
                named += 1
    return named


def _parts(request: Any) -> list[Any]:
    """A write, or the writes of a batch, that have points."""
    parts = [request]
    if isinstance(request, pb.UpdateBatchPoints):
        parts = [getattr(one, one.WhichOneof("operation")) for one in request.operations if one.WhichOneof("operation")]
    return [part for part in parts if "points" in part.DESCRIPTOR.fields_by_name]


def _conditional(request: Any) -> Iterator[Any]:
    """Upserts that have a condition. Updates of vectors with one id twice are both done."""
    for part in _parts(request):
        fields = part.DESCRIPTOR.fields_by_name
        if "update_mode" in fields and (part.HasField("update_filter") or part.update_mode):
            yield part


def _drop_doubles(points: Any) -> int:
    """Keep the last point of each id; returns how many were dropped."""
    seen = set()
    dropped = 0
    for at in reversed(range(len(points))):
        identity = points[at].id.SerializeToString()
        if identity in seen:
            del points[at]
            dropped += 1
        seen.add(identity)
    return dropped
