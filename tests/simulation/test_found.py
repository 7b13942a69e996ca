"""Runs that broke a promise once, as they were made short: explicit, for seeds mean other runs when plans change."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.plan import IDS, OTHERS_WRITE, Fault, Operation, Plan
from tests.simulation.world import Result, run

_SETTINGS = {
    "segment_bytes": 3000,
    "cache_bytes": 1 << 20,
    "head_bytes": 1500,
    "page_entries": 256,
    "merge_points": 500,
    "page_points": 1,
    "apply_batch_entries": 4,
    "mirror_queue_entries": 10_000,
    "queue_entries": 4096,
}


def again(seed: int, initial: int, operations: list[Operation], faults: list[Fault]) -> Result:
    return run(Plan(seed, 60.0, initial, _SETTINGS, tuple(operations), tuple(faults), trace=True))


def test_a_doubt_outlasts_the_copy_under_way() -> None:
    """Two online writes miss the log; the copy that the first one asked for is past the point of the second."""
    operations = [
        Operation(0, 3, 24.785, "set", (2,)),
        Operation(1, 0, 25.721, "upsert", (1, 2)),
        Operation(2, 2, 26.061, "upsert", (1, 2)),
        Operation(3, 3, 26.894, "upsert", (3,)),
        Operation(4, 1, 27.496, "get", (1, 2, 3), deadline=30.0),
    ]
    faults = [Fault(0, 25.014, "a sync fails", 2.025, 1), Fault(1, 27.408, "qdrant is killed", 0.765, 2)]
    # How long each step takes differs from seed to seed; some of them hit the moment.
    for seed in range(20):
        assert not again(seed, 6, operations, faults).violations


def test_nobody_reads_the_old_value_after_somebody_read_the_new_one() -> None:
    """Qdrant has done a write and shows it; its answer is lost, and so is that of a read, which the replica answers."""
    operations = [
        Operation(0, 0, 10.5, "upsert", (1,), deadline=30.0),
        Operation(1, 2, 10.8, "scroll", ()),
        Operation(2, 2, 11.1, "scroll", ()),
        Operation(3, 1, 11.4, "get", (1,)),
        Operation(4, 3, 11.5, "get", (1,)),
        Operation(5, 3, 11.6, "get", (1,)),
    ]
    answers_lost = [Fault(0, 10.2, "answers are lost", 10.1, 1)]
    killed = [*answers_lost, Fault(1, 12.0, "qdrant is killed", 5.0, 1)]
    stale = 0
    for seed in range(40):
        for faults in (answers_lost, killed):
            result = again(seed, 0, operations, faults)
            assert not result.violations
            stale += result.counts.get("get no answer local, stale", 0)
    assert stale > 0


def test_a_full_disk_is_no_error_while_qdrant_is_up() -> None:
    operations = [Operation(number, 0, 2.0 + 0.2 * number, "upsert", (1,)) for number in range(10)]
    result = again(1, 0, operations, [Fault(0, 1.5, "the disk is full", 10.0, 1)])
    assert not result.violations
    assert result.counts["upsert ok remote"] == 10


def test_the_same_run_without_its_faults_is_calm() -> None:
    operations = [Operation(number, number % 4, 1.0 + number, "upsert", (1, 2)) for number in range(8)]
    result = again(1, 3, operations, [])
    assert not result.violations
    assert result.counts == {
        "upsert ok remote": 8,
        "calls made": 8,
        "points judged": len(IDS),
        # Eight upserts of two points, and the last look at each.
        "calls judged": 16 + len(IDS),
    }
    other = run(replace(result.plan, seed=2))
    assert other.digest != result.digest


def test_a_slow_replica_answers_with_what_qdrant_has_acknowledged() -> None:
    """It lacks the point when Qdrant goes away; the next calls are about that very point."""
    operations = [
        Operation(0, 0, 10.0, "upsert", (1,)),
        Operation(1, 1, 10.15, "set", (1,)),
        Operation(2, 2, 10.15, "wipe", ()),
        Operation(3, 3, 10.3, "get", (1,)),
        Operation(4, 3, 12.5, "scroll", ()),
    ]
    faults = [Fault(0, 9.0, "the replica is slow", 8.0, 5), Fault(1, 10.1, "qdrant is killed", 6.0, 2)]
    for seed in range(20):
        assert not again(seed, 0, operations, faults).violations


def test_a_stop_beside_a_write_of_unknown_outcome_leaves_a_doubt() -> None:
    """Qdrant hangs for longer than a stop waits, and does the write when it wakes: nobody has logged it."""
    operations = [Operation(0, 1, 8.4, "set", (5,), deadline=30.0)]
    faults = [Fault(0, 8.0, "qdrant hangs", 16.0, 1), Fault(1, 9.7, "the proxy is stopped", 2.0, 1)]
    for seed in range(10):
        result = again(seed, 6, operations, faults)
        assert not result.violations
        assert result.counts["set no answer "] == 1


def test_a_page_that_was_long_on_its_way_overwrites_nothing() -> None:
    """After a kill everything is copied again, over a slow network, while clients write."""
    operations = [Operation(0, 0, 2.0, "upsert", (1,))]
    operations += [Operation(each, each % 4, 8.0 - 0.5 * each, "upsert", (each,)) for each in range(1, 7)]
    faults = [Fault(0, 3.0, "the proxy is killed", 0.5, 1), Fault(1, 3.5, "the network is slow", 12.0, 1)]
    for seed in range(30):
        assert not again(seed, 6, operations, faults).violations


def test_a_drain_that_is_cut_short_is_begun_again() -> None:
    """Points get a payload and are deleted: sent again from the start, the payload would find no point."""
    operations = [
        Operation(number, 0, 2.5 + 0.02 * number, ("set", "delete")[number % 2], (number // 2 + 1,))
        for number in range(12)
    ]
    for seed in range(30):
        faults = [
            Fault(0, 2.0, "qdrant is killed", 3.0, 1),
            Fault(1, 5.0, "qdrant is slow", 8.0, 0),
            Fault(2, 6.2 + 0.1 * seed, "the proxy is killed", 0.5, seed),
        ]
        assert not again(seed, 6, operations, faults).violations


def test_a_drain_ends_although_clients_keep_writing_to_a_slow_disk() -> None:
    operations = [
        Operation(each, each % 4, 2.5 + 0.1 * each, "get" if each % 5 == 4 else "upsert", (each % 3 + 1,))
        for each in range(70)
    ]
    faults = [Fault(0, 2.0, "qdrant is killed", 3.0, 1), Fault(1, 4.5, "the disk is slow", 6.0, 1)]
    for seed in range(15):
        assert not again(seed, 3, operations, faults).violations


def test_a_qdrant_that_says_not_now_is_asked_again() -> None:
    operations = [Operation(each, each % 4, 2.5 + 0.1 * each, "upsert", (each % 3 + 1,)) for each in range(10)]
    for chance in range(12):
        # Whatever it is that Qdrant says: what is refused for good is told by its status.
        faults = [Fault(0, 2.0, "qdrant is killed", 3.0, 1), Fault(1, 4.9, "qdrant says not now", 4.0, chance)]
        assert not again(chance, 3, operations, faults).violations


def test_what_is_cut_short_by_a_reset_is_sent_again() -> None:
    operations = [Operation(each, each % 4, 2.5 + 0.1 * each, "upsert", (each % 6 + 1,)) for each in range(12)]
    for seed in range(20):
        faults = [Fault(0, 2.0, "qdrant is killed", 3.0, 1), Fault(1, 5.0, "qdrant is slow", 8.0, 0)]
        faults += [Fault(2, 6.2 + 0.15 * seed, "connections are reset", 0.0, 1)]
        faults += [Fault(3, 6.3 + 0.15 * seed, "the proxy is killed", 0.5, 1)] * (seed % 2)
        assert not again(seed, 3, operations, faults).violations


def test_a_minute_of_flapping_is_one_outage() -> None:
    operations = [Operation(each, each % 4, 5.2 + 0.6 * each, "upsert", (each % 6 + 1,)) for each in range(90)]
    for seed in range(12):
        flaps = Fault(0, 5.0, "qdrant flaps", 60.0, seed)
        result = run(Plan(seed, 90.0, 3, _SETTINGS, tuple(operations), (flaps,), trace=True))
        assert not result.violations
        flapping = [line for line in result.trace if 5.0 <= float(line.split()[0]) <= 65.0]
        changes = [line for line in flapping if "before=" in line and "after=" in line]
        assert len(changes) == 1
        assert "after=LOCAL" in changes[0]


def test_what_others_write_between_a_look_and_the_first_write_is_seen() -> None:
    """The replica is slow to judge; Qdrant goes away before anything is sent, and others change what was looked at."""
    operations = (
        Operation(0, 0, 23.412, "delete", (1,)),
        Operation(1, 2, 24.972, "upsert", (3,)),
        Operation(2, 3, 25.548, "upsert", (2,)),
        Operation(3, 3, 27.502, "set", (3,)),
        Operation(4, 2, 30.281, "set", (1,)),
        Operation(5, 2, 38.925, "delete", (3,)),
    )
    faults = (
        Fault(0, 10.288, "qdrant is cut off", 23.098, 1),
        # Its calls take seconds.
        Fault(1, 34.876, "the replica is slow", 6.8, 184861850),
        Fault(2, 39.677, "qdrant is cut off", 7.827, 3),
        # One wave, of a write to the third point.
        Fault(3, 44.466, OTHERS_WRITE, 0.0, 304520017),
    )
    settings = {**_SETTINGS, "conflicts": "local_wins", "conflict_points": 500}
    overwritten = 0
    for seed in range(20):
        result = run(Plan(seed, 65.0, 6, settings, operations, faults, is_foreign=True))
        assert not result.violations
        overwritten += result.counts.get("overwritten", 0)
    assert overwritten > 0
