"""The control socket: who reaches it, what comes over it, what is left of it."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server import errors
from server.cli.running import Running
from server.control import CONTROL_NAME, MAX_BODY_BYTES, Control, read_control
from server.errors import AdminRefused, WalDamaged, WalError, WalLocked
from server.wal.files import RealDisk

LOCKED = WalLocked("the log is in use by process 1")


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[Control]:
    made = Control(tmp_path, RealDisk())

    async def echo(asked: dict[str, Any]) -> dict[str, Any]:
        return asked

    async def fail(_: dict[str, Any]) -> dict[str, Any]:
        raise WalDamaged("a flaw at 7", hint="Look")

    async def stumble(asked: dict[str, Any]) -> dict[str, Any]:
        return {"seq": int(asked["seq"])}

    async def rows(asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        for number in range(asked["count"]):
            yield {"seq": number}
        if asked.get("then") == "fail":
            raise WalError("gone", hint="Try again")
        if asked.get("then") == "break":
            raise RuntimeError("the connection is cut")

    made.offer("echo", echo)
    made.offer("fail", fail)
    made.offer("stumble", stumble)
    made.offer_rows("rows", rows)
    await made.start()
    yield made
    await made.stop()


async def ask(directory: Path, name: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(lambda: Running.of(directory, LOCKED).ask(name, **arguments))


async def rows_of(directory: Path, **arguments: Any) -> list[dict[str, Any]]:
    return await asyncio.to_thread(lambda: list(Running.of(directory, LOCKED).rows("rows", **arguments)))


async def test_it_is_private_and_gone_after_stop(control: Control, tmp_path: Path) -> None:
    socket = read_control(tmp_path, RealDisk())
    assert socket is not None
    modes = [stat.S_IMODE(path.lstat().st_mode) for path in (tmp_path / CONTROL_NAME, socket.parent, socket)]
    assert modes == [0o600, 0o700, 0o600]
    await control.stop()
    await control.stop()
    assert not socket.parent.exists()
    assert read_control(tmp_path, RealDisk()) is None
    with pytest.raises(WalLocked, match="no control socket"):
        await ask(tmp_path, "echo")


async def test_answers_and_errors_arrive_as_they_were(control: Control, tmp_path: Path) -> None:
    assert await ask(tmp_path, "echo", text="ä", number=1) == {"text": "ä", "number": 1}
    with pytest.raises(WalDamaged, match=r"a flaw at 7\. Look"):
        await ask(tmp_path, "fail")
    with pytest.raises(AdminRefused, match="another version"):
        await ask(tmp_path, "unheard-of")
    with pytest.raises(AdminRefused, match="cannot make sense"):
        await ask(tmp_path, "stumble", seq="x")
    with pytest.raises(WalLocked, match="does not answer"):
        await ask(tmp_path, "echo", text="x" * MAX_BODY_BYTES)


async def test_every_error_can_cross(control: Control, tmp_path: Path) -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.UnderstudyError)
    ]
    for kind in kinds:
        error = kind.__new__(kind)
        errors.UnderstudyError.__init__(error, "it went wrong", hint="Do this")

        async def fail(_: dict[str, Any], error: errors.UnderstudyError = error) -> dict[str, Any]:
            raise error

        control.offer("fail", fail)
        with pytest.raises(kind) as caught:
            await ask(tmp_path, "fail")
        assert (type(caught.value), str(caught.value)) == (kind, "it went wrong. Do this")


async def test_rows_are_whole_or_an_error(control: Control, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert await rows_of(tmp_path, count=3) == [{"seq": 0}, {"seq": 1}, {"seq": 2}]
    assert await rows_of(tmp_path, count=0) == []
    with pytest.raises(WalError, match=r"gone\. Try again"):
        await rows_of(tmp_path, count=2, then="fail")
    with pytest.raises(WalLocked):
        await rows_of(tmp_path, count=2, then="break")
    assert "the connection is cut" in caplog.text


async def test_what_a_killed_server_left_is_removed_and_nothing_else(control: Control, tmp_path: Path) -> None:
    left = read_control(tmp_path, RealDisk())
    assert left is not None
    after = Control(tmp_path, RealDisk())
    await after.start()
    assert not left.parent.exists()
    await after.stop()
    precious = tmp_path / "understudy-control-mine"
    precious.mkdir(mode=0o700)
    (precious / "socket").write_text("not a socket")
    for text in (f"{precious}/socket", f"{tmp_path}/socket", "relative/socket", "x" * 5000):
        (tmp_path / CONTROL_NAME).write_text(text + "\n")
        again = Control(tmp_path, RealDisk())
        await again.start()
        await again.stop()
        assert (precious / "socket").read_text() == "not a socket"


async def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("/tmp/x\n")
    (tmp_path / CONTROL_NAME).symlink_to(tmp_path / "other")
    assert read_control(tmp_path, RealDisk()) is None
