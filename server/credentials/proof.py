"""PURE. What Qdrant's answer to a call says about the credential that the call carried.

Promises: one row per status code. Qdrant checks the key before it looks at the request, and the rights while it
carries the request out; so a refusal of the request proves the key, but not the right. Codes that a load balancer, a
proxy or the transport also makes prove nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from server.rpc import METHODS, Code


class Proof(Enum):
    """What an answer shows."""

    ALLOWED = "the key is good, and may do this"
    KNOWN = "the key is good; whether it may do this is not shown"
    FORBIDDEN = "the key may not do this"
    REFUSED = "the key is not good"
    NOTHING = "nothing about the key"


PROOFS: Mapping[Code, Proof] = {
    Code.OK: Proof.ALLOWED,
    Code.INVALID_ARGUMENT: Proof.KNOWN,
    Code.NOT_FOUND: Proof.KNOWN,
    Code.ALREADY_EXISTS: Proof.KNOWN,
    Code.FAILED_PRECONDITION: Proof.KNOWN,
    Code.PERMISSION_DENIED: Proof.FORBIDDEN,
    Code.UNAUTHENTICATED: Proof.REFUSED,
    Code.CANCELLED: Proof.NOTHING,
    Code.UNKNOWN: Proof.NOTHING,
    Code.DEADLINE_EXCEEDED: Proof.NOTHING,
    Code.RESOURCE_EXHAUSTED: Proof.NOTHING,
    Code.ABORTED: Proof.NOTHING,
    Code.OUT_OF_RANGE: Proof.NOTHING,
    Code.UNIMPLEMENTED: Proof.NOTHING,
    Code.INTERNAL: Proof.NOTHING,
    Code.UNAVAILABLE: Proof.NOTHING,
    Code.DATA_LOSS: Proof.NOTHING,
}

# Services whose every call Qdrant checks. Health checks and reflection pass without a key, whatever it is.
_CHECKED = ("/qdrant.Points/", "/qdrant.Collections/", "/qdrant.Snapshots/")

# Refusals with PERMISSION_DENIED that are about the credential itself: a bad or expired signature, and the text of
# servers before 1.9 for a wrong key.
_ABOUT_THE_KEY = ("signature", "expired", "api-key", "api key", "jwt", "token")

# Servers older than May 2025 (pull request 6560) refuse with PERMISSION_DENIED what the strict mode of a collection
# forbids. The text says what to do, and names fields of the request, which may be called anything. The key was checked.
_OF_STRICT_MODE = ". help: "


def is_checked(method: str) -> bool:
    """Whether Qdrant's answer to this method can prove anything about a credential."""
    return method in METHODS and method.startswith(_CHECKED)


def proof_of(method: str, code: Code, details: str) -> Proof:
    """What an answer of Qdrant shows."""
    if not is_checked(method):
        return Proof.NOTHING
    proof, text = PROOFS[code], details.lower()
    if proof is not Proof.FORBIDDEN:
        return proof
    if _OF_STRICT_MODE in text:
        return Proof.KNOWN
    return Proof.REFUSED if any(words in text for words in _ABOUT_THE_KEY) else proof
