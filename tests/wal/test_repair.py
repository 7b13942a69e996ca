"""Repair: of every kind of damage, what is proven to be ours is kept, nothing else is, and the log opens."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest

from server.errors import UnderstudyError, WalDamaged, WalError, WalKeyMissing, WalKeyUnsafe, WalLocked
from server.wal import harvest
from server.wal.files import TEMP_SUFFIX
from server.wal.harvest import Finding
from server.wal.limits import WalLimits
from server.wal.quarantine import Refused
from server.wal.record import SEGMENT_HEADER_BYTES, EntryState, Flaw, Frame, FrameRules, NewRecord, SegmentCodec
from server.wal.repair import Repaired, repair
from server.wal.salvage import TABLE, Fate, Plan, Tools
from server.wal.scan import segment_name, survey
from server.wal.signing import KEY_BYTES
from tests.faults.clock import ManualClock
from tests.faults.crash_disk import CrashDisk
from tests.wal.support import DIRECTORY, KINDS, PENDING, RULES, Entropy, bodies, entry, opened, read_all, recovered
from tests.wal.test_damage import BODIES, FIRST, HEAD, SMALL, disk_of, flips, frames_of, with_right_checksums, written

Files = Mapping[Path, bytes]
SEQS = {body: seq for seq, body in enumerate(BODIES, 1)}
CHANGING = {"append", "sync", "synced", "rename", "create", "remove", "sync_directory", "mkdir"}


def tools(disk: CrashDisk, **options: object) -> Tools:
    limits = options.pop("limits", WalLimits())
    assert isinstance(limits, WalLimits)
    return Tools(disk, ManualClock(), Entropy("repair"), limits, KINDS, **options)  # type: ignore[arg-type]


def agreed(_: Plan) -> bool:
    return True


def repaired(files: Files, **options: object) -> tuple[dict[int, bytes], Repaired | Plan, CrashDisk]:
    """Repair, open by the normal rules, and check what must hold after any repair; entries by number."""
    disk = disk_of(files)
    done = repair(DIRECTORY, tools(disk, **options), agreed)
    assert not disk.locks
    assert not survey(disk, DIRECTORY, RULES, deep=True).problems or isinstance(done, Plan)
    result, records = recovered(disk)
    seqs = [record.seq for record in records]
    assert seqs == sorted(set(seqs)), "order, and each number once"
    assert len(result.survey.pending) == len(
        [one for one in records if one.state is PENDING and one.seq > result.survey.replayed_seq]
    )
    if isinstance(done, Repaired):
        backed = {
            DIRECTORY / path.relative_to(done.backup): data
            for path, data in disk.everything().items()
            if done.backup in path.parents
        }
        assert backed == {path: data for path, data in files.items() if path.name != "lock"}, (
            "copied first, key included"
        )
        told = {seq for loss in done.plan.losses for seq in range(loss.first_seq, loss.last_seq + 1)}
        assert told.isdisjoint(seqs)
        assert (done.plan.kept_count, done.plan.last_seq) == (len(seqs), seqs[-1] if seqs else 0)
    return {record.seq: record.body for record in records}, done, disk


def kept_of(files: Files, **options: object) -> dict[int, bytes]:
    found = repaired(files, **options)[0]
    assert all(SEQS.get(body) == seq for seq, body in found.items()), f"altered: {found}"
    return found


def all_but(*seqs: int) -> dict[int, bytes]:
    return {seq: body for body, seq in SEQS.items() if seq not in seqs}


def test_the_table_has_one_row_for_every_finding_and_keeps_only_what_is_proven() -> None:
    assert set(TABLE) == set(Finding)
    assert {finding for finding, fate in TABLE.items() if fate is Fate.KEEP} == {Finding.PROVEN}
    assert {finding for finding, fate in TABLE.items() if fate is Fate.USE} == {Finding.MARK}


async def test_a_log_that_is_whole_or_merely_torn_is_left_alone() -> None:
    for files in (await written(clean=True), await written(clean=False)):
        for data in (files[FIRST], files[FIRST][:-3]):
            disk = disk_of({**files, FIRST: data})
            before = disk.everything()
            done = repair(DIRECTORY, tools(disk), agreed)
            if data == files[FIRST] or (files is not None and not isinstance(done, Repaired)):
                assert isinstance(done, Plan)
                assert not done.flaws
                assert {path: data for path, data in disk.everything().items() if path.name != "lock"} == before


@pytest.mark.parametrize("clean", [True, False])
async def test_a_flipped_bit_costs_at_most_the_entry_that_it_hit(clean: bool) -> None:
    files = await written(clean=clean)
    data = files[FIRST]
    ends = list(itertools.accumulate((len(frame) for frame in frames_of(data)), initial=SEGMENT_HEADER_BYTES))
    mended = 0
    for offset, flipped in itertools.islice(flips(data), 0, None, 7):
        found = kept_of({**files, FIRST: flipped})
        hit = sum(end <= offset for end in ends)
        if offset < SEGMENT_HEADER_BYTES:
            is_salt = 80 <= offset < 96
            assert found == ({} if is_salt else all_but()), offset
            continue
        assert found in (all_but(), all_but(hit)), offset
        mended += found == all_but() and hit <= len(BODIES)
        trailer = ends[hit] - 36 <= offset if hit < len(ends) else False
        assert not trailer or found == all_but() or (not clean and hit == len(BODIES)), offset
    assert mended > 30, "checksums and signatures are made anew"


@pytest.mark.parametrize("clean", [True, False])
async def test_a_cut_keeps_every_whole_entry_before_it(clean: bool) -> None:
    files = await written(clean=clean)
    data = files[FIRST]
    ends = list(itertools.accumulate((len(frame) for frame in frames_of(data)), initial=SEGMENT_HEADER_BYTES))
    for length in range(0, len(data), 5):
        whole = sum(end <= length for end in ends[1 : len(BODIES) + 1])
        expected = dict(itertools.islice(all_but().items(), whole))
        found, done, _ = repaired({**files, FIRST: data[:length]})
        # A frame that lacks no more than its checksum is proven by its signature all the same.
        assert expected.items() <= found.items() <= all_but().items(), length
        assert len(found) <= whole + 1, length
        if isinstance(done, Repaired) and clean:
            told = {seq for loss in done.plan.losses for seq in range(loss.first_seq, loss.last_seq + 1)}
            assert told == set(all_but()) - set(found), length


async def test_records_in_another_order_dropped_doubled_or_spliced_in() -> None:
    files = await written(clean=True)
    other = await written(clean=True, seed="another log")
    data, foreign = files[FIRST], frames_of(other[FIRST])
    frames = frames_of(data)
    own = range(len(frames))
    orders = [order for n in range(len(frames) + 1) for order in itertools.product(own, repeat=n)]
    for at in own:
        orders += [(*own[:at], -1, *own[at + 1 :]), (*own[:at], -1, *own[at:])]
    for order in orders:
        chosen = [frames[n] if n >= 0 else foreign[0] for n in order]
        found = kept_of({**files, FIRST: data[:SEGMENT_HEADER_BYTES] + b"".join(chosen)})
        # A frame is provable when the one that it follows is anywhere in the file, for its signature is.
        provable = {n + 1 for n in order if 0 <= n < len(BODIES) and (n == 0 or n - 1 in order)}
        # A frame of another log that says the same as ours is vouched for by our next one.
        assert set(found) == provable if -1 not in order else set(found) >= provable, order


@pytest.mark.parametrize("clean", [True, False])
async def test_what_somebody_without_the_key_wrote_is_never_kept(clean: bool) -> None:
    files = await written(clean=clean)
    data = files[FIRST]
    one, two, three, *rest = frames_of(data)

    def edited(frame: bytes, at: int, value: bytes) -> bytes:
        return with_right_checksums(data, frame[:at] + value + frame[at + len(value) :])

    attacks = {
        "the state": ([one, edited(two, 5, b"\x02"), three], all_but(2)),
        "another method": ([one, edited(two, 6, b"\x02"), three], all_but(2)),
        "another body": ([one, edited(two, len(two) - 37, b"?"), three], all_but(2)),
        "one dropped, the next renumbered": ([one, edited(three, 24, bytes([2, *bytes(7)]))], all_but(2, 3)),
        "one doubled and renumbered": ([one, edited(one, 24, bytes([2, *bytes(7)])), three], all_but(2, 3)),
        "the last one edited": ([one, two, edited(three, 60, b"?")], all_but(3)),
        "an entry made a cursor": ([one, two, edited(three, 4, b"\x02")], all_but(3)),
    }
    for what, (frames, expected) in attacks.items():
        found, done, disk = repaired({**files, FIRST: data[:SEGMENT_HEADER_BYTES] + b"".join([*frames, *rest])})
        assert found == expected, what
        assert isinstance(done, Repaired)
        assert done.copies, what
        assert all(disk.content(DIRECTORY / name) for name in done.copies)
        assert done.pending == len(expected), "the state of an entry is signed, too"


async def test_head_missing_damaged_old_or_of_another_log() -> None:
    files = await written(clean=True)
    for _, flipped in itertools.islice(flips(files[HEAD]), 0, None, 17):
        try:
            assert kept_of({**files, HEAD: flipped}) == all_but()
        except WalDamaged as error:
            assert "version" in str(error)
    assert kept_of({path: data for path, data in files.items() if path != HEAD}) == all_but()
    for length in range(0, len(files[HEAD]), 20):
        assert kept_of({**files, HEAD: files[HEAD][:length]}) == all_but()
    disk = disk_of(files)
    log = opened(disk=disk, entropy=Entropy("later"))
    await log.append(entry(b"four"))
    await log.close()
    found, done, _ = repaired({**disk.everything(), HEAD: files[HEAD]})
    assert found == {**all_but(), 4: b"four"}
    assert isinstance(done, Repaired)
    other = await written(clean=True, seed="another log")
    with pytest.raises(WalKeyMissing, match="without-missing-keys"):
        repair(DIRECTORY, tools(disk_of({**files, HEAD: other[HEAD]})), agreed)
    assert kept_of({**files, HEAD: other[HEAD]}, without_missing_keys=True) == all_but()
    assert kept_of({**files, FIRST: other[FIRST]}, without_missing_keys=True) == {}


async def test_without_its_key_nothing_is_changed() -> None:
    files = await written(clean=True)
    (key_path,) = (path for path in files if path.suffix == ".key")
    flipped = bytes([files[key_path][0] ^ 1]) + files[key_path][1:]
    cases: list[tuple[dict[Path, bytes], type[WalError]]] = [
        ({path: data for path, data in files.items() if path != key_path}, WalKeyMissing),
        ({**files, key_path: flipped}, WalKeyUnsafe),
    ]
    for left, error in cases:
        for forced in (False, True):
            disk = disk_of(left)
            with pytest.raises(error):
                repair(DIRECTORY, tools(disk, without_missing_keys=forced), agreed)
            assert {path: data for path, data in disk.everything().items() if path.name != "lock"} == left


@pytest.mark.parametrize("clean", [True, False])
async def test_segments_dropped_exchanged_cut_or_added(clean: bool) -> None:
    files = await written(clean=clean, limits=SMALL)
    names = sorted(path for path in files if path.name.startswith("segment-"))
    assert len(names) == 3
    for dropped in (set(c) for n in (1, 2, 3) for c in itertools.combinations(names, n)):
        left = {path: data for path, data in files.items() if path not in dropped}
        lost = [names.index(path) + 1 for path in dropped]
        assert kept_of(left, limits=SMALL) == all_but(*lost), dropped
    for order in itertools.permutations(names):
        moved = {**files, **{path: files[source] for path, source in zip(names, order, strict=True)}}
        assert kept_of(moved, limits=SMALL) == all_but(), order
    for path in names:
        assert kept_of({**files, DIRECTORY / segment_name(4): files[path]}, limits=SMALL) == all_but(), path
        for offset, flipped in itertools.islice(flips(files[path]), 0, None, 37):
            hit = names.index(path) + 1
            assert kept_of({**files, path: flipped}, limits=SMALL) in (all_but(), all_but(hit)), (path, offset)


async def test_the_repaired_log_goes_on_numbers_order_and_cursor_included() -> None:
    disk = CrashDisk()
    log = opened(disk=disk, limits=WalLimits(segment_bytes=700))
    for n in range(1, 21):
        await log.append(entry(b"%d" % n, EntryState.SYNCED if n % 7 == 0 else PENDING))
        if n == 6:
            await log.mark_replayed(5)
    await log.close()
    files = disk.everything()
    sixth = sorted(path for path in files if path.name.startswith("segment-"))[5]
    _, done, disk = repaired({path: data for path, data in files.items() if path != sixth}, limits=SMALL)
    assert isinstance(done, Repaired)
    (loss,) = done.plan.losses
    assert not loss.at_qdrant
    log = opened(disk=disk, limits=SMALL, entropy=Entropy("after"))
    found = await read_all(log)
    expected = [n for n in range(1, 21) if not loss.first_seq <= n <= loss.last_seq]
    assert [record.seq for record in found] == expected
    assert bodies(found) == [b"%d" % n for n in expected]
    assert bodies(await log.read_pending(100, 10**6)) == [b"%d" % n for n in expected if n > 5 and n % 7]
    assert await log.append(entry(b"21")) == 21
    await log.mark_replayed(loss.last_seq - 1)
    assert log.replayed_seq == loss.last_seq
    await log.close()
    assert not survey(disk, DIRECTORY, RULES, deep=True).problems
    # And once more, with other damage: the first gap is known and not told again.
    first = min(path for path in disk.everything() if path.parent == DIRECTORY and path.name.endswith(".wal"))
    data = disk.content(first)
    found2, again, _ = repaired({**_only_log(disk), first: data[:170] + b"?" + data[171:]}, limits=SMALL)
    assert isinstance(again, Repaired)
    assert [(each.first_seq, each.last_seq, each.at_qdrant) for each in again.plan.losses] == [(1, 1, True)]
    assert list(found2) == [*expected[1:], 21]


def _only_log(disk: CrashDisk) -> dict[Path, bytes]:
    return {path: data for path, data in disk.everything().items() if DIRECTORY in path.parents}


async def test_a_refused_entry_stays_known_under_its_number() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    for body in BODIES:
        await log.append(entry(body))
    (record, *_) = await log.read(2, 1, 10**6)
    await log.quarantine([Refused(record, 3, "wrong")])
    await log.mark_replayed(3)
    await log.close()
    files = _only_log(disk)
    data = files[FIRST]
    ends = list(itertools.accumulate((len(frame) for frame in frames_of(data)), initial=SEGMENT_HEADER_BYTES))
    cut = {**files, FIRST: data[: ends[1]]}
    found, done, disk = repaired(cut)
    assert found == all_but(2)
    assert isinstance(done, Repaired)
    assert done.pending == 0
    log = opened(disk=disk, entropy=Entropy("after"))
    assert await log.append(entry(b"new")) == 4, "a number in quarantine is not given again"
    await log.close()


async def test_a_cursor_beyond_what_is_left_hides_nothing_that_comes_later() -> None:
    files = await written(clean=True, limits=SMALL, replayed=3)
    left = {path: data for path, data in files.items() if not path.name.startswith("segment-")}
    found, done, disk = repaired(left, limits=SMALL)
    assert found == {}
    assert isinstance(done, Repaired)
    assert [(each.first_seq, each.last_seq, each.at_qdrant) for each in done.plan.losses] == [(1, 3, True)]
    log = opened(disk=disk, limits=SMALL, entropy=Entropy("after"))
    await log.append(entry(b"new"))
    assert log.pending_count == 1
    await log.close()
    assert survey(disk, DIRECTORY, RULES).pending.last_seq == 1


async def test_what_is_no_file_is_moved_out_of_the_way() -> None:
    files = {path: data for path, data in (await written(clean=True)).items() if path != HEAD}
    disk = disk_of(files)
    disk.make_directory(DIRECTORY / segment_name(7))
    done = repair(DIRECTORY, tools(disk), agreed)
    assert isinstance(done, Repaired)
    _, records = recovered(disk)
    assert {record.seq: record.body for record in records} == all_but()
    assert any(".corrupted." in name for name in disk.names(DIRECTORY))


async def test_a_flood_of_frames_in_strange_places_costs_no_more_than_a_limit() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    for number in range(700):
        await log.append(entry(b"%d" % number))
    await log.close()
    data = disk.content(FIRST)
    frames = frames_of(data)[:700]
    files = {**_only_log(disk), FIRST: data[:SEGMENT_HEADER_BYTES] + b"".join(reversed(frames))}
    tries = []
    decode = SegmentCodec.decode

    def counted(self: SegmentCodec, data: bytes, at: int, mac: bytes, rules: FrameRules) -> Frame | Flaw:
        tries.append(1)
        return decode(self, data, at, mac, rules)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentCodec, "decode", counted)
        patch.setattr(harvest, "_TRIES_MAX", 20_000)
        done = repair(DIRECTORY, tools(disk_of(files)), agreed)
    assert isinstance(done, Repaired)
    assert len(tries) < 60_000
    assert 0 < done.plan.kept_count < 700


async def test_what_the_settings_forbid_is_named_and_kept_aside() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    for body in (b"small", b"large" * 100, b"small again"):
        await log.append(entry(body))
    await log.close()
    limits = WalLimits(entry_bytes=400)
    disk = disk_of(_only_log(disk))
    done = repair(DIRECTORY, tools(disk, limits=limits), agreed)
    assert isinstance(done, Repaired)
    (aside,) = done.plan.asides
    assert "wal.entry_bytes" in aside.text
    log = opened(disk=disk, limits=limits, entropy=Entropy("after"))
    assert bodies(await read_all(log)) == [b"small", b"small again"]
    await log.close()


async def test_nothing_happens_without_consent_or_while_a_server_holds_the_log() -> None:
    files = {path: data for path, data in (await written(clean=True)).items() if path != HEAD}
    disk = disk_of(files)
    plan = repair(DIRECTORY, tools(disk), lambda _: False)
    assert isinstance(plan, Plan)
    assert plan.flaws == ("head at offset 0: the head is missing",)
    assert plan.kept_count == 3
    lock = disk.lock(DIRECTORY / "lock")
    with pytest.raises(WalLocked):
        repair(DIRECTORY, tools(disk), agreed)
    lock.release()
    assert {path: data for path, data in disk.everything().items() if path.name != "lock"} == files


@pytest.mark.parametrize("damage", ["hole", "head", "middle"])
async def test_a_power_cut_at_any_moment_of_a_repair(damage: str) -> None:
    """It leaves the old log with everything in it or the repaired one, and a second repair ends the same."""
    files = dict(await written(clean=True, limits=SMALL))
    second = DIRECTORY / segment_name(2)
    expected = all_but() if damage == "head" else all_but(2)
    if damage == "hole":
        del files[second]
    elif damage == "head":
        files[HEAD] = files[HEAD][:80] + b"?" + files[HEAD][81:]
    else:
        files[second] = files[second][:230] + b"?" + files[second][231:]
    disk = disk_of(files)
    photographs: list[tuple[str, CrashDisk]] = []

    def photograph(operation: str, path: Path) -> None:
        if operation in CHANGING:
            photographs.append((f"{operation} {path.name}", disk.photograph()))

    disk.on_call = photograph
    assert isinstance(repair(DIRECTORY, tools(disk, limits=SMALL), agreed), Repaired)
    outcomes = set()
    for number, (call, taken) in enumerate(photographs):
        for seed in (None, 1, 2):
            state = taken.after_power_cut(seed)
            name = f"{number} ({call}), cut {seed}"
            before = {path: state.content(path) for path in files if path in state.everything()}
            try:
                _, records = recovered(state)
                outcomes.add("repaired")
                assert {record.seq: record.body for record in records} == expected, name
                continue
            except WalDamaged:
                outcomes.add("old")
            assert before == files, f"{name}: neither the old log nor the repaired one"
            again = repair(DIRECTORY, tools(state, limits=SMALL), agreed)
            assert isinstance(again, Repaired), name
            assert not survey(state, DIRECTORY, RULES, deep=True).problems, name
            _, records = recovered(state)
            assert {record.seq: record.body for record in records} == expected, name
    assert outcomes == {"old", "repaired"}
    assert len(photographs) > 60


async def test_every_call_on_the_disk_fails_once() -> None:
    files = {path: data for path, data in (await written(clean=True, limits=SMALL)).items() if path != HEAD}
    failures, at = 0, 0
    while True:
        disk = disk_of(files)
        calls = itertools.count()

        def fail(operation: str, path: Path, calls: itertools.count[int] = calls, at: int = at) -> None:
            if next(calls) == at:
                raise OSError(28, "No space left on device")

        disk.on_call = fail
        try:
            repair(DIRECTORY, tools(disk, limits=SMALL), agreed)
        except UnderstudyError as error:
            failures += 1
            assert "repair" in str(error), at
        else:
            break
        finally:
            disk.on_call = None
        disk.locks.clear()
        repair(DIRECTORY, tools(disk, limits=SMALL), agreed)
        _, records = recovered(disk)
        assert {record.seq: record.body for record in records} == all_but(), at
        at += 1
    assert failures > 60


async def test_a_log_with_a_later_version_is_not_repaired() -> None:
    files = await written(clean=True)
    head = bytearray(files[HEAD])
    head[8], head[10] = 2, 200
    disk = disk_of({**files, HEAD: bytes(head)})
    with pytest.raises(WalDamaged, match="version of Understudy"):
        repair(DIRECTORY, tools(disk), agreed)


async def test_trace_principal_time_and_state_are_kept_as_they_were() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    await log.append(entry(b"with everything", points=7))
    await log.append(NewRecord(2, EntryState.SYNCED, b"bare"))
    before = await read_all(log)
    await log.close()
    files = {path: data for path, data in disk.everything().items() if path != HEAD}
    disk = disk_of(files)
    repair(DIRECTORY, tools(disk), agreed)
    _, records = recovered(disk)
    assert records == before


class _OneKey(Entropy):
    """The same key whatever the seed, and another log id."""

    def __call__(self, length: int) -> bytes:
        drawn = super().__call__(length)
        return b"k" * length if length == KEY_BYTES else drawn


async def test_a_segment_of_another_log_with_the_same_key_is_not_ours() -> None:
    ours = await written(clean=True, entropy=_OneKey("ours"))
    other = await written(clean=True, entropy=_OneKey("other"))
    assert {path for path in ours if path.suffix == ".key"} == {path for path in other if path.suffix == ".key"}
    found, done, _ = repaired({**ours, FIRST: other[FIRST]})
    assert found == {}
    assert isinstance(done, Repaired)
    assert [(each.start, each.end, each.finding) for each in done.plan.asides] == [
        (0, len(other[FIRST]), Finding.UNKNOWN)
    ]


async def test_the_log_id_of_a_damaged_header_holds_once_a_frame_proves_it() -> None:
    files = await written(clean=True, limits=SMALL, entropy=_OneKey("ours"))
    other = await written(clean=True, limits=SMALL, entropy=_OneKey("other"))
    second = DIRECTORY / segment_name(2)
    left = {path: data for path, data in files.items() if path.suffix == ".key"}
    for path, source in ((FIRST, files), (second, other)):
        # The first sequence number: nothing of these headers can be proven.
        left[path] = source[path][:48] + b"?" + source[path][49:]
    found, done, _ = repaired(left, limits=SMALL)
    assert found == all_but(2, 3), "the second segment is of another log"
    assert isinstance(done, Repaired)
    assert done.plan.log_id == files[FIRST][24:40]


async def test_a_segment_whose_key_is_not_here_is_no_damage() -> None:
    files = await written(clean=True)
    other = await written(clean=True, seed="another log")
    disk = disk_of({**files, FIRST: other[FIRST]})
    with pytest.raises(
        WalKeyMissing, match=f"{FIRST.name} was signed with key {other[FIRST][16:24].hex()}.*missing-keys"
    ):
        repair(DIRECTORY, tools(disk), agreed)
    left = {path: data for path, data in disk.everything().items() if path.name != "lock"}
    assert left == {**files, FIRST: other[FIRST]}


async def test_a_key_that_goes_while_a_repair_looks_is_not_given_up() -> None:
    files = await written(clean=True)
    (key_path,) = (path for path in files if path.suffix == ".key")
    at = SEGMENT_HEADER_BYTES + 70
    files[FIRST] = files[FIRST][:at] + b"?" + files[FIRST][at + 1 :]
    disk = disk_of(files)

    def take_away(operation: str, path: Path) -> None:
        if operation == "read" and path == HEAD and key_path in disk.everything():
            disk.drop(key_path)

    disk.on_call = take_away
    with pytest.raises(WalKeyMissing, match="no key"):
        repair(DIRECTORY, tools(disk), agreed)
    left = {path: data for path, data in disk.everything().items() if path.name != "lock"}
    assert left == {path: data for path, data in files.items() if path != key_path}


async def test_a_rewrite_that_the_disk_garbles_is_noticed_before_the_old_segments_go() -> None:
    files = {path: data for path, data in (await written(clean=True)).items() if path != HEAD}
    disk = disk_of(files)
    new = segment_name(2) + TEMP_SUFFIX

    def garble(operation: str, path: Path) -> None:
        if operation == "rename" and path.name in (new, segment_name(2)):
            data = disk.content(DIRECTORY / new)
            disk.put(DIRECTORY / new, data[:-20] + b"?" + data[-19:])

    disk.on_call = garble
    with pytest.raises(WalError, match="the repaired log does not verify") as caught:
        repair(DIRECTORY, tools(disk), agreed)
    disk.on_call = None
    assert "before-repair" in str(caught.value)
    assert disk.content(FIRST) == files[FIRST]
    assert not disk.locks


async def test_what_an_interrupted_write_left_behind_is_removed() -> None:
    files = {path: data for path, data in (await written(clean=True)).items() if path != HEAD}
    half = [DIRECTORY / f"{segment_name(9)}{TEMP_SUFFIX}", DIRECTORY / "quarantine" / f"1{TEMP_SUFFIX}"]
    disk = disk_of({**files, **dict.fromkeys(half, b"half")})
    assert isinstance(repair(DIRECTORY, tools(disk), agreed), Repaired)
    assert not [path for path in disk.everything() if path.name.endswith(TEMP_SUFFIX)]
    assert {record.seq: record.body for record in recovered(disk)[1]} == all_but()


async def test_only_what_the_quarantine_proves_and_the_settings_allow_fills_a_gap() -> None:
    disk = CrashDisk()
    log = opened(disk=disk)
    texts = [b"first", b"allowed", b"large" * 100, b"damaged"]
    for body in texts:
        await log.append(entry(body))
    for record in (await log.read(1, 10, 10**6))[:3]:
        await log.quarantine([Refused(record, 3, "wrong")])
    await log.mark_replayed(4)
    await log.close()
    files = _only_log(disk)
    folder = DIRECTORY / "quarantine"
    *_, last = sorted(path for path in files if path.parent == folder)
    end = SEGMENT_HEADER_BYTES + len(frames_of(files[FIRST])[0])
    limits = WalLimits(entry_bytes=400)
    disk = disk_of({**files, FIRST: files[FIRST][:end], last: files[last][:-1] + b"?"})
    disk.make_directory(folder / "00000000000000000005.entry")
    done = repair(DIRECTORY, tools(disk, limits=limits), agreed)
    assert isinstance(done, Repaired)
    assert {record.seq: record.body for record in recovered(disk)[1]} == {1: b"first", 2: b"allowed"}
    assert [(each.first_seq, each.last_seq) for each in done.plan.losses] == [(3, 4)]


class WellKnown(Entropy):
    """A key that anybody can guess, everything else as usual."""

    def __call__(self, length: int) -> bytes:
        made = super().__call__(length)
        return bytes(KEY_BYTES) if length == KEY_BYTES else made


@pytest.mark.parametrize("forged_names", [(HEAD,), (FIRST,), (HEAD, FIRST)])
async def test_what_is_signed_with_a_guessable_key_is_not_believed(forged_names: tuple[Path, ...]) -> None:
    forged = await written(clean=True, entropy=WellKnown("attacker"))
    files = {**await written(clean=True), **{path: forged[path] for path in forged_names}}
    with pytest.raises(WalKeyMissing, match="was signed with key"):
        survey(disk_of(files), DIRECTORY, RULES, deep=True)
    disk = disk_of(files)
    with pytest.raises(WalKeyMissing, match="was signed with key"):
        repair(DIRECTORY, tools(disk), agreed)
    assert disk.everything() == files
