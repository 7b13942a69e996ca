"""Where the replica may differ from Qdrant, remembered across crashes.

Promises: between the first online write and the moment when every online write is in the log on disk, a marker file
says that a crash leaves the replica in doubt; after such a crash every collection is copied again. A disk that does not
take the marker is told and stops no write; until it takes it, a crash may leave a difference that nobody looks for. An
acknowledged write that the log would not take puts its collection in doubt at once. `is_log_whole` tells whether every
write that was acknowledged, and every deletion that anybody may have seen, is in the log, or was copied since. Does not
itself copy anything: that is hydration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypedDict

from generated.understudy.replica.v1 import replica_pb2 as control_pb
from server.deletions import Deletions
from server.errors import ReplicaRefused, ReplicaUnavailable, UpstreamTimeout, UpstreamUnreachable
from server.mode import Mode
from server.telemetry import Telemetry
from server.wal.files import Disk, publish

MARKER = "in-doubt"
_RETRY_PAUSE_SECONDS = 0.2
_MARKER_BYTES = 4096


class MarkerFile(TypedDict):
    """What can be done to the marker's file."""

    make_room: Callable[[Path], None]
    is_marked: Callable[[Path], bool]
    write_durably: Callable[[Path], None]
    remove_durably: Callable[[Path], None]
    is_of_this_boot: Callable[[Path], bool]
    write_of_no_boot: Callable[[Path], None]


def marker_on(disk: Disk, boot: Callable[[], bytes]) -> MarkerFile:
    """The marker on a disk. Its content names the boot of the machine since which it is there, if that is known.

    While there is no doubt the file lies beside its place under another name: a full disk has no room for a new one.
    """

    def spare_of(path: Path) -> Path:
        return path.with_name(f"no-{path.name}")

    def make_room(path: Path) -> None:
        spare = spare_of(path)
        facts = disk.facts(spare)
        if facts is None or disk.read(spare, 0, facts.size) != boot():
            publish(disk, spare, (boot(),))

    def write(path: Path) -> None:
        if disk.facts(spare_of(path)) is None:
            publish(disk, path, (boot(),))
        else:
            disk.rename(spare_of(path), path)
            disk.sync_directory(path.parent)

    def remove(path: Path) -> None:
        disk.rename(path, spare_of(path))
        disk.sync_directory(path.parent)
        # What the old one says of the boot may be out of date: that makes the next doubt a larger one, and no more.
        with suppress(OSError):
            make_room(path)

    def write_of_no_boot(path: Path) -> None:
        """In place where the file is there: a full disk has no room for another one."""
        facts = disk.facts(path)
        if facts is None or not facts.size:
            publish(disk, path, (b"\0",))
        else:
            disk.rewrite(path, 0, bytes(facts.size))

    return {
        "make_room": make_room,
        "is_marked": lambda path: disk.facts(path) is not None,
        "write_durably": write,
        "remove_durably": remove,
        "is_of_this_boot": lambda path: bool(boot()) and disk.read(path, 0, _MARKER_BYTES) == boot(),
        "write_of_no_boot": write_of_no_boot,
    }


class Repairs:
    """Notes of the router for hydration and health. Belongs to one event loop."""

    def __init__(
        self,
        directory: Path,
        mode: Mode,
        *,
        deletions: Deletions,
        is_marked: Callable[[Path], bool],
        write_durably: Callable[[Path], None],
        remove_durably: Callable[[Path], None],
        set_completeness: Callable[[control_pb.SetCompletenessRequest], Coroutine[Any, Any, object]],
        copy_again: Callable[[str], None],
        connection_failed: Callable[[str], None],
        telemetry: Telemetry,
        make_room: Callable[[Path], None] = lambda marker: None,
        is_of_this_boot: Callable[[Path], bool] = lambda marker: False,
        write_of_no_boot: Callable[[Path], None] = lambda marker: None,
    ) -> None:
        self._deletions = deletions
        self._marker = directory / MARKER
        self._write_of_no_boot = write_of_no_boot
        self._mode = mode
        self._write_durably = write_durably
        self._remove_durably = remove_durably
        self._set_completeness = set_completeness
        self._copy_again = copy_again
        self._connection_failed = connection_failed
        self._telemetry = telemetry
        self._is_marked = is_marked
        self._problem = ""
        try:
            make_room(self._marker)
        except OSError as error:
            self._told("on a full disk nobody would know of a doubt", error)
        self.was_in_doubt = is_marked(self._marker)
        self._marked = self.was_in_doubt
        self._settled = not self.was_in_doubt
        # A process that is killed leaves the log with every write that was acknowledged, a power cut may not.
        self._is_log_whole = not self.was_in_doubt or is_of_this_boot(self._marker)
        self._online_writes = 0
        # In doubt since everything was whole the last time, and whether the next start would know.
        self._doubted: set[str] = set()
        self._is_noted = False
        # By collection: who tells the replica. Those with a doubt that it has not been told of.
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._untold: set[str] = set()

    @contextmanager
    def online_write(self, loses_points_of: str = "") -> Iterator[None]:
        """Around an online write, from before it is sent until it is in the log.

        `loses_points_of`: the collection in which points may be absent afterwards.
        """
        self._mark()
        self._online_writes += 1
        try:
            with self._deletions.under_way(loses_points_of) if loses_points_of else nullcontext():
                yield
        finally:
            self._online_writes -= 1

    def is_log_whole(self, collection: str) -> bool:
        """Whether Qdrant can have no write of ours to this collection that the log lacks."""
        return self._is_log_whole and collection not in self._deletions.left_over

    def is_unbroken(self) -> bool:
        """Whether no crash can have cut off a write of ours that others have seen at Qdrant."""
        return self._settled

    def writes_pass_unseen(self) -> None:
        """Writes will reach Qdrant that neither log nor replica hears of: at the next start all is in doubt."""
        self._mark()
        self._settled = False

    def _mark(self) -> None:
        if self._marked:
            return
        try:
            self._write_durably(self._marker)
        except OSError as error:
            # Qdrant takes the write: that we cannot note a doubt is no reason to refuse it. The next write tries again.
            self._told("a crash now would leave the replica in doubt and nobody would know", error)
            return
        self._marked = True
        self._problem = ""

    def log_is_durable(self) -> None:
        """Everything in the log is on disk. While Qdrant is away that settles the online writes before."""
        if self._marked and self._settled and not self._online_writes and not self._mode.is_remote:
            self._clear()

    def settled(self) -> None:
        """Every collection that was in doubt has been copied: the doubt is over, unless a new one has just come up."""
        if not self._telling:
            self._settled = self._is_log_whole = True
            self._doubted.clear()
            self._deletions.settled()

    def close(self) -> None:
        """After the log was closed cleanly, with no write under way."""
        if self._marked and self._settled and not self._online_writes:
            self._clear()

    def _clear(self) -> None:
        try:
            self._remove_durably(self._marker)
        except OSError as error:
            # A doubt too many costs a copy of what is the same. Whether the file is still there is not known.
            self._told("the replica would be copied again after a crash", error)
            if self._is_marked(self._marker):
                return
        self._marked = self._is_noted = False

    def _told(self, consequence: str, error: OSError) -> None:
        """Once for each reason."""
        problem = str(error.strerror or error)
        if problem != self._problem:
            self._problem = problem
            self._telemetry.log.error("the marker of doubt cannot be kept", reason=problem, consequence=consequence)

    def in_doubt(self, collection: str, reason: str) -> None:
        """Qdrant has, or may have, a write that the log lacks: copy the collection again.

        Many doubts about one collection are told as one: clients may cause them by the thousand.
        """
        if collection not in self._doubted:
            self._doubted.add(collection)
            self._telemetry.log.warning("replica in doubt", collection=collection, reason=reason)
        self._settled = self._is_log_whole = False
        self._note_for_the_next_start()
        # A copy that is under way must not call the collection complete: it may have passed what is in doubt.
        self._copy_again(collection)
        self._untold.add(collection)
        if collection not in self._telling:
            self._telling[collection] = asyncio.get_running_loop().create_task(self._tell(collection))

    async def entries_missed(self, status: Callable[[], Awaitable[control_pb.StatusResponse]]) -> None:
        """The replica will not get some entries: any collection may lack a write. Raises ReplicaUnavailable."""
        for collection in (await status()).collections:
            self.in_doubt(collection.name, "entries of the log cannot be read")

    def _note_for_the_next_start(self) -> None:
        """The marker says that more than what was under way may be missing."""
        if self._is_noted:
            return
        try:
            self._write_of_no_boot(self._marker)
            self._marked = self._is_noted = True
        except OSError as error:
            self._told("after a crash now, what Qdrant has and the log lacks may be taken for lost", error)

    @property
    def has_untold_doubts(self) -> bool:
        """Whether the replica may call whole what is in doubt."""
        return bool(self._telling)

    async def doubts_told(self) -> None:
        """Wait until the replica knows of all doubts up to now."""
        if self._telling:
            await asyncio.wait(set(self._telling.values()))

    async def _tell(self, collection: str) -> None:
        """Until there is nothing to tell; the last look at that and the end are one."""
        try:
            while collection in self._untold:
                self._untold.discard(collection)
                await self._mark_stale(collection)
        finally:
            del self._telling[collection]

    async def _mark_stale(self, collection: str) -> None:
        """Until the replica has taken it down: a doubt that is lost is a difference that nobody looks for."""
        request = control_pb.SetCompletenessRequest(collection=collection, completeness=control_pb.COMPLETENESS_STALE)
        while True:
            try:
                await self._set_completeness(request)
                break
            except ReplicaUnavailable:
                await asyncio.sleep(_RETRY_PAUSE_SECONDS)
            except ReplicaRefused as refusal:
                # It holds no such collection; the next look at Qdrant's catalogue brings it if there is one.
                self._telemetry.log.warning("doubt refused", collection=collection, reason=str(refusal))
                break
        self._copy_again(collection)

    def upstream_failed(self, failure: UpstreamUnreachable) -> None:
        """A call met a dead connection. Slow is not down: a call that ran out of time says nothing."""
        if not isinstance(failure, UpstreamTimeout):
            self._connection_failed(str(failure))
