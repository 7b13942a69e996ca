"""A log of three records, damaged in every way: refused, or cut as a torn tail; never believed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import google_crc32c
import pytest

from server.errors import WalDamaged, WalError, WalKeyMissing, WalKeyUnsafe
from server.wal.files import TEMP_SUFFIX
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.record import HEAD_BYTES, SEGMENT_HEADER_BYTES, FrameRules, FrameType, NewRecord, Record
from server.wal.scan import HEAD_NAME, segment_name, survey
from server.wal.signing import KEY_BYTES
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import DIRECTORY, PENDING, RULES, Entropy, bodies, entry, opened, read_all, recovered

BODIES = [b"one", b"two!", b"three"]
FIRST = DIRECTORY / segment_name(1)
HEAD = DIRECTORY / HEAD_NAME
HEAD_TMP = HEAD.with_name(HEAD_NAME + TEMP_SUFFIX)
Files = dict[Path, bytes]


async def written(
    *,
    clean: bool,
    seed: str = "",
    limits: WalLimits | None = None,
    replayed: int = 0,
    entropy: Entropy | None = None,
) -> Files:
    """Files of a log that holds BODIES, after a close or after a kill, without room for more (see test_room)."""
    disk = CrashDisk()
    log = opened(disk=disk, entropy=entropy or Entropy(seed), limits=replace(limits or WalLimits(), room_bytes=0))
    for body in BODIES:
        # One with principal and trace, two without: fewer bits, same kinds of field.
        await log.append(entry(body) if body == BODIES[1] else NewRecord(1, PENDING, body))
    await log.mark_replayed(replayed)
    files = disk.everything()
    await log.close()
    return disk.everything() if clean else files


def disk_of(files: Mapping[Path, bytes]) -> CrashDisk:
    disk = CrashDisk()
    disk.make_directory(DIRECTORY / "keys")
    disk.make_directory(DIRECTORY / "quarantine")
    for path, data in files.items():
        disk.put(path, data)
    return disk


@dataclass(frozen=True)
class Accepted:
    """The log opened."""

    bodies: list[bytes]
    cut: bytes
    pending: int


def outcome(files: Mapping[Path, bytes]) -> Accepted | WalError:
    """Open; when it is refused, nothing may have changed on disk."""
    disk = disk_of(files)
    try:
        result, found = recovered(disk)
    except WalError as error:
        assert disk.everything() == dict(files), "refused, and yet something was changed"
        assert not disk.locks
        return error
    copies = [data for path, data in sorted(disk.everything().items()) if ".corrupted." in path.name]
    assert len(copies) == len(result.recovery.cuts)
    return Accepted(bodies(found), b"".join(copies), len(result.survey.pending))


def frames_of(data: bytes) -> list[bytes]:
    """The frames of a segment, by their lengths."""
    frames, at = [], SEGMENT_HEADER_BYTES
    while at < len(data):
        principal, trace = (int.from_bytes(data[at + n : at + n + 2], "little") for n in (12, 14))
        length = 96 + principal + trace + int.from_bytes(data[at + 16 : at + 20], "little")
        frames.append(data[at : at + length])
        at += length
    return frames


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bit // 8, bytes(flipped)


async def test_untouched_logs_open() -> None:
    assert outcome(await written(clean=True)) == Accepted(BODIES, b"", 3)
    assert outcome(await written(clean=False)) == Accepted(BODIES, b"", 3)


async def test_every_flipped_bit_of_a_closed_log() -> None:
    files = await written(clean=True)
    data = files[FIRST]
    seal = len(data) - len(frames_of(data)[-1])
    assert sum(1 for _ in flips(data)) == 8 * len(data) > 5000
    for offset, flipped in flips(data):
        result = outcome({**files, FIRST: flipped})
        if offset < seal:
            assert isinstance(result, WalDamaged), offset
        else:
            # Beyond the head: the seal alone, which holds no entry.
            assert result == Accepted(BODIES, flipped[seal:], 3), offset


async def test_every_flipped_bit_of_a_killed_log() -> None:
    files = await written(clean=False)
    data = files[FIRST]
    third = len(data) - len(frames_of(data)[-1])
    for offset, flipped in flips(data):
        result = outcome({**files, FIRST: flipped})
        if offset < third:
            assert isinstance(result, WalDamaged), f"{offset}: the third record shows that this was durable"
        else:
            assert result == Accepted(BODIES[:2], flipped[third:], 2), offset


async def test_every_truncation() -> None:
    closed, killed = await written(clean=True), await written(clean=False)
    data = closed[FIRST]
    seal = len(data) - len(frames_of(data)[-1])
    for length in range(len(data)):
        result = outcome({**closed, FIRST: data[:length]})
        if length < seal:
            assert isinstance(result, WalDamaged), length
        else:
            assert result == Accepted(BODIES, data[seal:length], 3), length
    data = killed[FIRST]
    ends = list(itertools.accumulate((len(frame) for frame in frames_of(data)), initial=SEGMENT_HEADER_BYTES))
    for length in range(len(data)):
        result = outcome({**killed, FIRST: data[:length]})
        if length < SEGMENT_HEADER_BYTES:
            assert isinstance(result, WalDamaged), length
        else:
            whole = sum(end <= length for end in ends) - 1
            assert result == Accepted(BODIES[:whole], data[ends[whole] : length], whole), length


async def test_every_order_drop_duplicate_and_splice_of_records() -> None:
    for clean in (True, False):
        files = await written(clean=clean)
        other = await written(clean=clean, seed="another log")
        data = files[FIRST]
        frames = frames_of(data)
        foreign = frames_of(other[FIRST])
        own = range(len(frames))
        # One more than there are: also each one doubled, with nothing missing.
        orders = [order for n in range(len(frames) + 2) for order in itertools.product(own, repeat=n)]
        assert len(orders) == sum(len(frames) ** n for n in range(len(frames) + 2))
        assert set(itertools.permutations(own)) <= set(orders)
        # Spliced: one frame of another log, in the place of or before each of ours.
        for at, strange in itertools.product(own, range(-len(foreign), 0)):
            orders += [(*own[:at], strange, *own[at + 1 :]), (*own[:at], strange, *own[at:])]
        for order in orders:
            if order == tuple(range(len(order))):
                continue
            chosen = [frames[n] if n >= 0 else foreign[n] for n in order]
            result = outcome({**files, FIRST: data[:SEGMENT_HEADER_BYTES] + b"".join(chosen)})
            if isinstance(result, Accepted):
                # The checksums of another log are wrong here, so at the end they look torn.
                kept = len(result.bodies)
                assert order[:kept] == tuple(range(kept)), order
                assert result.cut, order
                assert not clean or kept == len(BODIES), order
        assert len(orders) > (1300 if clean else 120)


class SameKey(Entropy):
    """Another log whose key is that of the first one."""

    def __call__(self, length: int) -> bytes:
        own = super().__call__(length)
        return Entropy()(length) if length == KEY_BYTES else own


async def six_in_two_segments(*, clean: bool) -> tuple[Files, bytes, bytes, Path]:
    """A log of two segments with three records each; the frames of the first may be put into the last."""
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(segment_bytes=550, room_bytes=0))
    for body in BODIES * 2:
        await log.append(NewRecord(1, PENDING, body))
    files = disk.everything()
    await log.close()
    files = disk.everything() if clean else files
    first, last = sorted(path for path in files if path.name.startswith("segment-"))
    assert len(frames_of(files[first])) == 3
    return files, files[first], files[last], last


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("source", ["another log", "another log with the same key", "another segment of this log"])
async def test_every_splice_of_records_from_elsewhere(source: str, clean: bool) -> None:
    """In the place of each record and before each record and at the end; as it is, and with checksums made right."""
    if source == "another segment of this log":
        files, strange, data, path = await six_in_two_segments(clean=clean)
        wanted = BODIES * 2
    else:
        entropy = SameKey("other") if "same key" in source else Entropy("other")
        files, path, wanted = await written(clean=clean), FIRST, BODIES
        other = await written(clean=clean, entropy=entropy)
        same = {each for each in files if each.suffix == ".key"} == {each for each in other if each.suffix == ".key"}
        assert same == ("same key" in source)
        strange, data = other[FIRST], files[FIRST]
        assert isinstance(outcome({**files, FIRST: strange}), WalError)
        assert isinstance(outcome({**files, HEAD: other[HEAD]}), WalError)
    frames, foreign = frames_of(data), frames_of(strange)
    before = len(wanted) - len(BODIES)
    checked = 0
    for at, frame in itertools.product(range(len(frames) + 1), foreign):
        for rest in {at, min(at + 1, len(frames))}:
            for spliced in (frame, with_right_checksums(data, frame)):
                content = [*frames[:at], spliced, *frames[rest:]]
                result = outcome({**files, path: data[:SEGMENT_HEADER_BYTES] + b"".join(content)})
                checked += 1
                if spliced is not frame:
                    assert isinstance(result, WalDamaged), (at, rest)
                elif isinstance(result, Accepted):
                    kept = len(result.bodies)
                    assert result.bodies == wanted[: before + min(at, len(BODIES))], (at, rest)
                    assert result.cut, (at, rest)
                    assert not clean or kept == len(wanted), (at, rest)
    assert checked == 2 * len(foreign) * (2 * len(frames) + 1)


def with_right_checksums(segment: bytes, frame: bytes) -> bytes:
    """What somebody can do who knows the format and not the key: the salt is in the header of the segment."""
    salt_crc = google_crc32c.value(segment[80:96])
    header_crc = google_crc32c.extend(salt_crc, frame[:56])
    checked = header_crc.to_bytes(4, "little") + frame[60:-4]
    return frame[:56] + checked + google_crc32c.extend(header_crc, checked[4:]).to_bytes(4, "little")


@pytest.mark.parametrize("clean", [True, False])
async def test_edits_with_right_checksums_are_refused_for_their_signature(clean: bool) -> None:
    files = await written(clean=clean)
    data = files[FIRST]
    one, two, three, *rest = frames_of(data)

    def edited(frame: bytes, at: int, value: bytes) -> bytes:
        return with_right_checksums(data, frame[:at] + value + frame[at + len(value) :])

    number_two = (2).to_bytes(8, "little")
    attacks = {
        "the state says that Qdrant has it": [one, edited(two, 5, b"\x02"), three],
        "another method": [one, edited(two, 6, b"\x02"), three],
        "another time": [one, edited(two, 32, b"\x07"), three],
        "another principal": [one, edited(two, 60, b"\x00"), three],
        "another body": [one, edited(two, len(two) - 37, b"?"), three],
        "one dropped, the next renumbered": [one, edited(three, 24, number_two)],
        "one doubled and renumbered": [one, edited(one, 24, number_two), three],
        "the last one edited": [one, two, edited(three, 60, b"?")],
        "the first one taken from elsewhere": [edited(three, 24, (1).to_bytes(8, "little")), two, three],
        "an entry made a cursor": [one, two, edited(three, 4, b"\x02")],
    }
    for what, frames in attacks.items():
        result = outcome({**files, FIRST: data[:SEGMENT_HEADER_BYTES] + b"".join([*frames, *rest])})
        assert isinstance(result, WalDamaged), what
        assert "signature" in str(result), what
    head = bytearray(files[HEAD])
    head[72] ^= 1
    head[-4:] = google_crc32c.value(bytes(head[:-4])).to_bytes(4, "little")
    result = outcome({**files, HEAD: bytes(head)})
    assert isinstance(result, WalDamaged)
    assert "signature" in str(result)


async def test_every_flipped_bit_of_the_head_and_of_the_key() -> None:
    files = await written(clean=True)
    for offset, flipped in flips(files[HEAD]):
        assert isinstance(outcome({**files, HEAD: flipped}), WalDamaged), offset
    for length in range(HEAD_BYTES):
        assert isinstance(outcome({**files, HEAD: files[HEAD][:length]}), WalDamaged), length
    assert isinstance(outcome({**files, HEAD: files[HEAD] + b"\0"}), WalDamaged)
    (key_path,) = (path for path in files if path.suffix == ".key")
    for offset, flipped in flips(files[key_path]):
        assert isinstance(outcome({**files, key_path: flipped}), WalKeyUnsafe), offset
    other = await written(clean=True, seed="another log")
    for path in (HEAD, FIRST):
        assert isinstance(outcome({**files, path: other[path]}), WalError), path
    renamed = {path: data for path, data in files.items() if path != key_path}
    assert isinstance(outcome({**renamed, **{p: d for p, d in other.items() if p.suffix == ".key"}}), WalKeyMissing)


@pytest.mark.parametrize("gap_seq", [2, 3, 4])
async def test_a_signed_gap_must_lead_forward(gap_seq: int) -> None:
    files = await written(clean=False)
    found = recovered(disk_of(files))[0].survey
    size = len(files[FIRST])
    frame, _ = found.segments[0].codec.mark(
        FrameType.GAP, 3, gap_seq, found.tail_mac, wall_ns=0, durable_before=size, head_generation=1
    )
    result = outcome({**files, FIRST: files[FIRST] + frame})
    if gap_seq == 4:
        assert result == Accepted(BODIES, b"", 3)
    else:
        assert isinstance(result, WalDamaged)
        assert f"it claims a gap from entry 3 back to {gap_seq}" in str(result)


async def test_an_older_head_shows() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    heads = [disk.content(HEAD)]
    for body in BODIES:
        await log.append(entry(body))
    await log.close()
    for _ in range(2):
        heads.append(disk.content(HEAD))
        log = opened(disk=disk)
        heads.append(disk.content(HEAD))
        await log.append(entry(b"more"))
        await log.close()
    files = disk.everything()
    assert isinstance(outcome(files), Accepted)
    for old in heads:
        result = outcome({**files, HEAD: old})
        assert isinstance(result, WalDamaged)
        assert "old copy" in str(result)


async def test_every_older_head_of_a_killed_log_shows_or_hides_nothing() -> None:
    """Only the head before the last one may have no later frame against it, and then the log is whole all the same."""
    disk = CrashDisk()
    heads: list[bytes] = []
    disk.on_call = lambda call, path: heads.append(disk.content(HEAD_TMP)) if (call, path) == ("rename", HEAD) else None
    log = opened(disk=disk, limits=WalLimits(head_bytes=1))
    for body in BODIES * 2:
        await log.append(entry(body))
    files = disk.everything()
    disk.on_call = None
    await log.close()
    heads = heads[: heads.index(files[HEAD])]
    assert len(set(heads)) == len(heads) >= len(BODIES)
    for age, old in enumerate(reversed(heads), 1):
        result = outcome({**files, HEAD: old})
        if age > 2:
            assert isinstance(result, WalDamaged), age
        assert isinstance(result, WalDamaged) or result == Accepted(BODIES * 2, b"", 6), age


async def test_a_missing_head_key_or_segment_refuses() -> None:
    files = await written(clean=True)
    for path, error in ((HEAD, WalDamaged), (FIRST, WalDamaged)):
        left = {p: d for p, d in files.items() if p != path}
        assert isinstance(outcome(left), error), path
    without_key = {path: data for path, data in files.items() if path.suffix != ".key"}
    assert isinstance(outcome(without_key), WalKeyMissing)
    only_head = {path: data for path, data in without_key.items() if path == HEAD}
    assert isinstance(outcome(only_head), WalKeyMissing), "a key is never remade"
    only_segment = {path: data for path, data in files.items() if path == FIRST}
    assert isinstance(outcome(only_segment), WalKeyMissing)


SMALL = WalLimits(segment_bytes=300)


@pytest.mark.parametrize("clean", [True, False])
async def test_segments_that_are_dropped_exchanged_cut_or_added(clean: bool) -> None:
    files = await written(clean=clean, limits=SMALL)
    names = sorted(path for path in files if path.name.startswith("segment-"))
    assert len(names) == 3
    assert outcome(files) == Accepted(BODIES, b"", 3)
    for dropped in (set(c) for n in (1, 2, 3) for c in itertools.combinations(names, n)):
        left = {path: data for path, data in files.items() if path not in dropped}
        assert isinstance(outcome(left), WalDamaged), dropped
    for order in itertools.permutations(names):
        if list(order) != names:
            moved = {**files, **{path: files[source] for path, source in zip(names, order, strict=True)}}
            assert isinstance(outcome(moved), WalDamaged), order
    for path in names:
        added = {**files, DIRECTORY / segment_name(4): files[path]}
        assert isinstance(outcome(added), WalDamaged), path
    for path in names[:2]:
        for length in range(len(files[path])):
            assert isinstance(outcome({**files, path: files[path][:length]}), WalDamaged), (path, length)
        for extra in (b"\0", frames_of(files[path])[0]):
            assert isinstance(outcome({**files, path: files[path] + extra}), WalDamaged)
        for offset, flipped in itertools.islice(flips(files[path]), 0, None, 9):
            assert isinstance(outcome({**files, path: flipped}), WalDamaged), (path, offset)


@pytest.mark.parametrize("replayed", [1, 2])
async def test_closed_segments_end_where_their_successors_say(replayed: int) -> None:
    """Also when what is missing is no entry, and when the segment's frames are not read because they are replayed."""
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(segment_bytes=480))
    for body in BODIES[:2]:
        await log.append(NewRecord(1, PENDING, body))
    await log.mark_replayed(replayed)
    await log.append(entry(b"last"))
    await log.close()
    files = disk.everything()
    names = sorted(path for path in files if path.name.startswith("segment-"))
    assert [len(frames_of(files[path])) for path in names] == [3, 2]
    assert isinstance(outcome(files), Accepted)
    for path in names[:-1]:
        data = files[path]
        for length in range(len(data)):
            assert isinstance(outcome({**files, path: data[:length]}), WalDamaged), (path, length)
        for extra in (b"\0", frames_of(data)[-1]):
            assert isinstance(outcome({**files, path: data + extra}), WalDamaged)


async def test_damage_in_replayed_segments_is_found_when_they_are_read_and_by_verify() -> None:
    """Open does not read frames that both Qdrant and the head have passed; nothing is handed out unverified."""
    files = await written(clean=True, limits=SMALL, replayed=3)
    first = files[FIRST]
    missed = 0
    for _, flipped in itertools.islice(flips(first), 0, None, 7):
        damaged = {**files, FIRST: flipped}
        disk = disk_of(damaged)
        assert survey(disk, DIRECTORY, RULES, deep=True).refusals
        try:
            log = opened(disk=disk, limits=SMALL, entropy=Entropy("later"))
        except WalDamaged:
            continue
        missed += 1
        with pytest.raises(WalDamaged, match=FIRST.name):
            await read_all(log)
        assert bodies(await log.read(1, 10, 10**6)) == BODIES[1:]
        await log.close()
    assert missed > 10


async def test_the_message_names_file_offset_and_the_next_command() -> None:
    files = await written(clean=True)
    flipped = bytearray(files[FIRST])
    flipped[SEGMENT_HEADER_BYTES + 70] ^= 1
    result = outcome({**files, FIRST: bytes(flipped)})
    assert isinstance(result, WalDamaged)
    for part in (FIRST.name, f"offset {SEGMENT_HEADER_BYTES}", "understudy wal verify", "Nothing was changed"):
        assert part in str(result)


async def test_an_entry_whose_method_is_not_allowed_any_more_is_not_read_back() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"fine", PENDING, kind=17))
    await log.close()
    with pytest.raises(WalDamaged, match="signed and yet not allowed"):
        opened(disk=disk, kinds=frozenset(range(1, 17)))
    with pytest.raises(WalDamaged, match="signed and yet not allowed"):
        opened(disk=disk, limits=WalLimits(entry_bytes=3))


async def test_a_torn_tail_is_kept_aside_and_the_log_goes_on() -> None:
    files = await written(clean=False)
    disk = disk_of({**files, FIRST: files[FIRST][:-10]})
    log = opened(disk=disk, entropy=Entropy("later"))
    (cut,) = log.recovery.cuts
    assert cut.copy.startswith(f"{FIRST.name}.at-")
    assert ".corrupted.20231114T221320.000000000Z" in cut.copy
    assert disk.content(DIRECTORY / cut.copy) == files[FIRST][cut.offset : -10]
    assert not log.recovery.clean
    assert await log.append(entry(b"again")) == 3
    await log.close()
    assert await _reread(disk) == [*BODIES[:2], b"again"]


async def _reread(disk: CrashDisk) -> list[bytes]:
    log: Log = opened(disk=disk, entropy=Entropy("last"))
    found = bodies(await read_all(log))
    await log.close()
    return found


Frames = list[tuple[FrameType, int, int, int, int]]


async def signed(frames: Frames) -> WalError | Accepted:
    """A log whose last frames were made with the key: (type, seq, value, durable_before, head_generation)."""
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(room_bytes=0))
    await log.append(entry(b"one"))
    tip = log._encoder.tip
    data, mac = disk.content(FIRST), tip.mac
    for type_, seq, value, durable, generation in frames:
        if type_ is FrameType.ENTRY:
            new = Record(seq, 1, PENDING, 0, b"", "", b"%d" % value, 0)
            frame, mac = tip.codec.entry(new, mac, durable, generation)
        else:
            frame, mac = tip.codec.mark(
                type_, seq, value, mac, wall_ns=0, durable_before=durable, head_generation=generation
            )
        data += frame
    result = outcome({**disk.everything(), FIRST: data})
    await log.close()
    return result


async def test_what_is_signed_and_makes_no_sense_is_refused() -> None:
    """A bug or another program with the key: the chain holds, the content does not."""
    entry_, cursor, seal = FrameType.ENTRY, FrameType.CURSOR, FrameType.SEAL
    assert await signed([(entry_, 2, 0, 164, 2), (cursor, 2, 1, 164, 2), (seal, 2, 2, 164, 2)]) == Accepted(
        [b"one", b"0"], b"", 1
    )
    nonsense: dict[str, Frames] = {
        "entry 3 follows entry 1": [(entry_, 3, 0, 164, 2)],
        "entry 1 follows entry 1": [(entry_, 1, 0, 164, 2)],
        "does not belong after entry 1": [(cursor, 2, 1, 164, 2)],
        "not belong after entry 1": [(cursor, 1, 2, 164, 2)],
        "belong after entry 1": [(seal, 0, 2, 164, 2)],
        "claims that bytes after itself were durable": [(entry_, 2, 0, 10**6, 2)],
        "an old copy": [(entry_, 2, 0, 164, 3)],
    }
    for text, frames in nonsense.items():
        result = await signed(frames)
        assert isinstance(result, WalDamaged), text
        assert text in str(result)


async def test_reading_stops_before_a_flaw_and_says_so_when_it_is_reached() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(cache_bytes=0))
    for body in BODIES:
        await log.append(entry(body))
    data = bytearray(disk.content(FIRST))
    frames = frames_of(bytes(data))
    second = SEGMENT_HEADER_BYTES + len(frames[0])
    disk.put(FIRST, bytes(data[: second + 70]) + b"?" + bytes(data[second + 71 :]))
    assert bodies(await log.read(0, 10, 10**6)) == BODIES[:1]
    with pytest.raises(WalDamaged, match=f"{FIRST.name} at offset {second}: .*checksum"):
        await log.read(1, 10, 10**6)
    disk.put(FIRST, bytes(data[: second + 50]))
    with pytest.raises(WalDamaged, match=f"{FIRST.name} at offset {second}: .*ends inside"):
        await log.read(1, 10, 10**6)
    await log.close()


async def test_an_entry_over_the_limit_is_refused_before_it_is_read_into_memory() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(NewRecord(1, PENDING, bytes(3_000_000)))
    await log.close()
    longest = 0
    read = disk.read

    def watched(path: Path, offset: int, length: int) -> bytes:
        nonlocal longest
        longest = max(longest, length)
        return read(path, offset, length)

    disk.read = watched  # type: ignore[method-assign]
    found = survey(disk, DIRECTORY, FrameRules(RULES.kinds, 1_000_000, 10))
    assert "not allowed" in str(found.refusals[0])
    assert longest <= 1 << 20
