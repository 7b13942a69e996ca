"""The faults of a plan, done to the world at their time and taken back when they are over."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import WalError
from server.rpc import Code, Reply
from tests.simulation.loop import Gone
from tests.simulation.plan import OTHERS_WRITE, Fault

if TYPE_CHECKING:
    from tests.simulation.world import Serving, World

# Calls of clients may fail for a fault of disk, replica or proxy until this long after it.
_EXCUSED_SECONDS = 8.0
# Ours are one after the other: writes, replay and the rest, each with its own grace.
_STOP_SECONDS = 25.0
_WRITING = ("append", "create", "allocate")
_NOT_NOW = (
    Reply(code=Code.RESOURCE_EXHAUSTED, details="rate limit", trailers=(("retry-after", "1"),)),
    Reply(code=Code.RESOURCE_EXHAUSTED, details="disk full"),
    Reply(code=Code.UNAVAILABLE, details="shard 3 is missing"),
    Reply(code=Code.FAILED_PRECONDITION, details="read-only mode"),
    Reply(code=Code.INTERNAL, details="Service internal error: panic"),
    Reply(code=Code.DEADLINE_EXCEEDED, details="Timeout error: slow"),
)


class Misfortune:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop
        self._lasting = 0
        self._left = 0
        self._over: asyncio.Future[None] = world.loop.create_future()
        # (from, to) in which a call may fail for a reason that the design allows.
        self._excuses: list[tuple[float, float]] = [(0.0, 1003.0)]
        self._full = 0
        self._fail_once: str = ""
        self._calls_left: int | None = None
        self._dies_by_power = False
        self._restart_seconds = 1.0
        self._dying_seed = 0

    def schedule(self) -> None:
        """Everything in its time."""
        self._left = len(self._world.plan.faults)
        for fault in self._world.plan.faults:
            self._loop.call_at(1000.0 + fault.at, self._begin, fault, context=self._loop.outside)

    async def over(self) -> None:
        """When the last one is past."""
        while self._left:
            await self._over

    def excuses(self, began: float, ended: float) -> bool:
        """Whether something went on for which a call may fail."""
        return any(start <= ended and began <= end for start, end in self._excuses)

    def excuses_start(self) -> bool:
        """Whether the proxy may fail to start now."""
        return self.excuses(self._loop.now - 1.0, self._loop.now)

    # --- doing it ----------------------------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> None:
        self._world.trace("fault:", fault)
        self._world.count(fault.kind)
        _FAULTS[fault.kind](self, fault)

    def _after(self, fault: Fault, act: Callable[[], None]) -> None:
        """Take it back when its time is over."""

        def end() -> None:
            self._world.trace("fault is over:", fault.kind)
            act()
            self._ended()

        self._loop.call_later(fault.seconds, end, context=self._loop.outside)

    def _ended(self) -> None:
        self._left -= 1
        if not self._left and not self._over.done():
            self._over.set_result(None)

    def _excuse(self, seconds: float) -> None:
        self._excuses.append((self._loop.now, self._loop.now + seconds + _EXCUSED_SECONDS))

    # --- Qdrant and the network --------------------------------------------------------------------------------------

    def _kill_qdrant(self, fault: Fault) -> None:
        self._world.qdrant.crash(forgets=fault.kind == "qdrant loses power")
        self._after(fault, self._world.qdrant.start)

    def _hang_qdrant(self, fault: Fault) -> None:
        self._world.qdrant.hang()
        self._after(fault, self._world.qdrant.wake)

    def _cut_off_qdrant(self, fault: Fault) -> None:
        self._world.qdrant.cut_off()
        self._after(fault, self._world.qdrant.rejoin)

    def _slow_qdrant(self, fault: Fault) -> None:
        qdrant = self._world.qdrant
        qdrant.service_seconds = random.Random(fault.chance).choice((0.02, 0.3, 2.0))
        self._after(fault, lambda: setattr(qdrant, "service_seconds", 0.0))

    def _not_now(self, fault: Fault) -> None:
        qdrant = self._world.qdrant
        qdrant.refusal = random.Random(fault.chance).choice(_NOT_NOW)
        self._after(fault, lambda: setattr(qdrant, "refusal", None))

    def _flap(self, fault: Fault) -> None:
        """Once a second, up for some part of it."""
        qdrant, ends = self._world.qdrant, self._loop.now + fault.seconds
        seconds_up = random.Random(fault.chance).uniform(0.2, 0.8)

        def toggle() -> None:
            if self._loop.now >= ends:
                return
            was_up = qdrant.is_up
            if was_up:
                qdrant.crash(forgets=False)
            else:
                qdrant.start()
            self._loop.call_later(1 - seconds_up if was_up else seconds_up, toggle, context=self._loop.outside)

        toggle()
        self._after(fault, qdrant.start)

    def _reset(self, fault: Fault) -> None:
        for connection in list(self._world.qdrant.connections):
            connection.breaks("recvmsg: Connection reset by peer")
        self._after(fault, _nothing)

    def _network(self, fault: Fault) -> None:
        network = self._world.network
        name, bad, good = {
            "answers are lost": ("lost", 0.3, 0.0),
            "answers come twice": ("doubled", 0.5, 0.0),
            "the network is slow": ("most_seconds", 0.4, 0.01),
        }[fault.kind]
        setattr(network, name, bad)
        self._after(fault, lambda: setattr(network, name, good))

    # --- the proxy's machine -----------------------------------------------------------------------------------------

    def _proxy(self, fault: Fault) -> None:
        self._excuse(fault.seconds)
        serving = self._world.serving
        if serving is not None:
            power = "power" in fault.kind
            self._world.end(serving, self._image(serving, fault.chance, power=power))
        self._after(fault, self._world.boot)

    def _image(self, serving: Serving, seed: int, *, power: bool) -> object:
        if not power:
            return serving.disk.after_kill()
        self._world.power_cuts += 1
        self._world.database.power_cut(random.Random(seed))
        return serving.disk.after_power_cut(seed)

    def _stop_proxy(self, fault: Fault) -> None:
        self._excuse(fault.seconds)
        serving, world = self._world.serving, self._world
        if serving is None or not serving.is_ready:
            self._after(fault, world.boot)
            return
        serving.is_ready = False
        is_over = False

        async def stop() -> None:
            try:
                await serving.proxy.__aexit__(None, None, None)
            except WalError as error:
                # The disk does not take the last head: said with an exit code, and nothing acknowledged is lost.
                world.trace("proxy stops with", error)
            self._loop.call_soon(stopped, context=self._loop.outside)

        def stopped() -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            if world.serving is serving:
                world.trace("proxy has stopped")
                world.end(serving, serving.disk.after_kill())
            self._after(fault, world.boot)

        def too_long() -> None:
            if world.serving is serving:
                world.violated("it stops within 10 s", f"it took more than {_STOP_SECONDS:g} s")
            # Another fault may have been faster.
            stopped()

        self._loop.create_task(stop(), context=serving.life.context.copy())
        self._loop.call_later(_STOP_SECONDS, too_long, context=self._loop.outside)

    def _die_at_a_call(self, fault: Fault) -> None:
        self._excuse(30.0 + fault.seconds)
        chance = random.Random(fault.chance)
        self._calls_left = chance.choice((1, 2, 3, 5, 8, 13, 30))
        self._dies_by_power = "power" in fault.kind
        self._dying_seed = fault.chance
        self._restart_seconds = fault.seconds

        def give_up() -> None:
            self._calls_left = None
            self._ended()

        self._loop.call_later(30.0, give_up, context=self._loop.outside)

    def watch(self, serving: Serving) -> None:
        """Every call of the disk of this life goes past here."""

        def called(operation: str, path: Path) -> None:
            self._called(serving, operation, path)

        serving.disk.on_call = called

    def _called(self, serving: Serving, operation: str, path: Path) -> None:
        self._world.has_news = True
        if not serving.life.is_alive:
            raise Gone(operation)
        if self._calls_left is not None:
            # During a start, too.
            self._calls_left -= 1
            if self._calls_left <= 0:
                self._die(serving, operation, path)
        if self._full and operation in _WRITING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._fail_once and operation == self._fail_once:
            self._fail_once = ""
            self._world.trace("the disk fails at", operation, path.name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _die(self, serving: Serving, operation: str, path: Path) -> None:
        self._calls_left = None
        self._world.trace("proxy dies at", operation, path.name)
        serving.life.end()
        serving.disk.on_call = None
        serving.left = self._image(serving, self._dying_seed, power=self._dies_by_power)
        world = self._world

        def gone() -> None:
            if world.serving is serving:
                world.end(serving, serving.left)

        # In case nobody notices the end of the step.
        self._loop.call_soon(gone, context=self._loop.outside)
        self._loop.call_later(self._restart_seconds + 0.001, world.boot, context=self._loop.outside)
        raise Gone(operation)

    def _replica(self, fault: Fault) -> None:
        self._excuse(fault.seconds)
        replica = self._world.replica
        if fault.kind == "the replica hangs":
            replica.is_hung = True
            self._after(fault, lambda: setattr(replica, "is_hung", False))
        elif fault.kind == "the replica is slow":
            replica.most_seconds = random.Random(fault.chance).choice((0.1, 0.5, 2.0))
            self._after(fault, lambda: setattr(replica, "most_seconds", 0.003))
        else:
            generation = replica.generation
            replica.crash()

            def again() -> None:
                if replica.generation == generation + 1:
                    self._world.replica_restarts()

            self._after(fault, again)

    def _fill_disk(self, fault: Fault) -> None:
        self._excuse(fault.seconds)
        self._full += 1

        def space() -> None:
            self._full -= 1

        self._after(fault, space)

    def _fail_disk(self, fault: Fault) -> None:
        self._excuse(fault.seconds + 10.0)
        self._fail_once = "sync" if "sync" in fault.kind else "append"

        def mend() -> None:
            self._fail_once = ""

        self._after(fault, mend)

    def _slow_disk(self, fault: Fault) -> None:
        world = self._world
        world.most_disk_seconds = 0.5
        self._excuse(fault.seconds)
        self._after(fault, lambda: setattr(world, "most_disk_seconds", 0.003))

    def _jump(self, fault: Fault) -> None:
        self._loop.wall_offset_ns += random.Random(fault.chance).choice((-3600, -5, 5, 86_400)) * 10**9
        self._after(fault, _nothing)

    def _others_write(self, fault: Fault) -> None:
        self._world.others.write(random.Random(fault.chance))
        self._after(fault, _nothing)


def _nothing() -> None:
    """There is nothing to take back."""


_FAULTS: dict[str, Callable[[Misfortune, Fault], None]] = {
    "qdrant is killed": Misfortune._kill_qdrant,
    "qdrant loses power": Misfortune._kill_qdrant,
    "qdrant hangs": Misfortune._hang_qdrant,
    "qdrant is cut off": Misfortune._cut_off_qdrant,
    "qdrant is slow": Misfortune._slow_qdrant,
    "qdrant says not now": Misfortune._not_now,
    "qdrant flaps": Misfortune._flap,
    "connections are reset": Misfortune._reset,
    "answers are lost": Misfortune._network,
    "answers come twice": Misfortune._network,
    "the network is slow": Misfortune._network,
    "the proxy is killed": Misfortune._proxy,
    "the proxy loses power": Misfortune._proxy,
    "the proxy is stopped": Misfortune._stop_proxy,
    "the proxy is killed at a call of the disk": Misfortune._die_at_a_call,
    "the proxy loses power at a call of the disk": Misfortune._die_at_a_call,
    "the replica is killed": Misfortune._replica,
    "the replica hangs": Misfortune._replica,
    "the replica is slow": Misfortune._replica,
    "the disk is full": Misfortune._fill_disk,
    "a sync fails": Misfortune._fail_disk,
    "a write to the disk fails": Misfortune._fail_disk,
    "the disk is slow": Misfortune._slow_disk,
    "the wall clock jumps": Misfortune._jump,
    OTHERS_WRITE: Misfortune._others_write,
}
