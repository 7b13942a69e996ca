"""Which strings of a request are looked at, and what must stay as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from generated.qdrant import collections_pb2, points_pb2
from server.rpc import METHODS
from server.scrub import Scrubber
from server.scrub.requests import TEXTS, UndecodableRequest
from tests.pure.scrub_samples import ALNUM, BASE32, noise

SCRUBBER = Scrubber.load()
SECRET = f"ghp_{noise(ALNUM, 36)}"
CLEAN = "[REDACTED:github-token]"
LOGGED = [row for row in METHODS.values() if row.wal_kind]

# Strings that are names, ids and settings: they select what is meant, and must reach the log as they are.
NAMES = {
    "qdrant.AliasOperations": {"alias_name", "collection_name", "old_alias_name", "new_alias_name"},
    "*": {
        "collection_name", "alias_name", "old_alias_name", "new_alias_name", "uuid", "key", "keys", "vector_name",
        "field_name", "names", "model", "has_vector", "keyword", "language", "languages", "custom", "nested",
    },
}  # fmt: skip


def strings_of(descriptor: Any, seen: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
    """Each string field that a request can hold, as (message, field)."""
    if descriptor.full_name in seen:
        return
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield descriptor.full_name, field.name
        elif field.message_type is not None:
            inner = field.message_type
            if inner.GetOptions().map_entry:
                inner = inner.fields_by_name["value"].message_type
            if inner is not None:
                yield from strings_of(inner, seen | {descriptor.full_name})


@pytest.mark.parametrize("row", LOGGED, ids=[row.path for row in LOGGED])
def test_every_string_that_may_be_logged_is_text_or_a_known_name(row: Any) -> None:
    for message, field in strings_of(row.request.DESCRIPTOR):
        if field in TEXTS.get(message, ()):
            continue
        assert field in NAMES["*"], f"{message}.{field} is neither scrubbed nor known to be a name"
        # A keyword of a shard key is a name; the keyword of a match is text and was skipped above.
        assert field != "keyword" or message == "qdrant.ShardKey"


def filled(message: Any, text: str, depth: int = 7) -> None:
    """Put `text` into every string, with numbers and vectors left empty."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and field.containing_oneof.fields[0].name[0] != "_":
            continue
        _fill_field(message, field, text, depth)
    for oneof in message.DESCRIPTOR.oneofs:
        if depth:
            _fill_field(message, oneof.fields[depth % len(oneof.fields)], text, depth)


def _fill_field(message: Any, field: Any, text: str, depth: int) -> None:
    if field.type == FieldDescriptor.TYPE_STRING:
        if field.is_repeated:
            getattr(message, field.name).append(text)
        else:
            setattr(message, field.name, text)
    elif field.message_type is None or not depth:
        return
    elif field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is not None:
            filled(getattr(message, field.name)["k"], text, depth - 1)
    elif field.is_repeated:
        filled(getattr(message, field.name).add(), text, depth - 1)
    else:
        inner = getattr(message, field.name)
        inner.SetInParent()
        filled(inner, text, depth - 1)


def texts_in(message: Message) -> Iterator[tuple[str, str, str]]:
    """Each string in a message, as (message, field, text)."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in value if field.is_repeated else [value]:
                yield message.DESCRIPTOR.full_name, field.name, text
        elif field.message_type is not None:
            values: Any = [value]
            if field.message_type.GetOptions().map_entry:
                values = value.values() if field.message_type.fields_by_name["value"].message_type else []
            elif field.is_repeated:
                values = value
            for entry in values:
                yield from texts_in(entry)


@pytest.mark.parametrize("depth", range(4, 14))
@pytest.mark.parametrize("row", LOGGED, ids=[row.path for row in LOGGED])
def test_texts_are_scrubbed_and_names_are_not(row: Any, depth: int) -> None:
    request = row.request()
    filled(request, SECRET, depth)
    body = request.SerializeToString()
    clean, count = SCRUBBER.scrub_request(row.path, body)
    found = list(texts_in(row.request.FromString(clean)))
    for message, field, text in found:
        expected = CLEAN if field in TEXTS.get(message, ()) else SECRET
        assert text == expected, (message, field)
    assert count == sum(1 for _, _, text in found if text == CLEAN)
    assert (clean is body) == (count == 0)
    again, none = SCRUBBER.scrub_request(row.path, clean)
    assert again is clean and none == 0


def test_reads_and_unknown_methods_are_left_alone() -> None:
    request = points_pb2.ScrollPoints(collection_name="c")
    request.filter.must.add().field.match.keyword = SECRET
    body = request.SerializeToString()
    for method in ("/qdrant.Points/Scroll", "/qdrant.Points/Future", "/qdrant.Snapshots/Create"):
        result, count = SCRUBBER.scrub_request(method, body)
        assert result is body and count == 0


def test_a_request_without_keywords_is_not_even_read() -> None:
    result, count = SCRUBBER.scrub_request("/qdrant.Points/Upsert", b"\xff\xff no message")
    assert count == 0 and result == b"\xff\xff no message"


def test_what_is_no_request_never_passes_as_clean() -> None:
    with pytest.raises(UndecodableRequest):
        SCRUBBER.scrub_request("/qdrant.Points/Upsert", b"\xff\xff " + SECRET.encode())


def upsert(**payload: Any) -> points_pb2.UpsertPoints:
    request = points_pb2.UpsertPoints(collection_name="c")
    point = request.points.add()
    point.id.uuid = "550e8400-e29b-41d4-a716-446655440000"
    point.vectors.vectors.vectors[SECRET].dense.data.extend([0.1, 0.2])
    for key, value in payload.items():
        point.payload[key].CopyFrom(value_of(value))
    return request


def value_of(value: Any) -> Any:
    from generated.qdrant.json_with_int_pb2 import Value

    made = Value()
    if isinstance(value, str):
        made.string_value = value
    elif isinstance(value, list):
        made.list_value.SetInParent()
        made.list_value.values.extend(value_of(entry) for entry in value)
    elif isinstance(value, dict):
        made.struct_value.SetInParent()
        for key, entry in value.items():
            made.struct_value.fields[key].CopyFrom(value_of(entry))
    else:
        made.integer_value = value
    return made


def scrubbed(request: points_pb2.UpsertPoints) -> points_pb2.UpsertPoints:
    clean, _ = SCRUBBER.scrub_request("/qdrant.Points/Upsert", request.SerializeToString())
    return points_pb2.UpsertPoints.FromString(clean)


def test_nested_values_and_their_names() -> None:
    value = noise(ALNUM, 32, 4)
    clean = scrubbed(upsert(api_key=value, other=value, nested={"password": ["Tr0ub4dor&3!", {"x": [SECRET]}]}, n=7))
    payload = clean.points[0].payload
    assert payload["api_key"].string_value == "[REDACTED:generic-api-key]"
    assert payload["other"].string_value == value
    nested = payload["nested"].struct_value.fields["password"].list_value.values
    assert nested[0].string_value == "[REDACTED:password-assignment]"
    assert nested[1].struct_value.fields["x"].list_value.values[0].string_value == CLEAN
    assert payload["n"].integer_value == 7


def test_keys_of_a_payload_stay_so_that_no_value_is_lost() -> None:
    clean = scrubbed(upsert(**{SECRET: "a", f"ghp_{noise(ALNUM, 36, 2)}": SECRET}))
    assert sorted(value.string_value for value in clean.points[0].payload.values()) == [CLEAN, "a"]
    assert SECRET in clean.points[0].payload
    assert SECRET in clean.points[0].vectors.vectors.vectors


def test_a_filter_is_judged_by_the_name_of_its_field() -> None:
    value = noise(ALNUM, 32, 4)
    for key in ("api_key", "meta.api_key", "meta.api_key[]"):
        request = points_pb2.DeletePoints(collection_name="c")
        condition = request.points.filter.must.add().field
        condition.key, condition.match.keyword = key, value
        result = SCRUBBER.scrub("/qdrant.Points/Delete", request.SerializeToString())
        assert (result.redactions, result.in_filters) == (1, 1), key
    assert SCRUBBER.scrub("/qdrant.Points/Upsert", upsert(api_key=value).SerializeToString()).in_filters == 0


def test_a_secret_in_the_filter_of_a_read_is_counted() -> None:
    request = points_pb2.ScrollPoints(collection_name="c")
    request.filter.must_not.add().filter.should.add().field.match.keywords.strings.extend(["a", SECRET])
    assert SCRUBBER.secrets_in_filters("/qdrant.Points/Scroll", request.SerializeToString()) == 1
    assert SCRUBBER.secrets_in_filters("/qdrant.Points/Scroll", b"") == 0
    assert SCRUBBER.secrets_in_filters("/qdrant.Points/Future", SECRET.encode()) == 0


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field as it lies on the wire."""
    out = bytearray()
    for rest in ((number << 3) | 2, len(data)):
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7  # noqa: PLW2901 - the number, seven bits at a time
        out.append(rest)
    return bytes(out) + data


def test_fields_of_a_newer_api_are_dropped_only_where_a_secret_lies_in_them() -> None:
    known = upsert(text="ordinary token").SerializeToString()
    quiet = known + _field(900, b"quiet token") + _field(2047, _field(3, b"also quiet"))
    result, count = SCRUBBER.scrub_request("/qdrant.Points/Upsert", quiet)
    assert result is quiet and count == 0
    for hidden in (_field(900, SECRET.encode()), _field(900, _field(1, _field(2, b"x " + SECRET.encode())))):
        clean, count = SCRUBBER.scrub_request("/qdrant.Points/Upsert", known + hidden)
        assert SECRET[:20].encode() not in clean.replace(SECRET.encode(), b"", 1)
        assert count >= 1
        assert points_pb2.UpsertPoints.FromString(clean).points[0].payload["text"].string_value == "ordinary token"


def test_a_secret_deep_in_unknown_fields_is_read_on_its_own() -> None:
    """The length before it is a letter here, which a rule that begins at a word border must not see."""
    secret = f"AKIA{noise(BASE32, 16)}"
    text = secret.encode() + b"." * (ord("A") - len(secret))
    assert _field(1, text)[1:].startswith(b"AAKIA")
    body = upsert(text="x").SerializeToString() + _field(900, _field(1, text))
    clean, count = SCRUBBER.scrub_request("/qdrant.Points/Upsert", body)
    assert count and secret.encode() not in clean


def test_pages_of_points_on_their_way_to_the_replica() -> None:
    page = points_pb2.ScrollResponse(time=1.0)
    page.next_page_offset.num = 7
    page.result.add().payload["contact"].string_value = SECRET
    clean, count = SCRUBBER.scrub_message(points_pb2.ScrollResponse, page.SerializeToString())
    found = points_pb2.ScrollResponse.FromString(clean)
    assert (found.result[0].payload["contact"].string_value, found.next_page_offset.num, count) == (CLEAN, 7, 1)
    again, none = SCRUBBER.scrub_message(points_pb2.ScrollResponse, clean)
    assert again is clean and none == 0
    with pytest.raises(UndecodableRequest):
        SCRUBBER.scrub_message(points_pb2.ScrollResponse, b"\xff " + SECRET.encode())


def test_without_rules_nothing_is_read_nor_changed() -> None:
    off = Scrubber(())
    body = upsert(text=SECRET).SerializeToString()
    result, count = off.scrub_request("/qdrant.Points/Upsert", body)
    assert result is body and count == 0
    assert off.scrub_request("/qdrant.Points/Upsert", b"\xff")[0] == b"\xff"
    assert off.scrub_text(SECRET) is SECRET


def test_metadata_of_a_collection_is_scrubbed_and_its_names_are_not() -> None:
    request = collections_pb2.CreateCollection(collection_name=SECRET)
    request.metadata["contact"].string_value = SECRET
    clean, count = SCRUBBER.scrub_request("/qdrant.Collections/Create", request.SerializeToString())
    read = collections_pb2.CreateCollection.FromString(clean)
    assert (read.collection_name, read.metadata["contact"].string_value, count) == (SECRET, CLEAN, 1)


VALUES = st.recursive(
    st.one_of(st.text(max_size=20), st.just(SECRET), st.integers(0, 9), st.just(f"password: {noise(ALNUM, 14)}1")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "token", "password"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["text", "api_key", "secret", "n"]), VALUES, max_size=4))
def test_any_payload_keeps_its_shape_and_loses_its_secrets(payload: dict[str, Any]) -> None:
    body = upsert(**payload).SerializeToString()
    clean, count = SCRUBBER.scrub_request("/qdrant.Points/Upsert", body)
    before, after = points_pb2.UpsertPoints.FromString(body), points_pb2.UpsertPoints.FromString(clean)
    assert shape(before.points[0].payload) == shape(after.points[0].payload)
    # The one left is the name of a vector.
    assert clean.count(SECRET.encode()) == 1
    assert (clean is body) == (count == 0)
    assert SCRUBBER.scrub_request("/qdrant.Points/Upsert", clean) == (clean, 0)


def shape(payload: Any) -> Any:
    return {key: _shape(value) for key, value in payload.items()}


def _shape(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [_shape(entry) for entry in value.list_value.values]
    if kind == "struct_value":
        return shape(value.struct_value.fields)
    return kind
