"""The operators' port: what it answers, and to whom it does not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import aiohttp
import pytest

from server.admin import GUARD_HEADER, MAX_BODY_BYTES, Admin
from server.cli.remote import GUARD_HEADER as CLIENT_HEADER
from server.errors import AddressInUse, ConfigError
from tests.cli.desk import STATUS, FakeDesk

ACT = {GUARD_HEADER: "1"}


class Port:
    """A started port and a client of it."""

    def __init__(self, fake: FakeDesk, admin: Admin, address: str, session: aiohttp.ClientSession) -> None:
        self.fake = fake
        self.admin = admin
        self.address = address
        self.session = session


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    fake = FakeDesk()
    admin = Admin(fake.desk)
    address = await admin.start("127.0.0.1:0")
    async with aiohttp.ClientSession(f"http://{address}") as session:
        yield Port(fake, admin, address, session)
    await admin.stop()
    fake.metrics.close()


async def test_status_is_what_the_desk_says(port: Port) -> None:
    async with port.session.get("/status") as answer:
        assert answer.status == 200
        assert await answer.json() == STATUS


async def test_metrics_are_prometheus_text(port: Port) -> None:
    port.fake.metrics.state(2)
    async with port.session.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "fallback_state 2.0" in await answer.text()


async def test_health(port: Port) -> None:
    for path in ("/livez", "/readyz"):
        async with port.session.get(path) as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
    port.fake.not_ready = "the log takes no writes"
    async with port.session.get("/readyz") as answer:
        assert (answer.status, await answer.text()) == (503, "the log takes no writes\n")
    async with port.session.get("/livez") as answer:
        assert answer.status == 200


async def test_the_page_loads_nothing_from_elsewhere(port: Port) -> None:
    for path, kind in (("/", "text/html"), ("/status.css", "text/css"), ("/status.js", "text/javascript")):
        async with port.session.get(path) as answer:
            assert answer.status == 200
            assert answer.content_type == kind
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            text = await answer.text()
            assert not re.search(r"https?://|//\w+\.", text.replace("// Reads /status", ""))
            assert "innerHTML" not in text


async def test_acts_want_the_header_and_gets_do_not_act(port: Port) -> None:
    for path in ("/sync", "/hydrate"):
        async with port.session.post(path) as answer:
            assert answer.status == 403
            assert GUARD_HEADER in (await answer.json())["error"]
        async with port.session.get(path, headers=ACT) as answer:
            assert answer.status == 405
    assert (port.fake.synced, port.fake.hydrated) == (0, [])


async def test_acts(port: Port) -> None:
    async with port.session.post("/sync", headers=ACT) as answer:
        assert await answer.json() == {"pending": 0, "upstream_up": True}
    async with port.session.post("/hydrate", headers=ACT) as answer:
        assert await answer.json() == {"requested": "all"}
    async with port.session.post("/hydrate", headers=ACT, json={"collections": ["a", "b"]}) as answer:
        assert answer.status == 200
    assert (port.fake.synced, port.fake.hydrated) == (1, [[], ["a", "b"]])
    async with port.session.post("/hydrate", headers=ACT, json={"collections": ["a"], "verify": True}) as answer:
        assert answer.status == 200
    assert (port.fake.hydrated, port.fake.verified) == ([[], ["a", "b"]], [["a"]])


@pytest.mark.parametrize("body", ["{", "[]", '{"collections": "a"}', '{"collections": [1]}', '{"verify": 1}'])
async def test_a_bad_body_is_refused(port: Port, body: str) -> None:
    async with port.session.post("/hydrate", headers=ACT, data=body) as answer:
        assert answer.status == 400
    assert port.fake.hydrated == port.fake.verified == []


async def test_a_huge_body_is_refused(port: Port) -> None:
    async with port.session.post("/hydrate", headers=ACT, data=b" " * (MAX_BODY_BYTES + 1)) as answer:
        assert answer.status == 413


async def test_what_cannot_be_done_is_said(port: Port) -> None:
    port.fake.has_upstream = False
    async with port.session.post("/hydrate", headers=ACT) as answer:
        assert answer.status == 409
        assert (await answer.json())["error"] == "there is no Qdrant to copy from. Set one"


async def test_the_log_in_pages(port: Port) -> None:
    port.fake.entries = [{"seq": 3}]
    async with port.session.get("/wal", params={"after": "2", "limit": "5"}) as answer:
        assert await answer.json() == {"entries": [{"seq": 3}]}
    assert port.fake.listed == [(2, 5)]
    for bad in ({"after": "x"}, {"after": "-1"}, {"limit": "0"}, {"limit": "1001"}):
        async with port.session.get("/wal", params=bad) as answer:
            assert answer.status == 400


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:6335", "10.0.0.1", "[2001:db8::1]:6335", "127.0.0.1.evil"]
)
async def test_another_name_for_this_machine_is_not_answered(port: Port, host: str) -> None:
    for path in ("/", "/status", "/metrics"):
        async with port.session.get(path, headers={"Host": host}) as answer:
            assert answer.status == 403
    async with port.session.post("/sync", headers={**ACT, "Host": host}) as answer:
        assert answer.status == 403
    assert port.fake.synced == 0


@pytest.mark.parametrize("host", ["localhost", "localhost:6335", "127.0.0.1:1", "[::1]:6335"])
async def test_loopback_names_are_answered(port: Port, host: str) -> None:
    async with port.session.get("/status", headers={"Host": host}) as answer:
        assert answer.status == 200


async def test_a_port_that_is_taken(port: Port) -> None:
    with pytest.raises(AddressInUse, match="in use"):
        await Admin(port.fake.desk).start(port.address)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:port", "127.0.0.1:70000", ":6335", "192.0.2.1:0"])
async def test_an_address_that_is_none(port: Port, address: str) -> None:
    with pytest.raises(ConfigError):
        await Admin(port.fake.desk).start(address)


async def test_after_stop_nobody_answers(port: Port) -> None:
    await port.admin.stop()
    await port.admin.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await port.session.get("/livez")


def test_the_command_line_sends_the_header() -> None:
    assert CLIENT_HEADER == GUARD_HEADER
