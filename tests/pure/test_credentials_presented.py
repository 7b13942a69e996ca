"""What a call presents, and what an answer proves."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.credentials import PROOFS, Absent, Credential, Proof, proof_of
from server.credentials.presented import claims_of, presented
from server.rpc import METHODS, Code


def token(claims: Any, header: Any = None) -> str:
    """An unsigned look-alike."""
    parts = [
        json.dumps(header or {"alg": "HS256", "typ": "JWT"}),
        claims if isinstance(claims, str) else json.dumps(claims),
    ]
    return ".".join([*(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts), "c2lnbmF0dXJl"])


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), Absent.ANONYMOUS),
        ((("user-agent", "x"),), Absent.ANONYMOUS),
        ((("api-key", "k"),), "k"),
        ((("api-key", ""),), ""),
        ((("authorization", "Bearer k"),), "k"),
        ((("authorization", "bearer k"),), Absent.ANONYMOUS),
        ((("authorization", "Basic k"),), Absent.ANONYMOUS),
        ((("authorization", "Bearer b"), ("api-key", "a")), "a"),
        ((("api-key", "a"), ("api-key", "a")), "a"),
        ((("api-key", "a"), ("api-key", "b")), Absent.AMBIGUOUS),
        ((("authorization", "Bearer a"), ("authorization", "Bearer b")), Absent.AMBIGUOUS),
    ],
)
def test_the_header_that_wins_in_qdrant_wins_here(metadata: Any, expected: str | Absent) -> None:
    found = presented(metadata)
    assert (found.value if isinstance(found, Credential) else found) == expected


def test_a_credential_never_shows_itself() -> None:
    found = presented((("api-key", "very-secret-value"),))
    assert "very-secret-value" not in f"{found!r} {found}"


@pytest.mark.parametrize(
    "value", ["plain", "a.b.c", "my.api.key", "", "..", "a.b", "e30.e30", "1.2.3.4", "bnVsbA.e30.x"]
)
def test_plain_keys_are_no_tokens(value: str) -> None:
    assert claims_of(value) is None


@pytest.mark.parametrize(
    ("claims", "expires", "collections", "is_manager", "is_checkable"),
    [
        ({}, None, None, True, True),
        ({"access": "m", "exp": 9}, 9, None, True, True),
        ({"access": "r"}, None, None, False, True),
        ({"access": [{"collection": "a", "access": "r"}]}, None, {"a"}, False, True),
        ({"access": [{"collection": "a", "access": "rw", "payload": {"u": 1}}]}, None, set(), False, True),
        (
            {"access": [{"collection": "a", "access": "rw"}, {"collection": "a", "access": "rw", "payload": {}}]},
            None,
            set(),
            False,
            True,
        ),
        ({"access": []}, None, set(), False, True),
        ({"access": "x"}, None, set(), False, False),
        ({"access": [7]}, None, set(), False, False),
        ({"exp": "soon"}, None, None, True, False),
        ({"exp": True}, None, None, True, False),
        ({"exp": -1}, None, None, True, False),
        ({"exp": 1.5}, None, None, True, False),
        ({"value_exists": {"collection": "a", "matches": []}}, None, None, True, False),
        ("[1]", None, None, False, False),
        ("not json", None, None, False, False),
    ],
)
def test_claims(claims: Any, expires: int | None, collections: Any, is_manager: bool, is_checkable: bool) -> None:
    found = claims_of(token(claims))
    assert found is not None
    assert (found.expires, found.is_checkable) == (expires, is_checkable)
    if is_checkable:
        assert (found.collections, found.is_manager) == (collections, is_manager)


def test_where_a_token_may_make_payload_indexes() -> None:
    rows = [("a", "rw"), ("b", "prw"), ("c", "r"), ("d", "rw"), ("d", "prw"), ("e", None)]
    found = claims_of(token({"access": [{"collection": name, "access": access} for name, access in rows]}))
    assert found is not None
    assert (found.collections, found.indexable) == ({"a", "b", "c", "d", "e"}, {"a"})


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_breaks_the_reading_of_tokens(head: str, body: str) -> None:
    claims_of(f"{head}.{body}.x")
    claims_of(f"{token({})}.{head}")
    claims_of(token(body))


def test_expiry_is_exact() -> None:
    found = claims_of(token({"exp": 100}))
    assert found is not None
    assert not found.is_expired(99_999_999_999)
    assert found.is_expired(100_000_000_000)


def test_each_status_code_has_its_row() -> None:
    assert set(PROOFS) == set(Code)


def test_only_services_that_qdrant_checks_prove_anything() -> None:
    checked = {path for path in METHODS if proof_of(path, Code.OK, "") is Proof.ALLOWED}
    assert checked == set(METHODS) - {"/qdrant.Qdrant/HealthCheck"}
    for path in ("/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/X", "/qdrant.Points/Future"):
        for code in Code:
            assert proof_of(path, code, "") is Proof.NOTHING


@pytest.mark.parametrize(
    ("code", "details", "proof"),
    [
        (Code.OK, "", Proof.ALLOWED),
        (Code.NOT_FOUND, "", Proof.KNOWN),
        (Code.UNAUTHENTICATED, "", Proof.REFUSED),
        (Code.PERMISSION_DENIED, "Forbidden: Global manage access is required", Proof.FORBIDDEN),
        (Code.PERMISSION_DENIED, "ExpiredSignature", Proof.REFUSED),
        (Code.PERMISSION_DENIED, "InvalidSignature", Proof.REFUSED),
        (Code.PERMISSION_DENIED, "Invalid api-key", Proof.REFUSED),
        (Code.RESOURCE_EXHAUSTED, "", Proof.NOTHING),
        (Code.UNAVAILABLE, "", Proof.NOTHING),
        (Code.UNIMPLEMENTED, "", Proof.NOTHING),
    ],
)
def test_what_answers_prove(code: Code, details: str, proof: Proof) -> None:
    assert proof_of("/qdrant.Points/Query", code, details) is proof


def test_the_documentation_has_the_same_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([A-Z_]+) \| (.+) \|$", page, re.MULTILINE))
    assert rows == {code.name: proof.value for code, proof in PROOFS.items()}
