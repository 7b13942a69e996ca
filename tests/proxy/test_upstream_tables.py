"""Upstream's pure parts: who made a status, what metadata travels on, what an address means."""

from __future__ import annotations

import pytest

from server.errors import ConfigError
from server.rpc import Code
from server.upstream import Fault, channel_options, classify, forwardable, parse_target

CONNECT = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host"
RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code {}))"

# As measured with grpcio 1.85 on real sockets; test_upstream_faults.py makes most of them happen.
BY_THE_TRANSPORT = [
    (Code.UNAVAILABLE, CONNECT + ": Connection refused", Fault.NOT_SENT),
    (Code.UNAVAILABLE, "errors resolving nosuch.invalid:1: [field:hostname lookup error]", Fault.NOT_SENT),
    (Code.UNAVAILABLE, "DNS resolution failed for nosuch.invalid:1", Fault.NOT_SENT),
    (Code.UNAVAILABLE, "empty address list: ", Fault.NOT_SENT),
    (Code.UNAVAILABLE, "Stream removed (Socket closed)", Fault.LOST),
    (Code.UNAVAILABLE, "Stream removed (recvmsg:Connection reset by peer (104))", Fault.LOST),
    (Code.UNAVAILABLE, "Stream removed (ping timeout)", Fault.LOST),
    (Code.UNAVAILABLE, "Stream removed (GOAWAY received; Error code: 0; Debug Text: bye)", Fault.LOST),
    (Code.UNAVAILABLE, "Socket closed", Fault.LOST),
    (Code.UNAVAILABLE, "recvmsg:Connection reset by peer (104)", Fault.LOST),
    (Code.UNAVAILABLE, "GOAWAY received", Fault.LOST),
    (Code.UNAVAILABLE, "ping timeout", Fault.LOST),
    (Code.UNAVAILABLE, "keepalive watchdog timeout", Fault.LOST),
    (Code.UNAVAILABLE, "Cancelling all calls", Fault.LOST),
    (Code.CANCELLED, "CANCELLED", Fault.LOST),
    (Code.UNAVAILABLE, RESET.format(7), Fault.LOST),
    (Code.CANCELLED, RESET.format(8), Fault.LOST),
    (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Fault.TIMEOUT),
    (Code.DEADLINE_EXCEEDED, "Stream removed (Deadline Exceeded)", Fault.TIMEOUT),
]

BY_SOMETHING_BETWEEN = [
    (Code.UNAVAILABLE, "Received http2 header with status: 502", Fault.LOST),
    (Code.UNIMPLEMENTED, "Received http2 header with status: 404", Fault.LOST),
    (Code.UNAVAILABLE, "upstream connect error or disconnect/reset before headers", Fault.LOST),
    (Code.UNAVAILABLE, "no healthy upstream", Fault.LOST),
    (Code.CANCELLED, "Timeout expired", Fault.TIMEOUT),
    (Code.DEADLINE_EXCEEDED, "Timeout expired", Fault.TIMEOUT),
]

BY_THE_PEER = [
    (Code.UNAVAILABLE, "Shard 3 is not available"),
    (Code.UNAVAILABLE, ""),
    (Code.INTERNAL, "Service internal error: failed to connect to all addresses"),
    (Code.INTERNAL, RESET.format(2)),
    (Code.RESOURCE_EXHAUSTED, RESET.format(11)),
    (Code.RESOURCE_EXHAUSTED, "Write rate limit exceeded"),
    (Code.DEADLINE_EXCEEDED, "Timeout error: Operation 'Search' timed out after 1 seconds"),
    (Code.NOT_FOUND, "Not found: Collection `Socket closed` doesn't exist!"),
    (Code.INVALID_ARGUMENT, "Socket closed"),
    (Code.UNAUTHENTICATED, "Invalid API key or JWT"),
    (Code.CANCELLED, "Cancelled by the user"),
    (Code.UNIMPLEMENTED, ""),
]


@pytest.mark.parametrize(("code", "details", "fault"), BY_THE_TRANSPORT)
def test_what_the_transport_says(code: Code, details: str, fault: Fault) -> None:
    assert classify(code, details, has_trailers=False) is fault
    # The transport never sends trailers: the same words with some are the peer's.
    assert classify(code, details, has_trailers=True) is Fault.PEER


@pytest.mark.parametrize(("code", "details", "fault"), BY_SOMETHING_BETWEEN)
@pytest.mark.parametrize("has_trailers", [False, True])
def test_what_a_gateway_says(code: Code, details: str, fault: Fault, has_trailers: bool) -> None:
    assert classify(code, details, has_trailers=has_trailers) is fault


@pytest.mark.parametrize(("code", "details"), BY_THE_PEER)
@pytest.mark.parametrize("has_trailers", [False, True])
def test_what_qdrant_says(code: Code, details: str, has_trailers: bool) -> None:
    assert classify(code, details, has_trailers=has_trailers) is Fault.PEER


@pytest.mark.parametrize("code", list(Code))
def test_an_unknown_text_is_the_peers_whatever_the_code(code: Code) -> None:
    assert classify(code, "something never seen", has_trailers=False) is Fault.PEER


def test_hop_by_hop_metadata_stays_behind() -> None:
    kept = (
        ("api-key", "secret"),
        ("authorization", "Bearer x"),
        ("traceparent", "00-1-2-01"),
        ("x-blob-bin", b"\x00\xff"),
        ("api-key", "twice"),
        ("grpc-status-details-bin", b"\x08\x05"),
        ("grpc-retry-pushback-ms", "7"),
        ("grpc-previous-rpc-attempts", "1"),
    )
    dropped = (
        ("user-agent", "grpc-python"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-timeout", "5S"),
        ("grpc-accept-encoding", "gzip"),
        ("grpc-status", "5"),
        ("grpc-message", "no"),
        (":authority", "host"),
    )
    assert forwardable((*dropped, *kept)) == kept
    assert forwardable(()) == ()


@pytest.mark.parametrize("letter", [*(chr(code) for code in range(0x101)), "\u2028", "\ud7ff", "\U0001f600"])
def test_text_that_grpc_does_not_send_stays_behind(letter: str) -> None:
    """The specification of gRPC over HTTP/2 allows 0x20 to 0x7E in the text of a header."""
    is_sent = 0x20 <= ord(letter) <= 0x7E
    assert forwardable((("x-a", "1"), ("x-b", f"a{letter}b"), ("x-c", ""), ("x-d-bin", letter.encode()))) == (
        ("x-a", "1"),
        *((("x-b", f"a{letter}b"),) * is_sent),
        ("x-c", ""),
        ("x-d-bin", letter.encode()),
    )


@pytest.mark.parametrize(
    ("text", "target", "secure"),
    [
        ("127.0.0.1:6334", "127.0.0.1:6334", False),
        ("http://127.0.0.1:7334", "127.0.0.1:7334", False),
        ("http://127.0.0.1:7334/", "127.0.0.1:7334", False),
        ("https://qdrant.example:6334", "qdrant.example:6334", True),
        ("grpc://qdrant:1", "qdrant:1", False),
        ("grpcs://qdrant:1", "qdrant:1", True),
        ("qdrant", "qdrant:6334", False),
        ("https://qdrant.example", "qdrant.example:6334", True),
        (" qdrant:1 ", "qdrant:1", False),
        ("[::1]:6334", "[::1]:6334", False),
        ("http://[::1]", "[::1]:6334", False),
        ("dns:///qdrant:6334", "dns:///qdrant:6334", False),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2", False),
        ("unix:/run/replica.sock", "unix:/run/replica.sock", False),
        ("unix:///run/replica.sock", "unix:///run/replica.sock", False),
    ],
)
def test_addresses(text: str, target: str, secure: bool) -> None:
    assert parse_target(text) == (target, secure)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "http://",
        "ftp://host:1",
        "host:port",
        "host:99999",
        "a b:1",
        "http://host:1/path",
        "http://u:p@host:1",
    ],
)
def test_bad_addresses_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="bad address"):
        parse_target(text)


def test_channel_options() -> None:
    options = dict(channel_options(-1, 5.0))
    assert options["grpc.enable_retries"] == 0
    assert options["grpc.enable_http_proxy"] == 0
    # gRPC's jitter: up to 1.2 times as long.
    assert 1.2 * options["grpc.max_reconnect_backoff_ms"] == 4500
    assert options["grpc.min_reconnect_backoff_ms"] == 5000
    assert options["grpc.initial_reconnect_backoff_ms"] == 200
    assert (options["grpc.keepalive_time_ms"], options["grpc.keepalive_timeout_ms"]) == (10_000, 5_000)
    assert options["grpc.http2.ping_timeout_ms"] == 5_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.http2.max_pings_without_data"] == 0
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == -1
    assert dict(channel_options(1000, 0.0))["grpc.max_reconnect_backoff_ms"] == 200
    assert dict(channel_options(1000, 0.0))["grpc.max_receive_message_length"] == 1000
