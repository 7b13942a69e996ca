"""Ids and keys."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generated.qdrant import qdrant_common_pb2 as common
from server.replica.points import BadPointId, id_of, key_of, keys_of, text_of
from server.rpc import Code

numbers = st.integers(min_value=0, max_value=2**64 - 1)
uuids = st.uuids()
ids = st.one_of(numbers, uuids)


def _id(value: int | uuid.UUID) -> common.PointId:
    return common.PointId(num=value) if isinstance(value, int) else common.PointId(uuid=str(value))


@given(ids)
def test_a_key_gives_its_id_back(value: int | uuid.UUID) -> None:
    assert id_of(key_of(_id(value))) == _id(value)
    assert text_of(key_of(_id(value))) == str(value)


@given(st.lists(ids, max_size=20))
def test_keys_sort_as_qdrant_sorts_ids(values: list[int | uuid.UUID]) -> None:
    by_key = sorted(values, key=lambda value: key_of(_id(value)))
    assert by_key == sorted(values, key=lambda v: (0, v, 0) if isinstance(v, int) else (1, 0, v.bytes))


@given(uuids)
def test_every_spelling_of_a_uuid_is_one_id(value: uuid.UUID) -> None:
    canonical = str(value)
    spellings = (value.hex, canonical.upper(), value.hex.upper(), f"{{{canonical}}}", value.urn)
    assert {key_of(common.PointId(uuid=text)) for text in spellings} == {key_of(common.PointId(uuid=canonical))}
    assert keys_of(common.PointId(uuid=text) for text in spellings) == [key_of(common.PointId(uuid=canonical))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1",
        "936da01f-9abd-4d9d-80c7-02af85c822a",
        "936da01f9abd4d9d80c702af85c822a8z",
        "936da01f-9abd4d9d80c702af85c822a8",
        "{936da01f9abd4d9d80c702af85c822a8}",
        " 936da01f9abd4d9d80c702af85c822a8",
        "936da01f9abd4d9d80c702af85c822a8\n",
        "urn:uuid:936da01f9abd4d9d80c702af85c822a8",
    ],
)
def test_a_text_that_is_no_uuid_is_refused(text: str) -> None:
    with pytest.raises(BadPointId) as refused:
        key_of(common.PointId(uuid=text))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.details == f"Unable to parse UUID: {text}"


def test_no_id_is_refused() -> None:
    with pytest.raises(BadPointId, match="Empty ID is not allowed"):
        key_of(common.PointId())


@pytest.mark.parametrize("key", [b"", b"\x00", b"\x00" + bytes(7), b"\x01" + bytes(8), b"\x02" + bytes(8)])
def test_bytes_that_are_no_key_are_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="not a point key"):
        id_of(key)
