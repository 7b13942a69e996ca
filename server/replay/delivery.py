"""One entry to Qdrant: send its operations in order, judge the answers, find the points that are to blame.

Promises: operations go out one after the other, each with a deadline. When Qdrant refuses one for good, it is halved
until only what Qdrant refuses is left over; everything else of the entry is applied, in order, except what follows a
refused point. Sending an entry again is harmless; of one that the rate limit of Qdrant stopped in the middle, only the
rest is sent again. `sent_seq` is the last entry of which Qdrant may have seen anything. Keeps no other state between
entries: retries, quarantine and cursor are the replayer's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from google.protobuf.message import Message

from generated.qdrant import collections_pb2, points_pb2
from generated.qdrant import qdrant_common_pb2 as common
from server import config
from server.clock import Clock
from server.errors import UpstreamTimeout, UpstreamUnreachable
from server.replay.bisect import Operation, deleted_by, halves, keys_of
from server.replay.causality import Causality
from server.replay.judge import (
    Outcome,
    are_aliases_settled,
    has_index,
    has_vector,
    is_about_collection,
    is_same_collection,
    judge,
    judge_reply,
    retry_after_seconds,
)
from server.rpc import COLLECTIONS, LIST_ALIASES, POINTS, Backend, Call, Code, Metadata, Reply

_GET_COLLECTION = COLLECTIONS + "Get"
_GET_POINTS = POINTS + "Get"

# Which part of an entry: the way to it through operations and halves, its method and its request.
_Part: TypeAlias = tuple[tuple[int, ...], str, bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one operation.

    `answered` False = nobody was there; `timed_out` = somebody, but silent; `doubtful` = the server failed inside;
    `unsent` = it never left.
    """

    outcome: Outcome
    code: Code = Code.OK
    details: str = ""
    retry_after_seconds: float | None = None
    answered: bool = True
    timed_out: bool = False
    doubtful: bool = False
    unsent: bool = False


@dataclass(frozen=True, slots=True)
class Blame:
    """An operation that Qdrant refuses and that cannot be divided further."""

    operation: Operation
    answer: Answer
    whole_collection: bool


@dataclass(slots=True)
class Delivered:
    """How one entry fared.

    `answer` is DONE when the whole entry is dealt with, else it says why the entry must be sent again and the rest is
    void. `left_over` is what Qdrant does not have, in order: what it refused (`blames`) and what follows that or an
    earlier refused entry (`after_seq`). `applied` counts the operations and parts that it has, `calls` what was sent.
    """

    answer: Answer = field(default_factory=lambda: Answer(Outcome.DONE))
    left_over: list[Operation] = field(default_factory=list)
    blames: list[Blame] = field(default_factory=list)
    after_seq: int = 0
    applied: int = 0
    calls: int = 0


class Delivery:
    """Sends entries. `credential` gives the metadata that Qdrant wants, None = none is known."""

    def __init__(
        self,
        upstream: Backend,
        settings: config.Replay,
        clock: Clock,
        credential: Callable[[], Metadata | None],
    ) -> None:
        self._upstream = upstream
        self._settings = settings
        self._clock = clock
        self._credential = credential
        self.sent_seq = 0
        self._done: tuple[int, set[_Part]] = (0, set())

    @property
    def has_credential(self) -> bool:
        """Whether any credential is known; right or wrong, and needed or not."""
        return self._credential() is not None

    async def deliver(
        self, operations: Iterable[Operation], causality: Causality | None, seq: int, *, doubtful: Outcome
    ) -> Delivered:
        """Send one entry. `doubtful` is what DOUBTFUL answers count as; without `causality` nothing follows."""
        todo: deque[tuple[tuple[int, ...], Operation]] = deque(((at,), each) for at, each in enumerate(operations))
        done = self._done_of(seq)
        result = Delivered()
        own = Causality()
        while todo:
            place, whole = todo.popleft()
            operation = self._free_part(whole, causality, own, seq, result)
            if operation is None:
                continue
            if done and (place, operation.method, operation.body) in done:
                result.applied += 1
                continue
            answer = await self._send(operation, doubtful, seq)
            result.calls += 1
            later = [each for _, each in todo]
            if answer.outcome is Outcome.DONE or _was_applied_before(operation, answer, later):
                result.applied += 1
                if later:
                    done.add((place, operation.method, operation.body))
                continue
            if answer.outcome is not Outcome.PERMANENT:
                if answer.code is not Code.RESOURCE_EXHAUSTED:
                    self.forget()
                return Delivered(answer)
            is_whole = is_about_collection(operation.method, answer.code, answer.details)
            parts = None if is_whole or result.calls >= self._settings.bisect_calls else halves(operation)
            if parts is not None:
                todo.extendleft(((*place, at), part) for at, part in reversed(list(enumerate(parts))))
                continue
            result.left_over.append(operation)
            result.blames.append(Blame(operation, answer, is_whole))
            if causality is not None:
                own.refuse(operation, seq, whole_collection=is_whole)
        return result

    def forget(self) -> None:
        """Qdrant may have lost what it acknowledged of the entry under way: all of it is sent again."""
        self._done = (0, set())

    def _done_of(self, seq: int) -> set[_Part]:
        """The parts of an entry that Qdrant did before its rate limit stopped the rest.

        Sent again each time, they would use up what the limit allows, and the rest would never have its turn.
        """
        if self._done[0] != seq:
            self._done = (seq, set())
        return self._done[1]

    async def send(self, operation: Operation, seq: int = 0) -> Answer:
        """Send one operation as it is: nothing is divided, DOUBTFUL counts as TRANSIENT. `seq`: its last entry."""
        return await self._send(operation, Outcome.TRANSIENT, seq)

    async def points(self, collection: str, ids: Iterable[common.PointId]) -> Reply | Answer:
        """Points as Qdrant has them, payloads and vectors included; else why there is no OK reply."""
        question = points_pb2.GetPoints(
            collection_name=collection,
            ids=ids,
            with_payload=points_pb2.WithPayloadSelector(enable=True),
            with_vectors=points_pb2.WithVectorsSelector(enable=True),
        )
        return await self._ask(_GET_POINTS, question)

    @staticmethod
    def _free_part(
        operation: Operation, earlier: Causality | None, own: Causality, seq: int, result: Delivered
    ) -> Operation | None:
        """What of an operation may be sent; what may not is left over."""
        free: Operation | None = operation
        for causality in (earlier, own):
            if free is None or causality is None or causality.is_empty:
                continue
            split = causality.split(free, seq if causality is earlier else 0)
            if split.follows is not None:
                result.left_over.append(split.follows)
                if causality is earlier:
                    result.after_seq = result.after_seq or split.after_seq
            free = split.free
        return free

    async def _send(self, operation: Operation, doubtful: Outcome, seq: int) -> Answer:
        # Noted before: whoever is cancelled does not know what Qdrant has seen.
        sent_before, self.sent_seq = self.sent_seq, max(self.sent_seq, seq)
        reply = await self._call(operation.method, operation.body)
        if isinstance(reply, Answer):
            if reply.unsent:
                self.sent_seq = sent_before
            return reply
        outcome = judge_reply(operation.method, reply)
        if outcome is Outcome.COMPARE:
            found = await self._is_there_already(operation)
            if isinstance(found, Answer):
                return found
            outcome = Outcome.DONE if found else Outcome.PERMANENT
        if outcome is Outcome.DOUBTFUL:
            return replace(_answer(doubtful, reply), doubtful=True)
        return _answer(outcome, reply)

    async def _call(self, method: str, body: bytes) -> Reply | Answer:
        """The reply, or an Answer when there was none."""
        deadline = self._clock.monotonic() + self._settings.call_timeout_seconds
        call = Call(method, body, self._credential() or (), deadline)
        try:
            return await self._upstream.handle(call)
        except UpstreamTimeout as failure:
            return _unanswered(failure, Code.DEADLINE_EXCEEDED, timed_out=True)
        except UpstreamUnreachable as failure:
            return _unanswered(failure, Code.UNAVAILABLE)

    async def _is_there_already(self, operation: Operation) -> bool | Answer:
        """Whether Qdrant already holds what a refused operation wants; an Answer when it cannot be asked."""
        request = operation.request
        if isinstance(request, collections_pb2.ChangeAliases):
            reply = await self._ask(LIST_ALIASES, collections_pb2.ListAliasesRequest())
            if isinstance(reply, Answer):
                return waiting(reply)
            listed = collections_pb2.ListAliasesResponse.FromString(reply.body).aliases
            return are_aliases_settled(request, {each.alias_name: each.collection_name for each in listed})
        assert isinstance(
            request,
            collections_pb2.CreateCollection
            | points_pb2.CreateVectorNameRequest
            | points_pb2.CreateFieldIndexCollection,
        )
        question = collections_pb2.GetCollectionInfoRequest(collection_name=request.collection_name)
        reply = await self._ask(_GET_COLLECTION, question)
        if isinstance(reply, Answer):
            return waiting(reply)
        info = collections_pb2.GetCollectionInfoResponse.FromString(reply.body).result
        if isinstance(request, collections_pb2.CreateCollection):
            return is_same_collection(request, info)
        if isinstance(request, points_pb2.CreateFieldIndexCollection):
            return has_index(request, info)
        return has_vector(request, info)

    async def _ask(self, method: str, question: Message) -> Reply | Answer:
        """An OK reply to a read, else why there is none."""
        reply = await self._call(method, question.SerializeToString())
        if isinstance(reply, Answer):
            return reply
        outcome = judge(method, reply.code, reply.details)
        if outcome is Outcome.DONE:
            return reply
        return replace(_answer(outcome, reply), doubtful=outcome is Outcome.DOUBTFUL)


def waiting(answer: Answer) -> Answer:
    """The same for an entry that waits and comes again, whatever was in the way of a read."""
    outcome = Outcome.AUTH if answer.outcome is Outcome.AUTH else Outcome.TRANSIENT
    return replace(answer, outcome=outcome, doubtful=False)


def _unanswered(failure: UpstreamUnreachable, code: Code, *, timed_out: bool = False) -> Answer:
    return Answer(
        Outcome.TRANSIENT,
        code,
        str(failure),
        answered=False,
        timed_out=timed_out,
        unsent=not failure.maybe_applied,
    )


def _answer(outcome: Outcome, reply: Reply) -> Answer:
    return Answer(outcome, reply.code, reply.details, retry_after_seconds(reply.trailers))


def _was_applied_before(operation: Operation, answer: Answer, rest: Iterable[Operation]) -> bool:
    """Whether the points that Qdrant cannot find are deleted later in the same entry.

    Then the entry was applied before, in whole or in part, and its answer was lost.
    """
    if answer.code is not Code.NOT_FOUND or answer.outcome is not Outcome.PERMANENT:
        return False
    keys = set(keys_of(operation))
    if not keys:
        return False
    for later in rest:
        keys -= deleted_by(later)
    return not keys
