"""Who is to blame when Qdrant fails inside."""

from __future__ import annotations

from server.replay.suspicion import Suspicion

TRIES, REST_SECONDS = 3, 300.0


def tries_until_blamed(suspicion: Suspicion, seq: int, pause_seconds: float, now: float = 1000.0) -> tuple[int, float]:
    """Qdrant fails inside again and again; the try at which the entry is blamed, and the seconds it took."""
    for number in range(1, 10_000):
        if suspicion.would_blame(seq, now):
            suspicion.blamed()
            suspicion.passed()
            return number, (number - 1) * pause_seconds
        suspicion.failed(seq, now, inside=True)
        now += pause_seconds
    raise AssertionError("never")


def test_some_tries_and_then_the_entry() -> None:
    assert tries_until_blamed(Suspicion(TRIES, REST_SECONDS), 1, 1.0) == (3, 2.0)
    assert tries_until_blamed(Suspicion(1, REST_SECONDS), 1, 1.0) == (1, 0.0)


def test_the_next_one_only_after_rests() -> None:
    suspicion = Suspicion(TRIES, REST_SECONDS)
    tries_until_blamed(suspicion, 1, 1.0)
    assert tries_until_blamed(suspicion, 2, 5.0) == (181, 900.0)
    assert tries_until_blamed(suspicion, 3, REST_SECONDS, 5000.0) == (4, 900.0)


def test_the_next_one_at_once_when_something_was_done_in_between() -> None:
    suspicion = Suspicion(TRIES, REST_SECONDS)
    tries_until_blamed(suspicion, 1, 1.0)
    suspicion.done()
    assert tries_until_blamed(suspicion, 2, 1.0) == (3, 2.0)


def test_any_other_failure_begins_anew() -> None:
    suspicion = Suspicion(TRIES, REST_SECONDS)
    suspicion.failed(1, 0.0, inside=True)
    suspicion.failed(1, 1.0, inside=True)
    suspicion.failed(1, 2.0, inside=False)
    assert not suspicion.would_blame(1, 3.0)
    assert tries_until_blamed(suspicion, 1, 1.0) == (3, 2.0)
    for second in range(0, 2000, 400):
        suspicion.failed(2, float(second), inside=True)
    suspicion.failed(2, 2000.0, inside=False)
    assert not suspicion.would_blame(2, 2400.0)


def test_what_failed_before_an_entry_is_not_its_fault() -> None:
    suspicion = Suspicion(TRIES, REST_SECONDS)
    suspicion.failed(0, 0.0, inside=True)
    suspicion.failed(0, 1.0, inside=True)
    assert not suspicion.would_blame(1, 2.0)


def test_a_long_absence_is_one_rest() -> None:
    suspicion = Suspicion(TRIES, REST_SECONDS)
    tries_until_blamed(suspicion, 1, 1.0)
    suspicion.failed(2, 0.0, inside=True)
    suspicion.failed(2, 86_400.0, inside=True)
    suspicion.failed(2, 86_401.0, inside=True)
    assert not suspicion.would_blame(2, 86_402.0)
