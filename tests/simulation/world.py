"""One run: Qdrant, the network, the proxy's machine, clients and misfortune, all of one seed.

Promises: the same plan gives the same run, event by event (`Result.digest`); whatever breaks a promise of the design
ends in `Result.violations`, each with the name of the promise.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.app import Understudy
from server.clock import Clock
from server.config import Settings
from server.errors import UnderstudyError, WalDamaged
from server.health.state import State
from server.machine import Machine
from server.rpc import METHODS, Kind
from server.telemetry import Telemetry
from tests.faults.crash_disk import CrashDisk
from tests.simulation import points as p
from tests.simulation.clients import Clients
from tests.simulation.foreign import Others
from tests.simulation.loop import Gone, Life, LoopRunner, Stuck, VirtualLoop
from tests.simulation.misfortune import Misfortune
from tests.simulation.plan import Plan
from tests.simulation.qdrant import Channel, Network, Qdrant
from tests.simulation.replica import Database, Process, Replica
from tests.simulation.verdict import judge

STORE, WAL = Path("/data/store"), Path("/data/wal")
OWN_KEY, CLIENT_KEY = "understudy", "client"
# After the last fault and the last call everything must be drained and whole within this.
CALM_SECONDS = 150.0
_BREAKER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise."""

    promise: str
    text: str


@dataclass
class Result:
    """What came of a run."""

    plan: Plan
    violations: list[Violation]
    digest: str
    seconds: float
    turns: int
    trace: list[str]
    counts: dict[str, int]


class Entropy:
    """Bytes that nobody outside could guess, and the same in every run."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._count = 0

    def __call__(self, length: int) -> bytes:
        self._count += 1
        return hashlib.shake_256(f"{self._seed}/{self._count}".encode()).digest(length)


class Lines:
    """What the proxy logs; some lines are admissions."""

    _ADMISSIONS = ("replay stumbled", "hydration stumbled", "a part of Understudy stopped", "write failed")

    def __init__(self, world: World) -> None:
        self._world = world

    def _line(self, message: object, **fields: object) -> None:
        text = str(getattr(message, "value", message))
        self._world.trace("proxy:", text, *(f"{name}={value}" for name, value in fields.items()))
        if text == "conflicts are not looked for":
            self._world.others.nobody_looks()
        if any(text.startswith(each) for each in self._ADMISSIONS):
            self._world.violated("nothing breaks inside", f"{text} {fields}")

    debug = info = warning = error = exception = _line


class Doorless(Understudy):
    """The proxy without its ports: clients reach its backend through the simulated network."""

    async def _open_doors(self) -> None:
        """Whoever simulates calls `backend`."""


@dataclass
class Serving:
    """A life of the proxy."""

    life: Life
    disk: CrashDisk
    proxy: Doorless
    since: float
    channels: list[Channel] = field(default_factory=list)
    process: Process | None = None
    is_ready: bool = False
    replayed_seq: int = 0
    state: State = State.LOCAL
    # Set when it dies in the middle of a call of the disk.
    left: CrashDisk | None = None


class World:
    """See the module."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        seed = plan.seed
        self.loop = VirtualLoop(self.chance("threads"))
        self.events = 0
        # Set by every event and every call of the disk: otherwise there is nothing new to check.
        self.has_news = False
        self.violations: list[Violation] = []
        self.lines: list[str] = []
        self.counts: dict[str, int] = {}
        self._hash = hashlib.sha256(str(seed).encode())
        initial = {number: (("v", -number),) for number in range(1, plan.initial + 1)}
        self.initial: p.Points = dict(initial)
        self.qdrant = Qdrant(
            self.loop,
            self.chance("qdrant"),
            OWN_KEY,
            points=initial,
            is_forgetful=plan.is_forgetful,
            trace=self.trace,
        )
        self.qdrant.is_restored = self._is_looking_back
        self.network = Network(self.qdrant, self.chance("network"))
        self.database = Database()
        self.replica = Replica(self.loop, self.chance("replica"), self.database)
        self.replica.trace = self.trace
        self.telemetry = Telemetry.silent()
        self.telemetry.log = Lines(self)  # type: ignore[assignment]
        self.serving: Serving | None = None
        self.disk = CrashDisk(seed)
        self.most_disk_seconds = 0.003
        self._disk_chance = self.chance("disk")
        self._lives = 0
        self.power_cuts = 0
        self.clients = Clients(self)
        self.misfortune = Misfortune(self)
        self.others = Others(self)
        self.loop.on_still = self._still
        self.loop.on_gone = self._gone
        self.loop.thread_seconds = self.disk_seconds

    def chance(self, name: str) -> random.Random:
        """A stream of numbers of its own for each part."""
        return random.Random(f"{self.plan.seed}/{name}")

    def disk_seconds(self) -> float:
        """How long the disk takes this time."""
        return self._disk_chance.uniform(0.0001, self.most_disk_seconds)

    def _is_looking_back(self) -> bool:
        # Nothing else is sent while a look is due.
        return self.serving is not None and self.serving.is_ready and self.serving.proxy._window.is_due

    # --- what is seen ------------------------------------------------------------------------------------------------

    def trace(self, *words: object) -> None:
        """One event."""
        self.events += 1
        self.has_news = True
        line = f"{self.loop.now - 1000.0:11.6f} " + " ".join(map(str, words))
        self._hash.update(line.encode())
        if self.plan.trace:
            self.lines.append(line)

    def count(self, what: str, times: int = 1) -> None:
        """Remember how often something happened."""
        if times:
            self.counts[what] = self.counts.get(what, 0) + times

    def violated(self, promise: str, text: str) -> None:
        """A promise is broken."""
        self.trace("VIOLATION", promise, text)
        self.violations.append(Violation(promise, text))

    # --- the proxy's machine -----------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the proxy on what its disk holds."""
        if self.serving is not None:
            return
        self._lives += 1
        disk, life = self.disk, self.loop.outside.copy().run(Life, f"proxy {self._lives}")
        disk.make_directory(STORE)
        serving: Serving
        name = f"{self.plan.seed}/life {self._lives}"

        def upstream(target: str, *, max_backoff_seconds: float, **_: object) -> Channel:
            channel = Channel(self.network, max_backoff_seconds)
            serving.channels.append(channel)
            return channel

        def process(store: Path, settings: Any, *, clock: Clock, telemetry: Telemetry) -> Process:
            serving.process = Process(self.replica, store, settings, clock=clock, telemetry=telemetry)
            return serving.process

        def directory(path: Path) -> Path:
            disk.make_directory(path)
            return path

        machine = Machine(
            disk=disk,
            directory=directory,
            secret=lambda path: b"s" * 32,
            upstream=upstream,  # type: ignore[arg-type]
            replica=process,  # type: ignore[arg-type]
            writer=lambda: LoopRunner(self.loop, self.disk_seconds),
            entropy=Entropy(name),
            jitter=self.chance(f"jitter {self._lives}").random,
            boot=lambda: b"boot %d" % self.power_cuts,
        )
        proxy = life.context.run(
            Doorless, settings_of(self.plan), telemetry=self.telemetry, clock=self.loop, machine=machine
        )
        serving = self.serving = Serving(life, disk, proxy, self.loop.now)
        self.misfortune.watch(serving)
        self.trace("proxy starts", self._lives)
        self.loop.create_task(self._start(serving), context=life.context)

    async def _start(self, serving: Serving) -> None:
        """In the life of the proxy."""
        try:
            await serving.proxy.__aenter__()
        except WalDamaged as error:
            self.violated("what a crash leaves opens again", str(error))
            self.loop.call_soon(self._failed_to_start, serving, context=self.loop.outside)
        except (UnderstudyError, OSError) as error:
            self.trace("proxy does not start:", error)
            if not self.misfortune.excuses_start():
                self.violated("it starts", str(error))
            self.loop.call_soon(self._failed_to_start, serving, context=self.loop.outside)
        else:
            serving.is_ready = True
            self.trace("proxy serves")

    def _failed_to_start(self, serving: Serving) -> None:
        if self.serving is serving:
            self.end(serving, serving.disk.after_kill())
            self.loop.call_later(1.0, self.boot, context=self.loop.outside)

    def end(self, serving: Serving, left: CrashDisk) -> None:
        """The process is gone; `left` is what its disk holds now."""
        self.trace("proxy is gone")
        serving.life.end()
        serving.disk.on_call = _gone
        serving.life.bury()
        for channel in serving.channels:
            channel.abandoned()
        self.replica.crash()
        self.disk = left
        self.serving = None
        self.clients.proxy_gone(serving)

    def _gone(self, life: Life) -> None:
        """Something in a dead life has just been stopped in the middle."""
        serving = self.serving
        if serving is not None and serving.life is life and serving.left is not None:
            self.end(serving, serving.left)

    def replica_restarts(self) -> None:
        """What the supervisor does, if there is a proxy."""
        if self.serving is not None and self.serving.process is not None and self.serving.process.pid is not None:
            process, context = self.serving.process, self.serving.life.context.copy()
            self.loop.call_soon(process.restarted, context=context)

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Everything, to the end."""
        try:
            self.loop.run(self._main())
        except Stuck as stuck:
            self.violated("it goes on", str(stuck))
        finally:
            if self.serving is not None:
                with self.loop.entered():
                    self.end(self.serving, self.serving.disk)
            self.loop.close()
        for context in self.loop.unhandled:
            if not isinstance(context.get("exception"), Gone):
                self.violated("nothing breaks inside", repr(context))
        return Result(
            self.plan,
            self.violations,
            self._hash.hexdigest(),
            self.loop.now - 1000.0,
            self.loop.turns,
            self.lines,
            self.counts,
        )

    async def _main(self) -> None:
        self.boot()
        self.misfortune.schedule()
        await self.clients.work()
        await self.misfortune.over()
        await self._calm()
        if self.plan.is_foreign and not self.violations:
            self.others.judge_drained()
            # What others wrote where nothing of ours was pending: as `understudy hydrate --verify` finds it.
            assert self.serving is not None
            self.serving.proxy._hydrator.request_verification(None)
            await self._calm()
        self.count("lost and sent again", self.qdrant.restored)
        if not self.violations:
            judge(self)

    async def _calm(self) -> None:
        """Everything must come to rest."""
        give_up_at = self.loop.now + CALM_SECONDS
        while (why := self._restless()) and not self.violations:
            if self.loop.now >= give_up_at:
                self.violated("everything drains in the end", why)
                return
            await self.loop.sleep(0.5)
        self.trace("calm")

    def _restless(self) -> str:
        serving = self.serving
        if serving is None or not serving.is_ready:
            return "the proxy does not serve"
        parts = serving.proxy._parts
        if parts.mode.state is not State.REMOTE:
            return f"{parts.mode.state.name}, {parts.log.pending_count} pending: {serving.proxy._replayer.progress}"
        if serving.proxy._router._writing:
            return "a write is under way"
        if parts.log.pending_count or parts.mirror.lag_entries:
            return f"{parts.log.pending_count} pending, the replica lags by {parts.mirror.lag_entries}"
        if not self.database.now.is_whole or serving.proxy._hydrator._asked or parts.repairs.has_untold_doubts:
            return f"the replica is not whole: {serving.proxy._hydrator.status()}"
        if serving.proxy._hydrator._drift._must_count:
            return "the replica was not compared"
        if self.plan.is_foreign and (drift := serving.proxy._hydrator._drift) and (drift._asked_all or drift._asked):
            return "the replica is to be compared"
        return ""

    def _still(self) -> None:
        """Nothing is ready: whatever is true between steps must be true now."""
        serving = self.serving
        if not self.has_news or serving is None or not serving.is_ready or not serving.life.is_alive:
            return
        self.has_news = False
        parts = serving.proxy._parts
        log, mode, mirror = parts.log, parts.mode, parts.mirror
        if mode.state is State.REMOTE and log.pending_count:
            self.violated("REMOTE means nothing pending", f"{log.pending_count} pending in REMOTE")
        if mirror.applied_seq > log.last_seq:
            self.violated("the replica is never ahead", f"applied {mirror.applied_seq}, log ends at {log.last_seq}")
        if log.replayed_seq < serving.replayed_seq:
            self.violated("cursors never step back", f"replayed {log.replayed_seq} after {serving.replayed_seq}")
        serving.replayed_seq = log.replayed_seq
        if serving.state is State.REMOTE and mode.state is not State.REMOTE:
            self.count("failovers")
        serving.state = mode.state
        for channel in serving.channels:
            replays = [flight for flight in channel.in_flight if _is_replay(flight)]
            if len(replays) > 1:
                self.violated("one drain at a time", f"{len(replays)} replayed writes in flight")


def _is_replay(flight: Any) -> bool:
    row = METHODS.get(flight.call.method)
    return row is not None and row.kind is Kind.WRITE and dict(flight.call.metadata).get("api-key") == OWN_KEY


def settings_of(plan: Plan) -> Settings:
    """The proxy's configuration: real limits made small, what is not modelled switched off."""
    varied = plan.settings
    wal = {key: varied[key] for key in ("segment_bytes", "cache_bytes", "head_bytes", "queue_entries")}
    replica = {key: varied[key] for key in ("apply_batch_entries", "mirror_queue_entries")}
    return Settings.model_validate(
        {
            "vectorstore": {
                "url": "http://qdrant:6334",
                "api_key": OWN_KEY,
                "fallback": {"local_path": str(STORE), "wal_path": str(WAL)},
            },
            "wal": {**wal, "ballast_bytes": 0, "free_bytes_min": 0, "patrol_bytes_per_second": 0},
            "replay": {
                "page_entries": varied["page_entries"],
                "merge_points": varied["merge_points"],
                "breaker_open_seconds": _BREAKER_SECONDS,
                **{key: varied[key] for key in ("conflicts", "conflict_points") if key in varied},
            },
            "replica": replica,
            "hydrate": {"page_points": varied["page_points"]},
            "scrub": {"enabled": False},
            "keys": {"api_key": CLIENT_KEY},
        }
    )


def _gone(operation: str, path: Path) -> None:
    raise Gone(f"{operation} {path.name}: the process is gone")


def run(plan: Plan) -> Result:
    """Run a plan."""
    return World(plan).run()
