"""The detector: every path of the hysteresis, on a clock that is only a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.health.detector import Detector, Verdict

NO_LAG = 0.0
MUCH_LAG = 5.0


def good(detector: Detector, now: float, lag: float = NO_LAG) -> Verdict | None:
    return detector.probe_result(True, now, lag_seconds=lag, detail="serving")


def bad(detector: Detector, now: float, lag: float = NO_LAG) -> Verdict | None:
    return detector.probe_result(False, now, lag_seconds=lag, detail="no answer in time")


def up(now: float = 0.0, **settings: float) -> Detector:
    detector = Detector(**settings)  # type: ignore[arg-type]
    assert good(detector, now) == Verdict(True, now, "serving")
    return detector


def down(now: float = 0.0, **settings: float) -> Detector:
    detector = Detector(**settings)  # type: ignore[arg-type]
    assert detector.transport_failed(now, "refused") == Verdict(False, now, "refused")
    return detector


# --- the first observation -------------------------------------------------------------------------------------------


def test_there_is_no_verdict_before_the_first_observation() -> None:
    assert Detector().verdict is None
    assert not Detector().is_rising


def test_the_first_good_probe_means_up_at_once() -> None:
    assert good(Detector(rise=5, dwell_seconds=100), 7.0) == Verdict(True, 7.0, "serving")


def test_the_first_failed_probe_means_down_at_once() -> None:
    assert bad(Detector(fall=5), 7.0) == Verdict(False, 7.0, "no answer in time")


def test_a_first_failed_probe_while_we_ran_late_decides_nothing() -> None:
    detector = Detector()
    assert bad(detector, 0.0, MUCH_LAG) is None
    assert detector.verdict is None
    assert good(detector, 1.0) == Verdict(True, 1.0, "serving")


# --- falling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fall", [1, 2, 3, 7])
def test_down_at_exactly_the_nth_failed_probe_in_a_row(fall: int) -> None:
    detector = up(fall=fall)
    for number in range(1, fall):
        assert bad(detector, float(number)) is None
        assert detector.verdict is not None
        assert detector.verdict.up
    assert bad(detector, 50.0) == Verdict(False, 50.0, "no answer in time")


def test_one_good_probe_starts_the_count_anew() -> None:
    detector = up(fall=3)
    for _ in range(10):
        assert bad(detector, 1.0) is None
        assert bad(detector, 2.0) is None
        assert good(detector, 3.0) is None
    assert detector.verdict == Verdict(True, 0.0, "serving")


def test_a_refused_or_reset_connection_means_down_at_once() -> None:
    detector = up(fall=100)
    assert detector.transport_failed(1.0, "reset") == Verdict(False, 1.0, "reset")
    assert detector.transport_failed(2.0, "refused") is None
    assert detector.verdict == Verdict(False, 1.0, "reset")


def test_failures_while_we_ran_late_count_for_nothing() -> None:
    detector = up(fall=2, lag_tolerance_seconds=0.5)
    for _ in range(100):
        assert bad(detector, 1.0, 0.51) is None
    assert bad(detector, 2.0, 0.5) is None  # at the tolerance it counts: the first
    assert bad(detector, 3.0, MUCH_LAG) is None  # between two that count
    assert bad(detector, 4.0, 0.5) == Verdict(False, 4.0, "no answer in time")


def test_a_good_probe_counts_however_late_we_ran() -> None:
    detector = down(rise=1, dwell_seconds=0)
    assert good(detector, 1.0, MUCH_LAG) == Verdict(True, 1.0, "serving")


def test_no_dwell_on_the_way_down() -> None:
    detector = down(rise=1, dwell_seconds=10)
    assert good(detector, 10.0) is not None
    assert detector.transport_failed(10.0, "reset") == Verdict(False, 10.0, "reset")


# --- rising ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rise", [1, 2, 5])
def test_up_at_exactly_the_nth_good_probe_in_a_row(rise: int) -> None:
    detector = down(rise=rise, dwell_seconds=0)
    for number in range(1, rise):
        assert good(detector, float(number)) is None
        assert detector.is_rising
    assert good(detector, 50.0) == Verdict(True, 50.0, "serving")
    assert not detector.is_rising


@pytest.mark.parametrize("interruption", ["probe", "transport"])
def test_a_failure_on_the_way_up_starts_the_count_anew(interruption: str) -> None:
    detector = down(rise=2, dwell_seconds=0)
    assert good(detector, 1.0) is None
    assert (bad(detector, 2.0) if interruption == "probe" else detector.transport_failed(2.0, "reset")) is None
    assert not detector.is_rising
    assert good(detector, 3.0) is None
    assert good(detector, 4.0) == Verdict(True, 4.0, "serving")


def test_a_failure_while_we_ran_late_does_not_interrupt_the_way_up() -> None:
    detector = down(rise=2, dwell_seconds=0)
    good(detector, 1.0)
    assert bad(detector, 2.0, MUCH_LAG) is None
    assert good(detector, 3.0) == Verdict(True, 3.0, "serving")


def test_dwell_keeps_it_down_and_the_next_good_probe_lifts_it() -> None:
    detector = down(now=10.0, rise=2, dwell_seconds=5)
    for now in (11.0, 12.0, 14.9):
        assert good(detector, now) is None
        assert detector.is_rising
    assert good(detector, 15.0) == Verdict(True, 15.0, "serving")


@pytest.mark.parametrize("seconds_up", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("failure", ["probe", "transport"])
def test_what_flaps_once_a_second_stays_down(seconds_up: float, failure: str) -> None:
    detector = down(now=0.9, rise=2, dwell_seconds=1.0)
    for second in range(1, 61):
        for at in (0.0, seconds_up / 2, seconds_up * 0.99):
            assert good(detector, second + at) is None
        gone = second + seconds_up
        assert (bad(detector, gone) if failure == "probe" else detector.transport_failed(gone, "reset")) is None
    assert good(detector, gone + 0.5) is None
    assert good(detector, gone + 1.0) == Verdict(True, gone + 1.0, "serving")


# --- over the whole domain -------------------------------------------------------------------------------------------


@dataclass
class Model:
    """The rules once more, as plainly as possible: it keeps the whole history and counts in it."""

    fall: int
    rise: int
    dwell: float
    up: bool | None = None
    since: float = 0.0
    failed: float = -math.inf
    run: str = ""  # since the last change: g good, b failed, t transport; discounted ones are not written down

    def see(self, what: str, now: float) -> bool:
        self.run += what
        if what in "bt":
            self.failed = now
        if self.up is None:
            after = what == "g"
        elif self.up:
            after = not (self.run.endswith("t") or self.run.endswith("b" * self.fall))
        else:
            after = self.run.endswith("g" * self.rise) and now - self.failed >= self.dwell
        if after is self.up:
            return False
        self.up, self.since, self.run = after, now, ""
        return True


OBSERVATIONS = ("g", "b", "t", "late")


def agree(fall: int, rise: int, dwell: float, observations: list[tuple[str, float]]) -> None:
    detector, model, now = Detector(fall=fall, rise=rise, dwell_seconds=dwell), Model(fall, rise, dwell), 100.0
    for what, pause in observations:
        now += pause
        if what == "late":
            before = detector.verdict
            assert bad(detector, now, MUCH_LAG) is None
            assert detector.verdict is before
            continue
        match what:
            case "g":
                verdict = good(detector, now)
            case "b":
                verdict = bad(detector, now)
            case _:
                verdict = detector.transport_failed(now, "reset")
        changed = model.see(what, now)
        assert (verdict is not None) is changed
        assert detector.verdict is not None
        assert (detector.verdict.up, detector.verdict.since) == (model.up, model.since)


@pytest.mark.parametrize("fall", [1, 2, 3])
@pytest.mark.parametrize("rise", [1, 2])
@pytest.mark.parametrize("dwell", [0.0, 2.5])
def test_every_sequence_of_six_observations(fall: int, rise: int, dwell: float) -> None:
    for sequence in product(OBSERVATIONS, repeat=6):
        agree(fall, rise, dwell, [(what, 1.0) for what in sequence])


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.floats(0, 20),
    st.lists(st.tuples(st.sampled_from(OBSERVATIONS), st.floats(0, 10)), max_size=60),
)
def test_any_sequence_at_any_pace(fall: int, rise: int, dwell: float, observations: list[tuple[str, float]]) -> None:
    agree(fall, rise, dwell, observations)


@pytest.mark.parametrize(
    "settings", [{"fall": 0}, {"rise": 0}, {"dwell_seconds": -1.0}, {"lag_tolerance_seconds": -0.1}]
)
def test_settings_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needed"):
        Detector(**settings)  # type: ignore[arg-type]
