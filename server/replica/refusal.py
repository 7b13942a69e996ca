"""What Qdrant would say instead of doing a thing.

Promises: the status codes and texts that Qdrant gives, one constructor each, so that no text is spelled twice. PURE.
Does not promise the texts of every version of Qdrant: they are those of 1.18 and 1.19.
"""

from __future__ import annotations

from collections.abc import Sequence

from generated.understudy.wal.v1 import entry_pb2 as wal
from server.errors import UnderstudyError
from server.rpc import Code


class Refusal(UnderstudyError):
    """A request is refused with this status."""

    def __init__(self, code: Code, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class NotServed(Refusal):
    """Qdrant might do it, the replica cannot: UNAVAILABLE, with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"Not served while Qdrant cannot be reached: {reason}")


class Halted(Refusal):
    """Refused in the middle: what Qdrant does before it refuses is done. `done`: those plain operations, serialized."""

    def __init__(self, refusal: Refusal, done: Sequence[wal.Operation]) -> None:
        super().__init__(refusal.code, refusal.details)
        self.done = done


def invalid(details: str) -> Refusal:
    """INVALID_ARGUMENT with this text."""
    return Refusal(Code.INVALID_ARGUMENT, details)


def wrong_input(what: str) -> Refusal:
    """INVALID_ARGUMENT, the text of Qdrant's own checks."""
    return invalid(f"Wrong input: {what}")


def bad_body(place: str, what: str) -> Refusal:
    """INVALID_ARGUMENT, the text of Qdrant's validation of a request body."""
    return invalid(f"Validation error in body: [{place}: {what}]")


def undecodable(reason: str) -> Refusal:
    """INTERNAL: the body is not the message that the method takes."""
    return Refusal(Code.INTERNAL, f"failed to decode Protobuf message: {reason}")


def no_collection(name: str) -> Refusal:
    """NOT_FOUND for a collection."""
    return Refusal(Code.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")


def no_point(identity: str) -> Refusal:
    """NOT_FOUND for a point; `identity` is the number or the canonical UUID."""
    return Refusal(Code.NOT_FOUND, f"Not found: No point with id {identity} found")


def no_vector_name(name: str) -> Refusal:
    """INVALID_ARGUMENT for a vector name that the collection lacks."""
    return wrong_input(f"Not existing vector name error: {name}")


def empty_update() -> Refusal:
    """INVALID_ARGUMENT for an update that names nothing."""
    return invalid("Bad request: Empty update request")


def catalogue_unknown(name: str) -> Refusal:
    """UNAVAILABLE: whether the collection exists is not known here."""
    return NotServed(f"collection `{name}` is not in the replica, and Qdrant's list of collections was never read")
