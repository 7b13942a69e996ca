"""Every command, on a real log and a real admin port."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from generated.qdrant import points_pb2
from generated.understudy.wal.v1 import entry_pb2
from server import cli
from server.cli import app, remote
from server.cli.options import moment_of
from server.clock import SystemClock
from server.errors import (
    AdminRefused,
    AdminUnreachable,
    ConfigError,
    DataDirUnusable,
    UnderstudyError,
    WalDamaged,
    WalError,
    WalLocked,
)
from server.replica.store import Store
from server.rpc import WAL_KINDS
from server.wal.files import RealDisk
from server.wal.limits import WalLimits
from server.wal.log import Log
from server.wal.quarantine import Refused
from server.wal.record import EntryState, NewRecord
from tests.cli.desk import FakeDesk, serving

NOBODY = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the machine, no pauses, a wide terminal."""
    monkeypatch.setattr(remote, "POLL_SECONDS", 0)
    monkeypatch.setattr("server.cli.output.console.width", 200)
    monkeypatch.setenv("UNDERSTUDY_ADMIN", NOBODY)
    monkeypatch.delenv("UNDERSTUDY_CONFIG", raising=False)


def run(*words: str, answer: str = "") -> Result:
    """A command that goes well."""
    result = CliRunner().invoke(app, list(words), input=answer, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def refused(error: type[UnderstudyError], *words: str) -> str:
    """A command that does not; gives the text."""
    with pytest.raises(error) as caught:
        CliRunner().invoke(app, list(words), catch_exceptions=False)
    return str(caught.value)


def as_json(*words: str) -> Any:
    """What a command prints with --json."""
    return json.loads(run(*words, "--json").stdout)


def _entry(number: int) -> bytes:
    request = points_pb2.UpsertPoints(collection_name="[notes]")
    request.points.add().id.num = number
    return entry_pb2.Entry(
        method="/qdrant.Points/Upsert", request=request.SerializeToString(), collection="[notes]", point_count=1
    ).SerializeToString()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A stopped server's directory: 1 synced, 2 replayed, 3 refused, 4 and 5 pending."""

    async def write() -> None:
        log = Log.open(
            tmp_path / "wal", disk=RealDisk(), clock=SystemClock(), limits=WalLimits(), kinds=frozenset(WAL_KINDS)
        )
        for number in range(1, 6):
            state = EntryState.SYNCED if number == 1 else EntryState.PENDING
            await log.append(NewRecord(1, state, _entry(number), b"", "", 1))
        third = (await log.read(2, 1, 10**6))[0]
        await log.quarantine([Refused(third, 3, "Wrong input: [dimension]")])
        await log.mark_replayed(3)
        await log.close()

    asyncio.run(write())
    Store(tmp_path / "store", SystemClock()).close()
    return tmp_path


# --- the log, with the server stopped --------------------------------------------------------------------------------


def test_wal_status(data_dir: Path) -> None:
    text = run("wal", "status", "--data-dir", str(data_dir)).stdout
    assert "2 (" in text
    assert "1 to 5, replayed up to 3" in text
    document = as_json("wal", "status", "--data-dir", str(data_dir))
    assert (document["pending_count"], document["last_seq"], document["replayed_seq"]) == (2, 5, 3)
    assert document["problems"] == []
    assert document["quarantined"][0]["details"] == "Wrong input: [dimension]"


def test_wal_verify(data_dir: Path) -> None:
    assert as_json("wal", "verify", "--data-dir", str(data_dir))["entries_verified"] >= 5


def test_wal_verify_finds_a_flipped_bit(data_dir: Path) -> None:
    segment = next(path for path in (data_dir / "wal").iterdir() if path.is_file() and path.stat().st_size > 600)
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2] ^= 1
    segment.write_bytes(raw)
    text = refused(WalDamaged, "wal", "verify", "--data-dir", str(data_dir))
    assert segment.name in text
    assert "understudy wal repair" in text


def test_wal_list(data_dir: Path) -> None:
    rows = as_json("wal", "list", "--data-dir", str(data_dir))
    assert [(row["seq"], row["state"]) for row in rows] == [
        (1, "synced"),
        (2, "replayed"),
        (3, "quarantined"),
        (4, "pending"),
        (5, "pending"),
    ]
    assert rows[0]["collection"] == "[notes]"
    assert rows[0]["method"] == "/qdrant.Points/Upsert"
    pending = as_json("wal", "list", "--data-dir", str(data_dir), "--state", "pending", "--limit", "1")
    assert [row["seq"] for row in pending] == [4]
    assert [row["seq"] for row in as_json("wal", "list", "--data-dir", str(data_dir), "--after", "3")] == [4, 5]
    assert "[notes]" in run("wal", "list", "--data-dir", str(data_dir)).stdout
    assert "no entries" in run("wal", "list", "--data-dir", str(data_dir), "--after", "5").stdout


def test_wal_show(data_dir: Path) -> None:
    shown = json.loads(run("wal", "show", "2", "--data-dir", str(data_dir)).stdout)
    assert shown["request"]["points"] == [{"id": {"num": "2"}}]
    assert shown["state"] == "replayed"
    assert "wal list" in refused(WalError, "wal", "show", "99", "--data-dir", str(data_dir))


def test_wal_list_by_collection_and_time(data_dir: Path) -> None:
    where = ("wal", "list", "--data-dir", str(data_dir))
    assert [row["seq"] for row in as_json(*where, "--collection", "[notes]", "--limit", "2", "--after", "1")] == [2, 3]
    assert as_json(*where, "--collection", "other") == []
    assert len(as_json(*where, "--since", "1h")) == 5
    assert as_json(*where, "--since", "2999-01-01T00:00:00+02:00") == []
    assert as_json(*where, "--until", "2h") == []
    assert [row["seq"] for row in as_json(*where, "--state", "pending", "--until", "2999-01-01", "--after", "4")] == [5]
    result = CliRunner().invoke(app, [*where, "--since", "yesterday"])
    assert (result.exit_code, "no time" in result.output) == (2, True)


def test_times() -> None:
    now = 10**18
    assert moment_of("90m", now) == now - 5400 * 10**9
    assert moment_of("2h", now) == moment_of("7200s", now)
    assert moment_of("7d", now) == moment_of("1w", now)
    assert moment_of("1970-01-02", now) == 86400 * 10**9
    assert moment_of("1970-01-01T02:00:00.5+01:00", now) == 3600 * 10**9 + 5 * 10**8


def test_wal_quarantine_with_the_server_stopped(data_dir: Path, tmp_path: Path) -> None:
    where = ("--data-dir", str(data_dir))
    row = json.loads(run("wal", "quarantine", "show", "3", *where).stdout)
    assert (row["request"]["points"], row["code"], row["state"]) == (
        [{"id": {"num": "3"}}],
        "INVALID_ARGUMENT",
        "quarantined",
    )
    (line,) = run("wal", "quarantine", "export", *where).stdout.splitlines()
    assert json.loads(line) == row
    assert as_json("wal", "quarantine", "export", *where) == [row]
    file = tmp_path / "out.jsonl"
    file.write_text("mine")
    assert str(file) in refused(DataDirUnusable, "wal", "quarantine", "export", "--output", str(file), *where)
    assert file.read_text() == "mine"
    for words in (("show", "4"), ("drop", "4", "--yes"), ("retry", "4", "--yes")):
        assert "not in quarantine" in refused(WalError, "wal", "quarantine", *words, *where)
    for words in ([], ["3", "--all"]):
        assert CliRunner().invoke(app, ["wal", "quarantine", "retry", *words, *where]).exit_code == 2
    for words in (("retry", "3"), ("drop", "3")):
        result = CliRunner().invoke(app, ["wal", "quarantine", *words, *where], input="n\n")
        assert (result.exit_code, len(as_json("wal", "quarantine", "list", *where))) == (1, 1)
    assert "3 is pending again, as entry 6" in run("wal", "quarantine", "retry", "3", *where, answer="y\n").stdout
    assert "the quarantine is empty" in run("wal", "quarantine", "retry", "--all", *where).stdout
    assert [row["seq"] for row in as_json("wal", "list", "--state", "pending", *where)] == [4, 5, 6]


def test_a_damaged_entry_of_the_quarantine_is_shown_kept_and_dropped(data_dir: Path) -> None:
    where = ("--data-dir", str(data_dir))
    (path,) = (data_dir / "wal" / "quarantine").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    (row,) = as_json("wal", "quarantine", "export", *where)
    assert (row["seq"], bool(row["flaw"]), "request" in row) == (3, True, False)
    assert "damaged" in refused(WalError, "wal", "quarantine", "retry", "3", "--yes", *where)
    assert path.exists()
    assert "dropped entry 3" in run("wal", "quarantine", "drop", "3", *where, answer="y\n").stdout
    assert not path.exists()


def test_wal_quarantine_list(data_dir: Path) -> None:
    (row,) = as_json("wal", "quarantine", "list", "--data-dir", str(data_dir))
    assert (row["seq"], row["code"], row["details"]) == (3, "INVALID_ARGUMENT", "Wrong input: [dimension]")
    assert "Wrong input: [dimension]" in run("wal", "quarantine", "list", "--data-dir", str(data_dir)).stdout


def test_wal_compact_keeps_what_is_needed(data_dir: Path) -> None:
    done = as_json("wal", "compact", "--data-dir", str(data_dir), "--older-than-days", "0")
    assert done["segments_removed"] == 0
    assert as_json("wal", "status", "--data-dir", str(data_dir))["pending_count"] == 2
    (data_dir / "store").rename(data_dir / "elsewhere")
    assert "no replica" in refused(WalError, "wal", "compact", "--data-dir", str(data_dir))


def test_wal_reset_asks_first_and_destroys_nothing(data_dir: Path) -> None:
    result = CliRunner().invoke(app, ["wal", "reset", "--data-dir", str(data_dir)], input="n\n")
    assert result.exit_code == 1
    assert "2 writes are pending" in result.output
    assert (data_dir / "wal").is_dir()
    run("wal", "reset", "--data-dir", str(data_dir), answer="y\n")
    assert not (data_dir / "wal").exists()
    (aside,) = data_dir.glob("wal.reset-*")
    aside.rename(data_dir / "wal")
    assert as_json("wal", "status", "--data-dir", str(data_dir))["pending_count"] == 2
    run("wal", "reset", "--yes", "--data-dir", str(data_dir))
    assert not (data_dir / "wal").exists()


def test_wal_reset_asks_also_when_the_key_is_gone(data_dir: Path) -> None:
    (key,) = (data_dir / "wal" / "keys").iterdir()
    key.unlink()
    result = CliRunner().invoke(app, ["wal", "reset", "--data-dir", str(data_dir)], input="n\n")
    assert result.exit_code == 1
    assert "cannot be told" in result.output
    assert (data_dir / "wal").is_dir()
    run("wal", "reset", "--data-dir", str(data_dir), answer="y\n")
    assert not (data_dir / "wal").exists()
    assert len(list(data_dir.glob("wal.reset-*"))) == 1


@pytest.mark.parametrize("command", ["status", "verify", "list", "compact", "reset"])
def test_where_there_is_no_log(tmp_path: Path, command: str) -> None:
    (tmp_path / "store").mkdir()
    assert "no log" in refused(DataDirUnusable, "wal", command, "--data-dir", str(tmp_path))
    assert not (tmp_path / "wal").exists()


# --- the log, with the server running --------------------------------------------------------------------------------


@pytest.fixture
def held(data_dir: Path) -> Iterator[Path]:
    """The same directory, held by a server."""
    lock = RealDisk().lock(data_dir / "wal" / "lock")
    yield data_dir
    lock.release()


@pytest.mark.parametrize(
    "words",
    [
        ("verify",),
        ("compact",),
        ("reset",),
        ("status",),
        ("list",),
        ("show", "1"),
        ("quarantine", "list"),
        ("quarantine", "show", "3"),
        ("quarantine", "export"),
        ("quarantine", "retry", "--all", "--yes"),
        ("quarantine", "drop", "3", "--yes"),
    ],
)
def test_a_held_log_without_a_server_to_ask(held: Path, words: tuple[str, ...]) -> None:
    before = sorted(held.rglob("*"))
    text = refused(WalLocked, "wal", *words, "--data-dir", str(held))
    assert "stop" in text.lower()
    assert sorted(held.rglob("*")) == before


def test_a_socket_of_a_server_that_is_gone(held: Path) -> None:
    (held / "wal" / "control").write_text(f"{held}/nothing\n")
    assert "does not answer" in refused(WalLocked, "wal", "status", "--data-dir", str(held))


# --- a running server ------------------------------------------------------------------------------------------------


def test_status() -> None:
    fake = FakeDesk(pending=3, oldest_pending_age_seconds=4000.0, state="local", quarantine=1)
    with serving(fake) as address:
        assert as_json("status", "--admin", address)["pending"] == 3
        text = run("status", "--admin", address).stdout
    for word in ("LOCAL", "3, the oldest for 67 min", "[docs]", "qdrant:6334", "2.0 kB"):
        assert word in text


def test_status_tells_what_qdrant_had_lost() -> None:
    with serving(FakeDesk()) as address:
        text = " ".join(run("status", "--admin", address).stdout.split())
    assert "lost by Qdrant 17 points sent again, 3 looks, one is due" in text
    put_off = {"is_due": False, "is_owed": True, "looks": 4, "restored_points": 17}
    with serving(FakeDesk(grace=put_off)) as address:
        text = " ".join(run("status", "--admin", address).stdout.split())
    assert "lost by Qdrant 17 points sent again, 4 looks, one waits for the replica" in text


def test_status_of_a_local_store() -> None:
    with serving(FakeDesk(upstream=None, replay=None, state="local")) as address:
        assert "LOCAL STORE" in run("status", "--admin", address).stdout


def test_sync() -> None:
    fake = FakeDesk(pending=3)
    with serving(fake) as address:
        assert "asked for; 3 pending" in run("sync", "--admin", address).stdout
    assert fake.synced == 1
    with serving(FakeDesk(pending=3, state="local")) as address:
        assert "as soon as it is back" in run("sync", "--admin", address).stdout
    with serving(FakeDesk(pending=0)) as address:
        assert "nothing is pending" in run("sync", "--admin", address).stdout


def test_hydrate_follows_until_it_is_done() -> None:
    def row(state: str, points: int) -> dict[str, Any]:
        return {"hydration": [{"collection": "[a]", "state": state, "points": points, "expected_points": 9}]}

    fake = FakeDesk()
    fake.later = [row("complete", 9), row("copying", 0), row("copying", 5), row("waiting", 5), row("complete", 9)]
    with serving(fake) as address:
        assert "9/9" in run("hydrate", "[a]", "--admin", address).stdout
    assert fake.hydrated == [["[a]"]]
    assert fake.later == []


def test_hydrate_says_what_did_not_go_well() -> None:
    failed = {"collection": "a", "state": "failed", "points": 1, "expected_points": 2, "reason": "no key"}
    with serving(FakeDesk(hydration=[failed])) as address:
        result = CliRunner().invoke(app, ["hydrate", "a", "b", "--admin", address], catch_exceptions=False)
    assert result.exit_code == 1
    assert "a: failed, no key" in result.output
    assert "b: Qdrant does not have it" in result.output


def test_verify_follows_and_says_what_was_repaired() -> None:
    def row(state: str, **more: Any) -> dict[str, Any]:
        one = {"collection": "[a]", "state": state, "points": 9, "expected_points": 9, "ranges": 3, **more}
        return {"verification": [one]}

    fake = FakeDesk()
    fake.later = [row("waiting"), row("verifying"), row("verifying")]
    fake.later += [row("verified", points_repaired=2, ranges_repaired=1)]
    with serving(fake) as address:
        said = run("hydrate", "[a]", "--verify", "--admin", address).stdout
        assert "[a]: 9 points in 3 ranges compared, 2 points in 1 ranges repaired" in said
    assert (fake.hydrated, fake.verified, fake.later) == ([], [["[a]"]], [])
    with serving(FakeDesk(**row("verified", points_repaired=0))) as address:
        assert "all equal" in run("hydrate", "--verify", "--admin", address).stdout
    again = row("copied again", points_repaired=8, ranges_repaired=2, reason="one range after the other differed")
    with serving(FakeDesk(**again)) as address:
        assert "it is copied again" in run("hydrate", "--verify", "--admin", address).stdout
    with serving(FakeDesk(**row("failed", reason="no key"))) as address:
        result = CliRunner().invoke(app, ["hydrate", "--verify", "--admin", address], catch_exceptions=False)
    assert result.exit_code == 1
    assert "[a]: failed, no key" in result.output


def test_status_tells_of_copies_and_comparisons() -> None:
    collections = [
        {"name": "a", "completeness": "hydrating", "points": 5, "expected_points": 9, "verified_at": None},
        {"name": "b", "completeness": "complete", "points": 9, "expected_points": 9, "verified_at": "2026-01-02T03:04"},
        {"name": "c", "completeness": "empty", "points": 0, "expected_points": 99, "verified_at": None},
    ]
    hydration = [
        {"collection": "a", "state": "copying", "points": 5, "points_per_second": 1234.0},
        {"collection": "b", "state": "complete", "points": 9},
        {"collection": "c", "state": "left out", "points": 0, "reason": "99 points, more than 10"},
    ]
    verification = [{"collection": "b", "state": "verified", "points_repaired": 7}]
    fake = FakeDesk(collections=collections, hydration=hydration, verification=verification)
    with serving(fake) as address:
        rows = {line.split()[0]: line for line in run("status", "--admin", address).stdout.splitlines() if line.split()}
    assert "hydrating, 1,234 points/s" in rows["a"]
    assert "2026-01-02T03:04" in rows["b"]
    assert rows["b"].split()[-1] == "7"
    assert "left out" in rows["c"]


def test_hydrate_while_qdrant_is_away() -> None:
    with serving(FakeDesk(state="local")) as address:
        assert "Qdrant is away" in run("hydrate", "--admin", address).stdout
        assert "asked for" in run("hydrate", "--no-wait", "--admin", address).stdout


def test_hydrate_without_an_upstream() -> None:
    fake = FakeDesk()
    fake.has_upstream = False
    with serving(fake) as address:
        assert "no Qdrant" in refused(AdminRefused, "hydrate", "--admin", address)


@pytest.mark.parametrize("words", [("status",), ("sync",), ("hydrate",)])
def test_nobody_there(words: tuple[str, ...]) -> None:
    assert NOBODY in refused(AdminUnreachable, *words)


def test_something_else_there() -> None:
    """A web server that is not ours."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        answering = threading.Thread(target=other.handle_request)
        answering.start()
        refused(AdminUnreachable, "status", "--admin", f"127.0.0.1:{other.server_port}")
        answering.join()


def test_the_admin_port_switched_off() -> None:
    assert "switched off" in refused(ConfigError, "status", "--admin", "off")


# --- settings and doctor ---------------------------------------------------------------------------------------------


def test_config_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_KEYS_API_KEY", "sesame")
    file = tmp_path / "u.yaml"
    file.write_text("wal:\n  entry_points: 5\n")
    document = as_json("config", "show", "--config", str(file))
    assert document["wal.entry_points"] == {"value": 5, "source": f"file {file}"}
    assert document["keys.api_key"] == {"value": "********", "source": "environment UNDERSTUDY_KEYS_API_KEY"}
    assert document["vectorstore.api_key"] == {"value": None, "source": "default"}
    monkeypatch.setenv("UNDERSTUDY_REPLICA_CHROMA", "http://127.0.0.1:8000/")
    shown = as_json("config", "show", "--config", str(file))["replica.chroma"]
    assert shown == {"value": "http://127.0.0.1:8000", "source": "environment UNDERSTUDY_REPLICA_CHROMA"}
    text = run("config", "show", "--config", str(file)).stdout
    assert "sesame" not in text
    assert "replay.quarantine_policy" in text


def test_doctor_finds_nothing_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_LISTEN", "127.0.0.1:0")
    findings = as_json("doctor", "--data-dir", str(tmp_path), "--admin", "127.0.0.1:0")
    assert {finding["verdict"] for finding in findings} <= {"ok", "note"}
    assert list(tmp_path.iterdir()) == []


def test_doctor_knocks_at_the_chroma_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_LISTEN", "127.0.0.1:0")
    words = ["doctor", "--data-dir", str(tmp_path), "--admin", "127.0.0.1:0"]
    with socket.create_server(("127.0.0.1", 0)) as there:
        monkeypatch.setenv("UNDERSTUDY_REPLICA_CHROMA", f"http://127.0.0.1:{there.getsockname()[1]}")
        found = {finding["about"]: finding["verdict"] for finding in as_json(*words)}
        assert found["Chroma server"] == "ok"
    gone = [finding for finding in as_json(*words) if finding["about"] == "Chroma server"]
    assert [finding["verdict"] for finding in gone] == ["note"] and "searches are exact" in gone[0]["text"]


def test_doctor_finds_what_is_wrong(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("UNDERSTUDY_LISTEN", f"127.0.0.1:{port}")
        words = ["doctor", "--data-dir", str(data_dir), "--upstream", NOBODY, "--json"]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 1
    verdicts = {finding["about"]: finding["verdict"] for finding in json.loads(result.stdout)}
    assert verdicts["client port"] == "bad"
    assert verdicts["Qdrant"] == "bad"
    assert verdicts["log"] == "note", "there is a refused write"


def test_doctor_sees_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "wal").write_text("")
    result = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path), "--json"], catch_exceptions=False)
    verdicts = {finding["about"]: finding["verdict"] for finding in json.loads(result.stdout)}
    assert verdicts["log directory"] == "bad"


# --- the command itself ----------------------------------------------------------------------------------------------


def _help_of(words: list[str]) -> str:
    return CliRunner().invoke(app, [*words, "--help"], catch_exceptions=False).stdout


def test_help_teaches_by_example() -> None:
    for words in (
        ["serve"],
        ["status"],
        ["hydrate"],
        *(["wal", word] for word in ("status", "verify", "list", "show", "compact", "reset")),
        *(["wal", "quarantine", word] for word in ("list", "show", "retry", "drop", "export")),
        ["config", "show"],
        ["doctor"],
    ):
        assert f"understudy {' '.join(words)}" in _help_of(words), words


def test_version() -> None:
    assert run("--version").stdout.startswith("understudy 0.")


def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["understudy", "status"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == AdminUnreachable.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("understudy: no Understudy answers")
