"""`understudy explain` against a real proxy, online and during an outage, and against a replica alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from server.cli import app
from server.errors import ConfigError, UpstreamUnreachable
from server.rpc import EXPLAIN, PLAN, POINTS, SOURCE
from tests.proxy.offline_calls import Caller
from tests.proxy.offline_data import PLAIN, dense, plain_collection
from tests.proxy.offline_filters import match, must
from tests.system.understudy import Understudy
from tests.upstream.process import ROOT, Standin

QUERY = {
    "collection_name": PLAIN,
    "query": {"nearest": dense(1, 2, 3, 4)},
    "filter": must(match("a", keyword="x")),
    "limit": 2,
}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide terminal and no key of the machine."""
    monkeypatch.setattr("server.cli.output.console.width", 200)
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Standin, Understudy]]:
    """A proxy with a collection, in front of a stand-in."""
    directory: Path = tmp_path_factory.mktemp("explain")
    with Standin(directory / "upstream") as standin, Understudy(directory / "understudy", standin.address) as made:
        made.wait_state("remote")
        caller = Caller(made.address)
        for method, request in plain_collection(PLAIN):
            caller.do(method, request)
        caller.close()
        yield standin, made


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["explain", *words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def document(*words: str, code: int = 0) -> Any:
    return json.loads(run(*words, "--json", code=code).stdout)


def test_the_local_copy_explains_itself_online_and_offline(proxy: tuple[Standin, Understudy]) -> None:
    standin, made = proxy
    caller = Caller(made.address)
    online = caller.do(POINTS + "Query", QUERY)
    assert online.trailers[SOURCE] == "remote"
    assert caller(POINTS + "Query", QUERY, (EXPLAIN, "1")).trailers[SOURCE] == "remote"
    before = document("Query", json.dumps(QUERY), "--address", made.address)
    assert before["source"] == "local" and before["completeness"] == "complete"
    assert [hit["id"] for hit in before["answer"]["result"]] == [hit["id"] for hit in online.response["result"]]
    names = [step["step"] for step in before["plan"]["steps"]]
    assert names == ["vectors", "filter", "query", "answer"]
    standin.kill()
    made.wait_state("local")
    during = document("Points/Query", json.dumps(QUERY), "--address", made.address)
    assert [step["step"] for step in during["plan"]["steps"]] == names
    # What an application asks for and gets, and what it gets unasked.
    asked = caller.do(POINTS + "Query", QUERY)
    assert PLAN not in asked.trailers
    explained = caller(POINTS + "Query", QUERY, (EXPLAIN, "1"))
    assert json.loads(explained.trailers[PLAN])["steps"] and explained.response["result"] == asked.response["result"]
    text = run("Query", json.dumps(QUERY), "--address", made.address).stdout
    assert "by every point, candidates 12" in text and "form nearest" in text and "complete" in text
    caller.close()


def test_a_refusal_is_told_with_its_plan(proxy: tuple[Standin, Understudy]) -> None:
    _, made = proxy
    bad = {**QUERY, "using": "zz"}
    told = document("/qdrant.Points/Query", json.dumps(bad), "--address", made.address, code=1)
    assert (told["code"], told["details"]) == ("INVALID_ARGUMENT", "Wrong input: Not existing vector name error: zz")
    assert told["plan"] is not None
    assert "Not existing vector name" in run("Query", json.dumps(bad), "--address", made.address, code=1).stdout
    assert "no steps" in run("Collections/List", "--address", made.address).stdout


def test_requests_out_of_files(proxy: tuple[Standin, Understudy], tmp_path: Path) -> None:
    _, made = proxy
    (tmp_path / "request.json").write_text(json.dumps({"collection_name": PLAIN}))
    assert (
        document("Count", f"@{tmp_path}/request.json", "--address", made.address)["answer"]["result"]["count"] == "12"
    )
    words = ["explain", "Count", "-", "--address", made.address, "--json"]
    result = CliRunner().invoke(app, words, input=json.dumps({"collection_name": PLAIN}), catch_exceptions=False)
    assert json.loads(result.stdout)["answer"]["result"]["count"] == "12"


def test_a_replica_alone_explains_itself_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.cli", "replica", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().rsplit(" ", 1)[-1].strip()
        caller = Caller(address)
        for method, request in plain_collection(PLAIN):
            caller.do(method, request)
        caller.close()
        told = document("Query", json.dumps(QUERY), "--address", address)
        process.terminate()
    assert told["source"] == "" and len(told["answer"]["result"]) == 2
    assert [step["step"] for step in told["plan"]["steps"]][-1] == "answer"


def test_nothing_is_sent_of_what_is_no_read() -> None:
    nobody = ("--address", "127.0.0.1:1")
    assert "replayed when Qdrant is back" in run("Upsert", *nobody).stdout
    assert "snapshots are files" in run("Snapshots/Create", *nobody).stdout
    assert document("Upsert", *nobody)["offline"] == "logged, applied, replayed"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("Nothing",), "there is no method `Nothing`"),
        (("Query", "{"), "the request cannot be read"),
        (("Query", '{"zz": 1}'), "qdrant.QueryPoints as protobuf JSON"),
        (("Query", "@/nowhere/at/all"), "the request cannot be read"),
    ],
)
def test_what_cannot_be_asked(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        CliRunner().invoke(app, ["explain", *words], catch_exceptions=False)


def test_nobody_there() -> None:
    with pytest.raises(UpstreamUnreachable):
        CliRunner().invoke(
            app, ["explain", "List", "--address", "127.0.0.1:1", "--timeout", "5"], catch_exceptions=False
        )
