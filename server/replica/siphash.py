"""PURE. SipHash-2-4 with a zero key, which Qdrant uses to cut the ids of a collection into slices.

Promises: the same 64 bits as the reference of Aumasson and Bernstein. Not for hash tables: it is slow in Python.
"""

from __future__ import annotations

import struct

from server.replica.records import Key

_MASK = (1 << 64) - 1
_START = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def _turn(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (64 - bits))) & _MASK


def _rounds(state: tuple[int, int, int, int], count: int) -> tuple[int, int, int, int]:
    a, b, c, d = state
    for _ in range(count):
        a = (a + b) & _MASK
        c = (c + d) & _MASK
        b = _turn(b, 13) ^ a
        d = _turn(d, 16) ^ c
        a = _turn(a, 32)
        a = (a + d) & _MASK
        c = (c + b) & _MASK
        d = _turn(d, 21) ^ a
        b = _turn(b, 17) ^ c
        c = _turn(c, 32)
    return a, b, c, d


def siphash(data: bytes) -> int:
    """64 bits of `data`."""
    padded = data + b"\0" * (7 - len(data) % 8) + bytes([len(data) & 0xFF])
    state = _START
    for (word,) in struct.iter_unpack("<Q", padded):
        a, b, c, d = state
        a, b, c, d = _rounds((a, b, c, d ^ word), 2)
        state = (a ^ word, b, c, d)
    a, b, c, d = state
    a, b, c, d = _rounds((a, b, c ^ 0xFF, d), 4)
    return a ^ b ^ c ^ d


def slice_of(key: Key, total: int) -> int:
    """The slice of a point among `total`: numbers hash as 8 bytes little-endian, UUIDs as their 16 bytes."""
    data = key[:0:-1] if key[0] == 0 else key[1:]
    return siphash(data) % total
