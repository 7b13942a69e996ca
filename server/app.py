"""Composition root: the only file that wires, and the only one that names a real clock, disk and network.

Promises: `async with Understudy(settings) as u` starts everything in the order in which parts need each other and stops
it in the reverse order: clients out, writes settled, replay stopped with its cursor on disk, replica gone, log closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from generated.qdrant import qdrant_pb2
from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.admin import Admin, Desk
from server.aliases import learn_aliases
from server.clock import Clock, SystemClock
from server.config import Settings
from server.conflict_desk import ConflictDesk
from server.conflicts import Conflicts
from server.control import Control
from server.credentials import Witness
from server.cutover import CutOver
from server.deletions import Deletions
from server.edge import Edge
from server.errors import ConfigError, DataDirUnusable
from server.gate import WriteGate
from server.health.breaker import Breaker
from server.health.detector import Verdict
from server.health.monitor import Monitor
from server.health.state import State
from server.log_desk import running_desk
from server.machine import Machine
from server.mirror import Mirror
from server.mode import Change, Mode
from server.openings import connect, demand_plain_proxy, open_credentials, open_log
from server.pace import DrainPace
from server.readiness import Readiness
from server.repairs import Repairs, marker_on
from server.replay import Examiner, Replayer
from server.replay.grace_keeping import GraceKeeping
from server.replay.looking_back import LookBack
from server.replica.hydrate import Hydrator
from server.replica.process import ReplicaProcess
from server.router import Parts, Router
from server.rpc import ASSUMED_VERSION, HEALTH_TITLE, WAL_KINDS, Backend
from server.scrub import Scrubber
from server.sieve import FormerSieve, Sieve
from server.status import Sources, entry_document, status_document
from server.telemetry import Telemetry
from server.tenancy import TenancyLayer
from server.upkeep import Upkeep, keep_looking
from server.upstream import Upstream
from server.wal.conflict_log import ConflictLog
from server.wal.patrol import Patrol

_REPLICA_START_SECONDS = 30.0
# A Qdrant that refuses or answers is known at once; this is for one that does neither.
_FIRST_VERDICT_SECONDS = 5.0
_STOP_SECONDS = 8.0
_LIST_BYTES = 64 * 1024 * 1024


class Understudy:
    """The proxy. `async with Understudy(settings) as u:` serves at `u.address` until the block ends.

    Raises UnderstudyError on entry when it cannot start; what had been started is stopped again.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
        version: str = "",
        machine: Machine | None = None,
    ) -> None:
        self.settings = settings
        self.address = ""
        self.admin_address: str | None = None
        self._machine = machine or Machine()
        self._clock = clock or SystemClock()
        self._own_telemetry = telemetry is None
        self._telemetry = telemetry or Telemetry.start(settings, clock=self._clock)
        self._version = version
        self._stack = contextlib.AsyncExitStack()
        self._version_before = ""
        self._monitor: Monitor | None = None
        self._breaker: Breaker | None = None
        self._replayer: Replayer | None = None
        self._hydrator: Hydrator | None = None
        self._look_back: LookBack | None = None
        self._bulk: Upstream | None = None

    async def __aenter__(self) -> Understudy:
        """Start; returns when clients can call."""
        if self._own_telemetry:
            self._stack.callback(self._telemetry.close)
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; returns when everything acknowledged is on disk and no process of ours is left."""
        await self._stack.aclose()

    @property
    def backend(self) -> Backend:
        """Whoever answers calls: the router, before tenancy and the port."""
        return self._router

    async def status(self) -> dict[str, Any]:
        """What `understudy status` shows."""
        return await status_document(
            Sources(
                version=self._version,
                upstream=self.settings.vectorstore.url,
                wal_path=str(self.settings.vectorstore.fallback.wal_path.absolute()),
                clock=self._clock,
                mode=self._parts.mode,
                log=self._parts.log,
                patrol=self._patrol,
                conflicts=self._kept,
                mirror=self._parts.mirror,
                replica=self._process,
                breaker=self._breaker,
                replayer=self._replayer,
                hydrator=self._hydrator,
                look_back=self._look_back,
            )
        )

    # --- starting, in order of need ----------------------------------------------------------------------------------

    async def _start(self) -> None:
        settings, clock, telemetry, stack = self.settings, self._clock, self._telemetry, self._stack
        fallback = settings.vectorstore.fallback
        machine, disk = self._machine, self._machine.disk
        store = machine.directory(fallback.local_path)
        repairs_done = contextlib.ExitStack()
        stack.callback(repairs_done.close)  # after the log is closed
        log = await asyncio.to_thread(open_log, settings, machine, clock, telemetry)
        stack.push_async_callback(log.close)
        wal_path, kept_bytes = machine.directory(fallback.wal_path), settings.replay.conflict_log_bytes
        self._kept = await asyncio.to_thread(ConflictLog, disk, wal_path, kept_bytes)
        if not fallback.enabled:
            demand_plain_proxy(settings, log.pending_count)
        self._upstream = upstream = await connect(settings, machine, clock, settings.edge.max_message_bytes)
        if upstream is not None:
            stack.push_async_callback(upstream.close)
        mode = Mode(
            has_upstream=upstream is not None,
            sync_on_connect=fallback.sync_on_connect,
            clock=clock,
            telemetry=telemetry,
        )
        credentials = open_credentials(settings, machine, clock, telemetry)
        self._run("credentials", credentials.run())
        self._readiness = Readiness(
            log, is_forwarding=lambda: mode.is_remote or not fallback.enabled, telemetry=telemetry
        )
        replica = machine.replica(store, settings.replica, clock=clock, telemetry=telemetry)
        await replica.start()
        stack.push_async_callback(replica.stop)
        grace_seconds = settings.replay.grace_seconds if upstream is not None and fallback.enabled else 0.0
        self._grace = await GraceKeeping.open(log, disk, grace_seconds, clock, telemetry)
        self._window = self._grace.window
        repairs = self._repairs(store, mode, replica)
        mirror = Mirror(
            log,
            replica.control,
            settings.replica,
            telemetry,
            has_remote=upstream is not None,
            forgets_through_seq=self._window.forgettable,
            in_doubt=repairs.was_in_doubt,
            given_up=self._grace.given_up,
            on_new_replica=self._grace.replica_is_new,
            on_gap=lambda: repairs.entries_missed(replica.control.status),
        )
        replica.on_restart, replica.on_end = mirror.replica_restarted, mirror.replica_ended
        self._run("mirror", mirror.run())

        self._parts = parts = Parts(
            settings=settings,
            mode=mode,
            upstream=upstream,
            replica=replica.backend,
            replica_writes=replica.control,
            log=log,
            mirror=mirror,
            conflicts=Conflicts(),
            gate=WriteGate(),
            pace=DrainPace(
                is_draining=lambda: mode.is_draining,
                pending_count=lambda: log.pending_count,
                hold_seconds=settings.replay.drain_hold_seconds,
                clock=clock,
            ),
            credentials=credentials,
            scrubber=Scrubber.load(settings.scrub.rules_path) if settings.scrub.enabled else Scrubber(()),
            repairs=repairs,
            telemetry=telemetry,
            clock=clock,
        )
        repairs_done.callback(parts.repairs.close)
        if not fallback.enabled:
            parts.repairs.writes_pass_unseen()
        self._process = replica
        await self._catch_up()
        self._router = Router(parts)
        stack.push_async_callback(self._router.settle, _STOP_SECONDS)
        if upstream is not None:
            await self._follow(upstream)
        upkeep = Upkeep(log, mirror, retention_days=fallback.wal_retention_days, clock=clock, telemetry=telemetry)
        self._run("upkeep", upkeep.run())
        self._patrol = Patrol(log, disk)
        if settings.wal.patrol_bytes_per_second:
            self._run("patrol", keep_looking(self._patrol, settings.wal.patrol_bytes_per_second, telemetry))
        self._run("readiness", self._readiness.run())
        await self._open_doors()

    def _repairs(self, store: Path, mode: Mode, replica: ReplicaProcess) -> Repairs:
        return Repairs(
            store,
            mode,
            **marker_on(self._machine.disk, self._machine.boot),
            deletions=Deletions(
                self._machine.disk,
                store,
                lambda error: self._telemetry.log.error("deletions under way cannot be noted", reason=str(error)),
            ),
            set_completeness=replica.control.set_completeness,
            copy_again=self._copy_again,
            connection_failed=self._connection_failed,
            telemetry=self._telemetry,
        )

    async def _catch_up(self) -> None:
        """Bring the replica up to the log, and mark it where a crash left it in doubt."""
        parts = self._parts
        try:
            await parts.mirror.catch_up(_REPLICA_START_SECONDS)
            async with asyncio.timeout(_REPLICA_START_SECONDS):
                if parts.repairs.was_in_doubt:
                    await self._process.control.set_completeness(
                        control_pb.SetCompletenessRequest(completeness=control_pb.COMPLETENESS_STALE)
                    )
                await self._learn_aliases()
                self._version_before = (await self._process.control.status()).remote_version
        except TimeoutError as error:
            raise DataDirUnusable(
                f"the replica took in nothing of the log for {_REPLICA_START_SECONDS:g} s",
                hint="Its own messages are above; with a copy of the directory made, removing its store is safe",
            ) from error

    async def _learn_aliases(self) -> None:
        await learn_aliases(self._parts.conflicts, self._process.backend, self._parts.mirror, self._parts.log)

    async def _follow(self, upstream: Upstream) -> None:
        """Watch Qdrant; replay and hydrate while it is up."""
        settings, parts, clock, telemetry = self.settings, self._parts, self._clock, self._telemetry
        fallback, replay = settings.vectorstore.fallback, settings.replay
        witnessed, credential = Witness(upstream, parts.credentials), parts.credentials.for_replay
        control = self._process.control
        monitor = Monitor(upstream, settings.health, fallback.health_check_interval, clock, telemetry)
        self._breaker = Breaker(replay.breaker_failures, replay.breaker_open_seconds)
        look_back = LookBack(
            self._window,
            FormerSieve(self._process.control, parts.scrubber),
            parts.log,
            caught_up=parts.mirror.caught_up,
            is_log_whole=parts.repairs.is_log_whole,
            is_unbroken=parts.repairs.is_unbroken,
            settings=replay,
            telemetry=telemetry,
        )
        await look_back.begin()
        self._look_back = look_back
        examiner = Examiner(control, witnessed, self._kept, parts.scrubber, replay, clock, telemetry, credential)
        replayer = Replayer(
            parts.log,
            witnessed,
            self._breaker,
            replay,
            clock,
            telemetry,
            credential,
            WAL_KINDS,
            look_back=look_back,
            jitter=self._machine.jitter,
            examiner=examiner,
        )
        replayer.on_unreachable = monitor.report_failure
        replayer.on_drained = CutOver(
            parts.mode,
            parts.gate,
            drain_now=replayer.drain_now,
            drain_again=replayer.request_sync,
            pending_count=lambda: parts.log.pending_count + look_back.is_due,
            barrier_seconds=replay.barrier_seconds,
            telemetry=telemetry,
        )
        # Pages have a connection of their own: they do not stand before answers to clients, and have a limit.
        self._bulk = await connect(settings, self._machine, clock, settings.hydrate.page_bytes_max) or upstream
        if self._bulk is not upstream:
            self._stack.push_async_callback(self._bulk.close)
        hydrator = Hydrator(
            parts.log,
            Witness(self._bulk, parts.credentials),
            Sieve(control, parts.scrubber, telemetry),
            settings.hydrate,
            clock,
            telemetry,
            credential=credential,
        )
        hydrator.on_round = self._looked_at_qdrant
        examiner.on_mixed = lambda name: hydrator.request_verification([parts.conflicts.collection_of(name)])
        self._monitor, self._replayer, self._hydrator = monitor, replayer, hydrator
        monitor.on_change = self._upstream_changed
        if self._window.is_on:
            monitor.on_connection_lost = self._window.connection_lost
            self._run("grace", self._grace.keep(parts.mirror))
            self._run("owed look", look_back.take_up(parts.mode.look_is_due))
        parts.mode.on_change = self._mode_changed
        self._run("replay", replayer.run())
        if fallback.enabled:
            self._run("hydrate", hydrator.run())
        self._run("health", monitor.run())
        if parts.repairs.was_in_doubt:
            hydrator.request(None)
        await monitor.first_verdict(_FIRST_VERDICT_SECONDS)

    async def _open_doors(self) -> None:
        """Control socket, admin port, then the port of the clients."""
        settings, telemetry = self.settings, self._telemetry
        control = Control(settings.vectorstore.fallback.wal_path.absolute(), self._machine.disk)
        self._offer(control)
        await control.start()
        self._stack.push_async_callback(control.stop)
        if settings.admin is not None:
            admin = Admin(
                Desk(
                    status=self.status,
                    metrics=telemetry.metrics.prometheus,
                    ready=lambda: self._readiness.reason,
                    hydrate=self._hydrate_now,
                    sync=self._sync_now,
                    wal_entries=self._wal_entries,
                )
            )
            self.admin_address = await admin.start(settings.admin)
            self._stack.push_async_callback(admin.stop)
        layered = TenancyLayer(self._router, settings.tenancy, remote_version=self._remote_version)
        edge = Edge(layered, settings.edge, settings.listen, self._clock, telemetry, health_reply=self._health_reply)
        self._readiness.on_change = edge.set_writable
        edge.set_writable(not self._readiness.reason)
        host, port = await edge.start()
        self._stack.push_async_callback(edge.stop, settings.edge.shutdown_grace_seconds * 0.5)
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _offer(self, control: Control) -> None:
        """What `understudy wal` commands may ask of this process."""
        log_desk = running_desk(self._parts, self._replayer, self._machine.disk, self._version, self._give_up)
        for desk in (log_desk, ConflictDesk(self._kept)):
            for name, operation in desk.operations.items():
                control.offer(name, operation)
            for name, rows in desk.row_operations.items():
                control.offer_rows(name, rows)

    async def _give_up(self, entries: Sequence[control_pb.RefusedEntry]) -> None:
        """An operator drops entries: what they did to the replica must not be taken for what Qdrant lost."""
        await self._grace.give_up(entries, self._parts.mirror, self.settings.replay.call_timeout_seconds)

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run a part's loop until the end; one that ends by itself is a fault that must show."""
        task = asyncio.create_task(work, name=name)

        def ended(done: asyncio.Task[None]) -> None:
            if not done.cancelled():
                self._telemetry.log.error("a part of Understudy stopped", part=name, error=repr(done.exception()))

        async def stop() -> None:
            task.remove_done_callback(ended)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        task.add_done_callback(ended)
        self._stack.push_async_callback(stop)

    # --- events ------------------------------------------------------------------------------------------------------

    def _upstream_changed(self, verdict: Verdict) -> None:
        """Qdrant came or went: first the state, then whoever waits for an answer of a dead Qdrant."""
        parts = self._parts
        parts.mode.upstream_changed(verdict, pending=parts.log.pending_count, must_look=self._window.is_due)
        self._telemetry.metrics.upstream_up(verdict.up)
        if not verdict.up:
            for connection in (self._upstream, self._bulk):
                if connection is not None:
                    connection.abort_in_flight(verdict.reason)

    def _mode_changed(self, change: Change) -> None:
        replayer, hydrator = self._replayer, self._hydrator
        assert replayer is not None and hydrator is not None
        self._readiness.refresh()
        replayer.upstream_up = change.after is State.DRAINING
        hydrator.upstream_up = change.after is State.REMOTE
        if change.after is State.DRAINING:
            replayer.request_sync(change.reason)
        if change.after is State.REMOTE and change.before is State.DRAINING:
            hydrator.request_reconcile()

    async def _looked_at_qdrant(self, is_whole: bool) -> None:
        # First: a doubt that comes up from here on is one that this look knows nothing of.
        if is_whole:
            self._parts.repairs.settled()
        await self._learn_aliases()

    def _connection_failed(self, reason: str) -> None:
        if self._monitor is not None:
            self._monitor.report_failure(reason)

    def _copy_again(self, collection: str) -> None:
        if self._hydrator is not None:
            self._hydrator.doubt(collection)

    # --- what operators and clients ask ------------------------------------------------------------------------------

    def _health_reply(self) -> bytes:
        """Answered at once, whatever Qdrant does: clients of some languages block on it when they are made."""
        version = self._remote_version() or ASSUMED_VERSION
        return qdrant_pb2.HealthCheckReply(title=HEALTH_TITLE, version=version).SerializeToString()

    def _remote_version(self) -> str | None:
        """Qdrant's version as last told, to this process or to an earlier one; None when no Qdrant is configured."""
        return None if self._monitor is None else self._monitor.version or self._version_before

    async def _hydrate_now(self, collections: list[str], verify: bool) -> dict[str, Any]:
        if self._hydrator is None:
            raise ConfigError("there is no Qdrant to copy from", hint="Set vectorstore.url or --upstream")
        ask = self._hydrator.request_verification if verify else self._hydrator.request
        ask(collections or None)
        return {"requested": collections or "all"}

    async def _sync_now(self) -> dict[str, Any]:
        if self._replayer is None:
            raise ConfigError("there is no Qdrant to sync with", hint="Set vectorstore.url or --upstream")
        mode, pending = self._parts.mode, self._parts.log.pending_count
        mode.sync_requested(pending=pending)
        self._replayer.request_sync("asked for by the operator")
        return {"pending": pending, "upstream_up": mode.upstream_up}

    async def _wal_entries(self, after: int, limit: int) -> list[dict[str, Any]]:
        records = await self._parts.log.read(after, limit, _LIST_BYTES)
        return [entry_document(record) for record in records]
