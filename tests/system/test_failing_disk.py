"""A disk that fails under a running server: `strace` makes system calls of the real process fail."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from qdrant_client import QdrantClient, models

from tests.system.understudy import Understudy
from tests.upstream.process import ROOT, until

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed here")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.contextmanager
def injected(pid: int, system_call: str, what: str) -> Iterator[None]:
    """While this lasts, a system call of every thread of a process does what `what` says."""
    command = [
        "strace",
        "-f",
        "-qq",
        "-e",
        f"trace={system_call}",
        "-e",
        f"inject={system_call}:{what}",
        "-p",
        str(pid),
    ]
    tracer = subprocess.Popen([*command, "-o", "/dev/null", "-v"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        status = Path(f"/proc/{pid}/status")
        until(lambda: "TracerPid:\t0\n" not in status.read_text(), 20, "strace attaches")
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=20)


def health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status)


def readiness(admin: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{admin}/readyz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def write(client: QdrantClient, number: int) -> bool:
    try:
        client.upsert("docs", [models.PointStruct(id=number, vector=[1.0, float(number)])], wait=True)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return False
    return True


def reopen(server: Understudy) -> dict[str, object]:
    command = [str(ROOT / ".venv/bin/understudy"), "wal", "reopen", "--json", "--data-dir", str(server.data)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("how", ["command", "probe"])
def test_a_failed_fsync_under_a_running_server(tmp_path: Path, how: str) -> None:
    pause = {"command": "0", "probe": "0.5s"}[how]
    with Understudy(tmp_path, None, UNDERSTUDY_WAL_REOPEN_SECONDS=pause) as server:
        client = server.client()
        client.create_collection("docs", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        assert write(client, 1)
        assert health(server.address, "") == SERVING
        with injected(server.pid, "fdatasync", "error=EIO"):
            assert not write(client, 2), "acknowledged after a failed fsync"
            assert health(server.address, "") == health(server.address, "understudy.writes") == NOT_SERVING
            assert health(server.address, "understudy.reads") == SERVING
            code, why = readiness(server.admin)
            assert (code, "Input/output error" in why) == (503, True), why
            assert [point.id for point in client.scroll("docs")[0]] == [1], "reads go on"
            assert not write(client, 3)
        if how == "command":
            assert "Input/output error" in str(reopen(server)["was_latched"])
        until(lambda: readiness(server.admin)[0] == 200, 30, "the log takes writes again")
        assert health(server.address, "") == SERVING
        assert write(client, 4)
        server.kill()
        server.start()
        found = {point.id for point in server.client().scroll("docs")[0]}
        assert found == {1, 4}


def test_interrupted_system_calls_are_not_noticed(tmp_path: Path) -> None:
    with Understudy(tmp_path, None) as server:
        client = server.client()
        client.create_collection("docs", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        for system_call in ("fdatasync", "writev"):
            with injected(server.pid, system_call, "error=EINTR:when=1+2"):
                done = [write(client, number) for number in range(20)]
            assert all(done)
        assert readiness(server.admin)[0] == 200
        assert len(client.scroll("docs", limit=100)[0]) == 20
