"""Which key a repair goes on with: never one that another had replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.errors import WalDamaged, WalLatched
from server.wal.keyring import KEY_SUFFIX
from server.wal.record import encode_head
from server.wal.repair import Repaired, repair
from server.wal.salvage import Tools
from server.wal.scan import segment_name
from server.wal.signing import key_id_of
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import DIRECTORY, KINDS, Entropy, bodies, entry, failing, forge_segment, opened, recovered
from tests.wal.test_damage import SMALL
from tests.wal.test_keys import key_files, signing

HEAD = DIRECTORY / "head"


async def _rotated(*, is_head_signed: bool) -> tuple[CrashDisk, bytes, str]:
    """A log whose key was replaced, killed; with the old key and the id of the new one."""
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"one"))
    (old,) = [disk.content(DIRECTORY / "keys" / f"{name}{KEY_SUFFIX}") for name in key_files(disk)]
    if is_head_signed:
        await log.rotate_key()
        await log.append(entry(b"two"))
    else:
        disk.on_call = failing("create", name="head")
        with pytest.raises(WalLatched):
            await log.rotate_key()
    left = disk.after_kill()
    (new,) = key_files(left) - {key_id_of(old).hex()}
    return left, old, new


def _damage(disk: CrashDisk) -> None:
    """A flipped bit in the body of the first entry."""
    path = DIRECTORY / segment_name(1)
    data = bytearray(disk.content(path))
    data[data.index(b"one")] ^= 1
    disk.put(path, bytes(data))
    with pytest.raises(WalDamaged):
        recovered(disk.after_kill())


def _check_repaired(disk: CrashDisk, key_id: str, kept: list[bytes]) -> None:
    done = repair(DIRECTORY, Tools(disk, ManualClock(), Entropy("repair"), SMALL, KINDS), lambda _: True)
    assert isinstance(done, Repaired)
    assert signing(disk) == key_id
    result, records = recovered(disk)
    assert bodies(records) == kept
    assert {segment.codec.header.key_id.hex() for segment in result.survey.segments} == {key_id}
    assert key_files(disk) == {key_id}


async def test_a_rotation_that_a_crash_ended_before_the_head_is_not_undone() -> None:
    disk, old, new = await _rotated(is_head_signed=False)
    assert signing(disk) == key_id_of(old).hex()
    whole = disk.after_kill()
    assert recovered(whole)[0].head.key_id.hex() == new, "an open goes on with the new key"
    _damage(disk)
    _check_repaired(disk, new, [])


async def test_without_a_head_the_last_segment_tells() -> None:
    disk, _, new = await _rotated(is_head_signed=True)
    disk.drop(HEAD)
    _check_repaired(disk, new, [b"one", b"two"])


async def test_a_segment_added_with_a_replaced_key_does_not_bring_it_back() -> None:
    disk, old, new = await _rotated(is_head_signed=True)
    forge_segment(disk, old)
    _check_repaired(disk, new, [b"one", b"two"])


async def test_a_head_signed_with_a_replaced_key_does_not_bring_it_back() -> None:
    disk, old, new = await _rotated(is_head_signed=True)
    result, _ = recovered(disk.after_kill())
    disk.put(HEAD, encode_head(replace(result.head, key_id=key_id_of(old)), old))
    _check_repaired(disk, new, [b"one", b"two"])
