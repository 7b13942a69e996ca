"""PURE. Point keys in rows of one length, as they travel to the index process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

KEY_BYTES = 17
_NUMBER_BYTES = 9


def pack_keys(keys: Sequence[bytes]) -> bytes:
    """Keys of 9 or 17 bytes as 17 bytes each."""
    return b"".join(key.ljust(KEY_BYTES, b"\0") for key in keys)


def unpack_keys(body: bytes) -> list[bytes]:
    """The inverse of `pack_keys`: the first byte tells numbers from UUIDs."""
    pieces = [body[at : at + KEY_BYTES] for at in range(0, len(body), KEY_BYTES)]
    return [piece if piece[0] else piece[:_NUMBER_BYTES] for piece in pieces]


def unpack_found(body: bytes, count: int) -> tuple[list[bytes], npt.NDArray[np.float32]]:
    """What a query found: `count` keys, and as many distances behind them."""
    cut = count * KEY_BYTES
    return unpack_keys(body[:cut]), np.frombuffer(body, dtype="<f4", offset=cut)
