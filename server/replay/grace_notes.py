"""What no replica can know of the look-back, kept beside the log: up to where it has let go, and what was given up.

Promises: a store that is new, or that a power cut has set back, is judged as the one before it would have been: nothing
is looked for up to `past_seq`, and what an operator dropped is not taken for acknowledged. Each file is the old one or
the new one, whole. A file that was damaged, or that cannot be read, makes everything up to now count as let go, and is
told. The notes of another log count for nothing. Blocking; safe to use from several threads. Whoever uses it holds the
log.

    grace     magic "USTDYGRC", log id 16, past_seq u64; then CRC32C u32 of all before it
    given-up  magic "USTDYGUP", log id 16, ApplyRequest (protobuf) with `given_up` alone; then CRC32C u32
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import google_crc32c

from generated.understudy.replica.v1 import replica_pb2 as control
from server.errors import WalError
from server.wal.files import Disk, publish_all

GRACE, GIVEN_UP = "grace", "given-up"
_MAGIC = {GRACE: b"USTDYGRC", GIVEN_UP: b"USTDYGUP"}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GraceNotes:
    """The notes in the directory of the log. `replayed_seq`: how far Qdrant is now."""

    def __init__(self, disk: Disk, directory: Path, log_id: str, replayed_seq: int) -> None:
        self._disk = disk
        self._directory = directory
        self._log_id = bytes.fromhex(log_id)
        self._guard = threading.Lock()
        # None: nobody has noted it.
        self.past_seq: int | None = None
        self.flaw = ""
        self._given_up: list[control.RefusedEntry] = []
        try:
            if (body := self._read(GRACE)) is not None:
                # A log that lost its end in a power cut gives numbers again.
                self.past_seq = min(_U64.unpack(body)[0], replayed_seq)
            if (body := self._read(GIVEN_UP)) is not None:
                self._given_up = list(control.ApplyRequest.FromString(body).given_up)
        except (OSError, ValueError) as error:
            self.flaw = str(error)
            self.past_seq = replayed_seq

    @property
    def given_up(self) -> Sequence[control.RefusedEntry]:
        """What an operator took out of the quarantine for good, of entries that a look may still be at."""
        return self._given_up

    def let_go(self, past_seq: int) -> None:
        """No look will be at entries up to `past_seq`. Raises WalError."""
        with self._guard:
            kept = [entry for entry in self._given_up if entry.seq > past_seq]
            self._write(past_seq, kept, is_other_list=len(kept) < len(self._given_up))

    def give_up(self, entries: Iterable[control.RefusedEntry]) -> None:
        """Qdrant will never have these: on the medium when it returns. Raises WalError."""
        with self._guard:
            self._write(self.past_seq, [*self._given_up, *entries], is_other_list=True)

    def forget(self) -> None:
        """While nobody looks back nobody notes what is past: an old note would name too much. Raises WalError."""
        with self._guard:
            path = self._directory / GRACE
            try:
                if self._disk.facts(path) is not None:
                    self._disk.remove(path)
                    self._disk.sync_directory(self._directory)
            except OSError as error:
                raise self._failed(error) from error
            self.past_seq = None

    # --- the files ---------------------------------------------------------------------------------------------------

    def _write(self, past_seq: int | None, given_up: list[control.RefusedEntry], *, is_other_list: bool) -> None:
        """`is_other_list`: it is not the one on the disk."""
        files: dict[Path, Sequence[bytes]] = {}
        if past_seq is not None and (past_seq != self.past_seq or self.flaw):
            files[self._directory / GRACE] = self._parts(GRACE, _U64.pack(past_seq))
        if is_other_list or self.flaw:
            body = control.ApplyRequest(given_up=given_up).SerializeToString()
            files[self._directory / GIVEN_UP] = self._parts(GIVEN_UP, body)
        try:
            publish_all(self._disk, files)
        except OSError as error:
            raise self._failed(error) from error
        self.past_seq, self._given_up, self.flaw = past_seq, given_up, ""

    def _parts(self, name: str, body: bytes) -> list[bytes]:
        plain = _MAGIC[name] + self._log_id + body
        return [plain, _U32.pack(google_crc32c.value(plain))]

    def _read(self, name: str) -> bytes | None:
        """The body; None when there is none of this log. Raises OSError or ValueError."""
        path = self._directory / name
        facts = self._disk.facts(path)
        if facts is None:
            return None
        data = self._disk.read(path, 0, facts.size)
        plain, head = data[: -_U32.size], _MAGIC[name] + self._log_id
        if len(plain) < len(head) or google_crc32c.value(plain) != _U32.unpack(data[-_U32.size :])[0]:
            raise ValueError(f"{path}: its checksum does not match")
        return plain[len(head) :] if plain.startswith(head) else None

    def _failed(self, error: OSError) -> WalError:
        return WalError(
            f"the notes of the look-back in {self._directory} cannot be written: {error.strerror or error}",
            hint="Mend the disk and try again",
        )
