"""Strict mode: the rows of `strict_rows`, to the replica and, where QDRANT_BIN or QDRANT_URL names it, a server.

Neither qdrant-client's local mode nor the engine in qdrant-edge-py has a strict mode, so there is no oracle without a
server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from generated.qdrant import collections_pb2 as collections
from server.rpc import ASSUMED_VERSION, POINTS
from tests.proxy.offline_data import Json, message
from tests.upstream.process import Standin

from .calls import Call, Oracle, Outcome, Refused
from .replica import Replica
from .server import Server
from .strict_calls import NAME, over
from .strict_rows import ROWS, Row, setup

# Qdrant counts the points of a collection anew with every so many writes.
_COUNTED_ANEW = 33


def ask(oracle: Oracle, method: str, request: Json) -> Outcome:
    """One call to the collection of a row."""
    return oracle.answer(Call(method, message(method, {"collection_name": NAME, **request})))


def check(oracle: Oracle, row: Row, late: int = 0) -> None:
    """What the row says is what the oracle does; some limits are noticed so many calls late."""
    for method, request in setup(row):
        made = ask(oracle, method, request)
        assert not isinstance(made, Refused), f"{method}: {made}"
    for method, request, words in row.trips:
        found = ask(oracle, method, request)
        for _ in range(late if row.late else 0):
            found = found if isinstance(found, Refused) else ask(oracle, method, request)
        assert isinstance(found, Refused), f"{method} {request}: answered, not refused with {words}"
        assert (found.status, found.text) == ("INVALID_ARGUMENT", words), f"{method} {request}"
    for method, request in row.passes:
        found = ask(oracle, method, request)
        assert not isinstance(found, Refused), f"{method} {request}: {found}"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_replica_refuses_what_qdrant_refuses(tmp_path: Path, row: Row) -> None:
    replica = Replica(tmp_path, ASSUMED_VERSION)
    try:
        check(replica, row)
    finally:
        replica.close()


@pytest.mark.parametrize(("version", "is_seen"), [("1.18.3", False), ("1.19.0", False), ("1.20.0", True)])
def test_a_scroll_that_names_no_limit_is_looked_at_by_newer_releases(
    tmp_path: Path, version: str, is_seen: bool
) -> None:
    replica = Replica(tmp_path, version)
    for method, request in setup(Row("", {"max_query_limit": 4}, ())):
        ask(replica, method, request)
    found = ask(replica, POINTS + "Scroll", {})
    assert isinstance(found, Refused) == is_seen
    if isinstance(found, Refused):
        assert found.text == over(10, 4)
    replica.close()


@pytest.fixture(scope="module")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server."""
    with Standin(tmp_path_factory.mktemp("upstream")) as upstream:
        server = Server(upstream.address, "server")
        yield server
        server.close()


@pytest.mark.skipif(
    not Standin(Path()).is_real, reason="only a server has a strict mode: QDRANT_BIN or QDRANT_URL names one"
)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_qdrant_refuses_it_too(qdrant: Server, row: Row) -> None:
    if tuple(map(int, qdrant.version.split(".")[:2])) < row.since:
        pytest.skip(f"Qdrant {qdrant.version} does not know these requests")
    drop = collections.DeleteCollection(collection_name=NAME)
    qdrant.answer(Call("/qdrant.Collections/Delete", drop))
    check(qdrant, row, _COUNTED_ANEW)


def test_every_limit_has_a_row() -> None:
    """But for those that only the server can judge."""
    judged = {limit for row in ROWS for limit in row.limits if row.trips} - {"enabled"}
    not_judged = {
        "max_collection_vector_size_bytes",
        "max_collection_payload_size_bytes",
        "read_rate_limit",
        "write_rate_limit",
        "max_resident_memory_percent",
    }
    assert judged | not_judged | {"enabled"} == {each.name for each in collections.StrictModeConfig.DESCRIPTOR.fields}
    assert judged & not_judged == set()
