"""Subscribers that subscribe, unsubscribe, raise, block or fire inside a callback: no deadlock, no lost event."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from server.health.callbacks import Subscribers, Subscription

PATIENCE_SECONDS = 30.0


class Heard:
    """What one subscriber was told; waits instead of sleeping."""

    def __init__(self, *, then: Callable[[int], None] = lambda event: None) -> None:
        self._events: queue.Queue[int] = queue.Queue()
        self._then = then

    def __call__(self, event: int) -> None:
        self._events.put(event)
        self._then(event)

    def next(self) -> int:
        return self._events.get(timeout=PATIENCE_SECONDS)

    def take(self, count: int) -> list[int]:
        return [self.next() for _ in range(count)]

    @property
    def is_silent(self) -> bool:
        return self._events.empty()


class Gate:
    """Blocks a callback until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._opened = threading.Event()

    def block(self, _event: int = 0) -> None:
        self.entered.set()
        assert self._opened.wait(PATIENCE_SECONDS)

    def open(self) -> None:
        self._opened.set()

    def wait_entered(self) -> None:
        assert self.entered.wait(PATIENCE_SECONDS)


def test_every_subscriber_hears_every_event_in_order() -> None:
    subscribers: Subscribers[int] = Subscribers()
    everyone = [Heard() for _ in range(5)]
    for heard in everyone:
        subscribers.subscribe(heard)
    for event in range(200):
        subscribers.fire(event)
    for heard in everyone:
        assert heard.take(200) == list(range(200))


def test_fire_with_nobody_there() -> None:
    Subscribers[int]().fire(1)


def test_a_subscriber_hears_nothing_of_before() -> None:
    subscribers: Subscribers[int] = Subscribers()
    subscribers.fire(1)
    heard = Heard()
    subscribers.subscribe(heard)
    subscribers.fire(2)
    assert heard.next() == 2
    assert heard.is_silent


def test_a_blocked_subscriber_delays_neither_fire_nor_the_others() -> None:
    subscribers: Subscribers[int] = Subscribers()
    gate = Gate()
    blocked, other = Heard(then=gate.block), Heard()
    subscribers.subscribe(blocked)
    subscribers.subscribe(other)
    for event in range(50):
        subscribers.fire(event)  # returns although the first callback never does
    assert other.take(50) == list(range(50))
    gate.wait_entered()
    assert blocked.next() == 0
    assert blocked.is_silent
    gate.open()
    assert blocked.take(49) == list(range(1, 50))


def test_a_subscriber_that_raises_hears_the_next_event(caplog: pytest.LogCaptureFixture) -> None:
    subscribers: Subscribers[int] = Subscribers()

    def fail(event: int) -> None:
        raise SystemExit if event == 1 else RuntimeError("told to fail")

    failing, other = Heard(then=fail), Heard()
    subscribers.subscribe(failing)
    subscribers.subscribe(other)
    for event in range(3):
        subscribers.fire(event)
    assert failing.take(3) == [0, 1, 2]
    assert other.take(3) == [0, 1, 2]
    subscribers.fire(3)
    assert failing.next() == 3
    assert "a subscriber failed" in caplog.text


def test_subscribing_inside_a_callback() -> None:
    subscribers: Subscribers[int] = Subscribers()
    late = Heard()
    subscribed = threading.Event()

    def subscribe_another(event: int) -> None:
        if event == 0:
            subscribers.subscribe(late)
            subscribed.set()

    first = Heard(then=subscribe_another)
    subscribers.subscribe(first)
    subscribers.fire(0)
    assert subscribed.wait(PATIENCE_SECONDS)
    subscribers.fire(1)
    assert first.take(2) == [0, 1]
    assert late.next() == 1
    assert late.is_silent


def test_cancelling_oneself_inside_a_callback() -> None:
    subscribers: Subscribers[int] = Subscribers()
    subscriptions: list[Subscription[int]] = []
    cancelled = threading.Event()

    def leave(_event: int) -> None:
        subscriptions[0].cancel()
        cancelled.set()

    leaving, other = Heard(then=leave), Heard()
    subscriptions.append(subscribers.subscribe(leaving))
    subscribers.subscribe(other)
    subscribers.fire(0)
    assert cancelled.wait(PATIENCE_SECONDS)
    subscribers.fire(1)
    assert other.take(2) == [0, 1]
    assert leaving.next() == 0
    assert leaving.is_silent


def test_cancelling_another_that_blocks_does_not_wait_for_it() -> None:
    subscribers: Subscribers[int] = Subscribers()
    gate = Gate()
    blocked = Heard(then=gate.block)
    subscription = subscribers.subscribe(blocked)
    killer = Heard(then=lambda _event: subscription.cancel())
    subscribers.fire(0)
    gate.wait_entered()
    subscribers.fire(1)  # queued behind the blocked one
    subscribers.subscribe(killer)
    subscribers.fire(2)
    assert killer.next() == 2
    subscribers.fire(3)
    assert killer.next() == 3  # so the cancel of event 2 has returned
    gate.open()
    assert blocked.next() == 0
    # What was queued for it is gone with it; a fresh subscription proves that delivery goes on.
    after = Heard()
    subscribers.subscribe(after)
    subscribers.fire(4)
    assert after.next() == 4
    assert blocked.is_silent


def test_cancel_twice_and_of_one_callback_that_is_subscribed_twice() -> None:
    subscribers: Subscribers[int] = Subscribers()
    heard = Heard()
    once, twice = subscribers.subscribe(heard), subscribers.subscribe(heard)
    subscribers.fire(1)
    assert heard.take(2) == [1, 1]
    once.cancel()
    once.cancel()
    subscribers.fire(2)
    assert heard.next() == 2
    twice.cancel()
    subscribers.fire(3)
    assert heard.is_silent


def test_firing_inside_a_callback() -> None:
    subscribers: Subscribers[int] = Subscribers()
    chain = Heard(then=lambda event: subscribers.fire(event + 1) if event < 100 else None)
    other = Heard()
    subscribers.subscribe(chain)
    subscribers.subscribe(other)
    subscribers.fire(0)
    assert chain.take(101) == list(range(101))
    assert other.take(101) == list(range(101))


def test_many_threads_fire_while_others_come_and_go() -> None:
    subscribers: Subscribers[int] = Subscribers()
    steady = Heard()
    subscribers.subscribe(steady)
    start = threading.Barrier(8)

    def fire(number: int) -> None:
        start.wait(PATIENCE_SECONDS)
        for event in range(100):
            subscribers.fire(number * 1000 + event)

    def come_and_go() -> None:
        start.wait(PATIENCE_SECONDS)
        for _ in range(100):
            subscribers.subscribe(lambda event: None).cancel()

    threads = [threading.Thread(target=fire, args=(number,)) for number in range(4)]
    threads += [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    heard = steady.take(400)
    for number in range(4):
        assert [event for event in heard if event // 1000 == number] == [number * 1000 + event for event in range(100)]


def test_a_subscriber_that_lags_too_far_loses_the_oldest_and_is_told_on(caplog: pytest.LogCaptureFixture) -> None:
    subscribers: Subscribers[int] = Subscribers(limit=10)
    gate = Gate()
    blocked = Heard(then=gate.block)
    subscription = subscribers.subscribe(blocked)
    subscribers.fire(0)
    gate.wait_entered()  # event 0 has left the queue
    for event in range(1, 14):
        subscribers.fire(event)
    gate.open()
    assert blocked.take(11) == [0, *range(4, 14)]
    assert subscription.dropped == 3
    assert "its oldest event is dropped (3 so far)" in caplog.text


def test_no_thread_stays_when_there_is_nothing_to_deliver() -> None:
    subscribers: Subscribers[int] = Subscribers()
    threads: list[threading.Thread] = []
    heard = Heard(then=lambda _event: threads.append(threading.current_thread()))
    subscribers.subscribe(heard)
    subscribers.fire(1)
    heard.next()
    subscribers.fire(2)
    heard.next()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    subscribers.fire(3)
    assert heard.next() == 3


def test_without_a_thread_to_spare_the_event_waits_for_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subscribers: Subscribers[int] = Subscribers()
    heard = Heard()
    subscribers.subscribe(heard)

    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        subscribers.fire(1)
    assert "no thread to tell a subscriber" in caplog.text
    subscribers.fire(2)
    assert heard.take(2) == [1, 2]


def test_a_limit_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        Subscribers[int](limit=0)
