"""PURE but for the pipe it is given: the frames between the replica and its index process.

    frame = u32 length of head ‖ u32 length of body ‖ head (JSON object, UTF-8) ‖ body (raw: keys, little-endian floats)

Promises: a frame is read whole or not at all; a head or body above its limit is refused. No pickles: the peer may have
gone wild.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

_LENGTHS = struct.Struct("<II")
HEAD_LIMIT_BYTES = 1 << 20
BODY_LIMIT_BYTES = 1 << 28


class BadFrame(Exception):
    """The bytes are no frame, or the stream ended inside one."""


def encode(head: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame."""
    text = json.dumps(head).encode()
    return _LENGTHS.pack(len(text), len(body)) + text + body


def read(receive: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes]:
    """One frame from `receive(n)`, which returns exactly n bytes, or fewer at the end. Raises BadFrame, EOFError."""
    lengths = receive(_LENGTHS.size)
    if not lengths:
        raise EOFError
    if len(lengths) < _LENGTHS.size:
        raise BadFrame("ended inside the lengths")
    head_size, body_size = _LENGTHS.unpack(lengths)
    if head_size > HEAD_LIMIT_BYTES or body_size > BODY_LIMIT_BYTES:
        raise BadFrame("longer than any frame")
    content = receive(head_size + body_size)
    if len(content) < head_size + body_size:
        raise BadFrame("ended inside a frame")
    try:
        head = json.loads(content[:head_size])
    except ValueError as error:
        raise BadFrame("the head is not JSON") from error
    if not isinstance(head, dict):
        raise BadFrame("the head is not an object")
    return head, content[head_size:]
