"""What the stand-in says no with: the status codes and texts of a Qdrant server.

Promises: the texts measured on a real 1.18.3 server. Does not promise texts for refusals that nobody measured; those
keep the engine's own words behind `Wrong input: `.
"""

from __future__ import annotations

import re

from grpc import StatusCode


class Refused(Exception):
    """A call that Qdrant would refuse."""

    def __init__(self, code: StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def invalid(text: str) -> Refused:
    """INVALID_ARGUMENT."""
    return Refused(StatusCode.INVALID_ARGUMENT, text)


def wrong_input(text: str) -> Refused:
    """INVALID_ARGUMENT in the words of Qdrant's collection layer."""
    return invalid(f"Wrong input: {text}")


def no_collection(name: str) -> Refused:
    """NOT_FOUND for a collection."""
    return Refused(StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")


def collection_exists(name: str) -> Refused:
    """ALREADY_EXISTS for a collection."""
    return Refused(StatusCode.ALREADY_EXISTS, f"Wrong input: Collection `{name}` already exists!")


def no_point(point_id: object) -> Refused:
    """NOT_FOUND for a point."""
    return Refused(StatusCode.NOT_FOUND, f"Not found: No point with id {point_id} found")


def zero(field: str) -> Refused:
    """A limit below one."""
    return invalid(f"Validation error in body: [{field}: value 0 invalid, must be 1 or larger]")


_NO_VECTOR = re.compile(r"Not existing vector name error: ?(.*)", re.DOTALL)
_NO_COLLECTION = re.compile(r"Collection (\S+) not found")
_NO_VECTOR_OF_POINT = re.compile(r"Vector with name .* for point .* not found")
_NO_POINT = re.compile(r"(?:Point with id|No point with id|Point(?= \S+ is not found)) (\S+)")


def from_engine(error: Exception) -> Refused:
    """Turn what local mode raises into what a server answers."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, KeyError):
        return no_point(error.args[0] if error.args else "")
    text = str(error)
    if match := _NO_VECTOR.search(text):
        return wrong_input(f"Not existing vector name error: {match.group(1)}")
    if match := _NO_COLLECTION.fullmatch(text):
        return no_collection(match.group(1))
    if _NO_VECTOR_OF_POINT.search(text):
        return Refused(StatusCode.NOT_FOUND, f"Not found: {text}")
    if match := _NO_POINT.search(text):
        return no_point(match.group(1))
    if text == "Empty update request":
        return invalid("Bad request: Empty update request")
    return invalid(text if text.startswith("Wrong input: ") else f"Wrong input: {text}")
