"""Learning, forgetting and checking; the file that keeps hashes."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from pydantic import SecretStr

from generated.qdrant import collections_pb2, points_pb2
from server import config
from server.credentials import Credentials, Witness
from server.errors import DataDirUnusable
from server.rpc import HEALTH_CHECK, METHODS, Call, Code, Kind, Reply
from server.wal.files import RealDisk
from tests.faults.backends import RecordingBackend
from tests.pure.test_credentials_presented import token

QUERY, UPSERT, LIST = "/qdrant.Points/Query", "/qdrant.Points/Upsert", "/qdrant.Collections/List"
READ, WRITE = Kind.READ, Kind.WRITE
NOW_S = 1_700_000_000


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def monotonic(self) -> float:
        return float(self.now_s)

    def wall_ns(self) -> int:
        return self.now_s * 10**9


class Door:
    """Credentials in one directory, reopened at will."""

    def __init__(
        self, directory: Path, *, has_upstream: bool = True, upstream_key: str | None = None, **keys: Any
    ) -> None:
        self.path = directory / "credentials"
        self.clock = Clock()
        self.problems: list[str] = []
        self._has_upstream, self._upstream_key = has_upstream, upstream_key
        self._keys = config.Keys(
            **{name: SecretStr(value) if isinstance(value, str) else value for name, value in keys.items()}
        )
        self.disk: Any = RealDisk()
        self.reopen()

    def reopen(self, *, has_upstream: bool | None = None, secret: bytes = b"s" * 32) -> None:
        if has_upstream is not None:
            self._has_upstream = has_upstream
        self.credentials = Credentials(
            self.path, secret, self._keys, self._upstream_key, self._has_upstream, self.clock,
            disk=self.disk, on_problem=self.problems.append,
        )  # fmt: skip

    def saw(self, key: str | None, method: str = QUERY, code: Code = Code.OK, details: str = "", **fields: Any) -> None:
        call = called(key, method, **fields)
        self.credentials.saw(call, METHODS[method].kind, Reply(code=code, details=details))

    def code(self, key: str | None, method: str = QUERY, **fields: Any) -> Code:
        call = called(key, method, **fields)
        reply = self.credentials.check(call, METHODS[method].kind, fields.get("collection_name", ""))
        return Code.OK if reply is None else reply.code

    def lets_in(self, key: str | None, method: str = QUERY, **fields: Any) -> bool:
        return self.code(key, method, **fields) is Code.OK


def called(key: str | None, method: str = QUERY, **fields: Any) -> Call:
    row = METHODS[method]
    if "collection_name" in row.request.DESCRIPTOR.fields_by_name:
        fields.setdefault("collection_name", "a")
    metadata = () if key is None else (("api-key", key),)
    return Call(method, row.request(**fields).SerializeToString(), metadata)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_no_proof_no_data(door: Door) -> None:
    assert door.code(None) is Code.UNAUTHENTICATED
    assert door.code("k") is Code.UNAUTHENTICATED
    assert door.code("k", UPSERT) is Code.UNAUTHENTICATED
    assert door.credentials.for_replay() is None


def test_what_was_accepted_reading_may_read_everywhere_and_not_write(door: Door) -> None:
    door.saw("k")
    for _ in range(2):
        assert door.lets_in("k") and door.lets_in("k", collection_name="other") and door.lets_in("k", LIST)
        assert door.code("k", UPSERT) is Code.PERMISSION_DENIED
        assert not door.lets_in("K") and not door.lets_in("k ") and not door.lets_in("") and not door.lets_in(None)
        door.reopen()


def test_for_the_replay_a_key_seen_reading_is_tried_when_no_better_one_is_known(door: Door) -> None:
    door.saw("reads")
    door.saw("only-reads")
    assert door.credentials.for_replay() == (("api-key", "only-reads"),)
    door.saw("only-reads", UPSERT, Code.PERMISSION_DENIED, "Global manage access is required")
    assert door.credentials.for_replay() == (("api-key", "reads"),)
    assert not door.lets_in("reads", UPSERT)
    door.saw("writes", UPSERT)
    assert door.credentials.for_replay() == (("api-key", "writes"),)
    door.saw("writes", QUERY, Code.UNAUTHENTICATED, "Invalid API key or JWT")
    door.saw("reads", QUERY, Code.UNAUTHENTICATED, "Invalid API key or JWT")
    assert door.credentials.for_replay() is None


def test_qdrant_is_asked_only_about_those_whom_nobody_knows(door: Door) -> None:
    def question(key: str | None, method: str = QUERY, *more: tuple[str, str]) -> Call | None:
        call = called(key, method)
        call = Call(call.method, call.body, (*call.metadata, *more))
        refusal = door.credentials.check(call, METHODS[method].kind, "a")
        return None if refusal is None else door.credentials.question(call, refusal)

    for key, metadata in (("k", (("api-key", "k"),)), (None, ())):
        asked = question(key)
        assert asked is not None
        assert (asked.method, asked.body, asked.metadata) == (LIST, b"", metadata)
        assert asked.deadline == NOW_S + 1
    door.saw("k")
    assert question("k") is None
    # It is known, and may not: asking for less proves no more.
    assert question("k", UPSERT) is None
    assert question(token({"access": "r"})) is None
    assert question("k", QUERY, ("authorization", "Bearer other")) is None


def test_what_was_accepted_writing_may_do_all(door: Door) -> None:
    door.saw("k", UPSERT)
    assert door.credentials.for_replay() == (("api-key", "k"),)
    door.reopen()
    assert door.credentials.for_replay() is None
    assert door.lets_in("k") and door.credentials.for_replay() is None
    assert door.lets_in("k", UPSERT)
    assert door.credentials.for_replay() == (("api-key", "k"),)


def test_a_bearer_is_the_same_credential(door: Door) -> None:
    door.saw("k", UPSERT)
    call = Call(UPSERT, b"", (("authorization", "Bearer k"),))
    assert door.credentials.check(call, WRITE, "a") is None


def test_health_checks_prove_nothing_and_need_nothing(door: Door) -> None:
    door.saw("k", HEALTH_CHECK)
    door.saw(None, HEALTH_CHECK)
    door.credentials.saw_accepted(Call("/qdrant.Points/Future", b"", (("api-key", "k"),)), READ)
    assert not door.lets_in("k") and not door.lets_in(None)
    assert door.lets_in(None, HEALTH_CHECK)
    assert door.credentials.check(Call("/grpc.health.v1.Health/Check", b""), READ, "") is None


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION])
def test_a_refused_request_proves_the_key_but_not_the_right(door: Door, code: Code) -> None:
    door.saw("k", UPSERT, code)
    assert door.lets_in("k") and door.code("k", UPSERT) is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    "code",
    sorted(set(Code) - {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION}),
)
def test_other_codes_let_nobody_in(door: Door, code: Code) -> None:
    door.saw("k", UPSERT, code)
    door.saw(None, QUERY, code)
    assert not door.lets_in("k") and not door.lets_in(None)


def test_a_key_that_qdrant_refuses_is_forgotten_also_on_disk(door: Door) -> None:
    door.saw("k", UPSERT)
    door.saw("other", UPSERT)
    door.saw("k", QUERY, Code.UNAUTHENTICATED)
    for _ in range(2):
        assert not door.lets_in("k") and door.lets_in("other", UPSERT)
        door.reopen()
    door.saw("k", UPSERT)
    assert door.lets_in("k", UPSERT)


def test_a_write_that_is_forbidden_takes_the_right_to_write(door: Door) -> None:
    door.saw("k", UPSERT)
    door.saw("k", UPSERT, Code.PERMISSION_DENIED, "Global manage access is required")
    assert door.lets_in("k") and not door.lets_in("k", UPSERT) and door.credentials.for_replay() is None
    door.saw("k", UPSERT)
    assert door.lets_in("k", UPSERT)


def test_a_read_that_is_forbidden_takes_everything(door: Door) -> None:
    door.saw("k", UPSERT)
    door.saw("k", QUERY, Code.PERMISSION_DENIED, "no")
    assert not door.lets_in("k") and not door.lets_in("k", UPSERT)


@pytest.mark.parametrize("field", ["session_token", "api-key", "owner"])
def test_a_refusal_of_strict_mode_says_nothing_against_the_key(door: Door, field: str) -> None:
    told = f'Forbidden: Index required but not found for "{field}" of one of the following types: [keyword].'
    told += " Help: Create an index for this key or use a different filter."
    door.saw("k", UPSERT)
    for method in (QUERY, UPSERT):
        door.saw("k", method, Code.PERMISSION_DENIED, told)
        assert door.lets_in("k") and door.lets_in("k", UPSERT)
    door.saw("new", UPSERT, Code.PERMISSION_DENIED, told)
    assert door.lets_in("new") and not door.lets_in("new", UPSERT)
    door.saw(narrow("a"), QUERY, Code.PERMISSION_DENIED, told)
    assert not door.lets_in(narrow("a"))


def test_an_unknown_key_that_is_refused_harms_nobody(door: Door) -> None:
    door.saw("k", UPSERT)
    for code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
        door.saw("wrong", UPSERT, code)
        door.saw(None, UPSERT, code)
    assert door.lets_in("k", UPSERT)


# --- calls without a credential ---------------------------------------------------------------------------------------


def test_anonymous_calls_once_qdrant_served_one(door: Door) -> None:
    door.saw(None, QUERY)
    for _ in range(2):
        assert door.lets_in(None) and door.lets_in(None, UPSERT) and door.lets_in("anything", UPSERT)
        assert door.credentials.for_replay() == ()
        door.reopen()
    door.saw(None, QUERY, Code.UNAUTHENTICATED)
    for _ in range(2):
        assert not door.lets_in(None) and not door.lets_in("anything")
        door.reopen()


def test_a_key_seen_while_qdrant_took_any_is_not_proven(door: Door) -> None:
    door.saw("before", UPSERT)
    door.saw(None, QUERY)
    door.saw("after", UPSERT)
    door.saw("wrong", UPSERT, Code.UNAUTHENTICATED)
    for key in (None, "before", "after", "wrong"):
        assert not door.lets_in(key)
    door.saw("after", UPSERT)
    assert door.lets_in("after", UPSERT)


def test_without_any_qdrant_ever_everybody_is_let_in(tmp_path: Path) -> None:
    door = Door(tmp_path, has_upstream=False)
    assert door.lets_in(None, UPSERT) and door.lets_in("any", UPSERT)
    door.reopen(has_upstream=True)
    assert not door.lets_in(None) and not door.lets_in("any")
    door.reopen(has_upstream=False)
    assert not door.lets_in(None) and not door.lets_in("any")


def test_different_credentials_in_one_header_are_refused_and_teach_nothing(door: Door) -> None:
    both = (("api-key", "a"), ("api-key", "b"))
    body = points_pb2.QueryPoints(collection_name="a").SerializeToString()
    door.credentials.saw_accepted(Call(QUERY, body, both), READ)
    assert not door.lets_in("a") and not door.lets_in("b") and not door.lets_in(None)
    door.saw(None, QUERY)
    reply = door.credentials.check(Call(QUERY, body, both), READ, "a")
    assert reply is not None and reply.code is Code.UNAUTHENTICATED


# --- configured keys --------------------------------------------------------------------------------------------------


def test_configured_keys(tmp_path: Path) -> None:
    door = Door(tmp_path, api_key="full", read_only_api_key="look")
    assert door.lets_in("full", UPSERT) and door.lets_in("look")
    assert door.code("look", UPSERT) is Code.PERMISSION_DENIED
    assert not door.lets_in(None) and not door.lets_in("other")
    door.reopen(has_upstream=False)
    assert not door.lets_in(None)


def test_a_configured_key_closes_a_store_without_qdrant(tmp_path: Path) -> None:
    door = Door(tmp_path, has_upstream=False, api_key="full")
    assert not door.lets_in(None) and not door.lets_in("x") and door.lets_in("full", UPSERT)


def test_the_key_for_qdrant_is_good_until_qdrant_refuses_it(tmp_path: Path) -> None:
    door = Door(tmp_path, upstream_key="up")
    assert door.lets_in("up", UPSERT)
    assert door.credentials.for_replay() == (("api-key", "up"),)
    door.saw("up", QUERY, Code.UNAUTHENTICATED)
    assert not door.lets_in("up")


# --- tokens -----------------------------------------------------------------------------------------------------------


def narrow(*names: str, **more: Any) -> str:
    return token({"access": [{"collection": name, "access": "rw"} for name in names], **more})


def test_a_token_is_good_only_where_it_was_seen(door: Door) -> None:
    key = narrow("a", "b")
    door.saw(key, QUERY, collection_name="a")
    for _ in range(2):
        assert door.lets_in(key, collection_name="a")
        assert door.code(key, collection_name="b") is Code.PERMISSION_DENIED
        assert door.code(key, UPSERT, collection_name="a") is Code.PERMISSION_DENIED
        assert door.code(key, LIST) is Code.PERMISSION_DENIED
        door.reopen()
    door.saw(key, UPSERT, collection_name="b")
    assert door.lets_in(key, UPSERT, collection_name="b") and door.lets_in(key, collection_name="b")
    assert door.credentials.for_replay() is None


def test_a_token_is_good_nowhere_that_it_does_not_name(door: Door) -> None:
    key = narrow("a")
    door.saw(key, QUERY, collection_name="z")
    assert not door.lets_in(key, collection_name="z")


def test_every_collection_that_a_call_names_counts(door: Door) -> None:
    key = narrow("a", "b")
    door.saw(key, QUERY, collection_name="a")
    lookup = {"collection_name": "a", "lookup_from": points_pb2.LookupLocation(collection_name="b")}
    assert not door.lets_in(key, **lookup)
    below = [points_pb2.PrefetchQuery(lookup_from=points_pb2.LookupLocation(collection_name="b"))]
    assert not door.lets_in(key, collection_name="a", prefetch=below)
    groups = "/qdrant.Points/QueryGroups"
    door.saw(key, groups, collection_name="a")
    assert not door.lets_in(key, groups, collection_name="a", with_lookup=points_pb2.WithLookup(collection="b"))
    door.saw(key, QUERY, **lookup)
    assert door.lets_in(key, **lookup)


def test_the_last_of_two_collection_names_counts_as_in_qdrant(door: Door) -> None:
    key = narrow("a", "b")
    body = b"".join(points_pb2.QueryPoints(collection_name=name).SerializeToString() for name in ("a", "b"))
    door.credentials.saw_accepted(Call(QUERY, body, (("api-key", key),)), READ)
    assert not door.lets_in(key, collection_name="a") and door.lets_in(key, collection_name="b")


def test_an_expired_token_is_refused(door: Door) -> None:
    key = token({"exp": NOW_S + 10})
    door.saw(key, UPSERT)
    assert door.lets_in(key, UPSERT) and door.credentials.for_replay() is not None
    door.clock.now_s += 10
    assert door.code(key, UPSERT) is Code.UNAUTHENTICATED
    assert door.credentials.for_replay() is None
    door.saw(key, UPSERT)
    assert not door.lets_in(key)


def test_tokens_that_only_qdrant_can_check_are_refused(door: Door) -> None:
    for key in (
        token({"value_exists": {"collection": "a", "matches": []}}),
        token("not json"),
        token({"exp": "soon"}),
        token({"access": [{"collection": "a", "access": "r", "payload": {"user": 1}}]}),
    ):
        door.saw(key, UPSERT)
        assert not door.lets_in(key) and not door.lets_in(key, UPSERT)
    assert 'grants":{}' in door.path.read_text()


def test_a_token_for_everything_is_used_for_replay_and_a_reading_one_is_not(door: Door) -> None:
    reader, manager = token({"access": "r"}), token({"access": "m"})
    door.saw(reader, QUERY)
    assert door.lets_in(reader, collection_name="any") and not door.lets_in(reader, UPSERT)
    door.saw(manager, UPSERT)
    assert door.credentials.for_replay() == (("api-key", manager),)


def test_a_forbidden_call_takes_a_token_out_of_that_collection(door: Door) -> None:
    key = narrow("a", "b")
    for name in ("a", "b"):
        door.saw(key, UPSERT, collection_name=name)
    door.saw(key, UPSERT, Code.PERMISSION_DENIED, "no", collection_name="a")
    assert door.lets_in(key, collection_name="a") and not door.lets_in(key, UPSERT, collection_name="a")
    door.saw(key, QUERY, Code.PERMISSION_DENIED, "no", collection_name="a")
    assert not door.lets_in(key, collection_name="a") and door.lets_in(key, UPSERT, collection_name="b")
    door.saw(key, QUERY, Code.PERMISSION_DENIED, "ExpiredSignature", collection_name="b")
    assert not door.lets_in(key, collection_name="b")


POINTS_ROWS = [
    "Upsert", "Delete", "UpdateVectors", "DeleteVectors", "SetPayload", "OverwritePayload", "DeletePayload",
    "ClearPayload", "UpdateBatch",
]  # fmt: skip
# As Qdrant has it for a token of the collection: whether `prw` and `rw` may (its test_jwt_access.py). For vector names
# no such row was found.
TOKEN_ROWS = {
    **{f"/qdrant.Points/{name}": (True, True) for name in POINTS_ROWS},
    "/qdrant.Points/CreateFieldIndex": (False, True),
    "/qdrant.Points/DeleteFieldIndex": (False, True),
    "/qdrant.Points/CreateVectorName": (False, False),
    "/qdrant.Points/DeleteVectorName": (False, False),
    "/qdrant.Collections/Create": (False, False),
    "/qdrant.Collections/Update": (False, False),
    "/qdrant.Collections/Delete": (False, False),
    "/qdrant.Collections/UpdateAliases": (False, False),
}


def test_each_write_has_a_row() -> None:
    assert set(TOKEN_ROWS) == {row.path for row in METHODS.values() if row.kind is WRITE}


@pytest.mark.parametrize("method", TOKEN_ROWS)
def test_a_token_of_a_collection_may_do_offline_what_it_may_online(door: Door, method: str) -> None:
    fields: dict[str, Any] = {}
    if method.endswith("UpdateAliases"):
        alias = collections_pb2.CreateAlias(collection_name="a", alias_name="a")
        fields["actions"] = [collections_pb2.AliasOperations(create_alias=alias)]
    for access, may in (
        ("r", False),
        *zip(("prw", "rw"), TOKEN_ROWS[method], strict=True),
        ("new", TOKEN_ROWS[method][0]),
    ):
        key = token({"access": [{"collection": "a", "access": access}]})
        door.saw(key, QUERY)
        if access != "r":
            door.saw(key, UPSERT)
        assert door.code(key, method, **fields) is (Code.OK if may else Code.PERMISSION_DENIED), access
    manager = token({"access": "m"})
    door.saw(manager, UPSERT)
    assert door.lets_in(manager, method, **fields)


def test_what_no_row_is_about_asks_for_the_most(door: Door) -> None:
    key = narrow("a")
    door.saw(key, UPSERT)
    for method in ("/qdrant.Snapshots/Create", "/qdrant.Collections/CreateShardKey"):
        assert door.code(key, method) is Code.PERMISSION_DENIED


def test_a_refused_request_proves_no_right_of_a_token(door: Door) -> None:
    for key in (narrow("a"), token({"access": "r"})):
        door.saw(key, QUERY, Code.NOT_FOUND)
        assert not door.lets_in(key)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_holds_no_credential_and_is_private(door: Door) -> None:
    for number in range(20):
        door.saw(f"key-number-{number}", UPSERT)
    text = door.path.read_text()
    assert "key-number" not in text
    assert stat.S_IMODE(door.path.stat().st_mode) == 0o600
    assert len(json.loads(text)["ledger"]["grants"]) == 20


def test_under_another_secret_nothing_counts(door: Door) -> None:
    door.saw("k", UPSERT)
    door.reopen(secret=b"t" * 32, has_upstream=False)
    assert not door.lets_in("k") and not door.lets_in(None)
    assert door.credentials.damage and door.problems


def test_a_changed_file_is_set_aside_and_nothing_in_it_counts(door: Door) -> None:
    door.saw("k", UPSERT)
    good = door.path.read_bytes()
    for position in range(0, len(good) - 1, 7):
        changed = bytearray(good)
        changed[position] ^= 1
        door.path.write_bytes(bytes(changed))
        door.clock.now_s += 1
        door.reopen(has_upstream=False)
        assert not door.lets_in("k") and not door.lets_in(None), position
        kept = door.path.with_name(f"credentials.corrupted.{door.clock.wall_ns()}")
        assert kept.read_bytes() == bytes(changed)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"format":1,"mac":"","ledger":{}}', b"null", b"[" * 100_000]
)
def test_any_other_file_is_set_aside_too(door: Door, content: bytes) -> None:
    door.path.write_bytes(content)
    door.reopen()
    assert door.credentials.damage
    assert not door.lets_in(None)
    door.saw("k")
    door.reopen()
    assert door.credentials.damage is None and door.lets_in("k")


def test_a_link_or_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "credentials").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataDirUnusable):
        Door(tmp_path)
    (tmp_path / "credentials").unlink()
    (tmp_path / "credentials").mkdir()
    with pytest.raises(DataDirUnusable):
        Door(tmp_path)


def test_a_disk_that_takes_nothing_is_reported_and_calls_go_on(door: Door) -> None:
    class Full(RealDisk):
        def create(self, path: Path) -> Any:
            raise OSError(28, "No space left on device")

    door.disk = Full()
    door.reopen()
    door.saw("k", UPSERT)
    door.saw("l", UPSERT)
    assert door.lets_in("k", UPSERT)
    assert door.credentials.problem is not None and "No space left" in door.credentials.problem
    assert len(door.problems) == 1


def test_the_number_of_credentials_is_bounded_and_the_used_ones_stay(tmp_path: Path) -> None:
    door = Door(tmp_path, remembered=10)
    door.saw("busy", UPSERT)
    for number in range(100):
        door.saw(f"k{number}", UPSERT)
        door.saw("busy", UPSERT)
    assert len(json.loads(door.path.read_text())["ledger"]["grants"]) <= 10
    assert door.lets_in("busy", UPSERT) and door.lets_in("k99", UPSERT) and not door.lets_in("k1")
    door.saw("k1", UPSERT)
    assert door.lets_in("k1", UPSERT)


def test_expired_tokens_make_room_first(tmp_path: Path) -> None:
    door = Door(tmp_path, remembered=3)
    door.saw("plain", UPSERT)
    for number in range(2):
        door.saw(token({"exp": NOW_S + 5, "sub": str(number)}), UPSERT)
    door.clock.now_s += 5
    door.saw("new", UPSERT)
    assert door.lets_in("plain", UPSERT) and door.lets_in("new", UPSERT)


def test_what_is_known_costs_no_write(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.saw("k", UPSERT)
    monkeypatch.setattr(door.disk, "create", None)
    monkeypatch.setattr("server.credentials.door.collections_in", None)
    for _ in range(3):
        door.saw("k", UPSERT)
        door.saw("k", QUERY)


async def test_with_a_writer_the_file_follows_beside_the_loop(door: Door) -> None:
    loop = asyncio.get_running_loop()
    started, renamed = asyncio.Event(), asyncio.Event()

    class Telling(RealDisk):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            loop.call_soon_threadsafe(renamed.set)

    door.disk = Telling()
    door.reopen()
    writer = asyncio.create_task(door.credentials.run())
    loop.call_soon(started.set)
    await started.wait()
    before = door.path.read_bytes()
    door.saw("k", UPSERT)
    assert door.path.read_bytes() == before
    async with asyncio.timeout(20):
        await renamed.wait()
    assert door.path.read_bytes() != before
    for number in range(50):
        door.saw(f"k{number}", UPSERT)
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    assert len(json.loads(door.path.read_text())["ledger"]["grants"]) == 51
    door.saw("later", UPSERT)
    door.reopen()
    assert door.lets_in("later", UPSERT)


async def test_the_calls_of_understudy_itself_are_learned_from(door: Door) -> None:
    def witness(code: Code) -> Witness:
        return Witness(RecordingBackend(reply=Reply(code=code)), door.credentials)

    await witness(Code.OK).handle(called("k", UPSERT))
    assert door.credentials.for_replay() == (("api-key", "k"),)
    assert (await witness(Code.UNAUTHENTICATED).handle(called("k", UPSERT))).code is Code.UNAUTHENTICATED
    assert door.credentials.for_replay() is None and not door.lets_in("k")
    await witness(Code.OK).handle(Call(HEALTH_CHECK, b""))
    await witness(Code.OK).handle(Call("/qdrant.Points/Future", b""))
    assert not door.lets_in(None)
    await witness(Code.OK).handle(called(None, LIST))
    assert door.lets_in(None)


def test_principals_tell_callers_apart_and_say_nothing(door: Door) -> None:
    one, other = door.credentials.principal(called("k")), door.credentials.principal(called("l"))
    assert len(one) == 32 and one != other and door.credentials.principal(called(None)) == b""
    door.saw("k", UPSERT)
    assert door.credentials.principal(called("k")) == one
    door.reopen()
    assert door.credentials.principal(called("k")) == one


# --- the whole, against a model ---------------------------------------------------------------------------------------


class AgainstQdrant(RuleBasedStateMachine):
    """A Qdrant whose keys change, seen through calls: whoever is let in offline was let in by it, for the same."""

    keys = Bundle("keys")

    @initialize(target=keys)
    def start(self) -> str:
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.door = Door(Path(self.directory.name))
        self.writers: set[str] = set()
        self.readers: set[str] = set()
        self.protected = True
        self.seen: dict[tuple[str | None, Kind], bool] = {}
        return "first"

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.cleanup()

    @rule(target=keys, key=st.sampled_from(["a", "b", "c"]))
    def another(self, key: str) -> str:
        return key

    @rule(key=keys, may_write=st.booleans())
    def qdrant_takes(self, key: str, may_write: bool) -> None:
        (self.writers if may_write else self.readers).add(key)

    @rule(key=keys)
    def qdrant_drops(self, key: str) -> None:
        self.writers.discard(key)
        self.readers.discard(key)

    @rule(protected=st.booleans())
    def qdrant_protects(self, protected: bool) -> None:
        self.protected = protected

    @rule(key=st.one_of(st.none(), keys), write=st.booleans(), good=st.booleans())
    def call_online(self, key: str | None, write: bool, good: bool) -> None:
        code = self._answer(key, write, good)
        self.door.saw(key, UPSERT if write else QUERY, code)
        if code in (Code.OK, Code.NOT_FOUND):
            self.seen[key, WRITE if write and good else READ] = True
        else:
            for kind in (READ, WRITE) if code is Code.UNAUTHENTICATED or not write else (WRITE,):
                self.seen.pop((key, kind), None)
            if code is Code.UNAUTHENTICATED:
                self.seen.pop((None, READ), None)
                self.seen.pop((None, WRITE), None)

    def _answer(self, key: str | None, write: bool, good: bool) -> Code:
        if self.protected:
            if key not in self.writers | self.readers:
                return Code.UNAUTHENTICATED
            if write and key not in self.writers:
                return Code.PERMISSION_DENIED if good else Code.NOT_FOUND
        return Code.OK if good else Code.NOT_FOUND

    @rule()
    def restart(self) -> None:
        self.door.reopen()

    @invariant()
    def nobody_is_let_in_without_proof(self) -> None:
        if not hasattr(self, "door"):
            return
        anonymous = (None, READ) in self.seen or (None, WRITE) in self.seen
        for key in (None, "a", "b", "c", "first"):
            may_write = (key, WRITE) in self.seen or anonymous
            may_read = may_write or (key, READ) in self.seen
            assert self.door.lets_in(key) <= may_read
            assert self.door.lets_in(key, UPSERT) <= may_write


AgainstQdrant.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAgainstQdrant = AgainstQdrant.TestCase
