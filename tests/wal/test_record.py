"""The codec: whole, byte by byte, with trailing bytes, mutated."""

from __future__ import annotations

import hashlib
import hmac as reference_hmac
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.wal.keyring import Keyring
from server.wal.quarantine import MAGIC as ITEM_MAGIC
from server.wal.quarantine import QuarantineItem, Refused, decode_item, encode_item
from server.wal.record import (
    FRAME_OVERHEAD_BYTES,
    HEAD_BYTES,
    HEAD_MAGIC,
    SEGMENT_HEADER_BYTES,
    EntryState,
    Flaw,
    Frame,
    FrameRules,
    FrameType,
    Head,
    Record,
    SegmentCodec,
    SegmentHeader,
    decode_head,
    decode_segment_header,
    encode_head,
)
from server.wal.signing import Signer, key_id_of, subkey
from tests.wal.support import RULES

KEY = bytes(range(32))
HEADER = SegmentHeader(key_id_of(KEY), b"L" * 16, 7, 41, 40, 1_700_000_000_000_000_000, 999, b"S" * 16, b"P" * 32)
CODEC = SegmentCodec.of(HEADER, KEY)
HEAD = Head(key_id_of(KEY), b"L" * 16, 9, 1, 7, 164, 41, 40, 1_700_000_000_000_000_000, b"T" * 32, clean=True)
PREVIOUS = b"\x11" * 32

records = st.builds(
    Record,
    seq=st.integers(0, 2**64 - 1),
    kind=st.sampled_from(sorted(RULES.kinds or ())),
    state=st.sampled_from(EntryState),
    wall_ns=st.integers(0, 2**64 - 1),
    principal=st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)),
    trace=st.text(st.characters(max_codepoint=127), max_size=60),
    body=st.binary(max_size=300),
    points=st.integers(0, RULES.entry_points),
)
RECORD = Record(41, 1, EntryState.PENDING, 5, b"p" * 32, "00-trace-01", b"body", 3)


def frame_of(record: Record = RECORD, durable_before: int = 3, head_generation: int = 9) -> bytes:
    return CODEC.entry(record, PREVIOUS, durable_before, head_generation)[0]


def decoded(data: bytes, at: int = 0, rules: FrameRules = RULES) -> Frame | Flaw:
    return CODEC.decode(data, at, PREVIOUS, rules)


def resigned(frame: bytes, **changed: bytes) -> bytes:
    """A frame changed by somebody who has the key: offsets as `at_N=bytes`."""
    data = bytearray(frame)
    for name, value in changed.items():
        at = int(name.removeprefix("at_"))
        data[at : at + len(value)] = value
    plain, payload = bytes(data[:56]), bytes(data[60:-36])
    header = plain + google_crc32c.extend(CODEC.salt_crc, plain).to_bytes(4, "little")
    mac = CODEC.signer.mac(PREVIOUS, header, payload)
    crc = google_crc32c.extend(int.from_bytes(header[56:], "little"), payload + mac)
    return header + payload + mac + crc.to_bytes(4, "little")


@given(records, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=80), st.binary(max_size=80))
def test_an_entry_comes_back_whole_whatever_surrounds_it(
    record: Record, durable: int, generation: int, before: bytes, after: bytes
) -> None:
    frame, mac = CODEC.entry(record, PREVIOUS, durable, generation)
    assert len(frame) == FRAME_OVERHEAD_BYTES + len(record.principal) + len(record.trace) + len(record.body)
    found = decoded(before + frame + after, len(before))
    assert isinstance(found, Frame)
    assert (found.type, found.seq, found.length, found.mac) == (FrameType.ENTRY, record.seq, len(frame), mac)
    assert (found.durable_before, found.head_generation, found.replayed_seq) == (durable, generation, 0)
    assert found.record == record
    assert CODEC.durable_before(before + frame + after, len(before)) == durable


@given(records)
@settings(max_examples=25)
def test_a_frame_that_arrives_byte_by_byte_is_short_until_its_last_byte(record: Record) -> None:
    frame = frame_of(record)
    for length in range(len(frame)):
        assert decoded(frame[:length]) is Flaw.SHORT
    assert isinstance(decoded(frame), Frame)


@pytest.mark.parametrize("type_", [FrameType.CURSOR, FrameType.SEAL])
def test_marks_come_back(type_: FrameType) -> None:
    frame, mac = CODEC.mark(type_, 41, 12, PREVIOUS, wall_ns=5, durable_before=3, head_generation=9)
    found = decoded(frame + b"more")
    assert isinstance(found, Frame)
    assert (found.type, found.seq, found.length, found.mac) == (type_, 41, len(frame), mac)
    assert (found.durable_before, found.head_generation, found.record) == (3, 9, None)
    assert found.replayed_seq == (12 if type_ is FrameType.CURSOR else 0)


def test_every_flipped_bit_of_a_frame_shows() -> None:
    frame = frame_of()
    for bit in range(len(frame) * 8):
        data = bytearray(frame)
        data[bit // 8] ^= 1 << bit % 8
        assert decoded(bytes(data)) in (Flaw.GARBLED, Flaw.SHORT), bit


def test_every_flipped_bit_shows_even_when_the_checksums_are_made_right_again() -> None:
    """What the CRC cannot see, the MAC must: lengths, state, kind, time and order included."""
    frame = frame_of()
    for bit in range((len(frame) - 4) * 8):
        if 56 * 8 <= bit < 60 * 8:
            continue
        data = bytearray(frame)
        data[bit // 8] ^= 1 << bit % 8
        header_crc = google_crc32c.extend(CODEC.salt_crc, bytes(data[:56]))
        data[56:60] = header_crc.to_bytes(4, "little")
        data[-4:] = google_crc32c.extend(header_crc, bytes(data[60:-4])).to_bytes(4, "little")
        assert isinstance(decoded(bytes(data)), Flaw), bit


@pytest.mark.parametrize(
    "lengths", [(32, 10, 5), (32, 12, 3), (32, 15, 0), (32, 0, 15), (0, 43, 4), (0, 11, 36), (0, 0, 47)]
)
def test_the_boundaries_between_fields_are_signed(lengths: tuple[int, int, int]) -> None:
    """The same bytes, divided otherwise between principal, trace and body, with right checksums."""
    data = bytearray(frame_of())
    assert struct.unpack_from("<HHI", data, 12) == (32, 11, 4)
    struct.pack_into("<HHI", data, 12, *lengths)
    header_crc = google_crc32c.extend(CODEC.salt_crc, bytes(data[:56]))
    data[56:60] = header_crc.to_bytes(4, "little")
    data[-4:] = google_crc32c.extend(header_crc, bytes(data[60:-4])).to_bytes(4, "little")
    assert decoded(bytes(data)) is Flaw.FORGED


def test_the_chain_shows_another_predecessor() -> None:
    assert CODEC.decode(frame_of(), 0, b"\x12" * 32, RULES) is Flaw.FORGED


def test_a_frame_of_another_segment_is_no_frame_here() -> None:
    other = SegmentCodec.of(replace(HEADER, salt=b"Z" * 16), KEY)
    assert other.decode(frame_of(), 0, PREVIOUS, RULES) is Flaw.GARBLED


@given(records, st.data())
@settings(max_examples=400)
def test_mutated_frames_never_crash_and_are_never_believed(record: Record, data: st.DataObject) -> None:
    frame = bytearray(frame_of(record))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(("set", "insert", "delete"))):
            case "set":
                frame[at] = data.draw(st.integers(0, 255))
            case "insert":
                frame[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case _:
                del frame[at : at + data.draw(st.integers(1, 8))]
        frame = frame or bytearray(b"\0")
    if bytes(frame[: len(frame_of(record))]) != frame_of(record):
        assert isinstance(decoded(bytes(frame)), Flaw)


@given(st.binary(max_size=400), st.integers(0, 400))
@settings(max_examples=400)
def test_any_bytes_decode_to_a_flaw(data: bytes, at: int) -> None:
    assert isinstance(decoded(data, at), Flaw)
    assert isinstance(decode_head(data, KEY), Flaw)
    assert isinstance(decode_segment_header(data, KEY), Flaw)


def test_a_length_that_lies_does_not_allocate() -> None:
    """The header of a frame is checked by itself, and then its length against what is there."""
    frame = bytearray(frame_of())
    frame[16:20] = b"\xff\xff\xff\xff"
    assert decoded(bytes(frame)) is Flaw.GARBLED
    frame[56:60] = google_crc32c.extend(CODEC.salt_crc, bytes(frame[:56])).to_bytes(4, "little")
    assert decoded(bytes(frame)) is Flaw.SHORT


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"at_4": b"\x09"}, "type"),
        ({"at_5": b"\x03"}, "state"),
        ({"at_6": b"\x63\x00"}, "kind"),
        ({"at_8": b"\x11\x27\x00\x00"}, "points"),
        ({"at_20": b"\x01"}, "reserved"),
        ({"at_4": b"\x02"}, "a cursor that is not 8 bytes"),
        ({"at_12": b"\x1f\x00", "at_14": b"\x0c\x00"}, "length of the principal"),
        ({"at_92": b"\xe9"}, "a trace that is not ASCII"),
    ],
)
def test_what_is_signed_and_not_allowed_is_refused_when_read_back(changed: dict[str, bytes], what: str) -> None:
    assert isinstance(decoded(resigned(frame_of())), Frame)
    assert decoded(resigned(frame_of(), **changed)) is Flaw.ILLEGAL, what


def test_limits_are_checked_when_read_back() -> None:
    assert decoded(frame_of(), rules=FrameRules(frozenset({2}), 100, 100)) is Flaw.ILLEGAL
    assert decoded(frame_of(), rules=FrameRules(frozenset({1}), 3, 100)) is Flaw.ILLEGAL
    assert decoded(frame_of(), rules=FrameRules(frozenset({1}), 4, 2)) is Flaw.ILLEGAL
    assert isinstance(decoded(frame_of(), rules=FrameRules(frozenset({1}), 4, 3)), Frame)
    assert isinstance(decoded(frame_of(), rules=FrameRules(None, 4, 3)), Frame)


def test_headers_come_back_and_every_flipped_bit_shows() -> None:
    codec = decode_segment_header(CODEC.encoded + b"frames", KEY)
    assert isinstance(codec, SegmentCodec)
    assert (codec.header, codec.head_mac) == (HEADER, CODEC.head_mac)
    assert len(CODEC.encoded) == SEGMENT_HEADER_BYTES
    for bit in range(SEGMENT_HEADER_BYTES * 8):
        data = bytearray(CODEC.encoded)
        data[bit // 8] ^= 1 << bit % 8
        assert isinstance(decode_segment_header(bytes(data), KEY), Flaw), bit
    assert decode_segment_header(CODEC.encoded, b"k" * 32) is Flaw.FORGED
    assert all(decode_segment_header(CODEC.encoded[:n], KEY) is Flaw.SHORT for n in range(SEGMENT_HEADER_BYTES))


@pytest.mark.parametrize("clean", [True, False])
def test_heads_come_back_and_every_flipped_bit_shows(clean: bool) -> None:
    head = replace(HEAD, clean=clean)
    encoded = encode_head(head, KEY)
    assert decode_head(encoded, KEY) == head
    assert len(encoded) == HEAD_BYTES
    for bit in range(HEAD_BYTES * 8):
        data = bytearray(encoded)
        data[bit // 8] ^= 1 << bit % 8
        assert isinstance(decode_head(bytes(data), KEY), Flaw), bit
    assert decode_head(encoded, b"k" * 32) is Flaw.FORGED
    assert decode_head(encoded + b"\0", KEY) is Flaw.GARBLED
    assert all(decode_head(encoded[:n], KEY) is Flaw.SHORT for n in range(HEAD_BYTES))


def test_a_later_version_is_told_apart_from_damage() -> None:
    for encoded, decode in ((encode_head(HEAD, KEY), decode_head), (CODEC.encoded, decode_segment_header)):
        same_layout = bytearray(encoded)
        same_layout[8:10] = b"\x02\x00"
        same_layout[-4:] = google_crc32c.value(bytes(same_layout[:-4])).to_bytes(4, "little")
        assert decode(bytes(same_layout), KEY) is Flaw.UNKNOWN_VERSION
        longer = bytearray(encoded + bytes(36))
        longer[8:12] = b"\x02\x00" + len(longer).to_bytes(2, "little")
        assert decode(bytes(longer), KEY) is Flaw.UNKNOWN_VERSION


@given(st.binary(min_size=32, max_size=32), st.lists(st.binary(max_size=50), max_size=5))
def test_the_signer_is_hmac_sha256(key: bytes, parts: list[bytes]) -> None:
    assert Signer(key).mac(*parts) == reference_hmac.digest(key, b"".join(parts), hashlib.sha256)


def test_no_two_uses_share_a_key() -> None:
    uses = [("head", b"ab"), ("head", b"a", b"b"), ("segment", b"ab"), ("headab",), ("head", b"ab", b"")]
    assert len({subkey(KEY, *use) for use in uses}) == len(uses)
    assert len({SegmentCodec.of(replace(HEADER, number=n), KEY).signer.mac(b"x") for n in range(5)}) == 5


MUTATED = 200_000
# Watching memory is slow: the first tenth stands for the rest.
WATCHED = 20_000
# What decoding may need at a time, with its input: copies of the parts, a few objects.
PEAK_BYTES_MOST = 64 * 1024


def mutated(rng: random.Random, original: bytes) -> bytes:
    """A few bytes changed, put in, taken out, doubled; sometimes cut or with more behind."""
    data = bytearray(original[: rng.randrange(len(original) + 1)] if rng.random() < 0.2 else original)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 1:
                del data[at : at + rng.randrange(1, 9)]
            case 2:
                data[at:at] = data[at : at + rng.randrange(1, 200)]
            case _ if data:
                data[at - 1] ^= rng.randrange(1, 256)
    return bytes(data)


def decode_mutated(rng: random.Random, count: int) -> int:
    """Decode at least so many mutated inputs, none of which may be believed; returns how many."""
    long = replace(RECORD, body=bytes(3000))
    mark, _ = CODEC.mark(FrameType.CURSOR, 41, 12, PREVIOUS, wall_ns=5, durable_before=3, head_generation=9)
    cases: list[tuple[bytes, Callable[[bytes], object]]] = [
        (frame_of(), decoded),
        (frame_of(long), decoded),
        (mark, decoded),
        (encode_head(HEAD, KEY), lambda data: decode_head(data, KEY)),
        (CODEC.encoded, lambda data: decode_segment_header(data, KEY)),
        (ITEM, decoded_item),
    ]
    tried = 0
    while tried < count:
        for original, decode in cases:
            data = mutated(rng, original)
            # Bytes behind a frame or the header of a segment are not its own.
            if data == original or (data.startswith(original) and original[:8] not in (HEAD_MAGIC, ITEM_MAGIC)):
                continue
            assert isinstance(decode(data), Flaw | str)
            tried += 1
    return tried


@pytest.mark.timeout(120)
def test_two_hundred_thousand_mutated_inputs() -> None:
    """Seeded and without hypothesis, so that there can be many."""
    rng = random.Random(5)
    tracemalloc.start()
    try:
        tried = decode_mutated(rng, WATCHED)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES_MOST
    tried += decode_mutated(rng, MUTATED - tried)
    print(f"{tried} mutated inputs, {peak} bytes at most")
    assert tried >= MUTATED


KEYRING = Keyring(Path("/keys"), {key_id_of(KEY): KEY})
ITEM = encode_item(Refused(RECORD, 3, "Wrong input: ä"), key_id_of(KEY), KEY, b"L" * 16, now_ns=7)


def decoded_item(data: bytes) -> tuple[QuarantineItem, Record] | str:
    return decode_item(data, KEYRING, Path("/quarantine/41"))


def test_a_refused_entry_comes_back_and_is_flawed_until_its_last_byte_and_beyond() -> None:
    found = decoded_item(ITEM)
    assert not isinstance(found, str)
    assert found[1] == RECORD
    assert (found[0].seq, found[0].code, found[0].details, found[0].wall_ns) == (41, 3, "Wrong input: ä", 7)
    for length in range(len(ITEM)):
        assert isinstance(decoded_item(ITEM[:length]), str), length
    for extra in (b"\0", b"more", ITEM):
        assert isinstance(decoded_item(ITEM + extra), str)


@pytest.mark.parametrize("type_", [FrameType.CURSOR, FrameType.SEAL])
def test_a_mark_that_arrives_byte_by_byte_is_short_until_its_last_byte(type_: FrameType) -> None:
    frame, _ = CODEC.mark(type_, 41, 12, PREVIOUS, wall_ns=5, durable_before=3, head_generation=9)
    for length in range(len(frame)):
        assert decoded(frame[:length]) is Flaw.SHORT
        assert CODEC.durable_before(frame[:length], 0) is None
    assert isinstance(decoded(frame), Frame)
    assert CODEC.durable_before(frame, 0) == 3
