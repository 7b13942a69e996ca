"""PURE. A record of the log, unpacked for Qdrant, and packed again for the quarantine.

Promises: a record that cannot be read, or whose kind does not fit its method, becomes a problem, never an exception and
never a call. What is left over of an entry is packed so that sending it later does exactly what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError

from generated.understudy.wal.v1 import entry_pb2
from server.replay.bisect import Operation, is_blind, joined, keys_of, operations_of, without_points
from server.replay.causality import Causality
from server.replay.delivery import Answer, Blame, Delivered
from server.replay.judge import Outcome, is_about_collection
from server.rpc import METHODS, Code
from server.wal.record import Record


@dataclass(frozen=True, slots=True)
class Parcel:
    """One entry. `problem` says why it cannot be sent; then there are no operations.

    `is_examined`: it is known which of its points others changed. Then `operations` lack those that are not to be
    written (`is_narrowed`), and `held` are those that go to the quarantine, for the reason given.
    """

    record: Record
    entry: entry_pb2.Entry
    operations: tuple[Operation, ...]
    is_blind: bool
    problem: str = ""
    is_examined: bool = False
    is_narrowed: bool = False
    held: tuple[Operation, ...] = ()
    reason: str = ""

    @property
    def seq(self) -> int:
        """Its sequence number."""
        return self.record.seq

    @property
    def method(self) -> str:
        """The client's method."""
        return self.entry.method

    def unreadable(self) -> Delivered:
        """The verdict on an entry with a problem."""
        answer = Answer(Outcome.PERMANENT, Code.DATA_LOSS, self.problem)
        return Delivered(left_over=[Operation("", entry_pb2.Entry())], blames=[_blame(answer)])

    def with_held(self, delivered: Delivered) -> Delivered:
        """The verdict on an entry of which some points go to the quarantine unsent."""
        if self.held and delivered.answer.outcome is Outcome.DONE:
            answer = Answer(Outcome.PERMANENT, Code.ABORTED, self.reason)
            delivered.left_over[:0] = self.held
            delivered.blames[:0] = [Blame(operation, answer, whole_collection=False) for operation in self.held]
        return delivered

    def left_over(self, delivered: Delivered) -> Record:
        """The record of what Qdrant does not have: this one when that is all of it."""
        if self.problem or (not delivered.applied and not self.is_narrowed):
            return self.record
        rest = joined(delivered.left_over)
        points = sum(len(keys_of(operation)) for operation in rest)
        entry = entry_pb2.Entry()
        entry.CopyFrom(self.entry)
        del entry.resolved[:]
        entry.point_count = points
        if len(rest) == 1 and rest[0].method == entry.method:
            entry.request = rest[0].body
        else:
            # Both would be larger than the log takes back.
            entry.request = _without_points(entry)
            entry.resolved.extend(entry_pb2.Operation(method=each.method, request=each.body) for each in rest)
        return replace(self.record, body=entry.SerializeToString(), points=points)

    def taint(self, causality: Causality, code: Code, details: str) -> None:
        """Note an entry found in quarantine, as when it was refused."""
        for operation in self.operations:
            whole = is_about_collection(operation.method, code, details)
            causality.refuse(operation, self.seq, whole_collection=whole)


def unpack(record: Record, kinds: Mapping[int, str]) -> Parcel:
    """A parcel; `kinds` maps the numbers in records to methods."""
    entry = entry_pb2.Entry()
    try:
        entry.ParseFromString(record.body)
        operations = tuple(operations_of(entry))
    except DecodeError as error:
        return Parcel(record, entry, (), False, f"the entry cannot be read: {error}")
    except KeyError as error:
        return Parcel(record, entry, (), False, f"the entry holds a method that is never logged: {error}")
    if kinds.get(record.kind) != entry.method:
        return Parcel(record, entry, (), False, f"the entry's kind {record.kind} is not {entry.method}")
    return Parcel(record, entry, operations, all(map(is_blind, operations)))


def _blame(answer: Answer) -> Blame:
    return Blame(Operation("", entry_pb2.Entry()), answer, whole_collection=False)


def _without_points(entry: entry_pb2.Entry) -> bytes:
    """The client's request, when its points are told by the parts."""
    request: Any = METHODS[entry.method].request()
    try:
        request.ParseFromString(entry.request)
    except DecodeError:
        # The parts could be read, and they are what is sent.
        return entry.request
    return without_points(Operation(entry.method, request)).body
