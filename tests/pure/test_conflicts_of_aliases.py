"""Whatever aliases do: two writes to one point never run at once, and they run in the order asked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import pytest

from generated.qdrant import collections_pb2 as pb
from server.conflicts import Claim, Conflicts, aliases_after, claim_of, places_of
from server.rpc import METHODS, Method
from tests.pure.test_conflicts import claim

CHANGE, DROP = METHODS["/qdrant.Collections/UpdateAliases"], METHODS["/qdrant.Collections/Delete"]
COLLECTIONS, ALIASES = ("blue", "green", "red"), ("live", "next", "spare")
RUNS = 1500


def create(alias: str, collection: str) -> pb.AliasOperations:
    return pb.AliasOperations(create_alias=pb.CreateAlias(alias_name=alias, collection_name=collection))


def rename(old: str, new: str) -> pb.AliasOperations:
    return pb.AliasOperations(rename_alias=pb.RenameAlias(old_alias_name=old, new_alias_name=new))


def delete(alias: str) -> pb.AliasOperations:
    return pb.AliasOperations(delete_alias=pb.DeleteAlias(alias_name=alias))


def moved(*actions: pb.AliasOperations) -> pb.ChangeAliases:
    return pb.ChangeAliases(actions=actions)


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- any schedule -----------------------------------------------------------------------------------------------------


@dataclass
class Write:
    """What a task asked for, and once it has its turn, what it did at Qdrant."""

    number: int
    claim: Claim
    change: pb.ChangeAliases | pb.DeleteCollection | None = None
    collection: str = ""
    began: int | None = None
    ended: int | None = None

    def meets(self, other: Write) -> bool:
        """Whether both touch one point at Qdrant, or an alias that the other one goes by."""
        if isinstance(self.change, pb.ChangeAliases) or isinstance(other.change, pb.ChangeAliases):
            assert self.claim.names is not None and other.claim.names is not None
            return bool(self.claim.names & other.claim.names)
        mine, others = self.claim.points, other.claim.points
        if self.collection != other.collection:
            return False
        return (
            mine is None
            or others is None
            or bool(mine & (others | other.claim.considers) or self.claim.considers & others)
        )


@dataclass
class Schedule:
    """One seed: writes, changes of aliases and deletions by many tasks, and Qdrant, which alone knows its aliases."""

    rng: random.Random
    others_move_aliases: bool = False
    conflicts: Conflicts = field(default_factory=Conflicts)
    at_qdrant: dict[str, str] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    running: list[Write] = field(default_factory=list)
    ticks: int = 0

    async def play(self) -> None:
        rng = self.rng
        self.at_qdrant = {alias: rng.choice(COLLECTIONS) for alias in ALIASES if rng.random() < 0.7}
        self.conflicts.know_aliases(self.at_qdrant)
        tasks = []
        for number in range(rng.randrange(4, 40)):
            if self.others_move_aliases and rng.random() < 0.1 and self._all_looked_up():
                self.at_qdrant = aliases_after(self.at_qdrant, moved(self._action()))
                self.conflicts.know_aliases(self.at_qdrant)
            tasks.append(asyncio.create_task(self._one(number)))
            await steps(rng.choice((0, 0, 0, 1, 2, 5)))
            if rng.random() < 0.1:
                unwanted = rng.randrange(len(tasks))
                if unwanted < len(self.writes) and self.writes[unwanted].began is None:
                    tasks[unwanted].cancel()
        async with asyncio.timeout(30):
            done = await asyncio.gather(*tasks, return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        assert self.conflicts.is_empty

    def _all_looked_up(self) -> bool:
        """Whether all who have their turn know what they write to."""
        return sum(stay.has_turn for stay in self.conflicts._stays) == len(self.running)

    def _action(self) -> pb.AliasOperations:
        rng = self.rng
        kind = rng.choice(("create", "create", "rename", "delete"))
        if kind == "create":
            return create(rng.choice(ALIASES), rng.choice(COLLECTIONS))
        return rename(*rng.sample(ALIASES, 2)) if kind == "rename" else delete(rng.choice(ALIASES))

    def _request(self) -> tuple[Method, pb.ChangeAliases | pb.DeleteCollection] | None:
        kind = self.rng.random()
        if kind < 0.2:
            return CHANGE, moved(*(self._action() for _ in range(self.rng.choice((1, 1, 2, 3)))))
        return (DROP, pb.DeleteCollection(collection_name=self.rng.choice(COLLECTIONS))) if kind < 0.25 else None

    async def _one(self, number: int) -> None:
        rng = self.rng
        asked = self._request()
        name = rng.choice(COLLECTIONS + ALIASES)
        points = rng.sample(range(3), rng.randrange(1, 3)) if rng.random() < 0.85 else []
        write = Write(number, claim_of(*asked) if asked else claim(name, *points), asked[1] if asked else None)
        self.writes.append(write)
        lengths = [rng.choice((0, 1, 3, 8)) for _ in range(3)]
        is_refused = rng.random() < 0.2
        async with self.conflicts.hold(write.claim):
            if isinstance(write.change, pb.DeleteCollection):
                name = write.change.collection_name
            write.collection = self.at_qdrant.get(name, name)
            self.ticks += 1
            write.began = self.ticks
            assert not [other for other in self.running if write.meets(other)], "at once"
            self.running.append(write)
            await steps(lengths[0])
            if asked and not is_refused:
                self.at_qdrant = aliases_after(self.at_qdrant, asked[1])
                # Qdrant's answer is on its way. Were the alias moved by others meanwhile, nobody would know the order.
                await steps(0 if self.others_move_aliases else lengths[1])
                self.conflicts.note(*asked)
            await steps(lengths[2])
            if write.change is None and not self.others_move_aliases:
                assert self.at_qdrant.get(name, name) == write.collection, "an alias was moved under a write"
            self.running.remove(write)
            self.ticks += 1
            write.ended = self.ticks

    def overtakings(self) -> list[tuple[Write, Write]]:
        """Pairs that meet, of which the one that asked later did not wait for the other to end."""
        ran = [write for write in self.writes if write.began is not None]
        return [
            (earlier, later)
            for position, earlier in enumerate(ran)
            for later in ran[position + 1 :]
            if earlier.meets(later) and (earlier.ended or 0) > (later.began or 0)
        ]


def test_nobody_overtakes_whatever_aliases_do() -> None:
    for seed in range(RUNS):
        schedule = Schedule(random.Random(seed))
        try:
            asyncio.run(schedule.play())
            assert not schedule.overtakings()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_writes_to_one_point_never_run_at_once_when_others_move_aliases() -> None:
    for seed in range(RUNS):
        schedule = Schedule(random.Random(seed), others_move_aliases=True)
        try:
            asyncio.run(schedule.play())
            same_name = [pair for pair in schedule.overtakings() if pair[0].claim.names == pair[1].claim.names]
            assert not same_name
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_schedules_do_what_they_are_for() -> None:
    """Aliases move while writes by them wait, and writes by an alias and by its collection meet."""
    waited = met = 0

    class Counting(Conflicts):
        def know_aliases(self, aliases: Mapping[str, str]) -> None:
            nonlocal waited
            if aliases != self._aliases:
                waited += sum(not stay.has_turn for stay in self._stays)
            super().know_aliases(aliases)

    for seed in range(100):
        schedule = Schedule(random.Random(seed), conflicts=Counting())
        asyncio.run(schedule.play())
        ran = [write for write in schedule.writes if write.ended and write.change is None]
        met += sum(
            one.claim.names != other.claim.names and one.meets(other)
            for place, one in enumerate(ran)
            for other in ran[place + 1 :]
        )
    assert waited > 300 and met > 1000, (waited, met)


# --- one by one -------------------------------------------------------------------------------------------------------


class Yard:
    """A queue in which "live" stands for blue, and the order in which writes had their turn."""

    def __init__(self) -> None:
        self.conflicts = Conflicts()
        self.conflicts.know_aliases({"live": "blue"})
        self.order: list[str] = []

    async def ask(
        self, claimed: Claim, tag: str, until: asyncio.Event, done: Callable[[], None] | None = None
    ) -> asyncio.Task[None]:
        """Ask, and have the turn until the event; returns once it is in line."""

        async def turn() -> None:
            async with self.conflicts.hold(claimed):
                self.order.append(tag)
                await until.wait()
                if done is not None:
                    done()

        task = asyncio.create_task(turn())
        await steps(3)
        return task

    async def move(self, until: asyncio.Event, *actions: pb.AliasOperations) -> asyncio.Task[None]:
        request = moved(*actions)
        return await self.ask(claim_of(CHANGE, request), "move", until, lambda: self.conflicts.note(CHANGE, request))


@pytest.fixture
def go() -> asyncio.Event:
    """What is set is done at once."""
    event = asyncio.Event()
    event.set()
    return event


async def _all(*tasks: Awaitable[None]) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks)


async def test_who_waits_behind_a_move_stays_before_who_asks_after_it(go: asyncio.Event) -> None:
    yard, first = Yard(), asyncio.Event()
    move = await yard.move(first, create("live", "green"))
    by_alias = await yard.ask(claim("live", 1), "by alias", go)
    by_name = await yard.ask(claim("green", 1), "by name", go)
    assert yard.order == ["move"]
    first.set()
    await _all(move, by_alias, by_name)
    assert yard.order == ["move", "by alias", "by name"]


async def test_a_move_does_not_pass_a_write_by_the_alias_nor_one_to_its_new_collection(go: asyncio.Event) -> None:
    for name in ("live", "green"):
        yard, first = Yard(), asyncio.Event()
        write = await yard.ask(claim(name, 1), "write", first)
        move = await yard.move(go, create("live", "green"))
        assert yard.order == ["write"], name
        first.set()
        await _all(write, move)


async def test_a_move_waits_for_no_other_collection_and_stops_none(go: asyncio.Event) -> None:
    yard, first = Yard(), asyncio.Event()
    index = await yard.ask(claim("big"), "index", first)
    yard.conflicts.know_aliases({"live": "blue", "next": "big"})
    # Away from where the index is made.
    move = await yard.move(first, create("next", "green"))
    await _all(
        await yard.ask(claim("other", 1), "other", go),
        await yard.ask(claim("live", 1), "live", go),
        await yard.ask(Claim(frozenset()), "nothing", go),
        await yard.move(go, create("live", "red")),
    )
    assert yard.order == ["index", "move", "other", "live", "nothing", "move"]
    first.set()
    await _all(index, move)


async def test_who_was_moved_apart_does_not_wait_any_longer(go: asyncio.Event) -> None:
    yard, first = Yard(), asyncio.Event()
    by_name = await yard.ask(claim("blue", 1), "by name", first)
    by_alias = await yard.ask(claim("live", 1), "by alias", go)
    assert yard.order == ["by name"]
    yard.conflicts.know_aliases({"live": "green"})
    await _all(by_alias)
    first.set()
    await _all(by_name)


async def test_two_that_run_when_others_make_them_meet_both_come_before_who_waits(go: asyncio.Event) -> None:
    for released in (0, 1):
        yard, events = Yard(), (asyncio.Event(), asyncio.Event())
        running = [
            await yard.ask(claim(name, 1), name, event) for name, event in zip(("blue", "green"), events, strict=True)
        ]
        third = await yard.ask(claim("live", 1), "third", go)
        yard.conflicts.know_aliases({"live": "blue", "green": "blue"})
        later = await yard.ask(claim("blue", 1), "later", go)
        events[released].set()
        await steps(5)
        assert yard.order == ["blue", "green"]
        events[1 - released].set()
        await _all(*running, third, later)
        assert yard.order == ["blue", "green", "third", "later"]
        assert yard.conflicts.is_empty


async def test_who_was_given_up_holds_nobody_up_after_a_move(go: asyncio.Event) -> None:
    yard, first = Yard(), asyncio.Event()
    running = await yard.ask(claim("blue", 1), "running", first)
    given_up = await yard.ask(claim("blue"), "given up", go)
    waiting = await yard.ask(claim("blue", 2), "waiting", go)
    given_up.cancel()
    await steps(3)
    assert yard.order == ["running"]
    yard.conflicts.know_aliases({})
    await _all(waiting)
    first.set()
    await _all(running)
    assert yard.order == ["running", "waiting"] and yard.conflicts.is_empty


def test_places() -> None:
    aliases = {"live": "blue", "next": "green"}
    assert places_of(claim("live", 1), aliases) == {"live", "blue"}
    assert places_of(claim("blue"), aliases) == {"blue"}
    for change, places in (
        (create("live", "green"), {"live", "green"}),
        (delete("live"), {"live"}),
        (rename("live", "spare"), {"live", "spare", "blue"}),
        (rename("spare", "live"), {"live", "spare"}),
    ):
        assert places_of(claim_of(CHANGE, moved(change)), aliases) == places
