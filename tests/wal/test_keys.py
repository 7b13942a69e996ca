"""Keys of the log: rotation that a crash cannot hurt, keys from elsewhere, and when an old one goes."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from server import config
from server.errors import (
    ConfigError,
    DataDirUnusable,
    WalDamaged,
    WalError,
    WalFull,
    WalKeyExternal,
    WalKeyMissing,
    WalKeyUnsafe,
)
from server.wal import inspect
from server.wal.files import FileFacts, RealDisk
from server.wal.keyring import Keyring, create_key
from server.wal.keysource import CREDENTIAL_NAME, KEYS_MAX, SOURCE_BYTES_MAX, ExternalKeys, external_keys, parse_keys
from server.wal.keyuse import needs, prune
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from server.wal.record import HEAD_BYTES, SEGMENT_HEADER_BYTES, decode_head, encode_head, peek_key_id
from server.wal.repair import repair
from server.wal.salvage import Tools
from server.wal.scan import segment_name
from server.wal.signing import key_id_of
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CHANGING, CrashDisk
from tests.wal.support import (
    DIRECTORY,
    KINDS,
    Entropy,
    bodies,
    entry,
    failing,
    forge_segment,
    opened,
    quarantined,
    read_all,
    recovered,
)

SMALL = WalLimits(segment_bytes=6000, head_bytes=2500, cache_bytes=0)
FIRST, SECOND, THIRD = (Entropy(name)(32) for name in ("first", "second", "third"))
LONG_AFTER_NS = 10**19


def given(*keys: bytes) -> ExternalKeys:
    """Keys from elsewhere; the first one signs."""
    return ExternalKeys("wal.key", keys)


def key_files(disk: CrashDisk) -> set[str]:
    """Ids of the keys that have a file."""
    return {name.removesuffix(".key") for name in disk.names(DIRECTORY / "keys")}


def signing(disk: CrashDisk) -> str:
    """Id of the key that the head names."""
    return peek_key_id(disk.content(DIRECTORY / "head")).hex()


# --- rotation --------------------------------------------------------------------------------------------------------


async def test_after_a_rotation_everything_is_signed_with_the_new_key() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"before"))
    old = signing(disk)
    new = await log.rotate_key()
    assert signing(disk) == new != old
    seq = await log.append(entry(b"after"))
    await log.quarantine([Refused((await read_all(log))[0], 3, "no")])
    used = {key_id.hex(): names for key_id, names in needs(disk, DIRECTORY).items()}
    item = f"quarantine/{1:020d}.entry"
    assert used == {old: [segment_name(1)], new: ["head", item, segment_name(2)]}
    uses = await log.keys.uses()
    assert [(use.key_id, use.signs, use.origin) for use in uses] == [
        (new, True, str(DIRECTORY / "keys" / f"{new}.key")),
        (old, False, str(DIRECTORY / "keys" / f"{old}.key")),
    ]
    await log.close()
    again = opened(disk=disk, entropy=Entropy("again"))
    assert bodies(await read_all(again)) == [b"before", b"after"]
    assert (again.last_seq, again.pending_count) == (seq, 2)
    assert [item.flaw for item in again.quarantined()] == [""]
    await again.append(entry(b"more"))
    assert signing(disk) == new
    await again.close()
    assert inspect.list_keys(DIRECTORY, disk=disk)[0].key_id == new


async def test_keys_are_changed_while_writers_write() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=SMALL)
    order: list[tuple[int, bytes]] = []

    async def write(name: str) -> None:
        for number in range(40):
            body = f"{name}/{number}".encode() * 20
            order.append((await log.append(entry(body)), body))

    async def rotate() -> list[str]:
        return [await log.rotate_key() for _ in range(10)]

    *_, rotated = await asyncio.gather(*(write(name) for name in "abcdef"), rotate())
    assert len(set(rotated)) == 10
    assert [seq for seq, _ in order] == list(range(1, 241)), "order of acknowledgement = order in the log"
    found = await read_all(log)
    assert [(record.seq, record.body) for record in found] == order
    await log.mark_replayed(100)
    await log.close()
    result, records = recovered(disk)
    assert [(record.seq, record.body) for record in records] == order
    assert len(result.survey.pending) == 140


@dataclass
class Promised:
    """What the log had promised when a photograph was taken. `signing`: the last key of a rotation that was over."""

    entries: dict[int, bytes] = field(default_factory=dict)
    quarantined: set[int] = field(default_factory=set)
    signing: str = ""
    replayed: int = 0


@dataclass
class Life:
    """Writers, rotations and retirement on one disk, with a photograph at every call that changes it."""

    disk: CrashDisk = field(default_factory=CrashDisk)
    promised: Promised = field(default_factory=Promised)
    bodies: set[bytes] = field(default_factory=set)
    photographs: list[tuple[str, CrashDisk, Promised]] = field(default_factory=list)
    is_watching: bool = True

    def __post_init__(self) -> None:
        self.disk.on_call = self._called

    def _called(self, operation: str, path: Path) -> None:
        if self.is_watching and operation in CHANGING:
            promised = replace(
                self.promised, entries=dict(self.promised.entries), quarantined=set(self.promised.quarantined)
            )
            self.photographs.append((f"{operation} {path.name}", self.disk.photograph(), promised))

    async def write(self, log: Log, body: bytes) -> None:
        self.bodies.add(body)
        self.promised.entries[await log.append(entry(body))] = body

    async def rotate(self, log: Log) -> None:
        self.promised.signing = await log.rotate_key()

    async def run(self) -> None:
        log = opened(disk=self.disk, limits=SMALL)
        await asyncio.gather(*(self.write(log, b"first %d" % number * 30) for number in range(3)))
        await log.quarantine([Refused((await read_all(log))[0], 3, "no")])
        self.promised.quarantined.add(1)
        await asyncio.gather(
            self.write(log, b"beside"),
            self.rotate(log),
            *(self.write(log, b"%d" % number * 900) for number in range(4)),
        )
        await log.mark_replayed(3)
        self.promised.replayed = 3
        await log.retire(log.last_seq, LONG_AFTER_NS, 0.0)
        await asyncio.gather(self.rotate(log), self.write(log, b"between"), self.rotate(log))
        await log.close()
        again = opened(disk=self.disk, limits=SMALL, entropy=Entropy("second life"))
        await self.rotate(again)
        self.promised.quarantined.discard(1)
        await again.release_quarantined(1)
        await again.mark_replayed(again.last_seq)
        self.promised.replayed = again.last_seq
        await again.retire(again.last_seq, LONG_AFTER_NS, 0.0)
        await self.write(again, b"last")
        await again.close()


def check(state: CrashDisk, promised: Promised, written: set[bytes], name: str) -> None:
    """Open a state and compare it with what was promised."""
    result, records = recovered(state)
    found = {record.seq: record.body for record in records}
    first = result.survey.segments[0].first_seq
    assert list(found) == list(range(first, first + len(found))), name
    assert set(found.values()) <= written, name
    missing = [seq for seq in promised.entries if seq > promised.replayed and seq not in found]
    assert not missing, f"{name}: lost {missing}"
    assert result.survey.replayed_seq >= promised.replayed, name
    assert promised.quarantined <= quarantined(state, result), f"{name}: quarantine"
    held = {key_id.hex() for key_id in needs(state, DIRECTORY)}
    assert held <= key_files(state), f"{name}: a key that is needed is gone"
    assert key_files(state) <= held, f"{name}: a key that nothing needs was left"
    assert signing(state) == result.survey.segments[-1].codec.header.key_id.hex(), name


async def test_a_rotation_survives_a_crash_at_every_call() -> None:
    life = Life()
    await life.run()
    assert len(life.photographs) > 150
    assert sum(call.startswith("remove") and call.endswith(".key") for call, _, _ in life.photographs) >= 3
    for number, (call, disk, promised) in enumerate(life.photographs):
        for cut in (None, 1, 2, 3):
            check(disk.after_power_cut(cut), promised, life.bodies, f"photograph {number} ({call}), cut {cut}")
        state = disk.after_kill()
        check(state, promised, life.bodies, f"photograph {number} ({call}), killed")
        check(state.after_power_cut(number), promised, life.bodies, f"photograph {number} ({call}), killed, then cut")


async def test_a_rotation_that_was_over_stays_over() -> None:
    life = Life()
    await life.run()
    for number, (call, disk, promised) in enumerate(life.photographs):
        state = disk.after_power_cut(number)
        result, _ = recovered(state)
        keys = [segment.codec.header.key_id.hex() for segment in result.survey.segments]
        # Another rotation may have got further than the promise.
        assert promised.signing in ("", *keys), f"photograph {number} ({call}): the key that was promised is gone"


async def test_a_crash_while_what_a_crash_left_is_recovered() -> None:
    life = Life()
    await life.run()
    for number, (call, disk, promised) in enumerate(life.photographs[::5]):
        state = disk.after_power_cut(number)
        steps: list[CrashDisk] = []
        state.on_call = lambda operation, _, state=state, steps=steps: (
            steps.append(state.photograph()) if operation in CHANGING else None
        )
        recovered(state)
        for step, second in enumerate(steps):
            check(second.after_power_cut(step), promised, life.bodies, f"photograph {number} ({call}), step {step}")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_every_call_of_a_rotation_fails_once(code: int) -> None:
    """Nothing acknowledged is lost, and the log goes on with one of the two keys; the next rotation is a whole one."""
    calls: list[str] = []
    number = 0
    while number <= len(calls):
        disk = CrashDisk()
        log = opened(disk=disk, limits=replace(SMALL, ballast_bytes=0))
        await log.append(entry(b"before"))
        calls.clear()
        fails_at = number

        def fail(operation: str, _: Path, fails_at: int = fails_at) -> None:
            if operation in CHANGING:
                calls.append(operation)
                if len(calls) - 1 == fails_at:
                    raise OSError(code, os.strerror(code))

        disk.on_call = fail
        acknowledged = [b"before"]
        for body, act in ((b"", log.rotate_key), (b"after", None), (b"again", None)):
            try:
                if act is not None:
                    await act()
                else:
                    await log.append(entry(body))
                    acknowledged.append(body)
            except WalError:
                assert number < len(calls), "nothing failed, and yet there was an error"
        disk.on_call = None
        await log.reopen()
        await log.append(entry(b"healthy"))
        acknowledged.append(b"healthy")
        await log.quarantine([Refused((await read_all(log))[0], 3, "no")])
        await log.rotate_key()
        await log.append(entry(b"rotated"))
        acknowledged.append(b"rotated")
        assert set(acknowledged) <= set(bodies(await read_all(log)))
        result, records = recovered(disk.after_power_cut(None))
        assert set(acknowledged) <= set(bodies(records)), (number, calls[-1:])
        assert all(each.flaw == "" for each in log.quarantined())
        with_keys = {key_id.hex() for key_id in needs(disk, DIRECTORY)}
        assert with_keys <= key_files(disk)
        assert result.head.key_id == result.survey.segments[-1].codec.header.key_id
        number += 1
    assert number > 8


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, None], ids=["latched", "full", "cancelled"])
async def test_quarantined_entries_follow_a_rotation_that_did_not_end_well(code: int | None) -> None:
    """The segment of the new key is there; its head could not be signed, or nobody waited for it."""
    disk = CrashDisk()
    log = opened(disk=disk, limits=replace(SMALL, ballast_bytes=0))
    await log.append(entry(b"before"))
    old = signing(disk)
    if code is None:
        rotating = asyncio.create_task(log.rotate_key())
        loop = asyncio.get_running_loop()
        disk.on_call = lambda called, path: (
            loop.call_soon_threadsafe(rotating.cancel) if path.name.startswith(segment_name(2)) else None
        )
        with pytest.raises(asyncio.CancelledError):
            await rotating
    else:
        disk.on_call = failing("create", name="head", code=code)
        with pytest.raises(WalError):
            await log.rotate_key()
    disk.on_call = None
    await log.reopen()
    await log.append(entry(b"refused"))
    (_, record) = await log.read_pending(2, 1 << 20)
    await log.mark_replayed(1)
    assert await log.retire(1, LONG_AFTER_NS, 0.0) == 1, "the last segment that needs the old key"
    await log.quarantine([Refused(record, 3, "no")])
    await log.mark_replayed(2)
    assert signing(disk) != old
    assert {key_id.hex() for key_id in needs(disk, DIRECTORY)} == key_files(disk) == {signing(disk)}
    again = opened(disk=disk.after_kill(), entropy=Entropy("again"))
    assert [item.flaw for item in again.quarantined()] == [""]
    assert (await again.read_quarantined(2)).body == b"refused"
    await again.close()
    await log.close()


def test_a_key_that_signs_stays_although_no_file_names_it_yet() -> None:
    disk = CrashDisk()
    disk.make_directory(DIRECTORY / "keys")
    keyring = Keyring(DIRECTORY / "keys", {})
    for number in range(3):
        keyring, _ = create_key(disk, keyring, Entropy(str(number)))
    segment, quarantine, unused = sorted(keyring.files)
    left = prune(disk, DIRECTORY, keyring, {segment, quarantine})
    assert left.files == {segment, quarantine}
    assert key_files(disk) == {segment.hex(), quarantine.hex()}
    assert unused not in left.keys


async def test_without_room_for_a_new_segment_the_log_keeps_its_key() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=replace(SMALL, ballast_bytes=0))
    await log.append(entry(b"before"))
    old = signing(disk)

    def full(operation: str, path: Path) -> None:
        if operation == "append" and path.name.startswith(segment_name(2)):
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.on_call = full
    with pytest.raises(WalFull, match="keeps its key"):
        await log.rotate_key()
    await log.append(entry(b"after"))
    await log.quarantine([Refused((await read_all(log))[0], 3, "no")])
    assert needs(disk, DIRECTORY).keys() == {bytes.fromhex(old)}
    disk.on_call = None
    new = await log.rotate_key()
    await log.retire(0, LONG_AFTER_NS, 0.0)
    assert key_files(disk) == {old, new}, "the key of the attempt that failed is gone"
    assert bodies(await read_all(log)) == [b"before", b"after"]
    await log.close()


async def test_a_closed_log_is_not_rotated() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.close()
    with pytest.raises(WalError, match="closed"):
        await log.rotate_key()
    assert len(key_files(disk)) == 1


def test_the_key_of_a_stopped_log_is_rotated() -> None:
    disk = CrashDisk()
    tools: dict[str, Any] = {"disk": disk, "clock": ManualClock(), "kinds": KINDS}
    with pytest.raises(DataDirUnusable, match="there is no log"):
        inspect.rotate_key(DIRECTORY, **tools)

    async def write() -> None:
        log = opened(disk=disk)
        await log.append(entry(b"one"))
        await log.close()

    asyncio.run(write())
    old = signing(disk)
    new = inspect.rotate_key(DIRECTORY, **tools)
    assert signing(disk) == new != old
    assert [use.key_id for use in inspect.list_keys(DIRECTORY, disk=disk)] == [new, old]
    assert inspect.verify(DIRECTORY, disk=disk).problems == ()


# --- when an old key goes --------------------------------------------------------------------------------------------


async def test_an_old_key_goes_with_the_last_file_that_needs_it() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"refused"))
    await log.quarantine([Refused((await read_all(log))[0], 3, "no")])
    old = signing(disk)
    new = await log.rotate_key()
    await log.mark_replayed(1)
    await log.retire(1, LONG_AFTER_NS, 0.0)
    assert log.segment_count == 1
    assert key_files(disk) == {old, new}, "the quarantine needs it"
    copy = f"{segment_name(1)}.corrupted.20260101T000000Z"
    disk.put(DIRECTORY / copy, b"USTDYSEG" + bytes(8) + bytes.fromhex(old) + bytes(200))
    await log.release_quarantined(1)
    await log.retire(1, LONG_AFTER_NS, 0.0)
    assert key_files(disk) == {old, new}, "a copy that was set aside needs it"
    disk.drop(DIRECTORY / copy)
    await log.retire(1, LONG_AFTER_NS, 0.0)
    assert key_files(disk) == {new}
    assert [use.key_id for use in await log.keys.uses()] == [new]
    assert key_files(disk.after_power_cut(None)) == {new}, "durably"
    await log.append(entry(b"next"))
    await log.close()
    assert bodies(recovered(disk)[1]) == [b"next"]


async def test_the_key_that_signs_stays_whatever_needs_it() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    stray = THIRD
    disk.put(DIRECTORY / "keys" / f"{key_id_of(stray).hex()}.key", stray)
    await log.close()
    mine = signing(disk)
    recovered(disk)
    assert key_files(disk) == {mine}, "a key that nothing needs goes at the next start"


async def test_an_entry_on_its_way_into_the_quarantine_holds_its_key() -> None:
    """Between the signing of an entry and its file nobody may find that the old key is not needed."""
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"refused"))
    record = (await read_all(log))[0]
    held: list[bool] = []

    def look(operation: str, path: Path) -> None:
        if operation == "create" and path.name.endswith(".entry.tmp"):
            held.append(log._quarantine.guard.locked())

    disk.on_call = look
    await log.quarantine([Refused(record, 3, "no")])
    assert held == [True]
    guarded: list[bool] = []
    await log.rotate_key()
    disk.on_call = lambda operation, path: (
        guarded.append(log._quarantine.guard.locked()) if operation == "names" and path.name == "wal" else None
    )
    await log.retire(0, 0, 10**9)
    assert guarded == [True]
    await log.close()


async def test_a_file_that_cannot_be_read_keeps_every_key() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"one"))
    old = signing(disk)
    new = await log.rotate_key()
    await log.mark_replayed(1)

    def fail(operation: str, path: Path) -> None:
        if operation == "read" and path.name == "head":
            raise OSError(errno.EIO, "Input/output error")

    disk.on_call = fail
    with pytest.raises(WalError, match="cannot remove an old key"):
        await log.retire(1, LONG_AFTER_NS, 0.0)
    assert key_files(disk) == {old, new}
    disk.on_call = None
    await log.retire(1, LONG_AFTER_NS, 0.0)
    assert key_files(disk) == {new}
    await log.close()


async def test_a_refused_entry_that_cannot_be_read_does_not_keep_a_log_with_two_keys_shut() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"refused"))
    [record] = await log.read_pending(1, 1 << 20)
    await log.quarantine([Refused(record, 3, "no")])
    await log.rotate_key()
    await log.close()
    disk.on_call = failing("read", name="00000000000000000001")
    again = opened(disk=disk, entropy=Entropy("again"))
    assert len(key_files(disk)) == 2
    await again.append(entry(b"more"))
    await again.close()


async def test_a_file_that_goes_while_it_is_looked_at_proves_nothing() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"one"))
    old = signing(disk)
    new = await log.rotate_key()
    await log.mark_replayed(1)

    def gone(operation: str, path: Path) -> None:
        if operation == "read" and path.name == "head":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    disk.on_call = gone
    await log.retire(1, LONG_AFTER_NS, 0.0)
    assert key_files(disk) == {old, new}, "the next round looks again"
    with pytest.raises(WalError, match="cannot read the log"):
        await log.keys.uses()
    disk.on_call = None
    disk.drop(DIRECTORY / "keys" / f"{old}.key")
    await log.retire(1, LONG_AFTER_NS, 0.0)
    assert [use.key_id for use in await log.keys.uses()] == [new], "somebody else had removed it"
    await log.close()


def test_keys_of_a_directory_that_holds_nothing_yet() -> None:
    disk = CrashDisk()
    disk.make_directory(DIRECTORY / "keys")
    disk.put(DIRECTORY / "keys" / f"{key_id_of(FIRST).hex()}.key", FIRST)
    (use,) = inspect.list_keys(DIRECTORY, disk=disk)
    assert (use.key_id, use.signs, use.needed_by) == (key_id_of(FIRST).hex(), False, ())


# --- somebody has the old key ----------------------------------------------------------------------------------------


async def _rotated() -> tuple[CrashDisk, bytes]:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"one"))
    (old,) = [disk.content(DIRECTORY / "keys" / f"{name}.key") for name in key_files(disk)]
    await log.rotate_key()
    await log.append(entry(b"two"))
    await log.close()
    return disk, old


async def test_a_segment_added_with_a_replaced_key_is_refused() -> None:
    disk, old = await _rotated()
    forge_segment(disk, old)
    with pytest.raises(WalDamaged, match="another one had replaced"):
        recovered(disk)


async def test_a_head_signed_with_a_replaced_key_is_refused() -> None:
    disk, old = await _rotated()
    result, _ = recovered(disk.after_kill())
    disk.put(DIRECTORY / "head", encode_head(replace(result.head, key_id=key_id_of(old)), old))
    with pytest.raises(WalDamaged, match=f"it is signed with key {key_id_of(old).hex()}"):
        recovered(disk)


async def test_a_repair_signs_with_the_present_key() -> None:
    disk, _ = await _rotated()
    new = signing(disk)
    raw = bytearray(disk.content(DIRECTORY / segment_name(1)))
    raw[-37] ^= 1  # in the body
    disk.put(DIRECTORY / segment_name(1), bytes(raw))
    with pytest.raises(WalDamaged):
        recovered(disk)
    repair(DIRECTORY, Tools(disk, ManualClock(), Entropy("repair"), SMALL, KINDS), lambda _: True)
    result, records = recovered(disk)
    assert bodies(records) == [b"two"]
    assert {segment.codec.header.key_id.hex() for segment in result.survey.segments} == {new}
    assert {key_id.hex() for key_id in needs(disk, DIRECTORY)} == key_files(disk)
    log = opened(disk=disk, entropy=Entropy("after"))
    await log.rotate_key()
    await log.append(entry(b"three"))
    await log.close()
    assert bodies(recovered(disk)[1]) == [b"two", b"three"]


# --- keys from elsewhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        FIRST.hex(),
        FIRST.hex().upper() + "\n",
        base64.b64encode(FIRST).decode(),
        base64.urlsafe_b64encode(FIRST).decode().rstrip("="),
    ],
)
def test_forms_of_a_key(text: str) -> None:
    assert parse_keys(text.encode(), "wal.key").keys == (FIRST,)
    both = parse_keys(f"{text}\n{SECOND.hex()},{text}".encode(), "wal.key")
    assert both.keys == (FIRST, SECOND)
    assert both.key_id == key_id_of(FIRST)
    assert FIRST.hex() not in repr(both)
    assert repr(FIRST) not in repr(both)


@pytest.mark.parametrize(
    "text",
    ["", "  \n", "secret", FIRST.hex()[:-1], FIRST.hex() + "0", "g" * 64, f"{FIRST.hex()} oops", "A" * 32, "é" * 16],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(WalKeyUnsafe, match="openssl rand -hex 32") as caught:
        parse_keys(text.encode(), "wal.key")
    assert not text.strip() or text not in str(caught.value)


def test_a_placeholder_and_too_many_keys_are_refused() -> None:
    with pytest.raises(WalKeyUnsafe, match="anybody could guess"):
        parse_keys(b"00" * 32, "wal.key")
    many = "\n".join(Entropy(str(number))(32).hex() for number in range(KEYS_MAX + 1))
    with pytest.raises(WalKeyUnsafe, match="take old ones away"):
        parse_keys(many.encode(), "wal.key")


def _from(path: Path | None = None, key: bytes | None = None, credentials: Path | None = None) -> ExternalKeys | None:
    settings = config.Wal(key_path=path, key=None if key is None else SecretStr(key.hex()))
    environment = {} if credentials is None else {"CREDENTIALS_DIRECTORY": str(credentials)}
    return external_keys(settings, environment, RealDisk())


def _key_file(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_which_source_counts(tmp_path: Path) -> None:
    assert _from() is None
    assert _from(credentials=tmp_path) is None
    credential = _key_file(tmp_path / CREDENTIAL_NAME, SECOND, 0o400)
    file = _key_file(tmp_path / "key", FIRST.hex().encode())
    from_credential = _from(credentials=tmp_path)
    assert from_credential is not None
    assert from_credential.keys == (SECOND,)
    assert str(credential) in from_credential.origin
    from_file = _from(file, credentials=tmp_path)
    assert from_file is not None
    assert from_file.keys == (FIRST,)
    from_setting = _from(key=THIRD, credentials=tmp_path)
    assert from_setting is not None
    assert from_setting.keys == (THIRD,)
    with pytest.raises(ConfigError, match="both set"):
        _from(file, THIRD)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_key_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(WalKeyUnsafe, match=f"mode {mode:04o}.*chmod 600"):
        _from(_key_file(tmp_path / "key", FIRST, mode))


def test_a_link_a_directory_and_nothing_are_refused(tmp_path: Path) -> None:
    file = _key_file(tmp_path / "key", FIRST)
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(WalKeyUnsafe, match="not a plain file"):
        _from(tmp_path / "link")
    with pytest.raises(WalKeyUnsafe, match="not a plain file"):
        _from(tmp_path)
    with pytest.raises(WalKeyMissing, match="no such file"):
        _from(tmp_path / "nothing")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / CREDENTIAL_NAME).symlink_to(file)
    with pytest.raises(WalKeyUnsafe, match="not a plain file"):
        _from(credentials=tmp_path / "credentials")


def test_a_file_is_raw_or_text_and_not_a_novel(tmp_path: Path) -> None:
    raw = _from(_key_file(tmp_path / "raw", FIRST))
    assert raw is not None
    assert raw.keys == (FIRST,)
    with pytest.raises(WalKeyUnsafe, match="not a key"):
        _from(_key_file(tmp_path / "half", FIRST.hex()[:32].encode()))
    with pytest.raises(WalKeyUnsafe, match="larger"):
        _from(_key_file(tmp_path / "novel", b" " * (SOURCE_BYTES_MAX + 1)))


class _Foreign(RealDisk):
    """Files belong to somebody else, with a mode of our choice."""

    def __init__(self, mode: int, *, is_roots: bool) -> None:
        self._mode = mode
        self._is_roots = is_roots

    def facts(self, path: Path) -> FileFacts | None:
        """See Disk."""
        found = super().facts(path)
        return found and replace(found, is_ours=False, mode=self._mode, is_roots=self._is_roots)


@pytest.mark.parametrize(
    ("mode", "is_roots", "accepted"),
    [(0o400, True, True), (0o440, True, True), (0o444, True, False), (0o460, True, False), (0o400, False, False)],
)
def test_a_credential_belongs_to_root_and_any_other_file_to_us(
    tmp_path: Path, mode: int, is_roots: bool, accepted: bool
) -> None:
    path = _key_file(tmp_path / CREDENTIAL_NAME, FIRST)
    disk = _Foreign(mode, is_roots=is_roots)
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    for settings in (config.Wal(), config.Wal(key_path=path)):
        if accepted:
            found = external_keys(settings, environment, disk)
            assert found is not None
            assert found.keys == (FIRST,)
        else:
            with pytest.raises(WalKeyUnsafe):
                external_keys(settings, environment, disk)
    with pytest.raises(WalKeyUnsafe, match="another user"):
        external_keys(config.Wal(key_path=path), {}, disk)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    class Denied(RealDisk):
        def read(self, path: Path, offset: int, length: int) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    class Hidden(RealDisk):
        def facts(self, path: Path) -> FileFacts | None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = _key_file(tmp_path / "key", FIRST)
    with pytest.raises(WalKeyUnsafe, match="cannot be read"):
        external_keys(config.Wal(key_path=path), {}, Denied())
    with pytest.raises(WalKeyUnsafe, match="cannot look"):
        external_keys(config.Wal(), {"CREDENTIALS_DIRECTORY": str(tmp_path)}, Hidden())


async def _lives(*keys: ExternalKeys | None) -> CrashDisk:
    """A log that was opened once with each; every life adds an entry."""
    disk = CrashDisk()
    for number, external in enumerate(keys):
        log = opened(disk=disk, entropy=Entropy(str(number)), external=external)
        await log.append(entry(b"life %d" % number))
        await log.close()
    return disk


async def test_a_log_with_a_key_from_elsewhere_keeps_none_itself() -> None:
    disk = await _lives(given(FIRST), given(FIRST))
    assert key_files(disk) == set()
    assert signing(disk) == key_id_of(FIRST).hex()
    assert not any(FIRST in data or FIRST.hex().encode() in data for data in disk.everything().values())
    assert bodies(recovered(disk, given(FIRST))[1]) == [b"life 0", b"life 1"]
    for external in (None, given(SECOND)):
        before = disk.everything()
        with pytest.raises(WalKeyMissing) as caught:
            recovered(disk, external)
        assert "wal.key" in str(caught.value), "the way out"
        assert {path: data for path, data in disk.everything().items() if path.name != "lock"} == {
            path: data for path, data in before.items() if path.name != "lock"
        }


async def test_another_key_from_elsewhere_takes_over_at_the_start() -> None:
    disk = await _lives(None, given(FIRST), given(SECOND, FIRST))
    assert signing(disk) == key_id_of(SECOND).hex()
    result, records = recovered(disk, given(SECOND, FIRST))
    assert bodies(records) == [b"life 0", b"life 1", b"life 2"]
    keys = [segment.codec.header.key_id for segment in result.survey.segments]
    assert keys[1:] == [key_id_of(FIRST), key_id_of(SECOND)]
    assert len(key_files(disk)) == 1, "the log's own key is still needed"
    uses = inspect.list_keys(DIRECTORY, disk=disk, external=given(SECOND))
    assert [(use.key_id, use.origin) for use in uses if not use.origin] == [(key_id_of(FIRST).hex(), "")]
    assert (uses[0].key_id, uses[0].signs, uses[0].origin) == (key_id_of(SECOND).hex(), True, "wal.key")
    with pytest.raises(WalKeyMissing, match="after the present one"):
        recovered(disk, given(SECOND))


async def test_a_key_that_was_replaced_does_not_come_back_while_it_is_needed() -> None:
    disk = await _lives(given(FIRST), given(SECOND, FIRST))
    before = disk.everything()
    with pytest.raises(WalKeyUnsafe, match=f"Put {key_id_of(SECOND).hex()} first again"):
        recovered(disk, given(FIRST, SECOND))
    assert disk.everything().keys() == before.keys()


async def test_a_log_takes_its_key_home() -> None:
    disk = await _lives(given(FIRST))
    disk.put(DIRECTORY / "keys" / f"{key_id_of(FIRST).hex()}.key", FIRST)
    log = opened(disk=disk, entropy=Entropy("home"))
    assert await log.rotate_key() == signing(disk)
    assert bodies(await read_all(log)) == [b"life 0"]
    await log.close()


async def test_a_key_from_elsewhere_is_not_rotated_and_the_error_says_how() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, external=given(FIRST))
    before = disk.everything()
    with pytest.raises(WalKeyExternal, match="restart Understudy") as caught:
        await log.rotate_key()
    assert "wal.key" in str(caught.value)
    assert disk.everything() == before
    await log.append(entry(b"goes on"))
    await log.close()


@pytest.mark.parametrize("start", [None, given(FIRST)])
async def test_a_takeover_at_the_start_survives_a_crash_at_every_call(start: ExternalKeys | None) -> None:
    disk = await _lives(start)
    external = given(SECOND, FIRST)
    photographs: list[CrashDisk] = []
    disk.on_call = lambda operation, _: photographs.append(disk.photograph()) if operation in CHANGING else None
    recovered(disk, external)
    assert len(photographs) > 10
    for number, photograph in enumerate(photographs):
        states: list[Callable[[], CrashDisk]] = [
            photograph.after_kill,
            *(lambda cut=cut, photograph=photograph: photograph.after_power_cut(cut) for cut in (None, 1, 2, 3)),
        ]
        for state_of in states:
            state = state_of()
            result, records = recovered(state, external)
            assert bodies(records) == [b"life 0"], number
            assert result.head.key_id == key_id_of(SECOND)
            assert len(result.survey.segments) == 2, "it took over once"
            head = decode_head(state.content(DIRECTORY / "head"), SECOND)
            assert head == result.head
            assert len(state.content(DIRECTORY / "head")) == HEAD_BYTES
            assert result.survey.segments[1].size == SEGMENT_HEADER_BYTES
