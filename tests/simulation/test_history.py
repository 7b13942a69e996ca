"""What clients of points saw, in histories whose verdict is known."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.simulation.history import Outcome, Seen, steps_of
from tests.simulation.linear import NEVER, explain

OK, UNKNOWN, MISSING = Outcome.OK, Outcome.UNKNOWN, Outcome.MISSING


def call(kind: str, value: int, began: int, ended: int = NEVER, outcome: Outcome = OK, **found: int) -> Seen:
    outcome = UNKNOWN if ended == NEVER else outcome
    seen = {1: tuple(sorted(found.items()))} if found else {}
    return Seen(kind, (1,), value, began, ended, outcome, seen, label=f"{kind} {value}")


def conditional(kind: str, value: int, expected: int, began: int, ended: int = NEVER) -> Seen:
    seen = call(kind, value, began, ended)
    seen.expected = expected
    return seen


def count(counted: int, began: int, ended: int) -> Seen:
    seen = call("count", 0, began, ended)
    seen.counted = counted
    return seen


LEGAL = {
    "read what was written": [call("upsert", 5, 1, 2), call("read", 0, 3, 4, v=5)],
    "a read beside a write may be either": [call("upsert", 5, 1, 9), call("read", 0, 2, 3), call("read", 0, 4, 5, v=5)],
    "no answer, and done": [call("upsert", 5, 1), call("read", 0, 3, 4, v=5)],
    "no answer, and not done": [call("upsert", 5, 1), call("read", 0, 3, 4)],
    "no answer, and done late": [call("upsert", 5, 1), call("read", 0, 3, 4), call("read", 0, 5, 6, v=5)],
    "set adds": [call("upsert", 5, 1, 2), call("set", 6, 3, 4), call("read", 0, 5, 6, v=5, s=6)],
    "set finds nothing": [call("set", 6, 1, 2, MISSING), call("read", 0, 3, 4)],
    "deleted": [call("upsert", 5, 1, 2), call("delete", 0, 3, 4), call("read", 0, 5, 6)],
    "a swap of what is there": [
        call("upsert", 5, 1, 2),
        call("set", 6, 3, 4),
        conditional("swap", 7, 5, 5, 6),
        call("read", 0, 7, 8, v=7),
    ],
    "a swap of what is not there": [
        call("upsert", 5, 1, 2),
        conditional("swap", 7, 4, 3, 4),
        call("read", 0, 5, 6, v=5),
    ],
    "a swap of nothing": [conditional("swap", 7, 0, 1, 2), call("read", 0, 3, 4)],
    "of two swaps of one value one comes true": [
        call("upsert", 5, 1, 2),
        conditional("swap", 6, 5, 3, 10),
        conditional("swap", 7, 5, 4, 9),
        call("read", 0, 11, 12, v=6),
    ],
    "inserted where nothing is": [call("insert", 5, 1, 2), call("read", 0, 3, 4, v=5)],
    "not inserted where something is": [call("upsert", 5, 1, 2), call("insert", 6, 3, 4), call("read", 0, 5, 6, v=5)],
    "dropped": [call("upsert", 5, 1, 2), conditional("drop", 0, 5, 3, 4), call("read", 0, 5, 6), count(0, 7, 8)],
    "not dropped": [call("upsert", 5, 1, 2), conditional("drop", 0, 4, 3, 4), count(1, 5, 6)],
}
ILLEGAL = {
    "lost": [call("upsert", 5, 1, 2), call("read", 0, 3, 4)],
    "never written": [call("read", 0, 3, 4, v=7)],
    "a swap that did not happen": [
        call("upsert", 5, 1, 2),
        conditional("swap", 7, 5, 3, 4),
        call("read", 0, 5, 6, v=5),
    ],
    "both of two swaps of one value came true": [
        call("upsert", 5, 1, 2),
        conditional("swap", 6, 5, 3, 10),
        conditional("swap", 7, 5, 4, 11),
        call("read", 0, 5, 6, v=6),
        call("read", 0, 12, 13, v=7),
    ],
    "inserted over something": [call("upsert", 5, 1, 2), call("insert", 6, 3, 4), call("read", 0, 5, 6, v=6)],
    "a swap that kept what was set": [
        call("upsert", 5, 1, 2),
        call("set", 6, 3, 4),
        conditional("swap", 7, 5, 5, 6),
        call("read", 0, 7, 8, v=7, s=6),
    ],
    "dropped, and counted": [call("upsert", 5, 1, 2), conditional("drop", 0, 5, 3, 4), count(1, 5, 6)],
    "deleted, and there again": [
        call("upsert", 5, 1, 2),
        call("delete", 0, 3, 4),
        call("read", 0, 5, 6),
        call("read", 0, 7, 8, v=5),
    ],
    "one of two payload keys is lost": [
        call("upsert", 5, 1, 2),
        call("set", 6, 3, 4),
        call("read", 0, 5, 6, v=5),
    ],
    "back again": [call("upsert", 5, 1), call("read", 0, 3, 4, v=5), call("read", 0, 5, 6)],
    "overtaken": [call("upsert", 5, 1, 2), call("upsert", 6, 3, 4), call("read", 0, 5, 6, v=5)],
    "set on nothing succeeds": [call("set", 6, 1, 2), call("read", 0, 3, 4)],
    "set finds nothing where something is": [call("upsert", 5, 1, 2), call("set", 6, 3, 4, MISSING)],
    "two readers, two orders": [
        call("upsert", 5, 1, 20),
        call("upsert", 6, 2, 21),
        call("read", 0, 3, 4, v=5),
        call("read", 0, 5, 6, v=6),
        call("read", 0, 7, 8, v=5),
    ],
}


@pytest.mark.parametrize("history", LEGAL.values(), ids=LEGAL.keys())
def test_what_one_order_explains_is_accepted(history: list[Seen]) -> None:
    assert explain(None, steps_of(1, history)) == ""


@pytest.mark.parametrize("history", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_what_no_order_explains_is_named(history: list[Seen]) -> None:
    assert explain(None, steps_of(1, history)) != ""


def _by_hand(history: list[Seen]) -> bool:
    """Every order of every choice of unanswered writes, tried one by one."""
    certain = [each for each in history if each.outcome is not UNKNOWN]
    open_ones = [each for each in history if each.outcome is UNKNOWN]
    for size in range(len(open_ones) + 1):
        for chosen in itertools.combinations(open_ones, size):
            for order in itertools.permutations([*certain, *chosen]):
                if any(later.ended < earlier.began for earlier, later in itertools.combinations(order, 2)):
                    continue
                state: int | None = None
                for each in order:
                    if each.kind == "read" and dict(each.found.get(1, ())).get("v") != state:
                        break
                    state = each.value if each.kind == "upsert" else None if each.kind == "delete" else state
                else:
                    return True
    return False


def test_it_agrees_with_trying_every_order() -> None:
    chance, verdicts = random.Random(5), [0, 0]
    for _ in range(400):
        history = []
        for value in range(1, 6):
            began = chance.randrange(1, 12)
            kind = chance.choice(("upsert", "upsert", "delete", "read", "read"))
            ended = NEVER if kind != "read" and chance.random() < 0.3 else began + chance.randrange(1, 8)
            found = {"v": chance.randrange(1, 6)} if kind == "read" and chance.random() < 0.7 else {}
            history.append(call(kind, value, 2 * began, ended if ended == NEVER else 2 * ended + 1, **found))
        is_legal = explain(None, steps_of(1, history)) == ""
        assert is_legal is _by_hand(history)
        verdicts[is_legal] += 1
    assert min(verdicts) > 30
