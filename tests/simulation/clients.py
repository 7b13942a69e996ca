"""The clients: they call, wait, and remember what they saw."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from generated.qdrant import points_pb2
from server import rpc
from server.errors import UnderstudyError
from server.rpc import Call, Code, Reply
from tests.simulation import points as p
from tests.simulation.history import Outcome, Seen
from tests.simulation.linear import NEVER
from tests.simulation.plan import Operation
from tests.simulation.qdrant import NO_PROOF

if TYPE_CHECKING:
    from tests.simulation.world import Serving, World

_KEY = (("api-key", "client"),)
_TIME_IS_UP = "Deadline Exceeded"
_AGAIN_SECONDS = 0.5
_TRIES = 60


class Refused(Exception):
    """Nobody listens: the request never left."""


class Broken(Exception):
    """The connection to the proxy broke, or the client's time was up."""


class Clients:
    """All of them. `calls` is the history."""

    def __init__(self, world: World) -> None:
        self.calls: list[Seen] = []
        self.seq_of: dict[int, int] = {}
        # Values of writes that were accepted while the replica did not know whether their points exist.
        self.unresolved: set[int] = set()
        # The value of each point that somebody saw last: what conditional writes expect.
        self._newest: dict[int, int] = {}
        self._world = world
        self._loop = world.loop
        self._open: dict[asyncio.Future[Reply], Serving] = {}
        world.replica.on_unresolved = lambda request: self.unresolved.update(p.values(request))

    async def work(self) -> None:
        """Every operation of the plan, each client one after the other."""
        by_client: dict[int, list[Operation]] = {}
        for operation in self._world.plan.operations:
            by_client.setdefault(operation.client, []).append(operation)
        tasks = [self._loop.create_task(self._client(operations)) for operations in by_client.values()]
        for task in tasks:
            await task

    async def _client(self, operations: list[Operation]) -> None:
        for operation in operations:
            await self._until(1000.0 + operation.at)
            for _ in range(_TRIES):
                try:
                    await self._perform(operation)
                    break
                except Refused:
                    await self._until(self._loop.now + _AGAIN_SECONDS)

    async def _until(self, moment: float) -> None:
        if moment > self._loop.now:
            future = self._loop.create_future()
            self._loop.call_at(moment, future.set_result, None)
            await future

    async def _perform(self, operation: Operation) -> None:
        serving = self._world.serving
        if serving is None or not serving.is_ready:
            raise Refused
        seen = self._seen(operation)
        request = p.request_of(operation.kind, operation.ids, seen.value, seen.expected, operation.poisoned)
        deadline = self._loop.now + operation.deadline
        call = Call(p.METHOD_OF[operation.kind], request.SerializeToString(), _KEY, deadline)
        began = self._loop.now
        self._world.trace("client", operation.client, "calls", seen.label)
        try:
            reply = await self._call(serving, call, operation)
        except Broken as broken:
            seen.error = str(broken)
        except UnderstudyError as error:
            seen.error = f"{type(error).__name__}: {error}"
        else:
            self._learn(seen, call, reply)
        self._world.events += 1
        seen.answered = self._world.events
        seen.ended = self._world.events if seen.outcome is not Outcome.UNKNOWN else NEVER
        self._world.trace("client", operation.client, "has", seen.outcome.value, seen.source, seen.label, seen.error)
        self._world.count(f"{operation.kind} {seen.outcome.value} {seen.source}")
        if seen.error and not self._is_excused(operation, seen, began):
            self._world.violated("Qdrant going away is no error for a client", f"{seen.label}: {seen.error}")

    def _is_excused(self, operation: Operation, seen: Seen, began: float) -> bool:
        """Whether the design lets this call fail."""
        if operation.hangs_up and seen.outcome is Outcome.UNKNOWN:
            return True
        if not seen.is_look and seen.error == _TIME_IS_UP and self._waits_behind(seen):
            # Its turn did not come: nobody knows yet what became of the write before it, and slow is not down.
            return True
        return self._world.misfortune.excuses(began, self._loop.now)

    def _waits_behind(self, seen: Seen) -> bool:
        """Whether a write to the same point was under way when this one began."""
        return any(
            not other.is_look
            and other.began < seen.began < other.ended
            and (other.is_by_filter or seen.is_by_filter or set(other.ids) & set(seen.ids))
            for other in self.calls
        )

    def _seen(self, operation: Operation) -> Seen:
        number = operation.number + 1
        kind = "read" if operation.kind in p.READS else operation.kind
        self._world.events += 1
        label = f"{operation.kind} {list(operation.ids) or ''} #{operation.number}"
        seen = Seen(kind, operation.ids, number, self._world.events, poisoned=operation.poisoned, label=label)
        if kind in ("swap", "drop"):
            seen.expected = self._newest.get(operation.ids[0], 0)
            seen.label += f" of {seen.expected}"
        self.calls.append(seen)
        return seen

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _call(self, serving: Serving, call: Call, operation: Operation) -> Reply:
        """As the port of the proxy does it: the handler is cancelled when the client's time is up."""
        loop, context = self._loop, serving.life.context.copy()
        answer: asyncio.Future[Reply] = loop.create_future()
        self._open[answer] = serving
        task = loop.create_task(serving.proxy.backend.handle(call), context=context)

        def ended(done: asyncio.Task[Reply]) -> None:
            if answer.done() or not serving.life.is_alive:
                return
            if done.cancelled():
                answer.set_exception(Broken("cancelled"))
            elif (error := done.exception()) is not None:
                if not isinstance(error, UnderstudyError):
                    self._world.violated("nothing breaks inside", f"{operation}: {error!r}")
                answer.set_exception(error if isinstance(error, UnderstudyError) else Broken(repr(error)))
            else:
                answer.set_result(done.result())

        def time_is_up() -> None:
            if not answer.done():
                answer.set_exception(Broken("hung up" if operation.hangs_up else _TIME_IS_UP))
                loop.call_soon(task.cancel, context=context)

        task.add_done_callback(ended, context=loop.outside)
        patience = operation.hangs_up or operation.deadline
        timer = loop.call_later(patience, time_is_up, context=loop.outside)
        try:
            return await answer
        finally:
            timer.cancel()
            self._open.pop(answer, None)

    def proxy_gone(self, serving: Serving) -> None:
        """Every connection to this life breaks."""
        for answer, owner in list(self._open.items()):
            if owner is serving and not answer.done():
                answer.set_exception(Broken("Socket closed"))

    # --- what it means -----------------------------------------------------------------------------------------------

    def _learn(self, seen: Seen, call: Call, reply: Reply) -> None:
        trailers = dict(reply.trailers)
        seen.source = str(trailers.get(rpc.SOURCE, ""))
        if reply.is_ok:
            self._learn_success(seen, call, reply, str(trailers.get(rpc.COMPLETENESS, "")))
        elif seen.kind == "set" and reply.code is Code.NOT_FOUND:
            seen.outcome = Outcome.MISSING
        elif seen.source == "remote":
            # Qdrant's own refusal: it passes. It may not say whether a write was done.
            seen.outcome = Outcome.REFUSED if seen.is_look or reply.code not in NO_PROOF else Outcome.UNKNOWN
        else:
            seen.error = f"{reply.code.name} {reply.details}"
            if "catalogue" in reply.details:
                seen.error = ""
            if seen.is_look:
                seen.outcome = Outcome.REFUSED

    def _learn_success(self, seen: Seen, call: Call, reply: Reply, completeness: str) -> None:
        seen.outcome = Outcome.OK
        if seen.is_look:
            if seen.kind == "count":
                seen.counted = p.counted(reply.body)
            else:
                seen.found = p.read(call.method, reply.body)
                self._newest.update({number: dict(payload).get("v", 0) for number, payload in seen.found.items()})
            if seen.source == "local" and completeness != "complete":
                # It says itself that it may lack something.
                seen.source = f"local, {completeness}"
                seen.outcome = Outcome.UNKNOWN
            return
        if seen.kind in ("upsert", "insert", "swap"):
            self._newest.update(dict.fromkeys(seen.ids, seen.value))
        if seen.source == "local":
            self.seq_of[seen.value] = points_pb2.PointsOperationResponse.FromString(reply.body).result.operation_id
