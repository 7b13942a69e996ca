"""The offline table, row by row: what each call answers before an outage and during it, with every field it has.

One stand-in and one Understudy for the module. Everything is asked and written once while Qdrant is there; then it is
killed, and the same is asked again, and written again to collections that were made alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2

from server.rpc import (
    AS_OF,
    COLLECTIONS,
    COMPLETENESS,
    HEALTH_CHECK,
    METHODS,
    PENDING,
    POINTS,
    SOURCE,
    STALE_WARNING,
    Code,
    Offline,
    Scope,
)
from tests.proxy import offline_fields as fields
from tests.proxy.offline_calls import Answer, Caller, differences, directed
from tests.proxy.offline_data import COSINE, Json, message, readable
from tests.proxy.offline_fields import Effect, has_one_value, messages_below, set_fields, without
from tests.proxy.offline_reads import READS, Case, How
from tests.proxy.offline_writes import WRITES, made_for
from tests.system.understudy import Understudy
from tests.upstream.process import Standin

SERVED = [path for path, row in METHODS.items() if row.offline is Offline.SERVED]
LOGGED = [path for path, row in METHODS.items() if row.offline is Offline.LOGGED]
REFUSED = [path for path, row in METHODS.items() if row.offline is Offline.REFUSED]
CASES = {path: [case for case in (*READS, *WRITES) if case.method == path] for path in (*SERVED, *LOGGED)}
HONOURED = Effect.HONOURED
BEFORE, DURING = "online_", "outage_"


def short(path: str) -> str:
    """How a row is called in the name of its test: `Points/Query`."""
    return path.removeprefix("/qdrant.")


@dataclass
class World:
    """What was answered before the outage, and the way to ask during it."""

    standin: Standin
    understudy: Understudy
    call: Caller
    read: dict[int, Answer] = field(default_factory=dict)
    wrote: dict[int, tuple[Answer, Any]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything asked and written online; then Qdrant is killed."""
    directory: Path = tmp_path_factory.mktemp("offline")
    with Standin(directory / "upstream") as standin, Understudy(directory / "understudy", standin.address) as proxy:
        proxy.wait_state("remote")
        made = World(standin, proxy, Caller(proxy.address))
        for method, request in readable():
            made.call.do(method, request)
        for path in LOGGED:
            for prefix in (BEFORE, DURING):
                for method, request in made_for(path):
                    made.call.do(method, named(request, prefix + _letters(path)))
        for case in WRITES:
            # What is refused offline must leave things as they are, so it is not done online either.
            if case.how is not How.REFUSED:
                made.wrote[id(case)] = written(made.call, case, BEFORE)
        for case in READS:
            made.read[id(case)] = made.call(case.method, case.request)
        standin.kill()
        proxy.wait_state("local")
        yield made
        made.call.close()


def _letters(path: str) -> str:
    """A prefix for the collections of a row."""
    return short(path).replace("/", "_") + "_"


def named(request: Any, prefix: str) -> Any:
    """A request with `$` at the start of names put for a prefix."""
    match request:
        case dict():
            return {key: named(one, prefix) for key, one in request.items()}
        case list():
            return [named(one, prefix) for one in request]
        case str() if request.startswith("$"):
            return prefix + request[1:]
        case _:
            return request


def written(call: Caller, case: Case, prefix: str) -> tuple[Answer, Any]:
    """The answer to a write, and what is there after it."""
    prefix += _letters(case.method)
    answer = call(case.method, named(case.request, prefix))
    return answer, state(call, prefix)


def state(call: Caller, prefix: str) -> Json:
    """The collections whose names begin so: what is told of them, their points, their aliases."""
    listed = call.do(COLLECTIONS + "List", {}).response.get("collections", [])
    found: Json = {}
    for name in sorted(one["name"] for one in listed if one["name"].startswith(prefix)):
        info = call.do(COLLECTIONS + "Get", {"collection_name": name}).response
        for index in info["result"].get("payload_schema", {}).values():
            # How many points an index holds is not told offline.
            index.pop("points", None)
        everything: Json = {"collection_name": name, "limit": 1000, "with_vectors": {"enable": True}}
        found[name] = {
            "info": info,
            "points": call.do(POINTS + "Scroll", everything).response,
            "aliases": call.do(COLLECTIONS + "ListCollectionAliases", {"collection_name": name}).response,
        }
    return found


def as_before(thing: Any) -> Any:
    """Names of the collections written to during the outage put for those before it."""
    match thing:
        case dict():
            return {as_before(key): as_before(one) for key, one in thing.items()}
        case list():
            return [as_before(one) for one in thing]
        case str():
            return thing.replace(DURING, BEFORE)
        case _:
            return thing


def check(case: Case, before: Answer, now: Answer) -> None:
    """The answer during the outage is what the case says."""
    told = f"{case}: {before.code.name} {before.details} / {now.code.name} {now.details}"
    match case.how:
        case How.REFUSED:
            assert now.code is case.code and case.reason in now.details, told
        case How.BY_HAND:
            assert case.ids and sorted(map(str, now.points)) == sorted(map(str, case.ids)), told
        case How.SAME_SIZE:
            assert now.code is before.code is Code.OK, told
            assert len(now.points) == len(before.points) > 0, told
        case How.EQUAL:
            assert (now.code, now.details) == (before.code, before.details), told
            assert differences(before.response, now.response, case.passing) == [], told


def check_trailers(case: Case, answer: Answer) -> None:
    """The answer says that it is local, how whole and how fresh."""
    trailers = answer.trailers
    assert trailers[SOURCE] == "local" and trailers[STALE_WARNING], str(case)
    assert int(trailers[PENDING]) >= 0 and int(trailers[AS_OF]) > 0, str(case)
    of_one = METHODS[case.method].scope in (Scope.POINTS, Scope.COLLECTION)
    if of_one and answer.code is Code.OK and case.method != COLLECTIONS + "Delete":
        missing = case.request.get("collection_name") == "missing"
        assert trailers.get(COMPLETENESS, "") == ("" if missing else "complete"), str(case)


def request_of(case: Case) -> Any:
    """The request of a case as a message."""
    return message(case.method, named(case.request, DURING))


@pytest.mark.parametrize("path", [*SERVED, *LOGGED], ids=short)
def test_every_field_of_a_request_is_set_in_a_case(path: str) -> None:
    """Of its own fields; those of what it holds are set somewhere in the table."""
    own = METHODS[path].request.DESCRIPTOR
    found = {field for case in CASES[path] for name, field in set_fields(request_of(case)) if name == fields.short(own)}
    assert {field.name for field in own.fields} - found == set()


def test_every_field_below_the_requests_is_set_in_a_case() -> None:
    found = {pair for listed in CASES.values() for case in listed for pair in set_fields(request_of(case))}
    known = {name: one for path in CASES for name, one in messages_below(METHODS[path].request.DESCRIPTOR).items()}
    wanted = {(name, field.name) for name, one in known.items() for field in one.fields if not has_one_value(field)}
    assert wanted - found == set()
    unknown = [key for key in fields.LINES if not any(fields.fits(key, *pair) for pair in wanted | found)]
    assert unknown == [], "these lines are about no field"


def test_what_is_refused_is_what_is_said_to_be_refused() -> None:
    for listed in CASES.values():
        for case in listed:
            said = [pair for pair in set_fields(request_of(case)) if fields.line_of(*pair).effect is Effect.REFUSED]
            assert bool(said) == (case.how is How.REFUSED), f"{case}: {said}"


def decides(path: str, name: str) -> bool:
    """Whether the answer must be another one without the field."""
    # Of the parameters only `idf` is honoured, which is too new for the stand-in.
    return name != "params" and fields.line_of(fields.short(METHODS[path].request.DESCRIPTOR), name).effect is HONOURED


@pytest.mark.parametrize("path", SERVED, ids=short)
def test_offline(world: World, path: str) -> None:
    """A read answers as it did before."""
    undecided = {field.name for field in METHODS[path].request.DESCRIPTOR.fields if decides(path, field.name)}
    for case in CASES[path]:
        now = world.call(case.method, case.request)
        check(case, world.read[id(case)], now)
        if path != HEALTH_CHECK:
            check_trailers(case, now)
        plain = request_of(case)
        without(plain, Effect.NONE)
        if case.how is How.EQUAL and plain != request_of(case):
            again = world.call(case.method, MessageToDict(plain, preserving_proto_field_name=True))
            assert differences(now.response, again.response) == [], f"{case}: fields without effect have one"
        if case.how is How.EQUAL:
            for name in undecided & case.request.keys():
                without_it = {key: one for key, one in case.request.items() if key != name}
                other = world.call(case.method, without_it)
                if other.code is not now.code or differences(now.response, other.response):
                    undecided.discard(name)
    assert undecided == set(), "the answer is the same without these fields, so no case shows that they are honoured"


@pytest.mark.parametrize("path", LOGGED, ids=short)
def test_offline_write(world: World, path: str) -> None:
    """A write answers as it did before, and leaves the same."""
    pending = world.understudy.pending()
    left = state(world.call, DURING + _letters(path))
    for case in CASES[path]:
        before, then = world.wrote.get(id(case)) or (Answer(Code.OK), left)
        answer, left = written(world.call, case, DURING)
        check_trailers(case, answer)
        check(case, before, replace(answer, details=as_before(answer.details), response=as_before(answer.response)))
        assert differences(as_before(then), as_before(left), case.passing) == [], str(case)
    assert world.understudy.pending() > pending


def test_offline_health(world: World) -> None:
    """`grpc.health.v1`: the proxy serves."""
    channel = world.call.channel
    asked = health_pb2.HealthCheckRequest().SerializeToString()
    answer = channel.unary_unary("/grpc.health.v1.Health/Check")(asked, 10.0)
    stream = channel.unary_stream("/grpc.health.v1.Health/Watch")(asked, 10.0)
    for body in (answer, next(stream)):
        assert health_pb2.HealthCheckResponse.FromString(body).status == health_pb2.HealthCheckResponse.SERVING
    stream.cancel()


@pytest.mark.parametrize("path", REFUSED, ids=short)
def test_offline_refused(world: World, path: str) -> None:
    """A call that only the server can answer says why."""
    answer = world.call(path, {})
    assert answer.code is Code.UNAVAILABLE
    assert answer.details == f"Qdrant is away: {METHODS[path].why_refused}"


def test_what_was_written_offline_reaches_qdrant(world: World) -> None:
    """Last, for it ends the outage: Qdrant then holds of each row's collections what the replica answered."""
    written_to = [path for path, _ in groupby(WRITES, lambda case: case.method)]
    expected = {path: state(world.call, DURING + _letters(path)) for path in written_to}
    world.standin.restart()
    world.understudy.wait_drained()
    upstream = Caller(world.standin.address)
    for path in written_to:
        found = state(upstream, DURING + _letters(path))
        assert differences(directed(expected[path], COSINE), directed(found, COSINE)) == [], path
    upstream.close()
    assert world.understudy.status()["quarantine"] in (0, [], None)
