"""The replica's process, seen from the proxy: started, watched, replaced, talked to.

Promises: the process is there or on its way; when it dies, hangs, is killed or no longer reached, another one takes its
place after a growing pause. Calls wait for it within their deadline, and are repeated on the next one: everything that
the replica does may be done twice; but a call under which one after the other ends is given up. It never outlives the
proxy: its stdin is a pipe that ends with us. The socket lies in a private directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from generated.understudy.replica.v1 import replica_pb2 as control
from server import config, logs
from server.clock import Clock
from server.directories import socket_directory
from server.errors import DataDirUnusable, ReplicaRefused, ReplicaUnavailable, UpstreamUnreachable
from server.replica import BLAS_ENVIRONMENT
from server.replica.asking import Asking
from server.replica.preparing import Preparing
from server.rpc import Backend, Call, Code, Reply
from server.telemetry import Telemetry

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_SERVICE = "/understudy.replica.v1.ReplicaService/"
_READY = b"ready"

_FIRST_PAUSE_SECONDS = 0.05
# A process that lived this long is not in a crash loop.
_HEALTHY_SECONDS = 10.0
_RETRY_PAUSE_SECONDS = 0.02
_FAILED_INSIDE = frozenset((Code.INTERNAL, Code.UNKNOWN))
_STOP_SECONDS = 10.0
# A call that so many processes did not survive is not asked again: it may be what ends them.
_MOST_ENDS = 3


class ReplicaProcess:
    """One replica process at a time. Belongs to one event loop.

    `on_restart` is called in the loop whenever a new process serves in place of an old one. `backend` answers calls of
    the Qdrant API, `control` those of the proxy itself.
    """

    def __init__(self, store_dir: Path, settings: config.Replica, *, clock: Clock, telemetry: Telemetry) -> None:
        self.pid: int | None = None
        self.restarts = 0
        self.on_restart: Callable[[], None] | None = None
        # Called in the loop when the process has ended, before another one is started.
        self.on_end: Callable[[], None] | None = None
        self.backend: Backend = _Patient(self, clock, settings.call_timeout_seconds)
        self.control = ReplicaControl(self.backend, clock, settings)
        self._store_dir = store_dir
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._sockets: Path | None = None
        self._number = 0
        self._process: asyncio.subprocess.Process | None = None
        self._asking: Asking | None = None
        self._changed = asyncio.Event()
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process and wait until it serves. Raises DataDirUnusable when it cannot."""
        give_up_at = self._clock.monotonic() + self._settings.start_timeout_seconds
        pause = _FIRST_PAUSE_SECONDS
        try:
            while not await self._spawn():
                # A process of a proxy that was killed may take a moment to let go of the directory.
                if self._clock.monotonic() + pause >= give_up_at:
                    raise DataDirUnusable(
                        f"the replica process does not start on {self._store_dir}; its own message is above",
                        hint="Stop whatever holds the directory, or choose another one with --data-dir",
                    )
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
        except BaseException:
            self._remove_sockets()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="replica-supervisor")

    async def stop(self) -> None:
        """End the process and wait for it."""
        self._stopping = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        asking, self._asking = self._asking, None
        self._announce()
        if asking is not None:
            asking.close()
        if self._process is not None:
            await _end(self._process)
        self.pid = None
        self._remove_sockets()

    async def serving(self) -> Backend:
        """The way to the process, once there is one. Raises ReplicaUnavailable after `stop`."""
        while self._asking is None:
            if self._stopping:
                raise ReplicaUnavailable("the replica was stopped")
            await self._changed.wait()
        return self._asking

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _spawn(self) -> bool:
        """Start one process; False when it ended, or said nothing in time, before it served."""
        self._number += 1
        socket = self._socket_folder() / f"{self._number}.sock"
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "server.replica",
            "--store",
            str(self._store_dir),
            "--socket",
            str(socket),
            "--settings",
            self._settings.model_dump_json(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(),
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._settings.start_timeout_seconds):
                if (await process.stdout.readline()).strip() == _READY:
                    self._asking = await Asking.connect(socket)
        except OSError:
            # It says nothing in time, or has ended since.
            self._asking = None
        except asyncio.CancelledError:
            process.kill()
            raise
        if self._asking is None:
            # Before its stdin ends: it would take the folder of the sockets for abandoned.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await _end(process)
            return False
        self.pid = process.pid
        self._announce()
        return True

    async def _supervise(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                started = self._clock.monotonic()
                if self._asking is not None:
                    await self._watch()
                    if self.on_end is not None:
                        self.on_end()
                if self._clock.monotonic() - started >= _HEALTHY_SECONDS:
                    pause = _FIRST_PAUSE_SECONDS
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._settings.restart_max_seconds)
                if not await self._spawn():
                    self._telemetry.log.warning("replica process did not start, it will be tried again")
                    continue
                self.restarts += 1
                self._telemetry.metrics.replica_restart()
                self._telemetry.log.info(logs.Message.REPLICA_RESTARTED, pid=self.pid, restarts=self.restarts)
                if self.on_restart is not None:
                    self.on_restart()
            except Exception:  # the outermost loop of the task: nobody else would bring the replica back
                self._telemetry.log.exception("watching the replica process failed, it is watched again")
                await asyncio.sleep(self._settings.restart_max_seconds)

    async def _watch(self) -> None:
        """Wait for the end of the process; end it when it is silent for too long, or cannot be asked any more."""
        process, asking = self._process, self._asking
        assert process is not None and asking is not None
        async with _background(process.wait()) as ended, _background(asking.gone.wait()) as gone:
            last_heard = self._clock.monotonic()
            while not ended.done() and not gone.done():
                if await asking.is_there(self._settings.hang_seconds / 3):
                    last_heard = self._clock.monotonic()
                elif self._clock.monotonic() - last_heard >= self._settings.hang_seconds and not gone.done():
                    self._telemetry.log.warning("replica process is silent, it is killed", pid=process.pid)
                    process.kill()
                    break
                await asyncio.wait(
                    (ended, gone), timeout=self._settings.hang_seconds / 6, return_when=asyncio.FIRST_COMPLETED
                )
            # Calls wait for the next one from here on, however long this one takes to end.
            self._retire()
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await _ended(process)
            code = await ended
            self._telemetry.log.warning("replica process ended, it is replaced", exit_code=code, pid=process.pid)

    def _retire(self) -> None:
        """Forget the process that is gone."""
        asking, self._asking = self._asking, None
        self.pid = None
        if asking is not None:
            asking.close()
        (self._socket_folder() / f"{self._number}.sock").unlink(missing_ok=True)

    def _socket_folder(self) -> Path:
        """Where sockets lie; made anew when somebody tidied it away."""
        if self._sockets is None or not self._sockets.is_dir():
            self._sockets = socket_directory("understudy-")
        return self._sockets

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _remove_sockets(self) -> None:
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None


class _Patient:
    """Answers calls by the process of the moment; waits while there is none.

    A call without a deadline may take any time, and waits `most_seconds` for a process that takes it.
    """

    def __init__(self, process: ReplicaProcess, clock: Clock, most_seconds: float) -> None:
        self._process = process
        self._clock = clock
        self._most_seconds = most_seconds

    async def handle(self, call: Call) -> Reply:
        """See Backend. Raises ReplicaUnavailable when the deadline comes before an answer."""
        if call.deadline is None:
            return await self._answer(call, self._most_seconds)
        try:
            async with asyncio.timeout(max(0.0, call.deadline - self._clock.monotonic())):
                return await self._answer(call, None)
        except TimeoutError as error:
            raise ReplicaUnavailable(f"the replica did not answer {call.method} in time") from error

    async def _answer(self, call: Call, most_seconds: float | None) -> Reply:
        ends = 0
        since = self._clock.monotonic()
        while ends < _MOST_ENDS:
            left = None if most_seconds is None else max(0.0, since + most_seconds - self._clock.monotonic())
            asking = await self._found(left)
            try:
                return await asking.handle(call)
            except UpstreamUnreachable as error:
                ends += error.maybe_applied
                if error.maybe_applied:
                    since = self._clock.monotonic()
                await asyncio.sleep(_RETRY_PAUSE_SECONDS)
        raise ReplicaUnavailable(f"{_MOST_ENDS} replica processes ended while they were asked {call.method}")

    async def _found(self, most_seconds: float | None) -> Backend:
        try:
            async with asyncio.timeout(most_seconds):
                return await self._process.serving()
        except TimeoutError as error:
            raise ReplicaUnavailable(f"there was no replica process for {self._most_seconds:g} s") from error


class ReplicaControl:
    """Calls of the proxy itself.

    Each raises ReplicaUnavailable without an answer in time or when the replica failed inside (a full disk): try again;
    ReplicaRefused for a status that it chose: trying again changes nothing.
    """

    def __init__(self, backend: Backend, clock: Clock, settings: config.Replica) -> None:
        self._backend = backend
        self._clock = clock
        self._timeout_seconds = settings.call_timeout_seconds
        self._group_bytes = settings.prepare_group_bytes
        self._preparing = Preparing(
            self._prepare_group, group_entries=settings.prepare_group_entries, group_bytes=self._group_bytes
        )

    async def attach(self, request: control.AttachRequest) -> control.AttachResponse:
        """Tell how far the log goes."""
        return await self._call("Attach", request, control.AttachResponse)

    async def prepare(self, request: control.PrepareRequest) -> control.PrepareResponse:
        """Validate and resolve a write."""
        return await self._call("Prepare", request, control.PrepareResponse)

    async def prepare_together(self, request: control.PrepareRequest) -> control.PrepareResponse:
        """The same, in one call with others; for what takes no longer than reading its points, and no UpdateBatch."""
        if len(request.request) > self._group_bytes:
            return await self.prepare(request)
        return await self._preparing.prepare(request)

    async def _prepare_group(self, request: control.PrepareGroupRequest) -> control.PrepareGroupResponse:
        return await self._call("PrepareGroup", request, control.PrepareGroupResponse)

    async def apply(self, request: control.ApplyRequest) -> control.ApplyResponse:
        """Apply log entries in order."""
        return await self._call("Apply", request, control.ApplyResponse)

    async def import_catalogue(self, request: control.ImportCatalogueRequest) -> control.ImportCatalogueResponse:
        """Bring in the remote's collections and aliases. FAILED_PRECONDITION: read them again."""
        return await self._call("ImportCatalogue", request, control.ImportCatalogueResponse)

    async def import_page(self, request: control.ImportPageRequest) -> control.ImportPageResponse:
        """Bring in points. FAILED_PRECONDITION: read the page again. NOT_FOUND: the collection is gone."""
        return await self._call("ImportPage", request, control.ImportPageResponse)

    async def compare_page(self, request: control.ComparePageRequest) -> control.ComparePageResponse:
        """Compare an id range with a page of Qdrant's. NOT_FOUND: the collection is gone."""
        return await self._call("ComparePage", request, control.ComparePageResponse)

    async def compare_baselines(self, request: control.CompareBaselinesRequest) -> control.CompareBaselinesResponse:
        """Which points others changed since the first pending write to each."""
        return await self._call("CompareBaselines", request, control.CompareBaselinesResponse)

    async def settle_baselines(self, request: control.SettleBaselinesRequest) -> control.SettleBaselinesResponse:
        """Note what becomes of them."""
        return await self._call("SettleBaselines", request, control.SettleBaselinesResponse)

    async def list_former(self, request: control.ListFormerRequest) -> control.ListFormerResponse:
        """Points that entries touched which Qdrant has acknowledged lately."""
        return await self._call("ListFormer", request, control.ListFormerResponse)

    async def judge_former(self, request: control.JudgeFormerRequest) -> control.JudgeFormerResponse:
        """Which of some points Qdrant has as they were before, and what they should be."""
        return await self._call("JudgeFormer", request, control.JudgeFormerResponse)

    async def note_verified(self, request: control.NoteVerifiedRequest) -> control.NoteVerifiedResponse:
        """Note that a collection was compared as a whole."""
        return await self._call("NoteVerified", request, control.NoteVerifiedResponse)

    async def set_completeness(self, request: control.SetCompletenessRequest) -> control.SetCompletenessResponse:
        """Say how much of a collection the replica holds."""
        return await self._call("SetCompleteness", request, control.SetCompletenessResponse)

    async def status(self) -> control.StatusResponse:
        """How the replica is."""
        return await self._call("Status", control.StatusRequest(), control.StatusResponse)

    async def _call(self, name: str, request: Message, response: type[M]) -> M:
        deadline = self._clock.monotonic() + self._timeout_seconds
        reply = await self._backend.handle(Call(_SERVICE + name, request.SerializeToString(), deadline=deadline))
        if reply.code in _FAILED_INSIDE:
            raise ReplicaUnavailable(f"the replica failed at {name}: {reply.details}")
        if not reply.is_ok:
            raise ReplicaRefused(f"replica: {name}: {reply.details}", code=reply.code, details=reply.details)
        return response.FromString(reply.body)


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Future[T]]:
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close its stdin and wait; kill it when it does not end."""
    if process.stdin is not None:
        process.stdin.close()
    await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process that was told to end; kill it when it does not."""
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    """Ours without secrets, and the way to this very code: the working directory must not shadow it."""
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH", "")
    secrets = config.secret_variables() | {"CREDENTIALS_DIRECTORY"}
    plain = {name: value for name, value in os.environ.items() if name not in secrets}
    return {**plain, **BLAS_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(part for part in (root, before) if part)}
