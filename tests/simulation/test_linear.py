"""The search for an order: histories of a register whose verdict is known, by hand, by brute force, and long ones."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass, replace

import pytest

from tests.simulation.linear import NEVER, Undecided, explain


@dataclass(frozen=True)
class Call:
    """A call on a register of numbers: `write` puts a value, `read` saw one, `add` saw what was there and adds one,
    `swap` adds one when it finds a value."""

    kind: str
    value: int
    began: int
    ended: int = NEVER

    @property
    def label(self) -> str:
        return f"{self.kind} {self.value}"

    @property
    def only_looks(self) -> bool:
        return self.kind == "read"

    @property
    def fits(self) -> tuple[int, ...]:
        return (self.value,) if self.kind == "read" else ()

    @property
    def is_blind(self) -> bool:
        return self.kind == "write"

    def after(self, state: int) -> tuple[bool, int]:
        if self.kind == "read":
            return state == self.value, state
        if self.kind == "add":
            return state == self.value, state + 1
        if self.kind == "swap":
            return True, state + 1 if state == self.value else state
        return True, self.value


def w(value: int, began: int, ended: int = NEVER) -> Call:
    return Call("write", value, began, ended)


def r(value: int, began: int, ended: int) -> Call:
    return Call("read", value, began, ended)


LEGAL = {
    "nothing happened": [],
    "read the start": [r(0, 1, 2)],
    "read what was written": [w(1, 1, 2), r(1, 3, 4)],
    "reads beside a write, old then new": [w(1, 1, 9), r(0, 2, 3), r(1, 4, 5)],
    "two writes side by side, either one is last": [w(1, 1, 5), w(2, 2, 6), r(1, 7, 8)],
    "a write without an answer, seen": [w(1, 1), r(1, 3, 4)],
    "a write without an answer, never seen": [w(1, 1), r(0, 3, 4), r(0, 5, 6)],
    "a write without an answer, seen much later": [w(1, 1), w(2, 3, 4), r(2, 5, 6), r(1, 7, 8)],
    "two additions, one after the other": [Call("add", 0, 1, 5), Call("add", 1, 2, 6), r(2, 7, 8)],
}
ILLEGAL = {
    "stale read": [w(1, 1, 2), r(0, 3, 4)],
    "stale read by another client, later": [w(1, 1, 2), r(1, 3, 4), w(2, 5, 6), r(1, 7, 8)],
    "lost update": [Call("add", 0, 1, 5), Call("add", 0, 2, 6)],
    "reads that go back": [w(1, 1, 9), r(1, 2, 3), r(0, 4, 5)],
    "reads that go back, of a write without an answer": [w(1, 1), r(1, 2, 3), r(0, 4, 5)],
    "a value that nobody wrote": [w(1, 1, 2), r(7, 3, 4)],
    "a value from the future": [r(1, 1, 2), w(1, 3, 4)],
    "deleted, and there again": [w(1, 1, 2), w(0, 3, 4), r(0, 5, 6), r(1, 7, 8)],
    "overtaken": [w(1, 1, 2), w(2, 3, 4), r(1, 5, 6)],
    "two readers, two orders": [w(1, 1, 20), w(2, 2, 21), r(1, 3, 4), r(2, 5, 6), r(1, 7, 8)],
    "one unanswered write seen twice, with another between": [
        w(1, 1),
        r(1, 2, 3),
        w(2, 4, 5),
        r(2, 6, 7),
        r(1, 8, 9),
    ],
}


@pytest.mark.parametrize("history", LEGAL.values(), ids=LEGAL.keys())
def test_legal(history: list[Call]) -> None:
    assert explain(0, history) == ""


@pytest.mark.parametrize("history", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_illegal(history: list[Call]) -> None:
    assert explain(0, history) != ""


def test_what_does_not_fit_is_named() -> None:
    assert explain(0, [w(1, 1, 2), r(1, 3, 4), w(2, 5, 6), r(1, 7, 8)]) == "read 1"


def _by_hand(history: list[Call]) -> bool:
    """Every order of every choice of unanswered calls."""
    certain = [each for each in history if each.ended != NEVER]
    uncertain = [each for each in history if each.ended == NEVER]
    for size in range(len(uncertain) + 1):
        for chosen in itertools.combinations(uncertain, size):
            for order in itertools.permutations([*certain, *chosen]):
                if any(later.ended < earlier.began for earlier, later in itertools.combinations(order, 2)):
                    continue
                state = 0
                for each in order:
                    fits, state = each.after(state)
                    if not fits:
                        break
                else:
                    return True
    return False


def test_it_agrees_with_trying_every_order() -> None:
    chance, verdicts = random.Random(11), [0, 0]
    for _ in range(1500):
        history = []
        for number in range(1, 6):
            began = chance.randrange(1, 10)
            kind = chance.choice(("write", "write", "read", "read", "add"))
            is_open = kind != "read" and chance.random() < 0.3
            ended = NEVER if is_open else 20 * (began + chance.randrange(1, 6)) + 10 + number
            value = number if kind == "write" else chance.randrange(0, 4)
            history.append(Call(kind, value, 20 * began + number, ended))
        history.sort(key=lambda each: each.began)
        is_legal = explain(0, history) == ""
        assert is_legal is _by_hand(history), history
        verdicts[is_legal] += 1
    assert min(verdicts) > 200


def _long(chance: random.Random, calls: int, clients: int, unanswered: float) -> list[Call]:
    """A history that a register made: each call takes effect at one moment between its start and its end."""
    plans, free_at = [], [0] * clients
    for number in range(1, calls + 1):
        client = min(range(clients), key=lambda each: free_at[each])
        began = free_at[client] + chance.randrange(1, 10)
        ended = began + chance.randrange(1, 60)
        free_at[client] = ended
        kind = chance.choice(("write", "read", "read"))
        is_open = kind == "write" and chance.random() < unanswered
        # One without an answer takes effect late, or never.
        effect = chance.uniform(began, ended)
        if is_open:
            effect = chance.choice((effect, began + 10 * (ended - began), float(NEVER)))
        plans.append((effect, kind, number, began, NEVER if is_open else ended))
    state, history = 0, []
    for _, kind, number, began, ended in sorted(plans):
        if kind == "write":
            state = number
        history.append(
            Call(kind, state if kind == "read" else number, 2 * began, ended if ended == NEVER else 2 * ended + 1)
        )
    return sorted(history, key=lambda each: each.began)


@pytest.mark.parametrize("seed", range(6))
def test_a_thousand_calls_of_eight_clients_on_one_register(seed: int) -> None:
    """As many unanswered writes as twenty kills leave; decided, quickly, and right either way."""
    chance = random.Random(seed)
    history = _long(chance, 1000, 8, 0.05)
    assert sum(each.ended == NEVER for each in history) >= 8
    began = time.process_time()
    assert explain(0, history) == ""
    # One read in the middle shows a value that an answered write has replaced long before.
    reads = [at for at, each in enumerate(history) if each.kind == "read" and each.began > history[-1].began // 2]
    at = reads[0]
    gone = [
        each
        for each in history
        if each.kind == "write"
        and any(
            other.kind == "write" and each.ended < other.began and other.ended < history[at].began for other in history
        )
    ]
    stale = [*history[:at], replace(history[at], value=gone[0].value), *history[at + 1 :]]
    with_verdict = _verdict(stale)
    assert with_verdict not in ("", "undecided")
    assert time.process_time() - began < 20


def _crowded(chance: random.Random, unanswered: int, rounds: int, clients: int) -> list[Call]:
    """Right by its making: writes and swaps side by side, reads that saw them, behind swaps without an answer."""
    history = [Call("swap", chance.randrange(8), began) for began in range(unanswered)]
    began, state = unanswered, 0
    for _ in range(rounds):
        calls = [Call(chance.choice(("swap", "swap", "write")), chance.randrange(9), 0) for _ in range(clients)]
        states = list(itertools.accumulate(calls, lambda left, each: each.after(left)[1], initial=state))[1:]
        state, ended = states[-1], began + 4 * clients
        shown = enumerate(chance.sample(calls, clients))
        history += [replace(each, began=began + at, ended=ended + at) for at, each in shown]
        history += [r(chance.choice(states), began + clients, ended - 2)]
        history += [r(state, ended + clients, ended + clients + 1)]
        began = ended + clients + 2
    return sorted(history, key=lambda each: each.began)


@pytest.mark.parametrize("seed", range(8))
def test_what_few_unanswered_calls_explain_is_decided_however_many_there_are(seed: int) -> None:
    assert explain(0, _crowded(random.Random(seed), 24, 10, 9)) == ""


def _verdict(history: list[Call]) -> str:
    try:
        return explain(0, history)
    except Undecided:
        return "undecided"


def test_too_many_orders_are_not_called_right() -> None:
    history = [w(value, value, 40 + value) for value in range(1, 10)] + [r(99, 60, 61)]
    with pytest.raises(Undecided):
        explain(0, history, nodes_most=50)
    assert explain(0, history) == "read 99"
